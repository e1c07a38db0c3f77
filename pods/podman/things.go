package podman

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"strings"
	"time"

	"github.com/containers/podman/v5/pkg/bindings/containers"
	"github.com/containers/podman/v5/pkg/bindings/network"
	"github.com/containers/podman/v5/pkg/bindings/pods"
	"github.com/containers/podman/v5/pkg/bindings/volumes"
	"github.com/containers/podman/v5/pkg/domain/entities/types"
	"github.com/containers/podman/v5/pkg/specgen"
	nettypes "go.podman.io/common/libnetwork/types"

	"codeberg.org/devaipod/devaipod/pods/backend"
)

// A PodSpec says what a pod shall be. Without Infra its containers share no
// namespace; with it they share the network, on which Ports are published.
type PodSpec struct {
	Name   string
	Labels map[string]string
	Infra  bool
	Ports  []Port
}

// EnsurePod makes the pod unless it is there as specified; one that differs is
// removed first, with its containers.
func (c *Client) EnsurePod(ctx context.Context, p PodSpec) (created bool, err error) {
	conn, cancel := c.with(ctx)
	defer cancel()
	hash := hashOf(p)
	have, err := pods.Inspect(conn, p.Name, nil)
	switch {
	case err == nil && have.Labels[specLabel] == hash:
		return false, nil
	case err == nil:
		if err := c.RemovePod(ctx, p.Name); err != nil {
			return false, err
		}
	case !notFound(err):
		return false, wrap("looking at pod", p.Name, err)
	}
	c.change("make pod", p.Name)
	gen := specgen.PodSpecGenerator{}
	gen.Name, gen.Labels, gen.NoInfra = p.Name, map[string]string{specLabel: hash}, !p.Infra
	maps.Copy(gen.Labels, p.Labels)
	// Its containers have no cgroup in common: podman before 4.6 forgets a pod's after
	// a reboot without systemd, and takes no further container into it.
	gen.ShareParent = new(bool)
	if p.Infra {
		gen.SharedNamespaces = []string{"net"}
		gen.InfraName = p.Name + "-infra"
		gen.InfraContainerSpec = &specgen.SpecGenerator{}
	}
	for _, port := range p.Ports {
		gen.PortMappings = append(gen.PortMappings, nettypes.PortMapping{HostIP: port.HostIP, HostPort: port.Host, ContainerPort: port.Container})
	}
	_, err = pods.CreatePodFromSpec(conn, &types.PodSpec{PodSpecGen: gen})
	return err == nil, wrap("making pod", p.Name, err)
}

func wrap(what, name string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s %s: %w", what, name, err)
}

// EnsureVolume makes the volume unless one of that name is there.
func (c *Client) EnsureVolume(ctx context.Context, name string, labels map[string]string) (created bool, err error) {
	return c.ensureVolume(ctx, types.VolumeCreateOptions{Name: name, Labels: labels})
}

// EnsureVolumeFor makes the volume, if it is not there, one of the user owner's (and
// of the group of the same number), whatever it is mounted over; 0 is nobody's in
// particular.
func (c *Client) EnsureVolumeFor(ctx context.Context, name string, labels map[string]string, owner int) (created bool, err error) {
	if owner == 0 {
		return c.EnsureVolume(ctx, name, labels)
	}
	return c.ensureVolume(ctx, types.VolumeCreateOptions{Name: name, Labels: labels, Options: map[string]string{"o": fmt.Sprintf("uid=%d,gid=%d", owner, owner)}})
}

func (c *Client) ensureVolume(ctx context.Context, v types.VolumeCreateOptions) (created bool, err error) {
	name := v.Name
	conn, cancel := c.with(ctx)
	defer cancel()
	if ok, err := volumes.Exists(conn, name, nil); err != nil || ok {
		return false, wrap("looking for volume", name, err)
	}
	c.change("make volume", name)
	_, err = volumes.Create(conn, v, nil)
	return err == nil, wrap("making volume", name, err)
}

// VolumeDir is where podman keeps a volume, on its host.
func (c *Client) VolumeDir(ctx context.Context, name string) (string, error) {
	conn, cancel := c.with(ctx)
	defer cancel()
	v, err := volumes.Inspect(conn, name, nil)
	if err != nil {
		return "", wrap("looking at volume", name, err)
	}
	return v.Mountpoint, nil
}

// RemoveVolume removes a volume that no container has; one that is not there is no
// error.
func (c *Client) RemoveVolume(ctx context.Context, name string) error {
	conn, cancel := c.with(ctx)
	defer cancel()
	if ok, err := volumes.Exists(conn, name, nil); err != nil || !ok {
		return wrap("looking for volume", name, err)
	}
	c.change("remove volume", name)
	if err := volumes.Remove(conn, name, nil); err != nil && !notFound(err) {
		return fmt.Errorf("removing volume %s: %w", name, err)
	}
	return nil
}

// EnsureNetwork makes the bridge network unless one of that name is there, with
// its interface on the host called bridge (at most 15 bytes, see netdevice(7)). One
// whose interface is called otherwise is removed first, with the containers that
// are on it. Its containers use the host's name servers: they have no neighbours to
// resolve, and so need no name server of the network's own.
func (c *Client) EnsureNetwork(ctx context.Context, name, bridge string, labels map[string]string) (created bool, err error) {
	conn, cancel := c.with(ctx)
	defer cancel()
	have, err := network.Inspect(conn, name, nil)
	switch {
	case err == nil && have.NetworkInterface == bridge:
		return false, nil
	case err == nil:
		c.change("remove network", name)
		if _, err := network.Remove(conn, name, new(network.RemoveOptions).WithForce(true)); err != nil && !notFound(err) {
			return false, wrap("removing network", name, err)
		}
	case !notFound(err):
		return false, wrap("looking for network", name, err)
	}
	c.change("make network", name)
	_, err = network.Create(conn, &nettypes.Network{Name: name, Driver: "bridge", NetworkInterface: bridge, Labels: labels})
	return err == nil, wrap("making network", name, err)
}

// Bridges are the interfaces on the host of all bridge networks that podman has,
// whoever made them.
func (c *Client) Bridges(ctx context.Context) ([]string, error) {
	conn, cancel := c.with(ctx)
	defer cancel()
	all, err := whole(conn, network.List, nil)
	if err != nil {
		return nil, fmt.Errorf("listing networks: %w", err)
	}
	var out []string
	for _, n := range all {
		if n.Driver == "bridge" && n.NetworkInterface != "" {
			out = append(out, n.NetworkInterface)
		}
	}
	return out, nil
}

// Containers lists those that carry all of labels, running or not.
func (c *Client) Containers(ctx context.Context, labels map[string]string) ([]backend.Thing, error) {
	conn, cancel := c.with(ctx)
	defer cancel()
	found, err := whole(conn, containers.List, new(containers.ListOptions).WithAll(true).WithFilters(filter(labels)))
	if err != nil {
		return nil, fmt.Errorf("listing containers: %w", err)
	}
	var out []backend.Thing
	for _, f := range found {
		if len(f.Names) > 0 && carries(f.Labels, labels) {
			out = append(out, backend.Thing{Name: f.Names[0], State: backend.State{
				Exists: true, Image: f.Image, Labels: f.Labels, Running: f.State == "running", Exited: exited(f.State, time.Unix(f.StartedAt, 0)),
				ExitCode: int(f.ExitCode), CreatedAt: f.Created, StartedAt: time.Unix(f.StartedAt, 0),
			}})
		}
	}
	return out, nil
}

// exited tells whether a container has run and does no more. After a reboot
// podman says of those that ran before that they are created, as of those that
// have never run.
func exited(state string, started time.Time) bool {
	switch state {
	case "exited", "stopped":
		return true
	case "created", "configured":
		return started.Unix() > 0
	}
	return false
}

// gone is what podman says of something that was removed while it walked over all of its
// kind.
var gone = regexp.MustCompile(`no such (volume|container|pod|network|image|object)|network not found|image not known|does not exist in (local storage|database)`)

// whole lists until nothing has gone away in the middle, which ends podman's listing.
func whole[T, O any](ctx context.Context, list func(context.Context, *O) (T, error), how *O) (T, error) {
	var found T
	err := again(ctx, gone, func() (err error) {
		found, err = list(ctx, how)
		return err
	})
	return found, err
}

// Volumes lists those that carry all of labels.
func (c *Client) Volumes(ctx context.Context, labels map[string]string) ([]backend.Thing, error) {
	conn, cancel := c.with(ctx)
	defer cancel()
	found, err := whole(conn, volumes.List, new(volumes.ListOptions).WithFilters(filter(labels)))
	if err != nil {
		return nil, fmt.Errorf("listing volumes: %w", err)
	}
	var out []backend.Thing
	for _, f := range found {
		if carries(f.Labels, labels) {
			out = append(out, backend.Thing{Name: f.Name, Volume: true, State: backend.State{Exists: true, Labels: f.Labels}})
		}
	}
	return out, nil
}

// Pods lists those that carry all of labels.
func (c *Client) Pods(ctx context.Context, labels map[string]string) ([]backend.Thing, error) {
	conn, cancel := c.with(ctx)
	defer cancel()
	found, err := whole(conn, pods.List, new(pods.ListOptions).WithFilters(filter(labels)))
	if err != nil {
		return nil, fmt.Errorf("listing pods: %w", err)
	}
	var out []backend.Thing
	for _, f := range found {
		if carries(f.Labels, labels) {
			out = append(out, backend.Thing{Name: f.Name, State: backend.State{Labels: f.Labels}})
		}
	}
	return out, nil
}

// Networks lists those that carry all of labels.
func (c *Client) Networks(ctx context.Context, labels map[string]string) ([]backend.Thing, error) {
	conn, cancel := c.with(ctx)
	defer cancel()
	found, err := whole(conn, network.List, new(network.ListOptions).WithFilters(filter(labels)))
	if err != nil {
		return nil, fmt.Errorf("listing networks: %w", err)
	}
	var out []backend.Thing
	for _, f := range found {
		if carries(f.Labels, labels) {
			out = append(out, backend.Thing{Name: f.Name, State: backend.State{Labels: f.Labels}})
		}
	}
	return out, nil
}

// carries tells whether have holds all of want. It is asked of everything that
// podman lists: for volumes and networks, version 4.3 takes several label
// filters as alternatives.
func carries(have, want map[string]string) bool {
	for k, v := range want {
		if got, ok := have[k]; !ok || got != v {
			return false
		}
	}
	return true
}

func filter(labels map[string]string) map[string][]string {
	var want []string
	for k, v := range labels {
		want = append(want, k+"="+v)
	}
	return map[string][]string{"label": want}
}

// RemovePod kills and removes a pod with its containers. One that is not there
// is no error.
func (c *Client) RemovePod(ctx context.Context, name string) error {
	conn, cancel := c.with(ctx)
	defer cancel()
	c.change("remove pod", name)
	err := again(ctx, ending, func() error {
		report, err := pods.Remove(conn, name, new(pods.RemoveOptions).WithForce(true).WithTimeout(1))
		if report != nil {
			err = errors.Join(err, report.Err)
		}
		return err
	})
	if notFound(err) {
		return nil
	}
	return wrap("removing pod", name, err)
}

// RemoveByLabels removes the containers, pods, networks and volumes that carry
// all of labels, in this order, and nothing else. It refuses an empty set.
func (c *Client) RemoveByLabels(ctx context.Context, labels map[string]string) error {
	if len(labels) == 0 {
		return errors.New("removing by labels: no labels given, which would be everything")
	}
	found, err := c.Containers(ctx, labels)
	if err != nil {
		return err
	}
	for _, f := range found {
		if err := c.RemoveContainer(ctx, f.Name); err != nil && !strings.Contains(err.Error(), "infra container") {
			return err
		}
	}
	conn, cancel := c.with(ctx)
	defer cancel()
	podsFound, err := c.Pods(ctx, labels)
	if err != nil {
		return err
	}
	for _, p := range podsFound {
		if err := c.RemovePod(ctx, p.Name); err != nil {
			return err
		}
	}
	nets, err := c.Networks(ctx, labels)
	if err != nil {
		return err
	}
	for _, n := range nets {
		c.change("remove network", n.Name)
		if _, err := network.Remove(conn, n.Name, nil); err != nil && !notFound(err) {
			return fmt.Errorf("removing network %s: %w", n.Name, err)
		}
	}
	vols, err := c.Volumes(ctx, labels)
	if err != nil {
		return err
	}
	for _, v := range vols {
		if err := c.RemoveVolume(ctx, v.Name); err != nil {
			return err
		}
	}
	return nil
}
