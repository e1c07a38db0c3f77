package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"codeberg.org/devaipod/devaipod/forge"
	"codeberg.org/devaipod/devaipod/mirror/cache"
	"codeberg.org/devaipod/devaipod/mirror/follow"
	"codeberg.org/devaipod/devaipod/pods/audit"
	"codeberg.org/devaipod/devaipod/pods/reconcile"
)

// landConfig says what becomes of what people approve.
type landConfig struct {
	Approvals int  `mapstructure:"approvals"`
	Own       bool `mapstructure:"own"`
}

func landDefaults() map[string]any {
	return map[string]any{"land.approvals": approvalsByForge, "land.own": false}
}

// approvalsByForge as land.approvals is 1 on a forge of our own. On one that others have made, and
// have their own ways with, nothing lands by itself unless somebody says so.
const approvalsByForge = -1

// approvals is how many people must approve so that something lands by itself, 0 for that nothing does.
func (c config) approvals() int {
	switch {
	case c.Land.Approvals != approvalsByForge:
		return c.Land.Approvals
	case c.joined():
		return 0
	}
	return 1
}

// landPort lands commits: by a merge in the forge, or, where the base follows an upstream,
// by a push to there. [landings] has that done beside the loop.
type landPort struct {
	client *forge.Client
	cache  *cache.Cache
	follow *follow.Follower
	store  *follow.Store
	// audit keeps each act that others see, before it is tried (which an error prevents) and
	// with what came of it.
	audit func(audit.Entry) error
}

func (a *app) newLander(s *service) (*landings, error) {
	store, err := a.followStore()
	port := landPort{client: s.forge, cache: s.cache, follow: s.follow, store: store, audit: s.keepLanding}
	return newLandings(port, port.Land, func(k reconcile.Key) { s.loop.Kick(k) }), err
}

// Votes implements [reconcile.Lander].
func (p landPort) Votes(ctx context.Context, k reconcile.Key, pull int64) ([]reconcile.Vote, error) {
	found, err := p.client.Verdicts(ctx, repoOf(k), pull)
	var out []reconcile.Vote
	for _, v := range found {
		out = append(out, reconcile.Vote{ID: v.ID, Author: v.Author, Approves: v.Approves, Commit: v.Commit, Dismissed: v.Dismissed})
	}
	return out, gone(err)
}

// Hands implements [reconcile.Lander].
func (p landPort) Hands(ctx context.Context, k reconcile.Key, base, branch string) (string, []string, error) {
	if _, ok, err := p.client.Branch(ctx, repoOf(k), branch); err != nil || !ok {
		return "", nil, err
	}
	return p.client.Hands(ctx, repoOf(k), base, branch)
}

// upstream tells whether what lands goes upstream.
func (p landPort) upstream(l reconcile.Landing) (bool, error) {
	rec, ok, err := p.store.Get(l.RepoID)
	return ok && rec.Branch == l.Base, err
}

// Plan implements [reconcile.Lander].
func (p landPort) Plan(ctx context.Context, l reconcile.Landing) (reconcile.Landed, error) {
	up, err := p.upstream(l)
	switch {
	case err != nil:
		return reconcile.Landed{}, err
	case up:
		e, err := p.follow.Plan(ctx, l.RepoID, l.Commit)
		return exported(e), p.explain(l, err)
	}
	out, err := p.merges(ctx, l)
	if err != nil {
		return out, err
	}
	return out, p.conflict(ctx, l, out.Old)
}

// landWithin is how long one landing may take. One that is cut off goes on with the next try.
const landWithin = 3 * time.Minute

// Land lands a commit, and returns when it is there or can't be.
func (p landPort) Land(ctx context.Context, l reconcile.Landing) (reconcile.Landed, error) {
	ctx, cancel := context.WithTimeout(ctx, landWithin)
	defer cancel()
	pull, err := p.client.Pull(ctx, repoOf(l.Key), l.Pull)
	switch {
	case err != nil:
		return reconcile.Landed{}, gone(err)
	case pull.State != "open" || pull.Draft || pull.HeadSHA != l.Commit || pull.Base != l.Base:
		return reconcile.Landed{}, reconcile.ErrMoved
	}
	up, err := p.upstream(l)
	switch {
	case err != nil:
		return reconcile.Landed{}, err
	case up:
		return p.export(ctx, l)
	}
	return p.merge(ctx, l)
}

// keepLanding keeps one act. What is tried again and again is one.
func (s *service) keepLanding(e audit.Entry) error { return s.noted(s.audit.AddOnce(e)) }

// try does what others see, for a landing; it is kept in the audit log before and after.
func (p landPort) try(ctx context.Context, act string, l reconcile.Landing, target string, do func(context.Context) error) error {
	e := audit.Entry{Act: act, About: l.Key.String(), Who: atName(strings.Join(l.Approvers, ", ")), Rule: "they approved of it (land.approvals)", Done: target, Result: "begins"}
	if err := p.audit(e); err != nil {
		return fmt.Errorf("keeping that in the audit log, without which nothing lands: %w", err)
	}
	err := do(audit.Kept(ctx))
	e.Result = resultOf(err)
	return errors.Join(err, p.audit(e))
}

func (p landPort) pullName(l reconcile.Landing) string {
	return fmt.Sprintf("%s!%d at %s", repoOf(l.Key), l.Pull, l.Commit)
}

// merges is what a merge in the forge would do.
func (p landPort) merges(ctx context.Context, l reconcile.Landing) (reconcile.Landed, error) {
	base, ok, err := p.client.Branch(ctx, repoOf(l.Key), l.Base)
	if err == nil && !ok {
		err = fmt.Errorf("the forge has no branch %s", l.Base)
	}
	out := reconcile.Landed{Branch: l.Base, Old: base, New: l.Commit}
	if err != nil {
		return out, err
	}
	found, err := p.client.Compare(ctx, repoOf(l.Key), l.Base, l.Branch)
	for _, c := range found {
		out.Commits = append(out.Commits, reconcile.Commit{SHA: c.SHA, Subject: c.Subject})
	}
	return out, err
}

func (p landPort) merge(ctx context.Context, l reconcile.Landing) (reconcile.Landed, error) {
	out, err := p.merges(ctx, l)
	if err != nil {
		return out, err
	}
	said := p.try(ctx, "merge", l, p.pullName(l), func(ctx context.Context) error { return p.client.Merge(ctx, repoOf(l.Key), l.Pull, l.Commit) })
	now, err := p.client.Pull(ctx, repoOf(l.Key), l.Pull)
	var answer *forge.Error
	switch {
	case err != nil:
		return out, errors.Join(said, err)
	case now.Merged: // by us, or by somebody just now
		return out, nil
	case now.HeadSHA != l.Commit:
		return out, reconcile.ErrMoved
	case said == nil:
		return out, errors.New("the forge took the merge, and has not made it")
	}
	if err := p.conflict(ctx, l, out.Old); err != nil {
		return out, err
	}
	switch {
	case !errors.As(said, &answer):
		return out, said
	case answer.TriesLater():
		return out, fmt.Errorf("%w: %w", reconcile.ErrLater, said)
	case answer.Status == http.StatusMethodNotAllowed || answer.Status == http.StatusConflict:
		return out, fmt.Errorf("%w: %w", reconcile.ErrRefused, said)
	}
	return out, said
}

// conflict is a BehindError where git can't merge a commit with its base.
func (p landPort) conflict(ctx context.Context, l reconcile.Landing, base string) error {
	addr := forgeAddress(repoOf(l.Key).String())
	_, err := p.cache.Sync(ctx, addr)
	if err != nil {
		return fmt.Errorf("reading %s to see whether it can be merged: %w", addr, err)
	}
	conflict, _, err := p.cache.Conflict(ctx, addr, base, l.Commit)
	switch {
	case err != nil:
		return fmt.Errorf("seeing whether %.12s can be merged: %w", l.Commit, err)
	case conflict:
		return &reconcile.BehindError{Base: base, Why: fmt.Sprintf("%s is at %s now, which conflicts with it", l.Base, base)}
	}
	return nil
}

func exported(e follow.Export) reconcile.Landed {
	out := reconcile.Landed{Upstream: e.Upstream, Branch: e.Branch, Old: e.Old, New: e.New}
	for _, c := range e.Commits {
		out.Commits = append(out.Commits, reconcile.Commit{SHA: c.ID, Subject: c.Subject})
	}
	return out
}

// export pushes a commit upstream, and lets the forge's copy follow. What was killed in between is
// found as it is by the next call.
func (p landPort) export(ctx context.Context, l reconcile.Landing) (reconcile.Landed, error) {
	planned, err := p.follow.Plan(ctx, l.RepoID, l.Commit)
	out := exported(planned)
	if err == nil {
		target := fmt.Sprintf("%s of %s from %.12s to %s", planned.Branch, planned.Upstream, planned.Old, l.Commit)
		err = p.try(ctx, "export", l, target, func(ctx context.Context) error {
			e, err := p.follow.Export(ctx, l.RepoID, l.Commit)
			out = exported(e)
			return err
		})
	}
	return out, p.explain(l, err)
}

// Finish implements [reconcile.Lander].
func (p landPort) Finish(ctx context.Context, l reconcile.Landing) (bool, error) {
	if up, err := p.upstream(l); err != nil || !up {
		return false, err
	}
	pull, err := p.client.Pull(ctx, repoOf(l.Key), l.Pull)
	if err != nil || pull.Merged || pull.State != "open" || pull.HeadSHA != l.Commit {
		return pull.Merged, gone(err)
	}
	said := p.try(ctx, "mark-merged", l, p.pullName(l), func(ctx context.Context) error { return p.client.MarkMerged(ctx, repoOf(l.Key), l.Pull, l.Commit) })
	// The forge may have found out by itself meanwhile.
	if pull, err = p.client.Pull(ctx, repoOf(l.Key), l.Pull); err != nil {
		return false, errors.Join(said, err)
	}
	if pull.Merged {
		said = nil
	}
	if errors.Is(said, forge.ErrConflict) { // it is not in the base
		return false, nil
	}
	return pull.Merged, said
}

// explain puts what keeps a commit from going upstream into the loop's terms, and says what a
// person can do.
func (p landPort) explain(l reconcile.Landing, err error) error {
	var behind *follow.BehindError
	var trouble *follow.TroubleError
	var refused *cache.RefusedError
	switch {
	case errors.As(err, &behind):
		return &reconcile.BehindError{Base: behind.Upstream, Why: fmt.Sprintf("%s is at %s upstream now, which is not in it", l.Base, behind.Upstream)}
	case errors.As(err, &trouble) && trouble.Next != "":
		return fmt.Errorf("%w (%s)", err, trouble.Next)
	case errors.Is(err, cache.ErrUnauthorized):
		return fmt.Errorf("%w: %w that may push there; those that the service has, from git's credential helper, ~/.netrc or [[mirror.host]], are not enough. Where it asks for a second factor, it takes a token instead of a password", reconcile.ErrRefused, err)
	case errors.Is(err, cache.ErrDeclined) || errors.As(err, &refused):
		return fmt.Errorf("%w: %w", reconcile.ErrRefused, err)
	}
	return err
}
