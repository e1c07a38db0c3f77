package sshd_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	gossh "golang.org/x/crypto/ssh"

	"codeberg.org/devaipod/devaipod/sshd"
)

// A served is a server on loopback, with a key that it lets in.
type served struct {
	t    *testing.T
	port string
	dir  string // of the client's files
	key  gossh.Signer
	pub  string // a line of authorized_keys
	log  *record
}

// record is a log that a test may read.
type record struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (r *record) Write(p []byte) (int, error) { r.mu.Lock(); defer r.mu.Unlock(); return r.b.Write(p) }
func (r *record) String() string              { r.mu.Lock(); defer r.mu.Unlock(); return r.b.String() }

// newKey writes a key for clients and returns it with its line.
func newKey(t testing.TB, path string) (gossh.Signer, string) {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block, err := gossh.MarshalPrivateKey(private, "")
	if err != nil {
		t.Fatal(err)
	}
	signer, err := gossh.NewSignerFromKey(private)
	if err != nil {
		t.Fatal(err)
	}
	pub := strings.TrimSpace(string(gossh.MarshalAuthorizedKey(signer.PublicKey())))
	write(t, path, string(pem.EncodeToMemory(block)))
	write(t, path+".pub", pub+"\n")
	return signer, pub
}

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// serve serves with keys in which %s is the client's; "" for it alone.
func serve(t *testing.T, keys string, change ...func(*sshd.Config)) *served {
	t.Helper()
	s := &served{t: t, dir: t.TempDir(), log: &record{}}
	s.key, s.pub = newKey(t, s.path("key"))
	if keys == "" {
		keys = "%s"
	}
	write(t, s.path("authorized_keys"), strings.ReplaceAll(keys, "%s", s.pub)+"\n")
	host, err := sshd.HostKey(s.path("host_key"))
	if err != nil {
		t.Fatal(err)
	}
	cfg := sshd.Config{
		HostKey: host, Keys: sshd.KeysFile(s.path("authorized_keys")), User: sshd.User{Name: sshd.Me().Name, Home: s.dir, Shell: "/bin/sh"}, Env: []string{"PATH=" + os.Getenv("PATH")},
		Log: slog.New(slog.NewTextHandler(s.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	for _, f := range change {
		f(&cfg)
	}
	server, err := sshd.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, s.port, _ = net.SplitHostPort(l.Addr().String())
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	write(t, s.path("known_hosts"), "box "+string(gossh.MarshalAuthorizedKey(host.PublicKey())))
	write(t, s.path("config"), fmt.Sprintf(`Host box
  HostName 127.0.0.1
  HostKeyAlias box
  Port %s
  User %s
  IdentityFile %s
  IdentitiesOnly yes
  IdentityAgent none
  UserKnownHostsFile %s
  StrictHostKeyChecking yes
  BatchMode yes
  ConnectTimeout 20
`, s.port, cfg.User.Name, s.path("key"), s.path("known_hosts")))
	return s
}

func (s *served) path(name string) string { return filepath.Join(s.dir, name) }

// A result is how a client ended.
type result struct {
	out, errs string
	code      int
}

// run runs a client; its -F is the config where args has the word CONFIG.
func (s *served) run(stdin io.Reader, args ...string) result {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 90*time.Second)
	defer cancel()
	for i, a := range args {
		args[i] = strings.ReplaceAll(a, "CONFIG", s.path("config"))
	}
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Stdin = stdin
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		s.t.Fatalf("%v (the project's .ci/install installs the clients that these tests need)", err)
	}
	return result{out.String(), errs.String(), cmd.ProcessState.ExitCode()}
}

func (s *served) ssh(stdin io.Reader, args ...string) result {
	s.t.Helper()
	return s.run(stdin, append([]string{"ssh", "-F", "CONFIG"}, args...)...)
}

// dial is Go's client.
func (s *served) dial() *gossh.Client {
	s.t.Helper()
	c, err := s.login(s.key)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = c.Close() })
	return c
}

func (s *served) login(keys ...gossh.Signer) (*gossh.Client, error) {
	return gossh.Dial("tcp", "127.0.0.1:"+s.port, &gossh.ClientConfig{
		Config: gossh.Config{KeyExchanges: []string{gossh.KeyExchangeCurve25519}}, // the cheapest: some tests log in often
		User:   sshd.Me().Name, Auth: []gossh.AuthMethod{gossh.PublicKeys(keys...)},
		HostKeyCallback: gossh.InsecureIgnoreHostKey(), Timeout: 20 * time.Second, //nolint:gosec // a server of this test's
	})
}

func (s *served) session(c *gossh.Client) *gossh.Session {
	s.t.Helper()
	ses, err := c.NewSession()
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = ses.Close() })
	return ses
}

// until waits for something to become so.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

func random(t *testing.T, n int) []byte {
	t.Helper()
	b := make([]byte, n)
	if _, err := rand.Read(b); err != nil {
		t.Fatal(err)
	}
	return b
}
