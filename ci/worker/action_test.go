package worker_test

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"codeberg.org/devaipod/devaipod/ci/worker"
)

// A hub serves repositories by git's own server.
type hub struct {
	t        *testing.T
	work     string // a working tree
	address  string
	asked    atomic.Int32
	withAuth atomic.Bool
}

func newHub(t *testing.T) *hub {
	h := &hub{t: t, work: t.TempDir()}
	root := t.TempDir()
	path, err := exec.LookPath("git")
	if err != nil {
		t.Fatal(err)
	}
	server := &cgi.Handler{
		Path: path, Args: []string{"http-backend"}, Stderr: io.Discard,
		Env: []string{"GIT_PROJECT_ROOT=" + root, "GIT_HTTP_EXPORT_ALL=1", "GIT_CONFIG_GLOBAL=/dev/null"},
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.asked.Add(1)
		if r.Header.Get("Authorization") != "" {
			h.withAuth.Store(true)
		}
		if strings.HasPrefix(r.URL.Path, "/moved.test/") {
			http.Redirect(w, r, "/github.com/a/b.git"+strings.TrimPrefix(r.URL.Path, "/moved.test/a/b.git")+"?"+r.URL.RawQuery, http.StatusFound)
			return
		}
		server.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	h.address = s.URL
	h.git("init", "-q", "-b", "main")
	h.write("action.yml", "one\n")
	h.write("sub/action.yml", "of sub\n")
	h.write("sub/file", "file\n")
	if err := os.Symlink("sub/action.yml", filepath.Join(h.work, "link.yml")); err != nil {
		t.Fatal(err)
	}
	h.git("add", ".")
	h.git("commit", "-q", "-m", "one")
	h.git("tag", "-a", "-m", "v1", "v1")
	h.git("clone", "-q", "--bare", h.work, filepath.Join(root, "github.com/a/b.git"))
	h.git("remote", "add", "origin", filepath.Join(root, "github.com/a/b.git"))
	return h
}

func (h *hub) write(name, text string) {
	h.t.Helper()
	path := filepath.Join(h.work, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(text), 0o600)); err != nil {
		h.t.Fatal(err)
	}
}

func (h *hub) git(args ...string) string {
	h.t.Helper()
	cmd := exec.CommandContext(h.t.Context(), "git", append([]string{"-c", "user.name=x", "-c", "user.email=x@example.com", "-c", "protocol.file.allow=always"}, args...)...)
	cmd.Dir = h.work
	out, err := cmd.CombinedOutput()
	if err != nil {
		h.t.Fatalf("git %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

func TestAnActionIsWhatItsRefNames(t *testing.T) {
	h := newHub(t)
	one := h.git("rev-parse", "HEAD")
	a := worker.Actions(h.address, t.TempDir())
	for _, ref := range []string{"main", "v1", "refs/heads/main", one} {
		if got, err := a.Fetch(t.Context(), "a/b", "https://forge.test/a/b", ref, "a token"); err != nil || got != one {
			t.Errorf("%s is %s, %v", ref, got, err)
		}
	}
	if got, err := a.Fetch(t.Context(), "github.com+a/b", "", "v1", ""); err != nil || got != one {
		t.Errorf("with its host: %s, %v", got, err)
	}
	if h.withAuth.Load() {
		t.Error("a token went along")
	}
	for prefix, want := range map[string]string{"": "action.yml link.yml sub/ sub/action.yml sub/file", "sub": "action.yml file", "sub/": "action.yml file", "sub/action.yml": "sub/action.yml", "link.yml": "link.yml"} {
		if got := names(t, a, one, prefix); got != want {
			t.Errorf("below %q: %s, want %s", prefix, got, want)
		}
	}
	for _, prefix := range []string{"none", "../x", "/etc/passwd", "-x"} {
		if r, err := a.GetTarArchive(t.Context(), "a/b", one, prefix); err == nil {
			t.Errorf("%q is there", prefix)
			_ = r.Close()
		}
	}
}

type archiver interface {
	GetTarArchive(ctx context.Context, cacheDir, sha, prefix string) (io.ReadCloser, error)
}

func names(t *testing.T, a archiver, commit, prefix string) string {
	t.Helper()
	r, err := a.GetTarArchive(t.Context(), "a/b", commit, prefix)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var all []string
	for in := tar.NewReader(r); ; {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return strings.Join(all, " ")
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Name == "link.yml" && h.Linkname != "sub/action.yml" {
			t.Errorf("the link leads to %q", h.Linkname)
		}
		all = append(all, h.Name)
	}
}

func TestActionsThatAreRefused(t *testing.T) {
	h := newHub(t)
	// A tree whose file would land elsewhere.
	blob := h.git("hash-object", "-w", "action.yml")
	raw := filepath.Join(t.TempDir(), "tree")
	id := make([]byte, 20)
	for i := range id {
		for _, c := range blob[2*i : 2*i+2] {
			id[i] = id[i]<<4 | byte(strings.IndexRune("0123456789abcdef", c))
		}
	}
	if err := os.WriteFile(raw, append([]byte("100644 ..\x00"), id...), 0o600); err != nil {
		t.Fatal(err)
	}
	tree := h.git("hash-object", "-t", "tree", "-w", "--literally", raw)
	h.git("push", "-q", "origin", h.git("commit-tree", "-m", "x", tree)+":refs/heads/escape")
	tag := h.git("rev-parse", "v1")
	a := worker.Actions(h.address, t.TempDir())
	for _, c := range []struct{ repo, ref, says string }{
		{"a/b", "escape", "hasDotdot"},
		{"a/b", "nosuch", "see that this repository and nosuch exist, and that github.com can be reached"},
		{"a/b", strings.Repeat("1", 40), "a/b@1111"},
		{"a/b", tag, "came instead"}, // the id is not of what was asked for: a commit
		{"a/none", "v1", "the action github.com/a/none@v1 could not be fetched"},
		{"moved.test+a/b", "v1", "moved.test/a/b@v1"},
		{"a/b", "--upload-pack=x", "names no branch"},
		{"a/b", "main:refs/heads/x", "names no branch"},
		{"a/b", "+main", "names no branch"},
		{"../b", "v1", "want OWNER/REPO@REF"},
		{"evil.test/x+a/b", "v1", "want OWNER/REPO@REF"},
	} {
		if got, err := a.Fetch(t.Context(), c.repo, "", c.ref, ""); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s@%s: %s, %v, want %q", c.repo, c.ref, got, err, c.says)
		}
	}
}
