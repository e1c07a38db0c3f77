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
			if len(words) != 2 || words[0] != "git-upload-pack" {
				fmt.Fprintf(s.Stderr(), "no such command: %q\n", words)
				_ = s.Exit(1) // the client has gone
				return
			}
			cmd := exec.Command("git", "upload-pack", filepath.Join(root, filepath.Clean("/"+words[1])))
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
	allow, err := cache.ParseAllow([]string{"git.example.org", "*"})
	if err != nil {
		t.Fatal(err)
	}
	client := "ssh -F none -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -i "
	host := cache.Host{URL: "ssh://git@" + addr + "/", SSH: client + keyFile}
	w.open(func(c *cache.Config) {
		c.Dir += "-ssh"
		c.Allow = allow
		c.Hosts = map[string]cache.Host{"git.example.org": host, "other.example.org": host}
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
	// A host that no pattern names in full is not asked by ssh.
	if out, err := try("/", "git", append(ours, "ls-remote", w.url+"/git/other.example.org/app.git")...); err == nil || !strings.Contains(out, "by ssh only hosts are asked") {
		t.Errorf("a host that is not named: %v %s", err, out)
	}
	if out, err := try("/", "git", append(ours, "ls-remote", w.url+"/git/git.example.org/none.git")...); err == nil {
		t.Errorf("a repository that is not there: %s", out)
	}
}
