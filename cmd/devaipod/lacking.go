package main

import (
	"context"

	"codeberg.org/devaipod/devaipod/pods"
	"codeberg.org/devaipod/devaipod/pods/podman"
)

// tellLacking says what pods can't be given on this machine: into the log at
// the service's start, and to whoever starts one whose log goes to a file.
func tellLacking(ctx context.Context, p *podman.Client, say func(string)) error {
	host, err := p.Host(ctx)
	if err != nil {
		return err
	}
	for _, what := range pods.Lacking(host) {
		say("pods here have " + what)
	}
	return nil
}
