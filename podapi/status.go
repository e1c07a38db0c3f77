package podapi

import (
	"cmp"
	"encoding/json"
	"fmt"
	"sync"
	"time"
)

// A Status is where a driver keeps what its agent does. Its methods are safe for
// concurrent use.
type Status struct {
	mu      sync.Mutex
	sum     Summary
	journal *Journal
}

// NewStatus is one of an agent that is starting; changes of its state go into j.
func NewStatus(j *Journal) *Status {
	return &Status{sum: Summary{State: Starting, Since: time.Now().UTC()}, journal: j}
}

// Get is the summary as it was set last.
func (s *Status) Get() Summary {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sum
}

// Set stores a summary, and journals a change of state and each thing that is asked.
func (s *Status) Set(sum Summary) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sum.Since = s.sum.Since
	idle := sum.State == IdleWithWork || sum.State == IdleWithout
	if sum.State != s.sum.State || idle && sum.Mark != s.sum.Mark { // a turn may be too short to be seen
		sum.Since = time.Now().UTC()
	}
	if sum.State != s.sum.State || sum.State == Asking && sum.Mark != s.sum.Mark {
		text := string(sum.State)
		if more := sum.Error + sum.Question; more != "" {
			text += ": " + more
		}
		for i, c := range sum.Choices {
			text += fmt.Sprintf("\n%d. %s", i+1, c.Name)
		}
		s.journal.Add(EventState, text)
	}
	s.sum = sum
}

// FillTimes sets those of a driver's times that are 0: between two looks, with no
// progress in a turn, and until an agent answers at all, which its setup comes before.
func FillTimes(poll, stall, silence *time.Duration, setup time.Duration) {
	*poll = cmp.Or(*poll, time.Second)
	*stall = cmp.Or(*stall, 10*time.Minute)
	*silence = cmp.Or(*silence, max(*stall, 2*time.Minute)+setup)
}

// Telling is the telling part of what a tool was called with, "" for none.
func Telling(input json.RawMessage) string {
	var in map[string]any
	if json.Unmarshal(input, &in) != nil {
		return ""
	}
	for _, key := range []string{"command", "filePath", "path", "pattern", "url", "description"} {
		if v, ok := in[key].(string); ok {
			return v
		}
	}
	return ""
}
