package main_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/podapi"
	"codeberg.org/devaipod/devaipod/podapi/opencode"
	"codeberg.org/devaipod/devaipod/pods/usage"
)

const nonce = "5a1f0c77d9"

func proof() string {
	sum := sha256.Sum256([]byte(nonce))
	return hex.EncodeToString(sum[:])
}

func (p *pod) mustHoldTheProof() {
	p.t.Helper()
	if got := strings.TrimSpace(p.git(p.upstream, "show", branch+":NONCE.sha256")); got != proof() {
		p.t.Errorf("pushed %q, want %s", got, proof())
	}
}

func done(s podapi.Summary) bool {
	return s.State == podapi.IdleWithWork || s.State == podapi.IdleWithout
}

func TestATaskBecomesAPushedCommit(t *testing.T) {
	t.Parallel()
	p := newPod(t, "nonce: "+nonce)
	shim := p.startShim() // before control: the gate may come later
	work := p.start(true, p.shimEnv("token-of-the-workspace", "workhome"), "shim", "workspace", "--sockets", p.path("w"), "--repo", p.path("work/repo"))
	control := p.startControl()
	sum := p.wait("done", done)
	p.mustHoldTheProof()
	if !strings.Contains(sum.Message, "NONCE.sha256") || sum.Model.Requests == 0 || sum.Model.InFlight != 0 || sum.Model.LastStatus != 200 {
		t.Errorf("summary %+v", sum)
	}
	if n := strings.Count(strings.TrimSpace(p.git(p.upstream, "log", "--format=%an", "main.."+branch)), "bot"); n != 1 {
		t.Errorf("%d commits of the bot", n)
	}
	requests := p.script.Requests()
	last := requests[len(requests)-1]
	if !strings.Contains(last.System, agentsMD) {
		t.Error("the model was not told the repository's AGENTS.md")
	}
	if strings.Contains(last.System, "EVIL-MARK") {
		t.Error("the repository's opencode.json reached the model")
	}
	if n := strings.Count(last.User, "THE-TASK"); n != 1 {
		t.Errorf("the task was given %d times", n)
	}
	if events := p.events(); !strings.Contains(events, `"type":"tool"`) || !strings.Contains(events, proof()) || !strings.Contains(events, `"done"`) {
		t.Errorf("events: %s", events)
	}
	if _, err := os.Stat(p.path("work/repo/AGENTS.md")); err != nil {
		t.Error(err)
	}
	for _, dir := range []string{"home", "agent", "a", "work", "workhome", "w"} {
		p.mustNotHoldTheKey(dir)
	}
	if strings.Contains(p.log.String(), realKey) || strings.Contains(p.log.String(), agentTok) {
		t.Error("a log tells the key or a token")
	}
	if code := shim.kill(t, syscall.SIGTERM); code != 143 {
		t.Errorf("the shim ended with %d", code)
	}
	if code := work.kill(t, syscall.SIGTERM); code != 0 {
		t.Errorf("the workspace ended with %d", code)
	}
	if code := control.kill(t, syscall.SIGTERM); code != 0 {
		t.Errorf("control ended with %d", code)
	}
}

// events are what the pod-api noted so far.
func (p *pod) events() string {
	p.t.Helper()
	req, err := http.NewRequestWithContext(p.t.Context(), http.MethodGet, "http://pod/events?follow=0", nil)
	if err != nil {
		p.t.Fatal(err)
	}
	resp, err := p.client().Transport().RoundTrip(req)
	if err != nil {
		p.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	return string(b)
}

func (p *pod) mustNotHoldTheKey(dir string) {
	p.t.Helper()
	err := filepath.WalkDir(p.path(dir), func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if strings.Contains(string(b), realKey) {
			p.t.Errorf("%s holds the model's key", path)
		}
		return err
	})
	if err != nil {
		p.t.Error(err)
	}
}

func TestAPodThatIsKilledInTheMiddleGoesOn(t *testing.T) {
	t.Parallel()
	p := newPod(t, "scenario: slow\nnonce: "+nonce)
	shim, control := p.startShim(), p.startControl()
	// The script holds its answer back once the commit is there.
	p.wait("committed", func(podapi.Summary) bool {
		requests := p.script.Requests()
		return len(requests) > 0 && strings.Contains(lastResult(requests[len(requests)-1].Calls), "committed:")
	})
	shim.kill(t, syscall.SIGKILL)
	control.kill(t, syscall.SIGKILL)
	p.startControl()
	p.startShim(p.newer(), "serve", "--hostname", "127.0.0.1", "--port", "4096") // tools were renewed meanwhile
	p.script.Release("")
	sum := p.wait("done", done)
	p.mustHoldTheProof()
	if !strings.Contains(sum.Version, "opencode "+newerVersion+" is not the version that devaipod was tested with") {
		t.Errorf("%+v", sum)
	}
	requests := p.script.Requests()
	if n := strings.Count(requests[len(requests)-1].User, "THE-TASK"); n != 1 {
		t.Errorf("the task was given %d times", n)
	}
	if events := p.events(); !strings.Contains(events, "interrupted") || !strings.Contains(events, newerVersion) {
		t.Errorf("events: %s", events)
	}
}

const newerVersion = "1.18.99"

// newer is the real opencode that takes itself for another version.
func (p *pod) newer() string {
	p.t.Helper()
	b, err := os.ReadFile(p.opencode)
	if err != nil {
		p.t.Fatal(err)
	}
	path := p.path("opencode-newer")
	if err := os.WriteFile(path, bytes.ReplaceAll(b, []byte(opencode.Tested), []byte(newerVersion)), 0o755); err != nil {
		p.t.Fatal(err)
	}
	return path
}

// Control is killed as the agent begins, and another takes up the turn; an upgrade
// replaces that one by another build while the agent waits for its model.
func TestAControlThatIsKilledOrUpgradedTakesUpTheTurn(t *testing.T) {
	t.Parallel()
	p := newPod(t, "scenario: slow\nnonce: "+nonce)
	next := buildPod(t, p.path("upgraded"))
	p.startShim()
	control := p.startControl()
	p.wait("working", func(s podapi.Summary) bool {
		requests := p.script.Requests()
		return s.State == podapi.Working && len(requests) > 0 && requests[len(requests)-1].HasTools
	})
	control.kill(t, syscall.SIGKILL)
	control = p.startControl()
	p.wait("waiting for the model", func(s podapi.Summary) bool {
		requests := p.script.Requests()
		return s.Model.InFlight > 0 && len(requests) > 0 && strings.Contains(lastResult(requests[len(requests)-1].Calls), "committed:")
	})
	before := len(p.script.Requests())
	if code := control.kill(t, syscall.SIGTERM); code != 0 { // as podman stops it
		t.Errorf("control ended with %d", code)
	}
	p.startProgram(next, false, nil, p.controlArgs()...)
	p.script.Release("")
	p.wait("done", done)
	p.mustHoldTheProof()
	requests := p.script.Requests()
	if n := strings.Count(requests[len(requests)-1].User, "THE-TASK"); n != 1 {
		t.Errorf("the task was given %d times", n)
	}
	// The account goes on, and has what was cut off.
	entries, err := usage.Read(p.path("usage"))
	if err != nil {
		t.Fatal(err)
	}
	said, counted := p.script.Used(), usage.Sum(entries)
	if counted.Requests != int64(len(requests)) || len(requests) <= before {
		t.Errorf("counted %d requests, the model had %d, %d of them before", counted.Requests, len(requests), before)
	}
	if counted.Tokens.Input < said.Tokens.Input || counted.Tokens.Output < said.Tokens.Output {
		t.Errorf("counted %+v, the model said %+v", counted, said)
	}
}

// A person's word reaches an agent that is done, and a stop an agent that works.
func TestMessagesAndStop(t *testing.T) {
	t.Parallel()
	p := newPod(t, "scenario: no-commits")
	p.startShim()
	p.startControl()
	// Whether there is work, git says, as far as the service has it.
	p.wait("idle", func(s podapi.Summary) bool { return s.State == podapi.IdleWithout })
	saved := `{"at":"2026-01-02T03:04:05Z","ahead":0,"behind":0,"unpushed":[],"changes":[{"path":"f","how":"added"}]}`
	p.saved.Store(&saved)
	p.wait("idle with work", func(s podapi.Summary) bool { return s.State == podapi.IdleWithWork })
	// Huge, and with what no terminal or document should hold.
	p.send("scenario: is-over\n\x00\x1b[31m\xff\u202e" + strings.Repeat("é\u202e", 150_000) + "ONE-MORE-WORD")
	p.wait("told", func(s podapi.Summary) bool {
		requests := p.script.Requests()
		return done(s) && strings.Contains(requests[len(requests)-1].User, "ONE-MORE-WORD")
	})

	p = newPod(t, "scenario: slow\nnonce: "+nonce)
	p.startShim()
	p.startControl()
	p.wait("waiting for the model", func(podapi.Summary) bool {
		requests := p.script.Requests()
		return len(requests) > 0 && strings.Contains(lastResult(requests[len(requests)-1].Calls), "committed:")
	})
	if err := p.client().Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	sum := p.wait("stopped", func(s podapi.Summary) bool { return s.State == podapi.Failed })
	if strings.Contains(sum.Error, "model") || sum.Error == "" {
		t.Errorf("after %s: %+v", time.Since(start), sum)
	}
}
