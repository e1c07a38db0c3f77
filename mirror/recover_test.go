package mirror_test

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"codeberg.org/devaipod/devaipod/mirror"
)

// recovered brings the newest snapshot, or another, into a new directory.
func (w *snapshotWorld) recovered(t *testing.T, id string) string {
	t.Helper()
	var snap mirror.Snapshot
	if err := w.work().Snapshots(t.Context(), func(s mirror.Snapshot) bool { snap = s; return id != "" && s.ID != id }); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "back")
	if err := w.work().Recover(t.Context(), snap, dir, "http://127.0.0.1:3000/alice/hello.git"); err != nil {
		t.Fatal(err)
	}
	return dir
}

// What the agent had committed is committed, and what not is not, whatever is
// left of the machine.
func TestRecoverIsAsItWas(t *testing.T) {
	w := newSnapshotWorld(t)
	write(t, filepath.Join(w.own, "stashed"), "text\n")
	git(t, w.own, "stash", "-q", "-u")
	w.save(t, "refs/stash:refs/saved/3/stash/newest")
	head := w.commitOf(t, "first")
	git(t, w.own, "branch", "other")
	write(t, filepath.Join(w.own, "file"), "changed\n")
	write(t, filepath.Join(w.own, "new"), "text\n")
	write(t, filepath.Join(w.own, "run"), "#!/bin/sh\n")
	if err := os.Chmod(filepath.Join(w.own, "run"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(w.own, "README")); err != nil {
		t.Fatal(err)
	}
	old := w.snapshot(t)
	want := git(t, w.own, "status", "--porcelain")
	w.commitOf(t, "second")
	w.snapshot(t)

	dir := w.recovered(t, old)
	if got := git(t, dir, "status", "--porcelain"); got != want || !strings.Contains(got, " D README") || !strings.Contains(got, "?? new") {
		t.Errorf("its status is\n%swant\n%s", got, want)
	}
	if got := git(t, dir, "rev-parse", "--abbrev-ref", "HEAD"); got != "agent/3-fix\n" {
		t.Errorf("it is on %s", got)
	}
	if got := git(t, dir, "rev-parse", "HEAD", "other"); got != head+"\n"+head+"\n" {
		t.Errorf("branches are at %s", got)
	}
	if info, err := os.Stat(filepath.Join(dir, "run")); err != nil || info.Mode()&0o100 == 0 {
		t.Errorf("run is %v, %v", info.Mode(), err)
	}
	if got := git(t, dir, "stash", "list"); !strings.Contains(got, "stash@{0}") {
		t.Errorf("stashes are %q", got)
	}
	git(t, dir, "fsck", "--full")
	if _, err := os.Stat(filepath.Join(dir, ".git/objects/info/alternates")); err == nil {
		t.Error("it needs the store")
	}
	if got := git(t, dir, "remote", "get-url", "origin"); got != "http://127.0.0.1:3000/alice/hello.git\n" {
		t.Errorf("origin is %s", got)
	}
	newest := w.recovered(t, "")
	if got := git(t, newest, "log", "-1", "--format=%s"); got != "second\n" {
		t.Errorf("the newest is at %s", got)
	}
}

func TestRecoverLeavesWhatIsThere(t *testing.T) {
	w := newSnapshotWorld(t)
	w.snapshot(t)
	snap, err := w.work().Newest(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := w.work().Recover(t.Context(), snap, dir, ""); err == nil || !strings.Contains(err.Error(), "there already") {
		t.Errorf("into a directory that is there: %v", err)
	}
	// What fails leaves nothing.
	if err := os.RemoveAll(w.rules.Borrow); err != nil {
		t.Fatal(err)
	}
	if err := w.work().Recover(t.Context(), snap, filepath.Join(dir, "back"), ""); err == nil {
		t.Error("without its history")
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left are %v, %v", left, err)
	}
}

// A branch may be called what git's own commands take for something else.
func TestRecoverOfStrangeBranches(t *testing.T) {
	w := newSnapshotWorld(t)
	head := w.commitOf(t, "first")
	blob := strings.TrimSpace(git(t, w.own, "hash-object", "-w", "file"))
	w.snapshot(t)
	w.save(t, head+":refs/saved/3/heads/-x", head+":refs/saved/3/heads/HEAD", head+":refs/saved/3/heads/\u202eevil", blob+":refs/saved/3/heads/blob")
	tree := strings.TrimSpace(git(t, w.own, "rev-parse", "HEAD^{tree}"))
	for _, branch := range []string{"-x", "HEAD", "agent/3-fix/below", ""} {
		id := w.snapshotOf(t, tree, branch, head)
		dir := w.recovered(t, id)
		if got := strings.TrimSpace(git(t, dir, "rev-parse", "HEAD")); got != head {
			t.Errorf("on %q HEAD is %s", branch, got)
		}
		if out := git(t, dir, "for-each-ref", "--format=%(refname)", "refs/heads"); strings.Contains(out, "heads/-x\n") || strings.Contains(out, "blob") {
			t.Errorf("branches are %s", out)
		}
		file := filepath.Join(t.TempDir(), "work.bundle")
		if err := w.work().Bundle(t.Context(), file); err != nil {
			t.Error(err)
		}
	}
	// Nothing committed at all.
	dir := w.recovered(t, w.snapshotOf(t, tree, "agent/3-fix", ""))
	if out := git(t, dir, "status", "--porcelain"); !strings.Contains(out, "?? file") {
		t.Errorf("its status is %s", out)
	}
}

// What an agent put into its tree has no effect while it is brought back, neither
// on what is run nor on what the files are.
func TestRecoverRunsNothing(t *testing.T) {
	w := newSnapshotWorld(t)
	proof := filepath.Join(t.TempDir(), "proof")
	run := "touch " + proof
	files := map[string]string{
		".gitattributes":      "* filter=evil diff=evil merge=evil\n*.crlf text eol=crlf\n*.id ident\n*.utf16 working-tree-encoding=UTF-16\n",
		".gitmodules":         "[submodule \"x\"]\n\tpath = x\n\turl = https://192.0.2.1/x\n",
		".gitconfig":          "[filter \"evil\"]\n\tsmudge = " + run + "\n[core]\n\tfsmonitor = " + run + "\n",
		"a.crlf":              "one\ntwo\r\n",
		"a.id":                "$Id$\n",
		"a.utf16":             "text\n",
		"hooks/post-checkout": "#!/bin/sh\n" + run + "\n",
	}
	for name, text := range files {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(w.own, name)), 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(w.own, name), text)
	}
	outside := t.TempDir()
	if err := os.Symlink(outside, filepath.Join(w.own, "link")); err != nil {
		t.Fatal(err)
	}
	tree := rawTree(t, w.own, files)
	w.snapshotOf(t, tree, "agent/3-fix", strings.TrimSpace(git(t, w.own, "rev-parse", "HEAD")))
	t.Setenv("GIT_TEMPLATE_DIR", filepath.Join(w.own))
	dir := w.recovered(t, "")
	for name, text := range files {
		if b, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(b) != text {
			t.Errorf("%s is %q, want %q (%v)", name, b, text, err)
		}
	}
	if _, err := os.Stat(proof); err == nil {
		t.Error("something ran")
	}
	if _, err := os.Stat(filepath.Join(dir, ".git/hooks")); err == nil {
		t.Error("it has hooks")
	}
	config, err := os.ReadFile(filepath.Join(dir, ".git/config"))
	if err != nil || strings.Contains(string(config), "evil") {
		t.Errorf("its configuration is %s, %v", config, err)
	}
	if _, err := os.Stat(filepath.Join(dir, ".git/info/attributes")); err == nil {
		t.Error("its attributes are overridden for good")
	}
}

// rawTree is a tree of what files hold, whatever their attributes say.
func rawTree(t *testing.T, dir string, files map[string]string) string {
	t.Helper()
	index := filepath.Join(t.TempDir(), "index")
	indexed := func(args ...string) string {
		cmd := exec.Command("git", args...)
		cmd.Dir, cmd.Env = dir, append(os.Environ(), "GIT_INDEX_FILE="+index)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("git %v: %v %s", args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	for name := range files {
		id := indexed("hash-object", "-w", "--no-filters", "--", name)
		indexed("update-index", "--add", "--cacheinfo", "100644,"+id+","+name)
	}
	return indexed("write-tree")
}

// Trees that lead out of the directory, or into .git, are refused as a whole.
func TestRecoverOfTreesThatLeadOut(t *testing.T) {
	for name, entry := range map[string]string{
		"dot dot":     "100644 blob BLOB\t..",
		"the git dir": "040000 tree TREE\t.git",
		"in a case":   "040000 tree TREE\t.GIT",
		"short":       "040000 tree TREE\tgit~1",
		"a link's":    "120000 blob BLOB\t.gitmodules",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newSnapshotWorld(t)
			blob := strings.TrimSpace(git(t, w.own, "hash-object", "-w", "README"))
			sub := mktree(t, w.own, "100644 blob "+blob+"\tconfig\n")
			tree := mktree(t, w.own, strings.NewReplacer("BLOB", blob, "TREE", sub).Replace(entry)+"\n")
			w.snapshotOf(t, tree, "agent/3-fix", strings.TrimSpace(git(t, w.own, "rev-parse", "HEAD")))
			snap, err := w.work().Newest(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			if err := w.work().Recover(t.Context(), snap, filepath.Join(dir, "back"), ""); err == nil {
				t.Error("it is brought back")
			}
			err = filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
				if path != dir {
					t.Errorf("%s is left", path)
				}
				return err
			})
			if err != nil {
				t.Error(err)
			}
			// It is not lost: a bundle checks nothing.
			if err := w.work().Bundle(t.Context(), filepath.Join(dir, "work.bundle")); err != nil {
				t.Error(err)
			}
		})
	}
}

func mktree(t *testing.T, dir, entries string) string {
	t.Helper()
	cmd := exec.Command("git", "mktree")
	cmd.Dir, cmd.Stdin = dir, strings.NewReader(entries)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v %s", err, out)
	}
	return strings.TrimSpace(string(out))
}

func TestLinksThatLeadOut(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "sub"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, to := range map[string]string{"a": "sub", "sub/b": "../a", "c": "/etc/passwd", "sub/d": "../../x", "e": ".."} {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := mirror.Links(dir, 10); err != nil || strings.Join(out, " ") != "c e sub/d" {
		t.Errorf("they are %v, %v", out, err)
	}
	if out, err := mirror.Links(dir, 1); err != nil || len(out) != 1 {
		t.Errorf("they are %v, %v", out, err)
	}
}
