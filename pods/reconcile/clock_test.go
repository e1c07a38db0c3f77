package reconcile_test

import (
	"testing"
	"time"
	"unsafe"

	"codeberg.org/devaipod/devaipod/pods/reconcile"
)

// set is what a clock says after somebody has set it by so many seconds: what is
// monotonic in it goes on. Package time has no way to make one: the seconds lie
// above 30 bits of nanoseconds.
func set(t *testing.T, now time.Time, by int64) time.Time {
	t.Helper()
	after := now
	*(*uint64)(unsafe.Pointer(&after)) += uint64(by) << 30
	if after.Sub(now) != 0 || after.Round(0).Sub(now.Round(0)) != time.Duration(by)*time.Second {
		t.Fatalf("%v is not %v, set by %d s", after, now, by)
	}
	return after
}

func newWorldOfNow() *world {
	w := newWorld()
	w.issue.Updated = time.Now().Truncate(time.Second)
	w.trigger.At, w.now = w.issue.Updated, time.Now()
	return w
}

// A deadline is as long after a clock was set as before.
func TestAClockThatIsSetMovesNoDeadline(t *testing.T) {
	for name, tt := range map[string]struct {
		summary reconcile.Summary
		by      int64 // seconds
		passes  time.Duration
		stopped int
	}{
		"ahead, at work":         {reconcile.Summary{State: reconcile.AgentWorking}, 10 * 3600, time.Hour, 0},
		"back, at work":          {reconcile.Summary{State: reconcile.AgentWorking}, -10 * 3600, time.Hour, 0},
		"ahead, at work, is due": {reconcile.Summary{State: reconcile.AgentWorking}, 10 * 3600, 5 * time.Hour, 1},
		"back, at work, is due":  {reconcile.Summary{State: reconcile.AgentWorking}, -10 * 3600, 5 * time.Hour, 1},
		"ahead, asks":            {reconcile.Summary{State: reconcile.AgentAsking, Question: "?"}, 30 * 3600, time.Hour, 0},
		"back, asks, is due":     {reconcile.Summary{State: reconcile.AgentAsking, Question: "?"}, -30 * 3600, 25 * time.Hour, 1},
	} {
		for _, away := range []bool{false, true} { // the forge
			if away && tt.summary.State != reconcile.AgentWorking {
				continue
			}
			w := newWorldOfNow()
			w.with(t, w.config(), func(l *reconcile.Loop) {
				tt.summary.Since = w.now.Round(0)
				w.set(func() {
					w.pod.Created, w.pod.Started, w.summary = w.now.Round(0), w.now.Round(0), tt.summary
					w.now = w.now.Add(time.Minute)
				})
				w.look(l, w.issue.Key)
				if away {
					w.set(func() { w.fails = func() error { return errAway } })
					w.look(l, w.issue.Key)
				}
				w.set(func() { w.now = set(t, w.now.Add(tt.passes), tt.by) })
				w.look(l, w.issue.Key)
				if w.stopped != tt.stopped {
					t.Errorf("%s, forge away %v: stopped %d times, want %d", name, away, w.stopped, tt.stopped)
				}
			})
		}
	}
}

// What changed while the clock was ahead is found when it is right again.
func TestChangesFromBeforeAClockWasSetBack(t *testing.T) {
	w := newWorldOfNow()
	w.with(t, w.config(), func(l *reconcile.Loop) {
		pass := func() {
			w.set(func() { w.steers = 0 })
			l.KickAll()
			if l.Settle(); w.steers == 0 {
				t.Error("the change was not seen")
			}
		}
		pass() // its pod is known
		w.set(func() {
			w.now = set(t, w.now.Add(10*time.Second), 10*3600)
			w.issue.Updated = w.now.Truncate(time.Second)
		})
		pass()
		w.set(func() {
			w.now = set(t, w.now.Add(10*time.Second), -10*3600)
			w.issue.Updated = w.now.Truncate(time.Second)
		})
		pass()
	})
}

// A second order within a second is read, whatever our clock says of the forge's.
func TestTwoOrdersWithinASecondOfTheForges(t *testing.T) {
	w := newWorldOfNow()
	w.now = set(t, w.now, 10*3600)
	w.with(t, w.config(), func(l *reconcile.Loop) {
		order := func(texts ...string) {
			w.set(func() {
				w.now = w.now.Add(100 * time.Millisecond)
				w.comments = nil
				for _, text := range texts {
					w.comments = append(w.comments, reconcile.Comment{Author: "ann", Body: text})
				}
			})
			w.look(l, w.issue.Key)
		}
		order("/allow a.example.org")
		order("/allow a.example.org", "/allow b.example.org")
		if len(w.orders.Allow) != 2 {
			t.Errorf("steered by %+v", w.orders)
		}
	})
}
