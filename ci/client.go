package ci

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	runnerv1 "code.gitea.io/actions-proto-go/runner/v1"
	"code.gitea.io/actions-proto-go/runner/v1/runnerv1connect"
	"connectrpc.com/connect"
)

// Bounds on one call to the forge.
const (
	callTime  = 30 * time.Second
	maxAnswer = 32 << 20 // bytes; a task has a whole event in it
)

// credentials are what the forge gave when the runner was registered.
type credentials struct {
	Forge string `json:"forge"`
	UUID  string `json:"uuid"`
	Token string `json:"token"`
}

// newClient speaks connect with the forge, with the headers that it knows runners by.
func newClient(hc *http.Client, url string, creds func() credentials) runnerv1connect.RunnerServiceClient {
	auth := connect.UnaryInterceptorFunc(func(next connect.UnaryFunc) connect.UnaryFunc {
		return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
			if c := creds(); c.UUID != "" {
				req.Header().Set("x-runner-uuid", c.UUID)
				req.Header().Set("x-runner-token", c.Token)
			}
			ctx, cancel := context.WithTimeout(ctx, callTime)
			defer cancel()
			return next(ctx, req)
		}
	})
	return runnerv1connect.NewRunnerServiceClient(hc, url, connect.WithInterceptors(auth), connect.WithReadMaxBytes(maxAnswer))
}

func (r *Runner) credentials() credentials {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.creds
}

func (r *Runner) credentialsFile() string {
	return filepath.Join(r.Dir, "runners", strconv.FormatInt(r.Repo, 10)+".json")
}

// loadCredentials reads them; those of another forge are none.
func (r *Runner) loadCredentials() error {
	b, err := os.ReadFile(r.credentialsFile())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var c credentials
	if err := json.Unmarshal(b, &c); err != nil || c.Forge != r.Forge {
		r.Log.Warn("the runner is registered anew: what is written of it is of another forge, or damaged", "err", err)
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.creds = c
	return nil
}

// declare says which labels the runner takes, registering it first if the forge does not
// know it.
func (r *Runner) declare(ctx context.Context) error {
	if r.credentials().UUID == "" {
		if err := r.register(ctx); err != nil {
			return err
		}
	}
	_, err := r.client.Declare(ctx, connect.NewRequest(&runnerv1.DeclareRequest{Version: r.Version, Labels: r.Labels}))
	if err != nil && unregistered(err) {
		r.mu.Lock()
		r.creds = credentials{}
		r.mu.Unlock()
	}
	return err
}

func (r *Runner) register(ctx context.Context) error {
	token, err := r.Token(ctx, r.Repo)
	if err != nil {
		return fmt.Errorf("getting a registration token: %w", err)
	}
	resp, err := r.client.Register(ctx, connect.NewRequest(&runnerv1.RegisterRequest{
		Name: r.Name, Token: token, Version: r.Version, Labels: r.Labels,
	}))
	if err != nil {
		return fmt.Errorf("registering the runner: %w", err)
	}
	c := credentials{Forge: r.Forge, UUID: resp.Msg.GetRunner().GetUuid(), Token: resp.Msg.GetRunner().GetToken()}
	if c.UUID == "" || c.Token == "" {
		return errors.New("registering the runner: the forge's answer has no credentials")
	}
	if err := writeJSON(r.credentialsFile(), c); err != nil {
		return err
	}
	r.mu.Lock()
	r.creds = c
	r.mu.Unlock()
	r.Log.Info("registered as a runner", "name", r.Name, "labels", r.Labels)
	return nil
}

// fetch asks for a task; none is nil.
func (r *Runner) fetch(ctx context.Context, version int64) (*Task, int64, error) {
	resp, err := r.client.FetchTask(ctx, connect.NewRequest(&runnerv1.FetchTaskRequest{TasksVersion: version}))
	if err != nil {
		return nil, 0, err
	}
	if resp.Msg.GetTask() == nil {
		return nil, resp.Msg.GetTasksVersion(), nil
	}
	t := newTask(resp.Msg.GetTask())
	t.RepoID = cmp.Or(r.Repo, t.RepoID)
	return t, resp.Msg.GetTasksVersion(), nil
}

// The forge's errors have code unknown and gRPC's text in them.

// unregistered says whether the forge does not know the runner.
func unregistered(err error) bool {
	return connect.CodeOf(err) == connect.CodeUnauthenticated || strings.Contains(err.Error(), "unregistered runner")
}

// gone says whether the forge will never take anything more of a task.
func gone(err error) bool {
	text := err.Error()
	return unregistered(err) || strings.Contains(text, "invalid runner for task") || strings.Contains(text, "resource does not exist") ||
		strings.Contains(text, "is not exist") || strings.Contains(text, "has no row")
}

// archived says whether the forge has closed a log.
func archived(err error) bool { return strings.Contains(err.Error(), "archived") }
