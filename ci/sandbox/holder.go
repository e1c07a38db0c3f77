package sandbox

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/containers/podman/v5/pkg/specgen"
	"github.com/opencontainers/runtime-spec/specs-go"
)

const (
	holderName   = "holder" // after the prefix, where names of the job's begin with "c-"
	holderMemory = 256 << 20
	holderPids   = 256
	doorDir      = "/run/service" // in the holder; the tools image has it
	doorFile     = "door.sock"
)

func (s *Sandbox) doorSocket() string { return filepath.Join(s.dir, "door", doorFile) }

// hold starts the holder and returns when it listens, which it tells by connecting.
func (s *Sandbox) hold(ctx context.Context, door *net.UnixListener, ports []int) error {
	id, err := s.create(ctx, s.holderSpec(ports))
	if err != nil {
		return err
	}
	s.holder = id
	resp, err := s.ask(ctx, http.MethodPost, libpod+"/containers/"+id+"/start", "", nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("starting the job's network: %w", answerError(resp))
	}
	return s.listening(ctx, door)
}

// listening waits for the holder's connection, as long as the holder runs.
func (s *Sandbox) listening(ctx context.Context, door *net.UnixListener) error {
	for until := time.Now().Add(holderReady); ; {
		if err := door.SetDeadline(time.Now().Add(time.Second)); err != nil {
			return err
		}
		conn, err := door.Accept()
		if err == nil {
			return errors.Join(conn.Close(), door.SetDeadline(time.Time{}))
		}
		st, stateErr := s.cfg.Podman.State(ctx, s.holder)
		switch {
		case stateErr != nil:
			return stateErr
		case !st.Running:
			return fmt.Errorf("the container of the job's network ended at once, with %d", st.ExitCode)
		case !errors.Is(err, os.ErrDeadlineExceeded) || time.Now().After(until):
			return fmt.Errorf("the job's network does not come up: %w", err)
		}
	}
}

func (s *Sandbox) holderSpec(ports []int) *specgen.SpecGenerator {
	g := specgen.NewSpecGenerator(s.cfg.Tools, false)
	g.Name, g.Labels = s.prefix(s.task)+holderName, s.labels(s.task)
	g.Entrypoint = []string{"/devaipod-pod"}
	g.Command = []string{"relay", "--to", doorDir + "/" + doorFile, "--tell"}
	for _, p := range ports {
		g.Command = append(g.Command, "--listen", "127.0.0.1:"+strconv.Itoa(p))
	}
	yes, no := true, false
	g.NetNS = specgen.Namespace{NSMode: specgen.NoNetwork}
	g.ReadOnlyFilesystem, g.ReadWriteTmpfs, g.NoNewPrivileges, g.HTTPProxy = &yes, &no, &yes, &no
	g.CapDrop, g.CapAdd = []string{"ALL"}, []string{"CAP_NET_BIND_SERVICE"}
	g.SelinuxOpts = []string{"disable"} // or it could not use the door
	g.SeccompProfilePath = s.cfg.Seccomp
	g.ImageVolumeMode = "ignore"
	g.LogConfiguration = &specgen.LogConfig{Driver: "none"}
	g.ResourceLimits = s.limits(holderMemory, 0, holderPids)
	g.Mounts = []specs.Mount{{Type: "bind", Source: filepath.Dir(s.doorSocket()), Destination: doorDir, Options: []string{"rbind", "ro"}}}
	return g
}

// cpuPeriod is the time of which a container has its share of a CPU, in µs.
const cpuPeriod = 100_000

// limits leaves out what podman could not set.
func (s *Sandboxes) limits(memory int64, cpus float64, pids int64) *specs.LinuxResources {
	r := &specs.LinuxResources{}
	if memory > 0 && s.gives("memory") {
		r.Memory = &specs.LinuxMemory{Limit: &memory}
	}
	if cpus > 0 && s.gives("cpu") {
		period, quota := uint64(cpuPeriod), int64(cpus*cpuPeriod)
		r.CPU = &specs.LinuxCPU{Period: &period, Quota: &quota}
	}
	if pids > 0 && s.gives("pids") {
		r.Pids = &specs.LinuxPids{Limit: pids}
	}
	return r
}

// jobHost is what a container of the job calls itself, unless it asked for a name.
const jobHost = "job"

// writeHosts writes what the job's containers have in place of the files that podman
// would make: those tell of the host, and podman 4 has no names for a namespace
// without a network.
func (s *Sandbox) writeHosts(hosts []string) error {
	text := "127.0.0.1\tlocalhost\n::1\tlocalhost\n127.0.0.1\t" + jobHost + "\n"
	for _, h := range hosts {
		text += "127.0.0.1\t" + h + "\n"
	}
	for name, text := range map[string]string{"hosts": text, "resolv.conf": "nameserver 127.0.0.1\n"} {
		if err := os.WriteFile(filepath.Join(s.dir, name), []byte(text), 0o644); err != nil { //nolint:gosec // every user of a container reads it
			return err
		}
	}
	return nil
}

// hostFiles are the mounts of what writeHosts wrote: not to be written, as nothing
// would bound that.
func (s *Sandbox) hostFiles() []specs.Mount {
	var out []specs.Mount
	for _, name := range []string{"hosts", "resolv.conf"} {
		out = append(out, specs.Mount{Type: "bind", Source: filepath.Join(s.dir, name), Destination: "/etc/" + name, Options: []string{"bind", "ro", "z", "nosuid", "nodev", "noexec"}})
	}
	return out
}
