package testkit_test

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/pods"
	"codeberg.org/devaipod/devaipod/pods/podfile"
)

const gitBox = "localhost/gitbox:latest"

// withGit is busybox with this machine's git, which the saver wants.
func withGit(t *testing.T) {
	t.Helper()
	core, err := exec.Command("git", "--exec-path").Output()
	must(t, err)
	program, err := exec.LookPath("git")
	must(t, err)
	files := []string{program, filepath.Join(strings.TrimSpace(string(core)), "git-remote-http")}
	for _, f := range slices.Clone(files) {
		out, err := exec.Command("ldd", f).Output()
		must(t, err)
		for _, word := range strings.Fields(string(out)) {
			if strings.HasPrefix(word, "/") && !slices.Contains(files, word) {
				files = append(files, word)
			}
		}
	}
	image, err := busybox(files...)
	must(t, err)
	must(t, world.client.ImageImport(t.Context(), gitBox, bytes.NewReader(image), nil))
}

// standIn is in place of the service's end, at a pod's save socket: git
// http-backend on a bare repository, whose path it returns.
func standIn(t *testing.T, m *pods.Manager, k pods.Key) (server string, stop func()) {
	t.Helper()
	root := t.TempDir()
	server = filepath.Join(root, "saved.git")
	out, err := exec.Command("git", "init", "--quiet", "--bare", server).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	must(t, exec.Command("git", "-C", server, "config", "http.receivepack", "true").Run())
	core, err := exec.Command("git", "--exec-path").Output()
	must(t, err)
	backend := &cgi.Handler{
		Path: filepath.Join(strings.TrimSpace(string(core)), "git-http-backend"), Stderr: io.Discard,
		Env: []string{"GIT_PROJECT_ROOT=" + root, "GIT_HTTP_EXPORT_ALL=1", "GIT_CONFIG_GLOBAL=/dev/null"},
	}
	must(t, os.MkdirAll(filepath.Dir(m.SaveSocket(k)), 0o755))
	l, err := net.Listen("unix", m.SaveSocket(k))
	must(t, err)
	must(t, os.Chmod(m.SaveSocket(k), 0o666))
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { backend.ServeHTTP(w, r) }))
	s.Listener = l
	s.Start()
	t.Cleanup(s.Close)
	return server, s.Close
}

func TestAPodsWorkIsSaved(t *testing.T) {
	ctx := t.Context()
	withGit(t)
	m, tools := podManager(t, "saves")
	before := names(t)
	k := pods.Key{Owner: "ann", Repo: "hello", Issue: 3}
	if saved, err := m.Save(ctx, k); err != nil || !saved.Complete || saved.ID != "" {
		t.Errorf("no pod: %+v, %v", saved, err)
	}
	server, _ := standIn(t, m, k)
	s := spec(tools, k)
	s.AgentImage = gitBox
	_, err := m.Ensure(ctx, s)
	must(t, err)
	name := pods.Name("saves", k)
	// There is no opencode in the image, so the agent has ended when there is a
	// clone; another container is the agent then.
	agent := func(script string) {
		t.Helper()
		_, err := world.Podman(ctx, "run", "--rm", "--network", "none", "--user", "1000:1000", "--volume", name+"-agent-workspace:/workspace",
			"--volume", name+"-agent-home:/home/agent", gitBox, "sh", "-c", script)
		must(t, err)
	}
	has := func(file, want string) bool {
		out, err := exec.Command("git", "-C", server, "show", podfile.SavedPrefix(3)+"work:"+file).Output()
		return err == nil && string(out) == want+"\n"
	}
	eventually := func(what string, ok func() bool) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(50 * time.Millisecond) {
			if time.Now().After(deadline) {
				log, err := world.Podman(ctx, "logs", name+"-saver")
				t.Fatalf("never: %s; %v\n%s", what, err, log)
			}
		}
	}
	agent("mkdir /workspace/repo && cd /workspace/repo && git init -q && echo one >file && echo secret >/home/agent/secret")
	eventually("saved", func() bool { return has("file", "one") })
	if p, ok := find(t, m, k); !ok || !p.Saver.Running {
		t.Errorf("found %+v", p)
	}
	checkSaver(t, name)

	// The agent's last words.
	agent("echo two >/workspace/repo/file")
	must(t, m.Stop(ctx, k))
	if !has("file", "two") {
		t.Error("what was written before a stop is not saved")
	}

	// Half removed, and more written than the saver saw.
	must(t, m.Resume(ctx, k))
	agent("cd /workspace/repo && for i in $(seq 400); do mkfifo $i-a-long-name-for-a-long-list; done")
	for _, role := range []string{"saver", "control", "workspace"} {
		_, err := world.Podman(ctx, "rm", "--force", "--time", "0", name+"-"+role)
		must(t, err)
	}
	agent("echo three >/workspace/repo/file")
	_, err = world.Podman(ctx, "pod", "rm", "--force", name)
	must(t, err)
	saved, err := m.Save(ctx, k)
	if err != nil || !saved.Complete || !has("file", "three") {
		t.Errorf("%+v, %v", saved, err)
	}
	if n := len(saved.NotSaved); n+saved.More != 400 || saved.NotSaved[0].Why != podfile.WhySpecial {
		t.Errorf("%d and %d more are not saved", n, saved.More)
	}

	// Beside a saver that runs; it goes on.
	must(t, m.Resume(ctx, k))
	agent("echo four >/workspace/repo/file")
	if saved, err = m.Save(ctx, k); err != nil || !saved.Complete || !has("file", "four") {
		t.Errorf("%+v, %v", saved, err)
	}
	agent("echo five >/workspace/repo/file")
	eventually("the saver goes on", func() bool { return has("file", "five") })
	must(t, m.Remove(ctx, k))
	if after := names(t); after != before {
		t.Errorf("left:\n%s\nbefore:\n%s", after, before)
	}
}

// checkSaver looks at the saver's container from the inside: it can read the
// agent's tree, and that is all.
func checkSaver(t *testing.T, name string) {
	t.Helper()
	out, err := world.Podman(t.Context(), "exec", name+"-saver", "sh", "-c",
		"cat /proc/net/dev; grep -E '^(Cap|NoNewPrivs)' /proc/1/status; id; env; ls /home/agent /run/devaipod; cat /workspace/repo/file; touch /workspace/repo/mine /run/save/mine /saver/ours 2>&1; ls /saver; true")
	must(t, err)
	for _, want := range []string{
		"CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "uid=1000",
		"/workspace/repo/mine: Read-only file system", "/run/save/mine: Read-only file system", "ours",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	for _, never := range []string{"eth", "TOKEN", "secret", "gate.sock"} {
		if strings.Contains(out, never) {
			t.Errorf("%q in\n%s", never, out)
		}
	}
	memory, err := world.Podman(t.Context(), "inspect", "--format", "{{.HostConfig.Memory}}", name+"-saver")
	if err != nil || strings.TrimSpace(memory) != "536870912" {
		t.Errorf("memory limit %q, %v", memory, err)
	}
}
