package ci_test

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	runnerv1 "code.gitea.io/actions-proto-go/runner/v1"
	"google.golang.org/protobuf/types/known/structpb"

	"codeberg.org/devaipod/devaipod/ci"
	"codeberg.org/devaipod/devaipod/ci/broker"
	"codeberg.org/devaipod/devaipod/ci/broker/brokertest"
	"codeberg.org/devaipod/devaipod/ci/job"
)

// brought is a broker, and a stand-in for a runner that serves it; given is told of the tasks.
func brought(t *testing.T, label string, given func(*runnerv1.Task)) *broker.Broker {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "external")
	b, err := broker.New(broker.Config{Dir: dir, Labels: []string{label}, Forge: http.NotFoundHandler(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(b.Handler())
	t.Cleanup(s.Close)
	token, err := broker.Token(dir)
	if err != nil {
		t.Fatal(err)
	}
	r, err := brokertest.Register(t.Context(), s.URL, token, "box", label)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- r.ServeEach(ctx, func(task *runnerv1.Task) {
			given(task)
			if err := r.RunTask(ctx, task); err != nil {
				t.Errorf("task %d: %v", task.GetId(), err)
			}
		})
	}()
	t.Cleanup(func() { cancel(); <-ended })
	return b
}

// S7: what an agent has pushed never gets to a runner that gives jobs the network and the
// machine that it likes.
func TestNoJobOfAnAgentReachesTheExternalRunner(t *testing.T) {
	f := newFakeForge(t)
	var outside, inside []int64
	b := brought(t, "x", func(task *runnerv1.Task) { f.with(func() { outside = append(outside, task.GetId()) }) })
	sandbox := &fakeExecutor{run: func(_ context.Context, j ci.Job, events func(job.Event)) error {
		f.with(func() { inside = append(inside, j.Task) })
		events(job.Event{Result: job.Success})
		return nil
	}}
	c := config(t, f.URL, f.token, "x", b.Or(sandbox))
	r, _ := start(t, c)
	add := func(id int64, workflow string, pairs ...any) {
		g, err := structpb.NewStruct(task("", append([]any{"token", "the-token-of-the-forge"}, pairs...)...).Github)
		if err != nil {
			t.Fatal(err)
		}
		f.with(func() {
			f.version++
			f.queue = append(f.queue, &runnerv1.Task{Id: id, WorkflowPayload: []byte(workflow), Context: g, Secrets: map[string]string{"KEY": "s3cret"}})
		})
	}
	const open, secret = "on: push\njobs: {j: {steps: [{run: 'echo run by sh'}]}}", "on: push\njobs: {j: {steps: [{run: 'echo ${{ secrets.KEY }}'}]}}"
	add(1, open)
	add(2, open, "ref", "refs/heads/agent/1-x")
	add(3, open, "actor", "robot")
	add(4, secret, "ref", "refs/heads/agent/1-x") // needs approval
	add(5, open, "event_name", "pull_request", "event.pull_request.head.repo.id", 8.0)
	add(6, secret)
	logs := map[int64]string{}
	for id := range int64(6) {
		rows, _ := f.ended(t, r, id+1)
		logs[id+1] = strings.Join(rows, "\n")
	}
	f.with(func() {
		slices.Sort(outside)
		slices.Sort(inside)
		if !slices.Equal(outside, []int64{1, 6}) || !slices.Equal(inside, []int64{2, 3, 5}) {
			t.Errorf("outside: %v, in the sandbox: %v", outside, inside)
		}
	})
	if !strings.Contains(logs[1], "run by the external runner box") || !strings.Contains(logs[1], "run by sh") || !strings.Contains(logs[4], "needs approval") {
		t.Errorf("%v", logs)
	}
	if !strings.Contains(logs[6], "***") || strings.Contains(logs[6], "s3cret") {
		t.Errorf("a secret that the runner did not mask: %q", logs[6])
	}
}
