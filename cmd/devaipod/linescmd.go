package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"net/http"
	"time"

	"codeberg.org/devaipod/devaipod/podapi"
	"codeberg.org/devaipod/devaipod/pods/reconcile"
)

// mostPast is how much of what an agent did its lines begin with.
const mostPast = 20

// lines stands in for the screen of an agent that has none: what it does is printed,
// and each line that is typed is said to it, until the input or the pod ends.
func (a *app) lines(ctx context.Context, k reconcile.Key) error {
	if _, err := a.knownView(ctx, k); err != nil {
		return err
	}
	var past []podapi.Event
	last := int64(0)
	err := a.followEvents(ctx, k, 0, false, func(ev podapi.Event) error {
		past, last = append(past, ev), ev.ID
		return nil
	})
	if err != nil {
		return err
	}
	for _, ev := range past[max(0, len(past)-mostPast):] {
		if err := a.printEvent(ev); err != nil {
			return err
		}
	}
	a.step("each line that you type is said to the agent on %s; Ctrl-D lets go", k)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	said := make(chan error, 1)
	go func() {
		said <- a.sayLines(ctx, k)
		cancel()
	}()
	for ctx.Err() == nil {
		err := a.followEvents(ctx, k, last, true, func(ev podapi.Event) error {
			last = ev.ID
			return a.printEvent(ev)
		})
		if err != nil && ctx.Err() == nil {
			a.log.Debug("the agent's events ended", "err", err) // its gate may be started again
			if v, err := a.api().view(ctx, k); err != nil || v.State == goneState {
				return errors.Join(err, a.outcome(v))
			}
		}
		sleep(ctx, 300*time.Millisecond)
	}
	select {
	case err := <-said:
		return err
	default:
		return ctx.Err()
	}
}

// sayLines says each line of the input.
func (a *app) sayLines(ctx context.Context, k reconcile.Key) error {
	in := bufio.NewScanner(a.in)
	in.Buffer(nil, maxSaid)
	for in.Scan() && ctx.Err() == nil {
		text := bytes.TrimSpace(in.Bytes())
		if len(text) == 0 {
			continue
		}
		resp, err := a.api().doBody(ctx, http.MethodPost, podPath(k)+"/messages", bytes.NewReader(text))
		if err == nil {
			err = resp.Body.Close()
		}
		if err != nil {
			a.step("not said: %s", plain(err.Error(), 500))
		}
	}
	return in.Err()
}
