package main

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"codeberg.org/devaipod/devaipod/pods"
	"codeberg.org/devaipod/devaipod/pods/backend"
	"codeberg.org/devaipod/devaipod/pods/podfile"
	"codeberg.org/devaipod/devaipod/pods/reconcile"
)

// noImages asks nobody; the interface has a method of its own name.
type (
	images   = pods.Images
	noImages struct{ images }
)

// stopsAll is a backend that has nothing but containers that stop.
type stopsAll struct{ backend.Backend }

func (stopsAll) Stop(context.Context, ...backend.Ending) error { return nil }

// A person's removal takes the label off, saves what the agent did, and removes: the
// loop sees that there is no label and stops the pod in the midst of the second. What
// is saved goes out by the pod's door.
func TestAStopLeavesTheDoorToWhatIsBeingSaved(t *testing.T) {
	manager, err := pods.New(pods.Config{
		Instance: "t", StateDir: t.TempDir(), Backend: stopsAll{}, Images: noImages{}, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(http.NotFoundHandler())
	defer srv.Close()
	k := reconcile.Key{Owner: "ada", Repo: "x", Issue: 1}
	saving := &save{done: make(chan struct{})}
	p := &podPort{
		manager: manager, doors: map[reconcile.Key]door{k: {srv.Config}}, saves: map[reconcile.Key]*save{k: saving},
	}
	if err := p.Stop(t.Context(), k); err != nil {
		t.Fatal(err)
	}
	rsp, err := http.Get(srv.URL)
	if err != nil {
		t.Fatal("what is saved finds the door shut: ", err)
	}
	if err := rsp.Body.Close(); err != nil {
		t.Fatal(err)
	}
	close(saving.done)
	if err := p.Stop(t.Context(), k); err != nil {
		t.Fatal(err)
	}
	if rsp, err := http.Get(srv.URL); err == nil {
		_ = rsp.Body.Close()
		t.Error("the door of a stopped pod stays open")
	}
}

// Before its pod is removed, the loop asks again and again.
func TestWhatPeopleLeftIsLookedAtOnceUntilThePodRuns(t *testing.T) {
	k := reconcile.Key{Owner: "ada", Repo: "x", Issue: 1}
	done := make(chan struct{})
	close(done)
	whole := podfile.Saved{Complete: true}
	for name, tt := range map[string]struct {
		save  save
		again bool   // the next removal saves anew
		want  string // in what keeps the pod, "" for nothing
	}{
		"nothing":                        {save{saved: whole}, true, ""},
		"people's files":                 {save{saved: whole, work: podfile.Work{Changes: []string{"?? mine"}}}, false, "stays: people have left in its workspace what is nowhere else (devaipod cp ada/x#1:. DIRECTORY copies the clone with its history)\n  change: ?? mine\n"},
		"what can't be told":             {save{saved: whole, work: podfile.Work{Broken: "no git"}}, true, "stays: what people have left in its workspace can't be told: no git\n"},
		"an agent's files, and people's": {save{saved: podfile.Saved{Error: "full"}, work: podfile.Work{Commits: []string{"1 a"}}}, true, "stays: not all that its agent did could be saved: full: people have left"},
	} {
		tt.save.done = done
		p := &podPort{saves: map[reconcile.Key]*save{k: &tt.save}}
		err := p.savedFirst(t.Context(), k)
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", name, err)
		}
		if again := p.saves[k] == nil; again != tt.again {
			t.Errorf("%s: looked at again: %v", name, again)
		}
		if p.forgetSave(k); p.saves[k] != nil {
			t.Errorf("%s: not forgotten when the pod goes on", name)
		}
	}
}
