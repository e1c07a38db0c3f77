package reconcile

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"
)

// Config is what a [Loop] is made from.
type Config struct {
	Forge Forge
	Pods  Pods
	// Label is the trigger label that people put on.
	Label string
	// Ours are the forge accounts of the service and the bot: what they label
	// starts nothing.
	Ours []string
	// Max is how many agents may work at a time; 0 is no limit.
	Max int
	// Resync is the time between two passes over what has changed.
	Resync time.Duration
	// Deadline is how long an agent may work on an issue, from its pod's making;
	// Rest how long a pod whose agent waits for a person keeps its processes.
	// 0 is without end.
	Deadline, Rest time.Duration
	// Watch is the time between two looks at the working agents; 2 s when 0.
	Watch time.Duration
	// Overlap is how far back a pass asks for changes beyond the last one, since
	// the forge's index may lag and its servers' clocks differ; 2 min when 0.
	Overlap time.Duration
	// Harmless takes the force out of text that an agent wrote.
	Harmless func(string) string
	// BranchName is the branch for an issue.
	BranchName func(issue int64, title string) string
	Now        func() time.Time // the clock; time.Now when nil
	Log        *slog.Logger
}

// A Loop brings pods and pull requests to what the forge's issues ask for.
// Kick and Views may be called from any goroutine; Run once.
type Loop struct {
	cfg     Config
	changed chan struct{} // capacity 1: something is dirty
	passed  chan struct{} // closed after the first pass over everything

	mu    sync.Mutex
	dirty map[Key]bool
	all   bool
	views map[Key]View

	first sync.Once

	watching sync.Mutex     // held while pods are asked
	helpers  sync.WaitGroup // what runs beside the loop

	// Of the goroutine in Run alone.
	said    map[Key]said
	errs    map[Key]int       // consecutive errors
	resumes map[Key]int       // how often a pod was started again
	away    map[Key]time.Time // since when a pod-api has not answered
	feed    feed
}

// said remembers our last comment, so that an unchanged one costs no call.
type said struct {
	body  string
	state State
	at    time.Time
}

const (
	// chatter is how often a comment may change when only the activity did.
	chatter = 5 * time.Second
	// maxResumes is how often a pod that ended by itself is started again.
	maxResumes = 3
)

// New checks cfg and returns a loop that does nothing yet.
func New(cfg Config) (*Loop, error) {
	if cfg.Label == "" || cfg.Resync <= 0 || cfg.Forge == nil || cfg.Pods == nil || cfg.Harmless == nil || cfg.BranchName == nil || cfg.Log == nil {
		return nil, errors.New("reconcile: Label, Resync, Forge, Pods, Harmless, BranchName and Log must be set")
	}
	if cfg.Watch == 0 {
		cfg.Watch = 2 * time.Second
	}
	if cfg.Overlap == 0 {
		cfg.Overlap = 2 * time.Minute
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Loop{
		cfg: cfg, changed: make(chan struct{}, 1), passed: make(chan struct{}), all: true,
		dirty: map[Key]bool{}, views: map[Key]View{}, said: map[Key]said{}, errs: map[Key]int{}, resumes: map[Key]int{},
		away: map[Key]time.Time{}, feed: newFeed(),
	}, nil
}

// Kick says that something about an issue may have changed. It never blocks.
func (l *Loop) Kick(k Key) {
	l.mu.Lock()
	l.dirty[k] = true
	l.mu.Unlock()
	l.wake()
}

// KickAll asks for a pass over everything.
func (l *Loop) KickAll() {
	l.mu.Lock()
	l.all = true
	l.mu.Unlock()
	l.wake()
}

func (l *Loop) wake() {
	select {
	case l.changed <- struct{}{}:
	default:
	}
}

// Views returns what is known, by repository and number.
func (l *Loop) Views() []View {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make([]View, 0, len(l.views))
	for _, v := range l.views {
		out = append(out, v)
	}
	slices.SortFunc(out, func(a, b View) int { return compareKeys(a.Key, b.Key) })
	return out
}

// View returns what is known of one issue.
func (l *Loop) View(k Key) (View, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	v, ok := l.views[k]
	return v, ok
}

func compareKeys(a, b Key) int {
	return cmp.Or(strings.Compare(a.Owner, b.Owner), strings.Compare(a.Repo, b.Repo), cmp.Compare(a.Issue, b.Issue))
}

// Drop forgets what is known of an issue whose pod somebody removed, and looks
// at it anew.
func (l *Loop) Drop(k Key) {
	l.mu.Lock()
	delete(l.views, k)
	l.mu.Unlock()
	l.Kick(k)
}

// Passed is closed once the first pass over everything is done.
func (l *Loop) Passed() <-chan struct{} { return l.passed }

// Run loops until ctx ends, starting with a pass over everything. It returns
// ctx's error.
func (l *Loop) Run(ctx context.Context) error {
	resync := time.NewTicker(l.cfg.Resync)
	defer resync.Stop()
	watch := time.NewTicker(l.cfg.Watch)
	defer watch.Stop()
	defer l.helpers.Wait()
	l.wake()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-resync.C:
			l.KickAll()
			continue
		case <-watch.C:
			l.watch(ctx)
			continue
		case <-l.changed:
		}
		if err := l.pass(ctx); err != nil && ctx.Err() == nil {
			l.cfg.Log.Error("the pass failed; trying again at the next", "err", err)
			time.AfterFunc(l.cfg.Watch, l.KickAll)
		}
	}
}

// pass takes what is dirty and brings each to where it should be.
func (l *Loop) pass(ctx context.Context) error {
	l.mu.Lock()
	dirty, all := l.dirty, l.all
	l.dirty, l.all = map[Key]bool{}, false
	l.mu.Unlock()

	found, err := l.cfg.Pods.List(ctx)
	if err != nil {
		l.remember(dirty, all)
		return fmt.Errorf("listing pods: %w", err)
	}
	pods := map[Key]Pod{}
	for _, p := range found {
		pods[p.Key] = p
	}
	if all {
		changed, err := l.news(ctx, pods)
		if err != nil {
			l.remember(dirty, all)
			return err
		}
		for _, k := range changed {
			dirty[k] = true
		}
	}
	for _, k := range sortedKeys(dirty) {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		pod, has := pods[k]
		l.one(ctx, k, pod, has, pods)
	}
	if all {
		l.first.Do(func() { close(l.passed) })
	}
	return nil
}

// one reconciles a key; an error is logged, told and tried again later.
func (l *Loop) one(ctx context.Context, k Key, pod Pod, has bool, pods map[Key]Pod) {
	err := l.reconcileOne(ctx, k, pod, has, pods)
	if err == nil {
		delete(l.errs, k)
		return
	}
	if ctx.Err() != nil {
		return
	}
	l.errs[k]++
	wait := min(l.cfg.Resync, time.Second<<min(l.errs[k], 10))
	l.cfg.Log.Error("reconciling", "issue", k.String(), "err", err, "again_in", wait)
	time.AfterFunc(wait, func() { l.Kick(k) })
}

// remember puts back what a failed pass has taken.
func (l *Loop) remember(dirty map[Key]bool, all bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for k := range dirty {
		l.dirty[k] = true
	}
	l.all = l.all || all
}

// forget drops what is known of an issue that is neither wanted nor has a pod.
func (l *Loop) forget(k Key) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if v, ok := l.views[k]; ok && v.State != Done && v.State != Stopped {
		delete(l.views, k)
	}
	delete(l.said, k)
	delete(l.resumes, k)
	delete(l.away, k)
}

func sortedKeys(m map[Key]bool) []Key {
	out := make([]Key, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.SortFunc(out, compareKeys)
	return out
}

// watch looks at the working agents and kicks those that have something new,
// whose time is over, and as many of those that wait for a place as are free.
func (l *Loop) watch(ctx context.Context) {
	now := l.cfg.Now()
	views := l.Views()
	free := l.cfg.Max
	for _, v := range views {
		if v.State == Working {
			free--
		}
	}
	var ask []View
	for _, v := range views {
		switch {
		case !v.until.IsZero() && now.After(v.until):
			l.Kick(v.Key)
		case v.State == Queued && v.limit && free > 0:
			free--
			l.Kick(v.Key)
		case (v.State == Working || v.State == Asking) && !v.Resting && l.errs[v.Key] == 0: // else it is tried again anyway
			v.chatty = now.Sub(l.said[v.Key].at) >= chatter
			ask = append(ask, v)
		}
	}
	l.watchAll(ctx, ask)
}

// atOnce is how many pod-apis are asked at a time: one that hangs keeps neither
// the others nor the loop waiting.
const atOnce = 16

// watchAll asks pods how they are, beside the loop, unless it is at that still.
func (l *Loop) watchAll(ctx context.Context, ask []View) {
	if len(ask) == 0 || !l.watching.TryLock() {
		return
	}
	l.helpers.Add(1)
	go func() {
		defer l.helpers.Done()
		defer l.watching.Unlock()
		var all sync.WaitGroup
		places := make(chan struct{}, atOnce)
		for _, v := range ask {
			places <- struct{}{}
			all.Add(1)
			go func() {
				defer func() { <-places; all.Done() }()
				l.watchOne(ctx, v)
			}()
		}
		all.Wait()
	}()
}

func (l *Loop) watchOne(ctx context.Context, v View) {
	sum, err := l.cfg.Pods.Summary(ctx, v.Key)
	switch {
	case err != nil: // perhaps gone: look properly
		l.Kick(v.Key)
	case settled(sum.State) != settled(agentState(v.State)):
		l.Kick(v.Key)
	case sum.Activity != v.Activity && v.chatty:
		l.Kick(v.Key)
	}
}

// agentState is the agent's state that a view was made from.
func agentState(s State) AgentState {
	if s == Working {
		return AgentWorking
	}
	return AgentDone
}

// settled tells whether the agent waits for somebody else.
func settled(s AgentState) bool { return s != AgentStarting && s != AgentWorking }

// keepView stores what is known of an issue.
func (l *Loop) keepView(i Issue, v View) View {
	v.Key, v.Issue, v.Title, v.URL = i.Key, i.Key.String(), i.Title, i.URL
	l.mu.Lock()
	defer l.mu.Unlock()
	l.views[i.Key] = v
	return v
}

// show stores the view, and tells it on the issue when it has changed.
func (l *Loop) show(ctx context.Context, i Issue, v View) error {
	v = l.keepView(i, v)
	last := l.said[i.Key]
	body := v.comment(l.cfg.Label, l.cfg.Harmless)
	if body == last.body || (v.State == last.state && v.State == Working && l.cfg.Now().Sub(last.at) < chatter) {
		return nil
	}
	if v.State != last.state {
		if err := l.cfg.Forge.SetState(ctx, i, v.State.label()); err != nil {
			return fmt.Errorf("setting the label for %s on %s: %w", v.State, i.Key, err)
		}
	}
	if err := l.cfg.Forge.Say(ctx, i.Key, "status", body); err != nil {
		return fmt.Errorf("telling %s on %s: %w", v.State, i.Key, err)
	}
	l.said[i.Key] = said{body: body, state: v.State, at: l.cfg.Now()}
	return nil
}
