package cache

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"codeberg.org/devaipod/devaipod/mirror/gitproc"
)

// A repo is one repository of the cache. On disk it is a directory:
//
//	git/         the bare repository, ours alone to write
//	git.new/     one that is being made
//	git.part/    one that is being made in steps; git.part.json tells how far it is
//	state.json   what is known of it; without this there is no repository
//	lock         held (flock) by who changes it, in whatever process
//	used         its time of change is when a client last read
//	pushed       its time of change is when somebody last pushed through the cache
//	tended       what was repacked last
type repo struct {
	c    *Cache
	addr Address
	dir  string

	// suspect: git found it damaged while it answered.
	suspect atomic.Bool

	mu     sync.Mutex
	state  State // as read last
	read   fileID
	flight *flight // a refresh that is under way in this process
}

// State is what is known of a repository. It is written at once, after all that
// it tells of.
type State struct {
	Address  string `json:"address"`
	Upstream string `json:"upstream"` // URL, without credentials
	// Identity is what has the address, see [Host.Identity]; empty when that is not
	// known.
	Identity string `json:"identity,omitempty"`
	// Public: the upstream lets anybody read.
	Public bool `json:"public"`
	// Ours: it let in our own credentials.
	Ours bool `json:"ours"`
	// Checked is when the upstream last began to tell its refs: all that is here
	// is at least as new.
	Checked time.Time `json:"checked"`
	// Changed is when refs last changed here.
	Changed time.Time `json:"changed"`
	// Refs is a digest of what the upstream told.
	Refs string `json:"refs"`
	// Generation changes with each change of what clients are told.
	Generation string `json:"generation"`
	// Error is what the last question to the upstream ended with; empty once it
	// answered.
	Error string `json:"error,omitempty"`
}

// fileID tells one written state from another.
type fileID struct {
	inode uint64
	size  int64
	at    time.Time
}

func (r *repo) git() string             { return filepath.Join(r.dir, "git") }
func (r *repo) file(name string) string { return filepath.Join(r.dir, name) }

// load returns the state; ok is false when there is no repository yet. Another
// process may have written it since, so the file is looked at each time.
func (r *repo) load() (st State, ok bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	info, err := os.Stat(r.file("state.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return State{}, false, nil
	}
	if err != nil {
		return State{}, false, err
	}
	id := fileID{size: info.Size(), at: info.ModTime()}
	if sys, ok := info.Sys().(*syscall.Stat_t); ok {
		id.inode = sys.Ino
	}
	if id == r.read {
		return r.state, true, nil
	}
	b, err := os.ReadFile(r.file("state.json"))
	if err != nil {
		return State{}, false, err
	}
	if err := json.Unmarshal(b, &st); err != nil {
		return State{}, false, fmt.Errorf("%s: %w; remove the directory, and it is fetched again", r.file("state.json"), err)
	}
	r.state, r.read = st, id
	return st, true, nil
}

// save writes the state, so that a kill leaves the old or the new one.
func (r *repo) save(st State) error {
	b, err := json.MarshalIndent(st, "", "  ")
	if err != nil {
		return err
	}
	return r.replace("state.json", append(b, '\n'))
}

// replace writes a file at once: a kill leaves the old or the new one.
func (r *repo) replace(name string, text []byte) error {
	f, err := os.CreateTemp(r.dir, "state-*")
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), r.file(name))
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// acquire waits for the right to change the repository, and removes what a
// killed holder left. The file goes along to git's children, so that one that
// outlives its process still holds the lock.
func (r *repo) acquire(ctx context.Context) (lock *os.File, err error) {
	for wait := time.Millisecond; ; wait = min(2*wait, 200*time.Millisecond) {
		lock, err := r.tryLock()
		if err != nil {
			return nil, fmt.Errorf("locking %s: %w", r.dir, err)
		}
		if lock != nil {
			if err := r.sweep(); err != nil {
				return nil, errors.Join(err, lock.Close())
			}
			return lock, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for another process that changes %s: %w", r.addr, context.Cause(ctx))
		case <-time.After(wait):
		}
	}
}

// tryLock returns nil when somebody else has the lock.
func (r *repo) tryLock() (*os.File, error) {
	if err := os.MkdirAll(r.dir, 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(r.file("lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // the directory went meanwhile
	}
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, nil
		}
		return nil, err
	}
	// It may have been removed with its directory before we had it.
	mine, err := f.Stat()
	now, err2 := os.Stat(r.file("lock"))
	if err != nil || err2 != nil || !os.SameFile(mine, now) {
		f.Close()
		return nil, err
	}
	return f, nil
}

// discard removes a repository that nothing came of, or that is to go. The
// caller has the lock.
func (r *repo) discard() error {
	r.c.mu.Lock()
	if r.c.repos[r.addr] == r {
		delete(r.c.repos, r.addr)
	}
	r.c.mu.Unlock()
	// Under another name, at once: whoever makes it anew has a directory, and a
	// lock, of their own, and nothing of theirs is removed.
	gone := r.dir + discarded + rand.Text()
	if err := os.Rename(r.dir, gone); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	err := os.RemoveAll(gone)
	for range 10 {
		if !errors.Is(err, syscall.ENOTEMPTY) {
			break
		}
		// Somebody had found the file's directory under its old name and made one more.
		time.Sleep(10 * time.Millisecond)
		err = os.RemoveAll(gone)
	}
	return err
}

// discarded is in the name of a directory that is being removed, and in no
// address's ([Address.dir]).
const discarded = "~"

// sweepDiscarded removes what a killed process had begun to remove.
func (c *Cache) sweepDiscarded() error {
	dirs, err := filepath.Glob(filepath.Join(c.cfg.Dir, "repos", "*"+discarded+"*"))
	for _, dir := range dirs {
		err = errors.Join(err, os.RemoveAll(dir))
	}
	return err
}

// empty removes all that is here of the repository that had this address. The
// caller has the lock.
func (r *repo) empty() error {
	// The state first: without it, the rest is no repository.
	if err := remove(r.file("state.json")); err != nil {
		return err
	}
	return errors.Join(os.RemoveAll(r.git()), os.RemoveAll(r.file("lfs")), remove(r.file(tended)))
}

// sweep removes what only a killed holder of the lock can have left: git's own
// lock files and temporary packs, a repository half made.
func (r *repo) sweep() error {
	err := os.RemoveAll(r.file("git.new"))
	old, e := filepath.Glob(r.file("state-*"))
	err = errors.Join(err, e)
	for _, f := range old {
		err = errors.Join(err, os.Remove(f))
	}
	return errors.Join(err, sweepGit(r.git()), sweepGit(r.part()))
}

func sweepGit(dir string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		name := d.Name()
		switch {
		case d.IsDir() && len(name) == 2 && filepath.Base(filepath.Dir(path)) == "objects":
			return fs.SkipDir // loose objects: nothing of ours is made there
		case d.IsDir() && strings.HasPrefix(name, "tmp_objdir-"):
			return errors.Join(os.RemoveAll(path), fs.SkipDir)
		case !d.IsDir() && (strings.HasSuffix(name, ".lock") || strings.HasPrefix(name, "tmp_") || strings.HasPrefix(name, ".tmp-")):
			return os.Remove(path)
		}
		return nil
	})
}

// remove removes a file that may be gone.
func remove(file string) error {
	if err := os.Remove(file); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// touch notes in a file that something happens now.
func (r *repo) touch(name string) error {
	now := r.c.now()
	err := os.Chtimes(r.file(name), now, now)
	if errors.Is(err, fs.ErrNotExist) {
		if err = os.WriteFile(r.file(name), nil, 0o600); err == nil {
			err = os.Chtimes(r.file(name), now, now)
		}
	}
	return err
}

// pushed is when somebody last pushed through the cache: what was asked of the
// upstream before that counts no more.
func (r *repo) pushed() time.Time {
	info, err := os.Stat(r.file("pushed"))
	if err != nil {
		return time.Time{}
	}
	return info.ModTime()
}

func newGeneration() string { return rand.Text()[:16] }

// damage is what git says of a repository that is, and not of a bad request.
var damage = regexp.MustCompile(`corrupt|packfile|inflate|data stream error|unable to read|could not read|bad (tree|object) |unable to parse|pack has|index-pack|not a git repository`)

// doubt takes note when git's words sound like damage.
func (r *repo) doubt(err error) {
	var said *gitproc.Error
	if errors.As(err, &said) && damage.MatchString(said.Said) {
		r.suspect.Store(true)
	}
}

// sound reads the whole repository: each pack's sums, and that no object is
// missing.
func (r *repo) sound(ctx context.Context) bool {
	packs, err := filepath.Glob(filepath.Join(r.git(), "objects/pack/*.pack"))
	if err != nil {
		return false
	}
	for _, args := range [][]string{append([]string{"verify-pack", "--"}, packs...), {"rev-list", "--objects", "--all", "--quiet"}} {
		if len(args) == 2 {
			continue // no packs
		}
		if err := (gitproc.Child{Dir: r.git(), Args: args, Stdout: io.Discard}).Run(ctx); err != nil {
			return ctx.Err() != nil // not known then
		}
	}
	return true
}
