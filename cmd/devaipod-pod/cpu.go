package main

import (
	"context"
	"encoding/json"
	"fmt"
	"sync/atomic"
	"time"

	"codeberg.org/devaipod/devaipod/podapi"
	"codeberg.org/devaipod/devaipod/pods/podfile"
)

// A meter notices whether the agent's container computes: a tool that does is no stall,
// though nothing else is seen of it. podman's word is taken for it, by way of the
// service, never the container's.
type meter struct {
	computes atomic.Int64 // grows while it does
	ask      func(ctx context.Context, path string) ([]byte, error)
	state    func() podapi.State
	every    time.Duration
}

// busy is the part of a core from which on it computes. An agent that only waits, and
// is asked by us how it is each second, takes a twentieth.
const busy = 0.25

// meterEvery is the time between two looks, of an agent that may stall after that long.
func meterEvery(stall time.Duration) time.Duration {
	const most = 15 * time.Second
	if stall == 0 {
		return most
	}
	return min(most, stall/5)
}

// watch looks until ctx ends, while the agent works.
func (m *meter) watch(ctx context.Context) {
	tick := time.NewTicker(m.every)
	defer tick.Stop()
	var last time.Duration
	var at time.Time // zero when last is not known
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if m.state() != podapi.Working {
			at = time.Time{}
			continue
		}
		cpu, known, err := m.look(ctx)
		now := time.Now()
		switch {
		case err != nil: // nobody is there whom a stall could be told
			m.computes.Add(1)
		case known && !at.IsZero() && float64(cpu-last) >= busy*float64(now.Sub(at)):
			m.computes.Add(1)
		}
		last, at = cpu, now
		if err != nil || !known {
			at = time.Time{}
		}
	}
}

// look asks what the container has used; known is false where podman can't tell.
func (m *meter) look(ctx context.Context) (cpu time.Duration, known bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	text, err := m.ask(ctx, podfile.CPUPath)
	if err != nil || text == nil {
		return 0, false, err
	}
	var out podfile.CPU
	if err := json.Unmarshal(text, &out); err != nil {
		return 0, false, fmt.Errorf("reading what the agent's container uses: %w", err)
	}
	return out.Used, true, nil
}
