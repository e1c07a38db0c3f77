package cache_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"codeberg.org/devaipod/devaipod/ci/cache"
)

// toolkitVersion is the release of @actions/cache (npm), which actions/cache, and the
// setup actions, are made with.
const toolkitVersion = "6.3.0"

// toolkit is where that package is, fetched once.
func toolkit(t *testing.T) string {
	t.Helper()
	dir := os.Getenv("DEVAIPOD_CACHE")
	if dir == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			t.Fatal(err)
		}
		dir = filepath.Join(user, "devaipod")
	}
	dir = filepath.Join(dir, "actions-cache-"+toolkitVersion)
	within := "node_modules/@actions/cache"
	if _, err := os.Stat(filepath.Join(dir, within)); err == nil {
		return filepath.Join(dir, within)
	}
	tmp := dir + ".new"
	if err := errors.Join(os.RemoveAll(tmp), os.MkdirAll(tmp, 0o755)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--no-save", "--prefix", tmp, "@actions/cache@"+toolkitVersion)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("fetching @actions/cache from npm: %v\n%s", err, out)
	}
	if err := os.Rename(tmp, dir); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, within)
}

// A node is a job whose steps are made with the toolkit.
type node struct {
	*client
	dir string
}

func newNode(t *testing.T, s *cache.Store, scope cache.Scope) *node {
	n := &node{newClient(t, s, scope), t.TempDir()}
	if err := os.Mkdir(filepath.Join(n.dir, "deps"), 0o755); err != nil {
		t.Fatal(err)
	}
	return n
}

// runs is what the toolkit says.
func (n *node) runs(args ...string) string {
	n.t.Helper()
	script, err := filepath.Abs("testdata/toolkit.mjs")
	if err != nil {
		n.t.Fatal(err)
	}
	t := n.t.(*testing.T)
	cmd := exec.CommandContext(t.Context(), "node", append([]string{script, toolkit(t)}, args...)...)
	cmd.Dir = n.dir
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + n.dir, "RUNNER_TEMP=" + n.dir, "GITHUB_WORKSPACE=" + n.dir,
		"GITHUB_SERVER_URL=http://127.0.0.1:3000", "ACTIONS_CACHE_URL=" + n.URL + "/", "ACTIONS_RUNTIME_TOKEN=a-token",
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		n.t.Fatalf("%v\n%s", err, out)
	}
	return string(out)
}

func (n *node) says(want string, args ...string) {
	n.t.Helper()
	if out := n.runs(args...); !strings.Contains(out, want) {
		n.t.Errorf("%q says\n%s\nwithout %q", args, out, want)
	}
}

func (n *node) file() string { return filepath.Join(n.dir, "deps", "file") }

func TestWithActionsCache(t *testing.T) {
	t.Parallel()
	toolkit(t)
	s := open(t, cache.Config{Dir: t.TempDir(), Max: 64 << 20})
	text := random(5<<20 + 3)
	first := newNode(t, s, cache.Scope{Tier: cache.Trusted, Ref: main})
	if err := os.WriteFile(first.file(), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	first.says("restored: undefined", "restore", "linux-1", "linux-")
	first.says("saved: true", "save", "linux-1")
	first.says("already", "save", "linux-1")

	second := newNode(t, s, cache.Scope{Tier: cache.Trusted, Ref: "refs/heads/x"})
	second.says("restored: linux-1", "restore", "linux-2", "macos-", "linux-")
	if got, err := os.ReadFile(second.file()); err != nil || string(got) != text {
		t.Errorf("%d bytes came back, %v", len(got), err)
	}
	// An agent's job reads it, and what it saves no other job does.
	agent := newNode(t, s, cache.Scope{Tier: cache.Untrusted, Ref: "refs/heads/agent/1"})
	agent.says("restored: linux-1", "restore", "linux-1")
	if err := os.WriteFile(agent.file(), []byte("poison"), 0o644); err != nil {
		t.Fatal(err)
	}
	agent.says("saved: true", "save", "linux-9")
	second.says("restored: linux-1", "restore", "linux-9", "linux-")

	// What is too large, and what there is no room for, is no reason to fail.
	if err := os.WriteFile(second.file(), []byte(random(17<<20)), 0o644); err != nil {
		t.Fatal(err)
	}
	second.says("bytes at most", "save", "large")
	full := open(t, cache.Config{Dir: t.TempDir(), Max: 64 << 20})
	for repo := range 4 {
		c := newClient(t, full, cache.Scope{Repo: int64(5 + repo), Tier: cache.Trusted, Ref: main})
		c.wants(204, "", "PATCH", c.reserve("k"), "bytes 16000000-16000000/*", strings.NewReader("x"))
	}
	third := newNode(t, full, cache.Scope{Tier: cache.Trusted, Ref: main})
	if err := os.WriteFile(third.file(), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	third.says("Cache service responded with 507", "save", "linux-3")
}
