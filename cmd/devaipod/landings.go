package main

import (
	"context"
	"sync"

	"codeberg.org/devaipod/devaipod/pods/reconcile"
)

// landAtOnce is how many commits land at a time.
const landAtOnce = 4

// landings lands beside the loop: an upstream that is slow keeps no other issue waiting. There
// is one at most for each issue.
type landings struct {
	landPort
	land func(context.Context, reconcile.Landing) (reconcile.Landed, error)
	kick func(reconcile.Key) // at the end of each

	places chan struct{}
	ctx    context.Context //nolint:containedctx // the service's; who asks for a landing may be gone
	stop   context.CancelFunc
	helper sync.WaitGroup

	mu   sync.Mutex
	jobs map[reconcile.Key]*reconcile.UnderWayError
}

var _ reconcile.Lander = (*landings)(nil)

func newLandings(port landPort, land func(context.Context, reconcile.Landing) (reconcile.Landed, error), kick func(reconcile.Key)) *landings {
	p := &landings{landPort: port, land: land, kick: kick, places: make(chan struct{}, landAtOnce), jobs: map[reconcile.Key]*reconcile.UnderWayError{}}
	p.ctx, p.stop = context.WithCancel(context.Background())
	return p
}

// end ends all, and waits for that. What was cut off is found as it is by the next service.
func (p *landings) end() {
	p.stop()
	p.helper.Wait()
}

// Land implements [reconcile.Lander].
func (p *landings) Land(_ context.Context, l reconcile.Landing) (reconcile.Landed, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if job := p.jobs[l.Key]; job != nil {
		return reconcile.Landed{}, job
	}
	done := make(chan struct{})
	var landed reconcile.Landed
	var err error
	job := &reconcile.UnderWayError{Done: done, Result: func() (reconcile.Landed, error) { return landed, err }}
	p.jobs[l.Key] = job
	p.helper.Add(1)
	go func() {
		defer p.helper.Done()
		landed, err = p.inPlace(l)
		p.mu.Lock()
		delete(p.jobs, l.Key)
		p.mu.Unlock()
		close(done)
		p.kick(l.Key)
	}()
	return reconcile.Landed{}, job
}

// inPlace lands once there is a place.
func (p *landings) inPlace(l reconcile.Landing) (reconcile.Landed, error) {
	select {
	case p.places <- struct{}{}:
		defer func() { <-p.places }()
		return p.land(p.ctx, l)
	case <-p.ctx.Done():
		return reconcile.Landed{}, p.ctx.Err()
	}
}
