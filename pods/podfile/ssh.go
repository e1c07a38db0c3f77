package podfile

// An SSHHello is what `devaipod-pod sshd` is told before the connection that comes
// after it on its standard input: as JSON, in one line. It holds the pod's host key, so
// it is in no argument, variable or file of the container.
type SSHHello struct {
	HostKey  string `json:"host_key"`  // private, PEM
	HostCert string `json:"host_cert"` // of it, a line as in authorized_keys
	// AuthorizedKeys are who is let in (sshd(8), AUTHORIZED_KEYS FILE FORMAT).
	AuthorizedKeys string `json:"authorized_keys"`
}

// MaxSSHHello is how long that line may be, in bytes.
const MaxSSHHello = 1 << 20
