package reconcile_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"codeberg.org/devaipod/devaipod/pods/reconcile"
)

// shared is a town whose agents' pull requests, all ready for review, are of one repository.
type shared struct {
	*town
	keys     []reconcile.Key
	collides map[string]reconcile.Collision // heads, or base and head, by their names
	compared map[string]int
	fails    map[string]error
	rounds   map[reconcile.Key][]reconcile.Round
	told     map[reconcile.Key][]string
	onPulls  map[int64]string // the comment about collisions
	landing  map[int64]string
	base     string
}

func newShared(t *testing.T, pulls int) *shared {
	t.Helper()
	w := &shared{
		town: newTown(), collides: map[string]reconcile.Collision{}, compared: map[string]int{}, fails: map[string]error{}, rounds: map[reconcile.Key][]reconcile.Round{},
		told: map[reconcile.Key][]string{}, onPulls: map[int64]string{}, landing: map[int64]string{}, base: "base0",
	}
	w.pulls = map[reconcile.Key]*reconcile.Pull{}
	for i := range pulls {
		k := w.label("app")
		w.keys = append(w.keys, k)
		w.podsOf[k] = &reconcile.Pod{Key: k, Name: "pod", TriggerID: w.labels[k].ID, TriggerAt: at, Labeler: "ann", Branch: fmt.Sprint("agent/", k.Issue), Base: "main", Whole: true, Created: w.now, Started: w.now}
		w.sums[k] = reconcile.Summary{State: reconcile.AgentIdleWithWork, Mark: "turn 1", Since: w.now}
		w.pulls[k] = &reconcile.Pull{Number: int64(i + 1), Open: true, Base: "main", Head: fmt.Sprint("head", i+1)}
	}
	w.commits = []reconcile.Commit{{SHA: "head", Subject: "x"}}
	return w
}

func (w *shared) loop(t *testing.T, f func(*reconcile.Loop)) {
	t.Helper()
	c := w.config(0)
	c.Forge, c.Pods, c.Collider = w, w, w
	w.with(t, c, func(l *reconcile.Loop) { l.Settle(); f(l) })
}

func (w *shared) Pull(ctx context.Context, k reconcile.Key, b string) (reconcile.Pull, bool, error) {
	p, ok, err := w.town.Pull(ctx, k, b)
	p.BaseHead = w.base
	return p, ok, err
}

func (w *shared) PutPull(_ context.Context, k reconcile.Key, _, _ string, _ reconcile.PullText) (reconcile.Pull, error) {
	return *w.pulls[k], nil
}

func (w *shared) compare(one, other string) (reconcile.Collision, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.compared[one+" "+other]++
	c, ok := w.collides[one+" "+other]
	if !ok {
		c = w.collides[other+" "+one]
	}
	return c, errors.Join(w.fails[one+" "+other], w.fails[other+" "+one])
}

func (w *shared) Collide(_ context.Context, _ reconcile.Key, _, one, other string) (reconcile.Collision, error) {
	return w.compare(one, other)
}

func (w *shared) Landed(_ context.Context, _ reconcile.Key, base, head string) (reconcile.Collision, error) {
	return w.compare(base, head)
}

func (w *shared) Rounds(k reconcile.Key) ([]reconcile.Round, error) { return w.rounds[k], nil }

func (w *shared) KeepRound(k reconcile.Key, r reconcile.Round) error {
	for i, o := range w.rounds[k] {
		if o.ID == r.ID {
			w.rounds[k][i] = r
			return nil
		}
	}
	w.rounds[k] = append(w.rounds[k], r)
	return nil
}

func (w *shared) TellCI(_ context.Context, k reconcile.Key, r reconcile.Round) error {
	w.told[k] = append(w.told[k], r.Text)
	return nil
}

func (w *shared) Say(_ context.Context, k reconcile.Key, subject, body string) error {
	switch subject {
	case "collisions":
		w.onPulls[k.Issue] = body
	case "landing":
		w.landing[k.Issue] = body
	}
	return nil
}

func (w *shared) Resay(ctx context.Context, k reconcile.Key, subject, body string) error {
	if w.onPulls[k.Issue] == "" {
		return nil
	}
	return w.Say(ctx, k, subject, body)
}

func TestCollisionsAreToldOnBoth(t *testing.T) {
	w := newShared(t, 4)
	w.collides["head1 head2"] = reconcile.Collision{Conflict: true, Files: []string{"b|`@bob", "a\n# x"}}
	w.collides["head2 head3"] = reconcile.Collision{Files: []string{"f1", "f2", "f3", "f4", "f5", "f6", "f7"}}
	w.loop(t, func(l *reconcile.Loop) {
		has(t, w.onPulls[1], "in the way of this one", "| #2 | git can't merge the two: `a (number) x`, `b/'(at)bob` |\n")
		has(t, w.onPulls[2], "| #1 | git can't merge the two: ", "| #3 | both change `f1`, `f2`, `f3`, `f4`, `f5`, 2 more |\n")
		has(t, w.onPulls[3], "| #2 | both change `f1`")
		if w.onPulls[4] != "" {
			t.Errorf("4: %s", w.onPulls[4])
		}
		// Each two are compared once, whoever is looked at.
		for range 3 {
			for _, k := range w.keys {
				w.look(l, k)
			}
		}
		for pair, n := range w.compared {
			if n != 1 {
				t.Errorf("%s are compared %d times", pair, n)
			}
		}
		// A push solves one.
		w.set(func() { w.pulls[w.keys[0]].Head = "head1b" })
		w.look(l, w.keys[0])
		l.Settle()
		has(t, w.onPulls[1], "No other agent's open pull request is in the way of this one any more.")
		if has(t, w.onPulls[2], "#3"); strings.Contains(w.onPulls[2], "#1") {
			t.Errorf("2: %s", w.onPulls[2])
		}
	})
	// What ended while nobody looked is told later.
	w.pulls[w.keys[2]].Open = false
	w.loop(t, func(*reconcile.Loop) {
		has(t, w.onPulls[2], "No other agent's")
		if w.onPulls[4] != "" {
			t.Errorf("4: %s", w.onPulls[4])
		}
	})
}

func TestWhatGoesElsewhereDoesNotCollide(t *testing.T) {
	w := newShared(t, 2)
	w.collides["head1 head2"] = reconcile.Collision{Conflict: true}
	w.pulls[w.keys[0]].Base = "release"
	w.loop(t, func(*reconcile.Loop) {
		if len(w.onPulls) > 0 {
			t.Errorf("told %v", w.onPulls)
		}
	})
}

// What is compared beside the loop is told at its end, and nothing else before.
func TestWhatIsComparedLaterIsToldThen(t *testing.T) {
	w := newShared(t, 3)
	w.collides["head1 head2"] = reconcile.Collision{Conflict: true}
	w.collides["base0 head3"] = reconcile.Collision{Conflict: true}
	for _, what := range []string{"head1 head2", "base0 head3"} {
		w.fails[what] = reconcile.ErrLater
	}
	w.onPulls[1] = "told by the process before"
	w.loop(t, func(l *reconcile.Loop) {
		if len(w.onPulls) != 1 || !strings.HasPrefix(w.onPulls[1], "told") || len(w.told) > 0 {
			t.Errorf("on the pull requests: %v, told %v", w.onPulls, w.told)
		}
		for _, k := range w.keys {
			if v, _ := l.View(k); v.State != reconcile.Review || v.Trouble != "" {
				t.Errorf("%+v", v)
			}
		}
		w.set(func() { clear(w.fails) })
		w.look(l, w.keys[0])
		w.look(l, w.keys[2])
		has(t, w.onPulls[1], "#2")
		has(t, w.onPulls[2], "#1")
		has(t, fmt.Sprint(w.told[w.keys[2]]), "git merge base0")
	})
}

// Of one that can't be compared the rest is told, and it is tried again.
func TestAComparisonThatFails(t *testing.T) {
	w := newShared(t, 3)
	w.collides["head2 head3"] = reconcile.Collision{Conflict: true}
	for _, other := range []string{"head2", "head3"} {
		w.fails["head1 "+other] = errors.New("no such commit")
	}
	w.loop(t, func(l *reconcile.Loop) {
		if v, _ := l.View(w.keys[0]); v.State != reconcile.Review || !strings.Contains(v.Trouble, "no such commit") {
			t.Errorf("%+v", v)
		}
		has(t, w.onPulls[3], "git can't merge the two: their files")
		has(t, w.onPulls[2], "#3")
	})
}

func TestAfterOneLandsTheOthersTakeItIn(t *testing.T) {
	for _, sleep := range []bool{false, true} {
		w := newShared(t, 4)
		w.collides["head1 head2"] = reconcile.Collision{Conflict: true, Files: []string{"a"}}
		w.collides["head1 head3"] = reconcile.Collision{Files: []string{"b"}}
		w.loop(t, func(l *reconcile.Loop) {
			if len(w.told) > 0 {
				t.Fatalf("told before: %q", w.told)
			}
			if sleep {
				for _, k := range w.keys[1:] {
					w.podsOf[k].Whole, w.podsOf[k].Stopped = false, true
				}
			}
			// The first lands.
			w.set(func() {
				w.base = "base1"
				w.collides["base1 head2"] = reconcile.Collision{Conflict: true, Files: []string{"a"}}
				w.collides["base1 head3"] = reconcile.Collision{Files: []string{"b"}}
				*w.pulls[w.keys[0]] = reconcile.Pull{Number: 1, Merged: true, ClosedAt: w.now}
			})
			w.look(l, w.keys[0])
			l.Settle()
			has(t, fmt.Sprint(w.told[w.keys[1]]), "commit head2, is for review, and conflicts with main by now, which has moved to commit base1", "git merge base1", "do not rebase")
			has(t, fmt.Sprint(w.told[w.keys[2]]), "another agent's work has landed there that changes the same files", "git merge base1")
			if len(w.told[w.keys[3]]) > 0 {
				t.Errorf("one that has nothing to do with it was told: %q", w.told[w.keys[3]])
			}
			for _, k := range w.keys[1:3] {
				if v, _ := l.View(k); v.State != reconcile.Working || len(w.told[k]) != 1 {
					t.Errorf("sleep=%t: %+v, told %d times", sleep, v, len(w.told[k]))
				}
			}
			has(t, w.onPulls[2], "No other agent's")
		})
		// It is told once, also by another process; who ends without is left to people where git
		// can't merge.
		for _, k := range w.keys[1:3] {
			w.sums[k] = reconcile.Summary{State: reconcile.AgentIdleWithWork, Mark: "turn 2", Since: w.now}
		}
		w.loop(t, func(l *reconcile.Loop) {
			for _, k := range w.keys[1:3] {
				if v, _ := l.View(k); v.State != reconcile.Review || len(w.told[k]) != 1 {
					t.Errorf("sleep=%t: %+v, told %d times", sleep, v, len(w.told[k]))
				}
			}
			has(t, w.landing[2], "**In conflict with its base**", "main is at base1 now", "ended without")
			if w.landing[3] != "" {
				t.Errorf("3: %s", w.landing[3])
			}
			// The base moves on by somebody's push; one merges that in, and is done.
			w.set(func() {
				w.base = "base2"
				w.collides["base2 head2"] = reconcile.Collision{Conflict: true}
				w.pulls[w.keys[2]].Head = "head3 with base2"
			})
			l.Moved("ann", "app", "other")
			l.Settle()
			if len(w.told[w.keys[1]]) != 1 {
				t.Error("another branch moved, and it was told")
			}
			l.Moved("ann", "app", "main")
			l.Settle()
			if len(w.told[w.keys[1]]) != 2 || len(w.told[w.keys[2]]) != 1 {
				t.Errorf("told %d and %d times, want 2 and 1", len(w.told[w.keys[1]]), len(w.told[w.keys[2]]))
			}
		})
	}
}
