package main

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"codeberg.org/devaipod/devaipod/ci"
	cijob "codeberg.org/devaipod/devaipod/ci/job"
	"codeberg.org/devaipod/devaipod/forge"
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

// What a job came to is told of once, on the issue whose agent pushed it; of jobs that are not
// run there may be many.
func TestWhatJobsCameToIsKept(t *testing.T) {
	a, _ := auditApp(t)
	s := auditService(t, a)
	job := func(task int64, tier ci.Tier, ref, result, reason string) ci.Record {
		return ci.Record{
			Info: ci.Info{Task: task, Repo: "ada/app", Workflow: "test.yaml", Job: "unit", Event: "push", Ref: ref, Commit: "c0ffee", Actor: "ann"},
			Tier: tier, Result: result, Reason: reason,
		}
	}
	for _, r := range []ci.Record{
		job(7, ci.Trusted, "refs/heads/main", cijob.Success, ""),
		job(8, ci.Untrusted, "refs/heads/agent/3-fix-it", cijob.Failure, "it took too long"),
		job(8, ci.Untrusted, "refs/heads/agent/3-fix-it", cijob.Failure, "it took too long"), // as after a kill
		job(9, ci.NeedsApproval, "refs/heads/agent/3-fix-it", cijob.Failure, "needs approval: it wants a secret"),
		job(10, ci.NeedsApproval, "refs/heads/agent/3-fix-it", cijob.Failure, "needs approval: it wants another secret"),
	} {
		s.keepResult(r)
	}
	want := `ci-result|ada/app|@ann|its workflow runs on push; trusted|job unit of test.yaml at c0ffee, task 7|success
ci-result|ada/app#3|@ann|its workflow runs on push; untrusted|job unit of test.yaml at c0ffee, task 8|failure: it took too long
ci-result|ada/app#3|@ann|its workflow runs on push; needs approval|jobs at c0ffee, which are not run|failure`
	if got := keptActs(t, a); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// That the service becomes a runner is told of before it has what it needs for it, and once.
func TestARunnersRegistrationIsKept(t *testing.T) {
	a, _ := auditApp(t)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, `{"id": 5, "name": "app", "full_name": "ada/app", "owner": {"login": "ada"}, "token": "reg-token"}`)
	}))
	t.Cleanup(srv.Close)
	a.cfg.Forge.URL, a.cfg.Forge.Listen = "", strings.TrimPrefix(srv.URL, "http://")
	c, err := a.newForge(forge.Config{Token: "tok-service-1"}, "svc")
	if err != nil {
		t.Fatal(err)
	}
	s := auditService(t, a)
	s.cfg.CI.Runner, s.cfg.Instance = "builtin", "dev"
	port := ciPort{client: c, registers: s.keepRunner}
	for range 2 {
		if token, err := port.token(t.Context(), 5); err != nil || token != "reg-token" {
			t.Fatal(token, err)
		}
	}
	if got, want := keptActs(t, a), "runner|ada/app|the service|ci.runner is builtin|dev registers as a runner|sent"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
