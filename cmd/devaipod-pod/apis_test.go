package main_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/cmd/internal/scriptedmodel"
	"codeberg.org/devaipod/devaipod/podapi"
	"codeberg.org/devaipod/devaipod/pods/podfile"
	"codeberg.org/devaipod/devaipod/pods/usage"
	"codeberg.org/devaipod/devaipod/pods/witness"
)

// The real opencode speaks each API as it does to the provider, by the package
// for it that it has in itself: the agent's namespace has no network to get one.
func TestEachAPITurnsATaskIntoAPushedCommit(t *testing.T) {
	t.Parallel()
	for speaks, tt := range map[string]struct {
		api, name, path string
		tokens          usage.Tokens // of each request
	}{
		// opencode does some things by these names; from gpt-5 on it would have no tool
		// "write", which the script uses.
		scriptedmodel.Messages:  {podfile.APIAnthropic, "claude-sonnet-4-5", "/v1", usage.Tokens{Input: 60, Output: 10, CacheRead: 25, CacheWrite: 15}},
		scriptedmodel.Gemini:    {podfile.APIGemini, "gemini-3-pro", "/v1beta", usage.Tokens{Input: 80, Output: 10, CacheRead: 20}},
		scriptedmodel.Responses: {podfile.APIResponses, "gpt-4.1", "/v1", usage.Tokens{Input: 70, Output: 10, CacheRead: 30}},
	} {
		t.Run(speaks, func(t *testing.T) {
			t.Parallel()
			p := newPodOf(t, "nonce: "+nonce, 0, podfile.Model{API: tt.api, Name: tt.name, BaseURL: tt.path})
			shim := p.startShim()
			p.startControl()
			p.wait("done", func(s podapi.Summary) bool { return done(s) && s.Model.InFlight == 0 })
			p.mustHoldTheProof()
			for _, r := range p.script.Requests() {
				if r.API != speaks {
					t.Errorf("a request by %s", r.API)
				}
			}
			p.mustHaveCounted(tt.name, tt.tokens)
			p.mustHaveSeenTheCommands()
			for _, dir := range []string{"home", "agent", "a"} {
				p.mustNotHoldTheKey(dir)
			}
			p.mustNotShowTheKey(shim)
			if strings.Contains(p.log.String(), realKey) || strings.Contains(p.log.String(), agentTok) {
				t.Error("a log tells the key or a token")
			}
		})
	}
}

// mustHaveCounted compares the journal with what the model said.
func (p *pod) mustHaveCounted(model string, each usage.Tokens) {
	p.t.Helper()
	entries, err := usage.Read(p.path("usage"))
	if err != nil {
		p.t.Fatal(err)
	}
	for _, e := range entries {
		if !e.Settle || e.Model != model || e.Tokens != each {
			p.t.Errorf("counted %+v", e)
		}
	}
	said, counted := p.script.Used(), usage.Sum(entries)
	if n := int64(len(p.script.Requests())); said.Requests != n || counted.Requests != n || counted.Tokens != said.Tokens || n == 0 {
		p.t.Errorf("counted %+v; the model had %d requests and said %+v", counted, n, said)
	}
}

// mustHaveSeenTheCommands looks for what the script had opencode run, and for what
// opencode said of it. The last result came before the last answer, and may just be
// being written.
func (p *pod) mustHaveSeenTheCommands() {
	p.t.Helper()
	var text strings.Builder
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		seen, err := witness.Commands(p.path("usage"), "")
		if err != nil {
			p.t.Fatal(err)
		}
		text.Reset()
		for _, c := range seen {
			if c.Tool == "bash" && c.Result != nil {
				text.WriteString(c.Command + " -> " + c.Result.Tail + "\n")
			}
		}
		if digestSeen.MatchString(text.String()) && strings.Contains(text.String(), "push-went-well\n") && len(seen) == 3 {
			return
		}
	}
	p.t.Errorf("the gate saw: %s", text.String())
}

var digestSeen = regexp.MustCompile(`(?m)^printf .*sha256sum -> [0-9a-f]{64}`)

// mustNotShowTheKey looks at what is told of the processes around shim.
func (p *pod) mustNotShowTheKey(shim *process) {
	p.t.Helper()
	proc := func(pid int, name string) string { return filepath.Join("/proc", strconv.Itoa(pid), name) }
	ns, err := os.Readlink(proc(shim.cmd.Process.Pid, "ns/pid"))
	if err != nil {
		p.t.Fatal(err)
	}
	seen := 0
	pids, _ := inNamespace(p.t, ns)
	for _, pid := range pids {
		for _, name := range []string{"environ", "cmdline"} {
			b, err := os.ReadFile(proc(pid, name))
			if err != nil {
				continue // it has ended
			}
			if seen++; strings.Contains(string(b), realKey) {
				p.t.Errorf("%s of %d holds the model's key", name, pid)
			}
		}
	}
	if seen < 4 {
		p.t.Errorf("saw %d files of shim and agent", seen)
	}
}
