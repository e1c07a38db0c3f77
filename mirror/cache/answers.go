package cache

import (
	"container/list"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// answers keeps what upload-pack said, each in a file, so that who asks the
// same gets the same without another upload-pack: thirty clones of one
// repository at once are one. An answer is good for one generation of its
// repository; the generation is part of its key.
type answers struct {
	dir    string
	max    int64
	reused prometheus.Counter
	ctx    context.Context
	stop   context.CancelFunc
	making sync.WaitGroup

	mu    sync.Mutex
	byKey map[string]*list.Element // of *answer
	order *list.List               // most recently used first
	size  int64
	next  int
}

// An answer is one file, complete or being written.
type answer struct {
	key    string
	path   string
	cancel context.CancelCauseFunc

	mu      sync.Mutex
	readers int
	size    int64
	ended   bool
	err     error // why it broke off
	// abandoned: its last reader went before its end.
	abandoned bool
	changed   chan struct{} // closed at each change, then a new one
}

// newAnswers empties the directory: what is in it belongs to a process that is
// gone. Processes that share a cache have a directory each.
func newAnswers(parent string, max int64, reused prometheus.Counter) (*answers, error) {
	if err := os.MkdirAll(parent, 0o700); err != nil {
		return nil, err
	}
	old, err := filepath.Glob(filepath.Join(parent, "*"))
	if err != nil {
		return nil, err
	}
	for _, dir := range old {
		if pid, err := strconv.Atoi(filepath.Base(dir)); err == nil && errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
			if err := os.RemoveAll(dir); err != nil {
				return nil, err
			}
		}
	}
	dir := filepath.Join(parent, strconv.Itoa(os.Getpid()))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if dir, err = os.MkdirTemp(dir, ""); err != nil {
		return nil, err
	}
	a := &answers{dir: dir, max: max, reused: reused, byKey: map[string]*list.Element{}, order: list.New()}
	a.ctx, a.stop = context.WithCancel(context.Background())
	return a, nil
}

func (a *answers) close() error {
	a.stop()
	a.making.Wait()
	return os.RemoveAll(a.dir)
}

// room tells whether there is disk enough to keep answers: they are the first
// to give way.
func (a *answers) room() bool {
	var fs syscall.Statfs_t
	if err := syscall.Statfs(a.dir, &fs); err != nil {
		return false
	}
	return fs.Bavail*uint64(fs.Bsize) > uint64(a.max)/4 //nolint:gosec // both are sizes
}

// get returns the answer to key. When there is none, one is begun and made by
// produce, whose context ends when nobody reads any more.
func (a *answers) get(ctx context.Context, key string, produce func(context.Context, io.Writer) error) (*answerReader, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if e, ok := a.byKey[key]; ok {
		an := e.Value.(*answer)
		if r, err := an.open(ctx); !errors.Is(err, errGone) {
			a.order.MoveToFront(e)
			a.reused.Inc()
			return r, err
		}
		a.drop(an)
	}
	a.next++
	making, cancel := context.WithCancelCause(a.ctx)
	an := &answer{key: key, path: filepath.Join(a.dir, strconv.Itoa(a.next)), cancel: cancel, changed: make(chan struct{})}
	f, err := os.OpenFile(an.path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	r, err := an.open(ctx)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	a.byKey[key] = a.order.PushFront(an)
	a.making.Go(func() {
		err := produce(making, writerFunc(func(b []byte) (int, error) {
			n, err := f.Write(b)
			an.update(int64(n), false, nil)
			return n, err
		}))
		cancel(nil)
		err = errors.Join(err, f.Close())
		an.update(0, true, err)
		a.finish(an, err)
	})
	return r, nil
}

// finish counts what was made, drops what broke, and makes room.
func (a *answers) finish(an *answer, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.size += an.size
	if err != nil {
		a.drop(an)
	}
	for e := a.order.Back(); e != nil && a.size > a.max; {
		before := e.Prev()
		if old, ok := e.Value.(*answer); ok && old.done() {
			a.drop(old)
		}
		e = before
	}
}

// drop forgets an answer; who reads it has it open.
func (a *answers) drop(an *answer) {
	e, ok := a.byKey[an.key]
	if !ok || e.Value != an {
		return
	}
	delete(a.byKey, an.key)
	a.order.Remove(e)
	a.size -= an.size
	_ = os.Remove(an.path) // what stays is removed with the directory
}

func (an *answer) update(n int64, ended bool, err error) {
	an.mu.Lock()
	defer an.mu.Unlock()
	an.size += n
	an.ended, an.err = ended, err
	close(an.changed)
	an.changed = make(chan struct{})
}

func (an *answer) done() bool {
	an.mu.Lock()
	defer an.mu.Unlock()
	return an.ended
}

func (an *answer) state() (size int64, ended bool, changed <-chan struct{}, err error) {
	an.mu.Lock()
	defer an.mu.Unlock()
	return an.size, an.ended, an.changed, an.err
}

// errGone is what an answer ends with that nobody reads any more.
var errGone = errors.New("nobody reads it any more")

// open returns the answer's bytes as they come.
func (an *answer) open(ctx context.Context) (*answerReader, error) {
	an.mu.Lock()
	defer an.mu.Unlock()
	if an.readers == 0 && an.abandoned {
		return nil, errGone
	}
	f, err := os.Open(an.path)
	if err != nil {
		return nil, err
	}
	an.readers++
	return &answerReader{ctx: ctx, an: an, f: f}, nil
}

// leave ends an answer that is not complete when its last reader goes.
func (an *answer) leave() {
	an.mu.Lock()
	defer an.mu.Unlock()
	if an.readers--; an.readers == 0 && !an.ended {
		an.abandoned = true
		an.cancel(errGone)
	}
}

// An answerReader reads one answer, and waits where it is not written yet.
type answerReader struct {
	ctx context.Context
	an  *answer
	f   *os.File
	off int64
}

func (r *answerReader) Read(b []byte) (int, error) {
	for {
		size, ended, changed, err := r.an.state()
		if n := min(size-r.off, int64(len(b))); n > 0 {
			n, err := r.f.ReadAt(b[:n], r.off)
			r.off += int64(n)
			if n > 0 {
				return n, nil
			}
			return 0, err
		}
		if ended {
			if err == nil {
				err = io.EOF
			}
			return 0, err
		}
		select {
		case <-r.ctx.Done():
			return 0, context.Cause(r.ctx)
		case <-changed:
		case <-time.After(time.Minute): // and look again
		}
	}
}

func (r *answerReader) close() {
	r.an.leave()
	r.f.Close()
}

// complete tells the whole answer's size, if all of it is there.
func (r *answerReader) complete() (size int64, ok bool) {
	size, ended, _, err := r.an.state()
	return size, ended && err == nil
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }
