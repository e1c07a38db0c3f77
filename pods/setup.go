package pods

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"codeberg.org/devaipod/devaipod/pods/backend"
	"codeberg.org/devaipod/devaipod/pods/devcontainer"
	"codeberg.org/devaipod/devaipod/pods/egress"
	"codeberg.org/devaipod/devaipod/pods/podfile"
)

// A Recipe is how a repository wants its pods beside their devcontainer.json.
type Recipe struct {
	// Env are variables of the agent's container.
	Env map[string]string `json:"env,omitempty"`
	// Sparse are folders of the repository that the workspace is checked out of.
	Sparse []string `json:"sparse,omitempty"`
	// Within is how long each lifecycle command may take.
	Within time.Duration `json:"within,omitempty"`
	// Dotfiles are for the workspace.
	Dotfiles *podfile.Dotfiles `json:"dotfiles,omitempty"`
}

// Place is a pod as its devcontainer.json is read for it.
func Place(instance string, k Key) devcontainer.Place {
	own := slices.Sorted(maps.Keys(egress.ProxyEnv(podfile.GateAddr, "", podfile.CABundle)))
	return devcontainer.Place{
		Repo: k.Repo, Clone: podfile.RepoDir, ID: Name(instance, k),
		Reserved: []string{podfile.WorkspaceDir, podfile.SocketDir, podfile.ToolsDir, podfile.BorrowDir, usualHome, "/proc", "/sys", "/dev", "/run", "/tmp", "/var/tmp", podfile.AgentDir},
		OwnEnv:   append(own, "DEVAIPOD_*", "OPENCODE_*", "GIT_AUTHOR_*", "GIT_COMMITTER_*", "GIT_CONFIG_*", "APT_CONFIG", "HOME"),
	}
}

// setup is what the shim of a role does in its clone.
func (s Spec) setup(role string) podfile.Setup {
	dev := s.Dev
	out := podfile.Setup{
		Env: dev.RemoteEnv, Unset: dev.RemoteUnset, Dir: dev.WorkspaceFolder,
		Within: s.Recipe.Within,
	}
	if out.Dir == podfile.RepoDir {
		out.Dir = ""
	}
	for _, stage := range dev.Lifecycle.Stages {
		switch {
		case role == RoleAgent && !slices.Contains(dev.Agent.Lifecycle, stage.Name):
		case stage.Name == devcontainer.PostAttach:
			out.Attach = stage.Commands
		default:
			out.Stages = append(out.Stages, stage)
		}
	}
	if role == RoleAgent {
		out.Required = dev.Agent.Required
		for i, c := range dev.Agent.Setup {
			out.Stages = append(out.Stages, devcontainer.Stage{Name: fmt.Sprintf("setup %d", i+1), Commands: []devcontainer.Command{c}})
		}
	} else {
		// The agent's clone is whole: a saver takes what is not in its tree for removed.
		out.Dotfiles, out.Sparse = s.Recipe.Dotfiles, s.Recipe.Sparse
	}
	if len(out.Stages) > 0 {
		out.WaitFor = dev.Lifecycle.WaitFor
	}
	return out
}

// mountVolume is what a volume of the pod's is called that its devcontainer.json asks
// for.
func mountVolume(pod, source string) string { return pod + "-mount-" + source }

// mountVolumes are all of these.
func (s Spec) mountVolumes(pod string) []string {
	var out []string
	for _, m := range s.Dev.Mounts {
		if v := mountVolume(pod, m.Source); m.Type == devcontainer.Volume && !slices.Contains(out, v) {
			out = append(out, v)
		}
	}
	return out
}

// mounts are the workspace's own. Its home is a volume already.
func (s Spec) mounts(pod, home string) []backend.Mount {
	var out []backend.Mount
	for _, m := range s.Dev.Mounts {
		switch {
		case m.Target == home:
		case m.Type == devcontainer.Volume:
			out = append(out, backend.Mount{Kind: backend.VolumeMount, Source: mountVolume(pod, m.Source), Target: m.Target, ReadOnly: m.ReadOnly})
		default:
			most := s.limit(RoleWorkspace).MemoryBytes / 2
			size := m.Size
			if size == 0 || size > most {
				size = most
			}
			out = append(out, backend.Mount{Kind: backend.TmpfsMount, Target: m.Target, Size: size, ReadOnly: m.ReadOnly})
		}
	}
	return out
}

// setUp gives a container what the repository wants of it. What the pod sets itself
// is in its environment already, and stays.
func (s Spec) setUp(c *backend.Container, pod, role string) error {
	if role == RoleWorkspace {
		c.Mounts = append(c.Mounts, s.mounts(pod, c.Env["HOME"])...)
	}
	add := func(env map[string]string) {
		for name, value := range env {
			if _, own := c.Env[name]; !own || name == "LANG" || name == "TERM" {
				c.Env[name] = value
			}
		}
	}
	add(s.Dev.ContainerEnv)
	if role == RoleAgent {
		add(s.Recipe.Env)
	}
	text, err := s.setup(role).Text()
	if err == nil && text != "" {
		c.Env[podfile.EnvSetup] = text
	}
	return err
}

// setupWithin is how long the agent's container may be at its setup.
func (s Spec) setupWithin() time.Duration {
	return time.Duration(len(s.setup(RoleAgent).Stages)) * s.Recipe.Within
}
