package testkit_test

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/pods/podman"
)

// A podman that stands still is told of, again and again while it does; one that answers is not, nor
// one that is not there, whose calls fail.
func TestAPodmanThatStandsStill(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	socket := filepath.Join(dir, "podman.sock")
	uri, err := podman.Find(t.Context(), podman.FindConfig{URI: "unix://" + socket, Start: true, SocketPath: socket, Log: world.log})
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "podman.pid"))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	signal := func(s syscall.Signal) {
		if err := syscall.Kill(pid, s); err != nil {
			t.Error(err)
		}
	}
	defer syscall.Kill(pid, syscall.SIGKILL) //nolint:errcheck // it may have been
	client, err := podman.Connect(t.Context(), uri)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stuck := make(chan struct{}, 100)
	ended := make(chan struct{})
	const patience = 3 * time.Second
	go func() {
		defer close(ended)
		client.Watch(ctx, map[string]string{"of": t.Name()}, patience, func(context.Context) { stuck <- struct{}{} })
	}()
	select {
	case <-stuck:
		t.Error("a podman that answers is said to stand still")
	case <-time.After(patience):
	}
	signal(syscall.SIGSTOP)
	for range 2 {
		select {
		case <-stuck:
		case <-time.After(time.Minute):
			t.Fatal("nothing was said of a podman that stands still")
		}
	}
	signal(syscall.SIGKILL)
	time.Sleep(patience / 3) // what was asked has failed by now
	for len(stuck) > 0 {
		<-stuck
	}
	select {
	case <-stuck:
		t.Error("a podman that is not there is said to stand still")
	case <-time.After(patience):
	}
	cancel()
	<-ended
}
