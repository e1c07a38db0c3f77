package reconcile_test

import (
	"errors"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/pods/reconcile"
)

// acts are what may happen to an issue, to its pod and to the world around them.
func (w *world) acts(l *reconcile.Loop, others *bool) []func() {
	agent := func(s reconcile.AgentState) func() {
		return func() { w.set(func() { w.summary = reconcile.Summary{State: s, Since: w.now} }) }
	}
	merged := func() bool { return w.pull != nil && w.pull.Merged && w.pull.ClosedAt.After(w.trigger.At) }
	pull := func(p reconcile.Pull) func() {
		return func() {
			w.set(func() {
				if p.Number, p.ClosedAt = 4, w.trigger.At.Add(time.Minute); w.pull != nil && !merged() {
					w.pull = &p
				}
			})
		}
	}
	pass := func(d time.Duration) func() { return func() { w.set(func() { w.now = w.now.Add(d) }) } }
	pod := func(f func(*reconcile.Pod)) func() {
		return func() {
			w.set(func() {
				if w.pod != nil {
					f(w.pod)
				}
			})
		}
	}
	checks := func(c reconcile.CheckState, ci reconcile.CIState) func() {
		return func() { w.set(func() { w.check.State, w.ci.State = c, ci }) }
	}
	toggle := func(b *bool) func() { return func() { w.set(func() { *b = !*b }) } }
	return []func(){
		func() { w.label("ann") }, func() { w.label("ann") }, func() { w.label("ann") }, func() { w.label("stranger") }, w.unlabel,
		func() { w.set(func() { w.issue.Open = true }) }, func() { w.set(func() { w.issue.Open = !w.issue.Open }) },
		agent(reconcile.AgentStarting), agent(reconcile.AgentWorking), agent(reconcile.AgentAsking), agent(reconcile.AgentIdleWithWork), agent(reconcile.AgentFailed),
		func() { w.set(func() { w.commits = []reconcile.Commit{{}} }) }, func() { w.set(func() { w.commits = nil }) },
		pull(reconcile.Pull{Open: true}), pull(reconcile.Pull{Merged: true}), pull(reconcile.Pull{}), func() {
			w.set(func() {
				if !merged() {
					w.pull = nil
				}
			})
		},
		checks(reconcile.CheckRunning, reconcile.CIPending), checks(reconcile.CheckPassed, reconcile.CIPending), checks(reconcile.CheckFailed, reconcile.CINone), checks(reconcile.CheckNone, reconcile.CINone),
		func() { // its agent is done, and checked
			w.set(func() {
				w.commits, w.summary, w.check.State = []reconcile.Commit{{}}, reconcile.Summary{State: reconcile.AgentIdleWithWork, Since: w.now}, reconcile.CheckRunning
			})
		},
		pull(reconcile.Pull{Merged: true}),
		pass(time.Minute), pass(5 * time.Hour), pass(25 * time.Hour),
		pod(func(p *reconcile.Pod) { p.Whole, p.Exit = false, "killed" }),
		pod(func(p *reconcile.Pod) { p.Whole, p.Stopped, p.Exit = false, true, "" }), // the machine was off
		pod(func(p *reconcile.Pod) { p.Full = "It has too much" }), pod(func(p *reconcile.Pod) { p.Full = "" }),
		func() { w.set(func() { w.pod = nil }) }, // by hand
		func() {
			w.set(func() {
				if w.beginErr == nil {
					w.beginErr = errors.New("no image")
				} else {
					w.beginErr = nil
				}
			})
		},
		toggle(others), func() { w.set(func() { *others = false }) }, func() { w.set(func() { *others = false }) }, toggle(&w.archived), toggle(&w.steered.Wake),
		func() { _ = l.Remove(w.ctx, w.issue.Key) },
	}
}

// TestTheWholeLife lets anything happen at any time, and compares the steps that
// issues took with those that their life has: there must be no others, and none
// that nothing leads to.
func TestTheWholeLife(t *testing.T) {
	missing := map[[2]reconcile.State]bool{}
	for _, step := range reconcile.Steps() {
		missing[step] = true
	}
	for seed := uint64(1); seed <= 30 || len(missing) > 0 && seed <= 1000; seed++ {
		rnd := rand.New(rand.NewPCG(seed, 0))
		w := newWorld()
		w.ctx = t.Context()
		c := w.config()
		c.Max = 1
		full := false
		c.Forge = away{w}
		c.Pods = both{w, func() []reconcile.Pod {
			w.mu.Lock()
			defer w.mu.Unlock()
			if full {
				return []reconcile.Pod{{Key: reconcile.Key{Owner: "ann", Repo: "other", Issue: 1}, Whole: true}}
			}
			return nil
		}}
		for n := range 10 { // each loop finds what the one before has left
			if n%3 == 1 && w.pod != nil { // the machine was off, and others were faster
				w.pod.Whole, w.pod.Stopped, w.pod.Exit, full = false, true, "", true
				if n > 5 { // after its agent was done
					w.commits, w.summary = []reconcile.Commit{{}}, reconcile.Summary{State: reconcile.AgentIdleWithWork, Since: w.now}
					w.ci.State, w.check.State = reconcile.CINone, []reconcile.CheckState{reconcile.CheckRunning, reconcile.CheckPassed}[seed%2]
				}
			}
			w.with(t, c, func(l *reconcile.Loop) {
				for range 30 {
					acts := w.acts(l, &full)
					acts[rnd.IntN(len(acts))]()
					w.look(l, w.issue.Key)
				}
				for step := range l.Walked() {
					delete(missing, step)
				}
			})
		}
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
	var left []string
	for step := range missing {
		left = append(left, string(step[0])+" to "+string(step[1]))
	}
	slices.Sort(left)
	for _, step := range left {
		t.Errorf("nothing leads from %s", step)
	}
}
