package main_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"codeberg.org/devaipod/devaipod/ci"
	"codeberg.org/devaipod/devaipod/ci/job"
	devaipod "codeberg.org/devaipod/devaipod/cmd/devaipod"
	"codeberg.org/devaipod/devaipod/pods/reconcile"
)

// keepRecords writes records as a runner keeps them.
func keepRecords(t *testing.T, records ...ci.Record) (dir string) {
	t.Helper()
	dir = t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "jobs"), 0o700); err != nil {
		t.Fatal(err)
	}
	for i, r := range records {
		r.Task = int64(i + 1)
		text, err := json.Marshal(r)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, "jobs", fmt.Sprintf("%d.json", r.Task)), text, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestWhyAJobFailedIsFoundByItsRunAndName(t *testing.T) {
	of := func(repo, commit, run, name, step string) ci.Record {
		return ci.Record{Info: ci.Info{Repo: repo, Commit: commit, Run: run, Name: name}, Tier: ci.Untrusted, Result: job.Failure, Failed: step, Tail: "the end of " + step}
	}
	wf := func(r ci.Record) ci.Record { r.Workflow = "a.yml"; return r }
	approval := of("ann/app", "c1", "13", "deploy", "")
	approval.Tier, approval.Reasons = ci.NeedsApproval, []string{"it reads secrets.KEY", "agent/3-x is an agent's branch"}
	dir := keepRecords(t,
		of("ann/app", "c1", "12", "test (1)", "old"), wf(of("Ann/App", "c1", "12", "test (1)", "again")), of("ann/app", "c1", "1", "lint", "another run"),
		of("ann/app", "c2", "12", "lint", "another commit"), of("bob/app", "c1", "12", "lint", "another repository"), of("ann/app", "c1", "12", "docs", "it is well by now"), approval)
	failure, success := reconcile.CIFailure, reconcile.CISuccess
	jobs := []reconcile.CIJob{
		{Name: "a.yml / test (1) (push)", State: failure, URL: "/ann/app/actions/runs/12/jobs/0"},
		{Name: "a.yml / lint (push)", State: failure, URL: "http://forge/ann/app/actions/runs/12/jobs/1"},
		{Name: "a.yml / docs (push)", State: success, URL: "/ann/app/actions/runs/12"},
		{Name: "/ deploy (push)", State: failure, URL: "/ann/app/actions/runs/13"},
		{Name: "elsewhere", State: failure, URL: "https://ci.example.org/actions/runs/12/"},
	}
	want := []reconcile.CIJob{jobs[0], jobs[1], jobs[2], jobs[3], jobs[4]}
	want[0].Run, want[0].Workflow, want[0].Step, want[0].Tail = 2, "a.yml", "again", "the end of again"
	want[3].Run, want[3].Tail, want[3].Person = 7, "the end of ", "needs approval: it reads secrets.KEY; agent/3-x is an agent's branch"
	if err := devaipod.Explain(dir, "ann/app", "c1", jobs); err != nil {
		t.Fatal(err)
	}
	for i := range want {
		if jobs[i] != want[i] {
			t.Errorf("%+v, want %+v", jobs[i], want[i])
		}
	}
	if err := devaipod.Explain(filepath.Join(dir, "nothing"), "ann/app", "c1", jobs); err != nil {
		t.Errorf("where no job ran yet: %v", err)
	}
}

// Of these the agent is told nothing: it could do nothing about them.
func TestWhichJobsNeedAPerson(t *testing.T) {
	for name, tt := range map[string]struct {
		record ci.Record
		want   bool
	}{
		"its tests failed":       {ci.Record{Result: job.Failure, Failed: "make test"}, false},
		"it took too long":       {ci.Record{Result: job.Failure, Reason: ci.ErrTimeout.Error()}, false},
		"it was not run":         {ci.Record{Result: job.Failure, Reason: "the job could not be run to its end: no image"}, false},
		"it wants secrets":       {ci.Record{Result: job.Failure, Tier: ci.NeedsApproval}, true},
		"somebody cancelled it":  {ci.Record{Result: job.Cancelled}, true},
		"the service ended":      {ci.Record{Result: job.Failure, Reason: ci.ErrStopping.Error()}, true},
		"the service was killed": {ci.Record{Result: job.Failure, Reason: ci.Lost}, true},
	} {
		if got := tt.record.Person(); (got != "") != tt.want {
			t.Errorf("%s: %q", name, got)
		}
	}
}

func TestRoundsAreKept(t *testing.T) {
	f := devaipod.RoundsFile(filepath.Join(t.TempDir(), "rounds.json"))
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	read := func() []reconcile.Round {
		t.Helper()
		rounds, err := devaipod.ReadRounds(f)
		must(err)
		return rounds
	}
	must(devaipod.ForgiveRounds(f))
	if got := read(); len(got) != 0 {
		t.Errorf("%+v", got)
	}
	a, b := reconcile.Round{ID: "a", Word: 4}, reconcile.Round{ID: "b", Word: 5}
	must(devaipod.KeepRound(f, a))
	must(devaipod.KeepRound(f, b))
	a.Told = true
	must(devaipod.KeepRound(f, a))
	if got := read(); len(got) != 2 || got[0].ID != "a" || !got[0].Told || got[0].Word != 4 || got[1].ID != "b" {
		t.Errorf("%+v", got)
	}
	must(devaipod.ForgiveRounds(f))
	b.Told = true
	must(devaipod.KeepRound(f, b)) // by the loop, which does not know of it
	if got := read(); got[0].Word != -1 || got[1].Word != -1 || !got[1].Told {
		t.Errorf("%+v", got)
	}
	for i := range 200 {
		must(devaipod.KeepRound(f, reconcile.Round{ID: fmt.Sprint(i)}))
	}
	if got := read(); len(got) != 100 || got[99].ID != "199" {
		t.Errorf("%d rounds", len(got))
	}
	must(os.WriteFile(string(f), []byte("[{"), 0o600))
	if _, err := devaipod.ReadRounds(f); err == nil {
		t.Error("a damaged file is read")
	}
}
