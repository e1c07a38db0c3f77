package reconcile_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/pods/reconcile"
)

// The machine's clock jumps while an agent works. What it was given is measured by
// the time that goes by.
func TestAClockThatJumps(t *testing.T) {
	for name, jump := range map[string]time.Duration{
		"not at all": 0, "ten hours ahead": 10 * time.Hour, "ten hours back": -10 * time.Hour, "to 1970": -56 * 365 * 24 * time.Hour,
	} {
		t.Run(name, func(t *testing.T) {
			state := func(w *world, l *reconcile.Loop) reconcile.State {
				w.look(l, w.issue.Key)
				v, _ := l.View(w.issue.Key)
				return v.State
			}
			pass := func(w *world, d time.Duration) { w.set(func() { w.now = w.now.Add(d) }) }

			w := newWorld()
			w.with(t, w.config(), func(l *reconcile.Loop) {
				state(w, l)
				w.jump(jump)
				pass(w, 3*time.Hour)
				if s := state(w, l); s != reconcile.Working {
					t.Errorf("after 3 h of 4 it is %s: %s", s, w.said["status"])
				}
				w.set(func() { w.summary.Activity = "step two" })
				if pass(w, time.Minute); state(w, l) == "" || !strings.Contains(w.said["status"], "step two") {
					t.Errorf("nothing is told any more: %s", w.said["status"])
				}
				w.jump(-2 * jump)
				pass(w, time.Hour)
				if s := state(w, l); s != reconcile.Failed || !strings.Contains(w.said["status"], "agent.deadline") || w.stopped != 1 {
					t.Errorf("after 4 h it is %s, stopped %d times", s, w.stopped)
				}
			})

			w = newWorld()
			w.with(t, w.config(), func(l *reconcile.Loop) {
				w.set(func() {
					w.summary, w.commits = reconcile.Summary{State: reconcile.AgentIdleWithWork, Since: w.now}, []reconcile.Commit{{}}
				})
				state(w, l)
				w.jump(jump)
				pass(w, 23*time.Hour)
				if s := state(w, l); s != reconcile.Review || w.stopped != 0 {
					t.Errorf("after 23 h of rest it is %s, stopped %d times", s, w.stopped)
				}
				pass(w, time.Hour)
				if s := state(w, l); s != reconcile.Review || w.stopped != 1 {
					t.Errorf("after 24 h of rest it is %s, stopped %d times", s, w.stopped)
				}
			})

			w = newWorld()
			w.with(t, w.config(), func(l *reconcile.Loop) {
				pass(w, time.Minute)
				state(w, l)
				w.set(func() { w.sumErr = errors.New("no answer") })
				w.jump(jump)
				if s := state(w, l); s != reconcile.Working {
					t.Errorf("a pod that was not there for a moment is %s", s)
				}
				pass(w, 4*time.Minute)
				if s := state(w, l); s != reconcile.Failed {
					t.Errorf("a pod that does not answer for 4 min is %s", s)
				}
			})
		})
	}
}

// What began before the loop was started can be told by the clock alone.
func TestAServiceThatStartsWithAClockThatIsBehind(t *testing.T) {
	w := newWorld()
	w.pass(t)
	w.jump(-10 * time.Hour)
	w.with(t, w.config(), func(l *reconcile.Loop) {
		for hours := range 5 {
			w.look(l, w.issue.Key)
			if v, _ := l.View(w.issue.Key); (v.State == reconcile.Failed) != (hours == 4) {
				t.Errorf("after %d h it is %s", hours, v.State)
			}
			w.set(func() { w.now = w.now.Add(time.Hour) })
		}
	})
}

// Webhooks may be lost, and the next pass asks for what has changed since the last:
// that must not be a time that is still to come.
func TestALabelAfterTheClockWentBack(t *testing.T) {
	for _, jump := range []time.Duration{10 * time.Hour, -10 * time.Hour, -time.Minute} {
		t.Run(fmt.Sprint(jump), func(t *testing.T) {
			c := newCrowd(10)
			c.with(t, func(cfg *reconcile.Config) {
				cfg.Uptime = func() time.Duration { c.mu.Lock(); defer c.mu.Unlock(); return c.now.Sub(at) - c.jumped }
			}, func(_ *reconcile.Loop, pass func() int) {
				for n := int64(1); n < 6; n++ {
					for range quiet {
						pass()
					}
					c.jump(map[bool]time.Duration{true: jump, false: -jump}[n%2 == 1])
					c.put(n, "ann") // the forge is on the same machine
					pass()
					if !c.runs(n) {
						t.Errorf("the label on %d was not seen", n)
					}
				}
			})
		})
	}
}
