package ci

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

// Runners are a runner for each repository. They share the slots of Config.Jobs, and take
// turns with them: who wants one waits behind those who wanted one before. Their methods
// may be called concurrently, Run once.
type Runners struct {
	cfg   Config
	store *Store
	slots chan struct{}

	// connects bounds how many register at a time.
	connects chan struct{}

	mu    sync.Mutex
	all   map[int64]*served
	ended sync.WaitGroup
}

// A served repository has a runner.
type served struct {
	*Runner
	name string // OWNER/NAME
	stop context.CancelFunc
}

// NewRunners checks c, whose Repo is of no account.
func NewRunners(c Config) (*Runners, error) {
	one, err := New(c)
	if err != nil {
		return nil, err
	}
	return &Runners{cfg: one.Config, store: one.store, slots: one.slots, connects: make(chan struct{}, 4), all: map[int64]*served{}}, nil
}

// Store is what the runners keep on record.
func (rs *Runners) Store() *Store { return rs.store }

// Run runs jobs until ctx is done and all of them have ended: those of the repositories that
// it is told of, each time all that there are then, by the forge's numbers, as OWNER/NAME.
// The runners of those that are gone end.
func (rs *Runners) Run(ctx context.Context, repos <-chan map[int64]string) {
	defer rs.ended.Wait()
	for first := true; ; first = false {
		select {
		case <-ctx.Done():
			return
		case all := <-repos:
			rs.serve(ctx, all)
			if !first {
				continue
			}
			if err := rs.endLost(ctx, all); err != nil {
				rs.cfg.Log.Warn("ending jobs of repositories that are gone", "err", err)
			}
		}
	}
}

func (rs *Runners) serve(ctx context.Context, repos map[int64]string) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	for id, r := range rs.all {
		if _, there := repos[id]; !there {
			r.stop()
			delete(rs.all, id)
			rs.forget(id)
		}
	}
	for id, name := range repos {
		if r, there := rs.all[id]; there {
			r.name = name
			continue
		}
		rs.begin(ctx, id, name)
	}
	for _, r := range rs.all {
		r.rest.Store(int64(len(rs.all)) * int64(betweenAll))
	}
}

// betweenAll is how long it is on average between two questions of all runners that have
// nothing to do.
const betweenAll = time.Second

// begin starts a repository's runner.
func (rs *Runners) begin(ctx context.Context, id int64, name string) {
	cfg := rs.cfg
	cfg.Repo = id
	cfg.Log = cfg.Log.With("runner", id)
	ctx, stop := context.WithCancel(ctx)
	r := newRunner(cfg, rs.store, rs.slots)
	r.connects = rs.connects
	rs.all[id] = &served{r, name, stop}
	rs.ended.Go(func() {
		defer stop()
		if err := r.Run(ctx); err != nil {
			cfg.Log.Error("the repository's runner has ended", "repo", name, "err", err)
		}
	})
}

// forget removes what the forge gave to the runner of a repository that is gone.
func (rs *Runners) forget(id int64) {
	gone := newRunner(Config{Dir: rs.cfg.Dir, Repo: id}, rs.store, nil)
	if err := os.Remove(gone.credentialsFile()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		rs.cfg.Log.Warn("removing the registration of a runner", "repo", id, "err", err)
	}
}

// endLost ends, on record alone, what was under way in an earlier process of repositories that
// are gone since: the forge can't be told.
func (rs *Runners) endLost(ctx context.Context, repos map[int64]string) error {
	left, err := rs.store.underWay()
	left = slices.DeleteFunc(left, func(st state) bool { _, there := repos[st.RepoID]; return there })
	return errors.Join(err, newRunner(rs.cfg, rs.store, nil).endLeft(ctx, left, "the service ended while this job ran, and its repository is gone"))
}

// Kick says that there may be a task of a repository (OWNER/NAME) now.
func (rs *Runners) Kick(name string) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	for _, r := range rs.all {
		if strings.EqualFold(r.name, name) {
			r.Kick()
		}
	}
}
