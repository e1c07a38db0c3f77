package reconcile

import (
	"context"
	"fmt"
	"time"
)

// A feed remembers what was seen, so that a pass over everything costs one
// question to the forge when nothing has changed. Now and then it forgets, and
// the pass asks for all that is wanted and looks at every pod.
type feed struct {
	whole  time.Time        // when the last whole pass was
	since  time.Time        // the newest change seen, by the forge's clock
	issues map[Key]string   // prints of issues as they were when reconciled
	pulls  map[Key]string   // the same of pull requests, under their numbers
	pods   map[Key]podPrint // and of pods
}

const (
	// wholeEvery is the time between two passes that trust nothing seen before.
	wholeEvery = time.Hour
	// overlap is how far back a pass asks: the forge's index may lag.
	overlap = 2 * time.Minute
	// fresh is how old a change must be to be taken as seen: the forge's times
	// are whole seconds, and another change may come in the same one.
	fresh = 5 * time.Second
)

type podPrint struct {
	trigger int64
	whole   bool
	exit    string
}

func newFeed() feed {
	return feed{issues: map[Key]string{}, pulls: map[Key]string{}, pods: map[Key]podPrint{}}
}

// print is what of an issue decides anything.
func (i Issue) print() string { return fmt.Sprintf("%d %t %q", i.Updated.Unix(), i.Open, i.Labels) }

// news are the keys to look at in a pass over everything.
func (l *Loop) news(ctx context.Context, pods map[Key]Pod) ([]Key, error) {
	now := l.cfg.Now()
	whole := l.feed.since.IsZero() || now.Sub(l.feed.whole) >= wholeEvery
	var found []Issue
	var err error
	if whole {
		found, err = l.cfg.Forge.Wanted(ctx)
	} else {
		found, err = l.cfg.Forge.Changed(ctx, l.feed.since.Add(-overlap))
	}
	if err != nil {
		return nil, fmt.Errorf("asking the forge for issues: %w", err)
	}
	var keys []Key
	for _, i := range found {
		if i.Updated.After(l.feed.since) {
			l.feed.since = i.Updated
		}
		keys = append(keys, l.newsOf(i, pods)...)
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
		l.feed.whole = now
	}
	return keys, nil
}

// newsOf are the keys that a changed issue or pull request is about.
func (l *Loop) newsOf(i Issue, pods map[Key]Pod) []Key {
	if !i.IsPull {
		_, has := pods[i.Key]
		_, shown := l.View(i.Key)
		if l.feed.issues[i.Key] == i.print() || (!has && !shown && !i.wanted(l.cfg.Label)) {
			return nil
		}
		return []Key{i.Key}
	}
	if l.feed.pulls[i.Key] == i.print() {
		return nil
	}
	for _, v := range l.Views() {
		if v.Pull == i.Key.Issue && v.Owner == i.Owner && v.Repo == i.Repo {
			l.feed.pulls[i.Key] = i.print()
			return []Key{v.Key}
		}
	}
	return nil
}

func printOf(p Pod) podPrint { return podPrint{p.TriggerID, p.Whole, p.Exit} }

// seen notes an issue and its pod as they were when they were reconciled.
func (l *Loop) seen(i Issue, pod Pod, has bool) {
	delete(l.feed.pods, i.Key)
	if has {
		l.feed.pods[pod.Key] = printOf(pod)
	}
	delete(l.feed.issues, i.Key)
	if l.cfg.Now().Sub(i.Updated) > fresh {
		l.feed.issues[i.Key] = i.print()
	}
}
