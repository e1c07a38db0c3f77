package testkit_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/mount"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/client"
	"github.com/docker/docker/pkg/stdcopy"

	"codeberg.org/devaipod/devaipod/ci/sandbox"
)

// sandboxes are an instance's, with images of this machine's own.
func sandboxes(t testing.TB, instance string) *sandbox.Sandboxes {
	t.Helper()
	s, err := sandbox.New(t.Context(), sandboxConfig(t, instance))
	must(t, err)
	return s
}

func sandboxConfig(t testing.TB, instance string) sandbox.Config {
	t.Helper()
	m, tools := podManager(t, instance)
	seccomp, err := m.SeccompFile()
	must(t, err)
	return sandbox.Config{
		Instance: instance, Podman: world.client, Tools: tools, Dir: filepath.Join(world.Dir, instance, "run"),
		Memory: 128 << 20, CPUs: 1, Pids: 64, Disk: 64 << 20, Seccomp: seccomp, Log: world.log,
		Build: map[string]string{"NET": "by the door"},
		Use: func(image string) error {
			if image == "localhost/not-for-jobs:latest" {
				return errors.New("it is another repository's")
			}
			return nil
		},
	}
}

// job is a sandbox with a client of Docker's, as act has it.
type job struct {
	*sandbox.Sandbox
	docker *client.Client
	t      *testing.T
}

func openJob(t *testing.T, s *sandbox.Sandboxes, task int64) job {
	t.Helper()
	b, err := s.Open(t.Context(), task, []int{80, 8443}, []string{"db", "cache-1"})
	must(t, err)
	t.Cleanup(func() { must(t, b.Close(context.Background())) })
	docker, err := client.NewClientWithOpts(client.WithHost("unix://"+b.Socket()), client.WithAPIVersionNegotiation())
	must(t, err)
	t.Cleanup(func() { must(t, docker.Close()) })
	return job{b, docker, t}
}

// run makes a container that sleeps and starts it.
func (j job) run(name string, c *container.Config, h *container.HostConfig) string {
	j.t.Helper()
	if c == nil {
		c = &container.Config{Image: box, Entrypoint: []string{"/bin/sleep", "600"}}
	}
	made, err := j.docker.ContainerCreate(j.t.Context(), c, h, nil, nil, name)
	must(j.t, err)
	must(j.t, j.docker.ContainerStart(j.t.Context(), made.ID, container.StartOptions{}))
	return made.ID
}

// sh runs a script as a step does and returns what it wrote.
func (j job) sh(id, script string) (out string, code int) {
	j.t.Helper()
	ctx := j.t.Context()
	made, err := j.docker.ContainerExecCreate(ctx, id, container.ExecOptions{Cmd: []string{"/bin/sh", "-c", script}, Env: []string{"A=b c"}, AttachStdout: true, AttachStderr: true})
	must(j.t, err)
	stream, err := j.docker.ContainerExecAttach(ctx, made.ID, container.ExecStartOptions{})
	must(j.t, err)
	defer stream.Close()
	var stdout, stderr bytes.Buffer
	_, err = stdcopy.StdCopy(&stdout, &stderr, stream.Reader)
	must(j.t, err)
	after, err := j.docker.ContainerExecInspect(ctx, made.ID)
	must(j.t, err)
	return stdout.String() + stderr.String(), after.ExitCode
}

// nothingOf checks that podman has nothing with a label, and the directory nothing.
func nothingOf(t *testing.T, instance string, task int64) {
	t.Helper()
	for _, args := range [][]string{{"ps", "--all", "--quiet"}, {"pod", "ps", "--quiet"}, {"volume", "ls", "--quiet"}, {"images", "--all", "--quiet"}} {
		out, err := world.Podman(t.Context(), append(args, "--filter", fmt.Sprintf("label=%s=%d", sandbox.LabelTask, task))...)
		must(t, err)
		if out != "" {
			t.Errorf("%s: %q of task %d are left", args[0], out, task)
		}
	}
	if _, err := os.Stat(filepath.Join(world.Dir, instance, "run", fmt.Sprint(task))); !os.IsNotExist(err) {
		t.Errorf("the directory of task %d: %v", task, err)
	}
}

func TestAJobInItsSandbox(t *testing.T) {
	ctx := t.Context()
	j := openJob(t, sandboxes(t, "sbx"), 7)
	info, err := j.docker.Info(ctx)
	if err != nil || info.OSType != "linux" {
		t.Fatalf("%+v, %v", info, err)
	}
	if _, err := j.docker.NetworkCreate(ctx, "job-network", network.CreateOptions{Driver: "bridge"}); err != nil {
		t.Fatal(err)
	}
	if image, err := j.docker.ImageInspect(ctx, box); err != nil || image.Os != "linux" {
		t.Fatalf("%+v, %v", image, err)
	}
	// A service, found by its name, that says how it is.
	j.run("service", &container.Config{
		Image: box, Entrypoint: []string{"/bin/sh", "-c", "sleep 1; touch /up; while :; do echo from-db | /bin/busybox nc -l -p 5432; done"},
		Healthcheck: &container.HealthConfig{Test: []string{"CMD", "/bin/ls", "/up"}, Interval: time.Second, Retries: 30},
	}, &container.HostConfig{NetworkMode: "job-network"})
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		c, err := j.docker.ContainerInspect(ctx, "service")
		must(t, err)
		if c.State.Health.Status == container.Healthy {
			break
		}
		if c.State.Health.Status != container.Starting || time.Now().After(deadline) {
			t.Fatalf("the service is %q", c.State.Health.Status)
		}
	}
	job := j.run("job", nil, &container.HostConfig{
		NetworkMode: "job-network", Mounts: []mount.Mount{{Type: mount.TypeVolume, Source: "act-toolcache", Target: "/opt/tools"}, {Type: mount.TypeVolume, Source: "job", Target: "/src"}},
	})
	// Files in and out.
	var files bytes.Buffer
	w := tar.NewWriter(&files)
	must(t, w.WriteHeader(&tar.Header{Name: "a/b", Mode: 0o644, Size: 5}))
	_, err = io.WriteString(w, "hello")
	must(t, err)
	must(t, w.Close())
	must(t, j.docker.CopyToContainer(ctx, job, "/src", &files, container.CopyToContainerOptions{}))
	if out, code := j.sh(job, `cat /src/a/b; echo " $A"; exit 3`); out != "hello b c\n" || code != 3 {
		t.Errorf("%q, %d", out, code)
	}
	archive, _, err := j.docker.CopyFromContainer(ctx, job, "/src/a/b")
	must(t, err)
	r := tar.NewReader(archive)
	_, err = r.Next()
	must(t, err)
	if b, err := io.ReadAll(r); err != nil || string(b) != "hello" {
		t.Errorf("%q, %v", b, err)
	}
	must(t, archive.Close())
	if out, _ := j.sh(job, "/bin/busybox nc db 5432"); out != "from-db\n" {
		t.Errorf("the service says %q", out)
	}
	if out, _ := j.sh(job, "/bin/busybox nc $(/bin/busybox hostname) 5432; grep -c . /etc/hosts /etc/resolv.conf"); out != "from-db\n/etc/hosts:5\n/etc/resolv.conf:1\n" {
		t.Errorf("by its own name it is %q", out)
	}
	j.door(job)
	// A step that is a container, in the job's namespace, whose output is attached.
	step, err := j.docker.ContainerCreate(ctx, &container.Config{Image: box, Entrypoint: []string{"/bin/sh"}, Cmd: []string{"-c", "cat /src/a/b; exit 4"}},
		&container.HostConfig{NetworkMode: "container:job", Binds: []string{"job:/src"}}, nil, nil, "step")
	must(t, err)
	out, err := j.docker.ContainerAttach(ctx, step.ID, container.AttachOptions{Stream: true, Stdout: true, Stderr: true})
	must(t, err)
	must(t, j.docker.ContainerStart(ctx, step.ID, container.StartOptions{}))
	var text bytes.Buffer
	_, err = stdcopy.StdCopy(&text, &text, out.Reader)
	must(t, err)
	out.Close()
	ended, failed := j.docker.ContainerWait(ctx, step.ID, container.WaitConditionNotRunning)
	select {
	case e := <-ended:
		if e.StatusCode != 4 || text.String() != "hello" {
			t.Errorf("the step ended with %d and wrote %q", e.StatusCode, text.String())
		}
	case err := <-failed:
		t.Error(err)
	}
	all, err := j.docker.ContainerList(ctx, container.ListOptions{All: true})
	if err != nil || len(all) != 3 {
		t.Errorf("%v, %v", all, err)
	}
	must(t, j.docker.ContainerRemove(ctx, step.ID, container.RemoveOptions{Force: true, RemoveVolumes: true}))
	if err := j.docker.VolumeRemove(ctx, "job", false); err == nil {
		t.Error("removed a volume that is in use")
	}
	must(t, j.docker.ContainerRemove(ctx, job, container.RemoveOptions{Force: true}))
	must(t, j.docker.VolumeRemove(ctx, "job", false))
	must(t, j.docker.NetworkRemove(ctx, "job-network"))
	must(t, j.Close(ctx))
	must(t, j.Close(ctx))
	nothingOf(t, "sbx", 7)
}

// door checks that both ports lead to the door, and half-closes on.
func (j job) door(id string) {
	j.t.Helper()
	for _, port := range []string{"80", "8443"} {
		got := make(chan string, 1)
		go func() {
			c, err := j.Door().Accept()
			if err != nil {
				got <- err.Error()
				return
			}
			defer c.Close()
			b, err := io.ReadAll(c)
			got <- fmt.Sprint(string(b), err)
			_, _ = io.WriteString(c, "from the door") // the test sees it or fails
		}()
		out, _ := j.sh(id, "echo to the door | /bin/busybox nc 127.0.0.1 "+port)
		if in := <-got; in != "to the door\n<nil>" || out != "from the door" {
			j.t.Errorf("port %s: in %q, out %q", port, in, out)
		}
	}
}

func TestWhatAJobsContainerIs(t *testing.T) {
	j := openJob(t, sandboxes(t, "sbx"), 8)
	job := j.run("job", &container.Config{Image: box, Entrypoint: []string{"/bin/sh", "-c", "cat /proc/self/status > /status; sleep 600"}}, nil)
	out, code := j.sh(job, `while ! grep -q Seccomp /status; do sleep 0.05; done; ls /sys/class/net; cat /proc/net/route; cat /proc/net/dev; for f in /status /proc/self/status; do grep -E '^(CapInh|CapPrm|CapEff|CapBnd|NoNewPrivs|Seccomp):' $f; done`)
	if code != 0 {
		t.Fatal(out)
	}
	var devices []string
	for _, line := range strings.Split(out, "\n") {
		name, _, isDevice := strings.Cut(line, ":")
		switch fields := strings.Fields(line); {
		case len(fields) > 10 && isDevice:
			devices = append(devices, strings.TrimSpace(name))
		case strings.HasPrefix(line, "CapPrm"), strings.HasPrefix(line, "CapEff"), strings.HasPrefix(line, "CapBnd"):
			// chown, dac_override, fowner, fsetid, kill, setgid, setuid, net_bind_service
			if fields[1] != "00000000000004fb" {
				t.Error(line)
			}
		case strings.HasPrefix(line, "NoNewPrivs"):
			if fields[1] != "1" {
				t.Error(line)
			}
		case strings.HasPrefix(line, "Seccomp"):
			if fields[1] != "2" {
				t.Error(line)
			}
		}
	}
	if strings.Join(devices, " ") != "lo" {
		t.Errorf("network devices %q in\n%s", devices, out)
	}
	if routes, _ := j.sh(job, "grep -c . /proc/net/route"); routes != "1\n" { // the heading
		t.Errorf("routes: %s", routes)
	}
	limits, err := world.Podman(t.Context(), "inspect", "--format", "{{.HostConfig.Memory}} {{.HostConfig.PidsLimit}} {{.HostConfig.CpuQuota}} {{.HostConfig.Privileged}} {{.HostConfig.LogConfig.Type}}", job)
	if must(t, err); limits != "134217728 64 100000 false none\n" {
		t.Errorf("limits %q", limits)
	}
	if mounts, _ := j.sh(job, "cat /proc/self/mountinfo"); strings.Contains(mounts, "docker.sock") || strings.Contains(mounts, "podman.sock") || strings.Contains(mounts, "door") {
		t.Errorf("mounts:\n%s", mounts)
	}
	// A fork bomb holds, and the holder stays out of it.
	bomb, _ := j.sh(job, `i=0; while [ $i -lt 200 ]; do sleep 5 & i=$((i+1)); done 2>&1`)
	if !strings.Contains(bomb, "fork") {
		t.Errorf("200 processes at once: %q", bomb)
	}
	other := j.run("other", nil, nil)
	j.door(other)
}

// What a job's containers may have, they may have together.
func TestTheLimitsAreTheJobs(t *testing.T) {
	s := sandboxes(t, "sbx")
	j := openJob(t, s, 14)
	// Processes: 64, and some for podman's own.
	forks := `i=0; while [ $i -lt 200 ]; do sleep 60 & i=$((i+1)); echo $i >/forks; done`
	count := 0
	var ids []string
	for n := range 5 {
		id := j.run(fmt.Sprint("box", n), nil, nil)
		ids = append(ids, id)
	}
	for _, id := range ids {
		if out, code := j.try(id, forks); code == 0 {
			t.Errorf("200 processes: %q", out)
		}
		if made, _, err := j.docker.CopyFromContainer(t.Context(), id, "/forks"); err == nil {
			count += number(t, made)
		}
	}
	if count < 60 || count > 64+64 {
		t.Errorf("%d containers have %d processes; 64, and 64 more at most, is what the job may have", len(ids), count)
	}
	must(t, j.Close(t.Context()))
	nothingOf(t, "sbx", 14)

	// Memory: 128 MiB, of which each of these fits alone. The kernel chooses which one goes.
	j = openJob(t, s, 15)
	first, second := j.run("first", nil, nil), j.run("second", nil, nil)
	if out, code := j.try(first, `/bin/busybox dd if=/dev/zero bs=90M count=1 2>/dev/null | sleep 60 & while ! grep -q 'VmRSS:.* 9[0-9][0-9][0-9][0-9] kB' /proc/[0-9]*/status; do sleep 0.1; done`); code != 0 {
		t.Fatalf("90 MiB: %d, %q", code, out)
	}
	_, code := j.try(second, "/bin/busybox dd if=/dev/zero of=/dev/null bs=90M count=1 2>&1")
	_, gone := j.try(first, `grep -q 'VmRSS:.* 9[0-9][0-9][0-9][0-9] kB' /proc/[0-9]*/status`)
	if code == 0 && gone == 0 {
		t.Error("two containers have 90 MiB each; the job may have 128")
	}
	j.door(j.run("other", nil, nil)) // the holder is none of it
}

// try is sh for what the job's limits may keep podman from running: that is code 1.
func (j job) try(id, script string) (out string, code int) {
	j.t.Helper()
	ctx := j.t.Context()
	made, err := j.docker.ContainerExecCreate(ctx, id, container.ExecOptions{Cmd: []string{"/bin/sh", "-c", script}, AttachStdout: true, AttachStderr: true})
	must(j.t, err)
	stream, err := j.docker.ContainerExecAttach(ctx, made.ID, container.ExecStartOptions{})
	if err != nil {
		return err.Error(), 1
	}
	defer stream.Close()
	var text bytes.Buffer
	_, err = stdcopy.StdCopy(&text, &text, stream.Reader)
	after, err2 := j.docker.ContainerExecInspect(ctx, made.ID)
	if err := errors.Join(err, err2); err != nil {
		return err.Error(), 1
	}
	return text.String(), after.ExitCode
}

// number is what the one file in an archive holds.
func number(t *testing.T, archive io.ReadCloser) (n int) {
	t.Helper()
	defer archive.Close()
	r := tar.NewReader(archive)
	_, err := r.Next()
	must(t, err)
	_, err = fmt.Fscan(r, &n)
	must(t, err)
	return n
}

func TestAJobThatFillsTheDisk(t *testing.T) {
	j := openJob(t, sandboxes(t, "sbx"), 9)
	job := j.run("job", nil, &container.HostConfig{Binds: []string{"data:/data"}})
	if out, code := j.sh(job, "for f in /data/x /x; do /bin/busybox dd if=/dev/zero of=$f bs=1M count=40 2>&1; done"); code != 0 {
		t.Fatal(out)
	}
	select {
	case err := <-j.Exceeded():
		if !strings.Contains(err.Error(), "ci.disk") {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Error("80 MiB on the disk are not seen")
	}
}

func TestAJobWithoutItsHolder(t *testing.T) {
	j := openJob(t, sandboxes(t, "sbx"), 10)
	_, err := world.Podman(t.Context(), "kill", "sbx-ci-10-holder")
	must(t, err)
	select {
	case err := <-j.Exceeded():
		if !strings.Contains(err.Error(), "network is gone") {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Error("that the holder is gone is not seen")
	}
}
