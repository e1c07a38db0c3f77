package testkit_test

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	dockerbuild "github.com/docker/docker/api/types/build"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/pkg/stdcopy"

	cijob "codeberg.org/devaipod/devaipod/ci/job"
	"codeberg.org/devaipod/devaipod/ci/sandbox"
	"codeberg.org/devaipod/devaipod/ci/worker"
)

const built = "act-x-dockeraction:latest"

// tarOf is a tar of files, which all may run.
func tarOf(t testing.TB, files map[string]string) *bytes.Buffer {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for name, text := range files {
		must(t, w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(text))}))
		_, err := io.WriteString(w, text)
		must(t, err)
	}
	must(t, w.Close())
	return &buf
}

// build runs a Dockerfile, as act asks for it, and returns what it says, and its error.
func (j job) build(ctx context.Context, text string, more map[string]string) (said, failed string) {
	j.t.Helper()
	files := map[string]string{"Dockerfile": text}
	for name, text := range more {
		files[name] = text
	}
	resp, err := j.docker.ImageBuild(ctx, tarOf(j.t, files), dockerbuild.ImageBuildOptions{Tags: []string{built}, Remove: true, Dockerfile: "Dockerfile"})
	if err != nil {
		return "", err.Error()
	}
	defer resp.Body.Close()
	for dec := json.NewDecoder(resp.Body); ; {
		var line struct{ Stream, Error string }
		if err := dec.Decode(&line); err != nil {
			return said, failed
		}
		said, failed = said+strings.TrimPrefix(line.Stream, cijob.BuildLine)+"\n", line.Error
	}
}

// output runs a container of an image to its end.
func (j job) output(c *container.Config) (out string, code int64) {
	j.t.Helper()
	ctx := j.t.Context()
	made, err := j.docker.ContainerCreate(ctx, c, nil, nil, nil, "")
	must(j.t, err)
	stream, err := j.docker.ContainerAttach(ctx, made.ID, container.AttachOptions{Stream: true, Stdout: true, Stderr: true})
	must(j.t, err)
	defer stream.Close()
	must(j.t, j.docker.ContainerStart(ctx, made.ID, container.StartOptions{}))
	var text bytes.Buffer
	_, err = stdcopy.StdCopy(&text, &text, stream.Reader)
	must(j.t, err)
	ended, failed := j.docker.ContainerWait(ctx, made.ID, container.WaitConditionNotRunning)
	select {
	case e := <-ended:
		code = e.StatusCode
	case err := <-failed:
		j.t.Fatal(err)
	}
	must(j.t, j.docker.ContainerRemove(ctx, made.ID, container.RemoveOptions{Force: true}))
	return text.String(), code
}

const actionFile = `FROM scratch AS tools
COPY --from=localhost/box /bin/busybox /b/busybox
FROM localhost/box
ARG FLAVOUR=only-while-built
ENV GREETING=hello
LABEL devaipod.ci=1 devaipod.instance=other
WORKDIR /made
RUN id -u >who && echo "$FLAVOUR, $NET" >arg && ls /sys/class/net >net && grep -E 'CapEff|NoNewPrivs|Seccomp:' /proc/self/status >caps && echo said by RUN
COPY --from=tools /b /copied
COPY --chown=1000:1000 entry.sh /
RUN /copied/busybox nc 127.0.0.1 80 </dev/null
USER 1000
ENTRYPOINT ["/bin/sh", "/entry.sh"]
CMD ["default"]
`

const entryFile = `echo "$GREETING $1, ${FLAVOUR-nothing}, ${NET-nothing}, $A"
id -u; /copied/busybox pwd
cat /made/who /made/arg /made/net /made/caps
/copied/busybox stat -c %u:%g:%a /entry.sh
`

func TestAnImageOfAJob(t *testing.T) {
	ctx := t.Context()
	j := openJob(t, sandboxes(t, "sbx"), 41)
	if _, err := j.docker.ImageInspect(ctx, built); err == nil || !strings.Contains(err.Error(), "no such image") {
		t.Fatalf("before it is built: %v", err)
	}
	go func() {
		if c, err := j.Door().Accept(); err == nil {
			_, _ = io.WriteString(c, "from the door\n") // the test sees it or fails
			_ = c.Close()
		}
	}()
	said, failed := j.build(ctx, actionFile, map[string]string{"entry.sh": entryFile})
	if failed != "" {
		t.Fatal(failed, said)
	}
	for _, want := range []string{"Step 2/14: COPY --from=localhost/box /bin/busybox /b/busybox\n", "\nsaid by RUN\n", "\nfrom the door\n"} {
		if !strings.Contains(said, want) {
			t.Errorf("no %q in\n%s", want, said)
		}
	}
	i, err := j.docker.ImageInspect(ctx, built)
	must(t, err)
	if i.Os != "linux" || len(i.Config.Labels) > 0 {
		t.Errorf("the image is %+v", i.Config)
	}
	same := "1000\n/made\n0\nonly-while-built, by the door\nlo\nCapEff:\t00000000000004fb\nNoNewPrivs:\t1\nSeccomp:\t2\n1000:1000:755\n"
	for want, c := range map[string]*container.Config{
		"hello default, nothing, nothing, \n" + same: {Image: built},
		"bye given, nothing, nothing, 1\n" + same:    {Image: built, Cmd: []string{"given"}, Env: []string{"A=1", "GREETING=bye"}},
		"0\n": {Image: built, Entrypoint: []string{"/bin/id", "-u"}, User: "0"},
	} {
		if out, code := j.output(c); out != want || code != 0 {
			t.Errorf("%v: %d\n%s\nwant\n%s", c.Cmd, code, out, want)
		}
	}
	// It is nobody else's.
	name, err := world.Podman(ctx, "images", "--filter", fmt.Sprintf("label=%s=41", sandbox.LabelTask), "--format", "{{.Repository}}:{{.Tag}}")
	must(t, err)
	name, _, _ = strings.Cut(name, "\n")
	other := openJob(t, sandboxes(t, "sbxother"), 44)
	for from, want := range map[string]string{name: "it has a label", "act-x-dockeraction": "no such image"} {
		if _, failed := other.build(ctx, "FROM "+from, nil); name == "" || !strings.Contains(failed, want) {
			t.Errorf("FROM %s of another job: %q", from, failed)
		}
	}
	must(t, j.Close(ctx))
	nothingOf(t, "sbx", 41)
}

func TestWhatAHostileDockerfileGets(t *testing.T) {
	ctx := t.Context()
	j := openJob(t, sandboxes(t, "sbx"), 42)
	for text, want := range map[string]string{
		"FROM localhost/not-for-jobs":                                                       "it is another repository's",
		"FROM localhost/none":                                                               "images are not fetched for jobs here",
		"FROM localhost/box\nADD http://127.0.0.1/x /x":                                     "ADD of an address (http://127.0.0.1/x) is not possible in a job",
		"FROM localhost/box\nRUN --network=host ls":                                         "RUN --network is not possible in a job",
		"FROM localhost/box\nRUN exit 7":                                                    "the command ended with 7",
		"FROM localhost/box\nUSER nobody-there\nRUN id":                                     "nobody-there",
		"FROM localhost/box\nRUN i=0; while [ $i -lt 200 ]; do sleep 60 & i=$((i+1)); done": "the command ended with",
		"FROM localhost/box\nRUN /bin/busybox dd if=/dev/zero of=/dev/null bs=200M count=1": "the command ended with",
		"FROM localhost/box\nRUN /bin/busybox dd if=/dev/zero of=/x bs=1M count=40\nRUN /bin/busybox dd if=/dev/zero of=/y bs=1M count=40": "ci.disk",
	} {
		if said, failed := j.build(ctx, text, nil); !strings.Contains(failed, want) {
			t.Errorf("%q: %q, want %q\n%s", text, failed, want, said)
		}
	}
	for query, want := range map[string]string{
		"t=localhost/box": "is no name that an image of an action has", "t=" + built + "&networkmode=host": "build with networkmode",
		"t=" + built + "&remote=http://127.0.0.1/": "build with remote", "t=" + built + "&volume=/:/host": "build with volume", "": "is no name",
	} {
		if code, text := j.send("POST", "/build?"+query, ""); code/100 != 4 || !strings.Contains(text, want) {
			t.Errorf("%s: %d %s", query, code, text)
		}
	}
	if code, text := j.send("POST", "/commit?container=x", ""); code != 403 {
		t.Errorf("a commit: %d %s", code, text)
	}
	// A build that nobody waits for ends.
	asked, leave := context.WithTimeout(ctx, time.Minute)
	defer leave()
	left := make(chan string)
	go func() {
		_, failed := j.build(asked, "FROM localhost/box\nRUN sleep 600", nil)
		left <- failed
	}()
	builds := func(want bool) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
			names, err := world.Podman(ctx, "ps", "--all", "--format", "{{.Names}} {{.Status}}", "--filter", "name=^sbx-ci-42-c-build-")
			must(t, err)
			if want == strings.Contains(names, " Up ") && (want || names == "") {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("containers of builds: %q", names)
			}
		}
	}
	builds(true)
	if _, failed := j.build(ctx, "FROM localhost/box", nil); !strings.Contains(failed, "one image at a time") {
		t.Errorf("two at once: %q", failed)
	}
	leave()
	<-left
	builds(false)
	must(t, j.Close(ctx))
	nothingOf(t, "sbx", 42)
}

// TestWorkerChild is the process that runs a job by act.
func TestWorkerChild(t *testing.T) {
	if os.Getenv(sandboxChild) == workerChild {
		must(t, worker.Main(t.Context(), os.Stdin, os.Stdout))
	}
}

const workerChild = "worker"

func TestActionsOfADockerfile(t *testing.T) {
	ctx := t.Context()
	action := map[string]string{
		"action.yml": "runs: {using: docker, image: Dockerfile, args: ['${{ inputs.who }}']}\ninputs: {who: {default: you}}\noutputs: {word: {description: x}}\n",
		"Dockerfile": "FROM localhost/box\nRUN echo hello >/greeting && echo building\nCOPY entry.sh /\nENTRYPOINT [\"/bin/sh\", \"/entry.sh\"]\n",
		"entry.sh":   "echo \"$(cat /greeting) $1 $INPUT_WHO $GITHUB_REPOSITORY\"; echo word=blue >>$GITHUB_OUTPUT\n",
	}
	dir, served := t.TempDir(), t.TempDir()
	for name, text := range action {
		must(t, os.MkdirAll(filepath.Join(dir, "say"), 0o755))
		must(t, os.WriteFile(filepath.Join(dir, "say", name), []byte(text), 0o644))
	}
	for _, args := range [][]string{
		{"-C", dir, "init", "-q"}, {"-C", dir, "add", "."}, {"-C", dir, "-c", "user.name=x", "-c", "user.email=x@example.com", "commit", "-q", "-m", "x"}, {"-C", dir, "tag", "v1"},
		{"clone", "-q", "--bare", dir, filepath.Join(served, "github.com/acts/all.git")},
	} {
		out, err := exec.CommandContext(ctx, "git", args...).CombinedOutput()
		if err != nil {
			t.Fatalf("git %v: %v\n%s", args, err, out)
		}
	}
	git, err := exec.LookPath("git")
	must(t, err)
	server := httptest.NewServer(&cgi.Handler{Path: git, Args: []string{"http-backend"}, Stderr: io.Discard, Env: []string{"GIT_PROJECT_ROOT=" + served, "GIT_HTTP_EXPORT_ALL=1", "GIT_CONFIG_GLOBAL=/dev/null"}})
	t.Cleanup(server.Close)
	j := openJob(t, sandboxes(t, "sbx"), 43)
	in, err := json.Marshal(cijob.Spec{
		Workflow: []byte(`on: push
jobs:
  b:
    runs-on: box
    steps:
      - uses: actions/checkout@v4
      - {uses: ./say, id: first}
      - {uses: ./say, with: {who: "${{ steps.first.outputs.word }}"}}
      - {uses: acts/all/say@v1, with: {who: remote}}
      - {uses: ./broken}
`), Images: map[string]string{"box": box}, Docker: j.Socket(), Actions: server.URL, Dir: dir, Timeout: 2 * time.Minute,
		Github: map[string]any{"repository": "ada/engine", "ref": "refs/heads/main", "ref_name": "main", "sha": strings.Repeat("1", 40), "event_name": "push", "actor": "ada", "run_id": "7", "server_url": "http://forge.test"},
	})
	must(t, err)
	must(t, os.MkdirAll(filepath.Join(dir, "broken"), 0o755))
	must(t, os.WriteFile(filepath.Join(dir, "broken/Dockerfile"), []byte("FROM localhost/not-for-jobs\n"), 0o644))
	cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestWorkerChild$")
	cmd.Env = append(os.Environ(), sandboxChild+"="+workerChild)
	cmd.Stdin, cmd.Stderr = bytes.NewReader(in), os.Stderr
	out, err := cmd.Output()
	must(t, err)
	var log strings.Builder
	var last cijob.Event
	for lines := bufio.NewScanner(bytes.NewReader(out)); lines.Scan() && last.Result == ""; {
		last = cijob.Event{}
		must(t, json.Unmarshal(lines.Bytes(), &last))
		if last.Line != nil {
			fmt.Fprintf(&log, "%d: %s\n", last.Step, *last.Line)
		}
	}
	for _, want := range []string{
		"1: Step 2/4: RUN echo hello >/greeting && echo building\n1: building\n", "1: hello you you ada/engine\n", "2: hello blue blue ada/engine\n", "3: hello remote remote ada/engine\n",
		"image localhost/not-for-jobs:latest: it is another repository's\n",
	} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("no %q in\n%s", want, log.String())
		}
	}
	if last.Result != cijob.Failure || strings.Contains(log.String(), "2: building") {
		t.Errorf("%+v\n%s", last, log.String())
	}
	must(t, j.Close(ctx))
	nothingOf(t, "sbx", 43)
}
