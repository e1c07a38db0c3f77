package mirror

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"codeberg.org/devaipod/devaipod/mirror/gitproc"
)

// The work store has one bare repository for each of the forge's, by its number
// there: a renamed one stays the same. While a push is looked at, it sees the
// objects of the cache's copy too. Its refs are ours alone:
//
//	refs/accepted/heads/BRANCH  what was pushed last, and the forge has
//	refs/pending/heads/BRANCH   what was pushed while the forge was away
//	refs/saved/ISSUE/           what the agent has done, pushed or not
//	refs/lifted/ID              the commit for which a permission was used up
//	refs/notes/pushes           who pushed a commit (git-notes(1))
const (
	accepted = "refs/accepted/"
	pending  = "refs/pending/"
	lifted   = "refs/lifted/"
	pushes   = "refs/notes/pushes"
)

// A store is one repository of the work store.
type store struct {
	dir    string // bare
	known  string // the cache's copy of the forge's repository, bare
	box    gitproc.Box
	format string // of its objects' names: "sha1"

	mu *sync.Mutex // held while its refs are read and then written
}

// storeAt is the repository, whether it is there or not.
func (w *Work) storeAt(id int64) *store {
	mu, _ := w.locks.LoadOrStore(id, new(sync.Mutex))
	return &store{dir: filepath.Join(w.dir, strconv.FormatInt(id, 10)+".git"), box: w.box, mu: mu.(*sync.Mutex)}
}

// openStore makes the repository unless it is there. A kill leaves none or a
// whole one.
func (w *Work) openStore(ctx context.Context, id int64, known, format string) (*store, error) {
	s := w.storeAt(id)
	s.known, s.format = known, format
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := os.Stat(s.dir); !errors.Is(err, fs.ErrNotExist) {
		return s, err
	}
	tmp := s.dir + ".new"
	if err := os.RemoveAll(tmp); err != nil {
		return nil, err
	}
	args := []string{"init", "--bare", "--quiet", "--template=", "--initial-branch=none", "--object-format=" + format, tmp}
	if err := (gitproc.Child{Args: args}).Run(ctx); err != nil {
		return nil, fmt.Errorf("making the work store of repository %d: %w", id, err)
	}
	return s, os.Rename(tmp, s.dir)
}

// child is git, boxed, on the repository's refs and on objects that were taken.
func (s *store) child(in io.Reader, out io.Writer, args ...string) gitproc.Child {
	box := s.box
	box.Read, box.Write = s.reads(), []string{s.dir}
	return gitproc.Child{Dir: s.dir, Box: &box, Stdin: in, Stdout: out, Args: args, Env: s.alternates()}
}

// reads are the directories with objects that it sees.
func (s *store) reads() []string {
	dirs, err := s.lenders()
	if err != nil {
		dirs = nil // and git says what it lacks
	}
	if s.known != "" {
		dirs = append(dirs, s.known)
	}
	return append(dirs, s.dir)
}

// alternates let git see the cache's objects (git(1), Environment Variables).
func (s *store) alternates(more ...string) []string {
	if s.known != "" {
		more = append(more, filepath.Join(s.known, "objects"))
	}
	return []string{"GIT_ALTERNATE_OBJECT_DIRECTORIES=" + strings.Join(more, ":")}
}

func (s *store) git(ctx context.Context, in io.Reader, out io.Writer, args ...string) error {
	return s.child(in, out, args...).Run(ctx)
}

// A ref as it is in a repository.
type ref struct{ id, name string }

// refs lists those below prefixes.
func refs(ctx context.Context, dir string, prefixes ...string) ([]ref, error) {
	var out bytes.Buffer
	c := gitproc.Child{Dir: dir, Stdout: &out, Args: append([]string{"for-each-ref", "--format=%(objectname) %(refname)", "--"}, prefixes...)}
	if err := c.Run(ctx); err != nil {
		return nil, err
	}
	var found []ref
	for line := range strings.Lines(out.String()) {
		id, name, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		found = append(found, ref{id, name})
	}
	return found, nil
}

// idsOf are the ids of refs.
func idsOf(found []ref) []string {
	var ids []string
	for _, r := range found {
		ids = append(ids, r.id)
	}
	return ids
}

// revisions are what git reads on standard input for what tips reach and others do
// not (git-rev-list(1), --stdin).
func revisions(tips, others []string) io.Reader {
	var text strings.Builder
	for _, id := range tips {
		text.WriteString(id + "\n")
	}
	for _, id := range others {
		text.WriteString("^" + id + "\n")
	}
	return strings.NewReader(text.String())
}

// facts are read off the cache's copy and our own refs. Trusted, so that they need
// no look, are the commits of the forge's branches and tags, but for other issues'
// agents', and what this agent has had accepted. A pull request's are not
// among them: anybody can open one.
func (s *store) facts(ctx context.Context, prefix string) (*facts, error) {
	found, err := refs(ctx, s.known, "refs/heads/", "refs/tags/")
	if err != nil {
		return nil, err
	}
	own, err := refs(ctx, s.dir, accepted+"heads/"+strings.TrimSuffix(prefix, "-")+"-*")
	if err != nil {
		return nil, err
	}
	out := &facts{}
	for _, r := range found {
		branch, isBranch := strings.CutPrefix(r.name, "refs/heads/")
		agents := isBranch && strings.HasPrefix(branch, agentPrefix)
		if agents {
			out.branches = append(out.branches, r)
		}
		if !agents || strings.HasPrefix(branch, prefix) {
			out.trusted = append(out.trusted, r.id)
		}
	}
	for _, r := range own {
		out.trusted = append(out.trusted, r.id)
		out.branches = append(out.branches, ref{r.id, "refs/" + strings.TrimPrefix(r.name, accepted)})
	}
	slices.Sort(out.trusted)
	out.trusted = slices.Compact(out.trusted)
	return out, nil
}

// alike finds branches that another one differs from in nothing that every file
// system sees.
func (f *facts) alike(list *commandList, add func(violation)) {
	for _, c := range list.commands {
		for _, r := range f.branches {
			if r.name != c.ref && fold(r.name) == fold(c.ref) {
				add(violation{rule: "branch name", path: strings.TrimPrefix(c.ref, "refs/heads/"), why: fmt.Sprintf("%s is there too, and some file systems take the two for one", r.name), next: "push to a branch with another name"})
			}
		}
	}
}

// agentPrefix is what all agents' branches begin with.
const agentPrefix = "agent/"

// A quarantine holds the objects of one push until it is taken.
type quarantine struct {
	*store
	path string
}

func (s *store) quarantine() (*quarantine, error) {
	dir, err := os.MkdirTemp(s.dir, "incoming-*")
	if err != nil {
		return nil, fmt.Errorf("making room for a push: %w", err)
	}
	q := &quarantine{store: s, path: dir}
	return q, os.Mkdir(filepath.Join(dir, "pack"), 0o700)
}

func (q *quarantine) close() error { return os.RemoveAll(q.path) }

// git runs a child, boxed, that sees the push's objects.
func (q *quarantine) git(ctx context.Context, in io.Reader, out io.Writer, args ...string) error {
	c := q.child(in, out, args...)
	c.Box.Read, c.Box.Write = q.reads(), []string{q.path}
	c.Env = append(q.alternates(filepath.Join(q.dir, "objects")), "GIT_OBJECT_DIRECTORY="+q.path)
	return c.Run(ctx)
}

// keep moves the push's objects to where refs can need them, and makes sure of
// it.
func (q *quarantine) keep() error {
	files, err := filepath.Glob(filepath.Join(q.path, "pack", "pack-*"))
	if err != nil {
		return err
	}
	to := filepath.Join(q.dir, "objects", "pack")
	if err := os.MkdirAll(to, 0o700); err != nil {
		return err
	}
	// A pack counts once its index is there.
	for _, index := range []bool{false, true} {
		for _, f := range files {
			if strings.HasSuffix(f, ".idx") != index {
				continue
			}
			if err := os.Rename(f, filepath.Join(to, filepath.Base(f))); err != nil {
				return err
			}
		}
	}
	d, err := os.Open(to)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// A refUpdate is one change of our refs; an empty id removes it.
type refUpdate struct{ name, id string }

// update changes refs, all or none.
func (s *store) update(ctx context.Context, changes ...refUpdate) error {
	var in strings.Builder
	in.WriteString("start\n")
	for _, c := range changes {
		if c.id == "" {
			fmt.Fprintf(&in, "delete %s\n", c.name)
		} else {
			fmt.Fprintf(&in, "update %s %s\n", c.name, c.id)
		}
	}
	in.WriteString("prepare\ncommit\n")
	return s.git(ctx, strings.NewReader(in.String()), io.Discard, "update-ref", "--stdin")
}

// note records a push with its commit.
func (s *store) note(ctx context.Context, commit string, text []byte) error {
	c := s.child(bytes.NewReader(text), nil, "notes", "--ref="+pushes, "append", "-F", "-", commit)
	c.Env = append(c.Env, "GIT_AUTHOR_NAME=devaipod", "GIT_AUTHOR_EMAIL=devaipod@localhost", "GIT_COMMITTER_NAME=devaipod", "GIT_COMMITTER_EMAIL=devaipod@localhost")
	return c.Run(ctx)
}

// stores are the repositories that are there.
func (w *Work) stores() ([]int64, error) {
	dirs, err := filepath.Glob(filepath.Join(w.dir, "*.git"))
	var ids []int64
	for _, dir := range dirs {
		if id, err := strconv.ParseInt(strings.TrimSuffix(filepath.Base(dir), ".git"), 10, 64); err == nil {
			ids = append(ids, id)
		}
	}
	return ids, err
}

// sweep removes what a killed process left: quarantines, and git's own locks and
// temporary files.
func (w *Work) sweep() error {
	var err error
	for _, pattern := range []string{"*.git.new", "*.git/incoming-*", "*.git/packed-refs.lock", "*.git/objects/pack/tmp_*", "*.git/objects/pack/.tmp-*"} {
		files, e := filepath.Glob(filepath.Join(w.dir, pattern))
		err = errors.Join(err, e)
		for _, f := range files {
			err = errors.Join(err, os.RemoveAll(f))
		}
	}
	dirs, e := filepath.Glob(filepath.Join(w.dir, "*.git", "refs"))
	err = errors.Join(err, e)
	for _, dir := range dirs {
		err = errors.Join(err, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() && strings.HasSuffix(path, ".lock") {
				return os.Remove(path)
			}
			return err
		}))
	}
	return err
}

// box bounds what git does with a push.
func (l Limits) box(launcher []string) gitproc.Box {
	return gitproc.Box{
		Launcher: launcher, Memory: 2<<30 + 2*l.File, CPU: 5 * time.Minute, File: l.Push + l.Push/2 + 256<<20, Files: 1024,
	}
}

// objectFormat is that of a cached repository.
func objectFormat(ctx context.Context, dir string) (string, error) {
	var out bytes.Buffer
	err := gitproc.Child{Dir: dir, Args: []string{"rev-parse", "--show-object-format"}, Stdout: &out}.Run(ctx)
	return strings.TrimSpace(out.String()), err
}

// readPkts reads packets up to a flush.
func readPkts(r *bufio.Reader, line func([]byte)) error {
	for {
		l, flush, err := readPktLine(r)
		if err != nil || flush {
			return err
		}
		line(l)
	}
}
