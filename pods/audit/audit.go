package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode"
)

// An Entry is one act.
type Entry struct {
	Time   time.Time `json:"time"`            // when it was written, UTC
	Act    string    `json:"act"`             // one word: start, push, …
	About  string    `json:"about,omitempty"` // owner/name#3, owner/name@pod, owner/name
	Who    string    `json:"who,omitempty"`   // who asked; an account of the forge's is @name
	Rule   string    `json:"rule,omitempty"`  // what allowed or forbade it
	Done   string    `json:"done,omitempty"`  // what was done, to what
	Result string    `json:"result"`
}

// Of says whether an entry is about a subject: an issue, a person's pod, or a
// repository with all that is in it. All are about "".
func (e Entry) Of(subject string) bool {
	return subject == "" || e.About == subject || !strings.ContainsAny(subject, "#@") && strings.HasPrefix(strings.NewReplacer("#", "\n", "@", "\n").Replace(e.About), subject+"\n")
}

// Bounds of an entry's texts, in runes.
const (
	maxShort = 300
	maxLong  = 2000
)

// Config is what a [Log] is made from.
type Config struct {
	Path    string
	MaxSize int64               // of the file, in bytes; as much again is kept of before
	Hide    func(string) string // takes secrets out of a text; nil takes out none
}

// A Log adds to a file. Its methods may be called concurrently.
type Log struct {
	cfg Config

	mu      sync.Mutex
	known   map[[16]byte]bool // what the file has, for AddOnce; nil until it is asked for
	trouble string
}

// New returns a log that has touched no file yet.
func New(cfg Config) *Log { return &Log{cfg: cfg} }

// Trouble is why the last entry could not be written, "" when it could.
func (l *Log) Trouble() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.trouble
}

// Add writes an entry, with the time. After an error nothing of it is there.
func (l *Log) Add(e Entry) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.add(l.clean(e))
}

// AddOnce is Add, for an entry that says nothing of what is kept already but for the
// time: what is seen to again, after a restart too, is one act.
func (l *Log) AddOnce(e Entry) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	e = l.clean(e)
	if l.known == nil {
		found, err := Read(l.cfg.Path)
		if err != nil {
			l.trouble = err.Error()
			return err
		}
		l.known = map[[16]byte]bool{}
		for _, old := range found {
			l.known[print(old)] = true
		}
	}
	if l.known[print(e)] {
		return nil
	}
	return l.add(e)
}

// print is of an entry without its time.
func print(e Entry) [16]byte {
	sum := sha256.Sum256([]byte(strings.Join([]string{e.Act, e.About, e.Who, e.Rule, e.Done, e.Result}, "\n")))
	return [16]byte(sum[:16])
}

func (l *Log) clean(e Entry) Entry {
	hide := l.cfg.Hide
	if hide == nil {
		hide = func(s string) string { return s }
	}
	e.Time = time.Now().UTC()
	for _, s := range []*string{&e.Act, &e.About, &e.Who, &e.Result} {
		*s = printable(hide(*s), maxShort)
	}
	e.Rule, e.Done = printable(hide(e.Rule), maxLong), printable(hide(e.Done), maxLong)
	return e
}

// printable is a text in one line, of at most n runes, in which nothing steers a
// terminal or hides.
func printable(s string, n int) string {
	s = strings.Join(strings.Fields(strings.Map(func(r rune) rune {
		switch {
		case unicode.IsSpace(r):
			return ' '
		case !unicode.IsPrint(r):
			return '\uFFFD'
		}
		return r
	}, strings.ToValidUTF8(s, "\uFFFD"))), " ")
	if r := []rune(s); len(r) > n {
		return string(r[:n]) + "…"
	}
	return s
}

func (l *Log) add(e Entry) error {
	err := l.write(e)
	if err != nil {
		err = fmt.Errorf("keeping in %s what was done: %w", l.cfg.Path, err)
		l.trouble = err.Error()
		return err
	}
	l.trouble = ""
	if l.known != nil {
		l.known[print(e)] = true
	}
	return nil
}

func (l *Log) write(e Entry) error {
	line, err := json.Marshal(e)
	if err != nil {
		return err
	}
	unlock, err := lock(l.cfg.Path, syscall.LOCK_EX)
	if err != nil {
		return err
	}
	defer unlock()
	f, size, err := l.open(int64(len(line)) + 2)
	if err != nil {
		return err
	}
	if size > 0 {
		last := make([]byte, 1)
		if _, err := f.ReadAt(last, size-1); err != nil {
			return errors.Join(err, f.Close())
		}
		if last[0] != '\n' { // a kill has cut the last one off
			line = append([]byte{'\n'}, line...)
		}
	}
	_, err = f.Write(append(line, '\n'))
	if err == nil {
		err = f.Sync()
	}
	if err != nil { // of a full disk nothing is left behind but what was there
		err = errors.Join(err, f.Truncate(size))
	}
	return errors.Join(err, f.Close())
}

// open opens the file for n more bytes, and puts it aside before where it would get
// too large.
func (l *Log) open(n int64) (f *os.File, size int64, err error) {
	info, err := os.Lstat(l.cfg.Path)
	switch {
	case err == nil && l.cfg.MaxSize > 0 && info.Size() > 0 && info.Size()+n > l.cfg.MaxSize:
		if err := os.Rename(l.cfg.Path, l.cfg.Path+".1"); err != nil {
			return nil, 0, err
		}
		info = nil
	case errors.Is(err, fs.ErrNotExist):
		info = nil
	case err != nil:
		return nil, 0, err
	}
	f, err = os.OpenFile(l.cfg.Path, os.O_CREATE|os.O_APPEND|os.O_RDWR|syscall.O_NOFOLLOW, 0o600)
	if err != nil || info != nil {
		if err == nil {
			size = info.Size()
		}
		return f, size, err
	}
	if err := syncDir(filepath.Dir(l.cfg.Path)); err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	return f, 0, nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// lock waits for the file beside path that keeps processes apart.
func lock(path string, how int) (unlock func(), err error) {
	f, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		if err = syscall.Flock(int(f.Fd()), how); !errors.Is(err, syscall.EINTR) {
			break
		}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return func() { _ = f.Close() }, nil // which unlocks; nothing was written
}

// Read returns all that is kept, the oldest first. Where there is no file there is
// nothing.
func Read(path string) ([]Entry, error) {
	r := &Reader{path: path}
	defer r.Close() //nolint:errcheck // it was read only
	return r.Next()
}

// A Reader reads what is kept, and then what comes. It is not safe for concurrent use.
type Reader struct {
	path string
	f    *os.File
	rest []byte // the beginning of a line
}

// NewReader returns one at the beginning of what is kept.
func NewReader(path string) *Reader { return &Reader{path: path} }

// Close ends it.
func (r *Reader) Close() error {
	if r.f == nil {
		return nil
	}
	return r.f.Close()
}

// Next returns what is there since the last call, the oldest first; none when there is
// nothing new. What is put aside more than once between two calls is left out.
func (r *Reader) Next() ([]Entry, error) {
	files, err := r.files()
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", r.path, err)
	}
	var out []Entry
	for i, f := range files {
		b, err := io.ReadAll(f)
		if err != nil {
			return out, fmt.Errorf("reading %s: %w", r.path, err)
		}
		b = append(r.rest, b...)
		end := bytes.LastIndexByte(b, '\n') + 1
		for line := range bytes.Lines(b[:end]) {
			var e Entry
			if json.Unmarshal(line, &e) == nil && e.Act != "" {
				out = append(out, e)
			}
		}
		r.rest = bytes.Clone(b[end:])
		if i < len(files)-1 {
			r.rest = nil
			if err := f.Close(); err != nil {
				return out, err
			}
		}
		r.f = f
	}
	return out, nil
}

// files are those to read on, the newest last: nothing is put aside while they are opened.
func (r *Reader) files() ([]*os.File, error) {
	if _, err := os.Lstat(filepath.Dir(r.path)); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	unlock, err := lock(r.path, syscall.LOCK_SH)
	if err != nil {
		return nil, err
	}
	defer unlock()
	now, err := os.Open(r.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if r.f != nil && now != nil && same(r.f, now) {
		return []*os.File{r.f}, now.Close()
	}
	var out []*os.File
	before, err := os.Open(r.path + ".1")
	switch {
	case err == nil && r.f != nil && same(r.f, before):
		out = append(out, r.f)
		err = before.Close()
	case err == nil && r.f != nil:
		out = append(out, r.f, before)
	case err == nil:
		out = append(out, before)
	case errors.Is(err, fs.ErrNotExist):
		if err = nil; r.f != nil {
			out = append(out, r.f)
		}
	}
	if now != nil {
		out = append(out, now)
	}
	return out, err
}

func same(a, b *os.File) bool {
	x, err1 := a.Stat()
	y, err2 := b.Stat()
	return err1 == nil && err2 == nil && os.SameFile(x, y)
}
