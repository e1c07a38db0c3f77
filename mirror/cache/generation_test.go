package cache_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/mirror/cache"
)

func forgeAddr(name string) cache.Address { return cache.Address{Host: "forge", Path: name} }

// lends lets the world's upstream be a host called forge that tells identities:
// a file in each repository, which stays when the repository is renamed.
func (w *world) lends(c *cache.Config) {
	w.forge(c)
	h := c.Hosts["forge"]
	h.Identity = func(_ context.Context, path string) (string, error) {
		b, err := os.ReadFile(filepath.Join(w.up.root, path+".git", "identity"))
		if errors.Is(err, fs.ErrNotExist) {
			return "", nil
		}
		return string(b), err
	}
	c.Hosts["forge"] = h
}

// numbered makes a repository upstream that has an identity, with some noise.
func (up *upstream) numbered(t *testing.T, name, identity string) (work string) {
	t.Helper()
	work = up.repo(t, name)
	noise(t, filepath.Join(work, "noise"), 300_000)
	commit(t, work, "noise")
	git(t, work, "push", "-q", "origin", "main")
	up.number(t, name, identity)
	return work
}

func (up *upstream) number(t testing.TB, name, identity string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(up.root, name+".git", "identity"), []byte(identity), 0o600); err != nil {
		t.Fatal(err)
	}
}

// lend is Lend, of which nobody tells that it is in use.
func (w *world) lend(name, identity string) string {
	w.t.Helper()
	dir, done, err := w.cache.Lend(w.t.Context(), forgeAddr(name), identity)
	if err != nil {
		w.t.Fatal(err)
	}
	done()
	return dir
}

// reads serves a repository as a pod's door does.
func (w *world) reads(name string) (url string) {
	server := httptest.NewServer(w.cache.Reads(forgeAddr(name)))
	w.t.Cleanup(server.Close)
	return server.URL
}

// holds checks that a repository has all that its refs lead to, and tells where
// main is.
func (w *world) holds(dir string) (main string) {
	w.t.Helper()
	git(w.t, dir, "fsck", "--connectivity-only", "--no-dangling")
	git(w.t, dir, "rev-list", "--objects", "--all", "--quiet")
	return strings.TrimSpace(git(w.t, dir, "rev-parse", "main"))
}

// lentNow are the names of what is below lent/.
func (w *world) lentNow(dir string) (names []string) {
	w.t.Helper()
	all, err := os.ReadDir(filepath.Join(w.dir, dir, "lent", "pods"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		w.t.Fatal(err)
	}
	for _, d := range all {
		names = append(names, d.Name())
	}
	return names
}

func inUse(dirs ...string) func() (map[string]bool, error) {
	used := map[string]bool{}
	for _, d := range dirs {
		used[d] = true
	}
	return func() (map[string]bool, error) { return used, nil }
}

func bytesBelow(t testing.TB, dir string) (sum int64) {
	t.Helper()
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			sum += info.Size()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return sum
}

func TestABorrowingCloneIsSmallAndOutlivesTheCachesCopy(t *testing.T) {
	w := newWorld(t)
	work := w.up.numbered(t, "app", "7")
	w.open(w.lends)
	dir := w.lend("app", "7")
	url := w.reads("app")
	commit(t, work, "newer than what is lent")
	git(t, work, "push", "-q", "origin", "main")
	clone := filepath.Join(w.dir, "clone")
	git(t, "/", "clone", "-q", "--reference", dir, url, clone)
	if n := bytesBelow(t, filepath.Join(clone, ".git", "objects")); n > 10_000 {
		t.Errorf("the clone has %d bytes of objects of its own", n)
	}
	// Another history takes the place of what was lent, and nothing of that is left
	// in the cache.
	git(t, work, "checkout", "-q", "--orphan", "other")
	commit(t, work, "another beginning")
	git(t, work, "push", "-q", "--force", "origin", "other:main", ":side", ":v1")
	git(t, "/", "ls-remote", url)
	w.clock.advance(60 * 24 * time.Hour)
	if err := w.cache.Tend(t.Context()); err != nil {
		t.Fatal(err)
	}
	base := strings.TrimSpace(git(t, dir, "rev-parse", "main"))
	for _, gone := range w.packs("app") {
		if out, err := try("/", "git", "--git-dir", filepath.Dir(filepath.Dir(filepath.Dir(gone))), "cat-file", "-e", base); err == nil {
			t.Fatalf("the cache still has it: %s", out)
		}
	}
	if err := w.cache.Remove(t.Context(), forgeAddr("app"), true); err != nil {
		t.Fatal(err)
	}
	w.holds(dir)
	w.holds(clone)
	git(t, clone, "gc", "-q", "--prune=now")
	git(t, clone, "fsck", "--strict", "--no-dangling")
	git(t, clone, "repack", "-q", "-a", "-d") // copies all: then it stands alone
	if err := os.RemoveAll(filepath.Join(clone, ".git", "objects", "info", "alternates")); err != nil {
		t.Fatal(err)
	}
	w.holds(clone)
}

// What is lent is read by anybody whom it is mounted for, and by nobody else.
func TestModesOfWhatIsLent(t *testing.T) {
	old := syscall.Umask(0o077)
	defer syscall.Umask(old)
	w := newWorld(t)
	work := w.up.numbered(t, "app", "7")
	w.open(w.lends)
	git(t, "/", "ls-remote", w.reads("app"))
	commit(t, work, "a few loose objects")
	git(t, work, "push", "-q", "origin", "main")
	dir := w.lend("app", "7")
	loose := 0
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		want := fs.FileMode(0o444)
		if d.IsDir() {
			want = 0o755
		} else if len(d.Name()) == 38 {
			loose++
		}
		if info.Mode().Perm() != want {
			t.Errorf("%s has the mode %s", path, info.Mode())
		}
		return nil
	})
	if err != nil || loose == 0 {
		t.Errorf("%d loose objects, %v", loose, err)
	}
	for _, parent := range []string{filepath.Dir(dir), filepath.Dir(filepath.Dir(dir))} {
		if info, err := os.Stat(parent); err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("%s: %v %v", parent, info.Mode(), err)
		}
	}
}

func TestPodsShareAGenerationUntilTheRepositoryChanges(t *testing.T) {
	w := newWorld(t)
	work := w.up.numbered(t, "app", "7")
	w.open(w.lends)
	first, again := w.lend("app", "7"), w.lend("app", "7")
	if first != again {
		t.Errorf("lent %s, then %s", first, again)
	}
	w.clock.advance(30 * 24 * time.Hour) // and repacked meanwhile
	if err := w.cache.Tend(t.Context()); err != nil {
		t.Fatal(err)
	}
	if again := w.lend("app", "7"); first != again {
		t.Errorf("lent %s, and after a repack %s", first, again)
	}
	before := w.holds(first)
	commit(t, work, "more")
	git(t, work, "push", "-q", "origin", "main")
	second := w.lend("app", "7")
	if second == first {
		t.Error("the repository changed, and the same is lent")
	}
	if a, b := w.holds(second), git(t, work, "rev-parse", "main"); a != strings.TrimSpace(b) {
		t.Errorf("main is %s there, want %s", a, b)
	}
	if w.holds(first) != before {
		t.Error("what was lent before changed")
	}
}

func TestOnlyWhatNobodyHasIsReleased(t *testing.T) {
	w := newWorld(t)
	work := w.up.numbered(t, "app", "7")
	w.open(w.lends)
	first := w.lend("app", "7")
	commit(t, work, "more")
	git(t, work, "push", "-q", "origin", "main")
	second, done, err := w.cache.Lend(t.Context(), forgeAddr("app"), "7")
	if err != nil {
		t.Fatal(err)
	}
	keep := func(used func() (map[string]bool, error), want ...string) {
		t.Helper()
		if err := w.cache.Keep(used); err != nil {
			t.Fatal(err)
		}
		for _, dir := range want {
			w.holds(dir)
		}
		if got := w.lentNow("cache"); len(got) != len(want) {
			t.Errorf("left: %v, want %v", got, want)
		}
	}
	keep(inUse(first), first, second) // the second is on its way to a pod
	if err := w.cache.Keep(func() (map[string]bool, error) { return nil, errors.New("podman is away") }); err == nil {
		t.Error("nobody knows what is in use, and that is well")
	}
	keep(inUse(first, second), first, second)
	done()
	// It gets to its pod just after the pods were looked at.
	keep(func() (map[string]bool, error) {
		if dir := w.lend("app", "7"); dir != second {
			t.Errorf("lent %s", dir)
		}
		return inUse(first)()
	}, first, second)
	keep(inUse(second), second)
	// What kills have left goes, what is in use stays.
	for _, left := range []string{"x.new", "x.gone", filepath.Base(first) + ".new"} {
		if err := os.MkdirAll(filepath.Join(filepath.Dir(second), left, "objects"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	keep(inUse(second), second)
	keep(inUse())
}

// A name that another repository takes lends nothing of the one before, and no
// pod of that one gets the new one's.
func TestARepositoryMadeAnewUnderAnOldName(t *testing.T) {
	w := newWorld(t)
	w.up.numbered(t, "app", "7")
	w.open(w.lends)
	url := w.reads("app")
	old := w.lend("app", "7")
	secret := strings.TrimSpace(git(t, old, "rev-parse", "main"))
	if err := os.Rename(filepath.Join(w.up.root, "app.git"), filepath.Join(w.up.root, "moved.git")); err != nil {
		t.Fatal(err)
	}
	w.up.numbered(t, "app", "8")
	_, _, err := w.cache.Lend(t.Context(), forgeAddr("app"), "7")
	var other *cache.IdentityError
	if !errors.As(err, &other) || other.Have != "8" || other.Want != "7" {
		t.Errorf("the old one's pod was lent the new one's: %v", err)
	}
	young := w.lend("app", "8")
	if out, err := try(young, "git", "cat-file", "-e", secret); err == nil {
		t.Errorf("the new one holds the old one's commit: %s", out)
	}
	probe := filepath.Join(w.dir, "probe")
	git(t, "/", "init", "-q", probe)
	if out, err := try(probe, "git", "fetch", "-q", url, secret); err == nil {
		t.Errorf("the old one's commit is read by its id under the new one's name: %s", out)
	}
	if moved := w.lend("moved", "7"); w.holds(moved) != secret || w.holds(old) != secret {
		t.Error("the old one is not whole under its new name")
	}
	w.up.repo(t, "nameless")
	for _, want := range []string{"", "9"} {
		if _, _, err := w.cache.Lend(t.Context(), forgeAddr("nameless"), want); !errors.As(err, &other) {
			t.Errorf("lent as %q what has no identity: %v", want, err)
		}
	}
}

// It changes hands while it is fetched: nobody gets that mixture.
func TestANameTakenDuringAFetch(t *testing.T) {
	w := newWorld(t)
	w.up.numbered(t, "app", "7")
	w.open(w.lends)
	for _, what := range []string{"the first fetch", "an update"} {
		arrived, release := w.up.slow(t)
		lent := make(chan error, 1)
		go func() {
			_, _, err := w.cache.Lend(t.Context(), forgeAddr("app"), "7")
			lent <- err
		}()
		<-arrived
		w.up.number(t, "app", "8")
		release()
		w.up.hold.Store(nil)
		if err := <-lent; err == nil || !strings.Contains(err.Error(), "became another repository") {
			t.Errorf("%s: %v", what, err)
		}
		w.clock.advance(2 * time.Second)
		w.lend("app", "8")
		w.up.number(t, "app", "7")
	}
}

// What is lent stays whole while the cache repacks, prunes, removes and fetches,
// and while others are lent and released.
func TestLendingUnderLoad(t *testing.T) {
	w := newWorld(t)
	work := w.up.numbered(t, "app", "7")
	w.open(w.lends)
	url := w.reads("app")
	ctx, stop := context.WithCancel(t.Context())
	var around, lenders sync.WaitGroup
	again := func(f func(n int) error) {
		around.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				if err := f(n); err != nil && ctx.Err() == nil {
					t.Error(err)
					return
				}
			}
		})
	}
	again(func(n int) error { // upstream moves on, and back
		commit(t, work, fmt.Sprint("change ", n))
		if n%5 == 4 {
			git(t, work, "reset", "-q", "--hard", "HEAD~3")
		}
		git(t, work, "push", "-q", "--force", "origin", "HEAD:main")
		time.Sleep(20 * time.Millisecond)
		return nil
	})
	again(func(int) error { // each round throws away what no ref reaches
		w.clock.advance(30 * 24 * time.Hour)
		time.Sleep(30 * time.Millisecond)
		return w.cache.Tend(ctx)
	})
	again(func(int) error {
		time.Sleep(150 * time.Millisecond)
		if err := w.cache.Remove(ctx, forgeAddr("app"), true); !errors.Is(err, cache.ErrNotHere) {
			return err
		}
		return nil
	})
	var pods sync.Map // what each borrows
	again(func(int) error {
		time.Sleep(10 * time.Millisecond)
		return w.cache.Keep(func() (map[string]bool, error) {
			used := map[string]bool{}
			pods.Range(func(_, dir any) bool { used[dir.(string)] = true; return true })
			return used, nil
		})
	})
	var clones atomic.Int64
	for range 4 {
		lenders.Go(func() {
			for range 5 {
				id := clones.Add(1)
				dir, done, err := w.cache.Lend(ctx, forgeAddr("app"), "7")
				if err != nil {
					t.Error(err)
					return
				}
				pods.Store(id, dir)
				done()
				to := filepath.Join(w.dir, fmt.Sprint("clone", id))
				// The service's copy may be removed between a fetch's two questions.
				if out, err := try("/", "git", "clone", "-q", "--reference", dir, url, to); err != nil {
					t.Logf("clone %d: %v %s", id, err, out)
					to = dir
				}
				for _, d := range []string{dir, to} {
					if out, err := try(d, "git", "fsck", "--connectivity-only", "--no-dangling"); err != nil {
						t.Errorf("%s is not whole: %v %s", d, err, out)
					}
				}
				if id%2 == 0 {
					pods.Delete(id)
				}
			}
		})
	}
	lenders.Wait()
	stop()
	around.Wait()
	used := map[string]bool{}
	pods.Range(func(_, dir any) bool { used[dir.(string)] = true; return true })
	for dir := range used {
		git(t, dir, "fsck", "--connectivity-only", "--no-dangling")
	}
	if err := w.cache.Keep(func() (map[string]bool, error) { return used, nil }); err != nil || len(w.lentNow("cache")) != len(used) {
		t.Errorf("%d are in use, left: %v, %v", len(used), w.lentNow("cache"), err)
	}
}

func TestKilledInTheMiddleOfLending(t *testing.T) {
	w := newWorld(t)
	work := w.up.repo(t, "app")
	for i := range 300 {
		if err := os.WriteFile(filepath.Join(work, fmt.Sprint("file", i)), fmt.Append(nil, i), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	commit(t, work, "many files")
	git(t, work, "push", "-q", "origin", "main")
	p := w.lender()
	p.ask("lend")
	p.kill()
	unpack(t, w.dir) // so that there is a lot to link
	for i := range 20 {
		p := w.lender()
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			for {
				if _, err := p.try("lend"); err != nil {
					return
				}
				if _, err := p.try("keep"); err != nil {
					return
				}
			}
		}()
		time.Sleep(time.Duration(50+7*i) * time.Millisecond)
		p.killAll()
		<-ended
		for _, name := range w.lentNow("shared") {
			if !strings.HasSuffix(name, ".new") && !strings.HasSuffix(name, ".gone") {
				w.holds(filepath.Join(w.dir, "shared/lent/pods", name))
			}
		}
	}
	p = w.lender()
	p.ask("lend")
	p.ask("keep")
	if left := w.lentNow("shared"); len(left) > 0 {
		t.Errorf("left %v", left)
	}
	w.holds(p.ask("lend"))
}

// A kill in the middle of a release leaves its remains, and the same generation may
// be lent again before they are removed.
func TestRemainsDoNotKeepAGeneration(t *testing.T) {
	w := newWorld(t)
	w.up.numbered(t, "app", "7")
	w.open(w.lends)
	dir := w.lend("app", "7")
	for _, suffix := range []string{".gone", ".new"} {
		if err := os.CopyFS(dir+suffix, os.DirFS(dir)); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 { // what was lent since the last one stays
		if err := w.cache.Keep(inUse()); err != nil {
			t.Fatal(err)
		}
	}
	if left := w.lentNow("cache"); len(left) > 0 {
		t.Errorf("left %v", left)
	}
}

// unpack makes loose objects of all that the cache in w.dir/shared has packed.
func unpack(t *testing.T, dir string) {
	t.Helper()
	packs, err := filepath.Glob(filepath.Join(dir, "shared/repos/*/git/objects/pack/*.pack"))
	if err != nil || len(packs) != 1 {
		t.Fatal(packs, err)
	}
	repo := filepath.Dir(filepath.Dir(filepath.Dir(packs[0])))
	run(t, dir, "sh", "-c", `mv "$0"/objects/pack/* . && git --git-dir "$0" unpack-objects -q < "$1"`, repo, filepath.Base(packs[0]))
}

// lender is a cache in a process of its own that lends app, as repository 7.
func (w *world) lender(before ...string) *process {
	w.t.Helper()
	return w.start([]string{"TEST_CACHE_DIR=" + filepath.Join(w.dir, "shared"), "TEST_CACHE_FORGE=" + w.up.url}, before...)
}

func TestWhatCannotBeLentIsToldAndLeavesNothing(t *testing.T) {
	w := newWorld(t)
	w.up.numbered(t, "app", "7")
	w.open(w.lends)
	git(t, "/", "clone", "-q", "--bare", "--depth=1", "file://"+w.up.root+"/app.git", w.up.root+"/part.git")
	w.up.number(t, "part", "8")
	if _, _, err := w.cache.Lend(t.Context(), forgeAddr("part"), "8"); !errors.Is(err, cache.ErrUnlendable) {
		t.Errorf("git borrows nothing from a part of a history: %v", err)
	}
	if err := os.Mkdir(filepath.Join(w.dir, "cache/lent"), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", "/dev/shm")
	t.Run("on another file system", func(t *testing.T) {
		if err := os.Symlink(t.TempDir(), filepath.Join(w.dir, "cache/lent/pods")); err != nil {
			t.Fatal(err)
		}
		_, _, err := w.cache.Lend(t.Context(), forgeAddr("app"), "7")
		if !errors.Is(err, cache.ErrUnlendable) || !strings.Contains(err.Error(), "lending forge/app.git") {
			t.Error(err)
		}
		if left := w.lentNow("cache"); len(left) > 0 {
			t.Errorf("left %v", left)
		}
	})
}

func TestLendingOnAFullDisk(t *testing.T) {
	w := newWorld(t)
	w.up.numbered(t, "app", "7")
	if err := os.Mkdir(filepath.Join(w.dir, "shared"), 0o700); err != nil {
		t.Fatal(err)
	}
	p := w.lender("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", `mount -t tmpfs -o size=4m full "$0" && exec "$1"`, filepath.Join(w.dir, "shared"))
	p.ask("read")
	p.ask("fill")
	out, err := p.try("lend")
	if err == nil || !strings.Contains(out, "lending forge/app.git") || !strings.Contains(out, "no space left on device") {
		t.Errorf("on a full disk: %v %s", err, out)
	}
	if left := p.ask("left"); left != "" {
		t.Errorf("left %s", left)
	}
	p.ask("free")
	p.ask("lend")
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
}

func TestWhatIsLentCountsOnceAndIsNotEvicted(t *testing.T) {
	w := newWorld(t)
	w.up.numbered(t, "app", "7")
	w.up.numbered(t, "other", "8")
	w.open(w.lends, func(c *cache.Config) { c.MaxSize = 500_000 })
	git(t, "/", "ls-remote", w.reads("app"))
	w.clock.advance(time.Hour)
	if err := w.cache.Tend(t.Context()); err != nil { // packs it
		t.Fatal(err)
	}
	used := w.lend("app", "7")
	w.clock.advance(time.Minute)
	sizes := func() (repos, shared, alone int64, names string) {
		t.Helper()
		all, err := w.cache.List()
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range all {
			repos, shared, names = repos+e.Size, shared+e.Lent, names+e.Address+" "
		}
		if _, alone, err = w.cache.Lent(); err != nil {
			t.Fatal(err)
		}
		return repos, shared, alone, names
	}
	if repos, shared, alone, _ := sizes(); shared < 300_000 || shared > repos || alone > 1000 {
		t.Errorf("of %d bytes %d are lent, and %d beside", repos, shared, alone)
	}
	git(t, "/", "ls-remote", w.reads("other"))
	w.clock.advance(time.Hour)
	if err := w.cache.Tend(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, _, _, names := sizes(); names != "forge/app.git " {
		t.Errorf("the one that is lent is older, but frees nothing; left: %s", names)
	}
	if err := w.cache.Remove(t.Context(), forgeAddr("app"), true); err != nil {
		t.Fatal(err)
	}
	if repos, shared, alone, _ := sizes(); repos != 0 || shared != 0 || alone < 300_000 {
		t.Errorf("the repository was removed: %d %d, lent %d", repos, shared, alone)
	}
	if err := w.cache.Keep(inUse(used)); err != nil {
		t.Fatal(err)
	}
	w.holds(used)
	if err := w.cache.Keep(inUse()); err != nil {
		t.Fatal(err)
	}
	if _, _, alone, _ := sizes(); alone != 0 {
		t.Errorf("released, and %d bytes are lent", alone)
	}
}
