package broker_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	runnerv1 "code.gitea.io/actions-proto-go/runner/v1"
	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"codeberg.org/devaipod/devaipod/ci"
	"codeberg.org/devaipod/devaipod/ci/broker"
	"codeberg.org/devaipod/devaipod/ci/broker/brokertest"
	"codeberg.org/devaipod/devaipod/ci/job"
)

const (
	success   = runnerv1.Result_RESULT_SUCCESS
	failure   = runnerv1.Result_RESULT_FAILURE
	cancelled = runnerv1.Result_RESULT_CANCELLED
	skipped   = runnerv1.Result_RESULT_SKIPPED
	running   = runnerv1.Result_RESULT_UNSPECIFIED
)

// A world is a broker that is served.
type world struct {
	*broker.Broker
	dir, url string
}

func newWorld(t *testing.T, c broker.Config) *world {
	t.Helper()
	if c.Dir == "" {
		c.Dir = filepath.Join(t.TempDir(), "external")
	}
	c.Labels, c.Log = []string{"linux", "gpu"}, slog.New(slog.DiscardHandler)
	c.Forge = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "the forge at ", r.URL.Path) })
	b, err := broker.New(c)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(b.Handler())
	t.Cleanup(s.Close)
	return &world{b, c.Dir, s.URL}
}

// register registers a runner.
func (w *world) register(t *testing.T, name string) *brokertest.Runner {
	t.Helper()
	token, err := broker.Token(w.dir)
	if err != nil {
		t.Fatal(err)
	}
	r, err := brokertest.Register(t.Context(), w.url, token, name, "linux", "gpu", "more")
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// A run is a job that the broker runs.
type run struct {
	cancel context.CancelCauseFunc
	ended  chan error

	mu     sync.Mutex
	events []string
}

func (w *world) run(t *testing.T, j ci.Job) *run {
	t.Helper()
	ctx, cancel := context.WithCancelCause(t.Context())
	r := &run{cancel: cancel, ended: make(chan error, 1)}
	go func() {
		r.ended <- w.Run(ctx, j, func(e job.Event) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.events = append(r.events, said(e))
		})
	}()
	t.Cleanup(func() { cancel(nil) })
	return r
}

func said(e job.Event) string {
	switch {
	case e.Line != nil:
		return fmt.Sprintf("%d: %s", e.Step, *e.Line)
	case e.Began:
		return fmt.Sprintf("%d begins", e.Step)
	case e.Ended != "":
		return fmt.Sprintf("%d ends: %s", e.Step, e.Ended)
	}
	return fmt.Sprintf("result: %s %v", e.Result, e.Outputs)
}

func (r *run) said() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.events)
}

// err waits for the end of the job.
func (r *run) err(t *testing.T) error {
	t.Helper()
	select {
	case err := <-r.ended:
		return err
	case <-time.After(30 * time.Second):
		t.Fatal("the job has not ended")
		return nil
	}
}

func (r *run) says(t *testing.T, want string) {
	t.Helper()
	eventually(t, func() bool { return strings.Contains(strings.Join(r.said(), "\n"), want) })
}

func eventually(t *testing.T, ok func() bool) {
	t.Helper()
	for range 3000 {
		if ok() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("it did not come to be so within 30 s")
}

func trusted(id int64, steps ...string) ci.Job {
	return ci.Job{Info: ci.Info{Task: id, Steps: steps}, Tier: ci.Trusted, Spec: job.Spec{
		Workflow: []byte("jobs: {j: {steps: [{run: x}]}}"),
		Github:   map[string]any{"token": "the-real-token", "gitea_runtime_token": "runtime", "event": map[string]any{"n": 1.0}},
		Secrets:  map[string]string{"KEY": "s3cret"}, Vars: map[string]string{"V": "v"},
		Needs: map[string]job.Need{"before": {Result: job.Skipped, Outputs: map[string]string{"o": "1"}}},
	}}
}

// fetch asks until there is a task.
func fetch(t *testing.T, r *brokertest.Runner) *runnerv1.Task {
	t.Helper()
	var task *runnerv1.Task
	eventually(t, func() bool {
		got, err := r.Fetch(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		task = got
		return task != nil
	})
	return task
}

func rows(t *testing.T, r *brokertest.Runner, task, index, want int64, rows ...string) {
	t.Helper()
	if got, err := r.Rows(t.Context(), task, index, rows...); err != nil || got != want {
		t.Fatalf("rows from %d on: %d are there, not %d: %v", index, got, want, err)
	}
}

func state(t *testing.T, r *brokertest.Runner, s *runnerv1.TaskState, outputs map[string]string, want runnerv1.Result) {
	t.Helper()
	if got, err := r.State(t.Context(), s, outputs); err != nil || got != want {
		t.Fatalf("the answer to a state: %s, not %s: %v", got, want, err)
	}
}

func step(id, index, length int64, result runnerv1.Result) *runnerv1.StepState {
	s := &runnerv1.StepState{Id: id, LogIndex: index, LogLength: length, Result: result}
	if result != skipped {
		s.StartedAt = timestamppb.Now()
	}
	return s
}

func TestAJobGoesToTheRunnerAsTheForgeGaveItAndItsLogComesBackByStep(t *testing.T) {
	w := newWorld(t, broker.Config{})
	r := w.register(t, "box")
	j := w.run(t, trusted(7, "one", "two", "three"))
	task := fetch(t, r)
	if task.GetId() != 7 || string(task.GetWorkflowPayload()) != "jobs: {j: {steps: [{run: x}]}}" || task.GetSecrets()["KEY"] != "s3cret" || task.GetVars()["V"] != "v" {
		t.Errorf("%v", task)
	}
	if got := task.GetContext().AsMap(); got["token"] != "the-real-token" || got["gitea_runtime_token"] != "runtime" || !reflect.DeepEqual(got["event"], map[string]any{"n": 1.0}) {
		t.Errorf("%v", got)
	}
	if n := task.GetNeeds()["before"]; n.GetResult() != skipped || n.GetOutputs()["o"] != "1" {
		t.Errorf("%v", n)
	}
	if again, err := r.Fetch(t.Context()); again != nil || err != nil {
		t.Fatalf("it was given twice: %v %v", again, err)
	}
	rows(t, r, 7, 0, 3, "set up", "a", "b")
	state(t, r, &runnerv1.TaskState{Id: 7, Steps: []*runnerv1.StepState{step(0, 1, 2, running), {Id: 1}, {Id: 2}}}, nil, running)
	// Rows wait for the state that tells whose they are.
	rows(t, r, 7, 3, 5, "c", "d")
	state(t, r, &runnerv1.TaskState{Id: 7, Steps: []*runnerv1.StepState{step(0, 1, 3, success), step(1, 4, 1, running), {Id: 2}}}, nil, running)
	// What came already is not taken again, and what has a gap before it is not yet.
	rows(t, r, 7, 3, 5, "c", "d")
	rows(t, r, 7, 9, 5, "too far")
	rows(t, r, 7, -1, 5, "before all")
	rows(t, r, 7, 4, 7, "d", "e", "the end")
	state(t, r, &runnerv1.TaskState{Id: 7, Result: failure, Steps: []*runnerv1.StepState{step(0, 1, 3, success), step(1, 4, 2, failure), step(2, 6, 0, skipped)}},
		map[string]string{"out": "put"}, failure)
	if err := j.err(t); err != nil {
		t.Error(err)
	}
	want := []string{
		"-1: This job is run by the external runner box", "-1: set up", "0 begins", "0: a", "0: b", "0: c", "0 ends: success",
		"1 begins", "1: d", "1: e", "1 ends: failure", "2 ends: skipped", "-2: the end", "result: failure map[out:put]",
	}
	if got := j.said(); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	// A last word whose answer was lost is said again, for nothing.
	state(t, r, &runnerv1.TaskState{Id: 7, Result: success}, nil, cancelled)
	if got := j.said(); !reflect.DeepEqual(got, want) {
		t.Errorf("after its end: %q", got)
	}
}

func TestAStepWhoseRowsAreUnderWayEndsAfterThem(t *testing.T) {
	w := newWorld(t, broker.Config{})
	r := w.register(t, "box")
	j := w.run(t, trusted(1, "one", "two"))
	fetch(t, r)
	state(t, r, &runnerv1.TaskState{Id: 1, Steps: []*runnerv1.StepState{step(0, 0, 1, success), step(1, 0, 0, running)}}, nil, running)
	rows(t, r, 1, 0, 1, "late")
	state(t, r, &runnerv1.TaskState{Id: 1, Steps: []*runnerv1.StepState{step(0, 0, 1, success), step(1, 0, 0, running)}}, nil, running)
	state(t, r, &runnerv1.TaskState{Id: 1, Result: success, Steps: []*runnerv1.StepState{step(0, 0, 1, success), step(1, 1, 0, success)}}, nil, success)
	if err := j.err(t); err != nil {
		t.Fatal(err)
	}
	want := []string{"0 begins", "0: late", "0 ends: success", "1 begins", "1 ends: success", "result: success map[]"}
	if got := j.said()[1:]; !reflect.DeepEqual(got, want) {
		t.Errorf("%q", got)
	}
}

func TestAJobThatIsNotTrustedIsRefused(t *testing.T) {
	w := newWorld(t, broker.Config{})
	r := w.register(t, "box")
	for _, tier := range []ci.Tier{ci.Untrusted, ci.NeedsApproval, ""} {
		j := trusted(1, "one")
		j.Tier = tier
		err := w.Run(t.Context(), j, func(e job.Event) { t.Error(said(e)) })
		if err == nil || !strings.Contains(err.Error(), "not trusted") {
			t.Errorf("%q: %v", tier, err)
		}
	}
	if task, err := r.Fetch(t.Context()); task != nil || err != nil {
		t.Errorf("%v %v", task, err)
	}
}

func TestACancelledJobIsCancelledAtTheRunner(t *testing.T) {
	w := newWorld(t, broker.Config{})
	r := w.register(t, "box")
	j := w.run(t, trusted(1, "one"))
	fetch(t, r)
	state(t, r, &runnerv1.TaskState{Id: 1}, nil, running)
	j.cancel(ci.ErrCancelled)
	eventually(t, func() bool {
		got, err := r.State(t.Context(), &runnerv1.TaskState{Id: 1, Steps: []*runnerv1.StepState{step(0, 0, 0, running)}}, nil)
		return err == nil && got == cancelled
	})
	// Its last steps still count.
	rows(t, r, 1, 0, 1, "tidied up")
	state(t, r, &runnerv1.TaskState{Id: 1, Result: cancelled, Steps: []*runnerv1.StepState{step(0, 0, 1, cancelled)}}, nil, cancelled)
	if err := j.err(t); err != nil {
		t.Error(err)
	}
	if got := j.said(); !slices.Contains(got, "0: tidied up") || got[len(got)-1] != "result: cancelled map[]" {
		t.Errorf("%q", got)
	}
}

func TestAJobThatDoesNotEndWhenItIsCancelledIsGivenUp(t *testing.T) {
	w := newWorld(t, broker.Config{Grace: 50 * time.Millisecond})
	r := w.register(t, "box")
	j := w.run(t, trusted(1, "one"))
	fetch(t, r)
	j.cancel(ci.ErrCancelled)
	if err := j.err(t); err == nil || !strings.Contains(err.Error(), "has not ended the job") {
		t.Error(err)
	}
	state(t, r, &runnerv1.TaskState{Id: 1}, nil, cancelled)
}

func TestAJobThatWaitsAndIsCancelledIsGivenToNobody(t *testing.T) {
	w := newWorld(t, broker.Config{})
	j := w.run(t, trusted(1, "one"))
	j.says(t, "-1: ::warning::This job waits: no external runner is registered; `devaipod ci external` tells how to add one")
	j.cancel(ci.ErrTimeout)
	if err := j.err(t); !errors.Is(err, ci.ErrTimeout) {
		t.Error(err)
	}
	if task, err := w.register(t, "box").Fetch(t.Context()); task != nil || err != nil {
		t.Errorf("%v %v", task, err)
	}
}

func TestARunnerThatFallsSilentLosesItsJob(t *testing.T) {
	w := newWorld(t, broker.Config{Silence: 100 * time.Millisecond})
	r := w.register(t, "box")
	j := w.run(t, trusted(1, "one"))
	fetch(t, r)
	if err := j.err(t); err == nil || !strings.Contains(err.Error(), "the external runner has said nothing of the job for 100ms") {
		t.Error(err)
	}
	state(t, r, &runnerv1.TaskState{Id: 1}, nil, cancelled) // when it is back
	waits := w.run(t, trusted(2, "one"))
	waits.says(t, "the external runner box is not connected")
	fetch(t, r)
}

func TestARunnerIsKnownAfterARestartAndItsJobsAreNot(t *testing.T) {
	before := newWorld(t, broker.Config{})
	r := before.register(t, "box")
	j := before.run(t, trusted(1, "one"))
	fetch(t, r)
	j.cancel(ci.ErrStopping)
	if err := j.err(t); !errors.Is(err, ci.ErrStopping) {
		t.Error(err)
	}
	after := newWorld(t, broker.Config{Dir: before.dir})
	r = brokertest.Open(after.url, r.UUID, r.Token)
	rows(t, r, 1, 5, 6, "of before") // or it would try for ever
	state(t, r, &runnerv1.TaskState{Id: 1}, map[string]string{"o": "1"}, cancelled)
	after.run(t, trusted(2, "one"))
	if task := fetch(t, r); task.GetId() != 2 {
		t.Errorf("%v", task)
	}
	if name, err := broker.Registered(before.dir); name != "box" || err != nil {
		t.Errorf("%q %v", name, err)
	}
}

func TestWhoIsNotTheRunnerGetsNothing(t *testing.T) {
	w := newWorld(t, broker.Config{})
	if _, err := brokertest.Register(t.Context(), w.url, "guessed", "box", "linux", "gpu"); connect.CodeOf(err) != connect.CodeUnauthenticated {
		t.Errorf("a wrong registration token: %v", err)
	}
	if _, err := brokertest.Open(w.url, "", "").Fetch(t.Context()); connect.CodeOf(err) != connect.CodeUnauthenticated {
		t.Errorf("before there is a runner: %v", err)
	}
	r := w.register(t, "box")
	w.run(t, trusted(1, "one"))
	for name, other := range map[string]*brokertest.Runner{
		"nobody": brokertest.Open(w.url, "", ""), "a wrong token": brokertest.Open(w.url, r.UUID, r.Token+"x"),
		"no token": brokertest.Open(w.url, r.UUID, ""), "another runner": brokertest.Open(w.url, "x", r.Token),
	} {
		_, fetched := other.Fetch(t.Context())
		_, logged := other.Rows(t.Context(), 1, 0, "x")
		_, told := other.State(t.Context(), &runnerv1.TaskState{Id: 1, Result: success}, nil)
		for _, err := range []error{fetched, logged, told} {
			// What act_runner ends itself by, and our own runner registers anew.
			if connect.CodeOf(err) != connect.CodeUnauthenticated || !strings.Contains(err.Error(), "unregistered runner") {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	if task := fetch(t, r); task.GetId() != 1 {
		t.Errorf("%v", task)
	}
}

func TestWhatIsKeptIsForItsOwnerAlone(t *testing.T) {
	w := newWorld(t, broker.Config{})
	r := w.register(t, "box")
	var files []string
	err := filepath.WalkDir(w.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if d.IsDir() != (info.Mode().Perm() == 0o700) || !d.IsDir() && info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %s", path, info.Mode())
		}
		if d.IsDir() {
			return nil
		}
		files = append(files, strings.TrimPrefix(path, w.dir))
		text, err := os.ReadFile(path)
		if strings.Contains(string(text), r.Token) {
			t.Errorf("%s has the runner's token in it, which its hash does for", path)
		}
		return err
	})
	if err != nil || !reflect.DeepEqual(files, []string{"/registration/token", "/runner.json"}) {
		t.Errorf("%q %v", files, err)
	}
	if err := os.WriteFile(filepath.Join(w.dir, "runner.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = broker.New(broker.Config{Dir: w.dir, Labels: []string{"x"}, Forge: http.NotFoundHandler(), Log: slog.New(slog.DiscardHandler)})
	if err == nil || !strings.Contains(err.Error(), "runner.json") {
		t.Errorf("a damaged file: %v", err)
	}
}

func TestAnotherRegistrationTakesThePlaceOfTheOneBefore(t *testing.T) {
	w := newWorld(t, broker.Config{})
	first := w.register(t, "first")
	lost, waits := w.run(t, trusted(1, "one")), (*run)(nil)
	fetch(t, first)
	waits = w.run(t, trusted(2, "one"))
	second := w.register(t, "second")
	if err := lost.err(t); err == nil || !strings.Contains(err.Error(), "another registration has taken the place") {
		t.Error(err)
	}
	if _, err := first.Fetch(t.Context()); connect.CodeOf(err) != connect.CodeUnauthenticated {
		t.Error(err)
	}
	if task := fetch(t, second); task.GetId() != 2 {
		t.Errorf("%v", task)
	}
	waits.says(t, "run by the external runner second")
}

func TestARunnerHasAllLabelsThatJobsMayAskFor(t *testing.T) {
	w := newWorld(t, broker.Config{})
	token, err := broker.Token(w.dir)
	if err != nil {
		t.Fatal(err)
	}
	_, err = brokertest.Register(t.Context(), w.url, token, "box", "linux:host")
	if connect.CodeOf(err) != connect.CodeInvalidArgument || !strings.Contains(err.Error(), "lacks labels of ci.images: gpu") {
		t.Error(err)
	}
	r := w.register(t, "box")
	_, err = r.Declare(t.Context(), connect.NewRequest(&runnerv1.DeclareRequest{Labels: []string{"gpu"}}))
	if connect.CodeOf(err) != connect.CodeInvalidArgument {
		t.Error(err)
	}
}

func TestWhatARunnerSendsIsBounded(t *testing.T) {
	w := newWorld(t, broker.Config{})
	if _, err := brokertest.Register(t.Context(), w.url, strings.Repeat("x", 100<<10), "box"); connect.CodeOf(err) != connect.CodeResourceExhausted {
		t.Errorf("a long token: %v", err)
	}
	r := w.register(t, "box")
	j := w.run(t, trusted(1, "one", "two"))
	fetch(t, r)
	// More than is kept until a state comes: it is told before.
	line := strings.Repeat("x", 1<<20)
	for n := range int64(20) {
		rows(t, r, 1, n, n+1, line)
	}
	empty := make([]string, 150_000)
	rows(t, r, 1, 20, 20+int64(len(empty)), empty...)
	if got := j.said(); len(got) < 10_000 || len(got[1]) > 300<<10 {
		t.Errorf("%d events, the second one of %d bytes", len(got), len(got[1]))
	}
	// Steps that there are not, and nonsense in those that there are.
	mad := []*runnerv1.StepState{step(-1, 0, 1, success), step(1<<40, 0, 1, success), step(1, 1<<62, 1<<62, 99), step(0, -5, -7, success)}
	state(t, r, &runnerv1.TaskState{Id: 1, Steps: mad}, nil, running)
	big := strings.Repeat("o", 1<<20)
	state(t, r, &runnerv1.TaskState{Id: 1, Result: success}, map[string]string{"a": big, "b": big, "c": big}, success)
	if err := j.err(t); err != nil {
		t.Fatal(err)
	}
	if got := j.said(); !strings.Contains(strings.Join(got[len(got)-4:], "\n"), "An output is left out, as it is too large") || len(got[len(got)-1]) > 2100<<10 {
		t.Errorf("%d bytes of outputs", len(got[len(got)-1]))
	}
}

func TestTheRunnersAddressIsTheForgesForAllElse(t *testing.T) {
	w := newWorld(t, broker.Config{})
	for path, want := range map[string]string{
		"/ada/repo.git/info/refs": "the forge at /ada/repo.git/info/refs", "/api/actions_pipeline/x": "the forge at /api/actions_pipeline/x",
		"/api/actions/other.v1.Service/Call": "404", "/api/actions/": "404",
	} {
		resp, err := http.Get(w.url + path)
		if err != nil {
			t.Fatal(err)
		}
		text := make([]byte, 64)
		n, _ := resp.Body.Read(text)
		resp.Body.Close()
		if !strings.HasPrefix(string(text[:n]), want) {
			t.Errorf("%s: %q", path, text[:n])
		}
	}
}

func TestTheStandInRunsAJobsStepsToTheirEnd(t *testing.T) {
	w := newWorld(t, broker.Config{})
	r := w.register(t, "box")
	j := trusted(1, "one", "two", "three")
	j.Spec.Workflow = []byte("jobs: {j: {steps: [{run: 'echo hello ${{ secrets.KEY }}; echo $GITHUB_TOKEN'}, {run: 'echo no >&2; exit 3'}, {run: echo never}]}}")
	running := w.run(t, j)
	if err := r.RunTask(t.Context(), fetch(t, r)); err != nil {
		t.Fatal(err)
	}
	if err := running.err(t); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"-1: the stand-in begins", "0 begins", "0: hello s3cret", "0: the-real-token", "0 ends: success", "1 begins", "1: no", "1 ends: failure",
		"2 ends: skipped", "-2: the stand-in has ended", "result: failure map[]",
	}
	if got := running.said()[1:]; !reflect.DeepEqual(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}
