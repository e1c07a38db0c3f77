package podman

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"slices"

	"codeberg.org/devaipod/devaipod/pods/backend"
)

// Pods run an instance's pods with podman: a podman pod without shared namespaces,
// named volumes, and for the containers that have one a network of the pod's own,
// behind the fence.
type Pods struct {
	*Client
	instance string
	log      *slog.Logger
	fence    fence
}

var _ backend.Backend = (*Pods)(nil)

// NewPods is a backend. It makes no call.
func NewPods(c *Client, instance string, log *slog.Logger) *Pods {
	return &Pods{Client: c, instance: instance, log: log}
}

// labelEgress is on the containers that have a network of the pod's own; it tells
// the instance.
const labelEgress = "devaipod.egress"

// Ensure makes and starts a pod ([backend.Backend]).
func (p *Pods) Ensure(ctx context.Context, want backend.Pod) (changed bool, err error) {
	note := func(created bool, err error) error {
		changed = changed || created
		return err
	}
	for _, v := range want.Volumes {
		if err := note(p.ensureVolume(ctx, want, v)); err != nil {
			return changed, err
		}
	}
	if slices.ContainsFunc(want.Containers, hasEgress) {
		if err := note(p.EnsureNetwork(ctx, egress(want.Name), bridge(p.instance, want.Name), want.Labels)); err != nil {
			return changed, err
		}
	}
	if err := note(p.EnsurePod(ctx, PodSpec{Name: want.Name, Labels: want.Labels})); err != nil {
		return changed, err
	}
	// One after the other: the agent begins while the workspace is made.
	for _, c := range want.Containers {
		if err := note(p.EnsureContainer(ctx, p.within(want, c))); err != nil {
			return changed, err
		}
		if err := p.Start(ctx, c.Name); err != nil {
			return changed, err
		}
		if hasEgress(c) {
			// Without root its network is there only now. No agent runs yet.
			p.tryFence(ctx)
		}
	}
	return changed, nil
}

func hasEgress(c Container) bool { return c.Network == backend.Egress }

func egress(pod string) string { return pod + "-egress" }

// within is a container as it is in its pod.
func (p *Pods) within(pod backend.Pod, c Container) Container {
	c.Pod = pod.Name
	if hasEgress(c) {
		c.Network, c.Labels = egress(pod.Name), maps.Clone(c.Labels)
		c.Labels[labelEgress] = bridgePrefix(p.instance)
	}
	return c
}

// ensureVolume makes a volume, also one that is not as it was made: somebody removes
// volumes by hand, a moment before they are used. One of sockets that podman has made
// by itself then, for a container, may belong to the wrong user, and nothing is lost
// with it; others of that kind stay, since somebody may have worked in them. And one
// that was made while podman was removing its directory is a name with nothing behind.
func (p *Pods) ensureVolume(ctx context.Context, pod backend.Pod, v backend.Volume) (created bool, err error) {
	labels := maps.Clone(pod.Labels)
	maps.Copy(labels, v.Labels)
	if created, err = p.EnsureVolumeFor(ctx, v.Name, labels, v.Owner); err != nil || created {
		return created, err
	}
	if good, err := p.asMade(ctx, pod, v); err != nil || good {
		return false, err
	}
	p.log.Warn("a volume is not as it was made; making it, and the pod's containers, anew", "volume", v.Name)
	for _, c := range slices.Backward(pod.Containers) {
		if err := p.RemoveContainer(ctx, c.Name); err != nil {
			return false, err
		}
	}
	if err := p.RemoveVolume(ctx, v.Name); err != nil {
		return false, err
	}
	return p.EnsureVolumeFor(ctx, v.Name, labels, v.Owner)
}

// asMade tells whether a volume that is there is one to go on with.
func (p *Pods) asMade(ctx context.Context, pod backend.Pod, v backend.Volume) (bool, error) {
	dir, err := p.VolumeDir(ctx, v.Name)
	if err != nil {
		return false, err
	}
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if !v.Sockets {
		return true, nil
	}
	ours, err := p.Volumes(ctx, pod.Labels)
	return slices.ContainsFunc(ours, func(t backend.Thing) bool { return t.Name == v.Name }), err
}

// Start starts a container ([backend.Backend]).
func (p *Pods) Start(ctx context.Context, container string) error {
	return p.StartContainer(ctx, container)
}

// Stop ends containers ([backend.Backend]).
func (p *Pods) Stop(ctx context.Context, containers ...backend.Ending) error {
	for _, c := range containers {
		if err := p.StopContainer(ctx, c.Container, c.Patience); err != nil {
			return err
		}
	}
	return nil
}

// Remove leaves nothing of a pod ([backend.Backend]).
func (p *Pods) Remove(ctx context.Context, r backend.Remains) error {
	if err := p.RemoveByLabels(ctx, r.Labels); err != nil {
		return err
	}
	for _, v := range r.Volumes {
		if err := p.RemoveVolume(ctx, v); err != nil {
			return err
		}
	}
	p.tryFence(ctx)
	return nil
}

// Find lists containers and volumes ([backend.Backend]).
func (p *Pods) Find(ctx context.Context, labels map[string]string) ([]backend.Thing, error) {
	vols, err := p.Volumes(ctx, labels)
	if err != nil {
		return nil, err
	}
	containers, err := p.Containers(ctx, labels)
	return append(vols, containers...), err
}

// Run runs a container to its end ([backend.Backend]).
func (p *Pods) Run(ctx context.Context, pod backend.Pod, c Container) (output []byte, err error) {
	for _, v := range pod.Volumes {
		if _, err := p.ensureVolume(ctx, pod, v); err != nil {
			return nil, err
		}
	}
	if err := p.RemoveContainer(ctx, c.Name); err != nil { // of a Run that was killed
		return nil, err
	}
	if _, err := p.EnsureContainer(ctx, c); err != nil {
		return nil, err
	}
	defer func() {
		err = errors.Join(err, p.RemoveContainer(context.WithoutCancel(ctx), c.Name))
	}()
	if err := p.Start(ctx, c.Name); err != nil {
		return nil, err
	}
	if _, err := p.WaitContainer(ctx, c.Name); err != nil {
		return nil, err
	}
	var log bytes.Buffer
	err = p.Logs(ctx, c.Name, false, 0, &log)
	return log.Bytes(), err
}

// Shells lists what holds containers together and carries all of labels: pods and
// their networks.
func (p *Pods) Shells(ctx context.Context, labels map[string]string) ([]backend.Thing, error) {
	found, err := p.Client.Pods(ctx, labels)
	if err != nil {
		return nil, err
	}
	nets, err := p.Client.Networks(ctx, labels)
	return append(found, nets...), err
}
