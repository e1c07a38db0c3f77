package main_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	main "codeberg.org/devaipod/devaipod/cmd/devaipod"
	"codeberg.org/devaipod/devaipod/cmd/internal/testkit"
	"codeberg.org/devaipod/devaipod/forge"
	"codeberg.org/devaipod/devaipod/pods/reconcile"
)

// A crowd is a repository with many issues on the suite's forge, and a loop
// that looks for a label of its own there: without webhooks, with pods that are
// only noted, and with its calls counted.
type crowd struct {
	*suite
	repo   forge.Repo
	client *forge.Client // the loop's
	loop   *reconcile.Loop
	calls  atomic.Int64

	begun, left chan struct{} // a pass has begun; the issue that is nowhere was left

	mu    sync.Mutex
	pods  map[reconcile.Key]reconcile.Pod
	began []reconcile.Trigger // for whom agents began, in this order
	ended map[reconcile.Key]bool
	most  int // that worked at once
}

const crowdLabel = "crowd"

// crowdOverlap is shorter than the service's, so that issues that are made here
// are soon not recent any more.
const crowdOverlap = 2 * time.Second

func (c *crowd) RoundTrip(r *http.Request) (*http.Response, error) {
	c.calls.Add(1)
	return http.DefaultTransport.RoundTrip(r)
}

// newCrowd makes the repository with its issues, and starts the loop.
func newCrowd(tb testing.TB, issues int) *crowd {
	tb.Helper()
	c := gather(tb, issues)
	c.run(tb, 0)
	return c
}

// gather makes the repository with its issues.
func gather(tb testing.TB, issues int) *crowd {
	tb.Helper()
	running.once.Do(func() { running.s, running.err = start(suiteContext) })
	if running.err != nil {
		tb.Fatal(running.err)
	}
	s := running.s
	c := &crowd{suite: s, repo: forge.Repo{Owner: person, Name: fmt.Sprint("crowd", issues)}, begun: make(chan struct{}, 1), left: make(chan struct{}, 1), pods: map[reconcile.Key]reconcile.Pod{}, ended: map[reconcile.Key]bool{}}
	cred, err := s.Credentials()
	if err != nil {
		tb.Fatal(err)
	}
	c.client, err = forge.New(forge.Config{
		URL: s.ForgeURL(), Token: cred.ServiceToken, BotToken: cred.BotToken, BotUser: cred.Bot, ServiceUser: cred.Service,
		Transport: c,
	})
	if err != nil {
		tb.Fatal(err)
	}
	if err := s.api(person).Post(s.ctx, "/user/repos", map[string]any{"name": c.repo.Name, "auto_init": true, "default_branch": "main"}, nil); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := c.client.DeleteRepo(context.WithoutCancel(s.ctx), c.repo); err != nil {
			tb.Error(err)
		}
	})
	if _, err := c.client.EnsureLabels(s.ctx, c.repo, forge.DefaultLabels(crowdLabel)); err != nil {
		tb.Fatal(err)
	}
	if err := c.fill(issues); err != nil {
		tb.Fatal(err)
	}
	return c
}

// fill makes the issues, a few at a time, with no webhook for each.
func (c *crowd) fill(issues int) (err error) {
	if err := c.webhook(false); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.webhook(true)) }()
	return c.each(issues, func(n int) error {
		_, err := c.api(person).CreateIssue(c.ctx, c.repo.String(), fmt.Sprint("One of many, ", n), "")
		return err
	})
}

// each does something n times, a few at a time.
func (c *crowd) each(n int, do func(n int) error) error {
	numbers, errs := make(chan int), make(chan error, 8)
	for range cap(errs) {
		go func() {
			var err error
			for n := range numbers {
				if err == nil {
					err = do(n)
				}
			}
			errs <- err
		}()
	}
	for i := range n {
		numbers <- i
	}
	close(numbers)
	var all error
	for range cap(errs) {
		all = errors.Join(all, <-errs)
	}
	return all
}

// webhook turns the forge's on or off.
func (c *crowd) webhook(on bool) error {
	var hooks []struct {
		ID int64 `json:"id"`
	}
	if err := c.api(person).Get(c.ctx, "/admin/hooks", &hooks); err != nil {
		return err
	}
	for _, h := range hooks {
		if _, err := c.api(person).Do(c.ctx, http.MethodPatch, fmt.Sprintf("/admin/hooks/%d", h.ID), map[string]bool{"active": on}); err != nil {
			return err
		}
	}
	return nil
}

// run starts the loop, until the test's end, for that many agents at a time.
func (c *crowd) run(tb testing.TB, most int) {
	var err error
	c.loop, err = reconcile.New(reconcile.Config{
		Forge: main.NewForgePort(c.client, crowdLabel, c.Instance+"-crowd", c.Instance+"-bot"), Pods: c, Label: crowdLabel,
		Resync: time.Hour, Overlap: crowdOverlap, Max: most, Harmless: forge.Harmless,
		BranchName: func(n int64, _ string) string { return fmt.Sprintf("agent/%d-crowd", n) }, Log: slog.New(slog.NewTextHandler(tb.Output(), nil)),
	})
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(c.ctx)
	done := make(chan error, 1)
	go func() { done <- c.loop.Run(ctx) }()
	tb.Cleanup(func() { cancel(); <-done })
	select {
	case <-c.loop.Passed():
	case <-c.ctx.Done():
		tb.Fatal(c.ctx.Err())
	}
}

// pass makes a pass over everything and tells how many calls it made.
func (c *crowd) pass(tb testing.TB) int64 {
	tb.Helper()
	before := c.calls.Load()
	for _, step := range []struct {
		kick func()
		seen chan struct{}
	}{{c.loop.KickAll, c.begun}, {func() { c.loop.Kick(c.nowhere()) }, c.left}} {
		empty(step.seen)
		step.kick()
		select {
		case <-step.seen:
		case <-time.After(2 * time.Minute):
			tb.Fatal("the pass has no end")
		case <-c.ctx.Done():
			tb.Fatal(c.ctx.Err())
		}
	}
	return c.calls.Load() - before - 1 // the question for the issue that is nowhere
}

func empty(c chan struct{}) {
	select {
	case <-c:
	default:
	}
}

// nowhere is an issue that is not there. A pass that has left it came after all
// others.
func (c *crowd) nowhere() reconcile.Key {
	return reconcile.Key{Owner: c.repo.Owner, Repo: c.repo.Name, Issue: 999_999_999}
}

func note(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// settle waits until the issues are not recent any more and all is looked at.
func (c *crowd) settle(tb testing.TB) {
	tb.Helper()
	for quiet := 0; quiet < 3; quiet++ {
		if c.pass(tb) > 1 {
			quiet = -1
		}
		if err := pause(c.ctx, 2*time.Second); err != nil {
			tb.Fatal(err)
		}
	}
}

// TestAPassOverManyIssues counts what a pass costs the forge, with ten issues and
// with forty, or TEST_ISSUES of them, and lets it find a label that was put on and one
// that was taken off, with no webhook.
func TestAPassOverManyIssues(t *testing.T) {
	many := 40
	if text := os.Getenv("TEST_ISSUES"); text != "" {
		var err error
		if many, err = strconv.Atoi(text); err != nil {
			t.Fatal(err)
		}
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	cost := map[int]int64{}
	for _, issues := range []int{10, many} {
		start := time.Now()
		c := newCrowd(t, issues)
		t.Logf("%d issues made in %s", issues, time.Since(start).Round(time.Millisecond))
		c.settle(t)
		cost[issues] = c.pass(t)
		var on int64
		for range 3 {
			off := on
			for on = off; on == off; {
				on = 1 + rnd.Int64N(int64(issues))
			}
			c.relabel(t, on, off)
			calls := c.pass(t)
			t.Logf("of %d issues, label on %d, off %d: found with %d calls", issues, on, off, calls)
			if !c.runs(on) || c.runs(off) {
				t.Errorf("issue %d, labeled, runs: %t; issue %d, unlabeled, runs: %t", on, c.runs(on), off, c.runs(off))
			}
			if calls > 60 {
				t.Errorf("that cost %d calls", calls)
			}
		}
	}
	if cost[10] != 1 || cost[many] != 1 {
		t.Errorf("a pass without a change costs %d calls with 10 issues and %d with %d, want one", cost[10], cost[many], many)
	}
}

// TestFiftyLabelsAtOnceOnAForge puts the label on fifty issues, eight at a time, with
// places for four: they begin in the order of their labels.
func TestFiftyLabelsAtOnceOnAForge(t *testing.T) {
	const issues, places = 50, 4
	c := gather(t, issues)
	if err := c.webhook(false); err != nil {
		t.Fatal(err)
	}
	err := c.each(issues, func(n int) error {
		return c.api(person).Label(c.ctx, c.repo.String(), int64(n+1), crowdLabel)
	})
	if err := errors.Join(err, c.webhook(true)); err != nil {
		t.Fatal(err)
	}
	var found []testkit.Issue
	for len(found) < issues { // the forge's index is late
		if err := pause(c.ctx, 200*time.Millisecond); err != nil {
			t.Fatal(err)
		}
		if err := c.api(person).Get(c.ctx, "/repos/issues/search?state=open&limit=50&labels="+crowdLabel, &found); err != nil {
			t.Fatal(err)
		}
	}
	c.run(t, places)
	for c.working() > 0 {
		for range c.working() {
			c.endOne()
		}
		c.looked(t) // at them
		c.looked(t) // and then at the line
		waits := 0
		for _, v := range c.loop.Views() {
			if v.Position > 0 {
				waits++
			}
		}
		if begun, works := c.count(), c.working(); begun+waits != issues || works != min(places, works+waits) {
			t.Fatalf("%d have begun, %d work, %d wait", begun, works, waits)
		}
	}
	t.Logf("%d calls", c.calls.Load())
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.most != places || len(c.began) != issues || len(c.pods) != issues {
		t.Errorf("%d began, at most %d at once, of %d issues", len(c.began), c.most, len(c.pods))
	}
	if !slices.IsSortedFunc(c.began, func(a, b reconcile.Trigger) int { return cmp.Compare(a.ID, b.ID) }) {
		t.Errorf("they began out of order: %v", c.began)
	}
}

// looked waits until the loop has looked at what was kicked before.
func (c *crowd) looked(tb testing.TB) {
	tb.Helper()
	empty(c.left)
	c.loop.Kick(c.nowhere())
	select {
	case <-c.left:
	case <-c.ctx.Done():
		tb.Fatal(c.ctx.Err())
	}
}

func (c *crowd) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.began)
}

func (c *crowd) working() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.began) - len(c.ended)
}

// endOne lets the agent end that has worked for the longest.
func (c *crowd) endOne() {
	c.mu.Lock()
	defer c.mu.Unlock()
	var first reconcile.Key
	for k, p := range c.pods {
		if !c.ended[k] && (first.Issue == 0 || p.TriggerID < c.pods[first].TriggerID) {
			first = k
		}
	}
	c.ended[first] = true
	c.loop.Kick(first)
}

// relabel puts the label on an issue and takes it off another (0 for none), and
// waits until the forge's index knows.
func (c *crowd) relabel(tb testing.TB, on, off int64) {
	tb.Helper()
	api := c.api(person)
	if err := api.Label(c.ctx, c.repo.String(), on, crowdLabel); err != nil {
		tb.Fatal(err)
	}
	if off != 0 {
		if err := c.client.RemoveLabel(c.ctx, c.repo, off, crowdLabel); err != nil {
			tb.Fatal(err)
		}
	}
	var found []testkit.Issue
	for !c.has(found, on) || c.has(found, off) {
		if err := pause(c.ctx, 200*time.Millisecond); err != nil {
			tb.Fatal(err)
		}
		found = nil
		if err := api.Get(c.ctx, "/repos/issues/search?state=open&labels="+crowdLabel, &found); err != nil {
			tb.Fatal(err)
		}
	}
}

// has tells whether an issue of the crowd's own repository is among them, with the label. Other
// crowds have left theirs.
func (c *crowd) has(issues []testkit.Issue, n int64) bool {
	for _, i := range issues {
		if i.Number == n && strings.Contains(i.URL, "/"+c.repo.String()+"/") && strings.Contains(fmt.Sprint(i.Labels), crowdLabel) {
			return true
		}
	}
	return false
}

func (c *crowd) runs(n int64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pods[reconcile.Key{Owner: c.repo.Owner, Repo: c.repo.Name, Issue: n}].Whole
}

// The pods are only noted.

func (c *crowd) List(context.Context) (out []reconcile.Pod, _ error) {
	note(c.begun)
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.pods {
		out = append(out, p)
	}
	return out, nil
}

func (c *crowd) Begin(_ context.Context, t reconcile.Task) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.began = append(c.began, t.Trigger)
	c.most = max(c.most, len(c.began)-len(c.ended))
	c.pods[t.Key] = reconcile.Pod{
		Key: t.Key, Name: "none", TriggerID: t.Trigger.ID, TriggerAt: t.Trigger.At, Labeler: t.Trigger.User,
		Branch: t.Branch, Base: t.Base, Whole: true, Created: time.Now(), Started: time.Now(),
	}
	return nil
}

func (c *crowd) Stop(_ context.Context, k reconcile.Key) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if p, ok := c.pods[k]; ok {
		p.Whole, p.Stopped = false, true
		c.pods[k] = p
	}
	return nil
}

func (c *crowd) Remove(_ context.Context, k reconcile.Key) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.pods, k)
	return nil
}

func (c *crowd) Resume(context.Context, reconcile.Key) error { return nil }
func (c *crowd) Keep(k reconcile.Key, _ *reconcile.Task) error {
	if k == c.nowhere() {
		note(c.left)
	}
	return nil
}

func (c *crowd) Check(context.Context, reconcile.Key, string) (reconcile.Check, error) {
	return reconcile.Check{}, nil
}
func (c *crowd) Seen(context.Context, reconcile.Key) (reconcile.Seen, error) {
	return reconcile.Seen{}, nil
}
func (c *crowd) Left(context.Context, reconcile.Key) (string, error)           { return "", nil }
func (c *crowd) Heed(reconcile.Key, int64) error                               { return nil }
func (c *crowd) Heeded(reconcile.Key) (int64, error)                           { return 0, nil }
func (c *crowd) Note(context.Context, reconcile.Key, reconcile.Evidence) error { return nil }
func (c *crowd) Given(reconcile.Key) ([]reconcile.Given, error)                { return nil, nil }
func (c *crowd) Pushed(context.Context, reconcile.Key, string, string) (bool, error) {
	return true, nil
}
func (c *crowd) KeepGiven(reconcile.Key, reconcile.Given) error               { return nil }
func (c *crowd) Tell(context.Context, reconcile.Key, string, string) error    { return nil }
func (c *crowd) Rounds(reconcile.Key) ([]reconcile.Round, error)              { return nil, nil }
func (c *crowd) KeepRound(reconcile.Key, reconcile.Round) error               { return nil }
func (c *crowd) ForgiveRounds(reconcile.Key) error                            { return nil }
func (c *crowd) TellCI(context.Context, reconcile.Key, reconcile.Round) error { return nil }
func (c *crowd) Steer(context.Context, reconcile.Key, reconcile.Orders) (reconcile.Steered, error) {
	return reconcile.Steered{}, nil
}
func (c *crowd) Kept(reconcile.Key) (*reconcile.Task, error) { return nil, nil }
func (c *crowd) Waiting() ([]reconcile.Key, error)           { return nil, nil }
func (c *crowd) Summary(_ context.Context, k reconcile.Key) (reconcile.Summary, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended[k] {
		return reconcile.Summary{State: reconcile.AgentAsking, Question: "?", Since: time.Now()}, nil
	}
	return reconcile.Summary{State: reconcile.AgentWorking}, nil
}
