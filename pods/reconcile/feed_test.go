package reconcile_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/pods/reconcile"
)

// crowd is a forge with many issues and their pods, in memory. It counts how
// often it is asked, keeps times in whole seconds of a clock of its own, and
// shows changes in its list of what changed only after a while.
type crowd struct {
	*world
	lag       time.Duration // of the list
	skew      time.Duration // of the forge's clock, from ours
	date      time.Duration // of what its answers say, from ours
	undated   bool          // its answers do not say
	most      int           // that it can list, 0 for no limit
	calls     int
	lists     int
	asked     map[int64]int // how often for each issue
	issues    map[int64]reconcile.Issue
	visible   map[int64]time.Time // from when on the list knows the last change
	triggers  map[int64]reconcile.Trigger
	lastEvent int64
	podsOf    map[reconcile.Key]reconcile.Pod
	started   map[int64]int
	sentinel  chan struct{}
	afterward func() // called in the middle of a pass, once
}

// sentinel is an issue that is nowhere: who asks for it has done all before.
const sentinel = 1 << 40

func newCrowd(n int64) *crowd {
	c := &crowd{
		world: newWorld(), issues: map[int64]reconcile.Issue{}, visible: map[int64]time.Time{}, triggers: map[int64]reconcile.Trigger{},
		asked: map[int64]int{}, podsOf: map[reconcile.Key]reconcile.Pod{}, started: map[int64]int{}, sentinel: make(chan struct{}, 1),
	}
	for i := range n {
		c.put(i+1, "")
	}
	c.now = c.now.Add(time.Hour)
	return c
}

func keyOf(n int64) reconcile.Key {
	return reconcile.Key{Owner: "ann", Repo: "hello", Issue: n}
}

// touch notes a change of an issue; the lock is held.
func (c *crowd) touch(i reconcile.Issue) {
	i.Updated = c.now.Add(c.skew).Truncate(time.Second)
	c.issues[i.Issue], c.visible[i.Issue] = i, c.now.Add(c.lag)
}

// put makes somebody put the label on an issue; nobody takes it off.
func (c *crowd) put(n int64, user string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := reconcile.Issue{Key: keyOf(n), Open: true}
	delete(c.triggers, n)
	if user != "" {
		c.lastEvent++
		i.Labels = []string{"devaipod"}
		c.triggers[n] = reconcile.Trigger{ID: c.lastEvent, User: user, At: c.now.Add(c.skew).Truncate(time.Second)}
	}
	c.touch(i)
}

func (c *crowd) pick(ok func(reconcile.Issue) bool) (out []reconcile.Issue, _ time.Time, _ error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls++
	c.lists++
	for _, i := range c.issues {
		if ok(i) && !c.visible[i.Issue].After(c.now) {
			out = append(out, i)
		}
	}
	if c.undated {
		return out, time.Time{}, nil
	}
	return out, c.now.Add(c.date), nil
}

func (c *crowd) Wanted(context.Context) ([]reconcile.Issue, time.Time, error) {
	return c.pick(func(i reconcile.Issue) bool { return slices.Contains(i.Labels, "devaipod") })
}

func (c *crowd) Changed(_ context.Context, since time.Time) ([]reconcile.Issue, time.Time, error) {
	found, asOf, err := c.pick(func(i reconcile.Issue) bool { return !i.Updated.Before(since.Truncate(time.Second)) })
	if c.most > 0 && len(found) > c.most {
		err = reconcile.ErrTooMany
	}
	return found, asOf, err
}

func (c *crowd) Called(context.Context, time.Time) ([]reconcile.Issue, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls++
	return nil, nil
}

func (c *crowd) Calls(context.Context, reconcile.Key) (reconcile.Calls, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls++
	return reconcile.Calls{}, nil
}

func (c *crowd) Issue(_ context.Context, k reconcile.Key) (reconcile.Issue, error) {
	if k.Issue == sentinel {
		c.sentinel <- struct{}{}
		return reconcile.Issue{}, reconcile.ErrGone
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls++
	c.asked[k.Issue]++
	i, ok := c.issues[k.Issue]
	if !ok {
		return i, reconcile.ErrGone
	}
	return i, nil
}

func (c *crowd) Trigger(_ context.Context, k reconcile.Key) (reconcile.Trigger, bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls++
	tr, ok := c.triggers[k.Issue]
	if f := c.afterward; f != nil {
		c.afterward = nil
		c.mu.Unlock()
		f()
		c.mu.Lock()
	}
	return tr, ok, nil
}

func (c *crowd) SetState(_ context.Context, i reconcile.Issue, s reconcile.State) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls++
	i, ok := c.issues[i.Issue]
	i.Labels = slices.DeleteFunc(slices.Clone(i.Labels), func(l string) bool { return l != "devaipod" })
	if s != "" {
		i.Labels = append(i.Labels, "agent/"+string(s))
	}
	if ok {
		c.touch(i)
	}
	return nil
}

func (c *crowd) Say(_ context.Context, k reconcile.Key, _, _ string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls++
	if i, ok := c.issues[k.Issue]; ok {
		c.touch(i)
	}
	return nil
}

func (c *crowd) Pull(context.Context, reconcile.Key, string) (reconcile.Pull, bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls++
	return reconcile.Pull{}, false, nil
}

// Of each issue one task may be kept.
func (c *crowd) Keep(reconcile.Key, *reconcile.Task) error { return nil }
func (c *crowd) Steer(context.Context, reconcile.Key, reconcile.Orders) (reconcile.Steered, error) {
	return reconcile.Steered{}, nil
}
func (c *crowd) Kept(reconcile.Key) (*reconcile.Task, error) { return nil, nil }
func (c *crowd) Waiting() ([]reconcile.Key, error)           { return nil, nil }
func (c *crowd) Resume(context.Context, reconcile.Key) error { return nil }
func (c *crowd) Remove(context.Context, reconcile.Key) error { return nil }
func (c *crowd) count() (calls int)                          { c.mu.Lock(); defer c.mu.Unlock(); return c.calls }
func (c *crowd) List(context.Context) (out []reconcile.Pod, _ error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.podsOf {
		out = append(out, p)
	}
	return out, nil
}

func (c *crowd) Begin(_ context.Context, t reconcile.Task) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.started[t.Issue]++
	c.podsOf[t.Key] = reconcile.Pod{Key: t.Key, TriggerID: t.Trigger.ID, TriggerAt: t.Trigger.At, Whole: true, Created: c.now, Started: c.now}
	return nil
}

func (c *crowd) Stop(_ context.Context, k reconcile.Key) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.podsOf[k]
	p.Whole, p.Stopped = false, true
	c.podsOf[k] = p
	return nil
}

// runs tells whether an issue's pod is there and runs.
func (c *crowd) runs(n int64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.podsOf[keyOf(n)].Whole
}

// with runs a loop on the crowd, and f beside it with a function that makes one
// pass over everything, a minute after the last, and tells what it asked.
func (c *crowd) with(t *testing.T, change func(*reconcile.Config), f func(l *reconcile.Loop, pass func() int)) {
	t.Helper()
	cfg := c.config()
	cfg.Forge, cfg.Pods = c, c
	cfg.Now = func() time.Time { c.mu.Lock(); defer c.mu.Unlock(); return c.now }
	cfg.Deadline, cfg.Rest = 0, 0
	if change != nil {
		change(&cfg)
	}
	c.world.with(t, cfg, func(l *reconcile.Loop) {
		settle := func() {
			l.Kick(keyOf(sentinel))
			<-c.sentinel
		}
		f(l, func() int {
			settle()
			c.mu.Lock()
			c.now = c.now.Add(time.Minute)
			calls, lists := c.calls, c.lists
			c.mu.Unlock()
			l.KickAll()
			until(t, "asked", func() bool { c.mu.Lock(); defer c.mu.Unlock(); return c.lists > lists })
			settle()
			return c.count() - calls
		})
	})
}

// quiet is after how many passes nothing of a change is left to look at: it is
// looked at, then what was written of it, then whether that was all.
const quiet = 4

func TestAPassOverManyIssuesCostsOneQuestion(t *testing.T) {
	c := newCrowd(1000)
	// Half of them have the label, put on by somebody who may not, and one runs.
	for n := int64(1); n <= 1000; n += 2 {
		c.put(n, "stranger")
	}
	c.put(1, "ann")
	c.with(t, nil, func(_ *reconcile.Loop, pass func() int) {
		for range quiet {
			pass()
		}
		for range 10 {
			if n := pass(); n != 1 {
				t.Errorf("a pass without a change asked the forge %d times", n)
			}
		}
		c.put(778, "ann")
		c.put(1, "")
		if n := pass(); n > 25 {
			t.Errorf("a pass with two changes asked the forge %d times", n)
		}
		if !c.runs(778) || c.runs(1) {
			t.Errorf("labeled: %t, unlabeled: %t", c.runs(778), c.runs(1))
		}
	})
}

// TestLabelsPutOnAndTakenOffAtRandom has no webhook: the passes must find all
// of it, at a cost that grows with the changes alone, whatever the clocks say.
func TestLabelsPutOnAndTakenOffAtRandom(t *testing.T) {
	for name, set := range map[string]func(*crowd){
		"the clocks agree":                 func(*crowd) {},
		"the forge is an hour ahead":       func(c *crowd) { c.skew, c.date = time.Hour, time.Hour },
		"the forge is an hour behind":      func(c *crowd) { c.skew, c.date = -time.Hour, -time.Hour },
		"a proxy's clock is an hour ahead": func(c *crowd) { c.date = time.Hour },
		"a proxy's clock is behind":        func(c *crowd) { c.date = -10 * time.Minute },
		"its answers have no date":         func(c *crowd) { c.undated = true },
		"its list is late":                 func(c *crowd) { c.lag = 100 * time.Second },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			rnd := rand.New(rand.NewPCG(seed, 0))
			c := newCrowd(0)
			set(c)
			for n := int64(1); n <= 1000; n++ {
				c.put(n, "")
			}
			c.mu.Lock()
			c.now = c.now.Add(3 * time.Hour)
			c.mu.Unlock()
			c.with(t, nil, func(_ *reconcile.Loop, pass func() int) { c.random(t, rnd, pass) })
		})
	}
}

func (c *crowd) random(t *testing.T, rnd *rand.Rand, pass func() int) {
	on, changed := map[int64]bool{}, map[int]int{}
	for p := range 120 {
		for _, want := range []bool{true, false} {
			n := 1 + rnd.Int64N(1000)
			for k := range on { // in an order that Go makes random
				if !want {
					n = k
				}
				break
			}
			if on[n] == want || rnd.IntN(4) > 0 {
				continue
			}
			changed[p]++
			if delete(on, n); want {
				on[n] = true
			}
			c.put(n, map[bool]string{true: "ann"}[want])
		}
		recent := 0
		for back := range quiet + int(c.lag/time.Minute) + 1 {
			recent += changed[p-back]
		}
		calls := pass()
		most := 2 + 20*recent
		if p%60 > 60-quiet { // once an hour every pod is looked at
			most += 10 * len(c.podsOf)
		}
		if calls > most && !c.undated && p >= quiet {
			t.Errorf("pass %d asked the forge %d times after %d changes", p, calls, recent)
		}
		if c.lag > 0 && recent > 0 {
			continue // it may not know yet
		}
		for n := int64(1); n <= 1000; n++ {
			if c.runs(n) != on[n] {
				t.Fatalf("after pass %d issue %d runs: %t, labeled: %t", p, n, c.runs(n), on[n])
			}
		}
	}
	for range 2 * quiet {
		pass()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for n, p := range c.podsOf {
		if p.Whole != on[n.Issue] {
			t.Errorf("in the end issue %s runs: %t", n, p.Whole)
		}
	}
}

func TestAnotherChangeInTheSameSecond(t *testing.T) {
	for name, skew := range map[string]time.Duration{"clocks agree": 0, "forge ahead": time.Hour, "forge behind": -time.Hour} {
		t.Run(name, func(t *testing.T) {
			c := newCrowd(10)
			c.skew, c.date = skew, skew
			c.with(t, nil, func(l *reconcile.Loop, pass func() int) {
				for range quiet {
					pass()
				}
				// Put on; and right after it was looked at, off and on again: nothing
				// of the issue tells, and its time of update is the same.
				c.put(3, "stranger")
				c.mu.Lock()
				c.afterward = func() { c.put(3, "ann") }
				c.mu.Unlock()
				l.Kick(keyOf(3))
				for range quiet {
					pass()
				}
				if !c.runs(3) {
					t.Error("the second label was never seen")
				}
			})
		})
	}
}

func TestAForgeThatCannotListAllThatChanged(t *testing.T) {
	c := newCrowd(100)
	c.most = 10
	c.with(t, nil, func(_ *reconcile.Loop, pass func() int) {
		for n := int64(1); n <= 100; n++ {
			c.put(n, map[bool]string{true: "ann"}[n == 50])
		}
		pass()
		if !c.runs(50) {
			t.Error("the label was not seen")
		}
	})
}

func TestADeletedIssueIsFoundWithinTheHour(t *testing.T) {
	c := newCrowd(10)
	c.put(3, "ann")
	c.with(t, nil, func(_ *reconcile.Loop, pass func() int) {
		pass()
		c.mu.Lock()
		delete(c.issues, 3)
		c.mu.Unlock()
		for range 61 {
			pass()
		}
		if c.runs(3) {
			t.Error("its pod still runs")
		}
	})
}

func TestAFreePlaceCostsOneQueuedIssue(t *testing.T) {
	c := newCrowd(500)
	for n := int64(1); n <= 500; n++ {
		c.put(n, "ann")
	}
	// No time goes by between the labels and now: else the text may have changed.
	short := func(cfg *reconcile.Config) { cfg.Max, cfg.Watch = 1, 5*time.Millisecond }
	c.with(t, short, func(l *reconcile.Loop, pass func() int) {
		for range quiet {
			pass()
		}
		calls := c.count()
		c.mu.Lock()
		clear(c.asked)
		c.mu.Unlock()
		c.put(1, "")
		l.Kick(keyOf(1))
		until(t, "started", func() bool { return c.runs(2) })
		time.Sleep(100 * time.Millisecond)
		l.Kick(keyOf(sentinel))
		<-c.sentinel
		if n := c.count() - calls; n > 60 {
			t.Errorf("a place that became free cost %d calls", n)
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		if len(c.asked) > 3 {
			t.Errorf("%d issues were looked at", len(c.asked))
		}
	})
}

func TestAPodThatHangsKeepsNobodyWaiting(t *testing.T) {
	c := newCrowd(10)
	c.put(3, "ann")
	hangs := &hanging{crowd: c, entered: make(chan struct{}, 100)}
	c.with(t, func(cfg *reconcile.Config) { cfg.Pods, cfg.Watch = hangs, 5*time.Millisecond }, func(_ *reconcile.Loop, pass func() int) {
		for range quiet {
			pass() // its making is over
		}
		hangs.now.Store(true)
		<-hangs.entered
		c.put(4, "ann")
		pass()
		if !c.runs(4) {
			t.Error("another issue waits for it")
		}
		if len(hangs.entered) > 0 {
			t.Error("it was asked again before it answered")
		}
	})
}

// hanging is a crowd whose pod of issue 3 does not answer any more.
type hanging struct {
	*crowd
	now     atomic.Bool
	entered chan struct{}
}

func (h *hanging) Summary(ctx context.Context, k reconcile.Key) (reconcile.Summary, error) {
	if k.Issue != 3 || !h.now.Load() {
		return h.crowd.Summary(ctx, k)
	}
	h.entered <- struct{}{}
	<-ctx.Done()
	return reconcile.Summary{}, fmt.Errorf("the pod of %s: %w", k, ctx.Err())
}

func TestARestingPodIsNotAskedForever(t *testing.T) {
	w := newWorld()
	w.pass(t)
	w.summary = reconcile.Summary{State: reconcile.AgentAsking, Question: "?"}
	w.pass(t)
	w.pod.Whole, w.pod.Stopped = false, true
	w.sumErr = context.DeadlineExceeded
	c := w.config()
	c.Watch = time.Millisecond
	counting := &countIssues{world: w}
	c.Forge = counting
	w.with(t, c, func(*reconcile.Loop) { time.Sleep(200 * time.Millisecond) })
	if counting.n > 3 {
		t.Errorf("its issue was read %d times", counting.n)
	}
}

type countIssues struct {
	*world
	n int
}

func (c *countIssues) Issue(ctx context.Context, k reconcile.Key) (reconcile.Issue, error) {
	c.n++
	return c.world.Issue(ctx, k)
}
