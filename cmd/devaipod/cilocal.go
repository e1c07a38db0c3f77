package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"codeberg.org/devaipod/devaipod/ci"
	cijob "codeberg.org/devaipod/devaipod/ci/job"
	"codeberg.org/devaipod/devaipod/mirror/gitproc"
	"codeberg.org/devaipod/devaipod/pods"
	"codeberg.org/devaipod/devaipod/pods/egress"
	"codeberg.org/devaipod/devaipod/pods/podman"
)

// planWithin is how long the reading of workflows may take.
const planWithin = time.Minute

// ciRunLocal runs a working tree's workflows.
func (a *app) ciRunLocal(ctx context.Context, r ciRun) error {
	t, err := openTree(ctx, r.dir)
	if err != nil {
		return err
	}
	l := &localRun{app: a, tree: t, verbose: r.verbose, results: map[string]int{}}
	if l.question, err = a.question(t, r); err != nil {
		return err
	}
	plan, err := ask(ctx, l.question)
	if err != nil {
		return err
	}
	if err := l.check(plan, r); err != nil {
		return err
	}
	if r.list {
		return a.listPlan(plan)
	}
	if l.secrets, err = a.secretValues(r.secrets); err != nil {
		return err
	}
	return l.run(ctx, plan)
}

// question is what the planner is asked of the tree's workflows.
func (a *app) question(t *workTree, r ciRun) (q cijob.Question, err error) {
	if q.Inputs, err = pairs("input", r.inputs); err != nil {
		return q, err
	}
	if q.Vars, err = pairs("var", r.variables); err != nil {
		return q, err
	}
	event := cmp.Or(r.event, onPush)
	if r.event == "" && len(r.inputs) > 0 {
		event = onDispatch
	}
	if !slices.Contains([]string{onPush, onPull, onDispatch}, event) {
		return q, usagef("--event %q: want %s, %s or %s", event, onPush, onPull, onDispatch)
	}
	if len(r.inputs) > 0 && event != onDispatch {
		return q, usagef("--input is of the event %s", onDispatch)
	}
	if q.Files, err = t.workflows(r.file); err != nil {
		return q, err
	}
	q.Job, q.Github = r.job, a.githubContext(t, event)
	return q, nil
}

// githubContext is what a forge would say of the tree, had it been pushed.
func (a *app) githubContext(t *workTree, event string) map[string]any {
	actor := t.owner
	if u, err := user.Current(); err == nil {
		actor = u.Username
	}
	branch := cmp.Or(t.branch, "HEAD")
	g := map[string]any{
		"event_name": event, "repository": t.owner + "/" + t.repo, "repository_owner": t.owner, "actor": actor, "triggering_actor": actor,
		"ref": "refs/heads/" + branch, "ref_name": branch, "ref_type": "branch", "sha": cmp.Or(t.commit, strings.Repeat("0", 40)),
		"run_id": "1", "run_number": "1", "run_attempt": "1", "server_url": a.cfg.forgeURL(),
	}
	about := map[string]any{"ref": g["ref"], "after": g["sha"], "repository": map[string]any{"full_name": g["repository"], "name": t.repo, "default_branch": t.base}}
	if event == onPull {
		g["head_ref"], g["base_ref"] = branch, t.base
		about["action"] = "synchronize"
		about["pull_request"] = map[string]any{"head": map[string]any{"ref": branch, "sha": g["sha"]}, "base": map[string]any{"ref": t.base}}
	}
	g["event"] = about
	return g
}

// ask has a process of its own read workflows.
func ask(ctx context.Context, q cijob.Question) (*cijob.Plan, error) {
	ctx, cancel := context.WithTimeout(ctx, planWithin)
	defer cancel()
	tmp, err := os.MkdirTemp("", "devaipod-plan-*")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp) //nolint:errcheck // nothing of worth
	cmd, err := workerProcess(ctx, tmp, q, "--plan")
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	said := &gitproc.Tail{Max: 4 << 10}
	cmd.Stdout, cmd.Stderr = &out, said
	if err := cmd.Run(); err != nil {
		if text := visible(bytes.TrimPrefix(bytes.TrimSpace(said.Bytes), []byte("devaipod: "))); text != "" && ctx.Err() == nil {
			return nil, errors.New(text)
		}
		return nil, fmt.Errorf("reading the workflows: %w", errors.Join(ctx.Err(), err))
	}
	plan := new(cijob.Plan)
	if err := json.Unmarshal(out.Bytes(), plan); err != nil {
		return nil, fmt.Errorf("reading the plan: %w", err)
	}
	return plan, nil
}

// check refuses a plan in which nothing is to be run.
func (l *localRun) check(plan *cijob.Plan, r ciRun) error {
	if len(plan.Workflows) > 0 {
		return nil
	}
	var others []string
	for _, file := range slices.Sorted(maps.Keys(plan.Others)) {
		others = append(others, fmt.Sprintf("%s (%s)", visible([]byte(file)), visible([]byte(strings.Join(plan.Others[file], ", ")))))
	}
	what := fmt.Sprintf("no workflow here runs on %s", l.question.Github["event_name"])
	if r.job != "" {
		what = fmt.Sprintf("no workflow here that runs on %s has the job %s", l.question.Github["event_name"], r.job)
	}
	if len(others) > 0 {
		what += "; there are others, see --event: " + strings.Join(others, ", ")
	}
	return usagef("%s", what)
}

// A plannedJob is a line of `devaipod ci run --local --list`.
type plannedJob struct {
	Workflow string   `json:"workflow"`
	ID       string   `json:"id"`
	Name     string   `json:"name"`
	Needs    []string `json:"needs,omitempty"`
	Reason   string   `json:"reason,omitempty"` // why it can't be run
}

func (a *app) listPlan(plan *cijob.Plan) error {
	jobs := []plannedJob{}
	for _, w := range plan.Workflows {
		for _, j := range w.Jobs {
			if len(j.Runs) == 0 {
				jobs = append(jobs, plannedJob{w.File, j.ID, j.ID, j.Needs, j.Reason})
			}
			for _, run := range j.Runs {
				jobs = append(jobs, plannedJob{w.File, j.ID, run.Name, j.Needs, ""})
			}
		}
	}
	if a.asJSON {
		return a.printJSON(jobs)
	}
	w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "WORKFLOW\tJOB\tNAME\tNEEDS\tNOTE")
	for _, j := range jobs {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", visible([]byte(j.Workflow)), visible([]byte(j.ID)), visible([]byte(j.Name)), cmp.Or(visible([]byte(strings.Join(j.Needs, ", "))), "-"), visible([]byte(j.Reason)))
	}
	return w.Flush()
}

// A localRun runs jobs of a plan.
type localRun struct {
	*app
	tree     *workTree
	question cijob.Question
	secrets  map[string]string
	verbose  bool // what the runner says of itself, too
	runner   *ciRunner
	dir      *localDir
	files    string       // the copy of the tree
	task     atomic.Int64 // the number that was given last
	slots    chan struct{}
	lines    *jobLines

	mu      sync.Mutex
	results map[string]int // how many jobs ended so
}

// run runs all jobs. What it makes is gone when it returns.
func (l *localRun) run(ctx context.Context, plan *cijob.Plan) (err error) {
	if err := l.makeStateDir(); err != nil {
		return err
	}
	if l.dir, err = newLocalDir(l.cfg.file(localRunsDir)); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.dir.close()) }()
	l.task.Store(l.dir.task)
	l.files, l.slots, l.lines = filepath.Join(l.dir.path, "tree"), make(chan struct{}, l.cfg.CI.Jobs), newJobLines(l.app)
	copied := make(chan error, 1)
	go func() { copied <- l.tree.snapshot(ctx, l.files, plan.History) }()
	end, err := l.prepare(ctx)
	if err = errors.Join(err, <-copied); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, end()) }()
	var all sync.WaitGroup
	for _, w := range plan.Workflows {
		all.Go(func() { l.workflow(ctx, w) })
	}
	all.Wait()
	return l.outcome(ctx)
}

// prepare makes what runs jobs, as the service has it, and removes what other runs left.
func (l *localRun) prepare(ctx context.Context) (end func() error, err error) {
	c := &ciRunner{cfg: l.cfg, log: l.log, local: true}
	if c.images, err = l.cfg.ciImages(); err != nil {
		return nil, err
	}
	if c.forge, err = url.Parse(l.cfg.forgeURL()); err != nil {
		return nil, err
	}
	c.forgePort = portInJob(c.forge)
	pod, err := l.podman(ctx)
	if err != nil {
		return nil, err
	}
	m, err := pods.New(pods.Config{Instance: l.cfg.Instance, StateDir: l.cfg.StateDir, Backend: podman.NewPods(pod, l.cfg.Instance, l.log), Images: pod, Log: l.log})
	if err != nil {
		return nil, err
	}
	tools, err := l.tools(ctx, m)
	if err != nil {
		return nil, err
	}
	// The service's tasks are the service's to remove.
	theirs := func(task int64) bool { return task < firstLocalRun<<localTaskBits || l.ofLocalRun(task) }
	if c.boxes, err = l.newBoxes(ctx, pod, m, tools, c.images, theirs); err != nil {
		return nil, err
	}
	if err := errors.Join(c.boxes.Collect(ctx), sweepLocalRuns(l.cfg.file(localRunsDir))); err != nil {
		l.log.Warn("removing what other local runs have left", "err", err)
	}
	repos, err := l.openCache(nil)
	if err != nil {
		return nil, err
	}
	if err := c.readers(repos); err != nil {
		return nil, errors.Join(err, repos.Close())
	}
	git := egress.Server(c.git, l.log)
	go git.Serve(c.listener) //nolint:errcheck // until its end
	l.runner = c
	return func() error { return errors.Join(git.Close(), repos.Close()) }, nil
}

// localDoor is what jobs of a local run reach: no forge.
func (c *ciRunner) localDoor() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method == http.MethodConnect || r.URL.IsAbs():
			c.proxy.ServeHTTP(w, r)
		case strings.HasPrefix(r.URL.Path, "/git/"):
			c.git.ServeHTTP(w, r)
		default:
			http.Error(w, "devaipod: a local run has no forge: push, to run this there", http.StatusServiceUnavailable)
		}
	})
}

// outcome says how all ended.
func (l *localRun) outcome(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var parts []string
	for _, result := range []string{cijob.Success, cijob.Failure, cijob.Cancelled, cijob.Skipped} {
		if n := l.results[result]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, result))
		}
	}
	l.step("jobs     %s", strings.Join(parts, ", "))
	switch {
	case ctx.Err() != nil:
		return &exitError{codeFailed, errors.New("cancelled")}
	case l.results[cijob.Failure]+l.results[cijob.Cancelled] > 0:
		return &exitError{code: codeFailed}
	}
	return nil
}

// A localJob is a job of a plan on its way.
type localJob struct {
	done chan struct{}
	need cijob.Need // once done
}

// workflow runs the jobs of a workflow, each after those that it needs.
func (l *localRun) workflow(ctx context.Context, w cijob.Workflow) {
	jobs := map[string]*localJob{}
	var all sync.WaitGroup
	for _, p := range w.Jobs {
		j := &localJob{done: make(chan struct{})}
		waits := map[string]*localJob{}
		for _, need := range p.Needs {
			waits[need] = jobs[need]
		}
		jobs[p.ID] = j
		all.Go(func() {
			defer close(j.done)
			needs := map[string]cijob.Need{}
			for name, other := range waits {
				<-other.done
				needs[name] = other.need
			}
			j.need = l.job(ctx, w, p, needs)
		})
	}
	all.Wait()
}

// job runs a job, by each combination of its matrix.
func (l *localRun) job(ctx context.Context, w cijob.Workflow, p cijob.Planned, needs map[string]cijob.Need) cijob.Need {
	missed := slices.ContainsFunc(slices.Collect(maps.Values(needs)), func(n cijob.Need) bool { return n.Result != cijob.Success })
	switch {
	case ctx.Err() != nil:
		return l.ended(p.ID, cijob.Need{Result: cijob.Cancelled}, "", 0)
	case missed && !p.If: // with a condition it is asked that
		return l.ended(p.ID, cijob.Need{Result: cijob.Skipped}, "a job that it needs has not succeeded", 0)
	case p.Later:
		q := l.question
		q.Files, q.Job, q.Needs = map[string][]byte{w.File: l.question.Files[w.File]}, p.ID, needs
		plan, err := ask(ctx, q)
		if err == nil && (len(plan.Workflows) != 1 || len(plan.Workflows[0].Jobs) != 1) {
			err = errors.New("its matrix can't be made")
		}
		if err != nil {
			return l.ended(p.ID, cijob.Need{Result: cijob.Failure}, err.Error(), 0)
		}
		p = plan.Workflows[0].Jobs[0]
	}
	if len(p.Runs) == 0 {
		return l.ended(p.ID, cijob.Need{Result: cijob.Failure}, p.Reason, 0)
	}
	results := make([]cijob.Need, len(p.Runs))
	var all sync.WaitGroup
	for i, run := range p.Runs {
		all.Go(func() { results[i] = l.one(ctx, w, p, run, needs) })
	}
	all.Wait()
	return together(results)
}

// together is what comes of a job by what came of its combinations: the worst of them.
func together(all []cijob.Need) cijob.Need {
	out := cijob.Need{Result: cijob.Skipped, Outputs: map[string]string{}}
	rank := []string{cijob.Skipped, cijob.Success, cijob.Cancelled, cijob.Failure}
	for _, n := range all {
		if slices.Index(rank, n.Result) > slices.Index(rank, out.Result) {
			out.Result = n.Result
		}
		for k, v := range n.Outputs {
			if v != "" || out.Outputs[k] == "" {
				out.Outputs[k] = v
			}
		}
	}
	return out
}

// one runs one combination, when there is room.
func (l *localRun) one(ctx context.Context, w cijob.Workflow, p cijob.Planned, run cijob.Run, needs map[string]cijob.Need) cijob.Need {
	select {
	case l.slots <- struct{}{}:
		defer func() { <-l.slots }()
	case <-ctx.Done():
		return l.ended(run.Name, cijob.Need{Result: cijob.Cancelled}, "", 0)
	}
	g := maps.Clone(l.question.Github)
	g["workflow"], g["job"] = w.Name, p.ID
	if w.Inputs != nil {
		event := maps.Clone(g["event"].(map[string]any))
		event["inputs"] = w.Inputs
		g["event"] = event
	}
	j := ci.Job{
		Info: ci.Info{Task: l.task.Add(1), Repo: l.tree.owner + "/" + l.tree.repo, Job: p.ID},
		Spec: cijob.Spec{Workflow: run.Workflow, Github: g, Secrets: l.secrets, Vars: l.question.Vars, Needs: needs, Dir: l.files, Timeout: l.cfg.CI.Timeout},
	}
	var last cijob.Event
	began, print := time.Now(), l.lines.of(run.Name)
	err := l.runner.Run(ctx, j, func(e cijob.Event) {
		switch {
		case e.Line != nil && (l.verbose || e.Step >= 0 || strings.HasPrefix(*e.Line, "::")):
			print(*e.Line)
		case e.Step >= 0 && e.Step < len(run.Steps) && e.Began:
			print("* " + run.Steps[e.Step])
		case e.Step >= 0 && e.Step < len(run.Steps) && e.Ended == cijob.Failure:
			print("* failed: " + run.Steps[e.Step])
		case e.Result != "":
			last = e
		}
	})
	need, reason := cijob.Need{Result: last.Result, Outputs: last.Outputs}, last.Reason
	switch {
	case need.Result == cijob.Success && err == nil, need.Result == cijob.Skipped:
	case ctx.Err() != nil:
		need.Result = cijob.Cancelled
	case err != nil:
		need.Result, reason = cijob.Failure, err.Error()
	case need.Result == "":
		need.Result = cijob.Failure
	}
	return l.ended(run.Name, need, reason, time.Since(began))
}

// ended says and counts what came of a job.
func (l *localRun) ended(name string, n cijob.Need, reason string, took time.Duration) cijob.Need {
	l.mu.Lock()
	l.results[n.Result]++
	l.mu.Unlock()
	text := "Job " + map[string]string{cijob.Success: "succeeded", cijob.Failure: "failed", cijob.Cancelled: "cancelled", cijob.Skipped: "skipped"}[n.Result]
	if took > 0 {
		text += " in " + shortTime(took)
	}
	if reason != "" {
		text += ": " + reason
	}
	l.lines.of(name)(text)
	return n
}
