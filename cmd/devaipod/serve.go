package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"

	"codeberg.org/devaipod/devaipod/ci"
	"codeberg.org/devaipod/devaipod/forge"
	"codeberg.org/devaipod/devaipod/mirror"
	"codeberg.org/devaipod/devaipod/mirror/cache"
	"codeberg.org/devaipod/devaipod/mirror/follow"
	"codeberg.org/devaipod/devaipod/podapi"
	"codeberg.org/devaipod/devaipod/podapi/panel"
	"codeberg.org/devaipod/devaipod/podapi/web"
	"codeberg.org/devaipod/devaipod/pods"
	"codeberg.org/devaipod/devaipod/pods/audit"
	"codeberg.org/devaipod/devaipod/pods/podfile"
	"codeberg.org/devaipod/devaipod/pods/podman"
	"codeberg.org/devaipod/devaipod/pods/reconcile"
)

// A service is one running `devaipod serve`.
type service struct {
	cfg      config
	log      *slog.Logger
	forge    *forge.Client
	web      *forge.Web // the same forge, as the bot by its pages
	pods     *podPort
	loop     *reconcile.Loop
	hook     http.Handler
	cache    *cache.Cache
	work     *mirror.Work
	ci       *ciRunner // nil where the configuration wants none
	detect   *detector // the same
	count    *prometheus.Registry
	creds    credentials
	basis    string
	follow   *follow.Follower
	site     *web.Site
	panel    *panel.Panel // nil where there is none
	found    sync.Map     // issues' keys by the names of their pods, as they were seen last
	unpushed sync.Map     // by pods' names, for the list of all
	ready    atomic.Bool  // the first pass over everything is done

	tools    string // the image with our own programs
	wsLocks  workspaceLocks
	happened *chronicle
	audit    *audit.Log
	lander   *landings
	collider *collisions

	refusedMu sync.Mutex
	refused   map[string]int // pushes in a row, by what they are about

	repos chan struct{} // capacity 1: a repository may be new
	runs  *podman.Pods
	stuck func(context.Context) // what is done about a podman that stands still
}

func (a *app) serveCmd() *cobra.Command {
	return &cobra.Command{
		Use: "serve", Short: "Run the service in the foreground", Args: noArgs,
		Long: "Run the service that turns labeled issues into agent pods. `devaipod forge up` starts it too.",
		RunE: func(cmd *cobra.Command, _ []string) error { return a.serve(cmd.Context()) },
	}
}

// errServiceRuns is what a second service of an instance ends with.
var errServiceRuns = errors.New("the service runs already")

// serve runs the service until ctx ends.
func (a *app) serve(ctx context.Context) error {
	ctx = audit.Afresh(ctx) // what the service does is not what the command line does
	creds, err := a.readCredentials()
	if err != nil {
		return err
	}
	if creds.ServiceToken == "" || creds.BotToken == "" {
		return &exitError{codeNeedsHuman, errors.New("the service's or the bot's token is not there yet: run `devaipod forge up` once")}
	}
	if err := a.makeStateDir(); err != nil {
		return err
	}
	unlock, ok, err := a.lock("service.lock")
	if err != nil {
		return err
	}
	if !ok {
		return fmt.Errorf("%w (instance %s; see devaipod forge status)", errServiceRuns, a.cfg.Instance)
	}
	defer unlock() //nolint:errcheck // ends with the process anyway
	// It may outlive the directory that it was started in, without which git does not run.
	if err := os.Chdir(a.cfg.StateDir); err != nil {
		return err
	}
	pod, err := a.podman(ctx)
	if err != nil {
		return err
	}
	if err := tellLacking(ctx, pod, func(what string) { a.log.Warn(what) }); err != nil {
		return err
	}
	s, err := a.newService(ctx, creds, pod)
	if err != nil {
		return err
	}
	defer s.cache.Close() //nolint:errcheck // the process ends
	if s.basis, err = a.basis(creds); err != nil {
		return err
	}
	return s.run(ctx)
}

func (a *app) newService(ctx context.Context, creds credentials, pod *podman.Client) (*service, error) {
	client, err := a.serviceForge(creds)
	if err != nil {
		return nil, err
	}
	s := &service{cfg: a.cfg, log: a.log, forge: client, web: forge.NewWeb(client, creds.BotMade || !a.cfg.joined()), creds: creds, count: newRegistry(), repos: make(chan struct{}, 1), runs: podman.NewPods(pod, a.cfg.Instance, a.log), stuck: a.podmanStuck}
	manager, rules, err := s.newManager(ctx, a, pod)
	if err != nil {
		return nil, err
	}
	transport, err := a.cfg.forgeTransport()
	if err != nil {
		return nil, err
	}
	tools, err := a.tools(ctx, manager)
	if err != nil {
		return nil, err
	}
	s.tools = tools
	if s.cache, err = a.openCache(s.count); err != nil {
		return nil, err
	}
	work, err := s.newWork(a, transport)
	if err != nil {
		return nil, err
	}
	saved, err := a.openSaved()
	if err != nil {
		return nil, err
	}
	others, err := a.othersForPods(s.cache)
	if err != nil {
		return nil, err
	}
	if s.follow, err = a.newFollower(s.cache, client, creds); err != nil {
		return nil, err
	}
	quota, err := parseBytes(a.cfg.Work.MaxSaved)
	if err != nil {
		return nil, err
	}
	s.pods = &podPort{
		instance: a.cfg.Instance, manager: manager, work: work, saved: saved, mirrored: a.cfg.Mirror.Dir, cache: s.cache, others: others, lifts: s.lifts, revive: a.revivePodman, log: a.log, keep: a.cfg.file("tasks"), model: modelAddress(a.cfg.Model.URL), doors: map[reconcile.Key]door{}, apis: map[reconcile.Key]*podapi.Client{}, saves: map[reconcile.Key]*save{}, quota: quota, checks: map[reconcile.Key]*checkJob{}, checkWithin: a.cfg.Check.Within, checkPlaces: a.cfg.checkPlaces(),
		spec: func(ctx context.Context, t reconcile.Task) (pods.Spec, error) { return s.spec(ctx, t, tools) }, policies: rules, usages: pod.Usages,
	}
	if s.pods.disk, err = s.diskWatch(manager); err != nil {
		return nil, err
	}
	s.work = work
	s.hook = forge.Hook(func() string { return creds.WebhookSecret }, s.event, a.log)
	if err := s.openRecords(a); err != nil {
		return nil, err
	}
	if err := s.newLoop(a); err != nil {
		return nil, err
	}
	s.count.MustRegister(podCount{s.loop.Views})
	if s.ci, err = s.newCI(ctx, a); err != nil {
		return nil, err
	}
	return s, s.newSite(a)
}

// openRecords opens what is kept of what happened, and of what was done.
func (s *service) openRecords(a *app) (err error) {
	if s.happened, err = openChronicle(a.cfg.file(eventsFile), a.log); err == nil {
		s.audit, err = a.openAudit()
	}
	return err
}

// newLoop makes the loop over issues and pods.
func (s *service) newLoop(a *app) (err error) {
	s.collider = newCollisions(collidePort{cache: s.cache, bot: agentsEmail(s.creds.Bot)}, func(k reconcile.Key) { s.loop.Kick(k) })
	if s.lander, err = a.newLander(s); err != nil {
		return err
	}
	s.loop, err = reconcile.New(reconcile.Config{
		Collider: s.collider,
		Lander:   s.lander, Approvals: a.cfg.approvals(), OwnApprovals: a.cfg.Land.Own,
		Forge: forgePort{client: s.forge, label: a.cfg.Label, agents: a.cfg.agentNames(), instance: a.cfg.Instance, bot: s.creds.Bot, web: s.web, runs: []*ci.Store{ci.OpenStore(a.cfg.file("ci")), a.detectedStore()}, prepare: s.prepareWanted()},
		Pods:  s.pods, Label: a.cfg.Label, Agents: a.cfg.agentNames(), Ours: []string{s.creds.Bot, s.creds.Service}, Max: a.cfg.Agent.Max,
		Resync: a.cfg.Service.Resync, Deadline: a.cfg.Agent.Deadline, Rest: a.cfg.Agent.Rest, CIWait: a.cfg.CI.Wait, CIRounds: a.cfg.CI.Rounds, CISoon: s.ciSoon, Changed: s.tellAgent, Because: because, Acted: s.acted, Harmless: forge.Harmless, BranchName: pods.Branch, Log: a.log,
	})
	s.pods.kick = s.loop.Kick
	return err
}

// newManager makes what makes pods, and what says what each of them may do.
func (s *service) newManager(ctx context.Context, a *app, pod *podman.Client) (manager *pods.Manager, rules *policies, err error) {
	rules = newPolicies(a.cfg, func(k pods.Key) (repoConfig, error) { return s.repoConfig(ctx, k, manager) }, func(k pods.Key) string { return manager.RunDir(k) })
	host, err := pod.Host(ctx)
	if err != nil {
		return nil, nil, err
	}
	bounds, err := a.cfg.imageRules(host)
	if err != nil {
		return nil, nil, err
	}
	manager, err = pods.New(pods.Config{Instance: a.cfg.Instance, StateDir: a.cfg.StateDir, Backend: s.runs, Images: pod, Lend: s.lend, Policy: rules.of, Nested: a.cfg.nested, Source: s.imageSource, ImageRules: bounds, Fault: fault, Log: a.log})
	return manager, rules, err
}

func (a *app) serviceForge(creds credentials) (*forge.Client, error) {
	return a.newForge(forge.Config{Token: creds.ServiceToken, BotToken: creds.BotToken, BotUser: creds.Bot, ServiceUser: creds.Service}, creds.Service)
}

// spec is the pod for a task, by the configuration.
func (s *service) spec(ctx context.Context, t reconcile.Task, tools string) (pods.Spec, error) {
	limits, err := s.cfg.limits()
	if err != nil {
		return pods.Spec{}, err
	}
	if s.cfg.Model.Key != "" {
		if _, ok, err := s.cfg.secrets().Value(s.cfg.Model.Key); err != nil {
			return pods.Spec{}, err
		} else if !ok {
			return pods.Spec{}, fmt.Errorf("the model's key is not here: run `devaipod secret set %s` and give it on standard input", s.cfg.Model.Key)
		}
	}
	wanted, err := s.recipe(ctx, pods.Key(t.Key), t.RepoID)
	if err == nil {
		err = wanted.dev.HostRequirements.Check(given(limits[pods.RoleWorkspace]))
	}
	if err != nil {
		return pods.Spec{}, err
	}
	agent, err := s.cfg.choose(t, wanted.config)
	if err != nil {
		return pods.Spec{}, err
	}
	return pods.Spec{
		Key: pods.Key(t.Key), RepoID: t.RepoID, Dev: wanted.dev, Recipe: s.cfg.recipeOf(wanted),
		Task:   podfile.Task{Key: fmt.Sprintf("%s#%d@%d", t.Owner+"/"+t.Repo, t.Issue, t.Trigger.ID), Prompt: t.Prompt + checksText(wanted.dev.Agent.Checks), Stall: s.cfg.Agent.Stall},
		Branch: t.Branch, Base: t.Base,
		Model: podfile.Model{API: s.cfg.Model.API, Name: agent.Model, BaseURL: s.cfg.Model.URL, ViaService: s.pods.model != ""},
		Agent: agent.Name, Driver: agent.Driver, Ask: agent.Ask, AgentImage: agent.Image, AgentCommand: agent.Command, ToolsImage: tools, Limits: limits, WritableRoot: s.cfg.Agent.WritableRoot,
		Pin:     pods.Pin{TextHash: t.TextHash, Labeler: t.Trigger.User, EventID: t.Trigger.ID, At: t.Trigger.At},
		GitName: s.creds.Bot, GitEmail: agentsEmail(s.creds.Bot),
	}, nil
}

// agentsEmail is the address in the commits of agents.
func agentsEmail(bot string) string { return bot + "@noreply.localhost" }

// event takes a verified webhook: a key, nothing more.
func (s *service) event(ev forge.Event) {
	if s.ci != nil {
		s.ci.Kick(ev.Repo.String()) // there may be a job
		if ev.OnComment() {
			s.ci.approver.Kick()
		}
	}
	if s.detect != nil {
		s.detect.pushed(ev.Repo)
	}
	if ev.Kind == "repository" {
		s.repositoryChanged()
		for _, v := range s.loop.Views() { // it may be gone
			if v.Owner == ev.Repo.Owner && v.Repo == ev.Repo.Name {
				s.loop.Kick(v.Key)
			}
		}
		return
	}
	n := ev.Issue
	if n == 0 {
		n = pods.IssueOfBranch(ev.Branch)
	}
	if n == 0 && ev.Branch != "" {
		s.loop.Moved(ev.Repo.Owner, ev.Repo.Name, ev.Branch)
	}
	if n != 0 {
		s.loop.Kick(reconcile.Key{Owner: ev.Repo.Owner, Repo: ev.Repo.Name, Issue: n})
	}
}

func (s *service) repositoryChanged() {
	changed := []chan struct{}{s.repos}
	if s.ci != nil {
		changed = append(changed, s.ci.changed)
	}
	for _, c := range changed {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

// run serves until ctx ends. Pods go on without the service.
func (s *service) run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if err := errors.Join(s.pods.manager.Sweep(), s.pods.manager.SweepLooks(ctx)); err != nil {
		return fmt.Errorf("removing what a killed service left: %w", err)
	}
	if _, err := s.collect(ctx, false); err != nil { // before anything is made
		s.log.Warn("removing what has no owner; it is tried again later", "err", err)
	}
	go s.runs.Watch(ctx, map[string]string{"devaipod.instance": s.cfg.Instance}, s.cfg.Podman.Patience, s.stuck)
	if err := s.pods.openAll(ctx); err != nil {
		return fmt.Errorf("finding the pods that run: %w", err)
	}
	if err := s.pods.openWorkspaces(ctx); err != nil {
		return fmt.Errorf("finding people's pods: %w", err)
	}
	s.renewGates(ctx)
	s.pods.release(ctx)
	defer s.pods.shutAll() //nolint:errcheck // the process ends
	defer s.pods.endChecks()
	defer s.lander.end()
	defer s.collider.end()
	public, err := listenTCP(s.cfg.Service.Listen, "service.listen")
	if err != nil {
		return err
	}
	relay, err := listenUnix(s.cfg.file("relay/service.sock"))
	if err != nil {
		return err
	}
	cli, err := listenUnix(s.cfg.file("run/service.sock"))
	if err != nil {
		return err
	}
	for l, h := range map[net.Listener]http.Handler{public: s.publicHandler(), relay: s.relayHandler(), cli: s.keepCommands(s.apiHandler())} {
		srv := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10, ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelWarn)}
		defer srv.Close() //nolint:errcheck // the process ends
		go func() {
			if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				cancel(err)
			}
		}()
	}
	s.tend(ctx)
	if s.ci != nil {
		defer func() { cancel(nil); s.ci.wait() }()
	}
	go s.getReady(ctx)
	if s.cfg.Network.Mode == networkOpen {
		s.log.Warn("the network of pods is open (network.mode): agents reach every public host, and all that they know can leave")
	}
	if repos := s.cfg.Agent.Nested; len(repos) > 0 {
		s.log.Warn("agents and workspaces may make containers of their own, which brings more of the kernel in their reach (agent.nested)", "repositories", repos)
	}
	s.happened.add(happening{Kind: kindService, State: "started"})
	s.log.Info("serving", "url", s.cfg.serviceURL(), "forge", s.cfg.forgeURL(), "instance", s.cfg.Instance, "pid", os.Getpid())
	if err := s.loop.Run(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// tend looks after all that is not the loop's, beside it, until ctx ends.
func (s *service) tend(ctx context.Context) {
	go s.runs.KeepFence(ctx, s.cfg.Service.Resync)
	go s.pods.disk.Run(ctx)
	if s.ci != nil {
		go s.ci.run(audit.Because(ctx, audit.Entry{Rule: "the service runs CI"}), s.detect)
	}
	go s.collectAll(ctx)
	s.notifier().start(ctx)
	go s.cache.Run(ctx) //nolint:errcheck // it ends with ctx
	go s.work.Run(ctx)  //nolint:errcheck // the same
	go s.follow.Run(audit.Because(ctx, audit.Entry{Rule: "it follows an upstream"}))
	go s.followConfigs(ctx)
	if s.cfg.joined() {
		s.tellJoined()
	} else {
		go s.prepareRepositories(audit.Because(ctx, audit.Entry{Rule: "each repository has the labels, and lets the bot push"}))
	}
}

func (s *service) renewGates(ctx context.Context) {
	if err := s.pods.manager.RenewGates(ctx); err != nil { // theirs go on as they are
		s.log.Warn("gates of running pods are of an older devaipod", "err", err)
	}
}

// getReady notes when the first pass is done.
func (s *service) getReady(ctx context.Context) {
	select {
	case <-s.loop.Passed():
		s.ready.Store(true)
		s.happened.add(happening{Kind: kindService, State: "ready"})
		s.log.Info("ready", "url", s.cfg.serviceURL())
	case <-ctx.Done():
	}
}

// publicHandler is what the loopback port reaches.
func (s *service) publicHandler() http.Handler {
	mux := s.relayHandler()
	serveCache(mux, s.cache, s.count)
	if s.panel == nil {
		return s.site.Handler(mux)
	}
	return s.panel.Handler(s.site.Handler(mux))
}

// relayHandler is what the forge's relay reaches: nothing that reads a
// repository.
func (s *service) relayHandler() *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { answer(w, http.StatusOK, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if !s.ready.Load() {
			answer(w, http.StatusServiceUnavailable, "the first pass over all issues is not done yet")
			return
		}
		answer(w, http.StatusOK, "ok")
	})
	mux.Handle("POST /hooks/forge", s.hook)
	return mux
}

func answer(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	fmt.Fprintln(w, text)
}

// prepareRepositories gives every repository of the forge the labels, and the
// bot its place as a collaborator: at start, when one is made, and now and
// then.
func (s *service) prepareRepositories(ctx context.Context) {
	tick := time.NewTicker(s.cfg.Service.Resync)
	defer tick.Stop()
	done := map[int64]bool{}
	for {
		repos, err := s.forge.Repositories(ctx)
		if err != nil && ctx.Err() == nil {
			s.log.Warn("listing repositories", "err", err)
		}
		for _, r := range repos {
			if done[r.ID] || r.Archived {
				continue
			}
			if err := prepareRepository(ctx, s.forge, r.Repo, s.cfg.labels()); err != nil {
				s.log.Warn("preparing a repository; trying again later", "repo", r.Repo.String(), "err", err)
				continue
			}
			done[r.ID] = true
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-s.repos:
		}
	}
}

// prepareRepository lets the bot push and makes the labels.
func prepareRepository(ctx context.Context, client *forge.Client, repo forge.Repo, labels []forge.Label) error {
	if err := client.EnsureBot(ctx, repo); err != nil {
		return fmt.Errorf("letting the bot push to %s: %w", repo, err)
	}
	if _, err := client.EnsureLabels(ctx, repo, labels); err != nil {
		return fmt.Errorf("making the labels of %s: %w", repo, err)
	}
	return nil
}
