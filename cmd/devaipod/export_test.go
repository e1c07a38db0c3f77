package main

import (
	"codeberg.org/devaipod/devaipod/forge"
	"codeberg.org/devaipod/devaipod/pods/reconcile"
)

// NewForgePort is the forge as the loop sees it, for tests that count its calls.
func NewForgePort(client *forge.Client, label, instance, bot string) reconcile.Forge {
	return forgePort{client: client, label: label, instance: instance, bot: bot}
}

// Run is the whole program.
var Run = run
