package ci_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"codeberg.org/devaipod/devaipod/ci"
	"codeberg.org/devaipod/devaipod/ci/job"
)

const many = `on: push
jobs:
  one:
    runs-on: LABEL
    strategy:
      matrix:
        n: [1, 2, 3, 4, 5, 6]
    steps:
      - run: echo ${{ matrix.n }}
`

const oneJob = `on: push
jobs:
  one:
    runs-on: LABEL
    steps:
      - run: echo
`

// id is the forge's number of a repository.
func (f *forge) id(t *testing.T, repo string) int64 {
	t.Helper()
	var r struct {
		ID int64 `json:"id"`
	}
	f.api(t, "person", "GET", "/repos/"+repo, nil, &r)
	return r.ID
}

// startAll runs runners until the test ends, or stop is called.
func startAll(t *testing.T, c ci.Config) (r *ci.Runners, repos chan map[int64]string, stop func()) {
	t.Helper()
	r, err := ci.NewRunners(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	repos, ended := make(chan map[int64]string), make(chan struct{})
	go func() { defer close(ended); r.Run(ctx, repos) }()
	stop = sync.OnceFunc(func() { cancel(); <-ended })
	t.Cleanup(stop)
	return r, repos, stop
}

// config is one whose runners are registered each for its own repository.
func (f *forge) config(t *testing.T, label string, names map[int64]string, ex ci.Executor) ci.Config {
	c := config(t, f.URL, nil, label, ex)
	c.Token = func(_ context.Context, repo int64) (string, error) {
		out, err := f.run("actions", "generate-runner-token", "--scope", names[repo])
		words := strings.Fields(out)
		if err != nil || len(words) == 0 {
			return "", errors.Join(err, errors.New("no token"))
		}
		return words[len(words)-1], nil
	}
	return c
}

func TestRepositoriesTakeTurns(t *testing.T) {
	t.Parallel()
	f := realForge(t)
	full, small := f.repo(t, "full"), f.repo(t, "small")
	names := map[int64]string{f.id(t, full): full, f.id(t, small): small}
	began, goOn := make(chan struct{}, 20), make(chan struct{})
	ex := &fakeExecutor{run: func(ctx context.Context, _ ci.Job, events func(job.Event)) error {
		began <- struct{}{}
		select {
		case <-goOn:
			oneStep(events, job.Success)
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}}
	c := f.config(t, "turns", names, ex)
	c.Jobs = 1
	r, repos, _ := startAll(t, c)
	repos <- names
	f.push(t, "person", full, "main", flow(many, "turns"))
	<-began
	f.push(t, "person", small, "main", flow(oneJob, "turns"))
	b := f.browser(t)
	eventually(t, func() bool { return b.view(small, 1, 0, 0).State.Run.Status == "waiting" })
	r.Kick(small)
	close(goOn)
	for range 6 {
		<-began
	}
	at := -1
	for i, j := range ex.seen() {
		if j.Repo == small {
			at = i
		}
		if names[j.RepoID] != j.Repo {
			t.Errorf("job %d is of %s, by its number of %s", i, j.Repo, names[j.RepoID])
		}
	}
	// One of the other repository ran, and one may have been taken while this one asked.
	if at < 1 || at > 3 {
		t.Errorf("the job that came after six of another repository was number %d", at)
	}
}

func TestARunnerGoesWithItsRepository(t *testing.T) {
	t.Parallel()
	f := realForge(t)
	repo, other := f.repo(t, "gone"), f.repo(t, "stays")
	names := map[int64]string{f.id(t, repo): repo, f.id(t, other): other}
	began := make(chan struct{}, 5)
	ex := &fakeExecutor{run: func(ctx context.Context, _ ci.Job, events func(job.Event)) error {
		began <- struct{}{}
		<-ctx.Done()
		return context.Cause(ctx)
	}}
	c := f.config(t, "goes", names, ex)
	_, repos, stop := startAll(t, c)
	repos <- names
	f.push(t, "person", repo, "main", flow(oneJob, "goes"))
	<-began
	killed := copyDir(t, c.Dir) // what a kill would leave
	stop()
	f.api(t, "person", "DELETE", "/repos/"+repo, nil, nil)

	c.Dir = killed
	r, repos, _ := startAll(t, c)
	repos <- map[int64]string{f.id(t, other): other}
	running := func() []ci.Info {
		running, err := r.Store().Running()
		if err != nil {
			t.Fatal(err)
		}
		return running
	}
	eventually(t, func() bool { return len(running()) == 0 })
	ended, err := r.Store().List()
	if err != nil || len(ended) != 1 || ended[0].Result != job.Failure || !strings.Contains(ended[0].Reason, "its repository is gone") {
		t.Errorf("on record: %v, %v", ended, err)
	}
	f.push(t, "person", other, "main", flow(oneJob, "goes"))
	r.Kick(strings.ToUpper(other))
	<-began
	if seen := ex.seen(); seen[len(seen)-1].Repo != other {
		t.Errorf("the last job is of %s", seen[len(seen)-1].Repo)
	}
	repos <- map[int64]string{}
	eventually(t, func() bool {
		_, err := os.Stat(filepath.Join(killed, "runners", strconv.FormatInt(f.id(t, other), 10)+".json"))
		return errors.Is(err, fs.ErrNotExist)
	})
}

// The forge says it; we could not, as such a job is never given to us.
func TestALabelThatNobodyTakesIsSaidOnTheForge(t *testing.T) {
	t.Parallel()
	f := realForge(t)
	repo := f.repo(t, "label")
	names := map[int64]string{f.id(t, repo): repo}
	ran := make(chan struct{}, 1)
	c := f.config(t, "known", names, &fakeExecutor{run: func(_ context.Context, _ ci.Job, events func(job.Event)) error {
		oneStep(events, job.Success)
		ran <- struct{}{}
		return nil
	}})
	_, repos, _ := startAll(t, c)
	repos <- names
	f.push(t, "person", repo, "main", map[string]string{
		".gitea/workflows/a.yml": strings.ReplaceAll(oneJob, "LABEL", "known"), ".gitea/workflows/b.yml": strings.ReplaceAll(oneJob, "LABEL", "unheard-of"),
	})
	<-ran
	page := f.browser(t).get("/" + repo + "/actions?workflow=b.yml")
	if !strings.Contains(page, "No matching online runner with label: unheard-of") {
		t.Error("the page does not say it")
	}
}

// bomb is a workflow of some lines that have nine to the tenth values.
func bomb() string {
	text := "on: push\na: &a [x, x, x, x, x, x, x, x, x]\n"
	for c := 'b'; c <= 'j'; c++ {
		text += fmt.Sprintf("%c: &%[1]c [%s]\n", c, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*%c, ", c-1), 9), ", "))
	}
	return text + "jobs: {one: {runs-on: LABEL, env: {A: *j}, steps: [{run: x}]}}\n"
}

// The forge reads workflows before we do. None of these is given to us, and none holds up others.
func TestWhatTheForgeMakesOfBadWorkflows(t *testing.T) {
	t.Parallel()
	f := realForge(t)
	repo := f.repo(t, "bad")
	names := map[int64]string{f.id(t, repo): repo}
	ran := make(chan ci.Job, 5)
	c := f.config(t, "bad", names, &fakeExecutor{run: func(_ context.Context, j ci.Job, events func(job.Event)) error {
		oneStep(events, job.Success)
		ran <- j
		return nil
	}})
	r, repos, _ := startAll(t, c)
	repos <- names
	files := map[string]string{
		"circle.yml": "on: push\njobs:\n  a: {runs-on: LABEL, needs: b, steps: [{run: x}]}\n  b: {runs-on: LABEL, needs: a, steps: [{run: x}]}\n",
		"broken.yml": "on: push\njobs: [\n", "bomb.yml": bomb(), "good.yml": oneJob,
	}
	all := map[string]string{}
	for name, text := range files {
		all[".gitea/workflows/"+name] = strings.ReplaceAll(text, "LABEL", "bad")
	}
	f.push(t, "person", repo, "main", all)
	j := <-ran
	if j.Workflow != "good.yml" {
		t.Errorf("%s has run", j.Workflow)
	}
	b := f.browser(t)
	for name, want := range map[string]string{
		"circle.yml": "The workflow must contain at least one job without dependencies", "broken.yml": "Workflow config file is invalid",
	} {
		if page := b.get("/" + repo + "/actions?workflow=" + name); !strings.Contains(page, want) {
			t.Errorf("the page of %s does not say it", name)
		}
	}
	good, err := strconv.Atoi(j.Run)
	if err != nil {
		t.Fatal(err)
	}
	if v := b.ended(repo, good); v.State.Run.Status != "success" {
		t.Errorf("the good one's run is %s", v.State.Run.Status)
	}
	for run := range 4 { // the jobs in a circle wait there, and their page says why
		if s := b.view(repo, run+1, 0, 0).State.Run.Status; run+1 != good && s != "" && s != "waiting" {
			t.Errorf("run %d is %s", run+1, s)
		}
	}
	if all, err := r.Store().List(); err != nil || len(all) != 1 {
		t.Errorf("on record: %v, %v", all, err)
	}
}
