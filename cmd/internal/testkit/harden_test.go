package testkit_test

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"codeberg.org/devaipod/devaipod/pods"
)

// An ociConfig is what the runtime is given (OCI runtime specification, config.md).
type ociConfig struct {
	Process struct {
		User            struct{ UID, GID int }
		Capabilities    map[string][]string
		NoNewPrivileges bool
	}
	Root   struct{ Readonly bool }
	Mounts []struct {
		Destination, Type, Source string
		Options                   []string
	}
	Hooks any
	Linux struct {
		Namespaces []struct{ Type, Path string }
		Resources  struct {
			Devices []struct{ Allow bool }
			Memory  struct{ Limit int64 }
			Pids    struct{ Limit int64 }
			CPU     struct{ Quota, Period int64 }
		}
		Seccomp     any
		Devices     []any
		MaskedPaths []string
	}
}

// kernelMounts are made of nothing of the host's, but what podman writes for the container.
var kernelMounts = map[string]string{
	"/proc": "proc", "/sys": "sysfs", "/sys/fs/cgroup": "cgroup", "/dev": "tmpfs", "/dev/mqueue": "mqueue", "/dev/pts": "devpts",
	"/run": "tmpfs", "/tmp": "tmpfs", "/var/tmp": "tmpfs",
	"/dev/shm": "bind", "/etc/hosts": "bind", "/etc/hostname": "bind", "/etc/resolv.conf": "bind", "/etc/passwd": "bind", "/etc/group": "bind",
}

// closed makes sure that there is nothing in a pod's containers but what is listed here.
func closed(t *testing.T, m *pods.Manager, s pods.Spec, home string) {
	t.Helper()
	name := m.Name(s.Key)
	volume := func(v string) string { return filepath.Join(world.Dir, "g/volumes", name+"-"+v, "_data") }
	const readOnly = "ro "
	for role, own := range map[string]map[string]string{
		"control": {
			"/run/service": m.RunDir(s.Key), "/run/usage": m.UsageDir(s.Key),
			"/run/pod/agent": volume("agent-sock"), "/run/pod/workspace": volume("workspace-sock"),
		},
		"agent":     {"/.devaipod": "image", "/.agent": "image", "/workspace": volume("agent-workspace"), home: volume("agent-home"), "/run/devaipod": volume("agent-sock")},
		"workspace": {"/.devaipod": "image", "/.agent": "image", "/workspace": volume("workspace"), home: volume("workspace-home"), "/run/devaipod": volume("workspace-sock")},
		"saver":     {"/.devaipod": "image", "/workspace": readOnly + volume("agent-workspace"), "/saver": volume("saver"), "/run/save": readOnly + filepath.Join(m.RunDir(s.Key), "save")},
	} {
		c := ociOf(t, name+"-"+role)
		for _, mount := range c.Mounts {
			at, problem := mount.Destination, ""
			source, known := own[at]
			writable := !slices.Contains(mount.Options, "ro")
			kind, kernels := kernelMounts[at]
			podmans := strings.Contains(mount.Source, "/overlay-containers/") && strings.HasPrefix(mount.Source, world.Dir+"/")
			switch {
			case known && source == "image":
				if mount.Type != "overlay" || !podmans || slices.ContainsFunc(mount.Options, func(o string) bool { return strings.HasPrefix(o, "upperdir=") }) {
					problem = "it is no image that is only read"
				}
			case known:
				if path, ro := strings.CutPrefix(source, readOnly); mount.Source != path || ro && writable {
					problem = "want " + source
				}
			case !kernels || kind != mount.Type || kind == "bind" && (!podmans || at != "/dev/shm" && writable) || (at == "/sys" || at == "/sys/fs/cgroup") && writable:
				problem = "it is not on the list"
			}
			if problem != "" {
				t.Errorf("%s: at %s is a %s of %s (%v): %s", role, at, mount.Type, mount.Source, mount.Options, problem)
			}
			delete(own, at)
		}
		if len(own) > 0 {
			t.Errorf("%s lacks %v", role, slices.Sorted(maps.Keys(own)))
		}
		confined(t, role, c, s.Limits[role])
	}
}

// confined makes sure of a container's privileges and limits.
func confined(t *testing.T, role string, c ociConfig, want pods.Limit) {
	t.Helper()
	for kind, caps := range c.Process.Capabilities {
		if len(caps) > 0 {
			t.Errorf("%s has capabilities %s: %v", role, kind, caps)
		}
	}
	devices := slices.ContainsFunc(c.Linux.Resources.Devices, func(d struct{ Allow bool }) bool { return d.Allow })
	if !c.Process.NoNewPrivileges || !c.Root.Readonly || c.Linux.Seccomp == nil || c.Hooks != nil || devices || len(c.Linux.Devices) > 0 {
		t.Errorf("%s: no new privileges %v, root read-only %v, seccomp %v, hooks %v, devices %v", role, c.Process.NoNewPrivileges, c.Root.Readonly, c.Linux.Seccomp != nil, c.Hooks, devices)
	}
	if (c.Process.User.UID == 0) != (role == "control") {
		t.Errorf("%s runs as %d", role, c.Process.User.UID)
	}
	for _, kind := range []string{"pid", "network", "ipc", "uts", "mount"} {
		own := slices.ContainsFunc(c.Linux.Namespaces, func(n struct{ Type, Path string }) bool {
			return n.Type == kind && (n.Path == "" || role == "control" && kind == "network")
		})
		if !own {
			t.Errorf("%s has no %s namespace of its own: %v", role, kind, c.Linux.Namespaces)
		}
	}
	r := c.Linux.Resources
	if got := (pods.Limit{MemoryBytes: r.Memory.Limit, CPUs: float64(r.CPU.Quota) / float64(max(r.CPU.Period, 1)), Pids: r.Pids.Limit}); got != want {
		t.Errorf("%s may use %+v, want %+v", role, got, want)
	}
}

func ociOf(t *testing.T, container string) ociConfig {
	t.Helper()
	out, err := world.Podman(t.Context(), "inspect", container)
	must(t, err)
	var found []struct{ OCIConfigPath string }
	must(t, json.Unmarshal([]byte(out), &found))
	text, err := os.ReadFile(found[0].OCIConfigPath)
	must(t, err)
	var c ociConfig
	must(t, json.Unmarshal(text, &c))
	return c
}

func TestNothingOfTheHostIsInAPodButWhatIsDeclared(t *testing.T) {
	must(t, agentImage())
	ctx := t.Context()
	m, tools := podManager(t, "closed")
	before := names(t)
	s := imageSpec(tools, build(t, "closed", busyboxEntries(t), "--change", "VOLUME /data", "--change", "VOLUME /var/lib/x"), pods.Key{Owner: "ann", Repo: "closed", Issue: 4})
	s.MemoryBytes = 0
	s.Limits = map[string]pods.Limit{}
	for i, role := range []string{"control", "agent", "workspace", "saver"} {
		s.Limits[role] = pods.Limit{MemoryBytes: int64(i+1) << 28, CPUs: float64(i+1) / 2, Pids: int64(i+1) * 100}
	}
	must(t, ensure(t, m, s))
	closed(t, m, s, "/home/agent")
	if got := names(t); strings.Count(got, "volume ")-strings.Count(before, "volume ") != 7 {
		t.Errorf("volumes of others than the pod: %s", got)
	}
	// With a root that may be written to, at a person's word.
	s.WritableRoot = true
	must(t, ensure(t, m, s))
	for _, role := range []string{"agent", "workspace", "saver", "control"} {
		if got, want := ociOf(t, m.Name(s.Key)+"-"+role).Root.Readonly, role == "saver" || role == "control"; got != want {
			t.Errorf("%s: root read-only %v", role, got)
		}
	}
	must(t, m.Remove(ctx, s.Key))
	if after := names(t); after != before {
		t.Errorf("left:\n%s\nbefore:\n%s", after, before)
	}
}
