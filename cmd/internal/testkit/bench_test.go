package testkit_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/podapi"
	"codeberg.org/devaipod/devaipod/pods"
	"codeberg.org/devaipod/devaipod/pods/podfile"
)

// BenchmarkPod makes pods until their pod-api answers, stops, wakes and removes them,
// in turn with the same by testdata/pod.sh, podman's own commands: one at a time, and
// ten at once.
func BenchmarkPod(b *testing.B) {
	w := newByHand(b)
	for _, tt := range []struct {
		name         string
		rounds, pods int
	}{{"one", 10, 1}, {"ten", 2, 10}} {
		b.Run(tt.name, func(b *testing.B) {
			took := map[string][2][]float64{}
			for round := range 1 + tt.rounds { // the first does not count
				for i := range 2 {
					way := (i + round) % 2
					for _, verb := range []string{"up", "stop", "wake", "rm"} {
						s := w.timed(b, way, verb, tt.pods)
						if all := took[verb]; round > 0 {
							all[way] = append(all[way], s)
							took[verb] = all
						}
					}
				}
			}
			b.ReportMetric(0, "ns/op")
			for verb, both := range took {
				b.ReportMetric(middle(both[0]), verb+"-s")
				b.ReportMetric(middle(both[0])/middle(both[1]), verb+"-ratio")
			}
		})
	}
}

func middle(all []float64) float64 {
	slices.Sort(all)
	return all[len(all)/2]
}

// byHand is what makes pods either way.
type byHand struct {
	m     *pods.Manager
	tools string
	env   []string
}

func newByHand(b *testing.B) *byHand {
	m, tools := podManager(b, "bench")
	_, err := m.Ensure(b.Context(), spec(tools, benchKey(0))) // for the profile
	must(b, err)
	must(b, m.Remove(b.Context(), benchKey(0)))
	profiles, err := filepath.Glob(filepath.Join(world.Dir, "bench", "seccomp*"))
	if err != nil || len(profiles) != 1 {
		b.Fatalf("profiles: %v, %v", profiles, err)
	}
	return &byHand{m, tools, append(os.Environ(), "IMAGE="+box, "TOOLS="+tools, "SECCOMP="+profiles[0])}
}

func benchKey(i int) pods.Key { return pods.Key{Owner: "ann", Repo: "hello", Issue: int64(i + 1)} }

// timed does a verb to some pods at once and returns the seconds that it took.
func (w *byHand) timed(b *testing.B, way int, verb string, n int) float64 {
	b.Helper()
	if way == 1 && verb == "up" {
		w.rooms(b, n)
	}
	start := time.Now()
	var wait sync.WaitGroup
	errs := make([]error, n)
	for i := range n {
		wait.Go(func() {
			if way == 0 {
				errs[i] = w.ours(b, verb, benchKey(i))
			} else {
				errs[i] = w.theirs(b, verb, i)
			}
		})
	}
	wait.Wait()
	must(b, errors.Join(errs...))
	return time.Since(start).Seconds()
}

func (w *byHand) ours(b *testing.B, verb string, k pods.Key) error {
	var err error
	switch verb {
	case "up":
		_, err = w.m.Ensure(b.Context(), spec(w.tools, k))
	case "stop":
		return w.m.Stop(b.Context(), k)
	case "wake":
		err = w.m.Resume(b.Context(), k)
	case "rm":
		return w.m.Remove(b.Context(), k)
	}
	return errors.Join(err, answers(b, w.m.RunDir(k)))
}

func (w *byHand) room(i int) string { return filepath.Join(world.Dir, fmt.Sprintf("h%d", i)) }

// rooms makes the directories of the host that pods made by hand are given.
func (w *byHand) rooms(b *testing.B, n int) {
	b.Helper()
	for i := range n {
		run, s := filepath.Join(w.room(i), "run"), spec(w.tools, benchKey(i))
		must(b, os.RemoveAll(w.room(i)))
		must(b, os.MkdirAll(filepath.Join(w.room(i), "usage"), 0o700))
		must(b, os.MkdirAll(filepath.Join(run, podfile.SaveFolder), 0o755))
		must(b, podfile.WritePolicy(run, podfile.Policy{}))
		must(b, podfile.Write(run, &podfile.File{
			Instance: "bench", Pod: fmt.Sprintf("hand%d", i), Repo: s.Owner + "/" + s.Repo, Issue: s.Issue, Branch: s.Branch, BranchPrefix: pods.BranchPrefix(s.Issue), Base: s.Base,
			AgentToken: "x", WorkspaceToken: "y", Agent: pods.AgentName, Model: s.Model, Task: s.Task,
		}))
	}
}

func (w *byHand) theirs(b *testing.B, verb string, i int) error {
	cmd := exec.CommandContext(b.Context(), "testdata/pod.sh", verb, fmt.Sprintf("hand%d", i))
	cmd.Env = append(slices.Clone(w.env), "RUN="+filepath.Join(w.room(i), "run"), "USAGE="+filepath.Join(w.room(i), "usage"))
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("pod.sh %s: %w\n%s", verb, err, out)
	}
	if verb == "up" || verb == "wake" {
		return answers(b, filepath.Join(w.room(i), "run"))
	}
	return nil
}

// answers waits for a pod-api.
func answers(b *testing.B, runDir string) error {
	client := podapi.NewClient(filepath.Join(runDir, podfile.ControlSocket))
	for {
		_, err := client.Summary(b.Context())
		if err == nil || b.Context().Err() != nil {
			return err
		}
		time.Sleep(5 * time.Millisecond)
	}
}
