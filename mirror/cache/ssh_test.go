package cache_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gliderlabs/ssh"

	"codeberg.org/devaipod/devaipod/mirror/cache"
)

// sshUpstream serves a directory's repositories to one key, by the real ssh
// client and git's own upload-pack.
func sshUpstream(t *testing.T, root string, key ssh.PublicKey) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &ssh.Server{
		PublicKeyHandler: func(_ ssh.Context, k ssh.PublicKey) bool { return ssh.KeysEqual(k, key) },
		Handler: func(s ssh.Session) {
			words := s.Command()
			if len(words) != 2 || words[0] != "git-upload-pack" && words[0] != "git-receive-pack" {
				fmt.Fprintf(s.Stderr(), "no such command: %q\n", words)
				_ = s.Exit(1) // the client has gone
				return
			}
			cmd := exec.Command("git", strings.TrimPrefix(words[0], "git-"), filepath.Join(root, filepath.Clean("/"+words[1])))
			cmd.Stdout, cmd.Stderr = s, s.Stderr()
			in, err := cmd.StdinPipe()
			if err != nil {
				t.Error(err)
				return
			}
			// Not waited for: the client says no more, and does not hang up either.
			go func() { _, err := io.Copy(in, s); _ = errors.Join(err, in.Close()) }()
			if err := cmd.Run(); err != nil {
				_ = s.Exit(128)
			}
		},
	}
	go func() {
		if err := server.Serve(l); !errors.Is(err, ssh.ErrServerClosed) {
			t.Error(err)
		}
	}()
	t.Cleanup(func() { _ = server.Close() })
	return l.Addr().String()
}

// pushesOver pushes to an upstream that speaks no HTTP, as those who may, and as
// nobody.
func pushesOver(t *testing.T, w *world, clone, url, work string, ours []string) {
	t.Helper()
	bare := filepath.Join(w.up.root, "app.git")
	noise(t, filepath.Join(clone, "noise"), 3<<20) // is sent in chunks
	commit(t, clone, "large")
	if out, err := try(clone, "git", "push", url, "HEAD:main"); err == nil {
		t.Errorf("nobody pushes: %s", out)
	}
	git(t, clone, append(ours, "push", "-q", url, "HEAD:main")...)
	want := git(t, clone, "rev-parse", "HEAD")
	if got := git(t, bare, "rev-parse", "main"); got != want {
		t.Errorf("the upstream has %s, want %s", got, want)
	}
	if out := git(t, "/", append(ours, "ls-remote", url, "main")...); !strings.HasPrefix(out, strings.TrimSpace(want)) {
		t.Errorf("after the push the cache has %s, want %s", out, want)
	}
	// The upstream's own no, in its own words.
	hook := filepath.Join(bare, "hooks/pre-receive")
	if err := os.MkdirAll(filepath.Dir(hook), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(hook, []byte("#!/bin/sh\necho not on a Sunday >&2\nexit 1\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	commit(t, clone, "refused")
	if out, err := try(clone, "git", append(ours, "push", url, "HEAD:main")...); err == nil || !strings.Contains(out, "remote: not on a Sunday") || !strings.Contains(out, "pre-receive hook declined") {
		t.Errorf("a push that is refused: %v %s", err, out)
	}
	if err := os.Remove(hook); err != nil {
		t.Fatal(err)
	}
	none := strings.Replace(url, "app.git", "none.git", 1)
	if out, err := try(clone, "git", append(ours, "push", none, "HEAD:main")...); err == nil || !strings.Contains(out, "devaipod: ") {
		t.Errorf("a push to what is not there: %v %s", err, out)
	}
	git(t, work, "pull", "-q", "origin", "main")
	// A question that can't be read is told at once.
	req, err := http.NewRequest(http.MethodPost, url+"/git-receive-pack", strings.NewReader("0000"))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", strings.TrimPrefix(ours[1], "http.extraHeader=Authorization: "))
	req.Header.Set("Content-Encoding", "br")
	client := &http.Client{Timeout: 30 * time.Second}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusBadRequest {
		t.Errorf("a body of an unknown encoding: %s", resp.Status)
	}
}

func TestPushesToADirectory(t *testing.T) {
	const token = "Bearer ours"
	w := newWorld(t)
	work := w.up.repo(t, "app")
	w.open(func(c *cache.Config) {
		c.MaxAge = time.Hour
		c.Ours = func(r *http.Request) bool { return r.Header.Get("Authorization") == token }
	})
	url := w.url + "/git/localhost" + w.up.root + "/app.git"
	to := filepath.Join(t.TempDir(), "clone")
	git(t, "/", "clone", "-q", url, to)
	pushesOver(t, w, to, url, work, []string{"-c", "http.extraHeader=Authorization: " + token})
}

func TestAnUpstreamBySSH(t *testing.T) {
	const token = "Bearer ours"
	w := newWorld(t)
	work := w.up.repo(t, "app")
	keyFile := filepath.Join(w.dir, "key")
	run(t, w.dir, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", keyFile)
	public, err := os.ReadFile(keyFile + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	key, _, _, _, err := ssh.ParseAuthorizedKey(public)
	if err != nil {
		t.Fatal(err)
	}
	addr := sshUpstream(t, w.up.root, key)
	allow, err := cache.ParseAllow([]string{"git.example.org", "forge", "*"})
	if err != nil {
		t.Fatal(err)
	}
	client := "ssh -F none -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -i "
	host := cache.Host{URL: "ssh://git@" + addr + "/", SSH: client + keyFile}
	w.open(func(c *cache.Config) {
		c.Dir += "-ssh"
		c.Allow = allow
		c.Hosts = map[string]cache.Host{"git.example.org": host, "other.example.org": host, "forge": {URL: "file://" + w.up.root + "/forge/", Push: true}}
		c.Ours = func(r *http.Request) bool { return r.Header.Get("Authorization") == token }
	})
	url := w.url + "/git/git.example.org/app.git"
	// By our key, so for those who may use it.
	if out, err := try("/", "git", "ls-remote", url); err == nil {
		t.Errorf("nobody reads %s", out)
	}
	ours := []string{"-c", "http.extraHeader=Authorization: " + token}
	to := filepath.Join(t.TempDir(), "clone")
	git(t, "/", append(ours, "clone", "-q", url, to)...)
	if a, b := git(t, to, "rev-parse", "HEAD"), git(t, work, "rev-parse", "HEAD"); a != b {
		t.Errorf("cloned %s, want %s", a, b)
	}
	if out, err := try("/", "git", "ls-remote", url); err == nil {
		t.Errorf("once it is here, nobody reads %s", out)
	}
	pushesOver(t, w, to, url, work, ours)
	// A host that no pattern names in full is not asked by ssh.
	if out, err := try("/", "git", append(ours, "ls-remote", w.url+"/git/other.example.org/app.git")...); err == nil || !strings.Contains(out, "by ssh only hosts are asked") {
		t.Errorf("a host that is not named: %v %s", err, out)
	}
	if out, err := try("/", "git", append(ours, "ls-remote", w.url+"/git/git.example.org/none.git")...); err == nil {
		t.Errorf("a repository that is not there: %s", out)
	}
	// What is approved is exported that way, too.
	git(t, "/", "clone", "-q", "--bare", filepath.Join(w.up.root, "app.git"), filepath.Join(w.up.root, "forge/app.git"))
	old := strings.TrimSpace(git(t, work, "rev-parse", "HEAD"))
	commit(t, work, "approved")
	git(t, work, "push", "-q", filepath.Join(w.up.root, "forge/app.git"), "HEAD:agent/1-x")
	if _, err := w.cache.Sync(t.Context(), copied); err != nil {
		t.Fatal(err)
	}
	new := strings.TrimSpace(git(t, work, "rev-parse", "HEAD"))
	if err := w.cache.Export(t.Context(), copied, cache.Address{Host: "git.example.org", Path: "app"}, "main", old, new); err != nil {
		t.Fatal(err)
	}
	if got := strings.TrimSpace(git(t, filepath.Join(w.up.root, "app.git"), "rev-parse", "main")); got != new {
		t.Errorf("the upstream has %s, want %s", got, new)
	}
}
