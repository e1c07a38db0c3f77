package reconcile_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/pods/reconcile"
)

// town is a forge with issues in several repositories, and their pods, in memory.
type town struct {
	*world
	issues map[reconcile.Key]*reconcile.Issue
	labels map[reconcile.Key]reconcile.Trigger
	tasks  map[reconcile.Key]*reconcile.Task
	podsOf map[reconcile.Key]*reconcile.Pod
	sums   map[reconcile.Key]reconcile.Summary
	says   map[reconcile.Key]int
	last   map[reconcile.Key]string
	began  []reconcile.Key // in the order in which their agents began
	most   int             // that worked at once
	pulls  map[reconcile.Key]*reconcile.Pull
}

func newTown() *town {
	return &town{
		world: newWorld(), issues: map[reconcile.Key]*reconcile.Issue{}, labels: map[reconcile.Key]reconcile.Trigger{}, tasks: map[reconcile.Key]*reconcile.Task{},
		podsOf: map[reconcile.Key]*reconcile.Pod{}, sums: map[reconcile.Key]reconcile.Summary{}, says: map[reconcile.Key]int{}, last: map[reconcile.Key]string{},
	}
}

// label puts the label on a new issue, all within one second.
func (w *town) label(repo string) reconcile.Key {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := int64(len(w.issues) + 1)
	k := reconcile.Key{Owner: "ann", Repo: repo, Issue: 1000 - n} // the first has the highest number
	w.issues[k] = &reconcile.Issue{Key: k, Title: "x", Open: true, Labels: []string{"devaipod"}, Updated: at}
	w.labels[k] = reconcile.Trigger{ID: n, User: "ann", At: at}
	return k
}

// end lets an agent that works end.
func (w *town) end(k reconcile.Key) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sums[k] = reconcile.Summary{State: reconcile.AgentIdleWithWork, Since: w.now.Add(-time.Minute)}
}

func (w *town) working() (out []reconcile.Key) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for k, p := range w.podsOf {
		if p.Whole && w.sums[k].State == reconcile.AgentWorking {
			out = append(out, k)
		}
	}
	return out
}

func (w *town) Wanted(context.Context) (out []reconcile.Issue, _ time.Time, _ error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, i := range w.issues {
		out = append(out, *i)
	}
	return out, w.now, nil
}

func (w *town) Issue(_ context.Context, k reconcile.Key) (reconcile.Issue, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.calls++
	if i := w.issues[k]; i != nil {
		c := *i
		c.Labels = slices.Clone(i.Labels)
		return c, nil
	}
	return reconcile.Issue{}, reconcile.ErrGone
}

func (w *town) Trigger(_ context.Context, k reconcile.Key) (reconcile.Trigger, bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.labels[k], true, nil
}

func (w *town) SetState(_ context.Context, i reconcile.Issue, s reconcile.State) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.issues[i.Key].Labels = []string{"devaipod", "agent/" + string(s)}
	return nil
}

func (w *town) Say(_ context.Context, k reconcile.Key, _, body string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.says[k]++
	w.last[k] = body
	return nil
}

func (w *town) Pull(_ context.Context, k reconcile.Key, _ string) (reconcile.Pull, bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if p := w.pulls[k]; p != nil {
		return *p, true, nil
	}
	return reconcile.Pull{}, false, nil
}

func (w *town) Keep(k reconcile.Key, t *reconcile.Task) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.tasks[k] = t
	return nil
}

func (w *town) Kept(k reconcile.Key) (*reconcile.Task, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.tasks[k], nil
}

func (w *town) Waiting() ([]reconcile.Key, error) { return nil, nil }

func (w *town) List(context.Context) (out []reconcile.Pod, _ error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, p := range w.podsOf {
		out = append(out, *p)
	}
	return out, nil
}

// starts notes that an agent works; the lock is held.
func (w *town) starts(k reconcile.Key) {
	w.began = append(w.began, k)
	n := 0
	for k, p := range w.podsOf {
		if p.Whole && w.sums[k].State == reconcile.AgentWorking {
			n++
		}
	}
	w.most = max(w.most, n)
}

func (w *town) Begin(_ context.Context, t reconcile.Task) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.beginErr != nil {
		return w.beginErr
	}
	w.now = w.now.Add(time.Millisecond)
	w.podsOf[t.Key] = &reconcile.Pod{Key: t.Key, Name: "pod", TriggerID: t.Trigger.ID, TriggerAt: t.Trigger.At, Labeler: "ann", Branch: t.Branch, Base: t.Base, Whole: true, Created: w.now, Started: w.now}
	w.sums[t.Key] = reconcile.Summary{State: reconcile.AgentWorking}
	w.starts(t.Key)
	return nil
}

func (w *town) Resume(_ context.Context, k reconcile.Key) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.podsOf[k].Whole, w.podsOf[k].Stopped = true, false
	w.starts(k)
	return nil
}

func (w *town) Stop(_ context.Context, k reconcile.Key) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.podsOf[k].Whole, w.podsOf[k].Stopped = false, true
	return nil
}

func (w *town) Summary(_ context.Context, k reconcile.Key) (reconcile.Summary, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.sums[k], nil
}

func (w *town) config(most int) reconcile.Config {
	c := w.world.config()
	c.Forge, c.Pods, c.Max = w, w, most
	return c
}

// line are the issues that wait, in the order that the views tell.
func line(l *reconcile.Loop) (out []string) {
	for _, v := range l.Views() {
		if v.State == reconcile.Queued {
			out = append(out, fmt.Sprintf("%04d %s", v.Position, v.Key))
		}
	}
	slices.Sort(out)
	for i := range out {
		out[i] = out[i][5:]
	}
	return out
}

func TestFiftyLabelsAtOnce(t *testing.T) {
	w := newTown()
	keys := map[string][]reconcile.Key{}
	for range 40 {
		keys["big"] = append(keys["big"], w.label("big"))
	}
	for range 8 {
		keys["small"] = append(keys["small"], w.label("small"))
	}
	for range 2 {
		keys["tiny"] = append(keys["tiny"], w.label("tiny"))
	}
	rnd := rand.New(rand.NewPCG(1, 2))

	// The service is started anew after each ten; the order is the same.
	for len(w.began) < 50 {
		w.with(t, w.config(4), func(l *reconcile.Loop) {
			for range 10 {
				waits := line(l)
				if len(waits)+len(w.began) != 50 {
					t.Fatalf("%d wait, %d have begun", len(waits), len(w.began))
				}
				works := w.working()
				slices.SortFunc(works, func(a, b reconcile.Key) int { return strings.Compare(a.String(), b.String()) })
				if want := min(4, len(works)+len(waits)); len(works) != want {
					t.Fatalf("%d work, want %d", len(works), want)
				}
				k := works[rnd.IntN(len(works))]
				w.end(k)
				w.look(l, k)
				if len(waits) == 0 {
					continue
				}
				if next := w.began[len(w.began)-1].String(); next != waits[0] {
					t.Errorf("%s begins, with %s the first in line", next, waits[0])
				}
			}
		})
	}
	if w.most != 4 {
		t.Errorf("%d worked at once, want 4", w.most)
	}
	for repo, all := range keys {
		var began []reconcile.Key
		for _, k := range w.began {
			if k.Repo == repo {
				began = append(began, k)
			}
		}
		if !slices.Equal(began, all) {
			t.Errorf("those of %s began in the order %v", repo, began)
		}
	}
	// The repositories take turns, for as long as they have some that wait.
	for i, k := range w.began[:6] {
		if want := []string{"big", "small", "tiny"}[i%3]; k.Repo != want {
			t.Errorf("number %d is %s, want one of %s", i+1, k, want)
		}
	}
	for i, k := range w.began[6:18] {
		if want := []string{"big", "small"}[i%2]; k.Repo != want {
			t.Errorf("number %d is %s, want one of %s", i+7, k, want)
		}
	}
}

func TestThePositionIsTold(t *testing.T) {
	w := newTown()
	var keys []reconcile.Key
	for range 6 {
		keys = append(keys, w.label("big"))
	}
	late := w.label("small")
	c := w.config(1)
	c.Watch = time.Millisecond
	w.with(t, c, func(l *reconcile.Loop) {
		if got, want := fmt.Sprint(line(l)), fmt.Sprint(append([]reconcile.Key{late}, keys[1:]...)); got != want {
			t.Errorf("the line is %s, want %s", got, want)
		}
		if said := w.last[keys[2]]; !strings.Contains(said, "Number 3 in the queue") || !strings.Contains(said, "agent.max") {
			t.Errorf("said %q", said)
		}
		v, _ := l.View(keys[2])
		if v.Position != 3 {
			t.Errorf("position %d", v.Position)
		}
		w.end(keys[0])
		l.Kick(keys[0])
		until(t, "began", func() bool { v, _ := l.View(late); return v.Position == 0 && v.State != reconcile.Queued })
		until(t, "moved", func() bool { v, _ := l.View(keys[2]); return v.Position == 2 })
		l.Settle()
		w.set(func() {
			if w.says[keys[2]] != 1 {
				t.Errorf("told %d times, with no time between", w.says[keys[2]])
			}
			w.now = w.now.Add(21 * time.Second) // enough for the second, not for the third
		})
		until(t, "told anew", func() bool {
			w.mu.Lock()
			defer w.mu.Unlock()
			return strings.Contains(w.last[keys[2]], "Number 2 in the queue")
		})
		w.set(func() {
			if w.says[keys[2]] != 2 || !strings.Contains(w.last[keys[3]], "Number 4") {
				t.Errorf("told %d times; the next one %q", w.says[keys[2]], w.last[keys[3]])
			}
		})
	})
}

func TestAClaimThatFailsHoldsNobodyUp(t *testing.T) {
	w := newTown()
	first, second := w.label("big"), w.label("big")
	w.beginErr = errors.New("no room")
	c := w.config(1)
	c.Watch = time.Millisecond
	w.with(t, c, func(l *reconcile.Loop) {
		until(t, "told", func() bool { w.mu.Lock(); defer w.mu.Unlock(); return strings.Contains(w.last[first], "no room") })
		w.set(func() { w.beginErr = nil })
		until(t, "begun", func() bool { w.mu.Lock(); defer w.mu.Unlock(); return len(w.began) == 1 })
		until(t, "the other one waits", func() bool {
			l.Kick(first)
			l.Kick(second)
			return len(line(l)) == 1
		})
		w.end(w.began[0])
		l.Kick(w.began[0])
		until(t, "begun", func() bool { w.mu.Lock(); defer w.mu.Unlock(); return len(w.began) == 2 })
	})
	if w.most != 1 {
		t.Errorf("%d worked at once", w.most)
	}
}

// A machine that was off wakes no more agents than may work, and those that waited
// wait on.
func TestSleepersWakeInTheirTurn(t *testing.T) {
	w := newTown()
	var keys []reconcile.Key
	for range 6 {
		keys = append(keys, w.label("big"))
	}
	w.with(t, w.config(4), func(*reconcile.Loop) {})
	w.most = 0
	for k := range w.podsOf {
		if err := w.Stop(t.Context(), k); err != nil {
			t.Fatal(err)
		}
	}
	w.began = nil
	w.with(t, w.config(2), func(l *reconcile.Loop) {
		for n := range 6 {
			w.look(l, keys[n])
			if want := min(n+2, 6); len(w.began) != want || fmt.Sprint(w.began) != fmt.Sprint(keys[:want]) {
				t.Fatalf("began %v, want the first %d", w.began, want)
			}
			w.end(keys[n])
			w.look(l, keys[n])
		}
	})
	if w.most != 2 {
		t.Errorf("%d worked at once", w.most)
	}
}
