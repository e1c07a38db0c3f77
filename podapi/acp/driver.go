// Package acp drives any agent that speaks the Agent Client Protocol, version 1
// (agentclientprotocol.com), on its standard streams, which the shim joins to a
// socket: a connection is a process of the agent.
//
// [Driver] makes one session for a task and gives it the prompt once. What it has
// told the agent is in a book, from which it goes on after a restart: in the same
// session where the agent can load one, else in a new one with the task told again.
// What the agent is doing is worked out from several signals: its process, whether
// a prompt is unanswered, its updates, and the gate's view of the model.
//
// It offers the agent nothing of its own, neither files nor terminals nor MCP
// servers. All that comes from the agent is bounded.
package acp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/coder/acp-go-sdk"

	"codeberg.org/devaipod/devaipod/podapi"
)

// Config is what a [Driver] is made from.
type Config struct {
	Socket string // the agent's standard streams, as control sees it
	Dir    string // the repository, as the agent sees it
	// Book says what the agent has been told.
	Book *podapi.Book
	// Ask has a person asked for what the agent wants to be allowed. Else it is allowed:
	// the pod is the box.
	Ask bool
	// Traffic is the gate's view.
	Traffic func() podapi.Traffic
	// Computes changes while the agent's container computes; nil where nobody knows.
	Computes func() int64
	Journal  *podapi.Journal
	Poll     time.Duration // between two looks; 1 s when 0
	// Stall is how long there may be no progress in a turn; 10 minutes when 0.
	Stall time.Duration
	// Silence is how long the agent may take to start; Stall, and two minutes at
	// least, and Setup when 0.
	Silence time.Duration
	// Setup is how long its container may take before it starts the agent.
	Setup time.Duration
	Log   *slog.Logger
}

// A Driver drives one agent through one task. It implements podapi.Driver.
type Driver struct {
	cfg    Config
	status *podapi.Status
	wake   chan struct{} // something is there to be looked at

	mu   sync.Mutex
	view view // of the turn
	stop bool // a person has asked for the turn's end

	// Of Run's goroutine alone.
	answered time.Time // when the agent had a session last
	urged    bool      // it was asked to go on after a stall
	deaths   int       // of the agent's program before it had a session, in a row
}

// How often in a row the program may end before it has a session, and how long to
// wait between two tries.
const (
	maxDeaths  = 5
	startPoll  = 100 * time.Millisecond
	retryAfter = 2 * time.Second
)

// How long an agent may take to end a turn that it is told to end, and to read what
// it is told.
const (
	cancelWithin = 10 * time.Second
	readWithin   = 20 * time.Second
)

// New returns a driver that does nothing yet.
func New(cfg Config) *Driver {
	if cfg.Computes == nil {
		cfg.Computes = func() int64 { return 0 }
	}
	podapi.FillTimes(&cfg.Poll, &cfg.Stall, &cfg.Silence, cfg.Setup)
	d := &Driver{cfg: cfg, status: podapi.NewStatus(cfg.Journal), wake: make(chan struct{}, 1), answered: time.Now()}
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

// Send gives the agent a message: the answer to what it asks, or else a prompt for
// when its turn is over.
func (d *Driver) Send(_ context.Context, text string) error {
	if !d.chooses(text) { // before the answer, with which the turn may end
		if err := d.cfg.Book.Add(text); err != nil {
			return err
		}
	}
	d.reply(text)
	d.kick()
	return nil
}

// Note implements [podapi.Noted].
func (d *Driver) Note(_ context.Context, text string) error {
	err := d.cfg.Book.Add(text)
	d.kick()
	return err
}

// Stop ends the agent's turn.
func (d *Driver) Stop(context.Context) error {
	if d.cfg.Book.Page().Turn == "" {
		return nil
	}
	d.mu.Lock()
	d.stop = true
	d.mu.Unlock()
	d.kick()
	return nil
}

func (d *Driver) kick() {
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// Run drives the agent until ctx ends. An agent with nothing to do is not started;
// one whose process ends is started again.
func (d *Driver) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		if !d.rest(ctx, nil) {
			continue
		}
		if d.status.Get().State != podapi.Working {
			d.status.Set(podapi.Summary{State: podapi.Starting, Activity: "starting the agent"})
		}
		err := d.live(ctx)
		if ctx.Err() != nil || err == nil {
			continue
		}
		d.cfg.Log.Warn("the agent", "err", err)
		select {
		case <-ctx.Done():
		case <-time.After(d.away(err)):
		}
	}
	return ctx.Err()
}

// rest waits until there is something to do; false when there is not.
func (d *Driver) rest(ctx context.Context, gone <-chan struct{}) bool {
	for d.cfg.Book.Page().Idle() {
		var look <-chan time.Time
		if sum := d.status.Get(); sum.State == podapi.Asking && sum.Cause == podapi.CauseBudget {
			look = time.After(d.cfg.Poll)
		}
		select {
		case <-ctx.Done():
			return false
		case <-gone:
			return false
		case <-d.wake:
		case <-look:
			if d.cfg.Traffic().Spent == "" {
				d.cfg.Journal.Add(podapi.EventText, "there is budget again; asking the agent to go on")
				_ = d.cfg.Book.Add("The budget for the model was used up and has been raised. " + goOn) // the first that waits
			}
		}
	}
	return true
}

// errRefused is an answer of the agent's that trying again does not change.
var errRefused = errors.New("the agent refuses")

// away judges an agent that can't be spoken to, and says when to try again.
func (d *Driver) away(err error) time.Duration {
	var why string
	cause := podapi.CauseSilent
	switch {
	case errors.Is(err, errRefused):
		why, cause = err.Error(), podapi.CauseError
	case d.deaths >= maxDeaths:
		why, cause = fmt.Sprintf("the agent's program ended %d times before it could be spoken to; what it said is in its container's log (devaipod logs --container agent)", d.deaths), podapi.CauseError
	case time.Since(d.answered) > d.cfg.Silence:
		why = fmt.Sprintf("the agent did not start for %s: %v", d.cfg.Silence, err)
	case errors.Is(err, errGone):
		return min(retryAfter, 2*d.cfg.Poll)
	default:
		return startPoll
	}
	d.over(podapi.Summary{State: podapi.Failed, Cause: cause, Error: podapi.Clip(why, 4<<10)})
	d.answered, d.deaths = time.Now(), 0
	return 0
}

// live is one process of the agent, until it ends or there is a reason to end it.
func (d *Driver) live(ctx context.Context) error {
	conn, err := podapi.Dial(ctx, d.cfg.Socket)
	if err != nil {
		return err
	}
	p := newPeer(conn, min(readWithin, d.cfg.Stall), d)
	defer p.close()
	defer d.reset(nil) // what it asked, nobody can answer
	d.deaths++
	loaded, err := d.session(ctx, p)
	if err != nil {
		return err
	}
	d.deaths, d.answered = 0, time.Now()
	if page := d.cfg.Book.Page(); page.Turns == 0 {
		d.status.Set(podapi.Summary{State: podapi.Ready, Session: page.Session, Activity: "getting its task"})
	}
	for {
		text, err := d.message(ctx, p, loaded)
		if err != nil || text == "" {
			return err
		}
		loaded = true
		err = d.turn(ctx, p, text)
		d.answered = time.Now()
		if err != nil {
			return err
		}
	}
}

// session begins to speak with the agent, and finds the task's session or makes it.
func (d *Driver) session(ctx context.Context, p *peer) (loaded bool, err error) {
	var about acp.InitializeResponse
	begin := acp.InitializeRequest{ProtocolVersion: acp.ProtocolVersionNumber, ClientInfo: &acp.Implementation{Name: "devaipod", Version: "1"}}
	if err := p.call(ctx, d.cfg.Silence, acp.AgentMethodInitialize, begin, &about); err != nil {
		return false, refused(err)
	}
	if about.ProtocolVersion != acp.ProtocolVersionNumber {
		return false, fmt.Errorf("%w: it speaks version %d of the Agent Client Protocol, and this is version %d; use a version of it that does", errRefused, about.ProtocolVersion, acp.ProtocolVersionNumber)
	}
	if id := d.cfg.Book.Page().Session; id != "" && about.AgentCapabilities.LoadSession {
		d.reset(&view{session: id, old: true})
		load := acp.LoadSessionRequest{SessionId: acp.SessionId(id), Cwd: d.cfg.Dir, McpServers: []acp.McpServer{}}
		if err = p.call(ctx, d.cfg.Silence, acp.AgentMethodSessionLoad, load, &struct{}{}); err == nil {
			return true, nil
		}
		if said := new(acp.RequestError); !errors.As(err, &said) {
			return false, err
		}
		d.cfg.Journal.Add(podapi.EventError, "the agent does not find its session; it gets the task again in another")
	}
	var made struct { // the SDK's has more, which may be wrong and is not needed
		SessionID string `json:"sessionId"`
	}
	fresh := acp.NewSessionRequest{Cwd: d.cfg.Dir, McpServers: []acp.McpServer{}}
	if err := p.call(ctx, d.cfg.Silence, acp.AgentMethodSessionNew, fresh, &made); err != nil {
		return false, refused(err)
	}
	if made.SessionID == "" || len(made.SessionID) > maxID {
		return false, fmt.Errorf("%w: it made a session without a usable name", errRefused)
	}
	d.cfg.Log.Info("the agent has a session", "session", made.SessionID)
	d.cfg.Book.Change(func(p *podapi.Page) { p.Session = made.SessionID })
	return false, nil
}

// authRequired is the code of ACP's error of that name.
const authRequired = -32000

// refused tells an agent's own error from a broken connection.
func refused(err error) error {
	said := new(acp.RequestError)
	if !errors.As(err, &said) {
		return err
	}
	text := fmt.Sprintf("%s (%d)", said.Message, said.Code)
	if data, err := json.Marshal(said.Data); err == nil && said.Data != nil {
		text += ": " + podapi.Clip(string(data), 1000)
	}
	if said.Code == authRequired {
		text += "; give it what it needs by its command or image: at the gate the model's key is the value of DEVAIPOD_TOKEN (docs/guide.md)"
	}
	return fmt.Errorf("%w: %s", errRefused, text)
}

const (
	goOn        = "Go on with the task from where you were, and push your work when it is done."
	interrupted = "You were interrupted. " + goOn
	began       = "You were interrupted and remember nothing. You may have begun: look at the repository first (git status, git log), then go on. This was your task:\n\n"
)

// message is what the agent is told next; "" when the process is of no use any more.
func (d *Driver) message(ctx context.Context, p *peer, loaded bool) (text string, err error) {
	page := d.cfg.Book.Page()
	if page.Turn != "" && page.Taken { // it was not ended
		if page.Nudged {
			d.over(podapi.Summary{State: podapi.Failed, Cause: podapi.CauseInterrupted, Error: "the agent's turn was interrupted and did not go on when it was asked to"})
			return "", nil
		}
		d.cfg.Journal.Add(podapi.EventError, "the turn was interrupted; asking the agent to go on")
		d.cfg.Book.Change(func(p *podapi.Page) { p.Nudged = true })
		if loaded {
			return interrupted, nil
		}
		return began + d.cfg.Book.Prompt + said(page), nil
	}
	if !d.rest(ctx, p.done) { // it ends when it has nothing to do
		return "", ctx.Err()
	}
	d.cfg.Book.Change(func(p *podapi.Page) {
		if p.Turn == "" && p.Begin() {
			d.urged = false
		}
		page = *p
	})
	if page.Turns > 1 && !loaded { // an agent that was started anew, and can't load a session
		return began + d.cfg.Book.Prompt + said(page), nil
	}
	return page.Turn, nil
}

// said is what a person said after the task.
func said(page podapi.Page) string {
	if page.Turns < 2 {
		return ""
	}
	return "\n\nAnd then a person said:\n\n" + page.Turn
}

// over notes how a turn has ended.
func (d *Driver) over(sum podapi.Summary) {
	d.mu.Lock()
	d.stop = false
	d.mu.Unlock()
	sum.Session = d.cfg.Book.Page().Session
	d.status.Set(d.cfg.Book.End(sum))
}
