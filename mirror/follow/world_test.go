package follow_test

import (
	"bytes"
	"context"
	"errors"
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
	"codeberg.org/devaipod/devaipod/mirror/follow"
)

// A host serves repositories by git's http-backend.
type host struct {
	root, url string
	private   atomic.Bool // only svc and its password are let in
	down      atomic.Bool
	noWrite   atomic.Bool                   // it lets nobody push, as without a second factor
	pushed    atomic.Int64                  // questions about pushes
	slow      atomic.Pointer[chan struct{}] // what is asked of /slow.git waits for it
}

func newHost(t *testing.T) *host {
	t.Helper()
	h := &host{root: t.TempDir()}
	backend := &cgi.Handler{
		Path: filepath.Join(run(t, "/", "git", "--exec-path"), "git-http-backend"),
		Env:  []string{"GIT_PROJECT_ROOT=" + h.root, "GIT_HTTP_EXPORT_ALL=1", "REMOTE_USER=svc", "GIT_CONFIG_GLOBAL=" + os.Getenv("GIT_CONFIG_GLOBAL")},
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if h.down.Load() {
			panic(http.ErrAbortHandler)
		}
		if wait := h.slow.Load(); wait != nil && strings.HasPrefix(r.URL.Path, "/slow") {
			<-*wait
		}
		if strings.Contains(r.URL.String(), "receive-pack") {
			h.pushed.Add(1)
			if h.noWrite.Load() {
				http.Error(w, "two-factor authentication is needed", http.StatusForbidden)
				return
			}
		}
		if u, p, _ := r.BasicAuth(); h.private.Load() && (u != "svc" || p != "secret") {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		if r.ContentLength < 0 { // CGI wants a length
			var b bytes.Buffer
			if _, err := b.ReadFrom(r.Body); err != nil {
				return
			}
			r.Body, r.ContentLength, r.TransferEncoding = http.NoBody, int64(b.Len()), nil
			r.Body = readCloser{&b}
		}
		backend.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	h.url = server.URL
	return h
}

type readCloser struct{ *bytes.Buffer }

func (readCloser) Close() error { return nil }

// bare makes an empty repository.
func (h *host) bare(t *testing.T, name string) string {
	t.Helper()
	dir := filepath.Join(h.root, name+".git")
	git(t, "/", "init", "-q", "--bare", dir)
	git(t, dir, "config", "http.receivepack", "true")
	return dir
}

// A world is an upstream with app, the forge's copy of it as repository 7,
// ann/app, and a follower.
type world struct {
	t        *testing.T
	up       *host
	forgeGit *host
	forge    *forge
	cache    *cache.Cache
	store    *follow.Store
	follower *follow.Follower
	log      *lockedBuffer
	clock    atomic.Int64 // ahead
	known    atomic.Bool  // the cache has an account at the upstream

	work string // a clone of the upstream's
	copy string // the forge's
}

const id = 7

// forge plays the API's part.
type forge struct {
	mu        sync.Mutex
	repo      follow.Repository
	err       error
	protected []string
	refuse    error // to protect
	undone    []time.Time
	undo      []string
	undoErr   error
	defaults  []string
}

func (f *forge) Repository(context.Context, int64) (follow.Repository, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.repo, f.err
}

func (f *forge) Protect(_ context.Context, repo, branch string) (bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.protected = append(f.protected, repo+" "+branch)
	return len(f.protected) == 1, f.refuse
}

func (f *forge) MergeByPush(context.Context, string) error { return nil }

func (f *forge) SetDefaultBranch(_ context.Context, repo, branch string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.repo.DefaultBranch = branch
	f.defaults = append(f.defaults, repo+" "+branch)
	return nil
}

func (f *forge) UndoKeywords(_ context.Context, since time.Time) ([]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.undone = append(f.undone, since)
	return f.undo, f.undoErr
}

func newWorld(t *testing.T) *world {
	t.Helper()
	dir := t.TempDir()
	t.Setenv("HOME", dir)
	t.Setenv("GIT_CONFIG_GLOBAL", filepath.Join(dir, "gitconfig"))
	t.Setenv("GIT_CONFIG_NOSYSTEM", "1")
	for _, kv := range [][2]string{{"user.name", "Test"}, {"user.email", "t@example.org"}, {"init.defaultBranch", "main"}} {
		git(t, dir, "config", "--global", kv[0], kv[1])
	}
	w := &world{t: t, up: newHost(t), forgeGit: newHost(t), log: &lockedBuffer{}, forge: &forge{repo: follow.Repository{Name: "ann/app", DefaultBranch: "main"}}}
	up := w.up.bare(t, "app")
	w.work = filepath.Join(t.TempDir(), "work")
	git(t, "/", "clone", "-q", up, w.work)
	w.commit("one")
	git(t, w.work, "tag", "v1")
	git(t, w.work, "push", "-q", "origin", "main", "v1")
	if err := os.Mkdir(filepath.Join(w.forgeGit.root, "ann"), 0o700); err != nil {
		t.Fatal(err)
	}
	w.copy = w.forgeGit.bare(t, "ann/app")
	git(t, w.work, "push", "-q", w.copy, "main", "v1", "main:refs/heads/agent/1-x", "main:refs/heads/mine")
	w.forgeGit.private.Store(true)

	upHost := strings.TrimPrefix(w.up.url, "http://")
	allow, err := cache.ParseAllow([]string{upHost, "forge"})
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(w.log, nil))
	w.cache, err = cache.New(cache.Config{
		Dir: filepath.Join(dir, "cache"), Allow: allow, Log: log, Now: w.now,
		Hosts: map[string]cache.Host{"forge": {URL: w.forgeGit.url, Push: true}},
		Credentials: func(_ context.Context, host, _ string) (string, string, error) {
			if host == "forge" || w.known.Load() {
				return "svc", "secret", nil
			}
			return "", "", nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.cache.Close(); err != nil {
			t.Error(err)
		}
	})
	if w.store, err = follow.OpenStore(filepath.Join(dir, "follow")); err != nil {
		t.Fatal(err)
	}
	w.follow(nil)
	w.put(follow.Record{ID: id, Repo: "ann/app", Upstream: upHost + "/app.git", Branch: "main"})
	return w
}

// follow makes a new follower, as after a restart; fault may be nil.
func (w *world) follow(fault func(string)) {
	w.t.Helper()
	var err error
	w.follower, err = follow.New(follow.Config{
		Store: w.store, Cache: w.cache, ForgeHost: "forge", Forge: w.forge, Login: cache.Login{User: "svc", Password: "secret"},
		Fault: fault, Now: w.now, Log: slog.New(slog.NewTextHandler(w.log, nil)),
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) now() time.Time { return time.Now().Add(time.Duration(w.clock.Load())) }

// wait lets a host that failed be asked again.
func (w *world) wait() { w.clock.Add(int64(time.Hour)) }

func (w *world) put(rec follow.Record) {
	w.t.Helper()
	if err := w.store.Put(rec); err != nil {
		w.t.Fatal(err)
	}
}

// sync looks once, and returns the kinds of troubles.
func (w *world) sync() (follow.Record, string) {
	w.t.Helper()
	view, err := w.follower.Sync(w.t.Context(), id)
	if err != nil {
		w.t.Fatalf("%v\n%s", err, w.log)
	}
	var kinds []string
	for _, t := range view.Troubles {
		kinds = append(kinds, t.Kind)
	}
	return view.Record, strings.Join(kinds, " ")
}

// want syncs and checks the kinds of troubles.
func (w *world) want(kinds string) follow.Record {
	w.t.Helper()
	rec, got := w.sync()
	if got != kinds {
		w.t.Fatalf("troubles %q, want %q: %+v", got, kinds, rec.Troubles)
	}
	return rec
}

func (w *world) commit(text string) {
	w.t.Helper()
	git(w.t, w.work, "commit", "-q", "--allow-empty", "-m", text)
}

// upstream commits and pushes there.
func (w *world) upstream(text string) {
	w.t.Helper()
	w.commit(text)
	git(w.t, w.work, "push", "-q", "origin", "main")
}

// same checks that the forge's branch is the upstream's.
func (w *world) same() {
	w.t.Helper()
	if up, here := git(w.t, w.work, "rev-parse", "main"), git(w.t, w.copy, "rev-parse", "main"); up != here {
		w.t.Fatalf("the forge has %s, the upstream %s\n%s", here, up, w.log)
	}
}

func (w *world) refs() string {
	return git(w.t, w.copy, "for-each-ref", "--format=%(refname) %(objectname)")
}

func (w *world) upRefs() string {
	return git(w.t, filepath.Join(w.up.root, "app.git"), "for-each-ref", "--format=%(refname) %(objectname)")
}

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

// count counts lines with a text.
func (l *lockedBuffer) count(text string) (n int) {
	for line := range strings.Lines(l.String()) {
		if strings.Contains(line, text) {
			n++
		}
	}
	return n
}

func git(t *testing.T, dir string, args ...string) string {
	t.Helper()
	return run(t, dir, "git", args...)
}

func run(t *testing.T, dir, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

var errAway = errors.New("connection refused")
