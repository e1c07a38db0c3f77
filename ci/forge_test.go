package ci_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

const password = "correct-horse-1"

// A forge is the real one of demo and tests, run from the tar of its image.
type forge struct {
	URL, dir string
	cmd      *exec.Cmd
}

var (
	theForge   *forge
	forgeError error
	forgeOnce  sync.Once
)

func TestMain(m *testing.M) {
	code := m.Run()
	if theForge != nil {
		if err := theForge.stop(); err != nil {
			fmt.Fprintln(os.Stderr, "stopping the forge:", err)
			code = 1
		}
	}
	os.Exit(code)
}

// realForge is one forge for all tests, started when the first one asks.
func realForge(t *testing.T) *forge {
	t.Helper()
	forgeOnce.Do(func() { theForge, forgeError = startForge() })
	if forgeError != nil {
		t.Fatal(forgeError)
	}
	return theForge
}

func startForge() (*forge, error) {
	dir, err := os.MkdirTemp("", "ci-forge-")
	if err != nil {
		return nil, err
	}
	f := &forge{dir: dir}
	if err := f.start(); err != nil {
		return nil, fmt.Errorf("%w; %w", err, f.stop())
	}
	return f, nil
}

func (f *forge) start() error {
	out, err := exec.Command("../compose/images/build", "forge").Output()
	if err != nil {
		return fmt.Errorf("building the forge's image: %w", err)
	}
	lines := strings.Fields(string(out))
	tar := exec.Command("tar", "-C", f.dir, "-xf", lines[len(lines)-1], "./app/gitea/gitea", "./usr/share/gitea")
	if out, err := tar.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	addr := l.Addr().String()
	l.Close()
	f.URL = "http://" + addr
	me, err := user.Current()
	if err != nil {
		return err
	}
	_, port, _ := net.SplitHostPort(addr)
	ini := fmt.Sprintf(`RUN_USER = %s
RUN_MODE = prod
I_AM_BEING_UNSAFE_RUNNING_AS_ROOT = true
[server]
HTTP_ADDR = 127.0.0.1
HTTP_PORT = %s
ROOT_URL = %s/
STATIC_ROOT_PATH = %s/usr/share/gitea
DISABLE_SSH = true
OFFLINE_MODE = true
[database]
DB_TYPE = sqlite3
PATH = %[4]s/data/forge.db
[security]
INSTALL_LOCK = true
SECRET_KEY = of-the-tests
[log]
MODE = file
LEVEL = warn
ROOT_PATH = %[4]s/log
[actions]
ENABLED = true
ZOMBIE_TASK_TIMEOUT = 2s
[webhook]
ALLOWED_HOST_LIST = loopback
`, me.Username, port, f.URL, f.dir)
	if err := os.WriteFile(f.dir+"/app.ini", []byte(ini), 0o600); err != nil {
		return err
	}
	if _, err := f.run("migrate"); err != nil {
		return err
	}
	for _, name := range []string{"person", "robot"} {
		if _, err := f.run("admin", "user", "create", "--username", name, "--password", password, "--email", name+"@example.org",
			"--admin", "--must-change-password=false"); err != nil {
			return err
		}
	}
	f.cmd = f.command("web")
	if err := f.cmd.Start(); err != nil {
		return err
	}
	for range 600 {
		resp, err := http.Get(f.URL + "/api/v1/version")
		if err == nil {
			resp.Body.Close()
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	return fmt.Errorf("the forge at %s does not answer", f.URL)
}

func (f *forge) command(args ...string) *exec.Cmd {
	cmd := exec.Command(f.dir+"/app/gitea/gitea", append(args, "--config", f.dir+"/app.ini", "--work-path", f.dir)...)
	cmd.Env = append(os.Environ(), "HOME="+f.dir, "GIT_CONFIG_SYSTEM=/dev/null")
	return cmd
}

func (f *forge) run(args ...string) (string, error) {
	out, err := f.command(args...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("forge %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out)), nil
}

func (f *forge) stop() error {
	if f.cmd != nil && f.cmd.Process != nil {
		if err := f.cmd.Process.Kill(); err != nil {
			return err
		}
		_, _ = f.cmd.Process.Wait()
	}
	return os.RemoveAll(f.dir)
}

// token is a registration token for runners.
func (f *forge) token(context.Context, int64) (string, error) {
	out, err := f.run("actions", "generate-runner-token")
	if err != nil {
		return "", err
	}
	words := strings.Fields(out) // warnings come first
	return words[len(words)-1], nil
}

// api asks the REST API as name.
func (f *forge) api(t *testing.T, name, method, path string, body, answer any) {
	t.Helper()
	b, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), method, f.URL+"/api/v1"+path, bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	req.SetBasicAuth(name, password)
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode/100 != 2 {
		t.Fatalf("%s %s: %s %s %v", method, path, resp.Status, text, err)
	}
	if answer != nil {
		if err := json.Unmarshal(text, answer); err != nil {
			t.Fatal(err)
		}
	}
}

// repo makes a repository of person, whose name begins with name, and returns its name.
func (f *forge) repo(t *testing.T, name string) string {
	t.Helper()
	name += "-" + strings.ToLower(rand.Text()) // tests may be run several times
	f.api(t, "person", "POST", "/user/repos", map[string]any{"name": name, "auto_init": true, "default_branch": "main"}, nil)
	return "person/" + name
}

// push commits files, as name, to a branch (a new one from main, if it is not main).
func (f *forge) push(t *testing.T, name, repo, branch string, files map[string]string) string {
	t.Helper()
	var list []map[string]string
	for path, text := range files {
		list = append(list, map[string]string{"operation": "create", "path": path, "content": b64(text)})
	}
	body := map[string]any{"branch": "main", "message": "files", "files": list}
	if branch != "main" {
		body["new_branch"] = branch
	}
	var answer struct {
		Commit struct {
			SHA string `json:"sha"`
		} `json:"commit"`
	}
	f.api(t, name, "POST", "/repos/"+repo+"/contents", body, &answer)
	return answer.Commit.SHA
}

// A browser is a person's session with the forge's pages.
type browser struct {
	t *testing.T
	f *forge
	c *http.Client
}

func (f *forge) browser(t *testing.T) *browser {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	b := &browser{t: t, f: f, c: &http.Client{Jar: jar}}
	b.get("/user/login")
	resp, err := b.c.PostForm(f.URL+"/user/login", url.Values{"user_name": {"person"}, "password": {password}, "_csrf": {b.csrf()}})
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	return b
}

func (b *browser) csrf() string {
	u, err := url.Parse(b.f.URL)
	if err != nil {
		b.t.Fatal(err)
	}
	for _, c := range b.c.Jar.Cookies(u) {
		if c.Name == "_csrf" {
			v, err := url.QueryUnescape(c.Value)
			if err != nil {
				b.t.Fatal(err)
			}
			return v
		}
	}
	b.t.Fatal("no _csrf cookie")
	return ""
}

func (b *browser) get(path string) string {
	b.t.Helper()
	resp, err := b.c.Get(b.f.URL + path)
	if err != nil {
		b.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != 200 {
		b.t.Fatalf("GET %s: %s %v", path, resp.Status, err)
	}
	return string(text)
}

func (b *browser) post(path, body string) []byte {
	b.t.Helper()
	req, err := http.NewRequestWithContext(b.t.Context(), "POST", b.f.URL+path, strings.NewReader(body))
	if err != nil {
		b.t.Fatal(err)
	}
	req.Header.Set("X-Csrf-Token", b.csrf())
	req.Header.Set("Content-Type", "application/json")
	resp, err := b.c.Do(req)
	if err != nil {
		b.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != 200 && !strings.Contains(string(text), "run with index") {
		b.t.Fatalf("POST %s: %s %s %v", path, resp.Status, text, err)
	}
	if resp.StatusCode != 200 {
		return []byte("{}") // the push has made no run yet
	}
	return text
}

// A view is what the page of a job shows.
type view struct {
	State struct {
		Run struct {
			Status string `json:"status"`
			Jobs   []struct {
				ID     int64  `json:"id"`
				Name   string `json:"name"`
				Status string `json:"status"`
			} `json:"jobs"`
		} `json:"run"`
		CurrentJob struct {
			Steps []struct {
				Summary string `json:"summary"`
				Status  string `json:"status"`
			} `json:"steps"`
		} `json:"currentJob"`
	} `json:"state"`
	Logs struct {
		StepsLog []struct {
			Step  int `json:"step"`
			Lines []struct {
				Message string `json:"message"`
			} `json:"lines"`
		} `json:"stepsLog"`
	} `json:"logs"`
}

// steps is what the page shows of a view's steps: name, status, lines.
func (v view) steps() string {
	lines := map[int]string{}
	for _, l := range v.Logs.StepsLog {
		for _, line := range l.Lines {
			lines[l.Step] += "|" + line.Message
		}
	}
	var all []string
	for i, s := range v.State.CurrentJob.Steps {
		all = append(all, s.Summary+" "+s.Status+lines[i])
	}
	return strings.Join(all, "\n")
}

// view is run number run's job number job, with all steps unfolded.
func (b *browser) view(repo string, run, job, steps int) view {
	b.t.Helper()
	var cursors []string
	for i := range steps + 2 {
		cursors = append(cursors, fmt.Sprintf(`{"step":%d,"cursor":null,"expanded":true}`, i))
	}
	text := b.post(fmt.Sprintf("/%s/actions/runs/%d/jobs/%d", repo, run, job), `{"logCursors":[`+strings.Join(cursors, ",")+`]}`)
	var v view
	if err := json.Unmarshal(text, &v); err != nil {
		b.t.Fatal(err)
	}
	return v
}

// ended waits until a run has ended.
func (b *browser) ended(repo string, run int) view {
	b.t.Helper()
	var v view
	eventually(b.t, func() bool {
		v = b.view(repo, run, 0, 0)
		return v.State.Run.Status != "" && v.State.Run.Status != "waiting" && v.State.Run.Status != "running" && v.State.Run.Status != "blocked"
	})
	return v
}

// eventually waits for a condition.
func eventually(t *testing.T, ok func() bool) {
	t.Helper()
	for range 600 {
		if ok() {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatal("it did not come to be so within 30 s")
}

// copyDir copies a directory's files as they are at the moment, as a kill would leave them.
func copyDir(t *testing.T, from string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "state")
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	return to
}
