package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"time"

	"codeberg.org/devaipod/devaipod/forge"
	"codeberg.org/devaipod/devaipod/podapi/panel"
	"codeberg.org/devaipod/devaipod/pods"
	"codeberg.org/devaipod/devaipod/pods/audit"
	"codeberg.org/devaipod/devaipod/pods/reconcile"
)

// newPanel makes what shows agents in the forge's pages, where that is wanted and the
// forge knows our application.
func (s *service) newPanel(a *app, key string) error {
	if !a.cfg.Forge.Panel || s.creds.PanelClient == "" {
		return nil
	}
	transport, err := a.cfg.forgeTransport()
	if err != nil {
		return err
	}
	s.panel, err = panel.New(panel.Config{
		Agents: s.panelAgents(),
		Listen: a.cfg.Service.Listen, Forge: a.cfg.forgeURL(), Client: s.creds.PanelClient, Secret: s.creds.PanelSecret, Key: key, Transport: transport, Log: a.log,
	})
	return err
}

func (s *service) panelAgents() *panelAgents {
	return &panelAgents{
		service: s, record: s.auditPanel, answered: map[reconcile.Key]string{}, started: map[reconcile.Key]time.Time{}, ci: map[reconcile.Key]ciSeen{},
		port: forgePort{client: s.forge, label: s.cfg.Label, agents: s.cfg.agentNames(), prepare: s.prepareWanted()},
	}
}

var _ panel.Agents = (*panelAgents)(nil)

// panelAgents is what the panel is about.
type panelAgents struct {
	*service
	// record is told of each act: who wanted it, what rule allowed it or not, about what,
	// and what came of it.
	record func(act, who, rule, target, result string)
	port   forgePort

	mu       sync.Mutex
	answered map[reconcile.Key]string    // the asks that were answered last
	started  map[reconcile.Key]time.Time // when an agent was started last
	ci       map[reconcile.Key]ciSeen
}

// ciSeen is what CI said of a branch.
type ciSeen struct {
	at    time.Time
	state reconcile.CIState
}

// ciFor is how long that is not asked again.
const ciFor = 5 * time.Second

func (s *service) auditPanel(act, who, rule, target, result string) {
	_ = s.note(audit.Entry{Act: act, About: target, Who: atName(who), Rule: rule + ", by the panel", Result: result}) // who keeps it says so
}

// Access implements [panel.Agents].
func (p *panelAgents) Access(ctx context.Context, who panel.Person, at panel.Place) (read, write bool, err error) {
	may, err := p.forge.Access(ctx, forge.Repo{Owner: at.Owner, Name: at.Repo}, who.Name)
	if err != nil || may.ID != who.ID {
		return false, false, err
	}
	if v, ok := p.find(at); ok { // of a repository that had this name, perhaps
		account, err := pods.ReadAccount(p.pods.manager.UsageDir(pods.Key(p.loop.PodKey(v.Key))))
		if errors.Is(err, fs.ErrNotExist) { // no pod yet
			return may.Read, may.Push && !may.Archived, nil
		}
		if err != nil || account.RepoID != may.Repo {
			return false, false, err
		}
	}
	return may.Read, may.Push && !may.Archived, nil
}

// find is the issue that a page of the forge is about.
func (p *panelAgents) find(at panel.Place) (reconcile.View, bool) {
	for _, v := range p.loop.Views() {
		if v.Owner == at.Owner && v.Repo == at.Repo && (v.Key.Issue == at.Number || v.Pull == at.Number) {
			return v, true
		}
	}
	return p.goneOf(reconcile.Key{Owner: at.Owner, Repo: at.Repo, Issue: at.Number})
}

// panelFacts are the facts that a panel shows, in its order: the forge's page has the others.
var panelFacts = []string{"agent is", "silent", "trouble", "asks", "error", "why", "note", "version", "now", "used", "network", "blocked", "checked", "approved", "ci", "pull request", "labeled by", "ssh"}

// Look implements [panel.Agents].
func (p *panelAgents) Look(ctx context.Context, at panel.Place, push bool) (panel.Shown, bool, error) {
	v, ok := p.find(at)
	if !ok && !push {
		return panel.Shown{}, false, nil
	}
	var i forge.Issue
	starts := false
	if push {
		var err error
		if i, starts, err = p.startable(ctx, at, v, ok); err != nil {
			return panel.Shown{}, false, err
		}
	}
	out := panel.Shown{Issue: v.Issue, State: string(v.State), Choices: v.Choices, Ask: v.Ask, Acts: p.acts(v)}
	if starts {
		out.Acts, out.Agents = append(out.Acts, panel.Start), p.port.agents
	}
	switch {
	case ok:
		return p.tell(ctx, v, out)
	case !starts && p.triggered(i): // the loop is about to look at it
		out.State = "labeled"
	}
	out.Issue = at.String()
	return out, starts || out.State != "", nil
}

// tell adds the facts of an issue's agent.
func (p *panelAgents) tell(ctx context.Context, v reconcile.View, out panel.Shown) (panel.Shown, bool, error) {
	name := webPods{p.service}.podName(v)
	facts, ok := p.site.Brief(ctx, name)
	if !ok {
		return panel.Shown{}, false, nil
	}
	for _, name := range panelFacts {
		for _, f := range facts {
			if f.Name != name {
				continue
			}
			fact := panel.Fact{Name: name, Lines: f.Lines, Link: f.Link(), Alert: f.Alert}
			if name == "pull request" && v.Pull != 0 { // as the forge's pages write it
				fact.Lines = []string{fmt.Sprintf("#%d", v.Pull)}
			}
			if name == "ci" {
				state, err := p.ciState(ctx, v)
				if err != nil {
					return panel.Shown{}, false, fmt.Errorf("asking for the state of CI of %s: %w", v.Key, err)
				}
				fact.Lines = []string{string(state)}
			}
			out.Facts = append(out.Facts, fact)
		}
	}
	out.Facts = append(out.Facts, panel.Fact{Name: "page", Lines: []string{name}, Link: p.site.Link(name)})
	return out, true, nil
}

// ciState is what CI says of the branch's newest commit.
func (p *panelAgents) ciState(ctx context.Context, v reconcile.View) (reconcile.CIState, error) {
	p.mu.Lock()
	last, ok := p.ci[v.Key]
	p.mu.Unlock()
	if ok && time.Since(last.at) < ciFor {
		return last.state, nil
	}
	seen := ciSeen{at: time.Now(), state: reconcile.CINone}
	commit, ok, err := p.forge.Branch(ctx, repoOf(v.Key), v.Branch)
	if err == nil && ok {
		var ci reconcile.CI
		ci, err = forgePort{client: p.forge}.CI(ctx, v.Key, commit)
		seen.state = ci.State
	}
	if err != nil {
		return "", err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for k, s := range p.ci {
		if time.Since(s.at) > ciFor {
			delete(p.ci, k)
		}
	}
	p.ci[v.Key] = seen
	return seen.state, nil
}
