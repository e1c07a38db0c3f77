package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/forge"
	"codeberg.org/devaipod/devaipod/mirror/cache"
	"codeberg.org/devaipod/devaipod/mirror/follow"
	"codeberg.org/devaipod/devaipod/pods/audit"
	"codeberg.org/devaipod/devaipod/pods/reconcile"
)

// A fussyUpstream is git's own server, which lets in who shows its token to what is below /up/; there
// answer comes first, and tells whether it has answered.
type fussyUpstream struct {
	token  atomic.Pointer[string]
	answer atomic.Pointer[func(http.ResponseWriter, *http.Request) bool]
}

func (u *fussyUpstream) serve(t *testing.T, root string) string {
	t.Helper()
	git, err := exec.LookPath("git")
	if err != nil {
		t.Fatal(err)
	}
	backend := &cgi.Handler{Path: git, Args: []string{"http-backend"}, Env: []string{"GIT_PROJECT_ROOT=" + root, "GIT_HTTP_EXPORT_ALL=1", "REMOTE_USER=svc", "GIT_CONFIG_GLOBAL=/dev/null"}}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		up := strings.HasPrefix(r.URL.Path, "/up/")
		if answer := u.answer.Load(); up && answer != nil && (*answer)(w, r) {
			return
		}
		if _, shown, _ := r.BasicAuth(); up && shown != *u.token.Load() {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			http.Error(w, "who are you?", http.StatusUnauthorized)
			return
		}
		all, err := io.ReadAll(r.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		r.Body, r.ContentLength, r.TransferEncoding = io.NopCloser(bytes.NewReader(all)), int64(len(all)), nil
		backend.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	return server.URL
}

// followedForge is what following asks of the forge's API.
type followedForge struct{}

func (followedForge) Repository(context.Context, int64) (follow.Repository, error) {
	return follow.Repository{Name: "ann/app", DefaultBranch: "main"}, nil
}
func (followedForge) Protect(context.Context, string, string) (bool, error)     { return false, nil }
func (followedForge) MergeByPush(context.Context, string) error                 { return nil }
func (followedForge) SetDefaultBranch(context.Context, string, string) error    { return nil }
func (followedForge) UndoKeywords(context.Context, time.Time) ([]string, error) { return nil, nil }

// exportWorld has an upstream, a copy of it with a commit of an agent's on the forge, and what
// lands that.
type exportWorld struct {
	up       *fussyUpstream
	shown    atomic.Pointer[string] // the token that the service has
	forge    *mergeForge
	port     landPort
	landing  reconcile.Landing
	told     []string     // the audit log
	clock    atomic.Int64 // ahead
	upstream func() string
	copy     func() string
}

func newExport(t *testing.T) *exportWorld {
	t.Helper()
	dir := t.TempDir()
	t.Setenv("GIT_CONFIG_GLOBAL", "/dev/null")
	git := func(args ...string) string {
		t.Helper()
		cmd := exec.Command("git", args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@b", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@b")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("git %v: %v %s", args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	git("init", "-q", "-b", "main", "work")
	git("-C", "work", "commit", "-q", "--allow-empty", "-m", "one")
	for _, bare := range []string{"up/app.git", "forge/ann/app.git"} {
		git("clone", "-q", "--bare", "work", bare)
		git("-C", bare, "config", "http.receivepack", "true")
	}
	git("-C", "work", "commit", "-q", "--allow-empty", "-m", "two")
	commit := git("-C", "work", "rev-parse", "HEAD")
	git("-C", "work", "push", "-q", filepath.Join(dir, "forge/ann/app.git"), "HEAD:refs/heads/agent/3-x")
	w := &exportWorld{
		up: &fussyUpstream{}, forge: &mergeForge{base: "main", head: commit, status: http.StatusOK, then: func(f *mergeForge) { f.merged = true }},
		upstream: func() string { return git("-C", "up/app.git", "rev-parse", "main") },
		copy:     func() string { return git("-C", "forge/ann/app.git", "rev-parse", "main") },
		landing: reconcile.Landing{
			Key: reconcile.Key{Owner: "ann", Repo: "app", Issue: 3}, RepoID: 7, Pull: 4, Branch: "agent/3-x", Base: "main", Commit: commit, Approvers: []string{"bob"},
		},
	}
	good := "good"
	w.up.token.Store(&good)
	w.shown.Store(&good)
	w.open(t, dir, w.up.serve(t, dir))
	return w
}

// open makes what a service has.
func (w *exportWorld) open(t *testing.T, dir, url string) {
	t.Helper()
	api := httptest.NewServer(w.forge)
	t.Cleanup(api.Close)
	client, err := forge.New(forge.Config{URL: api.URL, Token: "t"})
	if err != nil {
		t.Fatal(err)
	}
	host := strings.TrimPrefix(url, "http://")
	allow, err := cache.ParseAllow([]string{host, forgeHost})
	if err != nil {
		t.Fatal(err)
	}
	now := func() time.Time { return time.Now().Add(time.Duration(w.clock.Load())) }
	c, err := cache.New(cache.Config{
		Dir: filepath.Join(dir, "cache"), Allow: allow, Now: now, Log: slog.New(slog.DiscardHandler),
		Hosts:       map[string]cache.Host{forgeHost: {URL: url + "/forge/", Push: true}},
		Credentials: func(context.Context, string, string) (string, string, error) { return "svc", *w.shown.Load(), nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	store, err := follow.OpenStore(filepath.Join(dir, "follow"))
	if err == nil {
		err = store.Put(follow.Record{ID: 7, Repo: "ann/app", Upstream: host + "/up/app.git", Branch: "main"})
	}
	if err != nil {
		t.Fatal(err)
	}
	f, err := follow.New(follow.Config{Store: store, Cache: c, ForgeHost: forgeHost, Forge: followedForge{}, Login: cache.Login{User: "svc", Password: "forge"}, Now: now, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	w.port = landPort{client: client, cache: c, follow: f, store: store, audit: func(e audit.Entry) error {
		w.told = append(w.told, e.Act+" "+e.Result)
		return nil
	}}
}

// writes answers what is asked of an upstream's pushes.
func writes(do http.HandlerFunc) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		is := strings.Contains(r.URL.String(), "git-receive-pack")
		if is {
			do(w, r)
		}
		return is
	}
}

// An upstream is read, and then does not take the push: nothing is there, it is told why and what
// to do, and once that is done the commit goes there.
func TestAnUpstreamThatDoesNotTakeThePush(t *testing.T) {
	for name, tt := range map[string]struct {
		answer  func(http.ResponseWriter, *http.Request) bool
		revoked bool // the token is another from the first question about a push on
		refused bool
		says    string
	}{
		"it wants a second factor": {
			answer: writes(func(w http.ResponseWriter, _ *http.Request) {
				http.Error(w, "two-factor authentication is needed", http.StatusForbidden)
			}),
			refused: true, says: "Where it asks for a second factor, it takes a token instead of a password",
		},
		"the token is revoked meanwhile": {revoked: true, refused: true, says: "git's credential helper, ~/.netrc or [[mirror.host]], are not enough"},
		"it goes down at the push":       {answer: writes(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })},
		"it breaks at the push":          {answer: writes(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "oops", http.StatusInternalServerError) })},
	} {
		t.Run(name, func(t *testing.T) {
			w := newExport(t)
			before, fresh := w.upstream(), "fresh"
			answer := tt.answer
			if tt.revoked {
				answer = func(_ http.ResponseWriter, r *http.Request) bool {
					if strings.Contains(r.URL.String(), "git-receive-pack") {
						w.up.token.Store(&fresh)
					}
					return false
				}
			}
			w.up.answer.Store(&answer)
			if _, err := w.port.Land(t.Context(), w.landing); err == nil || errors.Is(err, reconcile.ErrRefused) != tt.refused || !strings.Contains(err.Error(), tt.says) || strings.Contains(err.Error(), "good") {
				t.Errorf("it ends with %v", err)
			}
			if got := strings.Join(w.told, "|"); w.upstream() != before || w.copy() != before || w.forge.merged || !strings.HasPrefix(got, "export begins|export failed: ") {
				t.Errorf("upstream %s, copy %s, merged %t, told %s", w.upstream(), w.copy(), w.forge.merged, got)
			}
			if _, err := w.port.Land(t.Context(), w.landing); err == nil { // it is no better yet
				t.Error("it landed")
			}
			none := func(http.ResponseWriter, *http.Request) bool { return false }
			w.up.answer.Store(&none)
			w.shown.Store(w.up.token.Load())
			w.clock.Add(int64(time.Hour)) // a host that failed is asked again later
			done, err := w.port.Land(t.Context(), w.landing)
			if err == nil {
				_, err = w.port.Finish(t.Context(), w.landing)
			}
			if err != nil || done.Old != before || done.New != w.landing.Commit {
				t.Fatalf("%+v, %v", done, err)
			}
			if w.upstream() != w.landing.Commit || w.copy() != w.landing.Commit || !w.forge.merged || w.told[len(w.told)-1] != "mark-merged done" {
				t.Errorf("upstream %s, copy %s, merged %t, told %q", w.upstream(), w.copy(), w.forge.merged, w.told)
			}
		})
	}
}
