package testkit_test

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/cmd/internal/testkit"
	"codeberg.org/devaipod/devaipod/pods"
	"codeberg.org/devaipod/devaipod/pods/podfile"
	"codeberg.org/devaipod/devaipod/pods/podman"
)

// The layers below the whole program, on a real podman in a world of its own:
// what podman does with what we ask for, and a pod's life, with an image that
// holds nothing but busybox.

const box = "localhost/box:latest"

var world struct {
	*testkit.World
	client *podman.Client
	log    *slog.Logger
}

func TestMain(m *testing.M) { os.Exit(inWorld(m)) }

func inWorld(m *testing.M) (code int) {
	if os.Getenv(sandboxChild) != "" { // it has its parent's world, and is killed, which would leave one of its own
		world.log = slog.New(slog.DiscardHandler)
		return m.Run()
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	fail := func(err error) int {
		fmt.Fprintln(os.Stderr, "making a podman world:", err)
		return 1
	}
	dir, err := os.MkdirTemp("", "dvp-*")
	if err != nil {
		return fail(err)
	}
	w, err := testkit.NewWorld(dir)
	if err != nil {
		return fail(err)
	}
	defer func() {
		if err := w.Remove(context.WithoutCancel(ctx)); err != nil {
			code = fail(err)
		}
	}()
	for _, kv := range w.Env() {
		name, value, _ := strings.Cut(kv, "=")
		if err := os.Setenv(name, value); err != nil {
			return fail(err)
		}
	}
	world.World, world.log = w, slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	socket := filepath.Join(dir, "podman.sock")
	uri, err := podman.Find(ctx, podman.FindConfig{URI: "unix://" + socket, Start: true, SocketPath: socket, Log: world.log})
	if err != nil {
		return fail(err)
	}
	if world.client, err = podman.Connect(ctx, uri); err != nil {
		return fail(err)
	}
	image, err := busybox()
	if err != nil {
		return fail(err)
	}
	if err := world.client.ImageImport(ctx, box, bytes.NewReader(image), nil); err != nil {
		return fail(err)
	}
	return m.Run()
}

// busybox is a root file system with little in it, a user's directories as the
// agent image has them, and more files of this machine.
func busybox(more ...string) ([]byte, error) {
	path, err := exec.LookPath("busybox")
	if err != nil {
		return nil, fmt.Errorf("%w: run .ci/install (Debian's busybox-static)", err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, d := range []string{"bin", "etc", "tmp", "home", "home/agent", "workspace", "run", "run/devaipod", ".devaipod"} {
		h := &tar.Header{Typeflag: tar.TypeDir, Name: d + "/", Mode: 0o755}
		if slices.Contains([]string{"home/agent", "workspace", "run/devaipod"}, d) {
			h.Uid, h.Gid = 1000, 1000
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
	}
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "bin/busybox", Mode: 0o755, Size: int64(len(data))}); err != nil {
		return nil, err
	}
	if _, err := w.Write(data); err != nil {
		return nil, err
	}
	for _, applet := range []string{"sh", "cat", "ls", "sleep", "tail", "grep", "id", "touch", "mkdir", "mkfifo", "env", "seq"} {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + applet, Linkname: "busybox"}); err != nil {
			return nil, err
		}
	}
	for _, path := range more {
		if err := addFile(w, path); err != nil {
			return nil, err
		}
	}
	return buf.Bytes(), w.Close()
}

// addFile puts a file of this machine into an image, at the same path.
func addFile(w *tar.Writer, path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	h := &tar.Header{Typeflag: tar.TypeReg, Name: strings.TrimPrefix(path, "/"), Mode: int64(info.Mode().Perm()), Size: int64(len(data))}
	if err := w.WriteHeader(h); err != nil {
		return err
	}
	_, err = w.Write(data)
	return err
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// names lists all containers, pods, volumes, networks and secrets.
func names(t *testing.T) string {
	t.Helper()
	var all []string
	for _, args := range [][]string{
		{"ps", "--all", "--format", "container {{.Names}}"}, {"pod", "ps", "--format", "pod {{.Name}}"},
		{"volume", "ls", "--format", "volume {{.Name}}"}, {"network", "ls", "--format", "network {{.Name}}"},
		{"secret", "ls", "--format", "secret {{.Name}}"},
	} {
		out, err := world.Podman(t.Context(), args...)
		must(t, err)
		all = append(all, strings.Split(strings.TrimSpace(out), "\n")...)
	}
	slices.Sort(all)
	return strings.TrimSpace(strings.Join(all, "\n"))
}

func TestRemovingByLabelsTakesOnlyWhatCarriesThemAll(t *testing.T) {
	ctx, c := t.Context(), world.client
	before := names(t)
	for _, name := range []string{"one", "two"} {
		labels := map[string]string{"devaipod.instance": "x", "devaipod.pod": name}
		_, err := c.EnsureVolume(ctx, "v-"+name, labels)
		must(t, err)
		_, err = c.EnsureNetwork(ctx, "n-"+name, "dvtest-"+name, labels)
		must(t, err)
		_, err = c.EnsurePod(ctx, podman.PodSpec{Name: "p-" + name, Labels: labels})
		must(t, err)
		_, err = c.EnsureContainer(ctx, podman.Container{
			Name: "c-" + name, Pod: "p-" + name, Image: box, Command: []string{"sleep", "1000"}, Labels: labels, Network: "none",
			Mounts: []podman.Mount{{Kind: podman.Volume, Source: "v-" + name, Target: "/workspace"}},
		})
		must(t, err)
		must(t, c.StartContainer(ctx, "c-"+name))
	}
	must(t, c.RemoveByLabels(ctx, map[string]string{"devaipod.instance": "x", "devaipod.pod": "one"}))
	after := names(t)
	for _, kind := range []string{"container c-", "pod p-", "volume v-", "network n-"} {
		if strings.Contains(after, kind+"one") || !strings.Contains(after, kind+"two") {
			t.Errorf("%s: not only one is gone:\n%s", kind, after)
		}
	}
	if st, err := c.State(ctx, "c-two"); err != nil || !st.Running {
		t.Errorf("the other container: %+v, %v", st, err)
	}
	if err := c.RemoveByLabels(ctx, nil); err == nil {
		t.Error("removing by no labels at all was done")
	}
	must(t, c.RemoveByLabels(ctx, map[string]string{"devaipod.instance": "x"}))
	if after := names(t); after != before {
		t.Errorf("left:\n%s\nbefore:\n%s", after, before)
	}
}

func TestAContainerIsMadeAnewOnlyWhenItsSpecificationChanged(t *testing.T) {
	ctx, c := t.Context(), world.client
	spec := podman.Container{Name: "spec", Image: box, Command: []string{"sleep", "1000"}, Network: "none", Env: map[string]string{"A": "1", "B": "2"}}
	t.Cleanup(func() { must(t, c.RemoveContainer(context.Background(), "spec")) })
	for i, want := range []bool{true, false, true, false} {
		if i == 2 {
			spec.Env["A"] = "3"
		}
		created, err := c.EnsureContainer(ctx, spec)
		if err != nil || created != want {
			t.Errorf("time %d: made %v, want %v (%v)", i+1, created, want, err)
		}
		must(t, c.StartContainer(ctx, "spec"))
	}
	var out bytes.Buffer
	code, err := c.Exec(ctx, "spec", "", []string{"sh", "-c", "cat; echo $A; exit 3"}, strings.NewReader("in\n"), &out, os.Stderr)
	if err != nil || code != 3 || out.String() != "in\n3\n" {
		t.Errorf("exec: code %d, out %q, err %v", code, out.String(), err)
	}
	spec.Name, spec.Image = "none", "localhost/nowhere:1"
	if _, err := c.EnsureContainer(ctx, spec); err == nil || !strings.Contains(err.Error(), "localhost/nowhere:1") {
		t.Errorf("a missing image: %v", err)
	}
}

// One that was made before its interface had a name of ours, say.
func TestANetworkWithAnotherInterfaceIsMadeAnew(t *testing.T) {
	ctx, c := t.Context(), world.client
	before := names(t)
	labels := map[string]string{"devaipod.instance": "net"}
	for i, tt := range []struct {
		bridge string
		made   bool
	}{{"dvtest-a", true}, {"dvtest-a", false}, {"dvtest-b", true}} {
		made, err := c.EnsureNetwork(ctx, "n-anew", tt.bridge, labels)
		if err != nil || made != tt.made {
			t.Fatalf("time %d: made %v, want %v (%v)", i+1, made, tt.made, err)
		}
		bridges, err := c.Bridges(ctx)
		if err != nil || !slices.Contains(bridges, tt.bridge) || len(bridges) < 2 {
			t.Errorf("time %d: bridges %v, %v", i+1, bridges, err)
		}
		_, err = c.EnsureContainer(ctx, podman.Container{Name: "c-anew", Image: box, Command: []string{"sleep", "1000"}, Labels: labels, Network: "n-anew"})
		must(t, err)
		must(t, c.StartContainer(ctx, "c-anew"))
	}
	must(t, c.RemoveByLabels(ctx, labels))
	if after := names(t); after != before {
		t.Errorf("left:\n%s\nbefore:\n%s", after, before)
	}
}

// podManager makes a manager of an instance, and the tools image of the pod
// binary.
func podManager(t testing.TB, instance string) (*pods.Manager, string) {
	t.Helper()
	state := filepath.Join(world.Dir, instance)
	must(t, os.MkdirAll(state, 0o700))
	m, err := pods.New(pods.Config{Instance: instance, StateDir: state, Backend: podman.NewPods(world.client, instance, world.log), Images: world.client, Log: world.log,
		Nested: func(k pods.Key) bool { return k.Repo == "nested" },
		Policy: func(pods.Key) (podfile.Policy, error) { return podfile.Policy{Key: "the-key"}, nil }})
	must(t, err)
	binary := filepath.Join(world.Dir, "devaipod-pod")
	if _, err := os.Stat(binary); err != nil {
		cmd := exec.Command("go", "build", "-trimpath", "-o", binary, "codeberg.org/devaipod/devaipod/cmd/devaipod-pod")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("building devaipod-pod: %v\n%s", err, out)
		}
	}
	tools, err := m.EnsureTools(t.Context(), binary)
	must(t, err)
	return m, tools
}

func spec(tools string, k pods.Key) pods.Spec {
	return pods.Spec{
		Key: k, Branch: "agent/3-x", Base: "main", AgentImage: box, ToolsImage: tools, MemoryBytes: 256 << 20,
		Task:  podfile.Task{Key: "task", Prompt: "do it"},
		Model: podfile.Model{API: podfile.APIOpenAI, Name: "m", BaseURL: "http://127.0.0.1:1/v1", ViaService: true},
		Pin:   pods.Pin{EventID: 7, Labeler: "ann", At: time.Unix(1700000000, 0).UTC(), TextHash: "h"}, GitName: "bot", GitEmail: "bot@example.org",
	}
}

func find(t *testing.T, m *pods.Manager, k pods.Key) (pods.Pod, bool) {
	t.Helper()
	all, err := m.List(t.Context())
	must(t, err)
	for _, p := range all {
		if p.Key == k {
			return p, true
		}
	}
	return pods.Pod{}, false
}

func TestThePodsLife(t *testing.T) {
	ctx := t.Context()
	m, tools := podManager(t, "life")
	other, _ := podManager(t, "lifeother")
	before := names(t)
	k := pods.Key{Owner: "ann", Repo: "Hello.World", Issue: 3}
	s := spec(tools, k)
	if _, err := other.Ensure(ctx, spec(tools, k)); err != nil {
		t.Fatal(err)
	}
	withOther := names(t)

	for i, want := range []bool{true, false} {
		if changed, err := m.Ensure(ctx, s); err != nil || changed != want {
			t.Fatalf("time %d: changed %v, want %v (%v)", i+1, changed, want, err)
		}
	}
	p, ok := find(t, m, k)
	if !ok || p.Pin != s.Pin || p.Branch != s.Branch || p.Base != "main" || !p.Agent.Running || !p.Control.Running || !p.Workspace.Running {
		t.Fatalf("found %v: %+v", ok, p)
	}
	checkBoxes(t, p.Name)

	// Killed parts come back; so does what somebody removed by hand.
	_, err := world.Podman(ctx, "kill", p.Name+"-agent")
	must(t, err)
	_, err = world.Podman(ctx, "rm", "--force", "--time", "0", p.Name+"-workspace")
	must(t, err)
	must(t, m.Resume(ctx, k))
	if p, _ = find(t, m, k); !p.Agent.Running || !p.Workspace.Running {
		t.Errorf("after resume: %+v", p)
	}

	// Another label event: containers anew, volumes kept.
	touch(t, p.Name+"-agent", "/workspace/kept")
	s.Pin.EventID = 8
	if changed, err := m.Ensure(ctx, s); err != nil || !changed {
		t.Errorf("a new event: changed %v, %v", changed, err)
	}
	if p, _ = find(t, m, k); p.Pin.EventID != 8 {
		t.Errorf("after a new event: %+v", p.Pin)
	}
	_, err = world.Podman(ctx, "exec", p.Name+"-agent", "ls", "/workspace/kept")
	must(t, err)

	must(t, m.Stop(ctx, k))
	must(t, m.Stop(ctx, k))
	if p, _ = find(t, m, k); p.Agent.Running || p.Control.Running || !p.Agent.Exited {
		t.Errorf("after stop: %+v", p)
	}
	must(t, m.Remove(ctx, k))
	must(t, m.Remove(ctx, k))
	if after := names(t); after != withOther {
		t.Errorf("left:\n%s\nwant:\n%s", after, withOther)
	}
	if _, err := os.Stat(m.RunDir(k)); !os.IsNotExist(err) {
		t.Errorf("the run directory: %v", err)
	}
	must(t, other.RemoveAll(ctx))
	if after := names(t); after != before {
		t.Errorf("left:\n%s\nwant:\n%s", after, before)
	}
}

// An upgrade reaches the gates of pods that are at work, and nothing else of them.
func TestGatesAreRenewedUnderRunningAgents(t *testing.T) {
	ctx := t.Context()
	m, tools := podManager(t, "renew")
	before := names(t)
	k, stopped := pods.Key{Owner: "ann", Repo: "hello", Issue: 5}, pods.Key{Owner: "ann", Repo: "hello", Issue: 6}
	for _, k := range []pods.Key{k, stopped} {
		_, err := m.Ensure(ctx, spec(tools, k))
		must(t, err)
	}
	must(t, m.Stop(ctx, stopped))
	ids := func(k pods.Key) map[string]string {
		all := map[string]string{}
		for _, role := range []string{pods.RoleControl, pods.RoleAgent, pods.RoleWorkspace, pods.RoleSaver} {
			out, err := world.Podman(ctx, "inspect", "--format", "{{.Id}} {{.State.StartedAt}} {{.ImageName}}", m.Name(k)+"-"+role)
			must(t, err)
			all[role] = out
		}
		return all
	}
	was, wasStopped := ids(k), ids(stopped)
	must(t, m.RenewGates(ctx))
	if now := ids(k); !maps.Equal(now, was) {
		t.Errorf("without an upgrade: %v, was %v", now, was)
	}
	// Another build.
	program, err := os.ReadFile(filepath.Join(world.Dir, "devaipod-pod"))
	must(t, err)
	upgraded := filepath.Join(t.TempDir(), "devaipod-pod")
	must(t, os.WriteFile(upgraded, append(program, "upgraded"...), 0o755))
	next, err := m.EnsureTools(ctx, upgraded)
	must(t, err)
	must(t, m.RenewGates(ctx))
	now := ids(k)
	if now[pods.RoleControl] == was[pods.RoleControl] || !strings.Contains(now[pods.RoleControl], next) {
		t.Errorf("the gate is %s, was %s, want one of %s", now[pods.RoleControl], was[pods.RoleControl], next)
	}
	if p, _ := find(t, m, k); !p.Control.Running || !p.Agent.Running {
		t.Errorf("%+v", p)
	}
	for _, again := range []func() error{func() error { return m.RenewGates(ctx) }, func() error { return m.Resume(ctx, k) }} {
		must(t, again())
		if then := ids(k); !maps.Equal(then, now) {
			t.Errorf("once more: %v, was %v", then, now)
		}
	}
	delete(was, pods.RoleControl)
	if delete(now, pods.RoleControl); !maps.Equal(now, was) {
		t.Errorf("the others: %v, were %v", now, was)
	}
	if now := ids(stopped); !maps.Equal(now, wasStopped) {
		t.Errorf("a stopped pod: %v, was %v", now, wasStopped)
	}
	must(t, m.RemoveAll(ctx))
	if after := names(t); after != before {
		t.Errorf("left:\n%s\nwant:\n%s", after, before)
	}
}

// Who removes a pod's volumes by hand may do so just before its containers are
// made: podman makes the volumes by itself then, for whoever comes first.
func TestVolumesThatPodmanMadeByItself(t *testing.T) {
	ctx := t.Context()
	m, tools := podManager(t, "strays")
	before := names(t)
	k := pods.Key{Owner: "ann", Repo: "hello", Issue: 4}
	name := m.Name(k)
	for _, v := range []string{"workspace-sock", "agent-workspace"} {
		// As the user of agent and workspace, whom control can't take it from.
		_, err := world.Podman(ctx, "run", "--rm", "--user", "1000:1000", "--volume", name+"-"+v+":/v", "--entrypoint", "sh", box, "-c", "echo work >/v/file")
		must(t, err)
	}
	for range 2 {
		_, err := m.Ensure(ctx, spec(tools, k))
		must(t, err)
	}
	if p, _ := find(t, m, k); !p.Control.Running || !p.Agent.Running || !p.Workspace.Running {
		t.Errorf("%+v", p)
	}
	if out, err := world.Podman(ctx, "exec", name+"-agent", "cat", "/workspace/file"); err != nil || strings.TrimSpace(out) != "work" {
		t.Errorf("%q %v", out, err)
	}
	if out, err := world.Podman(ctx, "exec", name+"-workspace", "ls", podfile.SocketDir); err != nil || strings.Contains(out, "file") {
		t.Errorf("%q %v", out, err)
	}
	must(t, m.Remove(ctx, k))
	if after := names(t); after != before {
		t.Errorf("left:\n%s\nwant:\n%s", after, before)
	}
}

// checkBoxes looks at a pod's containers from the inside and by podman: no
// network, no privileges, no key but in control.
func checkBoxes(t *testing.T, name string) {
	t.Helper()
	for _, role := range []string{"agent", "workspace"} {
		c := name + "-" + role
		out, err := world.Podman(t.Context(), "exec", c, "sh", "-c", "cat /proc/net/dev; grep -E '^(Cap|NoNewPrivs)' /proc/1/status; id; ls /run/secrets 2>&1; cat /proc/1/environ")
		must(t, err)
		if strings.Count(out, ":") > 0 && (!strings.Contains(out, "lo:") || strings.Contains(out, "eth")) {
			t.Errorf("%s has a network:\n%s", c, out)
		}
		for _, want := range []string{"CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "uid=1000"} {
			if !strings.Contains(out, want) {
				t.Errorf("%s: no %q in\n%s", c, want, out)
			}
		}
		if strings.Contains(out, "model-key") || strings.Contains(out, "the-key") {
			t.Errorf("%s sees the model's key:\n%s", c, out)
		}
	}
	out, err := world.Podman(t.Context(), "inspect", name+"-agent", name+"-workspace", name+"-control")
	must(t, err)
	if strings.Contains(out, "the-key") {
		t.Error("the model's key shows in podman inspect")
	}
	if !strings.Contains(out, fmt.Sprint(256<<20)) {
		t.Error("the agent has no memory limit")
	}
	var key bytes.Buffer
	if _, err := world.client.Exec(t.Context(), name+"-control", "", []string{"/devaipod-pod", "version"}, nil, &key, os.Stderr); err != nil || !strings.HasPrefix(key.String(), "devaipod-pod") {
		t.Errorf("control's binary: %q, %v", key.String(), err)
	}
}

func touch(t *testing.T, container, path string) {
	t.Helper()
	_, err := world.Podman(t.Context(), "exec", container, "touch", path)
	must(t, err)
}

// Two worlds whose default networks had one name would flush each other's chains
// of the firewall, and published ports would go dead.
func TestWorldsShareNoNetwork(t *testing.T) {
	other, err := testkit.NewWorld(filepath.Join(t.TempDir(), "w"))
	must(t, err)
	t.Cleanup(func() { must(t, other.Remove(context.WithoutCancel(t.Context()))) })
	var names []string
	for _, w := range []*testkit.World{world.World, other} {
		out, err := w.Podman(t.Context(), "network", "ls", "--format", "{{.Name}}")
		must(t, err)
		names = append(names, strings.TrimSpace(out))
	}
	if !strings.HasPrefix(names[1], "podman") || names[1] == "podman" || strings.Contains(names[0], names[1]) {
		t.Errorf("networks %q", names)
	}
}
