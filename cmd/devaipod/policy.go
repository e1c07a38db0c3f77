package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"time"

	"codeberg.org/devaipod/devaipod/pods"
	"codeberg.org/devaipod/devaipod/pods/egress"
	"codeberg.org/devaipod/devaipod/pods/podfile"
	"codeberg.org/devaipod/devaipod/pods/reconcile"
	"codeberg.org/devaipod/devaipod/pods/secret"
	"codeberg.org/devaipod/devaipod/pods/usage"
)

// policies work out what pods may do: by the configuration, the secrets, and
// what people said on their issues.
type policies struct {
	cfg     config
	secrets secret.Store
	ofRepo  func(pods.Key) (repoConfig, error)
	runDir  func(pods.Key) string

	mu     sync.Mutex
	orders map[pods.Key]reconcile.Orders
	wrong  map[pods.Key][]string // what was not understood when the policy was worked out last
}

func newPolicies(cfg config, ofRepo func(pods.Key) (repoConfig, error), runDir func(pods.Key) string) *policies {
	return &policies{cfg: cfg, secrets: cfg.secrets(), ofRepo: ofRepo, runDir: runDir, orders: map[pods.Key]reconcile.Orders{}, wrong: map[pods.Key][]string{}}
}

// secrets is where they are kept.
func (c config) secrets() secret.Store { return secret.Store{Dir: c.file("secrets")} }

// take remembers what was said on a pod's issue.
func (p *policies) take(k pods.Key, o reconcile.Orders) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.orders[k] = o
}

// of is a pod's policy now.
func (p *policies) of(k pods.Key) (podfile.Policy, error) {
	out := podfile.Policy{Prices: p.cfg.Model.Price, Rate: p.cfg.Model.Rate, ProviderTools: p.cfg.Model.ProviderTools}
	var err error
	if k.Name != "" { // a person's: no model, and what everybody's agents may reach
		out.Network, _ = p.network(k, reconcile.Orders{})
		return out, nil
	}
	if p.cfg.Model.Key != "" {
		// Without its key the model refuses, which is told: a key that was removed is
		// used no more.
		if out.Key, _, err = p.secrets.Value(p.cfg.Model.Key); err != nil {
			return out, err
		}
	}
	if out.Inject, err = p.secrets.For(k.Owner + "/" + k.Repo); err != nil {
		return out, err
	}
	p.mu.Lock()
	o, known := p.orders[k]
	p.mu.Unlock()
	var notHosts, notAmounts []string
	out.Network, notHosts = p.network(k, o)
	if out.Budget, notAmounts, err = p.budget(o); err != nil {
		return out, err
	}
	if known {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.wrong[k] = append(notAmounts, notHosts...)
		return out, nil
	}
	// The service has just started: until the issue has been read, what holds is
	// what held.
	switch old, err := podfile.NewPolicyReader(p.runDir(k)).Policy(); {
	case err == nil:
		out.Budget, out.Network = old.Budget, old.Network
	case !errors.Is(err, fs.ErrNotExist):
		return out, err
	}
	return out, nil
}

// budget is the configured one, with what people said instead. It names what was
// not understood.
func (p *policies) budget(o reconcile.Orders) (usage.Budget, []string, error) {
	b, err := p.cfg.budget()
	if err != nil {
		return b, nil, err
	}
	var wrong []string
	for _, amount := range o.Budget {
		next, err := b.ParseAmount(amount)
		if err != nil {
			wrong = append(wrong, err.Error())
		}
		b = next
	}
	return b, wrong, nil
}

// network is what a pod may reach: by the configuration, by its repository's own
// file, and by what people said. It names what was not understood.
func (p *policies) network(k pods.Key, o reconcile.Orders) (podfile.Network, []string) {
	out := podfile.Network{
		Open: p.cfg.Network.Mode == networkOpen, Private: p.cfg.Network.Private,
		Allow: slices.Clone(p.cfg.Network.Allow), // looked at before the service began
	}
	var wrong []string
	add := func(from string, patterns []string) {
		for _, pattern := range patterns {
			if _, err := egress.Parse([]string{pattern}); err != nil {
				wrong = append(wrong, from+err.Error())
			} else if !slices.Contains(out.Allow, pattern) {
				out.Allow = append(out.Allow, pattern)
			}
		}
	}
	own, err := p.ofRepo(k)
	if err != nil {
		wrong = append(wrong, err.Error())
	}
	add(repoConfigFile+": ", own.Network.Allow)
	add("", o.Allow)
	return out, wrong
}

// budget is what an issue may use.
func (c config) budget() (b usage.Budget, err error) {
	if b.Money, err = usage.ParseMoney(c.Budget.Money); err != nil {
		return b, fmt.Errorf("budget.money: %w", err)
	}
	if b.Tokens, err = usage.ParseCount(c.Budget.Tokens); err != nil {
		return b, fmt.Errorf("budget.tokens: %w", err)
	}
	b.Time = c.Budget.Time
	return b, nil
}

// Steer brings a pod's policy up to date.
func (p *podPort) Steer(_ context.Context, k reconcile.Key, o reconcile.Orders) (reconcile.Steered, error) {
	key := pods.Key(k)
	p.policies.take(key, o)
	out := reconcile.Steered{Open: p.policies.cfg.Network.Mode == networkOpen}
	if err := p.manager.Steer(key); err != nil {
		return out, err
	}
	budget, _, err := p.policies.budget(o)
	if err != nil {
		return out, err
	}
	p.policies.mu.Lock()
	wrong := p.policies.wrong[key]
	p.policies.mu.Unlock()
	if len(wrong) > 0 {
		out.Note = "Not understood: " + strings.Join(wrong, "; ") + "."
	}
	if spec, err := p.manager.Spec(key); err == nil { // else the loop tells
		out.Note = strings.TrimSpace(out.Note + " " + devcontainerNote(spec.Dev))
	}
	entries, err := usage.Read(p.manager.UsageDir(key))
	if err != nil { // its gate lets nothing through
		out.Note = strings.TrimSpace(out.Note + " What it has used can't be told: " + err.Error() + ".")
		return out, nil //nolint:nilerr // it is told on the issue
	}
	used := usage.Sum(entries)
	out.Used = usedWords(used, budget)
	out.Over = budget.Over(used) != ""
	out.Wake = len(o.Budget) > 0 && !out.Over && givenSince(entries, o.At, time.Now())
	return out, nil
}

// givenSince tells whether an order is newer than the last request: a budget that
// somebody gave is there to be used. What bears a time that is still to come is of
// a clock that was ahead then, and says nothing.
func givenSince(entries []usage.Entry, order, now time.Time) bool {
	return !slices.ContainsFunc(entries, func(e usage.Entry) bool { return !e.At.Before(order) && !e.At.After(now) })
}

// steerAll does so for all pods, after a change of what holds for all.
func (p *podPort) steerAll(ctx context.Context) error {
	found, err := p.manager.List(ctx)
	own, err2 := p.manager.Workspaces(ctx)
	err = errors.Join(err, err2)
	for _, pod := range append(found, own...) {
		err = errors.Join(err, p.manager.Steer(pod.Key))
	}
	return err
}

// usedWords tell what an issue has used of what it may.
func usedWords(t usage.Totals, b usage.Budget) string {
	if t.Requests == 0 {
		return ""
	}
	of := func(used string, bounded bool, bound string) string {
		if !bounded {
			return used
		}
		return used + " of " + bound
	}
	parts := []string{of(count(t.Tokens.Sum()), b.Tokens > 0, count(b.Tokens)) + " tokens"}
	if t.Cost > 0 {
		parts = append(parts, of(t.Cost.String(), b.Money > 0, b.Money.String()))
	}
	if b.Time > 0 {
		parts = append(parts, fmt.Sprintf("%s of %s", shortTime(t.Time), shortTime(b.Time)))
	}
	return strings.Join(parts, ", ")
}
