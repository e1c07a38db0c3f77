package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"codeberg.org/devaipod/devaipod/ci"
	cijob "codeberg.org/devaipod/devaipod/ci/job"
	"codeberg.org/devaipod/devaipod/pods/audit"
)

// handOuts keeps in the audit log what jobs are given of secrets, by their names.
type handOuts struct {
	ci.Executor
	note func(audit.Entry) error
}

// Run implements [ci.Executor].
func (h handOuts) Run(ctx context.Context, j ci.Job, events func(cijob.Event)) error {
	if j.Tier == ci.Trusted && j.Secrets {
		given := slices.Sorted(maps.Keys(j.Spec.Secrets))
		_ = h.note(audit.Entry{ // who keeps it says so
			Act: "ci-secrets", About: j.Repo, Who: atName(j.Actor), Rule: "the job is trusted, and its workflow asks for them",
			Done: fmt.Sprintf("%s for job %s of %s at %s, task %d", strings.Join(given, ", "), j.Info.Job, j.Workflow, j.Commit, j.Task), Result: sent,
		})
	}
	return h.Executor.Run(ctx, j, events)
}
