// Package worker runs one job of a workflow: [Main] reads a [job.Spec], lets the act
// library run it against a Docker API's socket, and writes [job.Event]s.
//
// It is made for a process of its own. act takes DOCKER_HOST from the environment,
// reads what hostile containers answer, and panics on some of it: what goes wrong here
// ends this job and nothing else. What is asked of Docker is for the socket to judge;
// nothing here keeps a workflow from asking.
//
// A job goes through these hands: read (workflow.go) refuses what can't be run,
// newJob (config.go) tells act who and where it is, bounded (container.go) stands
// between act and the job's container, actions (action.go) fetches what steps use,
// and report (report.go) makes events of what act logs. [Plan] (plan.go) makes jobs of
// whole workflows, as a forge does, for those that run without one.
package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/nektos/act/pkg/common"
	"github.com/nektos/act/pkg/model"
	"github.com/nektos/act/pkg/runner"
	"github.com/sirupsen/logrus"

	"codeberg.org/devaipod/devaipod/ci/job"
)

const (
	maxSpec = 64 << 20 // bytes of a job.Spec

	// grace is how long always() and post steps have once a job is cancelled or out
	// of time; wrapUp is how long act has from then on before it is left behind.
	grace  = 5 * time.Minute
	wrapUp = time.Minute
)

// Main reads a job.Spec from stdin, runs it, and writes job.Events to stdout, each a
// line of JSON. The end of ctx cancels the job as a person would: steps that ask for it
// still run, for some minutes at most. It changes this process's environment.
//
// The last event tells the job's result; then Main returns nil, whatever the result.
// An error says that no result could be told.
func Main(ctx context.Context, stdin io.Reader, stdout io.Writer) error {
	var spec job.Spec
	in := json.NewDecoder(io.LimitReader(stdin, maxSpec))
	in.UseNumber()
	if err := in.Decode(&spec); err != nil {
		return fmt.Errorf("reading the job: %w", err)
	}
	dir, err := os.MkdirTemp("", "devaipod-ci-*")
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r := newReport(stdout, &spec, cancel)
	err = setEnvironment(&spec, dir)
	if err == nil {
		r.end(r.run(ctx, &spec, dir))
	}
	return errors.Join(err, r.failed(), os.RemoveAll(dir))
}

// setEnvironment points act at the job's Docker API, and away from what the machine
// keeps for its owner: credentials of registries, caches.
func setEnvironment(spec *job.Spec, dir string) error {
	var errs []error
	for _, name := range []string{"DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH", "DOCKER_API_VERSION", "DOCKER_CONTEXT", "ACTIONS_RUNTIME_URL", "ACTIONS_RUNTIME_TOKEN", "NORAW"} {
		errs = append(errs, os.Unsetenv(name))
	}
	for name, value := range map[string]string{"DOCKER_HOST": "unix://" + spec.Docker, "DOCKER_CONFIG": filepath.Join(dir, "docker"), "XDG_CACHE_HOME": dir, "TMPDIR": dir} {
		errs = append(errs, os.Setenv(name, value))
	}
	// What act can't decode it would end this process for, without a word on the job.
	model.OnDecodeNodeError = func(node yamlNode, _ any, err error) {
		panic(fmt.Errorf("line %d of the workflow: %w", node.Line, err))
	}
	logrus.SetOutput(io.Discard)
	return errors.Join(errs...)
}

// An outcome is what becomes of a job.
type outcome struct {
	result, reason string
	outputs        map[string]string
}

func refused(err error) outcome {
	return outcome{result: job.Failure, reason: oneLine(err.Error())}
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

// run runs the job. It does not panic.
func (r *report) run(ctx context.Context, spec *job.Spec, dir string) (o outcome) {
	defer func() {
		if p := recover(); p != nil {
			o = refused(fmt.Errorf("the workflow can't be run: %v", p))
		}
	}()
	j, err := newJob(r.logger(context.Background()), spec, dir)
	if err != nil {
		return refused(err)
	}
	r.watch(ctx, j)
	executor, err := j.rc.Executor()
	if err != nil {
		return refused(err)
	}
	why := bound(ctx, times{j.timeout, grace, wrapUp}, func(force, asked context.Context) error {
		force = common.WithJobErrorContainer(common.WithJobCancelContext(force, asked))
		return executor(j.log(r.logger(force)))
	})
	return r.outcome(ctx, j, why)
}

// outcome tells what became of a job that act has run, and err, why it ended.
func (r *report) outcome(ctx context.Context, j *theJob, err error) outcome {
	o := outcome{result: j.rc.Run.Job().Result}
	timedOut := errors.Is(err, errTime)
	switch {
	case timedOut:
		r.say(fmt.Sprintf("::error::The job was ended: it may take %s at most", j.timeout))
		o.result = job.Failure
	case ctx.Err() != nil:
		o.result = job.Cancelled
	case o.result == "":
		o.result = job.Failure
	}
	began, ready := r.reached()
	if ready {
		o.outputs = j.rc.Run.Job().Outputs
	}
	if o.result == job.Failure && !began && err != nil {
		o.reason = oneLine(err.Error())
	}
	return o
}

// times bound a job: how long it may take (0: for ever), how long from its
// cancellation on, and how long it is waited for after that.
type times struct{ job, grace, wrapUp time.Duration }

var (
	errTime   = errors.New("the job took too long")
	errBehind = errors.New("the job did not end when it was told to")
)

// bound calls run with two contexts: asked ends when ctx does or time is up, and asks
// run to come to an end; force ends some time after, and tells it. A run that does not
// listen then is left behind. A panic of run's is an error of bound's.
func bound(ctx context.Context, t times, run func(force, asked context.Context) error) error {
	force, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	asked, ask := context.WithCancelCause(force)
	defer ask(nil)
	defer context.AfterFunc(ctx, func() { ask(context.Cause(ctx)) })()
	if t.job > 0 {
		defer time.AfterFunc(t.job, func() { ask(errTime) }).Stop()
	}
	done := make(chan error, 1)
	go func() {
		defer func() {
			if p := recover(); p != nil {
				done <- fmt.Errorf("the workflow can't be run: %v", p)
			}
		}()
		done <- run(force, asked)
	}()
	err := await(asked, done, t, stop)
	if errors.Is(context.Cause(asked), errTime) {
		err = errors.Join(errTime, err)
	}
	return err
}

func await(asked context.Context, done <-chan error, t times, stop func()) error {
	select {
	case err := <-done:
		return err
	case <-asked.Done():
	}
	select {
	case err := <-done:
		return err
	case <-time.After(t.grace):
	}
	stop()
	select {
	case err := <-done:
		return err
	case <-time.After(t.wrapUp):
		return errBehind
	}
}

// logger gives ctx the loggers that tell r of everything.
func (r *report) logger(ctx context.Context) context.Context {
	return runner.WithJobLoggerFactory(ctx, r)
}

// WithJobLogger is what act asks for a job's logger.
func (r *report) WithJobLogger() *logrus.Logger {
	l := logrus.New()
	l.SetOutput(io.Discard)
	l.SetLevel(logrus.DebugLevel) // that a step was skipped is told so
	l.SetFormatter(silent{})
	l.AddHook(r)
	return l
}

type silent struct{}

func (silent) Format(*logrus.Entry) ([]byte, error) { return nil, nil }
