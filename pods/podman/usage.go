package podman

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containers/podman/v5/pkg/bindings/containers"
)

// A Usage is what a container that runs uses of its machine.
type Usage struct {
	CPU    time.Duration // since its start
	At     time.Time
	Memory uint64 // bytes
	Limit  uint64 // of memory, in bytes
	Pids   uint64
}

// Usages are those of containers that run, by name. One that has ended meanwhile is
// left out.
func (c *Client) Usages(ctx context.Context, names []string) (map[string]Usage, error) {
	out := map[string]Usage{}
	conn, cancel := c.with(ctx)
	defer cancel()
	var wrong error
	for _, name := range names { // one that is gone would keep the others from being told
		reports, err := containers.Stats(conn, []string{name}, new(containers.StatsOptions).WithStream(false))
		if err != nil {
			return out, fmt.Errorf("asking what %s uses: %w", name, err)
		}
		for r := range reports {
			if r.Error != nil {
				wrong = errors.Join(wrong, fmt.Errorf("asking what %s uses: %w", name, r.Error))
			}
			for _, s := range r.Stats {
				out[name] = Usage{CPU: time.Duration(s.CPUNano), At: time.Now(), Memory: s.MemUsage, Limit: s.MemLimit, Pids: s.PIDs} //nolint:gosec // 292 years
			}
		}
	}
	if len(out) > 0 {
		wrong = nil
	}
	return out, wrong
}
