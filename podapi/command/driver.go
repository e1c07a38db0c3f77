// Package command drives a plain program that ends: it is run once for the task, and
// again for each message, by the shim (podapi/command/wire). What it puts out is the
// journal; it has done its work when it ends with 0.
//
// [Driver] asks again and again how the run is, so that a control that was started
// again finds the program at work. A run that the shim knows nothing of any more was
// ended with its container, and is begun again, once.
package command

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"codeberg.org/devaipod/devaipod/podapi"
	"codeberg.org/devaipod/devaipod/podapi/command/wire"
)

// Config is what a [Driver] is made from.
type Config struct {
	Socket  string // the shim's, as control sees it
	Book    *podapi.Book
	Traffic func() podapi.Traffic // the gate's view
	// Computes changes while the agent's container computes; nil where nobody knows.
	Computes func() int64
	Journal  *podapi.Journal
	Poll     time.Duration // between two looks; 1 s when 0
	// Stall is how long a run may neither put out anything nor hear from the model, nor compute;
	// 10 minutes when 0.
	Stall time.Duration
	// Silence is how long the shim may not answer; Stall, and two minutes at least,
	// and Setup when 0.
	Silence time.Duration
	// Setup is how long the container may take before its shim answers.
	Setup time.Duration
	Log   *slog.Logger
}

// A Driver drives one program. It implements podapi.Driver.
type Driver struct {
	cfg    Config
	http   *http.Client
	status *podapi.Status
	wake   chan struct{}
	stop   atomic.Bool // a person has asked for the run's end

	// Of Run's goroutine alone.
	answered time.Time // when the shim answered last
	id       string    // of the run that is watched
	at       int64     // the output is read up to here
	rest     []byte    // the beginning of a line
	last     []string  // the last lines
	pulse    podapi.Pulse
	urged    bool
}

const (
	maxLine  = 4 << 10
	maxLast  = 20
	answerIn = 20 * time.Second
)

// New returns a driver that does nothing yet.
func New(cfg Config) *Driver {
	if cfg.Computes == nil {
		cfg.Computes = func() int64 { return 0 }
	}
	podapi.FillTimes(&cfg.Poll, &cfg.Stall, &cfg.Silence, cfg.Setup)
	d := &Driver{cfg: cfg, status: podapi.NewStatus(cfg.Journal), wake: make(chan struct{}, 1), answered: time.Now()}
	d.http = &http.Client{
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }, Timeout: answerIn,
		Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return podapi.Dial(ctx, cfg.Socket)
		}},
	}
	if page := cfg.Book.Page(); page.Idle() {
		d.status.Set(page.Last)
	}
	return d
}

// Summary is the state now.
func (d *Driver) Summary() podapi.Summary {
	s := d.cfg.Book.Page().State(d.status.Get())
	s.Model = d.cfg.Traffic()
	return s
}

// Send has the program run with a message, when no run is under way.
func (d *Driver) Send(_ context.Context, text string) error {
	err := d.cfg.Book.Add(text)
	d.kick()
	return err
}

// Stop ends the run.
func (d *Driver) Stop(context.Context) error {
	d.stop.Store(d.cfg.Book.Page().Turn != "")
	d.kick()
	return nil
}

func (d *Driver) kick() {
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// Run drives the program until ctx ends.
func (d *Driver) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		var again <-chan time.Time
		if page := d.cfg.Book.Page(); !page.Idle() {
			if err := d.look(ctx); err != nil && ctx.Err() == nil {
				d.cfg.Log.Debug("the shim does not answer", "err", err)
				d.away(err)
			}
			again = time.After(d.cfg.Poll)
		} else if page.Last.Cause == podapi.CauseBudget {
			d.budget()
			again = time.After(d.cfg.Poll)
		}
		select {
		case <-ctx.Done():
		case <-d.wake:
		case <-again:
		}
	}
	return ctx.Err()
}

// away notes that the shim does not answer.
func (d *Driver) away(err error) {
	if time.Since(d.answered) > d.cfg.Silence {
		d.over(podapi.Summary{State: podapi.Failed, Cause: podapi.CauseSilent, Error: fmt.Sprintf("the agent's container has not answered for %s: %v", d.cfg.Silence, err)})
		d.answered = time.Now()
	}
}

// budget goes on once there is some.
func (d *Driver) budget() {
	if d.cfg.Traffic().Spent == "" {
		d.cfg.Journal.Add(podapi.EventText, "there is budget again; starting the agent again")
		_ = d.cfg.Book.Add("The budget for the model was used up and has been raised. Go on with the task, and push your work when it is done. It was:\n\n" + d.cfg.Book.Prompt) // the first that waits
	}
}

// runID is what a run is called: the same for the same turn, whoever asks.
func runID(p podapi.Page) string {
	sum := sha256.Sum256([]byte(p.Key))
	id := fmt.Sprintf("%s-%d", hex.EncodeToString(sum[:8]), p.Turns)
	if p.Nudged {
		id += "-again"
	}
	return id
}

// look asks how the run is, and begins it if need be.
func (d *Driver) look(ctx context.Context) error {
	page := d.cfg.Book.Page()
	if page.Turn == "" {
		d.urged = false
		d.cfg.Book.Change(func(p *podapi.Page) { p.Begin(); page = *p })
	}
	id := runID(page)
	if d.id != id {
		d.id, d.at, d.rest, d.last = id, 0, nil, nil
		d.pulse.Reset()
	}
	run, err := d.get(ctx)
	if err != nil {
		return err
	}
	d.answered = time.Now()
	switch {
	case run.ID != id && page.Taken && page.Nudged:
		d.over(podapi.Summary{State: podapi.Failed, Cause: podapi.CauseInterrupted, Error: "the agent's run was interrupted twice"})
		return nil
	case run.ID != id && page.Taken:
		d.cfg.Journal.Add(podapi.EventError, "the run was interrupted; beginning it again")
		d.cfg.Book.Change(func(p *podapi.Page) { p.Nudged, p.Taken = true, false })
		return nil // the next look begins it
	case run.ID != id:
		return d.begin(ctx, id, page)
	}
	if !page.Taken {
		d.cfg.Book.Change(func(p *podapi.Page) { p.Taken = true })
	}
	d.gather(run)
	if run.Running || run.Next < run.Total {
		return d.running(ctx, run)
	}
	d.end(run)
	return nil
}

func (d *Driver) begin(ctx context.Context, id string, page podapi.Page) error {
	d.cfg.Log.Info("starting the agent's program", "run", id)
	if page.Turns == 1 && !page.Nudged {
		d.status.Set(podapi.Summary{State: podapi.Ready, Activity: "getting its task"})
	}
	text := page.Turn
	if page.Turns > 1 && text != d.cfg.Book.Prompt { // it remembers nothing
		text = "You have worked on this task before:\n\n" + d.cfg.Book.Prompt + "\n\nNow a person says:\n\n" + text
	}
	err := d.call(ctx, http.MethodPut, "/run/"+id, text, nil)
	if err == nil {
		d.status.Set(podapi.Summary{State: podapi.Working, Activity: "starting"})
	}
	return err
}

// gather journals whole lines of output.
func (d *Driver) gather(run wire.Run) {
	if skipped := run.Next - int64(len(run.Output)) - d.at; skipped > 0 {
		d.cfg.Journal.Add(podapi.EventError, fmt.Sprintf("%d bytes of output are left out", skipped))
		d.rest = nil
	}
	if run.Next <= d.at { // none, or a shim that lies
		return
	}
	d.at = run.Next
	d.rest = append(d.rest, run.Output...)
	for {
		i := bytes.IndexByte(d.rest, '\n')
		if i < 0 && len(d.rest) <= maxLine {
			return
		}
		if i < 0 || i > maxLine {
			i = maxLine - 1
		}
		d.line(string(d.rest[:i+1]))
		d.rest = d.rest[i+1:]
	}
}

func (d *Driver) line(text string) {
	if text = strings.TrimRight(podapi.Clip(text, maxLine), "\r\n"); text == "" {
		return
	}
	d.cfg.Journal.Add(podapi.EventText, text)
	if d.last = append(d.last, text); len(d.last) > maxLast {
		d.last = d.last[1:]
	}
}

// running looks whether a run moves. One that does not is ended and begun again,
// once; the second time it is given up.
func (d *Driver) running(ctx context.Context, run wire.Run) error {
	sum := podapi.Summary{State: podapi.Working}
	if n := len(d.last); n > 0 {
		sum.Activity = podapi.Line(d.last[n-1], 200)
	}
	stalled := d.pulse.Still(fmt.Sprint(d.cfg.Traffic().Received, " ", run.Total, " ", d.cfg.Computes())) >= d.cfg.Stall
	switch {
	case d.stop.Load():
		sum.State, sum.Cause, sum.Error = podapi.Failed, podapi.CauseError, "the run was ended by a person"
	case stalled && d.urged:
		sum.State, sum.Cause = podapi.Failed, podapi.CauseStalled
		sum.Error = fmt.Sprintf("the agent made no progress for %s, and has been started again once before; it was at: %s", d.cfg.Stall, sum.Activity)
	case stalled:
		d.cfg.Journal.Add(podapi.EventError, fmt.Sprintf("no progress for %s; ending the run and beginning it again", d.cfg.Stall))
		if err := d.call(ctx, http.MethodDelete, "/run", "", nil); err != nil {
			return err
		}
		d.urged = true
		d.cfg.Book.Change(func(p *podapi.Page) { p.Turns, p.Taken = p.Turns+1, false })
		return nil
	default:
		d.status.Set(sum)
		return nil
	}
	err := d.call(ctx, http.MethodDelete, "/run", "", nil)
	if err == nil {
		d.over(sum)
	}
	return err
}

// end judges a run that has ended.
func (d *Driver) end(run wire.Run) {
	d.line(string(d.rest))
	d.rest = nil
	words := strings.Join(d.last, "\n")
	sum := podapi.Summary{State: podapi.Done, Message: podapi.Clip(words, 32<<10)}
	traffic := d.cfg.Traffic()
	switch {
	case run.Error == "" && run.Code == 0:
	case traffic.Spent != "":
		sum.State, sum.Cause, sum.Question = podapi.Asking, podapi.CauseBudget, "The budget is used up: "+traffic.Spent+"."
	case run.Error != "":
		sum.State, sum.Cause, sum.Error = podapi.Failed, podapi.CauseError, "the agent's program can't be started: "+podapi.Clip(run.Error, 1000)
	default:
		sum.State, sum.Cause = podapi.Failed, traffic.Cause(0)
		sum.Error = fmt.Sprintf("the agent's program ended with exit code %d", run.Code)
		if traffic.LastError != "" {
			sum.Error += "; " + traffic.LastError
		}
		if words != "" {
			sum.Error += "; its last lines:\n\n" + podapi.Clip(words, 4<<10)
		}
	}
	d.over(sum)
}

// over notes how a run has ended.
func (d *Driver) over(sum podapi.Summary) {
	d.stop.Store(false)
	d.status.Set(d.cfg.Book.End(sum))
}

func (d *Driver) get(ctx context.Context) (run wire.Run, err error) {
	return run, d.call(ctx, http.MethodGet, fmt.Sprintf("/run?after=%d", d.at), "", &run)
}

// call asks the shim. What answers may be anything.
func (d *Driver) call(ctx context.Context, method, path, body string, out any) error {
	req, err := http.NewRequestWithContext(ctx, method, "http://shim"+path, strings.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := d.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 4*wire.MaxOutput))
	switch {
	case err != nil:
		return err
	case resp.StatusCode < 200 || resp.StatusCode > 299:
		return fmt.Errorf("the shim answered %s: %.300s", resp.Status, text)
	case out == nil:
		return nil
	}
	return json.Unmarshal(text, out)
}
