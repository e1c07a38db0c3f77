package broker

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	runnerv1 "code.gitea.io/actions-proto-go/runner/v1"
	"google.golang.org/protobuf/types/known/structpb"

	"codeberg.org/devaipod/devaipod/ci"
	"codeberg.org/devaipod/devaipod/ci/job"
)

var results = map[runnerv1.Result]string{
	runnerv1.Result_RESULT_SUCCESS:   job.Success,
	runnerv1.Result_RESULT_FAILURE:   job.Failure,
	runnerv1.Result_RESULT_CANCELLED: job.Cancelled,
	runnerv1.Result_RESULT_SKIPPED:   job.Skipped,
}

// Bounds on what is kept of a job until it is told.
const (
	maxPending = 8 << 20            // bytes of rows whose step is not known yet
	rowCost    = 64                 // bytes that a row takes beside its text, about
	maxOutputs = 2 * job.MaxOutputs // bytes; what is above job.MaxOutputs is left out, and said to be
)

// A task is a job that waits for the runner, or that it has.
type task struct {
	id    int64
	proto *runnerv1.Task
	done  chan struct{} // closed at its end
	err   error         // after done: what went wrong beside the job
	last  atomic.Int64  // when the runner spoke of it last, Unix nanoseconds; 0 while it waits

	mu        sync.Mutex // held while events are told
	events    func(job.Event)
	over      bool
	cancelled bool
	waited    string // what it was said to wait for

	rows    []string // that came and were not told
	size    int      // bytes of them
	told    int64    // how many were, before these
	current int      // the step that rows belong to
	steps   []step
	outputs map[string]string
	sizes   int // bytes of outputs
}

// A step is how much of one is told.
type step struct{ began, ended bool }

func newTask(j ci.Job, events func(job.Event)) (*task, error) {
	context, err := structpb.NewStruct(j.Spec.Github)
	if err != nil {
		return nil, fmt.Errorf("writing the job's context for the external runner: %w", err)
	}
	m := &runnerv1.Task{
		Id: j.Task, WorkflowPayload: j.Spec.Workflow, Context: context, Secrets: j.Spec.Secrets, Vars: j.Spec.Vars,
		Needs: map[string]*runnerv1.TaskNeed{},
	}
	for id, n := range j.Spec.Needs {
		need := &runnerv1.TaskNeed{Outputs: n.Outputs}
		for result, name := range results {
			if name == n.Result {
				need.Result = result
			}
		}
		m.Needs[id] = need
	}
	return &task{
		id: j.Task, proto: m, done: make(chan struct{}), events: events, current: job.SetUp,
		steps: make([]step, len(j.Steps)), outputs: map[string]string{},
	}, nil
}

// end is the job's, once; nothing is told of it any more.
func (t *task) end(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ends(err)
}

func (t *task) ends(err error) {
	if !t.over {
		t.over, t.err = true, err
		close(t.done)
	}
}

// cancel has the next answer to the runner say that the job is cancelled.
func (t *task) cancel() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.cancelled = true
}

func (t *task) heard() { t.last.Store(time.Now().UnixNano()) }

// silent ends a job of which the runner has said nothing for too long.
func (t *task) silent(most time.Duration) {
	if last := t.last.Load(); last != 0 && time.Since(time.Unix(0, last)) > most {
		t.end(fmt.Errorf("the external runner has said nothing of the job for %s", most))
	}
}

// wait says once what the job waits for.
func (t *task) wait(what string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.waited != what {
		t.waited = what
		t.line(job.SetUp, "::warning::This job waits: "+what)
	}
}

// takenBy says which runner has the job.
func (t *task) takenBy(name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.line(job.SetUp, "This job is run by the external runner "+name)
}

func (t *task) line(step int, text string) {
	if !t.over {
		t.events(job.Event{Time: time.Now(), Step: step, Line: &text})
	}
}

// addRows takes rows of the log from the index-th on, and returns how many it has of all.
// It takes none with a gap before them, and none twice.
func (t *task) addRows(index int64, rows []*runnerv1.LogRow) int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	have := t.told + int64(len(t.rows))
	if index < 0 || index > have || index+int64(len(rows)) <= have {
		return have
	}
	for _, r := range rows[have-index:] {
		text := r.GetContent()
		if len(text) > 4*job.MaxLine { // the rest is cut off with a note
			text = text[:4*job.MaxLine]
		}
		t.rows, t.size = append(t.rows, text), t.size+len(text)+rowCost
	}
	have = t.told + int64(len(t.rows))
	for t.size > maxPending { // they belong to the step that runs, most likely
		t.tellRow()
	}
	return have
}

// tellRow tells the first row that was not told.
func (t *task) tellRow() {
	t.line(t.current, t.rows[0])
	t.size -= len(t.rows[0]) + rowCost
	t.rows[0] = ""
	t.rows, t.told = t.rows[1:], t.told+1
}

// tellRows tells the rows before the index-th.
func (t *task) tellRows(index int64) {
	for len(t.rows) > 0 && t.told < index {
		t.tellRow()
	}
}

// update takes a state, and returns the job's result as the runner is answered.
func (t *task) update(s *runnerv1.TaskState, outputs map[string]string) runnerv1.Result {
	t.mu.Lock()
	defer t.mu.Unlock()
	for k, v := range outputs {
		t.output(k, v)
	}
	known, ended := results[s.GetResult()]
	t.tell(s.GetSteps(), ended)
	switch {
	case ended:
		if !t.over {
			t.events(job.Event{Time: time.Now(), Step: job.Complete, Result: known, Outputs: t.outputs})
		}
		t.ends(nil)
		return s.GetResult()
	case t.cancelled || t.over:
		return runnerv1.Result_RESULT_CANCELLED
	}
	return runnerv1.Result_RESULT_UNSPECIFIED
}

// output keeps one of the job's outputs, if there is room for it.
func (t *task) output(k, v string) {
	if _, known := t.outputs[k]; known {
		return
	}
	if t.sizes+len(k)+len(v) > maxOutputs {
		t.line(t.current, "::warning::An output is left out, as it is too large: "+k)
		return
	}
	t.sizes += len(k) + len(v)
	t.outputs[k] = v
}

// tell makes events of the rows and of the states of steps; all says that nothing more
// will come. The runner sends rows before the state that tells whose they are.
func (t *task) tell(states []*runnerv1.StepState, all bool) {
	for _, s := range states {
		n := int(s.GetId())
		if n < 0 || n >= len(t.steps) || t.steps[n].ended || s.GetStartedAt() == nil && s.GetResult() == 0 {
			continue
		}
		if !t.tellStep(n, s, all) {
			return
		}
	}
	t.tellRows(t.told + int64(len(t.rows)))
}

// tellStep tells what is new of one step; false if rows that it has are still to come.
func (t *task) tellStep(n int, s *runnerv1.StepState, all bool) bool {
	have := t.told + int64(len(t.rows))
	begin, end := s.GetLogIndex(), s.GetLogIndex()+s.GetLogLength()
	if s.GetLogLength() == 0 && s.GetResult() == 0 {
		begin = have // the index is not set before the first row
	}
	t.tellRows(begin)
	if s.GetStartedAt() != nil && s.GetResult() != runnerv1.Result_RESULT_SKIPPED && !t.steps[n].began {
		t.steps[n].began, t.current = true, n
		t.event(job.Event{Time: time.Now(), Step: n, Began: true})
	}
	result, ended := results[s.GetResult()]
	if !ended {
		return true
	}
	if have < end && !all {
		return false
	}
	t.tellRows(end)
	t.steps[n].ended = true
	t.event(job.Event{Time: time.Now(), Step: n, Ended: result})
	if n == len(t.steps)-1 {
		t.current = job.Complete
	}
	return true
}

func (t *task) event(e job.Event) {
	if !t.over {
		t.events(e)
	}
}
