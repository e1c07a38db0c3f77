package relay_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/pods/relay"
)

func TestBytesAndHalfClosesPassBothWays(t *testing.T) {
	before := runtime.NumGoroutine()
	socket := filepath.Join(t.TempDir(), "far.sock")
	far, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	go func() { // answers only after the end of what it is told
		for {
			c, err := far.Accept()
			if err != nil {
				return
			}
			b, err := io.ReadAll(c)
			fmt.Fprintf(c, "%d bytes, %v", len(b), err)
			c.Close()
		}
	}()
	near, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- relay.Serve(ctx, near, relay.Unix(socket), slog.New(slog.DiscardHandler)) }()
	for range 3 {
		c, err := net.Dial("tcp", near.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(c, strings.Repeat("x", 1<<20)); err != nil {
			t.Fatal(err)
		}
		if err := c.(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(c); string(b) != "1048576 bytes, <nil>" || err != nil {
			t.Errorf("%q, %v", b, err)
		}
		c.Close()
	}
	// One that says nothing does not keep the relay from ending.
	idle, err := net.Dial("tcp", near.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	time.Sleep(50 * time.Millisecond)
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	far.Close()
	deadline := time.Now().Add(5 * time.Second)
	for runtime.NumGoroutine() > before {
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines, %d before", runtime.NumGoroutine(), before)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func TestAFarSideThatIsAwayShowsAsTheEnd(t *testing.T) {
	near, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- relay.Serve(ctx, near, relay.Unix(filepath.Join(t.TempDir(), "none")), slog.New(slog.DiscardHandler))
	}()
	c, err := net.Dial("tcp", near.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(c); len(b) != 0 || err != nil {
		t.Errorf("%q, %v", b, err)
	}
	c.Close()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
