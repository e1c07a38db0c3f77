package devcontainer

// A Place is the pod that a file is read for.
type Place struct {
	File  string // of devcontainer.json in the repository: slashes, no leading one
	Repo  string // the repository's name, without its owner
	Clone string // directory of the clone in the pod's containers
	ID    string // names the pod for good; ${devcontainerId} is made of it
	// Reserved are directories of the containers that belong to the pod: nothing is
	// mounted at, below or over one.
	Reserved []string
	// OwnEnv are variables that the pod sets itself; one that ends in "*" stands for
	// all that begin so.
	OwnEnv []string
}

// A Config is what a devcontainer.json asks for, as far as a pod gives it.
type Config struct {
	File string `json:"file"` // where it was read from
	Name string `json:"name,omitempty"`
	// Image, or Build, or neither: then the file leaves the image to others.
	Image string `json:"image,omitempty"`
	Build *Build `json:"build,omitempty"`

	ContainerEnv map[string]string `json:"container_env,omitempty"`
	// RemoteEnv is for lifecycle commands and for what people start. Its values may
	// have ${containerEnv:NAME} in them, see [Expand]. RemoteUnset are variables that
	// are to be taken away from them.
	RemoteEnv   map[string]string `json:"remote_env,omitempty"`
	RemoteUnset []string          `json:"remote_unset,omitempty"`
	// User is whom the workspace's container runs as: remoteUser, or else containerUser,
	// by name or number; "" for the usual one. See [Config.WorkspaceUser].
	User string `json:"user,omitempty"`
	// WorkspaceFolder is a directory in the clone, or the clone: an absolute path.
	WorkspaceFolder string    `json:"workspace_folder"`
	Mounts          []Mount   `json:"mounts,omitempty"`
	Lifecycle       Lifecycle `json:"lifecycle"`

	Ports                []int                     `json:"ports,omitempty"` // that people want to reach
	PortsAttributes      map[string]PortAttributes `json:"ports_attributes,omitempty"`
	OtherPortsAttributes *PortAttributes           `json:"other_ports_attributes,omitempty"`

	HostRequirements HostRequirements `json:"host_requirements"`
	Agent            Agent            `json:"agent"`

	// Unsupported tells what of the file does not hold: "PROPERTY: why".
	Unsupported []string `json:"unsupported,omitempty"`
}

// WorkspaceUser is User, but for root, as whom nothing runs.
func (c Config) WorkspaceUser() string {
	if c.User == "root" || c.User == "0" {
		return ""
	}
	return c.User
}

// A Build is how the image is built. Paths are the repository's, with slashes.
type Build struct {
	Dockerfile string            `json:"dockerfile"`
	Context    string            `json:"context"` // "." for the whole repository
	Target     string            `json:"target,omitempty"`
	Args       map[string]string `json:"args,omitempty"`
}

// Types of a [Mount].
const (
	Volume = "volume"
	Tmpfs  = "tmpfs"
)

// A Mount is a directory of the container that is not the image's.
type Mount struct {
	Type string `json:"type"` // Volume or Tmpfs
	// Source is a volume's name within the pod: small letters, digits, dashes; it is
	// a volume of this pod alone, made with it.
	Source   string `json:"source,omitempty"`
	Target   string `json:"target"` // absolute
	ReadOnly bool   `json:"read_only,omitempty"`
	Size     int64  `json:"size,omitempty"` // of a Tmpfs, in bytes; 0 for none given
}

// The lifecycle commands, in the order in which they run. The first three run
// once, the others at each start, or each time that somebody enters.
const (
	OnCreate      = "onCreateCommand"
	UpdateContent = "updateContentCommand"
	PostCreate    = "postCreateCommand"
	PostStart     = "postStartCommand"
	PostAttach    = "postAttachCommand"
)

// Stages are the names of the lifecycle commands in their order.
var Stages = []string{OnCreate, UpdateContent, PostCreate, PostStart, PostAttach}

// Lifecycle has the commands of the container's life.
type Lifecycle struct {
	// Stages are those that the file has, in the order in which they run.
	Stages []Stage `json:"stages,omitempty"`
	// WaitFor names the last one that people wait for before they enter.
	WaitFor string `json:"wait_for"`
}

// A Stage is one lifecycle command. Its commands run side by side; all must end
// well.
type Stage struct {
	Name     string    `json:"name"` // one of [Stages]
	Commands []Command `json:"commands"`
}

// A Command is run by /bin/sh -c, or by itself. Its strings may have
// ${containerEnv:NAME} in them, see [Expand].
type Command struct {
	Name  string   `json:"name,omitempty"` // as the file calls it, "" where it has one only
	Shell string   `json:"shell,omitempty"`
	Args  []string `json:"args,omitempty"` // when Shell is ""
}

// PortAttributes say how people's tools treat ports: keys of Config.PortsAttributes
// are a port, a range of them (3000-3010), or an expression.
type PortAttributes struct {
	Label            string `json:"label,omitempty"`
	Protocol         string `json:"protocol,omitempty"` // "", "http" or "https"
	OnAutoForward    string `json:"on_auto_forward,omitempty"`
	RequireLocalPort bool   `json:"require_local_port,omitempty"`
	ElevateIfNeeded  bool   `json:"elevate_if_needed,omitempty"`
}

// Agent is what customizations.devaipod.agent says.
type Agent struct {
	// Lifecycle names the lifecycle commands that also run in the agent's container,
	// before it starts.
	Lifecycle []string `json:"lifecycle,omitempty"`
	// Setup runs there after them, once, one after the other.
	Setup []Command `json:"setup,omitempty"`
	// Required: it does not start when one of these fails.
	Required    bool     `json:"required,omitempty"`
	Environment []string `json:"environment,omitempty"` // names of variables that it wants
	Allow       []string `json:"allow,omitempty"`       // hosts, as network.allow has them
	Checks      []string `json:"checks,omitempty"`      // what it shall try before it pushes
}
