package ci_test

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/ci"
	"codeberg.org/devaipod/devaipod/ci/job"
)

func b64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

// fakeExecutor stands for what runs jobs: it replays events.
type fakeExecutor struct {
	run func(ctx context.Context, j ci.Job, events func(job.Event)) error

	mu   sync.Mutex
	jobs []ci.Job
}

func (f *fakeExecutor) Run(ctx context.Context, j ci.Job, events func(job.Event)) error {
	f.mu.Lock()
	f.jobs = append(f.jobs, j)
	f.mu.Unlock()
	return f.run(ctx, j, events)
}

func (f *fakeExecutor) seen() []ci.Job {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]ci.Job(nil), f.jobs...)
}

func line(step int, s string) job.Event { return job.Event{Step: step, Line: &s} }

// oneStep replays a job of one step that prints lines and ends with result.
func oneStep(events func(job.Event), result string, lines ...string) {
	events(line(job.SetUp, "setting up"))
	events(job.Event{Step: 0, Began: true})
	for _, l := range lines {
		events(line(0, l))
	}
	events(job.Event{Step: 0, Ended: result})
	events(line(job.Complete, "cleaning up"))
	events(job.Event{Result: result, Outputs: map[string]string{"word": "blue"}})
}

// killable is a way to the forge that can be cut, as a kill of the service does.
type killable struct{ dead atomic.Bool }

func (k *killable) RoundTrip(r *http.Request) (*http.Response, error) {
	if k.dead.Load() {
		return nil, errors.New("cut off by the test")
	}
	return http.DefaultTransport.RoundTrip(r)
}

func config(t *testing.T, url string, token func(context.Context, int64) (string, error), label string, ex ci.Executor) ci.Config {
	return ci.Config{
		Forge: url, Dir: t.TempDir(), Name: label, Labels: []string{label}, Timeout: time.Minute, Token: token, Executor: ex,
		Idle: time.Second, Heartbeat: 200 * time.Millisecond,
		Rules: ci.Rules{Agents: []string{"robot"}, Branches: "agent/"}, Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
}

// start runs a runner until the test ends, or stop is called.
func start(t *testing.T, c ci.Config) (r *ci.Runner, stop func()) {
	t.Helper()
	r, err := ci.New(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return r, stop
}

const workflow = `on: [push, pull_request]
jobs:
  first:
    runs-on: LABEL
    outputs:
      word: ${{ steps.s.outputs.word }}
    steps:
      - name: say it
        id: s
        run: echo blue
  second:
    needs: first
    runs-on: LABEL
    strategy:
      matrix:
        n: [a, b]
    steps:
      - run: echo ${{ needs.first.outputs.word }} ${{ matrix.n }}
`

func flow(text, label string) map[string]string {
	return map[string]string{".gitea/workflows/ci.yml": strings.ReplaceAll(text, "LABEL", label)}
}

func TestAWorkflowOnTheRealForge(t *testing.T) {
	t.Parallel()
	f := realForge(t)
	ex := &fakeExecutor{run: func(_ context.Context, j ci.Job, events func(job.Event)) error {
		oneStep(events, job.Success, "::notice::of "+j.Job, "\x1b[31mred\x1b[0m \x1b]0;title\x07\x1b[2Jend "+j.Token)
		return nil
	}}
	r, _ := start(t, config(t, f.URL, f.token, "plain", ex))
	b, repo := f.browser(t), f.repo(t, "plain")
	commit := f.push(t, "person", repo, "main", flow(workflow, "plain"))
	r.Kick()
	v := b.ended(repo, 1)
	if v.State.Run.Status != "success" || len(v.State.Run.Jobs) != 3 {
		t.Fatalf("the run: %+v", v.State.Run)
	}
	for i := range v.State.Run.Jobs {
		name := []string{"first", "second", "second"}[i]
		want := "Set up job success|setting up\n" + map[bool]string{true: "say it", false: ""}[i == 0]
		got := b.view(repo, 1, i, 1).steps()
		if !strings.HasPrefix(got, want) || !strings.Contains(got, " success|::notice::of "+name+"|\x1b[31mred\x1b[0m end ***\n") ||
			!strings.HasSuffix(got, "Complete job success|cleaning up|Job succeeded") {
			t.Errorf("job %d shows %q", i, got)
		}
	}
	for _, j := range ex.seen()[1:] {
		if n := j.Spec.Needs["first"]; n.Result != job.Success || n.Outputs["word"] != "blue" || j.Tier != ci.Trusted {
			t.Errorf("%s needs %+v, %s", j.Job, n, j.Tier)
		}
	}
	var status struct{ State string }
	eventually(t, func() bool {
		f.api(t, "person", "GET", "/repos/"+repo+"/commits/"+commit+"/status", nil, &status)
		return status.State == "success"
	})
	eventually(t, func() bool { left, err := r.Store().Running(); return err == nil && len(left) == 0 })
	recs, err := r.Store().List()
	if err != nil || len(recs) != 3 || recs[2].Commit != commit || recs[2].Repo != repo || recs[2].RepoID == 0 || recs[2].Job != "first" {
		t.Errorf("on record: %+v, %v", recs, err)
	}

	b.post("/"+repo+"/actions/runs/1/rerun", "")
	r.Kick()
	eventually(t, func() bool { return len(ex.seen()) == 6 })
	if v := b.ended(repo, 1); v.State.Run.Status != "success" || ex.seen()[5].Attempt != "2" {
		t.Errorf("run again: %s, attempt %s", v.State.Run.Status, ex.seen()[5].Attempt)
	}
}

const single = `on: [push, pull_request]
jobs:
  one:
    runs-on: LABEL
    steps:
      - name: only
        run: sleep 1
`

func TestACancelOnTheForgeEndsTheJob(t *testing.T) {
	t.Parallel()
	f := realForge(t)
	causes := make(chan error, 1)
	ex := &fakeExecutor{run: func(ctx context.Context, _ ci.Job, events func(job.Event)) error {
		events(job.Event{Step: 0, Began: true})
		events(line(0, "waiting"))
		<-ctx.Done()
		causes <- context.Cause(ctx)
		return nil
	}}
	r, _ := start(t, config(t, f.URL, f.token, "cancel", ex))
	b, repo := f.browser(t), f.repo(t, "cancel")
	f.push(t, "person", repo, "main", flow(single, "cancel"))
	r.Kick()
	// Live: the line is there while the job runs.
	eventually(t, func() bool { return strings.Contains(b.view(repo, 1, 0, 1).steps(), "only running|waiting") })
	b.post("/"+repo+"/actions/runs/1/cancel", "")
	if cause := <-causes; !errors.Is(cause, ci.ErrCancelled) {
		t.Errorf("the job was ended since %v", cause)
	}
	eventually(t, func() bool {
		recs, err := r.Store().List()
		return err == nil && len(recs) == 1 && recs[0].Result == job.Cancelled
	})
	if v := b.ended(repo, 1); v.State.Run.Status != "cancelled" {
		t.Errorf("the run is %s", v.State.Run.Status)
	}
}

// Concurrency groups are the forge's affair. This one knows none, but ends what an older push
// of the same workflow to the same branch has under way, and the key is no reason to refuse it.
func TestANewerPushEndsTheJobsOfAnOlderOne(t *testing.T) {
	t.Parallel()
	f := realForge(t)
	began, ended := make(chan string, 5), make(chan error, 5)
	ex := &fakeExecutor{run: func(ctx context.Context, j ci.Job, _ func(job.Event)) error {
		began <- j.Commit
		<-ctx.Done()
		ended <- context.Cause(ctx)
		return nil
	}}
	r, _ := start(t, config(t, f.URL, f.token, "newer", ex))
	repo := f.repo(t, "newer")
	first := f.push(t, "person", repo, "main", flow("concurrency: {group: one, cancel-in-progress: true}\n"+single, "newer"))
	r.Kick()
	if c := <-began; c != first {
		t.Errorf("the job is of %s", c)
	}
	second := f.push(t, "person", repo, "main", map[string]string{"more": "x"})
	r.Kick()
	if c := <-began; c != second {
		t.Errorf("the next job is of %s", c)
	}
	if err := <-ended; !errors.Is(err, ci.ErrCancelled) {
		t.Errorf("the older job was ended since %v", err)
	}
}

// Not parallel: the forge looks for all jobs that it has not heard of.
func TestALostHeartbeatEndsTheJobHereAndThere(t *testing.T) {
	f := realForge(t)
	causes := make(chan error, 1)
	ex := &fakeExecutor{run: func(ctx context.Context, _ ci.Job, events func(job.Event)) error {
		events(job.Event{Step: 0, Began: true})
		<-ctx.Done()
		causes <- context.Cause(ctx)
		return nil
	}}
	way := &killable{}
	c := config(t, f.URL, f.token, "unheard", ex)
	c.HTTP = &http.Client{Transport: way}
	r, _ := start(t, c)
	b, repo := f.browser(t), f.repo(t, "unheard")
	f.push(t, "person", repo, "main", flow(single, "unheard"))
	r.Kick()
	eventually(t, func() bool { return b.view(repo, 1, 0, 1).State.Run.Status == "running" })
	way.dead.Store(true)
	eventually(t, func() bool {
		f.api(t, "person", "POST", "/admin/cron/stop_zombie_tasks", nil, nil)
		return b.view(repo, 1, 0, 1).State.Run.Status == "failure"
	})
	way.dead.Store(false)
	if err := <-causes; !errors.Is(err, ci.ErrGone) {
		t.Errorf("the job was ended since %v", err)
	}
	eventually(t, func() bool { recs, err := r.Store().List(); return err == nil && len(recs) == 1 })
	if recs, err := r.Store().List(); err != nil || len(recs) != 1 || recs[0].Result != job.Failure || !strings.Contains(recs[0].Reason, "does not know this task") {
		t.Errorf("on record: %+v %v", recs, err)
	}
}

func TestAServiceThatIsKilledTellsOfTheJobWhenItIsBack(t *testing.T) {
	t.Parallel()
	f := realForge(t)
	ex := &fakeExecutor{run: func(ctx context.Context, _ ci.Job, events func(job.Event)) error {
		events(job.Event{Step: 0, Began: true})
		events(line(0, "under way"))
		<-ctx.Done()
		return nil
	}}
	way := &killable{}
	c := config(t, f.URL, f.token, "killed", ex)
	c.HTTP = &http.Client{Transport: way}
	r, _ := start(t, c)
	b, repo := f.browser(t), f.repo(t, "killed")
	f.push(t, "person", repo, "main", flow(single, "killed"))
	r.Kick()
	eventually(t, func() bool { return strings.Contains(b.view(repo, 1, 0, 1).steps(), "only running|under way") })
	way.dead.Store(true)
	c.Dir, c.HTTP = copyDir(t, c.Dir), nil
	r2, _ := start(t, c)
	if v := b.ended(repo, 1); v.State.Run.Status != "failure" {
		t.Errorf("the run is %s", v.State.Run.Status)
	}
	got := b.view(repo, 1, 0, 1).steps()
	if !strings.Contains(got, "only failure|under way\nComplete job") || !strings.HasSuffix(got, "|::error::Job failed: the service ended while this job ran; run it again") {
		t.Errorf("the page shows %q", got)
	}
	eventually(t, func() bool { left, err := r2.Store().Running(); return err == nil && len(left) == 0 })
	if recs, err := r2.Store().List(); err != nil || len(recs) != 1 || recs[0].Failed != "only" {
		t.Errorf("on record: %+v %v", recs, err)
	}
}

func TestAnAgentsPushGetsNothing(t *testing.T) {
	t.Parallel()
	f := realForge(t)
	ex := &fakeExecutor{run: func(_ context.Context, _ ci.Job, events func(job.Event)) error {
		oneStep(events, job.Success)
		return nil
	}}
	var store atomic.Pointer[ci.Store]
	c := config(t, f.URL, f.token, "tiers", ex)
	c.Rules.Approved = func(_ context.Context, repo int64, commit string) (bool, error) {
		return store.Load().Approved(repo, commit)
	}
	c.Rules.ChangesWorkflows = func(context.Context, int64, string) (bool, error) { return false, nil }
	r, _ := start(t, c)
	store.Store(r.Store())
	b, repo := f.browser(t), f.repo(t, "tiers")
	f.api(t, "person", "PUT", "/repos/"+repo+"/actions/secrets/KEY", map[string]string{"data": "hunter2hunter2"}, nil)
	f.push(t, "robot", repo, "agent/1-plain", flow(single, "tiers"))
	r.Kick()
	if v := b.ended(repo, 1); v.State.Run.Status != "success" {
		t.Fatalf("a job without secrets: %s: %s", v.State.Run.Status, b.view(repo, 1, 0, 1).steps())
	}
	j := ex.seen()[0]
	if j.Tier != ci.Untrusted || j.Door == "" || j.Token == "" || j.Spec.Secrets["KEY"] != "" || j.Spec.Secrets["GITHUB_TOKEN"] != j.Door || j.Spec.Github["token"] != j.Door ||
		!strings.HasSuffix(fmt.Sprint(j.Spec.Github["gitea_runtime_token"]), "."+j.Door) || strings.Contains(fmt.Sprint(j.Spec), j.Runtime) {
		t.Errorf("it got %+v", j)
	}
	if claims, _, _ := strings.Cut(fmt.Sprint(j.Spec.Github["gitea_runtime_token"]), "."+j.Door); !strings.HasPrefix(j.Runtime, claims+".") || strings.Count(claims, ".") != 1 {
		t.Errorf("its token for artifacts says nothing of its run: %s", claims)
	}
	if j.Secrets || j.RepoID <= 0 || j.Ref != "refs/heads/agent/1-plain" || j.Base != "" || j.Main != "refs/heads/main" {
		t.Errorf("what it caches is of %+v", j)
	}
	wants := strings.ReplaceAll(single, "sleep 1", "use ${{ secrets.KEY }}")
	commit := f.push(t, "robot", repo, "agent/2-wants", flow(wants, "tiers"))
	r.Kick()
	v := b.ended(repo, 2)
	if got := b.view(repo, 2, 0, 1).steps(); v.State.Run.Status != "failure" || !strings.Contains(got, "::error::Job failed: needs approval: secrets.KEY; ") {
		t.Errorf("a job that wants secrets: %s %q", v.State.Run.Status, got)
	}
	recs, err := r.Store().List()
	if err != nil || recs[0].Tier != ci.NeedsApproval || recs[0].Commit != commit || len(ex.seen()) != 1 {
		t.Fatalf("on record: %+v, %v; run: %d", recs, err, len(ex.seen()))
	}
	if err := r.Store().Approve(recs[0].RepoID, commit, ci.Approval{By: "person", Time: time.Now()}); err != nil {
		t.Fatal(err)
	}
	b.post("/"+repo+"/actions/runs/2/rerun", "")
	r.Kick()
	eventually(t, func() bool { return len(ex.seen()) == 2 })
	if j := ex.seen()[1]; j.Tier != ci.Trusted || j.Spec.Secrets["KEY"] != "hunter2hunter2" || !j.Secrets {
		t.Errorf("approved, it got %s, secrets %v", j.Tier, j.Secrets)
	}
	if v := b.ended(repo, 2); v.State.Run.Status != "success" {
		t.Errorf("approved, it is %s", v.State.Run.Status)
	}
	f.api(t, "person", "POST", "/repos/"+repo+"/pulls", map[string]string{"head": "agent/1-plain", "base": "main", "title": "Plain"}, nil)
	r.Kick()
	eventually(t, func() bool { return len(ex.seen()) == 3 })
	if j := ex.seen()[2]; j.Tier != ci.Untrusted || j.Ref != "refs/pull/1/head" || j.Base != "refs/heads/main" || j.Main != "refs/heads/main" {
		t.Errorf("of a pull request: %+v", j)
	}
}
