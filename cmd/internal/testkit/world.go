package testkit

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// maxDir is how long a world's directory may be, in bytes, so that unix
// sockets some levels below it stay within the 108 that the kernel allows.
const maxDir = 60

// A World is a podman apart from every other: its configuration, storage,
// networks and sockets are in Dir. Its methods may be called concurrently.
type World struct {
	Dir string // absolute

	pool   netip.Prefix // the /16 that its networks are cut from
	bridge string       // of its default network
}

// NewWorld makes a world in dir, or finds the one that was made there before.
func NewWorld(dir string) (*World, error) {
	w, err := OpenWorld(dir)
	if err != nil || w.made() {
		return w, err
	}
	for _, d := range []string{w.Dir, w.path("net"), w.path("x")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, err
		}
	}
	if err := w.choosePool(); err != nil {
		return nil, err
	}
	files := map[string]string{
		"containers.conf":              w.containersConf(),
		"net/" + w.network() + ".json": w.defaultNetwork(),
		"pool":                         w.pool.String() + " " + w.bridge + "\n",
	}
	for name, text := range files {
		if err := os.WriteFile(w.path(name), []byte(text), 0o600); err != nil {
			return nil, err
		}
	}
	// Written last: a world that has it is whole.
	return w, w.chooseDriver()
}

// OpenWorld names the world in dir, made or not.
func OpenWorld(dir string) (*World, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if len(dir) > maxDir {
		return nil, fmt.Errorf("%s: longer than %d bytes, sockets in it could not be reached; choose a shorter one (XDG_STATE_HOME, TMPDIR)", dir, maxDir)
	}
	w := &World{Dir: dir}
	text, err := os.ReadFile(w.path("pool"))
	if errors.Is(err, fs.ErrNotExist) {
		return w, nil
	}
	if err != nil {
		return nil, err
	}
	pool, bridge, _ := strings.Cut(strings.TrimSpace(string(text)), " ")
	if w.pool, err = netip.ParsePrefix(pool); err != nil {
		return nil, fmt.Errorf("reading %s: %w", w.path("pool"), err)
	}
	w.bridge = bridge
	return w, nil
}

func (w *World) path(name string) string { return filepath.Join(w.Dir, name) }

func (w *World) made() bool {
	_, err := os.Stat(w.path("storage.conf"))
	return err == nil
}

// Env are the variables that put podman, and what starts it, into the world.
// An ordinary user's podman keeps its run root, and the process that holds its
// user namespace, where XDG_RUNTIME_DIR says; root's does not read it.
func (w *World) Env() []string {
	return []string{"CONTAINERS_CONF=" + w.path("containers.conf"), "CONTAINERS_STORAGE_CONF=" + w.path("storage.conf"), "XDG_RUNTIME_DIR=" + w.path("x")}
}

// Environ is this process's environment with Env, and without variables that
// would lead podman or devaipod elsewhere.
func (w *World) Environ() []string {
	var env []string
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		ours := strings.HasPrefix(name, "DEVAIPOD_") && name != "DEVAIPOD_CACHE"
		if !ours && !strings.HasPrefix(name, "CONTAINER") && name != "DOCKER_HOST" {
			env = append(env, kv)
		}
	}
	return append(env, w.Env()...)
}

// Podman runs podman's program in the world and returns what it printed.
func (w *World) Podman(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "podman", args...)
	cmd.Env = w.Environ()
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("podman %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(errOut.String()))
	}
	return out.String(), nil
}

// containersConf works on machines with and without systemd. Locks in files and
// a tmp_dir of its own, since the defaults are shared by all of a user's podmans.
func (w *World) containersConf() string {
	manager := "cgroupfs"
	if _, err := os.Stat("/run/systemd/system"); err == nil {
		manager = "systemd"
	}
	runtime := "crun"
	if _, err := exec.LookPath("runc"); err == nil {
		runtime = "runc"
	}
	return fmt.Sprintf(`[containers]
default_ulimits = ["nofile=%d:%[1]d", "nproc=%d:%[2]d"]

[engine]
runtime = %q
cgroup_manager = %q
events_logger = "file"
lock_type = "file"
tmp_dir = %q

[network]
network_backend = "netavark"
network_config_dir = %q
default_network = %q
default_subnet_pools = [{"base" = %q, "size" = 24}]
`, atMost(syscall.RLIMIT_NOFILE, 16384), atMost(rlimitNproc, 8192), runtime, manager, w.path("t"), w.path("net"), w.network(), w.pool)
}

const rlimitNproc = 6 // which package syscall does not name

// atMost is want, or less where this process may not go so high.
func atMost(resource int, want uint64) uint64 {
	var have syscall.Rlimit
	if err := syscall.Getrlimit(resource, &have); err != nil {
		return want
	}
	return min(want, have.Max)
}

// network is the name of the world's default network. netavark names chains of
// the firewall by it: two worlds with one name would take out each other's rules.
func (w *World) network() string { return "podman" + strings.TrimPrefix(w.bridge, "dvk") }

// defaultNetwork gives the world's own name, subnet and bridge to podman's
// default network, which otherwise is the same in every world.
func (w *World) defaultNetwork() string {
	last := w.pool.Addr().As4()
	last[2] = 255
	return fmt.Sprintf(`{"name": %q, "id": "2f259bab93aaaaa2542ba43ef33eb990d0999ee1b9924b557b7be53c0b7a1bb9",
 "driver": "bridge", "network_interface": %q, "created": "2026-01-01T00:00:00Z",
 "subnets": [{"subnet": "%d.%d.255.0/24", "gateway": "%d.%d.255.1"}],
 "ipv6_enabled": false, "internal": false, "dns_enabled": false, "ipam_options": {"driver": "host-local"}}
`, w.network(), w.bridge, last[0], last[1], last[0], last[1])
}

// choosePool takes a random private /16 that no interface of this machine is
// in, and a name for the default network's bridge.
func (w *World) choosePool() error {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return err
	}
	var b [4]byte
	for range 100 {
		if _, err := rand.Read(b[:]); err != nil {
			return err
		}
		pool := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 96 + b[0]%128, 0, 0}), 16)
		taken := false
		for _, a := range addrs {
			other, err := netip.ParsePrefix(a.String())
			taken = taken || err != nil || pool.Overlaps(other.Masked())
		}
		if !taken {
			w.pool, w.bridge = pool, fmt.Sprintf("dvk%x", b[1:])
			return nil
		}
	}
	return errors.New("no free private /16 in 10.96.0.0–10.223.0.0 for the pods' networks")
}

// chooseDriver writes storage.conf, with overlay if the directory's file
// system can, else with vfs, which works everywhere and copies whole images.
func (w *World) chooseDriver() error {
	var problem error
	for _, driver := range []string{"overlay", "vfs"} {
		// Root's podman reads the second, an ordinary user's the third.
		conf := fmt.Sprintf("[storage]\ndriver = %q\ngraphroot = %q\nrootless_storage_path = %[2]q\nrunroot = %q\n", driver, w.path("g"), w.path("r"))
		if err := os.WriteFile(w.path("storage.conf"), []byte(conf), 0o600); err != nil {
			return err
		}
		got, err := w.Podman(context.Background(), "info", "--format", "{{.Store.GraphDriverName}} {{.Store.GraphRoot}}")
		if err == nil && strings.TrimSpace(got) == driver+" "+w.path("g") {
			return nil
		}
		problem = errors.Join(problem, fmt.Errorf("podman with %s storage: answered %q: %w", driver, strings.TrimSpace(got), err))
		for _, d := range []string{"g", "r"} {
			if err := os.RemoveAll(w.path(d)); err != nil {
				return err
			}
		}
	}
	return errors.Join(problem, os.Remove(w.path("storage.conf")))
}
