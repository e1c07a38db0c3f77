package main

import (
	"codeberg.org/devaipod/devaipod/forge"
	"codeberg.org/devaipod/devaipod/mirror/follow"
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

// ModelAddress is where a model on this host is, "" for one elsewhere.
var ModelAddress = modelAddress
