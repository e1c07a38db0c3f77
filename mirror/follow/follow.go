package follow

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"codeberg.org/devaipod/devaipod/mirror/cache"
)

// ErrGone is a [Forge]'s answer of a repository that it has no more.
var ErrGone = errors.New("the repository is gone from the forge")

// ErrNotFollowed is what [Follower.Sync] ends with when there is no record.
var ErrNotFollowed = errors.New("it follows no upstream")

// A Repository is what the forge tells of one.
type Repository struct {
	Name          string // owner/name
	DefaultBranch string
	Archived      bool
}

// A Forge is asked as the service's account.
type Forge interface {
	// Repository reads one by its number; ErrGone when there is none.
	Repository(ctx context.Context, id int64) (Repository, error)
	// Protect sees to it that only the service writes a branch; made tells whether
	// there was no rule for it.
	Protect(ctx context.Context, repo, branch string) (made bool, err error)
	// MergeByPush lets pull requests be merged by what comes from upstream.
	MergeByPush(ctx context.Context, repo string) error
	SetDefaultBranch(ctx context.Context, repo, branch string) error
	// UndoKeywords takes back what the forge did to issues since then because of
	// words in commits that the service pushed, and names them.
	UndoKeywords(ctx context.Context, since time.Time) ([]string, error)
}

// Config is what [New] needs.
type Config struct {
	Store *Store
	// Cache fetches from the upstreams. ForgeHost is what it calls the forge, and
	// the one host that it may push to but for [Follower.Export].
	Cache     *cache.Cache
	ForgeHost string
	Forge     Forge
	// Login is the service's account.
	Login cache.Login
	// Interval is the time between two looks at everything; 0 for none but the
	// first and those that are asked for.
	Interval time.Duration
	// Fault, when not nil, is called with a name before each push; tests end the
	// process there.
	Fault func(point string)
	Now   func() time.Time // time.Now when nil
	Log   *slog.Logger
}

// A Follower keeps repositories as their upstreams are. Its methods are safe for
// concurrent use, in one process.
type Follower struct {
	cfg    Config
	wake   chan struct{} // capacity 1
	pushed chan struct{} // capacity 1: there is something to settle
	slot   chan struct{} // one for each repository that may be looked at at a time

	mu      sync.Mutex
	turns   map[int64]*turn
	checked map[int64]time.Time
}

// A turn is the right to look at a repository.
type turn struct {
	mu    sync.Mutex
	again atomic.Bool // somebody wanted a look, and may have come too late for the one that is under way
}

// New checks cfg; it makes no call.
func New(cfg Config) (*Follower, error) {
	if cfg.Store == nil || cfg.Cache == nil || cfg.Forge == nil || cfg.ForgeHost == "" {
		return nil, errors.New("follow: store, cache, forge and its host are needed")
	}
	if cfg.Fault == nil {
		cfg.Fault = func(string) {}
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Follower{cfg: cfg, wake: make(chan struct{}, 1), pushed: make(chan struct{}, 1), slot: make(chan struct{}, atOnce), turns: map[int64]*turn{}, checked: map[int64]time.Time{}}, nil
}

// A View is a record, and when it was last looked at.
type View struct {
	Record
	Checked time.Time `json:"checked,omitzero"` // both sides answered; zero for not since the start
}

// Views are those of all records, by name.
func (f *Follower) Views() ([]View, error) {
	all, err := f.cfg.Store.List()
	views := []View{}
	for _, rec := range all {
		views = append(views, f.view(rec))
	}
	return views, err
}

func (f *Follower) view(rec Record) View {
	f.mu.Lock()
	defer f.mu.Unlock()
	return View{rec, f.checked[rec.ID]}
}

// Kick asks for a look at everything soon.
func (f *Follower) Kick() { signal(f.wake) }

func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// What the forge makes of words in commits shows within seconds.
const (
	settleEvery  = 2 * time.Second
	settleFor    = time.Minute
	settleAgain  = 30 * time.Second // after an error
	settleUntil  = time.Hour        // with errors
	clocksDiffer = 5 * time.Minute  // at most, of the forge's and ours
)

// Run looks at everything at once, every [Config.Interval], and when it is
// kicked, until ctx ends.
func (f *Follower) Run(ctx context.Context) {
	var tick <-chan time.Time
	if f.cfg.Interval > 0 {
		ticker := time.NewTicker(f.cfg.Interval)
		defer ticker.Stop()
		tick = ticker.C
	}
	f.Kick()
	var passes sync.WaitGroup
	defer passes.Wait()
	var failed string // what was told of settling
	for {
		var settle <-chan time.Time
		switch {
		case !f.unsettled():
		case failed != "":
			settle = time.After(settleAgain)
		default:
			settle = time.After(settleEvery)
		}
		select {
		case <-ctx.Done():
			return
		case <-settle:
			failed = f.settle(ctx, failed)
			continue
		case <-f.pushed:
			continue
		case <-tick:
		case <-f.wake:
		}
		// One that takes hours, as a first fetch can, keeps the others from nothing.
		passes.Go(func() {
			if err := f.pass(ctx); err != nil && ctx.Err() == nil {
				f.cfg.Log.Warn("following upstreams", "err", err)
			}
		})
	}
}

// atOnce is how many repositories are looked at at a time.
const atOnce = 4

// Pass looks at everything once. What is wrong with one repository is its
// trouble and no error.
func (f *Follower) Pass(ctx context.Context) error {
	return f.each(func(id int64) error {
		_, err := f.Sync(ctx, id)
		return err
	})
}

// pass does not wait for looks that are under way: those are made once more.
func (f *Follower) pass(ctx context.Context) error {
	return f.each(func(id int64) (err error) {
		t := f.turn(id)
		t.again.Store(true)
		for t.again.Load() && ctx.Err() == nil && t.mu.TryLock() {
			t.again.Store(false)
			_, err = f.look(ctx, id)
			t.mu.Unlock()
		}
		return err
	})
}

func (f *Follower) each(do func(id int64) error) error {
	all, err := f.cfg.Store.List()
	var mu sync.Mutex
	var looks sync.WaitGroup
	for _, rec := range all {
		looks.Go(func() {
			if e := do(rec.ID); e != nil && !errors.Is(e, ErrNotFollowed) && !errors.Is(e, ErrGone) {
				mu.Lock()
				err = errors.Join(err, fmt.Errorf("%s: %w", rec.Repo, e))
				mu.Unlock()
			}
		})
	}
	looks.Wait()
	return err
}

// Sync looks at one repository, and brings it to where its upstream is as far as
// that overwrites nothing. [ErrNotFollowed] when there is no record of it,
// [ErrGone] when the forge has it no more, and then there is none from here on.
func (f *Follower) Sync(ctx context.Context, id int64) (View, error) {
	defer f.take(id)()
	return f.look(ctx, id)
}

func (f *Follower) turn(id int64) *turn {
	f.mu.Lock()
	defer f.mu.Unlock()
	t := f.turns[id]
	if t == nil {
		t = &turn{}
		f.turns[id] = t
	}
	return t
}

// look is one look at one repository, by whoever has its turn.
func (f *Follower) look(ctx context.Context, id int64) (View, error) {
	select {
	case f.slot <- struct{}{}:
	case <-ctx.Done():
		return View{}, context.Cause(ctx)
	}
	defer func() { <-f.slot }()
	rec, ok, err := f.cfg.Store.Get(id)
	if err != nil {
		return View{}, err
	}
	if !ok {
		return View{}, ErrNotFollowed
	}
	l := &look{f: f, rec: rec, log: f.cfg.Log.With("repo", rec.Repo, "upstream", rec.Upstream)}
	err = l.run(ctx)
	if errors.Is(err, ErrGone) {
		l.log.Info("a repository that followed an upstream is gone from the forge: it is forgotten")
		return View{}, errors.Join(err, f.cfg.Store.Remove(id))
	}
	if ctx.Err() != nil {
		return View{}, context.Cause(ctx)
	}
	if err != nil {
		return View{}, err
	}
	l.tell()
	if err := f.cfg.Store.update(l.rec); err != nil {
		return View{}, err
	}
	if l.whole {
		f.mu.Lock()
		f.checked[id] = f.cfg.Now().UTC()
		f.mu.Unlock()
	}
	return f.view(l.rec), nil
}

func (f *Follower) unsettled() bool {
	all, err := f.cfg.Store.List()
	if err != nil {
		return false // it is told of by the next look at everything
	}
	return slices.ContainsFunc(all, func(r Record) bool { return !r.Pushed.IsZero() })
}

// settle undoes what the forge did because of words in commits that were pushed
// lately. It returns what it could not do, which is logged unless it was told
// before.
func (f *Follower) settle(ctx context.Context, told string) (failed string) {
	now := f.cfg.Now().UTC()
	all, err := f.cfg.Store.List()
	since := now
	for _, rec := range all {
		if !rec.Pushed.IsZero() && rec.Pushed.Before(since) {
			since = rec.Pushed
		}
	}
	undone, e := f.cfg.Forge.UndoKeywords(ctx, since.Add(-clocksDiffer))
	for _, issue := range undone {
		f.cfg.Log.Info("undone: the forge had closed or opened an issue because a commit from upstream says so", "issue", issue)
	}
	err = errors.Join(err, e)
	for _, rec := range all {
		ago := now.Sub(rec.Pushed)
		if !rec.Pushed.IsZero() && (ago > settleFor && err == nil || ago > settleUntil) {
			err = errors.Join(err, f.settled(rec))
		}
	}
	if err == nil || ctx.Err() != nil {
		return ""
	}
	if err.Error() != told {
		f.cfg.Log.Warn("issues that commits from upstream have closed or opened may stay so; trying again", "err", err)
	}
	return err.Error()
}

// settled notes that no more is to come of a push.
func (f *Follower) settled(rec Record) error {
	return f.cfg.Store.Change(rec.ID, func(now *Record) {
		if now.Pushed.Equal(rec.Pushed) { // no other push was made meanwhile
			now.Pushed = time.Time{}
		}
	})
}
