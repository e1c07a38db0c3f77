package pods

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"time"

	"codeberg.org/devaipod/devaipod/pods/backend"
	"codeberg.org/devaipod/devaipod/pods/image"
	"codeberg.org/devaipod/devaipod/pods/podfile"
)

// A Box is an image as an agent's or a workspace's container is made from it.
type Box struct {
	Image string `json:"image"`
	Home  string `json:"home"`
	// OwnHome says that Home is in the image, with files that belong into it.
	OwnHome bool `json:"own_home,omitempty"`
	// Guest says that it is not the agent's own image: what the agent needs comes
	// from that, mounted.
	Guest bool `json:"guest,omitempty"`
	// Git says that git comes from there too.
	Git      bool   `json:"git,omitempty"`
	Path     string `json:"path,omitempty"`     // the image's PATH
	Writable bool   `json:"writable,omitempty"` // its root
	// UID and GID are of the user that it runs as; 0 for the usual one.
	UID int `json:"uid,omitempty"`
	GID int `json:"gid,omitempty"`
}

// user is whom its containers run as.
func (b Box) user() string {
	if b.UID == 0 {
		return agentUser
	}
	return fmt.Sprintf("%d:%d", b.UID, b.GID)
}

// owner is whose its volumes are.
func (b Box) owner() int { return cmp.Or(b.UID, agentID) }

// usualHome is the agent's in its own image, and in others that have none.
const usualHome = "/home/agent"

// usualPath is that of an image that says nothing of it, as podman has it.
const usualPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// An ImageError says why no pod can be made from an image, and what to do.
type ImageError struct {
	Image string
	Why   error
}

func (e *ImageError) Error() string {
	return fmt.Sprintf("the image %s can't be used: %v", e.Image, e.Why)
}

func (e *ImageError) Unwrap() error { return e.Why }

// choose looks at the images that a pod is to be made from and notes how its
// containers use them.
func (m *Manager) choose(ctx context.Context, s *Spec) error {
	if err := m.source(ctx, s); err != nil {
		return err
	}
	agent, workspace := s.AgentImage, s.AgentImage
	if s.Image != "" {
		workspace = s.Image
		if s.AgentInImage {
			agent = s.Image
		}
	}
	var err error
	if s.AgentBox, err = m.box(ctx, *s, agent, ""); err != nil {
		return err
	}
	if s.WorkspaceBox, err = m.box(ctx, *s, workspace, s.Dev.WorkspaceUser()); err != nil {
		return err
	}
	if was, err := readSpec(m.RunDir(s.Key)); err == nil { // volumes that are there may be another's
		s.OtherUser = s.OtherUser || was.OtherUser || was.WorkspaceBox.owner() != s.WorkspaceBox.owner()
	}
	return nil
}

// box looks at one image. A user, by name or number, is whom its containers are to run
// as; "" is the usual one.
func (m *Manager) box(ctx context.Context, s Spec, ref, user string) (Box, error) {
	own := ref == s.AgentImage
	info, ok, err := m.images.ImageInfo(ctx, ref)
	switch {
	case err != nil:
		return Box{}, &ImageError{ref, fmt.Errorf("podman can't read it (%w); remove it (podman rmi --force %s) and fetch or build it anew", err, ref)}
	case !ok && own:
		return Box{}, fmt.Errorf("the agent's image %s is not here: build it with `make images` and load it, or set agent.image", ref)
	case !ok:
		return Box{}, &ImageError{ref, errors.New("it is not here; fetch it with podman pull, or build it")}
	case info.OS != "" && info.OS != runtime.GOOS || info.Arch != "" && info.Arch != runtime.GOARCH:
		return Box{}, &ImageError{ref, fmt.Errorf("it is for %s/%s and this machine is %s/%s; use one for this machine", info.OS, info.Arch, runtime.GOOS, runtime.GOARCH)}
	}
	b := Box{Image: ref, Home: usualHome, Writable: s.WritableRoot}
	if own { // it has one user
		return b, nil
	}
	if b.Guest = true; runtime.GOARCH != "amd64" {
		return Box{}, &ImageError{ref, fmt.Errorf("the agent's programs are brought into images of amd64 alone, and this machine is %s; use one made from %s", runtime.GOARCH, s.AgentImage)}
	}
	seen, err := m.look(ctx, s, ref, info.ID)
	if errors.Is(err, ErrPreparing) {
		return Box{}, err
	}
	if err != nil {
		return Box{}, &ImageError{ref, err}
	}
	if err := seen.Judge(); err != nil {
		return Box{}, &ImageError{ref, err}
	}
	b.Git, b.Writable, b.Path = !seen.HasGit(), s.WritableRoot || seen.writable, usualPath
	home := seen.Home
	if user != "" {
		a, ok := seen.Account(user)
		if !ok {
			return Box{}, &ImageError{ref, fmt.Errorf("it has no user %s that a pod may run as, and %s wants that (remoteUser); make one in the image, with a number from 500 to 59999, or take the line out", user, s.Dev.File)}
		}
		if home = a.Home; a.UID != agentID {
			b.UID, b.GID = a.UID, a.GID
		}
	}
	if home != "" {
		b.Home, b.OwnHome = home, true
	}
	for _, kv := range info.Env {
		if path, ok := strings.CutPrefix(kv, "PATH="); ok {
			b.Path = path
		}
	}
	return b, nil
}

// bring puts what the image lacks into a container of it.
func (b Box) bring(c *backend.Container, agentImage string) {
	if !b.Guest {
		return
	}
	c.Mounts = append(c.Mounts, backend.Mount{Kind: backend.ImageMount, Source: agentImage, Target: podfile.AgentDir, ReadOnly: true})
	set := podfile.AgentSet + "/bin"
	if !b.Git { // for what the image has not, such as the agent's ripgrep
		c.Env["PATH"] = b.Path + ":" + set
		return
	}
	c.Env["PATH"] = set + ":" + b.Path
	c.Env["GIT_EXEC_PATH"] = podfile.AgentSet + "/git-core"
	c.Env["GIT_TEMPLATE_DIR"] = "" // a clone needs nothing of it
}

// seen is what is known of an image.
type seen struct {
	image.Facts
	writable bool // it does not start with a read-only root
}

// lookWithin is how long a look at an image may take.
const lookWithin = 2 * time.Minute

// look tells what an image is like, by a short run of ours in it. What was found of
// an image stays true for it.
func (m *Manager) look(ctx context.Context, s Spec, ref, id string) (seen, error) {
	agent, _, err := m.images.ImageInfo(ctx, s.AgentImage)
	if err != nil {
		return seen{}, err
	}
	key := id + " " + agent.ID + " " + s.ToolsImage
	if found, ok := m.looked.Load(key); ok {
		return found.(seen), nil
	}
	err = m.prepare(ctx, ref, "looking at", func(ctx context.Context, _ io.Writer) error {
		found, err := m.lookBoth(ctx, s, ref, id)
		if err == nil {
			m.looked.Store(key, found)
		}
		return err
	})
	found, ok := m.looked.Load(key)
	if !ok {
		if err == nil { // another's job, of an image that had the name before
			err = fmt.Errorf("%w: it has just changed", ErrPreparing)
		}
		return seen{}, err
	}
	return found.(seen), nil
}

// lookBoth looks in a container as a pod has it, and where none runs, in one whose root
// may be written to.
func (m *Manager) lookBoth(ctx context.Context, s Spec, ref, id string) (found seen, err error) {
	if found.Facts, err = m.lookOnce(ctx, s, ref, id, true); err != nil {
		first := err
		if found.Facts, err = m.lookOnce(ctx, s, ref, id, false); err != nil {
			return seen{}, fmt.Errorf("no container of it runs (%w); try it with podman run, or use another", first)
		}
		found.writable = true
		m.log.Warn("an image does not start with a read-only root; its containers may write to theirs", "image", ref, "err", first)
	}
	what, err := json.Marshal(found.Facts)
	m.log.Info("looked at an image", "image", ref, "found", string(what))
	return found, err
}

func (m *Manager) lookOnce(ctx context.Context, s Spec, ref, id string, readOnly bool) (facts image.Facts, err error) {
	ctx, cancel := context.WithTimeout(ctx, lookWithin)
	defer cancel()
	c := backend.Container{
		Name: m.cfg.Instance + "-look-" + strings.TrimPrefix(id, "sha256:")[:min(12, len(id))], Image: ref,
		Entrypoint: []string{podfile.BinaryPath}, Command: []string{"look", "--git", podfile.AgentSet + "/bin/git"},
		Labels: map[string]string{labelInstance: m.cfg.Instance, labelRole: roleLook},
		// As a pod's container has it.
		User: agentUser, WorkDir: "/", Network: backend.NoNetwork, ReadOnly: readOnly, MemoryBytes: lookMemory,
		NoNewPrivs: true, DropCaps: true, SELinuxDisable: true, Pids: lookPids, StopTimeout: time.Second,
		Env: map[string]string{"GIT_EXEC_PATH": "", "HOME": "/tmp"},
		Mounts: append([]backend.Mount{
			{Kind: backend.ImageMount, Source: s.ToolsImage, Target: podfile.ToolsDir, ReadOnly: true},
			{Kind: backend.ImageMount, Source: s.AgentImage, Target: podfile.AgentDir, ReadOnly: true},
		}, scratch(lookMemory)...),
	}
	if c.Seccomp, err = m.seccompFile(false); err != nil {
		return facts, err
	}
	log, err := m.runs.Run(ctx, backend.Pod{}, c)
	if err != nil {
		return facts, err
	}
	if facts, err = image.Parse(log); err != nil {
		return facts, fmt.Errorf("%w (its log: %.500q)", err, log)
	}
	return facts, nil
}

const (
	roleLook   = "look"
	lookMemory = 256 << 20 // bytes
	lookPids   = 64
)

// scratch are the places that programs write to which nobody keeps, in memory.
func scratch(memory int64) []backend.Mount {
	return []backend.Mount{
		{Kind: backend.TmpfsMount, Target: "/tmp", Size: memory / 2},
		{Kind: backend.TmpfsMount, Target: "/var/tmp", Size: memory / 4},
		{Kind: backend.TmpfsMount, Target: "/run", Size: runSize},
	}
}

const runSize = 16 << 20 // bytes

// SweepLooks removes what a process that was killed has left of looks at images.
func (m *Manager) SweepLooks(ctx context.Context) error {
	return m.runs.Remove(ctx, backend.Remains{Labels: map[string]string{labelInstance: m.cfg.Instance, labelRole: roleLook}})
}
