package sandbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Podman looks at every file to tell what is on the disk: between two looks is much
// longer than one takes.
const (
	lookEvery   = 5 * time.Second
	shareOfTime = 10
)

// watch tells when the job has too much on the disk or no network, and ends then.
func (s *Sandbox) watch(ctx context.Context) {
	for pause := lookEvery; ; {
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		began := time.Now()
		exceeded, err := s.look(ctx)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			s.cfg.Log.Warn("looking at what a job has", "task", s.task, "err", err)
		}
		if exceeded != nil {
			s.exceeded <- exceeded
			return
		}
		pause = max(lookEvery, shareOfTime*time.Since(began))
	}
}

func (s *Sandbox) look(ctx context.Context) (exceeded, err error) {
	holder, err := s.cfg.Podman.State(ctx, s.holder)
	if err != nil {
		return nil, err
	}
	if !holder.Running {
		return errors.New("the job's network is gone: its container has ended"), nil
	}
	if s.cfg.Disk <= 0 {
		return nil, nil
	}
	used, err := s.disk(ctx)
	if err != nil || used <= s.cfg.Disk {
		return nil, err
	}
	return fmt.Errorf("the job has %d MiB on the disk and may have %d (ci.disk)", used>>20, s.cfg.Disk>>20), nil
}

// disk is what the job's containers have written, its volumes have, and its images beside
// those that they are made of, in bytes.
func (s *Sandbox) disk(ctx context.Context) (used int64, err error) {
	containers, err := s.cfg.Podman.Containers(ctx, s.labels(s.task))
	if err != nil {
		return 0, err
	}
	volumes, err := s.cfg.Podman.Volumes(ctx, s.labels(s.task))
	if err != nil {
		return 0, err
	}
	all, err := s.cfg.Podman.AllDisk(ctx)
	if err != nil {
		return 0, err
	}
	for _, c := range containers {
		used += all.Containers[c.Name]
	}
	for _, v := range volumes {
		used += all.Volumes[v.Name]
	}
	s.things.mu.Lock()
	defer s.things.mu.Unlock()
	return used + s.things.disk, nil
}

func (s *Sandboxes) gives(controller string) bool {
	return slices.Contains(s.host.Controllers, controller) && !(s.host.Rootless && s.host.Cgroups == "v1")
}

const (
	rlimitNproc = 6    // which package syscall does not name
	othersProcs = 4096 // of the same user, which are counted too
)

// ulimits are for where podman can't limit processes: those are the user's in all. With
// any given, podman leaves out those of its configuration, so there are both.
func (s *Sandboxes) ulimits() []specs.POSIXRlimit {
	if s.gives("pids") || s.cfg.Pids <= 0 {
		return nil
	}
	var out []specs.POSIXRlimit
	for _, l := range []struct {
		name     string
		resource int
		want     uint64
	}{{"nproc", rlimitNproc, uint64(s.cfg.Pids) + othersProcs}, {"nofile", syscall.RLIMIT_NOFILE, 16384}} {
		var have syscall.Rlimit
		if syscall.Getrlimit(l.resource, &have) == nil {
			n := min(have.Max, l.want)
			out = append(out, specs.POSIXRlimit{Type: l.name, Hard: n, Soft: n})
		}
	}
	return out
}
