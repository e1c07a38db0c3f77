package pods

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"codeberg.org/devaipod/devaipod/pods/backend"
	"codeberg.org/devaipod/devaipod/pods/podfile"
)

// Config is what a [Manager] is made from.
type Config struct {
	Instance string
	StateDir string // the instance's, 0700
	Backend  backend.Backend
	Images   Images
	// Lend, when not nil, gives a directory with the objects of a pod's repository
	// for its clones to borrow, or "". It stays at least until done is called, and
	// then for as long as Borrowed tells of it. Ensure ends with Lend's error.
	Lend func(ctx context.Context, s Spec) (dir string, done func(), err error)
	// Policy is what a pod may do now; nil for a policy without bounds.
	Policy func(k Key) (podfile.Policy, error)
	// Nested, when not nil, tells whether a pod's agent and workspace may make containers
	// of their own, which brings more of the kernel in their reach.
	Nested func(k Key) bool
	// Source, when not nil, says which image a pod's workspace is made from, after Lend.
	// Without it Spec.Image does.
	Source func(ctx context.Context, s Spec) (Source, error)
	// ImageRules bound what is fetched and built for it.
	ImageRules ImageRules
	// Fault, when not nil, is called with a name before each change of a file;
	// tests end the process there. Backends have their own.
	Fault func(point string)
	// DiskUsed, when not nil, tells how much of a directory's file system is used,
	// from 0 to 1, instead of the system.
	DiskUsed func(dir string) (float64, error)
	Log      *slog.Logger
}

// A Manager makes and ends the pods of one instance. Its methods may be called
// concurrently for different keys; every one is idempotent and may be
// repeated after a kill at any point.
type Manager struct {
	cfg    Config
	runs   backend.Backend
	images Images
	log    *slog.Logger
	warned sync.Map // specifications that can't be read, by file
	locks  sync.Map // by key: held while a pod is made or removed
	saving sync.Map // the keys whose saver is run once now
	// checking are the keys whose checks run now.
	checking sync.Map
	tools    atomic.Pointer[string] // the image that EnsureTools made or found

	jobsMu sync.Mutex
	jobs   map[string]*job // by what they do and the image's name
	large  sync.Map        // images that were fetched and are too large, and when
	looked sync.Map        // what was seen of images, by what they are and were looked at with
}

// New returns a manager. It makes no call.
func New(cfg Config) (*Manager, error) {
	if cfg.Instance == "" || cfg.StateDir == "" || cfg.Backend == nil || cfg.Images == nil || cfg.Log == nil {
		return nil, errors.New("pods: Instance, StateDir, Backend, Images and Log must be set")
	}
	return &Manager{cfg: cfg, runs: cfg.Backend, images: cfg.Images, log: cfg.Log}, nil
}

func (m *Manager) change(what string, k Key) {
	if m.cfg.Fault != nil {
		m.cfg.Fault("file: " + what + " " + k.String())
	}
}

// RunDir is the pod's directory on the host: sockets, and files for control.
// Its name is short, because sockets' paths end at 108 bytes.
func (m *Manager) RunDir(k Key) string { return runDir(m.cfg.StateDir, m.cfg.Instance, k) }

func runDir(state, instance string, k Key) string {
	return filepath.Join(state, "p", id(instance, k)[:8])
}

// Steer brings a pod's policy up to date, which its gate then keeps to.
func (m *Manager) Steer(k Key) error {
	var p podfile.Policy
	if m.cfg.Policy != nil {
		var err error
		if p, err = m.cfg.Policy(k); err != nil {
			return fmt.Errorf("working out what %s may do: %w", k, err)
		}
	}
	if err := podfile.WritePolicy(m.RunDir(k), p); err != nil {
		return fmt.Errorf("writing the policy of %s: %w", k, err)
	}
	return nil
}

// tokens are what agent and workspace show to the pod's gate.
type tokens struct{ Agent, Workspace string }

const (
	tokensFile = "tokens.json"
	specFile   = "spec.json"
)

// Ensure makes the pod of spec and starts it. A pod that was started for
// another label event is made anew, its volumes and so its work kept, and what
// its clones borrow from.
func (m *Manager) Ensure(ctx context.Context, s Spec) (changed bool, err error) {
	defer m.lock(s.Key)()
	if err := m.endRemoval(ctx, s.Key); err != nil {
		return false, err
	}
	dir := m.RunDir(s.Key)
	var lent func()
	if s.Borrow, lent, err = m.borrow(ctx, s); err != nil {
		return false, err
	}
	defer lent()
	if err := m.choose(ctx, &s); err != nil {
		return false, err
	}
	s.Nested = m.cfg.Nested != nil && m.cfg.Nested(s.Key)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return false, fmt.Errorf("making the run directory of %s: %w", s.Key, err)
	}
	// First: by it the pod is found, however little else there is.
	m.change("specification", s.Key)
	if err := writeJSON(filepath.Join(dir, specFile), s); err != nil {
		return false, fmt.Errorf("keeping the specification of %s: %w", s.Key, err)
	}
	m.change("tokens", s.Key)
	t, err := m.tokens(dir)
	if err != nil {
		return false, err
	}
	if err := m.MakeSaveDir(s.Key); err != nil {
		return false, err
	}
	m.change("account", s.Key)
	if s.Name == "" {
		if err := m.openAccount(s); err != nil {
			return false, err
		}
	}
	m.change("policy", s.Key)
	if err := m.Steer(s.Key); err != nil {
		return false, err
	}
	m.change("podfile", s.Key)
	s.Task.Setup = s.setupWithin()
	err = podfile.Write(dir, &podfile.File{
		Instance: m.cfg.Instance, Pod: Name(m.cfg.Instance, s.Key), Repo: s.Owner + "/" + s.Repo, Issue: s.Issue,
		Branch: s.Branch, BranchPrefix: BranchPrefix(s.Issue), Base: s.Base,
		AgentToken: t.Agent, WorkspaceToken: t.Workspace, Agent: s.AgentName(), Driver: s.Driver, Ask: s.Ask, Model: s.Model, Task: s.Task,
	})
	if err != nil {
		return false, fmt.Errorf("writing the podfile of %s: %w", s.Key, err)
	}
	return m.build(ctx, s, t)
}

// build has the pod made of s made, and started.
func (m *Manager) build(ctx context.Context, s Spec, t tokens) (changed bool, err error) {
	p := backend.Pod{Name: m.Name(s.Key), Labels: m.labels(s.Key)}
	kept := map[string]string{}
	if s.Borrow != "" {
		kept[labelBorrow] = s.Borrow
	}
	for _, v := range append(m.volumesOf(s.Key), s.mountVolumes(p.Name)...) {
		vol := backend.Volume{Name: v, Labels: kept, Sockets: strings.HasSuffix(v, "-sock")}
		if !vol.Sockets { // those are control's, who is root
			if vol.Owner = agentID; !strings.HasPrefix(v, p.Name+"-agent-") && v != p.Name+"-saver" {
				vol.Owner = s.WorkspaceBox.owner()
			}
		}
		p.Volumes = append(p.Volumes, vol)
	}
	if p.Containers, err = m.containers(s, t); err != nil {
		return false, err
	}
	return m.runs.Ensure(ctx, p)
}

// Spec is what Ensure kept of a pod.
func (m *Manager) Spec(k Key) (Spec, error) {
	s, err := readSpec(m.RunDir(k))
	if err != nil {
		err = fmt.Errorf("the specification of %s is lost (%w): put its label on again", k, err)
	}
	return s, err
}

// own are the labels of a pod's things, whatever else they are labeled with.
func (m *Manager) own(k Key) map[string]string {
	return map[string]string{labelInstance: m.cfg.Instance, labelPod: m.Name(k)}
}

// Name is what a pod is called.
func (m *Manager) Name(k Key) string { return Name(m.cfg.Instance, k) }

// Resume makes a pod whole and starts it, from the specification that Ensure
// kept.
func (m *Manager) Resume(ctx context.Context, k Key) error {
	s, err := m.Spec(k)
	if err != nil {
		return err
	}
	if err := m.renewTools(ctx, &s); err != nil {
		return err
	}
	_, err = m.Ensure(ctx, s)
	return err
}

// renewTools takes the tools image of today where the one that a pod was made
// with is gone: an older devaipod's, after an upgrade.
func (m *Manager) renewTools(ctx context.Context, s *Spec) error {
	ok, err := m.images.ImageExists(ctx, s.ToolsImage)
	if tools := m.tools.Load(); err == nil && !ok && tools != nil {
		s.ToolsImage = *tools
	}
	return err
}

// readSpec reads what Ensure kept in a pod's run directory.
func readSpec(dir string) (s Spec, err error) {
	b, err := os.ReadFile(filepath.Join(dir, specFile))
	if err == nil {
		err = json.Unmarshal(b, &s)
	}
	if err != nil {
		return s, fmt.Errorf("reading the specification in %s: %w", dir, err)
	}
	return s, nil
}

func (m *Manager) specs() ([]Spec, error) { return Specs(m.cfg.StateDir) }

// Specs are those of all pods of a state directory. With an error they are not all known.
func Specs(state string) ([]Spec, error) {
	files, err := filepath.Glob(filepath.Join(state, "p", "*", specFile))
	if err != nil {
		return nil, err
	}
	var all []Spec
	for _, file := range files {
		s, err := readSpec(filepath.Dir(file))
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	return all, nil
}

// Sweep removes what a process that was killed has left of run directories:
// those without a specification. It must not run beside other methods.
func (m *Manager) Sweep() error {
	dirs, err := filepath.Glob(filepath.Join(m.cfg.StateDir, "p", "*"))
	for _, dir := range dirs {
		if straying(dir) {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}
	return err
}

// Stop ends a pod's containers and keeps everything. The saver ends after the
// agent: it saves what the agent did last.
func (m *Manager) Stop(ctx context.Context, k Key) error {
	var all []backend.Ending
	for _, role := range []string{RoleAgent, RoleSaver, RoleWorkspace, RoleControl} {
		all = append(all, backend.Ending{Container: m.container(k, role), Patience: stopTime(role)})
	}
	return m.runs.Stop(ctx, all...)
}

// lock keeps the making and the removing of a pod apart, until unlock is called.
func (m *Manager) lock(k Key) (unlock func()) {
	mu, _ := m.locks.LoadOrStore(k, new(sync.Mutex))
	mu.(*sync.Mutex).Lock() //nolint:forcetypeassert // nothing else is stored
	return mu.(*sync.Mutex).Unlock
}

// Remove leaves nothing of a pod.
func (m *Manager) Remove(ctx context.Context, k Key) error {
	defer m.lock(k)()
	return m.clear(ctx, k)
}

// clear is Remove, with the key locked.
func (m *Manager) clear(ctx context.Context, k Key) error {
	if err := m.beginRemoval(k); err != nil {
		return fmt.Errorf("noting that the pod of %s is being removed: %w", k, err)
	}
	if err := m.runs.Remove(ctx, backend.Remains{Labels: m.own(k), Volumes: volumes(m.Name(k))}); err != nil {
		return err
	}
	m.change("remove run directory", k)
	return os.RemoveAll(m.RunDir(k))
}

// RemoveAll leaves nothing of any pod of the instance.
func (m *Manager) RemoveAll(ctx context.Context) error {
	found, err := m.list(ctx, func(Key) bool { return true })
	if err != nil {
		return err
	}
	for _, p := range found {
		if err := m.Remove(ctx, p.Key); err != nil {
			return err
		}
	}
	return nil
}

// A Pod as podman has it.
type Pod struct {
	Key
	RepoID                    int64
	Name                      string
	Pin                       Pin
	Branch, Base              string
	Agent, Control, Workspace backend.State
	Saver                     backend.State
}

// List finds the pods of issues, by the specifications kept of them and by the
// labels of their volumes and containers: one that is half made or half removed
// is there too.
func (m *Manager) List(ctx context.Context) ([]Pod, error) {
	return m.list(ctx, func(k Key) bool { return k.Name == "" })
}

// Workspaces finds the pods that people have brought up for themselves.
func (m *Manager) Workspaces(ctx context.Context) ([]Pod, error) {
	return m.list(ctx, func(k Key) bool { return k.Name != "" })
}

func (m *Manager) list(ctx context.Context, wanted func(Key) bool) ([]Pod, error) {
	own := map[string]string{labelInstance: m.cfg.Instance}
	found := map[string]*Pod{}
	var order []string
	see := func(k Key) *Pod {
		name := Name(m.cfg.Instance, k)
		if found[name] == nil {
			found[name] = &Pod{Key: k, Name: name}
			order = append(order, name)
		}
		return found[name]
	}
	if err := m.kept(see); err != nil {
		return nil, err
	}
	things, err := m.runs.Find(ctx, own)
	if err != nil {
		return nil, err
	}
	for _, t := range things {
		k, ok := keyOf(t.Labels)
		if !ok {
			continue // the forge's, for one
		}
		if p := see(k); !t.Volume {
			p.take(t.State)
		}
	}
	var out []Pod
	for _, name := range order {
		p := found[name]
		if !wanted(p.Key) {
			continue
		}
		if p.Agent.Exited && p.Control.Running { // by itself: only a look at it tells why
			if p.Agent, err = m.runs.State(ctx, m.container(p.Key, RoleAgent)); err != nil {
				return nil, err
			}
		}
		out = append(out, *p)
	}
	return out, nil
}

// kept sees the pods of which a specification is kept.
func (m *Manager) kept(see func(Key) *Pod) error {
	files, err := filepath.Glob(filepath.Join(m.cfg.StateDir, "p", "*", specFile))
	if err != nil {
		return err
	}
	for _, file := range files {
		s, err := readSpec(filepath.Dir(file))
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed meanwhile
		}
		if err != nil {
			// Its pod is found by its other parts, and the others must go on.
			if _, told := m.warned.LoadOrStore(file, true); !told {
				m.log.Warn("a pod's specification can't be read", "err", err)
			}
			continue
		}
		p := see(s.Key)
		p.Branch, p.Base, p.Pin, p.RepoID = s.Branch, s.Base, s.Pin, s.RepoID
	}
	return nil
}

// take notes one container of the pod. The agent's pin beats the one that is
// kept: in a pod that is being made anew it tells what the pod still is.
func (p *Pod) take(st backend.State) {
	switch st.Labels[labelRole] {
	case RoleControl:
		p.Control = st
	case RoleWorkspace:
		p.Workspace = st
	case RoleSaver:
		p.Saver = st
	case RoleAgent:
		p.Agent = st
		p.Branch, p.Base = st.Labels[labelBranch], st.Labels[labelBase]
		p.RepoID, _ = strconv.ParseInt(st.Labels[labelRepoID], 10, 64)
		// A label that can't be read leaves the zero pin, which matches no event.
		_ = json.Unmarshal([]byte(st.Labels[labelPin]), &p.Pin)
	}
}

func keyOf(labels map[string]string) (Key, bool) {
	owner, repo, ok := strings.Cut(labels[labelRepo], "/")
	if name := labels[labelName]; name != "" {
		return Key{Owner: owner, Repo: repo, Name: name}, ok && ValidName(name)
	}
	n, err := strconv.ParseInt(labels[labelIssue], 10, 64)
	return Key{Owner: owner, Repo: repo, Issue: n}, ok && err == nil && n > 0
}

// tokens reads the pod's tokens, or makes them: once for the pod's life.
func (m *Manager) tokens(dir string) (tokens, error) {
	path := filepath.Join(dir, tokensFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		t := tokens{Agent: rand.Text(), Workspace: rand.Text()}
		return t, writeJSON(path, t)
	}
	var t tokens
	if err == nil {
		err = json.Unmarshal(b, &t)
	}
	if err == nil && (t.Agent == "" || t.Workspace == "") {
		err = errors.New("it is empty")
	}
	if err != nil {
		return t, fmt.Errorf("reading the pod's tokens in %s: %w", path, err)
	}
	return t, nil
}

func writeJSON(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return podfile.Replace(path, b)
}
