package reconcile

import "slices"

// A State is where an issue is in its agent's life. The label agent/<state> and
// our comment tell it; what the pod has of it, podman knows.
type State string

// The states. Gone is an issue of which nothing is known or left; it is where
// each one begins for a loop that was just started.
const (
	Gone     State = ""
	Queued   State = "queued"
	Starting State = "starting"
	Working  State = "working"
	Checking State = "checking"
	Asking   State = "asking"
	Review   State = "review"
	Failed   State = "failed"
	Stopped  State = "stopped"
	Done     State = "done"
	Refused  State = "refused"
)

// A stage is what is true in a state, and what may follow it.
type stage struct {
	label    State  // suffix of the label that tells it, "" for none
	headline string // of our comment
	place    bool   // its agent has one of the agent.max places
	idle     bool   // its agent waits for a person, and its pod may rest
	next     []State
}

// life is the state machine, all of it. The loop goes by what it finds, so that
// most states may be followed by most: what is not here would be a fault. Each
// state leads to Gone: a person may remove a pod at any time.
var life = map[State]stage{
	Gone:     {next: []State{Queued, Starting, Working, Checking, Asking, Review, Failed, Stopped, Done, Refused}},
	Queued:   {label: Queued, headline: "Waiting to start", next: []State{Gone, Starting, Working, Checking, Asking, Review, Failed, Stopped, Done, Refused}},
	Starting: {label: Working, headline: "An agent is working on this", place: true, next: []State{Gone, Queued, Working, Checking, Asking, Review, Failed, Stopped, Done, Refused}},
	Working:  {label: Working, headline: "An agent is working on this", place: true, next: []State{Gone, Queued, Starting, Checking, Asking, Review, Failed, Stopped, Done, Refused}},
	Asking:   {label: Asking, headline: "The agent needs a person", idle: true, next: []State{Gone, Queued, Starting, Working, Checking, Review, Failed, Stopped, Done, Refused}},
	Checking: {label: Working, headline: "The agent is done; its work is being checked", next: []State{Gone, Queued, Starting, Working, Asking, Review, Failed, Stopped, Done, Refused}},
	Review:   {label: Review, headline: "A pull request is ready for review", idle: true, next: []State{Gone, Queued, Starting, Working, Checking, Asking, Failed, Stopped, Done, Refused}},
	Failed:   {label: Failed, headline: "The agent failed", idle: true, next: []State{Gone, Queued, Starting, Working, Checking, Asking, Review, Stopped, Done, Refused}},
	Stopped:  {headline: "Stopped", next: []State{Gone, Queued, Starting, Working, Checking, Asking, Review, Failed, Done, Refused}},
	Done:     {label: Done, headline: "Done", next: []State{Gone, Queued, Starting, Stopped, Refused}},
	Refused:  {headline: "Not started", next: []State{Gone, Queued, Starting, Stopped, Done}},
}

// Waits tells whether nothing goes on in a state until a person does something.
func (s State) Waits() bool { return s != Queued && s != Checking && !life[s].place }

// label is the suffix of the state's label, "" when no label fits.
func (s State) label() State { return life[s].label }

// labeled is the state that an issue's label tells.
func (i Issue) labeled(states func(stage) bool) (State, bool) {
	for s, st := range life {
		if st.label == s && states(st) && slices.Contains(i.Labels, stateScope+string(s)) {
			return s, true
		}
	}
	return Gone, false
}

// walk is called whenever an issue comes to another state, and only there.
func (l *Loop) walk(k Key, from, to State) {
	if from == to {
		return
	}
	l.walked[[2]State{from, to}]++
	if !slices.Contains(life[from].next, to) {
		l.cfg.Log.Error("an issue took a step that its life does not have; please report it", "issue", k.String(), "from", from, "to", to)
	}
}
