package tunnel_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/pods/tunnel"
)

// through is a tunnel whose far side is served here, and how often it was opened.
func through(t *testing.T) (tun *tunnel.Tunnel, opened *atomic.Int32, cut func()) {
	t.Helper()
	opened = new(atomic.Int32)
	var mu sync.Mutex
	var open []io.Closer
	var served sync.WaitGroup
	tun = tunnel.New(func(context.Context) (io.ReadWriteCloser, error) {
		opened.Add(1)
		near, far := net.Pipe()
		mu.Lock()
		open = append(open, far)
		mu.Unlock()
		served.Go(func() {
			if err := tunnel.Serve(context.Background(), far, far); err != nil {
				t.Errorf("serving: %v", err)
			}
			_ = far.Close()
		})
		return near, nil
	})
	cut = func() {
		mu.Lock()
		defer mu.Unlock()
		for _, c := range open {
			_ = c.Close()
		}
	}
	t.Cleanup(func() { tun.Close(); cut(); served.Wait() })
	return tun, opened, cut
}

// listen serves each connection to a free port with f.
func listen(t *testing.T, network, addr string, f func(*net.TCPConn)) uint16 {
	t.Helper()
	l, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go f(c.(*net.TCPConn))
		}
	}()
	return uint16(l.Addr().(*net.TCPAddr).Port)
}

func TestManyConnectionsShareOneStreamAndAllBytesPass(t *testing.T) {
	tun, opened, _ := through(t)
	port := listen(t, "tcp", "127.0.0.1:0", func(c *net.TCPConn) { // an echo that ends when it is told the end
		_, _ = io.Copy(c, c)
		_ = c.Close()
	})
	want := make([]byte, 1<<20)
	if _, err := rand.Read(want); err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for range 40 {
		all.Go(func() {
			c, err := tun.Dial(t.Context(), port)
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close() //nolint:errcheck // what the test is about comes before
			all.Go(func() {
				if _, err := c.Write(want); err != nil {
					t.Error(err)
				}
				if err := c.CloseWrite(); err != nil {
					t.Error(err)
				}
			})
			got, err := io.ReadAll(c)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%d of %d bytes came back as they were: %v", len(got), len(want), err)
			}
		})
	}
	all.Wait()
	if n := opened.Load(); n != 1 {
		t.Errorf("%d streams were opened", n)
	}
}

func TestAServerMayEndItsHalfFirst(t *testing.T) {
	tun, _, _ := through(t)
	heard := make(chan string, 1)
	port := listen(t, "tcp", "127.0.0.1:0", func(c *net.TCPConn) {
		_, _ = c.Write([]byte("bye"))
		_ = c.CloseWrite()
		got, _ := io.ReadAll(c)
		heard <- string(got)
		_ = c.Close()
	})
	c, err := tun.Dial(t.Context(), port)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close() //nolint:errcheck // what the test is about comes before
	if got, err := io.ReadAll(c); err != nil || string(got) != "bye" {
		t.Fatalf("%q, %v", got, err)
	}
	if _, err := c.Write([]byte("still here")); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got := <-heard; got != "still here" {
		t.Errorf("after its end the server heard %q", got)
	}
}

func TestAConnectionThatNobodyReadsKeepsNoOtherWaiting(t *testing.T) {
	tun, _, _ := through(t)
	port := listen(t, "tcp", "127.0.0.1:0", func(c *net.TCPConn) {
		b := make([]byte, 1<<16)
		for {
			if _, err := c.Write(b); err != nil {
				return
			}
		}
	})
	slow, err := tun.Dial(t.Context(), port)
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close() //nolint:errcheck // what the test is about comes before
	quick, err := tun.Dial(t.Context(), port)
	if err != nil {
		t.Fatal(err)
	}
	defer quick.Close() //nolint:errcheck // what the test is about comes before
	if n, err := io.CopyN(io.Discard, quick, 16<<20); err != nil {
		t.Errorf("after %d bytes: %v", n, err)
	}
}

func TestWhatIsBrokenDoesNotLookLikeAnEnd(t *testing.T) {
	tun, opened, cut := through(t)
	resets := listen(t, "tcp", "127.0.0.1:0", func(c *net.TCPConn) {
		_, _ = c.Write([]byte("half"))
		_, _ = io.ReadFull(c, make([]byte, 1))
		_ = c.SetLinger(0)
		_ = c.Close()
	})
	c, err := tun.Dial(t.Context(), resets)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close() //nolint:errcheck // what the test is about comes before
	if _, err := io.ReadFull(c, make([]byte, 4)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(c); err == nil {
		t.Error("a connection that was reset looks as if it had ended")
	}

	closed := make(chan error, 1)
	waits := listen(t, "tcp", "127.0.0.1:0", func(c *net.TCPConn) {
		_, err := io.ReadFull(c, make([]byte, 1))
		closed <- err
	})
	c, err = tun.Dial(t.Context(), waits)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-closed:
	case <-time.After(10 * time.Second):
		t.Error("the server does not hear that its client has gone")
	}

	// The stream itself ends, as with its container; the next one is another.
	if c, err = tun.Dial(t.Context(), waits); err != nil {
		t.Fatal(err)
	}
	cut()
	if _, err := io.ReadAll(c); err == nil {
		t.Error("a tunnel that was cut looks like an end")
	}
	_ = c.Close()
	if c, err = tun.Dial(t.Context(), waits); err != nil || opened.Load() != 2 {
		t.Fatalf("after the cut: %v, %d streams", err, opened.Load())
	}
	_ = c.Close()
}

func TestPortsThatDontAnswer(t *testing.T) {
	tun, _, _ := through(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := uint16(l.Addr().(*net.TCPAddr).Port)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := tun.Dial(t.Context(), port); !errors.Is(err, tunnel.ErrRefused) {
		t.Errorf("nobody listens: %v", err)
	}
	if _, err := tun.Dial(t.Context(), 0); err == nil {
		t.Error("port 0 was dialled")
	}
	six := listen(t, "tcp6", "[::1]:0", func(c *net.TCPConn) { _, _ = c.Write([]byte("six")); _ = c.Close() })
	c, err := tun.Dial(t.Context(), six)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close() //nolint:errcheck // what the test is about comes before
	if got, err := io.ReadAll(c); err != nil || string(got) != "six" {
		t.Errorf("%q, %v", got, err)
	}
}
