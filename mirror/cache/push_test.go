package cache_test

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/mirror/cache"
)

// cloned is a clone through the cache, whose git knows ada's password.
func (w *world) cloned(name string) string {
	w.t.Helper()
	to := filepath.Join(w.t.TempDir(), "clone")
	git(w.t, w.dir, "config", "--global", "credential.helper", "!f() { echo username="+user+"; echo password="+password+"; }; f")
	git(w.t, "/", "clone", "-q", w.at(name), to)
	return to
}

func TestAPushGoesToTheUpstream(t *testing.T) {
	w := newWorld(t, func(c *cache.Config) { c.MaxAge = time.Hour })
	work := w.up.repo(t, "app")
	w.up.private.Store(true)
	clone := w.cloned("app")
	commit(t, clone, "through the cache")
	out := git(t, clone, "push", "origin", "main", "HEAD:refs/heads/new")
	if !strings.Contains(out, "main -> main") {
		t.Errorf("git says %s", out)
	}
	want := git(t, clone, "rev-parse", "HEAD")
	if got := git(t, filepath.Join(w.up.root, "app.git"), "rev-parse", "main"); got != want {
		t.Errorf("the upstream has %s, want %s", got, want)
	}
	// The cache is younger than mirror.max_age, and knows it all the same.
	if got := git(t, "/", "ls-remote", w.at("app"), "main", "new"); strings.Count(got, strings.TrimSpace(want)) != 2 {
		t.Errorf("the cache lists %s, want %s twice", got, want)
	}
	// A large one comes in pieces.
	if err := os.WriteFile(filepath.Join(clone, "large"), []byte(strings.Repeat("0123456789abcdef", 200_000)), 0o600); err != nil {
		t.Fatal(err)
	}
	git(t, clone, "config", "core.compression", "0")
	commit(t, clone, "large")
	git(t, clone, "push", "-q", "origin", "main")

	// What the upstream refuses is refused, in its own words.
	hook := "#!/bin/sh\necho 'not on a Friday' >&2\nexit 1\n"
	if err := os.WriteFile(filepath.Join(w.up.root, "app.git/hooks/pre-receive"), []byte(hook), 0o700); err != nil { //nolint:gosec // it is to be run
		t.Fatal(err)
	}
	commit(t, clone, "refused")
	before := git(t, "/", "ls-remote", w.at("app"))
	if out, err := try(clone, "git", "push", "origin", "main"); err == nil || !strings.Contains(out, "remote: not on a Friday") || !strings.Contains(out, "pre-receive hook declined") {
		t.Errorf("a push that is refused: %v %s", err, out)
	}
	if after := git(t, "/", "ls-remote", w.at("app")); after != before {
		t.Errorf("after a push that was refused it lists %s", after)
	}
	if err := os.Remove(filepath.Join(w.up.root, "app.git/hooks/pre-receive")); err != nil {
		t.Fatal(err)
	}
	commit(t, work, "somebody else's")
	git(t, work, "push", "-q", "--force", filepath.Join(w.up.root, "app.git"), "main")
	if out, err := try(clone, "git", "push", "origin", "main"); err == nil || !strings.Contains(out, "rejected") {
		t.Errorf("a push that is no fast-forward: %v %s", err, out)
	}
	// Without the password, nothing.
	git(t, w.dir, "config", "--global", "--unset", "credential.helper")
	if out, err := try(clone, "git", "push", "--force", "origin", "main"); err == nil {
		t.Errorf("nobody pushes: %s", out)
	}
	w.mustNotHold(password)
}

// An upstream that says that it is another one now does not get what its callers
// show sent there.
func TestARedirectTakesNoCredentialsElsewhere(t *testing.T) {
	other := newUpstream(t)
	seen := &lockedBuffer{}
	f := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		fmt.Fprint(seen, r.Header.Get("Authorization"))
		http.Error(rw, "who are you?", http.StatusUnauthorized)
	})
	other.answer.Store(&f)
	w := newWorld(t)
	allow, err := cache.ParseAllow([]string{w.up.host, other.host})
	if err != nil {
		t.Fatal(err)
	}
	w.open(func(c *cache.Config) { c.Allow = allow })
	to := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		http.Redirect(rw, r, other.url+r.URL.String(), http.StatusFound)
	})
	w.up.answer.Store(&to)
	for _, auth := range []string{"", basic(user, password), "", basic(user, password)} {
		for _, path := range []string{"/info/refs?service=git-receive-pack", "/info/refs?service=git-upload-pack", "/git-receive-pack", "/info/lfs/objects/batch"} {
			if strings.HasPrefix(path, "/info/refs") {
				w.do(http.MethodGet, "app", path, "", auth)
			} else {
				w.do(http.MethodPost, "app", path, "0000", auth)
			}
		}
	}
	if len(other.asked()) == 0 || seen.String() != "" {
		t.Errorf("the other host was asked with %q", seen.String())
	}
}

func TestAPushToWhatMovedOrIsDown(t *testing.T) {
	w := newWorld(t)
	w.up.repo(t, "app")
	w.up.moved.Store(true)
	clone := w.cloned("old")
	commit(t, clone, "to the new name")
	git(t, clone, "push", "-q", "origin", "main")
	if a, b := git(t, clone, "rev-parse", "HEAD"), git(t, filepath.Join(w.up.root, "app.git"), "rev-parse", "main"); a != b {
		t.Errorf("the upstream has %s, want %s", b, a)
	}
	commit(t, clone, "to nobody")
	w.up.down.Store(true)
	if out, err := try(clone, "git", "push", "origin", "main"); err == nil || !strings.Contains(out, "does not answer") {
		t.Errorf("a push to an upstream that is down: %v %s", err, out)
	}
	if out, err := try(clone, "git", "push", w.url+"/git/localhost"+w.up.root+"/app.git", "main"); err == nil || !strings.Contains(out, "show its token") && !strings.Contains(out, "could not read Username") {
		t.Errorf("a push to a directory, by nobody: %v %s", err, out)
	}
}
