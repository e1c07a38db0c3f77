package mirror_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
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

	"codeberg.org/devaipod/devaipod/mirror"
	"codeberg.org/devaipod/devaipod/mirror/cache"
	"codeberg.org/devaipod/devaipod/mirror/gitproc/gitproctest"
)

const token = "sekret-forge-token"

// stack is a forge played by git's own http-backend, the endpoint before it,
// and a clone made through the endpoint.
type stack struct {
	bare   string
	url    string
	clone  string
	config mirror.WorkConfig
	rules  mirror.Rules
	work   *mirror.Work
	cache  *cache.Cache
	log    lockedBuffer
	down   atomic.Bool // the forge breaks every connection off
}

var pusher = mirror.Pusher{Pod: "devaipod-hello-3", Issue: "alice/hello#3", Task: "cafe", Agent: "opencode", Model: "m"}

func TestMain(m *testing.M) {
	if os.Getenv(serviceDir) != "" {
		fmt.Fprintln(os.Stderr, serveWork())
		os.Exit(1)
	}
	os.Exit(gitproctest.Main(m))
}

// A lockedBuffer is a log that several write to.
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

func newStack(t *testing.T) *stack {
	t.Helper()
	return newStackWith(t, "README", "hello\n")
}

// newStackWith begins with a file of that name beside README.
func newStackWith(t *testing.T, path, text string) *stack {
	t.Helper()
	root := t.TempDir()
	s := &stack{bare: filepath.Join(root, "forge", "alice", "hello.git"), clone: filepath.Join(root, "clone")}
	git(t, root, "init", "-q", "--bare", s.bare)
	git(t, s.bare, "config", "http.receivepack", "true")
	git(t, root, "init", "-q", "seed")
	seed := filepath.Join(root, "seed")
	write(t, filepath.Join(seed, "README"), "hello\n")
	if err := os.MkdirAll(filepath.Dir(filepath.Join(seed, path)), 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(seed, path), text)
	git(t, seed, "add", ".")
	git(t, seed, "commit", "-qm", "first")
	git(t, seed, "push", "-q", s.bare, "main")

	execPath := strings.TrimSpace(git(t, root, "--exec-path"))
	backend := &cgi.Handler{
		Path: filepath.Join(execPath, "git-http-backend"),
		Env:  []string{"GIT_PROJECT_ROOT=" + filepath.Join(root, "forge"), "GIT_HTTP_EXPORT_ALL=1", "REMOTE_USER=bot"},
	}
	forge := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.down.Load() {
			panic(http.ErrAbortHandler)
		}
		if path, old := strings.CutPrefix(r.URL.Path, "/alice/hello.git/"); old && s.renamed() {
			http.Redirect(w, r, "/alice/welcome.git/"+path+"?"+r.URL.RawQuery, http.StatusMovedPermanently)
			return
		}
		if _, pass, _ := r.BasicAuth(); pass != token {
			http.Error(w, "no", http.StatusUnauthorized)
			return
		}
		// git http-backend turns for ever when less comes than it was told.
		b, err := io.ReadAll(r.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		r.Body, r.ContentLength, r.TransferEncoding = io.NopCloser(bytes.NewReader(b)), int64(len(b)), nil
		backend.ServeHTTP(w, r)
	}))
	t.Cleanup(forge.Close)
	s.cache = newCache(t, forge.URL)
	s.config = mirror.WorkConfig{
		ForgeURL: forge.URL, User: "bot", Token: func() string { return token }, Wait: 10 * time.Second, Dir: filepath.Join(root, "work"), Launcher: gitproctest.Launcher,
		Known: func(ctx context.Context, repo string) (string, error) { return s.cache.Here(ctx, address(repo)) },
		Copy:  func(repo string, _ int64) (string, bool) { return s.copy(t, repo) },
		Name: func(context.Context, int64) (string, error) {
			if s.down.Load() {
				return "", errors.New("the forge is down")
			}
			if s.renamed() {
				return "alice/welcome", nil
			}
			return "alice/hello", nil
		},
		Limits:    mirror.Limits{Push: 64 << 20, Unpacked: 256 << 20, File: 32 << 20, Objects: 100_000},
		Protected: []string{".forgejo/workflows/", "CODEOWNERS", ".devcontainer/", ".devcontainer.json"},
		Log:       slog.New(slog.NewTextHandler(&s.log, nil)),
	}
	s.rules = mirror.Rules{Repo: "alice/hello", RepoID: 7, BranchPrefix: "agent/3-", Pusher: func() mirror.Pusher { return pusher }}
	s.start(t)
	git(t, root, "clone", "-q", s.url+"/work/alice/hello.git", s.clone)
	return s
}

// copy is the cache's copy as it is.
func (s *stack) copy(t *testing.T, repo string) (string, bool) {
	dir, ok, err := s.cache.Copy(address(repo), "")
	if err != nil {
		t.Error(err)
	}
	return dir, ok
}

// start opens the work store and serves the pod of s.rules.
func (s *stack) start(t *testing.T) {
	t.Helper()
	var err error
	if s.work, err = mirror.NewWork(s.config); err != nil {
		t.Fatal(err)
	}
	s.url = s.serve(t, s.rules)
}

// serve is the door of one pod.
func (s *stack) serve(t *testing.T, rules mirror.Rules) string {
	t.Helper()
	front := httptest.NewServer(s.work.Handler(rules, func(repo string) http.Handler { return s.cache.Reads(address(repo)) }))
	t.Cleanup(front.Close)
	return front.URL
}

func address(repo string) cache.Address { return cache.Address{Host: "forge", Path: repo} }

// newCache is what the service has of the forge.
func newCache(t *testing.T, forge string) *cache.Cache {
	t.Helper()
	allow, err := cache.ParseAllow([]string{"forge"})
	if err != nil {
		t.Fatal(err)
	}
	c, err := cache.New(cache.Config{
		Dir: t.TempDir(), Allow: allow, Log: slog.New(slog.DiscardHandler),
		Hosts:       map[string]cache.Host{"forge": {URL: forge + "/", Rest: time.Millisecond, Always: true, Unchecked: true, Refs: []string{"refs/pull/*/head"}}},
		Credentials: func(context.Context, string, string) (string, string, error) { return "bot", token, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// renamed tells whether the forge has renamed alice/hello to alice/welcome.
func (s *stack) renamed() bool {
	_, err := os.Stat(filepath.Join(filepath.Dir(s.bare), "welcome.git"))
	return err == nil
}

func (s *stack) commit(t *testing.T, name string, size int) {
	t.Helper()
	data := make([]byte, size)
	for i, x := 0, uint32(1); i < size; i++ { // does not compress
		x = x*1664525 + 1013904223
		data[i] = byte(x >> 24)
	}
	if err := os.WriteFile(filepath.Join(s.clone, name), data, 0o600); err != nil {
		t.Fatal(err)
	}
	git(t, s.clone, "add", ".")
	git(t, s.clone, "commit", "-qm", "add "+name)
}

func TestPushWithinThePrefixReachesTheForge(t *testing.T) {
	for name, size := range map[string]int{"a small push": 10, "a push that is sent in chunks": 3 << 20} {
		t.Run(name, func(t *testing.T) {
			s := newStack(t)
			s.commit(t, "file", size)
			git(t, s.clone, "push", "-q", "origin", "HEAD:agent/3-work")
			want := strings.TrimSpace(git(t, s.clone, "rev-parse", "HEAD"))
			if got := strings.TrimSpace(git(t, s.bare, "rev-parse", "refs/heads/agent/3-work")); got != want {
				t.Errorf("the forge has %s, want %s", got, want)
			}
			git(t, s.clone, "commit", "-q", "--amend", "-m", "rewritten")
			git(t, s.clone, "push", "-qf", "origin", "HEAD:agent/3-work")
			git(t, s.clone, "fetch", "-q", "--depth=1", "origin")
		})
	}
}

func TestAPushFollowsARenamedRepository(t *testing.T) {
	s := newStack(t)
	s.commit(t, "file", 10)
	now := filepath.Join(filepath.Dir(s.bare), "welcome.git")
	if err := os.Rename(s.bare, now); err != nil {
		t.Fatal(err)
	}
	git(t, s.clone, "push", "-q", "origin", "HEAD:agent/3-work")
	git(t, s.clone, "fetch", "-q", "origin")
	if out, err := run(s.clone, "push", "-q", "origin", "HEAD:main"); err == nil {
		t.Errorf("a push to main went through: %s", out)
	}
	want := strings.TrimSpace(git(t, s.clone, "rev-parse", "HEAD"))
	if got := strings.TrimSpace(git(t, now, "rev-parse", "refs/heads/agent/3-work")); got != want {
		t.Errorf("the forge has %s, want %s", got, want)
	}
}

func TestAPushWaitsForAForgeThatIsAway(t *testing.T) {
	s := newStack(t)
	s.commit(t, "file", 10)
	s.down.Store(true)
	time.AfterFunc(300*time.Millisecond, func() { s.down.Store(false) })
	git(t, s.clone, "push", "-q", "origin", "HEAD:agent/3-work")
}

func TestPushOutsideThePrefixIsRefusedWithWords(t *testing.T) {
	for name, tt := range map[string]struct {
		args []string
		want string
	}{
		"the default branch":            {[]string{"HEAD:main"}, "only to branches named agent/3-*"},
		"another issue's branch":        {[]string{"HEAD:agent/31-x"}, "only to branches named agent/3-*"},
		"the bare prefix":               {[]string{"HEAD:refs/heads/agent/3-"}, "only to branches named agent/3-*"},
		"a tag":                         {[]string{"HEAD:refs/tags/agent/3-x"}, "only to branches"},
		"a branch by other case":        {[]string{"HEAD:refs/heads/Agent/3-x"}, "only to branches"},
		"a review by magic ref":         {[]string{"HEAD:refs/for/main"}, "only to branches"},
		"one good and one bad":          {[]string{"HEAD:agent/3-ok", "HEAD:main"}, "not pushed, as another ref"},
		"a deletion":                    {[]string{":agent/3-kept"}, "may not delete"},
		"a push option":                 {[]string{"-o", "repo.private=false", "HEAD:agent/3-x"}, "push options"},
		"a large pack to a wrong place": {[]string{"HEAD:big"}, "only to branches"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStack(t)
			git(t, s.bare, "branch", "agent/3-kept", "main")
			git(t, s.bare, "config", "receive.advertisePushOptions", "true")
			size := 10
			if strings.Contains(name, "large") {
				size = 2 << 20
			}
			s.commit(t, "file", size)
			before := git(t, s.bare, "for-each-ref")
			out, err := run(s.clone, append([]string{"push", "origin"}, tt.args...)...)
			if err == nil {
				t.Errorf("the push was taken:\n%s", out)
			}
			if !strings.Contains(out, tt.want) {
				t.Errorf("git said:\n%s\nwant a line with %q", out, tt.want)
			}
			if after := git(t, s.bare, "for-each-ref"); after != before {
				t.Errorf("the forge changed:\nbefore %s\nafter %s", before, after)
			}
		})
	}
}

func TestNothingButThisRepositoryIsServed(t *testing.T) {
	s := newStack(t)
	for _, path := range []string{
		"/work/alice/other.git/info/refs?service=git-upload-pack",
		"/work/alice/hello.git/info/refs",
		"/work/alice/hello.git/info/refs?service=git-upload-archive",
		"/work/alice/hello.git/HEAD",
		"/work/alice/hello.git/objects/info/packs",
		"/work/alice/hello.git/../other.git/info/refs?service=git-upload-pack",
		"/api/v1/user",
	} {
		resp, err := http.Get(s.url + path)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusForbidden {
			t.Errorf("GET %s: %s, want 403", path, resp.Status)
		}
	}
}

func TestGarbageIsRefusedWithoutReachingTheForge(t *testing.T) {
	s := newStack(t)
	zero, one := strings.Repeat("0", 40), strings.Repeat("1", 40)
	for name, body := range map[string]string{
		"nothing":              "",
		"a bad length":         "zzzz",
		"a length of three":    "0003",
		"a cut-off line":       "00ffabc",
		"not a ref update":     "000ahello\n0000",
		"a certificate":        "0012push-cert\x00abc\n0000",
		"a line in a ref":      pkt(zero+" "+one+" refs/heads/agent/3-x\nng refs/heads/main\x00report-status") + "0000",
		"no end of the list":   pkt(zero + " " + one + " refs/heads/agent/3-x\x00report-status"),
		"a delimiter packet":   "0001",
		"too many refs":        strings.Repeat(pkt(zero+" "+one+" refs/heads/agent/3-x"), 1001) + "0000",
		"an upper-case object": pkt(strings.Repeat("A", 40)+" "+one+" refs/heads/agent/3-x") + "0000",
	} {
		resp, err := http.Post(s.url+"/work/alice/hello.git/git-receive-pack", "application/x-git-receive-pack-request", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusBadRequest {
			t.Errorf("%s: %s, want 400", name, resp.Status)
		}
	}
}

func TestAForgeThatIsDownOrRefusesIsToldWithoutItsToken(t *testing.T) {
	down := httptest.NewServer(http.NotFoundHandler())
	down.Close()
	refusing := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://127.0.0.1:1/"+r.Header.Get("Authorization"), http.StatusFound)
	}))
	defer refusing.Close()
	var hops atomic.Int64
	circle := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, fmt.Sprintf("/a/b%d.git/info/refs?service=git-receive-pack", hops.Add(1)), http.StatusFound)
	}))
	defer circle.Close()
	for _, url := range []string{down.URL, refusing.URL, circle.URL} {
		var logged bytes.Buffer
		work, err := mirror.NewWork(mirror.WorkConfig{
			ForgeURL: url, User: "bot", Token: func() string { return token }, Wait: time.Millisecond, Log: slog.New(slog.NewTextHandler(&logged, nil)),
			Dir: t.TempDir(), Launcher: gitproctest.Launcher,
			Name:  func(context.Context, int64) (string, error) { return "a/b", nil },
			Copy:  func(string, int64) (string, bool) { return "", false },
			Known: func(context.Context, string) (string, error) { return "", errors.New("nothing is known") },
		})
		if err != nil {
			t.Fatal(err)
		}
		rec := httptest.NewRecorder()
		work.Handler(mirror.Rules{Repo: "a/b", BranchPrefix: "agent/1-"}, noReads).ServeHTTP(rec,
			httptest.NewRequest("GET", "/work/a/b.git/info/refs?service=git-receive-pack", nil))
		if rec.Code != http.StatusBadGateway || !strings.Contains(rec.Body.String(), "the forge") {
			t.Errorf("%d %q, want 502 with a word about the forge", rec.Code, rec.Body)
		}
		if strings.Contains(rec.Body.String()+logged.String()+rec.Header().Get("Location"), token) {
			t.Error("the token shows")
		}
	}
}

func noReads(string) http.Handler { return http.NotFoundHandler() }

// Whatever is sent as a push, the forge gets no whole one that was not taken.
func FuzzPush(f *testing.F) {
	f.Add([]byte("0000"))
	f.Add([]byte(pkt(strings.Repeat("0", 40)+" "+strings.Repeat("1", 40)+" refs/heads/agent/3-x\x00report-status side-band-64k") + "0000PACK"))
	work, err := mirror.NewWork(mirror.WorkConfig{
		ForgeURL: "http://127.0.0.1:1", User: "bot", Token: func() string { return token }, Log: slog.New(slog.DiscardHandler), Dir: f.TempDir(), Launcher: []string{"false"},
		Name:  func(context.Context, int64) (string, error) { return "alice/hello", nil },
		Copy:  func(string, int64) (string, bool) { return "", false },
		Known: func(context.Context, string) (string, error) { return "", errors.New("nothing is known") },
	})
	if err != nil {
		f.Fatal(err)
	}
	h := work.Handler(mirror.Rules{Repo: "alice/hello", BranchPrefix: "agent/3-"}, noReads)
	f.Fuzz(func(t *testing.T, body []byte) {
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, httptest.NewRequest("POST", "/work/alice/hello.git/git-receive-pack", bytes.NewReader(body)))
		if out := rec.Body.String(); rec.Code == http.StatusOK && strings.Contains(out, "\nok ") || strings.Contains(out, "ok refs/") {
			t.Errorf("%q is taken: %q", body, out)
		}
	})
}

func pkt(s string) string {
	const hex = "0123456789abcdef"
	n := len(s) + 4
	return string([]byte{hex[n>>12&15], hex[n>>8&15], hex[n>>4&15], hex[n&15]}) + s
}

func git(t *testing.T, dir string, args ...string) string {
	t.Helper()
	out, err := run(dir, args...)
	if err != nil {
		t.Fatalf("git %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func run(dir string, args ...string) (string, error) {
	cmd := exec.Command("git", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1", "GIT_TERMINAL_PROMPT=0")
	for i, kv := range [][2]string{{"user.name", "Test"}, {"user.email", "t@example.org"}, {"init.defaultBranch", "main"}, {"http.postBuffer", "65536"}, {"core.quotePath", "false"}} {
		cmd.Env = append(cmd.Env, fmt.Sprintf("GIT_CONFIG_KEY_%d=%s", i, kv[0]), fmt.Sprintf("GIT_CONFIG_VALUE_%d=%s", i, kv[1]), fmt.Sprintf("GIT_CONFIG_COUNT=%d", i+1))
	}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
