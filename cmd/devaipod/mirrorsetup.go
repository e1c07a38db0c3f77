package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"regexp"
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
		from := a.plainURL(addr.Host)
		if !strings.Contains("\n"+have+"\n", "\n"+from+"\n") {
			if _, err := gitConfig(ctx, "--add", "url."+base+".insteadOf", from); err != nil {
				return err
			}
		}
		a.step("git now fetches %s… from %s…", from, base)
	}
	return a.setupCredentials(ctx)
}

// setupCredentials lets git ask us for what the upstreams want, and nobody else:
// other helpers would keep it once more, for the cache's address.
func (a *app) setupCredentials(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	section := "credential." + a.cfg.serviceURL()
	if have, err := gitConfig(ctx, "--get-all", section+".helper"); err != nil || have != "" {
		return err
	}
	helper := "!'" + strings.ReplaceAll(self, "'", `'\''`) + "' mirror credential"
	for _, args := range [][]string{{section + ".useHttpPath", "true"}, {section + ".helper", ""}, {"--add", section + ".helper", helper}} {
		if _, err := gitConfig(ctx, args...); err != nil {
			return err
		}
	}
	return nil
}

// mirrorCredentialCmd is what git runs as a credential helper (gitcredentials(7))
// when the cache wants to know who somebody is at an upstream.
func (a *app) mirrorCredentialCmd() *cobra.Command {
	return &cobra.Command{
		Use: "credential get|store|erase", Short: "Answer git's question for credentials of an upstream", Hidden: true, Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, verb []string) error { return a.mirrorCredential(cmd.Context(), verb[0]) },
	}
}

// mirrorCredential passes the question on to the person's own helpers, as one
// for the upstream itself.
func (a *app) mirrorCredential(ctx context.Context, verb string) error {
	action, ok := map[string]string{"get": "fill", "store": "approve", "erase": "reject"}[verb]
	if !ok {
		return nil // gitcredentials(7): what a helper does not know, it leaves alone
	}
	asked := map[string]string{}
	in := bufio.NewScanner(io.LimitReader(a.in, 64<<10))
	for in.Scan() {
		k, v, _ := strings.Cut(in.Text(), "=")
		asked[k] = v
	}
	if err := in.Err(); err != nil {
		return err
	}
	text, within := strings.CutPrefix(asked["path"], "git/")
	addr, err := cache.ParseAddress(text)
	if !within || err != nil {
		return nil //nolint:nilerr // a question that is none of ours
	}
	if up, err := a.upstreams(); err != nil {
		return err
	} else if up.byOurs(addr.Host) {
		return a.tellToken(verb)
	}
	u, err := url.Parse(a.plainURL(addr.Host))
	if err != nil {
		return err
	}
	at := strings.TrimPrefix(u.Path, "/") + strings.TrimPrefix(text, addr.Host+"/")
	question := fmt.Sprintf("protocol=%s\nhost=%s\npath=%s\n", u.Scheme, u.Host, at)
	for _, k := range []string{"username", "password"} {
		if v, ok := asked[k]; ok {
			question += k + "=" + v + "\n"
		}
	}
	cmd := exec.CommandContext(ctx, "git", "credential", action)
	cmd.Stdin = strings.NewReader(question + "\n")
	cmd.Stderr = a.errOut
	out, err := cmd.Output()
	if err != nil {
		return &exitError{codeFailed, nil} // git has said why
	}
	for line := range strings.Lines(string(out)) {
		if strings.HasPrefix(line, "username=") || strings.HasPrefix(line, "password=") {
			fmt.Fprint(a.out, line)
		}
	}
	return nil
}

// tellToken answers with the cache's own token, which nobody has to keep.
func (a *app) tellToken(verb string) error {
	if verb != "get" {
		return nil
	}
	token, err := mirrorToken(a.cfg.Mirror.Dir)
	if err == nil {
		_, err = fmt.Fprintf(a.out, "username=%s\npassword=%s\n", tokenUser, token)
	}
	return err
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
	if left, err := gitConfig(ctx, "--get-regexp", `^url\.`+regexp.QuoteMeta(a.cacheBase(""))); err != nil || left != "" {
		return err
	}
	section := "credential." + a.cfg.serviceURL()
	if have, err := gitConfig(ctx, "--get-all", section+".helper"); err != nil {
		return err
	} else if have != "" {
		if _, err := gitConfig(ctx, "--remove-section", section); err != nil {
			return err
		}
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
func (a *app) plainURL(host string) string {
	if host == forgeHost {
		return a.cfg.forgeURL() + "/"
	}
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
