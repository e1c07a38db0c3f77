package main

import (
	"context"
	"path/filepath"
	"slices"

	"codeberg.org/devaipod/devaipod/pods"
	"codeberg.org/devaipod/devaipod/pods/reconcile"
)

// givenFile is where a pod's run directory tells what its agent was given of people's words.
func (p *podPort) givenFile(k reconcile.Key) listFile[reconcile.Given] {
	return listFile[reconcile.Given](filepath.Join(p.manager.RunDir(pods.Key(k)), "given.json"))
}

// Given implements [reconcile.Pods].
func (p *podPort) Given(k reconcile.Key) ([]reconcile.Given, error) { return p.givenFile(k).read() }

// Pushed implements [reconcile.Pods]: by what the gate let through.
func (p *podPort) Pushed(ctx context.Context, k reconcile.Key, branch, commit string) (bool, error) {
	spec, err := p.manager.Spec(pods.Key(k))
	if err != nil {
		return false, err
	}
	return p.work.Pushed(ctx, spec.RepoID, branch, commit)
}

// KeepGiven implements [reconcile.Pods]. The loop alone calls it, for one issue at a time.
func (p *podPort) KeepGiven(k reconcile.Key, g reconcile.Given) error {
	fault("keep what was given to " + k.String())
	all, err := p.Given(k)
	if err != nil {
		return err
	}
	if i := slices.IndexFunc(all, func(o reconcile.Given) bool { return o.ID == g.ID }); i >= 0 {
		all[i] = g
	} else {
		all = append(all, g)
	}
	return p.givenFile(k).write(all)
}
