package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"codeberg.org/devaipod/devaipod/pods"
	"codeberg.org/devaipod/devaipod/pods/podfile"
	"codeberg.org/devaipod/devaipod/pods/reconcile"
)

// mostRounds is how many rounds are kept: more than what counts of them ever is.
const mostRounds = 100

// roundsFile is where a pod's run directory tells what its agent was told of CI.
func (p *podPort) roundsFile(k reconcile.Key) string {
	return filepath.Join(p.manager.RunDir(pods.Key(k)), "ci-rounds.json")
}

// Rounds implements [reconcile.Pods].
func (p *podPort) Rounds(k reconcile.Key) (rounds []reconcile.Round, err error) {
	text, err := os.ReadFile(p.roundsFile(k))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil {
		err = json.Unmarshal(text, &rounds)
	}
	return rounds, err
}

// changeRounds changes the rounds that are kept. Who sends the agent something does so
// beside the loop.
func (p *podPort) changeRounds(k reconcile.Key, change func([]reconcile.Round) []reconcile.Round) error {
	p.roundsMu.Lock()
	defer p.roundsMu.Unlock()
	rounds, err := p.Rounds(k)
	if err != nil {
		return err
	}
	rounds = change(rounds)
	text, err := json.Marshal(rounds[max(0, len(rounds)-mostRounds):])
	if err != nil {
		return err
	}
	return podfile.Replace(p.roundsFile(k), text)
}

// KeepRound implements [reconcile.Pods].
func (p *podPort) KeepRound(k reconcile.Key, r reconcile.Round) error {
	fault("ci: keep a round of " + k.String())
	return p.changeRounds(k, func(rounds []reconcile.Round) []reconcile.Round {
		if i := slices.IndexFunc(rounds, func(o reconcile.Round) bool { return o.ID == r.ID }); i >= 0 {
			r.Word = min(r.Word, rounds[i].Word) // it may be forgiven by now
			rounds[i] = r
			return rounds
		}
		return append(rounds, r)
	})
}

// ForgiveRounds implements [reconcile.Pods].
func (p *podPort) ForgiveRounds(k reconcile.Key) error {
	if _, err := os.Stat(p.roundsFile(k)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return p.changeRounds(k, func(rounds []reconcile.Round) []reconcile.Round {
		for i := range rounds {
			rounds[i].Word = -1
		}
		return rounds
	})
}

// TellCI implements [reconcile.Pods].
func (p *podPort) TellCI(ctx context.Context, k reconcile.Key, r reconcile.Round) error {
	fault("ci: tell a round to " + k.String())
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return p.control(k).Tell(ctx, fmt.Sprint("ci ", r.ID), r.Text)
}
