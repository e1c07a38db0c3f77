package reconcile_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/pods/reconcile"
)

var errAway = errors.New("connection refused")

func TestTheForgeIsAwayForAnHour(t *testing.T) {
	for name, tt := range map[string]struct {
		meanwhile func(*world)
		state     reconcile.State
		check     func(*world) bool
	}{
		"the agent goes on": {func(*world) {}, reconcile.Working, func(w *world) bool { return w.pod.Whole }},
		"the agent ends": {func(w *world) {
			w.summary, w.commits = reconcile.Summary{State: reconcile.AgentIdleWithWork}, []reconcile.Commit{{}}
		}, reconcile.Review, func(w *world) bool { return w.opened == 1 && fmt.Sprint(w.asked) == "[ann]" }},
		"the label is taken off": {func(w *world) { w.issue.Labels = []string{"agent/working"} }, "", func(w *world) bool { return w.pod.Stopped }},
		"a new label is put on": {func(w *world) {
			w.issue.Updated = w.issue.Updated.Add(time.Minute)
			w.trigger = reconcile.Trigger{ID: 9, User: "ann", At: w.issue.Updated}
		}, reconcile.Working, func(w *world) bool { return w.begun == 2 && w.pod.TriggerID == 9 }},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld()
			w.with(t, w.config(), func(l *reconcile.Loop) {
				w.set(func() { w.fails = func() error { return errAway } })
				for minute := range 60 {
					w.set(func() {
						if w.now = w.now.Add(time.Minute); minute == 30 {
							tt.meanwhile(w)
						}
					})
					l.KickAll()
					l.Kick(w.issue.Key)
					time.Sleep(2 * time.Millisecond)
				}
				until(t, "told the trouble", func() bool { return strings.Contains(l.Trouble(), "refused") })
				if w.begun != 1 || w.stopped != 0 {
					t.Errorf("with the forge away: begun %d, stopped %d", w.begun, w.stopped)
				}
				w.set(func() { w.fails = nil })
				l.KickAll()
				until(t, string(tt.state), func() bool { w.mu.Lock(); defer w.mu.Unlock(); return w.state == tt.state && tt.check(w) })
				until(t, "forgot the trouble", func() bool { return l.Trouble() == "" })
			})
			if len(w.said) != 1 {
				t.Errorf("said %q", w.said)
			}
		})
	}
}

func TestAForgeThatIsAwayIsNotAskedAllTheTime(t *testing.T) {
	w := newWorld()
	c := w.config()
	c.Watch = time.Millisecond
	w.with(t, c, func(l *reconcile.Loop) {
		w.set(func() {
			w.calls, w.fails, w.now = 0, func() error { return errAway }, w.now.Add(time.Hour)
		})
		for n := range 100 { // the agent goes on
			w.set(func() { w.summary.Activity = fmt.Sprint("step ", n) })
			time.Sleep(2 * time.Millisecond)
		}
		if w.calls > 5 {
			t.Errorf("asked %d times", w.calls)
		}
	})
}

func TestTheForgeIsAwayAtTheStart(t *testing.T) {
	w := newWorld()
	w.fails = func() error { return errAway }
	l, err := reconcile.New(w.config())
	if err != nil {
		t.Fatal(err)
	}
	go l.Run(t.Context()) //nolint:errcheck // ends with the test
	until(t, "told", func() bool { return l.Trouble() != "" })
	select {
	case <-l.Passed():
		t.Fatal("a pass is done without a forge")
	default:
	}
	w.set(func() { w.fails = nil })
	l.KickAll()
	<-l.Passed()
	until(t, "started", func() bool { w.mu.Lock(); defer w.mu.Unlock(); return w.begun == 1 })
}

func TestAForgeThatFailsNowAndThenLeadsToTheSameEnd(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	w := newWorld()
	w.fails = func() error {
		if random.IntN(3) == 0 {
			return errAway
		}
		return nil
	}
	w.with2(t, func(l *reconcile.Loop) {
		for n := range 150 {
			if n == 50 {
				w.set(func() { w.commits = []reconcile.Commit{{}} })
			}
			if n == 100 {
				w.set(func() { w.summary = reconcile.Summary{State: reconcile.AgentIdleWithWork} })
			}
			w.set(func() { w.now = w.now.Add(10 * time.Second) })
			l.Kick(w.issue.Key)
			time.Sleep(time.Millisecond)
		}
		w.set(func() { w.fails = nil })
		until(t, "in review", func() bool {
			w.look(l, w.issue.Key)
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.state == reconcile.Review
		})
	})
	if w.begun != 1 || w.opened != 1 || len(w.said) != 1 || len(w.asked) == 0 || w.text.Draft {
		t.Errorf("begun %d, opened %d, said %q, asked %v, %+v", w.begun, w.opened, w.said, w.asked, w.text)
	}
}

// with2 runs a loop whose first pass may fail.
func (w *world) with2(t *testing.T, f func(*reconcile.Loop)) {
	t.Helper()
	l, err := reconcile.New(w.config())
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	stop := make(chan struct{})
	wg.Add(1)
	go func() {
		defer wg.Done()
		for { // as the timer does, sooner
			select {
			case <-stop:
				return
			case <-time.After(5 * time.Millisecond):
				if l.Trouble() != "" {
					l.KickAll()
				}
			}
		}
	}()
	go l.Run(t.Context()) //nolint:errcheck // ends with the test
	f(l)
	close(stop)
	wg.Wait()
}

func TestPodmanIsAwayAndBack(t *testing.T) {
	w := newWorld()
	w.with(t, w.config(), func(l *reconcile.Loop) {
		w.set(func() { w.listErr = errors.New("no podman") })
		l.KickAll()
		until(t, "told", func() bool { return strings.Contains(l.Trouble(), "no podman") })
		w.label("ann") // while nobody can look
		l.Kick(w.issue.Key)
		time.Sleep(20 * time.Millisecond)
		w.set(func() { w.listErr = nil })
		l.KickAll()
		until(t, "begun for the new label", func() bool { w.mu.Lock(); defer w.mu.Unlock(); return w.begun == 2 })
	})
}

func TestTheDeadlineHoldsWithTheForgeAway(t *testing.T) {
	w := newWorld()
	w.with(t, w.config(), func(l *reconcile.Loop) {
		w.set(func() { w.fails = func() error { return errAway } })
		w.look(l, w.issue.Key)
		if w.stopped != 0 {
			t.Error("stopped before its deadline")
		}
		w.set(func() { w.now = w.now.Add(5 * time.Hour) })
		l.Kick(w.issue.Key)
		until(t, "stopped", func() bool { w.mu.Lock(); defer w.mu.Unlock(); return w.pod.Stopped })
		w.set(func() { w.fails = nil })
		l.Kick(w.issue.Key)
		until(t, "told", func() bool { w.mu.Lock(); defer w.mu.Unlock(); return w.state == reconcile.Failed })
		if !strings.Contains(w.said["status"], "agent.deadline") || !w.pod.Stopped {
			t.Errorf("said %q", w.said)
		}
	})
}
