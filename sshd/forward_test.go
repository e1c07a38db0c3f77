package sshd_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	gossh "golang.org/x/crypto/ssh"
)

// background runs ssh with forwards until the test ends, once it says that all are up.
func (s *served) background(args ...string) string {
	s.t.Helper()
	c := s.start(append([]string{"ssh", "-F", s.path("config"), "-o", "ExitOnForwardFailure=yes"}, append(args, "box", "echo up; cat")...)...)
	line := make([]byte, 3)
	if _, err := io.ReadFull(c.out, line); err != nil {
		s.t.Fatalf("%v: %s", err, c.errs.String())
	}
	return c.errs.String()
}

// hello is a web server on a loopback port, and on a socket.
func hello(t *testing.T) (port, socket string) {
	t.Helper()
	handler := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") })
	tcp := httptest.NewServer(handler)
	t.Cleanup(tcp.Close)
	socket = filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	unix := httptest.NewUnstartedServer(handler)
	_ = unix.Listener.Close()
	unix.Listener = l
	unix.Start()
	t.Cleanup(unix.Close)
	_, port, _ = net.SplitHostPort(tcp.Listener.Addr().String())
	return port, socket
}

// freePort is one that nobody listens on now.
func freePort(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

func (s *served) curl(args ...string) string {
	s.t.Helper()
	got := s.run(nil, append([]string{"curl", "-sS", "--max-time", "20", "--noproxy", "*"}, args...)...)
	return got.out + got.errs
}

func TestPortsAndSocketsAreForwarded(t *testing.T) {
	t.Parallel()
	s := serve(t, "")
	port, socket := hello(t)
	local, dynamic, remote := freePort(t), freePort(t), freePort(t)
	back, here := s.path("back"), s.path("here")
	s.background("-L", "127.0.0.1:"+local+":127.0.0.1:"+port, "-L", here+":"+socket, "-D", "127.0.0.1:"+dynamic,
		"-R", remote+":127.0.0.1:"+port, "-R", back+":"+socket)
	for name, args := range map[string][]string{
		"a local port":          {"http://127.0.0.1:" + local},
		"a local socket":        {"--unix-socket", here, "http://x"},
		"a proxy":               {"--proxy", "socks5h://127.0.0.1:" + dynamic, "http://127.0.0.1:" + port},
		"a remote port":         {"http://127.0.0.1:" + remote},
		"a socket at the other": {"--unix-socket", back, "http://x"},
	} {
		if got := s.curl(args...); got != "hello" {
			t.Errorf("%s: %s", name, got)
		}
	}
	if info, err := os.Stat(back); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket: %v %v", info, err)
	}
}

func TestAPortOfTheServersChoice(t *testing.T) {
	t.Parallel()
	s := serve(t, "")
	client := s.dial()
	l, err := client.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().(*net.TCPAddr)
	if addr.Port == 0 {
		t.Fatal("it is 0")
	}
	go func() {
		c, err := l.Accept()
		if err == nil {
			_, _ = io.WriteString(c, "from the client")
			_ = c.Close()
		}
	}()
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", addr.Port))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if text, err := io.ReadAll(c); err != nil || string(text) != "from the client" {
		t.Errorf("%q %v", text, err)
	}
	// It is over with the cancel, and with the connection.
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if _, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", addr.Port)); err == nil {
		t.Error("it still listens")
	}
	l, err = client.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = client.Close()
	until(t, "it listens no more", func() bool { _, err := net.Dial("tcp", l.Addr().String()); return err != nil })
}

func TestEachWayEndsForItself(t *testing.T) {
	t.Parallel()
	s := serve(t, "")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		text, _ := io.ReadAll(c) // to the client's end
		_, _ = io.WriteString(c, strings.ToUpper(string(text)))
		_ = c.Close()
	}()
	c, err := s.dial().Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, "abc"); err != nil {
		t.Fatal(err)
	}
	if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if text, err := io.ReadAll(c); err != nil || string(text) != "ABC" {
		t.Errorf("%q %v", text, err)
	}
}

func TestWhereNobodyListensIsTold(t *testing.T) {
	t.Parallel()
	s := serve(t, "")
	client := s.dial()
	for network, addr := range map[string]string{"tcp": "127.0.0.1:" + freePort(t), "unix": s.path("nowhere")} {
		if _, err := client.Dial(network, addr); err == nil || !strings.Contains(err.Error(), "connect") {
			t.Errorf("%s: %v", network, err)
		}
	}
	for _, kind := range []string{"direct-tcpip", "direct-streamlocal@openssh.com"} {
		if _, _, err := client.OpenChannel(kind, []byte{1, 2}); err == nil {
			t.Errorf("%s without an address", kind)
		}
	}
	if ok, _, err := client.SendRequest("tcpip-forward", true, []byte{0}); err != nil || ok {
		t.Errorf("%v %v", ok, err)
	}
}

func TestTheClientsAgentIsForwarded(t *testing.T) {
	t.Parallel()
	s := serve(t, "")
	agent := s.path("agent")
	cmd := exec.Command("ssh-agent", "-D", "-a", agent)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	until(t, "the agent is up", func() bool { _, err := os.Stat(agent); return err == nil })
	env := []string{"env", "SSH_AUTH_SOCK=" + agent}
	if got := s.run(nil, append(env, "ssh-add", "-q", s.path("key"))...); got.code != 0 {
		t.Fatal(got.errs)
	}
	got := s.run(nil, append(env, "ssh", "-F", "CONFIG", "-o", "IdentityAgent="+agent, "-A", "box", "ssh-add -L; echo $SSH_AUTH_SOCK")...)
	lines := strings.Fields(got.out)
	if len(lines) < 3 || !strings.HasPrefix(s.pub, strings.Join(lines[:2], " ")) {
		t.Fatalf("%+v", got)
	}
	until(t, "its socket is gone", func() bool { _, err := os.Stat(filepath.Dir(lines[len(lines)-1])); return os.IsNotExist(err) })
	if got := s.ssh(nil, "box", "echo -$SSH_AUTH_SOCK-"); got.out != "--\n" {
		t.Errorf("without: %q", got.out)
	}
}

func TestAConnectionHasABoundedNumberOfChannels(t *testing.T) {
	t.Parallel()
	s := serve(t, "")
	client := s.dial()
	port, _ := hello(t)
	var mu sync.Mutex
	var all sync.WaitGroup
	open, refused := 0, 0
	for range 20 {
		all.Go(func() {
			for range 55 {
				ch, requests, err := client.OpenChannel("session", nil)
				mu.Lock()
				if err == nil {
					open++
					go gossh.DiscardRequests(requests)
					_ = ch
				} else {
					refused++
				}
				mu.Unlock()
			}
		})
	}
	all.Wait()
	if open != 1024 || refused != 20*55-1024 {
		t.Errorf("%d are open, %d were refused", open, refused)
	}
	if _, err := client.Dial("tcp", "127.0.0.1:"+port); err == nil || !strings.Contains(err.Error(), "at most 1024 channels") {
		t.Error(err)
	}
	if got := s.ssh(nil, "box", "echo others are served"); got.out != "others are served\n" {
		t.Errorf("%+v", got)
	}
}
