package reconcile

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"
)

// The places of agents are few (agent.max). Whoever needs one, for a new pod or
// for one that sleeps, puts a claim in line; at the end of each pass the first
// ones get what is free. The line is made from what the loop looked at, so a
// service that was started anew has the same one after its first pass.

// A claim is an issue that waits for a place.
type claim struct {
	issue Issue // as it was looked at last
	view  View
	label Trigger
}

// queueChatter is how often, for each place in the line, a comment may change when
// only that did: the first know it to ten seconds, the fiftieth to some minutes,
// and a long line costs the forge little.
const queueChatter = 10 * time.Second

// mayStart tells whether an issue's agent may start now: there is no limit, it has
// a place, or it is its turn.
func (l *Loop) mayStart(k Key) bool {
	v, _ := l.View(k)
	return l.cfg.Max == 0 || l.turn || life[v.State].place
}

// wait puts an issue in line. It is told at the end of the pass, with its place.
func (l *Loop) wait(i Issue, v View, label Trigger) {
	v.State = Queued
	l.line[i.Key] = &claim{i, v, label}
}

// admit gives free places to the first in line, and tells the others where they
// are. What can't start leaves the line, and comes back when it is tried again.
func (l *Loop) admit(ctx context.Context, pods map[Key]Pod) {
	l.recall(pods)
	for len(l.line) > 0 && l.busy(pods) < l.cfg.Max {
		k := l.inLine()[0].issue.Key
		l.turn = true
		ok := l.one(ctx, k, pods)
		if l.turn = false; !ok {
			break // perhaps it is podman or the forge: the next ones wait for another pass
		}
		if v, _ := l.View(k); life[v.State].place {
			l.serve(k)
		}
	}
	for n, c := range l.inLine() {
		c.view.Position = n + 1
		c.view.Why = fmt.Sprintf("Number %d in the queue: no more than %d agents may work at a time (agent.max).", n+1, l.cfg.Max)
		if ctx.Err() != nil {
			return
		}
		if err := l.show(ctx, c.issue, c.view); err != nil {
			l.broke(ctx, c.issue.Key, err)
		}
	}
}

// busy counts the places that are taken. A pod of which nothing is known yet may
// have one.
func (l *Loop) busy(pods map[Key]Pod) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	known := map[Key]bool{}
	for _, v := range l.views {
		known[v.pod] = true
		if life[v.State].place {
			n++
		}
	}
	for k, p := range pods {
		if p.Whole && !known[k] {
			n++
		}
	}
	return n
}

// A place is what takes turns: a repository of the forge.
type place struct{ owner, repo string }

func placeOf(k Key) place { return place{k.Owner, k.Repo} }

// serve notes that it was a repository's turn.
func (l *Loop) serve(k Key) {
	l.turns++
	l.served[placeOf(k)] = l.turns
}

// recall works out whose turn it was before this loop was started, by the pods
// that are there.
func (l *Loop) recall(pods map[Key]Pod) {
	if l.turns > 0 {
		return
	}
	for _, p := range slices.SortedFunc(maps.Values(pods), func(a, b Pod) int {
		return cmp.Or(a.Created.Compare(b.Created), compareKeys(a.Key, b.Key))
	}) {
		l.serve(p.Key)
	}
}

// inLine is the line in its order: the repositories take turns, the one first that
// has waited for longest; in each, first come, first served.
func (l *Loop) inLine() []*claim {
	served, waits := maps.Clone(l.served), map[place][]*claim{}
	for _, c := range l.line {
		waits[placeOf(c.issue.Key)] = append(waits[placeOf(c.issue.Key)], c)
	}
	first := func(a, b *claim) int {
		return cmp.Or(a.label.At.Compare(b.label.At), cmp.Compare(a.label.ID, b.label.ID), compareKeys(a.issue.Key, b.issue.Key))
	}
	for _, all := range waits {
		slices.SortFunc(all, first)
	}
	var out []*claim
	for turns := l.turns + 1; len(waits) > 0; turns++ {
		var next place
		for r, all := range waits {
			if head, ok := waits[next]; !ok || cmp.Or(cmp.Compare(served[r], served[next]), first(all[0], head[0])) < 0 {
				next = r
			}
		}
		out = append(out, waits[next][0])
		served[next] = turns
		if waits[next] = waits[next][1:]; len(waits[next]) == 0 {
			delete(waits, next)
		}
	}
	return out
}

// lineMoves tells whether a place is free, or somebody in line may be told anew
// where it is.
func (l *Loop) lineMoves() bool {
	free := l.cfg.Max
	for _, v := range l.Views() {
		if life[v.State].place {
			free--
		}
	}
	for k, c := range l.line {
		if free > 0 || (c.view.Position != l.said[k].position && l.mayTell(l.said[k], c.view)) {
			return true
		}
	}
	return false
}

// mayTell tells whether our last comment is old enough for what is new.
func (l *Loop) mayTell(last said, v View) bool {
	wait := time.Duration(0)
	switch {
	case v.State != last.state:
	case life[v.State].place:
		wait = chatter
	case v.Position > 0 && last.position > 0:
		wait = queueChatter * time.Duration(v.Position)
	}
	return l.cfg.Uptime()-last.at >= wait
}
