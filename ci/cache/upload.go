package cache

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"
)

// Bounds on what a job saves at a time.
const (
	maxUploads = 32
	maxSpans   = 4096 // of one upload, that do not touch each other
)

// A problem is an answer that says what is wrong.
type problem struct {
	code int
	text string
}

func (p *problem) Error() string { return p.text }

func wrong(code int, format string, a ...any) error { return &problem{code, fmt.Sprintf(format, a...)} }

// A span is bytes of an archive: from begin, up to and without end.
type span struct{ begin, end int64 }

// An upload is an entry that is being saved. What was sent of it stays in a directory of
// its own until it is whole.
type upload struct {
	job   *Job
	num   int64
	entry *Entry
	whole int64 // the size that was told first, 0 for none
	dir   string
	file  *os.File

	mu      sync.Mutex
	size    int64  // of the file, as it is counted
	spans   []span // that were sent, in order
	writing int    // requests
	over    bool
	timer   *time.Timer
}

// reserve begins an upload.
func (j *Job) reserve(key, version string, size int64) (*upload, error) {
	switch {
	case !fits(key) || !fits(version):
		return nil, wrong(http.StatusUnprocessableEntity, "want a key and a version of 1 to %d bytes", maxKey)
	case size < 0 || size > j.maxEntry():
		return nil, wrong(http.StatusBadRequest, "an entry has %d bytes at most", j.maxEntry())
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed || len(j.uploads) >= maxUploads || j.sent+size > j.maxEntry() {
		return nil, wrong(http.StatusTooManyRequests, "a job saves %d entries and %d bytes at a time", maxUploads, j.maxEntry())
	}
	u := &upload{job: j, entry: newEntry(j.scope, key, version), whole: size, size: size}
	if !j.store.reserve(u.entry) {
		return nil, errExists
	}
	err := j.store.take(u.entry.owner(), overhead+size)
	if err == nil {
		if err = u.open(); err != nil {
			j.store.give(u.entry.owner(), overhead+size)
		}
	}
	if err != nil {
		j.store.unreserve(u.entry.ID)
		return nil, err
	}
	j.last++
	u.num = j.last
	j.uploads[u.num] = u
	j.sent += size
	u.mu.Lock() // before there is a timer, so nobody waits for it
	u.timer = time.AfterFunc(j.store.Idle, u.tooLong)
	u.mu.Unlock()
	return u, nil
}

// open makes the file, with room on the disk for all of it, where that is known: a client
// that is told that there is none before it sends anything gives up in good order, which
// @actions/cache does not later on.
func (u *upload) open() (err error) {
	if u.dir, err = os.MkdirTemp(filepath.Join(u.job.store.Dir, "tmp"), "save-"); err != nil {
		return err
	}
	u.file, err = os.OpenFile(filepath.Join(u.dir, "archive"), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err == nil && u.whole > 0 {
		if err = allocate(u.file, u.whole); err != nil {
			err = errors.Join(err, u.file.Close())
		}
	}
	if err != nil {
		err = errors.Join(err, os.RemoveAll(u.dir))
	}
	return err
}

// allocate makes room for a file, on disks that can.
func allocate(f *os.File, size int64) error {
	for {
		err := syscall.Fallocate(int(f.Fd()), 0, 0, size)
		switch {
		case errors.Is(err, syscall.EINTR):
			continue
		case errors.Is(err, syscall.EOPNOTSUPP), errors.Is(err, syscall.ENOSYS):
			return nil
		}
		return err
	}
}

// tooLong ends an upload that nothing came of.
func (u *upload) tooLong() {
	u.mu.Lock()
	if u.writing > 0 && !u.over {
		u.timer.Reset(u.job.store.Idle) // the connection has a bound of its own
		u.mu.Unlock()
		return
	}
	u.mu.Unlock()
	u.abort()
}

// abort ends an upload, if it has not ended, and removes it.
func (u *upload) abort() {
	u.mu.Lock()
	defer u.mu.Unlock()
	if !u.over {
		u.discard()
	}
}

// discard removes what was sent. It is called with the lock held, as end is.
func (u *upload) discard() {
	u.end()
	s := u.job.store
	err := u.file.Close()
	if errors.Is(err, os.ErrClosed) {
		err = nil
	}
	if err := errors.Join(err, os.RemoveAll(u.dir)); err != nil {
		s.Log.Warn("removing what was being saved into the CI cache", "err", err)
	}
	s.give(u.entry.owner(), overhead+u.size)
}

// end has nobody find the upload any more.
func (u *upload) end() {
	u.over = true
	u.timer.Stop()
	u.job.forget(u)
	u.job.store.unreserve(u.entry.ID)
}

var errOver = &problem{http.StatusNotFound, "nothing of that number is being saved"}

// write takes a chunk: all of what is read, which is to be as long as the span.
func (u *upload) write(at span, from io.Reader) error {
	err := u.begin(at)
	if err == nil {
		err = u.done(at, u.copy(at, from))
	}
	if errors.Is(err, errFull) || errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		u.abort() // there will be no room for the rest
	}
	return err
}

func (u *upload) copy(at span, from io.Reader) error {
	n, err := io.Copy(io.NewOffsetWriter(u.file, at.begin), io.LimitReader(from, at.end-at.begin))
	if err != nil {
		return err
	}
	more, err := io.CopyN(io.Discard, from, 1)
	if n != at.end-at.begin || more > 0 || !errors.Is(err, io.EOF) {
		return errLength
	}
	return nil
}

var errLength = &problem{http.StatusBadRequest, "the chunk is not as long as its Content-Range says"}

// begin counts a chunk before it is written.
func (u *upload) begin(at span) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.over {
		return errOver
	}
	if more := at.end - u.size; more > 0 {
		if u.whole != 0 {
			return wrong(http.StatusBadRequest, "the chunk goes on after the %d bytes that were said", u.whole)
		}
		if !u.job.take(more) {
			return wrong(http.StatusRequestEntityTooLarge, "a job saves %d bytes at a time", u.job.maxEntry())
		}
		if err := u.job.store.take(u.entry.owner(), more); err != nil {
			u.job.take(-more)
			return err
		}
		u.size = at.end
	}
	u.writing++
	return nil
}

// done notes a chunk that was written, or err.
func (u *upload) done(at span, err error) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.writing--
	if u.over {
		return errOver
	}
	u.timer.Reset(u.job.store.Idle)
	if err != nil {
		return err
	}
	if u.spans = join(u.spans, at); len(u.spans) > maxSpans {
		u.spans = u.spans[:maxSpans]
		return wrong(http.StatusBadRequest, "the chunks leave more than %d gaps", maxSpans)
	}
	return nil
}

// join puts a span among others that are in order and do not touch.
func join(spans []span, at span) []span {
	from, _ := slices.BinarySearchFunc(spans, at.begin, func(s span, begin int64) int { return int(max(-1, min(1, s.end-begin))) })
	to := from
	for ; to < len(spans) && spans[to].begin <= at.end; to++ {
		at.begin, at.end = min(at.begin, spans[to].begin), max(at.end, spans[to].end)
	}
	return slices.Replace(spans, from, to, at)
}

// commit makes an entry of an upload that is whole.
func (u *upload) commit(size int64) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	whole := len(u.spans) == 1 && u.spans[0] == span{0, u.size}
	switch {
	case u.over:
		return errOver
	case u.writing > 0:
		return wrong(http.StatusBadRequest, "a chunk is still being sent")
	case !whole || size != u.size || u.whole != 0 && u.whole != size:
		return wrong(http.StatusBadRequest, "what was sent is not all, or not as long as was said")
	}
	s := u.job.store
	u.entry.Size, u.entry.Created = size, time.Now()
	u.entry.Used = u.entry.Created
	err := errors.Join(u.file.Sync(), u.file.Close())
	if err == nil {
		err = s.write(u.entry, u.dir)
	}
	if err != nil {
		u.discard()
		if errors.Is(err, fs.ErrExist) || errors.Is(err, syscall.ENOTEMPTY) {
			return errExists
		}
		return err
	}
	s.add(u.entry)
	u.end()
	return nil
}

var errExists = &problem{http.StatusConflict, "there is an entry of this key and version already, or it is being saved; entries do not change"}
