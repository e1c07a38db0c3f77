package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/jdx/go-netrc"

	"codeberg.org/devaipod/devaipod/mirror/cache"
)

// forgeHost is what the cache calls the instance's own forge:
// /git/forge/OWNER/REPO.git.
const forgeHost = "forge"

// upstreams are the hosts that the cache knows, and how it is let in there.
type upstreams struct {
	allow  cache.Allow
	hosts  map[string]cache.Host
	logins map[string]login // by host
}

// A login is what the configuration has for a host.
type login struct{ user, password string }

// upstreams reads them off the configuration; the forge is one of them, once
// there are tokens for it.
func (a *app) upstreams() (*upstreams, error) {
	up := &upstreams{hosts: map[string]cache.Host{}, logins: map[string]login{}}
	patterns := a.cfg.Mirror.AllowUpstream
	if len(patterns) == 0 {
		patterns = []string{"*"}
	}
	for _, h := range a.cfg.Mirror.Host {
		name := strings.ToLower(h.Name)
		up.hosts[name] = cache.Host{URL: h.URL, SSH: h.SSH}
		if h.PasswordFile == "" {
			continue
		}
		password, err := os.ReadFile(h.PasswordFile)
		if err != nil {
			return nil, fmt.Errorf("mirror.host %q: password_file: %w", h.Name, err)
		}
		up.logins[name] = login{cmp.Or(h.User, "git"), strings.TrimRight(string(password), "\r\n")}
	}
	creds, err := a.readCredentials()
	switch {
	case errors.Is(err, errNoForge):
	case err != nil:
		return nil, err
	case creds.BotToken != "":
		if _, taken := up.hosts[forgeHost]; taken {
			return nil, usagef("mirror.host %q: the forge of this instance is called so; choose another name", forgeHost)
		}
		transport, err := a.cfg.forgeTransport()
		if err != nil {
			return nil, err
		}
		client, err := a.serviceForge(creds)
		if err != nil {
			return nil, err
		}
		// What is read is as new as the forge, as soon as that is back.
		up.hosts[forgeHost] = cache.Host{
			URL: a.cfg.forgeURL(), Transport: transport, Refs: []string{"refs/pull/*/head"}, Always: true, Unchecked: true, Rest: time.Second, Push: true,
			Identity: a.cfg.identify(client),
		}
		up.logins[forgeHost] = login{creds.Bot, creds.BotToken}
		patterns = append(patterns[:len(patterns):len(patterns)], forgeHost)
	}
	if up.allow, err = cache.ParseAllow(patterns); err != nil {
		return nil, &exitError{codeUsage, err}
	}
	return up, nil
}

// byOurs tells whether a host is reached by what the configuration has for it,
// so that a person needs nothing but the cache's token.
func (up *upstreams) byOurs(host string) bool {
	_, login := up.logins[host]
	return host != forgeHost && (login || strings.HasPrefix(up.hosts[host].URL, "ssh:"))
}

// credentials are those of the configuration, else what the person's git has,
// else what their ~/.netrc has.
func (up *upstreams) credentials(ctx context.Context, host, upstream string) (user, password string, err error) {
	if l, ok := up.logins[host]; ok {
		return l.user, l.password, nil
	}
	u, err := url.Parse(upstream)
	if err != nil {
		return "", "", err
	}
	if user, password, err = gitCredentials(ctx, u); err != nil || password != "" {
		return user, password, err
	}
	return netrcCredentials(u)
}

// gitCredentials are what the person's credential helpers have for a URL:
// nobody is prompted (git-credential(1)).
func gitCredentials(ctx context.Context, u *url.URL) (user, password string, err error) {
	cmd := exec.CommandContext(ctx, "git", "credential", "fill")
	cmd.Env = append(os.Environ(), "GIT_TERMINAL_PROMPT=0", "GIT_ASKPASS=", "SSH_ASKPASS=")
	cmd.Stdin = strings.NewReader(fmt.Sprintf("protocol=%s\nhost=%s\npath=%s\n\n", u.Scheme, u.Host, strings.TrimPrefix(u.Path, "/")))
	var out bytes.Buffer
	cmd.Stdout = &out
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return "", "", ctx.Err()
		}
		return "", "", nil // git ends so when no helper knows any
	}
	for line := range strings.Lines(out.String()) {
		k, v, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		switch k {
		case "username":
			user = v
		case "password":
			password = v
		}
	}
	return user, password, nil
}

// netrcCredentials are those of the URL's host in ~/.netrc, or in the file that
// NETRC names (curl(1), --netrc), which git itself looks at by way of curl.
func netrcCredentials(u *url.URL) (user, password string, err error) {
	file := os.Getenv("NETRC")
	if file == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", "", nil //nolint:nilerr // who has no home has no such file
		}
		file = filepath.Join(home, ".netrc")
	}
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return "", "", nil
	}
	if err != nil {
		return "", "", err
	}
	all, err := netrc.ParseString(string(text))
	if err != nil {
		return "", "", fmt.Errorf("%s can't be read as a netrc file", file) // its words may hold a password
	}
	m := all.Machine(u.Hostname())
	if m == nil {
		m = all.Machine("default")
	}
	if m == nil {
		return "", "", nil
	}
	return m.Get("login"), m.Get("password"), nil
}

// A bearer is the cache's token: who shows it may read what is read by our own
// credentials.
type bearer string

// tokenUser is the user name that the token is shown with.
const tokenUser = "devaipod"

// mirrorToken reads the cache's token, and makes it the first time: a file that
// only its owner may read.
func mirrorToken(dir string) (bearer, error) {
	file := filepath.Join(dir, "token")
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return "", fmt.Errorf("making the cache's directory: %w", err)
		}
		if err := makeToken(dir, file); err != nil {
			return "", fmt.Errorf("making the cache's token: %w", err)
		}
		b, err = os.ReadFile(file)
	}
	if err != nil {
		return "", err
	}
	if len(b) < 20 {
		return "", fmt.Errorf("%s is damaged: remove it, and it is made anew", file)
	}
	return bearer(strings.TrimSpace(string(b))), nil
}

// makeToken puts a token in place unless another process was quicker.
func makeToken(dir, file string) error {
	f, err := os.CreateTemp(dir, ".token-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) //nolint:errcheck // its other name stays
	_, err = f.WriteString(rand.Text() + "\n")
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Link(f.Name(), file); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// shown tells whether a request shows the token, in constant time.
func (b bearer) shown(r *http.Request) bool {
	user, password, ok := r.BasicAuth()
	got, want := sha256.Sum256([]byte(password)), sha256.Sum256([]byte(b))
	return subtle.ConstantTimeCompare(got[:], want[:]) == 1 && ok && user == tokenUser && b != ""
}

// othersForPods serves pods the upstreams of agent.upstreams, as anybody reads
// them.
func (a *app) othersForPods(c *cache.Cache) (http.Handler, error) {
	patterns := a.cfg.Agent.Upstreams
	if u, err := url.Parse(a.cfg.Workspace.Dotfiles); err == nil && u.Host != "" {
		patterns = append(slices.Clone(patterns), u.Host+strings.TrimSuffix(u.Path, ".git"))
	}
	if len(patterns) == 0 {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			answer(w, http.StatusForbidden, "devaipod: agents read no repository but their own; agent.upstreams in devaipod.toml can let them")
		}), nil
	}
	allow, err := cache.ParseAllow(patterns)
	if err != nil {
		return nil, usagef("agent.upstreams: %w", err)
	}
	return c.PublicReads(allow), nil
}
