package opencode

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"codeberg.org/devaipod/devaipod/podapi"
)

// Config is what a [Driver] is made from.
type Config struct {
	Socket string // opencode's, as control sees it
	Dir    string // the repository, as the agent sees it
	Key    string // names the task: the session's title
	Prompt string
	// Traffic is the gate's view.
	Traffic func() podapi.Traffic
	// Computes changes while the agent's container computes; nil where nobody knows.
	Computes func() int64
	Journal  *podapi.Journal
	Poll     time.Duration // between two looks; 1 s when 0
	// Stall is how long there may be no progress in a turn; 10 minutes when 0.
	Stall time.Duration
	// Silence is how long opencode may take to start, or may not answer; Stall, and
	// two minutes at least, and Setup when 0.
	Silence time.Duration
	// Setup is how long its container may take before it starts opencode.
	Setup time.Duration
	// Answers is a file for the answers to the first of several questions, which
	// Replace writes.
	Answers string
	Replace func(path string, data []byte) error
	Log     *slog.Logger
}

// A Driver drives one opencode through one task. It implements podapi.Driver.
type Driver struct {
	cfg Config
	api *api

	status *podapi.Status

	// Of Run's goroutine alone.
	own       session         // the task's, once found
	seen      map[string]bool // what was journaled of the parts that the last look showed
	idleSince time.Time       // since when all signals say that the turn is over
	received  int64           // of the model, when it was seen idle
	nudged    bool            // an interrupted turn was taken up again
	sentAt    time.Time       // when a prompt was sent that opencode does not show yet
	sentAfter string          // the newest message then, "" for none
	answered  time.Time       // when opencode answered last
	pulse     podapi.Pulse    // of the turn
	urged     bool            // it was asked to go on after a stall
	up        bool            // it has answered, and not failed to since
	failing   podapi.Failing  // the model, in this turn
	gaveUp    string          // why the turn was ended; a request that this cut off counts the failures anew
	patience  time.Duration   // for whether it is up
	strange   time.Time       // since when it answers as it should not

	wake      chan struct{} // something is there to be looked at
	answering sync.Mutex    // held while what it asks is answered
	gathered  gathered
	version   atomic.Pointer[string] // in words, when it is not the one that was tested
}

// Tested is the version of opencode that devaipod is tested with, which the agent's
// image has.
const Tested = "1.18.33"

// strangeFor is how long opencode may answer as it should not, as it may while it
// starts or ends.
const strangeFor = 30 * time.Second

// How soon, and how long, an opencode that is not up is asked whether it is. One
// that is just starting may accept a connection and never answer on it; the next
// ones go well. So the first question waits for a short time, later ones, on a
// slow machine, for longer.
const (
	startPoll     = 100 * time.Millisecond
	startPatience = 250 * time.Millisecond
)

// takeUp is how long opencode may take to show a prompt that it accepted.
const takeUp = 10 * time.Second

// New returns a driver that does nothing yet.
func New(cfg Config) *Driver {
	if cfg.Computes == nil {
		cfg.Computes = func() int64 { return 0 }
	}
	podapi.FillTimes(&cfg.Poll, &cfg.Stall, &cfg.Silence, cfg.Setup)
	d := &Driver{cfg: cfg, api: newAPI(cfg.Socket, cfg.Dir), status: podapi.NewStatus(cfg.Journal), wake: make(chan struct{}, 1)}
	d.answered = time.Now()
	d.gathered.path, d.gathered.replace, d.gathered.log = cfg.Answers, cfg.Replace, cfg.Log
	d.gathered.open()
	return d
}

// Summary is the state now.
func (d *Driver) Summary() podapi.Summary {
	s := d.status.Get()
	s.Model = d.cfg.Traffic()
	if v := d.version.Load(); v != nil {
		s.Version = *v
	}
	return s
}

// Send gives the agent a message: the answer to what it asks, or else a prompt, which
// is taken up at once or at the next step.
func (d *Driver) Send(ctx context.Context, text string) error {
	id := d.Summary().Session
	if id == "" {
		return podapi.ErrNotReady
	}
	if told, err := d.answer(ctx, id, text); told || err != nil {
		return err
	}
	return d.Note(ctx, text)
}

// Note implements [podapi.Noted].
func (d *Driver) Note(ctx context.Context, text string) error {
	id := d.Summary().Session
	if id == "" {
		return podapi.ErrNotReady
	}
	return d.api.prompt(ctx, id, text)
}

func (d *Driver) kick() {
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// Stop ends the agent's turn.
func (d *Driver) Stop(ctx context.Context) error {
	id := d.Summary().Session
	if id == "" {
		return podapi.ErrNotReady
	}
	return d.api.abort(ctx, id)
}

// Pages implements [podapi.Paged]: opencode's API and web pages. An answer may take as
// long as it likes.
func (d *Driver) Pages() http.RoundTripper {
	return &http.Transport{
		MaxIdleConnsPerHost: 8, IdleConnTimeout: 30 * time.Second, DisableCompression: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return podapi.Dial(ctx, d.cfg.Socket) },
	}
}

// Run drives the agent until ctx ends. Whatever goes wrong is tried again: the
// agent may be starting, or be started again.
func (d *Driver) Run(ctx context.Context) error {
	var events sync.WaitGroup
	defer events.Wait()
	events.Add(1)
	go func() {
		defer events.Done()
		d.listen(ctx)
	}()
	for ctx.Err() == nil {
		if err := d.look(ctx); err == nil {
			d.strange = time.Time{}
		} else if ctx.Err() == nil {
			d.cfg.Log.Debug("opencode does not answer", "err", err)
			d.up = false
			d.away(err)
		}
		burst, poll := d.pace()
		select {
		case <-ctx.Done():
		case <-d.wake:
			sleep(ctx, burst) // a burst of events is one look
		case <-time.After(poll):
		}
	}
	return ctx.Err()
}

// pace is how long to wait for more after an event, and for an event at all. A
// look costs opencode some 50 ms of a core, and many agents share one.
func (d *Driver) pace() (burst, poll time.Duration) {
	switch d.Summary().State {
	case podapi.Starting, podapi.Ready:
		if !d.up {
			return d.cfg.Poll / 4, min(d.cfg.Poll, startPoll)
		}
		return d.cfg.Poll / 4, d.cfg.Poll
	case podapi.Working:
		return d.cfg.Poll, d.cfg.Poll
	}
	return d.cfg.Poll / 4, 15 * d.cfg.Poll // its turn is over; events tell of the next
}

// away notes that opencode does not answer. A turn that was over stays over; a
// container that ended is for others to see, but one that lives and is silent
// is not waited for without end; nor is one that answers otherwise than it should.
func (d *Driver) away(err error) {
	d.idleSince = time.Time{}
	sum := d.Summary()
	if !errors.Is(err, errStrange) {
		d.strange = time.Time{}
	} else if d.strange.IsZero() {
		d.strange = time.Now()
	}
	if sum.State == podapi.Done || sum.State == podapi.Failed {
		return
	}
	if sum.State != podapi.Starting && sum.State != podapi.Ready {
		sum.Activity = "opencode does not answer"
	}
	switch {
	case !d.strange.IsZero() && time.Since(d.strange) > min(strangeFor, d.cfg.Silence/2):
		sum.State, sum.Cause = podapi.Failed, podapi.CauseError
		sum.Error = podapi.Clip("opencode answers otherwise than it should: "+err.Error(), 1000)
		if sum.Version != "" {
			sum.Error += "; " + sum.Version
		}
	case time.Since(d.answered) > d.cfg.Silence:
		what := "has not answered"
		if sum.State == podapi.Starting {
			what = "did not start"
		}
		sum.State, sum.Cause, sum.Error = podapi.Failed, podapi.CauseSilent, fmt.Sprintf("opencode %s for %s", what, d.cfg.Silence)
	}
	d.status.Set(sum)
}

// wakes waits until opencode answers at all.
func (d *Driver) wakes(ctx context.Context) error {
	if d.up {
		return nil
	}
	d.patience = min(max(2*d.patience, startPatience), answerWithin)
	version, err := d.api.health(ctx, d.patience)
	if !errors.Is(err, context.DeadlineExceeded) {
		d.patience = 0
	}
	if errors.Is(err, errStrange) || errors.Is(err, errGone) { // one that does not tell
		version, err = "", nil
	}
	if d.up = err == nil; d.up {
		d.of(version)
	}
	return err
}

// of notes which version answers: a container that was started again may have another.
func (d *Driver) of(version string) {
	if version == Tested {
		d.version.Store(nil)
		return
	}
	if version == "" {
		version = "of a version that it does not tell"
	}
	text := fmt.Sprintf("opencode %s is not the version that devaipod was tested with (%s)", version, Tested)
	if old := d.version.Swap(&text); old == nil || *old != text {
		d.cfg.Log.Warn(text)
		d.cfg.Journal.Once(text, podapi.EventError, text)
	}
}

// look asks for everything and works out the state.
func (d *Driver) look(ctx context.Context) error {
	if err := d.wakes(ctx); err != nil {
		return err
	}
	s, err := d.session(ctx)
	if err != nil {
		return err
	}
	all, err := d.api.messages(ctx, s.ID)
	if errors.Is(err, errGone) {
		d.own = session{}
	}
	if err != nil {
		return err
	}
	d.answered = time.Now()
	if d.pending(all) {
		return nil
	}
	st, err := d.api.status(ctx, s.ID)
	if err != nil {
		return err
	}
	if len(all) == 0 && st.Type != "" {
		return nil // it is being written down
	}
	if len(all) == 0 {
		return d.begin(ctx)
	}
	var ask asked
	if st.Type != "" && d.cfg.Traffic().InFlight == 0 { // else it waits for its model
		if ask, err = d.api.asks(ctx, s.ID, all, d.gathered.of); err != nil {
			return err
		}
	}
	d.journal(all)
	return d.judge(ctx, s, all, st, ask)
}

// begin gives the agent its task.
func (d *Driver) begin(ctx context.Context) error {
	d.cfg.Log.Info("giving the agent its task", "session", d.own.ID)
	d.status.Set(podapi.Summary{State: podapi.Ready, Session: d.own.ID, Activity: "getting its task"})
	if err := d.prompt(ctx, nil, d.cfg.Prompt); err != nil {
		return err
	}
	d.status.Set(podapi.Summary{State: podapi.Working, Session: d.own.ID, Activity: "reading the task"})
	return nil
}

// session finds the task's session or makes it: a pod-api that was started
// again goes on with the one it had.
func (d *Driver) session(ctx context.Context) (session, error) {
	if d.own.ID != "" {
		return d.own, nil
	}
	all, err := d.api.sessions(ctx, d.cfg.Key)
	if err != nil {
		return session{}, err
	}
	for _, s := range all {
		if s.Title == d.cfg.Key {
			d.own = s
			return s, nil
		}
	}
	d.own, err = d.api.newSession(ctx, d.cfg.Key)
	return d.own, err
}

// prompt sends text, and remembers it until opencode shows it: what is not
// there yet must not be sent again.
func (d *Driver) prompt(ctx context.Context, all []message, text string) error {
	d.sentAt, d.sentAfter, d.idleSince = time.Now(), newestID(all), time.Time{}
	return d.api.prompt(ctx, d.own.ID, text)
}

// pending tells whether a prompt is on its way.
func (d *Driver) pending(all []message) bool {
	if newestID(all) != d.sentAfter || time.Since(d.sentAt) > takeUp {
		d.sentAt = time.Time{}
	}
	return !d.sentAt.IsZero()
}

func newestID(all []message) string {
	if len(all) == 0 {
		return ""
	}
	return all[len(all)-1].Info.ID
}

// journal notes what is new in the messages: texts that are whole, and tools
// when they begin and end. What a look no longer shows is forgotten: it is older than
// the newest messages. Should it come back, as when a person takes a turn back, the
// journal knows its marks.
func (d *Driver) journal(all []message) {
	shown := map[string]bool{}
	for _, m := range all {
		if m.Info.Role != "assistant" {
			continue
		}
		for _, p := range m.Parts {
			d.journalPart(m, p, shown)
		}
	}
	d.seen = shown
}

// journalPart notes a part once for each of its stages, whatever was noted by a
// pod-api before this one.
func (d *Driver) journalPart(m message, p part, shown map[string]bool) {
	note := func(stage, kind, text string) {
		mark := p.ID + " " + stage
		if text != "" && !d.seen[mark] {
			d.cfg.Journal.Once(mark, kind, text)
		}
		shown[mark] = true
	}
	switch {
	case p.Type == "text" && m.Info.Time.Completed > 0:
		note("whole", podapi.EventText, strings.TrimSpace(p.Text))
	case p.Type == "tool" && p.State != nil && p.State.Status != "pending":
		note("running", podapi.EventTool, p.Tool+" "+p.input())
		if p.State.Status != "running" {
			note(p.State.Status, podapi.EventTool, podapi.Clip(strings.TrimSpace(p.State.Output+p.State.Error), 2000))
		}
	}
}

// listen reads opencode's events and wakes the loop; what they say is asked
// for again.
func (d *Driver) listen(ctx context.Context) {
	for ctx.Err() == nil {
		resp, err := d.api.open(ctx, http.MethodGet, "/event", nil, nil)
		if err == nil {
			lines := bufio.NewReaderSize(io.LimitReader(resp.Body, 1<<30), 64<<10)
			for err == nil {
				_, err = lines.ReadSlice('\n')
				if err == bufio.ErrBufferFull { //nolint:errorlint // as returned
					err = nil
				}
				d.kick()
			}
			_ = resp.Body.Close()
		}
		sleep(ctx, d.cfg.Poll)
	}
}

func sleep(ctx context.Context, t time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(t):
	}
}
