package main_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/cmd/internal/testkit"
	"codeberg.org/devaipod/devaipod/pods"
	"codeberg.org/devaipod/devaipod/pods/podfile"
)

// `make bench`: the whole program on the suite's real parts. Nothing here
// asserts a time; what is compared runs in turn with what it is compared to.

// bench is the suite, up and running.
func bench(b *testing.B) *suite {
	b.Helper()
	running.once.Do(func() { running.s, running.err = start(suiteContext) })
	if running.err != nil {
		b.Fatal(running.err)
	}
	return running.s
}

// report puts out one figure of a benchmark; the time of its function, which
// testing measures, is none.
func report(b *testing.B, figures map[string]float64) {
	b.Helper()
	b.ReportMetric(0, "ns/op")
	for unit, v := range figures {
		b.ReportMetric(v, unit)
	}
}

// rounds is how often the two ways from a task to the agent's first request are
// gone, in turn, after one round that does not count.
const rounds = 5

// BenchmarkLabelToFirstRequest is the time from the label to the agent's first
// request, seen at the model, and that of testdata/bench/baseline.sh.
func BenchmarkLabelToFirstRequest(b *testing.B) {
	s := bench(b)
	repo := s.benchRepo(b, "bench")
	var ours, theirs, ratios []float64
	for round := range 1 + rounds {
		a, c := s.oursToFirstRequest(b, repo), s.baselineToFirstRequest(b, repo)
		b.Logf("round %d: devaipod %.2f s, baseline %.2f s", round, a, c)
		if round > 0 {
			ours, theirs, ratios = append(ours, a), append(theirs, c), append(ratios, a/c)
		}
	}
	report(b, map[string]float64{
		"s-min": slices.Min(ours), "s-median": median(ours),
		"baseline-s-min": slices.Min(theirs), "baseline-s-median": median(theirs),
		"ratio-of-medians": median(ours) / median(theirs), "ratio-median": median(ratios),
	})
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

// benchRepo makes a repository and waits until the service has given it labels.
func (s *suite) benchRepo(b *testing.B, name string) string {
	b.Helper()
	repo := person + "/" + name
	if err := s.api(person).Post(s.ctx, "/user/repos", map[string]any{"name": name, "auto_init": true, "default_branch": "main"}, nil); err != nil {
		b.Fatal(err)
	}
	s.wait(b, "the labels of "+repo, func() (bool, error) {
		var labels []testkit.Label
		err := s.api(person).Get(s.ctx, "/repos/"+repo+"/labels", &labels)
		return len(labels) >= 7, err
	})
	return repo
}

// wait asks cond until it holds.
func (s *suite) wait(b *testing.B, what string, cond func() (bool, error)) {
	b.Helper()
	for end := time.Now().Add(3 * time.Minute); ; {
		ok, err := cond()
		if ok && err == nil {
			return
		}
		if err = errors.Join(err, s.ctx.Err()); time.Now().After(end) || s.ctx.Err() != nil {
			b.Fatalf("waited in vain for %s: %v\n%s", what, err, s.dump(""))
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// benchTask is one that the agent ends with its first answer.
const benchTask = "no-commits"

// firstRequest is when the model was first asked about a nonce.
func (s *suite) firstRequest(b *testing.B, nonce string) (at time.Time) {
	b.Helper()
	s.wait(b, "the agent's first request", func() (bool, error) {
		for _, r := range s.script.Requests() {
			if strings.Contains(r.User, nonce) {
				at = r.At
				return true, nil
			}
		}
		return false, nil
	})
	return at
}

func (s *suite) oursToFirstRequest(b *testing.B, repo string) float64 {
	b.Helper()
	proof := testkit.NewProof()
	issue, err := s.api(person).CreateIssue(s.ctx, repo, "A task for the bench", proof.Task(benchTask))
	if err != nil {
		b.Fatal(err)
	}
	start := time.Now()
	if err := s.api(person).Label(s.ctx, repo, issue.Number, "devaipod"); err != nil {
		b.Fatal(err)
	}
	took := s.firstRequest(b, proof.Nonce).Sub(start).Seconds()
	s.endIssue(b, repo, issue.Number)
	return took
}

// endIssue removes an issue's pod.
func (s *suite) endIssue(b *testing.B, repo string, n int64) {
	b.Helper()
	if err := s.Run(s.ctx, testkit.Call{Args: []string{"rm", "--force", fmt.Sprintf("%s#%d", repo, n)}}); err != nil {
		b.Fatal(err)
	}
}

func (s *suite) baselineToFirstRequest(b *testing.B, repo string) float64 {
	b.Helper()
	proof := testkit.NewProof()
	name := s.Instance + "-baseline"
	addr, err := testkit.FreeAddr("")
	if err != nil {
		b.Fatal(err)
	}
	_, port, _ := strings.Cut(addr, ":")
	cmd := exec.CommandContext(s.ctx, "testdata/bench/baseline.sh", name, testkit.AgentImage, s.cloneURL(repo), "agent/baseline", port)
	cmd.Stdin = strings.NewReader(proof.Task(benchTask))
	cmd.Env = append(s.World.Environ(), "GIT_TERMINAL_PROMPT=0", "OPENCODE_CONFIG_CONTENT="+s.baselineConfig())
	for _, v := range []string{"PROJECT_CONFIG", "MODELS_FETCH", "AUTOUPDATE", "LSP_DOWNLOAD", "SHARE", "DEFAULT_PLUGINS"} {
		cmd.Env = append(cmd.Env, "OPENCODE_DISABLE_"+v+"=1")
	}
	start := time.Now()
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("%v\n%s", err, out)
	}
	took := s.firstRequest(b, proof.Nonce).Sub(start).Seconds()
	for _, args := range [][]string{{"rm", "--force", "--time", "1", name}, {"volume", "rm", name + "-home", name + "-workspace"}} {
		if _, err := s.World.Podman(s.ctx, args...); err != nil {
			b.Fatal(err)
		}
	}
	return took
}

// cloneURL is a repository's with the person's password in it.
func (s *suite) cloneURL(repo string) string {
	return strings.Replace(s.ForgeURL(), "://", "://"+person+":"+s.password+"@", 1) + "/" + repo + ".git"
}

// baselineConfig is the pods' own, with the model where the gate was.
func (s *suite) baselineConfig() string {
	config := pods.OpencodeConfig(podfile.Model{API: podfile.APIOpenAI, Name: modelName}, modelKey)
	return strings.Replace(config, "http://"+podfile.GateAddr+"/model/v1", s.ModelURL, 1)
}

// BenchmarkPassOverAThousandIssues is a pass in which nothing has changed.
func BenchmarkPassOverAThousandIssues(b *testing.B) {
	c := newCrowd(b, 1000)
	c.settle(b)
	var took []float64
	var calls int64
	for range 20 {
		start := time.Now()
		calls += c.pass(b)
		took = append(took, float64(time.Since(start).Microseconds())/1000)
	}
	// Its end is known by one more question to the forge, which is in the time.
	report(b, map[string]float64{"calls/pass": float64(calls) / 20, "ms-median/pass": median(took), "ms-min/pass": slices.Min(took)})
}

// manyPods is how many pods there are in BenchmarkService.
const manyPods = 20

// BenchmarkService is the service's memory, and the time from its process's
// start until it is ready, without pods and with twenty. An agent there is a
// process that does nothing: it is the service that is measured, and twenty
// opencodes are 7 GB.
func BenchmarkService(b *testing.B) {
	s := bench(b)
	repo := s.benchRepo(b, "many")
	s.lightAgent(b)
	idleReady := s.restart(b)
	time.Sleep(10 * time.Second)
	idle := s.resident(b)
	for n := range manyPods {
		issue, err := s.api(person).CreateIssue(s.ctx, repo, fmt.Sprint("One of twenty, ", n), "x")
		if err == nil {
			err = s.api(person).Label(s.ctx, repo, issue.Number, "devaipod")
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	s.wait(b, "twenty pods", func() (bool, error) {
		out, err := s.World.Podman(s.ctx, "ps", "--filter", "label=devaipod.repo="+repo, "--format", "{{.Names}}")
		return strings.Count(out, "\n") == 4*manyPods, err
	})
	time.Sleep(20 * time.Second) // a pass, and ten looks at each
	many := s.resident(b)
	report(b, map[string]float64{
		"MB-idle": idle, "MB-with-20-pods": many, "s-to-ready": idleReady, "s-to-ready-with-20-pods": s.restart(b),
	})
	// It is the last one: the pods end with the suite's world.
}

// lightAgent makes the service start pods whose opencode is a sleep, any number
// at a time.
func (s *suite) lightAgent(b *testing.B) {
	b.Helper()
	const image = "localhost/devaipod/light:latest"
	fake := filepath.Join(b.TempDir(), "opencode")
	if err := os.WriteFile(fake, []byte("#!/bin/sh\nexec sleep infinity\n"), 0o755); err != nil {
		b.Fatal(err)
	}
	for _, args := range [][]string{
		{"create", "--pull", "never", "--name", "light", testkit.AgentImage}, {"cp", fake, "light:/usr/local/bin/opencode"},
		{"commit", "--quiet", "light", image}, {"rm", "light"},
	} {
		if _, err := s.World.Podman(s.ctx, args...); err != nil {
			b.Fatal(err)
		}
	}
	before, err := os.ReadFile(s.ConfigFile)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := os.WriteFile(s.ConfigFile, before, 0o600); err != nil {
			b.Error(err)
		}
	})
	config := strings.Replace(string(before), "image = "+strconv.Quote(testkit.AgentImage), "image = "+strconv.Quote(image)+"\nmax = 0", 1)
	if err := os.WriteFile(s.ConfigFile, []byte(config), 0o600); err != nil {
		b.Fatal(err)
	}
}

// servicePid is the service's process.
func (s *suite) servicePid(b *testing.B) int {
	b.Helper()
	text, err := os.ReadFile(filepath.Join(s.StateDir, "service.pid"))
	if err != nil {
		b.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		b.Fatal(err)
	}
	return pid
}

// restart kills the service, starts it anew in the foreground's way, and tells
// how long it took to be ready; then it hands over to one in the background.
func (s *suite) restart(b *testing.B) float64 {
	b.Helper()
	if err := syscall.Kill(s.servicePid(b), syscall.SIGKILL); err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	serve := exec.CommandContext(ctx, filepath.Join(s.Bin, "devaipod"), "serve")
	serve.Env = s.Environ()
	time.Sleep(time.Second)
	start := time.Now()
	if err := serve.Start(); err != nil {
		b.Fatal(err)
	}
	s.wait(b, "the service", func() (bool, error) {
		resp, err := http.Get(s.ServiceURL() + "/readyz")
		if err != nil {
			return false, err
		}
		return resp.StatusCode == http.StatusOK, resp.Body.Close()
	})
	took := time.Since(start).Seconds()
	cancel()
	_ = serve.Wait() // killed
	if err := s.Run(s.ctx, testkit.Call{Args: []string{"forge", "up", "-d"}}); err != nil {
		b.Fatal(err)
	}
	return took
}

// resident is the service's memory in MB.
func (s *suite) resident(b *testing.B) float64 {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.servicePid(b)))
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "VmRSS:" {
			kb, err := strconv.ParseFloat(f[1], 64)
			if err != nil {
				b.Fatal(err)
			}
			return kb / 1024
		}
	}
	b.Fatal("the service's memory is not known")
	return 0
}
