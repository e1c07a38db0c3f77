package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"codeberg.org/devaipod/devaipod/mirror/cache"
)

func (a *app) mirrorSetupCmd() *cobra.Command {
	var undo bool
	cmd := &cobra.Command{
		Use: "setup [HOST…]", Short: "Let your git fetch from the cache whatever it would fetch from these hosts",
		Long: "Write into your git configuration that what comes from https://HOST/ comes through the cache: clones, fetches, submodules. " +
			"Without HOST, those that mirror.allow_upstream names in full.",
		Example: "  devaipod mirror setup github.com codeberg.org\n  devaipod mirror setup --undo",
		RunE: func(cmd *cobra.Command, hosts []string) error {
			if undo {
				return a.mirrorUndo(cmd.Context(), hosts)
			}
			return a.mirrorSetup(cmd.Context(), hosts)
		},
	}
	cmd.Flags().BoolVar(&undo, "undo", false, "take it out again: for all hosts, or some")
	return cmd
}

// mirrorSetup writes url.*.insteadOf (git-config(1)) for each host.
func (a *app) mirrorSetup(ctx context.Context, hosts []string) error {
	if len(hosts) == 0 {
		for _, p := range a.cfg.Mirror.AllowUpstream {
			if host, _, _ := strings.Cut(p, "/"); !strings.Contains(host, "*") && host != "localhost" {
				hosts = append(hosts, host)
			}
		}
	}
	if len(hosts) == 0 {
		return usagef("name the hosts, as in devaipod mirror setup github.com: mirror.allow_upstream names none in full")
	}
	for _, host := range hosts {
		addr, err := cache.ParseAddress(host + "/x")
		if err != nil {
			return usagef("%q is no host", host)
		}
		base := a.cacheBase(addr.Host)
		have, err := gitConfig(ctx, "--get-all", "url."+base+".insteadOf")
		if err != nil {
			return err
		}
		from := plainURL(addr.Host)
		if !strings.Contains("\n"+have+"\n", "\n"+from+"\n") {
			if _, err := gitConfig(ctx, "--add", "url."+base+".insteadOf", from); err != nil {
				return err
			}
		}
		a.step("git now fetches %s… from %s…", from, base)
	}
	return nil
}

// mirrorUndo takes out what mirrorSetup has written.
func (a *app) mirrorUndo(ctx context.Context, hosts []string) error {
	have, err := gitConfig(ctx, "--name-only", "--get-regexp", `^url\..*\.insteadof$`)
	if err != nil {
		return err
	}
	done := map[string]bool{}
	for name := range strings.Lines(have) {
		base := strings.TrimSuffix(strings.TrimPrefix(strings.TrimSpace(name), "url."), ".insteadof")
		host, ours := strings.CutPrefix(base, a.cacheBase(""))
		host = strings.TrimSuffix(host, "/")
		if !ours || done[host] || len(hosts) > 0 && !slices.ContainsFunc(hosts, func(h string) bool { return strings.EqualFold(h, host) }) {
			continue
		}
		done[host] = true
		if _, err := gitConfig(ctx, "--remove-section", "url."+base); err != nil {
			return err
		}
		a.step("git now fetches from %s itself", host)
	}
	if len(done) == 0 {
		a.step("nothing to undo: git fetches nothing from %s", a.cacheBase(""))
	}
	return nil
}

// cacheBase is where the cache has a host's repositories; all of them when it is
// empty.
func (a *app) cacheBase(host string) string {
	if host != "" {
		host += "/"
	}
	return a.cfg.serviceURL() + "/git/" + host
}

// plainURL is what a host's repositories begin with: without TLS only on
// loopback.
func plainURL(host string) string {
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	if ip, err := netip.ParseAddr(strings.Trim(name, "[]")); name == "localhost" || err == nil && ip.IsLoopback() {
		return "http://" + host + "/"
	}
	return "https://" + host + "/"
}

// gitConfig runs git config on the person's own configuration. That there is
// nothing of the name is no error.
func gitConfig(ctx context.Context, args ...string) (string, error) {
	var out, errOut bytes.Buffer
	cmd := exec.CommandContext(ctx, "git", append([]string{"config", "--global"}, args...)...)
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == 1 && errOut.Len() == 0 {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("git config --global: %w: %s", err, strings.TrimSpace(errOut.String()))
	}
	return strings.TrimSpace(out.String()), nil
}
