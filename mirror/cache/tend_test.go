package cache_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/mirror/cache"
)

func (w *world) packs(name string) (packs []string) {
	w.t.Helper()
	packs, err := filepath.Glob(filepath.Join(w.dir, "cache/repos/*"+name+"*/git/objects/pack/*.pack"))
	if err != nil {
		w.t.Fatal(err)
	}
	return packs
}

func TestARepositoryAtRestIsRepacked(t *testing.T) {
	w := newWorld(t)
	work := w.up.repo(t, "app")
	for i := range 5 {
		commit(t, work, fmt.Sprint("text ", i))
		git(t, work, "push", "-q", "origin", "main")
		git(t, "/", "ls-remote", w.at("app"))
	}
	before := git(t, "/", "ls-remote", w.at("app"))
	if err := w.cache.Tend(t.Context()); err != nil {
		t.Fatal(err)
	}
	loose := func() []string {
		files, err := filepath.Glob(filepath.Join(w.dir, "cache/repos/*/git/objects/??/*"))
		if err != nil {
			t.Fatal(err)
		}
		return files
	}
	if len(w.packs("app"))+len(loose()) < 3 {
		t.Error("a repository that is in use was repacked")
	}
	w.clock.advance(time.Hour)
	if err := w.cache.Tend(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := w.packs("app"); len(n) != 1 || len(loose()) > 0 {
		t.Errorf("packs: %v, loose: %v", n, loose())
	}
	for _, want := range []string{"objects/pack/multi-pack-index-*.bitmap", "objects/info/commit-graphs/*.graph", "packed-refs"} {
		if found, err := filepath.Glob(filepath.Join(w.dir, "cache/repos/*/git", want)); err != nil || len(found) == 0 {
			t.Errorf("there is no %s: %v", want, err)
		}
	}
	if after := git(t, "/", "ls-remote", w.at("app")); after != before {
		t.Errorf("it lists\n%s, before\n%s", after, before)
	}
	to := filepath.Join(t.TempDir(), "clone")
	git(t, "/", "clone", "-q", w.at("app"), to)
	git(t, to, "fsck", "--strict")
	// Nothing to do costs nothing.
	pack := w.packs("app")
	w.clock.advance(time.Hour)
	if err := w.cache.Tend(t.Context()); err != nil {
		t.Fatal(err)
	}
	if again := w.packs("app"); fmt.Sprint(again) != fmt.Sprint(pack) {
		t.Errorf("repacked again: %v, before %v", again, pack)
	}
	// What came since is packed beside, not all of it anew.
	for i := range 3 {
		commit(t, work, fmt.Sprint("later ", i))
		git(t, work, "push", "-q", "origin", "main")
		git(t, "/", "ls-remote", w.at("app"))
	}
	w.clock.advance(time.Hour)
	if err := w.cache.Tend(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := w.packs("app"); len(n) > 2 || len(loose()) > 0 {
		t.Errorf("later, packs: %v, loose: %v", n, loose())
	}
	to = filepath.Join(t.TempDir(), "clone")
	git(t, "/", "clone", "-q", w.at("app"), to)
	git(t, to, "fsck", "--strict")
	if a, b := git(t, to, "rev-parse", "HEAD"), git(t, work, "rev-parse", "HEAD"); a != b {
		t.Errorf("cloned %s, want %s", a, b)
	}
}

func TestUpstreamsAreAskedNowAndThen(t *testing.T) {
	w := newWorld(t, func(c *cache.Config) { c.Interval, c.MaxAge = time.Hour, 24*time.Hour })
	work := w.up.repo(t, "app")
	git(t, "/", "ls-remote", w.at("app"))
	commit(t, work, "newer")
	git(t, work, "push", "-q", "origin", "main")
	for _, wait := range []time.Duration{50 * time.Minute, 20 * time.Minute} {
		w.clock.advance(wait)
		w.up.asked()
		if err := w.cache.Tend(t.Context()); err != nil {
			t.Fatal(err)
		}
		if asked := w.up.asked(); (len(asked) > 0) != (wait == 20*time.Minute) {
			t.Errorf("after another %s the upstream was asked %v", wait, asked)
		}
	}
	if a, b := git(t, "/", "ls-remote", w.at("app"), "main"), git(t, work, "rev-parse", "main"); !strings.HasPrefix(a, strings.TrimSpace(b)) {
		t.Errorf("it has %s, want %s", a, b)
	}
}

func TestDamageIsFoundInTime(t *testing.T) {
	w := newWorld(t)
	w.up.noisy(t, "app", 100_000)
	git(t, "/", "ls-remote", w.at("app"))
	w.clock.advance(time.Hour)
	if err := w.cache.Tend(t.Context()); err != nil {
		t.Fatal(err)
	}
	pack := w.packs("app")[0]
	b, err := os.ReadFile(pack)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 0xff // in the noise, which git copies without a look
	if err := os.Chmod(pack, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(pack, b, 0o600); err != nil {
		t.Fatal(err)
	}
	w.clock.advance(8 * 24 * time.Hour)
	if err := w.cache.Tend(t.Context()); err == nil {
		t.Error("the weekly round finds nothing wrong")
	}
	to := filepath.Join(t.TempDir(), "clone")
	git(t, "/", "clone", "-q", w.at("app"), to)
	git(t, to, "fsck", "--strict")
}

func TestTheLeastRecentlyUsedGivesWay(t *testing.T) {
	w := newWorld(t, func(c *cache.Config) { c.MaxSize = 250_000 })
	for _, name := range []string{"one", "two", "three", "four"} {
		w.up.noisy(t, name, 100_000)
		w.clock.advance(time.Hour)
		git(t, "/", "clone", "-q", w.at(name), filepath.Join(t.TempDir(), "clone"))
	}
	// The oldest is gone upstream: this copy is the only one.
	if err := os.RemoveAll(filepath.Join(w.up.root, "one.git")); err != nil {
		t.Fatal(err)
	}
	here := func() string {
		t.Helper()
		all, err := w.cache.List()
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, e := range all {
			names = append(names, strings.TrimSuffix(strings.TrimPrefix(e.Address, w.up.host+"/"), ".git"))
		}
		return strings.Join(names, " ")
	}
	if err := w.cache.Tend(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := here(); got != "four one" {
		t.Errorf("what is left: %s; want four, read last, and one, which nobody else has", got)
	}
	git(t, "/", "clone", "-q", w.at("two"), filepath.Join(t.TempDir(), "clone"))
	if got := here(); got != "four one two" {
		t.Errorf("after a clone of what was evicted: %s", got)
	}
}
