package mirror_test

import (
	"bytes"
	"context"
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
	"sync/atomic"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/mirror"
	"codeberg.org/devaipod/devaipod/mirror/cache"
)

const token = "sekret-forge-token"

// stack is a forge played by git's own http-backend, the endpoint before it,
// and a clone made through the endpoint.
type stack struct {
	bare  string
	url   string
	clone string
	down  atomic.Bool // the forge breaks every connection off
}

func newStack(t *testing.T) *stack {
	t.Helper()
	root := t.TempDir()
	t.Setenv("GIT_CONFIG_GLOBAL", filepath.Join(root, "gitconfig"))
	t.Setenv("GIT_CONFIG_NOSYSTEM", "1")
	t.Setenv("GIT_TERMINAL_PROMPT", "0")
	t.Setenv("HOME", root)
	for _, kv := range [][2]string{{"user.name", "Test"}, {"user.email", "t@example.org"}, {"init.defaultBranch", "main"}, {"http.postBuffer", "65536"}} {
		git(t, root, "config", "--global", kv[0], kv[1])
	}
	s := &stack{bare: filepath.Join(root, "forge", "alice", "hello.git"), clone: filepath.Join(root, "clone")}
	git(t, root, "init", "-q", "--bare", s.bare)
	git(t, s.bare, "config", "http.receivepack", "true")
	git(t, root, "init", "-q", "seed")
	seed := filepath.Join(root, "seed")
	write(t, filepath.Join(seed, "README"), "hello\n")
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
		if r.ContentLength < 0 { // CGI wants a length
			b, err := io.ReadAll(r.Body)
			if err != nil {
				return
			}
			r.Body, r.ContentLength, r.TransferEncoding = io.NopCloser(bytes.NewReader(b)), int64(len(b)), nil
		}
		backend.ServeHTTP(w, r)
	}))
	t.Cleanup(forge.Close)
	work, err := mirror.NewWork(mirror.WorkConfig{ForgeURL: forge.URL, User: "bot", Token: func() string { return token }, Wait: 10 * time.Second, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	front := httptest.NewServer(work.Handler(mirror.Rules{Repo: "alice/hello", BranchPrefix: "agent/3-"}, reads(t, forge.URL)))
	t.Cleanup(front.Close)
	s.url = front.URL
	git(t, root, "clone", "-q", s.url+"/work/alice/hello.git", s.clone)
	return s
}

// reads are those of a pod: out of the cache, by its right to our credentials.
func reads(t *testing.T, forge string) http.Handler {
	t.Helper()
	allow, err := cache.ParseAllow([]string{"forge"})
	if err != nil {
		t.Fatal(err)
	}
	c, err := cache.New(cache.Config{
		Dir: t.TempDir(), Allow: allow, Hosts: map[string]cache.Host{"forge": {URL: forge + "/", Rest: time.Millisecond}}, Log: slog.New(slog.DiscardHandler),
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
	return c.Reads(cache.Address{Host: "forge", Path: "alice/hello"})
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
		work, err := mirror.NewWork(mirror.WorkConfig{ForgeURL: url, User: "bot", Token: func() string { return token }, Wait: time.Millisecond, Log: slog.New(slog.NewTextHandler(&logged, nil))})
		if err != nil {
			t.Fatal(err)
		}
		rec := httptest.NewRecorder()
		work.Handler(mirror.Rules{Repo: "a/b", BranchPrefix: "agent/1-"}, http.NotFoundHandler()).ServeHTTP(rec,
			httptest.NewRequest("GET", "/work/a/b.git/info/refs?service=git-receive-pack", nil))
		if rec.Code != http.StatusBadGateway || !strings.Contains(rec.Body.String(), "the forge") {
			t.Errorf("%d %q, want 502 with a word about the forge", rec.Code, rec.Body)
		}
		if strings.Contains(rec.Body.String()+logged.String()+rec.Header().Get("Location"), token) {
			t.Error("the token shows")
		}
	}
}

func FuzzPush(f *testing.F) {
	f.Add([]byte("0000"))
	f.Add([]byte(pkt(strings.Repeat("0", 40)+" "+strings.Repeat("1", 40)+" refs/heads/agent/3-x\x00report-status side-band-64k") + "0000PACK"))
	forge := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {}))
	f.Cleanup(forge.Close)
	work, err := mirror.NewWork(mirror.WorkConfig{ForgeURL: forge.URL, User: "bot", Token: func() string { return token }, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		f.Fatal(err)
	}
	h := work.Handler(mirror.Rules{Repo: "alice/hello", BranchPrefix: "agent/3-"}, http.NotFoundHandler())
	f.Fuzz(func(t *testing.T, body []byte) {
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, httptest.NewRequest("POST", "/work/alice/hello.git/git-receive-pack", bytes.NewReader(body)))
		if bytes.Contains(body, []byte("refs/heads/main")) && rec.Code == http.StatusOK && rec.Body.Len() == 0 && !bytes.Contains(body, []byte("refs/heads/agent/3-")) {
			t.Errorf("passed on: %q", body)
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
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
