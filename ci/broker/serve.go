package broker

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	pingv1 "code.gitea.io/actions-proto-go/ping/v1"
	"code.gitea.io/actions-proto-go/ping/v1/pingv1connect"
	runnerv1 "code.gitea.io/actions-proto-go/runner/v1"
	"code.gitea.io/actions-proto-go/runner/v1/runnerv1connect"
	"connectrpc.com/connect"
)

// Bounds on one message, bytes: of anybody, and of the runner, whose log may be long when it
// was not taken for a while.
const (
	maxHello   = 64 << 10
	maxMessage = 64 << 20
)

// prefix is where runners look for their API on a forge.
const prefix = "/api/actions"

// Handler serves the runner, as a forge does; whatever else is asked goes to the forge.
func (b *Broker) Handler() http.Handler {
	s := server{b: b}
	_, ping := pingv1connect.NewPingServiceHandler(s, connect.WithReadMaxBytes(maxHello))
	_, hello := runnerv1connect.NewRunnerServiceHandler(s, connect.WithReadMaxBytes(maxHello))
	_, known := runnerv1connect.NewRunnerServiceHandler(s, connect.WithReadMaxBytes(maxMessage))
	mux := http.NewServeMux()
	mux.Handle(prefix+"/", http.StripPrefix(prefix, http.NotFoundHandler()))
	mux.Handle(prefix+"/"+pingv1connect.PingServiceName+"/", http.StripPrefix(prefix, ping))
	mux.Handle(prefix+runnerv1connect.RunnerServiceRegisterProcedure, http.StripPrefix(prefix, hello))
	mux.Handle(prefix+"/"+runnerv1connect.RunnerServiceName+"/", http.StripPrefix(prefix, b.ofRunner(known)))
	mux.Handle("/", b.cfg.Forge)
	return mux
}

// ofRunner lets the registered runner in, before anything is read of what it sends.
func (b *Broker) ofRunner(h http.Handler) http.Handler {
	refuse := connect.NewErrorWriter()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b.mu.Lock()
		is := b.runner.is(r.Header.Get("x-runner-uuid"), r.Header.Get("x-runner-token"))
		if is {
			b.seen = time.Now()
		}
		b.mu.Unlock()
		if !is {
			err := refuse.Write(w, r, connect.NewError(connect.CodeUnauthenticated, errors.New("unregistered runner")))
			if err != nil {
				b.cfg.Log.Debug("refusing a runner", "err", err)
			}
			return
		}
		h.ServeHTTP(w, r)
	})
}

// A server answers the protocol's calls.
type server struct {
	runnerv1connect.UnimplementedRunnerServiceHandler
	b *Broker
}

func (s server) Ping(_ context.Context, r *connect.Request[pingv1.PingRequest]) (*connect.Response[pingv1.PingResponse], error) {
	return connect.NewResponse(&pingv1.PingResponse{Data: "Hello, " + r.Msg.GetData() + "!"}), nil
}

func (s server) Register(_ context.Context, r *connect.Request[runnerv1.RegisterRequest]) (*connect.Response[runnerv1.RegisterResponse], error) {
	if !same(s.b.token, r.Msg.GetToken()) {
		s.b.cfg.Log.Warn("somebody has tried to register an external runner with a wrong token", "from", r.Peer().Addr)
		return nil, connect.NewError(connect.CodeUnauthenticated, errors.New("the registration token is wrong; `devaipod ci external` tells where it is"))
	}
	if err := s.hasLabels(append(r.Msg.GetLabels(), r.Msg.GetAgentLabels()...)); err != nil { //nolint:staticcheck // older runners send these
		return nil, err
	}
	name := strings.ToValidUTF8(r.Msg.GetName(), "")
	if name == "" || len(name) > 255 {
		return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("a runner's name has 1 to 255 bytes"))
	}
	as, token := newRunner(name)
	if err := s.b.replace(as); err != nil {
		s.b.cfg.Log.Error("writing down who the external runner is", "err", err)
		return nil, connect.NewError(connect.CodeInternal, errors.New("the registration can't be written down; the service's log has more"))
	}
	s.b.cfg.Log.Info("an external runner is registered", "name", name, "version", r.Msg.GetVersion())
	return connect.NewResponse(&runnerv1.RegisterResponse{Runner: &runnerv1.Runner{
		Id: 1, Uuid: as.UUID, Token: token, Name: name, Version: r.Msg.GetVersion(), Labels: r.Msg.GetLabels(),
	}}), nil
}

func (s server) Declare(_ context.Context, r *connect.Request[runnerv1.DeclareRequest]) (*connect.Response[runnerv1.DeclareResponse], error) {
	if err := s.hasLabels(r.Msg.GetLabels()); err != nil {
		return nil, err
	}
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	return connect.NewResponse(&runnerv1.DeclareResponse{Runner: &runnerv1.Runner{
		Id: 1, Uuid: s.b.runner.UUID, Name: s.b.runner.Name, Version: r.Msg.GetVersion(), Labels: r.Msg.GetLabels(),
	}}), nil
}

// hasLabels is an error for a runner that would be given jobs that it can't run.
func (s server) hasLabels(have []string) error {
	var missing []string
	for _, want := range s.b.cfg.Labels {
		if !slices.ContainsFunc(have, func(l string) bool { name, _, _ := strings.Cut(l, ":"); return name == want }) {
			missing = append(missing, want)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	return connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("the runner lacks labels of ci.images: %s", strings.Join(missing, ", ")))
}

func (s server) FetchTask(context.Context, *connect.Request[runnerv1.FetchTaskRequest]) (*connect.Response[runnerv1.FetchTaskResponse], error) {
	t, name := s.b.next()
	if t == nil {
		return connect.NewResponse(&runnerv1.FetchTaskResponse{}), nil
	}
	t.takenBy(name)
	return connect.NewResponse(&runnerv1.FetchTaskResponse{Task: t.proto}), nil
}

// UpdateLog takes rows; those of a job that is over are taken and thrown away.
func (s server) UpdateLog(_ context.Context, r *connect.Request[runnerv1.UpdateLogRequest]) (*connect.Response[runnerv1.UpdateLogResponse], error) {
	ack := r.Msg.GetIndex() + int64(len(r.Msg.GetRows()))
	if t := s.b.task(r.Msg.GetTaskId()); t != nil {
		t.heard()
		ack = t.addRows(r.Msg.GetIndex(), r.Msg.GetRows())
	}
	return connect.NewResponse(&runnerv1.UpdateLogResponse{AckIndex: ack}), nil
}

// UpdateTask takes a state. A job that is not known (any more) is cancelled: the service was
// stopped while the runner had it.
func (s server) UpdateTask(_ context.Context, r *connect.Request[runnerv1.UpdateTaskRequest]) (*connect.Response[runnerv1.UpdateTaskResponse], error) {
	state := &runnerv1.TaskState{Id: r.Msg.GetState().GetId(), Result: runnerv1.Result_RESULT_CANCELLED}
	if t := s.b.task(state.Id); t != nil {
		t.heard()
		state.Result = t.update(r.Msg.GetState(), r.Msg.GetOutputs())
	}
	return connect.NewResponse(&runnerv1.UpdateTaskResponse{State: state, SentOutputs: slices.Sorted(maps.Keys(r.Msg.GetOutputs()))}), nil
}
