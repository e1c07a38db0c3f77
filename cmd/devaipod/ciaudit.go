package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"codeberg.org/devaipod/devaipod/ci"
	cijob "codeberg.org/devaipod/devaipod/ci/job"
	"codeberg.org/devaipod/devaipod/pods"
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
			Done: strings.Join(given, ", ") + " for " + jobWords(j.Info), Result: sent,
		})
	}
	return h.Executor.Run(ctx, j, events)
}

// jobWords name a job.
func jobWords(i ci.Info) string {
	return fmt.Sprintf("job %s of %s at %s, task %d", i.Job, i.Workflow, i.Commit, i.Task)
}

// issueOfJob is the issue whose agent pushed what a job is about, 0 for none.
func issueOfJob(i ci.Info) int64 {
	return pods.IssueOfBranch(strings.TrimPrefix(i.Ref, "refs/heads/"))
}

// keepResult keeps what a job came to, before the forge is told.
func (s *service) keepResult(r ci.Record) {
	e := audit.Entry{Act: "ci-result", About: r.Repo, Who: atName(r.Actor), Rule: "its workflow runs on " + r.Event + "; " + string(r.Tier), Result: r.Result}
	if n := issueOfJob(r.Info); n != 0 {
		e.About = fmt.Sprintf("%s#%d", r.Repo, n)
	}
	e.Done = jobWords(r.Info)
	switch {
	case r.Tier == ci.NeedsApproval: // there may be any number of them, at no cost
		e.Done, e.Result = "jobs at "+r.Commit+", which are not run", cijob.Failure
	case r.Reason != "":
		e.Result += ": " + r.Reason
	}
	_ = s.noted(s.audit.AddOnce(e)) // it said so
}

// keepRunner keeps that the service becomes a runner of a repository's jobs.
func (s *service) keepRunner(repo string) {
	e := audit.Entry{Act: "runner", About: repo, Who: byService, Rule: "ci.runner is " + s.cfg.CI.Runner, Done: s.cfg.Instance + " registers as a runner", Result: sent}
	_ = s.noted(s.audit.AddOnce(e)) // it said so
}
