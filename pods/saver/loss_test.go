package saver_test

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// seed is fixed, and $TEST_SEED changes it.
func seed(t *testing.T) uint64 {
	t.Helper()
	text := os.Getenv("TEST_SEED")
	if text == "" {
		return 1
	}
	n, err := strconv.ParseUint(text, 10, 64)
	must(t, err)
	return n
}

// number is a setting of a test.
func number(t *testing.T, name string, usual int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return usual
	}
	n, err := strconv.Atoi(text)
	must(t, err)
	return n
}

// A worker is an agent that does things by chance, and remembers each content
// that it had on disk.
type worker struct {
	*place
	r     *rand.Rand
	n     int
	since map[string]time.Time // contents on disk now, by path, and when they came
	text  map[string]string
	lived []string // contents that were there for long enough
	keep  time.Duration
	heads []string // commits that were there for long enough
	head  string
	made  time.Time
}

func (w *worker) path(i int) string {
	return []string{"a", "b", "d/a", "d/e/b", "x y", "\xffz", "-v"}[i%7]
}

// leaves notes that what is at a path goes now.
func (w *worker) leaves(path string) {
	if at, ok := w.since[path]; ok && time.Since(at) > w.keep {
		w.lived = append(w.lived, w.text[path])
	}
	delete(w.since, path)
}

func (w *worker) leavesHead() {
	if w.head != "" && time.Since(w.made) > w.keep {
		w.heads = append(w.heads, w.head)
	}
	w.head = ""
}

func (w *worker) commitNow(args ...string) {
	w.t.Helper()
	w.leavesHead()
	if _, err := os.Lstat(filepath.Join(w.clone, ".git")); err != nil {
		w.git(w.clone, "init", "--quiet", "--initial-branch=main")
	}
	w.git(w.clone, "add", "-A")
	w.git(w.clone, append([]string{"commit", "--quiet", "--allow-empty", "-m", fmt.Sprint("c", w.n)}, args...)...)
	w.head, w.made = w.git(w.clone, "rev-parse", "HEAD"), time.Now()
}

func (w *worker) step() string {
	w.n++
	path := w.path(w.r.IntN(7))
	switch k := w.r.IntN(20); {
	case k < 11:
		w.leaves(path)
		text := fmt.Sprintf("content %d of %q\n", w.n, path)
		w.write(path, text)
		w.since[path], w.text[path] = time.Now(), text
		return "write"
	case k < 13:
		w.leaves(path)
		must(w.t, os.RemoveAll(filepath.Join(w.clone, path)))
		return "remove"
	case k < 15:
		w.commitNow()
		return "commit"
	case k < 16 && w.head != "":
		w.commitNow("--amend")
		return "amend"
	case k < 17:
		w.leavesHead()
		must(w.t, os.RemoveAll(filepath.Join(w.clone, ".git")))
		return "delete .git"
	case k < 18:
		for _, in := range []string{"d/a", "d/e/b"} {
			w.leaves(in)
		}
		must(w.t, os.RemoveAll(filepath.Join(w.clone, "d")))
		return "remove folder"
	case k < 19 && w.head != "":
		w.leavesHead()
		w.git(w.clone, "checkout", "--quiet", "--orphan", fmt.Sprint("orphan", w.n))
		return "orphan"
	}
	return "wait"
}

// Whatever an agent does, and however often the saver is killed: what was on
// disk for longer than is promised can be found in what the service has.
func TestNothingIsLost(t *testing.T) {
	p := newPlace(t)
	// What is promised is AtMost and the time that a save takes; here it is that
	// of a machine with much else to do.
	w := &worker{place: p, r: rand.New(rand.NewPCG(seed(t), 0)), since: map[string]time.Time{}, text: map[string]string{}, keep: 3 * time.Second}
	saver := p.run("")
	for range number(t, "TEST_STEPS", 120) {
		what := w.step()
		if w.r.IntN(12) == 0 {
			saver.kill()
			time.Sleep(time.Duration(w.r.IntN(50)) * time.Millisecond)
			saver = p.run("")
			what += ", kill"
		}
		if w.r.IntN(15) == 0 {
			p.away()
			time.Sleep(time.Duration(w.r.IntN(100)) * time.Millisecond)
			p.serve()
		}
		pause := time.Duration(w.r.IntN(200)) * time.Millisecond
		if w.r.IntN(8) == 0 {
			pause = w.keep
		}
		t.Logf("%3d %s, then %s", w.n, what, pause)
		time.Sleep(pause)
	}
	for path := range w.since {
		w.lived = append(w.lived, w.text[path])
	}
	if w.head != "" {
		w.heads = append(w.heads, w.head)
	}
	saver.kill()
	p.once()
	have := p.contents()
	for _, text := range w.lived {
		if !have[digest(text)] {
			t.Errorf("lost: %q", text)
		}
	}
	for _, id := range w.heads {
		if !p.reachable(id) {
			t.Errorf("lost: commit %s", id)
		}
	}
	p.git(p.server, "fsck", "--strict")
	t.Logf("%d contents and %d commits that had lived were found in %d snapshots", len(w.lived), len(w.heads), p.snapshots())
	if len(w.lived) < 5 {
		t.Error("too few contents lived to prove anything")
	}
}

func digest(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}

// contents are the digests of all files in what the service has.
func (p *place) contents() map[string]bool {
	p.t.Helper()
	have := map[string]bool{}
	for line := range strings.Lines(p.git(p.server, "rev-list", "--objects", "--filter=tree:99", work)) {
		id, _, _ := strings.Cut(strings.TrimSpace(line), " ")
		if p.git(p.server, "cat-file", "-t", id) != "blob" {
			continue
		}
		have[digest(p.git(p.server, "cat-file", "blob", id)+"\n")] = true
	}
	return have
}

// However a saver ends, the next one takes up what is there.
func TestAKilledSaverGoesOn(t *testing.T) {
	p := newPlace(t)
	r := rand.New(rand.NewPCG(seed(t), 2))
	last := p.once().ID
	for i := range number(t, "TEST_KILLS", 25) {
		for j := range 20 {
			p.write(fmt.Sprintf("f/%d/%d", i%5, j), fmt.Sprint("text ", i, " ", j, strings.Repeat("x", j*1000)))
		}
		if i%5 == 0 {
			p.commit(fmt.Sprint("commit ", i))
		}
		s := p.run("")
		time.Sleep(time.Duration(r.IntN(300)) * time.Millisecond)
		s.kill()
		if now, err := p.try(p.server, "rev-parse", "--verify", "--quiet", work); err == nil && now != last {
			if !p.reachable(last) {
				t.Fatal("a snapshot is gone")
			}
			last = now
		}
	}
	// What a child that was killed at a bad moment leaves.
	git := p.cfg.Home + "/git/"
	for _, name := range []string{"index.lock", "HEAD.lock", work + ".lock", "packed-refs.lock", "objects/pack/tmp_pack_x", "objects/00/tmp_obj_y", "fast_import_crash_1"} {
		must(t, os.MkdirAll(filepath.Dir(git+name), 0o755))
		must(t, os.WriteFile(git+name, []byte("half"), 0o444))
	}
	must(t, os.WriteFile(git+"index", []byte("DIRC garbage"), 0o644))
	must(t, os.WriteFile(p.cfg.Home+"/known", []byte("garbage"), 0o644))
	p.write("last", "l\n")
	p.once()
	if p.saved("last") != "l" || !p.reachable(last) {
		t.Error("the last save is not there, or what came before is gone")
	}
	left, err := filepath.Glob(git + "objects/*/tmp_*")
	must(t, err)
	if len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	p.git(p.server, "fsck", "--strict")
}

// What many rounds leave is packed, and nothing of it gets lost.
func TestUpkeep(t *testing.T) {
	p := newPlace(t)
	first := p.once().ID
	git := filepath.Join(p.cfg.Home, "git")
	for i := range 50 {
		p.write("n", fmt.Sprint(i))
		id := p.git(git, "hash-object", "-w", filepath.Join(p.clone, "n"))
		cmd := exec.Command("git", "pack-objects", "--quiet", "objects/pack/pack")
		cmd.Dir, cmd.Stdin = git, strings.NewReader(id+"\n")
		must(t, cmd.Run())
	}
	packs := func() int {
		all, err := filepath.Glob(git + "/objects/pack/*.pack")
		must(t, err)
		return len(all)
	}
	p.start()
	p.eventually("it is packed", func() bool { return packs() < 10 })
	p.write("n", "after")
	p.eventually("it goes on", func() bool { return p.saved("n") == "after" })
	if !p.reachable(first) {
		t.Error("the first snapshot is gone")
	}
	p.git(git, "fsck", "--strict")
}

// A tree of 20,000 files, or as many as $TEST_FILES says.
func TestManyFiles(t *testing.T) {
	p := newPlace(t)
	n := number(t, "TEST_FILES", 20_000)
	dir := ""
	for i := range n {
		if i%100 == 0 {
			dir = fmt.Sprintf("many/%d/%d", i/5000, i/100)
			must(t, os.MkdirAll(filepath.Join(p.clone, dir), 0o755))
		}
		must(t, os.WriteFile(filepath.Join(p.clone, dir, fmt.Sprint(i)), fmt.Appendf(nil, "file %d\n%s", i, strings.Repeat("line\n", i%50)), 0o644))
	}
	start := time.Now()
	p.once()
	t.Logf("the first save of %d files: %s", n, time.Since(start))
	if got := strings.Count(p.files(), "\n") + 1; got != n+1 {
		t.Fatalf("%d files saved, want %d", got, n+1)
	}
	start = time.Now()
	p.once()
	t.Logf("a save of the same again: %s", time.Since(start))
	p.start()
	p.eventually("it watches", func() bool { return p.log.count() > 2 })
	start = time.Now()
	p.write(dir+"/edited", "e\n")
	p.eventually("an edit", func() bool { return p.saved(dir+"/edited") == "e" })
	t.Logf("an edit among them: %s", time.Since(start))
	must(t, os.RemoveAll(filepath.Join(p.clone, "many")))
	p.eventually("their removal", func() bool { return p.files() == "README" })
}
