package gate

import (
	"context"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"codeberg.org/devaipod/devaipod/pods/egress"
	"codeberg.org/devaipod/devaipod/pods/podfile"
)

// ways out of the pod by the proxy: one of the agent's, one of the workspace's,
// with the same rules. Only the agent's requests get secrets.
type ways struct {
	by     map[Role]*egress.Proxy
	policy atomic.Pointer[podfile.Policy]
	rules  atomic.Pointer[egress.Rules] // that the policy makes
	// private are the addresses that the configuration names although they are not
	// public.
	private atomic.Pointer[[]netip.Prefix]
}

func newWays(cfg Config) (*ways, error) {
	w := &ways{by: map[Role]*egress.Proxy{}}
	w.policy.Store(&podfile.Policy{})
	w.rules.Store(&egress.Rules{})
	w.private.Store(&[]netip.Prefix{})
	for role, token := range map[Role]string{Agent: cfg.File.AgentToken, Workspace: cfg.File.WorkspaceToken} {
		c := egress.Config{Authorized: egress.Token(token), Reachable: w.reachable, Resolve: cfg.Resolve, Dial: cfg.Dial, Roots: cfg.Roots, Now: cfg.Now, Log: cfg.Log.With("role", role)}
		if role == Agent && cfg.CA != nil {
			c.CA, c.Inject = cfg.CA, w.inject
		}
		var err error
		if w.by[role], err = egress.New(c); err != nil {
			return nil, err
		}
	}
	return w, nil
}

// reachable tells which addresses may be dialled: public ones, and those that the
// configuration names. This machine and what is beside it on its link never are,
// nor is what clouds tell of themselves there.
func (w *ways) reachable(a netip.Addr) bool {
	a = a.Unmap()
	if egress.Reachable(a) {
		return true
	}
	if a.IsLoopback() || a.IsLinkLocalUnicast() || a.IsMulticast() || a.IsUnspecified() || a.Zone() != "" {
		return false
	}
	for _, p := range *w.private.Load() {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// inject is what requests to a host get.
func (w *ways) inject(host string) []egress.Header {
	var out []egress.Header
	for _, i := range w.policy.Load().Inject {
		if strings.EqualFold(i.Host, host) {
			out = append(out, egress.Header{Name: i.Header, Value: i.Value, Secrets: []string{i.Value, i.Secret}})
		}
	}
	return out
}

// steer makes a policy hold. What can't be read of it lets nothing through.
func (w *ways) steer(p podfile.Policy) (wrong error) {
	rules, wrong := egress.Parse(p.Network.Allow)
	if p.Network.Open {
		rules = egress.Open()
	}
	var private []netip.Prefix
	for _, text := range p.Network.Private {
		prefix, err := netip.ParsePrefix(text)
		if err != nil {
			return err
		}
		private = append(private, prefix)
	}
	w.policy.Store(&p)
	w.rules.Store(&rules)
	w.private.Store(&private)
	for _, proxy := range w.by {
		proxy.SetRules(rules)
	}
	return wrong
}

// watchEvery is how soon a change of the policy holds.
const watchEvery = 250 * time.Millisecond

// Watch keeps the ways out to the pod's policy until ctx ends, and then cuts them.
// tell, when not nil, is given the hosts that were refused to the agent before and
// are let through now.
func (g *Gate) Watch(ctx context.Context, tell func(hosts []string)) {
	defer func() {
		for _, p := range g.ways.by {
			p.Close()
		}
	}()
	seen := map[string]bool{} // that tell was given, until refused again
	var last podfile.Policy
	first := true
	for {
		p, err := g.cfg.Policy()
		if err != nil {
			p = podfile.Policy{} // without one nothing is let through
		}
		if first || !p.SameNetwork(last) {
			if wrong := g.ways.steer(p); wrong != nil {
				g.cfg.Log.Error("gate: the rules for the network can't be read; nothing is let through", "err", wrong)
			}
			if tell != nil && !first {
				if hosts := g.released(seen); len(hosts) > 0 {
					tell(hosts)
				}
			}
			first, last = false, p
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(watchEvery):
		}
	}
}

// released are hosts that the agent was refused and that are allowed now.
func (g *Gate) released(seen map[string]bool) (hosts []string) {
	rules := g.ways.rules.Load()
	for _, b := range g.ways.by[Agent].Blocked() {
		allowed := b.Allow != "" && rules.Allows(b.Host, b.Port)
		if allowed && !seen[b.Allow] {
			hosts = append(hosts, b.Allow)
		}
		seen[b.Allow] = allowed
	}
	return hosts
}

// Blocked lists what the agent was refused and still would be, the newest first.
// What its program asked for before it had asked the model anything is left out:
// the task has no need of that (opencode looks for a package of its own).
func (g *Gate) Blocked() []egress.Block {
	began := g.Traffic().FirstRequest
	if began.IsZero() {
		return nil
	}
	rules := g.ways.rules.Load()
	var out []egress.Block
	for _, b := range g.ways.by[Agent].Blocked() {
		if b.Last.Before(began) {
			continue
		}
		if b.Allow == "" || !rules.Allows(b.Host, b.Port) {
			out = append(out, b)
		}
	}
	return out
}

// out is a role's way out, for requests that are made to a proxy.
func (w *ways) out(role Role, rest http.Handler) http.Handler {
	proxy := w.by[role]
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if egress.IsProxyRequest(r) {
			proxy.ServeHTTP(rw, r)
			return
		}
		rest.ServeHTTP(rw, r)
	})
}
