package shim_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/pods/devcontainer"
	"codeberg.org/devaipod/devaipod/pods/podfile"
	"codeberg.org/devaipod/devaipod/pods/shim"
)

// buffer is a container's log.
type buffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// newSetup is a place whose shim has stages to run. Commands find $LOG, a file.
func newSetup(t *testing.T, stages ...devcontainer.Stage) (*place, *buffer) {
	p := newPlace(t)
	p.commit("main", "a")
	p.said = make(chan podfile.SetupState, 100)
	p.openGate()
	out := &buffer{}
	p.cfg.Output = out
	p.cfg.Setup = podfile.Setup{Stages: stages, Env: map[string]string{"LOG": p.path("log")}, Within: 30 * time.Second}
	return p, out
}

// shell is a stage of one command.
func shell(name, command string) devcontainer.Stage {
	return devcontainer.Stage{Name: name, Commands: []devcontainer.Command{{Shell: command}}}
}

// log is what the commands have noted.
func (p *place) log() string {
	p.t.Helper()
	b, err := os.ReadFile(p.path("log"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		p.t.Fatal(err)
	}
	return strings.Join(strings.Fields(string(b)), " ")
}

// heard is what the gate was told, up to the end of the setup.
func (p *place) heard() []podfile.SetupState {
	p.t.Helper()
	var all []podfile.SetupState
	for {
		select {
		case s := <-p.said:
			if all = append(all, s); s.Ended {
				return all
			}
		case <-time.After(30 * time.Second):
			p.t.Fatalf("the gate heard only %+v", all)
		}
	}
}

var order = []devcontainer.Stage{
	shell(devcontainer.OnCreate, "test -f a && echo create >>$LOG"), shell(devcontainer.UpdateContent, "echo content >>$LOG"),
	shell(devcontainer.PostCreate, "echo post >>$LOG"), shell(devcontainer.PostStart, "echo start >>$LOG"),
}

func TestStagesRunInTheirOrderAndOnceWhereTheyAreFor(t *testing.T) {
	p, _ := newSetup(t, order...)
	if o := p.run("sh", "-c", "echo agent >>$LOG"); o.code != 0 || o.err != nil {
		t.Fatalf("%+v", o)
	}
	if got := p.log(); got != "create content post start agent" {
		t.Errorf("ran %q", got)
	}
	if got := p.heard(); len(got) != 5 || got[0].Stage != devcontainer.OnCreate || got[4] != (podfile.SetupState{Ended: true}) {
		t.Errorf("the gate heard %+v", got)
	}
	if o := p.run("sh", "-c", "echo agent >>$LOG"); o.code != 0 {
		t.Fatalf("%+v", o)
	}
	if got := p.log(); got != "create content post start agent start agent" {
		t.Errorf("ran again %q", got)
	}
	// Nothing of it is in the tree.
	if got := p.git(p.cfg.RepoDir, "status", "--porcelain", "--ignored"); got != "" {
		t.Errorf("the tree has %s", got)
	}
	// Another command, in the file that the service reads, is another stage.
	p.cfg.Setup.Stages = slices.Clone(order)
	p.cfg.Setup.Stages[1] = shell(devcontainer.UpdateContent, "echo other >>$LOG")
	p.run("true")
	if got := p.log(); got != "create content post start agent start agent other start" {
		t.Errorf("with another command %q", got)
	}
}

func TestAStageThatWasCutOffRunsAgainAndThoseBeforeItDoNot(t *testing.T) {
	stages := slices.Clone(order)
	stages[1] = shell(devcontainer.UpdateContent, "echo content >>$LOG; test -e $LOG.go || { touch $LOG.there; sleep 1000; }")
	p, _ := newSetup(t, stages...)
	ctx, cancel := context.WithCancel(t.Context())
	done := p.start(ctx, "true")
	eventually(t, "the stage runs", func() bool { _, err := os.Stat(p.path("log.there")); return err == nil })
	cancel()
	if o := <-done; o.code != 128+15 || o.err != nil {
		t.Errorf("told to stop: %+v", o)
	}
	if err := os.WriteFile(p.path("log.go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if o := p.run("true"); o.code != 0 {
		t.Fatalf("%+v", o)
	}
	if got := p.log(); got != "create content content post start" {
		t.Errorf("ran %q", got)
	}
}

func TestAFailureEndsTheSetupAndIsTold(t *testing.T) {
	stages := slices.Clone(order)
	stages[1] = devcontainer.Stage{Name: devcontainer.UpdateContent, Commands: []devcontainer.Command{
		{Name: "bad", Shell: "echo why >&2; exit 3"}, {Name: "good", Shell: "echo good >>$LOG"}, {Name: "none", Args: []string{"no-such-program"}},
	}}
	p, out := newSetup(t, stages...)
	if o := p.run("sh", "-c", "echo agent >>$LOG; exit 7"); o.code != 7 || o.err != nil {
		t.Fatalf("%+v", o)
	}
	if got := p.log(); got != "create good agent" {
		t.Errorf("ran %q", got)
	}
	got := p.heard()
	last := got[len(got)-1]
	if last.Stage != devcontainer.UpdateContent || !strings.Contains(last.Error, "bad ended with exit status 3") || !strings.Contains(last.Error, "none can't be started") {
		t.Errorf("the gate heard %+v", last)
	}
	if !strings.Contains(out.String(), "why") {
		t.Errorf("the log has %q", out)
	}
	if s, err := p.cfg.ReadState(); err != nil || s.Stage != devcontainer.UpdateContent || s.Said != "why" || s.Error != last.Error {
		t.Errorf("who enters is told %+v, %v", s, err)
	}
	// An agent that is not to start without does not.
	p.cfg.Setup.Required = true
	if o := p.run("sh", "-c", "echo never >>$LOG"); o.code != 1 || o.err == nil || !strings.Contains(o.err.Error(), "updateContentCommand: bad ended with exit status 3") {
		t.Errorf("required: %+v", o)
	}
	if got := p.log(); got != "create good agent good" {
		t.Errorf("ran again %q", got)
	}
}

func TestAGateThatBeginsAnewHearsWhatWentWrong(t *testing.T) {
	for role, command := range map[string][]string{"workspace": nil, "agent": {"sh", "-c", "while :; do sleep 0.05; done"}} {
		t.Run(role, func(t *testing.T) {
			p, _ := newSetup(t, shell(devcontainer.OnCreate, "exit 3"))
			p.cfg.Role, p.cfg.Remind = role, 50*time.Millisecond
			ctx, cancel := context.WithCancel(t.Context())
			done := p.start(ctx, command...)
			first := p.heard()
			for range 2 { // whether it has heard it or not
				again := p.heard()
				if len(again) != 1 || again[0] != first[len(first)-1] || !strings.Contains(again[0].Error, "exit status 3") {
					t.Errorf("at first %+v, then %+v", first, again)
				}
			}
			cancel()
			<-done
		})
	}
	// Of what went well it hears once.
	p, _ := newSetup(t, order[0])
	p.cfg.Remind = time.Millisecond
	p.run("sleep", "0.3")
	if got := p.heard(); len(got) != 2 || len(p.said) != 0 {
		t.Errorf("%+v, and %d more", got, len(p.said))
	}
}

func TestACommandThatHangsEndsAtItsTimeWithAllThatItStarted(t *testing.T) {
	p, _ := newSetup(t, shell(devcontainer.OnCreate, "trap '' TERM; sleep 1000 & echo $! $$ >$LOG; while :; do sleep 1000; done"))
	p.cfg.Setup.Within = 300 * time.Millisecond
	if o := p.run("true"); o.code != 0 {
		t.Fatalf("%+v", o)
	}
	if got := p.heard(); !strings.Contains(got[len(got)-1].Error, "had not ended after 300ms") {
		t.Errorf("the gate heard %+v", got)
	}
	for _, text := range strings.Fields(p.log()) {
		pid, err := strconv.Atoi(text)
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, "it is gone", func() bool { return errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) || zombie(pid) })
	}
}

// zombie tells a process that ended and that nobody has waited for: the test is
// no init.
func zombie(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || strings.Contains(string(b), ") Z ")
}

func TestAFloodOfOutputIsCut(t *testing.T) {
	p, out := newSetup(t, shell(devcontainer.OnCreate, "echo first; head -c 1000000000 /dev/zero; echo last; exit 1"))
	if o := p.run("true"); o.code != 0 {
		t.Fatalf("%+v", o)
	}
	text := out.String()
	if len(text) > 300<<10 || !strings.HasPrefix(text, "first\n") || !strings.HasSuffix(text, "last\n") {
		t.Errorf("%d bytes, %.20q … %q", len(text), text, text[max(0, len(text)-20):])
	}
	if got := p.heard(); !strings.Contains(got[len(got)-1].Error, "exit status 1") {
		t.Errorf("the gate heard %+v", got)
	}
}

func TestWhatPostStartLeavesRunningGoesOn(t *testing.T) {
	// It would end by SIGPIPE if nobody read what it writes.
	p, _ := newSetup(t, shell(devcontainer.PostStart, "(while ! test -e $LOG.go; do echo x; sleep 0.01; done; head -c 1000000 /dev/zero; echo alive >>$LOG) & echo started >>$LOG"))
	if o := p.run("sh", "-c", "echo agent >>$LOG; touch $LOG.go; while ! grep -q alive $LOG; do sleep 0.01; done"); o.code != 0 {
		t.Fatalf("%+v", o)
	}
	if got := p.log(); got != "started agent alive" {
		t.Errorf("ran %q", got)
	}
}

func TestCommandsOfAStageRunSideBySide(t *testing.T) {
	meet := func(own, other string) devcontainer.Command {
		return devcontainer.Command{Name: own, Args: []string{"sh", "-c", "touch $LOG." + own + "; while ! test -e $LOG." + other + "; do sleep 0.01; done; echo met >>$LOG"}}
	}
	p, _ := newSetup(t, devcontainer.Stage{Name: devcontainer.PostCreate, Commands: []devcontainer.Command{meet("one", "two"), meet("two", "one")}})
	if p.run("true"); p.log() != "met met" {
		t.Errorf("ran %q", p.log())
	}
}

func TestCommandsAndAgentHaveTheRemoteEnvironment(t *testing.T) {
	p, _ := newSetup(t,
		shell(devcontainer.OnCreate, `echo "$WHO ${containerEnv:OUTER} ${OUTER:-none} ${`+podfile.EnvSetup+`:-hidden} $(basename $PWD)" >>$LOG`),
		devcontainer.Stage{Name: devcontainer.PostCreate, Commands: []devcontainer.Command{{Args: []string{"mine", "${containerEnv:OUTER}"}}}})
	t.Setenv("OUTER", "outer")
	t.Setenv(podfile.EnvSetup, "shown")
	bin := p.path("bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(bin, "mine"), []byte("#!/bin/sh\necho mine $1 >>$LOG\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	p.cfg.Setup.Env["WHO"], p.cfg.Setup.Env["PATH"] = "${containerEnv:OUTER}-${containerEnv:NONE:x}", bin+":${containerEnv:PATH}"
	p.cfg.Setup.Unset = []string{"OUTER"}
	p.cfg.Setup.Dir = filepath.Join(p.cfg.RepoDir, "not-there")
	if o := p.run("sh", "-c", "mine agent; echo ${OUTER:-unset} >>$LOG"); o.code != 0 || o.err != nil {
		t.Fatalf("%+v", o)
	}
	if got := p.log(); got != "outer-x outer none hidden repo mine outer mine agent unset" {
		t.Errorf("ran %q", got)
	}
}

func TestAWorkspaceIsSetUpWhilePeopleMayEnter(t *testing.T) {
	p, _ := newSetup(t, order[0], shell(devcontainer.PostCreate, "while ! test -e $LOG.go; do sleep 0.01; done; false"), order[3])
	p.cfg.Role, p.cfg.Setup.WaitFor = "workspace", devcontainer.OnCreate
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := p.start(ctx)
	state := func() shim.State {
		s, err := p.cfg.ReadState()
		if err != nil {
			t.Error(err)
		}
		return s
	}
	names := []string{devcontainer.OnCreate, devcontainer.PostCreate, devcontainer.PostStart}
	eventually(t, "the first is behind", func() bool { return state().Behind(devcontainer.OnCreate, names) })
	if s := state(); s.Ended || s.Behind(devcontainer.PostCreate, names) || !s.Behind(devcontainer.OnCreate, names) {
		t.Errorf("%+v", s)
	}
	if err := os.WriteFile(p.path("log.go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, "its end", func() bool { return state().Ended })
	if s := state(); !strings.Contains(s.Error, "postCreateCommand: its command ended with exit status 1") || p.log() != "create" {
		t.Errorf("%+v, %q", s, p.log())
	}
	select {
	case o := <-done:
		t.Errorf("the workspace ended: %+v", o)
	default:
	}
	cancel()
	<-done
}

// dotfiles makes a repository at another host, which the gate serves.
func (p *place) dotfiles(files map[string]string) string {
	p.t.Helper()
	p.others = true
	bare := filepath.Join(p.path("git"), "git", "dots.example.org", "ann", "dots.git")
	p.git("", "init", "--quiet", "--bare", "--initial-branch=main", bare)
	tree := p.path("dots")
	p.git("", "init", "--quiet", "--initial-branch=main", tree)
	for name, text := range files {
		mode := os.FileMode(0o644)
		if strings.HasPrefix(text, "#!") {
			mode = 0o755
		}
		if err := os.WriteFile(filepath.Join(tree, name), []byte(text), mode); err != nil {
			p.t.Fatal(err)
		}
	}
	p.git(tree, "add", "-A")
	p.git(tree, "commit", "--quiet", "-m", "dots")
	p.git(tree, "push", "--quiet", bare, "main")
	return "https://dots.example.org/ann/dots.git"
}

func TestDotfilesComeBeforePostStartAndOnce(t *testing.T) {
	for name, tt := range map[string]struct {
		files       map[string]string
		script      string
		want, wrong string
	}{
		"a usual script":        {map[string]string{"install.sh": "#!/bin/sh\necho installed $(ls) >>$LOG\n"}, "", "installed install.sh", ""},
		"one without a mode":    {map[string]string{"setup.sh": "echo installed >>$LOG\n"}, "", "installed", ""},
		"a named one":           {map[string]string{"install.sh": "#!/bin/sh\nexit 1\n", "mine": "#!/bin/sh\necho mine >>$LOG\n"}, "mine", "mine", ""},
		"none, and dotfiles":    {map[string]string{".profile": "x", "README": "y"}, "", "", ""},
		"a script that fails":   {map[string]string{"install": "#!/bin/sh\nexit 9\n"}, "", "", "exit status 9"},
		"a script that is away": {map[string]string{"x": ""}, "nope", "", `there is no script "nope"`},
	} {
		p, _ := newSetup(t, order[0], order[3])
		p.cfg.Setup.Dotfiles = &podfile.Dotfiles{URL: p.dotfiles(tt.files), Script: tt.script}
		p.run("true")
		if got, want := p.log(), strings.Join(strings.Fields("create "+tt.want+" start"), " "); got != want {
			t.Errorf("%s: ran %q, want %q", name, got, want)
		}
		heard := p.heard()
		if last := heard[len(heard)-1]; (last.Error == "") != (tt.wrong == "") || !strings.Contains(last.Error, tt.wrong) {
			t.Errorf("%s: the gate heard %+v", name, last)
		}
		if _, ok := tt.files[".profile"]; ok {
			if b, err := os.ReadFile(filepath.Join(p.cfg.Home, ".profile")); string(b) != "x" || err != nil {
				t.Errorf("%s: %q, %v", name, b, err)
			}
		}
		if tt.wrong == "" {
			p.run("true")
			if got, want := p.log(), strings.Join(strings.Fields("create "+tt.want+" start start"), " "); got != want {
				t.Errorf("%s, again: ran %q, want %q", name, got, want)
			}
		}
	}
}

func TestDotfilesThatNobodyServesEndNothing(t *testing.T) {
	p, _ := newSetup(t, order...)
	p.cfg.Setup.Dotfiles = &podfile.Dotfiles{URL: "https://dots.example.org/none"}
	if o := p.run("sh", "-c", "echo agent >>$LOG"); o.code != 0 || p.log() != "create content post start agent" {
		t.Errorf("%+v, %q", o, p.log())
	}
	heard := p.heard()
	if last := heard[len(heard)-1]; last.Stage != "dotfiles" || !strings.Contains(last.Error, "https://dots.example.org/none: cloning: ") {
		t.Errorf("the gate heard %+v", last)
	}
}

func TestAWorkspaceIsCheckedOutOfFoldersAlone(t *testing.T) {
	p, _ := newSetup(t)
	tree := p.path("mono")
	p.git("", "clone", "--quiet", p.upstream, tree)
	for _, file := range []string{"top", "services/api/x", "services/web/x", "services/README", "libs/auth/x", "libs/other/x"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(tree, file)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(tree, file), []byte(file), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	p.git(tree, "add", "-A")
	p.git(tree, "commit", "--quiet", "-m", "mono")
	p.git(tree, "push", "--quiet", "origin", "HEAD:main")
	for _, borrows := range []bool{false, true} {
		if p.cfg.BorrowDir = p.path("none"); borrows {
			p.cfg.BorrowDir = p.upstream
		}
		p.cfg.Setup.Sparse = []string{"services/api", "libs/auth", "not/there"}
		if o := p.run("sh", "-c", "git ls-files -t | grep ^H >>$LOG; git status --porcelain >>$LOG; git branch --show-current >>$LOG; find . -name x | sort >>$LOG"); o.code != 0 || o.err != nil {
			t.Fatalf("%+v", o)
		}
		if got := p.log(); got != "H a H libs/auth/x H services/README H services/api/x H top agent/3-x ./libs/auth/x ./services/api/x" {
			t.Errorf("borrows %v: %q", borrows, got)
		}
		if err := errors.Join(os.Remove(p.path("log")), os.RemoveAll(p.cfg.RepoDir)); err != nil {
			t.Fatal(err)
		}
	}
}
