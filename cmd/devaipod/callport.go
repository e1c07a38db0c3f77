package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"codeberg.org/devaipod/devaipod/forge"
	"codeberg.org/devaipod/devaipod/pods/reconcile"
)

// forgePort's part of [reconcile.Caller].

func callsOf(found []forge.Call) (out []reconcile.Call) {
	for _, c := range found {
		out = append(out, reconcile.Call(c))
	}
	return out
}

func (p forgePort) Calls(ctx context.Context, k reconcile.Key) (reconcile.Calls, error) {
	calls, err := p.client.CallsOf(ctx, repoOf(k), k.Issue, p.label)
	return reconcile.Calls{All: callsOf(calls.Calls), First: calls.First, By: calls.User}, gone(err)
}

func (p forgePort) Called(ctx context.Context, since time.Time) ([]reconcile.Issue, error) {
	found, err := p.client.Called(ctx, since)
	if errors.Is(err, forge.ErrTooMany) {
		err = fmt.Errorf("%w: %w", reconcile.ErrTooMany, err)
	}
	return p.issuesOf(found), err
}

func (p forgePort) Stands(ctx context.Context, k reconcile.Key, c reconcile.Call) (bool, error) {
	return p.client.CallStands(ctx, repoOf(k), forge.Call(c))
}

func (p forgePort) PutLabel(ctx context.Context, k reconcile.Key, agent string) error {
	return p.putLabelAs(ctx, k, agent, "")
}

// putLabelAs puts the trigger label on as the act of an account, "" for the service's own.
func (p forgePort) putLabelAs(ctx context.Context, k reconcile.Key, agent, as string) error {
	if p.prepare != nil {
		if err := p.prepare(ctx, repoOf(k)); err != nil {
			return err
		}
	}
	label := forge.TriggerOf(p.label, agent)
	err := p.client.AddLabelsAs(ctx, repoOf(k), k.Issue, as, label)
	if !errors.Is(err, forge.ErrNotFound) {
		return readOnly(err)
	}
	// The repository does not have it yet, or somebody has deleted it.
	if _, e := p.client.EnsureLabels(ctx, repoOf(k), forge.DefaultLabels(p.label, p.agents...)); e != nil {
		return errors.Join(err, readOnly(e))
	}
	return readOnly(p.client.AddLabelsAs(ctx, repoOf(k), k.Issue, as, label))
}
