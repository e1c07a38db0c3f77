// Package backend is the contract between pods and what runs their containers.
// Package podman has one of them; backendtest has the tests that each must pass.
//
// # Names and labels
//
// Pods, containers and volumes have the names that they are given; a name that is
// there already is the same thing. All that a backend makes for a pod carries the
// pod's labels, so that everything is found by them, also when a process that made
// half of it was killed. What carries others is never touched.
//
// # Order
//
// [Backend.Ensure] makes volumes and network before containers, and starts each
// container before it makes the next: control is up before an agent runs.
// [Backend.Stop] ends containers one after the other, as they are given.
// [Backend.Remove] removes volumes last.
//
// # Idempotency
//
// Every verb may be called again, also after a kill at any point within it, and ends
// the same. Nothing that is there as specified is touched.
//
// # Errors
//
// What is not there is no error for the verbs that end or look. Other errors name the
// thing; one that ends a verb halfway leaves what Ensure or Remove make good. A context
// that ends ends the verb with its cause.
//
// # Concurrency
//
// All methods may be called concurrently for different pods.
package backend

import (
	"context"
	"io"
	"time"
)

// A Backend runs pods.
type Backend interface {
	// Ensure makes the pod what p says, and starts it. A container that differs from
	// what p says is made anew; a volume that is there stays as it is, and so does
	// what p does not name. changed tells whether anything was made.
	Ensure(ctx context.Context, p Pod) (changed bool, err error)
	// Start starts a container that was made and does not run.
	Start(ctx context.Context, container string) error
	// Stop ends containers in this order: each is asked to (SIGTERM), and killed
	// after its patience. They and their volumes stay.
	Stop(ctx context.Context, containers ...Ending) error
	// Remove leaves nothing of the pod, and waits for nobody.
	Remove(ctx context.Context, p Remains) error
	// Find lists the containers and volumes that carry all of labels.
	Find(ctx context.Context, labels map[string]string) ([]Thing, error)
	// State tells how a container is.
	State(ctx context.Context, container string) (State, error)
	// Run makes a container beside a pod's, runs it to its end and removes it. p gives
	// the volumes that it needs. Its output, of both kinds, is returned.
	Run(ctx context.Context, p Pod, c Container) (output []byte, err error)
	// Disk is how many bytes each of the volumes and containers that carry all of labels
	// has on the disk, by their names; images are not in it.
	Disk(ctx context.Context, labels map[string]string) (map[string]int64, error)
	// Logs copies a container's output to w, tail lines of it (0 is all), and with
	// follow what comes until ctx ends.
	Logs(ctx context.Context, container string, follow bool, tail int, w io.Writer) error
}

// A Pod says what a pod shall be.
type Pod struct {
	Name       string
	Labels     map[string]string // of all that belongs to it
	Volumes    []Volume
	Containers []Container // in the order in which they start
}

// A Volume is a directory that outlives containers.
type Volume struct {
	Name   string
	Labels map[string]string // beside the pod's
	// Sockets says that it holds nothing else: one that carries no labels of ours is
	// made anew, and the pod's containers with it.
	Sockets bool
	// Owner is the user whose it is when it is made, and the group of the same number,
	// whatever it is mounted over; 0 is the containers' root.
	Owner int
}

// Remains are what there may be of a pod.
type Remains struct {
	Labels  map[string]string // that all of it carries
	Volumes []string          // that go by their names, too: one may have lost its labels
}

// An Ending is a container that is to end.
type Ending struct {
	Container string
	Patience  time.Duration
}

// MountKind says what a [Mount] mounts.
type MountKind string

// The kinds of mount: a named volume, a path of the service's host, an image's
// content, an empty file system in memory.
const (
	VolumeMount MountKind = "volume"
	BindMount   MountKind = "bind"
	ImageMount  MountKind = "image"
	TmpfsMount  MountKind = "tmpfs"
)

// A Mount puts something at Target in a container.
type Mount struct {
	Kind     MountKind
	Source   string
	Target   string
	ReadOnly bool // images always are
	Chown    bool // the volume becomes the container's user's
	// NoCopy keeps a new volume empty: what the image has at Target is not put into it.
	NoCopy bool
	Size   int64 // bytes that a tmpfs may hold; 0 for half of the machine's memory
}

// The networks of a pod's containers.
const (
	NoNetwork = "none"
	// Egress is one that the pod has for itself, which leads neither to the host nor
	// to other pods.
	Egress = "egress"
)

// A Container says what one container shall be.
type Container struct {
	Name, Pod, Image    string
	Entrypoint, Command []string
	Env                 map[string]string
	Labels              map[string]string
	User                string
	WorkDir             string
	// Network is [NoNetwork], in a pod [Egress], elsewhere a network's name (or another
	// container's, as the backend writes it), or "" for the pod's.
	Network        string
	Mounts         []Mount
	DropCaps       bool // all of them
	NoNewPrivs     bool
	SELinuxDisable bool
	Seccomp        string // path of a profile on the host; "" is the backend's own
	ReadOnly       bool   // the root; mounts are what they are
	MemoryBytes    int64  // 0 is no limit
	CPUs           float64
	Pids           int64 // 0 is the backend's default
	Restart        string
	StopTimeout    time.Duration
	HTTPProxy      bool // pass the host's proxy variables in
	// Engine is for container engines in the container: /proc as the kernel makes it,
	// with nothing laid over parts of it, or none could be mounted anew; and mounts left
	// to the seccomp profile.
	Engine bool
}

// A Thing is a container or volume found by its labels.
type Thing struct {
	Name   string
	Volume bool
	State  // of a volume its labels alone; OOMKilled only [Backend.State] tells
}

// A State is how a container is.
type State struct {
	Exists, Running      bool
	Exited               bool // it has run and does no more
	OOMKilled            bool
	ExitCode             int
	CreatedAt, StartedAt time.Time
	Image                string
	Labels               map[string]string
}

// An ImageInfo is what an image says of itself.
type ImageInfo struct {
	ID       string
	Names    []string // all that it has
	Arch, OS string   // as Go names them
	User     string   // "" is root
	Env      []string
	Labels   map[string]string
	Size     int64 // bytes
}

// An ImageBuild says how an image is built (podman-build(1)).
type ImageBuild struct {
	Ref         string
	Labels      map[string]string
	Context     io.Reader // a tar archive
	Dockerfile  string    // its path in the archive
	Target      string
	Args        map[string]string
	MemoryBytes int64 // of each step; 0 is no limit
}

// An ImageThing is an image found by its labels.
type ImageThing struct {
	ID      string
	Names   []string
	Created time.Time
}
