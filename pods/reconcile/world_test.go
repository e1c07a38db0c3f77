package reconcile_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/pods/reconcile"
)

// world is a forge and its pods in memory, for the decisions alone; the whole
// program's tests run the same thread on real ones.
type world struct {
	mu        sync.Mutex
	ctx       context.Context //nolint:containedctx // of the test
	issue     reconcile.Issue
	formerly  reconcile.Key // what it was called before its repository was renamed
	trigger   reconcile.Trigger
	undone    bool // it was taken off
	writers   map[string]bool
	canErr    error
	fails     func() error // asked at each call to the forge; nil for never
	calls     int          // to the forge
	empty     bool
	archived  bool
	keepErr   error
	listErr   error
	comments  []reconcile.Comment
	onPull    []reconcile.Comment // the same, on the pull request
	said      map[string]string
	state     reconcile.State
	pull      *reconcile.Pull
	pullAt    time.Time // when it was changed last, zero for long ago
	opened    int
	text      reconcile.PullText
	commits   []reconcile.Commit
	asked     []string
	pod       *reconcile.Pod
	kept      *reconcile.Task
	now       time.Time
	jumped    time.Duration // by how much of now the clock jumped, and no time went by
	sumErr    error
	resumed   int
	task      reconcile.Task
	begun     int
	during    func() // what happens while a pod is made or stopped
	aheading  func() // before the forge tells of commits
	saying    func() // and while a comment is written
	beginErr  error
	removed   int
	stopped   int
	summary   reconcile.Summary
	orders    reconcile.Orders // the last that it was steered by
	steered   reconcile.Steered
	steers    int
	read      int      // how often the comments were read
	told      []string // the agent, of comments
	tellErr   error
	given     []reconcile.Given
	giveFail  func(reconcile.Given) error
	reviews   []reconcile.PullReview
	answers   map[int64]string // of ours, to line comments
	check     reconcile.Check
	checked   []string // commits
	checking  func()   // what happens meanwhile
	seen      reconcile.Seen
	ci        reconcile.CI
	noted     []reconcile.Evidence
	heeded    int64
	rounds    []reconcile.Round
	keepFail  func(reconcile.Round) error
	ciErr     error
	toldCI    map[string]string // texts by ids, as the pod takes each once
	tellsCI   int               // how often it was given one
	summons   []reconcile.Call  // how people called the bot since the label's last event
	first     bool              // that there was none
	labeled   []string          // labels that were put on, by their agents
	changed   map[int64]bool    // comments that do not stand as they were
	labelErr  error
	putting   func() // what happens while the label is put on; the lock is held
	acted     []reconcile.Act
	actErr    error
	base      string // of its pull request, "main" when empty
	verdicts  []reconcile.Vote
	closedFor string // the branch for which its issue was closed
	hands     []string
	handsErr  error
	landing   func() error  // what comes of landing
	beside    chan struct{} // what lands is at its end when that is closed; nil for at once
	under     *reconcile.UnderWayError
	landings  []reconcile.Landing
	upstream  string // to which its base goes, "" for none
	finishErr error
	foreign   string // a commit that somebody else has pushed to the branch
	answering func(reconcile.LineComment) error
}

var at = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func newWorld() *world {
	return &world{
		issue: reconcile.Issue{
			Key: reconcile.Key{Owner: "ann", Repo: "hello", Issue: 3}, Title: "Fix it", Body: "please", Author: "stranger",
			Open: true, Labels: []string{"devaipod"}, Updated: at,
		},
		trigger: reconcile.Trigger{ID: 7, User: "ann", At: at},
		writers: map[string]bool{"ann": true, "demo-bot": true}, said: map[string]string{}, toldCI: map[string]string{}, answers: map[int64]string{},
		summary: reconcile.Summary{State: reconcile.AgentWorking}, now: at.Add(time.Minute),
	}
}

// up tells whether the forge answers.
func (w *world) up() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.calls++
	if w.fails != nil {
		return w.fails()
	}
	return nil
}

func (w *world) set(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

func (w *world) Wanted(context.Context) ([]reconcile.Issue, time.Time, error) {
	if err := w.up(); err != nil {
		return nil, time.Time{}, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.issue.Open && slices.ContainsFunc(w.issue.Labels, func(l string) bool { return strings.HasPrefix(l, "devaipod") }) {
		return []reconcile.Issue{w.issue}, w.now, nil
	}
	return nil, w.now, nil
}

func (w *world) Changed(_ context.Context, since time.Time) ([]reconcile.Issue, time.Time, error) {
	if err := w.up(); err != nil {
		return nil, time.Time{}, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.issue.Updated.Before(since) {
		return nil, w.now, nil
	}
	return []reconcile.Issue{w.issue}, w.now, nil
}

func (w *world) Keep(_ reconcile.Key, t *reconcile.Task) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.keepErr == nil {
		w.kept = t
	}
	return w.keepErr
}

func (w *world) Steer(_ context.Context, _ reconcile.Key, o reconcile.Orders) (reconcile.Steered, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.orders = o
	w.steers++
	return w.steered, nil
}

func (w *world) Waiting() ([]reconcile.Key, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.kept == nil {
		return nil, nil
	}
	return []reconcile.Key{w.kept.Key}, nil
}

func (w *world) Kept(reconcile.Key) (*reconcile.Task, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.kept, nil
}

func (w *world) Issue(_ context.Context, k reconcile.Key) (reconcile.Issue, error) {
	if err := w.up(); err != nil {
		return reconcile.Issue{}, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if k != w.issue.Key && k != w.formerly {
		return reconcile.Issue{}, reconcile.ErrGone
	}
	i := w.issue
	i.Labels = slices.Clone(i.Labels) // the loop keeps it beyond this call
	return i, nil
}

func (w *world) Trigger(context.Context, reconcile.Key) (reconcile.Trigger, bool, error) {
	if err := w.up(); err != nil {
		return reconcile.Trigger{}, false, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.undone {
		return reconcile.Trigger{}, false, reconcile.ErrUndone
	}
	return w.trigger, w.trigger.ID != 0, nil
}

func (w *world) CanWrite(_ context.Context, _ reconcile.Key, user string) (bool, error) {
	return w.writers[user] && w.canErr == nil, w.canErr
}
func (w *world) Comments(_ context.Context, k reconcile.Key) ([]reconcile.Comment, error) {
	if err := w.up(); err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.pull != nil && k.Issue == w.pull.Number {
		return w.onPull, nil
	}
	w.read++
	return w.comments, nil
}
func (w *world) DefaultBranch(context.Context, reconcile.Key) (string, bool, error) {
	if err := w.up(); err != nil {
		return "", false, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.archived {
		return "", false, reconcile.ErrReadOnly
	}
	return "main", !w.empty, nil
}
func (w *world) HasBranch(_ context.Context, _ reconcile.Key, name string) (bool, error) {
	return name != "nowhere", nil
}
func (w *world) SetState(ctx context.Context, _ reconcile.Issue, s reconcile.State) error {
	if err := w.up(); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.wrote(ctx, "state")
	w.state = s
	w.issue.Labels = slices.DeleteFunc(w.issue.Labels, func(l string) bool { return strings.HasPrefix(l, "agent/") })
	if s != "" {
		w.issue.Labels = append(w.issue.Labels, "agent/"+string(s))
	}
	w.issue.Updated = w.issue.Updated.Add(time.Hour)
	return nil
}
func (w *world) Close(_ context.Context, _ reconcile.Key, branch string) error {
	if err := w.up(); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closedFor, w.issue.Open = branch, false
	return nil
}

func (w *world) Unlabel(ctx context.Context, _ reconcile.Key) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.wrote(ctx, "unlabel")
	w.issue.Labels = nil
	return nil
}
func (w *world) Say(ctx context.Context, k reconcile.Key, subject, body string) error {
	if err := w.up(); err != nil {
		return err
	}
	if w.saying != nil {
		w.saying()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.archived {
		return reconcile.ErrReadOnly
	}
	if k.Issue != w.issue.Issue && (w.pull == nil || k.Issue != w.pull.Number) {
		return fmt.Errorf("no issue or pull request %d is here", k.Issue)
	}
	w.wrote(ctx, "comment")
	w.said[subject] = body
	if k.Issue == w.issue.Issue { // and not on its pull request
		w.issue.Updated = w.issue.Updated.Add(time.Hour)
	}
	return nil
}

func (w *world) Resay(ctx context.Context, k reconcile.Key, subject, body string) error {
	if w.said[subject] == "" {
		return nil
	}
	return w.Say(ctx, k, subject, body)
}

func (w *world) Pull(context.Context, reconcile.Key, string) (reconcile.Pull, bool, error) {
	if err := w.up(); err != nil {
		return reconcile.Pull{}, false, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.pull == nil {
		return reconcile.Pull{}, false, nil
	}
	p := *w.pull
	p.Base, p.Updated = cmp.Or(w.base, "main"), at.Add(max(0, w.pullAt.Sub(at)))
	if n := len(w.commits); n > 0 {
		p.Head = w.commits[n-1].SHA
	}
	return p, true, nil
}
func (w *world) Ahead(context.Context, reconcile.Key, string, string) ([]reconcile.Commit, error) {
	if err := w.up(); err != nil {
		return nil, err
	}
	if w.aheading != nil {
		w.aheading()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.commits, nil
}
func (w *world) Changes(context.Context, reconcile.Key, int64) ([]reconcile.FileChange, error) {
	return []reconcile.FileChange{{Path: "a`|b", Added: 1}}, nil
}
func (w *world) PutPull(ctx context.Context, _ reconcile.Key, _, _ string, t reconcile.PullText) (reconcile.Pull, error) {
	if err := w.up(); err != nil {
		return reconcile.Pull{}, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if t.Number != 0 && (w.pull == nil || !w.pull.Open || w.pull.Number != t.Number) {
		return reconcile.Pull{}, nil
	}
	if w.pull == nil || !w.pull.Open {
		w.opened++
	}
	if w.text != t {
		w.wrote(ctx, "pull-request")
	}
	w.text = t
	w.pull = &reconcile.Pull{Number: 4, URL: "http://forge/4", Open: true, Draft: t.Draft}
	return *w.pull, nil
}
func (w *world) CI(context.Context, reconcile.Key, string) (reconcile.CI, error) {
	if err := w.up(); err != nil {
		return reconcile.CI{}, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.ci, nil
}
func (w *world) Check(_ context.Context, _ reconcile.Key, commit string) (reconcile.Check, error) {
	if w.checking != nil {
		w.checking()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.checked = append(w.checked, commit)
	return w.check, nil
}
func (w *world) Seen(context.Context, reconcile.Key) (reconcile.Seen, error) { return w.seen, nil }
func (w *world) Note(_ context.Context, _ reconcile.Key, ev reconcile.Evidence) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.noted = append(w.noted, ev)
	return nil
}
func (w *world) Heed(_ reconcile.Key, comment int64) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.heeded = comment
	return nil
}
func (w *world) Heeded(reconcile.Key) (int64, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.heeded, nil
}
func (w *world) Rounds(reconcile.Key) ([]reconcile.Round, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.rounds), nil
}
func (w *world) KeepRound(_ reconcile.Key, r reconcile.Round) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.keepFail != nil {
		if err := w.keepFail(r); err != nil {
			return err
		}
	}
	if i := slices.IndexFunc(w.rounds, func(o reconcile.Round) bool { return o.ID == r.ID }); i >= 0 {
		w.rounds[i] = r
	} else {
		w.rounds = append(w.rounds, r)
	}
	return nil
}
func (w *world) ForgiveRounds(reconcile.Key) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range w.rounds {
		w.rounds[i].Word = -1
	}
	return nil
}
func (w *world) TellCI(_ context.Context, _ reconcile.Key, r reconcile.Round) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ciErr != nil {
		return w.ciErr
	}
	w.tellsCI++
	if old, known := w.toldCI[r.ID]; known && old != r.Text {
		panic("one round in two wordings")
	}
	w.toldCI[r.ID] = r.Text
	return nil
}
func (w *world) Left(context.Context, reconcile.Key) (string, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.noted) == 0 {
		return "", nil
	}
	return w.noted[len(w.noted)-1].Commit, nil
}
func (w *world) RequestReview(ctx context.Context, _ reconcile.Key, _ int64, user string) error {
	if err := w.up(); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.wrote(ctx, "review-request")
	w.asked = append(w.asked, user)
	return nil
}

func (w *world) List(context.Context) ([]reconcile.Pod, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.pod == nil || w.listErr != nil {
		return nil, w.listErr
	}
	return []reconcile.Pod{*w.pod}, nil
}
func (w *world) Begin(_ context.Context, t reconcile.Task) error {
	if w.during != nil {
		w.during()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.begun++
	if w.beginErr != nil {
		return w.beginErr
	}
	w.task = t
	w.pod = &reconcile.Pod{Key: t.Key, RepoID: t.RepoID, Name: "pod", TriggerID: t.Trigger.ID, TriggerAt: t.Trigger.At, Labeler: t.Trigger.User, Branch: t.Branch, Base: t.Base, Whole: true, Created: w.now, Started: w.now}
	return nil
}
func (w *world) Resume(context.Context, reconcile.Key) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.resumed++
	if w.pod != nil {
		w.pod.Whole, w.pod.Stopped, w.pod.Exit = true, false, ""
	}
	return nil
}
func (w *world) Stop(context.Context, reconcile.Key) error {
	if w.during != nil {
		w.during()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stopped++
	if w.pod != nil {
		w.pod.Whole, w.pod.Stopped, w.pod.Exit = false, true, ""
	}
	return nil
}
func (w *world) Remove(context.Context, reconcile.Key) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.removed++
	w.pod = nil
	return nil
}
func (w *world) Summary(context.Context, reconcile.Key) (reconcile.Summary, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.summary, w.sumErr
}

func (w *world) Tell(_ context.Context, _ reconcile.Key, id, text string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.tellErr == nil {
		w.told = append(w.told, strings.TrimPrefix(id, "comment ")+" "+text)
	}
	return w.tellErr
}

func (w *world) Pushed(_ context.Context, _ reconcile.Key, _, commit string) (bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return commit != w.foreign, nil
}

func (w *world) Given(reconcile.Key) ([]reconcile.Given, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.given), nil
}

// gave is what people said of that.
func (w *world) gave() []reconcile.Given {
	return slices.DeleteFunc(slices.Clone(w.given), func(g reconcile.Given) bool { return strings.HasPrefix(g.ID, "label ") })
}

func (w *world) KeepGiven(_ reconcile.Key, g reconcile.Given) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.giveFail != nil {
		if err := w.giveFail(g); err != nil {
			return err
		}
	}
	if i := slices.IndexFunc(w.given, func(o reconcile.Given) bool { return o.ID == g.ID }); i >= 0 {
		w.given[i] = g
	} else {
		w.given = append(w.given, g)
	}
	return nil
}

func (w *world) Reviews(context.Context, reconcile.Key, int64) ([]reconcile.PullReview, error) {
	if err := w.up(); err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.reviews, nil
}

func (w *world) Answer(ctx context.Context, _ reconcile.Key, _ int64, to reconcile.LineComment, body string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.wrote(ctx, "answer")
	if w.answering != nil {
		if err := w.answering(to); err != nil {
			return err
		}
	}
	w.answers[to.ID] += body
	for i, r := range w.reviews {
		if r.ID == to.Review {
			w.reviews[i].Comments = append(r.Comments, reconcile.LineComment{ID: 1000 + to.ID, Review: r.ID, Author: "demo-bot", Body: body, Path: to.Path, Line: to.Line})
		}
	}
	return nil
}

func (w *world) Votes(context.Context, reconcile.Key, int64) ([]reconcile.Vote, error) {
	if err := w.up(); err != nil {
		return nil, err
	}
	return w.verdicts, nil
}

func (w *world) Hands(context.Context, reconcile.Key, string, string) (string, []string, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if n := len(w.commits); n > 0 {
		return w.commits[n-1].SHA, w.hands, w.handsErr
	}
	return "", w.hands, w.handsErr
}

func (w *world) Plan(_ context.Context, l reconcile.Landing) (reconcile.Landed, error) {
	if w.upstream != "" && len(w.commits) == 0 { // it is there
		return reconcile.Landed{Upstream: w.upstream, Branch: l.Base, Old: l.Commit, New: l.Commit}, nil
	}
	return reconcile.Landed{Upstream: w.upstream, Branch: l.Base, Old: "old", New: l.Commit, Commits: w.commits}, nil
}

func (w *world) Land(_ context.Context, l reconcile.Landing) (reconcile.Landed, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.landings = append(w.landings, l)
	if w.beside != nil {
		w.under = &reconcile.UnderWayError{Done: w.beside, Result: func() (reconcile.Landed, error) { return w.lands(l) }}
		return reconcile.Landed{}, w.under
	}
	return w.lands(l)
}

func (w *world) lands(l reconcile.Landing) (reconcile.Landed, error) {
	if w.landing != nil {
		if err := w.landing(); err != nil {
			return reconcile.Landed{}, err
		}
	}
	if w.upstream == "" {
		w.pull.Merged, w.pull.Open, w.pull.ClosedAt = true, false, w.now
	}
	return reconcile.Landed{Upstream: w.upstream, Branch: l.Base, Old: "old", New: l.Commit}, nil
}

func (w *world) Finish(context.Context, reconcile.Landing) (bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.finishErr != nil || w.upstream == "" {
		return false, w.finishErr
	}
	w.pull.Merged, w.pull.Open, w.pull.ClosedAt = true, false, w.now
	return true, nil
}

// config is one whose loop makes a pass when it is told to, and else waits.
func (w *world) config() reconcile.Config {
	return reconcile.Config{
		Forge: w, Pods: w, Label: "devaipod", Ours: []string{"demo-bot"}, Resync: time.Hour, Watch: time.Hour,
		Harmless:   func(s string) string { return strings.NewReplacer("@", "(at)", "#", "(number)").Replace(s) },
		BranchName: func(n int64, _ string) string { return fmt.Sprintf("agent/%d-work", n) },
		Now:        func() time.Time { w.mu.Lock(); defer w.mu.Unlock(); return w.now },
		Uptime:     func() time.Duration { w.mu.Lock(); defer w.mu.Unlock(); return w.now.Sub(at) - w.jumped },
		Deadline:   4 * time.Hour, Rest: 24 * time.Hour, CIRounds: 3, Acted: w.act, Because: func(ctx context.Context, a reconcile.Act) context.Context {
			return context.WithValue(ctx, actKey{}, merged(actOf(ctx), a))
		},
		Log: slog.New(slog.DiscardHandler),
	}
}

type actKey struct{}

func actOf(ctx context.Context) reconcile.Act {
	a, _ := ctx.Value(actKey{}).(reconcile.Act)
	return a
}

func merged(a, more reconcile.Act) reconcile.Act {
	return reconcile.Act{What: cmp.Or(more.What, a.What), Key: cmp.Or(more.Key, a.Key), Who: cmp.Or(more.Who, a.Who), Rule: cmp.Or(more.Rule, a.Rule), Done: cmp.Or(more.Done, a.Done)}
}

// wrote keeps what was written to the forge, as whoever writes there does; the lock is held.
func (w *world) wrote(ctx context.Context, what string) {
	a := actOf(ctx)
	if a.What != what {
		a.Done = ""
	}
	a.What, a.Result = what, "sent"
	w.acted = append(w.acted, a)
}

func (w *world) act(a reconcile.Act) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.acted = append(w.acted, a)
	return w.actErr
}

// jump makes the machine's clock jump, while no time goes by.
func (w *world) jump(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.now, w.jumped = w.now.Add(d), w.jumped+d
}

// pass runs a new loop, as after a restart, until its first pass is done.
func (w *world) pass(t *testing.T) reconcile.View {
	t.Helper()
	return w.with(t, w.config(), func(*reconcile.Loop) {})
}

// with runs a loop until its first pass is done, and then f beside it.
func (w *world) with(t *testing.T, c reconcile.Config, f func(*reconcile.Loop)) reconcile.View {
	t.Helper()
	l, err := reconcile.New(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	<-l.Passed()
	f(l)
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	for _, step := range l.Strange() {
		t.Errorf("a step that the life of an issue does not have: %s", step)
	}
	v, _ := l.View(w.issue.Key)
	return v
}
