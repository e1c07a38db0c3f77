package main_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/pods/podfile"
	"codeberg.org/devaipod/devaipod/pods/relay"
)

// BenchmarkControl measures the memory of a pod's control container, resident, in
// MB: when nothing happens, and the most that there was while an agent asked its
// model with 300 KB each time, as in a long session.
func BenchmarkControl(b *testing.B) {
	dir := b.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	must := func(err error) {
		b.Helper()
		if err != nil {
			b.Fatal(err)
		}
	}
	for _, d := range []string{"run", "a", "w", "usage"} {
		must(os.Mkdir(path(d), 0o755))
	}
	model := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		for range 200 {
			fmt.Fprintf(w, "data: {\"choices\":[{\"delta\":{\"content\":\"word\"}}]}\n\n")
		}
		fmt.Fprint(w, "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":75000,\"completion_tokens\":200}}\n\n")
	}))
	defer model.Close()
	must(podfile.Write(path("run"), &podfile.File{
		Repo: "ann/hello", Issue: 3, AgentToken: "agent", WorkspaceToken: "workspace",
		Model: podfile.Model{API: podfile.APIOpenAI, Name: "m", BaseURL: model.URL + "/v1"}, Task: podfile.Task{Key: "k", Prompt: "p"},
	}))
	must(podfile.WritePolicy(path("run"), podfile.Policy{Key: "sk-the-key"}))
	program := path("devaipod-pod")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", program, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := build.CombinedOutput()
	if err != nil {
		b.Fatalf("%v: %s", err, out)
	}
	var said bytes.Buffer
	control := exec.Command(program, "control", "--service", path("run"), "--agent", path("a"), "--workspace", path("w"), "--usage", path("usage"))
	control.Stderr = &said
	must(control.Start())
	defer func() {
		must(control.Process.Kill())
		_ = control.Wait() // killed
	}()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(err)
	go func() {
		_ = relay.Serve(b.Context(), l, relay.Unix(path("a/"+podfile.GateSocket)), slog.New(slog.DiscardHandler))
	}()
	ask := func(body string) error {
		req, err := http.NewRequest(http.MethodPost, "http://"+l.Addr().String()+"/model/v1/chat/completions", strings.NewReader(body))
		if err != nil {
			return err
		}
		req.Header.Set("Authorization", "Bearer agent")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != http.StatusOK {
			return fmt.Errorf("%s: %w", resp.Status, err)
		}
		return nil
	}
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if err := ask(`{"model":"m","messages":[]}`); err == nil {
			break
		} else if time.Now().After(end) {
			b.Fatalf("%v: %s", err, said.String())
		}
	}
	time.Sleep(time.Second)
	idle := memory(b, control.Process.Pid, "VmRSS:")
	long := `{"model":"m","messages":[` + strings.Repeat(`{"role":"user","content":"`+strings.Repeat("some text. ", 100)+`"},`, 270) + `{"role":"user","content":"go on"}]}`
	for b.Loop() {
		must(ask(long))
	}
	b.ReportMetric(idle, "MB-idle")
	b.ReportMetric(memory(b, control.Process.Pid, "VmHWM:"), "MB-most")
}

// memory is a process's, by proc(5).
func memory(b *testing.B, pid int, field string) float64 {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		b.Fatal(err)
	}
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		if rest, ok := strings.CutPrefix(lines.Text(), field); ok {
			var kb float64
			if _, err := fmt.Sscan(rest, &kb); err != nil {
				b.Fatal(err)
			}
			return kb / 1000
		}
	}
	b.Fatal("no such field: ", field)
	return 0
}
