package ci

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"codeberg.org/devaipod/devaipod/ci/job"
)

// Bounds on what is kept of one job, beside Config.MaxLog.
const (
	maxRows = 200_000 // the forge keeps an index of all rows, and writes it whole each time
	maxTail = 8 << 10 // bytes
)

// state is what must be told of a task, kept in a file from before the job begins until
// the forge has got all of it.
type state struct {
	Info
	Tier     Tier              `json:"tier"`
	Reasons  []string          `json:"reasons,omitempty"`
	Started  time.Time         `json:"started"`
	Ended    time.Time         `json:"ended"`
	Progress []stepState       `json:"progress"`
	Result   string            `json:"result,omitempty"` // "" while it runs
	Reason   string            `json:"reason,omitempty"`
	Outputs  map[string]string `json:"outputs,omitempty"`
	Failed   string            `json:"failed,omitempty"`
	Tail     string            `json:"tail,omitempty"`
}

// toRecord is what is kept of a job that ended.
func (s state) toRecord() Record {
	return Record{
		Info: s.Info, Tier: s.Tier, Reasons: s.Reasons, Result: s.Result, Reason: s.Reason,
		Failed: s.Failed, Tail: s.Tail, Started: s.Started, Ended: s.Ended,
	}
}

// stepState is how far one step is. Its rows are the log's from Index on.
type stepState struct {
	Began  time.Time `json:"began"`
	Ended  time.Time `json:"ended"`
	Result string    `json:"result,omitempty"`
	Index  int64     `json:"index"`
	Length int64     `json:"length"`
}

// A reporter writes down what happens in one job, and sends it to the forge.
type reporter struct {
	r    *Runner
	log  *slog.Logger
	file *os.File
	wake chan struct{}

	mu      sync.Mutex
	st      state
	secrets []string
	masks   *strings.Replacer
	rows    int64 // of the file
	size    int64 // bytes of it
	cut     bool  // nothing more is written but the end
	current int   // the step that lines belong to, -1 for none
	tail    []byte
	summary int64 // bytes
	dirty   bool  // the state was not told since it changed
	fresh   bool  // the last row was written by this process
}

func newReporter(r *Runner, st state, secrets []string, log *slog.Logger) (*reporter, error) {
	st.Started = time.Now()
	st.Progress = make([]stepState, len(st.Steps))
	if err := writeJSON(r.store.stateFile(st.Task), st); err != nil {
		return nil, err
	}
	p, err := openReporter(r, st, log)
	if err != nil {
		return nil, err
	}
	p.secrets, p.masks = secrets, masker(secrets)
	return p, nil
}

// openReporter goes on with a task whose state was written.
func openReporter(r *Runner, st state, log *slog.Logger) (*reporter, error) {
	f, err := os.OpenFile(r.store.LogFile(st.Task), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	p := &reporter{r: r, log: log, file: f, wake: make(chan struct{}, 1), st: st, masks: masker(nil), current: -1, dirty: true}
	if p.rows, p.size, err = lines(f, -1); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	// What a kill left half written.
	return p, f.Truncate(p.size)
}

// lines counts lines from the start of f, at most limit if that is not negative, and the
// bytes of them.
func lines(f io.ReaderAt, limit int64) (n, size int64, err error) {
	b := bufio.NewReaderSize(io.NewSectionReader(f, 0, 1<<62), 1<<20)
	for n != limit {
		l, err := b.ReadSlice('\n')
		switch {
		case err == io.EOF:
			return n, size, nil
		case err != nil:
			return n, size, err
		}
		n, size = n+1, size+int64(len(l))
	}
	return n, size, nil
}

// mask takes one more secret out of what follows.
func (p *reporter) mask(secret string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.secrets = append(p.secrets, secret)
	p.masks = masker(p.secrets)
}

// judged says in the log how far the job is trusted, and why not further.
func (p *reporter) judged(v Verdict) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.st.Tier, p.st.Reasons = v.Tier, v.Reasons
	if v.Tier == Untrusted {
		p.row("This job runs untrusted, without secrets: " + strings.Join(v.Reasons, "; "))
	}
	p.save()
}

// event writes down what happened. It says whether the event has the job's result.
func (p *reporter) event(e job.Event) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.st.Result != "" {
		return false // it is over
	}
	switch {
	case e.Line != nil:
		if e.Step == job.Complete {
			p.current = -1
		} else {
			p.begin(e.Step)
		}
		p.row(*e.Line)
	case e.Began:
		p.begin(e.Step)
	case e.Ended != "":
		p.end(e.Step, e.Ended)
	case e.Summary != "":
		p.summarize(e.Summary)
	}
	p.wakeUp()
	return e.Result != ""
}

// begin makes step, if it is one that has not begun, the one that rows belong to.
func (p *reporter) begin(step int) {
	if step < 0 || step >= len(p.st.Progress) || !p.st.Progress[step].Began.IsZero() {
		return
	}
	s := &p.st.Progress[step]
	s.Began, s.Index = time.Now(), p.rows
	p.current, p.tail = step, nil
	p.save()
}

func (p *reporter) end(step int, result string) {
	if step < 0 || step >= len(p.st.Progress) || p.st.Progress[step].Result != "" {
		return
	}
	if _, known := results[result]; !known {
		result = job.Failure
	}
	s := &p.st.Progress[step]
	s.Result, s.Ended = result, time.Now()
	if s.Began.IsZero() {
		s.Began, s.Index = s.Ended, p.rows
		if result != job.Skipped {
			p.current, p.tail = step, nil
		}
	}
	if result == job.Failure && p.st.Failed == "" {
		p.st.Failed, p.st.Tail = p.masks.Replace(p.st.Steps[step]), string(p.tail)
	}
	p.save()
}

// row writes one row of the log, within the bounds on all of it.
func (p *reporter) row(line string) {
	if p.cut {
		return
	}
	if len(line) > 4*job.MaxLine {
		line = line[:4*job.MaxLine]
	}
	text := cutLine(p.masks.Replace(Clean(line)))
	if p.size+int64(len(text)) > p.r.MaxLog || p.rows >= maxRows {
		p.cut = true
		text = fmt.Sprintf("::warning::The log is cut here: it is longer than %d bytes or %d lines. The job goes on.", p.r.MaxLog, maxRows)
	}
	p.write(text)
}

// write adds a row to the file. When that fails, as on a full disk, no more is tried but
// the last row.
func (p *reporter) write(text string) {
	row := time.Now().UTC().Format(time.RFC3339Nano) + " " + text + "\n"
	if _, err := p.file.WriteAt([]byte(row), p.size); err != nil {
		p.cut = true
		p.log.Error("writing a job's log", "err", err)
		return
	}
	p.size += int64(len(row))
	p.rows++
	if p.current >= 0 {
		p.st.Progress[p.current].Length++
		p.dirty = true // the forge shows no line of a step before it knows that length
	}
	p.tail = append(append(p.tail, text...), '\n')
	if len(p.tail) > 2*maxTail {
		p.tail = slices.Clone(p.tail[len(p.tail)-maxTail:])
	}
}

// summarize keeps what steps wrote to GITHUB_STEP_SUMMARY, for the forge shows none.
func (p *reporter) summarize(text string) {
	text = p.masks.Replace(strings.ToValidUTF8(text, "�"))
	if p.summary+int64(len(text)) > job.MaxSummary {
		return
	}
	f, err := os.OpenFile(p.r.store.SummaryFile(p.st.Task), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err == nil {
		_, err = f.WriteString(text)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		p.log.Error("writing a job's summary", "err", err)
		return
	}
	p.summary += int64(len(text))
}

// save writes the state down. Where that fails, a kill of the service will lose what is
// new in it, and nothing else.
func (p *reporter) save() {
	p.dirty = true
	if err := writeJSON(p.r.store.stateFile(p.st.Task), p.st); err != nil {
		p.log.Error("writing a job's state", "err", err)
	}
	p.wakeUp()
}

func (p *reporter) wakeUp() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// finish says that the job is over, and whether it was not before: only the first call counts.
func (p *reporter) finish(result, reason string, outputs map[string]string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.st.Result != "" {
		return false
	}
	reason = cutLine(p.masks.Replace(Clean(reason)))
	p.st.Outputs = p.outputs(outputs)
	p.endSteps(result)
	if p.st.Tail == "" && result == job.Failure {
		p.st.Tail = string(p.tail)
	}
	if over := len(p.st.Tail) - maxTail; over > 0 {
		p.st.Tail = strings.ToValidUTF8(p.st.Tail[over:], "")
	}
	p.current = -1
	line := map[string]string{job.Success: "Job succeeded", job.Cancelled: "Job cancelled", job.Skipped: "Job skipped"}[result]
	if line == "" {
		line = "::error::Job failed"
	}
	if reason != "" {
		line += ": " + reason
	}
	// The state is there before the row can be sent, so that whoever goes on with it
	// after a kill knows that the row is the last one.
	p.st.Result, p.st.Reason, p.st.Ended, p.fresh = result, reason, time.Now(), true
	p.write(line)
	p.save()
	p.keep()
	return true
}

// lost ends a job of an earlier process, which may have ended it and not put it on record.
func (p *reporter) lost(reason string) {
	if !p.finish(job.Failure, reason, nil) {
		p.keep()
	}
}

// outputs leaves out what the forge would not take, and what has secrets in it.
func (p *reporter) outputs(all map[string]string) map[string]string {
	kept, size := map[string]string{}, 0
	for _, k := range slices.Sorted(maps.Keys(all)) {
		v := all[k]
		n := len(k) + len(v)
		switch {
		case p.masks.Replace(v) != v || p.masks.Replace(k) != k:
			p.row("::warning::An output is left out, as it has a secret in it: " + k)
		case len(k) > 255 || size+n > job.MaxOutputs:
			p.row("::warning::An output is left out, as it is too large: " + k)
		default:
			size += n
			kept[strings.ToValidUTF8(k, "�")] = strings.ToValidUTF8(v, "�")
		}
	}
	return kept
}

// endSteps gives a result to the steps that have none.
func (p *reporter) endSteps(result string) {
	for i := range p.st.Progress {
		s := &p.st.Progress[i]
		switch {
		case s.Result != "":
			continue
		case result == job.Cancelled:
			s.Result = job.Cancelled
		case s.Began.IsZero():
			s.Result = job.Skipped
		default:
			s.Result = result
			if result == job.Failure && p.st.Failed == "" {
				p.st.Failed, p.st.Tail = p.st.Steps[i], string(p.tail)
			}
		}
		if s.Ended = time.Now(); s.Began.IsZero() {
			s.Began, s.Index = s.Ended, p.rows
		}
	}
}

// keep puts the job on record, once, and tells of it.
func (p *reporter) keep() {
	if _, err := p.r.store.Get(p.st.Task); err == nil {
		return
	}
	rec := p.st.toRecord()
	if err := writeJSON(p.r.store.record(p.st.Task), rec); err != nil {
		p.log.Error("writing a job's record", "err", err)
	}
	if p.r.Ended != nil {
		p.r.Ended(rec)
	}
}

// forget removes the state: the forge has all of it.
func (p *reporter) forget(ctx context.Context) {
	if err := os.Remove(p.r.store.stateFile(p.st.Task)); err != nil {
		p.log.Error("removing a job's state", "err", err)
	}
	if err := p.r.store.prune(p.r.Records); err != nil {
		p.log.Error("removing old jobs from the record", "err", err)
	}
	p.log.DebugContext(ctx, "told the forge all of a job", "result", p.st.Result)
}

// batch reads rows of the file from offset off on, up to size.
func (p *reporter) batch(off, size int64) ([]string, int64, error) {
	const maxBytes, maxBatch = 1 << 20, 5000 // a row is shorter than 1 MiB
	b := make([]byte, min(maxBytes, size-off))
	if _, err := p.file.ReadAt(b, off); err != nil {
		return nil, 0, err
	}
	var rows []string
	var n int64
	for len(rows) < maxBatch {
		i := bytes.IndexByte(b, '\n')
		if i < 0 {
			break
		}
		rows, n = append(rows, string(b[:i])), n+int64(i)+1
		b = b[i+1:]
	}
	return rows, n, nil
}
