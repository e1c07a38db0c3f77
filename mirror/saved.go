package mirror

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"codeberg.org/devaipod/devaipod/mirror/gitproc"
)

// Saved reads the work store for people: what savers have saved. No service and
// no forge is needed, and a service may run meanwhile. What was saved is hostile:
// git reads it in a box. A Saved is safe for concurrent use.
type Saved struct {
	dir string
	box gitproc.Box
}

// OpenSaved reads the work store in dir, whether it is there or not. The launcher
// is the command that puts git into a box ([gitproc.Enter]).
func OpenSaved(dir string, launcher []string) *Saved {
	return &Saved{dir: dir, box: gitproc.Box{Launcher: launcher, Memory: 8 << 30, CPU: 2 * time.Hour, File: 1 << 50, Files: 1024}}
}

// A SavedRepository is a repository of the forge that has a store.
type SavedRepository struct {
	ID    int64    // the forge's number
	Names []string // "owner/name" as it was called there, the newest last
}

// Repositories lists those that have a store.
func (s *Saved) Repositories() ([]SavedRepository, error) {
	ids, err := (&Work{dir: s.dir}).stores()
	if err != nil {
		return nil, err
	}
	var out []SavedRepository
	for _, id := range ids {
		names, err := (&store{dir: s.store(id)}).names()
		if err != nil {
			return nil, err
		}
		out = append(out, SavedRepository{ID: id, Names: names})
	}
	slices.SortFunc(out, func(a, b SavedRepository) int { return int(a.ID - b.ID) })
	return out, nil
}

// Named finds the repositories that have, or once had, a name on the forge, where
// names differ by more than case.
func (s *Saved) Named(name string) ([]int64, error) {
	all, err := s.Repositories()
	var ids []int64
	for _, r := range all {
		if slices.ContainsFunc(r.Names, func(n string) bool { return strings.EqualFold(n, name) }) {
			ids = append(ids, r.ID)
		}
	}
	return ids, err
}

// Issues lists the issues of a repository of whose agents something is saved.
func (s *Saved) Issues(ctx context.Context, repo int64) ([]int64, error) {
	if _, err := os.Stat(s.store(repo)); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	found, err := refs(ctx, s.store(repo), savedRefs)
	if err != nil {
		return nil, err
	}
	var issues []int64
	for _, r := range found {
		number, _, _ := strings.Cut(strings.TrimPrefix(r.name, savedRefs), "/")
		n, err := strconv.ParseInt(number, 10, 64)
		if err == nil && !slices.Contains(issues, n) {
			issues = append(issues, n)
		}
	}
	slices.Sort(issues)
	return issues, nil
}

// Size counts the stores and the bytes of their files.
func (s *Saved) Size() (count int, bytes int64, err error) {
	ids, err := (&Work{dir: s.dir}).stores()
	if err != nil {
		return 0, 0, err
	}
	for _, id := range ids {
		err := filepath.WalkDir(s.store(id), func(_ string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				var info fs.FileInfo
				if info, err = d.Info(); err == nil {
					bytes += info.Size()
				}
			}
			if errors.Is(err, fs.ErrNotExist) {
				return nil // gone meanwhile
			}
			return err
		})
		if err != nil {
			return 0, 0, err
		}
	}
	return len(ids), bytes, nil
}

func (s *Saved) store(repo int64) string {
	return filepath.Join(s.dir, strconv.FormatInt(repo, 10)+".git")
}

// SavedWork is what was saved of one issue's agent.
type SavedWork struct {
	*store
	repo, issue int64
}

// Work is what was saved of an issue's agent, if anything. The cache's copy of the
// repository, known, is of use where it is newer than what pods were lent; "" for
// none.
func (s *Saved) Work(repo, issue int64, known string) *SavedWork {
	return &SavedWork{&store{dir: s.store(repo), known: known, box: s.box, mu: new(sync.Mutex)}, repo, issue}
}

// Repository is the forge's number of the repository.
func (w *SavedWork) Repository() int64 { return w.repo }

// Dir is the store, a bare repository, for git to fetch from.
func (w *SavedWork) Dir() string { return w.dir }

// Prefix begins the refs: "refs/saved/3/".
func (w *SavedWork) Prefix() string { return SaveRules{Issue: w.issue}.prefix() }

// Used is how many bytes the quota counts.
func (w *SavedWork) Used() (int64, error) { return w.used(w.issue) }

// Branches are the tips of the agent's branches, by name. The names are an
// agent's choice, within what git lets refs be called.
func (w *SavedWork) Branches(ctx context.Context) (map[string]string, error) {
	// What is no commit can't be a branch.
	out, err := w.output(ctx, nil, "for-each-ref", "--format=%(objecttype) %(objectname) %(refname)", "--", w.Prefix()+"heads/")
	branches := map[string]string{}
	for line := range strings.Lines(out) {
		kind, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		id, name, _ := strings.Cut(rest, " ")
		if kind == "commit" {
			branches[strings.TrimPrefix(name, w.Prefix()+"heads/")] = id
		}
	}
	return branches, err
}

// A Snapshot is the agent's tree as it was at one time.
type Snapshot struct {
	ID     string    // of its commit
	At     time.Time // when it was saved, in whole seconds
	Branch string    // that the agent was on, "" for none
	Head   string    // the agent's own commit, "" for none
	// Kept: an earlier saver of the issue made it, whose volume is gone.
	Kept bool
	// Detail is all that the saver said, as JSON (podfile.Snapshot).
	Detail json.RawMessage

	previous string
}

// ErrNothingSaved is for an issue of whose agent nothing is saved.
var ErrNothingSaved = errors.New("nothing is saved")

// Newest is the last snapshot, or [ErrNothingSaved].
func (w *SavedWork) Newest(ctx context.Context) (newest Snapshot, err error) {
	err = w.Snapshots(ctx, func(s Snapshot) bool {
		newest = s
		return false
	})
	if err == nil && newest.ID == "" {
		err = ErrNothingSaved
	}
	return newest, err
}

// Snapshots tells of each snapshot, the newest first and those that are kept of
// earlier savers last, for as long as more says so.
func (w *SavedWork) Snapshots(ctx context.Context, more func(Snapshot) bool) error {
	if _, err := os.Stat(w.dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	tips, err := refs(ctx, w.dir, w.Prefix()+"work", w.Prefix()+"kept/")
	if err != nil {
		return err
	}
	if i := slices.IndexFunc(tips, func(r ref) bool { return r.name == w.Prefix()+"work" }); i > 0 {
		newest := tips[i]
		tips = slices.Insert(slices.Delete(tips, i, i+1), 0, newest)
	}
	seen := map[string]bool{}
	for _, tip := range tips {
		c := chain{next: tip.id, each: func(s Snapshot) bool {
			s.Kept = tip.name != w.Prefix()+"work"
			if seen[s.ID] {
				return true
			}
			seen[s.ID] = true
			return more(s)
		}}
		err := w.git(ctx, nil, &c, "log", "-z", "--first-parent", "--no-show-signature", "--encoding=UTF-8", "--format=%H%n%ct%n%B", tip.id)
		if c.stopped {
			return nil
		}
		if err != nil && !c.ended {
			return fmt.Errorf("reading the snapshots: %w", err)
		}
		if len(seen) == 0 {
			return fmt.Errorf("%s is no snapshot", tip.name)
		}
	}
	return nil
}

// A chain reads snapshots out of git log as it is written, from one to the one
// before, until it is no snapshot any more: what follows is the agent's own
// history, and can be long.
type chain struct {
	next string
	each func(Snapshot) bool

	buf            []byte
	ended, stopped bool // at the last one; by each
}

var errChainEnds = errors.New("the chain ends")

// maxMessage bounds the message of a snapshot, in bytes.
const maxMessage = 4 << 20

func (c *chain) Write(p []byte) (int, error) {
	c.buf = append(c.buf, p...)
	for !c.ended {
		entry, rest, whole := bytes.Cut(c.buf, []byte{0})
		if !whole {
			if len(c.buf) > maxMessage {
				c.ended = true
				break
			}
			return len(p), nil
		}
		c.buf = rest
		c.take(string(entry))
	}
	return 0, errChainEnds
}

func (c *chain) take(entry string) {
	s, ok := parseSnapshot(entry)
	if c.ended = !ok || s.ID != c.next; c.ended {
		return
	}
	c.next = s.previous
	c.stopped = !c.each(s)
	c.ended = c.stopped || c.next == ""
}

// parseSnapshot reads an entry of the log. The saver's word is in the message's
// body (podfile.Snapshot), of which this is what matters here.
func parseSnapshot(entry string) (s Snapshot, ok bool) {
	parts := strings.SplitN(entry, "\n", 5) // id, time, subject, empty, body
	if len(parts) < 5 || !strings.HasPrefix(parts[2], "Saved at ") {
		return s, false
	}
	at, err := strconv.ParseInt(parts[1], 10, 64)
	if err != nil {
		return s, false
	}
	var said struct{ Branch, Head, Previous string }
	s.ID, s.At, s.Detail = parts[0], time.Unix(at, 0), json.RawMessage(strings.TrimSpace(parts[4]))
	if json.Unmarshal(s.Detail, &said) != nil || said.Head != "" && !objectID.MatchString(said.Head) {
		return s, false
	}
	s.Branch, s.Head, s.previous = said.Branch, said.Head, said.Previous
	return s, true
}

var objectID = regexp.MustCompile(`^([0-9a-f]{40}|[0-9a-f]{64})$`)

// output is what git prints, without the space around it.
func (s *store) output(ctx context.Context, in io.Reader, args ...string) (string, error) {
	var out bytes.Buffer
	err := s.git(ctx, in, &out, args...)
	return strings.TrimSpace(out.String()), err
}

// onForge lists the commits of branches of the forge's, as far as is known here:
// those of the cache's copy, and of what pods were lent.
func (w *SavedWork) onForge(ctx context.Context, keep func(branch string) bool) (ids []string, err error) {
	dirs, err := w.lenders()
	if err != nil {
		return nil, err
	}
	if w.known != "" {
		dirs = append(dirs, w.known)
	}
	for _, dir := range dirs {
		found, err := refs(ctx, dir, "refs/heads/")
		if err != nil {
			return nil, err
		}
		for _, r := range found {
			if keep(strings.TrimPrefix(r.name, "refs/heads/")) {
				ids = append(ids, r.id)
			}
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids), nil
}

// Pushed tells whether the forge has all that a person would want back: the
// agent's branches, and a tree without uncommitted changes. What can't be found
// out without the forge is false.
func (w *SavedWork) Pushed(ctx context.Context) (bool, error) {
	newest, err := w.Newest(ctx)
	if err != nil || newest.Head == "" {
		return false, err
	}
	trees, err := w.output(ctx, nil, "rev-parse", newest.ID+"^{tree}", newest.Head+"^{tree}")
	if err != nil {
		return false, err
	}
	if is, was, _ := strings.Cut(trees, "\n"); is != was {
		return false, nil
	}
	have, err := w.everPushed(ctx)
	if err != nil {
		return false, err
	}
	saved, err := refs(ctx, w.dir, w.Prefix())
	if err != nil {
		return false, err
	}
	tips := []string{newest.Head}
	for _, r := range saved {
		if r.name != w.Prefix()+"work" {
			tips = append(tips, r.id)
		}
	}
	missing, err := w.output(ctx, revisions(tips, have), "rev-list", "--max-count=1", "--stdin")
	return missing == "", err
}

// everPushed lists commits that the forge has: of its branches, and of pushes that it
// took.
func (w *SavedWork) everPushed(ctx context.Context) ([]string, error) {
	have, err := w.onForge(ctx, func(string) bool { return true })
	if err != nil {
		return nil, err
	}
	taken, err := refs(ctx, w.dir, accepted+"heads/")
	for _, r := range taken {
		have = append(have, r.id)
	}
	return have, err
}
