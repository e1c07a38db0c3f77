package reconcile_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/pods/reconcile"
)

// crowd is a forge with many issues that counts how often it is asked.
type crowd struct {
	*world
	issues map[int64]reconcile.Issue
	labels map[int64]reconcile.Trigger
	calls  int
	podsOf map[reconcile.Key]reconcile.Pod
	ended  []int64
}

func (c *crowd) pick(ok func(reconcile.Issue) bool) (out []reconcile.Issue, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls++
	for _, i := range c.issues {
		if ok(i) {
			out = append(out, i)
		}
	}
	return out, nil
}

func (c *crowd) Wanted(context.Context) ([]reconcile.Issue, error) {
	return c.pick(func(i reconcile.Issue) bool { return len(i.Labels) > 0 })
}

func (c *crowd) Changed(_ context.Context, since time.Time) ([]reconcile.Issue, error) {
	return c.pick(func(i reconcile.Issue) bool { return !i.Updated.Before(since) })
}

func (c *crowd) Issue(_ context.Context, k reconcile.Key) (reconcile.Issue, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls++
	return c.issues[k.Issue], nil
}

func (c *crowd) Trigger(_ context.Context, k reconcile.Key) (reconcile.Trigger, bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls++
	tr, ok := c.labels[k.Issue]
	return tr, ok, nil
}

func (c *crowd) count(err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls++
	return err
}

func (c *crowd) SetState(context.Context, reconcile.Issue, reconcile.State) error {
	return c.count(nil)
}
func (c *crowd) Say(context.Context, reconcile.Key, string, string) error { return c.count(nil) }
func (c *crowd) Pull(context.Context, reconcile.Key, string) (reconcile.Pull, bool, error) {
	return reconcile.Pull{}, false, c.count(nil)
}

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
	c.podsOf[t.Key] = reconcile.Pod{Key: t.Key, TriggerID: t.Trigger.ID, Whole: true, Created: at, Started: at}
	return nil
}

func (c *crowd) Stop(_ context.Context, k reconcile.Key) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.podsOf[k]
	p.Whole, p.Stopped = false, true
	c.podsOf[k], c.ended = p, append(c.ended, k.Issue)
	return nil
}

// put puts the label on an issue, or takes it off.
func (c *crowd) put(n int64, user string, when time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := c.issues[n]
	i.Key, i.Open, i.Updated, i.Labels = reconcile.Key{Owner: "ann", Repo: "hello", Issue: n}, true, when, nil
	delete(c.labels, n)
	if user != "" {
		i.Labels = []string{"devaipod"}
		c.labels[n] = reconcile.Trigger{ID: when.Unix(), User: user, At: when}
	}
	c.issues[n] = i
}

func TestAPassOverManyIssuesCostsOneQuestion(t *testing.T) {
	c := &crowd{world: newWorld(), issues: map[int64]reconcile.Issue{}, labels: map[int64]reconcile.Trigger{}, podsOf: map[reconcile.Key]reconcile.Pod{}}
	// Half of them have the label, put on by somebody who may not, and one runs.
	for n := int64(1); n <= 1000; n++ {
		c.put(n, map[bool]string{true: "stranger"}[n%2 == 0], at.Add(-time.Hour))
	}
	c.put(1, "ann", at.Add(-time.Hour))
	cfg := c.config()
	cfg.Forge, cfg.Pods = c, c
	c.world.issue.Key.Issue = 1
	c.with(t, cfg, func(l *reconcile.Loop) {
		// pass makes one over everything and tells what it asked.
		pass := func() int {
			c.mu.Lock()
			before := c.calls
			c.mu.Unlock()
			l.KickAll()
			time.Sleep(100 * time.Millisecond)
			c.mu.Lock()
			defer c.mu.Unlock()
			return c.calls - before
		}
		pass() // the pod is new
		if n := pass(); n != 1 {
			t.Errorf("a pass without a change asked the forge %d times", n)
		}
		// Without any webhook.
		c.put(777, "ann", at)
		c.put(1, "", at)
		if n := pass(); n > 25 {
			t.Errorf("a pass with two changes asked the forge %d times", n)
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		if !c.podsOf[reconcile.Key{Owner: "ann", Repo: "hello", Issue: 777}].Whole || fmt.Sprint(c.ended) != "[1]" {
			t.Errorf("pods %+v, ended %v", c.podsOf, c.ended)
		}
	})
}
