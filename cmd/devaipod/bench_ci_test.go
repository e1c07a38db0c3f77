package main_test

import (
	"bufio"
	"bytes"
	"errors"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
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
	repo := s.benchRepo(b, "ci")
	act := buildAct(b)
	s.serveWith(b, "DEVAIPOD_CI_RUNNER=builtin", "DEVAIPOD_CI_IMAGES=here="+testkit.AgentImage)
	b.Cleanup(func() { s.serveWith(b) })
	remote, err := url.Parse(s.ForgeURL())
	if err != nil {
		b.Fatal(err)
	}
	remote.User = url.UserPassword(person, s.password)
	clone := filepath.Join(b.TempDir(), "clone")
	s.benchGit(b, "/", "clone", "-q", remote.String()+"/"+repo+".git", clone)
	if err := os.MkdirAll(filepath.Join(clone, ".gitea/workflows"), 0o755); err != nil {
		b.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(clone, ".gitea/workflows/ci.yml"), []byte(fiveJobs), 0o600); err != nil {
		b.Fatal(err)
	}
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
	head, err := exec.Command("git", "-C", clone, "rev-parse", "HEAD").Output()
	if err != nil {
		b.Fatal(err)
	}
	commit := strings.TrimSpace(string(head))
	start := time.Now()
	s.benchGit(b, clone, "push", "-q", "origin", "HEAD:main")
	store := ci.OpenStore(filepath.Join(s.StateDir, "ci"))
	var jobs []ci.Record
	s.wait(b, "five jobs of "+commit, func() (bool, error) {
		all, err := store.List()
		jobs = slices.DeleteFunc(all, func(r ci.Record) bool { return r.Commit != commit })
		return len(jobs) == 5, err
	})
	for _, j := range jobs {
		if j.Result != "success" {
			b.Fatalf("%s: %s %s", j.Job, j.Result, j.Reason)
		}
		whole = max(whole, j.Ended.Sub(start).Seconds())
		if j.Job == "a" {
			first = outputAt(b, store.LogFile(j.Task)).Sub(start).Seconds()
		}
	}
	return first, whole
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
