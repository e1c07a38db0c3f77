package testkit

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
	"time"
)

// PowerOff does to the world what a machine does that loses its power and is
// switched on again: every process is gone at once, and with them mounts,
// network interfaces, firewall rules and all that is kept in memory. What is on
// disk stays.
func (w *World) PowerOff(ctx context.Context) error {
	namespaces := w.namespaces(ctx)
	if err := w.killProcesses(ctx); err != nil {
		return err
	}
	mounts, err := w.mounts(namespaces)
	if err != nil {
		return err
	}
	var errs []error
	for _, m := range mounts {
		if err := syscall.Unmount(m, syscall.MNT_DETACH); err != nil && !errors.Is(err, syscall.EINVAL) {
			errs = append(errs, fmt.Errorf("unmounting %s: %w", m, err))
		}
	}
	for _, n := range namespaces {
		if err := os.Remove(n); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	// Podman's directories in /run, which a boot finds empty.
	for _, dir := range []string{"r", "t"} {
		errs = append(errs, os.RemoveAll(w.path(dir)))
	}
	return errors.Join(append(errs, w.removeBridges(ctx), w.removeRules(ctx))...)
}

// killProcesses kills until none is left: what is killed may be just starting
// another.
func (w *World) killProcesses(ctx context.Context) error {
	for {
		pids, err := w.Processes()
		if err != nil || len(pids) == 0 {
			return err
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
