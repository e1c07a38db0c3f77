package ci_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/ci"
)

const (
	commitA = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	commitB = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
)

// approvalForge stands for the forge, as approvals see it.
type approvalForge struct {
	said    []ci.Said
	changes map[string]bool
	down    error
	since   []time.Time
	reruns  []string
	answers map[int64]string
}

func (f *approvalForge) Said(_ context.Context, _ int64, since time.Time) ([]ci.Said, error) {
	f.since = append(f.since, since)
	return f.said, f.down
}

func (f *approvalForge) MayApprove(_ context.Context, _ int64, login string) (bool, error) {
	return login == "ann", nil
}

func (f *approvalForge) ChangesWorkflows(_ context.Context, _ int64, commit string) (bool, error) {
	return f.changes[commit], f.down
}

func (f *approvalForge) Rerun(_ context.Context, repo, run int64) error {
	f.reruns = append(f.reruns, fmt.Sprintf("%d/%d", repo, run))
	return f.down
}

func (f *approvalForge) Answer(_ context.Context, _, issue int64, text string) error {
	f.answers[issue] = text
	return f.down
}

// approver is one with records: of jobs "REPO RUN ATTEMPT COMMIT TIER", ended an hour ago.
func approver(t *testing.T, f *approvalForge, records ...string) *ci.Approver {
	t.Helper()
	dir := t.TempDir()
	f.answers = map[int64]string{}
	for i, r := range records {
		rec := ci.Record{Result: "failure", Ended: time.Now().Add(-time.Hour)}
		w := strings.SplitN(r, " ", 5)
		if _, err := fmt.Sscan(w[0], &rec.RepoID); err != nil {
			t.Fatal(err)
		}
		rec.Task, rec.Run, rec.Attempt, rec.Commit, rec.Tier, rec.Job = int64(i+1), w[1], w[2], w[3], ci.Tier(w[4]), "test"
		b, err := json.Marshal(rec)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(filepath.Join(dir, "jobs"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "jobs", fmt.Sprintf("%d.json", rec.Task)), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return ci.NewApprover(ci.OpenStore(dir), f, slog.New(slog.NewTextHandler(t.Output(), nil)))
}

func said(author, body string) ci.Said {
	at := time.Now().Truncate(time.Second)
	return ci.Said{Issue: 3, Author: author, Body: body, Created: at, Updated: at}
}

func approved(t *testing.T, a *ci.Approver, commit string) bool {
	t.Helper()
	ok, err := a.Store.Approved(7, commit)
	if err != nil {
		t.Fatal(err)
	}
	return ok
}

func TestAPersonsWordApprovesTheCommitThatItNames(t *testing.T) {
	f := &approvalForge{said: []ci.Said{said("ann", "I looked at it.\n/approve-ci "+commitA+" \r\n")}}
	a := approver(t, f, "7 5 1 "+commitA+" needs approval", "7 6 1 "+commitB+" needs approval", "7 7 1 "+commitA+" trusted")
	for range 3 { // a rerun is asked for once, though it has not begun
		if err := a.Pass(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if !approved(t, a, commitA) || approved(t, a, commitB) || !slices.Equal(f.reruns, []string{"7/5"}) {
		t.Errorf("approved %v and %v, run again %v", approved(t, a, commitA), approved(t, a, commitB), f.reruns)
	}
	if !strings.Contains(f.answers[3], commitA+" is approved") {
		t.Errorf("the answer is %q", f.answers[3])
	}
}

func TestWhatApprovesNothing(t *testing.T) {
	edited := said("ann", "/approve-ci "+commitA)
	edited.Updated = edited.Updated.Add(time.Second)
	for name, c := range map[string]struct {
		said   ci.Said
		answer string // part of it; "" for none
	}{
		"a stranger":          {said("eve", "/approve-ci "+commitA), ""},
		"quoted":              {said("ann", "> /approve-ci "+commitA), ""},
		"in a line":           {said("ann", "use /approve-ci "+commitA), ""},
		"another order":       {said("ann", "/approve-cinema "+commitA), ""},
		"no commit":           {said("ann", "/approve-ci"), "/approve-ci " + commitA},
		"a part of a name":    {said("ann", "/approve-ci "+commitA[:12]), "name all of the commit"},
		"more than a commit":  {said("ann", "/approve-ci "+commitA+" please"), "name all of the commit"},
		"one that waits not":  {said("ann", "/approve-ci "+commitB), "No job of " + commitB + " waits"},
		"changed later":       {edited, "was changed after it was written"},
		"that of a workflow":  {said("ann", "/approve-ci "+strings.Replace(commitA, "a", "c", 1)), "changes workflows"},
		"letters of a device": {said("ann", "/approve-ci ../../../../../../../etc/passwd"), "name all of the commit"},
	} {
		changer := strings.Replace(commitA, "a", "c", 1)
		f := &approvalForge{said: []ci.Said{c.said}, changes: map[string]bool{changer: true}}
		a := approver(t, f, "7 5 1 "+commitA+" needs approval", "7 6 1 "+changer+" needs approval")
		if err := a.Pass(t.Context()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if approved(t, a, commitA) || approved(t, a, commitB) || approved(t, a, changer) || len(f.reruns) > 0 {
			t.Errorf("%s: approved, run again %v", name, f.reruns)
		}
		if answer := f.answers[3]; (answer != "") != (c.answer != "") || !strings.Contains(answer, c.answer) {
			t.Errorf("%s: the answer is %q", name, answer)
		}
	}
}

func TestARunThatWasRunAgainSinceIsLeftAlone(t *testing.T) {
	for name, again := range map[string]string{"and is trusted now": "trusted", "and wants more yet": "needs approval"} {
		f := &approvalForge{}
		a := approver(t, f, "7 5 1 "+commitA+" needs approval", "7 5 2 "+commitA+" "+again)
		// Approved between the two attempts.
		if err := a.Store.Approve(7, commitA, ci.Approval{By: "ann", Time: time.Now().Add(-2 * time.Hour)}); err != nil {
			t.Fatal(err)
		}
		if err := a.Pass(t.Context()); err != nil || len(f.reruns) > 0 {
			t.Errorf("%s: run again %v, %v", name, f.reruns, err)
		}
	}
}

func TestApprovalsWithoutTheForge(t *testing.T) {
	f := &approvalForge{down: errors.New("down"), said: []ci.Said{said("ann", "/approve-ci "+commitA)}}
	a := approver(t, f, "7 5 1 "+commitA+" needs approval")
	if err := a.Pass(t.Context()); err == nil || approved(t, a, commitA) {
		t.Errorf("with the forge down: approved %v, %v", approved(t, a, commitA), err)
	}
	// Another process goes on with the same directory.
	f.down = nil
	b := ci.NewApprover(a.Store, f, a.Log)
	if err := b.Pass(t.Context()); err != nil || len(f.reruns) != 1 {
		t.Errorf("run again %v, %v", f.reruns, err)
	}
}

func TestNothingIsAskedOfTheForgeWhileNothingWaits(t *testing.T) {
	f := &approvalForge{}
	a := approver(t, f, "7 5 1 "+commitA+" trusted", "7 6 1 "+commitB+" untrusted", "0 6 1 "+commitB+" needs approval")
	if err := a.Pass(t.Context()); err != nil || len(f.since) > 0 {
		t.Errorf("asked %v, %v", f.since, err)
	}
}

func TestApprovingAJobByItsNumber(t *testing.T) {
	f := &approvalForge{changes: map[string]bool{commitB: true}}
	a := approver(t, f, "7 5 1 "+commitA+" needs approval", "7 6 1 "+commitB+" needs approval", "7 7 1 "+commitA+" untrusted")
	if err := a.Approve(t.Context(), 2, "me"); !errors.Is(err, ci.ErrWorkflows) || approved(t, a, commitB) {
		t.Errorf("a commit that changes workflows: %v", err)
	}
	if err := a.Approve(t.Context(), 3, "me"); err == nil || approved(t, a, commitA) {
		t.Errorf("a job that needs none: %v", err)
	}
	if err := a.Approve(t.Context(), 9, "me"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no job: %v", err)
	}
	if err := a.Approve(t.Context(), 1, "me"); err != nil || !approved(t, a, commitA) {
		t.Errorf("approving: %v", err)
	}
	if err := a.Pass(t.Context()); err != nil || !slices.Equal(f.reruns, []string{"7/5"}) {
		t.Errorf("run again %v, %v", f.reruns, err)
	}
}
