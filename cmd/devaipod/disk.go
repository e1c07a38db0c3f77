package main

import (
	"fmt"

	"codeberg.org/devaipod/devaipod/pods"
	"codeberg.org/devaipod/devaipod/pods/reconcile"
)

// diskWatch sees to it that no pod fills the disk: the loop stops one that uses more
// than it may.
func (s *service) diskWatch(m *pods.Manager) (*pods.DiskWatch, error) {
	limit, err := parseBytes(s.cfg.Agent.Disk)
	if err != nil {
		return nil, fmt.Errorf("agent.disk: %w", err)
	}
	return &pods.DiskWatch{
		Limit: limit, Every: s.cfg.Service.Resync, Disk: m.Disk,
		Full: func(k pods.Key) {
			s.log.Warn("a pod uses more disk than it may", "issue", k.String(), "limit", s.cfg.Agent.Disk)
			s.loop.Kick(reconcile.Key(k))
		},
		Broken: func(err error) {
			s.log.Warn("what pods have on the disk can't be told now: agent.disk has no effect", "err", err)
		},
	}, nil
}
