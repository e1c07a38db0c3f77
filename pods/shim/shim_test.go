package shim_test

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/mirror/gitproc/gitproctest"
	"codeberg.org/devaipod/devaipod/pods/podfile"
	"codeberg.org/devaipod/devaipod/pods/shim"
)

const token = "the-token-of-this-gate"

// place is a shim's surroundings: a gate's socket behind which git serves a
// real repository.
type place struct {
	t        *testing.T
	dir      string
	upstream string // the bare repository
	clones   atomic.Int64
	saved    http.Handler            // of what was saved; nil for nothing
	others   bool                    // the gate serves other hosts' repositories, out of git/git
	said     chan podfile.SetupState // what the gate heard of the setup
	cfg      shim.Config
}

func TestMain(m *testing.M) {
	os.Exit(gitproctest.Main(m))
}

func newPlace(t *testing.T) *place {
	t.Helper()
	p := &place{t: t, dir: t.TempDir()}
	p.upstream = filepath.Join(p.dir, "git", "work", "ann", "hello.git")
	for _, d := range []string{p.upstream, p.path("sockets"), p.path("home")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("GIT_AUTHOR_NAME", "T")
	t.Setenv("GIT_AUTHOR_EMAIL", "t@localhost")
	t.Setenv("GIT_COMMITTER_NAME", "T")
	t.Setenv("GIT_COMMITTER_EMAIL", "t@localhost")
	t.Setenv("GIT_CONFIG_GLOBAL", "/dev/null")
	p.git("", "init", "--quiet", "--bare", "--initial-branch=main", p.upstream)
	p.git(p.upstream, "config", "http.receivepack", "true")
	p.cfg = shim.Config{
		Role: "agent", Token: token, Repo: "ann/hello", Branch: "agent/3-x", Base: "main",
		GateAddr: freeAddr(t), AgentAddr: freeAddr(t), SocketDir: p.path("sockets"), RepoDir: p.path("repo"), Home: p.path("home"),
		Log: slog.New(slog.DiscardHandler),
	}
	return p
}

func (p *place) path(name string) string { return filepath.Join(p.dir, name) }

func (p *place) git(dir string, args ...string) string {
	p.t.Helper()
	cmd := exec.Command("git", args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		p.t.Fatalf("git %v: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// commit puts a file on a branch of the upstream repository.
func (p *place) commit(branch, file string) {
	p.t.Helper()
	tree := p.path("tree-" + file)
	p.git("", "init", "--quiet", "--initial-branch=x", tree)
	if err := os.WriteFile(filepath.Join(tree, file), []byte(file), 0o644); err != nil {
		p.t.Fatal(err)
	}
	p.git(tree, "add", "-A")
	p.git(tree, "commit", "--quiet", "-m", file)
	p.git(tree, "push", "--quiet", p.upstream, "HEAD:refs/heads/"+branch)
}

// openGate starts the gate's side.
func (p *place) openGate() {
	p.t.Helper()
	core := strings.TrimSpace(p.git("", "--exec-path"))
	backend := &cgi.Handler{Path: filepath.Join(core, "git-http-backend"), Env: []string{"GIT_PROJECT_ROOT=" + p.path("git"), "GIT_HTTP_EXPORT_ALL=1"}, Stderr: io.Discard}
	l, err := net.Listen("unix", filepath.Join(p.path("sockets"), podfile.GateSocket))
	if err != nil {
		p.t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer "+token {
			http.Error(w, "no", http.StatusForbidden)
			return
		}
		if r.URL.Path == podfile.RestorePath {
			if p.saved == nil {
				http.NotFound(w, r)
				return
			}
			p.saved.ServeHTTP(w, r)
			return
		}
		if strings.HasSuffix(r.URL.Path, "/git-upload-pack") {
			p.clones.Add(1)
		}
		if r.URL.Path == podfile.SetupPath {
			var st podfile.SetupState
			if err := json.NewDecoder(r.Body).Decode(&st); err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
			if p.said != nil {
				p.said <- st
			}
			w.WriteHeader(http.StatusNoContent)
			return
		}
		if other, ok := strings.CutPrefix(r.URL.Path, "/git/"); ok && !p.others {
			http.Error(w, "devaipod: asked for "+other, http.StatusForbidden)
			return
		}
		backend.ServeHTTP(w, r)
	}))
	server.Listener = l
	server.Start()
	p.t.Cleanup(server.Close)
}

func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// outcome is what Run returned.
type outcome struct {
	code int
	err  error
}

func (p *place) start(ctx context.Context, command ...string) <-chan outcome {
	cfg := p.cfg
	cfg.Command = command
	done := make(chan outcome, 1)
	go func() {
		code, err := shim.Run(ctx, cfg)
		done <- outcome{code, err}
	}()
	return done
}

func (p *place) run(command ...string) outcome {
	p.t.Helper()
	select {
	case o := <-p.start(p.t.Context(), command...):
		return o
	case <-time.After(30 * time.Second):
		p.t.Fatal("the shim does not end")
		return outcome{}
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

func TestTheAgentFindsACloneOnItsBranchAndCanPush(t *testing.T) {
	p := newPlace(t)
	p.commit("main", "a")
	p.openGate()
	// Without a word about tokens: git knows how to reach the gate.
	o := p.run("sh", "-c", "test -f a && git commit -q --allow-empty -m work && git push -q origin HEAD:agent/3-x && exit 7")
	if o.code != 7 || o.err != nil {
		t.Fatalf("%+v", o)
	}
	if got := p.git(p.upstream, "log", "-1", "--format=%s", "agent/3-x"); got != "work" {
		t.Errorf("pushed %q", got)
	}
	if got := p.git(p.cfg.RepoDir, "branch", "--show-current"); got != "agent/3-x" {
		t.Errorf("on %q", got)
	}
	if b, err := os.ReadFile(filepath.Join(p.cfg.RepoDir, ".git", "config")); err != nil || strings.Contains(string(b), token) {
		t.Errorf("the token is in the clone: %s, %v", b, err)
	}
}

func TestAShimThatIsStartedAgainKeepsTheClone(t *testing.T) {
	p := newPlace(t)
	p.commit("main", "a")
	p.openGate()
	if o := p.run("sh", "-c", "echo unsaved > work"); o.code != 0 || o.err != nil {
		t.Fatalf("%+v", o)
	}
	first := p.clones.Load()
	// What a kill in the middle of a clone leaves is not mistaken for one.
	if err := os.MkdirAll(p.cfg.RepoDir+".new/.git", 0o755); err != nil {
		t.Fatal(err)
	}
	if o := p.run("grep", "-q", "unsaved", "work"); o.code != 0 || o.err != nil {
		t.Errorf("%+v", o)
	}
	if p.clones.Load() != first {
		t.Error("cloned again")
	}
}

func TestWorkThatWasPushedBeforeIsGoneOnWith(t *testing.T) {
	p := newPlace(t)
	p.commit("main", "a")
	p.commit("agent/3-x", "earlier")
	p.openGate()
	if err := os.MkdirAll(p.cfg.RepoDir+".new/rest", 0o755); err != nil {
		t.Fatal(err)
	}
	if o := p.run("test", "-f", "earlier"); o.code != 0 || o.err != nil {
		t.Errorf("%+v", o)
	}
}

func TestTheGateMayComeUpLater(t *testing.T) {
	p := newPlace(t)
	p.commit("main", "a")
	done := p.start(t.Context(), "true")
	time.Sleep(400 * time.Millisecond)
	p.openGate()
	select {
	case o := <-done:
		if o.code != 0 || o.err != nil {
			t.Errorf("%+v", o)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the shim did not find the gate")
	}
}

func TestAnEmptyRepositoryIsToldAtOnce(t *testing.T) {
	p := newPlace(t)
	p.openGate()
	if o := p.run("true"); !errors.Is(o.err, shim.ErrNoBase) || o.code == 0 || !strings.Contains(o.err.Error(), "ann/hello") {
		t.Errorf("%+v", o)
	}
}

func TestTheEndTakesTheWholeTreeAndLeavesNothing(t *testing.T) {
	before := runtime.NumGoroutine()
	p := newPlace(t)
	p.commit("main", "a")
	p.openGate()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	pids := p.path("pids")
	// Deaf to SIGTERM, with a child that outlives it.
	done := p.start(ctx, "sh", "-c", fmt.Sprintf("trap '' TERM; sleep 1000 & echo $$ $! > %s.new; mv %s.new %s; wait", pids, pids, pids))
	eventually(t, "the agent runs", func() bool { _, err := os.Stat(pids); return err == nil })
	start := time.Now()
	cancel()
	select {
	case o := <-done:
		if o.code != 143 || o.err != nil {
			t.Errorf("%+v", o)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the shim does not end")
	}
	if took := time.Since(start); took > 6*time.Second {
		t.Errorf("the end took %s", took)
	}
	b, err := os.ReadFile(pids)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range strings.Fields(string(b)) {
		pid, err := strconv.Atoi(s)
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, "process "+s+" is gone", func() bool { return gone(pid) })
	}
	eventually(t, "no goroutine is left", func() bool { return runtime.NumGoroutine() <= before+2 }) // the test's own server
}

// gone is true of a zombie too: who reaps orphans is not the shim when it is
// not PID 1.
func gone(pid int) bool {
	if errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
		return true
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || strings.Contains(string(b), ") Z ")
}

func TestAPersonsGitFindsTheGateInTheWorkspace(t *testing.T) {
	p := newPlace(t)
	p.commit("main", "a")
	p.openGate()
	ctx, cancel := context.WithCancel(t.Context())
	p.cfg.Role = "workspace"
	done := p.start(ctx)
	eventually(t, "git fetches", func() bool {
		cmd := exec.Command("git", "-C", p.cfg.RepoDir, "fetch", "-q")
		cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + p.cfg.Home, "GIT_TERMINAL_PROMPT=0"}
		return cmd.Run() == nil
	})
	for _, url := range []string{"https://git.example.org/a/b", "ssh://git@git.example.org/a/b"} {
		cmd := exec.Command("git", "ls-remote", url)
		cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + p.cfg.Home, "GIT_TERMINAL_PROMPT=0"}
		if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "remote: devaipod: asked for git.example.org/a/b/info/refs") {
			t.Errorf("another host's repository: %v %s", err, out)
		}
	}
	cancel()
	if o := <-done; o.code != 0 || o.err != nil {
		t.Errorf("%+v", o)
	}
}

func TestTheAgentsServerIsReachedThroughItsSocket(t *testing.T) {
	p := newPlace(t)
	p.commit("main", "a")
	p.openGate()
	l, err := net.Listen("tcp", p.cfg.AgentAddr)
	if err != nil {
		t.Fatal(err)
	}
	agent := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "hello") }))
	agent.Listener = l
	agent.Start()
	defer agent.Close()
	ctx, cancel := context.WithCancel(t.Context())
	done := p.start(ctx, "sleep", "1000")
	socket := filepath.Join(p.cfg.SocketDir, podfile.AgentSocket)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}}
	eventually(t, "the agent answers", func() bool {
		resp, err := client.Get("http://agent/")
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		return err == nil && string(b) == "hello"
	})
	cancel()
	if o := <-done; o.err != nil {
		t.Error(o.err)
	}
}

// borrowable makes what is mounted for a pod to borrow from: a bare repository.
func (p *place) borrowable() {
	p.t.Helper()
	p.cfg.BorrowDir = p.path("lent")
	p.git("", "clone", "--quiet", "--bare", p.upstream, p.cfg.BorrowDir)
}

func (p *place) noise(branch, file string) {
	p.t.Helper()
	tree := p.path("tree-" + file)
	p.git("", "init", "--quiet", "--initial-branch=x", tree)
	b := make([]byte, 2<<20)
	if _, err := rand.Read(b); err != nil {
		p.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(tree, file), b, 0o644); err != nil {
		p.t.Fatal(err)
	}
	p.git(tree, "add", "-A")
	p.git(tree, "commit", "--quiet", "-m", file)
	p.git(tree, "push", "--quiet", p.upstream, "HEAD:refs/heads/"+branch)
}

func TestTheCloneBorrowsWhatIsLent(t *testing.T) {
	p := newPlace(t)
	p.noise("main", "large")
	p.borrowable()
	p.commit("newer", "b")
	p.openGate()
	// git add does not look at large files again, which would copy them.
	if o := p.run("sh", "-c", "test $(stat -c %Y .git/index) -gt $(stat -c %Y large)"); o.code != 0 || o.err != nil {
		t.Errorf("the index is no newer than a large file: %+v", o)
	}
	// What an agent may do with a clone goes well, and takes nothing from the lent.
	if o := p.run("sh", "-ec", "git commit -q --allow-empty -m work; git fetch -q; git gc -q --prune=now; git fsck --strict; git cat-file -e origin/newer:b; git push -q origin HEAD:agent/3-x"); o.code != 0 || o.err != nil {
		t.Fatalf("%+v", o)
	}
	alternates, err := os.ReadFile(filepath.Join(p.cfg.RepoDir, ".git/objects/info/alternates"))
	if want := p.cfg.BorrowDir + "/objects\n"; err != nil || string(alternates) != want {
		t.Errorf("it borrows from %q, want %q (%v)", alternates, want, err)
	}
	if kb := strings.Fields(p.git(p.cfg.RepoDir, "count-objects", "-v")); large(t, kb) {
		t.Errorf("the clone has objects of its own that are lent: %v", kb)
	}
	p.git(p.cfg.BorrowDir, "fsck", "--strict")
	// A copy of its own, for whoever wants one.
	p.git(p.cfg.RepoDir, "repack", "-q", "-a", "-d")
	if kb := strings.Fields(p.git(p.cfg.RepoDir, "count-objects", "-v")); !large(t, kb) {
		t.Errorf("after a repack of all it has not all: %v", kb)
	}
}

// large tells whether git count-objects -v tells of more than a megabyte.
func large(t *testing.T, words []string) bool {
	t.Helper()
	sum := 0
	for i, w := range words {
		if w == "size:" || w == "size-pack:" { // in KiB
			n, err := strconv.Atoi(words[i+1])
			if err != nil {
				t.Fatal(err)
			}
			sum += n
		}
	}
	return sum > 1024
}
