package podapi

import (
	"net/http"
	"time"
)

// Traffic is what the gate has seen of the model.
type Traffic struct {
	InFlight     int       `json:"in_flight"`
	Requests     int64     `json:"requests"`
	LastRequest  time.Time `json:"last_request,omitzero"`
	LastResponse time.Time `json:"last_response,omitzero"`
	Received     int64     `json:"received"`              // bytes of answers that were no errors
	LastStatus   int       `json:"last_status,omitempty"` // HTTP status, 0 when the model did not answer
	LastError    string    `json:"last_error,omitempty"`  // in words, "" when the last request went well
	Failures     int       `json:"failures,omitempty"`    // requests that failed, in a row
	Spent        string    `json:"spent,omitempty"`       // why the budget has no room, "" when it has
}

// Cause sorts a turn that failed: by what the gate saw of the model, and for what
// the gate itself refused, by the status that the agent noted, 0 for none.
func (t Traffic) Cause(noted int) Cause {
	status := t.LastStatus
	if t.LastError == "" {
		status = noted
	}
	switch {
	case status == http.StatusTooManyRequests:
		return CauseLimited
	case status >= 400 && status < 500:
		return CauseRefused
	case t.LastError != "", status >= 500:
		return CauseModel
	}
	return CauseError
}

// Settle is how long all signals must agree that a turn is over.
const Settle = 1500 * time.Millisecond

// How often, and for how long, the model may fail in one turn.
const (
	maxFailures = 12
	maxFailing  = 30 * time.Second
)

// A Failing notices a model that fails for too long: an agent may ask it again
// without end, and each try may cost money. It is of one turn, and not for
// concurrent use.
type Failing struct{ since time.Time }

// Hopeless tells whether that is so now. A short patience is the longest that
// failures are looked on.
func (f *Failing) Hopeless(t Traffic, patience time.Duration) bool {
	if t.Failures == 0 {
		f.since = time.Time{}
		return false
	}
	if f.since.IsZero() {
		f.since = time.Now()
	}
	return t.Failures >= maxFailures && time.Since(f.since) >= min(maxFailing, patience)
}

// A Pulse notices whether something moves. It is not for concurrent use.
type Pulse struct {
	mark  string
	moved time.Time
}

// Still is how long the marks have been the same; a mark changes with all that is
// progress.
func (p *Pulse) Still(mark string) time.Duration {
	if mark != p.mark || p.moved.IsZero() {
		p.mark, p.moved = mark, time.Now()
	}
	return time.Since(p.moved)
}

// Reset begins anew, as after waiting for a person.
func (p *Pulse) Reset() { p.moved = time.Time{} }
