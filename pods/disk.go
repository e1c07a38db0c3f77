package pods

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"
)

// Disk is how many bytes each of the instance's pods, people's own too, has on the disk: in its volumes,
// and in what its containers have written to their own file systems. Images are not
// in it, which pods share.
func (m *Manager) Disk(ctx context.Context) (map[Key]int64, error) {
	all, err := m.list(ctx, func(Key) bool { return true })
	if err != nil || len(all) == 0 {
		return nil, err
	}
	used, err := m.runs.Disk(ctx, map[string]string{labelInstance: m.cfg.Instance})
	if err != nil {
		return nil, err
	}
	out := map[Key]int64{}
	for _, p := range all {
		for name, bytes := range used {
			if strings.HasPrefix(name, p.Name+"-") { // a pod's name ends in a hash
				out[p.Key] += bytes
			}
		}
	}
	return out, nil
}

// A DiskWatch knows which pods use more disk than they may. Its methods may be
// called concurrently.
type DiskWatch struct {
	Limit int64 // bytes
	Every time.Duration
	Disk  func(ctx context.Context) (map[Key]int64, error)
	// Full is called when a pod uses more than it may, and again when it has grown since
	// by a fiftieth of that: a person may have it run in order to make room.
	Full   func(ctx context.Context, k Key)
	Broken func(err error) // called when it can't be told

	mu   sync.Mutex
	full map[Key]int64
}

// shareOfTime is how much longer than a look the time between two looks is: looking
// takes podman time, which goes by the number of files.
const shareOfTime = 20

// Run looks again and again until ctx ends, for the first time after Every: a service
// that starts has more urgent things to ask podman for.
func (w *DiskWatch) Run(ctx context.Context) {
	for pause := w.Every; ; {
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		began := time.Now()
		if err := w.Look(ctx); err != nil && ctx.Err() == nil {
			w.Broken(err)
		}
		pause = max(w.Every, shareOfTime*time.Since(began))
	}
}

// Look looks once.
func (w *DiskWatch) Look(ctx context.Context) error {
	used, err := w.Disk(ctx)
	if err != nil {
		return err
	}
	full := map[Key]int64{}
	var grown []Key
	w.mu.Lock()
	for k, bytes := range used {
		if bytes <= w.Limit {
			continue
		}
		if told := w.full[k]; told > 0 && bytes <= told+w.Limit/50 {
			full[k] = min(told, bytes)
			continue
		}
		full[k] = bytes
		grown = append(grown, k)
	}
	w.full = full
	w.mu.Unlock()
	for _, k := range grown {
		w.Full(ctx, k)
	}
	return nil
}

// Why says that a pod uses more disk than it may, "" when it does not.
func (w *DiskWatch) Why(k Key) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	bytes, full := w.full[k]
	if !full {
		return ""
	}
	return fmt.Sprintf("It has %d MiB on the disk and may have %d (agent.disk)", bytes>>20, w.Limit>>20)
}
