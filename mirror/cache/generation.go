package cache

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"

	"codeberg.org/devaipod/devaipod/mirror/gitproc"
)

// A generation is what a repository held at one moment, for pods' clones to
// borrow from (gitrepository-layout(5), objects/info/alternates). It is a bare
// repository of its own:
//
//	lent/BORROWER/NAME-GENERATION/
//	    objects/              hard links to the cache's own files
//	    packed-refs, HEAD     by which git finds out what need not be fetched
//	    refs/                 empty
//
// NAME is the directory of the cached repository, GENERATION that of its [State]
// then: as long as the upstream's refs are the same, all pods have the same one.
// Nothing in it is ever changed. The cache may repack, prune, evict or fetch
// anew: its files are gone from the disk only when their last name is. It is
// made as NAME-GENERATION.new and removed as NAME-GENERATION.gone, so that a
// kill leaves it whole or not at all; [Cache.Keep] removes what else is left.
// Who may read it, by its modes, is everybody; what leads there is for its owner
// alone, so that nobody gets there but whom it is mounted for.

// lent is where generations are, those of this cache's borrower.
func (c *Cache) lent() string { return filepath.Join(c.cfg.Dir, "lent", c.cfg.Borrower) }

// Lend brings a repository up to date and returns a directory with a bare
// repository that holds all of its objects and refs, made of hard links: clones
// borrow from it, by git clone --reference. Its name is that of a generation: two
// calls between which nothing changed return the same one. It stays until done
// has been called, and after that for as long as [Cache.Keep] is told that it is
// in use.
//
// Only repositories of hosts that tell an identity are lent ([Host.Identity]),
// and only under the one that they have: an [IdentityError] tells that another
// one has taken the name. It and [ErrUnlendable] are for good; others may pass.
func (c *Cache) Lend(ctx context.Context, addr Address, identity string) (dir string, done func(), err error) {
	if _, err := c.upstream(addr); err != nil {
		return "", nil, err
	}
	for {
		if _, err := c.repo(addr).fresh(ctx, access{ours: true}, 0); err != nil {
			return "", nil, fmt.Errorf("lending %s: %w", addr, err)
		}
		dir, done, err := c.repo(addr).lend(ctx, identity)
		if errors.Is(err, ErrNotHere) {
			continue // it was removed since
		}
		if err != nil {
			return "", nil, fmt.Errorf("lending %s: %w", addr, err)
		}
		return dir, done, nil
	}
}

// An IdentityError tells that another repository has the name of the one that was
// asked for.
type IdentityError struct{ Want, Have string }

func (e *IdentityError) Error() string {
	if e.Have == "" {
		return fmt.Sprintf("nobody can tell whether it is still repository %s", e.Want)
	}
	return fmt.Sprintf("it is repository %s now, not %s, which had its name before", e.Have, e.Want)
}

func (r *repo) lend(ctx context.Context, identity string) (dir string, done func(), err error) {
	lock, err := r.acquire(ctx)
	if err != nil {
		return "", nil, err
	}
	defer lock.Close()
	st, ok, err := r.load()
	if err != nil {
		return "", nil, err
	}
	if !ok {
		return "", nil, ErrNotHere
	}
	if st.Identity != identity || identity == "" {
		return "", nil, &IdentityError{Want: identity, Have: st.Identity}
	}
	if err := r.touch("used"); err != nil {
		return "", nil, err
	}
	if _, err := os.Stat(filepath.Join(r.git(), "shallow")); !errors.Is(err, fs.ErrNotExist) {
		return "", nil, errors.Join(fmt.Errorf("%w: its upstream has only a part of its history (shallow)", ErrUnlendable), err)
	}
	name := r.addr.dir() + "-" + st.Generation
	dir, done = filepath.Join(r.c.lent(), name), r.c.loans.hold(name)
	if err := r.makeGeneration(ctx, dir); err != nil {
		done()
		return "", nil, linkError(dir, err)
	}
	return dir, done, nil
}

// ErrUnlendable is what Lend ends with where trying again is of no use: the file
// system has no hard links to give, or git borrows nothing from the repository.
var ErrUnlendable = errors.New("it can't be lent")

// linkError tells that from other errors.
func linkError(dir string, err error) error {
	for _, none := range []error{syscall.EPERM, syscall.EXDEV, syscall.EMLINK, syscall.EOPNOTSUPP} {
		if errors.Is(err, none) {
			return fmt.Errorf("%w: there are no hard links between the cache and %s; keep mirror.dir on one file system that has them (%w)", ErrUnlendable, filepath.Dir(dir), err)
		}
	}
	return err
}

// makeGeneration makes it unless it is there. The caller has the repository's
// lock.
func (r *repo) makeGeneration(ctx context.Context, dir string) error {
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return err
	}
	made := dir + ".new"
	if err := os.RemoveAll(made); err != nil { // a killed process left it
		return err
	}
	err := r.fillGeneration(ctx, made)
	if err == nil {
		err = os.Rename(made, dir)
	}
	if err != nil {
		return errors.Join(err, os.RemoveAll(made))
	}
	return syncDir(filepath.Dir(dir))
}

func (r *repo) fillGeneration(ctx context.Context, dir string) error {
	for _, d := range []string{dir, filepath.Join(dir, "refs")} {
		if err := openDir(d); err != nil {
			return err
		}
	}
	if err := linkObjects(filepath.Join(r.git(), "objects"), filepath.Join(dir, "objects")); err != nil {
		return err
	}
	head, err := os.ReadFile(filepath.Join(r.git(), "HEAD"))
	if err != nil {
		return err
	}
	if err := writeOpen(filepath.Join(dir, "HEAD"), func(f *os.File) error { _, err := f.Write(head); return err }); err != nil {
		return err
	}
	return writeOpen(filepath.Join(dir, "packed-refs"), func(f *os.File) error {
		return gitproc.Child{Dir: r.git(), Args: []string{"for-each-ref", "--format=%(objectname) %(refname)"}, Stdout: f}.Run(ctx)
	})
}

// object is a file, below objects/, in which git keeps objects or finds them.
// Graphs and indexes over several packs are left out: they are for speed, and
// change in step with other files.
var object = regexp.MustCompile(`^([0-9a-f]{2}/[0-9a-f]{38,62}|pack/pack-[0-9a-f]+\.(pack|idx|rev))$`)

// linkObjects gives the files of an object directory second names in another.
func linkObjects(from, to string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		there := filepath.Join(to, name)
		if d.IsDir() {
			return openDir(there)
		}
		if !object.MatchString(name) {
			return nil
		}
		if err := os.Link(path, there); err != nil {
			return err
		}
		return os.Chmod(there, 0o444) // of both names; an index has what the umask left
	})
}

// openDir makes a directory that everybody may read, whatever the umask is.
func openDir(dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	return os.Chmod(dir, 0o755)
}

// writeOpen makes a file that everybody may read, and that outlives a loss of
// power.
func writeOpen(file string, write func(*os.File) error) error {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o444)
	if err != nil {
		return err
	}
	err = write(f)
	if err == nil {
		err = errors.Join(f.Chmod(0o444), f.Sync())
	}
	return errors.Join(err, f.Close())
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Keep removes the generations of this borrower that nobody has any more. The
// function tells which directories are in use, as Lend returned them; one that
// is lent while it is being asked stays as well. When it can't tell, nothing is
// removed.
func (c *Cache) Keep(inUse func() (map[string]bool, error)) error {
	c.loans.keeping.Lock()
	defer c.loans.keeping.Unlock()
	c.loans.watch()
	all, err := os.ReadDir(c.lent())
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	used, err := inUse()
	if err != nil {
		return fmt.Errorf("finding out what pods borrow: %w", err)
	}
	for _, d := range all {
		name := strings.TrimSuffix(strings.TrimSuffix(d.Name(), ".new"), ".gone")
		if !used[filepath.Join(c.lent(), d.Name())] {
			err = errors.Join(err, c.release(name, filepath.Join(c.lent(), d.Name())))
		}
	}
	return err
}

// ReleaseAll removes all generations of one borrower below a cache's directory:
// those of pods that are all gone.
func ReleaseAll(dir, borrower string) error {
	return os.RemoveAll(filepath.Join(dir, "lent", borrower))
}

// release removes what there is of a generation that nobody was lent since
// watch.
func (c *Cache) release(name, dir string) error {
	gone := filepath.Join(c.lent(), name+".gone")
	err := c.loans.unlent(name, func() error {
		if dir == gone {
			return nil
		}
		// A kill may have left one while another was made.
		if err := os.RemoveAll(gone); err != nil {
			return err
		}
		return os.Rename(dir, gone)
	})
	if errors.Is(err, errLent) {
		return nil
	}
	return errors.Join(err, os.RemoveAll(gone))
}

// loans are the generations that are being lent by this process: nothing on disk
// tells yet who has them.
type loans struct {
	keeping sync.Mutex // one Keep at a time

	mu    sync.Mutex
	held  map[string]int  // by name
	since map[string]bool // lent at some time since the last Keep began
}

func newLoans() *loans { return &loans{held: map[string]int{}, since: map[string]bool{}} }

func (l *loans) hold(name string) (done func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.held[name]++
	l.since[name] = true
	return sync.OnceFunc(func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.held[name]--; l.held[name] == 0 {
			delete(l.held, name)
		}
	})
}

// watch forgets what was lent and is no longer held: what it is used for can be
// known from now on.
func (l *loans) watch() {
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.since)
	for name := range l.held {
		l.since[name] = true
	}
}

// errLent keeps a generation from being removed.
var errLent = errors.New("it is being lent")

// unlent does something unless a generation was lent since watch; nobody is lent
// it meanwhile.
func (l *loans) unlent(name string, do func() error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.since[name] {
		return errLent
	}
	return do()
}

// A fileOnDisk tells one file from another, whatever its names are.
type fileOnDisk struct{ device, inode uint64 }

func idOf(info fs.FileInfo) fileOnDisk {
	sys, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return fileOnDisk{}
	}
	return fileOnDisk{device: uint64(sys.Dev), inode: sys.Ino} //nolint:unconvert // Dev's type differs by machine
}

// lentFiles are the files of all generations, of all who borrow, with their
// sizes in bytes.
func (c *Cache) lentFiles() (map[fileOnDisk]int64, error) {
	files := map[fileOnDisk]int64{}
	err := eachFile(filepath.Join(c.cfg.Dir, "lent"), func(id fileOnDisk, size int64) { files[id] = size })
	return files, err
}

// Lent counts the generations that are here, of all who borrow, and the bytes
// that they alone still hold: what the cache has too is told by [Cache.List].
func (c *Cache) Lent() (count int, size int64, err error) {
	dirs, err := filepath.Glob(filepath.Join(c.cfg.Dir, "lent", "*", "*"))
	if err != nil {
		return 0, 0, err
	}
	files, err := c.lentFiles()
	if err != nil {
		return 0, 0, err
	}
	err = eachFile(filepath.Join(c.cfg.Dir, "repos"), func(id fileOnDisk, _ int64) { delete(files, id) })
	for _, n := range files {
		size += n
	}
	return len(dirs), size, err
}
