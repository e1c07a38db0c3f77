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
	// Label is the trigger label that people put on. With one of Agents behind it
	// (devaipod:fast) it asks for that agent.
	Label  string
	Agents []string
	// Ours are the forge accounts of the service and the bot: what they label
	// starts nothing, but where a person called for it ([Caller]).
	Ours []string
	// Max is how many agents may work at a time; 0 is no limit.
	Max int
	// Resync is the time between two passes over what has changed.
	Resync time.Duration
	// Deadline is how long an agent may work on an issue, from its pod's making;
	// Rest how long a pod whose agent waits for a person keeps its processes.
	// 0 is without end.
	Deadline, Rest time.Duration
	// CIWait is how long after its agent was done a pull request stays a draft while CI
	// is pending.
	CIWait time.Duration
	// CISoon says that a commit may get its first status a moment after it is pushed, as
	// where the service runs CI and there are workflows; nil is never.
	CISoon func(ctx context.Context, k Key, commit string) bool
	// CIRounds is how often in a row an agent is told that CI failed, until a person says
	// something.
	CIRounds int
	// Lander lands what people approve; nil lands nothing. Approvals is how many people
	// must, 0 for that nothing lands by itself; OwnApprovals counts those of who made
	// commits of it.
	Lander       Lander
	Approvals    int
	OwnApprovals bool
	// Collider compares agents' pull requests; nil does not.
	Collider Collider
	// Watch is the time between two looks at the working agents; 2 s when 0.
	Watch time.Duration
	// Overlap is how far back a pass asks for changes beyond the last one, since
	// the forge's index may lag and its servers' clocks differ; 2 min when 0.
	Overlap time.Duration
	// Harmless takes the force out of text that an agent wrote.
	Harmless func(string) string
	// Changed, when not nil, is told of each view whose state is another than before, or
	// that asks another thing. It must not call the loop.
	Changed func(View)
	// Because, when not nil, puts into a context why what is asked of Forge with it is done: what
	// others see is kept by whoever does it. It adds to what the context has already.
	Because func(ctx context.Context, a Act) context.Context
	// Acted, when not nil, keeps what the loop did on people's word. It must not call the loop.
	Acted func(Act) error
	// BranchName is the branch for an issue.
	BranchName func(issue int64, title string) string
	Now        func() time.Time // the clock; time.Now when nil
	// Uptime goes forward alone, whatever the clock does; the time since New when
	// nil. It stands still while the machine sleeps.
	Uptime func() time.Duration
	Log    *slog.Logger
}

// A Loop brings pods and pull requests to what the forge's issues ask for.
// Kick and Views may be called from any goroutine; Run once.
type Loop struct {
	cfg    Config
	wakeup chan struct{} // capacity 1: something is dirty
	passed chan struct{} // closed after the first pass over everything
	asks   chan func()   // what Run does for others, between passes

	mu     sync.Mutex
	dirty  map[Key]bool
	all    bool
	views  map[Key]View
	walked map[[2]State]int // how often each step was taken
	// pressed are the tries again that somebody asked for by Retry.
	pressed map[Key]Said
	// trouble is why the last pass failed, "" when it did not.
	trouble string

	first sync.Once

	watching sync.Mutex     // held while pods are asked
	helpers  sync.WaitGroup // what runs beside the loop

	// Of the goroutine in Run alone.
	said    map[Key]said
	errs    map[Key]int           // consecutive errors
	resumes map[Key]int           // how often a pod was started again
	exits   map[Key]string        // and how it had ended
	away    map[Key]time.Duration // since when a pod-api has not answered
	pins    map[Key]Task          // what could not be kept yet
	stuck   map[Key]stuck         // what could not be started
	again   map[Key]int           // how often a decision was put off in a row
	own     map[Key]own           // what our writes did to the time of update
	ordered map[Key]ordered       // what was said on it
	given   map[Key]*given        // what the pod's agent was given of people's words, once it was read
	heeds   map[Key]int64         // the comment whose /retry was seen to last
	// reviewed has the reviews of an issue's pull request.
	reviewed map[Key]reviewed
	pairs    map[pair]compared
	collided map[Key]string // what was told on its pull request of others in its way
	emptied  map[Key]emptied
	// landedSince is how an issue's pull request stands to its base.
	landedSince map[Key]compared
	going       map[Key]*going // the landings whose end was not seen to yet
	line        map[Key]*claim // who waits for a place
	served      map[place]int  // whose turn it was last, by number
	turns       int
	turn        bool // a place is free for the one that is looked at
	stamps      map[stampKey]stamp
	failed      int // consecutive passes that failed
	// tries are those that failed, and are looked at again; Key{} is of all.
	tries map[Key]*time.Timer
	feed  feed
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
	if cfg.Uptime == nil {
		start := time.Now()
		cfg.Uptime = func() time.Duration { return time.Since(start) }
	}
	return &Loop{
		cfg: cfg, wakeup: make(chan struct{}, 1), passed: make(chan struct{}), asks: make(chan func()), all: true,
		dirty: map[Key]bool{}, views: map[Key]View{}, said: map[Key]said{}, errs: map[Key]int{}, resumes: map[Key]int{},
		exits: map[Key]string{}, away: map[Key]time.Duration{}, pins: map[Key]Task{}, stuck: map[Key]stuck{}, again: map[Key]int{}, own: map[Key]own{}, ordered: map[Key]ordered{}, given: map[Key]*given{}, heeds: map[Key]int64{}, reviewed: map[Key]reviewed{}, pressed: map[Key]Said{},
		pairs: map[pair]compared{}, collided: map[Key]string{}, emptied: map[Key]emptied{}, landedSince: map[Key]compared{},
		going: map[Key]*going{}, line: map[Key]*claim{}, served: map[place]int{}, stamps: map[stampKey]stamp{}, walked: map[[2]State]int{}, tries: map[Key]*time.Timer{}, feed: newFeed(),
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
	case l.wakeup <- struct{}{}:
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

// Remove removes the pod of an issue, with all that is known of it, and looks at
// the issue anew. It waits for a pass that is going on, and needs Run.
func (l *Loop) Remove(ctx context.Context, k Key) error {
	done := make(chan error, 1)
	ask := func() {
		err := l.cfg.Pods.Remove(ctx, l.PodKey(k))
		if err == nil {
			l.dropView(k)
		}
		done <- err
		l.Kick(k)
	}
	select {
	case l.asks <- ask:
		return <-done
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Between runs f between two passes, when nothing is made or removed, and waits for
// it. It needs Run.
func (l *Loop) Between(ctx context.Context, f func()) error {
	done := make(chan struct{})
	select {
	case l.asks <- func() { defer close(done); f() }:
		<-done
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
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
		case f := <-l.asks:
			f()
			continue
		case <-l.wakeup:
		}
		if err := l.pass(ctx); ctx.Err() == nil {
			l.passEnded(err)
		}
	}
}

// passEnded notes how a pass went. One that failed is made again, ever more
// slowly: what it is about may be away for long.
func (l *Loop) passEnded(err error) {
	l.failed++
	text := ""
	if err == nil {
		l.failed = 0
	} else {
		text = err.Error()
		wait := min(l.cfg.Resync, l.cfg.Watch<<min(l.failed-1, 10))
		l.cfg.Log.Error("the pass failed", "err", err, "again_in", wait)
		l.tryIn(wait, Key{}, l.KickAll)
	}
	l.mu.Lock()
	l.trouble = text
	l.mu.Unlock()
}

// tryIn does f in a while, instead of what was to be done for the same key: what is looked at anyway
// while it is in trouble has no more tries for that.
func (l *Loop) tryIn(wait time.Duration, k Key, f func()) {
	if t := l.tries[k]; t != nil {
		t.Stop()
	}
	l.tries[k] = time.AfterFunc(wait, f)
}

// Trouble is why the last pass failed, "" when it did not.
func (l *Loop) Trouble() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.trouble
}

// pass takes what is dirty and brings each to where it should be.
func (l *Loop) pass(ctx context.Context) error {
	l.mu.Lock()
	dirty, all := l.dirty, l.all
	l.dirty, l.all = map[Key]bool{}, false
	l.mu.Unlock()

	pods, err := l.pods(ctx)
	if err != nil {
		l.remember(dirty, all)
		return err
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
		l.one(ctx, k, pods)
	}
	l.admit(ctx, pods)
	if all {
		l.first.Do(func() { close(l.passed) })
	}
	return nil
}

// pods are those that there are, by their keys.
func (l *Loop) pods(ctx context.Context) (map[Key]Pod, error) {
	found, err := l.cfg.Pods.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("listing pods: %w", err)
	}
	pods := map[Key]Pod{}
	for _, p := range found {
		pods[p.Key] = p
	}
	return pods, nil
}

// one reconciles a key; an error is logged, told and tried again later. Who waits
// for a place and can't be looked at keeps it, unless it was its turn.
func (l *Loop) one(ctx context.Context, k Key, pods map[Key]Pod) (ok bool) {
	waits := l.line[k]
	delete(l.line, k)
	err := l.reconcileOne(ctx, k, pods)
	if err == nil {
		if l.going[k] == nil { // else it is not known yet
			delete(l.errs, k)
		}
		delete(l.tries, k)
		return true
	}
	if waits != nil && !l.turn && l.line[k] == nil {
		l.line[k] = waits
	}
	l.broke(ctx, k, err)
	return false
}

// broke notes that something about an issue failed, and has it looked at again.
func (l *Loop) broke(ctx context.Context, k Key, err error) {
	if ctx.Err() != nil {
		return
	}
	l.errs[k]++
	wait := min(l.cfg.Resync, time.Second<<min(l.errs[k], 10))
	level := slog.LevelError
	if errors.Is(err, ErrUndone) || errors.Is(err, ErrLater) {
		level = slog.LevelInfo // somebody plays with a label, or all goes its way
	}
	l.cfg.Log.Log(ctx, level, "reconciling", "issue", k.String(), "err", err, "again_in", wait)
	l.tryIn(wait, k, func() { l.Kick(k) })
	l.mu.Lock()
	defer l.mu.Unlock()
	if v, ok := l.views[k]; ok {
		v.Trouble = firstLine(err.Error())
		l.views[k] = v
	}
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
	if v, ok := l.View(k); ok && v.State != Done && v.State != Stopped {
		l.dropView(k)
	}
	delete(l.said, k)
	delete(l.resumes, k)
	delete(l.exits, k)
	delete(l.away, k)
	delete(l.again, k)
	delete(l.own, k)
}

func sortedKeys(m map[Key]bool) []Key {
	out := make([]Key, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.SortFunc(out, compareKeys)
	return out
}

// watch looks at the agents whose processes run, and kicks those that have something new,
// whose time is over, and sees to the line. One that waits for a review is looked at as well:
// who is at its terminal has it work again, and what runs in its container asks for hosts.
func (l *Loop) watch(ctx context.Context) {
	now := l.cfg.Uptime()
	if l.lineMoves() {
		l.wake()
	}
	var ask []View
	for _, v := range l.Views() {
		switch {
		case l.errs[v.Key] > 0: // it is looked at again anyway, and not too often
		case v.until != 0 && now > v.until:
			l.Kick(v.Key)
		case (life[v.State].place || v.State == Asking || v.State == Checking || v.State == Review) && !v.Resting:
			last := l.said[v.Key]
			v.chatty = v.State != last.state || l.cfg.Uptime()-last.at >= chatter
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
	sum, err := l.cfg.Pods.Summary(ctx, v.pod)
	switch {
	case err != nil: // perhaps gone: look properly
		l.Kick(v.Key)
	case !life[v.State].place && (sum.State == AgentStarting || sum.State == AgentReady): // its control is a new one, and knows more soon
	case settled(sum.State) && (sum.Mark != v.mark || sum.State != v.summed): // it asks something else
		l.Kick(v.Key)
	case settled(sum.State) == life[v.State].place || (v.State == Starting && sum.State == AgentWorking):
		l.Kick(v.Key)
	case v.State == Checking: // its activity is ours
	case (life[v.State].place && sum.Activity != v.Activity || len(sum.Blocked) != len(v.Blocked) || wrong(sum.Setups) != v.setups) && v.chatty:
		l.Kick(v.Key)
	}
}

// settled tells whether the agent waits for somebody else.
func settled(s AgentState) bool { return s != AgentStarting && s != AgentReady && s != AgentWorking }

// keepView stores what is known of an issue.
func (l *Loop) keepView(i Issue, v View) View {
	v.Key, v.Issue, v.Title, v.URL = i.Key, i.Key.String(), i.Title, i.URL
	l.mu.Lock()
	defer l.mu.Unlock()
	l.walk(i.Key, l.views[i.Key].State, v.State)
	if old, known := l.views[i.Key]; l.cfg.Changed != nil && (!known || old.State != v.State || v.Ask != "" && v.Ask != old.Ask) {
		l.cfg.Changed(v)
	}
	old := l.views[i.Key]
	l.views[i.Key] = v
	if old.open.Open && !v.open.Open {
		l.passes(old)
	}
	return v
}

// dropView forgets an issue's view: nothing of it is left.
func (l *Loop) dropView(k Key) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if v, ok := l.views[k]; ok {
		l.walk(k, v.State, Gone)
		l.forgetStamps(v.pod)
		delete(l.views, k)
		if v.open.Open {
			l.passes(v)
		}
	}
}
