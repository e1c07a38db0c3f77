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
	Journal *podapi.Journal
	Poll    time.Duration // between two looks; 1 s when 0
	// Stall is how long there may be no progress in a turn; 10 minutes when 0.
	Stall time.Duration
	// Silence is how long opencode may take to start, or may not answer; Stall, and
	// two minutes at least, and Setup when 0.
	Silence time.Duration
	// Setup is how long its container may take before it starts opencode.
	Setup time.Duration
	Log   *slog.Logger
}

// A Driver drives one opencode through one task. It implements podapi.Driver.
type Driver struct {
	cfg Config
	api *api

	status *podapi.Status

	// Of Run's goroutine alone.
	own       session         // the task's, once found
	seen      map[string]bool // what was journaled of the parts
	idleSince time.Time       // since when all signals say that the turn is over
	nudged    bool            // an interrupted turn was taken up again
	sentAt    time.Time       // when a prompt was sent that opencode does not show yet
	sentAfter string          // the newest message then, "" for none
	answered  time.Time       // when opencode answered last
	pulse     podapi.Pulse    // of the turn
	urged     bool            // it was asked to go on after a stall
	up        bool            // it has answered, and not failed to since
	failing   podapi.Failing  // the model, in this turn
	gaveUp    bool            // the turn was ended for it
	patience  time.Duration   // for whether it is up
}

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
	podapi.FillTimes(&cfg.Poll, &cfg.Stall, &cfg.Silence, cfg.Setup)
	d := &Driver{cfg: cfg, api: newAPI(cfg.Socket, cfg.Dir), seen: map[string]bool{}, status: podapi.NewStatus(cfg.Journal)}
	d.answered = time.Now()
	return d
}

// Summary is the state now.
func (d *Driver) Summary() podapi.Summary {
	s := d.status.Get()
	s.Model = d.cfg.Traffic()
	return s
}

// Send gives the agent a message; it is taken up at once or at the next step.
func (d *Driver) Send(ctx context.Context, text string) error {
	id := d.Summary().Session
	if id == "" {
		return podapi.ErrNotReady
	}
	return d.api.prompt(ctx, id, text)
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
	wake := make(chan struct{}, 1)
	var events sync.WaitGroup
	defer events.Wait()
	events.Add(1)
	go func() {
		defer events.Done()
		d.listen(ctx, wake)
	}()
	for ctx.Err() == nil {
		if err := d.look(ctx); err != nil && ctx.Err() == nil {
			d.cfg.Log.Debug("opencode does not answer", "err", err)
			d.up = false
			d.away()
		}
		burst, poll := d.pace()
		select {
		case <-ctx.Done():
		case <-wake:
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
	case podapi.Starting:
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
// is not waited for without end.
func (d *Driver) away() {
	d.idleSince = time.Time{}
	sum := d.Summary()
	if sum.State == podapi.Done || sum.State == podapi.Failed {
		return
	}
	if sum.State != podapi.Starting {
		sum.Activity = "opencode does not answer"
	}
	if time.Since(d.answered) > d.cfg.Silence {
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
	err := d.api.ping(ctx, d.patience)
	if !errors.Is(err, context.DeadlineExceeded) {
		d.patience = 0
	}
	d.up = err == nil
	return err
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
		d.cfg.Log.Info("giving the agent its task", "session", s.ID)
		d.status.Set(podapi.Summary{State: podapi.Working, Session: s.ID, Activity: "reading the task"})
		return d.prompt(ctx, all, d.cfg.Prompt)
	}
	var ask asked
	if st.Type != "" && d.cfg.Traffic().InFlight == 0 { // else it waits for its model
		if ask, err = d.api.asks(ctx, s.ID); err != nil {
			return err
		}
	}
	d.journal(all)
	return d.judge(ctx, s, all, st, ask)
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
// when they begin and end.
func (d *Driver) journal(all []message) {
	for _, m := range all {
		if m.Info.Role != "assistant" {
			continue
		}
		for _, p := range m.Parts {
			d.journalPart(m, p)
		}
	}
}

// journalPart notes a part once for each of its stages, whatever was noted by a
// pod-api before this one.
func (d *Driver) journalPart(m message, p part) {
	note := func(stage, kind, text string) {
		mark := p.ID + " " + stage
		if text != "" && !d.seen[mark] {
			d.cfg.Journal.Once(mark, kind, text)
		}
		d.seen[mark] = true
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
func (d *Driver) listen(ctx context.Context, wake chan<- struct{}) {
	for ctx.Err() == nil {
		resp, err := d.api.open(ctx, http.MethodGet, "/event", nil, nil)
		if err == nil {
			lines := bufio.NewReaderSize(io.LimitReader(resp.Body, 1<<30), 64<<10)
			for err == nil {
				_, err = lines.ReadSlice('\n')
				if err == bufio.ErrBufferFull { //nolint:errorlint // as returned
					err = nil
				}
				select {
				case wake <- struct{}{}:
				default:
				}
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
