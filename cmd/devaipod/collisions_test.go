package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"codeberg.org/devaipod/devaipod/pods/reconcile"
)

// A slowCollider stands for git that takes as long as a test wants.
type slowCollider struct {
	goOn chan struct{}

	mu   sync.Mutex
	most int
	now  int
	done int
}

func (s *slowCollider) Collide(ctx context.Context, _ reconcile.Key, _, one, other string) (reconcile.Collision, error) {
	return s.Landed(ctx, reconcile.Key{}, one, other)
}

func (s *slowCollider) Landed(ctx context.Context, _ reconcile.Key, one, other string) (reconcile.Collision, error) {
	s.mu.Lock()
	s.now++
	s.most = max(s.most, s.now)
	s.mu.Unlock()
	defer func() { s.mu.Lock(); s.now--; s.done++; s.mu.Unlock() }()
	select {
	case <-s.goOn:
	case <-ctx.Done():
		return reconcile.Collision{}, ctx.Err()
	}
	return reconcile.Collision{Files: []string{one + other}}, nil
}

func TestComparingKeepsNobodyWaiting(t *testing.T) {
	by := &slowCollider{goOn: make(chan struct{})}
	kicked := make(chan reconcile.Key, 100)
	p := newCollisions(by, func(k reconcile.Key) { kicked <- k })
	defer p.end()
	key := func(n int) reconcile.Key { return reconcile.Key{Owner: "ann", Repo: "app", Issue: int64(n)} }
	for range 3 { // asked again, it is the same one
		for i := range 6 {
			if _, err := p.Collide(t.Context(), key(i), "base", "a", fmt.Sprint("b", i)); !errors.Is(err, reconcile.ErrLater) {
				t.Fatalf("it is answered at once: %v", err)
			}
		}
	}
	if _, err := p.Collide(t.Context(), key(9), "base", "a", "b0"); !errors.Is(err, reconcile.ErrLater) { // by the other one of the two
		t.Fatal(err)
	}
	close(by.goOn)
	got := map[reconcile.Key]bool{}
	for range 7 {
		got[<-kicked] = true
	}
	if len(got) != 7 || by.done != 6 || by.most > compareAtOnce {
		t.Errorf("kicked %v; compared %d times, %d at once", got, by.done, by.most)
	}
	for i := range 6 {
		if c, err := p.Collide(t.Context(), key(i), "base", "a", fmt.Sprint("b", i)); err != nil || fmt.Sprint(c.Files) != fmt.Sprintf("[ab%d]", i) {
			t.Errorf("%d: %+v, %v", i, c, err)
		}
	}
	if len(p.jobs) > 0 {
		t.Errorf("%d are kept", len(p.jobs))
	}
}

func TestComparingEndsWithTheService(t *testing.T) {
	by := &slowCollider{goOn: make(chan struct{})}
	p := newCollisions(by, func(reconcile.Key) { t.Error("kicked") })
	for i := range 5 {
		if _, err := p.Landed(t.Context(), reconcile.Key{}, "base", fmt.Sprint(i)); !errors.Is(err, reconcile.ErrLater) {
			t.Fatal(err)
		}
	}
	p.end()
}
