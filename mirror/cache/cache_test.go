package cache_test

import (
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/mirror/cache"
)

func TestGitSeesTheSameThroughTheCache(t *testing.T) {
	w := newWorld(t)
	work := w.up.repo(t, "team/app")
	commit(t, work, "four")
	git(t, work, "push", "-q", "origin", "main")
	full := git(t, work, "rev-list", "--all", "--objects")
	for _, version := range []string{"0", "1", "2"} {
		g := func(args ...string) string {
			return git(t, t.TempDir(), append([]string{"-c", "protocol.version=" + version}, args...)...)
		}
		direct, through := g("ls-remote", w.up.url+"/team/app.git"), g("ls-remote", w.at("team/app"))
		if direct != through || !strings.Contains(direct, "refs/tags/v1^{}") {
			t.Errorf("version %s: upstream lists\n%s, the cache\n%s", version, direct, through)
		}
		to := filepath.Join(t.TempDir(), "clone")
		g("clone", "-q", w.at("team/app"), to)
		if got := git(t, to, "rev-list", "--all", "--objects"); lines(got) != lines(full) {
			t.Errorf("version %s: cloned\n%s\nwant\n%s", version, got, full)
		}
		git(t, to, "fsck", "--strict")

		shallow := filepath.Join(t.TempDir(), "clone")
		g("clone", "-q", "--depth=1", w.at("team/app"), shallow)
		if n := lines(git(t, shallow, "rev-list", "HEAD")); n != 1 {
			t.Errorf("version %s: %d commits with --depth=1", version, n)
		}
		git(t, shallow, "-c", "protocol.version="+version, "fetch", "-q", "--deepen=1")
		if n := lines(git(t, shallow, "rev-list", "HEAD")); n != 2 {
			t.Errorf("version %s: %d commits after --deepen=1", version, n)
		}
		since := filepath.Join(t.TempDir(), "clone")
		g("clone", "-q", "--shallow-since=2001-01-01", w.at("team/app"), since)
		for _, filter := range []string{"blob:none", "tree:0"} {
			partial := filepath.Join(t.TempDir(), "clone")
			g("clone", "-q", "--no-checkout", "--filter="+filter, w.at("team/app"), partial)
			if out := git(t, partial, "rev-list", "--all", "--objects", "--missing=print"); !strings.Contains(out, "\n?") {
				t.Errorf("version %s: nothing is missing with --filter=%s:\n%s", version, filter, out)
			}
			git(t, partial, "-c", "protocol.version="+version, "checkout", "-q", "main") // brings what is missing
		}
	}
}

func lines(s string) int { return strings.Count(s, "\n") }

func TestOneQuestionForAllWhoWantTheSame(t *testing.T) {
	w := newWorld(t)
	w.up.repo(t, "app")
	w.up.asked()
	all := func() {
		t.Helper()
		dirs := make([]string, 32)
		for i := range dirs {
			dirs[i] = filepath.Join(t.TempDir(), "clone")
		}
		var wait sync.WaitGroup
		for _, dir := range dirs {
			wait.Go(func() {
				if out, err := try("/", "git", "clone", "-q", w.at("app"), dir); err != nil {
					t.Errorf("%v: %s", err, out)
				}
			})
		}
		wait.Wait()
	}
	all()
	if asked := w.up.asked(); asked["POST fetch"] != 1 {
		t.Errorf("32 clones of what was not there asked upstream %v, want one fetch", asked)
	}
}

func TestMaxAge(t *testing.T) {
	w := newWorld(t, func(c *cache.Config) { c.MaxAge = time.Minute })
	work := w.up.repo(t, "app")
	before := git(t, "/", "ls-remote", w.at("app"), "main")
	commit(t, work, "newer")
	git(t, work, "push", "-q", "origin", "main")
	w.up.asked()
	w.clock.advance(30 * time.Second)
	if got := git(t, "/", "ls-remote", w.at("app"), "main"); got != before {
		t.Errorf("before its time it says %s", got)
	}
	if asked := w.up.asked(); len(asked) > 0 {
		t.Errorf("before its time the upstream was asked %v", asked)
	}
	resp := w.get("app", "")
	if age := resp.Header.Get("Age"); age < "30" || len(age) != 2 {
		t.Errorf("Age: %s", age)
	}
	if s := resp.Header.Get("Cache-Status"); !strings.HasPrefix(s, "devaipod; hit; ttl=") {
		t.Errorf("Cache-Status: %s", s)
	}
	w.clock.advance(31 * time.Second)
	want := git(t, work, "rev-parse", "main")
	if got := git(t, "/", "ls-remote", w.at("app"), "main"); !strings.HasPrefix(got, strings.TrimSpace(want)) {
		t.Errorf("after its time it says %s, want %s", got, want)
	}
	if s := w.get("app", "").Header.Get("Cache-Status"); !strings.HasPrefix(s, "devaipod; hit") {
		t.Errorf("Cache-Status: %s", s)
	}
}

// What was asked, and pushed, before a clock was set back does not count until the
// clock is there again.
func TestAClockThatIsSetBack(t *testing.T) {
	for _, pushed := range []bool{false, true} {
		w := newWorld(t, func(c *cache.Config) { c.MaxAge = time.Minute })
		work := w.up.repo(t, "app")
		git(t, "/", "ls-remote", w.at("app"), "main")
		if pushed {
			var states []string
			err := filepath.WalkDir(w.dir, func(path string, _ fs.DirEntry, err error) error {
				if filepath.Base(path) == "state.json" {
					states = append(states, path)
				}
				return err
			})
			if err != nil || len(states) != 1 {
				t.Fatal(states, err)
			}
			if err := os.WriteFile(filepath.Join(filepath.Dir(states[0]), "pushed"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		commit(t, work, "newer")
		git(t, work, "push", "-q", "origin", "main")
		w.clock.advance(-5 * time.Hour)
		w.up.asked()
		want := strings.TrimSpace(git(t, work, "rev-parse", "main"))
		for range 2 {
			if got := git(t, "/", "ls-remote", w.at("app"), "main"); !strings.HasPrefix(got, want) {
				t.Errorf("pushed %v: it says %s, want %s", pushed, got, want)
			}
		}
		if asked := w.up.asked(); asked["POST fetch"] != 1 {
			t.Errorf("pushed %v: the upstream was asked %v, want one fetch", pushed, asked)
		}
	}
}

// get asks git's first question.
func (w *world) get(name, auth string) *http.Response {
	w.t.Helper()
	return w.do(http.MethodGet, name, "/info/refs?service=git-upload-pack", "", auth)
}

func TestItFollowsWhatTheUpstreamDoes(t *testing.T) {
	w := newWorld(t)
	work := w.up.repo(t, "app")
	same := func(what string) {
		t.Helper()
		if up, here := git(t, "/", "ls-remote", "--symref", w.up.url+"/app.git"), git(t, "/", "ls-remote", "--symref", w.at("app")); up != here {
			t.Errorf("%s: upstream has\n%s, the cache\n%s", what, up, here)
		}
	}
	same("at first")
	git(t, work, "push", "-q", "origin", ":side")
	same("a branch deleted")
	git(t, work, "push", "-q", "origin", "main:side/inner")
	same("a branch within the name of one that is gone")
	git(t, work, "reset", "-q", "--hard", "HEAD~2")
	commit(t, work, "other")
	git(t, work, "push", "-q", "--force", "origin", "main")
	same("a forced push")
	git(t, work, "push", "-q", "origin", ":side/inner")
	git(t, work, "push", "-q", "origin", "main:side")
	same("the other way round")
	git(t, work, "tag", "-fam", "Another", "v1", "HEAD~1")
	git(t, work, "push", "-q", "--force", "origin", "v1")
	same("a tag moved")
	git(t, filepath.Join(w.up.root, "app.git"), "symbolic-ref", "HEAD", "refs/heads/side")
	same("another default branch")
	git(t, work, "push", "-q", "origin", "HEAD:refs/notes/review")
	same("notes")
}

func TestAnEmptyRepository(t *testing.T) {
	w := newWorld(t)
	git(t, "/", "init", "-q", "--bare", filepath.Join(w.up.root, "empty.git"))
	if out := git(t, "/", "ls-remote", w.at("empty")); out != "" {
		t.Errorf("it lists %s", out)
	}
	git(t, "/", "clone", "-q", w.at("empty"), filepath.Join(t.TempDir(), "clone"))
}

func TestWhatGitRefusesItSays(t *testing.T) {
	w := newWorld(t)
	w.up.repo(t, "app")
	to := filepath.Join(t.TempDir(), "clone")
	git(t, "/", "clone", "-q", w.at("app"), to)
	for _, version := range []string{"0", "2"} {
		for range 2 { // the answer is kept like any other
			out, err := try(to, "git", "-c", "protocol.version="+version, "fetch", "origin", strings.Repeat("12", 20))
			if err == nil || !strings.Contains(out, "not our ref "+strings.Repeat("12", 20)) {
				t.Errorf("version %s: asked for an object that nobody has, it says %v %s", version, err, out)
			}
		}
	}
}

func TestABundle(t *testing.T) {
	w := newWorld(t)
	work := w.up.repo(t, "app")
	to := filepath.Join(t.TempDir(), "clone")
	git(t, "/", "clone", "-q", "--bundle-uri="+w.at("app")+"/clone.bundle", w.at("app"), to)
	if a, b := git(t, to, "rev-parse", "origin/main"), git(t, work, "rev-parse", "main"); a != b {
		t.Errorf("cloned %s, want %s", a, b)
	}
	if refs := git(t, to, "for-each-ref", "refs/bundles"); !strings.Contains(refs, "refs/bundles/main") {
		t.Errorf("git made no use of the bundle: %s", refs)
	}
	w.up.private.Store(true)
	if resp := w.raw("/git/" + w.up.host + "/app.git/clone.bundle"); resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("a bundle of what is private: %s", resp.Status)
	}
}
