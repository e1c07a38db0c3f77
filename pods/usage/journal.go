package usage

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// FileName is a journal's name in its directory.
const FileName = "usage.jsonl"

// ErrDamaged is wrapped by errors about a journal that can't be trusted.
var ErrDamaged = errors.New("the journal of what was used is damaged")

// An Entry is a line of a journal. A request has two: one that reserves, with
// what it may use at most, and one that settles, with what it used. A request
// whose second line is missing has used all that was reserved: nobody knows
// better.
type Entry struct {
	At     time.Time `json:"at"`
	N      int64     `json:"n"` // the request, from 1
	Settle bool      `json:"settle,omitempty"`
	Model  string    `json:"model,omitempty"`
	Agent  string    `json:"agent,omitempty"`

	Tokens
	Cost Money         `json:"cost"`
	Time time.Duration `json:"time,omitempty"` // nanoseconds
}

func (e Entry) totals() Totals {
	return Totals{Requests: 1, Tokens: e.Tokens, Cost: e.Cost, Time: e.Time}
}

// A Journal is an account that is open for writing. One process at a time may
// have it open; its methods are safe for concurrent use.
type Journal struct {
	mu      sync.Mutex
	file    *os.File
	path    string
	next    int64
	size    int64
	settled Totals
	open    map[int64]Entry // reserved, under way
	failed  error           // of an earlier write, which may have left half a line
	broken  error           // nothing can be kept
}

// Broken is a journal that could not be opened: it lets nothing through.
func Broken(err error) *Journal { return &Journal{broken: err} }

// Open opens the journal of dir, which it makes if it is not there. What the
// last process did not settle is taken for used in full. A last line that is
// not whole is of a request that was never sent, or of one that is not settled;
// it is cut off. Any other fault is an error that wraps [ErrDamaged].
func Open(dir string) (*Journal, error) {
	path := filepath.Join(dir, FileName)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	j := &Journal{file: f, path: path, next: 1, open: map[int64]Entry{}}
	if err := j.load(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return j, nil
}

func (j *Journal) load() error {
	entries, whole, err := read(j.file, j.path)
	if err != nil {
		return err
	}
	for _, e := range Settled(entries) {
		j.settled = j.settled.Add(e.totals())
	}
	for _, e := range entries {
		j.next = max(j.next, e.N+1)
	}
	j.size = whole
	return j.cut()
}

// cut takes what is behind the last whole line off.
func (j *Journal) cut() error {
	if err := j.file.Truncate(j.size); err != nil {
		return err
	}
	_, err := j.file.Seek(j.size, io.SeekStart)
	return err
}

// Close closes the file; what is under way stays reserved.
func (j *Journal) Close() error { return j.file.Close() }

// Reserve sets e aside for a request that is about to be sent, unless that goes
// over b: then why says so, and nothing is set aside. When it returns without an
// error, the reservation is on the disk.
func (j *Journal) Reserve(b Budget, e Entry) (n int64, why string, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.broken != nil {
		return 0, "", j.broken
	}
	if why := b.refuses(j.settled, j.underWay(), e); why != "" {
		return 0, why, nil
	}
	e.N, e.Settle = j.next, false
	if err := j.write(e, true); err != nil {
		return 0, "", err
	}
	j.next++
	j.open[e.N] = e
	return e.N, "", nil
}

// Refuses tells why there is no room for e in b, "" when there is.
func (j *Journal) Refuses(b Budget, e Entry) string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return b.refuses(j.settled, j.underWay(), e)
}

func (j *Journal) underWay() Totals {
	var t Totals
	for _, e := range j.open {
		t = t.Add(e.totals())
	}
	return t
}

// refuses tells why e has no room beside what is used and what is under way.
func (b Budget) refuses(used, underWay Totals, e Entry) string {
	if why := b.Over(used); why != "" {
		return why
	}
	all := used.Add(underWay).Add(e.totals())
	switch {
	case b.Money > 0 && all.Cost > b.Money:
		return fmt.Sprintf("%s of %s is spent, and this request may cost %s", used.Cost, b.Money, e.Cost)
	case b.Tokens > 0 && all.Tokens.Sum() > b.Tokens:
		return fmt.Sprintf("%d of %d tokens are used, and this request may use %d", used.Tokens.Sum(), b.Tokens, e.Sum())
	}
	return ""
}

// Settle says what request n used. An error means that it stays counted as it
// was reserved.
func (j *Journal) Settle(n int64, e Entry) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if _, known := j.open[n]; !known {
		return fmt.Errorf("request %d is not under way", n)
	}
	e.N, e.Settle = n, true
	err := j.write(e, false)
	if err != nil {
		e = j.open[n]
	}
	delete(j.open, n)
	j.settled = j.settled.Add(e.totals())
	return err
}

// write appends a line, or nothing.
func (j *Journal) write(e Entry, sync bool) error {
	line, err := json.Marshal(e)
	if err != nil {
		return err
	}
	if j.failed != nil {
		if err := j.cut(); err != nil { // what the last write left of a line
			return fmt.Errorf("keeping the account: %w", errors.Join(j.failed, err))
		}
		j.failed = nil
	}
	line = append(line, '\n')
	if _, err = j.file.Write(line); err == nil && sync {
		err = j.file.Sync()
	}
	if err != nil {
		j.failed = err
		return fmt.Errorf("keeping the account: %w", err)
	}
	j.size += int64(len(line))
	return nil
}

// Totals are what was used, and what is reserved beside that for requests that
// are under way.
func (j *Journal) Totals() (used, underWay Totals) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.settled, j.underWay()
}

// Read reads the journal of dir, which somebody may be writing: none is an empty
// one. A request that is under way counts with what is reserved for it.
func Read(dir string) ([]Entry, error) {
	path := filepath.Join(dir, FileName)
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	entries, _, err := read(f, path)
	return Settled(entries), err
}

// Sum adds entries up.
func Sum(entries []Entry) Totals {
	var t Totals
	for _, e := range entries {
		t = t.Add(e.totals())
	}
	return t
}

// maxLine bounds a line, in bytes.
const maxLine = 64 << 10

// read returns the whole lines, and how many bytes they are.
func read(r io.Reader, path string) (entries []Entry, whole int64, err error) {
	br := bufio.NewReaderSize(r, maxLine)
	for n := 1; ; n++ {
		line, err := br.ReadSlice('\n')
		if errors.Is(err, io.EOF) {
			return entries, whole, nil // not whole, or nothing
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return nil, 0, fmt.Errorf("reading %s: %w", path, err)
		}
		var e Entry
		dec := json.NewDecoder(bytes.NewReader(line))
		dec.DisallowUnknownFields()
		if err == nil {
			err = dec.Decode(&e)
		}
		if err == nil && (e.N < 1 || e.Cost < 0 || e.Time < 0 || min(e.Input, e.Output, e.CacheRead, e.CacheWrite) < 0) {
			err = errors.New("it counts below nothing")
		}
		if err != nil {
			return nil, 0, fmt.Errorf("%w: %s, line %d: %w; mend that line, or move the file away to begin at nothing", ErrDamaged, path, n, err)
		}
		entries = append(entries, e)
		whole += int64(len(line))
	}
}

// Settled is one entry for each request of entries: what it used, or else what
// was reserved for it.
func Settled(entries []Entry) []Entry {
	at := map[int64]int{}
	var out []Entry
	for _, e := range entries {
		if i, known := at[e.N]; known {
			if e.Settle {
				out[i] = e
			}
			continue
		}
		at[e.N] = len(out)
		out = append(out, e)
	}
	return out
}
