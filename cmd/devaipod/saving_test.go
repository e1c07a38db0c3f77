package main

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"

	"codeberg.org/devaipod/devaipod/pods"
	"codeberg.org/devaipod/devaipod/pods/backend"
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
