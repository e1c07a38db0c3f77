package testkit_test

import (
	"context"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"codeberg.org/devaipod/devaipod/pods"
	"codeberg.org/devaipod/devaipod/pods/podman"
)

// engineEntries are an image with this machine's podman in it, set up as docs/guide.md
// says, and no other programs than it needs.
func engineEntries(t *testing.T) []entry {
	t.Helper()
	programs := map[string]string{}
	for _, name := range []string{"podman", "conmon", "runc"} {
		path, err := exec.LookPath(name)
		must(t, err)
		programs["usr/bin/"+name] = path
	}
	driver, err := world.Podman(t.Context(), "info", "--format", "{{.Store.GraphDriverName}}")
	must(t, err)
	return append(slices.Concat(busyboxEntries(t), glibcEntries(t, programs)),
		entry{name: "etc/passwd", text: "root:x:0:0::/root:/bin/sh\nagent:x:1000:1000::/home/agent:/bin/sh\n"},
		entry{name: "etc/containers/policy.json", text: `{"default":[{"type":"insecureAcceptAnything"}]}`},
		entry{name: "etc/containers/containers.conf", text: "[containers]\nnetns = \"host\"\n[engine]\nruntime = \"runc\"\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\n"},
		entry{name: "etc/containers/storage.conf", text: "[storage]\ndriver = \"" + strings.TrimSpace(driver) + "\"\n[storage.options.overlay]\nignore_chown_errors = \"true\"\n"})
}

// engineScript builds an image from nothing, runs a static program of it, one that runs
// on in the background, and another in that one.
const engineScript = `
mkdir -p /tmp/b; busybox cp /bin/busybox /tmp/b/
printf 'FROM scratch\nCOPY busybox /bin/busybox\nRUN ["/bin/busybox", "touch", "/made"]\nENTRYPOINT ["/bin/busybox"]\n' >/tmp/b/Containerfile
podman build --quiet --tag built /tmp/b
podman run --rm built stat -c 'in it is %n, of %u' /made
podman run --detach --name on built sleep 1000
podman exec on /bin/busybox id -u
podman rm --force --time 0 on
podman run --rm built cat /proc/1/cmdline
`

// Where the person who runs the service says so, podman works in a pod's agent and
// workspace, and nowhere else.
func TestAnEngineInAPod(t *testing.T) {
	ctx := t.Context()
	m, tools := podManager(t, "engine")
	image := build(t, "engine", engineEntries(t))
	before := names(t)
	for _, repo := range []string{"nested", "plain"} {
		k := pods.Key{Owner: "ann", Repo: repo, Issue: 1}
		s := spec(tools, k)
		s.AgentImage, s.MemoryBytes = image, 1<<30
		must(t, ensure(t, m, s))
		t.Cleanup(func() { must(t, m.Remove(context.WithoutCancel(ctx), k)) })
		for _, role := range []string{"agent", "workspace"} {
			out, err := world.Podman(ctx, "exec", m.Name(k)+"-"+role, "sh", "-ec", engineScript)
			switch works := err == nil && strings.Contains(out, "in it is /made, of 0\n") && strings.Contains(out, "\n0\n") && strings.HasSuffix(out, "/bin/busybox\x00cat\x00/proc/1/cmdline\x00"); {
			case repo == "nested" && !works:
				t.Errorf("podman in the %s that may: %v\n%s", role, err, out)
			case repo == "plain" && (err == nil || !strings.Contains(err.Error(), "cannot clone")):
				t.Errorf("podman in the %s of a pod without the opt-in: %v\n%s", role, err, out)
			}
		}
		for _, role := range []string{"agent", "workspace", "control", "saver"} {
			opened := repo == "nested" && (role == "agent" || role == "workspace")
			c := ociOf(t, m.Name(k)+"-"+role)
			if masked := slices.Contains(c.Linux.MaskedPaths, "/proc/keys"); masked == opened || !slices.Contains(c.Linux.MaskedPaths, "/sys/firmware") {
				t.Errorf("%s of %s: masked are %v", role, repo, c.Linux.MaskedPaths)
			}
			if !c.Process.NoNewPrivileges || !c.Root.Readonly || len(c.Process.Capabilities["bounding"]) > 0 {
				t.Errorf("%s of %s: no new privileges %v, root read-only %v, capabilities %v", role, repo, c.Process.NoNewPrivileges, c.Root.Readonly, c.Process.Capabilities)
			}
		}
		// A pod that is there loses it, too, when it is started and nobody lets it any more.
		strict, err := pods.New(pods.Config{Instance: "engine", StateDir: filepath.Join(world.Dir, "engine"), Backend: podman.NewPods(world.client, "engine", world.log), Images: world.client, Log: world.log})
		must(t, err)
		must(t, m.Stop(ctx, k))
		must(t, strict.Resume(ctx, k))
		if c := ociOf(t, m.Name(k)+"-agent"); !slices.Contains(c.Linux.MaskedPaths, "/proc/keys") {
			t.Errorf("%s, when it is not let any more: masked are %v", repo, c.Linux.MaskedPaths)
		}
		must(t, m.Remove(ctx, k))
	}
	if after := names(t); after != before {
		t.Errorf("left:\n%s\nbefore:\n%s", after, before)
	}
}
