// Package podfile is the contract between the service, which writes one file
// for each pod, and devaipod-pod, which reads it inside the pod's control
// container: who the pod is, what its gate admits, which model it talks to and
// what the agent is asked to do.
//
// The file is pod.json in the pod's run directory on the host, mode 0600,
// mounted into the control container only, never into agent or workspace.
// The names of mount points, sockets and variables inside a pod are constants
// here, so that both sides and the tests use the same ones.
package podfile

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// Paths and ports inside a pod's containers.
const (
	// ServiceDir is where control sees the pod's run directory of the host.
	ServiceDir = "/run/service"
	// ServiceSocket is the service's end: git of this repository, and dialling
	// a model that listens on the host. Listener: the service.
	ServiceSocket = "service.sock"
	// GitStatusPath tells there how the agent's clone stood when it was saved last.
	GitStatusPath = "/status/git"
	// CPUPath tells there what the agent's container has used of processors, a [CPU];
	// 404 where podman can't tell.
	CPUPath = "/status/cpu"
	// ControlSocket is the pod-api's end in the same directory. Listener: control.
	ControlSocket = "control.sock"
	// FileName is the podfile's name in the run directory.
	FileName = "pod.json"
	// BookName is where control keeps what it has told an agent that can't be asked.
	BookName = "agent.json"
	// AnswersName is where it keeps the answers to the first of several questions that
	// opencode wants answered together.
	AnswersName = "answers.json"
	// UsageDir is where control keeps the account of what the model costs: a
	// directory of the host that outlives the pod.
	UsageDir = "/run/usage"

	// AgentSocketDir and WorkspaceSocketDir are control's views of the two
	// socket volumes; each is SocketDir in its own container.
	AgentSocketDir     = "/run/pod/agent"
	WorkspaceSocketDir = "/run/pod/workspace"
	SocketDir          = "/run/devaipod"
	// GateSocket is listened on by control, mode 0666 (the volume is mounted
	// in two containers only).
	GateSocket = "gate.sock"
	// CACert is a file beside it: the certificate of the gate's own authority, which
	// signs for the hosts that secrets are for. CABundle is made of it by the shim,
	// with the authorities of the container's system before it.
	CACert   = "gate-ca.pem"
	CABundle = SocketDir + "/ca-bundle.pem"
	// AptConfig is made by the shim for apt (APT_CONFIG, apt.conf(5)).
	AptConfig = SocketDir + "/apt.conf"
	// AgentSocket is listened on by the agent's shim and leads to the agent's
	// HTTP server, to its program's standard streams, or to the shim itself, which
	// starts the program. Hostile: it may be replaced by anything.
	AgentSocket = "agent.sock"

	// GateAddr is where the shim listens inside agent and workspace; whatever
	// connects there reaches the gate.
	GateAddr = "127.0.0.1:8099"
	// AgentAddr is where opencode listens inside the agent container.
	AgentAddr = "127.0.0.1:4096"
	// RepoDir is the clone, in agent and workspace alike.
	RepoDir = "/workspace/repo"
	// BorrowDir is where agent and workspace have a bare repository, read-only,
	// whose objects their clones borrow. Not there when nothing is lent.
	BorrowDir = "/.devaipod-objects"
	// BinaryPath is the devaipod-pod binary inside agent and workspace, from
	// the read-only tools mount at ToolsDir.
	ToolsDir   = "/.devaipod"
	BinaryPath = "/.devaipod/devaipod-pod"
	// AgentDir is where the agent's image is in containers of other images, read-only.
	// Below AgentSet it has programs that run in any (compose/images/agent).
	AgentDir = "/.agent"
	AgentSet = AgentDir + "/usr/lib/dvp"

	// WorkspaceDir is where agent, workspace and saver see the volume with the
	// clone; the saver may only read it.
	WorkspaceDir = "/workspace"
	// SaverDir is the saver's own volume.
	SaverDir = "/saver"
	// SaveFolder is a directory of the run directory, SaveDir is where the
	// saver sees it: SaveSocket in it takes what the saver pushes. The saver is
	// an ordinary user of another name space, so the socket must be 0666 and the
	// folder 0755; the run directory around it is 0700. Listener: the service.
	SaveFolder = "save"
	SaveDir    = "/run/save"
	SaveSocket = "save.sock"
	// SavePath is the repository's path in URLs on that socket.
	SavePath = "/saved.git"
	// RestorePath is where the service answers the agent's shim, by the gate, with
	// what was saved of its issue: a git bundle with refs as [SavedPrefix] has them.
	RestorePath = "/saved.bundle"
)

// Variables that the shim reads in agent and workspace containers.
const (
	EnvToken  = "DEVAIPOD_TOKEN"  // the token for this container's own gate, nothing else
	EnvRepo   = "DEVAIPOD_REPO"   // owner/name
	EnvBranch = "DEVAIPOD_BRANCH" // branch to work on
	EnvBase   = "DEVAIPOD_BASE"   // branch it starts from
	// EnvMark marks what a person's command has started, for signals to find it.
	EnvMark = "DEVAIPOD_EXEC"
)

// Drivers: how control speaks to the agent.
const (
	DriverOpencode = "opencode" // its HTTP API
	DriverACP      = "acp"      // the Agent Client Protocol, on the program's standard streams
	DriverCommand  = "command"  // not at all: a program that ends
)

// Model wire formats.
const (
	APIOpenAI    = "openai"           // chat completions and responses, OpenAI's or any compatible server's
	APIResponses = "openai-responses" // responses, OpenAI's or whoever has them
	APIAnthropic = "anthropic"        // messages
	APIGemini    = "gemini"           // generateContent
)

// A File says all that a pod's control container needs to know.
type File struct {
	Instance string `json:"instance"`
	Pod      string `json:"pod"`
	Repo     string `json:"repo"` // owner/name on the forge
	Issue    int64  `json:"issue"`

	// Branch is what the agent is told to push; BranchPrefix is what the
	// receive gate enforces ("agent/3-").
	Branch       string `json:"branch"`
	BranchPrefix string `json:"branch_prefix"`
	Base         string `json:"base"`

	// Tokens that agent and workspace show to the gate. Each is good on its
	// own socket only.
	AgentToken     string `json:"agent_token"`
	WorkspaceToken string `json:"workspace_token"`

	Agent string `json:"agent"` // its name: "opencode"; "" for a pod without one
	// Driver is how it is spoken to, DriverOpencode when "".
	Driver string `json:"driver,omitempty"`
	// Ask has people asked for what an agent of the driver acp wants to be allowed.
	Ask   bool  `json:"ask,omitempty"`
	Model Model `json:"model"`
	Task  Task  `json:"task"`
}

// Model is where the gate forwards model requests.
type Model struct {
	API     string `json:"api"`      // one of the wire formats
	Name    string `json:"name"`     // as the provider calls it
	BaseURL string `json:"base_url"` // with the version path: https://api.openai.com/v1
	// ViaService is set when BaseURL is an address of the host's, which the
	// gate's own network can't reach: it asks the service to dial it.
	ViaService bool `json:"via_service"`
}

// Task is what the agent is asked to do.
type Task struct {
	// Stall is how long the agent may make no progress before it is asked to go
	// on, and then again before it is given up; 10 minutes when 0.
	Stall time.Duration `json:"stall"`
	// Key names this run of the task; a new key (a new label event) makes a
	// new session, the same key finds the old one.
	Key    string `json:"key"`
	Prompt string `json:"prompt"`
	// Setup is how long the agent's container may take before it starts the agent.
	Setup time.Duration `json:"setup,omitempty"`
}

// Write stores f as pod.json in dir.
func Write(dir string, f *File) error {
	b, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		return err
	}
	return Replace(filepath.Join(dir, FileName), b)
}

// Replace writes a file that only its owner may read (0600), atomically: a
// reader, and a kill, finds the old content or the new. It is durable when
// Replace returns.
func Replace(path string, data []byte) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), ".new-*") // CreateTemp makes it 0600
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(tmp.Name()) }() // gone after the rename
	if _, err := tmp.Write(data); err != nil {
		return errors.Join(err, tmp.Close())
	}
	if err := errors.Join(tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}

// Read loads pod.json from dir. The error matches fs.ErrNotExist when there is
// none.
func Read(dir string) (*File, error) {
	b, err := os.ReadFile(filepath.Join(dir, FileName))
	if err != nil {
		return nil, err
	}
	var f File
	if err := json.Unmarshal(b, &f); err != nil {
		return nil, fmt.Errorf("reading %s: %w", filepath.Join(dir, FileName), err)
	}
	return &f, nil
}

// A CPU is what a container has used of processors since it was started.
type CPU struct {
	Used time.Duration `json:"used_ns"`
}
