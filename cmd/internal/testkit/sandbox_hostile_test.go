package testkit_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"

	"codeberg.org/devaipod/devaipod/ci/sandbox"
	"codeberg.org/devaipod/devaipod/pods/podman"
)

// raw sends a request to the filter's socket as it is, and returns status and body.
func (j job) raw(request string) (int, string) {
	j.t.Helper()
	c, err := net.Dial("unix", j.Socket())
	must(j.t, err)
	defer c.Close()
	must(j.t, c.SetDeadline(time.Now().Add(time.Minute)))
	_, _ = io.WriteString(c, request) // one that is too large is answered before its end
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	must(j.t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	must(j.t, err)
	return resp.StatusCode, string(body)
}

func (j job) send(method, path, body string) (int, string) {
	return j.raw(fmt.Sprintf("%s %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s", method, path, len(body), body))
}

func TestWhatAHostileJobAsksOfDocker(t *testing.T) {
	ctx := t.Context()
	s := sandboxes(t, "sbx")
	j := openJob(t, s, 21)
	neighbour := openJob(t, s, 22).run("job", nil, nil)
	holder, err := world.Podman(ctx, "inspect", "--format", "{{.Id}}", "sbx-ci-21-holder")
	must(t, err)
	holder = strings.TrimSpace(holder)
	foreign, err := world.Podman(ctx, "create", "--network", "none", box, "/bin/sleep", "600")
	must(t, err)
	foreign = strings.TrimSpace(foreign)
	t.Cleanup(func() {
		_, err := world.Podman(context.Background(), "rm", "--force", foreign)
		must(t, err)
	})
	_, tools := podManager(t, "sbx")
	own := j.run("job", nil, nil)
	for _, id := range []string{holder, "sbx-ci-21-holder", neighbour, "sbx-ci-22-c-job", foreign, foreign[:12], own[:12], "sbx-ci-21-c-job", ""} {
		for _, ask := range []string{"GET /containers/%s/json", "POST /containers/%s/start", "POST /containers/%s/wait", "POST /containers/%s/attach?stream=1", "DELETE /containers/%s?force=1", "GET /containers/%s/archive?path=/", "PUT /containers/%s/archive?path=/", "POST /containers/%s/exec", "POST /exec/%s/start", "GET /exec/%s/json", "DELETE /volumes/%s", "GET /networks/%s"} {
			method, path, _ := strings.Cut(fmt.Sprintf(ask, id), " ")
			if code, body := j.send(method, path, `{"Cmd":["/bin/id"]}`); code < 400 || code >= 500 {
				t.Errorf("%s %s: %d %s", method, path, code, body)
			}
		}
	}
	for _, ask := range []string{
		"GET /v1.41/../libpod/info", "GET /v4.0.0/libpod/info", "GET /libpod/containers/json", "GET /v1.41/libpod/info", "GET /v1.41//containers/json", "GET /v1.41/containers/%2e%2e/info",
		"GET /v1.41/containers/json/../../libpod/info", "GET /v1.41/v1.41/info", "GET /containers/" + own + "/../" + foreign + "/json", "GET /containers/" + own + "%2f..%2f" + foreign + "/json",
		"POST /images/load", "POST /commit?container=" + own, "GET /containers/" + own + "/export", "POST /containers/" + own + "/update", "POST /containers/" + own + "/rename?name=x",
		"POST /networks/podman/connect", "POST /networks/create", "GET /images/json", "GET /images/" + box + "/get", "POST /images/" + box + "/push", "POST /images/" + box + "/tag?repo=x", "DELETE /images/" + box,
		"GET /images/sha256:" + strings.Repeat("a", 64) + "/json", "POST /images/create?fromSrc=http://127.0.0.1/x", "POST /images/create?fromImage=localhost/x", "POST /build?t=x", "GET /events", "GET /system/df", "POST /containers/prune",
		"POST /volumes/prune", "GET /secrets", "GET /plugins", "POST /session", "POST /grpc", "GET /swarm", "TRACE /info", "GET /containers/" + own + "/logs?stdout=1", "GET /containers/" + own + "/top", "POST /auth",
		"GET /images/localhost/not-for-jobs/json", "GET /images/" + tools + "/json",
	} {
		method, path, _ := strings.Cut(ask, " ")
		if code, body := j.send(method, path, "{}"); code < 400 || code >= 500 || strings.Contains(body, "graphRoot") {
			t.Errorf("%s: %d %s", ask, code, body)
		}
	}
	for _, body := range []string{
		`{"Image":"` + box + `","HostConfig":{"Privileged":true}}`, `{"Image":"` + box + `","HostConfig":{"NetworkMode":"host"}}`, `{"Image":"` + box + `","HostConfig":{"NetworkMode":"container:` + foreign + `"}}`,
		`{"Image":"` + box + `","HostConfig":{"Binds":["/:/host"]}}`, `{"Image":"` + tools + `"}`, `{"Image":"localhost/not-for-jobs"}`, `{"Image":"localhost/nowhere"}`, `{"Image":""}`,
		`{"Image":"` + box + `","HostConfig":{"VolumesFrom":["` + foreign + `"]}}`, strings.Repeat("[", 1<<19),
	} {
		if code, answer := j.send("POST", "/v1.41/containers/create?name=x", body); code < 400 || code >= 500 {
			t.Errorf("%.200s: %d %s", body, code, answer)
		}
	}
	for path, body := range map[string]string{
		"/volumes/create":                     `{"Name":"x","Driver":"local","DriverOpts":{"type":"none","o":"bind","device":"/"}}`,
		"/v1.41/volumes/create":               `{"Name":"../x"}`,
		"/containers/" + own + "/exec":        `{"Cmd":["/bin/id"],"Privileged":true}`,
		"/v1.41/containers/" + own + "/exec":  `{"Cmd":["/bin/id"],"privileged":true}`,
		"/containers/create?name=../x":        `{"Image":"` + box + `"}`,
		"/containers/create?name=" + foreign:  `{"Image":"` + box + `"}`,
		"/v1.41/containers/create?name=large": `{"Image":"` + strings.Repeat("x", 2<<20) + `"}`,
	} {
		if code, answer := j.send("POST", path, body); code < 400 || code >= 500 {
			t.Errorf("%s %.100s: %d %s", path, body, code, answer)
		}
	}
	// Nothing came of it.
	if state, err := world.client.State(ctx, foreign); err != nil || !state.Exists || state.Running {
		t.Errorf("%+v, %v", state, err)
	}
	all, err := j.docker.ContainerList(ctx, container.ListOptions{All: true})
	if err != nil || len(all) != 1 || all[0].ID != own {
		t.Errorf("%+v, %v", all, err)
	}
	// What does not fit in one's memory is broken off, not cut short.
	if out, code := j.sh(own, "/bin/busybox truncate -s 300M /large"); code != 0 {
		t.Fatal(out)
	}
	files, _, err := j.docker.CopyFromContainer(ctx, own, "/large")
	must(t, err)
	if n, err := io.Copy(io.Discard, files); err == nil || n > 257<<20 {
		t.Errorf("300 MiB: read %d bytes, %v", n, err)
	}
	files.Close()
	if info, err := os.Stat(j.Socket()); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}

// A client that sends nothing more, or is gone, holds nobody up: not the others, and not Close.
func TestAJobThatHangsOnDocker(t *testing.T) {
	ctx := t.Context()
	j := openJob(t, sandboxes(t, "sbx"), 23)
	own := j.run("job", nil, nil)
	made, err := j.docker.ContainerExecCreate(ctx, own, container.ExecOptions{Cmd: []string{"/bin/cat"}, AttachStdin: true, AttachStdout: true, AttachStderr: true})
	must(t, err)
	// Half-closed, the command sees the end of its input.
	stream, err := j.docker.ContainerExecAttach(ctx, made.ID, container.ExecStartOptions{})
	must(t, err)
	_, err = io.WriteString(stream.Conn, "to and fro")
	must(t, err)
	back := make([]byte, 8+len("to and fro")) // in a frame
	if _, err := io.ReadFull(stream.Reader, back); err != nil || !bytes.HasSuffix(back, []byte("to and fro")) {
		t.Errorf("%q, %v", back, err)
	}
	must(t, stream.CloseWrite())
	if out, err := io.ReadAll(stream.Reader); err != nil || len(out) > 0 {
		t.Errorf("%q, %v", out, err)
	}
	stream.Close()
	for range 20 {
		for _, part := range []string{"GET /info HT", "POST /containers/create HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{", "POST /containers/job/wait HTTP/1.1\r\nHost: x\r\n\r\n", ""} {
			c, err := net.Dial("unix", j.Socket())
			must(t, err)
			defer c.Close()
			_, err = io.WriteString(c, part)
			must(t, err)
		}
	}
	if out, code := j.sh(own, "echo still here"); out != "still here\n" || code != 0 {
		t.Errorf("%q, %d", out, code)
	}
	// Podman keeps a container for itself while files are written to it.
	c, err := net.Dial("unix", j.Socket())
	must(t, err)
	defer c.Close()
	_, err = io.WriteString(c, "PUT /containers/job/archive?path=/ HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\nx")
	must(t, err)
	must(t, j.Close(ctx))
	nothingOf(t, "sbx", 23)
}

const sandboxChild = "TEST_SANDBOX_CHILD"

// TestSandboxChild is the process that TestASandboxOfAServiceThatWasKilled kills: it
// opens a sandbox and starts a container in it.
func TestSandboxChild(t *testing.T) {
	config := os.Getenv(sandboxChild)
	if config == "" || config == workerChild {
		return // it is not that process
	}
	var instance, socket, tools, dir, seccomp string
	_, err := fmt.Sscan(config, &instance, &socket, &tools, &dir, &seccomp)
	must(t, err)
	client, err := podman.Connect(t.Context(), "unix://"+socket)
	must(t, err)
	s, err := sandbox.New(t.Context(), sandbox.Config{Instance: instance, Podman: client, Tools: tools, Dir: dir, Seccomp: seccomp, Memory: 64 << 20, Use: func(string) error { return nil }, Log: world.log})
	must(t, err)
	j := openJob(t, s, 31)
	j.run("job", nil, &container.HostConfig{Binds: []string{"data:/data"}})
	if said, failed := j.build(t.Context(), "FROM localhost/box\nRUN touch /a\nRUN touch /b", nil); failed != "" {
		t.Fatal(failed, said)
	}
	fmt.Fprintln(os.Stdout, "\nready")
	time.Sleep(10 * time.Minute)
}

func TestASandboxOfAServiceThatWasKilled(t *testing.T) {
	ctx := t.Context()
	cfg := sandboxConfig(t, "sbxkill")
	other := openJob(t, sandboxes(t, "sbxother"), 31)
	kept := other.run("job", nil, nil)
	cmd := exec.Command(os.Args[0], "-test.run=^TestSandboxChild$", "-test.v")
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %s %s %s %s", sandboxChild, cfg.Instance, cfg.Podman.Socket(), cfg.Tools, cfg.Dir, cfg.Seccomp))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	lines := bufio.NewScanner(out)
	ready := false
	for !ready && lines.Scan() {
		ready = lines.Text() == "ready"
	}
	must(t, cmd.Process.Kill())
	if err := cmd.Wait(); !ready || err == nil {
		t.Fatalf("the process that was to be killed: ready %v, %v", ready, err)
	}
	cfg.Theirs = func(task int64) bool { return task == 31 } // of a process that lives
	s, err := sandbox.New(ctx, cfg)
	must(t, err)
	must(t, s.Collect(ctx))
	if theirs, err := world.client.Containers(ctx, map[string]string{sandbox.LabelInstance: "sbxkill", sandbox.LabelTask: "31"}); err != nil || len(theirs) != 3 { // its holder, its limits, its job
		t.Errorf("what another process has: %v, %v", theirs, err)
	}
	images := func(want int) {
		t.Helper()
		left, err := world.client.LabeledImages(ctx, map[string]string{sandbox.LabelInstance: "sbxkill", sandbox.LabelTask: "31"})
		if err != nil || len(left) != want {
			t.Errorf("images: %v, %v; want %d", left, err, want)
		}
	}
	images(2)
	must(t, os.RemoveAll(filepath.Join(cfg.Dir, "31"))) // its labels are enough
	cfg.Theirs = nil
	s, err = sandbox.New(ctx, cfg)
	must(t, err)
	living := openJob(t, s, 32)
	here := living.run("job", nil, nil)
	must(t, s.Collect(ctx))
	left, err := world.client.Containers(ctx, map[string]string{sandbox.LabelInstance: "sbxkill", sandbox.LabelTask: "31"})
	if err != nil || len(left) > 0 {
		t.Errorf("%v, %v", left, err)
	}
	images(0)
	volumes, err := world.client.Volumes(ctx, map[string]string{sandbox.LabelInstance: "sbxkill"})
	if err != nil || len(volumes) > 0 {
		t.Errorf("%v, %v", volumes, err)
	}
	for _, id := range []string{kept, here} {
		if st, err := world.client.State(ctx, id); err != nil || !st.Running {
			t.Errorf("%s: %+v, %v", id, st, err)
		}
	}
	// The same task may come again.
	must(t, openJob(t, s, 31).Close(ctx))
}
