// Package ci runs the workflows of a forge's repositories: it is an Actions runner inside
// of the service. A [Runner] registers itself with the forge, asks it for tasks, says of
// each how far it may be trusted ([Judge]), has it run by an [Executor], and tells the
// forge what came of it, live.
//
// A task's way: FetchTask gives it; what is told of it later is written down in Dir before
// it begins; its tier is judged; an untrusted one loses its secrets, and its tokens are
// replaced by one that only the door knows; the executor runs it and gives [job.Event]s,
// which become lines of a log file and states of steps, in Dir, too; a [reporter] sends
// from there whatever the forge has not got yet. So a forge that is away for a while, or
// a service that is killed, loses nothing of what was written, and tells nothing twice.
//
// The forge gives a runner the task that has waited longest. So there is a runner for each
// repository ([Runners]), and they take turns with the slots in which jobs run, of which
// there are Config.Jobs: a repository that queues a thousand jobs makes its own ones wait.
//
// A task whose answer was lost on the way to us is unknown here; the forge ends it when
// nothing was told of it for some time (ten minutes).
package ci

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"code.gitea.io/actions-proto-go/runner/v1/runnerv1connect"

	"codeberg.org/devaipod/devaipod/ci/job"
)

// Config of a runner. Zero values have the defaults that are named.
type Config struct {
	Forge   string       // URL of the forge
	HTTP    *http.Client // http.DefaultClient
	Dir     string       // state of the runner alone, made if it is not there
	Name    string       // by which the forge lists it
	Version string       // what it says that it is
	Labels  []string     // of runs-on, which it takes
	Jobs    int          // at a time, 2
	Repo    int64        // the forge's number of the one repository that it is for, 0 for all
	Timeout time.Duration
	MaxLog  int64 // bytes of one job's log file, 64 MiB
	Records int   // how many jobs are kept on record, 500

	// Idle is the longest time between two questions for tasks, 30 s: what a push waits
	// at most when no Kick tells of it.
	Idle time.Duration
	// Heartbeat is how often the forge is told that a job runs, and asked whether it is
	// to be cancelled, 3 s.
	Heartbeat time.Duration
	// Grace is how long a job that was cancelled may take to end before that is told of
	// it, 30 s.
	Grace time.Duration

	// Token gives a registration token, for Repo.
	Token    func(ctx context.Context, repo int64) (string, error)
	Executor Executor
	Rules    Rules
	// Ended, where it is set, is told of each job that has ended.
	Ended func(Record)
	Log   *slog.Logger
}

// An Executor runs jobs.
type Executor interface {
	// Run runs one job and returns when it has ended and nothing of it is left; soon,
	// once ctx is done, whose cause says why. It calls events, one at a time, with what
	// happens; the last one has the Result. An error is about what went wrong beside
	// the job, which then has failed.
	Run(ctx context.Context, j Job, events func(job.Event)) error
}

// A Job is what an executor gets.
type Job struct {
	Info
	Tier Tier
	// Spec lacks what the runner does not know: Docker, Actions, Images, Env.
	Spec job.Spec
	// Token and Runtime are the forge's own for this job (GITHUB_TOKEN, and the one of
	// artifacts). Door, of untrusted jobs, is what stands in their place all over Spec;
	// in that of Runtime, it follows what Runtime claims, and a dot.
	Token, Runtime, Door string
	// Secrets says that its workflow reads secrets, or wants a token that may write.
	Secrets bool
	// Base is the ref that its pull request is to be merged into, Main that of the default
	// branch; "" where the forge does not tell.
	Base, Main string
}

// Causes of a job's context being done.
var (
	ErrCancelled = errors.New("cancelled on the forge")
	ErrTimeout   = errors.New("the job took too long")
	ErrStopping  = errors.New("the service was stopped")
	// ErrGone says that the forge does not know the task any more.
	ErrGone = errors.New("the forge does not know this task any more")
)

// A Runner is an Actions runner. Its methods may be called concurrently, Run once.
type Runner struct {
	Config
	client runnerv1connect.RunnerServiceClient
	store  *Store
	kick   chan struct{}
	slots  chan struct{}
	jobs   sync.WaitGroup
	rest   atomic.Int64 // nanoseconds: in place of Idle, where it is longer
	// connects has room for as many as may register at a time; nil for any.
	connects chan struct{}

	mu    sync.Mutex
	creds credentials
}

// New checks c.
func New(c Config) (*Runner, error) {
	switch {
	case c.Forge == "" || c.Dir == "" || c.Name == "" || len(c.Labels) == 0:
		return nil, errors.New("ci: Forge, Dir, Name and Labels must be set")
	case c.Token == nil || c.Executor == nil || c.Log == nil:
		return nil, errors.New("ci: Token, Executor and Log must be set")
	case c.Timeout <= 0:
		return nil, errors.New("ci: Timeout must be set")
	}
	setDefault(&c.HTTP, http.DefaultClient)
	setDefault(&c.Jobs, 2)
	setDefault(&c.MaxLog, 64<<20)
	setDefault(&c.Records, 500)
	setDefault(&c.Idle, 30*time.Second)
	setDefault(&c.Heartbeat, 3*time.Second)
	setDefault(&c.Grace, 30*time.Second)
	setDefault(&c.Version, "devaipod")
	store := OpenStore(c.Dir)
	for _, d := range []string{"tasks", "jobs", "runners"} {
		if err := os.MkdirAll(filepath.Join(c.Dir, d), 0o700); err != nil {
			return nil, err
		}
	}
	return newRunner(c, store, make(chan struct{}, c.Jobs)), store.sweep()
}

func newRunner(c Config, store *Store, slots chan struct{}) *Runner {
	r := &Runner{Config: c, kick: make(chan struct{}, 1), slots: slots, store: store}
	r.client = newClient(c.HTTP, strings.TrimSuffix(c.Forge, "/")+"/api/actions", r.credentials)
	return r
}

func setDefault[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}

// Store is what the runner keeps on record.
func (r *Runner) Store() *Store { return r.store }

// Kick says that there may be a task now.
func (r *Runner) Kick() {
	select {
	case r.kick <- struct{}{}:
	default:
	}
}

// Run registers the runner, if the forge does not know it, and runs jobs until ctx is
// done and all of them have ended. It returns an error only when its directory can't be
// used; a forge that is away is waited for.
func (r *Runner) Run(ctx context.Context) error {
	if err := r.loadCredentials(); err != nil {
		return err
	}
	left, err := r.store.underWay()
	if err != nil {
		return err
	}
	defer r.jobs.Wait()
	if !r.connect(ctx) {
		return nil
	}
	for _, st := range left {
		if r.Repo != 0 && st.RepoID != r.Repo {
			continue
		}
		r.jobs.Add(1)
		go func() {
			defer r.jobs.Done()
			r.resume(ctx, st)
		}()
	}
	r.poll(ctx)
	return nil
}

// connect declares the runner to the forge, registering it first if need be; until it
// works, or ctx is done.
func (r *Runner) connect(ctx context.Context) bool {
	for wait := time.Second; ctx.Err() == nil; wait = min(2*wait, r.idle()) {
		err := r.declareInTurn(ctx)
		if err == nil {
			return true
		}
		if ctx.Err() == nil {
			r.Log.Warn("the forge does not take us as a runner; trying again", "err", err, "in", wait)
		}
		r.sleep(ctx, wait)
	}
	return false
}

// declareInTurn declares when there is room for it.
func (r *Runner) declareInTurn(ctx context.Context) error {
	if r.connects != nil {
		select {
		case r.connects <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
		defer func() { <-r.connects }()
	}
	return r.declare(ctx)
}

// idle is the longest time between two questions.
func (r *Runner) idle() time.Duration { return max(r.Idle, time.Duration(r.rest.Load())) }

// sleep waits for d, a Kick, or ctx, and says whether it was a Kick.
func (r *Runner) sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-r.kick:
		return true
	case <-ctx.Done():
	}
	return false
}

// Times between two questions: soon after a Kick, as the forge sends its webhook, and ends
// a job, before it queues the next task.
const soon = 50 * time.Millisecond

// longer is how many times as long as the last one each time between two questions is. Every
// event of a repository is a Kick, and few bring a job: five questions follow one, until they
// are 30 s apart.
const longer = 4

// askAnew is how many questions with the last seen version are asked between two that
// make the forge look for tasks in any case.
const askAnew = 10

// poll asks for tasks while there is room for them.
func (r *Runner) poll(ctx context.Context) {
	var version int64 // 0 makes the forge look
	wait, idle := soon, 0
	for ctx.Err() == nil {
		select {
		case r.slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		task, latest, err := r.fetch(ctx, version)
		if task != nil {
			// More may be queued though the version stays the same.
			version, wait, idle = 0, soon, 0
			r.jobs.Add(1)
			go r.work(ctx, task)
			continue
		}
		<-r.slots
		version = latest
		if idle++; idle%askAnew == 0 {
			version = 0
		}
		if err != nil {
			version = 0
			if ctx.Err() == nil {
				r.Log.Warn("asking the forge for a task", "err", err)
			}
			if unregistered(err) && !r.connect(ctx) {
				return
			}
		}
		if wait = min(longer*wait, r.idle()); r.sleep(ctx, wait) {
			version, wait = 0, soon
		}
	}
}

// work runs one task, in a slot that is given back when its executor has returned.
func (r *Runner) work(ctx context.Context, t *Task) {
	defer r.jobs.Done()
	release := sync.OnceFunc(func() { <-r.slots; r.Kick() })
	log := r.Log.With("task", t.Task, "repo", t.Info.Repo, "job", t.Info.Job)
	rep, err := newReporter(r, state{Info: t.Info}, t.masks(), log)
	if err != nil {
		// Nothing can be kept of it; the forge ends it when it has waited long enough.
		log.Error("a task can't be written down, it is not run", "err", err)
		release()
		return
	}
	r.life(ctx, t, rep, release)
}

// life is a job from the judgment to the last word that is told of it.
func (r *Runner) life(ctx context.Context, t *Task, rep *reporter, release func()) {
	jobCtx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	defer context.AfterFunc(ctx, func() { cancel(ErrStopping) })()
	told := make(chan struct{})
	go func() {
		defer close(told)
		rep.send(ctx, cancel)
	}()
	v := r.judge(jobCtx, t)
	rep.judged(v)
	switch v.Tier {
	case NeedsApproval:
		release()
		rep.finish(job.Failure, "needs approval: "+strings.Join(v.Reasons, "; "), nil)
	default:
		r.execute(jobCtx, t, v, rep, release)
	}
	<-told
}

// judge holds the task to the rules; what goes wrong with that makes it untrusted.
func (r *Runner) judge(ctx context.Context, t *Task) (v Verdict) {
	defer func() {
		if p := recover(); p != nil {
			r.Log.Error("judging a task", "task", t.Task, "panic", p)
			v = Verdict{Tier: NeedsApproval, Reasons: []string{"it could not be judged"}}
		}
	}()
	return r.Rules.Judge(ctx, t)
}

// execute has the executor run the job, and says to rep how it ended.
func (r *Runner) execute(ctx context.Context, t *Task, v Verdict, rep *reporter, release func()) {
	ctx, stop := context.WithTimeoutCause(ctx, r.Timeout, ErrTimeout)
	defer stop()
	j, err := t.job(v.Tier, r.Timeout)
	if err != nil {
		release()
		rep.finish(job.Failure, err.Error(), nil)
		return
	}
	rep.mask(j.Door)
	ended := make(chan error, 1)
	go func() {
		defer release()
		ended <- r.call(ctx, j, func(e job.Event) {
			// It has ended here: what needs it need not wait until all is removed.
			if rep.event(e) {
				result, reason := outcome(context.Cause(ctx), nil, e)
				rep.finish(result, reason, e.Outputs)
			}
		})
	}()
	select {
	case err = <-ended:
	case <-ctx.Done():
		select {
		case err = <-ended:
		case <-time.After(r.Grace):
			err = fmt.Errorf("what runs it has not ended %s later", r.Grace)
		}
	}
	result, reason := outcome(context.Cause(ctx), err, job.Event{})
	if !rep.finish(result, reason, nil) && err != nil {
		rep.log.Warn("ending a job whose result was told", "err", err)
	}
}

// call runs the executor, whose panic is an error.
func (r *Runner) call(ctx context.Context, j Job, events func(job.Event)) (err error) {
	defer func() {
		if p := recover(); p != nil {
			r.Log.Error("running a job", "task", j.Task, "panic", p)
			err = errors.New("what runs jobs broke down; the service's log has more")
		}
	}()
	return r.Executor.Run(ctx, j, events)
}

// outcome is the result of a job, and the line that says why where it is none of the
// workflow's own. A job that ended well while it was being cancelled has ended well.
func outcome(cause, err error, last job.Event) (result, reason string) {
	switch {
	case last.Result == job.Success && err == nil:
		return job.Success, ""
	case errors.Is(cause, ErrCancelled):
		return job.Cancelled, cause.Error()
	case cause != nil:
		return job.Failure, cause.Error()
	case err != nil:
		return job.Failure, "the job could not be run to its end: " + err.Error()
	case last.Result == "":
		return job.Failure, "the job ended without a result"
	case last.Result == job.Cancelled, last.Result == job.Skipped:
		return last.Result, last.Reason
	default:
		return job.Failure, last.Reason
	}
}

// Lost is why a job failed that a kill of the service has ended.
const Lost = "the service ended while this job ran; run it again"

// resume tells what is left to tell of a task that was under way when the service ended.
func (r *Runner) resume(ctx context.Context, st state) {
	rep, err := openReporter(r, st, r.Log.With("task", st.Task, "repo", st.Repo))
	if err != nil {
		r.Log.Error("a task that was under way can't be read", "task", st.Task, "err", err)
		return
	}
	rep.lost(Lost)
	rep.send(ctx, func(error) {})
}
