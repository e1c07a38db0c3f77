package main

import (
	"context"
	"testing"

	"codeberg.org/devaipod/devaipod/ci"
	cijob "codeberg.org/devaipod/devaipod/ci/job"
)

type noExecutor struct{ ran int }

func (e *noExecutor) Run(context.Context, ci.Job, func(cijob.Event)) error { e.ran++; return nil }

// A job that gets secrets is told of, by their names; others are not.
func TestSecretsThatJobsGetAreKept(t *testing.T) {
	a, _ := auditApp(t)
	jobs := &noExecutor{}
	h := handOuts{jobs, auditService(t, a).note}
	j := ci.Job{
		Info: ci.Info{Task: 7, Repo: "ada/app", Workflow: "deploy.yaml", Job: "ship", Commit: "c0ffee", Actor: "ann"}, Tier: ci.Trusted, Secrets: true,
		Spec: cijob.Spec{Secrets: map[string]string{"KEY": "sesame-open", "GITHUB_TOKEN": "tok-of-the-job"}},
	}
	agents, plain := j, j
	agents.Tier, plain.Secrets = ci.Untrusted, false
	for _, j := range []ci.Job{agents, plain, j} {
		if err := h.Run(t.Context(), j, nil); err != nil {
			t.Error(err)
		}
	}
	want := "ci-secrets|ada/app|@ann|the job is trusted, and its workflow asks for them|GITHUB_TOKEN, KEY for job ship of deploy.yaml at c0ffee, task 7|sent"
	if got := keptActs(t, a); got != want || jobs.ran != 3 {
		t.Errorf("%d ran; got %s, want %s", jobs.ran, got, want)
	}
}
