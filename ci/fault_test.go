package ci_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	runnerv1 "code.gitea.io/actions-proto-go/runner/v1"
	"code.gitea.io/actions-proto-go/runner/v1/runnerv1connect"
	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/structpb"

	"codeberg.org/devaipod/devaipod/ci"
	"codeberg.org/devaipod/devaipod/ci/job"
)

// fakeForge stands for a forge that has faults, which the real one has not when asked.
// It takes rows and states as the real one does.
type fakeForge struct {
	runnerv1connect.UnimplementedRunnerServiceHandler
	URL string

	mu       sync.Mutex
	queue    []*runnerv1.Task
	version  int64
	rows     map[int64][]string
	closed   map[int64]bool
	states   map[int64]*runnerv1.TaskState
	finals   map[int64]int
	outputs  map[string]string
	cancel   bool
	calls    int
	unknown  bool // to it, all runners
	register int
	// fault says what goes wrong with a call, the n-th that is no FetchTask: before it is
	// served, or with its answer.
	fault func(call string, n int) (before, lost error)
}

func newFakeForge(t *testing.T) *fakeForge {
	f := &fakeForge{rows: map[int64][]string{}, closed: map[int64]bool{}, states: map[int64]*runnerv1.TaskState{}, finals: map[int64]int{}, outputs: map[string]string{}, version: 1}
	_, h := runnerv1connect.NewRunnerServiceHandler(f)
	s := httptest.NewServer(http.StripPrefix("/api/actions", h))
	t.Cleanup(s.Close)
	f.URL = s.URL
	return f
}

func (f *fakeForge) token(context.Context, int64) (string, error) { return "registration", nil }

// serve serves one call under the lock, with the faults that are asked for.
func serve[T any](f *fakeForge, call string, answer func() (*T, error)) (*connect.Response[T], error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if call != "FetchTask" { // which come as they like
		f.calls++
	}
	var lost error
	if f.fault != nil {
		var before error
		if before, lost = f.fault(call, f.calls); before != nil {
			return nil, before
		}
	}
	if f.unknown && call != "Register" {
		return nil, errors.New("rpc error: code = Unauthenticated desc = unregistered runner")
	}
	m, err := answer()
	if err == nil {
		err = lost
	}
	return connect.NewResponse(m), err
}

func (f *fakeForge) Register(_ context.Context, _ *connect.Request[runnerv1.RegisterRequest]) (*connect.Response[runnerv1.RegisterResponse], error) {
	return serve(f, "Register", func() (*runnerv1.RegisterResponse, error) {
		f.register++
		f.unknown = false
		return &runnerv1.RegisterResponse{Runner: &runnerv1.Runner{Uuid: fmt.Sprint(f.register), Token: "t"}}, nil
	})
}

func (f *fakeForge) Declare(context.Context, *connect.Request[runnerv1.DeclareRequest]) (*connect.Response[runnerv1.DeclareResponse], error) {
	return serve(f, "Declare", func() (*runnerv1.DeclareResponse, error) { return &runnerv1.DeclareResponse{}, nil })
}

func (f *fakeForge) FetchTask(_ context.Context, r *connect.Request[runnerv1.FetchTaskRequest]) (*connect.Response[runnerv1.FetchTaskResponse], error) {
	return serve(f, "FetchTask", func() (*runnerv1.FetchTaskResponse, error) {
		resp := &runnerv1.FetchTaskResponse{TasksVersion: f.version}
		if r.Msg.TasksVersion != f.version && len(f.queue) > 0 {
			resp.Task, f.queue = f.queue[0], f.queue[1:]
		}
		return resp, nil
	})
}

func (f *fakeForge) UpdateLog(_ context.Context, r *connect.Request[runnerv1.UpdateLogRequest]) (*connect.Response[runnerv1.UpdateLogResponse], error) {
	return serve(f, "UpdateLog", func() (*runnerv1.UpdateLogResponse, error) {
		id, ack := r.Msg.TaskId, int64(len(f.rows[r.Msg.TaskId]))
		n := int64(len(r.Msg.Rows))
		if n == 0 || r.Msg.Index > ack || r.Msg.Index+n <= ack {
			return &runnerv1.UpdateLogResponse{AckIndex: ack}, nil
		}
		if f.closed[id] {
			return nil, errors.New("rpc error: code = AlreadyExists desc = log file has been archived")
		}
		for _, row := range r.Msg.Rows[ack-r.Msg.Index:] {
			f.rows[id] = append(f.rows[id], row.Content)
		}
		f.closed[id] = r.Msg.NoMore
		return &runnerv1.UpdateLogResponse{AckIndex: int64(len(f.rows[id]))}, nil
	})
}

func (f *fakeForge) UpdateTask(_ context.Context, r *connect.Request[runnerv1.UpdateTaskRequest]) (*connect.Response[runnerv1.UpdateTaskResponse], error) {
	return serve(f, "UpdateTask", func() (*runnerv1.UpdateTaskResponse, error) {
		id := r.Msg.State.Id
		resp := &runnerv1.UpdateTaskResponse{State: &runnerv1.TaskState{Id: id}}
		for k, v := range r.Msg.Outputs {
			f.outputs[k] = v
		}
		for k := range f.outputs {
			resp.SentOutputs = append(resp.SentOutputs, k)
		}
		if f.finals[id] == 0 {
			f.states[id] = r.Msg.State
		}
		if r.Msg.State.Result != 0 {
			f.finals[id]++
		} else if f.cancel {
			resp.State.Result = runnerv1.Result_RESULT_CANCELLED
		}
		return resp, nil
	})
}

// add queues a task of a workflow.
func (f *fakeForge) add(t *testing.T, id int64, secrets map[string]string) {
	t.Helper()
	g, err := structpb.NewStruct(task("").Github)
	if err != nil {
		t.Fatal(err)
	}
	g.Fields["token"] = structpb.NewStringValue("the-token-of-the-forge")
	f.mu.Lock()
	defer f.mu.Unlock()
	f.version++
	f.queue = append(f.queue, &runnerv1.Task{Id: id, WorkflowPayload: []byte(single), Context: g, Secrets: secrets})
}

func (f *fakeForge) with(do func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	do()
}

// ended waits until task id has ended, and returns its log and state.
func (f *fakeForge) ended(t *testing.T, r *ci.Runner, id int64) (rows []string, st *runnerv1.TaskState) {
	t.Helper()
	eventually(t, func() bool {
		left, err := r.Store().Running()
		f.mu.Lock()
		defer f.mu.Unlock()
		rows, st = f.rows[id], f.states[id]
		return err == nil && len(left) == 0 && f.finals[id] > 0 && f.closed[id]
	})
	return rows, st
}

func TestFaultsOfTheWayToTheForgeLoseNothingAndTellNothingTwice(t *testing.T) {
	bad := errors.New("status 500")
	down, failed := false, 0
	for name, fault := range map[string]func(call string, n int) (error, error){
		"every second call fails": func(call string, n int) (error, error) {
			return map[bool]error{true: bad}[n%2 == 0 && call != "FetchTask"], nil
		},
		"every second answer is lost": func(call string, n int) (error, error) {
			return nil, map[bool]error{true: bad}[n%2 == 0 && call != "FetchTask"]
		},
		"down midway": func(call string, _ int) (error, error) {
			if !down || call == "FetchTask" {
				return nil, nil
			}
			failed++
			return bad, nil
		},
		"it is slow": func(call string, _ int) (error, error) { time.Sleep(time.Millisecond); return nil, nil },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeForge(t)
			f.fault = fault
			down = false
			ex := &fakeExecutor{run: func(_ context.Context, _ ci.Job, events func(job.Event)) error {
				events(job.Event{Step: 0, Began: true})
				for i := range 3000 {
					if i == 1000 {
						f.with(func() { down = true })
						if name == "down midway" {
							eventually(t, func() bool { f.mu.Lock(); defer f.mu.Unlock(); return failed > 1 })
						}
					}
					if i == 2000 {
						f.with(func() { down = false })
					}
					events(line(0, fmt.Sprint("line ", i)))
				}
				events(job.Event{Step: 0, Ended: job.Success})
				events(job.Event{Result: job.Success, Outputs: map[string]string{"a": "b"}})
				return nil
			}}
			r, _ := start(t, config(t, f.URL, f.token, "x", ex))
			f.add(t, 1, nil)
			r.Kick()
			rows, st := f.ended(t, r, 1)
			if len(rows) != 3001 || rows[0] != "line 0" || rows[2999] != "line 2999" || rows[3000] != "Job succeeded" {
				t.Errorf("%d rows", len(rows))
			}
			if s := st.Steps[0]; st.Result != runnerv1.Result_RESULT_SUCCESS || s.LogIndex != 0 || s.LogLength != 3000 || s.Result != st.Result || f.outputs["a"] != "b" {
				t.Errorf("the state: %v, outputs %v", st, f.outputs)
			}
		})
	}
}

func TestAGapInTheLogIsFilled(t *testing.T) {
	f := newFakeForge(t)
	lost := false
	go_ := make(chan struct{})
	f.fault = func(call string, _ int) (error, error) {
		if call == "UpdateLog" && !lost && len(f.rows[1]) == 10 {
			lost, f.rows[1] = true, f.rows[1][:4]
			close(go_)
		}
		return nil, nil
	}
	ex := &fakeExecutor{run: func(_ context.Context, _ ci.Job, events func(job.Event)) error {
		for i := range 10 {
			events(line(0, fmt.Sprint(i)))
		}
		for n := 10; ; n++ {
			select {
			case <-go_:
				events(job.Event{Result: job.Success})
				return nil
			case <-time.After(10 * time.Millisecond):
				eventually(t, func() bool { f.mu.Lock(); defer f.mu.Unlock(); return len(f.rows[1]) >= 10 || lost })
				events(line(0, fmt.Sprint(n)))
			}
		}
	}}
	r, _ := start(t, config(t, f.URL, f.token, "x", ex))
	f.add(t, 1, nil)
	r.Kick()
	rows, _ := f.ended(t, r, 1)
	for i, row := range rows[:len(rows)-1] {
		if row != fmt.Sprint(i) {
			t.Fatalf("row %d is %q", i, row)
		}
	}
}

func TestALogOfAGigabyteIsCut(t *testing.T) {
	f := newFakeForge(t)
	text := strings.Repeat("x", 50_000)
	ex := &fakeExecutor{run: func(_ context.Context, _ ci.Job, events func(job.Event)) error {
		for range 20_000 {
			events(line(0, text))
		}
		events(job.Event{Step: 0, Ended: job.Failure})
		events(job.Event{Result: job.Failure, Reason: "of its own"})
		return nil
	}}
	c := config(t, f.URL, f.token, "x", ex)
	c.MaxLog = 4 << 20
	r, _ := start(t, c)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f.add(t, 1, nil)
	r.Kick()
	rows, st := f.ended(t, r, 1)
	runtime.GC()
	runtime.ReadMemStats(&after)
	n := len(rows)
	if n > 100 || !strings.Contains(rows[n-2], "The log is cut here") || rows[n-1] != "::error::Job failed: of its own" || st.Result != runnerv1.Result_RESULT_FAILURE {
		t.Errorf("%d rows, the last of them %q, %v", n, rows[n-2:], st.Result)
	}
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 64<<20 {
		t.Errorf("%d bytes more are in use", grown)
	}
	rec, err := r.Store().Get(1)
	if err != nil || len(rec.Tail) > 8<<10 || rec.Failed != "only" {
		t.Errorf("on record: failed %q, %d bytes of log, %v", rec.Failed, len(rec.Tail), err)
	}
}

func TestWhatAJobPrintsIsMadeHarmless(t *testing.T) {
	f := newFakeForge(t)
	hostile := map[string]string{
		"plain\ttext ü":                            "plain\ttext ü",
		"\x1b[1;31mred\x1b[0m":                     "\x1b[1;31mred\x1b[0m",
		"a\x1b[2Jb\x1b[10;10Hc\x1b[?25ld":          "abcd",
		"\x1b]0;title\x07a\x1b]8;;http://x\x1b\\b": "ab",
		"\x1bPq\x1b\\a\x1bcb\x1b(Bc\x1b":           "abc",
		"\x1b]never ended":                         "",
		"a\x00\x08\x7fb":                           "ab",
		"a\u009b2Jb":                               "a2Jb",
		"a\u202eb\u2066c":                          "abc",
		"a\rb\r":                                   "a b",
		"a\nb":                                     "a b",
		"a\xff\xfeb":                               "a��b",
		"my hunter2hunter2!":                       "my ***!",
		"hun\x00ter2hunter2":                       "***",
		"the-token-of-the-forge":                   "***",
		"first line":                               "***",
		"second line, of a secret":                 "***, of a secret",
	}
	var order []string
	ex := &fakeExecutor{run: func(_ context.Context, _ ci.Job, events func(job.Event)) error {
		for in := range hostile {
			order = append(order, in)
			events(line(0, in))
		}
		events(line(0, strings.Repeat("ü", job.MaxLine)))
		events(job.Event{Step: 0, Summary: "# of hunter2hunter2"})
		events(job.Event{Step: 99999, Began: true})
		events(job.Event{Step: -99, Ended: "x"})
		events(job.Event{Result: "nonsense", Reason: "hunter2hunter2\x1b[2J", Outputs: map[string]string{"ok": "1", "secret": "hunter2hunter2", "large": strings.Repeat("x", 2<<20)}})
		return nil
	}}
	r, _ := start(t, config(t, f.URL, f.token, "x", ex))
	f.add(t, 1, map[string]string{"A": "hunter2hunter2", "B": "first line\nsecond line", "C": ""})
	r.Kick()
	rows, st := f.ended(t, r, 1)
	for i, in := range order {
		if rows[i] != hostile[in] {
			t.Errorf("%q became %q", in, rows[i])
		}
	}
	if l := rows[len(order)]; len(l) > job.MaxLine || !strings.HasSuffix(l, " … (cut)") {
		t.Errorf("a long line has %d bytes", len(l))
	}
	if last := rows[len(rows)-1]; last != "::error::Job failed: ***" || st.Result != runnerv1.Result_RESULT_FAILURE {
		t.Errorf("it ended with %q, %v", last, st.Result)
	}
	if len(f.outputs) != 1 || f.outputs["ok"] != "1" {
		t.Errorf("%d outputs were sent", len(f.outputs))
	}
	text, err := os.ReadFile(r.Store().SummaryFile(1))
	if err != nil || string(text) != "# of ***" {
		t.Errorf("the summary is %q, %v", text, err)
	}
	if dir, err := os.ReadFile(r.Store().LogFile(1)); err != nil || strings.Contains(string(dir), "hunter2") {
		t.Errorf("the log file has the secret, %v", err)
	}
}

func TestHoweverAnExecutorEndsTheJobEnds(t *testing.T) {
	for name, c := range map[string]struct {
		run  func(ctx context.Context, j ci.Job, events func(job.Event)) error
		want string
	}{
		"an error": {func(context.Context, ci.Job, func(job.Event)) error { return errors.New("no podman") }, "Job failed: the job could not be run to its end: no podman"},
		"a panic":  {func(context.Context, ci.Job, func(job.Event)) error { panic("oh") }, "what runs jobs broke down; the service's log has more"},
		"nothing":  {func(context.Context, ci.Job, func(job.Event)) error { return nil }, "Job failed: the job ended without a result"},
		"too late": {func(ctx context.Context, _ ci.Job, _ func(job.Event)) error { <-ctx.Done(); return nil }, "Job failed: the job took too long"},
		"never":    {func(context.Context, ci.Job, func(job.Event)) error { time.Sleep(3 * time.Second); return nil }, "Job failed: the job took too long"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeForge(t)
			cfg := config(t, f.URL, f.token, "x", &fakeExecutor{run: c.run})
			cfg.Timeout, cfg.Grace = time.Second, 100*time.Millisecond
			r, _ := start(t, cfg)
			f.add(t, 1, nil)
			r.Kick()
			rows, st := f.ended(t, r, 1)
			if last := rows[len(rows)-1]; !strings.Contains(last, c.want) || st.Result != runnerv1.Result_RESULT_FAILURE {
				t.Errorf("it ended with %q, %v", last, st.Result)
			}
		})
	}
}

func TestAJobsEndIsToldWhileWhatItHadIsRemoved(t *testing.T) {
	f := newFakeForge(t)
	removed := make(chan struct{})
	ex := &fakeExecutor{run: func(_ context.Context, _ ci.Job, e func(job.Event)) error {
		oneStep(e, job.Success)
		<-removed
		return errors.New("it can't be removed")
	}}
	cfg := config(t, f.URL, f.token, "x", ex)
	cfg.Jobs = 1
	r, _ := start(t, cfg)
	f.add(t, 1, nil)
	f.add(t, 2, nil)
	r.Kick()
	if rows, st := f.ended(t, r, 1); st.Result != runnerv1.Result_RESULT_SUCCESS || rows[len(rows)-1] != "Job succeeded" {
		t.Errorf("%v %q", st.Result, rows)
	}
	r.Kick()
	time.Sleep(100 * time.Millisecond) // in which the next would begin, if it could
	if n := len(ex.seen()); n != 1 {
		t.Errorf("%d jobs have a slot, want 1", n)
	}
	close(removed)
	f.ended(t, r, 2)
	f.with(func() {
		if f.finals[1] != 1 {
			t.Errorf("it was told %d times", f.finals[1])
		}
	})
}

func TestALineIsOfItsStepWhileThatRuns(t *testing.T) {
	f := newFakeForge(t)
	end := make(chan struct{})
	cfg := config(t, f.URL, f.token, "x", &fakeExecutor{run: func(_ context.Context, _ ci.Job, e func(job.Event)) error {
		e(job.Event{Step: 0, Began: true})
		time.Sleep(time.Second) // the state is told
		e(line(0, "one"))
		<-end
		e(job.Event{Result: job.Success})
		return nil
	}})
	cfg.Heartbeat = time.Hour
	r, _ := start(t, cfg)
	f.add(t, 1, nil)
	r.Kick()
	eventually(t, func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		st := f.states[1]
		return st != nil && len(st.Steps) == 1 && st.Steps[0].LogLength == 1
	})
	close(end)
	f.ended(t, r, 1)
}

func TestAStateThatIsDamagedIsStillToldOfOnce(t *testing.T) {
	f := newFakeForge(t)
	c := config(t, f.URL, f.token, "x", &fakeExecutor{})
	if _, err := ci.New(c); err != nil {
		t.Fatal(err)
	}
	f.rows[5] = []string{"what", "was", "told"}
	if err := os.WriteFile(c.Dir+"/tasks/5.json", []byte("{half"), 0o600); err != nil {
		t.Fatal(err)
	}
	r, stop := start(t, c)
	rows, st := f.ended(t, r, 5)
	if len(rows) != 4 || !strings.Contains(rows[3], "the service ended while this job ran") || st.Result != runnerv1.Result_RESULT_FAILURE {
		t.Errorf("%q %v", rows, st)
	}
	eventually(t, func() bool { _, err := os.Stat(c.Dir + "/tasks/5.json"); return os.IsNotExist(err) })
	stop()
	_, stop = start(t, c)
	stop()
	if f.finals[5] != 1 {
		t.Errorf("the end was told %d times", f.finals[5])
	}
}

func TestAServiceThatStopsTellsOfItsJobs(t *testing.T) {
	f := newFakeForge(t)
	began := make(chan struct{})
	ex := &fakeExecutor{run: func(ctx context.Context, _ ci.Job, _ func(job.Event)) error { close(began); <-ctx.Done(); return nil }}
	r, stop := start(t, config(t, f.URL, f.token, "x", ex))
	f.add(t, 1, nil)
	r.Kick()
	<-began
	stop()
	rows, st := f.ended(t, r, 1)
	if rows[len(rows)-1] != "::error::Job failed: the service was stopped" || st.Result != runnerv1.Result_RESULT_FAILURE {
		t.Errorf("%q %v", rows, st)
	}
}

func TestARunnerThatTheForgeHasForgottenRegistersAnew(t *testing.T) {
	f := newFakeForge(t)
	ex := &fakeExecutor{run: func(_ context.Context, _ ci.Job, e func(job.Event)) error { oneStep(e, job.Success); return nil }}
	c := config(t, f.URL, f.token, "x", ex)
	r, stop := start(t, c)
	f.add(t, 1, nil)
	r.Kick()
	f.ended(t, r, 1)
	stop()
	r, _ = start(t, c)
	f.add(t, 2, nil)
	r.Kick()
	f.ended(t, r, 2)
	if f.register != 1 {
		t.Errorf("registered %d times", f.register)
	}
	f.with(func() { f.unknown = true })
	r.Kick()
	eventually(t, func() bool { f.mu.Lock(); defer f.mu.Unlock(); return f.register == 2 && !f.unknown })
	f.add(t, 3, nil)
	r.Kick()
	f.ended(t, r, 3)
	if info, err := os.Stat(c.Dir + "/runners/0.json"); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info, err)
	}
}

func TestNoMoreJobsAreTakenThanThereIsRoomForAndAllInTheirOrder(t *testing.T) {
	f := newFakeForge(t)
	var mu sync.Mutex
	running, most := 0, 0
	ex := &fakeExecutor{run: func(_ context.Context, _ ci.Job, e func(job.Event)) error {
		mu.Lock()
		running++
		most = max(most, running)
		mu.Unlock()
		runtime.Gosched()
		oneStep(e, job.Success)
		mu.Lock()
		running--
		mu.Unlock()
		return nil
	}}
	c := config(t, f.URL, f.token, "x", ex)
	c.Records = 5
	r, _ := start(t, c)
	for i := range 12 {
		f.add(t, int64(i+1), nil)
	}
	for i := range 12 {
		f.ended(t, r, int64(i+1))
	}
	if most > 2 {
		t.Errorf("%d at a time", most)
	}
	eventually(t, func() bool { recs, err := r.Store().List(); return err == nil && len(recs) == 5 && recs[0].Task == 12 })
	if files, err := os.ReadDir(c.Dir + "/jobs"); err != nil || len(files) != 10 {
		t.Errorf("%d files of 5 jobs, %v", len(files), err)
	}
}
