package main

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
)

// Each local run has a directory below localRunsDir, which it holds locked while it
// lives, and the numbers of tasks from its own times 1<<localTaskBits on. So whoever
// finds something of a task knows whether its run lives; the forge's tasks have lower
// numbers.
const (
	localRunsDir  = "ci/local"
	localTaskBits = 20
	localRunBits  = 20
	firstLocalRun = 1 << localRunBits
)

// ofLocalRun tells whether a task is of a local run that lives.
func (a *app) ofLocalRun(task int64) bool {
	n := task >> localTaskBits
	return n >= firstLocalRun && localRunLives(a.cfg.file(localRunsDir), n)
}

// localRunLives tells whether a process has the run's directory locked.
func localRunLives(dir string, n int64) bool {
	f, err := os.Open(filepath.Join(dir, strconv.FormatInt(n, 10)))
	if err != nil {
		return false
	}
	defer f.Close()
	return errors.Is(syscall.Flock(int(f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB), syscall.EWOULDBLOCK)
}

// lockLocalRuns keeps others from making and removing runs' directories until it is closed.
func lockLocalRuns(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := flock(f); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func flock(f *os.File) error {
	for {
		if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}

// A localDir is the directory of a run that lives until close.
type localDir struct {
	path   string
	task   int64 // the first of its tasks
	locked *os.File
}

func newLocalDir(dir string) (*localDir, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	lock, err := lockLocalRuns(dir)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	for {
		n := int64(firstLocalRun | rand.IntN(firstLocalRun)) //nolint:gosec // a number that is not taken
		path := filepath.Join(dir, strconv.FormatInt(n, 10))
		err := os.Mkdir(path, 0o700)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		f, err := os.Open(path)
		if err == nil {
			err = flock(f) // who asks whether it lives has it for a moment
		}
		if err != nil {
			return nil, fmt.Errorf("locking %s: %w", path, err)
		}
		return &localDir{path: path, task: n << localTaskBits, locked: f}, nil
	}
}

func (d *localDir) close() error {
	return errors.Join(os.RemoveAll(d.path), d.locked.Close())
}

// sweepLocalRuns removes the directories of runs that live no more.
func sweepLocalRuns(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(entries) == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	lock, err := lockLocalRuns(dir)
	if err != nil {
		return err
	}
	defer lock.Close()
	if entries, err = os.ReadDir(dir); err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if n, err := strconv.ParseInt(e.Name(), 10, 64); err == nil && !localRunLives(dir, n) {
			errs = append(errs, os.RemoveAll(filepath.Join(dir, e.Name())))
		}
	}
	return errors.Join(errs...)
}
