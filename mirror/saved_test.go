package mirror_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/mirror"
	"codeberg.org/devaipod/devaipod/mirror/gitproc/gitproctest"
)

// A snapshotWorld saves trees as a saver does.
type snapshotWorld struct {
	*savedWorld
	saved    *mirror.Saved
	previous string
	at       time.Time
}

func newSnapshotWorld(t *testing.T) *snapshotWorld {
	t.Helper()
	w := &snapshotWorld{savedWorld: newSavedWorld(t), at: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
	w.saved = mirror.OpenSaved(w.config.Dir, gitproctest.Launcher)
	git(t, w.own, "switch", "-q", "-c", "agent/3-fix")
	return w
}

func (w *snapshotWorld) work() *mirror.SavedWork { return w.saved.Work(7, 3, "") }

// snapshot saves the saver's clone as it is, its files uncommitted or not.
func (w *snapshotWorld) snapshot(t *testing.T) string {
	t.Helper()
	head := strings.TrimSpace(git(t, w.own, "rev-parse", "HEAD"))
	branch := strings.TrimSpace(git(t, w.own, "branch", "--show-current"))
	git(t, w.own, "add", "--all")
	tree := strings.TrimSpace(git(t, w.own, "write-tree"))
	git(t, w.own, "reset", "-q")
	return w.snapshotOf(t, tree, branch, head)
}

// snapshotOf saves a tree.
func (w *snapshotWorld) snapshotOf(t *testing.T, tree, branch, head string) string {
	t.Helper()
	w.at = w.at.Add(time.Minute)
	args := []string{"commit-tree", tree}
	said := map[string]any{"branch": branch, "head": head, "not_saved": []map[string]string{{"path": "node_modules", "why": "ignored"}}}
	if w.previous != "" {
		said["previous"] = w.previous
		args = append(args, "-p", w.previous)
	}
	if head != "" {
		args = append(args, "-p", head)
	}
	body, err := json.Marshal(said)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("git", args...)
	cmd.Dir = w.own
	cmd.Env = append(os.Environ(), fmt.Sprintf("GIT_COMMITTER_DATE=%d +0000", w.at.Unix()))
	cmd.Stdin = strings.NewReader("Saved at " + w.at.Format(time.RFC3339) + "\n\n" + string(body) + "\n")
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	w.previous = strings.TrimSpace(string(out))
	w.save(t, "+"+w.previous+":refs/saved/3/work", "+refs/heads/*:refs/saved/3/heads/*")
	return w.previous
}

func TestSnapshotsAreListed(t *testing.T) {
	w := newSnapshotWorld(t)
	if _, err := w.work().Newest(t.Context()); !errors.Is(err, mirror.ErrNothingSaved) {
		t.Errorf("of nothing: %v", err)
	}
	w.commitOf(t, "first")
	var want []string
	for i := range 3 {
		write(t, filepath.Join(w.own, "notes"), fmt.Sprint(i))
		want = append([]string{w.snapshot(t)}, want...)
	}
	list := func() (got []mirror.Snapshot) {
		t.Helper()
		if err := w.work().Snapshots(t.Context(), func(s mirror.Snapshot) bool { got = append(got, s); return true }); err != nil {
			t.Fatal(err)
		}
		return got
	}
	ids := func(all []mirror.Snapshot) (ids []string) {
		for _, s := range all {
			ids = append(ids, s.ID)
		}
		return ids
	}
	got := list()
	if !slices.Equal(ids(got), want) {
		t.Errorf("listed are %v, want %v", ids(got), want)
	}
	if s := got[0]; !s.At.Equal(w.at) || s.Branch != "agent/3-fix" || s.Head == "" || s.Kept || !bytes.Contains(s.Detail, []byte("node_modules")) {
		t.Errorf("the newest is %+v", s)
	}
	// A saver that knows nothing of the one before begins anew: those stay.
	w.previous = ""
	again := w.snapshot(t)
	got = list()
	if !slices.Equal(ids(got), append([]string{again}, want...)) || got[0].Kept || !got[1].Kept {
		t.Errorf("listed are %+v", got)
	}
	issues, err := w.saved.Issues(t.Context(), 7)
	if err != nil || !slices.Equal(issues, []int64{3}) {
		t.Errorf("issues are %v, %v", issues, err)
	}
	if used, err := w.work().Used(); err != nil || used == 0 {
		t.Errorf("used are %d bytes, %v", used, err)
	}
}

// By the name that it has, and by those that it had, without the forge.
func TestAStoreIsFoundByName(t *testing.T) {
	w := newSnapshotWorld(t)
	w.commitOf(t, "first")
	w.snapshot(t)
	w.down.Store(true)
	for name, want := range map[string]int{"alice/hello": 1, "Alice/Hello": 1, "alice/welcome": 0, "": 0} {
		if ids, err := w.saved.Named(name); err != nil || len(ids) != want || want > 0 && ids[0] != 7 {
			t.Errorf("of %q there is %v, %v", name, ids, err)
		}
	}
	w.down.Store(false)
	if err := os.Rename(w.bare, filepath.Join(filepath.Dir(w.bare), "welcome.git")); err != nil {
		t.Fatal(err)
	}
	w.put(t, "file", "text")
	if out, err := w.push(t); err != nil {
		t.Fatal(err, out)
	}
	for _, name := range []string{"alice/hello", "alice/welcome"} {
		if ids, err := w.saved.Named(name); err != nil || !slices.Equal(ids, []int64{7}) {
			t.Errorf("of %q there is %v, %v", name, ids, err)
		}
	}
	all, err := w.saved.Repositories()
	if err != nil || len(all) != 1 || !slices.Equal(all[0].Names, []string{"alice/hello", "alice/welcome"}) {
		t.Errorf("repositories are %v, %v", all, err)
	}
}

// Nothing but the file is needed, and it is all there.
func TestABundleCanBeClonedAlone(t *testing.T) {
	w := newSnapshotWorld(t)
	head := w.commitOf(t, "first")
	write(t, filepath.Join(w.own, "notes"), "uncommitted\n")
	git(t, w.own, "branch", "saved/3/own", head) // names that would be in the way
	git(t, w.own, "branch", "other")
	newest := w.snapshot(t)
	file := filepath.Join(t.TempDir(), "work.bundle")
	if err := w.work().Bundle(t.Context(), file); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(file)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file is %v, %v", info.Mode(), err)
	}
	for _, dir := range []string{w.config.Dir, w.rules.Borrow, w.bare, w.own} {
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
	dir := filepath.Join(t.TempDir(), "clone")
	git(t, "/", "clone", "-q", file, dir)
	if got := strings.TrimSpace(git(t, dir, "rev-parse", "HEAD", "origin/agent/3-fix", "origin/other")); got != newest+"\n"+head+"\n"+head {
		t.Errorf("the clone has %s", got)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "notes")); err != nil || string(b) != "uncommitted\n" {
		t.Errorf("it has %q, %v", b, err)
	}
	git(t, dir, "fetch", "-q", "origin", "refs/saved/*:refs/saved/*")
	git(t, dir, "fsck", "--full")
	if out := git(t, dir, "for-each-ref", "--format=%(refname)", "refs/saved"); !strings.Contains(out, "refs/saved/3/heads/saved/3/own") {
		t.Errorf("it has %s", out)
	}
	if left, err := filepath.Glob(filepath.Join(filepath.Dir(file), ".*")); err != nil || len(left) > 0 {
		t.Errorf("left are %v, %v", left, err)
	}
}

func TestABundleThatCantBeWritten(t *testing.T) {
	w := newSnapshotWorld(t)
	w.commitOf(t, "first")
	w.snapshot(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "work.bundle")
	write(t, file, "mine")
	if err := w.work().Bundle(t.Context(), file); err == nil || !strings.Contains(err.Error(), "there already") {
		t.Errorf("onto another file: %v", err)
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "mine" {
		t.Errorf("it is %q now, %v", b, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := w.work().Bundle(ctx, filepath.Join(dir, "other")); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if err := w.saved.Work(7, 4, "").Bundle(t.Context(), filepath.Join(dir, "other")); !errors.Is(err, mirror.ErrNothingSaved) {
		t.Errorf("of nothing: %v", err)
	}
	// What it borrows from is gone.
	if err := os.RemoveAll(w.rules.Borrow); err != nil {
		t.Fatal(err)
	}
	if err := w.work().Bundle(t.Context(), filepath.Join(dir, "other")); err == nil {
		t.Error("a bundle without its history")
	}
	if left, err := filepath.Glob(filepath.Join(dir, "*")); err != nil || len(left) != 1 {
		t.Errorf("left are %v, %v", left, err)
	}
	if left, err := filepath.Glob(filepath.Join(dir, ".*")); err != nil || len(left) > 0 {
		t.Errorf("left are %v, %v", left, err)
	}
}

func TestWhatIsOnTheForgeAlready(t *testing.T) {
	w := newSnapshotWorld(t)
	pushed := func(want bool) {
		t.Helper()
		if got, err := w.work().Pushed(t.Context()); err != nil || got != want {
			t.Errorf("pushed is %v, %v; want %v", got, err, want)
		}
	}
	w.snapshot(t)
	pushed(true) // nothing but what it began from
	write(t, filepath.Join(w.own, "notes"), "uncommitted\n")
	w.snapshot(t)
	pushed(false)
	w.commitOf(t, "first")
	w.snapshot(t)
	pushed(false) // committed, and not pushed
	git(t, w.own, "push", "-q", w.url+"/work/alice/hello.git", "HEAD:refs/heads/agent/3-fix")
	pushed(true)
	git(t, w.own, "branch", "other")
	git(t, w.own, "commit", "-q", "--amend", "-m", "rewritten")
	w.snapshot(t)
	pushed(false)
}

func TestTheBaseOfADiff(t *testing.T) {
	w := newSnapshotWorld(t)
	base := strings.TrimSpace(git(t, w.own, "rev-parse", "HEAD"))
	w.commitOf(t, "first")
	write(t, filepath.Join(w.own, "notes"), "uncommitted\n")
	newest := w.snapshot(t)
	snap, err := w.work().Newest(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	from, err := w.work().Base(t.Context(), snap, "")
	if err != nil || from != base {
		t.Errorf("it begins at %s, %v; want %s", from, err, base)
	}
	var out bytes.Buffer
	if err := w.work().Diff(t.Context(), &out, from, newest, "--name-only"); err != nil || out.String() != "file\nnotes\n" {
		t.Errorf("changed are %q, %v", out.String(), err)
	}
	if from, err := w.work().Base(t.Context(), snap, "main"); err != nil || from != base {
		t.Errorf("of main: %s, %v", from, err)
	}
	if from, err := w.work().Base(t.Context(), snap, snap.Head); err != nil || from != snap.Head {
		t.Errorf("of a commit: %s, %v", from, err)
	}
	if _, err := w.work().Base(t.Context(), snap, "nowhere"); !errors.Is(err, mirror.ErrNoBase) {
		t.Errorf("of no branch: %v", err)
	}
	// The agent merged what has come to main since: that is none of its changes.
	w.trust(t, "theirs", "text\n")
	git(t, w.own, "fetch", "-q", "origin", "main")
	git(t, w.own, "merge", "-q", "-m", "merge", "FETCH_HEAD")
	newest = w.snapshot(t)
	if snap, err = w.work().Newest(t.Context()); err != nil {
		t.Fatal(err)
	}
	known := w.saved.Work(7, 3, w.bare)
	if from, err = known.Base(t.Context(), snap, ""); err != nil {
		t.Fatal(err)
	}
	out.Reset()
	if err := known.Diff(t.Context(), &out, from, newest, "--name-only"); err != nil || out.String() != "file\nnotes\n" {
		t.Errorf("changed are %q, %v", out.String(), err)
	}
}

func TestTheStatusOfAClone(t *testing.T) {
	w := newSnapshotWorld(t)
	status := func() mirror.GitStatus {
		t.Helper()
		w.snapshot(t)
		work := w.saved.Work(7, 3, w.bare)
		snap, err := work.Newest(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		st, err := work.Status(t.Context(), snap)
		if err != nil {
			t.Fatal(err)
		}
		return st
	}
	base := strings.TrimSpace(git(t, w.own, "rev-parse", "HEAD"))
	if st := status(); st.Branch != "agent/3-fix" || st.Head != base || st.Base != base || st.Ahead+st.Behind+len(st.Unpushed)+len(st.Changes) != 0 {
		t.Errorf("at the beginning: %+v", st)
	}
	w.commitOf(t, "first")
	git(t, w.own, "commit", "-q", "--allow-empty", "-m", "second")
	w.trust(t, "theirs", "text\n") // main goes on
	write(t, filepath.Join(w.own, "file"), "changed\n")
	write(t, filepath.Join(w.own, " new\n"), "untracked\n")
	st := status()
	if st.Base != base || st.Ahead != 2 || st.Behind != 1 || len(st.Unpushed) != 2 || st.Unpushed[0].ID != st.Head || st.Unpushed[0].Subject != "second" {
		t.Errorf("two commits: %+v", st)
	}
	if want := []mirror.Change{{Path: " new\n", How: "added"}, {Path: "file", How: "modified"}}; !slices.Equal(st.Changes, want) {
		t.Errorf("changed are %+v", st.Changes)
	}
	git(t, w.own, "push", "-q", w.url+"/work/alice/hello.git", "HEAD:refs/heads/agent/3-fix")
	if err := os.Remove(filepath.Join(w.own, "file")); err != nil {
		t.Fatal(err)
	}
	if st := status(); st.Ahead != 2 || len(st.Unpushed) != 0 || len(st.Changes) != 2 || st.Changes[1].How != "deleted" {
		t.Errorf("pushed: %+v", st)
	}
}
