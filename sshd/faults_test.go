package sshd_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	gossh "golang.org/x/crypto/ssh"

	"codeberg.org/devaipod/devaipod/sshd"
)

// A cable passes connections on to a server until it is pulled; then neither side
// hears of the other any more, nor that it is so.
type cable struct {
	net.Listener
	pulled atomic.Bool
}

func plug(t *testing.T, port string) *cable {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &cable{Listener: l}
	var mu sync.Mutex
	var ends []net.Conn
	t.Cleanup(func() {
		_ = l.Close()
		mu.Lock()
		defer mu.Unlock()
		for _, e := range ends {
			_ = e.Close()
		}
	})
	pass := func(to, from net.Conn) {
		b := make([]byte, 32<<10)
		for {
			n, err := from.Read(b)
			if c.pulled.Load() {
				continue // lost
			}
			if err != nil {
				return
			}
			_, _ = to.Write(b[:n])
		}
	}
	go func() {
		for {
			a, err := l.Accept()
			if err != nil {
				return
			}
			b, err := net.Dial("tcp", "127.0.0.1:"+port)
			if err != nil {
				return
			}
			mu.Lock()
			ends = append(ends, a, b)
			mu.Unlock()
			go pass(a, b)
			go pass(b, a)
		}
	}()
	return c
}

func TestAClientWhoseCableIsPulledIsGivenUp(t *testing.T) {
	t.Parallel()
	s := serve(t, "", func(c *sshd.Config) { c.Alive = 200 * time.Millisecond })
	c := plug(t, s.port)
	direct := s.port
	_, s.port, _ = net.SplitHostPort(c.Addr().String())
	told := s.path("told")
	ses := s.session(s.dial())
	out, err := ses.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := ses.Start(fmt.Sprintf(`trap 'echo hup >%s; exit' HUP; echo ready; while :; do sleep 0.1; done`, told)); err != nil {
		t.Fatal(err)
	}
	readTo(t, out, "ready\n")
	time.Sleep(3 * 200 * time.Millisecond) // one who is quiet and there is not given up
	if _, err := os.Stat(told); err == nil {
		t.Fatal("it was given up early")
	}
	c.pulled.Store(true)
	until(t, "what ran is told", func() bool { text, _ := os.ReadFile(told); return string(text) == "hup\n" })
	s.port = direct
	if _, err := s.login(s.key); err != nil {
		t.Error(err)
	}
}

func TestWhoDoesNotLogInIsNotWaitedFor(t *testing.T) {
	t.Parallel()
	s := serve(t, "", func(c *sshd.Config) { c.Grace = 2 * time.Second })
	for name, hello := range map[string]string{
		"who says nothing": "", "who says half": "SSH-2.0-x", "who says HTTP": "GET / HTTP/1.1\r\n\r\n",
		"who sends a packet too long": "SSH-2.0-x\r\n\xff\xff\xff\xff", "who sends nonsense": "SSH-2.0-x\r\n" + strings.Repeat("\x00\x00\x00\x0c\x01\x14", 50),
	} {
		c, err := net.Dial("tcp", "127.0.0.1:"+s.port)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := io.WriteString(c, hello); err != nil {
			t.Fatal(err)
		}
		_ = c.SetReadDeadline(time.Now().Add(30 * time.Second))
		if _, err := io.Copy(io.Discard, c); err != nil && strings.Contains(err.Error(), "timeout") {
			t.Errorf("%s is waited for", name)
		}
	}
	// That is no failed login, and not the end of those that logged in.
	client := s.dial()
	time.Sleep(2500 * time.Millisecond)
	if out, err := s.session(client).Output("echo in"); err != nil || string(out) != "in\n" {
		t.Errorf("%q %v", out, err)
	}
}

func TestManyConnectionsAtOnce(t *testing.T) {
	t.Parallel()
	var now, most atomic.Int64
	s := serve(t, "", func(c *sshd.Config) {
		c.Conns = func(n int) { now.Store(int64(n)); most.Store(max(most.Load(), int64(n))) }
	})
	defer until(t, "the count of connections goes to 200 and back to 0", func() bool { return now.Load() == 0 && most.Load() == 200 })
	var all sync.WaitGroup
	limit := make(chan struct{}, 32) // that log in at once
	var clients sync.Map
	for i := range 200 {
		all.Go(func() {
			limit <- struct{}{}
			c, err := s.login(s.key)
			<-limit
			if err != nil {
				t.Errorf("connection %d: %v", i, err)
				return
			}
			clients.Store(i, c)
		})
	}
	all.Wait()
	clients.Range(func(i, c any) bool {
		ses, err := c.(*gossh.Client).NewSession()
		if err != nil {
			t.Errorf("connection %v: %v", i, err)
			return true
		}
		if i.(int)%10 == 0 {
			if out, err := ses.Output("echo there"); err != nil || string(out) != "there\n" {
				t.Errorf("connection %v: %q %v", i, out, err)
			}
		}
		_ = c.(*gossh.Client).Close()
		return true
	})
}

// TestMain is a server in a process of its own, for a test that measures it.
func TestMain(m *testing.M) {
	sshd.HeedSignals()
	if os.Getenv("SSHD_TEST_SERVER") == "" {
		os.Exit(m.Run())
	}
	err := alone(os.Getenv("SSHD_TEST_SERVER"))
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

func alone(dir string) error {
	key, err := sshd.HostKey(dir + "/host_key")
	if err != nil {
		return err
	}
	if err := os.Chdir(dir); err != nil { // its user's home
		return err
	}
	me := sshd.User{Name: sshd.Me().Name, Home: dir, Shell: "/bin/sh"}
	var alive time.Duration
	if text := os.Getenv("SSHD_TEST_ALIVE"); text != "" {
		if alive, err = time.ParseDuration(text); err != nil {
			return err
		}
	}
	server, err := sshd.New(sshd.Config{HostKey: key, Keys: sshd.KeysFile(dir + "/authorized_keys"), User: me, Alive: alive, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintln(os.Stdout, l.Addr().(*net.TCPAddr).Port); err != nil {
		return err
	}
	return server.Serve(context.Background(), l)
}

// Who does not read what it asked for costs some buffers, and nobody else anything.
func TestSlowReadersAreBounded(t *testing.T) {
	t.Parallel()
	s := serve(t, "")
	cmd := own(s.dir)
	s.process(cmd)
	client := s.dial()
	if _, err := s.session(client).Output("true"); err != nil {
		t.Fatal(err)
	}
	before := resident(t, cmd.Process.Pid)
	const sessions = 50
	for range sessions {
		ch, requests, err := client.OpenChannel("session", nil)
		if err != nil {
			t.Fatal(err)
		}
		go gossh.DiscardRequests(requests)
		if ok, err := ch.SendRequest("exec", true, gossh.Marshal(struct{ C string }{"cat /dev/zero"})); err != nil || !ok {
			t.Fatal(ok, err)
		}
	}
	time.Sleep(2 * time.Second)
	if grown := resident(t, cmd.Process.Pid) - before; grown > 100<<20 { // a window is 2 MiB: it holds none
		t.Errorf("%d MiB more", grown>>20)
	}
	if out, err := s.session(s.dial()).Output("echo others are served"); err != nil || string(out) != "others are served\n" {
		t.Errorf("%q %v", out, err)
	}
}

// resident is the memory of a process, in bytes.
func resident(t *testing.T, pid int) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		t.Fatal(err)
	}
	var size, pages int
	if _, err := fmt.Sscan(string(text), &size, &pages); err != nil {
		t.Fatal(err)
	}
	return pages * os.Getpagesize()
}
