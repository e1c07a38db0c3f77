package podapi

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"sync"
	"time"
)

// Types of events.
const (
	EventState = "state" // the agent's state changed
	EventText  = "text"  // the agent said something
	EventTool  = "tool"  // the agent used a tool
	EventError = "error"
	// A person, or the service for one, said something to the agent.
	EventPerson = "person"

	EventThought = "thought" // the agent's, while it works
	EventTodo    = "todo"    // its own list changed
)

// An Event is one thing that happened, as /events sends it.
type Event struct {
	ID   int64     `json:"id"` // grows, also over the lives of pods and pod-apis
	Time time.Time `json:"time"`
	Type string    `json:"type"`
	Text string    `json:"text"`
	// Mark names what it tells of, where that could be told twice: a part of a
	// message, say, and how far it was.
	Mark string `json:"mark,omitempty"`
}

const (
	maxEvents    = 1000     // that are held in memory
	maxHeld      = 1 << 20  // bytes of their texts
	maxEventText = 8 << 10  // bytes
	maxMark      = 200      // bytes
	maxMarks     = 20_000   // that are remembered, beside those of what people said
	maxKept      = 32 << 20 // bytes of a file; there are two at most
	keepAgain    = time.Minute
)

// A Journal keeps what happened: the newest events in memory, and with
// [OpenJournal] all of them in files, up to some 64 MiB. The zero value is ready;
// its methods are safe for concurrent use.
type Journal struct {
	mu     sync.Mutex
	last   int64
	events []Event
	held   int // bytes of their texts
	seed   maphash.Seed
	marks  map[uint64]bool // their hashes: there are many of them
	marked []uint64        // the same, the oldest first
	wake   chan struct{}   // closed at the next event

	path  string    // of the file, "" for none
	file  *os.File  // nil when it can't be written
	again time.Time // when that is tried again
	size  int64
	log   *slog.Logger
}

// TranscriptFile is the name of a journal's file in its directory. The older half
// of a long one has ".1" behind its name.
const TranscriptFile = "transcript.jsonl"

// OpenJournal opens the journal that is kept in dir, one event a line (JSON), or
// begins it. A journal that can't be written goes on in memory, and says so in
// the log.
func OpenJournal(dir string, log *slog.Logger) *Journal {
	j := &Journal{path: filepath.Join(dir, TranscriptFile), log: log}
	err := ReadTranscript(dir, func(ev Event) error {
		j.hold(ev)
		return nil
	})
	if err != nil {
		log.Warn("what the agent did before can't be read", "err", err)
	}
	j.unkept(j.open())
	return j
}

// unkept notes that the file can't be written; what happens until it can is in
// memory alone.
func (j *Journal) unkept(err error) {
	if err != nil {
		j.log.Error("what the agent does is not kept; trying again in a minute", "err", err)
		j.file, j.again = nil, time.Now().Add(keepAgain)
	}
}

// open opens the file to write behind what is there.
func (j *Journal) open() error {
	f, err := os.OpenFile(j.path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err == nil && info.Size() > 0 {
		end := make([]byte, 1)
		if _, err = f.ReadAt(end, info.Size()-1); err == nil && end[0] != '\n' {
			_, err = f.WriteString("\n") // a kill cut the last line off
		}
	}
	if err != nil {
		return errors.Join(err, f.Close())
	}
	j.file, j.size = f, info.Size()
	return nil
}

// Add notes an event; its text is bounded.
func (j *Journal) Add(kind, text string) { j.Once("", kind, text) }

// Once is Add, unless an event of this mark was noted before.
func (j *Journal) Once(mark, kind, text string) {
	mark = Clip(mark, maxMark)
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.marks[j.hash(mark)] {
		return
	}
	ev := Event{ID: j.last + 1, Time: time.Now().UTC(), Type: kind, Text: Clip(text, maxEventText), Mark: mark}
	j.hold(ev)
	if j.path != "" && (j.file != nil || time.Now().After(j.again)) {
		j.unkept(j.keep(ev))
	}
	if j.wake != nil {
		close(j.wake)
		j.wake = nil
	}
}

// Has tells whether an event of a mark was noted.
func (j *Journal) Has(mark string) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.marks[j.hash(Clip(mark, maxMark))]
}

// hash is of a mark: by a seed of this process, so that nobody can make two that are
// alike.
func (j *Journal) hash(mark string) uint64 {
	if j.marks == nil {
		j.seed, j.marks = maphash.MakeSeed(), map[uint64]bool{}
	}
	return maphash.String(j.seed, mark)
}

// hold holds an event in memory.
func (j *Journal) hold(ev Event) {
	j.last = ev.ID
	j.events, j.held = append(j.events, ev), j.held+len(ev.Text)
	if len(j.events) > maxEvents || j.held > maxHeld {
		gone := len(j.events) / 10
		for _, old := range j.events[:gone] {
			j.held -= len(old.Text)
		}
		j.events = append([]Event(nil), j.events[gone:]...)
	}
	if ev.Mark == "" {
		return
	}
	mark := j.hash(ev.Mark)
	j.marks[mark] = true
	if ev.Type == EventPerson { // there are few, and they may come again after any time
		return
	}
	j.marked = append(j.marked, mark)
	if len(j.marked) > maxMarks {
		for _, old := range j.marked[:maxMarks/2] {
			delete(j.marks, old)
		}
		j.marked = append([]uint64(nil), j.marked[maxMarks/2:]...)
	}
}

// keep writes an event, in a file of its own once the one before is full.
func (j *Journal) keep(ev Event) error {
	line, err := json.Marshal(ev)
	if err == nil && j.file == nil {
		err = j.open()
	}
	if err == nil && j.size > maxKept {
		if err = errors.Join(j.file.Close(), os.Rename(j.path, j.path+".1")); err == nil {
			err = j.open()
		}
	}
	if err != nil {
		return err
	}
	n, err := j.file.Write(append(line, '\n'))
	j.size += int64(n)
	if err != nil {
		err = errors.Join(err, j.file.Close())
	}
	return err
}

// After returns the events in memory with a greater id, and a channel that is closed
// when there are more. An id that there has not been yet is of another journal:
// all events come after that.
func (j *Journal) After(id int64) ([]Event, <-chan struct{}) {
	events, more, _ := j.next(j.from(id), maxEvents+1)
	return events, more
}

// from is the id after which a watcher goes on that has seen one.
func (j *Journal) from(seen int64) int64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	if seen > j.last {
		return 0
	}
	return seen
}

// next are the events in memory after an id, as in After, but at most n. Those before oldest are not in memory, and may
// be in the files.
func (j *Journal) next(id int64, n int) (events []Event, more <-chan struct{}, oldest int64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.wake == nil {
		j.wake = make(chan struct{})
	}
	oldest = j.last + 1
	if len(j.events) > 0 {
		oldest = j.events[0].ID
	}
	from := sort.Search(len(j.events), func(i int) bool { return j.events[i].ID > id })
	return slices.Clone(j.events[from:min(from+n, len(j.events))]), j.wake, oldest
}

// kept calls each with the events between two ids that are in the files alone.
func (j *Journal) kept(after, before int64, each func(Event) error) error {
	if j.path == "" || after+1 >= before {
		return nil
	}
	err := readTranscript(filepath.Dir(j.path), after, func(ev Event) error {
		if ev.ID >= before {
			return errEnough
		}
		return each(ev)
	})
	if errors.Is(err, errEnough) {
		return nil
	}
	return err
}

// errEnough ends reading.
var errEnough = errors.New("enough")

// all calls each with everything that there is of the journal, the oldest first.
func (j *Journal) all(each func(Event) error) error {
	events, _, oldest := j.next(0, maxEvents+1)
	if err := j.kept(0, oldest, each); err != nil {
		return err
	}
	for _, ev := range events {
		if err := each(ev); err != nil {
			return err
		}
	}
	return nil
}

// page is the newest n events before an id, the oldest first.
func (j *Journal) page(before int64, n int) ([]Event, error) {
	events, _ := j.After(0)
	end := sort.Search(len(events), func(i int) bool { return events[i].ID >= before })
	if end >= n || j.path == "" {
		return events[max(0, end-n):end], nil
	}
	if len(events) > 0 {
		before = min(before, events[0].ID)
	}
	older, err := TranscriptPage(filepath.Dir(j.path), before, n-end)
	return append(older, events[:end]...), err
}

// ReadTranscript calls each with the events that are kept in dir, the oldest first,
// until one is an error. Lines that are no event, as a kill leaves them, are left
// out; no journal is no event.
func ReadTranscript(dir string, each func(Event) error) error { return readTranscript(dir, 0, each) }

// readTranscript is ReadTranscript of what came after an id.
func readTranscript(dir string, after int64, each func(Event) error) error {
	for _, name := range []string{TranscriptFile + ".1", TranscriptFile} {
		if err := readEvents(filepath.Join(dir, name), after, each); err != nil {
			return err
		}
	}
	return nil
}

// TranscriptPage reads the newest n events before an id that are kept in dir, the
// oldest first, and of the files no more than it has to.
func TranscriptPage(dir string, before int64, n int) (page []Event, err error) {
	for _, name := range []string{TranscriptFile, TranscriptFile + ".1"} {
		err = errors.Join(err, backwards(filepath.Join(dir, name), func(line []byte) bool {
			var ev Event
			if json.Unmarshal(line, &ev) == nil && ev.ID > 0 && ev.ID < before {
				page = append(page, ev)
			}
			return len(page) < n
		}))
		if len(page) >= n {
			break
		}
	}
	slices.Reverse(page)
	return page, err
}

// backwards calls each with the lines of a file, the last first, until that is false.
func backwards(path string, each func(line []byte) bool) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	at, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	var rest []byte // of a line that begins before at
	for at > 0 {
		block := make([]byte, min(at, 64<<10))
		at -= int64(len(block))
		if _, err := f.ReadAt(block, at); err != nil {
			return fmt.Errorf("reading %s: %w", path, err)
		}
		block = append(block, rest...)
		for i := bytes.LastIndexByte(block, '\n'); i >= 0; i = bytes.LastIndexByte(block, '\n') {
			if line := block[i+1:]; len(line) > 0 && !each(line) {
				return nil
			}
			block = block[:i]
		}
		rest = block
	}
	if len(rest) > 0 {
		each(rest)
	}
	return nil
}

func readEvents(path string, after int64, each func(Event) error) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if after > 0 {
		if err := skip(f, after); err != nil {
			return fmt.Errorf("reading %s: %w", path, err)
		}
	}
	for lines := bufio.NewReader(f); ; {
		line, err := lines.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return nil // what there is of a line is none yet
		}
		if err != nil {
			return fmt.Errorf("reading %s: %w", path, err)
		}
		var ev Event
		if json.Unmarshal(line, &ev) != nil || ev.ID <= after {
			continue
		}
		if err := each(ev); err != nil {
			return err
		}
	}
}

// skip goes to a place in a file that is at or before the first event after an id, and
// not far from it: ids grow from line to line.
func skip(f *os.File, after int64) error {
	low, err := f.Seek(0, io.SeekStart)
	if err != nil {
		return err
	}
	high, err := f.Seek(0, io.SeekEnd)
	for err == nil && high-low > 256<<10 {
		middle := low + (high-low)/2
		lines := bufio.NewReader(io.NewSectionReader(f, middle, high-middle))
		var ev Event
		for ev.ID == 0 && err == nil {
			var line []byte
			if line, err = lines.ReadBytes('\n'); err == nil && json.Unmarshal(line, &ev) != nil {
				ev.ID = 0 // the rest of a line
			}
		}
		if err == nil && ev.ID <= after {
			low = middle
		} else {
			high, err = middle, ignoreEnd(err)
		}
	}
	if err == nil {
		_, err = f.Seek(low, io.SeekStart)
	}
	return err
}

func ignoreEnd(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}
