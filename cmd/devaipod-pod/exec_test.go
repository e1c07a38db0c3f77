package main_test

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"codeberg.org/devaipod/devaipod/pods/devcontainer"
	"codeberg.org/devaipod/devaipod/pods/podfile"
	"codeberg.org/devaipod/devaipod/pods/shim"
)

// An entrance is a clone that people enter, and how far its setup is.
type entrance struct {
	t     *testing.T
	repo  string
	setup podfile.Setup
}

func newEntrance(t *testing.T) *entrance {
	e := &entrance{t: t, repo: filepath.Join(t.TempDir(), "repo")}
	write(t, filepath.Join(e.repo, ".git/HEAD"), "")
	write(t, filepath.Join(e.repo, "sub/x"), "")
	e.setup = podfile.Setup{
		Dir: filepath.Join(e.repo, "sub"), Env: map[string]string{"GREETING": "hello"}, Unset: []string{"UNWANTED"}, WaitFor: devcontainer.PostCreate,
		Stages: []devcontainer.Stage{{Name: devcontainer.OnCreate}, {Name: devcontainer.PostCreate}, {Name: devcontainer.PostStart}},
		Attach: []devcontainer.Command{{Shell: "echo attached >&2; exit 3"}},
	}
	return e
}

// is sets how far the setup is, in one step as the shim does.
func (e *entrance) is(s shim.State) {
	e.t.Helper()
	text, err := json.Marshal(s)
	file := filepath.Join(e.repo, ".git/devaipod/state.json")
	if err == nil {
		write(e.t, file+".new", string(text))
		err = os.Rename(file+".new", file)
	}
	if err != nil {
		e.t.Fatal(err)
	}
}

// command is devaipod-pod with the clone, as a process.
func (e *entrance) command(verb string, args ...string) *exec.Cmd {
	e.t.Helper()
	text, err := e.setup.Text()
	if err != nil {
		e.t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], append([]string{verb, "--repo", e.repo}, args...)...)
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), asPod+"=1", "UNWANTED=1", podfile.EnvSetup+"="+text)
	return cmd
}

// outcome is what came of a command: both streams and its code.
func outcome(cmd *exec.Cmd) (stdout, stderr string, code int) {
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	_ = cmd.Run() // its code tells
	return out.String(), errOut.String(), cmd.ProcessState.ExitCode()
}

func TestACommandIsStartedAsTheRepositoryWantsIt(t *testing.T) {
	e := newEntrance(t)
	e.is(shim.State{Done: []string{devcontainer.OnCreate, devcontainer.PostCreate}})
	const tell = `cat; echo "$GREETING ${UNWANTED-none} ${DEVAIPOD_SETUP-none} ${PWD##*/}"`
	for name, tt := range map[string]struct {
		args           []string
		stdout, stderr string
		code           int
	}{
		"in its folder, with its environment":    {[]string{"--wait", "--", "sh", "-c", tell}, "in hello none none sub\n", "", 0},
		"after postAttachCommand, however":       {[]string{"--wait", "--attach", "--", "sh", "-c", tell}, "in hello none none sub\n", "attached\ndevaipod: postAttachCommand: its command ended with exit status 3\n", 0},
		"where it is":                            {[]string{"--here", "--", "sh", "-c", "pwd"}, "/\n", "", 0},
		"its code":                               {[]string{"--", "sh", "-c", "echo bad >&2; exit 7"}, "", "bad\n", 7},
		"its own flags":                          {[]string{"--", "echo", "--wait"}, "--wait\n", "", 0},
		"a program that is not in PATH":          {[]string{"--", "no-such-program"}, "", "devaipod-pod: exec: there is no program no-such-program in PATH\n", 127},
		"a program that is not where it is said": {[]string{"--", "/no/such"}, "", "devaipod-pod: exec: starting /no/such: no such file or directory\n", 127},
		"what can't be run":                      {[]string{"--", "/etc"}, "", "devaipod-pod: exec: starting /etc: permission denied\n", 126},
	} {
		cmd := e.command("exec", tt.args...)
		cmd.Stdin = strings.NewReader("in ")
		if stdout, stderr, code := outcome(cmd); stdout != tt.stdout || stderr != tt.stderr || code != tt.code {
			t.Errorf("%s: %q, %q, code %d; want %q, %q, code %d", name, stdout, stderr, code, tt.stdout, tt.stderr, tt.code)
		}
	}
	if err := os.RemoveAll(e.repo); err != nil {
		t.Fatal(err)
	}
	if _, stderr, code := outcome(e.command("exec", "--", "true")); code != 126 || !strings.Contains(stderr, "no such file") {
		t.Errorf("without a clone: code %d, %q", code, stderr)
	}
	e.setup.Attach = nil
	if stdout, _, code := outcome(e.command("exec", "--attach", "--", "pwd")); code != 0 || stdout != "/\n" {
		t.Errorf("a shell without a clone: code %d, %q", code, stdout)
	}
}

func TestASignalReachesWhatTurnsIntoTheCommand(t *testing.T) {
	e := newEntrance(t)
	for _, tt := range []struct {
		state shim.State
		run   string
		first string // that it writes, on any stream
		sig   syscall.Signal
		code  int
	}{
		{shim.State{Stage: devcontainer.OnCreate}, "true", "devaipod: waiting for onCreateCommand\n", syscall.SIGINT, 130},
		{shim.State{Stage: devcontainer.OnCreate}, "true", "devaipod: waiting for onCreateCommand\n", syscall.SIGTERM, 143},
		{shim.State{Ended: true}, "trap 'exit 9' INT; echo ready; while :; do sleep 0.02; done", "ready\n", syscall.SIGINT, 9},
		{shim.State{Ended: true}, "trap 'exit 9' TERM; echo ready; while :; do sleep 0.02; done", "ready\n", syscall.SIGTERM, 9},
	} {
		e.is(tt.state)
		cmd := e.command("exec", "--wait", "--", "sh", "-c", tt.run)
		out, in, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd.Stdout, cmd.Stderr = in, in
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		first := make([]byte, len(tt.first))
		if _, err := io.ReadFull(out, first); err != nil || string(first) != tt.first {
			t.Errorf("%q, %v", first, err)
		}
		if err := cmd.Process.Signal(tt.sig); err != nil {
			t.Error(err)
		}
		_ = cmd.Wait() // its code tells
		if code := cmd.ProcessState.ExitCode(); code != tt.code {
			t.Errorf("%v, %v: code %d", tt.state, tt.sig, code)
		}
		_, _ = in.Close(), out.Close()
	}
}

func TestWhoWaitsForASetupIsToldOfIt(t *testing.T) {
	e := newEntrance(t)
	e.is(shim.State{Stage: devcontainer.OnCreate})
	cmd := e.command("await")
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	lines := json.NewDecoder(out)
	next := func() (a podfile.Awaited) {
		t.Helper()
		if err := lines.Decode(&a); err != nil {
			t.Fatal(err)
		}
		return a
	}
	if a := next(); a != (podfile.Awaited{Stage: devcontainer.OnCreate}) {
		t.Errorf("%+v", a)
	}
	e.is(shim.State{Done: []string{devcontainer.OnCreate}, Stage: devcontainer.PostCreate})
	if a := next(); a != (podfile.Awaited{Stage: devcontainer.PostCreate}) {
		t.Errorf("%+v", a)
	}
	e.is(shim.State{Done: []string{devcontainer.OnCreate}, Stage: devcontainer.PostCreate, Ended: true, Error: "it broke", Said: "why"})
	if a := next(); a != (podfile.Awaited{Stage: devcontainer.PostCreate, Error: "it broke", Said: "why", Over: true, Short: true}) {
		t.Errorf("%+v", a)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	// What comes after what is waited for is told and cuts nothing short.
	e.is(shim.State{Done: []string{devcontainer.OnCreate, devcontainer.PostCreate}, Stage: devcontainer.PostStart, Ended: true, Error: "later"})
	if stdout, _, _ := outcome(e.command("await")); stdout != `{"stage":"postStartCommand","error":"later","over":true}`+"\n" {
		t.Errorf("%s", stdout)
	}
	// The state of a start before this one is none.
	e.setup.WaitFor = devcontainer.OnCreate
	e.is(shim.State{Start: 1, Ended: true, Error: "old"})
	if s, err := (&shim.Config{RepoDir: e.repo}).ReadState(); err != nil || s.Ended || s.Error != "" {
		t.Errorf("%+v, %v", s, err)
	}
	e.setup = podfile.Setup{}
	if stdout, _, code := outcome(e.command("await")); stdout != `{"over":true}`+"\n" || code != 0 {
		t.Errorf("without a setup: %s, code %d", stdout, code)
	}
}
