package saver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"codeberg.org/devaipod/devaipod/pods/podfile"
)

// retryBad is how soon commits that could not be read are tried again.
const retryBad = time.Minute

// round makes the store hold what the agent's tree and repository hold now, and
// has it pushed when that is news.
func (s *saver) round(ctx context.Context) error {
	dirty, everything := s.pending()
	s.log.Debug("round", "directories", len(dirty), "everything", everything)
	now := s.readGit(ctx)
	err := s.readTree(ctx, dirty, everything)
	gone := errors.Is(err, errNoTree)
	if err != nil && !gone {
		return err
	}
	if s.treeID == "" && gone && s.last.id == "" {
		return nil // there was never anything
	}
	if s.last.id == "" {
		if err := s.takeUp(ctx); err != nil {
			s.log.Warn("these snapshots begin anew; what an earlier saver of the issue has saved is kept beside", "err", err)
		}
	}
	good := s.readCommits(ctx, now)
	list := s.tree.leftOut()
	if gone {
		list = append(list, podfile.NotSaved{Path: ".", Why: podfile.WhyUnread, Detail: err.Error()})
	}
	list = append(list, s.beside()...)
	made, err := s.snapshot(ctx, good, append(list, s.commitTrouble(now)...))
	if err != nil {
		return err
	}
	if made {
		select {
		case s.wake <- struct{}{}:
		default:
		}
	}
	return nil
}

// pending is what the watcher has for this round.
func (s *saver) pending() (dirty map[*dir]map[string]bool, everything bool) {
	dirty = map[*dir]map[string]bool{}
	everything = s.tree.root == nil || s.tree.stale || s.watch == nil
	s.tree.stale = false
	if s.watch == nil {
		return dirty, everything
	}
	events, lost := s.watch.events()
	for e := range events {
		if d := s.tree.byWD[e.wd]; d != nil {
			note(dirty, d, e.name)
		}
		if e.wd == s.above && e.name == s.cfg.Clone {
			everything = true
		}
	}
	return dirty, everything || lost
}

// readTree takes what has changed in the tree into the store's index. What goes
// wrong makes it begin anew.
func (s *saver) readTree(ctx context.Context, dirty map[*dir]map[string]bool, everything bool) error {
	s.watchAbove()
	if s.written > s.cfg.Quota/2 { // packing may have made it less
		s.written = s.store.size()
	}
	if s.tree.root == nil {
		if err := s.store.emptyIndex(); err != nil {
			return err
		}
		s.treeID = ""
	}
	s.blobs = nil
	s.begin = func() (*blobs, error) { return s.store.startBlobs(ctx) }
	var err error
	if everything {
		err = s.tree.all()
	} else {
		err = s.tree.these(dirty)
	}
	if s.blobs != nil {
		s.written += s.blobs.size
		err = errors.Join(err, s.blobs.close())
	}
	if errors.Is(err, errNoTree) && s.blobs == nil {
		return err
	}
	if err == nil {
		err = s.store.index(ctx, s.tree.changed)
	}
	if err == nil && (len(s.tree.changed) > 0 || s.treeID == "") {
		s.treeID, err = s.store.writeTree(ctx)
	}
	if err != nil {
		s.forget(nil) // an object that should be there may not
		return fmt.Errorf("saving the tree: %w", err)
	}
	s.tree.changed = map[string]record{}
	return nil
}

// write puts a content into the store.
func (s *saver) write(size int64, from io.Reader) (string, error) {
	if s.blobs == nil {
		b, err := s.begin()
		if err != nil {
			return "", err
		}
		s.blobs = b
	}
	return s.blobs.add(size, from)
}

// watchAbove watches the clone's parent, where the clone can come and go.
func (s *saver) watchAbove() {
	if s.watch == nil {
		return
	}
	if fd, err := openPath(s.cfg.Workspace); err == nil {
		s.above, _ = s.watch.add(fd)
		closeFD(fd)
	}
}

// readGit reads which commits the agent's repository names. When it can't be
// read, those of before stand.
func (s *saver) readGit(ctx context.Context) tips {
	git, err := openPath(s.cfg.Workspace, s.cfg.Clone, ".git")
	if err != nil {
		s.trouble = fmt.Errorf(".git can't be read: %s", reason(err))
		return s.tips
	}
	defer closeFD(git)
	s.watchGit(git)
	now, err := readTips(git)
	if s.trouble = err; err != nil {
		return s.tips
	}
	if err := s.readIndex(ctx, git); err != nil {
		s.log.Warn("ignored files that git tracks are not told from others", "err", err)
	}
	return now
}

// watchGit watches what readTips reads.
func (s *saver) watchGit(git int) {
	if s.watch == nil || s.watch.lost() {
		return
	}
	left := maxRefs
	add := func(fd int) {
		s.watch.add(fd)
		left--
	}
	add(git)
	var walk func(fd, depth int)
	walk = func(fd, depth int) {
		add(fd)
		all, err := names(fd)
		if err != nil || depth > maxRefDepth || left < 0 {
			return
		}
		for _, name := range all {
			if sub, err := unix.Openat(fd, name, openDir, 0); err == nil {
				walk(sub, depth+1)
				closeFD(sub)
			}
		}
	}
	if refs, err := stepsInto(git, "refs"); err == nil {
		add(refs)
		closeFD(refs)
	}
	if heads, err := stepsInto(git, "refs", "heads"); err == nil {
		walk(heads, 0)
		closeFD(heads)
	}
}

// readIndex lists what the agent's index has, from a copy of it: git reads no
// index but one in our own folder. Without one, HEAD's files are tracked.
func (s *saver) readIndex(ctx context.Context, git int) error {
	st, err := stat(git, "index")
	seen := fmt.Sprint(err, st.Ino, st.Size, st.Mtim, st.Ctim)
	if seen == s.indexSeen {
		return nil
	}
	s.indexSeen = seen
	b, err := readSmall(git, "index", maxIndex)
	if err != nil {
		s.tree.setTracked(nil)
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		return fmt.Errorf("reading the agent's index: %s", reason(err))
	}
	path := filepath.Join(s.cfg.Home, "agent-index")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		return err
	}
	out, err := s.store.output(ctx, call{args: []string{"ls-files", "-z", "--cached"}, env: []string{"GIT_INDEX_FILE=" + path}})
	if err != nil {
		s.tree.setTracked(nil)
		return fmt.Errorf("reading the agent's index: %w", err)
	}
	s.tree.setTracked(strings.Split(strings.TrimSuffix(out, "\x00"), "\x00"))
	return nil
}

// readCommits copies the commits that are new and returns those of now that the
// store has.
func (s *saver) readCommits(ctx context.Context, now tips) tips {
	ids := now.ids()
	if !now.equal(s.tips) || len(s.bad) > 0 && time.Since(s.triedAt) > retryBad {
		s.bad = s.store.bring(ctx, ids, s.plain(), patience*s.cfg.GitTime)
		s.triedAt, s.tips = time.Now(), now
	}
	good := tips{branch: now.branch, head: now.head, refs: map[string]string{}}
	for name, id := range now.refs {
		if s.bad[id] == nil {
			good.refs[name] = id
		} else if old := s.last.refs[s.store.prefix+name]; old != "" {
			good.refs[name] = old
		}
	}
	if good.head == "" || s.bad[good.head] != nil {
		good.head = s.last.Head
	}
	return good
}

// plain tells why the agent's objects can't be read.
func (s *saver) plain() error {
	git, err := openPath(s.cfg.Workspace, s.cfg.Clone, ".git")
	if err != nil {
		return fmt.Errorf(".git can't be read: %s", reason(err))
	}
	defer closeFD(git)
	return plainObjects(git)
}

// commitTrouble lists the commits that are not saved.
func (s *saver) commitTrouble(now tips) []podfile.NotSaved {
	var out []podfile.NotSaved
	if s.trouble != nil {
		out = append(out, podfile.NotSaved{Path: ".git", Why: podfile.WhyCommits, Detail: s.trouble.Error()})
	}
	for name, id := range now.refs {
		if err := s.bad[id]; err != nil {
			out = append(out, named(podfile.NotSaved{Why: podfile.WhyCommits, Detail: err.Error()}, ".git/refs/"+strings.TrimSuffix(name, "/newest")))
		}
	}
	if err := s.bad[now.head]; err != nil {
		out = append(out, podfile.NotSaved{Path: ".git/HEAD", Why: podfile.WhyCommits, Detail: err.Error()})
	}
	return out
}

// beside lists what lies in the agent's volume outside of the clone.
func (s *saver) beside() []podfile.NotSaved {
	fd, err := openPath(s.cfg.Workspace)
	if err != nil {
		return []podfile.NotSaved{{Path: "..", Why: podfile.WhyUnread, Detail: reason(err)}}
	}
	defer closeFD(fd)
	all, err := names(fd)
	if err != nil {
		return []podfile.NotSaved{{Path: "..", Why: podfile.WhyUnread, Detail: reason(err)}}
	}
	var out []podfile.NotSaved
	for _, name := range all {
		if name != s.cfg.Clone && name != s.cfg.Clone+".new" { // a clone that is being made
			out = append(out, named(podfile.NotSaved{Why: podfile.WhyOutside}, "../"+name))
		}
	}
	return out
}
