package pods

import (
	"context"
	"errors"
	"fmt"

	"codeberg.org/devaipod/devaipod/pods/backend"
)

// gateImage is today's: the gate shares nothing with the pod's other containers
// but sockets, and what is mended in it must not wait for the next pod.
func (m *Manager) gateImage(s Spec) string {
	if tools := m.tools.Load(); tools != nil {
		return *tools
	}
	return s.ToolsImage
}

// RenewGates replaces the control containers that run and are of another tools
// image than [Manager.EnsureTools] made or found: an older devaipod's. Agents and
// workspaces go on; a request to the model that is under way is cut off, and counts
// as it was reserved. It must not run beside other methods.
func (m *Manager) RenewGates(ctx context.Context) error {
	tools := m.tools.Load()
	if tools == nil {
		return errors.New("renewing gates: there is no tools image yet")
	}
	found, err := m.runs.Find(ctx, map[string]string{labelInstance: m.cfg.Instance, labelRole: RoleControl})
	if err != nil {
		return err
	}
	for _, c := range found {
		k, ok := keyOf(c.Labels)
		if !ok || !c.Running || c.Image == *tools {
			continue
		}
		if e := m.renewGate(ctx, k); e != nil {
			err = errors.Join(err, fmt.Errorf("renewing the gate of %s: %w", k, e))
		}
	}
	return err
}

func (m *Manager) renewGate(ctx context.Context, k Key) error {
	s, err := m.Spec(k)
	if err != nil {
		return err
	}
	c := m.control(s)
	if err := m.finish(&c, s, RoleControl); err != nil {
		return err
	}
	m.log.Info("a gate is of another devaipod; renewing it", "pod", m.Name(k))
	_, err = m.runs.Ensure(ctx, backend.Pod{Name: m.Name(k), Labels: m.labels(k), Containers: []backend.Container{c}})
	return err
}
