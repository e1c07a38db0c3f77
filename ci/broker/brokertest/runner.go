// Package brokertest is a stand-in for a runner of the forge's Actions, for tests: act_runner
// and Forgejo's runner are no Go modules that could be had here. A [Runner] speaks their
// protocol, and runs the `run:` of steps by sh where it is itself, nothing else.
package brokertest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	pingv1 "code.gitea.io/actions-proto-go/ping/v1"
	"code.gitea.io/actions-proto-go/ping/v1/pingv1connect"
	runnerv1 "code.gitea.io/actions-proto-go/runner/v1"
	"code.gitea.io/actions-proto-go/runner/v1/runnerv1connect"
	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
	"gopkg.in/yaml.v3"
)

// A Runner is registered at URL, and knows itself by UUID and Token.
type Runner struct {
	runnerv1connect.RunnerServiceClient
	URL, UUID, Token string
}

// Open makes a runner that is registered already.
func Open(url, uuid, token string) *Runner {
	r := &Runner{URL: strings.TrimRight(url, "/"), UUID: uuid, Token: token}
	r.RunnerServiceClient = runnerv1connect.NewRunnerServiceClient(http.DefaultClient, r.URL+"/api/actions", connect.WithInterceptors(
		connect.UnaryInterceptorFunc(func(next connect.UnaryFunc) connect.UnaryFunc {
			return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
				req.Header().Set("x-runner-uuid", r.UUID)
				req.Header().Set("x-runner-token", r.Token)
				return next(ctx, req)
			}
		})))
	return r
}

// Register does what `act_runner register` and the start of its daemon do.
func Register(ctx context.Context, url, token, name string, labels ...string) (*Runner, error) {
	r := Open(url, "", "")
	ping := pingv1connect.NewPingServiceClient(http.DefaultClient, r.URL+"/api/actions")
	if _, err := ping.Ping(ctx, connect.NewRequest(&pingv1.PingRequest{Data: name})); err != nil {
		return nil, err
	}
	got, err := r.RunnerServiceClient.Register(ctx, connect.NewRequest(&runnerv1.RegisterRequest{Name: name, Token: token, Version: "stand-in", Labels: labels}))
	if err != nil {
		return nil, err
	}
	r.UUID, r.Token = got.Msg.GetRunner().GetUuid(), got.Msg.GetRunner().GetToken()
	_, err = r.Declare(ctx, connect.NewRequest(&runnerv1.DeclareRequest{Version: "stand-in", Labels: labels}))
	return r, err
}

// between is the time between two questions, and between two reports.
const between = 100 * time.Millisecond

// Serve runs one task after the other until ctx is done, or the runner is not known any
// more.
func (r *Runner) Serve(ctx context.Context) error {
	return r.ServeEach(ctx, func(t *runnerv1.Task) {
		if err := r.RunTask(ctx, t); err != nil {
			fmt.Fprintln(os.Stderr, "task", t.GetId(), err)
		}
	})
}

// ServeEach is Serve, with do to run each task.
func (r *Runner) ServeEach(ctx context.Context, do func(*runnerv1.Task)) error {
	for ; ctx.Err() == nil; time.Sleep(between) {
		t, err := r.Fetch(ctx)
		if connect.CodeOf(err) == connect.CodeUnauthenticated {
			return err
		}
		if err == nil && t != nil {
			do(t)
		}
	}
	return ctx.Err()
}

// Fetch asks for a task; nil is none.
func (r *Runner) Fetch(ctx context.Context) (*runnerv1.Task, error) {
	got, err := r.FetchTask(ctx, connect.NewRequest(&runnerv1.FetchTaskRequest{}))
	if err != nil {
		return nil, err
	}
	return got.Msg.GetTask(), nil
}

// Rows sends rows of a log, and returns how many are there.
func (r *Runner) Rows(ctx context.Context, task, index int64, rows ...string) (int64, error) {
	m := &runnerv1.UpdateLogRequest{TaskId: task, Index: index}
	for _, text := range rows {
		m.Rows = append(m.Rows, &runnerv1.LogRow{Time: timestamppb.Now(), Content: text})
	}
	got, err := r.UpdateLog(ctx, connect.NewRequest(m))
	if err != nil {
		return 0, err
	}
	return got.Msg.GetAckIndex(), nil
}

// State sends a state, and returns the result that the answer has.
func (r *Runner) State(ctx context.Context, s *runnerv1.TaskState, outputs map[string]string) (runnerv1.Result, error) {
	got, err := r.UpdateTask(ctx, connect.NewRequest(&runnerv1.UpdateTaskRequest{State: s, Outputs: outputs}))
	if err != nil {
		return 0, err
	}
	return got.Msg.GetState().GetResult(), nil
}

// A report is what is told of a task while it runs.
type report struct {
	*Runner
	cancel context.CancelFunc

	mu    sync.Mutex
	state *runnerv1.TaskState
	sent  int64
	rows  []string
}

// RunTask runs the steps of a task's job, in turn, until one fails, and tells of it.
func (r *Runner) RunTask(ctx context.Context, t *runnerv1.Task) error {
	var workflow struct {
		Jobs map[string]struct {
			Steps []struct {
				Run string `yaml:"run"`
			} `yaml:"steps"`
		} `yaml:"jobs"`
	}
	if err := yaml.Unmarshal(t.GetWorkflowPayload(), &workflow); err != nil {
		return err
	}
	stepCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	p := &report{Runner: r, cancel: cancel, state: &runnerv1.TaskState{Id: t.GetId(), StartedAt: timestamppb.Now()}, rows: []string{"the stand-in begins"}}
	result := runnerv1.Result_RESULT_SUCCESS
	for _, j := range workflow.Jobs {
		for n := range j.Steps {
			p.state.Steps = append(p.state.Steps, &runnerv1.StepState{Id: int64(n)})
		}
		for n, s := range j.Steps {
			if result == runnerv1.Result_RESULT_SUCCESS {
				result = p.step(stepCtx, n, filled(s.Run, t.GetSecrets()), r.environment(t))
			} else {
				p.ends(n, runnerv1.Result_RESULT_SKIPPED)
			}
		}
	}
	p.mu.Lock()
	p.rows = append(p.rows, "the stand-in has ended")
	p.state.Result, p.state.StoppedAt = result, timestamppb.Now()
	p.mu.Unlock()
	return p.send(ctx)
}

// filled has the values of secrets in place of their names.
func filled(script string, secrets map[string]string) string {
	for name, value := range secrets {
		script = strings.ReplaceAll(script, "${{ secrets."+name+" }}", value)
	}
	return script
}

// environment is what a step finds in it.
func (r *Runner) environment(t *runnerv1.Task) []string {
	env := append(os.Environ(), "GITHUB_SERVER_URL="+r.URL) // as both runners have it
	for _, key := range []string{"repository", "ref", "sha", "run_id", "token"} {
		env = append(env, "GITHUB_"+strings.ToUpper(key)+"="+t.GetContext().GetFields()[key].GetStringValue())
	}
	return env
}

// step runs one, and tells of it while it runs.
func (p *report) step(ctx context.Context, n int, script string, env []string) runnerv1.Result {
	p.mu.Lock()
	s := p.state.Steps[n]
	s.StartedAt, s.LogIndex = timestamppb.Now(), p.sent+int64(len(p.rows))
	p.mu.Unlock()
	err := p.shell(ctx, s, script, env)
	result := runnerv1.Result_RESULT_SUCCESS
	switch {
	case ctx.Err() != nil:
		result = runnerv1.Result_RESULT_CANCELLED
	case err != nil:
		result = runnerv1.Result_RESULT_FAILURE
	}
	p.ends(n, result)
	return result
}

func (p *report) ends(n int, result runnerv1.Result) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.state.Steps[n]
	if s.StartedAt == nil {
		s.LogIndex = p.sent + int64(len(p.rows))
	}
	s.Result, s.StoppedAt = result, timestamppb.Now()
}

// shell runs a script, whose lines are rows of the step.
func (p *report) shell(ctx context.Context, s *runnerv1.StepState, script string, env []string) error {
	cmd := exec.CommandContext(ctx, "sh", "-ec", script)
	cmd.Env, cmd.SysProcAttr = env, &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		return err
	}
	read := make(chan struct{})
	go func() {
		defer close(read)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			p.mu.Lock()
			p.rows, s.LogLength = append(p.rows, lines.Text()), s.LogLength+1
			p.mu.Unlock()
		}
	}()
	for tick := time.NewTicker(between); ; {
		select {
		case <-read:
			tick.Stop()
			return errors.Join(cmd.Wait(), p.send(context.WithoutCancel(ctx)))
		case <-tick.C:
			if err := p.send(context.WithoutCancel(ctx)); err != nil {
				fmt.Fprintln(os.Stderr, "telling of a task:", err)
			}
		}
	}
}

// send tells what is new: rows first, then the state.
func (p *report) send(ctx context.Context) error {
	p.mu.Lock()
	rows, index, state := p.rows, p.sent, proto.CloneOf(p.state)
	p.mu.Unlock()
	ack, err := p.Rows(ctx, state.GetId(), index, rows...)
	if err != nil {
		return err
	}
	p.mu.Lock()
	p.rows, p.sent = p.rows[ack-index:], ack
	p.mu.Unlock()
	result, err := p.State(ctx, state, nil)
	if result == runnerv1.Result_RESULT_CANCELLED {
		p.cancel()
	}
	return err
}
