// Package broker hands jobs to a runner that is not part of the service: Gitea's act_runner,
// Forgejo's runner, or whatever speaks their protocol. To such a runner the service is the
// forge: it registers here and asks here for tasks. At the forge itself it must not be known,
// since a forge gives any job to any runner that has its label: an agent's job, too, with
// the repository's secrets and a token that may write.
//
// A [Broker] is a [ci.Executor] for trusted jobs, and refuses others. Its [Broker.Handler]
// serves the runner. A job's way: Run queues it; FetchTask gives it away, as the forge
// gave it; what UpdateLog and UpdateTask tell becomes [job.Event]s; the result that the
// runner tells ends Run. There is one runner at a time, which may take several jobs: who
// registers takes the place of the one before, whose jobs fail.
//
// The protocol is that of https://pkg.go.dev/code.gitea.io/actions-proto-go.
package broker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"slices"
	"sync"
	"time"

	"codeberg.org/devaipod/devaipod/ci"
	"codeberg.org/devaipod/devaipod/ci/job"
)

// Config of a broker. Zero values have the defaults that are named.
type Config struct {
	// Dir is the broker's alone, made if it is not there, 0700: who the runner is, and
	// the token that it registers with.
	Dir string
	// Labels are those of runs-on whose jobs there may be; the runner must have them all.
	Labels []string
	// Forge serves what a job asks of the forge: its runner knows one address for both.
	Forge http.Handler
	// Silence is how long a runner may say nothing of a job, or at all, until it counts as
	// gone, 2 min.
	Silence time.Duration
	// Grace is how long a job that was cancelled may take to end, 1 min.
	Grace time.Duration
	Log   *slog.Logger
}

// A Broker is the forge to a runner. Its methods may be called concurrently.
type Broker struct {
	cfg   Config
	token string // of registration

	mu     sync.Mutex // not held while events are told
	runner runner
	seen   time.Time // when the runner called last
	queue  []*task
	given  map[int64]*task
}

var _ ci.Executor = (*Broker)(nil)

// New checks c, and reads what was written of the runner.
func New(c Config) (*Broker, error) {
	if c.Dir == "" || len(c.Labels) == 0 || c.Forge == nil || c.Log == nil {
		return nil, errors.New("broker: Dir, Labels, Forge and Log must be set")
	}
	if c.Silence == 0 {
		c.Silence = 2 * time.Minute
	}
	if c.Grace == 0 {
		c.Grace = time.Minute
	}
	token, err := Token(c.Dir)
	if err != nil {
		return nil, err
	}
	b := &Broker{cfg: c, token: token, given: map[int64]*task{}}
	if b.runner, err = readRunner(c.Dir); err != nil {
		return nil, fmt.Errorf("reading which runner is registered: %w; remove %s, and register it again", err, runnerFile(c.Dir))
	}
	return b, os.Chmod(c.Dir, 0o700)
}

// Run implements [ci.Executor]. A job that nobody takes waits until ctx is done.
func (b *Broker) Run(ctx context.Context, j ci.Job, events func(job.Event)) error {
	if j.Tier != ci.Trusted {
		return errors.New("a job that is not trusted never goes to an external runner")
	}
	t, err := newTask(j, events)
	if err != nil {
		return err
	}
	b.add(t)
	defer b.remove(t)
	tick := time.NewTicker(b.cfg.Silence / 8)
	defer tick.Stop()
	for {
		b.look(t)
		select {
		case <-t.done:
			return t.err
		case <-tick.C:
		case <-ctx.Done():
			return b.cancel(ctx, t)
		}
	}
}

// Or is an executor that hands the jobs that are trusted to the broker, and leaves all others
// to sandbox.
func (b *Broker) Or(sandbox ci.Executor) ci.Executor { return byTier{b, sandbox} }

type byTier struct{ trusted, other ci.Executor }

// Run implements [ci.Executor].
func (e byTier) Run(ctx context.Context, j ci.Job, events func(job.Event)) error {
	if j.Tier == ci.Trusted {
		return e.trusted.Run(ctx, j, events)
	}
	return e.other.Run(ctx, j, events)
}

// cancel has the runner end a job, and waits for that as long as it may take.
func (b *Broker) cancel(ctx context.Context, t *task) error {
	if b.unqueue(t) || errors.Is(context.Cause(ctx), ci.ErrStopping) {
		return context.Cause(ctx) // the runner will hear that it is cancelled
	}
	t.cancel()
	select {
	case <-t.done:
		return t.err
	case <-time.After(b.cfg.Grace):
		return fmt.Errorf("the external runner has not ended the job %s after it was told to", b.cfg.Grace)
	}
}

// look notices what a runner that is gone does not tell.
func (b *Broker) look(t *task) {
	b.mu.Lock()
	waits, name, connected := slices.Contains(b.queue, t), b.runner.Name, time.Since(b.seen) < b.cfg.Silence
	b.mu.Unlock()
	switch {
	case !waits:
		t.silent(b.cfg.Silence)
	case name == "":
		t.wait("no external runner is registered; `devaipod ci external` tells how to add one")
	case !connected:
		t.wait("the external runner " + name + " is not connected")
	}
}

func (b *Broker) add(t *task) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.queue = append(b.queue, t)
}

// unqueue says whether the job was waiting, and now is not any more.
func (b *Broker) unqueue(t *task) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	i := slices.Index(b.queue, t)
	if i >= 0 {
		b.queue = slices.Delete(b.queue, i, i+1)
	}
	return i >= 0
}

// remove forgets a job; what the runner says of it later is of no account.
func (b *Broker) remove(t *task) {
	b.unqueue(t)
	b.mu.Lock()
	delete(b.given, t.id)
	b.mu.Unlock()
	t.end(nil)
}

// next gives the job away that has waited longest; nil for none.
func (b *Broker) next() (t *task, name string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.queue) == 0 {
		return nil, ""
	}
	t = b.queue[0]
	b.queue = slices.Delete(b.queue, 0, 1)
	b.given[t.id] = t
	t.heard()
	return t, b.runner.Name
}

func (b *Broker) task(id int64) *task {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.given[id]
}

// replace has another runner in the place of the one before.
func (b *Broker) replace(r runner) error {
	if err := writeRunner(b.cfg.Dir, r); err != nil {
		return err
	}
	b.mu.Lock()
	b.runner, b.seen = r, time.Now()
	var lost []*task
	for _, t := range b.given {
		lost = append(lost, t)
	}
	b.mu.Unlock()
	for _, t := range lost {
		t.end(errors.New("another registration has taken the place of the external runner that had the job"))
	}
	return nil
}
