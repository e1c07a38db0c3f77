package reconcile_test

import (
	"errors"
	"strings"
	"testing"

	"codeberg.org/devaipod/devaipod/pods/reconcile"
)

// besideWorld is one whose landings go on until w.beside is closed.
func besideWorld(t *testing.T) (*world, reconcile.Config) {
	t.Helper()
	w := reviewWorld(t)
	w.say(yes("ann"))
	w.beside = make(chan struct{})
	c := w.config()
	c.Lander, c.Approvals = w, 1
	return w, c
}

// end lets what lands end, as a Lander does.
func (w *world) endLanding(l *reconcile.Loop) {
	close(w.beside)
	l.Kick(w.issue.Key)
	l.Settle()
}

// While a commit lands the loop goes on, and begins nothing twice; at the end it is told.
func TestTheLoopGoesOnWhileACommitLands(t *testing.T) {
	w, c := besideWorld(t)
	w.with(t, c, func(l *reconcile.Loop) {
		for range 10 { // more often than a "later" may be said
			l.Kick(w.issue.Key)
			l.Settle()
		}
		if v, _ := l.View(w.issue.Key); !strings.HasSuffix(v.Landing, "it is landing") || v.Trouble != "" {
			t.Errorf("meanwhile: %q, trouble %q", v.Landing, v.Trouble)
		}
		if len(w.landings) != 1 || w.removed != 0 || w.said["landing"] != "" {
			t.Errorf("meanwhile: landed %v, said %q", w.landings, w.said)
		}
		w.endLanding(l)
	})
	if len(w.landings) != 1 || w.removed != 1 || !strings.HasPrefix(w.said["landing"], "**Landed**: "+head) {
		t.Errorf("at the end: landed %v, said %q", w.landings, w.said)
	}
}

// The forge may say that it is merged before the landing is at its end, and somebody may take
// the approval back meanwhile: it is told all the same, and the issue closed.
func TestWhatHasLandedMeanwhileIsTold(t *testing.T) {
	for name, change := range map[string]func(*world){
		"merged":                     func(w *world) { w.pull.Merged, w.pull.Open, w.pull.ClosedAt = true, false, w.now },
		"the approval is taken back": func(w *world) { w.verdicts = nil },
		"the base has it":            func(w *world) { w.upstream, w.commits, w.pull.Head = "up/lib", nil, head },
	} {
		w, c := besideWorld(t)
		w.with(t, c, func(l *reconcile.Loop) {
			w.set(func() { change(w) })
			l.Kick(w.issue.Key)
			l.Settle()
			if w.removed != 0 || w.said["landing"] != "" {
				t.Errorf("%s, meanwhile: said %q", name, w.said)
			}
			w.endLanding(l)
		})
		if len(w.landings) != 1 || w.removed != 1 || !strings.HasPrefix(w.said["landing"], "**Landed**: "+head) || strings.Contains(w.said["landing"], "it is in") || w.closedFor != "main" || w.issue.Open {
			t.Errorf("%s: landed %v, said %q", name, w.landings, w.said)
		}
	}
}

// What can't land is told when that is known, and tried again.
func TestALandingThatFailsBesideTheLoop(t *testing.T) {
	w, c := besideWorld(t)
	w.landing = func() error { return errors.New("not on a Friday") }
	w.with(t, c, func(l *reconcile.Loop) {
		w.endLanding(l)
		if !strings.Contains(w.said["landing"], "not on a Friday") || w.removed != 0 {
			t.Errorf("said %q", w.said)
		}
		w.set(func() { w.landing = nil })
		l.Kick(w.issue.Key)
		l.Settle()
		l.Kick(w.issue.Key)
		l.Settle()
	})
	if len(w.landings) != 2 || w.removed != 1 || !strings.HasPrefix(w.said["landing"], "**Landed**") {
		t.Errorf("landed %v, said %q", w.landings, w.said)
	}
}

// A result of a commit that is not the head any more is nothing.
func TestALandingOfAnEarlierCommitIsForgotten(t *testing.T) {
	w, c := besideWorld(t)
	w.landing = func() error { return reconcile.ErrMoved }
	w.with(t, c, func(l *reconcile.Loop) {
		w.set(func() {
			w.pull.Head, w.commits[len(w.commits)-1].SHA = "newer", "newer"
			w.verdicts = nil
		})
		w.endLanding(l)
		if v, _ := l.View(w.issue.Key); !strings.HasPrefix(v.Landing, "0 of 1 approvals of newer") || w.said["landing"] != "" {
			t.Errorf("%q, said %q", v.Landing, w.said)
		}
	})
}

// Who lands by hand waits for it, and the loop does not.
func TestAPersonWaitsForALanding(t *testing.T) {
	w, c := besideWorld(t)
	c.Approvals = 0
	w.with(t, c, func(l *reconcile.Loop) {
		for _, refused := range []bool{true, false} {
			w.set(func() {
				w.beside, w.landing, w.landings = make(chan struct{}), nil, nil
				if refused {
					w.landing = func() error { return reconcile.ErrRefused }
				}
			})
			var a reconcile.Approval
			done := make(chan error, 1)
			go func() {
				var err error
				a, err = l.Export(t.Context(), w.issue.Key, true)
				done <- err
			}()
			for begun := false; !begun; { // the loop answers all the while
				if err := l.Between(t.Context(), func() { w.set(func() { begun = len(w.landings) > 0 }) }); err != nil {
					t.Fatal(err)
				}
			}
			l.Kick(w.issue.Key)
			l.Settle()
			select {
			case err := <-done:
				t.Fatalf("it did not wait: %v", err)
			default:
			}
			close(w.beside)
			if err := <-done; err != nil || a.Landed == refused || a.Refused != refused || strings.Join(a.Approvers, " ") != "ann" {
				t.Errorf("refused=%t: %+v, %v", refused, a, err)
			}
		}
		if w.removed != 1 || !strings.HasPrefix(w.said["landing"], "**Landed**") {
			t.Errorf("said %q", w.said)
		}
	})
}
