package pods

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"codeberg.org/devaipod/devaipod/pods/backend"
	"codeberg.org/devaipod/devaipod/pods/devcontainer"
	"codeberg.org/devaipod/devaipod/pods/egress"
	"codeberg.org/devaipod/devaipod/pods/podfile"
)

// A Pin is what a pod was started for: the label event and the text that its
// labeler saw.
type Pin struct {
	EventID  int64     `json:"event_id"`
	Labeler  string    `json:"labeler"`
	At       time.Time `json:"at"`
	TextHash string    `json:"text_hash"`
}

// A Spec says what a pod shall be. It is kept in the pod's run directory, from
// which Resume makes the pod whole again.
type Spec struct {
	Key
	RepoID       int64        `json:"repo_id"` // the forge's number of the repository
	Task         podfile.Task `json:"task"`
	Branch, Base string
	Model        podfile.Model `json:"model"`
	// AgentImage has the agent and git; Image, when not "", is another that the
	// workspace is made from, and with AgentInImage the agent too. Ensure sets these
	// two, where a [Config] has a Source.
	AgentImage, Image string
	AgentInImage      bool
	AgentCommand      []string // the agent's program and arguments, for opencode of its image when empty
	// Agent is its name in the configuration, and Driver, one of podfile's, how it is
	// spoken to; "" for opencode's own.
	Agent, Driver string `json:",omitempty"`
	// Ask has people asked for what an agent of the driver acp wants to be allowed.
	Ask         bool `json:",omitempty"`
	ToolsImage  string
	MemoryBytes int64 // of the agent's container
	// Limits are by role what else containers get; a role without has the usual.
	Limits map[string]Limit
	// WritableRoot lets agent and workspace write to their root file system.
	WritableRoot bool
	// Nested lets agent and workspace make containers of their own. Ensure sets it.
	Nested bool
	Pin    Pin
	// GitName and GitEmail are the author of the agent's commits.
	GitName, GitEmail string
	// Borrow is the directory of the host that the clones borrow objects from, ""
	// for none. Ensure sets it.
	Borrow string
	// What was found out about the images. Ensure sets them.
	AgentBox, WorkspaceBox Box
	// OtherUser says that the workspace's volumes were made for another user than it has
	// now: they become this one's.
	OtherUser bool `json:",omitempty"`
	// Dev is what the repository's devcontainer.json says, and Recipe what else its
	// pods are to be like.
	Dev    devcontainer.Config `json:"dev"`
	Recipe Recipe              `json:"recipe"`
}

// Labels that tell whose a container, volume or network is.
const (
	labelInstance = "devaipod.instance"
	labelPod      = "devaipod.pod"
	labelRole     = "devaipod.role"
	labelRepo     = "devaipod.repo"
	labelIssue    = "devaipod.issue"
	labelName     = "devaipod.workspace" // in place of an issue
	labelRepoID   = "devaipod.repo-id"
	labelBranch   = "devaipod.branch"
	labelBase     = "devaipod.base"
	labelPin      = "devaipod.pin" // the Pin as JSON
)

// labels of everything that belongs to the pod. Volumes outlive containers
// and carry no pin, but what the clones in them borrow from.
func (m *Manager) labels(k Key) map[string]string {
	l := map[string]string{labelInstance: m.cfg.Instance, labelPod: Name(m.cfg.Instance, k), labelRepo: k.Owner + "/" + k.Repo}
	if k.Name != "" {
		l[labelName] = k.Name
	} else {
		l[labelIssue] = fmt.Sprint(k.Issue)
	}
	return l
}

// containerLabels add what the pod was started for.
func (m *Manager) containerLabels(s Spec, role string) (map[string]string, error) {
	pin, err := json.Marshal(s.Pin)
	if err != nil {
		return nil, err
	}
	l := m.labels(s.Key)
	l[labelRole], l[labelBranch], l[labelBase], l[labelPin] = role, s.Branch, s.Base, string(pin)
	l[labelRepoID] = fmt.Sprint(s.RepoID)
	return l, nil
}

// The roles of a pod's containers.
const (
	RoleControl   = "control"
	RoleAgent     = "agent"
	RoleWorkspace = "workspace"
	RoleSaver     = "saver"
	roleSaverOnce = "saver-once" // the saver, run to its end by Save
)

const (
	agentID   = 1000 // as the agent image has it
	agentUser = "1000:1000"
	patience  = 5 * time.Second // for a container to end by itself
	// saverPatience is for the last save; it is more than the saver takes for it.
	saverPatience = 30 * time.Second
)

// A Limit is what a container may use of the machine; 0 is the usual.
type Limit struct {
	MemoryBytes int64
	CPUs        float64 // 0 is all of them
	Pids        int64
}

// usualLimit is what a container may use when nothing else is said.
func usualLimit(role string) Limit {
	switch role {
	case RoleControl, RoleSaver, roleSaverOnce:
		return Limit{MemoryBytes: 512 << 20, Pids: 512}
	}
	return Limit{MemoryBytes: 4 << 30, Pids: 4096}
}

func (s Spec) limit(role string) Limit {
	if role == roleCheck {
		role = RoleAgent
	}
	l, usual := s.Limits[strings.TrimSuffix(role, "-once")], usualLimit(role)
	if role == RoleAgent && s.MemoryBytes > 0 {
		l.MemoryBytes = s.MemoryBytes
	}
	if l.MemoryBytes == 0 {
		l.MemoryBytes = usual.MemoryBytes
	}
	if l.Pids == 0 {
		l.Pids = usual.Pids
	}
	return l
}

// containers are the pod's four, in the order in which they start. A person's pod
// has no agent, and so nothing to save of one.
func (m *Manager) containers(s Spec, t tokens) ([]backend.Container, error) {
	out := []backend.Container{m.control(s), m.agent(s, t), m.workspace(s, t), m.saver(s)}
	roles := []string{RoleControl, RoleAgent, RoleWorkspace, RoleSaver}
	if s.Name != "" {
		out, roles = []backend.Container{out[0], out[2]}, []string{RoleControl, RoleWorkspace}
	}
	for i, role := range roles {
		if err := m.finish(&out[i], s, role); err != nil {
			return nil, err
		}
		if role == RoleAgent || role == RoleWorkspace {
			if err := s.setUp(&out[i], m.Name(s.Key), role); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

// finish adds what all containers have.
func (m *Manager) finish(c *backend.Container, s Spec, role string) error {
	labels, err := m.containerLabels(s, role)
	if err != nil {
		return err
	}
	c.Name, c.Labels = m.container(s.Key, role), labels
	nested := s.Nested && (role == RoleAgent || role == RoleWorkspace)
	if c.Seccomp, err = m.seccompFile(nested); err != nil {
		return err
	}
	c.Engine = nested
	c.NoNewPrivs, c.DropCaps, c.SELinuxDisable, c.StopTimeout = true, true, true, stopTime(role)
	limit := s.limit(role)
	c.MemoryBytes, c.CPUs, c.Pids = limit.MemoryBytes, limit.CPUs, limit.Pids
	if c.ReadOnly {
		c.Mounts = append(c.Mounts, scratch(limit.MemoryBytes)...)
	}
	return nil
}

// stopTime is how long a container has to end by itself.
func stopTime(role string) time.Duration {
	if role == RoleSaver {
		return saverPatience
	}
	return patience
}

func (m *Manager) container(k Key, role string) string { return Name(m.cfg.Instance, k) + "-" + role }

// control holds the keys and is the pod's only way out.
func (m *Manager) control(s Spec) backend.Container {
	name := Name(m.cfg.Instance, s.Key)
	c := backend.Container{
		Image: m.gateImage(s), Entrypoint: []string{"/devaipod-pod"}, Command: []string{"control"},
		Network: backend.Egress, ReadOnly: true,
		Mounts: []backend.Mount{
			{Kind: backend.BindMount, Source: m.RunDir(s.Key), Target: podfile.ServiceDir},
			{Kind: backend.BindMount, Source: m.UsageDir(s.Key), Target: podfile.UsageDir},
			{Kind: backend.VolumeMount, Source: name + "-agent-sock", Target: podfile.AgentSocketDir},
			{Kind: backend.VolumeMount, Source: name + "-workspace-sock", Target: podfile.WorkspaceSocketDir},
		},
	}
	if s.Name != "" { // no agent, and no account of one
		c.Mounts = slices.DeleteFunc(c.Mounts, func(m backend.Mount) bool {
			return m.Target == podfile.UsageDir || m.Target == podfile.AgentSocketDir
		})
	}
	return c
}

// agent runs the model's tool calls: hostile.
func (m *Manager) agent(s Spec, t tokens) backend.Container {
	name := Name(m.cfg.Instance, s.Key)
	c := m.inBox(s, s.AgentBox, agentVolume(name), name+"-agent-home", name+"-agent-sock", t.Agent)
	program, arguments := s.AgentCommand, []string(nil)
	switch {
	case len(program) > 0:
	case s.AgentBox.Guest:
		program = []string{podfile.AgentSet + "/bin/opencode"}
	default:
		program = []string{AgentName}
	}
	maps.Copy(c.Env, opencodeEnv(s, t.Agent))
	shim := []string{"shim", "agent"}
	if s.other() {
		shim = append(shim, "--driver", s.Driver)
		maps.Copy(c.Env, modelEnv(s.Model, t.Agent))
	} else {
		arguments = []string{"serve", "--hostname", "127.0.0.1", "--port", "4096"}
	}
	c.Command = slices.Concat(shim, []string{"--"}, program, arguments)
	return c
}

// workspace is for people: editors, and trying things.
func (m *Manager) workspace(s Spec, t tokens) backend.Container {
	name := Name(m.cfg.Instance, s.Key)
	c := m.inBox(s, s.WorkspaceBox, name+"-workspace", name+"-workspace-home", name+"-workspace-sock", t.Workspace)
	c.Command = []string{"shim", "workspace"}
	for i, mount := range c.Mounts {
		c.Mounts[i].Chown = s.OtherUser && mount.Kind == backend.VolumeMount && mount.Target != podfile.SocketDir
	}
	return c
}

// inBox is what agent and workspace have in common: no network, no privileges,
// a volume to work in, a home, and a socket to the gate.
func (m *Manager) inBox(s Spec, b Box, workspace, home, sock, token string) backend.Container {
	c := backend.Container{
		Image: b.Image, ReadOnly: !b.Writable, Entrypoint: []string{podfile.BinaryPath}, Network: backend.NoNetwork, User: b.user(), WorkDir: "/workspace",
		Env: map[string]string{
			"HOME": b.Home, "TERM": "dumb", "LANG": "C.UTF-8",
			podfile.EnvToken: token, podfile.EnvRepo: s.Owner + "/" + s.Repo, podfile.EnvBranch: s.Branch, podfile.EnvBase: s.Base,
			"GIT_AUTHOR_NAME": s.GitName, "GIT_AUTHOR_EMAIL": s.GitEmail, "GIT_COMMITTER_NAME": s.GitName, "GIT_COMMITTER_EMAIL": s.GitEmail,
		},
		Mounts: []backend.Mount{
			{Kind: backend.ImageMount, Source: s.ToolsImage, Target: podfile.ToolsDir, ReadOnly: true},
			{Kind: backend.VolumeMount, Source: workspace, Target: podfile.WorkspaceDir, NoCopy: true},
			{Kind: backend.VolumeMount, Source: home, Target: b.Home, NoCopy: !b.OwnHome},
			{Kind: backend.VolumeMount, Source: sock, Target: podfile.SocketDir, NoCopy: true},
		},
	}
	b.bring(&c, s.AgentImage)
	// Here, and not in the shim, so that whoever enters the container has it too.
	maps.Copy(c.Env, egress.ProxyEnv(podfile.GateAddr, token, podfile.CABundle))
	c.Env["APT_CONFIG"] = podfile.AptConfig
	if s.Borrow != "" {
		c.Mounts = append(c.Mounts, backend.Mount{Kind: backend.BindMount, Source: s.Borrow, Target: podfile.BorrowDir, ReadOnly: true})
	}
	return c
}

// saver saves what the agent has, which it may only read. It holds nothing of
// the pod's: no token, no way to the gate, only its own way to the service.
func (m *Manager) saver(s Spec) backend.Container {
	name := Name(m.cfg.Instance, s.Key)
	c := backend.Container{
		Image: s.AgentImage, // for git
		// It is started again when the kernel or a fault of git ended it.
		Entrypoint: []string{podfile.BinaryPath}, Command: []string{"saver", "--issue", fmt.Sprint(s.Issue)}, Restart: "on-failure",
		Network: backend.NoNetwork, User: agentUser, WorkDir: podfile.SaverDir, ReadOnly: true,
		Mounts: []backend.Mount{
			{Kind: backend.ImageMount, Source: s.ToolsImage, Target: podfile.ToolsDir, ReadOnly: true},
			{Kind: backend.VolumeMount, Source: agentVolume(name), Target: podfile.WorkspaceDir, ReadOnly: true},
			{Kind: backend.VolumeMount, Source: name + "-saver", Target: podfile.SaverDir, Chown: true},
			{Kind: backend.BindMount, Source: m.saveDir(s.Key), Target: podfile.SaveDir, ReadOnly: true},
		},
	}
	if s.Borrow != "" {
		c.Mounts = append(c.Mounts, backend.Mount{Kind: backend.BindMount, Source: s.Borrow, Target: podfile.BorrowDir, ReadOnly: true})
		c.Command = append(c.Command, "--borrow", podfile.BorrowDir+"/objects")
	}
	return c
}

// agentVolume has the agent's clone.
func agentVolume(name string) string { return name + "-agent-workspace" }

// volumesOf are those that a pod is made of.
func (m *Manager) volumesOf(k Key) []string {
	name := m.Name(k)
	if k.Name != "" {
		return []string{name + "-workspace", name + "-workspace-home", name + "-workspace-sock"}
	}
	return volumes(name)
}

// volumes of a pod, by the last part of their names.
func volumes(name string) []string {
	var out []string
	for _, v := range []string{"agent-home", "agent-workspace", "agent-sock", "workspace", "workspace-home", "workspace-sock", "saver"} {
		out = append(out, name+"-"+v)
	}
	return out
}
