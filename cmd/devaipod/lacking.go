package main

import (
	"context"
	"fmt"

	"codeberg.org/devaipod/devaipod/mirror/gitproc"
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
	for _, what := range lackingOfPods(ctx, host) {
		say("pods here have " + what)
	}
	_, lacking, err := probeGit(ctx)
	for _, what := range lacking {
		say(what)
	}
	return err
}

// lackingOfPods names what pods can't be given on this host.
func lackingOfPods(ctx context.Context, host podman.Host) []string {
	out := pods.Lacking(host)
	if what := podman.LackingFence(ctx, host); what != "" {
		out = append(out, what)
	}
	return out
}

// Git must know how to compare a merge with what its parents make (2.35), and to
// keep apart what no ref reaches (2.37).
const gitMajor, gitMinor = 2, 37

// probeGit looks at git, and at what keeps it in its box.
func probeGit(ctx context.Context) (version string, lacking []string, err error) {
	binary, err := beside("devaipod-box")
	if err != nil {
		return "", nil, err
	}
	if version, lacking, err = gitproc.Probe(ctx, []string{binary}); err != nil {
		return "", nil, fmt.Errorf("running git: %w; install git %d.%d or newer", err, gitMajor, gitMinor)
	}
	var major, minor int
	if _, err := fmt.Sscanf(version, "%d.%d", &major, &minor); err != nil || major < gitMajor || major == gitMajor && minor < gitMinor {
		return version, lacking, fmt.Errorf("git %s is too old or not known: install git %d.%d or newer", version, gitMajor, gitMinor)
	}
	return version, lacking, nil
}
