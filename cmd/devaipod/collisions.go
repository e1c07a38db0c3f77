package main

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"codeberg.org/devaipod/devaipod/pods/reconcile"
)

// compareAtOnce is how many commits are compared at a time.
const compareAtOnce = 2

// collisions compares beside the loop: commits that are slow to compare, as somebody may make
// them, keep no issue waiting.
type collisions struct {
	by   reconcile.Collider
	kick func(reconcile.Key)

	places  chan struct{}
	ctx     context.Context //nolint:containedctx // the service's
	stop    context.CancelFunc
	helpers sync.WaitGroup

	mu   sync.Mutex
	jobs map[string]*comparison
}

// A comparison is under way, or was not taken up yet.
type comparison struct {
	asked []reconcile.Key
	over  bool
	found reconcile.Collision
	err   error
}

var _ reconcile.Collider = (*collisions)(nil)

func newCollisions(by reconcile.Collider, kick func(reconcile.Key)) *collisions {
	p := &collisions{by: by, kick: kick, places: make(chan struct{}, compareAtOnce), jobs: map[string]*comparison{}}
	p.ctx, p.stop = context.WithCancel(context.Background())
	return p
}

// end ends all, and waits for that.
func (p *collisions) end() {
	p.stop()
	p.helpers.Wait()
}

// Collide implements [reconcile.Collider].
func (p *collisions) Collide(_ context.Context, k reconcile.Key, base, one, other string) (reconcile.Collision, error) {
	return p.ask(k, fmt.Sprintln(k.Owner, k.Repo, base, one, other), func() (reconcile.Collision, error) {
		return p.by.Collide(p.ctx, k, base, one, other)
	})
}

// Landed implements [reconcile.Collider].
func (p *collisions) Landed(_ context.Context, k reconcile.Key, base, head string) (reconcile.Collision, error) {
	return p.ask(k, fmt.Sprintln(k.Owner, k.Repo, base, head), func() (reconcile.Collision, error) {
		return p.by.Landed(p.ctx, k, base, head)
	})
}

// mostCompared is how many results wait for being taken up. What nobody has asked for again is of
// commits that are heads no more.
const mostCompared = 1000

func (p *collisions) ask(k reconcile.Key, what string, compare func() (reconcile.Collision, error)) (reconcile.Collision, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	job := p.jobs[what]
	if job != nil && job.over {
		delete(p.jobs, what)
		return job.found, job.err
	}
	if job == nil {
		for old, j := range p.jobs {
			if len(p.jobs) >= mostCompared && j.over {
				delete(p.jobs, old)
			}
		}
		job = &comparison{}
		p.jobs[what] = job
		p.helpers.Add(1)
		go func() { defer p.helpers.Done(); p.do(job, compare) }()
	}
	if !slices.Contains(job.asked, k) {
		job.asked = append(job.asked, k)
	}
	return reconcile.Collision{}, reconcile.ErrLater
}

// do compares once there is a place.
func (p *collisions) do(job *comparison, compare func() (reconcile.Collision, error)) {
	select {
	case p.places <- struct{}{}:
		defer func() { <-p.places }()
	case <-p.ctx.Done():
		return
	}
	found, err := compare()
	p.mu.Lock()
	job.found, job.err, job.over = found, err, true
	asked := job.asked
	p.mu.Unlock()
	if p.ctx.Err() == nil {
		for _, k := range asked {
			p.kick(k)
		}
	}
}
