package main_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	main "codeberg.org/devaipod/devaipod/cmd/devaipod-pod"
	"codeberg.org/devaipod/devaipod/cmd/internal/scriptedmodel"
)

func lastResult(calls []scriptedmodel.ToolCall) string {
	if len(calls) == 0 {
		return ""
	}
	return calls[len(calls)-1].Result
}

// inNamespace lists the processes that share a pid namespace with pid.
func inNamespace(t *testing.T, ns string) (pids []int, zombies int) {
	t.Helper()
	found, err := filepath.Glob("/proc/[0-9]*/ns/pid")
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range found {
		if got, err := os.Readlink(link); err != nil || got != ns {
			continue // another's, or gone meanwhile
		}
		pid, err := strconv.Atoi(strings.Split(link, "/")[2])
		if err != nil {
			t.Fatal(err)
		}
		pids = append(pids, pid)
		if b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat")); err == nil && bytes.Contains(b, []byte(") Z ")) {
			zombies++
		}
	}
	return pids, zombies
}

func TestPID1ReapsOrphansAndEndsTheTree(t *testing.T) {
	t.Parallel()
	p := newPod(t, "")
	p.startControl()
	ready := p.path("ready")
	// Orphans that end, and a daemon in a session of its own that is deaf.
	shim := p.startShim("sh", "-c", `for i in 1 2 3; do sh -c 'sleep 0.1 &'; done
		setsid sh -c 'trap "" TERM; touch `+ready+`; while :; do sleep 1; done' &
		trap 'exit 0' TERM; while :; do sleep 0.1; done`)
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if _, err := os.Stat(ready); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the agent does not run")
		}
	}
	ns, err := os.Readlink(filepath.Join("/proc", strconv.Itoa(shim.cmd.Process.Pid), "ns", "pid"))
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(500 * time.Millisecond)
	if pids, zombies := inNamespace(t, ns); len(pids) < 3 || zombies > 0 {
		t.Errorf("%d processes, %d of them zombies", len(pids), zombies)
	}
	start := time.Now()
	if code := shim.kill(t, syscall.SIGTERM); code != 143 {
		t.Errorf("ended with %d", code)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("the end took %s", took)
	}
	if pids, _ := inNamespace(t, ns); len(pids) > 0 {
		t.Errorf("processes %v are left", pids)
	}
}

func TestTheAgentsExitCodeIsTheShims(t *testing.T) {
	t.Parallel()
	p := newPod(t, "")
	p.startControl()
	shim := p.startShim("sh", "-c", "exit 7")
	select {
	case <-shim.done:
	case <-time.After(30 * time.Second):
		t.Fatal("the shim does not end")
	}
	if shim.code != 7 {
		t.Errorf("ended with %d", shim.code)
	}
}

func TestWhatTheCommandLineRefuses(t *testing.T) {
	for name, args := range map[string][]string{
		"nothing":                      {},
		"an unknown command":           {"dance"},
		"a shim of no role":            {"shim"},
		"a shim of an unknown role":    {"shim", "king"},
		"a shim of an unknown driver":  {"shim", "agent", "--driver", "dance", "--", "true"},
		"an unknown flag":              {"control", "--dance"},
		"a relay to nowhere":           {"relay", "--listen", "127.0.0.1:0"},
		"a relay beyond loopback":      {"relay", "--listen", "0.0.0.0:0", "--to", "/x"},
		"a relay on every address":     {"relay", "--listen", ":0", "--to", "/x"},
		"a control without a podfile":  {"control", "--service", t.TempDir(), "--agent", t.TempDir(), "--workspace", t.TempDir()},
		"a saver of no issue":          {"saver", "--once"},
		"a saver with more":            {"saver", "--issue", "3", "once"},
		"a control without its folder": {"control", "--agent", "/nonexistent"},
	} {
		var stdout, stderr bytes.Buffer
		if code := main.Run(t.Context(), args, &stdout, &stderr); code == 0 || stderr.Len() == 0 || stdout.Len() != 0 {
			t.Errorf("%s: code %d, %q, %q", name, code, stdout.String(), stderr.String())
		}
	}
	var stdout, stderr bytes.Buffer
	if code := main.Run(t.Context(), []string{"version"}, &stdout, &stderr); code != 0 || !strings.HasPrefix(stdout.String(), "devaipod-pod ") {
		t.Errorf("version: code %d, %q, %q", code, stdout.String(), stderr.String())
	}
}
