package podman

import (
	"context"
	"fmt"

	"github.com/containers/podman/v5/pkg/bindings/system"
)

// A Disk is what takes room on the disk, in bytes by name: of containers what they
// have written beside their image and volumes.
type Disk struct{ Containers, Volumes map[string]int64 }

// AllDisk asks how much room everything of podman's takes, that of others too. It
// looks at every file.
func (c *Client) AllDisk(ctx context.Context) (Disk, error) {
	conn, cancel := c.with(ctx)
	defer cancel()
	d := Disk{map[string]int64{}, map[string]int64{}}
	r, err := whole(conn, system.DiskUsage, nil)
	if err != nil {
		return d, fmt.Errorf("asking podman what is on its disk: %w", err)
	}
	for _, x := range r.Containers {
		d.Containers[x.Names] = x.RWSize
	}
	for _, x := range r.Volumes {
		d.Volumes[x.VolumeName] = x.Size
	}
	return d, nil
}

// Disk is what volumes have and what containers have written ([backend.Backend]).
func (p *Pods) Disk(ctx context.Context, labels map[string]string) (map[string]int64, error) {
	ours, err := p.Find(ctx, labels)
	if err != nil || len(ours) == 0 {
		return nil, err
	}
	all, err := p.AllDisk(ctx)
	if err != nil {
		return nil, err
	}
	out := map[string]int64{}
	for _, thing := range ours {
		if thing.Volume {
			out[thing.Name] += all.Volumes[thing.Name]
		} else {
			out[thing.Name] += all.Containers[thing.Name]
		}
	}
	return out, nil
}
