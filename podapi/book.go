package podapi

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync"
)

// A Page is what a driver has to know after a restart, of an agent that can't be
// asked for it.
type Page struct {
	Key     string `json:"key"`               // of the task
	Session string `json:"session,omitempty"` // the agent's name for it
	// Turn is the message of the turn under way, the Turns-th, "" when there is none.
	Turn  string `json:"turn,omitempty"`
	Turns int    `json:"turns"`
	// Taken says that the agent was given it, Nudged that it was asked to go on with
	// it after an interruption.
	Taken   bool     `json:"taken,omitempty"`
	Nudged  bool     `json:"nudged,omitempty"`
	Waiting []string `json:"waiting,omitempty"` // messages
	Last    Summary  `json:"last"`              // how the last turn ended
}

// Begin makes the first message that waits the turn under way; false when none
// does.
func (p *Page) Begin() bool {
	if len(p.Waiting) == 0 {
		return false
	}
	p.Turn, p.Waiting = p.Waiting[0], p.Waiting[1:]
	p.Turns++
	p.Taken, p.Nudged = false, false
	return true
}

// Idle tells whether nothing is to be done.
func (p Page) Idle() bool { return p.Turn == "" && len(p.Waiting) == 0 }

// State is the agent's state for others: a turn that has ended well is not the end
// while there is more to be done.
func (p Page) State(sum Summary) Summary {
	if sum.State == Done && !p.Idle() {
		sum.State, sum.Activity = Working, "reading its next message"
	}
	return sum
}

// A Book keeps a [Page] in a file. Its methods are safe for concurrent use.
type Book struct {
	Prompt string // the task's

	path    string
	replace func(path string, data []byte) error
	log     *slog.Logger

	mu   sync.Mutex
	page Page
}

// OpenBook opens the book at path, which replace writes. One of another task, or
// one that can't be read, begins anew, with the prompt as the first message.
func OpenBook(path string, replace func(string, []byte) error, key, prompt string, log *slog.Logger) *Book {
	b := &Book{Prompt: prompt, path: path, replace: replace, log: log}
	text, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(text, &b.page)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		log.Error("what the agent was told before can't be read; it gets its task anew", "err", err)
	}
	if err != nil || b.page.Key != key {
		b.page = Page{Key: key, Waiting: []string{prompt}}
	}
	return b
}

// Page is what is in it.
func (b *Book) Page() Page {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.page
}

// Change changes the page and keeps it. The work goes on where that fails: it is
// for a restart alone.
func (b *Book) Change(change func(*Page)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	change(&b.page)
	text, err := json.Marshal(b.page)
	if err == nil {
		err = b.replace(b.path, text)
	}
	if err != nil {
		b.log.Error("what the agent was told is not kept; after a restart it may get it again", "err", err)
	}
}

// ErrBusy is returned by a Driver for which too many messages wait.
var ErrBusy = errors.New("too many messages wait for the agent's turn to end; try again later")

const maxWaiting = 100

// Add puts a message behind those that wait.
func (b *Book) Add(text string) error {
	err := ErrBusy
	b.Change(func(p *Page) {
		if len(p.Waiting) < maxWaiting {
			p.Waiting, err = append(p.Waiting[:len(p.Waiting):len(p.Waiting)], text), nil
		}
	})
	return err
}

// End notes how a turn has ended, also one that was not begun, and returns the
// agent's state for others.
func (b *Book) End(sum Summary) Summary {
	b.Change(func(p *Page) {
		if p.Turn == "" {
			p.Begin()
		}
		p.Turn, p.Taken, p.Nudged = "", false, false
		if sum.Message == "" {
			sum.Message = p.Last.Message
		}
		sum.Mark = fmt.Sprintf("turn %d", p.Turns)
		p.Last = sum
		sum = p.State(sum)
	})
	return sum
}
