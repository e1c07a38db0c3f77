package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"codeberg.org/devaipod/devaipod/mirror"
	"codeberg.org/devaipod/devaipod/pods"
	"codeberg.org/devaipod/devaipod/pods/podfile"
	"codeberg.org/devaipod/devaipod/pods/reconcile"
)

// A pod is removed once what its agent did is saved (invariant S6), and while people
// have nothing in its workspace that would be lost. The last save
// may take long, and the loop has other issues to look at: so it goes on beside
// the loop, which asks again.

// A save is the last one of a pod, which is stopped for it.
type save struct {
	done  chan struct{}
	saved podfile.Saved
	err   error
	// work is what people have in the workspace and nowhere else.
	work podfile.Work
	// forced: the pod may go, whatever came of it.
	forced bool
}

const (
	// saveWithin is how long the loop waits for a save.
	saveWithin = 5 * time.Second
	// saveLimit bounds one.
	saveLimit = 10 * time.Minute
)

// errSaving is what a removal waits for.
var errSaving = fmt.Errorf("%w: what its agent did is being saved before its pod is removed", reconcile.ErrLater)

// An unsavedError tells what would be lost with a pod.
type unsavedError struct {
	key reconcile.Key
	*save
}

func (e *unsavedError) Unwrap() error { return e.err }

func (e *unsavedError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "the pod of %s stays", e.key)
	if !e.agentSaved() {
		b.WriteString(": not all that its agent did could be saved")
		if why := e.saved.Error; why != "" {
			fmt.Fprintf(&b, ": %s", plain(why, 500))
		} else if e.err != nil {
			fmt.Fprintf(&b, ": %s", e.err)
		}
		for _, n := range lostWith(e.saved) {
			fmt.Fprintf(&b, "\n  %s", notSavedLine(n))
		}
	}
	switch work := e.work; {
	case work.Broken != "":
		fmt.Fprintf(&b, ": what people have left in its workspace can't be told: %s", plain(work.Broken, 1000))
	case !work.Empty():
		fmt.Fprintf(&b, ": people have left in its workspace what is nowhere else (devaipod cp %s:. DIRECTORY copies the clone with its history)%s", e.key, workLines(work))
	}
	fmt.Fprintf(&b, "\nSee to it, or remove the pod all the same with devaipod rm --force %s", e.key)
	return b.String()
}

func notSavedLine(n podfile.NotSaved) string {
	line := fmt.Sprintf("%s: %s", plain(n.Path, 300), n.Why)
	if n.Detail != "" {
		line += " (" + plain(n.Detail, 200) + ")"
	}
	return line
}

// lostWith is what is not saved, and a person would miss: not what a .gitignore
// leaves out, nor pipes and sockets.
func lostWith(s podfile.Saved) []podfile.NotSaved {
	var out []podfile.NotSaved
	for _, n := range s.NotSaved {
		if n.Why != podfile.WhyIgnored && n.Why != podfile.WhySpecial {
			out = append(out, n)
		}
	}
	return out
}

// beginSave stops a pod and saves what its agent did, unless that is being done
// already.
func (p *podPort) beginSave(k reconcile.Key) *save {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s := p.saves[k]; s != nil {
		return s
	}
	s := &save{done: make(chan struct{})}
	p.saves[k] = s
	go func() {
		defer close(s.done)
		ctx, cancel := context.WithTimeout(context.Background(), saveLimit)
		defer cancel()
		if s.saved, s.err = p.saveNow(ctx, k); s.err == nil {
			s.work = p.manager.LeftThere(ctx, pods.Key(k))
		}
	}()
	return s
}

func (p *podPort) saveNow(ctx context.Context, k reconcile.Key) (podfile.Saved, error) {
	if err := p.manager.Stop(ctx, pods.Key(k)); err != nil {
		return podfile.Saved{}, err
	}
	there, err := p.manager.HasWork(ctx, pods.Key(k))
	if err != nil || !there {
		return podfile.Saved{Complete: err == nil}, err
	}
	spec, err := p.manager.Spec(pods.Key(k))
	if err != nil {
		return podfile.Saved{}, err
	}
	if err := p.open(spec); err != nil {
		return podfile.Saved{}, err
	}
	return p.manager.Save(ctx, pods.Key(k))
}

// forgetSave forgets the last save of a pod that goes on.
func (p *podPort) forgetSave(k reconcile.Key) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s := p.saves[k]; s != nil && s.ended() {
		delete(p.saves, k) // one that goes on will be, once it is done
	}
}

func (s *save) ended() bool {
	select {
	case <-s.done:
		return true
	default:
		return false
	}
}

func (s *save) agentSaved() bool {
	return s.err == nil && s.saved.Complete && len(lostWith(s.saved)) == 0
}

// held tells whether nothing but people's work keeps the pod, which stays as it is while
// the pod does not run: the loop need not look again.
func (s *save) held() bool {
	return s.agentSaved() && !s.work.Empty() && s.work.Broken == ""
}

// result is an error unless the pod may go.
func (s *save) result(k reconcile.Key) error {
	if s.forced || s.agentSaved() && s.work.Empty() {
		return nil
	}
	return &unsavedError{k, s}
}

// savedFirst is an error until all of a pod is saved.
func (p *podPort) savedFirst(ctx context.Context, k reconcile.Key) error {
	s := p.beginSave(k)
	select {
	case <-s.done:
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(saveWithin):
		return errSaving
	}
	if !s.held() {
		p.mu.Lock()
		delete(p.saves, k) // the next removal saves anew
		p.mu.Unlock()
	}
	return s.result(k)
}

// saveBefore saves all of a pod before a person has it removed. With force the pod
// may then go, whatever came of it.
func (p *podPort) saveBefore(ctx context.Context, k reconcile.Key, force bool) (podfile.Saved, error) {
	s := p.beginSave(k)
	select {
	case <-s.done:
	case <-ctx.Done():
		return podfile.Saved{}, ctx.Err()
	}
	err := s.result(k)
	p.mu.Lock()
	defer p.mu.Unlock()
	if err == nil || force {
		s.forced = true
		p.saves[k] = s
	} else {
		delete(p.saves, k)
	}
	return s.saved, err
}

// saveRules are what a pod's saver may save.
func (p *podPort) saveRules(k pods.Key) (mirror.SaveRules, error) {
	spec, err := p.manager.Spec(k)
	return mirror.SaveRules{RepoID: spec.RepoID, Issue: spec.Issue, Borrow: spec.Borrow, Quota: p.quota}, err
}
