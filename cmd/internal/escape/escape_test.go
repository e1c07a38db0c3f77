package main_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	main "codeberg.org/devaipod/devaipod/cmd/internal/escape"
	"codeberg.org/devaipod/devaipod/cmd/internal/testkit"
	"codeberg.org/devaipod/devaipod/cmd/internal/testkit/lab"
	"codeberg.org/devaipod/devaipod/pods"
)

// inside says that this process is in namespaces of its own.
var inside bool

func TestMain(m *testing.M) {
	inside = lab.Inside()
	os.Exit(m.Run())
}

// placeEnv has the directory that the process outside made for the one inside.
const placeEnv = "DEVAIPOD_ESCAPE_DIR"

// userEnv has the name of the ordinary user.
const userEnv = "DEVAIPOD_ESCAPE_USER"

// classes are what there must be probes of, three of each at least.
var classes = []string{
	"raw sockets", "DNS", "TCP", "IPv6", "UDP", "ICMP", "unix sockets", "vsock and netlink", "host addresses", "metadata", "neighbours",
	"proxy tricks", "SNI and Host", "odd ports", "smuggling", "redirects", "DNS rebinding", "/proc", "/sys", "mounts", "devices",
	"signals and processes", main.Allowed, "privileges", "ptrace", "keyring", "namespaces", "secrets",
}

func TestThereAreProbesOfEveryClass(t *testing.T) {
	names, seen, n := main.Names(), map[string]bool{}, 0
	for class, all := range names {
		if !slices.Contains(classes, class) {
			t.Errorf("class %s is not listed", class)
		}
		for _, name := range all {
			if seen[name] {
				t.Errorf("two probes are called %s", name)
			}
			seen[name] = true
			n++
		}
	}
	for _, c := range classes {
		if len(names[c]) < 3 {
			t.Errorf("class %s has %d probes", c, len(names[c]))
		}
	}
	if n < 40 {
		t.Errorf("%d probes", n)
	}
}

// TestEscape runs every probe in an open container, where it must succeed, and in a
// pod's agent container, where it must fail: in one of root's podman, and in one of an
// ordinary user's, who is made for it. All of it, podman too, runs in
// namespaces of its own, of which the network leads to a lab and nowhere else.
func TestEscape(t *testing.T) {
	if os.Getuid() != 0 && !inside {
		t.Log("NOT RUN, none of the probes: the lab's network namespaces, a podman that runs in them, and an open container all need root")
		return
	}
	if inside {
		if os.Getenv(userEnv) != "" && os.Getuid() != 0 {
			escapeAsUser(t)
			return
		}
		escape(t)
		return
	}
	dir, err := os.MkdirTemp("", "dve-*") //nolint:usetesting // the names of sockets below it must be short
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	must(t, os.Chmod(dir, 0o755)) // for the host's other user
	for name, path := range map[string]string{"escape": "codeberg.org/devaipod/devaipod/cmd/internal/escape", "devaipod-pod": "codeberg.org/devaipod/devaipod/cmd/devaipod-pod"} {
		cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(dir, "bin", name), path)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("building %s: %v\n%s", name, err, out)
		}
	}
	self, err := os.Executable()
	must(t, err)
	program, err := os.ReadFile(self)
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, "bin/self"), program, 0o755)) // where others may run it
	user, err := testkit.NewOSUser(t.Context())
	must(t, err)
	t.Cleanup(func() { must(t, user.Remove(context.WithoutCancel(t.Context()))) })
	t.Setenv(userEnv, user.Name)
	t.Setenv(placeEnv, dir)
	before := leftovers(t)
	w, err := lab.NewWitness()
	must(t, err)
	var out bytes.Buffer
	err = lab.Enter(&out, &out, "-test.run=^TestEscape$", "-test.v=true", "-test.count=1")
	n, counted := w.Count()
	t.Log("in namespaces of its own:\n" + out.String())
	must(t, err)
	must(t, counted)
	if n > 0 {
		t.Errorf("%d packets of the lab's came to this machine's own network", n)
	}
	if after := leftovers(t); after != before {
		t.Errorf("left behind:\n%s\nbefore:\n%s", after, before)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// leftovers is what such a test could leave on this machine: interfaces, tables of
// the packet filter of ours, and mounts.
func leftovers(t *testing.T) string {
	t.Helper()
	var all []string
	instance := sha256.Sum256([]byte("escape")) // as the pods' interfaces are called
	links, err := filepath.Glob("/sys/class/net/dvp" + hex.EncodeToString(instance[:2]) + "*")
	must(t, err)
	all = append(all, links...)
	tables, err := exec.Command("nft", "list", "tables").Output()
	must(t, err)
	for line := range strings.Lines(string(tables)) {
		if strings.Contains(line, "devaipod_escape") {
			all = append(all, line)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, os.Getenv(placeEnv)+"/") {
			all = append(all, line)
		}
	}
	return strings.Join(all, "\n")
}

// lacks is what this machine's kernel has not.
func lacks(t *testing.T) []string {
	t.Helper()
	var out []string
	if fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
		out = append(out, "vsock")
	} else {
		must(t, unix.Close(fd))
	}
	major, minor, err := main.Disk()
	if err == nil {
		_, err = main.OpenNode(unix.S_IFBLK, major, minor)
	}
	if err != nil {
		t.Log("a disk can't be tried: ", err)
		out = append(out, "disk that root may open")
	}
	return out
}

// escape is the test, inside.
func escape(t *testing.T) {
	p := newPlace(t)
	p.twoPods(t)
	p.forge(t)
	open := p.seen(p.tryIn(t, "open", p.openContainer(t), p.openConfig(t)))
	sealed := p.seen(p.tryIn(t, "sealed", p.agent(), p.sealedConfig(t, p.key, "s")))
	judge(t, open, sealed, nil)
	t.Run("nested", func(t *testing.T) { nested(t, p, open) })
	t.Run("faults", func(t *testing.T) { faults(t, p) })
	t.Run("fence", func(t *testing.T) { fence(t, p) })
	t.Run("builds", func(t *testing.T) { builds(t, p) })
	p.end(t)
	t.Run("without root", func(t *testing.T) {
		sealed, nested := runAsUser(t, p)
		judge(t, open, sealed, nil)
		judge(t, open, nested, opened)
	})
	must(t, p.lab.Sealed(t.Context()))
}

// opened are the probes that succeed in a pod whose person lets it make containers,
// tried as root of namespaces of the agent's own; docs/security.md names them. They
// reach what the agent has, and more of the kernel's code, and nothing of others.
var opened = []string{
	"ns-user", "ns-user-net", "ns-pid", "ns-by-clone", "ns-net", "ns-ipc", "ns-container", "mount-tmpfs", "chroot",
	"cap-effective", "cap-bounding", "cap-setpcap", "setuid-call", "setuid-program", // root of such a namespace, over nothing else
}

// keysListed is one more that does with root's podman, where the agent's number is that
// of a user of the host.
const keysListed = "proc-keys"

// nested tries them all there.
func nested(t *testing.T, p *place, open map[string]main.Result) {
	control := p.makePod(t, nestedKey, "control")
	c := p.sealedConfig(t, nestedKey, "n")
	c.Control, c.Engine = control, true
	judge(t, open, p.seen(p.tryIn(t, "nested", p.container(nestedKey, pods.RoleAgent), c)), append(opened, keysListed))
}

// judge wants every probe to have succeeded in the one and failed in the other, but for
// those that are let.
func judge(t *testing.T, open, sealed map[string]main.Result, let []string) {
	t.Helper()
	var table strings.Builder
	tried, names := 0, main.Names()
	for _, class := range slices.Sorted(maps.Keys(names)) {
		for _, name := range names[class] {
			o, s := open[name], sealed[name]
			if o.Name == "" || s.Name == "" {
				t.Errorf("%s: open %v, sealed %v: it did not report", name, o, s)
				continue
			}
			if o.Lacks == "" {
				tried++
			}
			if o.Lacks == "" && !o.Reached {
				t.Errorf("%s shows nothing: it fails in an open container too: %s", name, o.Detail)
			}
			switch {
			case (class == main.Allowed || slices.Contains(let, name)) && !s.Reached:
				t.Errorf("%s is kept from a pod: %s", name, s.Detail)
			case class != main.Allowed && !slices.Contains(let, name) && s.Reached:
				t.Errorf("%s GOT OUT of a pod: %s", name, s.Detail)
			}
			fmt.Fprintf(&table, "%-22s %-28s %-9s %-9s %s\n", class, name, word(o), word(s), s.Detail)
		}
	}
	if tried < 40 {
		t.Errorf("only %d probes could be tried", tried)
	}
	t.Logf("%d probes\n%-22s %-28s %-9s %-9s %s\n%s", tried, "CLASS", "PROBE", "OPEN", "POD", "IN A POD", table.String())
}

func word(r main.Result) string {
	switch {
	case r.Lacks != "":
		return "untried"
	case r.Reached:
		return "got out"
	}
	return "held"
}

// results reads what the program printed.
func results(t *testing.T, text string) map[string]main.Result {
	t.Helper()
	all := map[string]main.Result{}
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, `{"name":`) {
			continue
		}
		var r main.Result
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Errorf("%q: %v", line, err)
		}
		all[r.Name] = r
	}
	return all
}
