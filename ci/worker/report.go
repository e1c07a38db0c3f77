package worker

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nektos/act/pkg/runner"
	"github.com/sirupsen/logrus"

	"codeberg.org/devaipod/devaipod/ci/job"
)

// A report makes events of what act logs; it is a hook of act's logger. Its methods
// may be called concurrently.
type report struct {
	cancel context.CancelFunc // nobody listens any more
	debug  bool               // ::debug:: is shown
	dir    string             // job.Spec's

	mu         sync.Mutex
	out        *json.Encoder
	err        error // of writing
	masks      *masks
	rc         *runner.RunContext
	steps      map[string]int // by id
	at         int            // the step that goes on
	result     map[int]string // so far
	failedAt   map[int]bool   // an error was logged
	cancelled  func() bool
	began      bool   // a step has
	ready      bool   // the job's container is
	last       string // error that was shown
	complained bool   // at all
	summary    string // that a step within an action wrote
}

func newReport(w io.Writer, spec *job.Spec, cancel context.CancelFunc) *report {
	secrets := slices.AppendSeq([]string{text(spec.Github["token"])}, maps.Values(spec.Secrets))
	out := json.NewEncoder(w)
	out.SetEscapeHTML(false)
	r := &report{
		cancel: cancel, debug: spec.Secrets["ACTIONS_STEP_DEBUG"] == "true" || spec.Vars["ACTIONS_STEP_DEBUG"] == "true",
		dir: spec.Dir, out: out, masks: newMasks(secrets...), cancelled: func() bool { return false }, at: job.SetUp, result: map[int]string{}, failedAt: map[int]bool{},
	}
	r.emit(job.Event{Step: job.SetUp, Began: true})
	return r
}

// watch tells r of the job whose log it gets. What fails once ctx has ended does so
// for that.
func (r *report) watch(ctx context.Context, j *theJob) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cancelled, r.rc, r.steps = func() bool { return ctx.Err() != nil }, j.rc, map[string]int{}
	for i, s := range j.rc.Run.Job().Steps {
		r.steps[s.ID] = i
	}
}

func (r *report) emit(e job.Event) {
	if r.err != nil {
		return
	}
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	if r.err = r.out.Encode(e); r.err != nil {
		r.cancel()
	}
}

// failed is why events could not be told.
func (r *report) failed() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return fmt.Errorf("telling what happens: %w", r.err)
	}
	return nil
}

// reached tells whether a step has begun, and whether the job's container was up.
func (r *report) reached() (began, ready bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.began, r.ready
}

// Levels is for logrus: all of them.
func (r *report) Levels() []logrus.Level { return logrus.AllLevels }

// Fire takes an entry of act's log. It never fails.
func (r *report) Fire(e *logrus.Entry) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	step, within, own := r.place(e)
	r.enter(step, e.Time)
	if result, ok := e.Data["stepResult"]; ok && own {
		r.result[r.at] = fmt.Sprint(result)
		if r.at == job.SetUp && r.result[r.at] == job.Success {
			r.ready = true
			r.rc.JobContainer = &bounded{ExecutionsEnvironment: r.rc.JobContainer, dir: r.dir, workdir: r.rc.Config.Workdir}
		}
	}
	switch command, _ := e.Data["command"].(string); {
	case e.Data["raw_output"] == true:
		r.line(e.Time, e.Message)
	case command != "":
		r.command(e, command, within)
	case e.Level <= logrus.ErrorLevel:
		r.fault(e.Time, e.Message)
	case strings.HasPrefix(e.Message, job.BuildLine):
		r.line(e.Time, strings.TrimPrefix(e.Message, job.BuildLine))
	case e.Message == "Failed but continue next step":
		r.line(e.Time, "::warning::The step failed, and the job goes on (continue-on-error)")
	case e.Level <= logrus.InfoLevel && (r.at == job.SetUp || r.at == job.Complete):
		r.text(e.Time, strings.TrimSpace(e.Message))
	}
	return nil
}

// place is the step that an entry is of, whether it is of a step within that one, and
// whether the step's result in it counts.
func (r *report) place(e *logrus.Entry) (step int, within, own bool) {
	if id, _ := e.Data["stepid"].([]string); len(id) == 1 {
		if id[0] == "--complete-job" {
			return job.Complete, false, true
		}
		return job.SetUp, false, true
	}
	ids, _ := e.Data["stepID"].([]string)
	if len(ids) == 0 {
		return r.at, false, false
	}
	switch e.Data["stage"] {
	case "Pre":
		return job.SetUp, len(ids) > 1, false
	case "Main":
		return r.steps[ids[0]], len(ids) > 1, len(ids) == 1
	}
	return job.Complete, len(ids) > 1, false
}

// enter goes on to a step. There is no way back: what comes late is of the step that
// goes on.
func (r *report) enter(step int, at time.Time) {
	if step == r.at || r.at == job.Complete || step != job.Complete && step < r.at {
		return
	}
	r.leave(at)
	if step == job.Complete {
		r.rest(at)
	}
	r.at, r.last, r.summary = step, "", ""
	r.began = r.began || step >= 0
	r.emit(job.Event{Time: at, Step: step, Began: true})
}

// leave tells the result of the step that goes on.
func (r *report) leave(at time.Time) {
	result := r.result[r.at]
	switch {
	case result == "" && r.at >= 0, r.failedAt[r.at]:
		result = job.Failure
	case result == "":
		result = job.Success
	}
	if result == job.Failure && r.cancelled() {
		result = job.Cancelled
	}
	r.result[r.at] = result
	r.emit(job.Event{Time: at, Step: r.at, Ended: result})
}

// rest tells of the steps that never came to begin.
func (r *report) rest(at time.Time) {
	for i := range len(r.steps) {
		if r.result[i] == "" {
			r.emit(job.Event{Time: at, Step: i, Ended: job.Skipped})
			r.result[i] = job.Skipped
		}
	}
}

// command is a line that a program printed for the runner. Those that are the forge's
// to show stay as they are.
func (r *report) command(e *logrus.Entry, command string, within bool) {
	arg, _ := e.Data["arg"].(string)
	raw, _ := e.Data["raw"].(string)
	switch command {
	case "add-mask":
		r.masks.add(arg)
	case "summary":
		content, _ := e.Data["content"].(string)
		r.summarize(e.Time, content, within)
	case "set-output", "set-env", "add-path", "save-state", "add-matcher", "remove-matcher", "stop-commands", "echo":
	case "debug":
		if r.debug {
			r.line(e.Time, raw)
		}
	default:
		if !strings.HasPrefix(raw, "::"+command+"::") || arg != "" || slices.Contains([]string{"group", "endgroup", "notice", "warning", "error"}, command) {
			r.line(e.Time, raw)
		}
	}
}

// summarize tells a summary. act finds that of the last step within an action again
// when the action ends.
func (r *report) summarize(at time.Time, content string, within bool) {
	if !within && content == r.summary {
		return
	}
	if within {
		r.summary = content
	}
	r.emit(job.Event{Time: at, Step: r.at, Summary: cut(r.masks.hide(content), job.MaxSummary, "\n\n(the rest was cut off)")})
}

var exited = regexp.MustCompile(`^exitcode '(\d+)': (?:failure|command not found).*`)

// fault shows what act complains of, once: it tells it at each level of actions.
func (r *report) fault(at time.Time, message string) {
	r.failedAt[r.at], r.complained = true, true
	message = exited.ReplaceAllString(strings.TrimSpace(message), "Process completed with exit code $1.")
	if message == r.last {
		return
	}
	r.last = message
	r.text(at, "::error::"+message)
}

// text is a message of some lines.
func (r *report) text(at time.Time, message string) {
	for line := range strings.Lines(message) {
		r.line(at, line)
	}
}

const cutLine = "… (the rest of the line was cut off)"

func (r *report) line(at time.Time, line string) {
	line = cut(r.masks.hide(strings.TrimRight(line, "\r\n")), job.MaxLine, cutLine)
	r.emit(job.Event{Time: at, Step: r.at, Line: &line})
}

// cut is valid UTF-8 of at most n bytes.
func cut(s string, n int, said string) string {
	if s = strings.ToValidUTF8(s, "\ufffd"); len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n-len(said)], "") + said
}

// say is a line of ours.
func (r *report) say(line string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.text(time.Now(), line)
}

// end tells what became of the job, and of what is left of its steps.
func (r *report) end(o outcome) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	if o.reason != "" {
		o.reason = cut(r.masks.hide(o.reason), 4096, cutLine)
		if !r.complained {
			r.fault(now, o.reason)
		}
	}
	r.leave(now)
	r.rest(now)
	r.emit(job.Event{Time: now, Step: job.Complete, Result: o.result, Reason: o.reason, Outputs: r.outputs(o.outputs)})
	r.cancel()
}

// outputs are those that hold no secret, and fit.
func (r *report) outputs(all map[string]string) map[string]string {
	out, size := map[string]string{}, 0
	for _, name := range slices.Sorted(maps.Keys(all)) {
		value := strings.ToValidUTF8(all[name], "\ufffd")
		switch size += len(name) + len(value); {
		case r.masks.hide(value) != value:
			r.text(time.Now(), "::warning::The output "+name+" was left out: it may contain a secret")
		case size > job.MaxOutputs:
			r.text(time.Now(), fmt.Sprintf("::warning::The output %s was left out: all together have more than %d bytes", name, job.MaxOutputs))
		default:
			out[name] = value
		}
	}
	return out
}
