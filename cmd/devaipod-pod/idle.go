package main

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"codeberg.org/devaipod/devaipod/podapi"
)

// A clone tells whether the agent has left any work, as far as the service has saved it.
type clone struct {
	work   atomic.Bool
	driver podapi.Driver
	status podapi.Cloned
	log    *slog.Logger
}

// How soon, and how seldom, the service is asked about the clone of an agent that is
// done: what it did last is saved within seconds.
const (
	askSoon   = time.Second
	askSeldom = time.Minute
)

// watch looks until ctx ends.
func (c *clone) watch(ctx context.Context) {
	tick := time.NewTicker(askSoon)
	defer tick.Stop()
	var since, next time.Time
	for wait := askSoon; ; {
		if sum := c.driver.Summary(); sum.State != podapi.Done {
			since = time.Time{}
		} else if !sum.Since.Equal(since) || time.Now().After(next) {
			if !sum.Since.Equal(since) {
				wait = askSoon
			}
			c.look(ctx)
			since, next = sum.Since, time.Now().Add(wait)
			wait = min(2*wait, askSeldom)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// look asks the service. What it can't tell is as it was before.
func (c *clone) look(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, askSeldom)
	defer cancel()
	status, err := c.status.GitStatus(ctx)
	if err == nil {
		var work bool
		if work, err = podapi.HasWork(status); err == nil {
			c.work.Store(work)
		}
	}
	if err != nil {
		c.log.Debug("how the agent's clone stands is not known", "err", err)
	}
}

// told is a state as others are told it.
func (c *clone) told(s podapi.State) podapi.State {
	if s == podapi.Done {
		return podapi.Idle(c.work.Load())
	}
	return s
}
