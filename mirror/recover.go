package mirror

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"codeberg.org/devaipod/devaipod/mirror/gitproc"
)

// RecoveredRefs begins the refs that a recovered clone, or a person's, has of all
// that was saved: refs/devaipod/saved/3/work, below it as in the store.
const RecoveredRefs = "refs/devaipod/saved/"

// Bundle writes all that was saved of the issue's agent to a file that is not
// there yet, mode 0600, at once: a kill or a full disk leaves none (git-bundle(1)).
// It needs no other repository. A clone of it has the agent's branches, and
// saved/ISSUE, the newest snapshot, checked out.
func (w *SavedWork) Bundle(ctx context.Context, file string) (err error) {
	if _, err := os.Lstat(file); !errors.Is(err, fs.ErrNotExist) {
		return errors.Join(fmt.Errorf("%s is there already", file), err)
	}
	tmp, err := os.MkdirTemp(filepath.Dir(file), ".devaipod-bundle-*")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	view, err := w.viewOf(ctx, filepath.Join(tmp, "view.git"))
	if err != nil {
		return err
	}
	whole := filepath.Join(tmp, "bundle")
	f, err := os.OpenFile(whole, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	err = view.git(ctx, nil, f, "bundle", "create", "--quiet", "-", "HEAD", "--all")
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(whole, file); err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(file))
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// viewOf makes a repository that borrows all from the store, and shows it as a
// clone would want it: git clone takes branches alone.
func (w *SavedWork) viewOf(ctx context.Context, dir string) (*store, error) {
	format, err := objectFormat(ctx, w.dir)
	if err != nil {
		return nil, err
	}
	newest, err := w.Newest(ctx)
	if err != nil {
		return nil, err
	}
	saved, err := refs(ctx, w.dir, w.Prefix())
	if err != nil {
		return nil, err
	}
	name := fmt.Sprintf("saved/%d", w.issue)
	if err := (gitproc.Child{Args: []string{"init", "--quiet", "--bare", "--template=", "--initial-branch=" + name, "--object-format=" + format, dir}}).Run(ctx); err != nil {
		return nil, err
	}
	view := &store{dir: dir, box: w.box}
	if err := os.MkdirAll(filepath.Dir(view.alternatesFile()), 0o700); err != nil {
		return nil, err
	}
	lenders, err := w.lenders()
	if err != nil {
		return nil, err
	}
	var lines strings.Builder
	for _, lender := range append(lenders, w.dir) { // the store's own, so that the box knows them all
		fmt.Fprintln(&lines, filepath.Join(lender, "objects"))
	}
	if err := replaceFile(view.alternatesFile(), lines.String()); err != nil {
		return nil, err
	}
	branches, err := w.Branches(ctx)
	if err != nil {
		return nil, err
	}
	prefer(branches, name, newest.ID)
	changes := heads(branches)
	for _, r := range saved {
		changes = append(changes, refUpdate{r.name, r.id})
	}
	return view, view.update(ctx, changes...)
}

// prefer gives a branch a name, whatever else has it, or can't be beside it.
func prefer(branches map[string]string, name, id string) {
	maps.DeleteFunc(branches, func(other, _ string) bool {
		return strings.HasPrefix(other, name+"/") || strings.HasPrefix(name, other+"/")
	})
	branches[name] = id
}

// heads are branches as they are made in a clone. One whose name git's own
// commands don't take for a branch's stays where it was saved.
func heads(branches map[string]string) []refUpdate {
	var out []refUpdate
	for _, name := range slices.Sorted(maps.Keys(branches)) {
		if name != "HEAD" && name[0] != '-' && validRef("refs/heads/"+name) {
			out = append(out, refUpdate{"refs/heads/" + name, branches[name]})
		}
	}
	return out
}

// Recover makes a repository in a directory that is not there yet, at once: with
// the agent's branches and its newest stash, all that was saved below
// [RecoveredRefs], HEAD where the agent's was at the snapshot, and the snapshot's
// tree as work tree, byte by byte, so that what was not committed is not. Origin
// is its remote of that name; "" for none.
//
// It runs nothing and follows nothing that the agent chose: objects are checked as
// they come in (git-fsck(1)), attributes, filters, hooks and submodules have no
// effect, and git can write to the new directory alone.
func (w *SavedWork) Recover(ctx context.Context, snap Snapshot, dir, origin string) (err error) {
	if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		return errors.Join(fmt.Errorf("%s is there already", dir), err)
	}
	format, err := objectFormat(ctx, w.dir)
	if err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(filepath.Dir(dir), "."+filepath.Base(dir)+".new-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(tmp))
		}
	}()
	if err := (gitproc.Child{Args: []string{"init", "--quiet", "--template=", "--object-format=" + format, tmp}}).Run(ctx); err != nil {
		return err
	}
	r := &recovery{dir: tmp, git: filepath.Join(tmp, ".git"), box: w.box}
	if err := r.fetch(ctx, w); err != nil {
		return fmt.Errorf("copying what was saved: %w", err)
	}
	if err := r.name(ctx, w, snap); err != nil {
		return fmt.Errorf("making branches: %w", err)
	}
	if err := r.checkout(ctx, snap); err != nil {
		return fmt.Errorf("writing the files: %w", err)
	}
	if origin != "" {
		for _, kv := range [][2]string{{"remote.origin.url", origin}, {"remote.origin.fetch", "+refs/heads/*:refs/remotes/origin/*"}} {
			if err := (gitproc.Child{Dir: r.git, Args: []string{"config", kv[0], kv[1]}}).Run(ctx); err != nil {
				return err
			}
		}
	}
	return os.Rename(tmp, dir)
}

// A recovery is a new clone on its way.
type recovery struct {
	dir, git string
	box      gitproc.Box
}

// child is git, boxed, on the new clone.
func (r *recovery) child(args ...string) gitproc.Child {
	box := r.box
	box.Write = []string{r.dir}
	return gitproc.Child{
		Dir: r.git, Box: &box, Args: args,
		Env:    []string{"GIT_WORK_TREE=" + r.dir, "GIT_ATTR_NOSYSTEM=1"},
		Config: []string{"core.protectNTFS=true", "core.protectHFS=true", "core.autocrlf=false", "core.fsmonitor=false", "submodule.recurse=false"},
	}
}

// fetch brings all that was saved, checked.
func (r *recovery) fetch(ctx context.Context, w *SavedWork) error {
	c := r.child("fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--no-recurse-submodules", "--no-auto-maintenance",
		w.dir, fmt.Sprintf("+%s*:%s%d/*", w.Prefix(), RecoveredRefs, w.issue))
	c.Box.Read = w.reads()
	c.Config = append(c.Config, "protocol.file.allow=always")
	return c.Run(ctx)
}

// name makes the agent's branches, HEAD and the stash.
func (r *recovery) name(ctx context.Context, w *SavedWork, snap Snapshot) error {
	branches, err := w.Branches(ctx)
	if err != nil {
		return err
	}
	var own []refUpdate
	if snap.Branch != "" && snap.Head != "" {
		prefer(branches, snap.Branch, snap.Head) // as it was then
		own = heads(map[string]string{snap.Branch: snap.Head})
	}
	s := &store{dir: r.git, box: r.box}
	if err := s.update(ctx, heads(branches)...); err != nil {
		return err
	}
	args := []string{"symbolic-ref", "HEAD", fmt.Sprintf("refs/heads/saved/%d", w.issue)} // one without commits
	switch {
	case len(own) > 0:
		args = []string{"symbolic-ref", "HEAD", own[0].name}
	case snap.Head != "":
		args = []string{"update-ref", "--no-deref", "HEAD", snap.Head}
	}
	if err := r.child(args...).Run(ctx); err != nil {
		return err
	}
	stash, err := refs(ctx, w.dir, w.Prefix()+"stash/newest")
	if err != nil || len(stash) == 0 {
		return err
	}
	c := r.child("update-ref", "--create-reflog", "-m", "saved by devaipod", "refs/stash", stash[0].id)
	c.Env = append(c.Env, "GIT_COMMITTER_NAME=devaipod", "GIT_COMMITTER_EMAIL=devaipod@localhost")
	return c.Run(ctx)
}

// plainAttributes count before what the tree's own .gitattributes say
// (gitattributes(5)): files become what their blobs are.
const plainAttributes = "* -text -eol -ident -filter -working-tree-encoding\n"

// checkout writes the snapshot's files, and leaves the index at HEAD.
func (r *recovery) checkout(ctx context.Context, snap Snapshot) error {
	info := filepath.Join(r.git, "info")
	if err := os.MkdirAll(info, 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(info, "attributes"), []byte(plainAttributes), 0o600); err != nil {
		return err
	}
	index := []string{"read-tree", "--empty"}
	if snap.Head != "" {
		index = []string{"read-tree", snap.Head}
	}
	for _, args := range [][]string{
		{"read-tree", snap.ID}, {"checkout-index", "--all", "--quiet"}, index, {"update-index", "-q", "--refresh"},
	} {
		if err := r.child(args...).Run(ctx); err != nil {
			return err
		}
	}
	return os.Remove(filepath.Join(info, "attributes"))
}

// Links finds symbolic links below dir that lead out of it, or nowhere that can
// be told, up to a number of them.
func Links(dir string, most int) (out []string, err error) {
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && path == filepath.Join(dir, ".git") {
			return fs.SkipDir
		}
		if d.Type() != fs.ModeSymlink {
			return nil
		}
		to, err := os.Readlink(path)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		if !filepath.IsLocal(filepath.Join(filepath.Dir(rel), to)) || filepath.IsAbs(to) {
			if out = append(out, rel); len(out) == most {
				return fs.SkipAll
			}
		}
		return nil
	})
	return out, err
}
