package mirror_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"codeberg.org/devaipod/devaipod/mirror"
)

// restoreDoor is what a pod of an issue asks for what was saved.
func (w *savedWorld) restoreDoor(t *testing.T, rules mirror.Rules, issue int64) string {
	t.Helper()
	server := httptest.NewServer(w.work.Saved(rules, issue))
	t.Cleanup(server.Close)
	return server.URL + "/saved.bundle"
}

// ask asks it, and returns what was answered.
func ask(t *testing.T, url string) (status int, body string) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// bundle has the answer in a file, as git wants it.
func (w *savedWorld) bundle(t *testing.T) string {
	t.Helper()
	status, body := ask(t, w.restoreDoor(t, w.stack.rules, 3))
	if status != http.StatusOK {
		t.Fatalf("%d %s", status, body)
	}
	file := filepath.Join(t.TempDir(), "bundle")
	write(t, file, body)
	return file
}

func TestWhatWasSavedComesBackInABundle(t *testing.T) {
	w := newSavedWorld(t)
	base := strings.TrimSpace(git(t, w.own, "rev-parse", "HEAD"))
	first := w.commitOf(t, "first")
	second := w.commitOf(t, "second")
	w.save(t, first+":refs/saved/3/heads/a", second+":refs/saved/3/work", base+":refs/saved/3/heads/main", first+":refs/saved/3/stash/newest")
	// What is kept beside, and other issues'.
	git(t, w.own, "reset", "-q", "--hard", base)
	other := w.commitOf(t, "other")
	w.save(t, other+":refs/saved/3/kept/"+other)
	rules := w.rules
	rules.Issue = 31
	git(t, w.own, "push", "-q", w.door(t, rules), other+":refs/saved/31/work")

	file := w.bundle(t)
	clone := filepath.Join(t.TempDir(), "clone")
	git(t, "/", "clone", "-q", w.bare, clone)
	git(t, clone, "bundle", "verify", "-q", file)
	git(t, clone, "fetch", "-q", file, "refs/*:refs/of-it/*")
	want := base + " refs/of-it/saved/3/heads/main\n"
	for _, line := range []string{first + " refs/of-it/saved/3/heads/a\n", first + " refs/of-it/saved/3/stash/newest\n", second + " refs/of-it/saved/3/work\n"} {
		want += line
	}
	got := git(t, clone, "for-each-ref", "--format=%(objectname) %(refname)", "refs/of-it")
	if strings.Count(got, "\n") != 4 || !sameLines(got, want) {
		t.Errorf("it has\n%swant\n%s", got, want)
	}
	git(t, clone, "fsck", "--strict")
	if _, err := run(clone, "cat-file", "-e", other); err == nil {
		t.Error("it has the objects of what is kept, or of another issue")
	}
	// What a clone has of the forge does not come again.
	empty := t.TempDir()
	git(t, empty, "init", "-q")
	if out, err := run(empty, "bundle", "verify", file); err == nil || !strings.Contains(out, base) {
		t.Errorf("it does not want %s: %s", base, out)
	}
	if out := git(t, clone, "cat-file", "--batch-check", "--batch-all-objects"); strings.Count(out, "\n") != 9 {
		t.Errorf("the clone has %d objects:\n%s", strings.Count(out, "\n"), out)
	}
}

func sameLines(a, b string) bool {
	for line := range strings.Lines(a) {
		if !strings.Contains(b, line) {
			return false
		}
	}
	return len(a) == len(b)
}

// The pod's own issue alone: whatever is asked, and by whatever name.
func TestWhatWasSavedIsForItsOwnIssueAlone(t *testing.T) {
	w := newSavedWorld(t)
	w.commitOf(t, "first")
	w.save(t, "HEAD:refs/saved/3/work")
	for name, issue := range map[string]int64{"another": 4, "one that begins alike": 31, "none": 0} {
		if status, body := ask(t, w.restoreDoor(t, w.stack.rules, issue)); status != http.StatusNotFound {
			t.Errorf("%s: %d %s", name, status, body)
		}
	}
	rules := w.stack.rules
	rules.RepoID = 8 // of the same name once
	if status, body := ask(t, w.restoreDoor(t, rules, 3)); status != http.StatusNotFound {
		t.Errorf("another repository: %d %s", status, body)
	}
	if left, err := filepath.Glob(filepath.Join(w.config.Dir, "8.git*")); err != nil || len(left) > 0 {
		t.Errorf("asking made %v, %v", left, err)
	}
	_, of3 := ask(t, w.restoreDoor(t, w.stack.rules, 3))
	asked := w.restoreDoor(t, w.stack.rules, 4)
	for _, query := range []string{"?issue=3", "?repo=7&issue=3", "/../saved.bundle?3", "/3"} {
		if status, body := ask(t, asked+query); status == http.StatusOK || body == of3 {
			t.Errorf("%s: %d", query, status)
		}
	}
	// Nor is it where pods fetch and push, or where savers save.
	for _, url := range []string{w.url, strings.TrimSuffix(w.saves, "/saved.git")} {
		if status, body := ask(t, url+"/saved.bundle"); status != http.StatusForbidden {
			t.Errorf("%s: %d %s", url, status, body)
		}
	}
	for _, suffix := range []string{"/saved.git/info/refs", "/work/alice/hello.git/info/refs"} {
		if status, _ := ask(t, strings.TrimSuffix(asked, "/saved.bundle")+suffix); status == http.StatusOK {
			t.Errorf("git is answered at %s", suffix)
		}
	}
}

func TestABundleOfAnIssueOfWhichNothingWasSaved(t *testing.T) {
	w := newSavedWorld(t)
	if status, body := ask(t, w.restoreDoor(t, w.stack.rules, 3)); status != http.StatusNotFound || !strings.Contains(body, "nothing was saved") {
		t.Errorf("%d %s", status, body)
	}
	// A branch without a snapshot is none that a pod could begin from.
	w.commitOf(t, "first")
	w.save(t, "HEAD:refs/saved/3/heads/a")
	if status, body := ask(t, w.restoreDoor(t, w.stack.rules, 3)); status != http.StatusNotFound {
		t.Errorf("%d %s", status, body)
	}
}

// The forge may be away for now: what was saved comes all the same, and against
// what is known of the forge.
func TestABundleWhileTheForgeIsAway(t *testing.T) {
	w := newSavedWorld(t)
	saved := w.commitOf(t, "first")
	w.save(t, "HEAD:refs/saved/3/work")
	w.down.Store(true)
	clone := filepath.Join(t.TempDir(), "clone")
	git(t, "/", "clone", "-q", w.bare, clone)
	git(t, clone, "fetch", "-q", w.bundle(t), "refs/saved/3/work")
	git(t, clone, "cat-file", "-e", saved)
}

// A repository that is not known at all now is one to ask for again.
func TestABundleOfAnUnknownRepository(t *testing.T) {
	w := newSavedWorld(t)
	w.commitOf(t, "first")
	w.save(t, "HEAD:refs/saved/3/work")
	w.down.Store(true)
	rules := w.stack.rules
	rules.Repo = "alice/never-fetched"
	if status, body := ask(t, w.restoreDoor(t, rules, 3)); status != http.StatusBadGateway {
		t.Errorf("%d %s", status, body)
	}
}

// What is damaged is not told as if it were whole.
func TestABundleOfWhatIsDamaged(t *testing.T) {
	w := newSavedWorld(t)
	w.commitOf(t, "first")
	w.save(t, "HEAD:refs/saved/3/work")
	packs, err := filepath.Glob(filepath.Join(w.config.Dir, "7.git/objects/pack/*.pack"))
	if err != nil || len(packs) != 1 {
		t.Fatal(packs, err)
	}
	if err := os.Remove(packs[0]); err != nil {
		t.Fatal(err)
	}
	if status, body := ask(t, w.restoreDoor(t, w.stack.rules, 3)); status != http.StatusInternalServerError {
		t.Errorf("%d %s", status, body)
	}
	if !strings.Contains(w.log.String(), "level=ERROR") {
		t.Error("the log says nothing of it")
	}
}

// git reads what was saved in a box: from a store that leads out, nothing comes.
func TestABundleIsMadeInABox(t *testing.T) {
	w := newSavedWorld(t)
	w.commitOf(t, "first")
	w.save(t, "HEAD:refs/saved/3/work")
	packs, err := filepath.Glob(filepath.Join(w.config.Dir, "7.git/objects/pack/*"))
	if err != nil {
		t.Fatal(err)
	}
	outside := t.TempDir()
	for _, p := range packs {
		to := filepath.Join(outside, filepath.Base(p))
		if err := os.Rename(p, to); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(to, p); err != nil {
			t.Fatal(err)
		}
	}
	if status, _ := ask(t, w.restoreDoor(t, w.stack.rules, 3)); status == http.StatusOK {
		t.Error("git read files outside of the store")
	}
}
