// Package workertest_test runs jobs by the whole program's ci-worker on a real podman, in a
// world of its own. The service, its filter of Docker's API, and the forge are not
// there: the tests write what the service would, and read what it would.
package workertest_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/ci/job"
	"codeberg.org/devaipod/devaipod/cmd/internal/testkit"
	"codeberg.org/devaipod/devaipod/pods/podman"
)

const image = "localhost/ci:latest"

var world struct {
	*testkit.World
	program, docker string // docker is the socket that workers have
}

func TestMain(m *testing.M) { os.Exit(inWorld(m)) }

func inWorld(m *testing.M) (code int) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	fail := func(err error) int {
		fmt.Fprintln(os.Stderr, "making a podman world:", err)
		return 1
	}
	dir, err := os.MkdirTemp("", "dvw-*")
	if err != nil {
		return fail(err)
	}
	if world.World, err = testkit.NewWorld(dir); err != nil {
		return fail(err)
	}
	defer func() {
		if err := world.Remove(context.WithoutCancel(ctx)); err != nil {
			code = fail(err)
		}
	}()
	for _, kv := range world.Env() {
		name, value, _ := strings.Cut(kv, "=")
		if err := os.Setenv(name, value); err != nil {
			return fail(err)
		}
	}
	socket := filepath.Join(dir, "podman.sock")
	uri, err := podman.Find(ctx, podman.FindConfig{URI: "unix://" + socket, Start: true, SocketPath: socket, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return fail(err)
	}
	client, err := podman.Connect(ctx, uri)
	if err != nil {
		return fail(err)
	}
	if world.docker, err = askedOnce(socket, filepath.Join(dir, "docker.sock")); err != nil {
		return fail(err)
	}
	files, err := root("bash", "node")
	if err != nil {
		return fail(err)
	}
	if err := client.ImageImport(ctx, image, bytes.NewReader(files), []string{`CMD ["httpd", "-f", "-h", "/etc"]`}); err != nil {
		return fail(err)
	}
	world.program = filepath.Join(dir, "devaipod")
	build := exec.Command("go", "build", "-tags", "remote containers_image_openpgp exclude_graphdriver_btrfs btrfs_noversion nomsgpack", "-o", world.program, "codeberg.org/devaipod/devaipod/cmd/devaipod")
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		return fail(err)
	}
	return m.Run()
}

// askedOnce serves podman at another socket, and keeps what podman runs on: podman asks dpkg
// seven times for that, and a worker asks for it before each job, which is most of what the jobs
// here cost. (The service's filter answers it by itself.)
func askedOnce(socket, at string) (string, error) {
	dial := func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", socket) }
	proxy := &httputil.ReverseProxy{FlushInterval: -1, Transport: &http.Transport{DialContext: dial}, Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(&url.URL{Scheme: "http", Host: "podman"})
	}}
	info := sync.OnceValue(func() *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		proxy.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/info", nil))
		return w
	})
	l, err := net.Listen("unix", at)
	if err != nil {
		return "", err
	}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasSuffix(r.URL.Path, "/info") {
			proxy.ServeHTTP(w, r)
			return
		}
		known := info()
		maps.Copy(w.Header(), known.Header())
		w.WriteHeader(known.Code)
		_, _ = w.Write(known.Body.Bytes()) // a worker that is gone needs no answer
	}))
	if err := server.Listener.Close(); err != nil {
		return "", err
	}
	server.Listener = l
	server.Start()
	return at, nil
}

// root is a root file system of busybox, programs of this machine, and their libraries.
func root(programs ...string) ([]byte, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, d := range []string{"bin", "etc", "tmp", "var/run", "usr/bin"} {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: d + "/", Mode: 0o777}); err != nil {
			return nil, err
		}
	}
	if err := add(w, "busybox", "bin/busybox"); err != nil {
		return nil, err
	}
	for _, applet := range []string{"sh", "cat", "sleep", "id", "mkdir", "env", "tail", "head", "tr", "nc", "chown", "rm", "ls", "wget", "httpd", "base64"} {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + applet, Linkname: "busybox"}); err != nil {
			return nil, err
		}
	}
	have := map[string]bool{}
	for _, program := range programs {
		if err := add(w, program, "usr/bin/"+program); err != nil {
			return nil, err
		}
		path, err := exec.LookPath(program)
		if err != nil {
			return nil, err
		}
		libraries, err := exec.Command("ldd", path).Output()
		if err != nil {
			return nil, fmt.Errorf("ldd %s: %w", path, err)
		}
		for _, l := range regexp.MustCompile(`/\S+`).FindAllString(string(libraries), -1) {
			if !have[l] && !strings.HasSuffix(l, ":") {
				have[l] = true
				if err := add(w, l, strings.TrimPrefix(l, "/")); err != nil {
					return nil, err
				}
			}
		}
	}
	return buf.Bytes(), w.Close()
}

func add(w *tar.Writer, program, name string) error {
	if !filepath.IsAbs(program) {
		path, err := exec.LookPath(program)
		if err != nil {
			return fmt.Errorf("%w: run .ci/install", err)
		}
		program = path
	}
	data, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o755, Size: int64(len(data))}); err != nil {
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

// A ran is what was told of a job.
type ran struct {
	t      *testing.T
	events []job.Event
	log    string // all lines, "STEP: TEXT"
	last   job.Event
}

// aJob is a job's specification with the workflow in it.
func aJob(workflow string) *job.Spec {
	return &job.Spec{
		Workflow: []byte(workflow), Images: map[string]string{"box": image}, Docker: world.docker, Timeout: 2 * time.Minute,
		Github: map[string]any{
			"repository": "ada/engine", "ref": "refs/heads/main", "ref_name": "main", "sha": strings.Repeat("1", 40), "actor": "ada", "event_name": "push",
			"run_id": "7", "run_number": 3, "server_url": "http://forge.test", "api_url": "http://forge.test/api/v1", "token": "token-of-the-task",
			"event": map[string]any{"head_commit": map[string]any{"message": "the message"}},
		},
	}
}

// run runs a job to its end; seen, where it is given, is told of each event as it comes.
func run(t *testing.T, spec *job.Spec, seen func(job.Event, *os.Process)) *ran {
	t.Helper()
	in, err := json.Marshal(spec)
	must(t, err)
	cmd := exec.CommandContext(t.Context(), world.program, "ci-worker")
	cmd.Stdin = bytes.NewReader(in)
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	r := &ran{t: t}
	var text strings.Builder
	for dec := json.NewDecoder(out); dec.More(); {
		var e job.Event
		must(t, dec.Decode(&e))
		r.events = append(r.events, e)
		if e.Line != nil {
			fmt.Fprintf(&text, "%d: %s\n", e.Step, *e.Line)
		}
		if seen != nil {
			seen(e, cmd.Process)
		}
	}
	if err := cmd.Wait(); err != nil || said.Len() > 0 {
		t.Fatalf("ci-worker: %v\n%s", err, said.String())
	}
	r.log = text.String()
	if len(r.events) == 0 || r.events[len(r.events)-1].Result == "" {
		t.Fatalf("no result was told\n%s", r.log)
	}
	r.last = r.events[len(r.events)-1]
	return r
}

func (r *ran) wants(result string) {
	r.t.Helper()
	if r.last.Result != result {
		r.t.Fatalf("result %q (%s), want %q\n%s", r.last.Result, r.last.Reason, result, r.log)
	}
}

func (r *ran) says(lines ...string) {
	r.t.Helper()
	for _, line := range lines {
		if !strings.Contains(r.log, line+"\n") {
			r.t.Errorf("no line %q in\n%s", line, r.log)
		}
	}
}

func (r *ran) hides(texts ...string) {
	r.t.Helper()
	all, err := json.Marshal(r.events)
	must(r.t, err)
	for _, text := range texts {
		if bytes.Contains(all, []byte(text)) {
			r.t.Errorf("%q is told in\n%s", text, r.log)
		}
	}
}

// steps are the results of the steps, in order of their ends.
func (r *ran) steps() string {
	var out []string
	for _, e := range r.events {
		if e.Ended != "" {
			out = append(out, fmt.Sprintf("%d %s", e.Step, e.Ended))
		}
	}
	return strings.Join(out, ", ")
}

func (r *ran) ended(want string) {
	r.t.Helper()
	if got := r.steps(); got != want {
		r.t.Errorf("steps ended %s\nwant %s\n%s", got, want, r.log)
	}
}

// actions serves repositories by git's own server on loopback, and returns its address.
// Each is made of files, with a tag v1.
func actions(t *testing.T, repos map[string]map[string]string) (address string, commits map[string]string) {
	t.Helper()
	dir := t.TempDir()
	commits = map[string]string{}
	for name, files := range repos {
		work := t.TempDir()
		for path, text := range files {
			must(t, os.MkdirAll(filepath.Dir(filepath.Join(work, path)), 0o700))
			must(t, os.WriteFile(filepath.Join(work, path), []byte(text), 0o600))
		}
		git(t, work, "init", "-q", "-b", "main")
		git(t, work, "add", ".")
		git(t, work, "commit", "-q", "-m", "all")
		git(t, work, "tag", "v1")
		git(t, dir, "clone", "-q", "--bare", work, filepath.Join(dir, name+".git"))
		commits[name] = git(t, work, "rev-parse", "HEAD")
	}
	path, err := exec.LookPath("git")
	must(t, err)
	s := httptest.NewServer(&cgi.Handler{
		Path: path, Args: []string{"http-backend"}, Stderr: io.Discard,
		Env: []string{"GIT_PROJECT_ROOT=" + dir, "GIT_HTTP_EXPORT_ALL=1", "GIT_CONFIG_GLOBAL=/dev/null"},
	})
	t.Cleanup(s.Close)
	return s.URL, commits
}

func git(t *testing.T, dir string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "git", append([]string{"-c", "user.name=x", "-c", "user.email=x@example.com"}, args...)...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("git %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}
