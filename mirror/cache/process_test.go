package cache_test

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/mirror/cache"
)

// TestMain is a cache of its own when it is asked to be one: a process that can
// be killed.
func TestMain(m *testing.M) {
	if dir := os.Getenv("TEST_CACHE_DIR"); dir != "" {
		if err := serve(dir, strings.Fields(os.Getenv("TEST_CACHE_ALLOW"))); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func serve(dir string, patterns []string) error {
	allow, err := cache.ParseAllow(patterns)
	if err != nil {
		return err
	}
	cfg := cache.Config{Dir: dir, Allow: allow, Log: slog.New(slog.NewTextHandler(os.Stderr, nil))}
	if age := os.Getenv("TEST_CACHE_AGE"); age != "" {
		if cfg.MaxAge, err = time.ParseDuration(age); err != nil {
			return err
		}
	}
	if os.Getenv("TEST_CACHE_ANSWERS") != "" {
		cfg.MaxAnswers = 1 // none is kept
	}
	tend := os.Getenv("TEST_CACHE_TEND") != ""
	if tend { // as if a month were between two looks
		var months atomic.Int64
		cfg.Now = func() time.Time { return time.Now().Add(time.Duration(months.Add(1)) * 30 * 24 * time.Hour) }
	}
	handler := http.NewServeMux()
	if url := os.Getenv("TEST_CACHE_FORGE"); url != "" {
		if cfg.Allow, err = cache.ParseAllow([]string{"forge"}); err != nil {
			return err
		}
		cfg.Hosts = map[string]cache.Host{"forge": {URL: url, Always: true, Identity: func(context.Context, string) (string, error) { return "7", nil }}}
	}
	c, err := cache.New(cfg)
	if err != nil {
		return err
	}
	handler.Handle("/", c)
	serveLending(handler, c, dir)
	if tend {
		fmt.Fprintln(os.Stderr, "at work")
		for {
			if err := c.Tend(context.Background()); err != nil {
				return err
			}
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "at %s\n", l.Addr())
	return http.Serve(l, handler)
}

// serveLending lets a test call what is done to generations.
func serveLending(mux *http.ServeMux, c *cache.Cache, dir string) {
	app, ballast := cache.Address{Host: "forge", Path: "app"}, filepath.Join(dir, "ballast")
	verbs := map[string]func() (string, error){
		"read": func() (string, error) { _, err := c.Sync(context.Background(), app); return "", err },
		"lend": func() (string, error) {
			dir, done, err := c.Lend(context.Background(), app, "7")
			if err == nil {
				done()
			}
			return dir, err
		},
		"keep": func() (string, error) { return "", c.Keep(inUse()) },
		"left": func() (string, error) {
			left, err := filepath.Glob(filepath.Join(dir, "lent/*/*"))
			return strings.Join(left, " "), err
		},
		"fill": func() (string, error) {
			if err := os.WriteFile(ballast, make([]byte, 64<<20), 0o600); !errors.Is(err, syscall.ENOSPC) {
				return "", fmt.Errorf("the disk is not full: %w", err)
			}
			return "", nil
		},
		"free": func() (string, error) { return "", os.Remove(ballast) },
	}
	mux.HandleFunc("POST /test/{verb}", func(w http.ResponseWriter, r *http.Request) {
		out, err := verbs[r.PathValue("verb")]()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		fmt.Fprint(w, out)
	})
}

// try calls a verb of serveLending's.
func (p *process) try(verb string) (string, error) {
	resp, err := http.Post("http://"+p.addr+"/test/"+verb, "", nil)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errors.New(resp.Status)
	}
	return string(b), err
}

func (p *process) ask(verb string) string {
	p.t.Helper()
	out, err := p.try(verb)
	if err != nil {
		p.t.Fatalf("%s: %v %s", verb, err, out)
	}
	return out
}

// A process is a cache in a process of its own.
type process struct {
	t    testing.TB
	cmd  *exec.Cmd
	addr string
	url  string // of the world's upstream
	log  lockedBuffer
}

// process starts one on the directory "shared"; before is what is run in front
// of it.
func (w *world) process(before ...string) *process {
	w.t.Helper()
	p := w.start([]string{"TEST_CACHE_DIR=" + filepath.Join(w.dir, "shared"), "TEST_CACHE_ALLOW=" + w.up.host}, before...)
	p.url = "http://" + p.addr + "/git/" + w.up.host + "/"
	return p
}

func (w *world) start(env []string, before ...string) *process {
	w.t.Helper()
	self, err := os.Executable()
	if err != nil {
		w.t.Fatal(err)
	}
	p := &process{t: w.t}
	args := append(before, self)
	p.cmd = exec.Command(args[0], args[1:]...)
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := p.cmd.StderrPipe()
	if err != nil {
		w.t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(p.kill)
	at := make(chan string, 1)
	go func() {
		for lines := bufio.NewScanner(out); lines.Scan(); {
			fmt.Fprintln(&p.log, lines.Text())
			if addr, ok := strings.CutPrefix(lines.Text(), "at "); ok {
				at <- addr
			}
		}
		close(at)
	}()
	p.addr = <-at
	return p
}

func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait() // it was killed
}

// killAll kills its children as well.
func (p *process) killAll() {
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
	_ = p.cmd.Wait() // it was killed
}

// slow lets each fetch of the upstream's wait at its start until the channel is
// closed; arrived is told of it.
func (up *upstream) slow(t *testing.T) (arrived <-chan struct{}, release func()) {
	t.Helper()
	came, let := make(chan struct{}, 100), make(chan struct{})
	var once sync.Once
	release = func() { once.Do(func() { close(let) }) }
	t.Cleanup(release)
	up.hold.Store(&hold{came, let})
	return came, release
}

func TestKilledInTheMiddleOfAFetch(t *testing.T) {
	w := newWorld(t)
	work := w.up.repo(t, "app")
	for _, when := range []string{"the first fetch", "an update"} {
		commit(t, work, when)
		git(t, work, "push", "-q", "origin", "main")
		p := w.process()
		arrived, release := w.up.slow(t)
		clone := exec.Command("git", "clone", "-q", p.url+"app.git", filepath.Join(t.TempDir(), "clone"))
		if err := clone.Start(); err != nil {
			t.Fatal(err)
		}
		<-arrived
		p.kill()
		if err := clone.Wait(); err == nil {
			t.Errorf("%s: the clone of a killed cache looks well", when)
		}
		release()
		w.up.hold.Store(nil)
		p = w.process()
		to := filepath.Join(t.TempDir(), "clone")
		git(t, "/", "clone", "-q", p.url+"app.git", to)
		git(t, to, "fsck", "--strict")
		if a, b := git(t, to, "rev-parse", "HEAD"), git(t, work, "rev-parse", "HEAD"); a != b {
			t.Errorf("%s: cloned %s, want %s", when, a, b)
		}
		for _, what := range []string{"git.new", "state-*", "git/*.lock", "git/refs/*/*.lock", "git/objects/pack/tmp_*"} {
			if left, err := filepath.Glob(filepath.Join(w.dir, "shared/repos/*", what)); err != nil || len(left) > 0 {
				t.Errorf("%s left %v %v", when, left, err)
			}
		}
		p.kill()
	}
}

func TestKilledInTheMiddleOfARepack(t *testing.T) {
	w := newWorld(t)
	w.up.noisy(t, "app", 8<<20)
	p := w.process()
	git(t, "/", "ls-remote", p.url+"app.git")
	for i := range 12 {
		keeper := w.start([]string{"TEST_CACHE_DIR=" + filepath.Join(w.dir, "shared"), "TEST_CACHE_ALLOW=" + w.up.host, "TEST_CACHE_TEND=1"})
		time.Sleep(time.Duration(i*i) * 3 * time.Millisecond)
		keeper.killAll()
		to := filepath.Join(t.TempDir(), "clone")
		git(t, "/", "clone", "-q", "--mirror", p.url+"app.git", to)
		git(t, to, "fsck", "--strict")
	}
	if w.up.asked()["POST fetch"] != 1 {
		t.Error("it was fetched again")
	}
	// The next who changes it removes what was half made.
	git(t, filepath.Join(w.up.root, "app.git"), "branch", "new", "main")
	git(t, "/", "ls-remote", p.url+"app.git")
	for _, what := range []string{"git/*.lock", "git/objects/pack/tmp_*", "git/objects/pack/.tmp-*", "git/objects/info/*.lock"} {
		if left, err := filepath.Glob(filepath.Join(w.dir, "shared/repos/*", what)); err != nil || len(left) > 0 {
			t.Errorf("left %v %v", left, err)
		}
	}
}

func TestKilledInTheMiddleOfAPush(t *testing.T) {
	w := newWorld(t)
	w.up.repo(t, "app")
	p := w.process()
	clone := filepath.Join(t.TempDir(), "clone")
	git(t, "/", "clone", "-q", p.url+"app.git", clone)
	commit(t, clone, "four")
	arrived, release := w.up.slow(t)
	push := exec.Command("git", "push", "-q", "origin", "HEAD:main")
	push.Dir = clone
	if err := push.Start(); err != nil {
		t.Fatal(err)
	}
	<-arrived
	p.kill()
	if err := push.Wait(); err == nil {
		t.Error("a push of which nobody heard looks well")
	}
	release()
	w.up.hold.Store(nil)
	p = w.process()
	git(t, clone, "remote", "set-url", "origin", p.url+"app.git")
	for end := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		a, b := git(t, "/", "ls-remote", p.url+"app.git"), git(t, "/", "ls-remote", w.up.url+"/app.git")
		if a == b {
			break
		}
		if time.Now().After(end) { // the upstream has long done what it does with half a push
			t.Fatalf("after it the cache lists %s, the upstream %s", a, b)
		}
	}
	git(t, clone, "push", "-q", "origin", "HEAD:main")
	if a, b := git(t, clone, "rev-parse", "HEAD"), git(t, filepath.Join(w.up.root, "app.git"), "rev-parse", "main"); a != b {
		t.Errorf("pushed again: upstream has %s, want %s", b, a)
	}
}

func TestTwoProcessesOnOneCache(t *testing.T) {
	w := newWorld(t)
	work := w.up.repo(t, "app")
	a, b := w.process(), w.process()
	for round := range 2 {
		w.up.asked()
		arrived, release := w.up.slow(t)
		var wait sync.WaitGroup
		for i, p := range []*process{a, b, a, b} {
			dir := filepath.Join(t.TempDir(), "clone")
			wait.Go(func() {
				if out, err := try("/", "git", "clone", "-q", p.url+"app.git", dir); err != nil {
					t.Errorf("clone %d: %v %s", i, err, out)
				}
			})
		}
		<-arrived
		time.Sleep(300 * time.Millisecond) // the other process has come to the lock
		release()
		w.up.hold.Store(nil)
		wait.Wait()
		if asked := w.up.asked(); asked["POST fetch"] != 1 {
			t.Errorf("round %d: the upstream was asked %v, want one fetch", round, asked)
		}
		commit(t, work, fmt.Sprint("more ", round))
		git(t, work, "push", "-q", "origin", "main")
	}
}

func TestADamagedPack(t *testing.T) {
	w := newWorld(t)
	w.up.repo(t, "app")
	git(t, "/", "clone", "-q", w.at("app"), filepath.Join(t.TempDir(), "clone"))
	packs, err := filepath.Glob(filepath.Join(w.dir, "cache/repos/*/git/objects/pack/*.pack"))
	if err != nil || len(packs) == 0 {
		t.Fatal(packs, err)
	}
	for _, pack := range packs {
		b, err := os.ReadFile(pack)
		if err != nil {
			t.Fatal(err)
		}
		clear(b[12 : len(b)-20]) // all but its head and its sum
		if err := errors.Join(os.Chmod(pack, 0o600), os.WriteFile(pack, b, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	// Another request than before, so that it is not answered from what is kept.
	if out, err := try("/", "git", "clone", "-q", "--depth=1", w.at("app"), filepath.Join(t.TempDir(), "clone")); err == nil {
		t.Fatalf("a damaged pack goes unnoticed: %s", out)
	}
	to := filepath.Join(t.TempDir(), "clone")
	git(t, "/", "clone", "-q", "--depth=1", w.at("app"), to)
	git(t, to, "fsck", "--strict")
	if !strings.Contains(w.log.String(), "damaged") {
		t.Errorf("the log does not say so: %s", w.log)
	}
}

// A disk of a few megabytes, in a mount namespace of the process's own.
func TestAFullDisk(t *testing.T) {
	w := newWorld(t)
	work := w.up.repo(t, "small")
	big := w.up.repo(t, "big")
	noise := make([]byte, 8<<20)
	if _, err := rand.Read(noise); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(big, "noise"), noise, 0o600); err != nil {
		t.Fatal(err)
	}
	commit(t, big, "noise")
	git(t, big, "push", "-q", "origin", "main")
	dir := filepath.Join(w.dir, "shared")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	p := w.process("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", `mount -t tmpfs -o size=4m full "$0" && exec "$1"`, dir)
	git(t, "/", "clone", "-q", p.url+"small.git", filepath.Join(t.TempDir(), "clone"))
	out, err := try("/", "git", "clone", "-q", p.url+"big.git", filepath.Join(t.TempDir(), "clone"))
	if err == nil || !strings.Contains(out, "the disk of the cache is full") {
		t.Errorf("on a full disk: %v %s", err, out)
	}
	// What was there is well, and there is room for what fits.
	commit(t, work, "more")
	git(t, work, "push", "-q", "origin", "main")
	to := filepath.Join(t.TempDir(), "clone")
	git(t, "/", "clone", "-q", p.url+"small.git", to)
	if a, b := git(t, to, "rev-parse", "HEAD"), git(t, work, "rev-parse", "HEAD"); a != b {
		t.Errorf("cloned %s, want %s", a, b)
	}
	git(t, to, "fsck", "--strict")
	w.up.repo(t, "another")
	git(t, "/", "clone", "-q", p.url+"another.git", filepath.Join(t.TempDir(), "clone"))
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
}
