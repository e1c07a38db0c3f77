package testkit_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/pods"
	"codeberg.org/devaipod/devaipod/pods/podfile"
	"codeberg.org/devaipod/devaipod/pods/podman"
)

var errKilled = errors.New("killed")

// kills ends what runs before each change that it makes, once at each.
type kills struct {
	at   map[string]bool
	last string
}

func (k *kills) point(p string) {
	if k.last = p; !k.at[p] {
		k.at[p] = true
		panic(errKilled)
	}
}

// survive does something until it comes to its end, with a new manager each time,
// which begins as the service does. It tells how often it was killed.
func (k *kills) survive(t *testing.T, instance string, do func(*pods.Manager) error) (n int) {
	t.Helper()
	once := func() (killed bool) {
		defer func() {
			if r := recover(); r != nil {
				if killed = r == errKilled; !killed { //nolint:errorlint // the very one
					panic(r)
				}
			}
		}()
		m, err := pods.New(pods.Config{Instance: instance, StateDir: filepath.Join(world.Dir, instance), Backend: podman.NewPods(world.client.WithFault(k.point), instance, world.log), Images: world.client, Fault: k.point, Log: world.log,
			Policy: func(pods.Key) (podfile.Policy, error) { return podfile.Policy{Key: "the-key"}, nil }})
		must(t, err)
		must(t, m.Sweep())
		_, err = m.Collect(t.Context(), pods.Limits{})
		must(t, err)
		must(t, do(m))
		return false
	}
	for once() {
		n++
	}
	return n
}

// A service that is killed at every step of a pod's life leaves no orphan and makes
// nothing twice, and what it collects in between is what has no owner alone.
func TestKilledAtEveryStepOfAPodsLife(t *testing.T) {
	ctx := t.Context()
	m, tools := podManager(t, "kills")
	other, otherTools := podManager(t, "killsother")
	k := pods.Key{Owner: "ann", Repo: "hello", Issue: 3}
	before := names(t)
	_, err := other.Ensure(ctx, spec(otherTools, k))
	must(t, err)
	must(t, other.Stop(ctx, k))
	// Somebody's own, with names like ours and without our label.
	_, err = world.Podman(ctx, "volume", "create", m.Name(k)+"x-agent-workspace")
	must(t, err)
	_, err = world.Podman(ctx, "create", "--name", m.Name(k)+"x-agent", box, "sleep", "1")
	must(t, err)
	around := names(t)
	_, err = m.Ensure(ctx, spec(tools, k))
	must(t, err)
	whole := names(t)
	must(t, m.Remove(ctx, k))

	running := func(want bool) {
		t.Helper()
		if p, _ := find(t, m, k); p.Agent.Running != want || p.Control.Running != want || p.Workspace.Running != want || p.Saver.Running != want {
			t.Errorf("running: want %v, found %+v", want, p)
		}
	}
	is := func(what, want string) {
		t.Helper()
		if got := names(t); got != want {
			t.Errorf("after %s there is\n%s\nwant\n%s", what, got, want)
		}
	}
	dead := &kills{at: map[string]bool{}}
	for _, step := range []struct {
		name  string
		do    func(*pods.Manager) error
		after string
		runs  bool
		least int // kills
	}{
		{"create", func(m *pods.Manager) error { _, err := m.Ensure(ctx, spec(tools, k)); return err }, whole, true, 20},
		{"sleep", func(m *pods.Manager) error { return m.Stop(ctx, k) }, whole, false, 4},
		{"wake", func(m *pods.Manager) error { return m.Resume(ctx, k) }, whole, true, 4},
		{"create for another label", func(m *pods.Manager) error {
			s := spec(tools, k)
			s.Pin.EventID = 9
			_, err := m.Ensure(ctx, s)
			return err
		}, whole, true, 8},
		{"remove", func(m *pods.Manager) error { return m.Remove(ctx, k) }, around, false, 10},
	} {
		clear(dead.at)
		n := dead.survive(t, "kills", step.do)
		t.Logf("%s: killed %d times", step.name, n)
		if is(step.name, step.after); n < step.least {
			t.Errorf("%s: killed %d times, want %d or more", step.name, n, step.least)
		}
		running(step.runs)
	}
	if left, err := filepath.Glob(filepath.Join(world.Dir, "kills", "p", "*")); err != nil || len(left) != 0 {
		t.Errorf("run directories: %v, %v", left, err)
	}

	// One that was begun to be removed is removed, though nobody asks again.
	_, err = m.Ensure(ctx, spec(tools, k))
	must(t, err)
	clear(dead.at)
	for _, stop := range []string{"remove pod", "remove network"} {
		cut := &kills{at: map[string]bool{}}
		func() {
			defer func() { _ = recover() }()
			fault := func(p string) {
				if strings.Contains(p, stop) {
					cut.point(p)
				}
			}
			part, err := pods.New(pods.Config{Instance: "kills", StateDir: filepath.Join(world.Dir, "kills"), Backend: podman.NewPods(world.client.WithFault(fault), "kills", world.log), Images: world.client, Log: world.log})
			must(t, err)
			must(t, part.Remove(ctx, k))
		}()
		if len(cut.at) != 1 {
			t.Fatalf("not killed at %s", stop)
		}
	}
	did, err := m.Collect(ctx, pods.Limits{})
	if must(t, err); !slices.Contains(did.Removed, "the rest of the pod of ann/hello#3") {
		t.Errorf("collected %+v", did)
	}
	is("a removal that was cut short", around)

	_, err = world.Podman(ctx, "rm", m.Name(k)+"x-agent")
	must(t, err)
	_, err = world.Podman(ctx, "volume", "rm", m.Name(k)+"x-agent-workspace")
	must(t, err)
	must(t, other.RemoveAll(ctx))
	is("all", before)
}

// What has no owner goes, unless it may hold work or is another's.
func TestWhatHasNoOwner(t *testing.T) {
	ctx, c := t.Context(), world.client
	m, tools := podManager(t, "strayed")
	before := names(t)
	owned, gone, worked := pods.Key{Owner: "ann", Repo: "hello", Issue: 1}, pods.Key{Owner: "ann", Repo: "hello", Issue: 2}, pods.Key{Owner: "ann", Repo: "hello", Issue: 3}
	_, err := m.Ensure(ctx, spec(tools, owned))
	must(t, err)
	must(t, m.Stop(ctx, owned))
	whole := names(t)
	make2 := func(instance string, k pods.Key, volume, bridge string) {
		name := pods.Name(instance, k)
		labels := map[string]string{"devaipod.instance": instance, "devaipod.pod": name, "devaipod.repo": k.Owner + "/" + k.Repo, "devaipod.issue": fmt.Sprint(k.Issue)}
		_, err := c.EnsureVolume(ctx, name+"-"+volume, labels)
		must(t, err)
		_, err = c.EnsureNetwork(ctx, name+"-egress", bridge, labels)
		must(t, err)
		_, err = c.EnsurePod(ctx, podman.PodSpec{Name: name, Labels: labels})
		must(t, err)
	}
	make2("strayedx", gone, "agent-sock", "dvtest-x")
	make2("strayed", worked, "agent-workspace", "dvtest-w")
	kept := names(t)
	make2("strayed", gone, "agent-sock", "dvtest-g")
	once := podman.Container{Name: m.Name(owned) + "-saver-once", Image: box, Command: []string{"sleep", "1000"}, Network: "none", Labels: map[string]string{
		"devaipod.instance": "strayed", "devaipod.pod": m.Name(owned), "devaipod.role": "saver-once", "devaipod.repo": "ann/hello", "devaipod.issue": "1"}}
	_, err = c.EnsureContainer(ctx, once)
	must(t, err)
	must(t, c.StartContainer(ctx, once.Name))
	run := filepath.Join(world.Dir, "strayed", "p")
	for dir, age := range map[string]time.Duration{"00000000": 2 * time.Hour, "11111111": 0} {
		must(t, os.Mkdir(filepath.Join(run, dir), 0o700))
		when := time.Now().Add(-age)
		must(t, os.Chtimes(filepath.Join(run, dir), when, when))
	}

	all := names(t)
	dry, err := m.Collect(ctx, pods.Limits{Dry: true})
	if must(t, err); len(dry.Removed) != 3 || names(t) != all {
		t.Errorf("dry: %+v", dry)
	}
	did, err := m.Collect(ctx, pods.Limits{})
	must(t, err)
	if got := names(t); got != kept {
		t.Errorf("left\n%s\nwant\n%s", got, kept)
	}
	if len(did.Removed) != 3 || len(did.Kept) != 1 || !strings.Contains(did.Kept[0], "devaipod rm ann/hello#3") {
		t.Errorf("collected %+v", did)
	}
	left, err := os.ReadDir(run)
	if must(t, err); len(left) != 2 { // the pod's and the new one
		t.Errorf("run directories %v", left)
	}
	if again, err := m.Collect(ctx, pods.Limits{}); err != nil || len(again.Removed) != 0 {
		t.Errorf("collected again %+v, %v", again, err)
	}
	must(t, m.Remove(ctx, worked))
	must(t, c.RemoveByLabels(ctx, map[string]string{"devaipod.instance": "strayedx"}))
	if got := names(t); got != whole {
		t.Errorf("left\n%s\nwant\n%s", got, whole)
	}
	must(t, m.RemoveAll(ctx))
	if got := names(t); got != before {
		t.Errorf("left\n%s\nwant\n%s", got, before)
	}
}

// Images go by age, and earlier where the disk is full: those of this instance that
// nothing uses, and nobody has given a name to.
func TestImagesThatNothingUses(t *testing.T) {
	ctx, c := t.Context(), world.client
	used := 0.5
	state := filepath.Join(world.Dir, "imaged")
	must(t, os.MkdirAll(state, 0o700))
	first, tools := podManager(t, "imaged")
	asked := ""
	m, err := pods.New(pods.Config{Instance: "imaged", StateDir: state, Backend: podman.NewPods(c, "imaged", world.log), Images: c, Log: world.log, DiskUsed: func(dir string) (float64, error) {
		asked = dir
		used -= 0.1 // as images go
		return used + 0.1, nil
	}})
	must(t, err)
	n := 0
	image := func(instance, name string) {
		n++
		data, err := busybox()
		must(t, err)
		must(t, c.ImageImport(ctx, name, bytes.NewReader(data), []string{"LABEL devaipod.instance=" + instance, fmt.Sprint("LABEL n=", n)}))
	}
	for _, name := range []string{"a", "b", "c", "d"} {
		image("imaged", "localhost/imaged/built:"+name)
	}
	image("imaged2", "localhost/imaged2/built:a")
	image("imaged", "localhost/imaged/built:named")
	_, err = world.Podman(ctx, "tag", "localhost/imaged/built:named", "localhost/mine:latest")
	must(t, err)
	image("imaged", "localhost/imaged/built:slept")
	s := spec(tools, pods.Key{Owner: "ann", Repo: "hello", Issue: 1})
	s.AgentImage = "localhost/imaged/built:slept"
	_, err = first.Ensure(ctx, s)
	must(t, err)
	must(t, first.Stop(ctx, s.Key))
	_, err = world.Podman(ctx, "create", "--name", "uses", "localhost/imaged/built:d", "sleep", "1")
	must(t, err)
	t.Cleanup(func() {
		must(t, first.RemoveAll(context.WithoutCancel(ctx)))
		_, err := world.Podman(context.WithoutCancel(ctx), "rm", "uses")
		must(t, err)
	})

	has := func() (out []string) {
		all, err := world.Podman(ctx, "images", "--format", "{{.Repository}}:{{.Tag}}")
		must(t, err)
		for _, line := range strings.Fields(all) {
			if strings.Contains(line, "imaged") || strings.Contains(line, "mine") {
				out = append(out, line)
			}
		}
		slices.Sort(out)
		return out
	}
	all := has()
	_, err = m.Collect(ctx, pods.Limits{ImageAge: time.Hour, Watermark: 0.9})
	if must(t, err); !slices.Equal(has(), all) {
		t.Errorf("young ones with room on the disk went: %v", has())
	}
	used = 1
	did, err := m.Collect(ctx, pods.Limits{ImageAge: time.Hour, Watermark: 0.85})
	if must(t, err); len(did.Removed) != 2 || len(has()) != len(all)-2 || !strings.HasPrefix(asked, "/") {
		t.Errorf("with a full disk: %+v, left %v, asked of %q", did, has(), asked)
	}
	used = 0.5
	_, err = m.Collect(ctx, pods.Limits{ImageAge: time.Nanosecond})
	must(t, err)
	want := []string{"localhost/imaged/built:d", "localhost/imaged/built:named", "localhost/imaged/built:slept", "localhost/imaged2/built:a", "localhost/mine:latest", tools}
	slices.Sort(want)
	if got := has(); !slices.Equal(got, want) {
		t.Errorf("old ones:\n%v, want\n%v", got, want)
	}
}

// An agent that does not end when it is told to keeps nobody waiting for long.
func TestAnAgentThatIgnoresSIGTERM(t *testing.T) {
	ctx := t.Context()
	m, tools := podManager(t, "deaf")
	before := names(t)
	k := pods.Key{Owner: "ann", Repo: "hello", Issue: 1}
	s := spec(tools, k)
	s.AgentCommand = []string{"sh", "-c", "trap '' TERM INT HUP; while :; do sleep 1; done"}
	_, err := m.Ensure(ctx, s)
	must(t, err)
	for _, role := range []string{"agent", "workspace"} {
		_, err = world.Podman(ctx, "exec", "--detach", m.Name(k)+"-"+role, "sh", "-c", "trap '' TERM INT HUP; touch /workspace/deaf; while :; do sleep 1; done")
		must(t, err)
		for {
			if _, err := world.Podman(ctx, "exec", m.Name(k)+"-"+role, "ls", "/workspace/deaf"); err == nil {
				break
			}
			must(t, ctx.Err())
		}
	}
	start := time.Now()
	must(t, m.Stop(ctx, k))
	t.Logf("stopped in %s", time.Since(start))
	must(t, m.Remove(ctx, k))
	if took := time.Since(start); took > 8*time.Second {
		t.Errorf("stopped and removed after %s", took)
	} else {
		t.Logf("removed after %s", took)
	}
	// Also while it runs.
	_, err = m.Ensure(ctx, s)
	must(t, err)
	start = time.Now()
	must(t, m.Remove(ctx, k))
	if took := time.Since(start); took > 8*time.Second {
		t.Errorf("removed after %s", took)
	}
	if got := names(t); got != before {
		t.Errorf("left\n%s\nwant\n%s", got, before)
	}
}
