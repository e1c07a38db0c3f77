package cache_test

import (
	"context"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/mirror/cache"
)

// forge lets the world's upstream be a host called forge, as the service has
// its own.
func (w *world) forge(c *cache.Config) {
	allow, err := cache.ParseAllow([]string{"forge"})
	if err != nil {
		w.t.Fatal(err)
	}
	c.Allow, c.MaxAge = allow, time.Hour
	c.Hosts = map[string]cache.Host{"forge": {URL: w.up.url, Refs: []string{"refs/pull/*/head"}, Always: true, Unchecked: true, Rest: time.Second}}
	c.Credentials = func(_ context.Context, host, _ string) (string, string, error) {
		if host != "forge" {
			w.t.Errorf("credentials for %s", host)
		}
		return user, password, nil
	}
}

// Reads are for who may read by our credentials: one repository, new each time,
// also where it was renamed, with the refs that only this host has.
func TestReadsOfOneRepository(t *testing.T) {
	w := newWorld(t)
	work := w.up.repo(t, "app")
	w.up.private.Store(true)
	w.open(w.forge)
	server := httptest.NewServer(w.cache.Reads(cache.Address{Host: "forge", Path: "app"}))
	defer server.Close()
	clone := filepath.Join(w.dir, "clone")
	git(t, "/", "clone", "-q", server.URL+"/work/any/thing.git", clone)
	commit(t, work, "four")
	git(t, work, "push", "-q", "origin", "main", "HEAD:refs/pull/1/head")
	git(t, clone, "fetch", "-q", "origin", "main", "refs/pull/1/head")
	if a, b := git(t, clone, "rev-parse", "origin/main"), git(t, work, "rev-parse", "HEAD"); a != b {
		t.Errorf("an hour may be too old, and yet it has %s, want %s", a, b)
	}
	for _, args := range [][]string{{"push", server.URL + "/work/any/thing.git", "HEAD:x"}, {"ls-remote", w.url + "/git/forge/app.git"}} {
		if out, err := try(clone, "git", args...); err == nil {
			t.Errorf("git %s went through: %s", strings.Join(args, " "), out)
		}
	}
	w.up.down.Store(true)
	if out := git(t, clone, "fetch", "origin"); !strings.Contains(out, "forge does not answer") && out != "" {
		t.Errorf("with the forge away, git says %s", out)
	}
	w.up.down.Store(false)
	w.clock.advance(2 * time.Second)
	commit(t, work, "five")
	git(t, work, "push", "-q", "origin", "main")
	git(t, clone, "fetch", "-q", "origin")
	if a, b := git(t, clone, "rev-parse", "origin/main"), git(t, work, "rev-parse", "HEAD"); a != b {
		t.Errorf("after the forge was away for a while it has %s, want %s", a, b)
	}
	// One bad object that the forge let in does not keep the rest from being read.
	bare := filepath.Join(w.up.root, "app.git")
	git(t, bare, "update-ref", "refs/heads/agent/1-x", dotGit(t, bare))
	git(t, clone, "fetch", "-q", "origin", "main")
	w.mustNotHold(password)
}

func TestReadsFollowARenamedRepository(t *testing.T) {
	w := newWorld(t)
	w.up.repo(t, "app")
	w.up.moved.Store(true)
	w.up.private.Store(true)
	w.open(w.forge)
	server := httptest.NewServer(w.cache.Reads(cache.Address{Host: "forge", Path: "old"}))
	defer server.Close()
	if out := git(t, "/", "ls-remote", server.URL); !strings.Contains(out, "refs/heads/side") {
		t.Errorf("by its old name it has %s", out)
	}
}

// PublicReads are for who may read what anybody may, of some upstreams.
func TestPublicReads(t *testing.T) {
	w := newWorld(t)
	w.up.repo(t, "open/app")
	w.up.repo(t, "closed/app")
	allow, err := cache.ParseAllow([]string{w.up.host + "/open/*"})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(w.cache.PublicReads(allow))
	defer server.Close()
	at := server.URL + "/git/" + w.up.host
	clone := filepath.Join(w.dir, "clone")
	git(t, "/", "clone", "-q", at+"/open/app", clone)
	for _, args := range [][]string{
		{"ls-remote", at + "/closed/app"}, {"ls-remote", at + "/open/../closed/app"}, {"ls-remote", server.URL + "/git/example.com/open/app"},
		{"push", at + "/open/app", "HEAD:x"},
	} {
		out, err := try(clone, "git", args...)
		if err == nil || !strings.Contains(out, "devaipod: ") {
			t.Errorf("git %s: %v %s", strings.Join(args, " "), err, out)
		}
	}
	// Credentials change nothing.
	w.up.private.Store(true)
	mine := strings.Replace(at, "http://", "http://"+user+":"+password+"@", 1)
	if out, err := try(clone, "git", "ls-remote", mine+"/open/app"); err == nil {
		t.Errorf("what is private now is read: %s", out)
	}
	w.mustNotHold(password)
}
