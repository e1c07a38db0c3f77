package podman

import (
	"context"
	"fmt"

	"github.com/containers/podman/v5/pkg/bindings/system"
)

// Disk is what volumes have and what containers have written ([backend.Backend]).
// Podman walks all of them for it, those of others too.
func (p *Pods) Disk(ctx context.Context, labels map[string]string) (map[string]int64, error) {
	ours, err := p.Find(ctx, labels)
	if err != nil || len(ours) == 0 {
		return nil, err
	}
	conn, cancel := p.with(ctx)
	defer cancel()
	all, err := system.DiskUsage(conn, nil)
	if err != nil {
		return nil, fmt.Errorf("asking podman what is on its disk: %w", err)
	}
	volumes, containers := map[string]int64{}, map[string]int64{}
	for _, v := range all.Volumes {
		volumes[v.VolumeName] = v.Size
	}
	for _, c := range all.Containers {
		containers[c.Names] = c.RWSize
	}
	out := map[string]int64{}
	for _, thing := range ours {
		if thing.Volume {
			out[thing.Name] += volumes[thing.Name]
		} else {
			out[thing.Name] += containers[thing.Name]
		}
	}
	return out, nil
}
