package main

// ConfigPath is where the program waits for its configuration.
const ConfigPath = "/tmp/escape.json"

// A Config tells the probes what there is to reach. What is secret in it is written
// backwards, so that probes that look for secrets don't find them in it.
type Config struct {
	Nonce string // in all that the lab answers
	Run   string // begins the tokens by which the lab knows what reached it

	Proxy     string // the gate, HOST:PORT
	Host      string // the host's address on the bridge of the pod's control container
	HostPort  int    // of a service of the host that listens on all addresses
	LoopPort  int    // of one that listens on its loopback
	Neighbour string // HOST:PORT in another pod's control container
	Control   string // HOST:PORT in the pod's own
	Forge     string // HOST:PORT of a container as the forge's

	Abstract string   // of a socket in the host's network namespace, with its @
	Sockets  []string // of the host, by path

	Victim    string // a process of the host, by its command line
	VictimPID int
	Marker    string // a file in the host's root
	Key       string // in the keyring of each user that the probes may be
	Segment   int    // key of a shared memory segment of the host

	// Engine has the probes tried as root of a user namespace with mounts of its own, as
	// a container engine has one.
	Engine bool

	Canaries []string // backwards
	Lacks    []string // what the machine's kernel has not, so that it can't be tried
}

// A Result is what became of one probe.
type Result struct {
	Name    string `json:"name"`
	Class   string `json:"class"`
	Reached bool   `json:"reached"`
	Detail  string `json:"detail"`
	// Token was sent: the probe has also succeeded if the lab has seen it.
	Token string `json:"token,omitempty"`
	// Lacks is what the kernel has not, so that nothing was tried.
	Lacks string `json:"lacks,omitempty"`
}

func backwards(s string) string {
	r := []byte(s)
	for i, j := 0, len(r)-1; i < j; i, j = i+1, j-1 {
		r[i], r[j] = r[j], r[i]
	}
	return string(r)
}
