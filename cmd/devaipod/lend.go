package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"codeberg.org/devaipod/devaipod/forge"
	"codeberg.org/devaipod/devaipod/mirror/cache"
	"codeberg.org/devaipod/devaipod/pods"
)

// lendWithin is how long the loop waits for a repository that is not in the cache
// yet: it has other issues to look at. The fetch goes on, and the pod's start is
// tried again.
const lendWithin = 5 * time.Second

// errFetching is what a pod waits for.
var errFetching = errors.New("its repository is being fetched into the cache, or repacked there")

// lend gives a pod's clones what they borrow from: the objects of the pod's own
// repository, by the forge's number and not by its name alone. Where that will
// never be had, they do without.
func (s *service) lend(ctx context.Context, spec pods.Spec) (dir string, done func(), err error) {
	within, cancel := context.WithTimeoutCause(ctx, lendWithin, errFetching)
	defer cancel()
	dir, done, err = s.cache.Lend(within, forgeAddress(spec.Owner+"/"+spec.Repo), s.cfg.identity(spec.RepoID))
	var other *cache.IdentityError
	if !errors.Is(err, cache.ErrUnlendable) && !errors.As(err, &other) {
		return dir, done, err
	}
	s.log.Warn("a pod's clones borrow nothing: each is a whole copy", "issue", spec.Key.String(), "err", err)
	return "", func() {}, nil
}

// identity is what the cache knows a repository of the forge by: its number there.
func (c config) identity(id int64) string { return fmt.Sprintf("%d at %s", id, c.forgeURL()) }

// identify asks the forge which repository has a path now.
func (c config) identify(client *forge.Client) func(context.Context, string) (string, error) {
	return func(ctx context.Context, path string) (string, error) {
		repo, err := forge.ParseRepo(path)
		if err != nil {
			return "", nil //nolint:nilerr // no name that the forge has
		}
		info, err := client.Repository(ctx, repo)
		if errors.Is(err, forge.ErrNotFound) || errors.Is(err, forge.ErrForbidden) {
			return "", nil
		}
		if err != nil {
			return "", err
		}
		return c.identity(info.ID), nil
	}
}

// release removes what no pod borrows any more. What goes wrong is tried again
// when the next pod is removed, and at the next start.
func (p *podPort) release(ctx context.Context) {
	inUse := func() (map[string]bool, error) {
		dirs, err := p.manager.Borrowed(ctx)
		if err != nil {
			return nil, err
		}
		saved, err := p.work.Borrowed(ctx)
		maps.Copy(dirs, saved)
		return dirs, err
	}
	if err := p.cache.Keep(inUse); err != nil {
		p.log.Warn("removing what no pod borrows any more; it is tried again later", "err", err)
	}
}
