package mirror

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// maxPacks is how many packs a repository of the work store may have before they
// are put together: each push and each save brings one.
const maxPacks = 50

// Tend puts the packs of each repository together where they have become many. It
// may run beside all else; one at a time.
func (w *Work) Tend(ctx context.Context) error {
	ids, err := w.stores()
	for _, id := range ids {
		s := w.storeAt(id)
		packs, e := s.packs()
		if e == nil && len(packs) > maxPacks {
			e = s.git(ctx, nil, io.Discard, "repack", "--geometric=2", "-d", "--quiet")
		}
		if e != nil {
			err = errors.Join(err, fmt.Errorf("work store of repository %d: %w", id, e))
		}
	}
	return err
}

func (s *store) packs() ([]string, error) {
	return filepath.Glob(filepath.Join(s.dir, "objects", "pack", "pack-*.pack"))
}

// compact removes the objects that no ref needs. What refs need and the lent
// generations have stays borrowed; nothing else is. The caller has the lock, so
// that no push or save is between its objects and its refs.
func (s *store) compact(ctx context.Context) error {
	old, err := s.packs()
	if err != nil || len(old) == 0 {
		return err
	}
	lenders, err := s.lenders()
	if err != nil {
		return err
	}
	var borrowed []string
	for _, dir := range lenders {
		lent, err := refs(ctx, dir, "refs/heads/", "refs/tags/")
		if err != nil {
			return err
		}
		borrowed = append(borrowed, idsOf(lent)...)
	}
	var list, name bytes.Buffer
	// A commit that was accepted may have ancestors that only the cache has.
	if err := s.git(ctx, revisions(nil, borrowed), &list, "rev-list", "--objects", "--missing=allow-any", "--all", "--stdin"); err != nil {
		return err
	}
	// Only what is here: not what is borrowed.
	pack := filepath.Join(s.dir, "objects", "pack", "pack")
	if err := s.git(ctx, &list, &name, "pack-objects", "--local", "--non-empty", "--missing=allow-any", "--quiet", pack); err != nil {
		return err
	}
	made := strings.TrimSpace(name.String())
	for _, p := range old {
		base := strings.TrimSuffix(p, ".pack")
		if made != "" && base == pack+"-"+made {
			continue
		}
		for _, ext := range []string{".idx", ".rev", ".bitmap", ".pack"} { // the index first: then it is no pack
			if e := os.Remove(base + ext); e != nil && !errors.Is(e, os.ErrNotExist) {
				err = errors.Join(err, e)
			}
		}
	}
	return err
}
