package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"

	"codeberg.org/devaipod/devaipod/forge"
	"codeberg.org/devaipod/devaipod/mirror"
	"codeberg.org/devaipod/devaipod/mirror/cache"
	"codeberg.org/devaipod/devaipod/pods/audit"
	"codeberg.org/devaipod/devaipod/pods/reconcile"
)

// All that changes something at the forge goes through a client that newForge has made, or is a
// push by the git cache, the work store or forge add, or made by the forge's own command; all that changes something at an upstream
// is an export. Here they are kept in the audit log, where they are made, each once: an entry
// with the result "sent" before it is, so that none can be without one, and another one if it fails. Who
// asked for it, and by which rule, comes with the context.

const (
	sent      = "sent"
	byService = "the service" // nobody asked in particular
)

// newForge is a client whose writes are kept; account is Token's.
func (a *app) newForge(cfg forge.Config, account string) (*forge.Client, error) {
	cfg.URL, cfg.Log, cfg.Fault = a.cfg.forgeURL(), a.log, fault
	var err error
	if cfg.Transport, err = a.cfg.forgeTransport(); err != nil {
		return nil, err
	}
	cfg.Writes = func(ctx context.Context, w forge.Write, failed error) {
		if !audit.IsKept(ctx) {
			w.As = cmp.Or(w.As, account)
			a.keepSent(writeOf(ctx, w), failed, edits(w))
		}
	}
	return forge.New(cfg)
}

// edits tells whether a write only brings a text of ours up to date, or the labels of a repository:
// all that it does to one of them is one act.
func edits(w forge.Write) bool {
	act, _ := kindOf(w)
	return w.Method == "PATCH" && (act == "comment" || act == "pull-request") || act == "labels"
}

// keepSent keeps what is about to be done, or that it has failed. It goes on all the same where
// that can't be kept, which is said.
func (a *app) keepSent(e audit.Entry, failed error, once bool) {
	log, err := a.openAudit()
	if err != nil {
		a.log.Error("what is done can't be kept (devaipod audit)", "err", err)
		return
	}
	if e.Result = sent; failed != nil {
		e.Result = resultOf(failed)
	}
	e.Who = cmp.Or(e.Who, byService)
	add := log.Add
	if once {
		add = log.AddOnce
	}
	if err := add(e); err != nil {
		a.log.Error("what is done can't be kept (devaipod audit)", "err", err)
	}
}

// writeOf is the entry of a write.
func writeOf(ctx context.Context, w forge.Write) audit.Entry {
	e := audit.Cause(ctx)
	act, about := kindOf(w)
	state := e.Act == "state" && strings.HasSuffix(act, "label")
	if e.Act != act && !state { // it is done on the way to that
		e.Done = ""
	}
	if !state {
		e.Act = act
	}
	e.About = cmp.Or(e.About, about)
	if w.Sudo {
		e.Who = cmp.Or(e.Who, atName(w.As))
	}
	call := w.Method + " " + w.Path
	if w.As != "" {
		call += " as " + w.As
	}
	if e.Done != "" {
		call = e.Done + "; " + call
	}
	e.Done = call
	return e
}

// keptCLI is the forge's own command, what it is asked to do kept likewise.
func (a *app) keptCLI(cli forge.AdminCLI) forge.AdminCLI {
	return func(ctx context.Context, stdin io.Reader, args ...string) (string, error) {
		e := audit.Cause(ctx)
		e.Act, e.Done = "account", "the forge's own command: "+strings.Join(args, " ")
		a.keepSent(e, nil, false)
		out, err := cli(ctx, stdin, args...)
		if err != nil {
			a.keepSent(e, err, false)
		}
		return out, err
	}
}

// pathOf finds what a path is about: owner, name, and what is behind that.
var pathOf = regexp.MustCompile(`^(?:/repos)?/([^/]+)/([^/]+)(/.*)?$`)

// kinds are the acts, by what is behind a repository's path; others are "forge".
var kinds = []struct {
	path *regexp.Regexp
	act  string
}{
	{regexp.MustCompile(`^/issues/(?:(\d+)/)?comments`), "comment"},
	{regexp.MustCompile(`^/issues/(\d+)/labels`), "label"},
	{regexp.MustCompile(`^/issues(?:/(\d+))?$`), "issue"},
	{regexp.MustCompile(`^/pulls/(\d+)/requested_reviewers$`), "review-request"},
	{regexp.MustCompile(`^/pulls/(\d+)/(?:files/)?reviews`), "answer"},
	{regexp.MustCompile(`^/pulls/(\d+)/merge$`), "merge"},
	{regexp.MustCompile(`^/pulls(?:/(\d+))?$`), "pull-request"},
	{regexp.MustCompile(`^/statuses/`), "status"},
	{regexp.MustCompile(`^/labels`), "labels"},
	{regexp.MustCompile(`^/collaborators/`), "collaborator"},
	{regexp.MustCompile(`^/branch_protections`), "branch-rule"},
	{regexp.MustCompile(`^/actions/`), "actions"},
	{regexp.MustCompile(`^$`), "repository"},
}

// kindOf is what kind of act a write is, and about what.
func kindOf(w forge.Write) (act, about string) {
	for start, act := range map[string]string{"/admin/hooks": "webhook", "/admin/users/": "account", "/users/": "account", "/user/applications/": "application", "/user/repos": "repository", "/orgs/": "repository"} {
		if strings.HasPrefix(w.Path, start) || w.Path == strings.TrimSuffix(start, "/") {
			if strings.HasSuffix(w.Path, "/repos") {
				act = "repository"
			}
			return act, ""
		}
	}
	m := pathOf.FindStringSubmatch(w.Path)
	if m == nil {
		return "forge", ""
	}
	about = m[1] + "/" + m[2]
	for _, k := range kinds {
		found := k.path.FindStringSubmatch(m[3])
		if found == nil {
			continue
		}
		if len(found) > 1 && found[1] != "" {
			about += "#" + found[1]
		}
		if k.act == "label" && w.Method == "DELETE" {
			return "unlabel", about
		}
		return k.act, about
	}
	return "forge", about
}

// keepPush keeps what the cache pushes to the forge.
func (a *app) keepPush(ctx context.Context, to cache.Address, refs map[string]string, failed error) {
	e := audit.Cause(ctx)
	e.Act, e.About, e.Rule = "sync", strings.TrimSuffix(to.Path, ".git"), cmp.Or(e.Rule, "it follows an upstream")
	names := slices.Sorted(maps.Keys(refs))
	for i, name := range names {
		names[i] = name + " " + refs[name]
	}
	e.Done = strings.Join(names, ", ")
	a.keepSent(e, failed, false)
}

// because gives acts of the loop their cause.
func because(ctx context.Context, act reconcile.Act) context.Context {
	e := audit.Entry{Act: act.What, Who: atName(act.Who), Rule: act.Rule, Done: act.Done}
	if act.Key.Issue != 0 {
		e.About = act.Key.String()
	}
	return audit.Because(ctx, e)
}

// mostRefused is how many refused pushes of an issue are kept between two that are taken: an
// agent must not fill the log with them.
const mostRefused = 100

// pushRefused keeps what the gate of pushes did not let through.
func (s *service) pushRefused(d mirror.Delivery, why string) {
	about := cmp.Or(d.Issue, d.Repo)
	s.refusedMu.Lock()
	if s.refused == nil {
		s.refused = map[string]int{}
	}
	s.refused[about]++
	n := s.refused[about]
	s.refusedMu.Unlock()
	e := audit.Entry{Act: "push", About: about, Who: "the agent " + d.Agent, Rule: why, Done: strings.Join(d.Refs, ", "), Result: "refused"}
	switch {
	case n > mostRefused:
		return
	case n == mostRefused:
		e.Result += fmt.Sprintf("; the last of %d in a row that is kept", mostRefused)
	}
	_ = s.note(e) // it said so
}

// keepCopy keeps that forge add fills a repository, or that it could not.
func (a *app) keepCopy(ctx context.Context, repo forge.Repo, as string, failed error) {
	e := audit.Cause(ctx)
	e.Act, e.About, e.Done = "copy", repo.String(), "branches and tags, as "+as
	a.keepSent(e, failed, false)
}
