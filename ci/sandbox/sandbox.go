package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/netutil"

	"codeberg.org/devaipod/devaipod/pods/podman"
)

// Labels of all that is made for a job, beside what podman keeps itself.
const (
	LabelInstance = "devaipod.instance"
	LabelTask     = "devaipod.ci" // the task's number
)

// Config says how jobs are kept.
type Config struct {
	Instance string // name of this devaipod; part of every name
	Podman   *podman.Client
	Tools    string // image that holds devaipod-pod at its root
	Dir      string // directory of ours alone, absolute and short: sockets are in it
	// Limits of a job: bytes, CPUs, processes. 0 is none.
	Memory int64
	CPUs   float64
	Pids   int64
	// Disk is how many bytes the containers and volumes of one job may have. It is
	// looked at now and then; 0 is no limit.
	Disk int64
	// Seccomp is the path of the profile of the job's containers (containers-seccomp.json(5)),
	// "" for podman's own.
	Seccomp string
	// Use decides whether jobs may use an image that is here, by its full name
	// (docker.io/library/x:latest). Images of others' repositories are here, too.
	Use func(image string) error
	// Pull decides whether an image that jobs may use may be fetched for them; nil is never.
	Pull func(image string) error
	// Build is the environment of a Dockerfile's commands beside their own: how they reach
	// what the door gives.
	Build map[string]string
	// Theirs, where it is set, tells whether a task is of another process, which may have
	// it open: Collect leaves those alone.
	Theirs func(task int64) bool
	Log    *slog.Logger
}

// Sandboxes makes those of one instance. Its methods may be called concurrently.
type Sandboxes struct {
	cfg  Config
	http *http.Client // to podman's socket
	host podman.Host

	mu   sync.Mutex
	open map[int64]bool // those that Collect leaves alone
}

var instanceName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,40}$`)

// New makes none yet; it asks podman what it runs on.
func New(ctx context.Context, cfg Config) (*Sandboxes, error) {
	switch {
	case !instanceName.MatchString(cfg.Instance):
		return nil, fmt.Errorf("sandbox: instance %q: want a short name", cfg.Instance)
	case !filepath.IsAbs(cfg.Dir):
		return nil, errors.New("sandbox: Dir: want an absolute path")
	case cfg.Podman == nil || cfg.Tools == "" || cfg.Use == nil || cfg.Log == nil:
		return nil, errors.New("sandbox: Podman, Tools, Use and Log: want all of them")
	}
	host, err := cfg.Podman.Host(ctx)
	if err != nil {
		return nil, err
	}
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", cfg.Podman.Socket())
	}
	return &Sandboxes{
		cfg: cfg, host: host, open: map[int64]bool{},
		http: &http.Client{Transport: &http.Transport{DialContext: dial, MaxIdleConnsPerHost: 8, IdleConnTimeout: time.Minute}},
	}, nil
}

// A Sandbox is what one job has. Its methods may be called concurrently.
type Sandbox struct {
	*Sandboxes
	task     int64
	dir      string
	holder   string // ID of the container
	cgroup   string // that is above those of the job's containers, "" for podman's usual one
	door     net.Listener
	exceeded chan error
	server   *http.Server
	stop     context.CancelFunc
	running  sync.WaitGroup // the server, streams and requests, the watch
	once     sync.Once
	building sync.Mutex // one Dockerfile at a time
	things   things
}

// Socket is the path of the unix socket with the job's Docker API.
func (s *Sandbox) Socket() string { return filepath.Join(s.dir, "docker.sock") }

// Door accepts what the job connects to at 127.0.0.1, at any of the ports.
func (s *Sandbox) Door() net.Listener { return s.door }

// Exceeded tells, at most once, why the job can't go on: it has too much on the disk,
// or its network is gone. Its end is up to the caller.
func (s *Sandbox) Exceeded() <-chan error { return s.exceeded }

const (
	maxPath  = 100  // bytes of a socket's path; the kernel has 108
	maxConns = 1024 // at a time, at a socket
	// holderReady is how long the holder may take to listen.
	holderReady = time.Minute
)

var hostName = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9_])?$`)

// Open makes the job's namespace and serves the filter's socket until Close. hosts
// are the names of services, which lead to loopback; ports are those of the door.
func (s *Sandboxes) Open(ctx context.Context, task int64, ports []int, hosts []string) (*Sandbox, error) {
	if err := checkOpen(task, ports, hosts); err != nil {
		return nil, err
	}
	b := &Sandbox{Sandboxes: s, task: task, dir: filepath.Join(s.cfg.Dir, strconv.FormatInt(task, 10)), exceeded: make(chan error, 1)}
	b.things.init()
	if len(b.doorSocket()) > maxPath {
		return nil, fmt.Errorf("sandbox: %s: a socket's path may have %d bytes", b.doorSocket(), maxPath)
	}
	s.mu.Lock()
	taken := s.open[task]
	s.open[task] = true
	s.mu.Unlock()
	if taken {
		return nil, fmt.Errorf("sandbox: task %d has one already", task)
	}
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	b.stop = stop
	if err := b.begin(ctx, background, ports, hosts); err != nil {
		return nil, errors.Join(fmt.Errorf("opening the sandbox of task %d: %w", task, err), b.Close(context.WithoutCancel(ctx)))
	}
	return b, nil
}

func checkOpen(task int64, ports []int, hosts []string) error {
	if task <= 0 || len(ports) == 0 || len(ports) > 16 || len(hosts) > 64 {
		return fmt.Errorf("sandbox: task %d with %d ports and %d hosts: want 1 to 16 ports and up to 64 hosts", task, len(ports), len(hosts))
	}
	for _, p := range ports {
		if p < 1 || p > 65535 {
			return fmt.Errorf("sandbox: port %d: there is none", p)
		}
	}
	for _, h := range hosts {
		if !hostName.MatchString(h) || strings.EqualFold(h, "localhost") {
			return fmt.Errorf("sandbox: %q can't be the name of a service", h)
		}
	}
	return nil
}

func (s *Sandbox) begin(ctx, background context.Context, ports []int, hosts []string) error {
	if err := s.removeAll(ctx, s.task); err != nil { // of the same task, before a kill
		return err
	}
	if err := os.MkdirAll(filepath.Dir(s.doorSocket()), 0o700); err != nil {
		return err
	}
	door, err := listen(ctx, s.doorSocket())
	if err != nil {
		return err
	}
	s.door = netutil.LimitListener(door, maxConns)
	if err := errors.Join(s.writeHosts(hosts), s.group(ctx), s.hold(ctx, door, ports)); err != nil {
		return err
	}
	docker, err := listen(ctx, s.Socket())
	if err != nil {
		return err
	}
	s.serve(background, netutil.LimitListener(docker, maxConns))
	s.running.Go(func() { s.watch(background) })
	return nil
}

// listen makes a socket that only its owner may connect to.
func listen(ctx context.Context, path string) (*net.UnixListener, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l.(*net.UnixListener), nil
}

// Close ends all that the job runs and removes all that it has; it may be called again.
// What could not be removed is found by Collect.
func (s *Sandbox) Close(ctx context.Context) error {
	var err error
	s.once.Do(func() {
		s.things.close()
		s.stop()
		if s.server != nil {
			err = s.server.Close()
		}
		if s.door != nil {
			if e := s.door.Close(); !errors.Is(e, net.ErrClosed) { // by who serves it
				err = errors.Join(err, e)
			}
		}
		s.running.Wait()
		err = errors.Join(err, s.removeAll(ctx, s.task))
		s.mu.Lock()
		delete(s.open, s.task)
		s.mu.Unlock()
	})
	return err
}

func (s *Sandboxes) labels(task int64) map[string]string {
	return map[string]string{LabelInstance: s.cfg.Instance, LabelTask: strconv.FormatInt(task, 10)}
}

func (s *Sandboxes) prefix(task int64) string { return fmt.Sprintf("%s-ci-%d-", s.cfg.Instance, task) }

// removeAll leaves nothing of a task. The holder goes last: podman removes none whose
// namespace others are in.
func (s *Sandboxes) removeAll(ctx context.Context, task int64) error {
	labels := s.labels(task)
	found, err := s.cfg.Podman.Containers(ctx, labels)
	if err != nil {
		return err
	}
	holder, infra := s.prefix(task)+holderName, s.prefix(task)+infraName // that goes with its pod
	var wg sync.WaitGroup
	errs := make([]error, len(found))
	for i, c := range found {
		if c.Name != holder && c.Name != infra {
			wg.Go(func() { errs[i] = s.removeContainer(ctx, c.Name) })
		}
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	s.endWatchers(ctx, task)
	if err := errors.Join(s.cfg.Podman.RemovePod(ctx, s.prefix(task)+groupName), s.removeContainer(ctx, holder)); err != nil {
		return err
	}
	volumes, err := s.cfg.Podman.Volumes(ctx, labels)
	if err != nil {
		return err
	}
	for _, v := range volumes {
		if err := s.cfg.Podman.RemoveVolume(ctx, v.Name); err != nil {
			return err
		}
	}
	dir := filepath.Join(s.cfg.Dir, strconv.FormatInt(task, 10))
	if _, err := os.Lstat(filepath.Join(dir, imagesFile)); err == nil {
		if err := s.removeImages(ctx, task); err != nil {
			return err
		}
	}
	return os.RemoveAll(dir)
}

// removeContainer kills and removes one at once; one that is not there is no error.
func (s *Sandboxes) removeContainer(ctx context.Context, name string) error {
	resp, err := s.ask(ctx, http.MethodDelete, libpod+"/containers/"+name, "force=true&timeout=0&v=true", nil)
	if err != nil {
		return fmt.Errorf("removing container %s: %w", name, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 == 2 || resp.StatusCode == http.StatusNotFound {
		return nil
	}
	return fmt.Errorf("removing container %s: %w", name, answerError(resp))
}

// Collect removes what is left of tasks that no Sandbox of this process has, and
// nothing that is not of this instance, or of Config.Theirs.
func (s *Sandboxes) Collect(ctx context.Context) error {
	own := map[string]string{LabelInstance: s.cfg.Instance}
	containers, err := s.cfg.Podman.Containers(ctx, own)
	if err != nil {
		return err
	}
	volumes, err := s.cfg.Podman.Volumes(ctx, own)
	if err != nil {
		return err
	}
	groups, err := s.cfg.Podman.Pods(ctx, own)
	if err != nil {
		return err
	}
	tasks := map[int64]bool{}
	note := func(text string) {
		if task, err := strconv.ParseInt(text, 10, 64); err == nil && task > 0 && strconv.FormatInt(task, 10) == text {
			tasks[task] = true
		}
	}
	for _, thing := range slices.Concat(containers, volumes, groups) {
		note(thing.Labels[LabelTask])
	}
	images, err := s.cfg.Podman.LabeledImages(ctx, own)
	if err != nil {
		return err
	}
	for _, i := range images {
		for _, name := range i.Names {
			rest, _ := strings.CutPrefix(name, imagePrefix+s.cfg.Instance+"-ci-")
			task, _, _ := strings.Cut(rest, ":")
			note(task)
		}
	}
	dirs, err := os.ReadDir(s.cfg.Dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, d := range dirs {
		note(d.Name())
	}
	var errs []error
	for task := range tasks {
		// Asked now: what it had when the lists were made was made before.
		if s.cfg.Theirs != nil && s.cfg.Theirs(task) {
			continue
		}
		errs = append(errs, s.collect(ctx, task))
	}
	return errors.Join(errs...)
}

// collect removes one that is not open, and keeps it from being opened meanwhile.
func (s *Sandboxes) collect(ctx context.Context, task int64) error {
	s.mu.Lock()
	living := s.open[task]
	s.open[task] = true
	s.mu.Unlock()
	if living {
		return nil
	}
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.open, task)
	}()
	s.cfg.Log.Info("removing what was left of a job", "task", task)
	if err := s.removeAll(ctx, task); err != nil {
		return err
	}
	return s.removeImages(ctx, task) // without its directory nothing told of them
}
