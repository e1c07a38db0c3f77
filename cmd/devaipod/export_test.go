package main

import (
	"errors"
	"testing"

	"github.com/spf13/viper"

	"codeberg.org/devaipod/devaipod/forge"
	"codeberg.org/devaipod/devaipod/mirror/follow"
	"codeberg.org/devaipod/devaipod/pods"
	"codeberg.org/devaipod/devaipod/pods/podfile"
	"codeberg.org/devaipod/devaipod/pods/reconcile"
)

// NewForgePort is the forge as the loop sees it, for tests that count its calls.
func NewForgePort(client *forge.Client, label, instance, bot string) reconcile.Forge {
	return forgePort{client: client, label: label, instance: instance, bot: bot}
}

// Run is the whole program.
var Run = run

// NewFollowForge is the forge as what follows upstreams sees it.
func NewFollowForge(client *forge.Client) follow.Forge { return followForge{client} }

// AddressOf is what the cache of a service at an address calls a URL.
func AddressOf(listen, url string) (string, error) {
	a := &app{}
	a.cfg.Service.Listen = listen
	return a.addressOf(url)
}

// GivenSince tells whether an order is newer than the last request.
var GivenSince = givenSince

// ModelAddress is where a model on this host is, "" for one elsewhere.
var ModelAddress = modelAddress

// Policies are those of a service.
type Policies struct{ p *policies }

// NewPolicies makes them, of a configuration with these settings.
func NewPolicies(t *testing.T, settings map[string]any, repo func(pods.Key) (string, error), runDir func(pods.Key) string) Policies {
	t.Helper()
	v := viper.New()
	for name, value := range defaults() {
		v.SetDefault(name, value)
	}
	for name, value := range settings {
		v.Set(name, value)
	}
	var c config
	if err := errors.Join(v.UnmarshalExact(&c), c.validate()); err != nil {
		t.Fatal(err)
	}
	return Policies{newPolicies(c, func(k pods.Key) (repoConfig, error) {
		text, err := repo(k)
		if err != nil {
			return repoConfig{}, err
		}
		return parseRepoConfig([]byte(text))
	}, runDir)}
}

// Of, Take, Wrong and Restarted are what the service does with them.
func (p Policies) Of(k pods.Key) (podfile.Policy, error) { return p.p.of(k) }
func (p Policies) Take(k pods.Key, o reconcile.Orders)   { p.p.take(k, o) }
func (p Policies) Wrong(k pods.Key) []string             { return p.p.wrong[k] }
func (p Policies) Restarted() Policies                   { return Policies{newPolicies(p.p.cfg, p.p.ofRepo, p.p.runDir)} }

// ParseRepoConfig is what a repository's own file allows.
func ParseRepoConfig(text []byte) ([]string, error) {
	c, err := parseRepoConfig(text)
	return c.Network.Allow, err
}
