package main

import (
	"context"
	"errors"
	"testing"

	"codeberg.org/devaipod/devaipod/pods/reconcile"
)

func landingOf(issue int64) reconcile.Landing {
	return reconcile.Landing{Key: reconcile.Key{Owner: "ann", Repo: "app", Issue: issue}, Commit: "c0ffee"}
}

// An upstream that takes its time keeps neither the caller nor another issue waiting; each issue
// lands once at a time, few at a time in all, and is looked at again at the end.
func TestALandingKeepsNobodyWaiting(t *testing.T) {
	begun, answer, kicked := make(chan int64, 100), make(chan struct{}), make(chan int64, 100)
	refused := errors.New("not on a Friday")
	p := newLandings(landPort{}, func(ctx context.Context, l reconcile.Landing) (reconcile.Landed, error) {
		begun <- l.Issue
		if l.Issue == 1 {
			return reconcile.Landed{}, refused
		}
		select {
		case <-answer:
			return reconcile.Landed{New: l.Commit}, nil
		case <-ctx.Done():
			return reconcile.Landed{}, ctx.Err()
		}
	}, func(k reconcile.Key) { kicked <- k.Issue })
	start := func(issue int64) *reconcile.UnderWayError {
		t.Helper()
		var under *reconcile.UnderWayError
		if _, err := p.Land(t.Context(), landingOf(issue)); !errors.As(err, &under) {
			t.Fatalf("issue %d: %v", issue, err)
		}
		return under
	}
	slow := start(2)
	if again := start(2); again != slow {
		t.Error("an issue lands twice at a time")
	}
	other := start(1)
	<-other.Done
	if _, err := other.Result(); !errors.Is(err, refused) || <-kicked != 1 {
		t.Errorf("the other issue: %v", err)
	}
	for issue := range int64(landAtOnce) { // one more than there are places for
		_ = start(10 + issue)
	}
	for range 1 + landAtOnce {
		<-begun
	}
	if len(begun) > 0 {
		t.Errorf("%d land at once", landAtOnce+1)
	}
	close(answer)
	<-slow.Done
	if done, err := slow.Result(); err != nil || done.New != "c0ffee" {
		t.Errorf("%+v, %v", done, err)
	}
	for range 1 + landAtOnce {
		<-kicked
	}
	// What has ended may land again.
	if again := start(2); again == slow {
		t.Error("a landing that has ended is taken for one that goes on")
	}
	p.end()
}

// The end of the service ends what lands, also what waits for a place.
func TestLandingsEndWithTheService(t *testing.T) {
	p := newLandings(landPort{}, func(ctx context.Context, _ reconcile.Landing) (reconcile.Landed, error) {
		<-ctx.Done()
		return reconcile.Landed{}, ctx.Err()
	}, func(reconcile.Key) {})
	var all []*reconcile.UnderWayError
	for issue := range int64(2 * landAtOnce) {
		var under *reconcile.UnderWayError
		if _, err := p.Land(t.Context(), landingOf(issue)); !errors.As(err, &under) {
			t.Fatal(err)
		}
		all = append(all, under)
	}
	p.end()
	for _, under := range all {
		<-under.Done
		if _, err := under.Result(); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}
}
