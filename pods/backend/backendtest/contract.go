// Package backendtest has the tests that every [backend.Backend] must pass.
package backendtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/pods/backend"
)

// A World is a backend to be tested, with nothing of others in it.
type World struct {
	backend.Backend
	// Image has sh, cat, sleep, env, id, ls and touch in its path.
	Image string
	// Before gives the same backend, which calls f with a number, from 1, before each
	// step that changes something.
	Before func(f func(step int)) backend.Backend
	// Stray makes a volume of that name without any labels.
	Stray func(ctx context.Context, volume string) error
	// Lose removes what is behind a volume, and leaves its name.
	Lose func(ctx context.Context, volume string) error
	// Names lists all that there is, whoever made it.
	Names func(ctx context.Context) ([]string, error)
}

// Run runs the tests.
func (w World) Run(t *testing.T) {
	for _, tt := range []struct {
		name string
		f    func(w World, t *testing.T)
	}{
		{"EnsureMakesWhatIsMissingAndNothingElse", World.ensures},
		{"AContainerThatDiffersIsMadeAnew", World.differs},
		{"WhatAContainerIsGiven", World.gives},
		{"StopEndsInOrderAndKillsWhatStays", World.stops},
		{"RemoveLeavesNothingAndTouchesNobodyElse", World.removes},
		{"WhatIsNotThereIsNoError", World.absent},
		{"AVolumeOfSocketsThatIsNotOursIsMadeAnew", World.strays},
		{"AVolumeWithNothingBehindIsMadeAnew", World.lost},
		{"EveryStepMayBeTheLast", World.interrupted},
		{"RunToTheEnd", World.runs},
		{"LogsFollow", World.logs},
		{"ManyAtOnce", World.many},
		{"AMissingImageIsNamed", World.imageless},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := w.names(t)
			tt.f(w, t)
			if after := w.names(t); !slices.Equal(after, before) {
				t.Errorf("left:\n%s\nbefore:\n%s", strings.Join(after, "\n"), strings.Join(before, "\n"))
			}
		})
	}
}

func (w World) names(t *testing.T) []string {
	t.Helper()
	all, err := w.Names(t.Context())
	must(t, err)
	slices.Sort(all)
	return all
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// waits is a command that ends when it is asked to, and says so in the volume.
const waits = `trap 'echo "$NAME" >>/v/ended; exit 0' TERM; echo up; while :; do sleep 0.05; done`

// pod is one of two containers, "a" with a network and "b" without, and a volume
// that both have.
func (w World) pod(name string) backend.Pod {
	p := backend.Pod{
		Name: name, Labels: map[string]string{"devaipod.instance": "contract", "devaipod.pod": name},
		Volumes: []backend.Volume{{Name: name + "-v", Labels: map[string]string{"kept": "yes"}}, {Name: name + "-sock", Sockets: true}},
	}
	for _, role := range []string{"a", "b"} {
		p.Containers = append(p.Containers, w.container(p, role, waits))
	}
	p.Containers[0].Network = backend.Egress
	return p
}

func (w World) container(p backend.Pod, role, script string) backend.Container {
	labels := maps.Clone(p.Labels)
	labels["devaipod.role"] = role
	return backend.Container{
		Name: p.Name + "-" + role, Image: w.Image, Entrypoint: []string{"sh", "-c"}, Command: []string{script}, Env: map[string]string{"NAME": role},
		Labels: labels, Network: backend.NoNetwork, StopTimeout: time.Second, DropCaps: true, NoNewPrivs: true,
		Mounts: []backend.Mount{{Kind: backend.VolumeMount, Source: p.Name + "-v", Target: "/v"}, {Kind: backend.VolumeMount, Source: p.Name + "-sock", Target: "/sock"}},
	}
}

func (w World) remove(t *testing.T, p backend.Pod) {
	t.Helper()
	must(t, w.Remove(t.Context(), remains(p)))
}

func remains(p backend.Pod) backend.Remains {
	r := backend.Remains{Labels: p.Labels}
	for _, v := range p.Volumes {
		r.Volumes = append(r.Volumes, v.Name)
	}
	return r
}

// see runs a script that sees the pod's volume, and returns what it prints.
func (w World) see(t *testing.T, p backend.Pod, script string) string {
	t.Helper()
	out, err := w.Backend.Run(t.Context(), backend.Pod{Name: p.Name, Labels: p.Labels, Volumes: p.Volumes[:1]}, w.looker(p, script))
	must(t, err)
	return strings.TrimSpace(string(out))
}

func (w World) looker(p backend.Pod, script string) backend.Container {
	c := w.container(p, "once", script)
	c.Mounts = c.Mounts[:1]
	return c
}

// whole looks that the pod is there, all of it runs, and carries its labels.
func (w World) whole(t *testing.T, p backend.Pod) {
	t.Helper()
	found, err := w.Find(t.Context(), p.Labels)
	must(t, err)
	var names []string
	for _, f := range found {
		names = append(names, f.Name)
		if !f.Exists || f.Volume == f.Running {
			t.Errorf("%s: %+v", f.Name, f)
		}
		if f.Volume && strings.HasSuffix(f.Name, "-v") && f.Labels["kept"] != "yes" {
			t.Errorf("%s has not its own label: %v", f.Name, f.Labels)
		}
	}
	slices.Sort(names)
	if want := []string{p.Name + "-a", p.Name + "-b", p.Name + "-sock", p.Name + "-v"}; !slices.Equal(names, want) {
		t.Errorf("there are %v, want %v", names, want)
	}
}

func (w World) state(t *testing.T, container string) backend.State {
	t.Helper()
	st, err := w.State(t.Context(), container)
	must(t, err)
	return st
}

func (w World) ensures(t *testing.T) {
	p := w.pod("ensures")
	for i, want := range []bool{true, false} {
		changed, err := w.Ensure(t.Context(), p)
		if err != nil || changed != want {
			t.Fatalf("time %d: changed %v, want %v (%v)", i+1, changed, want, err)
		}
		w.whole(t, p)
	}
	a, b := w.state(t, "ensures-a"), w.state(t, "ensures-b")
	if b.CreatedAt.Before(a.StartedAt) {
		t.Errorf("the second was made at %v, before the first was started at %v", b.CreatedAt, a.StartedAt)
	}
	// What was ended is started again, as it is.
	must(t, w.Stop(t.Context(), backend.Ending{Container: "ensures-a", Patience: time.Second}))
	if st := w.state(t, "ensures-a"); st.Running || !st.Exited || st.ExitCode != 0 {
		t.Errorf("after its end: %+v", st)
	}
	must(t, w.Start(t.Context(), "ensures-a"))
	must(t, w.Start(t.Context(), "ensures-a"))
	w.whole(t, p)
	if st := w.state(t, "ensures-a"); !st.CreatedAt.Equal(a.CreatedAt) {
		t.Error("to start it, it was made anew")
	}
	w.remove(t, p)
}

func (w World) differs(t *testing.T) {
	p := w.pod("differs")
	_, err := w.Ensure(t.Context(), p)
	must(t, err)
	w.see(t, p, "echo work >/v/work")
	b := w.state(t, "differs-b")
	p.Containers[0].Env["MORE"] = "x"
	changed, err := w.Ensure(t.Context(), p)
	if err != nil || !changed {
		t.Errorf("changed %v, %v", changed, err)
	}
	w.whole(t, p)
	if now := w.state(t, "differs-b"); !now.StartedAt.Equal(b.StartedAt) {
		t.Error("the one that is as it was has been started again")
	}
	if got := w.see(t, p, "cat /v/work"); got != "work" {
		t.Errorf("the volume has %q", got)
	}
	w.remove(t, p)
}

func (w World) gives(t *testing.T) {
	p := w.pod("gives")
	look := `id -u; pwd; echo "$A"; grep -E '^(CapEff|CapBnd|NoNewPrivs)' /proc/self/status; touch /v/x || echo "no touch"; for i in /sys/class/net/*; do echo "net ${i##*/}"; done; `
	for i := range p.Containers {
		c := &p.Containers[i]
		c.User, c.WorkDir, c.Env["A"] = "1000:1000", "/tmp", "1 2"
		c.Mounts[0].ReadOnly = true
		c.Command[0] = look + waits
	}
	_, err := w.Ensure(t.Context(), p)
	must(t, err)
	for _, name := range []string{"gives-a", "gives-b"} {
		out := w.log(t, name, "up")
		for _, want := range []string{"1000\n/tmp\n1 2\n", "CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "no touch", "net lo"} {
			if !strings.Contains(out, want) {
				t.Errorf("%s: no %q in\n%s", name, want, out)
			}
		}
		if others := strings.Count(out, "net ") - strings.Count(out, "net lo"); (others > 0) != (name == "gives-a") {
			t.Errorf("%s has %d other networks:\n%s", name, others, out)
		}
	}
	w.remove(t, p)
}

// log waits until a container has said a line.
func (w World) log(t *testing.T, container, line string) string {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	found := &until{line: line, found: cancel}
	ctx, stop := context.WithTimeout(ctx, time.Minute)
	defer stop()
	err := w.Logs(ctx, container, true, 0, found)
	if !found.done {
		t.Fatalf("%s has not said %q (%v):\n%s", container, line, err, &found.said)
	}
	return found.said.String()
}

// An until calls found once a line was written to it.
type until struct {
	said  bytes.Buffer
	line  string
	found func()
	done  bool
}

func (u *until) Write(b []byte) (int, error) {
	n, err := u.said.Write(b)
	if !u.done && strings.Contains("\n"+u.said.String(), "\n"+u.line+"\n") {
		u.done = true
		u.found()
	}
	return n, err
}

func (w World) stops(t *testing.T) {
	p := w.pod("stops")
	p.Containers = append(p.Containers, w.container(p, "deaf", `trap "" TERM; echo up; while :; do sleep 0.05; done`))
	_, err := w.Ensure(t.Context(), p)
	must(t, err)
	for _, c := range p.Containers {
		w.log(t, c.Name, "up")
	}
	all := []backend.Ending{{Container: "stops-b", Patience: 20 * time.Second}, {Container: "stops-deaf", Patience: time.Second}, {Container: "stops-a", Patience: 20 * time.Second}}
	for range 2 {
		must(t, w.Stop(t.Context(), all...))
	}
	for name, code := range map[string]int{"stops-a": 0, "stops-b": 0, "stops-deaf": 137} {
		if st := w.state(t, name); st.Running || !st.Exited || st.ExitCode != code {
			t.Errorf("%s: %+v, want code %d", name, st, code)
		}
	}
	if got := w.see(t, p, "cat /v/ended"); got != "b\na" {
		t.Errorf("in order of their ends: %q", got)
	}
	w.remove(t, p)
}

func (w World) removes(t *testing.T) {
	p, other := w.pod("removes"), w.pod("others")
	for i := range p.Containers {
		p.Containers[i].Command[0] = `trap "" TERM; while :; do sleep 0.05; done`
		p.Containers[i].StopTimeout = time.Hour // which nobody waits for
	}
	for _, q := range []backend.Pod{other, p} {
		_, err := w.Ensure(t.Context(), q)
		must(t, err)
	}
	for range 2 {
		w.remove(t, p)
		if found, err := w.Find(t.Context(), p.Labels); err != nil || len(found) > 0 {
			t.Errorf("left: %+v, %v", found, err)
		}
	}
	w.whole(t, other)
	w.remove(t, other)
}

func (w World) absent(t *testing.T) {
	p := w.pod("absent")
	w.remove(t, p)
	must(t, w.Stop(t.Context(), backend.Ending{Container: "absent-a", Patience: time.Second}))
	if st := w.state(t, "absent-a"); st.Exists || st.Running {
		t.Errorf("%+v", st)
	}
	if found, err := w.Find(t.Context(), p.Labels); err != nil || len(found) > 0 {
		t.Errorf("%+v, %v", found, err)
	}
	if err := w.Start(t.Context(), "absent-a"); err == nil || !strings.Contains(err.Error(), "absent-a") {
		t.Errorf("starting it: %v", err)
	}
}

func (w World) strays(t *testing.T) {
	p := w.pod("strays")
	for _, v := range p.Volumes {
		must(t, w.Stray(t.Context(), v.Name))
	}
	w.see(t, p, "echo work >/v/work")
	for range 2 {
		_, err := w.Ensure(t.Context(), p)
		must(t, err)
	}
	found, err := w.Find(t.Context(), p.Labels)
	must(t, err)
	if !slices.ContainsFunc(found, func(f backend.Thing) bool { return f.Name == "strays-sock" }) {
		t.Error("the volume of sockets is still not ours")
	}
	if got := w.see(t, p, "cat /v/work"); got != "work" {
		t.Errorf("the other one has %q", got)
	}
	w.remove(t, p) // by name, too
}

func (w World) lost(t *testing.T) {
	p := w.pod("lost")
	_, err := w.Ensure(t.Context(), p)
	must(t, err)
	must(t, w.Lose(t.Context(), "lost-v"))
	must(t, w.Stop(t.Context(), backend.Ending{Container: "lost-b", Patience: time.Second}))
	changed, err := w.Ensure(t.Context(), p)
	if err != nil || !changed {
		t.Errorf("changed %v, %v", changed, err)
	}
	w.whole(t, p)
	if got := w.see(t, p, "echo new >/v/new; cat /v/new"); got != "new" {
		t.Errorf("%q", got)
	}
	w.remove(t, p)
}

// interrupted ends the verbs at each of their steps, once by a context.
func (w World) interrupted(t *testing.T) {
	p := w.pod("steps")
	stopped := errors.New("stopped here")
	for last := 1; ; last++ {
		ctx, cancel := context.WithCancelCause(t.Context())
		steps := 0
		count := func(step int) {
			if steps = step; step == last {
				cancel(stopped)
			}
		}
		_, err := w.Before(count).Ensure(ctx, p)
		cancel(nil)
		if steps < last { // it was not
			must(t, err)
			break
		}
		_, err = w.Ensure(t.Context(), p)
		must(t, err)
		w.whole(t, p)
		ctx, cancel = context.WithCancelCause(t.Context())
		_ = w.Before(count).Remove(ctx, remains(p)) // however far it came
		cancel(nil)
		w.remove(t, p)
		if found, err := w.Find(t.Context(), p.Labels); err != nil || len(found) > 0 {
			t.Fatalf("stopped at step %d, left: %+v, %v", last, found, err)
		}
	}
	w.remove(t, p)
}

func (w World) runs(t *testing.T) {
	p := w.pod("runs")
	volumes := backend.Pod{Name: p.Name, Labels: p.Labels, Volumes: p.Volumes[:1]}
	out, err := w.Backend.Run(t.Context(), volumes, w.looker(p, "echo out; echo err >&2; echo kept >/v/kept; exit 3"))
	if got := string(out); err != nil || !strings.Contains(got, "out\n") || !strings.Contains(got, "err\n") {
		t.Errorf("%q, %v", got, err)
	}
	// One that is ended on the way is in nobody's way.
	ctx, cancel := context.WithCancel(t.Context())
	steps := 0
	_, err = w.Before(func(step int) {
		if steps = step; step == 3 {
			cancel()
		}
	}).Run(ctx, volumes, w.looker(p, "sleep 1000"))
	cancel()
	if err == nil || steps < 3 {
		t.Errorf("%d steps, %v", steps, err)
	}
	if got := w.see(t, p, "cat /v/kept"); got != "kept" {
		t.Errorf("%q", got)
	}
	if st := w.state(t, "runs-once"); st.Exists {
		t.Errorf("it is still there: %+v", st)
	}
	w.remove(t, p)
}

func (w World) logs(t *testing.T) {
	p := w.pod("logs")
	p.Containers[1].Command[0] = "for i in 1 2 3; do echo line $i; done; " + waits
	_, err := w.Ensure(t.Context(), p)
	must(t, err)
	if got := w.log(t, "logs-b", "up"); got != "line 1\nline 2\nline 3\nup\n" {
		t.Errorf("%q", got)
	}
	var out bytes.Buffer
	must(t, w.Logs(t.Context(), "logs-b", false, 2, &out))
	if out.String() != "line 3\nup\n" {
		t.Errorf("the last two lines: %q", out.String())
	}
	if err := w.Logs(t.Context(), "logs-c", false, 0, io.Discard); err == nil || !strings.Contains(err.Error(), "logs-c") {
		t.Errorf("of one that is not there: %v", err)
	}
	w.remove(t, p)
}

func (w World) many(t *testing.T) {
	var wait sync.WaitGroup
	errs := make([]error, 4)
	for i := range errs {
		p := w.pod(fmt.Sprintf("many%d", i))
		wait.Go(func() {
			for range 2 {
				_, err := w.Ensure(t.Context(), p)
				errs[i] = errors.Join(errs[i], err)
			}
			errs[i] = errors.Join(errs[i], w.Remove(t.Context(), remains(p)))
		})
	}
	wait.Wait()
	must(t, errors.Join(errs...))
}

func (w World) imageless(t *testing.T) {
	p := w.pod("imageless")
	p.Containers[1].Image = "localhost/nowhere:1"
	if _, err := w.Ensure(t.Context(), p); err == nil || !strings.Contains(err.Error(), "localhost/nowhere:1") {
		t.Errorf("%v", err)
	}
	w.remove(t, p)
}
