package cache

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"codeberg.org/devaipod/devaipod/mirror/gitproc"
)

// When repositories are looked after.
const (
	tendEvery = time.Minute
	quiet     = 30 * time.Second    // without a reader, before a repository is repacked
	unused    = 10 * time.Minute    // without a reader, before it may be evicted
	whole     = 7 * 24 * time.Hour  // between two full repacks, which read every byte
	keep      = 14 * 24 * time.Hour // how long objects stay that no ref reaches
)

// Run looks after the repositories until ctx ends: it asks their upstreams every
// [Config.Interval], repacks what has changed and is at rest, and makes room when
// all together are larger than [Config.MaxSize].
func (c *Cache) Run(ctx context.Context) error {
	tick := time.NewTicker(tendEvery)
	defer tick.Stop()
	for {
		if err := c.Tend(ctx); err != nil && ctx.Err() == nil {
			c.cfg.Log.Warn("looking after the cache", "err", err)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// Tend is one round of [Cache.Run].
func (c *Cache) Tend(ctx context.Context) error {
	all, err := c.List()
	if err != nil {
		return err
	}
	for _, e := range all {
		if c.due(e) {
			if _, e := c.Sync(ctx, e.addr); e != nil {
				err = errors.Join(err, e)
			}
		}
		if c.now().Sub(e.Used) < quiet {
			continue
		}
		if e := c.repo(e.addr).tend(ctx); e != nil {
			err = errors.Join(err, e)
		}
		if ctx.Err() != nil {
			return err
		}
	}
	return errors.Join(err, c.sweepSteps(), c.sweepDiscarded(), c.evict(ctx))
}

// due tells whether a repository's upstream is to be asked again. Those that come
// due together are spread by a hash of their names.
func (c *Cache) due(e Entry) bool {
	if c.cfg.Interval == 0 {
		return false
	}
	h := fnv.New32a()
	h.Write([]byte(e.Address))
	spread := time.Duration(int64(c.cfg.Interval/5) * int64(h.Sum32()%1000) / 1000)
	return c.now().Sub(e.Checked) >= c.cfg.Interval-c.cfg.Interval/10+spread
}

// tended is what was done last, in a file beside the state; its time of change
// is when all was packed anew.
const tended = "tended"

// tend makes a repository quick to read: few packs, a bitmap for the largest
// clone, the commits' graph. It costs nothing where nothing has changed.
func (r *repo) tend(ctx context.Context) error {
	st, ok, err := r.load()
	if err == nil {
		err = r.sweepObjects()
	}
	if err != nil || !ok {
		return err
	}
	done, err := os.ReadFile(r.file(tended))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	last, err := os.Stat(r.file(tended))
	full := err != nil || r.c.now().Sub(last.ModTime()) > whole
	if string(done) == st.Generation && !full {
		return nil
	}
	lock, err := r.tryLock()
	if err != nil || lock == nil {
		return err // somebody changes it: another time
	}
	defer lock.Close()
	if st, ok, err = r.load(); err != nil || !ok {
		return err
	}
	repack := []string{"repack", "-d", "--quiet", "--geometric=2", "--write-midx", "--write-bitmap-index"}
	if full {
		repack = []string{"repack", "-a", "-d", "--quiet", "--cruft", "--cruft-expiration=" + r.c.now().Add(-keep).Format(time.RFC3339), "--write-midx", "--write-bitmap-index"}
	}
	for _, args := range [][]string{
		{"pack-refs", "--all", "--prune"}, repack, {"commit-graph", "write", "--reachable", "--split", "--no-progress"},
	} {
		if err := (gitproc.Child{Dir: r.git(), Args: args, Lock: lock}).Run(ctx); err != nil {
			r.doubt(err)
			return fmt.Errorf("%s: %w", r.addr, err)
		}
	}
	if err := os.WriteFile(r.file(tended), []byte(st.Generation), 0o600); err != nil {
		return err
	}
	at := r.c.now()
	if !full {
		at = last.ModTime()
	}
	return os.Chtimes(r.file(tended), at, at)
}

// sweepObjects removes LFS objects that a killed process did not get whole.
func (r *repo) sweepObjects() error {
	parts, err := filepath.Glob(r.file("lfs/*/tmp_*"))
	for _, part := range parts {
		if info, e := os.Stat(part); e == nil && r.c.now().Sub(info.ModTime()) > 24*time.Hour {
			err = errors.Join(err, os.Remove(part))
		}
	}
	return err
}

// An Entry is one repository, as [Cache.List] tells.
type Entry struct {
	State
	Size int64     `json:"size"` // bytes on disk
	Lent int64     `json:"lent"` // of these, how many stay when it is removed, since pods borrow them
	Used time.Time `json:"used"` // when a client last read

	addr Address
}

// List tells of all repositories that are here, by address.
func (c *Cache) List() ([]Entry, error) {
	dirs, err := os.ReadDir(filepath.Join(c.cfg.Dir, "repos"))
	if err != nil {
		return nil, err
	}
	lent, err := c.lentFiles()
	if err != nil {
		return nil, err
	}
	var all []Entry
	for _, d := range dirs {
		if strings.Contains(d.Name(), discarded) {
			continue
		}
		dir := filepath.Join(c.cfg.Dir, "repos", d.Name())
		st, ok, err := (&repo{dir: dir}).load()
		if err != nil {
			return nil, err
		}
		if !ok {
			continue
		}
		addr, err := ParseAddress(st.Address)
		if err != nil || addr.dir() != d.Name() {
			return nil, fmt.Errorf("%s: its state.json tells of %q; remove the directory", dir, clip(gitproc.Printable(st.Address)))
		}
		e := Entry{State: st, addr: addr, Used: st.Changed}
		if info, err := os.Stat(filepath.Join(dir, "used")); err == nil {
			e.Used = info.ModTime().UTC()
		}
		err = eachFile(dir, func(id fileOnDisk, size int64) {
			e.Size += size
			e.Lent += lent[id]
		})
		if err != nil {
			return nil, err
		}
		all = append(all, e)
	}
	slices.SortFunc(all, func(a, b Entry) int { return strings.Compare(a.Address, b.Address) })
	return all, nil
}

// Kept counts the answers that are kept for clients, of all processes on the
// directory, and their bytes.
func (c *Cache) Kept() (count int, size int64, err error) {
	files, err := filepath.Glob(filepath.Join(c.cfg.Dir, "answers", "*", "*", "*"))
	if err != nil {
		return 0, 0, err
	}
	for _, f := range files {
		if info, err := os.Stat(f); err == nil {
			count++
			size += info.Size()
		}
	}
	return count, size, nil
}

// eachFile tells of the files below dir and their sizes in bytes, as far as they
// stay.
func eachFile(dir string, tell func(id fileOnDisk, size int64)) error {
	return filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			var info fs.FileInfo
			if info, err = d.Info(); err == nil {
				tell(idOf(info), info.Size())
			}
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
}

// evict removes what was not read for the longest time until the rest fits; only
// what the upstream still has, just now, and nothing that is lent: most of it
// would stay on the disk.
func (c *Cache) evict(ctx context.Context) error {
	if c.cfg.MaxSize == 0 {
		return nil
	}
	all, err := c.List()
	if err != nil {
		return err
	}
	_, sum, err := c.Lent()
	if err != nil {
		return err
	}
	for _, e := range all {
		sum += e.Size
	}
	slices.SortFunc(all, func(a, b Entry) int { return cmp.Or(a.Used.Compare(b.Used), strings.Compare(a.Address, b.Address)) })
	for _, e := range all {
		if sum <= c.cfg.MaxSize || c.now().Sub(e.Used) < unused {
			break
		}
		if e.Lent > 0 {
			continue
		}
		if err := c.remove(ctx, e.addr, false); err != nil {
			c.cfg.Log.Warn("not evicted: the upstream may not have it any more", "repo", e.Address, "err", err)
			continue
		}
		c.count.evictions.Inc()
		c.cfg.Log.Info("evicted", "repo", e.Address, "bytes", e.Size, "used", e.Used)
		sum -= e.Size
	}
	return nil
}

// ErrNotHere is what [Cache.Remove] ends with when there is nothing to remove.
var ErrNotHere = errors.New("not in the cache")

// Remove takes a repository away. Without force, only when its upstream has it,
// just now.
func (c *Cache) Remove(ctx context.Context, addr Address, force bool) error {
	if _, ok, err := c.repo(addr).load(); err != nil {
		return err
	} else if !ok {
		return ErrNotHere
	}
	return c.remove(ctx, addr, force)
}

func (c *Cache) remove(ctx context.Context, addr Address, force bool) error {
	r := c.repo(addr)
	if !force {
		if _, err := r.fresh(ctx, access{ours: true}, 0); err != nil {
			return err
		}
	}
	lock, err := r.acquire(ctx)
	if err != nil {
		return err
	}
	defer lock.Close()
	return r.discard()
}

// Sync brings a repository here up to date, or here at all, with our own
// credentials where the upstream wants some.
func (c *Cache) Sync(ctx context.Context, addr Address) (State, error) {
	if _, err := c.upstream(addr); err != nil {
		return State{}, err
	}
	return c.repo(addr).fresh(ctx, access{ours: true}, 0)
}
