package saver_test

import (
	"bytes"
	"context"
	"encoding/json"
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
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/pods/podfile"
	"codeberg.org/devaipod/devaipod/pods/saver"
)

// A place is an agent's volume with a clone in it, and a stand-in for the
// service's end: git http-backend on a bare repository, at a unix socket.
type place struct {
	t      *testing.T
	dir    string
	clone  string
	server string // the bare repository
	cfg    saver.Config
	log    *record
	pushes atomic.Int64

	away func()
}

func newPlace(t *testing.T) *place {
	t.Helper()
	p := &place{t: t, dir: t.TempDir(), log: &record{}}
	p.clone, p.server = p.path("workspace/repo"), p.path("server/saved.git")
	for _, d := range []string{p.clone, p.path("sock")} {
		must(t, os.MkdirAll(d, 0o755))
	}
	p.git("", "init", "--quiet", "--bare", p.server)
	p.git(p.server, "config", "http.receivepack", "true")
	p.git(p.server, "config", "receive.fsckObjects", "true")
	p.git(p.clone, "init", "--quiet", "--initial-branch=main")
	p.write("README", "hello\n")
	p.commit("first")
	p.cfg = saver.Config{
		Issue: 3, Workspace: p.path("workspace"), Home: p.path("saver"), Socket: p.path("sock/save.sock"),
		Quiet: 20 * time.Millisecond, AtMost: 100 * time.Millisecond, LastSave: 5 * time.Second, Log: slog.New(p.log),
	}
	p.serve()
	t.Cleanup(func() { p.away() })
	return p
}

func (p *place) path(name string) string { return filepath.Join(p.dir, name) }

// serve stands in for the service.
func (p *place) serve() {
	p.t.Helper()
	core := p.git("", "--exec-path")
	backend := &cgi.Handler{Path: filepath.Join(core, "git-http-backend"), Env: []string{"GIT_PROJECT_ROOT=" + p.path("server"), "GIT_HTTP_EXPORT_ALL=1"}, Stderr: io.Discard}
	must(p.t, os.RemoveAll(p.cfgSocket()))
	l, err := net.Listen("unix", p.cfgSocket())
	must(p.t, err)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			p.pushes.Add(1)
		}
		// CGI wants a length, and git sends large packs without one.
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return // the client went away
		}
		r.Body, r.ContentLength, r.TransferEncoding = io.NopCloser(bytes.NewReader(body)), int64(len(body)), nil
		backend.ServeHTTP(w, r)
	}))
	server.Listener = l
	server.Start()
	p.away = sync.OnceFunc(server.Close)
}

func (p *place) cfgSocket() string { return p.path("sock/save.sock") }

var environ = append(os.Environ(), "GIT_AUTHOR_NAME=T", "GIT_AUTHOR_EMAIL=t@localhost", "GIT_COMMITTER_NAME=T", "GIT_COMMITTER_EMAIL=t@localhost",
	"GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1")

func (p *place) try(dir string, args ...string) (string, error) {
	cmd := exec.Command("git", args...)
	cmd.Dir, cmd.Env = dir, environ
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("git %v: %w\n%s", args, err, out)
	}
	return strings.TrimSuffix(string(out), "\n"), err
}

func (p *place) git(dir string, args ...string) string {
	p.t.Helper()
	out, err := p.try(dir, args...)
	must(p.t, err)
	return out
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (p *place) write(name, text string) {
	p.t.Helper()
	path := filepath.Join(p.clone, name)
	must(p.t, os.MkdirAll(filepath.Dir(path), 0o755))
	must(p.t, os.WriteFile(path, []byte(text), 0o644))
}

// commit commits everything and returns the commit.
func (p *place) commit(message string) string {
	p.t.Helper()
	p.git(p.clone, "add", "-A")
	p.git(p.clone, "commit", "--quiet", "--allow-empty", "-m", message)
	return p.git(p.clone, "rev-parse", "HEAD")
}

// once saves everything, and must succeed.
func (p *place) once() podfile.Saved {
	p.t.Helper()
	saved := saver.Once(p.t.Context(), p.cfg)
	if !saved.Complete {
		p.t.Fatalf("not saved: %s\n%s", saved.Error, p.log)
	}
	return saved
}

// start runs the saver until the test ends, or the returned function is called.
func (p *place) start() (stop func()) {
	p.t.Helper()
	ctx, cancel := context.WithCancel(p.t.Context())
	done := make(chan error, 1)
	go func() { done <- saver.Run(ctx, p.cfg) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			p.t.Error(err)
		}
	})
	p.t.Cleanup(stop)
	return stop
}

const work = "refs/saved/3/work"

// saved is a file in the newest snapshot that the service has.
func (p *place) saved(name string) string {
	out, err := p.try(p.server, "show", work+":"+name)
	if err != nil {
		return "(none)"
	}
	return out
}

func (p *place) files() string {
	p.t.Helper()
	return p.git(p.server, "ls-tree", "-r", "--name-only", work)
}

func (p *place) snapshots() int {
	out, err := p.try(p.server, "rev-list", "--count", "--first-parent", "--grep=^Saved at ", work)
	if err != nil {
		return 0
	}
	var n int
	if _, err := fmt.Sscan(out, &n); err != nil {
		p.t.Error(err)
	}
	return n
}

// told is the message of the newest snapshot.
func (p *place) told() (s podfile.Snapshot) {
	p.t.Helper()
	message := p.git(p.server, "log", "-1", "--format=%B", work)
	first, body, _ := strings.Cut(message, "\n\n")
	if _, err := time.Parse("Saved at "+time.RFC3339, first); err != nil {
		p.t.Error(err)
	}
	must(p.t, json.Unmarshal([]byte(body), &s))
	return s
}

func why(list []podfile.NotSaved) map[string]string {
	out := map[string]string{}
	for _, n := range list {
		name := n.Path
		if n.Raw != nil {
			name = string(n.Raw)
		}
		out[name] = n.Why
	}
	return out
}

func (p *place) reachable(id string) bool {
	_, err := p.try(p.server, "merge-base", "--is-ancestor", id, work)
	return err == nil
}

func (p *place) eventually(what string, ok func() bool) {
	p.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			p.t.Fatalf("never: %s\n%s", what, p.log)
		}
	}
}

// A record is a log that counts rounds.
type record struct {
	mu     sync.Mutex
	lines  []string
	rounds int
}

func (r *record) Enabled(context.Context, slog.Level) bool { return true }

func (r *record) Handle(_ context.Context, rec slog.Record) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if rec.Message == "round" {
		r.rounds++
	}
	line := rec.Message
	rec.Attrs(func(a slog.Attr) bool { line += " " + a.String(); return true })
	r.lines = append(r.lines, line)
	return nil
}

func (r *record) WithAttrs([]slog.Attr) slog.Handler { return r }
func (r *record) WithGroup(string) slog.Handler      { return r }

func (r *record) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.rounds
}

func (r *record) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Join(r.lines, "\n")
}
