package cache_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"codeberg.org/devaipod/devaipod/mirror/cache"
)

var (
	ada    = cache.Login{User: user, Password: password}
	copied = cache.Address{Host: "forge", Path: "app"}
)

// newCopyWorld has a second upstream, where only ada reads and writes, which the
// cache calls forge, and may push to.
func newCopyWorld(t *testing.T) (w *world, forge *upstream, from cache.Address) {
	t.Helper()
	w = newWorld(t)
	forge = newUpstream(t)
	w.open(func(c *cache.Config) {
		allow, err := cache.ParseAllow([]string{w.up.host, "forge"})
		if err != nil {
			t.Fatal(err)
		}
		c.Allow, c.Dir = allow, filepath.Join(w.dir, "copies")
		c.Hosts = map[string]cache.Host{"forge": {URL: forge.url, Push: true}}
	})
	return w, forge, cache.Address{Host: w.up.host, Path: "app"}
}

// copyOf makes a bare repository of a name with some refs of a working one.
func (up *upstream) copyOf(t *testing.T, work, name string, refs ...string) (bare string) {
	t.Helper()
	bare = filepath.Join(up.root, name+".git")
	git(t, "/", "init", "-q", "--bare", bare)
	git(t, bare, "config", "http.receivepack", "true")
	git(t, work, append([]string{"push", "-q", bare}, refs...)...)
	up.private.Store(true)
	return bare
}

func TestACopyFollowsOutOfTheCache(t *testing.T) {
	w, forge, from := newCopyWorld(t)
	work := w.up.repo(t, "app")
	bare := forge.copyOf(t, work, "app", "main~2:refs/heads/main", "main~1:refs/heads/agent/1-x")
	if _, err := w.cache.Refs(t.Context(), from); !errors.Is(err, cache.ErrNotHere) {
		t.Errorf("before it is here: %v", err)
	}
	if _, err := w.cache.Sync(t.Context(), from); err != nil {
		t.Fatal(err)
	}
	have, err := w.cache.Refs(t.Context(), from, "refs/heads/main", "refs/tags/")
	if err != nil || have.Head != "main" || len(have.IDs) != 2 {
		t.Fatalf("the cache has %v, %v", have, err)
	}
	id := func(dir, rev string) string { return strings.TrimSpace(git(t, dir, "rev-parse", rev)) }
	if have.IDs["refs/heads/main"] != id(work, "main") || have.IDs["refs/tags/v1"] != id(work, "v1") {
		t.Errorf("the cache has %v", have)
	}
	there, err := w.cache.Ask(t.Context(), copied, ada, "refs/heads/main", "refs/tags/*")
	if err != nil || there.Head != "main" || !maps.Equal(there.IDs, map[string]string{"refs/heads/main": id(work, "main~2")}) {
		t.Errorf("the forge has %v, %v", there, err)
	}
	w.up.asked()
	if err := w.cache.Push(t.Context(), from, copied, ada, have.IDs); err != nil {
		t.Fatal(err)
	}
	if got := id(bare, "main") + id(bare, "v1"); got != id(work, "main")+id(work, "v1") {
		t.Errorf("the copy has %s", got)
	}
	if got := id(bare, "agent/1-x"); got != id(work, "main~1") {
		t.Errorf("the agent's branch is at %s", got)
	}
	if asked := w.up.asked(); len(asked) > 0 {
		t.Errorf("a push to the forge asks the upstream %v", asked)
	}
	// Twice is once.
	if err := w.cache.Push(t.Context(), from, copied, ada, have.IDs); err != nil {
		t.Error(err)
	}
	w.mustNotHold(password)
}

// Each push is told before it is made, and how it failed; what is not tried is not.
func TestAPushIsToldBeforeItIsMade(t *testing.T) {
	w, forge, from := newCopyWorld(t)
	work := w.up.repo(t, "app")
	bare := forge.copyOf(t, work, "app", "main~1:refs/heads/main")
	var told []string
	w.open(func(c *cache.Config) {
		allow, err := cache.ParseAllow([]string{w.up.host, "forge"})
		if err != nil {
			t.Fatal(err)
		}
		c.Allow, c.Dir = allow, filepath.Join(w.dir, "told")
		c.Hosts = map[string]cache.Host{"forge": {URL: forge.url, Push: true}}
		c.Pushes = func(_ context.Context, to cache.Address, refs map[string]string, failed error) {
			there := strings.TrimSpace(git(t, bare, "rev-parse", "main"))
			told = append(told, fmt.Sprintf("%s %v, there is %s, failed: %t", to, refs, there, failed != nil))
		}
	})
	if _, err := w.cache.Sync(t.Context(), from); err != nil {
		t.Fatal(err)
	}
	before, after := strings.TrimSpace(git(t, work, "rev-parse", "main~1")), strings.TrimSpace(git(t, work, "rev-parse", "main"))
	for _, as := range []cache.Login{{User: "eve", Password: "a guess"}, ada} {
		if err := w.cache.Push(t.Context(), from, copied, as, map[string]string{"refs/heads/main": after}); (err == nil) != (as == ada) {
			t.Errorf("%s: %v", as.User, err)
		}
	}
	if err := w.cache.Push(t.Context(), from, copied, ada, map[string]string{"HEAD": after}); err == nil {
		t.Error("HEAD is pushed")
	}
	one := fmt.Sprintf("forge/app.git map[refs/heads/main:%s], there is %s, failed: ", after, before)
	if want := []string{one + "false", one + "true", one + "false"}; !slices.Equal(told, want) {
		t.Errorf("told\n%s\nwant\n%s", strings.Join(told, "\n"), strings.Join(want, "\n"))
	}
}

func TestNothingIsOverwritten(t *testing.T) {
	w, forge, from := newCopyWorld(t)
	work := w.up.repo(t, "app")
	git(t, work, "checkout", "-q", "-b", "other", "main~1")
	commit(t, work, "another way")
	git(t, work, "tag", "v1-other")
	bare := forge.copyOf(t, work, "app", "other:refs/heads/main", "v1-other:refs/tags/v1")
	before := git(t, bare, "for-each-ref")
	if _, err := w.cache.Sync(t.Context(), from); err != nil {
		t.Fatal(err)
	}
	have, err := w.cache.Refs(t.Context(), from, "refs/heads/main", "refs/tags/")
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"refs/heads/main": "rejected", "refs/tags/v1": "already exists"} {
		err := w.cache.Push(t.Context(), from, copied, ada, map[string]string{name: have.IDs[name]})
		if err == nil || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), want) {
			t.Errorf("pushing %s: %v, want %q", name, err, want)
		}
	}
	if after := git(t, bare, "for-each-ref"); after != before {
		t.Errorf("the copy has now\n%s, had\n%s", after, before)
	}
}

func TestAPushGoesToOurOwnHostsAlone(t *testing.T) {
	w, forge, from := newCopyWorld(t)
	work := w.up.repo(t, "app")
	bare := forge.copyOf(t, work, "app", "main")
	if _, err := w.cache.Sync(t.Context(), from); err != nil {
		t.Fatal(err)
	}
	id := strings.TrimSpace(git(t, work, "rev-parse", "side"))
	w.up.asked()
	var refused *cache.RefusedError
	if err := w.cache.Push(t.Context(), from, from, ada, map[string]string{"refs/heads/agent/1-x": id}); !errors.As(err, &refused) {
		t.Errorf("a push to where it comes from: %v", err)
	}
	if asked := w.up.asked(); len(asked) > 0 {
		t.Errorf("the upstream was asked %v", asked)
	}
	before := git(t, bare, "for-each-ref")
	for name, at := range map[string]string{
		"refs/notes/x": id, "refs/pull/1/head": id, "HEAD": id, "refs/heads/*": id, "refs/heads/a:refs/heads/b": id,
		"refs/heads/x": "", "refs/heads/y": "+" + id, "refs/heads/z": "--force",
	} {
		if err := w.cache.Push(t.Context(), from, copied, ada, map[string]string{name: at}); err == nil {
			t.Errorf("%q is pushed at %q", name, at)
		}
	}
	if err := w.cache.Push(t.Context(), from, copied, cache.Login{User: "eve", Password: "a guess"}, map[string]string{"refs/heads/x": id}); !errors.Is(err, cache.ErrUnauthorized) {
		t.Errorf("somebody else pushes: %v", err)
	}
	if after := git(t, bare, "for-each-ref"); after != before {
		t.Errorf("the copy has now\n%s, had\n%s", after, before)
	}
}

func TestAnAncestor(t *testing.T) {
	w, _, from := newCopyWorld(t)
	work := w.up.repo(t, "app")
	if _, err := w.cache.Sync(t.Context(), from); err != nil {
		t.Fatal(err)
	}
	id := func(rev string) string { return strings.TrimSpace(git(t, work, "rev-parse", rev)) }
	commit(t, work, "not there yet")
	for name, tt := range map[string]struct {
		old, new string
		want     bool
	}{
		"its parent":           {id("main~2"), id("main~1"), true},
		"itself":               {id("side"), id("side"), true},
		"the other way round":  {id("main~1"), id("main~2"), false},
		"one that is not here": {id("main"), id("main~1"), false},
		"a blob":               {id("main~1:README"), id("main~1"), false},
	} {
		if got, err := w.cache.Ancestor(t.Context(), from, tt.old, tt.new); err != nil || got != tt.want {
			t.Errorf("%s: %t, %v", name, got, err)
		}
	}
	if got, err := w.cache.Mentions(t.Context(), from, id("main~2"), id("main~1"), "^thr.e$"); err != nil || !got {
		t.Errorf("the newest commit: %t, %v", got, err)
	}
	if got, err := w.cache.Mentions(t.Context(), from, id("main~2"), id("main~1"), "^two$"); err != nil || got {
		t.Errorf("a commit that the other has too: %t, %v", got, err)
	}
}

func TestManyTagsAreCopied(t *testing.T) {
	w, forge, from := newCopyWorld(t)
	work := w.up.repo(t, "app")
	var stdin strings.Builder
	id := strings.TrimSpace(git(t, work, "rev-parse", "main"))
	for n := range 510 {
		fmt.Fprintf(&stdin, "create refs/tags/t%d %s\n", n, id)
	}
	file := filepath.Join(w.dir, "tags")
	if err := os.WriteFile(file, []byte(stdin.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, filepath.Join(w.up.root, "app.git"), "sh", "-c", "git update-ref --stdin <"+file)
	bare := forge.copyOf(t, work, "app", "main")
	if _, err := w.cache.Sync(t.Context(), from); err != nil {
		t.Fatal(err)
	}
	have, err := w.cache.Refs(t.Context(), from, "refs/tags/")
	if err != nil {
		t.Fatal(err)
	}
	if err := w.cache.Push(t.Context(), from, copied, ada, have.IDs); err != nil {
		t.Fatal(err)
	}
	if n := lines(git(t, bare, "tag")); n != 511 {
		t.Errorf("%d tags came", n)
	}
}
