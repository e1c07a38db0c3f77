package worker

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"maps"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/nektos/act/pkg/model"
	"github.com/nektos/act/pkg/runner"

	"codeberg.org/devaipod/devaipod/ci/job"
)

// theJob is a job that act can run.
type theJob struct {
	rc      *runner.RunContext
	timeout time.Duration // 0 for none
}

// newJob makes spec's job, with what is its own below dir.
func newJob(ctx context.Context, spec *job.Spec, dir string) (*theJob, error) {
	run, err := read(spec)
	if err != nil {
		return nil, err
	}
	j, err := begin(spec, run, dir)
	if err != nil {
		return nil, err
	}
	rc := j.rc
	ctx = j.log(ctx)
	rc.ExprEval = rc.NewExpressionEvaluator(ctx)
	if rc.Matrix, err = matrixOf(ctx, rc); err != nil {
		return nil, err
	}
	rc.ExprEval = rc.NewExpressionEvaluator(ctx) // now with the matrix
	if rc.Config.Platforms, err = platforms(ctx, rc, spec.Images); err != nil {
		return nil, err
	}
	rc.JobName = rc.ExprEval.Interpolate(ctx, run.String())
	rc.Name = strings.ToLower(rand.Text()) // in the names of containers and volumes
	j.timeout, err = timeout(spec.Timeout, rc.ExprEval.Interpolate(ctx, run.Job().TimeoutMinutes))
	return j, err
}

// begin makes the job of run, which can be asked what its expressions mean.
func begin(spec *job.Spec, run *model.Run, dir string) (*theJob, error) {
	event, err := json.Marshal(cmp.Or[any](spec.Github["event"], map[string]any{}))
	if err != nil {
		return nil, err
	}
	// act has a constructor for these that runs all jobs of a workflow, in goroutines
	// whose panics nobody catches.
	return &theJob{rc: &runner.RunContext{Config: config(spec, dir), Run: run, EventJSON: string(event), StepResults: stepResults{}}}, nil
}

// log puts the job's logger into ctx.
func (j *theJob) log(ctx context.Context) context.Context {
	return runner.WithJobLogger(ctx, j.rc.Run.JobID, j.rc.JobName, j.rc.Config, &j.rc.Masks, j.rc.Matrix)
}

// timeout is the lesser of what the runner allows and timeout-minutes.
func timeout(most time.Duration, minutes string) (time.Duration, error) {
	if minutes == "" {
		return most, nil
	}
	n, err := strconv.ParseFloat(minutes, 64)
	if err != nil || !(n > 0) {
		return 0, fmt.Errorf("timeout-minutes %q: want a number above 0", minutes)
	}
	if most > 0 && n >= most.Minutes() {
		return most, nil
	}
	return time.Duration(min(n, 1e6) * float64(time.Minute)), nil
}

func config(spec *job.Spec, dir string) *runner.Config {
	workdir := path.Join("/workspace", path.Clean("/"+cmp.Or(text(spec.Github["repository"]), "repository")))
	token := text(spec.Github["token"])
	secrets := map[string]string{}
	if token != "" {
		secrets["GITHUB_TOKEN"] = token
	}
	maps.Copy(secrets, spec.Secrets)
	return &runner.Config{
		Actor:                 text(spec.Github["actor"]),
		Workdir:               workdir,
		ActionCacheDir:        path.Join(dir, "actions"),
		ActionCache:           newActions(spec, dir),
		EventName:             text(spec.Github["event_name"]),
		LogOutput:             true,
		InsecureSecrets:       true, // ours are masked in report
		Env:                   environment(spec),
		Secrets:               secrets,
		Vars:                  spec.Vars,
		Token:                 token,
		ContainerDaemonSocket: "-", // none in the job
		ContainerNetworkMode:  "bridge",
		GitHubInstance:        "github.com",
		NoSkipCheckout:        spec.Dir == "",
		AutoRemove:            true,
	}
}

// contexts of github that are in each step's environment, as GITHUB_NAME.
var contexts = []string{
	"repository", "repository_owner", "repository_id", "repository_owner_id", "ref", "ref_name", "ref_type", "ref_protected",
	"sha", "head_ref", "base_ref", "run_id", "run_number", "run_attempt", "actor", "actor_id", "triggering_actor", "event_name",
	"server_url", "api_url", "graphql_url", "retention_days", "workflow_ref", "workflow_sha",
}

// environment is what each step finds, and where act takes the github context from.
func environment(spec *job.Spec) map[string]string {
	env := map[string]string{}
	for _, name := range contexts {
		if v := text(spec.Github[name]); v != "" {
			env["GITHUB_"+strings.ToUpper(name)] = v
		}
	}
	env["SHA_REF"] = env["GITHUB_SHA"] // by that name act wants it
	maps.Copy(env, spec.Env)
	return env
}

// text is a scalar of the github context.
func text(v any) string {
	switch v := v.(type) {
	case string:
		return v
	case json.Number, bool:
		return fmt.Sprint(v)
	}
	return ""
}
