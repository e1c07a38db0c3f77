package saver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A store is the saver's own repository, in its own volume. It has all objects
// of what was saved, so that nothing that the agent does to its repository
// takes them away again; only while commits are copied (see bring) does one
// child see the agent's objects.
type store struct {
	dir    string // the repository
	view   string // a folder of links into the agent's objects
	prefix string // of the refs: refs/saved/3/
	limit  time.Duration
	lock   *os.File
}

// openStore makes the repository or takes up what is there, after another
// saver on it has ended. A kill leaves locks and temporary files behind; they
// are removed.
func openStore(ctx context.Context, home, prefix string, limit time.Duration, borrow []string) (*store, error) {
	if err := os.MkdirAll(home, 0o700); err != nil {
		return nil, fmt.Errorf("making the saver's folder: %w", err)
	}
	lock, err := takeLock(ctx, filepath.Join(home, "lock"))
	if err != nil {
		return nil, err
	}
	s := &store{dir: filepath.Join(home, "git"), view: filepath.Join(home, "view"), prefix: prefix, limit: limit, lock: lock}
	if err := s.prepare(ctx, borrow); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return s, nil
}

func (s *store) prepare(ctx context.Context, borrow []string) error {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	if err := s.run(ctx, call{args: []string{"init", "--quiet", "--bare", "--template=", s.dir}}); err != nil {
		return fmt.Errorf("making the saver's repository: %w", err)
	}
	if err := s.clean(); err != nil {
		return fmt.Errorf("cleaning the saver's repository: %w", err)
	}
	var lines string
	for _, objects := range borrow {
		if info, err := os.Stat(objects); err == nil && info.IsDir() {
			lines += objects + "\n"
		}
	}
	if err := os.MkdirAll(s.path("objects/info"), 0o700); err != nil {
		return err
	}
	return os.WriteFile(s.path("objects/info/alternates"), []byte(lines), 0o600)
}

func (s *store) path(name string) string { return filepath.Join(s.dir, name) }

func (s *store) close() error { return s.lock.Close() }

// takeLock waits for the one that has it.
func takeLock(ctx context.Context, path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, errors.Join(fmt.Errorf("locking %s: %w", path, err), f.Close())
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("another saver works on %s: %w", filepath.Dir(path), context.Cause(ctx)), f.Close())
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// clean removes what killed children left. The lock is held.
func (s *store) clean() error {
	return filepath.WalkDir(s.dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := e.Name()
		if e.Type().IsRegular() && (strings.HasSuffix(name, ".lock") || strings.HasPrefix(name, "tmp_") || strings.HasPrefix(name, "fast_import_crash_")) {
			return os.Remove(path)
		}
		return nil
	})
}

// size is how many bytes the repository has.
func (s *store) size() (total int64) {
	// What vanishes meanwhile does not count.
	_ = filepath.WalkDir(s.path("objects"), func(_ string, e fs.DirEntry, err error) error {
		if err != nil {
			return nil //nolint:nilerr // see above
		}
		if info, err := e.Info(); err == nil {
			total += info.Size()
		}
		return nil
	})
	return total
}

// index takes over what has changed in the tree. Removals come first, so that
// a file can take a directory's place, and from the end, which is cheap.
func (s *store) index(ctx context.Context, changed map[string]record) error {
	if len(changed) == 0 {
		return nil
	}
	var out, in []string
	for path, r := range changed {
		if r.ID == "" {
			out = append(out, path)
		} else {
			in = append(in, path)
		}
	}
	slices.Sort(out)
	slices.Reverse(out)
	slices.Sort(in)
	var b strings.Builder
	for _, path := range out {
		fmt.Fprintf(&b, "0 %040d\t%s\x00", 0, path)
	}
	for _, path := range in {
		fmt.Fprintf(&b, "%s %s\t%s\x00", changed[path].Mode, changed[path].ID, path)
	}
	return s.run(ctx, call{args: []string{"update-index", "-z", "--index-info"}, stdin: strings.NewReader(b.String())})
}

// emptyIndex forgets the index: what is known of the tree says what is in it.
func (s *store) emptyIndex() error {
	if err := os.Remove(s.path("index")); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// writeTree makes a tree of the index.
func (s *store) writeTree(ctx context.Context) (string, error) {
	return s.output(ctx, call{args: []string{"write-tree"}})
}

// refs are the store's own, by full name.
func (s *store) refs(ctx context.Context) (map[string]string, error) {
	out, err := s.output(ctx, call{args: []string{"for-each-ref", "--format=%(objectname) %(refname)"}})
	if err != nil {
		return nil, err
	}
	refs := map[string]string{}
	for line := range strings.SplitSeq(out, "\n") {
		if id, name, ok := strings.Cut(line, " "); ok {
			refs[name] = id
		}
	}
	return refs, nil
}

// update sets refs, and removes those whose value is "".
func (s *store) update(ctx context.Context, refs map[string]string) error {
	if len(refs) == 0 {
		return nil
	}
	var b strings.Builder
	for name, id := range refs {
		if id == "" {
			fmt.Fprintf(&b, "delete %s\n", name)
		} else {
			fmt.Fprintf(&b, "update %s %s\n", name, id)
		}
	}
	return s.run(ctx, call{args: []string{"update-ref", "--stdin"}, stdin: strings.NewReader(b.String())})
}

// commit makes a commit.
func (s *store) commit(ctx context.Context, tree, message string, parents []string) (string, error) {
	args := []string{"commit-tree", tree}
	for _, p := range parents {
		args = append(args, "-p", p)
	}
	return s.output(ctx, call{args: args, stdin: strings.NewReader(message)})
}

// contains tells whether commit a is reachable from b.
func (s *store) contains(ctx context.Context, a, b string) bool {
	return a == b || s.run(ctx, call{args: []string{"merge-base", "--is-ancestor", a, b}}) == nil
}

// holds tells whether a commit is reachable from a ref.
func (s *store) holds(ctx context.Context, id string) bool {
	out, err := s.output(ctx, call{args: []string{"rev-list", "--max-count=1", id, "--not", "--all"}})
	return err == nil && out == ""
}

// upkeep packs what many rounds have left.
func (s *store) upkeep(ctx context.Context) error {
	packs, err := filepath.Glob(s.path("objects/pack/*.pack"))
	if err != nil {
		return err
	}
	loose, err := filepath.Glob(s.path("objects/[0-9a-f][0-9a-f]/*"))
	if err != nil {
		return err
	}
	if len(packs) < manyPacks && len(loose) < manyLoose {
		return nil
	}
	err = s.run(ctx, call{args: []string{"repack", "--geometric=2", "-d", "-l", "--quiet"}, limit: patience * s.limit})
	if err != nil {
		return fmt.Errorf("packing what was saved: %w", err)
	}
	return nil
}

const (
	manyPacks = 40
	manyLoose = 2000
)
