package main_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/ci"
	"codeberg.org/devaipod/devaipod/cmd/internal/testkit"
)

// fiveJobs is a workflow of five jobs, each of two steps: one, three that need it, and one
// that needs those.
const fiveJobs = `on: push
jobs:
  a: {runs-on: here, steps: [{run: "echo out-of-$(echo a)"}, {run: "true"}]}
  b: {runs-on: here, needs: a, steps: [{run: "true"}, {run: "true"}]}
  c: {runs-on: here, needs: a, steps: [{run: "true"}, {run: "true"}]}
  d: {runs-on: here, needs: a, steps: [{run: "true"}, {run: "true"}]}
  e: {runs-on: here, needs: [b, c, d], steps: [{run: "true"}, {run: "true"}]}
`

// firstOutput is what the first step of it prints.
const firstOutput = "out-of-a"

// BenchmarkCI runs a workflow by a push to the forge, and by act's command line, of the
// release that the runner is made of, on the same podman and image, in turn. Ours begins
// with git push; theirs has no forge, and begins with act.
func BenchmarkCI(b *testing.B) {
	s := bench(b)
	act := buildAct(b)
	_, clone := s.benchWorkflow(b, "ci", fiveJobs)
	var first, whole [2][]float64
	for round := range 1 + rounds {
		s.benchCommit(b, clone, 0)
		f, w := s.oursOfFive(b, clone)
		actFirst, actWhole := s.actOfFive(b, act, clone)
		b.Logf("round %d: first output %.2f s, act %.2f s; all %.2f s, act %.2f s", round, f, actFirst, w, actWhole)
		if round == 0 {
			continue
		}
		first[0], first[1] = append(first[0], f), append(first[1], actFirst)
		whole[0], whole[1] = append(whole[0], w), append(whole[1], actWhole)
	}
	report(b, map[string]float64{
		"s-first": median(first[0]), "act-s-first": median(first[1]), "ratio-first": median(first[0]) / median(first[1]),
		"s-all": median(whole[0]), "act-s-all": median(whole[1]), "ratio-all": median(whole[0]) / median(whole[1]),
	})
}

// benchWorkflow makes a repository with a workflow that is not pushed yet, and has the service
// run jobs until the benchmark's end.
func (s *suite) benchWorkflow(b *testing.B, name, text string) (repo, clone string) {
	b.Helper()
	repo = s.benchRepo(b, name)
	s.serveWith(b, "DEVAIPOD_CI_RUNNER=builtin", "DEVAIPOD_CI_IMAGES=here="+testkit.AgentImage)
	b.Cleanup(func() { s.serveWith(b) })
	remote, err := url.Parse(s.ForgeURL())
	if err != nil {
		b.Fatal(err)
	}
	remote.User = url.UserPassword(person, s.password)
	clone = filepath.Join(b.TempDir(), "clone")
	s.benchGit(b, "/", "clone", "-q", remote.String()+"/"+repo+".git", clone)
	if err := os.MkdirAll(filepath.Join(clone, ".gitea/workflows"), 0o755); err != nil {
		b.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(clone, ".gitea/workflows/ci.yml"), []byte(text), 0o600); err != nil {
		b.Fatal(err)
	}
	return repo, clone
}

// buildAct makes act's command line, of the release in go.mod.
func buildAct(b *testing.B) string {
	b.Helper()
	const module = "github.com/nektos/act"
	version, err := exec.Command("go", "list", "-m", "-f", "{{.Version}}", module).Output()
	if err != nil {
		b.Fatal(err)
	}
	dir := b.TempDir()
	cmd := exec.Command("go", "install", module+"@"+strings.TrimSpace(string(version)))
	cmd.Env = append(os.Environ(), "GOBIN="+dir, "GOFLAGS=", "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("building act: %v %s", err, out)
	}
	return filepath.Join(dir, "act")
}

// serveWith restarts the service with variables.
func (s *suite) serveWith(b *testing.B, env ...string) {
	b.Helper()
	pid := s.servicePid(b)
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		b.Fatal(err)
	}
	s.wait(b, "the service's end", func() (bool, error) { return syscall.Kill(pid, 0) != nil, nil })
	var said bytes.Buffer
	if err := s.Run(s.ctx, testkit.Call{Args: []string{"forge", "up", "-d"}, Env: env, Stdout: &said, Stderr: &said}); err != nil {
		b.Fatalf("%v %s", err, &said)
	}
}

// oursOfFive pushes, and tells after how many seconds the first step's output was on record, and
// when the last job had ended.
func (s *suite) oursOfFive(b *testing.B, clone string) (first, whole float64) {
	b.Helper()
	start := time.Now()
	store := ci.OpenStore(filepath.Join(s.StateDir, "ci"))
	for _, j := range s.benchJobs(b, clone, 5) {
		whole = max(whole, j.Ended.Sub(start).Seconds())
		if j.Job == "a" {
			first = outputAt(b, store.LogFile(j.Task)).Sub(start).Seconds()
		}
	}
	return first, whole
}

// benchJobs pushes, and waits until n jobs have succeeded.
func (s *suite) benchJobs(b *testing.B, clone string, n int) (jobs []ci.Record) {
	b.Helper()
	head, err := exec.Command("git", "-C", clone, "rev-parse", "HEAD").Output()
	if err != nil {
		b.Fatal(err)
	}
	commit := strings.TrimSpace(string(head))
	s.benchGit(b, clone, "push", "-q", "origin", "HEAD:main")
	store := ci.OpenStore(filepath.Join(s.StateDir, "ci"))
	s.wait(b, "jobs of "+commit, func() (bool, error) {
		all, err := store.List()
		jobs = slices.DeleteFunc(all, func(r ci.Record) bool { return r.Commit != commit })
		return len(jobs) == n, err
	})
	for _, j := range jobs {
		if j.Result != "success" {
			b.Fatalf("%s: %s %s", j.Job, j.Result, j.Reason)
		}
	}
	return jobs
}

// outputAt is when the first step's output got into a log.
func outputAt(b *testing.B, file string) time.Time {
	b.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		at, row, _ := strings.Cut(strings.TrimSpace(line), " ")
		if row != firstOutput {
			continue
		}
		t, err := time.Parse(time.RFC3339Nano, at)
		if err != nil {
			b.Fatal(err)
		}
		return t
	}
	b.Fatalf("the first step's output is not in the log:\n%s", text)
	return time.Time{}
}

// actOfFive runs act in the clone, and tells after how many seconds it printed the first step's
// output, and when it had ended.
func (s *suite) actOfFive(b *testing.B, act, clone string) (first, whole float64) {
	b.Helper()
	cmd := exec.Command(act, "push", "--directory", clone, "--workflows", ".gitea/workflows", "--platform", "here="+testkit.AgentImage,
		"--pull=false", "--no-cache-server", "--container-daemon-socket", "-", "--concurrent-jobs", "2")
	cmd.Env = append(s.Environ(), "HOME="+b.TempDir(), "ACT_DISABLE_VERSION_CHECK=1", "DOCKER_HOST=unix://"+filepath.Join(s.StateDir, "podman.sock"))
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	cmd.Stderr = cmd.Stdout
	start := time.Now()
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	var said strings.Builder
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		said.WriteString(lines.Text() + "\n")
		if first == 0 && strings.HasSuffix(strings.TrimSpace(lines.Text()), firstOutput) {
			first = time.Since(start).Seconds()
		}
	}
	if err := errors.Join(lines.Err(), cmd.Wait()); err != nil || first == 0 {
		b.Fatalf("act: %v\n%s", err, &said)
	}
	return first, time.Since(start).Seconds()
}

// clock is a workflow whose step prints the time, four times a second.
const clock = `on: push
jobs:
  clock: {runs-on: here, steps: [{run: "for i in $(seq 60); do date +%s.%N; sleep 0.25; done"}]}
`

// BenchmarkCILog is the time from a line's being printed in a job to when the forge gives it to the
// page of the job's run, which asks once a second; here it is asked twenty times a second.
func BenchmarkCILog(b *testing.B) {
	s := bench(b)
	repo, clone := s.benchWorkflow(b, "ci-log", clock)
	page := s.runPage(b, repo, 1)
	s.benchCommit(b, clone, 0)
	ended := make(chan struct{})
	var late []float64
	go func() {
		defer close(ended)
		seen := map[string]bool{}
		for len(seen) < 60 && b.Context().Err() == nil {
			for _, line := range page() {
				at, err := strconv.ParseFloat(line, 64)
				if err != nil || seen[line] {
					continue
				}
				seen[line] = true
				late = append(late, float64(time.Now().UnixNano())/1e6-at*1e3)
			}
			time.Sleep(50 * time.Millisecond)
		}
	}()
	s.benchJobs(b, clone, 1)
	<-ended
	report(b, map[string]float64{"ms-line-median": median(late), "ms-line-max": slices.Max(late), "lines": float64(len(late))})
}

// runPage logs in to the forge, and gives what asks as the page of a run does for the lines of the
// first job's first step; none while there is no such run.
func (s *suite) runPage(b *testing.B, repo string, run int) func() []string {
	b.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		b.Fatal(err)
	}
	forge, err := url.Parse(s.ForgeURL())
	if err != nil {
		b.Fatal(err)
	}
	c := &http.Client{Jar: jar}
	csrf := func() string {
		for _, c := range jar.Cookies(forge) {
			if v, err := url.QueryUnescape(c.Value); c.Name == "_csrf" && err == nil {
				return v
			}
		}
		return ""
	}
	login := s.ForgeURL() + "/user/login"
	for _, ask := range []func() (*http.Response, error){
		func() (*http.Response, error) { return c.Get(login) },
		func() (*http.Response, error) {
			return c.PostForm(login, url.Values{"user_name": {person}, "password": {s.password}, "_csrf": {csrf()}})
		},
	} {
		resp, err := ask()
		if err != nil {
			b.Fatal(err)
		}
		if resp.Body.Close(); resp.StatusCode != http.StatusOK {
			b.Fatalf("%s answered %s", login, resp.Status)
		}
	}
	return func() (lines []string) {
		body := strings.NewReader(`{"logCursors":[{"step":0,"cursor":null,"expanded":true},{"step":1,"cursor":null,"expanded":true}]}`)
		req, err := http.NewRequestWithContext(s.ctx, http.MethodPost, fmt.Sprintf("%s/%s/actions/runs/%d/jobs/0", s.ForgeURL(), repo, run), body)
		if err != nil {
			b.Error(err)
			return nil
		}
		req.Header.Set("X-Csrf-Token", csrf())
		req.Header.Set("Content-Type", "application/json")
		resp, err := c.Do(req)
		if err != nil {
			b.Error(err)
			return nil
		}
		defer resp.Body.Close()
		var v struct {
			Logs struct {
				StepsLog []struct {
					Lines []struct {
						Message string `json:"message"`
					} `json:"lines"`
				} `json:"stepsLog"`
			} `json:"logs"`
		}
		if resp.StatusCode != http.StatusOK {
			return nil // the push has made no run yet
		}
		if err := json.NewDecoder(resp.Body).Decode(&v); err != nil {
			b.Error(err)
		}
		for _, step := range v.Logs.StepsLog {
			for _, l := range step.Lines {
				lines = append(lines, l.Message)
			}
		}
		return lines
	}
}

// cached is a workflow that makes 100 MB, in which a sleep stands for twenty seconds of fetching and
// compiling, unless they are in the cache.
const cached = `on: push
jobs:
  deps:
    runs-on: here
    steps:
      - run: |
          cache=${ACTIONS_CACHE_URL}_apis/artifactcache
          found=$(curl -sSf "$cache/cache?keys=deps&version=v" | jq -r .archiveLocation)
          if [ "$found" ]; then curl -sSf "$found" >deps; test $(stat -c %s deps) = 104857600; exit; fi
          sleep 20
          head -c 100M /dev/urandom >deps
          id=$(curl -sSf -d '{"key":"deps","version":"v"}' "$cache/caches" | jq .cacheId)
          curl -sSf -X PATCH -H 'Content-Range: bytes 0-104857599/*' --data-binary @deps "$cache/caches/$id"
          curl -sSf -d '{"size":104857600}' "$cache/caches/$id"
`

// BenchmarkCICached is the time of a job that saves into the cache, and of the next, which restores.
func BenchmarkCICached(b *testing.B) {
	s := bench(b)
	_, clone := s.benchWorkflow(b, "ci-cached", cached)
	var took [2]float64
	for i := range took {
		s.benchCommit(b, clone, 0)
		j := s.benchJobs(b, clone, 1)[0]
		took[i] = j.Ended.Sub(j.Started).Seconds()
	}
	report(b, map[string]float64{"s-first": took[0], "s-second": took[1], "ratio": took[1] / took[0]})
}
