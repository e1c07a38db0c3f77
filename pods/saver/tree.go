package saver

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"codeberg.org/devaipod/devaipod/pods/podfile"
)

const (
	maxDepth = 256     // directories in each other; each costs an open file
	maxPath  = 4 << 10 // bytes
	weighAt  = 10_000  // entries of an ignored directory that are counted
)

const butTracked = "but for the files that git tracks"

// A dir is what we know of one directory of the agent's tree.
type dir struct {
	name   string
	parent *dir
	depth  int
	wd     int32  // its watch, 0 for none
	ino    uint64 // by which one that was replaced is known
	// tracked: it is ignored, but files in it are in the agent's index.
	tracked bool
	ignore  string // the .gitignore's text
	rules   []rule
	files   map[string]record
	dirs    map[string]*dir
	left    map[string]podfile.NotSaved // entries that are not saved
}

func newDir(parent *dir, name string) *dir {
	d := &dir{name: name, parent: parent, files: map[string]record{}, dirs: map[string]*dir{}, left: map[string]podfile.NotSaved{}}
	if parent != nil {
		d.depth = parent.depth + 1
	}
	return d
}

// path of an entry, from the root.
func (d *dir) path(name string) string {
	for ; d.parent != nil; d = d.parent {
		name = d.name + "/" + name
	}
	return name
}

func (d *dir) steps() []string {
	var out []string
	for ; d.parent != nil; d = d.parent {
		out = append(out, d.name)
	}
	slices.Reverse(out)
	return out
}

// under tells whether d is still part of root's tree.
func (d *dir) under(root *dir) bool {
	for ; d.parent != nil; d = d.parent {
		if d.parent.dirs[d.name] != d {
			return false
		}
	}
	return d == root
}

// A record tells what a file was when it was saved.
type record struct {
	Mode         string // as git writes it
	Size         int64
	MTime, CTime int64 // nanoseconds
	Ino          uint64
	ID           string
	// Young: it was saved so soon after its last change that another could have
	// the same times.
	Young bool
}

// racy is how coarse a file system's clock may be.
const racy = time.Second

func (r record) sameAs(st *unix.Stat_t, mode string) bool {
	return r.ID != "" && !r.Young && r.Mode == mode && r.Size == st.Size && r.Ino == st.Ino && r.MTime == st.Mtim.Nano() && r.CTime == st.Ctim.Nano()
}

// A tree follows the agent's working tree and says what has changed in it.
type tree struct {
	workspace string // its parent directory
	name      string // its name there
	maxFile   int64
	room      func() int64 // bytes that may still be written
	watch     *watcher     // nil: every round looks at everything
	byWD      map[int32]*dir
	write     func(size int64, from io.Reader) (id string, err error)

	root    *dir
	known   map[string]record // of a run before, until everything was looked at
	tracked []string          // sorted: what the agent's index has
	// changed has entries to put in ("" takes out), by path, since the last flush.
	changed map[string]record
	// again are files that changed while they were read.
	again map[*dir]map[string]bool
	stale bool  // everything shall be looked at
	fail  error // of write: nothing more is read
}

// reset forgets everything but what is known of files.
func (t *tree) reset() {
	if t.root != nil {
		t.unwatch(t.root)
	}
	t.root, t.byWD, t.changed, t.again, t.fail = nil, map[int32]*dir{}, map[string]record{}, map[*dir]map[string]bool{}, nil
}

// errNoTree is returned when there is no working tree.
var errNoTree = errors.New("there is no working tree")

// all looks at every entry of the tree.
func (t *tree) all() error {
	fd, err := openPath(t.workspace, t.name)
	if err != nil {
		t.dropRoot()
		return fmt.Errorf("%w: %s: %s", errNoTree, t.name, reason(err))
	}
	defer closeFD(fd)
	if t.root == nil {
		t.root = newDir(nil, "")
	}
	t.again = map[*dir]map[string]bool{}
	t.scan(t.root, fd, true)
	if t.fail == nil {
		t.known = nil
	}
	return t.fail
}

// dropRoot keeps what was saved of a tree that is gone as it is.
func (t *tree) dropRoot() {
	if t.root != nil && t.known == nil {
		t.known = t.records()
	}
	if t.root != nil {
		t.unwatch(t.root)
		t.root = nil
	}
}

// these looks at named entries of directories.
func (t *tree) these(dirty map[*dir]map[string]bool) error {
	for d, entries := range t.again {
		for name := range entries {
			note(dirty, d, name)
		}
	}
	t.again = map[*dir]map[string]bool{}
	for d, entries := range dirty {
		if t.fail != nil || t.root == nil || !d.under(t.root) {
			continue
		}
		fd, err := openPath(t.workspace, append([]string{t.name}, d.steps()...)...)
		if err != nil {
			continue // its parent has an event too
		}
		t.look(d, fd, entries)
		closeFD(fd)
	}
	return t.fail
}

func note(dirty map[*dir]map[string]bool, d *dir, name string) {
	if dirty[d] == nil {
		dirty[d] = map[string]bool{}
	}
	dirty[d][name] = true
}

func (t *tree) look(d *dir, fd int, entries map[string]bool) {
	if entries[".gitignore"] || entries[""] {
		t.scan(d, fd, entries[""])
		return
	}
	if entries[".git"] && d.parent != nil { // it may be a nested repository now
		above, err := openPath(t.workspace, append([]string{t.name}, d.parent.steps()...)...)
		if err == nil {
			t.entry(d.parent, above, d.name, true, true)
			closeFD(above)
		}
		return
	}
	for name := range entries {
		t.entry(d, fd, name, true, false)
	}
}

// scan looks at all entries of a directory, with deep at those of directories
// in it that are known.
func (t *tree) scan(d *dir, fd int, deep bool) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err == nil {
		d.ino = st.Ino
	}
	t.addWatch(d, fd) // first: what comes while we read makes an event
	if t.readIgnore(d, fd) {
		deep = true
	}
	all, err := names(fd)
	if err != nil {
		return // gone; or not readable, which its parent's entry told
	}
	here := make(map[string]bool, len(all))
	for _, name := range all {
		here[name] = true
	}
	for _, gone := range [][]string{slices.Collect(maps.Keys(d.files)), slices.Collect(maps.Keys(d.dirs)), slices.Collect(maps.Keys(d.left))} {
		for _, name := range gone {
			if !here[name] {
				t.gone(d, name)
			}
		}
	}
	for _, name := range all {
		if t.fail != nil {
			return
		}
		t.entry(d, fd, name, false, deep)
	}
}

// readIgnore reads a directory's rules and tells whether they are other ones.
func (t *tree) readIgnore(d *dir, fd int) bool {
	b, err := readSmall(fd, ".gitignore", maxIgnoreFile)
	if err != nil {
		b = nil // none that counts
	}
	if string(b) == d.ignore {
		return false
	}
	d.ignore, d.rules = string(b), parseIgnore(string(b))
	return true
}

// entry looks at one entry. With force a file is read even if it looks the
// same; with deep a known directory is looked through.
func (t *tree) entry(d *dir, fd int, name string, force, deep bool) {
	st, err := stat(fd, name)
	if err != nil {
		t.gone(d, name)
		return
	}
	kind := st.Mode & unix.S_IFMT
	path := d.path(name)
	switch {
	case d.parent == nil && name == ".git":
	case refused(name, kind == unix.S_IFLNK) || len(path) > maxPath:
		t.leave(d, name, podfile.NotSaved{Why: podfile.WhyName, Size: st.Size})
	case kind == unix.S_IFDIR:
		// One that is named may be another one with the same number.
		t.directory(d, fd, name, &st, deep || force)
	case kind != unix.S_IFREG && kind != unix.S_IFLNK:
		t.leave(d, name, podfile.NotSaved{Why: podfile.WhySpecial})
	case (d.tracked || d.ignored(name, false)) && !t.isTracked(path):
		if d.tracked {
			t.gone(d, name) // the directory is on the list
			return
		}
		t.leave(d, name, podfile.NotSaved{Why: podfile.WhyIgnored, Size: st.Size})
	case kind == unix.S_IFLNK:
		t.link(d, fd, name, &st)
	default:
		t.file(d, fd, name, &st, force)
	}
}

// gone forgets an entry.
func (t *tree) gone(d *dir, name string) {
	delete(d.left, name)
	t.goneFile(d, name)
	t.goneDir(d, name)
}

func (t *tree) goneFile(d *dir, name string) {
	if _, ok := d.files[name]; ok {
		delete(d.files, name)
		t.changed[d.path(name)] = record{}
	}
}

func (t *tree) goneDir(d *dir, name string) {
	below, ok := d.dirs[name]
	if !ok {
		return
	}
	for file := range below.files {
		t.changed[below.path(file)] = record{}
	}
	for _, sub := range slices.Collect(maps.Keys(below.dirs)) {
		t.goneDir(below, sub)
	}
	delete(d.dirs, name)
	t.dropWatch(below)
}

// leave puts an entry on the list of what is not saved.
func (t *tree) leave(d *dir, name string, why podfile.NotSaved) {
	t.goneFile(d, name)
	t.goneDir(d, name)
	d.left[name] = why
}

func (t *tree) directory(d *dir, fd int, name string, st *unix.Stat_t, deep bool) {
	below, known := d.dirs[name]
	if known && below.ino == st.Ino && !deep {
		return
	}
	sub, err := unix.Openat(fd, name, openDir, 0)
	switch {
	case errors.Is(err, unix.ENOENT):
		t.gone(d, name)
		return
	case err != nil:
		t.leave(d, name, podfile.NotSaved{Why: podfile.WhyUnread, Detail: reason(err)})
		return
	}
	defer closeFD(sub)
	if d.depth+1 > maxDepth {
		t.leave(d, name, podfile.NotSaved{Why: podfile.WhyDeep})
		return
	}
	if nested(sub) {
		t.leave(d, name, podfile.NotSaved{Why: podfile.WhyNested})
		return
	}
	ignored := d.tracked || d.ignored(name, true)
	tracked := ignored && t.tracksUnder(d.path(name))
	if ignored && !tracked {
		t.leaveIgnored(d, sub, name)
		return
	}
	if !known {
		below = newDir(d, name)
	}
	t.goneFile(d, name)
	delete(d.left, name)
	if tracked && !d.tracked {
		d.left[name] = podfile.NotSaved{Why: podfile.WhyIgnored, Detail: butTracked}
	}
	fresh := !known || below.tracked != tracked || below.ino != st.Ino
	below.tracked = tracked
	d.dirs[name] = below
	t.scan(below, sub, deep || fresh)
}

// leaveIgnored lists an ignored directory. What it weighs is looked at once.
func (t *tree) leaveIgnored(d *dir, fd int, name string) {
	if d.tracked {
		t.gone(d, name)
		return
	}
	if had, ok := d.left[name]; ok && had.Why == podfile.WhyIgnored && had.Detail != butTracked {
		return
	}
	why := podfile.NotSaved{Why: podfile.WhyIgnored}
	var more bool
	if why.Size, more = weigh(fd, weighAt); more {
		why.Detail = "at least"
	}
	t.leave(d, name, why)
}

// nested tells whether a directory is a repository of its own. One whose .git
// is neither that of a repository nor of a linked tree is an ordinary one.
func nested(fd int) bool {
	st, err := stat(fd, ".git")
	if err != nil {
		return false
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		b, err := readSmall(fd, ".git", 8<<10)
		return err == nil && strings.HasPrefix(string(b), "gitdir: ")
	case unix.S_IFDIR:
		git, err := unix.Openat(fd, ".git", openDir, 0)
		if err != nil {
			return true
		}
		defer closeFD(git)
		_, err = stat(git, "HEAD")
		return err == nil
	}
	return false
}

func (t *tree) isTracked(path string) bool {
	_, found := slices.BinarySearch(t.tracked, path)
	return found
}

func (t *tree) tracksUnder(path string) bool {
	path += "/"
	i, _ := slices.BinarySearch(t.tracked, path)
	return i < len(t.tracked) && strings.HasPrefix(t.tracked[i], path)
}

// setTracked takes the names in the agent's index; what was ignored until now
// and is not any more is looked at in the next round.
func (t *tree) setTracked(paths []string) {
	slices.Sort(paths)
	t.tracked = paths
	t.visit(func(d *dir) {
		for name, why := range d.left {
			if path := d.path(name); why.Why == podfile.WhyIgnored && (t.isTracked(path) || t.tracksUnder(path)) {
				note(t.again, d, name)
			}
		}
	})
}

// visit calls f for each directory, parents first.
func (t *tree) visit(f func(*dir)) {
	var walk func(*dir)
	walk = func(d *dir) {
		f(d)
		for _, sub := range d.dirs {
			walk(sub)
		}
	}
	if t.root != nil {
		walk(t.root)
	}
}

// records of all files, by path.
func (t *tree) records() map[string]record {
	out := map[string]record{}
	t.visit(func(d *dir) {
		for name, r := range d.files {
			out[d.path(name)] = r
		}
	})
	return out
}

// leftOut lists what is not saved.
func (t *tree) leftOut() []podfile.NotSaved {
	var out []podfile.NotSaved
	t.visit(func(d *dir) {
		for name, why := range d.left {
			out = append(out, named(why, d.path(name)))
		}
	})
	for d, entries := range t.again {
		for name := range entries {
			if r, saved := d.files[name]; !saved || r.ID == "" {
				out = append(out, named(podfile.NotSaved{Why: podfile.WhyUnsettled}, d.path(name)))
			}
		}
	}
	return out
}
