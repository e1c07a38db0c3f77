package ci

import (
	"context"
	"errors"
	"strings"
	"time"

	runnerv1 "code.gitea.io/actions-proto-go/runner/v1"
	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"codeberg.org/devaipod/devaipod/ci/job"
)

const (
	pace        = 300 * time.Millisecond // between two messages about a job, at least
	maxRetry    = 10                     // heartbeats between two tries while the forge is away
	lastTry     = 5 * time.Second        // for a call while the service ends
	outputTries = 5
)

var results = map[string]runnerv1.Result{
	job.Success:   runnerv1.Result_RESULT_SUCCESS,
	job.Failure:   runnerv1.Result_RESULT_FAILURE,
	job.Cancelled: runnerv1.Result_RESULT_CANCELLED,
	job.Skipped:   runnerv1.Result_RESULT_SKIPPED,
}

// A sender knows how much of a job the forge has got.
type sender struct {
	*reporter
	ack, off int64 // rows that it has, and the bytes of them in the file
	skew     int64 // rows that it has and the file has lost
	known    bool  // ack is what the forge said
	outputs  map[string]bool
	tries    int // of sending outputs
	beat     time.Time
	told     bool // the result, too
}

// send tells the forge of the job until it knows all, trying again while it is away. It
// calls cancel when the forge has no use for the job any more. Once ctx is done and the
// job has ended, it tries once more; the rest is told when the service is back.
func (p *reporter) send(ctx context.Context, cancel context.CancelCauseFunc) {
	defer p.file.Close()
	s := &sender{reporter: p, outputs: map[string]bool{}}
	retry := pace
	for {
		stopping := ctx.Err() != nil
		done := p.over()
		err := s.once(ctx, cancel)
		switch {
		case s.told:
			p.mu.Lock()
			p.forget(ctx)
			p.mu.Unlock()
			p.r.Kick() // the forge gives the jobs now that need this one
			return
		case err != nil && gone(err):
			p.log.Warn("the forge does not know a job any more", "err", err)
			cancel(ErrGone)
			p.awaitEnd()
			p.mu.Lock()
			p.forget(ctx)
			p.mu.Unlock()
			return
		case err != nil && stopping && done:
			p.log.Warn("the forge is told of a job when the service is back", "err", err)
			return
		case err != nil:
			if !stopping {
				p.log.Warn("telling the forge of a job; trying again", "err", err)
			}
			retry = min(2*retry, maxRetry*p.r.Heartbeat)
		default:
			retry = pace
		}
		s.pause(ctx, retry, err == nil)
	}
}

// over says whether the job has ended.
func (p *reporter) over() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.st.Result != ""
}

// awaitEnd returns when the job has ended.
func (p *reporter) awaitEnd() {
	for !p.over() {
		<-p.wake
	}
}

// pause waits for d, cut short when the service ends, then (if idle may be) until there is
// something new or the next heartbeat is due.
func (s *sender) pause(ctx context.Context, d time.Duration, idle bool) {
	done := ctx.Done()
	if ctx.Err() != nil {
		done, d = nil, pace
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-done:
		return
	}
	if !idle {
		return
	}
	t.Reset(time.Until(s.beat.Add(s.r.Heartbeat)))
	select {
	case <-s.wake:
	case <-t.C:
	case <-done:
	}
}

// once sends what is new: rows first, then the state.
func (s *sender) once(ctx context.Context, cancel context.CancelCauseFunc) error {
	if ctx.Err() != nil {
		var stop context.CancelFunc
		ctx, stop = context.WithTimeout(context.WithoutCancel(ctx), lastTry)
		defer stop()
	}
	for {
		more, err := s.logs(ctx)
		if err != nil {
			return err
		}
		// A log that is far behind does not keep a cancel from being heard.
		if due := time.Since(s.beat) >= s.r.Heartbeat; !more || due {
			if err := s.state(ctx, cancel, due, !more); err != nil {
				return err
			}
		}
		if !more {
			return nil
		}
	}
}

// logs sends one batch of rows and says whether there are more.
func (s *sender) logs(ctx context.Context) (more bool, err error) {
	s.mu.Lock()
	rows, size, done := s.rows, s.size, s.st.Result != ""
	s.mu.Unlock()
	if !s.known {
		if err := s.ask(ctx, rows); err != nil {
			return false, err
		}
	}
	if s.ack >= rows {
		return false, nil
	}
	batch, n, err := s.batch(s.off, size)
	if err != nil {
		return false, err
	}
	req := &runnerv1.UpdateLogRequest{
		TaskId: s.st.Task, Index: s.ack + s.skew, Rows: make([]*runnerv1.LogRow, len(batch)),
		NoMore: done && s.ack+int64(len(batch)) == rows,
	}
	for i, row := range batch {
		at, text, _ := strings.Cut(row, " ")
		t, err := time.Parse(time.RFC3339Nano, at)
		if err != nil {
			t = time.Now()
		}
		req.Rows[i] = &runnerv1.LogRow{Time: timestamppb.New(t), Content: text}
	}
	resp, err := s.r.client.UpdateLog(ctx, connect.NewRequest(req))
	if err != nil && archived(err) {
		s.ack = rows
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return s.acked(resp.Msg.GetAckIndex()-s.skew, s.ack+int64(len(batch)), n, rows)
}

// acked goes on from the row that the forge has asked for.
func (s *sender) acked(ack, want, n, rows int64) (more bool, err error) {
	switch {
	case ack == want:
		s.ack, s.off = ack, s.off+n
	case ack == s.ack:
		return false, errors.New("the forge took no rows of a log")
	default:
		if s.ack, s.off, err = lines(s.file, max(0, min(ack, rows))); err != nil {
			return false, err
		}
	}
	return s.ack < rows, nil
}

// ask finds out which rows the forge has: of a task that another process began to tell.
func (s *sender) ask(ctx context.Context, rows int64) error {
	resp, err := s.r.client.UpdateLog(ctx, connect.NewRequest(&runnerv1.UpdateLogRequest{TaskId: s.st.Task}))
	if err != nil {
		return err
	}
	ack := resp.Msg.GetAckIndex()
	s.mu.Lock()
	fresh := s.fresh
	s.mu.Unlock()
	if fresh && ack >= rows && rows > 0 {
		// It has rows that our file has lost; our last one comes after them.
		s.skew = ack - rows + 1
		ack = rows - 1
	}
	s.known = true
	s.ack, s.off, err = lines(s.file, min(ack, rows))
	return err
}

// state sends the state if it is new or due. The result is not sent before all rows and
// outputs are: the forge ends the log with it, and starts jobs that need the outputs.
func (s *sender) state(ctx context.Context, cancel context.CancelCauseFunc, due, all bool) error {
	s.mu.Lock()
	if !due && !s.dirty {
		s.mu.Unlock()
		return nil
	}
	s.dirty = false
	req := s.request()
	final := s.st.Result != "" && all && s.ack == s.rows
	s.mu.Unlock()
	for final && len(req.Outputs) > 0 && s.tries < outputTries {
		s.tries++
		if err := s.update(ctx, req, cancel); err != nil {
			return err
		}
		req = s.request()
	}
	if final {
		req.State.Result = results[s.st.Result]
		req.State.StoppedAt = timestamppb.New(s.st.Ended)
	}
	if err := s.update(ctx, req, cancel); err != nil {
		return err
	}
	s.told = final
	return nil
}

// request is the state as it is now, without the result. Once the job has ended, the state
// does not change any more and may be read without the lock.
func (s *sender) request() *runnerv1.UpdateTaskRequest {
	state := &runnerv1.TaskState{Id: s.st.Task, StartedAt: timestamppb.New(s.st.Started)}
	for i, p := range s.st.Progress {
		if p.Began.IsZero() {
			continue
		}
		step := &runnerv1.StepState{
			Id: int64(i), Result: results[p.Result], StartedAt: timestamppb.New(p.Began),
			LogIndex: p.Index, LogLength: p.Length,
		}
		if p.Result != "" {
			step.StoppedAt = timestamppb.New(p.Ended)
		}
		state.Steps = append(state.Steps, step)
	}
	req := &runnerv1.UpdateTaskRequest{State: state, Outputs: map[string]string{}}
	for k, v := range s.st.Outputs {
		if !s.outputs[k] {
			req.Outputs[k] = v
		}
	}
	return req
}

// update sends a state, and hears whether the forge has ended the task.
func (s *sender) update(ctx context.Context, req *runnerv1.UpdateTaskRequest, cancel context.CancelCauseFunc) error {
	resp, err := s.r.client.UpdateTask(ctx, connect.NewRequest(req))
	if err != nil {
		s.mu.Lock()
		s.dirty = true
		s.mu.Unlock()
		return err
	}
	s.beat = time.Now()
	for _, k := range resp.Msg.GetSentOutputs() {
		s.outputs[k] = true
	}
	switch result := resp.Msg.GetState().GetResult(); {
	case req.State.Result != runnerv1.Result_RESULT_UNSPECIFIED || result == runnerv1.Result_RESULT_UNSPECIFIED:
	case result == runnerv1.Result_RESULT_CANCELLED:
		cancel(ErrCancelled)
	default:
		cancel(ErrGone)
	}
	return nil
}
