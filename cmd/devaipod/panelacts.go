package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"codeberg.org/devaipod/devaipod/forge"
	"codeberg.org/devaipod/devaipod/podapi/panel"
	"codeberg.org/devaipod/devaipod/pods/reconcile"
	"codeberg.org/devaipod/devaipod/pods/usage"
)

// What people do in the panel. All but an answer is done on the forge in their own name, as
// they would do it there: a label put on or taken off, a comment. So it goes the way of all
// labels and comments, and the forge has it on record. An answer is to one thing that a pod
// asks at that moment, and goes to that pod.

// acts are what may be done about an issue's agent now.
func (p *panelAgents) acts(v reconcile.View) (out []string) {
	switch v.State {
	case reconcile.Queued, reconcile.Starting, reconcile.Working, reconcile.Checking, reconcile.Asking, reconcile.Review, reconcile.Failed:
		out = append(out, panel.Stop)
	}
	if v.State == reconcile.Failed {
		out = append(out, panel.Retry)
	}
	if v.Pod != "" && slices.Contains([]reconcile.State{reconcile.Working, reconcile.Checking, reconcile.Asking, reconcile.Review, reconcile.Failed}, v.State) {
		out = append(out, panel.Message)
	}
	// A service that has just started does not know why one asks that sleeps.
	if v.State == reconcile.Asking && (v.Cause == reconcile.CauseBudget || v.Resting && v.Cause == "") {
		out = append(out, panel.Budget)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if v.Pod != "" && !v.Resting && v.State == reconcile.Asking && len(v.Choices) > 0 && v.Ask != "" && p.answered[v.Key] != v.Ask {
		out = append(out, panel.Answer)
	}
	return out
}

// startFor is how long after a start none is offered again: the loop needs a moment.
const startFor = 15 * time.Second

// startable is the issue that an agent could be started on now, false for none. The forge is
// asked once, and only where no agent is.
func (p *panelAgents) startable(ctx context.Context, at panel.Place, v reconcile.View, known bool) (forge.Issue, bool, error) {
	over := []reconcile.State{reconcile.Stopped, reconcile.Done, reconcile.Refused, goneState}
	if known && !slices.Contains(over, v.State) {
		return forge.Issue{}, false, nil
	}
	n := at.Number
	if known { // of its pull request's page, perhaps
		n = v.Key.Issue
	}
	i, err := p.forge.Issue(ctx, forge.Repo{Owner: at.Owner, Name: at.Repo}, n)
	if errors.Is(err, forge.ErrNotFound) {
		return i, false, nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	waits := time.Since(p.started[keyOf(i)]) < startFor || !known && p.triggered(i)
	return i, err == nil && i.State == "open" && !i.IsPull && !waits, err
}

func keyOf(i forge.Issue) reconcile.Key {
	return reconcile.Key{Owner: i.Repo.Owner, Repo: i.Repo.Name, Issue: i.Number}
}

// triggered tells whether an open issue has a label that starts an agent.
func (p *panelAgents) triggered(i forge.Issue) bool {
	return i.State == "open" && !i.IsPull && slices.ContainsFunc(i.Labels, func(l string) bool { return forge.Triggers(p.cfg.Label, l) })
}

// ruleWrite is what lets somebody act: invariant S1's.
const ruleWrite = "may push to the repository"

// Refused implements [panel.Agents].
func (p *panelAgents) Refused(who panel.Person, at panel.Place, act panel.Act) {
	p.record(act.Kind, who.Name, ruleWrite, at.String(), "refused")
}

// Do implements [panel.Agents].
func (p *panelAgents) Do(ctx context.Context, who panel.Person, at panel.Place, act panel.Act) (err error) {
	v, ok := p.find(at)
	defer func() {
		result := "done"
		if err != nil {
			result = err.Error()
		}
		p.record(act.Kind, who.Name, ruleWrite, cmp.Or(v.Issue, at.String()), result)
	}()
	ctx = because(ctx, reconcile.Act{Who: who.Name, Rule: ruleWrite})
	if act.Kind == panel.Start {
		return p.start(ctx, who, at, v, ok, act.Text)
	}
	if !ok {
		return errors.New("there is no agent any more")
	}
	if !slices.Contains(p.acts(v), act.Kind) {
		return fmt.Errorf("that can't be done now: it is %s", v.State)
	}
	switch act.Kind {
	case panel.Stop:
		if err := unlabel(ctx, p.forge, v.Key, p.cfg.Label, who.Name); err != nil {
			return fmt.Errorf("taking the label off in your name: %w", err)
		}
		p.begun(v.Key, false)
	case panel.Answer:
		err = p.answer(ctx, v, act)
	default:
		err = p.say(ctx, who, at, v, act)
	}
	p.loop.Kick(v.Key)
	return err
}

// start puts the label on in somebody's name. One that is still there, of an agent that is
// stopped or was refused, is taken off before: each start is an event of its own.
func (p *panelAgents) start(ctx context.Context, who panel.Person, at panel.Place, v reconcile.View, known bool, agent string) error {
	if agent != "" && !slices.Contains(p.port.agents, agent) {
		return errors.New("there is no agent of that name")
	}
	i, may, err := p.startable(ctx, at, v, known)
	if err != nil {
		return fmt.Errorf("looking at the issue: %w", err)
	}
	if !may {
		return errors.New("an agent can't be started here now")
	}
	k := keyOf(i)
	p.begun(k, true)
	if err = unlabel(ctx, p.forge, k, p.cfg.Label, who.Name); err == nil {
		err = p.port.putLabelAs(ctx, k, agent, who.Name)
	}
	if err != nil {
		p.begun(k, false)
		return fmt.Errorf("putting the label on in your name: %w", err)
	}
	p.loop.Kick(k)
	return nil
}

// begun notes whether an agent was just started on an issue.
func (p *panelAgents) begun(k reconcile.Key, yes bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for k, at := range p.started {
		if time.Since(at) >= startFor {
			delete(p.started, k)
		}
	}
	if delete(p.started, k); yes {
		p.started[k] = time.Now()
	}
}

// say comments in somebody's name, where that person is.
func (p *panelAgents) say(ctx context.Context, who panel.Person, at panel.Place, v reconcile.View, act panel.Act) error {
	text, err := comment(v, act)
	if err == nil {
		err = p.forge.CommentAs(ctx, forge.Repo{Owner: at.Owner, Name: at.Repo}, at.Number, text, who.Name)
	}
	return err
}

// comment is what a person would write to have an act done. A message to an agent that has failed
// has it try again.
func comment(v reconcile.View, act panel.Act) (string, error) {
	switch {
	case act.Kind == panel.Retry:
		return "/retry", nil
	case act.Kind == panel.Budget:
		if _, err := (usage.Budget{}).ParseAmount(act.Text); err != nil || strings.ContainsAny(act.Text, "\r\n") {
			return "", fmt.Errorf("%.40q is no budget: want what the issue may use in all, as an amount of money (5), of tokens (2M tokens) or of time (2h)", act.Text)
		}
		return "/budget " + act.Text, nil
	case v.State == reconcile.Failed:
		return "/retry\n\n" + act.Text, nil
	}
	return act.Text, nil
}

// answer gives an agent a choice, once for each thing that it asks.
func (p *panelAgents) answer(ctx context.Context, v reconcile.View, act panel.Act) error {
	n, err := strconv.Atoi(act.Text)
	if err != nil || n < 1 || n > len(v.Choices) {
		return fmt.Errorf("there are choices 1 to %d", len(v.Choices))
	}
	p.mu.Lock()
	before := p.answered[v.Key]
	if act.Ask != v.Ask || before == v.Ask {
		p.mu.Unlock()
		return errors.New("it was answered already, or asks something else now")
	}
	p.answered[v.Key] = v.Ask
	p.mu.Unlock()
	if err = p.send(ctx, v.Key, strconv.Itoa(n)); err != nil {
		p.mu.Lock()
		p.answered[v.Key] = before
		p.mu.Unlock()
	}
	return err
}
