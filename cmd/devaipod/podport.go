package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"codeberg.org/devaipod/devaipod/mirror"
	"codeberg.org/devaipod/devaipod/mirror/cache"
	"codeberg.org/devaipod/devaipod/podapi"
	"codeberg.org/devaipod/devaipod/pods"
	"codeberg.org/devaipod/devaipod/pods/backend"
	"codeberg.org/devaipod/devaipod/pods/podfile"
	"codeberg.org/devaipod/devaipod/pods/podman"
	"codeberg.org/devaipod/devaipod/pods/reconcile"
	"codeberg.org/devaipod/devaipod/pods/relay"
	"codeberg.org/devaipod/devaipod/pods/usage"
)

// podPort is the pods as the reconcile loop sees them. It also keeps each
// pod's door open: the socket in its run directory on which the service
// answers the pod's gate.
type podPort struct {
	instance string
	manager  *pods.Manager
	work     *mirror.Work
	saved    *mirror.Saved
	cache    *cache.Cache
	mirrored string       // the cache's directory
	others   http.Handler // repositories of other hosts
	quota    int64        // bytes that are kept of an issue's agent
	lifts    func(ctx context.Context, k reconcile.Key) ([]mirror.Lift, error)
	policies *policies
	disk     *pods.DiskWatch
	spec     func(ctx context.Context, t reconcile.Task) (pods.Spec, error)
	revive   func(context.Context) error // starts podman's service again, if it is ours
	usages   func(ctx context.Context, containers []string) (map[string]podman.Usage, error)
	keep     string // directory of tasks that have not started yet
	model    string // host:port that /dial/model leads to, "" for none
	log      *slog.Logger

	mu    sync.Mutex
	doors map[reconcile.Key]door
	apis  map[reconcile.Key]*podapi.Client
	saves map[reconcile.Key]*save

	roundsMu sync.Mutex // held while what an agent was told of CI changes

	kick        func(reconcile.Key) // has the loop look at an issue
	checkWithin time.Duration
	checkPlaces chan struct{} // nil for as many as there are
	checks      map[reconcile.Key]*checkJob
}

// A door is what a pod reaches of the service: its gate by one server, its saver
// by the other.
type door []*http.Server

func (d door) close() error {
	var err error
	for _, srv := range d {
		err = errors.Join(err, srv.Close())
	}
	return err
}

var _ reconcile.Pods = (*podPort)(nil)

func (p *podPort) List(ctx context.Context) ([]reconcile.Pod, error) {
	found, err := p.manager.List(ctx)
	if err != nil && ctx.Err() == nil {
		if err := p.revive(ctx); err != nil {
			return nil, err
		}
		found, err = p.manager.List(ctx)
	}
	if err != nil {
		return nil, err
	}
	var out []reconcile.Pod
	for _, f := range found {
		pod := reconcile.Pod{
			Key: reconcile.Key(f.Key), RepoID: f.RepoID, Name: f.Name, TriggerID: f.Pin.EventID, TriggerAt: f.Pin.At, Labeler: f.Pin.Labeler,
			Branch: f.Branch, Base: f.Base, Created: f.Agent.CreatedAt, Started: f.Agent.StartedAt,
			Whole:   f.Agent.Running && f.Control.Running && f.Workspace.Running && f.Saver.Running,
			Full:    p.disk.Why(f.Key),
			Entered: p.manager.EnteredAt(f.Key),
			Stopped: f.Agent.Exited && f.Control.Exited && f.Workspace.Exited && !f.Saver.Running,
		}
		if f.Agent.Exited {
			pod.Exit = exitWords(f.Agent)
		}
		out = append(out, pod)
	}
	return out, nil
}

// killed is the exit code of what SIGKILL has ended.
const killed = 128 + int(syscall.SIGKILL)

// exitWords says how a container ended. Not every runtime tells podman that it
// was for memory.
func exitWords(st backend.State) string {
	switch {
	case st.OOMKilled:
		return "the agent's container ran out of memory (agent.memory)"
	case st.ExitCode == killed:
		return fmt.Sprintf("the agent was killed (code %d), as the kernel does with what runs out of memory (agent.memory)", killed)
	}
	return fmt.Sprintf("the agent's container ended with code %d", st.ExitCode)
}

func (p *podPort) Begin(ctx context.Context, t reconcile.Task) error {
	spec, err := p.spec(ctx, t)
	if err != nil {
		return err
	}
	p.forgetSave(t.Key)
	if err := p.open(spec); err != nil {
		return err
	}
	_, err = p.manager.Ensure(ctx, spec)
	return err
}

func (p *podPort) Resume(ctx context.Context, k reconcile.Key) error {
	spec, err := p.manager.Spec(pods.Key(k))
	if err != nil {
		return err
	}
	p.forgetSave(k)
	if err := p.open(spec); err != nil {
		return err
	}
	return p.manager.Resume(ctx, pods.Key(k))
}

// Stop stops a pod and shuts its door, unless what its agent did is going out
// through that just now: a removal then shuts it, or the next stop.
func (p *podPort) Stop(ctx context.Context, k reconcile.Key) error {
	p.endCheck(k)
	if err := p.manager.Stop(ctx, pods.Key(k)); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if s := p.saves[k]; s != nil && !s.ended() {
		return nil
	}
	return p.shutLocked(k)
}

// Remove removes a pod once all that its agent did is saved.
func (p *podPort) Remove(ctx context.Context, k reconcile.Key) error {
	if err := p.savedFirst(ctx, k); err != nil {
		return err
	}
	p.endCheck(k)
	defer p.release(ctx)
	return errors.Join(p.shut(k), p.manager.Remove(ctx, pods.Key(k)))
}

// control is the way to a pod's pod-api.
func (p *podPort) control(k reconcile.Key) *podapi.Client {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.apis[k] == nil {
		p.apis[k] = checked(podapi.NewClient(filepath.Join(p.manager.RunDir(pods.Key(k)), podfile.ControlSocket)))
	}
	return p.apis[k]
}

func (p *podPort) Summary(ctx context.Context, k reconcile.Key) (reconcile.Summary, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	s, err := p.control(k).Summary(ctx)
	if err != nil {
		return reconcile.Summary{}, err
	}
	var blocked []reconcile.Block
	for _, b := range s.Blocked {
		blocked = append(blocked, reconcile.Block(b))
	}
	var setups []reconcile.Setup
	for _, st := range s.Setups {
		setups = append(setups, reconcile.Setup(st))
	}
	if s.State == podapi.Done { // of a control from before an upgrade
		s.State = podapi.IdleWithout
	}
	var choices []string
	for _, c := range s.Choices {
		choices = append(choices, c.Name)
	}
	return reconcile.Summary{
		Blocked: blocked, Setups: setups, Choices: choices, Mark: s.Mark, Version: s.Version,
		State: reconcile.AgentState(s.State), Since: s.Since, Cause: reconcile.Cause(s.Cause), Activity: s.Activity, Message: s.Message, Question: s.Question, Error: s.Error,
	}, nil
}

// Tell implements [reconcile.Pods].
func (p *podPort) Tell(ctx context.Context, k reconcile.Key, id, text string) error {
	fault("tell: " + k.String())
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return p.control(k).Tell(ctx, id, text)
}

// heededFile is where a pod's run directory tells which comment's /retry was seen to.
func (p *podPort) heededFile(k reconcile.Key) string {
	return filepath.Join(p.manager.RunDir(pods.Key(k)), "heeded")
}

// Heed implements [reconcile.Pods].
func (p *podPort) Heed(k reconcile.Key, comment int64) error {
	return podfile.Replace(p.heededFile(k), []byte(strconv.FormatInt(comment, 10)))
}

// Heeded implements [reconcile.Pods].
func (p *podPort) Heeded(k reconcile.Key) (int64, error) {
	b, err := os.ReadFile(p.heededFile(k))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(string(b), 10, 64)
}

// keepFile is where a task is kept that may start and has not yet.
func (p *podPort) keepFile(k reconcile.Key) string {
	return filepath.Join(p.keep, pods.Name("task", pods.Key(k))+".json")
}

func (p *podPort) Keep(k reconcile.Key, t *reconcile.Task) error {
	if t == nil {
		err := os.Remove(p.keepFile(k))
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	b, err := json.Marshal(t)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(p.keep, 0o700); err != nil {
		return err
	}
	return podfile.Replace(p.keepFile(k), b)
}

func (p *podPort) Kept(k reconcile.Key) (*reconcile.Task, error) { return readTask(p.keepFile(k)) }

func (p *podPort) Waiting() ([]reconcile.Key, error) {
	files, err := filepath.Glob(filepath.Join(p.keep, "*.json"))
	var keys []reconcile.Key
	for _, file := range files {
		t, err := readTask(file)
		if err != nil { // its issue is told when it is looked at; the others must go on
			p.log.Warn("a task that waits can't be read", "err", err)
		}
		if t != nil {
			keys = append(keys, t.Key)
		}
	}
	return keys, err
}

// readTask reads a task that was kept; nil when there is none.
func readTask(file string) (*reconcile.Task, error) {
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var t reconcile.Task
	if err := json.Unmarshal(b, &t); err != nil {
		return nil, fmt.Errorf("reading the task in %s: %w; remove the file and put the label on again", file, err)
	}
	return &t, nil
}

// open makes the pod's door unless it is there.
func (p *podPort) open(spec pods.Spec) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	k := reconcile.Key(spec.Key)
	dir, old, err := p.doorway(spec.Key, p.manager.SaveSocket(spec.Key))
	if err != nil || old {
		return err
	}
	if err := p.manager.MakeSaveDir(spec.Key); err != nil {
		return err
	}
	l, err := listenUnix(filepath.Join(dir, podfile.ServiceSocket))
	if err != nil {
		return err
	}
	// The saver is another user; the directory around is 0700.
	saves, err := listenUnixAs(p.manager.SaveSocket(spec.Key), 0o666)
	if err != nil {
		return errors.Join(err, l.Close())
	}
	mux := http.NewServeMux()
	mux.Handle("/work/", p.work.Handler(p.rules(spec), func(repo string) http.Handler { return p.cache.Reads(forgeAddress(repo)) }))
	mux.Handle("GET "+podfile.RestorePath, p.work.Saved(p.rules(spec), spec.Issue))
	mux.Handle("/git/", p.others)
	mux.HandleFunc("GET /dial/model", p.dialModel)
	mux.HandleFunc("GET "+podfile.CPUPath, func(w http.ResponseWriter, r *http.Request) { p.cpuUsed(w, r, k) })
	mux.HandleFunc("GET "+podfile.GitStatusPath, func(w http.ResponseWriter, r *http.Request) { p.gitStatus(w, r, spec.RepoID, k) })
	p.doors[k] = door{p.serve(k, l, mux), p.serve(k, saves, p.work.Saves(func() (mirror.SaveRules, error) { return p.saveRules(spec.Key) }))}
	return nil
}

// savedWork is what is saved of an issue's agent.
func (p *podPort) savedWork(repoID int64, k reconcile.Key) foundWork {
	return foundWork{p.saved.Work(repoID, k.Issue, knownCopy(p.mirrored, k.Owner+"/"+k.Repo)), k}
}

// gitStatus tells a pod-api how its agent's clone stood when it was saved last: 404
// when it was not.
func (p *podPort) gitStatus(w http.ResponseWriter, r *http.Request, repoID int64, k reconcile.Key) {
	work := p.savedWork(repoID, k)
	snap, _, err := work.newest(r.Context())
	var st mirror.GitStatus
	if err == nil {
		st, err = work.Status(r.Context(), snap)
	}
	switch {
	case errors.Is(err, mirror.ErrNothingSaved):
		http.Error(w, err.Error(), http.StatusNotFound)
	case err != nil:
		p.log.Warn("the state of an agent's clone can't be told", "issue", k.String(), "err", err)
		http.Error(w, "the state of the clone can't be told; the service's log has why", http.StatusInternalServerError)
	default:
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(st) // the pod-api has gone: nobody to tell
	}
}

// cpuUsed tells a pod's control what its agent's container has used of processors, by
// podman: 404 where that does not know (cgroup v1 without root, or a pod that ended).
func (p *podPort) cpuUsed(w http.ResponseWriter, r *http.Request, k reconcile.Key) {
	name := p.manager.Name(pods.Key(k)) + "-" + pods.RoleAgent
	used, err := p.usages(r.Context(), []string{name})
	if u, ok := used[name]; ok && u.CPU > 0 {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(podfile.CPU{Used: u.CPU}) // control has gone: nobody to tell
		return
	}
	p.log.Debug("podman does not tell what an agent's container uses", "issue", k.String(), "err", err)
	http.Error(w, "podman does not tell", http.StatusNotFound)
}

// doorway makes a pod's run directory; old tells that its door is there. more are
// sockets of the door beside the service's.
func (p *podPort) doorway(k pods.Key, more ...string) (dir string, old bool, err error) {
	dir = p.manager.RunDir(k)
	if have := p.doors[reconcile.Key(k)]; have != nil {
		var gone error
		for _, socket := range append(more, filepath.Join(dir, podfile.ServiceSocket)) {
			_, err := os.Stat(socket)
			gone = errors.Join(gone, err)
		}
		if gone == nil {
			return dir, true, nil
		}
		delete(p.doors, reconcile.Key(k)) // a socket was removed: nobody finds it any more
		if err := have.close(); err != nil {
			return dir, false, err
		}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return dir, false, fmt.Errorf("making the pod's run directory: %w", err)
	}
	return dir, false, nil
}

func (p *podPort) serve(k reconcile.Key, l net.Listener, h http.Handler) *http.Server {
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, ErrorLog: slog.NewLogLogger(p.log.Handler(), slog.LevelWarn)}
	go func() {
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			p.log.Error("a pod's door broke", "issue", k.String(), "err", err)
		}
	}()
	return srv
}

// forgeAddress is what the cache calls a repository of the instance's forge.
func forgeAddress(repo string) cache.Address { return cache.Address{Host: forgeHost, Path: repo} }

// rules are what a pod may push.
func (p *podPort) rules(spec pods.Spec) mirror.Rules {
	k := reconcile.Key(spec.Key)
	return mirror.Rules{
		Repo: k.Owner + "/" + k.Repo, RepoID: spec.RepoID, BranchPrefix: pods.BranchPrefix(k.Issue),
		Lifts:    func(ctx context.Context) ([]mirror.Lift, error) { return p.lifts(ctx, k) },
		Reviewed: func() (string, error) { return p.left(spec.Key) },
		Pusher: func() mirror.Pusher {
			now, err := p.manager.Spec(spec.Key) // a new label event changes it
			if err != nil {
				now = spec
			}
			return mirror.Pusher{Pod: p.manager.Name(spec.Key), Issue: k.String(), Task: now.Pin.TextHash, Agent: now.AgentName(), Model: now.Model.Name, Tokens: p.tokens(spec.Key)}
		},
	}
}

// tokens are what an issue's agents have used of models.
func (p *podPort) tokens(k pods.Key) int64 {
	entries, err := usage.Read(p.manager.UsageDir(k))
	if err != nil { // the gate says so as well, and lets nothing more through
		p.log.Warn("what a pod has used can't be told", "issue", k.String(), "err", err)
	}
	return usage.Sum(entries).Tokens.Sum()
}

func (p *podPort) shut(k reconcile.Key) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.shutLocked(k)
}

func (p *podPort) shutLocked(k reconcile.Key) error {
	d := p.doors[k]
	delete(p.doors, k)
	delete(p.apis, k)
	return d.close()
}

// openAll opens the doors of the pods that are there, at the service's start.
func (p *podPort) openAll(ctx context.Context) error {
	found, err := p.manager.List(ctx)
	if err != nil {
		return err
	}
	for _, f := range found {
		if !f.Control.Running {
			continue
		}
		spec, err := p.manager.Spec(f.Key)
		if err != nil { // the loop says so on its issue, when it is to go on
			p.log.Warn("a pod that runs gets no door", "issue", f.Key.String(), "err", err)
			continue
		}
		if err := p.open(spec); err != nil {
			return err
		}
	}
	return nil
}

func (p *podPort) shutAll() error {
	p.mu.Lock()
	var keys []reconcile.Key
	for k := range p.doors {
		keys = append(keys, k)
	}
	p.mu.Unlock()
	var errs []error
	for _, k := range keys {
		errs = append(errs, p.shut(k))
	}
	return errors.Join(errs...)
}

// dialModel joins a gate with a model that listens on this host's loopback,
// and with that address alone: the one that the configuration names.
func (p *podPort) dialModel(w http.ResponseWriter, r *http.Request) {
	if p.model == "" {
		http.Error(w, "the configured model is not on this host", http.StatusForbidden)
		return
	}
	up, err := new(net.Dialer).DialContext(r.Context(), "tcp", p.model)
	if err != nil {
		http.Error(w, "the model does not answer: "+err.Error(), http.StatusBadGateway)
		return
	}
	defer up.Close()
	conn, buf, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer conn.Close()
	if _, err := buf.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"); err != nil {
		return
	}
	if err := buf.Flush(); err != nil {
		return
	}
	if buf.Reader.Buffered() > 0 {
		return // a gate waits for the answer before it speaks
	}
	relay.Join(r.Context(), conn, up)
}

// modelAddress tells the host:port of a model on this host, ""
// when it is elsewhere.
func modelAddress(base string) string {
	u, err := url.Parse(base)
	if err != nil {
		return ""
	}
	host, port := u.Hostname(), u.Port()
	if !strings.EqualFold(host, "localhost") && !ofThisHost(net.ParseIP(host)) {
		return ""
	}
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	return net.JoinHostPort(host, port)
}

// ofThisHost tells an address of this host's, which pods' networks are fenced off
// from, loopback or not.
func ofThisHost(ip net.IP) bool {
	own, err := net.InterfaceAddrs()
	if err != nil || ip == nil {
		return false // then the pod says that it does not reach it
	}
	return ip.IsLoopback() || slices.ContainsFunc(own, func(a net.Addr) bool {
		n, ok := a.(*net.IPNet)
		return ok && n.IP.Equal(ip)
	})
}
