package main

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"codeberg.org/devaipod/devaipod/pods"
	"codeberg.org/devaipod/devaipod/pods/reconcile"
)

// A roundsFile tells what a pod's agent was told of CI.
type roundsFile string

// mostRounds is how many rounds are kept: more than what counts of them ever is.
const mostRounds = 100

func (f roundsFile) read() ([]reconcile.Round, error) { return listFile[reconcile.Round](f).read() }

func (f roundsFile) write(rounds []reconcile.Round) error {
	return listFile[reconcile.Round](f).write(rounds[max(0, len(rounds)-mostRounds):])
}

func (f roundsFile) keep(r reconcile.Round) error {
	rounds, err := f.read()
	if err != nil {
		return err
	}
	if i := slices.IndexFunc(rounds, func(o reconcile.Round) bool { return o.ID == r.ID }); i >= 0 {
		r.Word = min(r.Word, rounds[i].Word) // it may be forgiven by now
		rounds[i] = r
	} else {
		rounds = append(rounds, r)
	}
	return f.write(rounds)
}

func (f roundsFile) forgive() error {
	rounds, err := f.read()
	if err != nil || len(rounds) == 0 {
		return err
	}
	for i := range rounds {
		rounds[i].Word = -1
	}
	return f.write(rounds)
}

// rounds is the file of a pod, in its run directory.
func (p *podPort) rounds(k reconcile.Key) roundsFile {
	return roundsFile(filepath.Join(p.manager.RunDir(pods.Key(k)), "ci-rounds.json"))
}

// Rounds implements [reconcile.Pods].
func (p *podPort) Rounds(k reconcile.Key) ([]reconcile.Round, error) { return p.rounds(k).read() }

// KeepRound implements [reconcile.Pods].
func (p *podPort) KeepRound(k reconcile.Key, r reconcile.Round) error {
	fault("ci: keep a round of " + k.String())
	p.roundsMu.Lock()
	defer p.roundsMu.Unlock()
	return p.rounds(k).keep(r)
}

// ForgiveRounds implements [reconcile.Pods]. Who sends the agent something does so beside
// the loop.
func (p *podPort) ForgiveRounds(k reconcile.Key) error {
	p.roundsMu.Lock()
	defer p.roundsMu.Unlock()
	return p.rounds(k).forgive()
}

// TellCI implements [reconcile.Pods].
func (p *podPort) TellCI(ctx context.Context, k reconcile.Key, r reconcile.Round) error {
	fault("ci: tell a round to " + k.String())
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return p.control(k).Tell(ctx, fmt.Sprint("ci ", r.ID), r.Text)
}
