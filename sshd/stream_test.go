package sshd_test

import (
	"context"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	gossh "golang.org/x/crypto/ssh"

	"codeberg.org/devaipod/devaipod/sshd"
)

// A pipes is our end of a pair of pipes, as a connection.
type pipes struct {
	net.Conn // for its deadlines and addresses: it carries nothing
	r, w     *os.File
}

func (p pipes) Read(b []byte) (int, error)  { return p.r.Read(b) }
func (p pipes) Write(b []byte) (int, error) { return p.w.Write(b) }
func (p pipes) Close() error                { _ = p.w.Close(); return p.r.Close() }

// stream serves one connection on pipes, as in a pod, and returns a client of it, and
// what is closed when the server has ended.
func stream(ctx context.Context, t *testing.T, user sshd.User) (*gossh.Client, <-chan struct{}) {
	t.Helper()
	key, pub := newKey(t, t.TempDir()+"/key")
	host, err := sshd.HostKey(t.TempDir() + "/host")
	if err != nil {
		t.Fatal(err)
	}
	rules, err := sshd.ParseKeys([]byte(pub))
	if err != nil {
		t.Fatal(err)
	}
	server, err := sshd.New(sshd.Config{HostKey: host, Keys: rules, User: user, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	in, toServer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	fromServer, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { defer close(ended); server.ServeStream(ctx, in, out) }()
	nothing, _ := net.Pipe()
	c, chans, reqs, err := gossh.NewClientConn(pipes{nothing, fromServer, toServer}, "", &gossh.ClientConfig{
		User: "x", Auth: []gossh.AuthMethod{gossh.PublicKeys(key)}, HostKeyCallback: gossh.FixedHostKey(host.PublicKey()),
	})
	if err != nil {
		t.Fatal(err)
	}
	client := gossh.NewClient(c, chans, reqs)
	t.Cleanup(func() { _ = client.Close() })
	return client, ended
}

func TestOneConnectionOnAStream(t *testing.T) {
	home, dir := t.TempDir(), t.TempDir()
	client, ended := stream(t.Context(), t, sshd.User{Name: "x", Home: home, Dir: dir, Shell: "/bin/sh", Plain: true})
	s, err := client.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	s.Stdin = strings.NewReader("in")
	out, err := s.Output("pwd; cat; echo; echo $HOME")
	if want := dir + "\nin\n" + home + "\n"; err != nil || string(out) != want {
		t.Errorf("%q, %v, want %q", out, err, want)
	}
	// A shell is told by its name that it is a login shell; a plain one is not.
	if s, err = client.NewSession(); err != nil {
		t.Fatal(err)
	}
	s.Stdin = strings.NewReader("echo $0\n")
	var said strings.Builder
	s.Stdout = &said
	if err := s.Shell(); err != nil {
		t.Fatal(err)
	}
	if err := s.Wait(); err != nil || said.String() != "sh\n" {
		t.Errorf("the shell is %q, %v", said.String(), err)
	}
	_ = client.Close()
	<-ended
}

// What runs is told when the other end of the stream goes, and when the server ends.
func TestAStreamThatEndsHangsUp(t *testing.T) {
	for name, end := range map[string]func(*gossh.Client, func()){
		"the client goes": func(c *gossh.Client, _ func()) { _ = c.Close() },
		"the server ends": func(_ *gossh.Client, cancel func()) { cancel() },
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			dir := t.TempDir()
			client, ended := stream(ctx, t, sshd.User{Name: "x", Home: dir, Shell: "/bin/sh"})
			s, err := client.NewSession()
			if err != nil {
				t.Fatal(err)
			}
			out, err := s.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Start("trap 'echo last words >&2; sleep 0.1; echo hung up >told; exit' HUP; echo ready; while :; do sleep 0.05; done"); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(out, make([]byte, len("ready\n"))); err != nil {
				t.Fatal(err)
			}
			end(client, cancel)
			select {
			case <-ended:
			case <-time.After(30 * time.Second):
				t.Fatal("the server has not ended")
			}
			// Its process may end now: what runs has come to its end.
			if _, err := os.Stat(dir + "/told"); err != nil {
				t.Error(err)
			}
		})
	}
}
