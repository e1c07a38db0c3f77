package saver_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/pods/podfile"
	"codeberg.org/devaipod/devaipod/pods/saver"
)

func TestWhatIsOnDiskIsSaved(t *testing.T) {
	p := newPlace(t)
	p.write("new", "untracked\n")
	p.write("README", "changed\n")
	p.write("run", "#!/bin/sh\n")
	must(t, os.Chmod(filepath.Join(p.clone, "run"), 0o755))
	must(t, os.Symlink("/etc/passwd", filepath.Join(p.clone, "link")))
	head := p.git(p.clone, "rev-parse", "HEAD")
	saved := p.once()
	for name, want := range map[string]string{"new": "untracked", "README": "changed", "link": "/etc/passwd"} {
		if got := p.saved(name); got != want {
			t.Errorf("%s is saved as %q, want %q", name, got, want)
		}
	}
	if got := p.git(p.server, "ls-tree", work, "run", "link"); !strings.HasPrefix(got, "120000 ") || !strings.Contains(got, "100755 ") {
		t.Errorf("modes: %s", got)
	}
	if got := p.git(p.server, "rev-parse", "refs/saved/3/heads/main"); got != head {
		t.Errorf("main is saved as %s, want %s", got, head)
	}
	if told := p.told(); told.Head != head || told.Branch != "main" || len(told.NotSaved) != 0 || saved.Head != head || saved.ID != p.git(p.server, "rev-parse", work) {
		t.Errorf("told %+v, saved %+v", told, saved)
	}
	if got := p.git(p.server, "rev-parse", work+"^1"); got != head {
		t.Errorf("the parent is %s, want HEAD, %s", got, head)
	}

	// The next one has the one before and HEAD as parents, and lacks what is gone.
	first := saved.ID
	must(t, os.Remove(filepath.Join(p.clone, "new")))
	must(t, os.Remove(filepath.Join(p.clone, "link")))
	p.write("link/is-a-folder-now", "x")
	saved = p.once()
	if got, want := p.git(p.server, "log", "-1", "--format=%P", work), first+" "+head; got != want {
		t.Errorf("parents %s, want %s", got, want)
	}
	if got := p.files(); got != "README\nlink/is-a-folder-now\nrun" {
		t.Errorf("files %q", got)
	}
	if again := p.once(); again.ID != saved.ID {
		t.Error("an unchanged tree made another snapshot")
	}
}

func TestChangesAreSavedAsTheyAreMade(t *testing.T) {
	p := newPlace(t)
	stop := p.start()
	p.eventually("the first save", func() bool { return p.saved("README") == "hello" })
	open, err := os.Create(filepath.Join(p.clone, "kept-open"))
	must(t, err)
	defer open.Close()
	for _, step := range []struct {
		what string
		do   func()
		ok   func() bool
	}{
		{"an edit", func() { p.write("README", "one\n") }, func() bool { return p.saved("README") == "one" }},
		{"an edit in a new folder", func() { p.write("a/b/c", "two\n") }, func() bool { return p.saved("a/b/c") == "two" }},
		{"another there", func() { p.write("a/b/c", "three\n") }, func() bool { return p.saved("a/b/c") == "three" }},
		{"a file that stays open", func() { _, err := open.WriteString("four\n"); must(t, err) }, func() bool { return p.saved("kept-open") == "four" }},
		{"a folder that moves", func() { must(t, os.Rename(filepath.Join(p.clone, "a"), filepath.Join(p.clone, "z"))) }, func() bool { return p.saved("z/b/c") == "three" && p.saved("a/b/c") == "(none)" }},
		{"an edit in the moved folder", func() { p.write("z/b/c", "five\n") }, func() bool { return p.saved("z/b/c") == "five" }},
		{"a folder replaced by one of its name", func() {
			must(t, os.RemoveAll(filepath.Join(p.clone, "z")))
			p.write("z/b/c", "six\n")
		}, func() bool { return p.saved("z/b/c") == "six" }},
		{"an edit in that", func() { p.write("z/b/c", "seven\n") }, func() bool { return p.saved("z/b/c") == "seven" }},
		{"a mode", func() { must(t, os.Chmod(filepath.Join(p.clone, "README"), 0o755)) }, func() bool { return strings.HasPrefix(p.git(p.server, "ls-tree", work, "README"), "100755") }},
		{"a removal", func() { must(t, os.RemoveAll(filepath.Join(p.clone, "z"))) }, func() bool { return p.saved("z/b/c") == "(none)" }},
		{"a commit", func() { p.commit("second") }, func() bool {
			return p.git(p.server, "rev-parse", "refs/saved/3/heads/main") == p.git(p.clone, "rev-parse", "HEAD")
		}},
		{"a branch", func() { p.git(p.clone, "branch", "deep/er/branch") }, func() bool {
			_, err := p.try(p.server, "rev-parse", "refs/saved/3/heads/deep/er/branch")
			return err == nil
		}},
		{"an ignored file", func() { p.write(".gitignore", "/README\n"); p.git(p.clone, "rm", "--quiet", "--cached", "README") }, func() bool {
			return why(p.told().NotSaved)["README"] == podfile.WhyIgnored && p.saved("README") == "(none)"
		}},
		{"and that it is not any more", func() { p.write(".gitignore", "") }, func() bool { return p.saved("README") == "one" }},
		{"the whole clone moved away and back", func() {
			must(t, os.Rename(p.clone, p.clone+"-away"))
			p.eventually("it is gone", func() bool { return why(p.told().NotSaved)["."] == podfile.WhyUnread })
			if p.saved("README") != "one" {
				t.Error("what was saved of a tree that is gone is gone too")
			}
			must(t, os.Rename(p.clone+"-away", p.clone))
			p.write("README", "eight\n")
		}, func() bool { return p.saved("README") == "eight" }},
	} {
		step.do()
		p.eventually(step.what, step.ok)
	}
	for i := range 8 { // whichever of the two names is looked at first
		from, to := fmt.Sprint("moves/", i), fmt.Sprint("moves/", i+1)
		if i == 0 {
			p.write(from+"/deep/file", "0\n")
			p.eventually("a folder that will move", func() bool { return p.saved(from+"/deep/file") == "0" })
		}
		must(t, os.Rename(filepath.Join(p.clone, from), filepath.Join(p.clone, to)))
		p.eventually("it moved", func() bool { return p.saved(to+"/deep/file") != "(none)" })
		p.write(to+"/deep/file", fmt.Sprint(i, "\n"))
		p.eventually("an edit after it moved", func() bool { return p.saved(to+"/deep/file") == fmt.Sprint(i) })
	}
	must(t, os.RemoveAll(filepath.Join(p.clone, "moves")))
	p.write("at-the-end", "nine\n")
	stop()
	if p.saved("at-the-end") != "nine" || p.saved("moves/8/deep/file") != "(none)" {
		t.Error("what was written last was not saved at the end")
	}
}

func TestNothingHappensWhileNothingChanges(t *testing.T) {
	p := newPlace(t)
	p.start()
	p.eventually("the first save", func() bool { return p.saved("README") == "hello" })
	p.write("README", "one\n")
	p.eventually("an edit", func() bool { return p.saved("README") == "one" })
	time.Sleep(2 * p.cfg.AtMost) // what came late
	rounds, snapshots, pushes := p.log.count(), p.snapshots(), p.pushes.Load()
	time.Sleep(10 * p.cfg.AtMost)
	if n := p.log.count() - rounds; n > 0 || p.snapshots() != snapshots || p.pushes.Load() != pushes {
		t.Errorf("%d rounds, %d snapshots, %d pushes of an unchanged tree", n, p.snapshots()-snapshots, p.pushes.Load()-pushes)
	}
	// Touched, it makes a round and no snapshot.
	must(t, os.Chtimes(filepath.Join(p.clone, "README"), time.Now(), time.Now()))
	p.eventually("a round", func() bool { return p.log.count() > rounds })
	time.Sleep(2 * p.cfg.AtMost)
	if p.snapshots() != snapshots {
		t.Error("a tree with the same content made a snapshot")
	}
}

func TestCommitsThatWereNeverPushedAreSaved(t *testing.T) {
	p := newPlace(t)
	p.git(p.clone, "switch", "--quiet", "-c", "side")
	p.write("side", "s\n")
	side := p.commit("side")
	p.git(p.clone, "pack-refs", "--all")
	p.git(p.clone, "switch", "--quiet", "--detach")
	p.write("detached", "d\n")
	detached := p.commit("detached")
	p.write("stashed", "st\n")
	p.git(p.clone, "stash", "--quiet", "--include-untracked")
	stash := p.git(p.clone, "rev-parse", "refs/stash")
	told := p.once()
	if !p.reachable(detached) || told.Head != detached || told.Branch != "" {
		t.Errorf("a detached HEAD: %+v", told)
	}
	for ref, want := range map[string]string{"heads/side": side, "stash/newest": stash} {
		if got := p.git(p.server, "rev-parse", "refs/saved/3/"+ref); got != want {
			t.Errorf("%s is %s, want %s", ref, got, want)
		}
	}
	// An index of the agent's, whatever it says, does not matter for it.
	if p.git(p.server, "show", "refs/saved/3/heads/side:side") != "s" {
		t.Error("the branch's content is not there")
	}
}

func TestRewrittenAndDeletedBranchesKeepTheirOldTips(t *testing.T) {
	p := newPlace(t)
	p.git(p.clone, "switch", "--quiet", "-c", "side")
	p.write("side", "one\n")
	one := p.commit("one")
	p.git(p.clone, "branch", "gone")
	p.git(p.clone, "switch", "--quiet", "gone")
	p.write("gone", "g\n")
	gone := p.commit("gone")
	p.git(p.clone, "switch", "--quiet", "main")
	p.once()
	p.git(p.clone, "branch", "--quiet", "-D", "gone")
	p.git(p.clone, "branch", "gone/below", "main") // where the branch was
	p.git(p.clone, "switch", "--quiet", "side")
	p.write("side", "two\n")
	p.git(p.clone, "commit", "--quiet", "-a", "--amend", "-m", "two")
	two := p.git(p.clone, "rev-parse", "HEAD")
	p.git(p.clone, "reflog", "expire", "--expire=all", "--all")
	p.git(p.clone, "gc", "--quiet", "--prune=all")
	told := p.once()
	if !p.reachable(one) || !p.reachable(gone) || len(told.Old) != 2 {
		t.Errorf("old tips: %v, want %s and %s", told.Old, one, gone)
	}
	if got := p.git(p.server, "rev-parse", "refs/saved/3/heads/side"); got != two {
		t.Errorf("side is %s, want %s", got, two)
	}
	if _, err := p.try(p.server, "rev-parse", "--verify", "refs/saved/3/heads/gone"); err == nil {
		t.Error("the deleted branch is still there")
	}
	if again := p.once(); again.ID != told.ID {
		t.Error("another snapshot without news")
	}
}

func TestATreeWithoutARepositoryIsSaved(t *testing.T) {
	git := func(p *place) string { return filepath.Join(p.clone, ".git") }
	for name, break_ := range map[string]func(t *testing.T, p *place){
		"deleted":           func(*testing.T, *place) {},
		"a symbolic link":   func(t *testing.T, p *place) { must(t, os.Symlink("/etc", git(p))) },
		"a link to another": func(t *testing.T, p *place) { must(t, os.Symlink(p.server, git(p))) },
		"a file":            func(t *testing.T, p *place) { must(t, os.WriteFile(git(p), []byte("gitdir: "+p.server+"\n"), 0o644)) },
		"a fifo":            func(t *testing.T, p *place) { mkfifo(t, git(p)) },
		"garbage": func(t *testing.T, p *place) {
			p.write(".git/HEAD", strings.Repeat("x", 10000))
			p.write(".git/packed-refs", "\x00\x01 garbage")
			p.write(".git/objects", "a file")
		},
		"fifos inside": func(t *testing.T, p *place) {
			must(t, os.Mkdir(git(p), 0o755))
			for _, name := range []string{"HEAD", "packed-refs", "refs", "objects", "index"} {
				mkfifo(t, filepath.Join(git(p), name))
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPlace(t)
			head := p.git(p.clone, "rev-parse", "HEAD")
			p.once()
			must(t, os.RemoveAll(git(p)))
			break_(t, p)
			p.write("after", "a\n")
			told := p.once()
			if p.saved("after") != "a" || told.Head != head || !p.reachable(head) {
				t.Errorf("%+v", told)
			}
			if got := p.git(p.server, "rev-parse", "refs/saved/3/heads/main"); got != head {
				t.Errorf("main is %s, want %s", got, head)
			}
			if why(told.NotSaved)[".git"] != podfile.WhyCommits {
				t.Errorf("not listed: %v", told.NotSaved)
			}
		})
	}
}

func TestAWayToTheServiceThatIsAwayForAWhile(t *testing.T) {
	p := newPlace(t)
	p.start()
	p.eventually("the first save", func() bool { return p.saved("README") == "hello" })
	p.away()
	p.write("README", "while it is away\n")
	p.eventually("a try", func() bool { return strings.Contains(p.log.String(), "does not take what was saved") })
	p.write("README", "later\n")
	time.Sleep(3 * p.cfg.AtMost)
	// Its history goes meanwhile.
	must(t, os.RemoveAll(filepath.Join(p.clone, ".git")))
	p.serve()
	p.eventually("it catches up", func() bool { return p.saved("README") == "later" })
	if out := p.git(p.server, "log", "--first-parent", "--format=%H", "-p", work); !strings.Contains(out, "while it is away") {
		t.Error("a snapshot of when the service was away is missing")
	}
}

func TestOnceTellsWhenTheServiceIsAway(t *testing.T) {
	p := newPlace(t)
	p.away()
	p.cfg.LastSave = 200 * time.Millisecond
	saved := saver.Once(t.Context(), p.cfg)
	if saved.Complete || saved.Error == "" || saved.ID == "" {
		t.Errorf("%+v", saved)
	}
}

// Another saver's volume, as of an earlier pod of the issue, or one that was
// lost: what it has pushed stays.
func TestWhatAnEarlierSaverHasPushedStays(t *testing.T) {
	p := newPlace(t)
	p.write("README", "of the first\n")
	p.git(p.clone, "branch", "theirs")
	first := p.once().ID
	p.cfg.Home = p.path("another")
	must(t, os.RemoveAll(p.clone))
	must(t, os.MkdirAll(p.clone, 0o755))
	p.git(p.clone, "init", "--quiet", "--initial-branch=main")
	p.write("README", "of the second\n")
	p.commit("unrelated")
	second := p.once()
	if p.saved("README") != "of the second" || p.reachable(first) {
		t.Error("the second saver's work is not the newest")
	}
	if got := p.git(p.server, "rev-parse", "refs/saved/3/kept/"+first); got != first {
		t.Errorf("kept: %s", got)
	}
	p.write("README", "more\n")
	if p.once(); p.snapshots() != 2 || second.Previous != "" {
		t.Errorf("%d snapshots", p.snapshots())
	}
	p.git(p.server, "fsck", "--strict")
}

// A pod whose clone was made from the newest snapshot goes on from it.
func TestASaverGoesOnFromASnapshotThatTheCloneHas(t *testing.T) {
	p := newPlace(t)
	p.write("README", "of the first\n")
	p.git(p.clone, "branch", "theirs")
	first := p.once().ID
	p.git(p.clone, "fetch", "--quiet", p.server, work)
	p.cfg.Home = p.path("another")
	p.write("README", "of the second\n")
	second := p.once()
	if second.Previous != first || p.snapshots() != 2 {
		t.Errorf("it follows %q, want %s", second.Previous, first)
	}
	if kept := p.git(p.server, "for-each-ref", "refs/saved/3/kept"); kept != "" {
		t.Errorf("kept beside: %s", kept)
	}
	// Its own volume has all of it.
	must(t, os.RemoveAll(filepath.Join(p.clone, ".git")))
	p.git(filepath.Join(p.cfg.Home, "git"), "fsck", "--strict")

	// What is there under that name and is no snapshot is kept, and not gone on from.
	other := p.git(p.server, "rev-parse", "refs/saved/3/heads/main")
	p.git(p.server, "update-ref", work, other)
	p.git(p.clone, "init", "--quiet", "--initial-branch=main")
	p.git(p.clone, "fetch", "--quiet", p.server, work)
	p.cfg.Home = p.path("a-third")
	if third := p.once(); third.Previous != "" || third.Error != "" {
		t.Errorf("%+v", third)
	}
	if got := p.git(p.server, "for-each-ref", "--format=%(refname)", "refs/saved/3/kept/"+other); got == "" && !p.reachable(other) {
		t.Error("what was there is gone")
	}
}
