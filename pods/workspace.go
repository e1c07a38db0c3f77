package pods

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"codeberg.org/devaipod/devaipod/pods/backend"
	"codeberg.org/devaipod/devaipod/pods/podfile"
)

// A pod whose key has a name is a person's own: control and a workspace, without
// an agent. Whoever brought it up ends it, and nobody else.

// AgentName is the name of the agent in a pod, "" for none.
func (s Spec) AgentName() string {
	switch {
	case s.Name != "":
		return ""
	case s.other():
		return s.Agent
	}
	return AgentName
}

// other tells whether the agent is not spoken to as opencode is.
func (s Spec) other() bool { return s.Driver != "" && s.Driver != podfile.DriverOpencode }

// roleInventory is a container that looks into a workspace, whether that runs or not.
const roleInventory = "inventory"

// Inventory tells what a workspace holds and nobody else has. One that has no volume
// (any more) holds nothing.
func (m *Manager) Inventory(ctx context.Context, k Key) (found podfile.Work, err error) {
	there, err := m.hasVolume(ctx, k, m.Name(k)+"-workspace")
	if err != nil || !there {
		return found, err
	}
	s, err := readSpec(m.RunDir(k))
	if err != nil {
		return found, fmt.Errorf("the specification of %s is lost, so there is no image to look into it with: %w", k, err)
	}
	if err := m.renewTools(ctx, &s); err != nil {
		return found, err
	}
	c := m.workspace(s, tokens{})
	c.Command = []string{"inventory"}
	if err := m.finish(&c, s, roleInventory); err != nil {
		return found, err
	}
	log, err := m.runs.Run(ctx, backend.Pod{Name: m.Name(k), Labels: m.labels(k)}, c)
	if err != nil {
		return found, err
	}
	for line := range strings.Lines(string(log)) {
		if strings.HasPrefix(line, "{") && json.Unmarshal([]byte(line), &found) == nil {
			return found, nil
		}
	}
	return found, fmt.Errorf("looking into %s: %.2000s", k, log)
}

// enteredFile says that a person has been in the workspace beside an agent. It is kept
// by the host, since whoever is inside may write where they like.
const enteredFile = "entered"

// EnterEvery is how often somebody who is in a workspace says so: see [Enter].
const EnterEvery = time.Minute

// Enter notes that a person is in the container with these labels, or copies into it,
// when that is a workspace beside an agent.
func Enter(state, instance string, labels map[string]string) error {
	k, role, ok := Whose(labels)
	if !ok || role != RoleWorkspace || k.Name != "" {
		return nil
	}
	return os.WriteFile(filepath.Join(runDir(state, instance, k), enteredFile), nil, 0o600)
}

// Entered tells whether somebody has been in the workspace of a pod. In a person's own,
// somebody has.
func Entered(state, instance string, k Key) bool {
	_, err := os.Stat(filepath.Join(runDir(state, instance, k), enteredFile))
	return k.Name != "" || !errors.Is(err, fs.ErrNotExist)
}

// EnteredAt is when somebody was last in the workspace beside an agent, to [EnterEvery];
// zero for never.
func (m *Manager) EnteredAt(k Key) time.Time {
	info, err := os.Stat(filepath.Join(m.RunDir(k), enteredFile))
	if err != nil {
		return time.Time{}
	}
	return info.ModTime()
}

// LeftThere tells what people hold in a workspace and nobody else has. Beside an agent
// that is nothing unless somebody has been there: what lifecycle commands leave in the
// clone is nobody's work.
func (m *Manager) LeftThere(ctx context.Context, k Key) podfile.Work {
	if !Entered(m.cfg.StateDir, m.cfg.Instance, k) {
		return podfile.Work{}
	}
	work, err := m.Inventory(ctx, k)
	if err != nil {
		work.Broken = err.Error()
	}
	return work
}

// Whose tells which pod something with labels belongs to, and in which role.
func Whose(labels map[string]string) (k Key, role string, ok bool) {
	k, ok = keyOf(labels)
	return k, labels[labelRole], ok
}

// DriverOf is how the agent of a pod is spoken to.
func DriverOf(state, instance string, k Key) (string, error) {
	file, err := podfile.Read(runDir(state, instance, k))
	if err != nil {
		return "", fmt.Errorf("reading what the pod of %s is: %w", k, err)
	}
	return cmp.Or(file.Driver, podfile.DriverOpencode), nil
}
