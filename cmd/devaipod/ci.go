package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"gopkg.in/yaml.v3"

	"codeberg.org/devaipod/devaipod/ci"
	cicache "codeberg.org/devaipod/devaipod/ci/cache"
	cidoor "codeberg.org/devaipod/devaipod/ci/door"
	ciimages "codeberg.org/devaipod/devaipod/ci/images"
	cijob "codeberg.org/devaipod/devaipod/ci/job"
	"codeberg.org/devaipod/devaipod/ci/sandbox"
	"codeberg.org/devaipod/devaipod/forge"
	"codeberg.org/devaipod/devaipod/mirror/cache"
	"codeberg.org/devaipod/devaipod/mirror/gitproc"
	"codeberg.org/devaipod/devaipod/pods"
	"codeberg.org/devaipod/devaipod/pods/egress"
	"codeberg.org/devaipod/devaipod/pods/podman"
	"codeberg.org/devaipod/devaipod/pods/reconcile"
)

// The ports at which a job reaches its door: the forge at its own, where that is one of
// loopback, so that the forge's URLs mean the same to jobs; else at another.
const (
	jobProxyPort = 8099
	jobForgePort = 8098
)

// jobCacheURL is where a job finds the cache of Actions.
var jobCacheURL = fmt.Sprintf("http://127.0.0.1:%d/", jobProxyPort)

// workerGrace is how long a job that is ended may take for its last steps.
const workerGrace = time.Minute

// A ciRunner is the service's runner of Actions.
type ciRunner struct {
	*ci.Runners
	cfg       config
	log       *slog.Logger
	boxes     *sandbox.Sandboxes
	images    map[string]string
	ready     *ciimages.Set // the same, on this machine
	forge     *url.URL
	forgePort int
	transport http.RoundTripper
	repos     *cache.Cache
	git       http.Handler // what jobs read of the git cache
	actions   string       // where the workers find the same
	proxy     http.Handler
	listener  net.Listener
	saved     *cicache.Store // what jobs have saved; nil for none
	external  *external      // who runs trusted jobs; nil for this machine's sandbox
	approver  *ci.Approver
	web       *forge.Web
	// repositories lists those that have Actions; changed says that they may be others.
	repositories func(context.Context) (map[int64]string, error)
	changed      chan struct{}
	ended        chan struct{} // closed at the end of run
	local        bool          // it runs what lies in a working tree, without a forge
}

// newCI makes the runner, where the configuration wants one.
func (s *service) newCI(ctx context.Context, a *app) (*ciRunner, error) {
	if !a.cfg.runsActions() {
		return nil, nil
	}
	c := &ciRunner{cfg: a.cfg, log: a.log, repos: s.cache, changed: make(chan struct{}, 1), ended: make(chan struct{})}
	var err error
	if c.images, err = a.cfg.ciImages(); err != nil {
		return nil, err
	}
	if c.forge, err = url.Parse(a.cfg.forgeURL()); err != nil {
		return nil, err
	}
	if c.transport, err = a.cfg.forgeTransport(); err != nil {
		return nil, err
	}
	c.forgePort = portInJob(c.forge)
	if err := c.readers(s.cache); err != nil {
		return nil, err
	}
	if c.boxes, err = a.newBoxes(ctx, s.runs.Client, s.pods.manager, s.tools, c.images, func(task int64) bool { return a.ofLocalRun(task) }); err != nil {
		return nil, err
	}
	if c.saved, err = openSaved(a); err != nil {
		return nil, err
	}
	if c.ready, err = s.newCIImages(a, c.images); err != nil {
		return nil, err
	}
	if c.external, err = c.newExternal(); err != nil {
		return nil, err
	}
	logBytes, err := parseBytes(a.cfg.CI.Log)
	if err != nil {
		return nil, err
	}
	ours := []string{s.creds.Bot, s.creds.Service}
	c.web = s.web
	port := ciPort{client: s.forge, web: c.web, ours: ours, queued: func(repo string) { c.Kick(repo) }, registers: s.keepRunner}
	c.repositories = port.repositories
	c.approver = ci.NewApprover(ci.OpenStore(a.cfg.file("ci")), port, a.log)
	c.approver.Acted = s.ciActed
	c.Runners, err = ci.NewRunners(ci.Config{
		Forge: a.cfg.forgeURL(), HTTP: &http.Client{Transport: c.transport, Timeout: time.Minute}, Dir: a.cfg.file("ci"),
		Name: a.cfg.Instance, Version: "devaipod " + version, Labels: slices.Sorted(maps.Keys(c.images)), Jobs: a.cfg.CI.Jobs,
		Timeout: a.cfg.CI.Timeout, MaxLog: logBytes, Token: port.token, Executor: handOuts{c.executor(), s.note},
		Rules: ci.Rules{Agents: ours, Branches: "agent/", Approved: c.approver.Approved, ChangesWorkflows: port.ChangesWorkflows},
		Ended: func(r ci.Record) { s.keepResult(r); c.approver.Kick(); s.jobEnded(r) }, Log: a.log,
	})
	if err == nil {
		s.detect, err = s.newDetector(a)
	}
	return c, err
}

// forgeKnows is how long the forge may take to know that a job has ended.
const forgeKnows = 2 * time.Second

// jobEnded has the loop look at the issue whose agent pushed a job's commit, when the forge
// can know of its end. That is a hint: the loop asks again by itself.
func (s *service) jobEnded(r ci.Record) {
	repo, err := forge.ParseRepo(r.Repo)
	n := issueOfJob(r.Info)
	if err == nil && n != 0 {
		time.AfterFunc(forgeKnows, func() { s.loop.Kick(reconcile.Key{Owner: repo.Owner, Repo: repo.Name, Issue: n}) })
	}
}

// newBoxes makes what jobs are kept in; theirs are the tasks of other processes.
func (a *app) newBoxes(ctx context.Context, pod *podman.Client, m *pods.Manager, tools string, images map[string]string, theirs func(int64) bool) (*sandbox.Sandboxes, error) {
	memory, err := parseLimit(a.cfg.CI.Memory)
	if err != nil {
		return nil, err
	}
	disk, err := parseLimit(a.cfg.CI.Disk)
	if err != nil {
		return nil, err
	}
	profile, err := m.SeccompFile()
	if err != nil {
		return nil, err
	}
	use := a.cfg.ciMayUse(images)
	return sandbox.New(ctx, sandbox.Config{
		Instance: a.cfg.Instance, Podman: pod.WithFault(nil), Tools: tools, Dir: a.cfg.file("ci/run"),
		Memory: memory, CPUs: a.cfg.CI.CPUs, Pids: a.cfg.CI.Processes, Disk: disk, Seccomp: profile, Use: use, Pull: use, Build: doorEnv(nil), Theirs: theirs, Log: a.log,
	})
}

// openSaved opens the cache of Actions, if there is to be one.
func openSaved(a *app) (*cicache.Store, error) {
	most, err := a.cfg.ciCache()
	if err != nil || most == 0 {
		return nil, err
	}
	return cicache.Open(cicache.Config{Dir: a.cfg.file("ci/cache"), Max: most, Log: a.log})
}

// readers makes the ways that all jobs share: to the git cache, and to other hosts.
func (c *ciRunner) readers(repos *cache.Cache) error {
	allow, err := cache.ParseAllow(c.cfg.CI.Actions)
	if err != nil {
		return err
	}
	c.git = repos.PublicReads(allow)
	if len(c.cfg.CI.Actions) == 0 {
		c.git = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			answer(w, http.StatusForbidden, "devaipod: jobs read no repository but their own; ci.actions in devaipod.toml can let them")
		})
	}
	rules, err := egress.Parse(c.cfg.Network.Allow)
	if err != nil {
		return err
	}
	if c.cfg.Network.Mode == networkOpen {
		rules = egress.Open()
	}
	c.proxy, err = egress.New(egress.Config{Rules: rules, Authorized: func(*http.Request) bool { return true }, Log: c.log})
	if err != nil {
		return err
	}
	if c.listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		return err
	}
	c.actions = "http://" + c.listener.Addr().String() + "/git"
	return nil
}

// stopTime is how long the removal of what jobs have may keep the service from ending:
// less than `forge up` and `forge down` wait for it.
const stopTime = 8 * time.Second

// wait waits for the jobs' end, once the service's context has ended.
func (c *ciRunner) wait() {
	select {
	case <-c.ended:
	case <-time.After(stopTime):
		c.log.Warn("jobs have not ended in time; what is left of them is removed at the next start")
	}
}

// run takes jobs until ctx ends, and runs detected checks beside them where detect is not nil.
func (c *ciRunner) run(ctx context.Context, detect *detector) {
	defer close(c.ended)
	if err := c.boxes.Collect(ctx); err != nil {
		c.log.Warn("removing what jobs have left", "err", err)
	}
	if err := sweepLocalRuns(c.cfg.file(localRunsDir)); err != nil {
		c.log.Warn("removing what local runs of workflows have left", "err", err)
	}
	if detect != nil {
		var beside sync.WaitGroup
		beside.Go(func() { detect.run(ctx) })
		defer beside.Wait()
	}
	go c.ready.Run(ctx)
	git := egress.Server(c.git, c.log)
	defer git.Close()        //nolint:errcheck // the service ends
	go git.Serve(c.listener) //nolint:errcheck // with the service
	if c.external != nil {
		defer c.external.serve()()
	}
	go c.approver.Run(ctx, c.cfg.Service.Resync)
	repos := make(chan map[int64]string)
	go c.listAll(ctx, repos)
	c.Runners.Run(ctx, repos)
}

// listAll tells which repositories have Actions, at start, when it may have changed, and
// now and then.
func (c *ciRunner) listAll(ctx context.Context, to chan<- map[int64]string) {
	tick := time.NewTicker(c.cfg.Service.Resync)
	defer tick.Stop()
	for {
		repos, err := c.repositories(ctx)
		if err != nil && ctx.Err() == nil {
			c.log.Warn("listing repositories, for their runners of Actions", "err", err)
		}
		if err == nil {
			select {
			case to <- repos:
			case <-ctx.Done():
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-c.changed:
		}
	}
}

// portInJob is where jobs find a forge.
func portInJob(forge *url.URL) int {
	if ip := net.ParseIP(forge.Hostname()); forge.Scheme == "http" && (forge.Hostname() == "localhost" || ip != nil && ip.IsLoopback()) {
		if port, err := net.LookupPort("tcp", forge.Port()); err == nil && port != jobProxyPort && port > 0 {
			return port
		}
	}
	return jobForgePort
}

// Run runs a job: in a sandbox, by a process of its own.
func (c *ciRunner) Run(ctx context.Context, j ci.Job, events func(cijob.Event)) error {
	services, err := serviceNames(j.Spec.Workflow)
	if err != nil {
		return err
	}
	if err := c.waitForImages(ctx, j.Spec.Workflow, events); err != nil {
		return err
	}
	door := c.localDoor()
	if !c.local {
		config := c.door(j)
		if saved := c.jobCache(j); saved != nil {
			defer saved.Close()
			config.Cache = saved
		}
		door = cidoor.New(config)
	}
	return c.inBox(ctx, j.Task, []int{jobProxyPort, c.forgePort}, services, door, events, func(docker string) cijob.Spec { return c.spec(j, docker, services) })
}

// inBox runs a job that reaches door at the ports; spec is told the socket of its Docker API.
func (c *ciRunner) inBox(ctx context.Context, task int64, ports []int, services []string, door http.Handler, events func(cijob.Event), spec func(docker string) cijob.Spec) (err error) {
	asked := ctx
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	box, err := c.boxes.Open(ctx, task, ports, services)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, box.Close(context.WithoutCancel(ctx))) }()
	behind := egress.Server(door, c.log)
	defer behind.Close()        //nolint:errcheck // its job has ended
	go behind.Serve(box.Door()) //nolint:errcheck // until then
	go func() {
		select {
		case why := <-box.Exceeded():
			end(why)
		case <-ctx.Done():
		}
	}()
	err = c.work(ctx, spec(box.Socket()), filepath.Join(c.cfg.file("ci/run"), fmt.Sprint(task)), func(e cijob.Event) {
		// Ended by us, it has failed, and says why.
		if why := context.Cause(ctx); e.Result != "" && e.Result != cijob.Success && why != nil && asked.Err() == nil {
			e.Result, e.Reason = cijob.Failure, why.Error()
		}
		events(e)
	})
	if why := context.Cause(ctx); why != nil && err == nil {
		err = why
	}
	return err
}

// jobCache is the cache of Actions as a job sees it; nil for none.
func (c *ciRunner) jobCache(j ci.Job) *cicache.Job {
	if scope, ok := cacheScope(j); ok && c.saved != nil {
		return c.saved.Job(scope, jobCacheURL)
	}
	return nil
}

// cacheScope says what a job restores from the cache, and where it saves. A job of which
// the forge does not tell whose it is has none.
func cacheScope(j ci.Job) (cicache.Scope, bool) {
	tier := cicache.Untrusted
	if j.Tier == ci.Trusted {
		tier = cicache.Trusted
		if j.Secrets {
			tier = cicache.Secret
		}
	}
	return cicache.Scope{Repo: j.RepoID, Name: j.Repo, Tier: tier, Ref: j.Ref, Base: j.Base, Main: j.Main}, j.RepoID > 0 && j.Ref != ""
}

// door is what a job reaches.
func (c *ciRunner) door(j ci.Job) cidoor.Config {
	return cidoor.Config{
		Forge: c.forge, Here: c.forgeInJob(), Transport: c.transport, Repo: j.Repo, Trusted: j.Tier == ci.Trusted, Given: j.Door, Token: j.Token, Runtime: j.Runtime,
		Git: c.git, Proxy: c.proxy, Log: c.log.With("task", j.Task),
	}
}

// forgeInJob is the forge's address in a job, without a slash at its end.
func (c *ciRunner) forgeInJob() string { return fmt.Sprintf("http://127.0.0.1:%d", c.forgePort) }

// spec is what the worker is told of a job.
func (c *ciRunner) spec(j ci.Job, docker string, services []string) cijob.Spec {
	s := j.Spec
	s.Docker, s.Actions, s.Images = docker, c.actions, c.images
	here := c.forgeInJob()
	if from := strings.TrimSuffix(c.forge.String(), "/"); from != here {
		s.Github, _ = rebased(s.Github, from, here).(map[string]any)
	}
	if server, ok := s.Github["server_url"].(string); ok {
		s.Github = maps.Clone(s.Github)
		s.Github["server_url"] = strings.TrimSuffix(server, "/") // as workflows know it from GitHub
	}
	s.Env = maps.Clone(s.Env)
	if s.Env == nil {
		s.Env = map[string]string{}
	}
	if !c.local {
		runtime, _ := s.Github["gitea_runtime_token"].(string)
		s.Env["ACTIONS_RUNTIME_URL"], s.Env["ACTIONS_RESULTS_URL"], s.Env["ACTIONS_RUNTIME_TOKEN"] = here+"/api/actions_pipeline/", here, runtime
	}
	if _, ok := cacheScope(j); ok && c.saved != nil {
		s.Env["ACTIONS_CACHE_URL"] = jobCacheURL
	}
	maps.Copy(s.Env, doorEnv(services))
	return s
}

// doorEnv is how programs in a job find what the door gives.
func doorEnv(services []string) map[string]string {
	env := map[string]string{}
	proxy := fmt.Sprintf("127.0.0.1:%d", jobProxyPort)
	for name, value := range egress.ProxyEnv(proxy, "", "") {
		if strings.EqualFold(name, "no_proxy") {
			value = strings.Join(append([]string{value}, services...), ",")
		}
		env[name] = value
	}
	env["GIT_CONFIG_COUNT"], env["GIT_CONFIG_KEY_0"], env["GIT_CONFIG_VALUE_0"] = "1", "url.http://"+proxy+"/git/.insteadOf", "https://"
	return env
}

// rebased changes all URLs of one server to those of another, in values of JSON.
func rebased(v any, from, to string) any {
	switch v := v.(type) {
	case string:
		if rest, ok := strings.CutPrefix(v, from); ok && (rest == "" || strings.ContainsRune("/?#", rune(rest[0]))) {
			return to + rest
		}
	case map[string]any:
		out := make(map[string]any, len(v))
		for k, inner := range v {
			out[k] = rebased(inner, from, to)
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i, inner := range v {
			out[i] = rebased(inner, from, to)
		}
		return out
	}
	return v
}

// serviceNames are the names of the services of the one job in a workflow.
func serviceNames(workflow []byte) ([]string, error) {
	var w struct {
		Jobs map[string]struct {
			Services map[string]yaml.Node `yaml:"services"`
		} `yaml:"jobs"`
	}
	if err := yaml.Unmarshal(workflow, &w); err != nil {
		return nil, fmt.Errorf("reading the workflow: %w", err)
	}
	var names []string
	for _, j := range w.Jobs {
		names = slices.AppendSeq(names, maps.Keys(j.Services))
	}
	slices.Sort(names)
	return names, nil
}

// maxEvent is the longest line of a worker's, bytes: of outputs, or a summary, escaped.
const maxEvent = 8 << 20

// workerProcess is a process of its own that deals with workflows: it has nothing of this one's
// but the path, and a directory. The end of ctx asks it to end.
func workerProcess(ctx context.Context, dir string, in any, args ...string) (*exec.Cmd, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(in)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, self, append([]string{"ci-worker"}, args...)...)
	cmd.Stdin = bytes.NewReader(text)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "TMPDIR=" + dir, "LANG=C.UTF-8"}
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error {
		if errors.Is(context.Cause(ctx), ci.ErrStopping) {
			return cmd.Process.Kill() // no time for last steps
		}
		return cmd.Process.Signal(syscall.SIGTERM)
	}
	cmd.WaitDelay = workerGrace
	return cmd, nil
}

// work has a process of its own run the job. The end of ctx cancels it.
func (c *ciRunner) work(ctx context.Context, spec cijob.Spec, dir string, events func(cijob.Event)) error {
	tmp, err := os.MkdirTemp(dir, "worker-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp) //nolint:errcheck // with the sandbox's directory, which tells
	cmd, err := workerProcess(ctx, tmp, spec)
	if err != nil {
		return err
	}
	errs := &gitproc.Tail{Max: 4 << 10}
	cmd.Stderr = errs
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	ended, readErr := passOn(out, events)
	err = cmd.Wait()
	switch {
	case ended:
		return nil
	case readErr != nil:
		return fmt.Errorf("what the job's process says can't be read: %w", readErr)
	case err != nil:
		return fmt.Errorf("the job's process has ended: %w: %s", err, strings.ToValidUTF8(strings.TrimSpace(string(errs.Bytes)), "\ufffd"))
	}
	return errors.New("the job's process has ended without a word")
}

// passOn reads a worker's events, and tells whether the last was among them.
func passOn(out io.Reader, events func(cijob.Event)) (ended bool, err error) {
	lines := bufio.NewScanner(out)
	lines.Buffer(make([]byte, 0, 64<<10), maxEvent)
	for lines.Scan() {
		var e cijob.Event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			_, _ = io.Copy(io.Discard, out) // so that it does not wait for us for ever
			return false, err
		}
		events(e)
		ended = ended || e.Result != ""
	}
	if err := lines.Err(); err != nil {
		_, _ = io.Copy(io.Discard, out)
		return ended, err
	}
	return ended, nil
}
