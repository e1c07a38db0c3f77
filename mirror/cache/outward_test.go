package cache_test

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"codeberg.org/devaipod/devaipod/mirror/cache"
)

// newOutward has an upstream with app, whose main is two commits behind what the forge's
// copy of it, which is here, has as agent/1-x.
func newOutward(t *testing.T) (w *world, forge *upstream, work string, to cache.Address) {
	t.Helper()
	w, forge, to = newCopyWorld(t)
	work = w.up.repo(t, "app")
	commit(t, work, "four")
	commit(t, work, "five")
	forge.copyOf(t, work, "app", "main~2:refs/heads/main", "main:refs/heads/agent/1-x", "side")
	forge.private.Store(false)
	if _, err := w.cache.Sync(t.Context(), copied); err != nil {
		t.Fatal(err)
	}
	return w, forge, work, to
}

func TestOneCommitGoesToOneBranchUpstream(t *testing.T) {
	w, _, work, to := newOutward(t)
	bare := filepath.Join(w.up.root, "app.git")
	id := func(rev string) string { return strings.TrimSpace(git(t, work, "rev-parse", rev)) }
	before := git(t, bare, "for-each-ref")
	for name, args := range map[string][3]string{
		"backward":             {"main", id("main~2"), id("main~3")},
		"sideways":             {"main", id("main"), id("main~1")},
		"from where it is not": {"main", id("main~1"), id("main")},
		"a branch of two":      {"main:refs/heads/side", id("main~2"), id("main")},
		"a pattern":            {"*", id("main~2"), id("main")},
		"by force":             {"main", id("main~2"), "+" + id("main")},
		"of nothing":           {"main", id("main~2"), ""},
		"where nothing is":     {"new", id("main~2"), id("main")},
	} {
		if err := w.cache.Export(t.Context(), copied, to, args[0], args[1], args[2]); err == nil {
			t.Errorf("%s: it is taken", name)
		}
	}
	var refused *cache.RefusedError
	if err := w.cache.Export(t.Context(), to, copied, "main", id("main~2"), id("main")); !errors.As(err, &refused) {
		t.Errorf("the other way round: %v", err)
	}
	if err := w.cache.Export(t.Context(), copied, copied, "main", id("main~2"), id("main")); !errors.As(err, &refused) {
		t.Errorf("to the forge: %v", err)
	}
	if after := git(t, bare, "for-each-ref"); after != before {
		t.Fatalf("the upstream has now\n%s, had\n%s", after, before)
	}
	if err := w.cache.Export(t.Context(), copied, to, "main", id("main~2"), id("main")); err != nil {
		t.Fatal(err)
	}
	if after := git(t, bare, "for-each-ref"); after != strings.Replace(before, id("main~2")+" commit\trefs/heads/main\n", id("main")+" commit\trefs/heads/main\n", 1) {
		t.Errorf("the upstream has now\n%s, had\n%s", after, before)
	}
}

func TestNothingIsExportedByARedirect(t *testing.T) {
	w, _, work, to := newOutward(t)
	id := func(rev string) string { return strings.TrimSpace(git(t, work, "rev-parse", rev)) }
	bare := filepath.Join(w.up.root, "app.git")
	before := git(t, bare, "for-each-ref")
	w.up.moved.Store(true)
	to.Path = "old"
	var refused *cache.RefusedError
	if err := w.cache.Export(t.Context(), copied, to, "main", id("main~2"), id("main")); !errors.As(err, &refused) {
		t.Errorf("it ends with %v", err)
	}
	if after := git(t, bare, "for-each-ref"); after != before {
		t.Errorf("the upstream has now\n%s, had\n%s", after, before)
	}
}

func TestABranchThatMovesWhileItIsPushedStays(t *testing.T) {
	w, _, work, to := newOutward(t)
	bare := filepath.Join(w.up.root, "app.git")
	id := func(rev string) string { return strings.TrimSpace(git(t, work, "rev-parse", rev)) }
	old, theirs := id("main~2"), id("main~1") // a fast-forward for git, but not from what was looked at
	for at, want := range map[string]string{"GET info/refs?service=git-receive-pack": "a push", "POST git-receive-pack?": "its end"} {
		git(t, bare, "update-ref", "refs/heads/main", old)
		asked := 0
		move := func(what string) {
			if what == at {
				asked++
				git(t, bare, "fetch", "-q", work, "+"+theirs+":refs/heads/main")
			}
		}
		w.up.before.Store(&move)
		if err := w.cache.Export(t.Context(), copied, to, "main", old, id("main")); !errors.Is(err, cache.ErrMoved) {
			t.Errorf("%s: it ends with %v", want, err)
		}
		w.up.before.Store(nil)
		if got := strings.TrimSpace(git(t, bare, "rev-parse", "main")); got != theirs || asked != 1 {
			t.Errorf("%s: main is at %s, want %s; asked %d times", want, got, theirs, asked)
		}
	}
}

func TestAConflictIsFoundWithoutAMerge(t *testing.T) {
	w, forge, work, _ := newOutward(t)
	git(t, work, "checkout", "-q", "-b", "other", "main~1")
	commit(t, work, "another five")
	git(t, work, "checkout", "-q", "-b", "apart", "main~1")
	git(t, work, "commit", "-q", "--allow-empty", "-m", "apart")
	git(t, work, "push", "-q", filepath.Join(forge.root, "app.git"), "other", "apart")
	if _, err := w.cache.Sync(t.Context(), copied); err != nil {
		t.Fatal(err)
	}
	id := func(rev string) string { return strings.TrimSpace(git(t, work, "rev-parse", rev)) }
	for rev, want := range map[string]bool{"other": true, "apart": false, "side": false, "main": false} {
		if got, _, err := w.cache.Conflict(t.Context(), copied, id("main"), id(rev)); err != nil || got != want {
			t.Errorf("%s: %t, %v", rev, got, err)
		}
	}
	if _, _, err := w.cache.Conflict(t.Context(), copied, id("main"), strings.Repeat("0", 40)); err == nil {
		t.Error("with nothing there is no error")
	}
	if conflict, files, err := w.cache.Conflict(t.Context(), copied, id("main"), id("other")); !conflict || err != nil || strings.Join(files, " ") != "README" {
		t.Errorf("in %q, %v", files, err)
	}
	list, err := w.cache.Between(t.Context(), copied, id("main~2"), id("main"))
	if err != nil || len(list) != 2 || list[0] != (cache.Commit{ID: id("main~1"), Subject: "four"}) || list[1].Subject != "five" {
		t.Errorf("%v, %v", list, err)
	}
}
