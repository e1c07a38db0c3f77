package reconcile

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// A feed remembers what was seen, so that a pass over everything costs one
// question to the forge when nothing has changed. Now and then a pass asks for
// all that is wanted and looks at every pod: what the forge's index of changes
// may miss for good is an issue that was deleted, and what it was late for by
// more than the overlap.
type feed struct {
	whole  time.Duration    // when the last whole pass was, by Uptime
	since  time.Time        // from when on changes are asked for, zero for a whole pass
	issues map[Key]look     // issues as they were when reconciled
	pulls  map[Key]string   // prints of pull requests, under their numbers
	pods   map[Key]podPrint // and of pods
}

const (
	// wholeEvery is the time between two whole passes.
	wholeEvery = time.Hour
	// fresh is how long after an issue was first seen as it is another change may
	// still come with the same time of update: the forge's times are whole
	// seconds. Only time that goes by is measured, so no two clocks have to agree.
	fresh = 5 * time.Second
)

// A look is what an issue was like, when it was first seen so, and whether it
// was reconciled long enough after that.
type look struct {
	print   string
	first   time.Duration // Uptime
	settled bool
}

type podPrint struct {
	trigger int64
	whole   bool
	exit    string
}

func newFeed() feed {
	return feed{issues: map[Key]look{}, pulls: map[Key]string{}, pods: map[Key]podPrint{}}
}

// print is what of an issue decides anything.
func (i Issue) print() string { return fmt.Sprintf("%d %t %q", i.Updated.Unix(), i.Open, i.Labels) }

// news are the keys to look at in a pass over everything.
func (l *Loop) news(ctx context.Context, pods map[Key]Pod) ([]Key, error) {
	now := l.cfg.Now()
	// After a clock has gone back nobody knows from when on to ask.
	whole := l.feed.since.IsZero() || l.cfg.Uptime()-l.feed.whole >= wholeEvery || now.Add(l.cfg.Overlap).Before(l.feed.since)
	found, asOf, whole, err := l.ask(ctx, whole)
	if err != nil {
		return nil, fmt.Errorf("asking the forge for issues: %w", err)
	}
	if whole || slices.ContainsFunc(found, l.mayCall) {
		callers, err := l.callers(ctx, whole)
		if err != nil {
			return nil, fmt.Errorf("asking the forge who called: %w", err)
		}
		found = append(found, callers...)
	}
	var keys []Key
	pulls := l.pulls()
	for _, i := range found {
		keys = append(keys, l.newsOf(i, pods, pulls)...)
	}
	for k, pod := range pods {
		if whole || l.feed.pods[k] != printOf(pod) {
			keys = append(keys, k)
		}
	}
	for k := range l.feed.pods {
		if _, there := pods[k]; !there { // somebody removed it
			delete(l.feed.pods, k)
			keys = append(keys, k)
		}
	}
	if whole {
		// Their label may have been taken off while nobody looked.
		waiting, err := l.cfg.Pods.Waiting()
		if err != nil {
			return nil, fmt.Errorf("looking for tasks that wait: %w", err)
		}
		keys = append(keys, waiting...)
		l.feed.whole = l.cfg.Uptime()
	}
	// By the earlier of the two clocks: one that is late makes the next pass read
	// what is known, one that is early would make it miss a change.
	if l.feed.since = asOf; now.Before(asOf) {
		l.feed.since = now
	}
	return keys, nil
}

// mayCall tells whether somebody may have called the bot to an issue that has changed: each call
// changes it.
func (l *Loop) mayCall(i Issue) bool {
	known := l.feed.issues[i.Key]
	return !i.IsPull && i.Open && !i.wanted(l.cfg.Label) && !(known.settled && known.print == i.print())
}

// ask asks for what has changed, or for all that is wanted where that is too
// much to list.
func (l *Loop) ask(ctx context.Context, whole bool) ([]Issue, time.Time, bool, error) {
	if !whole {
		found, asOf, err := l.cfg.Forge.Changed(ctx, l.feed.since.Add(-l.cfg.Overlap))
		if !errors.Is(err, ErrTooMany) {
			return found, asOf, false, err
		}
		l.cfg.Log.Warn("more has changed than the forge lists; looking at all that is wanted", "since", l.feed.since)
	}
	found, asOf, err := l.cfg.Forge.Wanted(ctx)
	return found, asOf, true, err
}

// pulls are the issues whose pull requests are known, under their numbers.
func (l *Loop) pulls() map[Key]Key {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := map[Key]Key{}
	for k, v := range l.views {
		if v.Pull != 0 {
			out[Key{Owner: k.Owner, Repo: k.Repo, Issue: v.Pull}] = k
		}
	}
	return out
}

// newsOf are the keys that a changed issue or pull request is about.
func (l *Loop) newsOf(i Issue, pods map[Key]Pod, pulls map[Key]Key) []Key {
	if !i.IsPull {
		_, has := pods[i.Key]
		_, shown := l.View(i.Key)
		known := l.feed.issues[i.Key]
		if (known.settled && known.print == i.print()) || (!has && !shown && !i.wanted(l.cfg.Label) && !(i.Open && i.Calls)) {
			return nil
		}
		return []Key{i.Key}
	}
	k, ours := pulls[i.Key]
	if !ours || l.feed.pulls[i.Key] == i.print() {
		return nil
	}
	l.feed.pulls[i.Key] = i.print()
	return []Key{k}
}

func printOf(p Pod) podPrint { return podPrint{p.TriggerID, p.Whole, p.Exit} }

// seen notes an issue and its pod as they were when they were reconciled.
func (l *Loop) seen(i Issue, pod Pod, has bool) {
	delete(l.feed.pods, i.Key)
	if has {
		l.feed.pods[pod.Key] = printOf(pod)
	}
	now, known := l.cfg.Uptime(), l.feed.issues[i.Key]
	if known.print != i.print() {
		known = look{print: i.print(), first: now}
	}
	known.settled = known.settled || now-known.first > fresh
	l.feed.issues[i.Key] = known
}
