package witness

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"codeberg.org/devaipod/devaipod/pods/model"
)

// FileName is the name of a journal's file in its directory. The older half of a
// long one has ".1" behind its name.
const FileName = "commands.jsonl"

const (
	maxFile    = 4 << 20  // bytes of a file; there are two at most
	maxPending = 256      // commands without a result
	maxQueued  = 64 << 20 // bytes of requests that are to be read
	maxRecent  = 16       // results that are remembered for a call that is not known yet
)

// A Journal keeps what one run's agent does. Its methods may be called concurrently;
// none but Close waits for a disk or a parser. A nil one keeps nothing.
type Journal struct {
	dir, task string
	log       *slog.Logger
	wake      chan struct{} // capacity 1: there is something to do
	done      chan struct{}

	mu     sync.Mutex
	closed bool
	queue  []work
	queued int // bytes

	// Of the goroutine alone.
	pending []Command
	recent  []model.Result
	matched map[string]bool // ids of commands that have had their result
}

// work is a request's body, or an answer's calls.
type work struct {
	at    time.Time
	body  []byte
	calls []model.Call
}

func (w work) size() int {
	n := len(w.body)
	for _, c := range w.calls {
		n += len(c.Arguments)
	}
	return n
}

// Open opens the journal in dir for a run, and finds its commands of before that
// wait for a result. Close must be called.
func Open(dir, task string, log *slog.Logger) *Journal {
	j := &Journal{dir: dir, task: task, log: log, wake: make(chan struct{}, 1), done: make(chan struct{}), matched: map[string]bool{}}
	known, err := Commands(dir, task)
	if err != nil {
		log.Warn("what the agent ran before can't be read", "err", err)
	}
	for _, c := range known {
		if c.Result == nil {
			j.wait(c)
		}
	}
	go j.run()
	return j
}

// Called notes the calls of an answer that has ended.
func (j *Journal) Called(calls []model.Call) {
	if len(calls) > 0 {
		j.add(work{at: time.Now().UTC(), calls: calls})
	}
}

// Told looks for results in a request, which must not be changed any more. When
// there is more to do than can be kept in mind, the oldest requests are left out:
// each tells the results of those before it, too.
func (j *Journal) Told(body []byte) { j.add(work{at: time.Now().UTC(), body: body}) }

func (j *Journal) add(w work) {
	if j == nil {
		return
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed {
		return
	}
	j.queue, j.queued = append(j.queue, w), j.queued+w.size()
	for len(j.queue) > 1 && (j.queued > maxQueued || len(j.queue) > maxPending) {
		j.queued -= j.queue[0].size()
		j.queue = j.queue[1:]
	}
	select {
	case j.wake <- struct{}{}:
	default:
	}
}

// Close ends the journal, once all that it was told of is noted.
func (j *Journal) Close() {
	if j == nil {
		return
	}
	j.mu.Lock()
	again := j.closed
	j.closed = true
	j.mu.Unlock()
	if !again {
		close(j.wake)
	}
	<-j.done
}

func (j *Journal) run() {
	defer close(j.done)
	for range j.wake {
		j.drain()
	}
	j.drain()
}

func (j *Journal) drain() {
	for {
		j.mu.Lock()
		if len(j.queue) == 0 {
			j.queue = nil
			j.mu.Unlock()
			return
		}
		w := j.queue[0]
		j.queue, j.queued = j.queue[1:], j.queued-w.size()
		j.mu.Unlock()
		var lines []line
		if w.body != nil {
			lines = j.told(w)
		} else {
			lines = j.called(w)
		}
		if err := j.write(lines); err != nil {
			j.log.Error("what the agent ran is not kept", "err", err)
		}
	}
}

// A line of the file.
type line struct {
	Command *Command `json:"command,omitempty"`
	ID      string   `json:"id,omitempty"` // whose result it is
	Result  *Result  `json:"result,omitempty"`
}

func (j *Journal) called(w work) (lines []line) {
	for _, call := range w.calls {
		command, ok := commandOf(call)
		if !ok {
			continue
		}
		c := Command{At: w.at, Task: j.task, ID: call.ID, Tool: clip(call.Tool, 100), Command: command}
		lines = append(lines, line{Command: &c})
		j.wait(c)
		for _, r := range j.recent { // told before the answer had quite ended
			lines = append(lines, j.result(r, w.at)...)
		}
	}
	return lines
}

func (j *Journal) wait(c Command) {
	if j.pending = append(j.pending, c); len(j.pending) > maxPending {
		j.pending = j.pending[1:]
	}
}

func (j *Journal) told(w work) (lines []line) {
	all := model.Results(w.body)
	for i := range all { // the newest first: some servers name all calls alike
		lines = append(lines, j.result(all[len(all)-1-i], w.at)...)
	}
	j.recent = nil
	for _, r := range all[max(0, len(all)-maxRecent):] {
		if !j.matched[r.ID] && !strings.HasPrefix(r.ID, model.Unnamed) {
			r.ID = strings.Clone(r.ID)
			if n := len(r.Text); n > 2*maxTail {
				r.Text = r.Text[:maxTail] + r.Text[n-maxTail:]
			}
			j.recent = append(j.recent, r)
		}
	}
	return lines
}

// result gives a result to the command that waits for it, the newest of its id.
func (j *Journal) result(r model.Result, at time.Time) []line {
	for i, c := range slices.Backward(j.pending) {
		if c.ID == r.ID {
			j.pending = append(j.pending[:i:i], j.pending[i+1:]...)
			if len(j.matched) > 4*maxPending {
				clear(j.matched)
			}
			j.matched[strings.Clone(r.ID)] = true
			return []line{{ID: r.ID, Result: resultOf(r, at)}}
		}
	}
	return nil
}

// write appends lines to the file. Each begins with a newline: what a kill left of
// one is a line of its own then.
func (j *Journal) write(lines []line) error {
	if len(lines) == 0 {
		return nil
	}
	var text []byte
	for _, l := range lines {
		b, err := json.Marshal(l)
		if err != nil {
			return err
		}
		text = append(append(text, '\n'), b...)
	}
	path := filepath.Join(j.dir, FileName)
	if info, err := os.Stat(path); err == nil && info.Size() > maxFile {
		if err := os.Rename(path, path+".1"); err != nil {
			return err
		}
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	return errors.Join(err, f.Close())
}

// Commands are those that are kept in dir of a run, "" for all, in the order in which
// they were asked for. A directory without a journal has none.
func Commands(dir, task string) ([]Command, error) {
	var out []Command
	waits := map[string][]int{}
	for _, name := range []string{FileName + ".1", FileName} {
		err := readLines(filepath.Join(dir, name), func(l line) {
			switch {
			case l.Command != nil && (task == "" || l.Command.Task == task):
				waits[l.Command.ID] = append(waits[l.Command.ID], len(out))
				out = append(out, *l.Command)
			case l.Result != nil && len(waits[l.ID]) > 0:
				last := len(waits[l.ID]) - 1
				out[waits[l.ID][last]].Result = l.Result
				waits[l.ID] = waits[l.ID][:last]
			}
		})
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// readLines calls each with the lines of a file that can be read.
func readLines(path string, each func(line)) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	for lines := bufio.NewReader(io.LimitReader(f, 2*maxFile)); ; {
		text, err := lines.ReadBytes('\n')
		var l line
		if json.Unmarshal(text, &l) == nil { // what a kill left of one is none
			each(l)
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
