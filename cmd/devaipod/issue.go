package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os/exec"
	"regexp"
	"strconv"
	"strings"

	"codeberg.org/devaipod/devaipod/pods/reconcile"
)

var (
	issueRef  = regexp.MustCompile(`^([A-Za-z0-9._-]+)/([A-Za-z0-9._-]+)#([0-9]{1,9})$`)
	issuePath = regexp.MustCompile(`^/([A-Za-z0-9._-]+)/([A-Za-z0-9._-]+)/(?:issues|pulls)/([0-9]{1,9})(?:[?#].*)?$`)
	scpRemote = regexp.MustCompile(`^(?:[A-Za-z0-9._-]+@)?([A-Za-z0-9.-]+):([^/:][^:]*)$`)
	repoRef   = regexp.MustCompile(`^[A-Za-z0-9._-]+/[A-Za-z0-9._-]+$`)
)

// issueKey reads an issue as people write it: owner/repo#3, its URL, or, in a
// checkout of the forge, 3 or #3.
func (a *app) issueKey(ctx context.Context, s string) (reconcile.Key, error) {
	m := issueRef.FindStringSubmatch(s)
	if path, ok := strings.CutPrefix(s, a.cfg.forgeURL()); ok && m == nil {
		m = issuePath.FindStringSubmatch(path)
	}
	if m == nil {
		if _, err := strconv.ParseUint(strings.TrimPrefix(s, "#"), 10, 31); err != nil {
			return reconcile.Key{}, usagef("%q names no issue: write owner/repo#3, its URL on %s, or 3 inside a checkout", s, a.cfg.forgeURL())
		}
		repo, err := a.repoHere(ctx)
		if err != nil {
			return reconcile.Key{}, err
		}
		owner, name, _ := strings.Cut(repo, "/")
		m = []string{"", owner, name, strings.TrimPrefix(s, "#")}
	}
	n, err := strconv.ParseInt(m[3], 10, 64)
	if err != nil || n == 0 {
		return reconcile.Key{}, usagef("%q names no issue: they count from 1", s)
	}
	return reconcile.Key{Owner: m[1], Repo: m[2], Issue: n}, nil
}

// repoHere is the forge's repository whose checkout the command runs in.
func (a *app) repoHere(ctx context.Context) (string, error) {
	_, repo, err := a.remoteHere(ctx)
	return repo, err
}

// remoteHere finds the remote of the checkout here that leads to the forge.
func (a *app) remoteHere(ctx context.Context) (remote, repo string, err error) {
	return a.remoteAt(ctx, "")
}

// remoteAt does so in a directory, "" for this one.
func (a *app) remoteAt(ctx context.Context, dir string) (remote, repo string, err error) {
	// Only the remotes are asked for; the checkout is the person's own.
	cmd := exec.CommandContext(ctx, "git", "config", "--get-regexp", `^remote\..*\.url$`)
	cmd.Dir = dir
	out, err := cmd.Output()
	if err != nil && dir != "" {
		return "", "", usagef("%s is no checkout that has remotes: name one of a repository of the forge at %s, or the repository itself as owner/repo", dir, a.cfg.forgeURL())
	}
	if err != nil {
		return "", "", usagef("no repository named, and this is no checkout that has remotes: name it as owner/repo")
	}
	for line := range strings.Lines(string(out)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if repo, ok := a.repoOf(value); ok {
			return strings.TrimSuffix(strings.TrimPrefix(key, "remote."), ".url"), repo, nil
		}
	}
	return "", "", usagef("no remote of this checkout leads to the forge at %s: name the repository as owner/repo, or bring it in with `devaipod forge add`", a.cfg.forgeURL())
}

// repoOf is the owner/name that a URL of the forge names: one of http(s), below
// the forge's own, or one of ssh at the same host.
func (a *app) repoOf(remote string) (string, bool) {
	base, err := url.Parse(a.cfg.forgeURL())
	if err != nil {
		return "", false
	}
	if m := scpRemote.FindStringSubmatch(remote); m != nil {
		remote = "ssh://" + m[1] + "/" + m[2]
	}
	u, err := url.Parse(remote)
	if err != nil {
		return "", false
	}
	path, same := strings.CutPrefix(u.Path, base.Path+"/")
	same = same && u.Host == base.Host && (u.Scheme == "http" || u.Scheme == "https")
	if u.Scheme == "ssh" && a.cfg.joined() {
		path, same = u.Path, u.Hostname() == base.Hostname()
	}
	repo := strings.TrimSuffix(strings.Trim(path, "/"), ".git")
	return repo, same && repoRef.MatchString(repo)
}

// parseRepo checks an owner/name.
func parseRepo(s string) (string, error) {
	if !repoRef.MatchString(s) {
		return "", usagef("%q names no repository: write owner/name", s)
	}
	return s, nil
}

// unreachable marks an error of the network kind with its exit code.
func unreachable(err error) error {
	var netErr *url.Error
	if errors.As(err, &netErr) {
		return &exitError{codeUnreachable, fmt.Errorf("the forge does not answer: %w; is it up? (devaipod forge status)", err)}
	}
	return err
}
