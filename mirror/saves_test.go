package mirror_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"codeberg.org/devaipod/devaipod/mirror"
)

// A saved world is a stack, the door of its pod's saver, and a generation that
// the pod borrows from.
type savedWorld struct {
	*stack
	rules mirror.SaveRules
	saves string // URL
	own   string // the saver's repository
}

func newSavedWorld(t *testing.T) *savedWorld {
	t.Helper()
	w := &savedWorld{stack: newStack(t)}
	lent := filepath.Join(t.TempDir(), "lent")
	git(t, "/", "clone", "-q", "--bare", "--no-hardlinks", w.bare, lent)
	git(t, lent, "repack", "-q", "-a", "-d")
	w.rules = mirror.SaveRules{RepoID: 7, Issue: 3, Borrow: lent, Quota: 64 << 20}
	w.saves = w.door(t, w.rules)
	w.own = filepath.Join(t.TempDir(), "saver")
	git(t, "/", "clone", "-q", w.bare, w.own)
	return w
}

// door is that of a pod's saver.
func (w *savedWorld) door(t *testing.T, rules mirror.SaveRules) string {
	t.Helper()
	server := httptest.NewServer(w.work.Saves(func() (mirror.SaveRules, error) { return rules, nil }))
	t.Cleanup(server.Close)
	return server.URL + "/saved.git"
}

// commitOf makes a commit in the saver's repository.
func (w *savedWorld) commitOf(t *testing.T, text string) string {
	t.Helper()
	write(t, filepath.Join(w.own, "file"), text)
	git(t, w.own, "add", ".")
	git(t, w.own, "commit", "-qm", text)
	return strings.TrimSpace(git(t, w.own, "rev-parse", "HEAD"))
}

func (w *savedWorld) save(t *testing.T, specs ...string) {
	t.Helper()
	git(t, w.own, append([]string{"push", "-q", w.saves}, specs...)...)
}

func TestWhatIsSavedIsKept(t *testing.T) {
	w := newSavedWorld(t)
	first := w.commitOf(t, "first")
	w.save(t, "HEAD:refs/saved/3/work", "HEAD:refs/saved/3/heads/agent/3-x")
	second := w.commitOf(t, "second")
	w.save(t, "HEAD:refs/saved/3/work")
	if got := strings.TrimSpace(w.store(t, "rev-parse", "refs/saved/3/work", "refs/saved/3/heads/agent/3-x")); got != second+"\n"+first {
		t.Errorf("saved is %s", got)
	}
	// The work store needs no more than the generation.
	if err := os.RemoveAll(w.bare); err != nil {
		t.Fatal(err)
	}
	w.store(t, "fsck", "--connectivity-only")
	if packs, err := filepath.Glob(filepath.Join(w.config.Dir, "7.git/objects/pack/*.pack")); err != nil || len(packs) != 2 {
		t.Errorf("%d packs, %v", len(packs), err)
	}
	borrowed, err := w.work.Borrowed(t.Context())
	if err != nil || !borrowed[w.rules.Borrow] || len(borrowed) != 1 {
		t.Errorf("it holds on to %v, %v", borrowed, err)
	}
	// What is forgotten holds on to nothing.
	if err := w.work.Forget(t.Context(), 7, 3); err != nil {
		t.Fatal(err)
	}
	if out := w.store(t, "for-each-ref"); out != "" {
		t.Errorf("after it is forgotten there is %s", out)
	}
	if borrowed, err = w.work.Borrowed(t.Context()); err != nil || len(borrowed) != 0 {
		t.Errorf("it holds on to %v, %v", borrowed, err)
	}
}

// What was saved once is never lost by a later save.
func TestWhatIsOverwrittenIsKeptToo(t *testing.T) {
	w := newSavedWorld(t)
	base := strings.TrimSpace(git(t, w.own, "rev-parse", "HEAD"))
	first := w.commitOf(t, "first")
	w.save(t, "HEAD:refs/saved/3/work", "HEAD:refs/saved/3/heads/a", "HEAD:refs/saved/3/heads/b")
	git(t, w.own, "reset", "-q", "--hard", base)
	other := w.commitOf(t, "other")
	w.save(t, "+HEAD:refs/saved/3/work", ":refs/saved/3/heads/a", ":refs/saved/3/heads/b")
	if out := w.store(t, "for-each-ref", "--format=%(refname) %(objectname)"); out != "refs/saved/3/kept/"+first+" "+first+"\nrefs/saved/3/work "+other+"\n" {
		t.Errorf("saved is\n%s", out)
	}
	// A ref to what is here already, as the next pod's saver makes: no pack object.
	git(t, w.own, "reset", "-q", "--hard", first)
	w.save(t, "HEAD:refs/saved/3/heads/again")
	w.save(t, ":refs/saved/3/heads/again")
	if out := w.store(t, "for-each-ref", "--format=%(refname)", "refs/saved/3/heads"); out != "" {
		t.Errorf("saved is\n%s", out)
	}
}

func TestASaverSavesItsIssuesWorkOnly(t *testing.T) {
	w := newSavedWorld(t)
	w.commitOf(t, "first")
	for _, ref := range []string{"refs/heads/main", "refs/saved/31/work", "refs/saved/4/work", "refs/accepted/heads/x", "refs/saved/3/../4/work"} {
		if out, err := run(w.own, "push", w.saves, "HEAD:"+ref); err == nil {
			t.Errorf("%s is taken: %s", ref, out)
		}
	}
	if out := w.store(t, "for-each-ref"); out != "" {
		t.Errorf("there is %s", out)
	}
}

// Nobody reads what was saved: not its own saver, nor a pod of the repository, by
// name or by id, in no version of the protocol; and the forge knows nothing of it.
func TestWhatIsSavedIsServedToNobody(t *testing.T) {
	w := newSavedWorld(t)
	id := w.commitOf(t, "first")
	w.save(t, "HEAD:refs/saved/3/work")
	for _, version := range []string{"0", "1", "2"} {
		for _, url := range []string{w.saves, w.url + "/work/alice/hello.git", w.url + "/saved.git", w.url + "/work/7.git"} {
			for _, what := range []string{"refs/saved/3/work", id, "+refs/saved/*:refs/x/*"} {
				dir := t.TempDir()
				git(t, dir, "init", "-q")
				out, err := run(dir, "-c", "protocol.version="+version, "fetch", url, what)
				if _, missing := run(dir, "cat-file", "-e", id); missing == nil {
					t.Errorf("version %s of %s hands out %s: %v %s", version, url, what, err, out)
				}
			}
		}
	}
	if out := git(t, w.bare, "for-each-ref"); strings.Contains(out, "saved") {
		t.Errorf("the forge has %s", out)
	}
	for _, path := range []string{"/saved.git/info/refs", "/saved.git/info/refs?service=git-upload-pack", "/saved.git/HEAD", "/saved.git/objects/info/packs"} {
		resp, err := http.Get(strings.TrimSuffix(w.saves, "/saved.git") + path)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusForbidden {
			t.Errorf("GET %s: %s", path, resp.Status)
		}
	}
}

// No rule looks at what is saved, but it has to be whole.
func TestWhatIsSavedMayBeAnything(t *testing.T) {
	w := newSavedWorld(t)
	for _, path := range []string{".forgejo/workflows/x.yml", "aux", "token"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(w.own, path)), 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(w.own, path), "ghp_"+"012345678901234567890123456789abcdEF\n")
	}
	w.commitOf(t, "first")
	w.save(t, "HEAD:refs/saved/3/work")

	// An id that is nowhere.
	zero := strings.Repeat("0", 40)
	body := pkt(zero+" "+strings.Repeat("1", 40)+" refs/saved/3/heads/x\x00report-status") + "0000"
	empty := "PACK\x00\x00\x00\x02\x00\x00\x00\x00" + "\x02\x9d\x08\x82\x3b\xd8\xa8\xea\xb5\x10\xad\x6a\xc7\x5c\x82\x3c\xfd\x3e\xd3\x1e"
	resp, err := http.Post(w.saves+"/git-receive-pack", "application/x-git-receive-pack-request", strings.NewReader(body+empty))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	out := make([]byte, 1000)
	n, _ := resp.Body.Read(out)
	if !strings.Contains(string(out[:n]), "ng refs/saved/3/heads/x") {
		t.Errorf("what is nowhere is taken: %q", out[:n])
	}
	// What only the forge has, and may lose.
	git(t, w.clone, "push", "-q", w.bare, "HEAD:refs/heads/later")
	if out := w.store(t, "for-each-ref", "--format=%(refname)"); out != "refs/saved/3/work\n" {
		t.Errorf("saved is %s", out)
	}
}

func TestTheQuotaOfWhatIsSaved(t *testing.T) {
	w := newSavedWorld(t)
	w.rules.Quota = 2 << 20
	w.saves = w.door(t, w.rules)
	big := func(n int) {
		t.Helper()
		w.stack.clone = w.own
		w.stack.commit(t, fmt.Sprintf("big%d", n), n<<10)
	}
	big(1500)
	w.save(t, "HEAD:refs/saved/3/work")
	kept := strings.TrimSpace(git(t, w.own, "rev-parse", "HEAD"))
	big(1600)
	out, err := run(w.own, "push", w.saves, "HEAD:refs/saved/3/work")
	if err == nil || !strings.Contains(out, "over quota") || !strings.Contains(out, "work.max_saved") {
		t.Errorf("%v %s", err, out)
	}
	if !strings.Contains(w.log.String(), "level=ERROR") {
		t.Errorf("the log says nothing of it: %s", w.log.String())
	}
	if got := strings.TrimSpace(w.store(t, "rev-parse", "refs/saved/3/work")); got != kept {
		t.Errorf("saved is %s, want %s", got, kept)
	}
	if err := w.nothingLeft(); err != nil {
		t.Error(err)
	}
	// Another issue's is its own.
	rules := w.rules
	rules.Issue = 4
	git(t, w.own, "push", "-q", w.door(t, rules), "HEAD~1:refs/saved/4/work")
}

// A pod that borrows nothing sends all of it.
func TestASaverThatBorrowsNothing(t *testing.T) {
	w := newSavedWorld(t)
	rules := w.rules
	rules.Borrow = ""
	w.saves = w.door(t, rules)
	w.commitOf(t, "first")
	w.save(t, "HEAD:refs/saved/3/work")
	w.store(t, "fsck", "--full", "--strict")
	if borrowed, err := w.work.Borrowed(t.Context()); err != nil || len(borrowed) != 0 {
		t.Errorf("it holds on to %v, %v", borrowed, err)
	}
}

// Many saves make few packs, and what is forgotten takes its room with it.
func TestTheWorkStoreIsLookedAfter(t *testing.T) {
	w := newSavedWorld(t)
	w.stack.clone = w.own
	w.stack.commit(t, "large", 1<<20)
	w.save(t, "HEAD:refs/saved/3/work")
	rules := w.rules
	rules.Issue = 4
	git(t, w.own, "push", "-q", w.door(t, rules), "HEAD~1:refs/saved/4/heads/main")
	for n := range 60 {
		w.commitOf(t, fmt.Sprint(n))
		w.save(t, "HEAD:refs/saved/3/work")
	}
	w.commitOf(t, "of another issue")
	git(t, w.own, "push", "-q", w.door(t, rules), "HEAD:refs/saved/4/work")
	packs := func() int {
		t.Helper()
		found, err := filepath.Glob(filepath.Join(w.config.Dir, "7.git/objects/pack/*.pack"))
		if err != nil {
			t.Fatal(err)
		}
		return len(found)
	}
	before := packs()
	if err := w.work.Tend(t.Context()); err != nil {
		t.Fatal(err)
	}
	if after := packs(); before < 60 || after > 10 {
		t.Errorf("%d packs became %d", before, after)
	}
	w.store(t, "fsck", "--connectivity-only")
	if err := w.work.Forget(t.Context(), 7, 4); err != nil {
		t.Fatal(err)
	}
	w.store(t, "fsck", "--connectivity-only")
	if err := w.work.Forget(t.Context(), 7, 3); err != nil {
		t.Fatal(err)
	}
	if n := packs(); n != 0 {
		t.Errorf("%d packs stay", n)
	}
	w.save(t, "HEAD:refs/saved/3/work")
	w.store(t, "fsck", "--connectivity-only")
}

// The newest generation takes the place of those before, but where these have what
// it has not.
func TestOlderGenerationsAreLetGo(t *testing.T) {
	w := newSavedWorld(t)
	w.commitOf(t, "first")
	w.save(t, "HEAD:refs/saved/3/work")
	lend := func(args ...string) string {
		t.Helper()
		lent := filepath.Join(t.TempDir(), "lent")
		git(t, "/", append([]string{"clone", "-q", "--bare", "--no-hardlinks"}, append(args, "file://"+w.bare, lent)...)...)
		git(t, lent, "repack", "-q", "-a", "-d")
		return lent
	}
	borrowed := func(want ...string) {
		t.Helper()
		got, err := w.work.Borrowed(t.Context())
		if err != nil || len(got) != len(want) {
			t.Fatalf("it holds on to %v, %v; want %v", got, err, want)
		}
		for _, dir := range want {
			if !got[dir] {
				t.Errorf("it holds on to %v, want %v", got, want)
			}
		}
		w.store(t, "fsck", "--connectivity-only")
	}
	w.trust(t, "newer", "x")
	rules := w.rules
	rules.Issue, rules.Borrow = 4, lend()
	git(t, w.own, "fetch", "-q", w.bare, "main")
	git(t, w.own, "push", "-q", w.door(t, rules), "HEAD:refs/saved/4/work")
	borrowed(rules.Borrow)
	// One of another history has not what was saved before.
	git(t, w.bare, "update-ref", "refs/heads/main", strings.TrimSpace(git(t, w.bare, "commit-tree", "-m", "anew", "main^{tree}")))
	last := rules.Borrow
	rules.Issue, rules.Borrow = 5, lend("--single-branch")
	git(t, w.own, "fetch", "-q", w.bare, "main")
	git(t, w.own, "push", "-q", w.door(t, rules), "FETCH_HEAD:refs/saved/5/work")
	borrowed(last, rules.Borrow)
}
