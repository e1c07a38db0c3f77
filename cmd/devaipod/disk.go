package main

import (
	"context"
	"fmt"

	"codeberg.org/devaipod/devaipod/pods"
	"codeberg.org/devaipod/devaipod/pods/reconcile"
)

// diskWatch sees to it that no pod fills the disk: the loop stops one that uses more
// than it may, and a person's own is stopped here.
func (s *service) diskWatch(m *pods.Manager) (*pods.DiskWatch, error) {
	limit, err := parseBytes(s.cfg.Agent.Disk)
	if err != nil {
		return nil, fmt.Errorf("agent.disk: %w", err)
	}
	return &pods.DiskWatch{
		Limit: limit, Every: s.cfg.Service.Resync, Disk: m.Disk,
		Full: func(ctx context.Context, k pods.Key) {
			s.log.Warn("a pod uses more disk than it may", "pod", k.String(), "limit", s.cfg.Agent.Disk)
			if k.Name == "" {
				s.loop.Kick(reconcile.Key(k))
				return
			}
			defer s.wsLocks.lock(k)()
			if _, err := s.stopWorkspace(ctx, k); err != nil && ctx.Err() == nil {
				s.log.Error("a person's pod that uses more disk than it may goes on", "pod", k.String(), "err", err)
			}
		},
		Broken: func(err error) {
			s.log.Warn("what pods have on the disk can't be told now: agent.disk has no effect", "err", err)
		},
	}, nil
}
