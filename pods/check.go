package pods

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"codeberg.org/devaipod/devaipod/pods/backend"
	"codeberg.org/devaipod/devaipod/pods/egress"
	"codeberg.org/devaipod/devaipod/pods/podfile"
)

// roleCheck is a container that runs a repository's checks on what an agent has pushed.
const roleCheck = "check"

// checkFolder is what a check container sees of the run directory: a socket on which
// the service lets it read the one repository.
const checkFolder = "check"

// CheckSocket is where the service must listen while Check runs; 0666, since who asks
// there is another user. MakeCheckDir makes the folder that it is in.
func (m *Manager) CheckSocket(k Key) string {
	return filepath.Join(m.RunDir(k), checkFolder, podfile.GateSocket)
}

// MakeCheckDir makes the folder of CheckSocket, in the run directory of a pod that is
// there.
func (m *Manager) MakeCheckDir(k Key) error {
	dir := filepath.Dir(m.CheckSocket(k))
	err := os.Mkdir(dir, 0o755)
	if errors.Is(err, fs.ErrExist) {
		err = nil
	}
	return errors.Join(err, os.Chmod(dir, 0o755)) // whatever the umask is
}

// Check runs the checks of a pod's specification on a commit of its branch, and tells
// what came of them: in a container of the agent's image that has the agent's limits
// and hardening, no network, no token and none of the pod's volumes, on a clone that it
// makes itself. Nothing is left of it, also of one that was cut short. One may run at
// a time for a pod.
func (m *Manager) Check(ctx context.Context, k Key, commit string, within time.Duration) (report podfile.Report, err error) {
	s, err := m.Spec(k)
	if err != nil {
		return report, err
	}
	if err := m.renewTools(ctx, &s); err != nil {
		return report, err
	}
	c, err := m.checker(s, commit, within)
	if err != nil {
		return report, err
	}
	m.checking.Store(k, true)
	defer m.checking.Delete(k)
	if err := m.removeCheck(ctx, k); err != nil { // of one that was killed
		return report, err
	}
	defer func() { err = errors.Join(err, m.removeCheck(context.WithoutCancel(ctx), k)) }()
	p := backend.Pod{Name: m.Name(k), Labels: m.labels(k)}
	for _, v := range checkVolumes(p.Name) {
		p.Volumes = append(p.Volumes, backend.Volume{Name: v, Labels: map[string]string{labelRole: roleCheck}, Owner: s.AgentBox.owner()})
	}
	log, err := m.runs.Run(ctx, p, c)
	if err != nil {
		return report, err
	}
	return lastReport(commit, string(log))
}

// lastReport is what a check container says at its end, as one line. It alone writes to
// its log: nothing that it runs does.
func lastReport(commit, log string) (podfile.Report, error) {
	lines := strings.Split(strings.TrimSpace(log), "\n")
	for _, line := range slices.Backward(lines) {
		var report podfile.Report
		if strings.HasPrefix(line, "{") && json.Unmarshal([]byte(line), &report) == nil && report.Commit == commit {
			return report, nil
		}
	}
	return podfile.Report{}, fmt.Errorf("its container ended without a word of the checks, as when it runs out of memory (agent.memory): %.500q", lines[len(lines)-1])
}

func checkVolumes(pod string) []string { return []string{pod + "-check", pod + "-check-home"} }

// removeCheck leaves nothing of a check.
func (m *Manager) removeCheck(ctx context.Context, k Key) error {
	labels := m.own(k)
	labels[labelRole] = roleCheck
	return m.runs.Remove(ctx, backend.Remains{Labels: labels})
}

// checker is the container: like the agent's, but for all that is the agent's.
func (m *Manager) checker(s Spec, commit string, within time.Duration) (backend.Container, error) {
	commands, err := json.Marshal(s.Dev.Agent.Checks)
	if err != nil {
		return backend.Container{}, err
	}
	volumes := checkVolumes(m.Name(s.Key))
	c := m.inBox(s, s.AgentBox, volumes[0], volumes[1], "", "")
	for i, mount := range c.Mounts {
		if mount.Target == podfile.SocketDir {
			c.Mounts[i] = backend.Mount{Kind: backend.BindMount, Source: filepath.Dir(m.CheckSocket(s.Key)), Target: podfile.SocketDir, ReadOnly: true}
		}
	}
	maps.DeleteFunc(c.Env, func(name, _ string) bool {
		_, proxy := egress.ProxyEnv(podfile.GateAddr, "", podfile.CABundle)[name]
		return proxy || slices.Contains([]string{podfile.EnvToken, "APT_CONFIG"}, name)
	})
	c.Env[podfile.EnvChecks] = string(commands)
	c.Command = []string{"check", "--commit", commit, "--within", within.String()}
	err = m.finish(&c, s, roleCheck)
	if err == nil {
		err = s.setUp(&c, m.Name(s.Key), RoleAgent)
	}
	return c, err
}

// AgentImageID is the id of the image that a pod's agent works in, "" when that is not
// here any more.
func (m *Manager) AgentImageID(ctx context.Context, s Spec) (string, error) {
	info, ok, err := m.images.ImageInfo(ctx, s.AgentBox.Image)
	if err != nil || !ok {
		return "", err
	}
	return info.ID, nil
}
