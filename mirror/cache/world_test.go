package cache_test

import (
	"bytes"
	"io"
	"log/slog"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/mirror/cache"
)

// A world is an upstream (git's own http-backend), a cache before it, and a
// person with a git of their own.
type world struct {
	t     testing.TB
	dir   string
	up    *upstream
	cache *cache.Cache
	url   string // of the cache
	log   *lockedBuffer
	clock *clock
}

// An upstream is a forge played by git's http-backend.
type upstream struct {
	root string
	url  string
	host string

	down    atomic.Bool // it breaks every connection off
	private atomic.Bool // it wants ada and her password
	moved   atomic.Bool // /old.git is /app.git now
	cut     atomic.Int64
	hold    atomic.Pointer[hold]
	lfs     atomic.Pointer[lfsStandIn]
	answer  atomic.Pointer[http.HandlerFunc] // instead of git's
	before  atomic.Pointer[func(string)]     // told of each request first

	mu       sync.Mutex
	requests []string // "GET info/refs", "POST ls-refs", "POST fetch"
}

const (
	user     = "ada"
	password = "open-sesame-7f3a"
)

func newUpstream(t testing.TB) *upstream {
	t.Helper()
	up := &upstream{root: t.TempDir()}
	backend := &cgi.Handler{
		Path: filepath.Join(strings.TrimSpace(run(t, "/", "git", "--exec-path")), "git-http-backend"),
		Env:  []string{"GIT_PROJECT_ROOT=" + up.root, "GIT_HTTP_EXPORT_ALL=1", "GIT_HTTP_MAX_REQUEST_BUFFER=200M", "REMOTE_USER=bot", "GIT_CONFIG_GLOBAL=" + os.Getenv("GIT_CONFIG_GLOBAL")},
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		what := r.Method + " " + r.URL.Path[strings.LastIndex(r.URL.Path, ".git/")+5:]
		for _, command := range []string{"ls-refs", "fetch"} {
			if bytes.Contains(body, []byte("command="+command)) {
				what = "POST " + command
			}
		}
		up.mu.Lock()
		up.requests = append(up.requests, what)
		up.mu.Unlock()
		if f := up.before.Load(); f != nil {
			(*f)(what + "?" + r.URL.RawQuery)
		}
		if up.down.Load() {
			panic(http.ErrAbortHandler)
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		if f := up.answer.Load(); f != nil {
			(*f)(w, r)
			return
		}
		if path, ok := strings.CutPrefix(r.URL.Path, "/old.git/"); ok && up.moved.Load() {
			http.Redirect(w, r, "/app.git/"+path+"?"+r.URL.RawQuery, http.StatusMovedPermanently)
			return
		}
		if u, p, _ := r.BasicAuth(); up.private.Load() && (u != user || p != password) {
			w.Header().Set("WWW-Authenticate", `Basic realm="up"`)
			http.Error(w, "who are you?", http.StatusUnauthorized)
			return
		}
		if s := up.lfs.Load(); s != nil && strings.Contains(r.URL.Path, "/info/lfs/") {
			s.ServeHTTP(w, r)
			return
		}
		r.ContentLength, r.TransferEncoding = int64(len(body)), nil // CGI wants a length
		if h := up.hold.Load(); h != nil && (what == "POST fetch" || what == "POST git-receive-pack") {
			h.came <- struct{}{}
			<-h.let
		}
		if n := up.cut.Load(); n > 0 && what == "POST fetch" {
			w = &cutter{w, n}
		}
		backend.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	up.url, up.host = server.URL, strings.TrimPrefix(server.URL, "http://")
	return up
}

// A hold keeps fetches and pushes waiting.
type hold struct {
	came chan<- struct{}
	let  <-chan struct{}
}

// A cutter breaks the connection off after some bytes.
type cutter struct {
	http.ResponseWriter
	left int64
}

func (c *cutter) Write(b []byte) (int, error) {
	if c.left -= int64(len(b)); c.left < 0 {
		panic(http.ErrAbortHandler)
	}
	return c.ResponseWriter.Write(b)
}

// asked counts what came since the last call.
func (up *upstream) asked() map[string]int {
	up.mu.Lock()
	defer up.mu.Unlock()
	n := map[string]int{}
	for _, r := range up.requests {
		n[r]++
	}
	up.requests = nil
	return n
}

// repo makes a repository upstream with a few commits, branches and tags, and
// returns a clone in which one can work.
func (up *upstream) repo(t testing.TB, name string) (work string) {
	t.Helper()
	bare := filepath.Join(up.root, name+".git")
	git(t, "/", "init", "-q", "--bare", bare)
	git(t, bare, "config", "http.receivepack", "true")
	git(t, bare, "config", "uploadpack.allowFilter", "true")
	work = filepath.Join(t.TempDir(), "work")
	git(t, "/", "clone", "-q", bare, work)
	for _, text := range []string{"one", "two", "three"} {
		commit(t, work, text)
	}
	git(t, work, "tag", "-am", "Version one", "v1")
	git(t, work, "branch", "side", "HEAD~1")
	git(t, work, "push", "-q", "origin", "main", "side", "v1")
	return work
}

func commit(t testing.TB, work, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(work, "README"), []byte(text+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	git(t, work, "add", ".")
	git(t, work, "commit", "-qm", text)
}

// A clock is moved by hand.
type clock struct{ ahead atomic.Int64 }

func (c *clock) now() time.Time          { return time.Now().Add(time.Duration(c.ahead.Load())) }
func (c *clock) advance(d time.Duration) { c.ahead.Add(int64(d)) }

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// newWorld opens a cache that asks upstream each time; change what change says.
func newWorld(t testing.TB, change ...func(*cache.Config)) *world {
	t.Helper()
	dir := t.TempDir()
	gitconfig(t, dir)
	w := &world{t: t, dir: dir, up: newUpstream(t), log: &lockedBuffer{}, clock: &clock{}}
	w.open(change...)
	return w
}

// gitconfig gives the test's git a configuration of its own.
func gitconfig(t testing.TB, dir string) {
	t.Helper()
	t.Setenv("HOME", dir)
	t.Setenv("GIT_CONFIG_GLOBAL", filepath.Join(dir, "gitconfig"))
	t.Setenv("GIT_CONFIG_NOSYSTEM", "1")
	t.Setenv("GIT_TERMINAL_PROMPT", "0")
	for _, kv := range [][2]string{{"user.name", "Test"}, {"user.email", "t@example.org"}, {"init.defaultBranch", "main"}, {"advice.detachedHead", "false"}} {
		git(t, dir, "config", "--global", kv[0], kv[1])
	}
}

func (w *world) open(change ...func(*cache.Config)) {
	w.t.Helper()
	allow, err := cache.ParseAllow([]string{w.up.host, "localhost" + w.up.root + "/*"})
	if err != nil {
		w.t.Fatal(err)
	}
	cfg := cache.Config{Dir: filepath.Join(w.dir, "cache"), Allow: allow, Now: w.clock.now, Log: slog.New(slog.NewTextHandler(w.log, nil))}
	for _, f := range change {
		f(&cfg)
	}
	c, err := cache.New(cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	w.cache = c
	server := httptest.NewServer(c)
	w.t.Cleanup(func() {
		server.Close()
		if err := c.Close(); err != nil {
			w.t.Error(err)
		}
	})
	w.url = server.URL
}

// at is where the cache has an upstream's repository.
func (w *world) at(name string) string { return w.url + "/git/" + w.up.host + "/" + name + ".git" }

func run(t testing.TB, dir, name string, args ...string) string {
	t.Helper()
	out, err := try(dir, name, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return out
}

func try(dir, name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func git(t testing.TB, dir string, args ...string) string {
	t.Helper()
	return run(t, dir, "git", args...)
}
