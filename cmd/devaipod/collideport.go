package main

import (
	"context"
	"fmt"
	"iter"
	"path"

	"codeberg.org/devaipod/devaipod/mirror/cache"
	"codeberg.org/devaipod/devaipod/pods/reconcile"
)

// collidePort compares commits of the forge's repositories, in the cache's copies of them.
type collidePort struct {
	cache *cache.Cache
	bot   string // the address that is the author of agents' commits
}

// Collide is what [reconcile.Collider] has.
func (p collidePort) Collide(ctx context.Context, k reconcile.Key, base, one, other string) (c reconcile.Collision, err error) {
	err = p.here(ctx, k, func(at cache.Address) error {
		if c.Conflict, c.Files, err = p.cache.Conflict(ctx, at, one, other); err != nil || c.Conflict {
			return err
		}
		c.Files, err = p.both(
			func() ([]string, error) { return p.cache.Touched(ctx, at, base, one) },
			func() ([]string, error) { return p.cache.Touched(ctx, at, base, other) },
		)
		return err
	})
	return c, err
}

// Landed is what [reconcile.Collider] has.
func (p collidePort) Landed(ctx context.Context, k reconcile.Key, base, head string) (c reconcile.Collision, err error) {
	err = p.here(ctx, k, func(at cache.Address) error {
		if c.Conflict, c.Files, err = p.cache.Conflict(ctx, at, base, head); err != nil || c.Conflict {
			return err
		}
		c.Files, err = p.both(
			func() ([]string, error) { return p.cache.TouchedBy(ctx, at, p.bot, base, head) },
			func() ([]string, error) { return p.cache.Touched(ctx, at, base, head) },
		)
		return err
	})
	return c, err
}

// here does something about a repository of the forge's, again with what is new there where a
// commit is not here.
func (p collidePort) here(ctx context.Context, k reconcile.Key, do func(cache.Address) error) error {
	at := forgeAddress(repoOf(k).String())
	if do(at) == nil {
		return nil
	}
	if _, err := p.cache.Sync(ctx, at); err != nil {
		return fmt.Errorf("reading %s: %w", at, err)
	}
	return do(at)
}

// both are the files of one list that are in another, or where one is a directory of the
// other's.
func (p collidePort) both(one, other func() ([]string, error)) (out []string, err error) {
	a, err := one()
	if err != nil || len(a) == 0 {
		return nil, err
	}
	b, err := other()
	files, dirs := map[string]bool{}, map[string]bool{}
	for _, f := range b {
		files[f] = true
		for d := range above(f) {
			dirs[d] = true
		}
	}
	for _, f := range a {
		hit := files[f] || dirs[f]
		for d := range above(f) {
			hit = hit || files[d]
		}
		if hit {
			out = append(out, f)
		}
	}
	return out, err
}

// above are the directories that a file is in.
func above(file string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for d := path.Dir(file); d != "." && d != "/" && yield(d); {
			d = path.Dir(d)
		}
	}
}
