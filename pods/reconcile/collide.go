package reconcile

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Open pull requests of agents that are in each other's way: git can't merge the two, or both
// change the same files. Each is told of the others, by one comment. When one of them has
// landed, or anything else that git can't merge came to their base, the agents of the others
// merge that in, once for each commit of the base ([Loop.baseRound]).

// A Collision is how two commits are in each other's way.
type Collision struct {
	Conflict bool     // git can't merge them
	Files    []string // in which, as far as is known, or that both change
}

func (c Collision) none() bool { return !c.Conflict && len(c.Files) == 0 }

// A Collider compares commits of a repository. What takes long goes on beside the caller: the
// answer is [ErrLater], and the issue that was asked for is kicked at its end.
type Collider interface {
	// Collide compares the heads of two pull requests, which go to a branch at base.
	Collide(ctx context.Context, k Key, base, one, other string) (Collision, error)
	// Landed compares a pull request's head with what agents brought to its base, which is
	// at base, and it lacks; a conflict is one with the base, whoever's doing that is.
	Landed(ctx context.Context, k Key, base, head string) (Collision, error)
}

// A pair of issues, the smaller key first, whose pull requests were compared.
type pair [2]Key

func pairOf(a, b Key) pair {
	if compareKeys(a, b) > 0 {
		a, b = b, a
	}
	return pair{a, b}
}

// compared is what came of that, of two commits.
type compared struct {
	heads [2]string
	Collision
}

// collide compares an issue's pull request with the other agents' of its repository, and tells
// of those that are in its way. Of an error the rest is done all the same.
func (l *Loop) collide(ctx context.Context, i Issue, pull Pull) error {
	if l.cfg.Collider == nil || !pull.Open || pull.Head == "" {
		return nil
	}
	var errs []error
	var others []View
	later := false
	for _, o := range l.Views() {
		if !siblings(i.Key, pull, o) {
			continue
		}
		c, err := l.compare(ctx, i.Key, pull, o)
		if !c.none() {
			others = append(others, o)
		}
		if later = later || errors.Is(err, ErrLater); err != nil && !errors.Is(err, ErrLater) {
			errs = append(errs, err)
		}
	}
	if !later && (len(errs) == 0 || len(others) > 0) { // else it is not known that there is none
		errs = append(errs, l.sayCollisions(ctx, i.Key, pull, others))
	}
	return errors.Join(errs...)
}

// siblings tells whether another issue's pull request goes where one goes.
func siblings(k Key, pull Pull, o View) bool {
	return o.Owner == k.Owner && o.Repo == k.Repo && o.Key != k && o.open.Open && o.open.Base == pull.Base
}

// compare tells how an issue's pull request and another's are in each other's way. What is new of
// that, the other one is looked at for.
func (l *Loop) compare(ctx context.Context, k Key, pull Pull, o View) (Collision, error) {
	p := pairOf(k, o.Key)
	heads := [2]string{pull.Head, o.open.Head}
	if p[0] != k {
		slices.Reverse(heads[:])
	}
	last := l.pairs[p]
	if last.heads == heads {
		return last.Collision, nil
	}
	c, err := l.cfg.Collider.Collide(ctx, k, pull.BaseHead, heads[0], heads[1])
	if err != nil {
		return last.Collision, fmt.Errorf("comparing pull requests %d and %d of %s/%s: %w", pull.Number, o.open.Number, k.Owner, k.Repo, err)
	}
	slices.Sort(c.Files)
	l.pairs[p] = compared{heads, c}
	if !c.none() || !last.none() {
		l.Kick(o.Key)
	}
	return c, nil
}

// mostCollisions and mostCollided bound what a comment names: pull requests, and files of each.
const (
	mostCollisions = 20
	mostCollided   = 5
)

// sayCollisions tells on an issue's pull request which others are in its way, and when none is
// any more.
func (l *Loop) sayCollisions(ctx context.Context, k Key, pull Pull, others []View) error {
	var b strings.Builder
	b.WriteString("No other agent's open pull request is in the way of this one any more.\n")
	if len(others) > 0 {
		b.Reset()
		b.WriteString("**Other agents' pull requests are in the way of this one.** Where one of them lands first, the agents of the others merge it in.\n\n| pull request | how |\n|---|---|\n")
	}
	for _, o := range others[:min(len(others), mostCollisions)] {
		fmt.Fprintf(&b, "| #%d | %s |\n", o.open.Number, l.pairs[pairOf(k, o.Key)].words(l.cfg.Harmless))
	}
	if more := len(others) - mostCollisions; more > 0 {
		fmt.Fprintf(&b, "\nAnd %d more.\n", more)
	}
	body := b.String()
	if l.collided[k] == body {
		return nil
	}
	say := l.cfg.Forge.Say
	if len(others) == 0 {
		say = l.cfg.Forge.Resay // perhaps told by the process before
	}
	on := k
	on.Issue = pull.Number
	if err := say(ctx, on, "collisions", body); err != nil {
		return fmt.Errorf("telling on pull request %d of %s what is in its way: %w", pull.Number, k, err)
	}
	l.collided[k] = body
	return nil
}

// words tell how two are in each other's way.
func (c Collision) words(harmless func(string) string) string {
	var files []string
	for _, f := range c.Files[:min(len(c.Files), mostCollided)] {
		files = append(files, harmless(code(lineOf(f, 200))))
	}
	if more := len(c.Files) - mostCollided; more > 0 {
		files = append(files, fmt.Sprintf("%d more", more))
	}
	list := strings.Join(files, ", ")
	if c.Conflict {
		return "git can't merge the two: " + cmp.Or(list, "their files")
	}
	return "both change " + list
}

// takesIn tells which commit of its base a pull request's agent has to merge in: one that git can't
// merge with it, or that brings another agent's changes of the same files.
func (l *Loop) takesIn(ctx context.Context, i Issue, pod Pod, pull Pull, v *View) (*BehindError, error) {
	if l.cfg.Collider == nil || v.State != Review || !pull.Open || pull.Draft || pull.Head == "" || pull.BaseHead == "" || pull.Base != pod.Base {
		return nil, nil
	}
	last, heads := l.landedSince[i.Key], [2]string{pull.BaseHead, pull.Head}
	if last.heads != heads {
		c, err := l.cfg.Collider.Landed(ctx, i.Key, pull.BaseHead, pull.Head)
		switch {
		case errors.Is(err, ErrLater):
			return nil, nil
		case err != nil:
			return nil, fmt.Errorf("comparing pull request %d of %s with its base: %w", pull.Number, i.Key, err)
		}
		slices.Sort(c.Files)
		last = compared{heads, c}
		l.landedSince[i.Key] = last
	}
	switch {
	case last.none():
		return nil, nil
	case last.Conflict:
		return &BehindError{Base: pull.BaseHead, Unasked: true, Why: fmt.Sprintf("%s is at %s now, which conflicts with it", pull.Base, pull.BaseHead)}, nil
	}
	return &BehindError{Base: pull.BaseHead, Unasked: true, Clean: true, Why: fmt.Sprintf("%s is at %s now, where another agent's work has landed that changes the same files", pull.Base, pull.BaseHead)}, nil
}

// Moved says that a branch of a repository has moved, to which pull requests may go. It never
// blocks.
func (l *Loop) Moved(owner, repo, branch string) {
	l.mu.Lock()
	for k, v := range l.views {
		if k.Owner == owner && k.Repo == repo && v.open.Open && v.open.Base == branch {
			l.twice(k)
		}
	}
	l.mu.Unlock()
	l.wake()
}

// twice has an issue looked at now, and once more: the forge may tell a moment later where the base is
// by now. l.mu is held.
func (l *Loop) twice(k Key) {
	l.dirty[k] = true
	time.AfterFunc(settles, func() { l.Kick(k) })
}

// passes has an issue's siblings looked at, whose pull request is not open any more. l.mu is held.
func (l *Loop) passes(old View) {
	for k, o := range l.views {
		if siblings(old.Key, old.open, o) {
			l.twice(k)
		}
	}
	l.wake()
	for p := range l.pairs {
		if p[0] == old.Key || p[1] == old.Key {
			delete(l.pairs, p)
		}
	}
}
