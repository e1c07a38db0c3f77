package podman

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/containers/podman/v5/pkg/bindings/containers"
	"github.com/containers/podman/v5/pkg/specgen"
	"github.com/opencontainers/runtime-spec/specs-go"
	nettypes "go.podman.io/common/libnetwork/types"

	"codeberg.org/devaipod/devaipod/pods/backend"
)

// A Container says what one container shall be.
type Container = backend.Container

// A Mount puts something into a container.
type Mount = backend.Mount

// The kinds of mount.
const (
	Volume = backend.VolumeMount
	Bind   = backend.BindMount
	Image  = backend.ImageMount
	Tmpfs  = backend.TmpfsMount
)

// A Port is published on a host address.
type Port struct {
	HostIP          string
	Host, Container uint16
}

// specLabel carries the hash of what a container was made from.
const specLabel = "devaipod.spec"

// hashOf names a specification by its content.
func hashOf(spec any) string {
	b, err := json.Marshal(spec) // maps are written with sorted keys
	if err != nil {
		panic(err) // plain data
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:8])
}

// EnsureContainer makes the container unless it is there as specified; one
// that differs is removed first. It is not started.
func (c *Client) EnsureContainer(ctx context.Context, want Container) (created bool, err error) {
	conn, cancel := c.with(ctx)
	defer cancel()
	hash := hashOf(want)
	have, err := containers.Inspect(conn, want.Name, nil)
	switch {
	case err == nil && have.Config != nil && have.Config.Labels[specLabel] == hash:
		return false, nil
	case err == nil:
		if err := c.RemoveContainer(ctx, want.Name); err != nil {
			return false, err
		}
	case !notFound(err):
		return false, fmt.Errorf("looking at container %s: %w", want.Name, err)
	}
	c.change("make container", want.Name)
	spec := specOf(want)
	spec.Labels[specLabel] = hash
	if _, err := containers.CreateWithSpec(conn, spec, nil); err != nil {
		if notFound(err) || strings.Contains(err.Error(), "image not known") {
			return false, fmt.Errorf("making container %s: %w (is the image %s here? see: podman images)", want.Name, err, want.Image)
		}
		return false, fmt.Errorf("making container %s: %w", want.Name, err)
	}
	return true, nil
}

const networkOf = "container:"

// NetworkOf is the [Container.Network] of one that has another container's, which goes
// when that is removed.
func NetworkOf(container string) string { return networkOf + container }

func specOf(c Container) *specgen.SpecGenerator {
	s := specgen.NewSpecGenerator(c.Image, false)
	s.Name, s.Pod, s.Entrypoint, s.Command, s.Env, s.User, s.WorkDir = c.Name, c.Pod, c.Entrypoint, c.Command, c.Env, c.User, c.WorkDir
	s.Labels = map[string]string{}
	for k, v := range c.Labels {
		s.Labels[k] = v
	}
	s.RestartPolicy = c.Restart
	s.HTTPProxy = &c.HTTPProxy
	if c.StopTimeout > 0 {
		t := seconds(c.StopTimeout)
		s.StopTimeout = &t
	}
	switch c.Network {
	case "":
	case "none":
		s.NetNS = specgen.Namespace{NSMode: specgen.NoNetwork}
	default:
		if of, ok := strings.CutPrefix(c.Network, networkOf); ok {
			s.NetNS = specgen.Namespace{NSMode: specgen.FromContainer, Value: of}
			break
		}
		s.NetNS = specgen.Namespace{NSMode: specgen.Bridge}
		s.Networks = map[string]nettypes.PerNetworkOptions{c.Network: {}}
	}
	if c.DropCaps {
		s.CapDrop = []string{"ALL"}
	}
	if c.SELinuxDisable {
		s.SelinuxOpts = []string{"disable"}
	}
	s.NoNewPrivileges, s.SeccompProfilePath = &c.NoNewPrivs, c.Seccomp
	if c.Engine {
		s.Unmask, s.ApparmorProfile = []string{"/proc/*"}, "unconfined" // its usual profile refuses mounts
	}
	// What an image declares as volumes would be some without a name or label.
	s.ImageVolumeMode = "ignore"
	tmpfs := false // those that are wanted are among the mounts
	s.ReadOnlyFilesystem, s.ReadWriteTmpfs = &c.ReadOnly, &tmpfs
	s.ResourceLimits = limits(c)
	for _, m := range c.Mounts {
		addMount(s, m)
	}
	return s
}

// cpuPeriod is the time of which a container has its share of a CPU, in µs.
const cpuPeriod = 100_000

func limits(c Container) *specs.LinuxResources {
	if c.MemoryBytes == 0 && c.Pids == 0 && c.CPUs == 0 {
		return nil
	}
	r := &specs.LinuxResources{}
	if c.MemoryBytes > 0 {
		r.Memory = &specs.LinuxMemory{Limit: &c.MemoryBytes}
	}
	if c.CPUs > 0 {
		period, quota := uint64(cpuPeriod), int64(c.CPUs*cpuPeriod)
		r.CPU = &specs.LinuxCPU{Period: &period, Quota: &quota}
	}
	if c.Pids > 0 {
		r.Pids = &specs.LinuxPids{Limit: c.Pids}
	}
	return r
}

func addMount(s *specgen.SpecGenerator, m Mount) {
	mode := "rw"
	if m.ReadOnly {
		mode = "ro"
	}
	switch m.Kind {
	case Volume:
		options := []string{mode}
		if m.Chown {
			options = append(options, "U")
		}
		if m.NoCopy {
			options = append(options, "nocopy")
		}
		s.Volumes = append(s.Volumes, &specgen.NamedVolume{Name: m.Source, Dest: m.Target, Options: options})
	case Bind:
		s.Mounts = append(s.Mounts, specs.Mount{Type: "bind", Source: m.Source, Destination: m.Target, Options: []string{"rbind", mode}})
	case Tmpfs:
		options := []string{mode, "nosuid", "nodev", "exec", "mode=1777"}
		if m.Size > 0 {
			options = append(options, fmt.Sprintf("size=%d", m.Size))
		}
		s.Mounts = append(s.Mounts, specs.Mount{Type: "tmpfs", Source: "tmpfs", Destination: m.Target, Options: options})
	case Image:
		s.ImageVolumes = append(s.ImageVolumes, &specgen.ImageVolume{Source: m.Source, Destination: m.Target})
	}
}

// StartContainer starts a container; one that runs stays as it is.
func (c *Client) StartContainer(ctx context.Context, name string) error {
	conn, cancel := c.with(ctx)
	defer cancel()
	c.change("start container", name)
	return wrap("starting container", name, again(ctx, unmounted, func() error { return containers.Start(conn, name, nil) }))
}

// unmounted is what podman says when the image that it has just mounted for a container
// was unmounted by the end of another that had it too.
var unmounted = regexp.MustCompile(`(?s)error mounting .*lowerdir=.*no such file or directory`)

// ending is what podman says of a container that ended when its time to do so was over, in the
// moment in which podman wanted to kill it.
var ending = regexp.MustCompile(`sending SIGKILL to container [0-9a-f]+: container state improper`)

// again does something until podman does not fail at it for a reason that passes, which its
// words tell; for some two seconds at most.
func again(ctx context.Context, passes *regexp.Regexp, do func() error) error {
	const tries = 20
	for try := 1; ; try++ {
		err := do()
		if err == nil || try == tries || !passes.MatchString(err.Error()) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(time.Duration(try) * 10 * time.Millisecond):
		}
	}
}

// StopContainer asks a container to end and kills it after patience. One that
// is not there or does not run is no error.
func (c *Client) StopContainer(ctx context.Context, name string, patience time.Duration) error {
	conn, cancel := c.with(ctx)
	defer cancel()
	c.change("stop container", name)
	err := again(ctx, ending, func() error {
		return containers.Stop(conn, name, new(containers.StopOptions).WithTimeout(seconds(patience)).WithIgnore(true))
	})
	// Removed while it was being stopped: podman 4.3 has no status of its own for that.
	if err != nil && !notFound(err) && !strings.Contains(err.Error(), "no such container") {
		return fmt.Errorf("stopping container %s: %w", name, err)
	}
	return nil
}

// WaitContainer waits until a container does not run and returns its exit code.
func (c *Client) WaitContainer(ctx context.Context, name string) (exit int, err error) {
	conn, cancel := c.with(ctx)
	defer cancel()
	code, err := containers.Wait(conn, name, nil)
	if ctx.Err() != nil {
		return 0, fmt.Errorf("waiting for container %s: %w", name, context.Cause(ctx))
	}
	if err != nil {
		return 0, fmt.Errorf("waiting for container %s: %w", name, err)
	}
	return int(code), nil
}

// RemoveContainer kills and removes a container with its anonymous volumes, and the containers
// that have its network. One that is not there is no error.
func (c *Client) RemoveContainer(ctx context.Context, name string) error {
	conn, cancel := c.with(ctx)
	defer cancel()
	c.change("remove container", name)
	err := again(ctx, ending, func() error {
		reports, err := containers.Remove(conn, name, new(containers.RemoveOptions).WithForce(true).WithVolumes(true).WithDepend(true).WithIgnore(true).WithTimeout(1))
		for _, r := range reports {
			err = errors.Join(err, r.Err)
		}
		return err
	})
	if err != nil && !notFound(err) {
		return fmt.Errorf("removing container %s: %w", name, err)
	}
	return nil
}

// State tells how a container is; one that is not there is no error.
func (c *Client) State(ctx context.Context, name string) (backend.State, error) {
	conn, cancel := c.with(ctx)
	defer cancel()
	d, err := containers.Inspect(conn, name, nil)
	if notFound(err) {
		return backend.State{}, nil
	}
	if err != nil {
		return backend.State{}, fmt.Errorf("looking at container %s: %w", name, err)
	}
	st := backend.State{Exists: true, CreatedAt: d.Created}
	if d.State != nil {
		st.Running, st.OOMKilled, st.ExitCode, st.StartedAt = d.State.Running, d.State.OOMKilled, int(d.State.ExitCode), d.State.StartedAt
	}
	if d.State != nil {
		st.Exited = exited(d.State.Status, d.State.StartedAt)
	}
	if d.Config != nil {
		st.Labels = d.Config.Labels
	}
	return st, nil
}
