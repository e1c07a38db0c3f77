package podapi

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// State is what the agent is doing.
type State string

// The states of an agent.
const (
	Starting State = "starting"
	Ready    State = "ready" // up, with its session, and told nothing yet
	Working  State = "working"
	Asking   State = "asking"
	Failed   State = "failed"
	// Done is a driver's: the turn ended by itself. Others are told one of the next two.
	Done State = "done"
	// What an agent that is done has done, by what git has, never by its word.
	IdleWithWork State = "idle-with-work"
	IdleWithout  State = "idle-without"
	// Gone is what people are told of an agent whose pod is not there any more.
	Gone State = "gone"
)

// Idle is the state of an agent that is done; work tells whether there is any.
func Idle(work bool) State {
	if work {
		return IdleWithWork
	}
	return IdleWithout
}

// HasWork reads an answer of /git/status: whether the clone holds anything that the
// branch it began from does not, pushed or not, committed or not.
func HasWork(status json.RawMessage) (bool, error) {
	var git struct {
		Ahead    int               `json:"ahead"`
		Unpushed []json.RawMessage `json:"unpushed"`
		Changes  []json.RawMessage `json:"changes"`
	}
	err := json.Unmarshal(status, &git)
	return git.Ahead > 0 || len(git.Unpushed) > 0 || len(git.Changes) > 0, err
}

// Cause is why an agent asks or has failed.
type Cause string

// The causes.
const (
	CauseQuestion    Cause = "question"    // it asked something
	CausePermission  Cause = "permission"  // it wants to be allowed something
	CauseBudget      Cause = "budget"      // what may be spent is spent
	CauseRefused     Cause = "refused"     // the model refused: key, name or request
	CauseLimited     Cause = "limited"     // the model's limit of use is reached
	CauseModel       Cause = "model"       // the model does not answer, or nonsense
	CauseStalled     Cause = "stalled"     // no progress, also after being asked to go on
	CauseInterrupted Cause = "interrupted" // killed in its turn, and did not go on
	CauseSilent      Cause = "silent"      // the agent's server does not answer
	CauseError       Cause = "error"       // anything else that it reported
)

// A Summary is GET /summary.
type Summary struct {
	State    State     `json:"state"`
	Since    time.Time `json:"since"`              // when State last changed, or a turn ended
	Cause    Cause     `json:"cause,omitempty"`    // when asking or failed
	Activity string    `json:"activity,omitempty"` // one line: what it does now
	Message  string    `json:"message,omitempty"`  // its last words
	Question string    `json:"question,omitempty"` // when asking
	Choices  []Choice  `json:"choices,omitempty"`  // when asking, and only these are answers
	Todo     []Todo    `json:"todo,omitempty"`     // its own list, where it keeps one
	Error    string    `json:"error,omitempty"`    // when failed
	Session  string    `json:"session,omitempty"`
	// Mark names what it asks, or the turn that has ended: the same for the same thing,
	// also after a restart.
	Mark string `json:"mark,omitempty"`
	// Version says that the agent is of a version that devaipod was not tested with.
	Version string `json:"version,omitempty"`
	// Blocked is what the gate refused, the newest first.
	Blocked []Block `json:"blocked,omitempty"`
	// Setups are what the containers say of their setup, as far as it is not over or
	// went wrong. Nothing depends on it.
	Setups []Setup `json:"setups,omitempty"`
	// Model is what the gate saw of the model's traffic.
	Model Traffic `json:"model"`
	// Used is what the agents have used of models in all, as the gate counts;
	// nil where nobody does.
	Used *Used `json:"used,omitempty"`
}

// Used is an amount of what a model does. Cost is as people read it: "$0.12".
type Used struct {
	Requests int64   `json:"requests,omitempty"`
	Tokens   int64   `json:"tokens"`
	Cost     string  `json:"cost,omitempty"`
	Seconds  float64 `json:"seconds"` // for which the model worked
	// Budget is what may be used; 0 and "" are no bound.
	Budget *Used `json:"budget,omitempty"`
}

// A Choice is an answer that the agent takes: a message that is its ID, its name or
// its place in the list, from 1.
type Choice struct {
	ID   string `json:"id"`
	Name string `json:"name"`
}

// Choose finds the choice that a person's text means.
func Choose(choices []Choice, text string) (Choice, bool) {
	text = strings.TrimRight(strings.TrimSpace(text), ".!")
	for i, c := range choices {
		if strings.EqualFold(text, c.ID) || strings.EqualFold(text, c.Name) || text == strconv.Itoa(i+1) {
			return c, true
		}
	}
	return Choice{}, false
}

// A Todo is an entry of the agent's own list.
type Todo struct {
	Text   string `json:"text"`
	Status string `json:"status"` // pending, in_progress or completed
}

// A Setup is where a container's setup is: its lifecycle commands.
type Setup struct {
	Container string `json:"container"` // agent or workspace
	Stage     string `json:"stage"`
	Error     string `json:"error,omitempty"`
}

// A Block is a host that the agent was refused, and still would be.
type Block struct {
	Host  string    `json:"host"`
	Port  uint16    `json:"port"`
	Why   string    `json:"why"`
	Allow string    `json:"allow,omitempty"` // the pattern that would allow it, if any does
	Count int64     `json:"count"`
	Last  time.Time `json:"last"`
}

// A Driver runs one agent. Summary may be called at any time; Send and Stop
// once Run has been.
type Driver interface {
	// Run drives the agent until ctx ends.
	Run(ctx context.Context) error
	Summary() Summary
	// Send gives the agent a message; Stop ends its turn.
	Send(ctx context.Context, text string) error
	Stop(ctx context.Context) error
}

// Noted is a driver that can give its agent a message that answers nothing, whatever
// the agent asks.
type Noted interface {
	Note(ctx context.Context, text string) error
}

// Probed is a driver that can tell what of a pod is not as it should be.
type Probed interface {
	// Probes are looked at now, and within ctx.
	Probes(ctx context.Context) []Probe
}

// A Probe is something that a pod needs to be ready.
type Probe struct {
	Name string
	Err  error // nil when it is as it should be
}

// Cloned is a driver that can tell how the agent's clone stands.
type Cloned interface {
	// GitStatus is JSON, as /git/status answers it, or [ErrNothingSaved].
	GitStatus(ctx context.Context) (json.RawMessage, error)
}

// ErrNothingSaved is for a clone that was not saved yet: how it stands is known by what
// is saved.
var ErrNothingSaved = errors.New("nothing of the clone is saved yet")

// Paged is a driver of an agent that has an HTTP server of its own, which /agent/
// leads to.
type Paged interface {
	// Pages is the way there, whatever the URL's host.
	Pages() http.RoundTripper
}

// Clip bounds s to n bytes at the end of a rune.
func Clip(s string, n int) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "…"
}

// Line is s on one line, bounded to n bytes.
func Line(s string, n int) string { return Clip(strings.Join(strings.Fields(s), " "), n) }
