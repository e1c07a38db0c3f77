package saver

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	changes = unix.IN_CREATE | unix.IN_DELETE | unix.IN_MODIFY | unix.IN_CLOSE_WRITE | unix.IN_ATTRIB | unix.IN_MOVED_FROM | unix.IN_MOVED_TO | unix.IN_MOVE_SELF
	// maxPending bounds what is remembered between two rounds.
	maxPending = 100_000
	// breath lets the kernel gather events while somebody writes all the time.
	breath = 20 * time.Millisecond
)

// An event is something that happened to an entry of a watched directory.
type event struct {
	wd   int32
	name string
}

// A watcher is inotify(7): one watch for each directory. The agent shares its
// user's limits and may use them up, so it can be lost at any time; then
// [watcher.lost] tells, and rounds look at everything instead.
type watcher struct {
	fd      int // the file's; its Fd method would make reads block for good
	file    *os.File
	changed chan struct{} // capacity 1: something is pending
	log     *slog.Logger

	mu          sync.Mutex
	pending     map[event]bool
	overflow    bool
	broken      error
	first, last time.Time // of the pending events
}

func newWatcher(log *slog.Logger) (*watcher, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watching: %w (see fs.inotify.max_user_instances)", err)
	}
	return &watcher{fd: fd, file: os.NewFile(uintptr(fd), "inotify"), changed: make(chan struct{}, 1), log: log, pending: map[event]bool{}}, nil
}

// run takes events until ctx ends.
func (w *watcher) run(ctx context.Context) {
	defer context.AfterFunc(ctx, func() { _ = w.file.Close() })()
	buf := make([]byte, 64<<10)
	for {
		n, err := w.file.Read(buf)
		if err != nil {
			if ctx.Err() == nil {
				w.fail(fmt.Errorf("watching: %w", err))
			}
			return
		}
		w.take(buf[:n])
		select {
		case <-ctx.Done():
		case <-time.After(breath):
		}
	}
}

// take parses what the kernel wrote.
func (w *watcher) take(b []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(b) >= unix.SizeofInotifyEvent {
		mask, size := binary.NativeEndian.Uint32(b[4:]), int(binary.NativeEndian.Uint32(b[12:]))
		e := event{wd: int32(binary.NativeEndian.Uint32(b))}
		e.name = string(bytes.TrimRight(b[unix.SizeofInotifyEvent:unix.SizeofInotifyEvent+size], "\x00"))
		b = b[unix.SizeofInotifyEvent+size:]
		if mask&unix.IN_Q_OVERFLOW != 0 || len(w.pending) >= maxPending {
			w.overflow = true
		} else if mask&unix.IN_IGNORED == 0 {
			w.pending[e] = true
		}
	}
	w.wakeLocked()
}

func (w *watcher) wakeLocked() {
	w.last = time.Now()
	if w.first.IsZero() {
		w.first = w.last
	}
	select {
	case w.changed <- struct{}{}:
	default:
	}
}

func (w *watcher) fail(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.broken == nil {
		w.log.Warn("looking at everything from now on, instead of watching", "err", err)
		w.broken = err
	}
	w.wakeLocked()
}

// lost tells whether watching has ended.
func (w *watcher) lost() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.broken != nil
}

// events hands out what is pending; all tells that some were dropped.
func (w *watcher) events() (pending map[event]bool, all bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	pending, all = w.pending, w.overflow || w.broken != nil
	if w.overflow {
		w.log.Warn("too many changes at once: looking at everything")
	}
	select {
	case <-w.changed:
	default:
	}
	w.pending, w.overflow, w.first, w.last = map[event]bool{}, false, time.Time{}, time.Time{}
	return pending, all
}

// due is how long to wait until the tree has been quiet for a while, or has
// been changing for long enough.
func (w *watcher) due(quiet, atMost time.Duration) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return min(time.Until(w.last.Add(quiet)), time.Until(w.first.Add(atMost)))
}

// add watches an open directory. A directory that is watched keeps its number.
func (w *watcher) add(fd int) (wd int32, ok bool) {
	if w.lost() {
		return 0, false
	}
	n, err := unix.InotifyAddWatch(w.fd, fmt.Sprintf("/proc/self/fd/%d", fd), changes|unix.IN_ONLYDIR|unix.IN_EXCL_UNLINK)
	switch {
	case err == nil:
		return int32(n), true
	case errors.Is(err, unix.EACCES) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR):
		return 0, false
	}
	w.fail(fmt.Errorf("watching one more directory: %w (see fs.inotify.max_user_watches)", err))
	return 0, false
}

// drop ends a watch; one that ended by itself is no error.
func (w *watcher) drop(wd int32) { _, _ = unix.InotifyRmWatch(w.fd, uint32(wd)) }

// addWatch watches a directory of the tree.
func (t *tree) addWatch(d *dir, fd int) {
	if t.watch == nil {
		return
	}
	if wd, ok := t.watch.add(fd); ok {
		if d.wd != wd && t.byWD[d.wd] == d {
			delete(t.byWD, d.wd)
		}
		d.wd, t.byWD[wd] = wd, d
	}
}

// dropWatch ends a directory's watch, unless it is another's by now: one that
// was moved keeps its watch.
func (t *tree) dropWatch(d *dir) {
	if t.byWD[d.wd] == d {
		delete(t.byWD, d.wd)
		t.watch.drop(d.wd)
	}
}

// stopWatching is for when the watcher has ended.
func (t *tree) stopWatching() { t.watch, t.byWD = nil, map[int32]*dir{} }

// unwatch ends all watches from d down.
func (t *tree) unwatch(d *dir) {
	for _, sub := range d.dirs {
		t.unwatch(sub)
	}
	t.dropWatch(d)
}
