package testkit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// PowerOff does to the world what a machine does that loses its power and is
// switched on again: every process is gone at once, and with them mounts,
// network interfaces, firewall rules and all that is kept in memory. What is on
// disk stays.
func (w *World) PowerOff(ctx context.Context) error {
	namespaces := w.namespaces(ctx)
	ids, err := w.Podman(ctx, "ps", "--all", "--quiet", "--no-trunc")
	if err != nil {
		return err
	}
	if err := w.killProcesses(ctx); err != nil {
		return err
	}
	errs := []error{w.unmount(namespaces)}
	// Podman's and its runtime's directories in /run, which a boot finds empty.
	for _, dir := range []string{"r", "t", "x"} {
		errs = append(errs, os.RemoveAll(w.path(dir)))
	}
	errs = append(errs, os.Mkdir(w.path("x"), 0o700)) // the login's
	run := os.Getenv("XDG_RUNTIME_DIR")
	if os.Getuid() == 0 {
		run = "/run"
	}
	for _, id := range strings.Fields(ids) {
		for _, runtime := range []string{"runc", "crun"} {
			if run != "" {
				errs = append(errs, os.RemoveAll(filepath.Join(run, runtime, id)))
			}
		}
	}
	return errors.Join(append(errs, w.removeBridges(ctx), w.removeRules(ctx))...)
}

// killProcesses kills until none is left: what is killed may be just starting
// another.
func (w *World) killProcesses(ctx context.Context) error {
	for {
		pids, err := w.Processes()
		if err != nil {
			return err
		}
		watchers, err := w.watchers()
		if err != nil {
			return err
		}
		if pids = append(pids, watchers...); len(pids) == 0 {
			return nil
		}
		for _, pid := range pids {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("killing process %d: %w", pid, err)
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// watchers are the processes by which podman watches its containers. They have
// not the world's environment, but paths in its temporary directory among their
// arguments.
func (w *World) watchers() (pids []int, err error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	above := ancestors()
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || slices.Contains(above, pid) {
			continue
		}
		// Gone by now, or not ours to read: none of the world's.
		cmdline, err := os.ReadFile("/proc/" + e.Name() + "/cmdline")
		if err == nil && bytes.Contains(cmdline, []byte("\x00"+w.path("t")+"/")) {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}
