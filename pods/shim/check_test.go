package shim_test

import (
	"os"
	"strings"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/pods/devcontainer"
	"codeberg.org/devaipod/devaipod/pods/podfile"
	"codeberg.org/devaipod/devaipod/pods/shim"
)

// checks runs commands on a branch with the file "work".
func checks(t *testing.T, within time.Duration, setup []devcontainer.Stage, commands ...string) (*place, podfile.Report) {
	t.Helper()
	p, _ := newSetup(t, setup...)
	p.commit("agent/3-x", "work")
	sha := p.git(p.upstream, "rev-parse", "agent/3-x")
	r := shim.Check(t.Context(), p.cfg, sha, commands, within)
	if r.Commit != sha {
		t.Errorf("%+v is of another commit than %s", r, sha)
	}
	return p, r
}

func TestChecksRunOnTheCommitAsItIs(t *testing.T) {
	p, r := checks(t, time.Minute, nil, "cat work && git log --format=%s && git status --porcelain", "echo out; echo err >&2; exit 3", "kill -9 $$", `pwd; test -z "$DEVAIPOD_TOKEN"`)
	if r.Broken != "" || r.Setup != "" || len(r.Checks) != 4 {
		t.Fatalf("%+v", r)
	}
	for i, want := range []podfile.Checked{
		{Exit: 0, Tail: "workwork"}, // of cat, without a newline, and of git
		{Exit: 3, Tail: "out\nerr"},
		{Exit: -1, Why: "its command ended with signal: killed"},
		{Exit: 0, Tail: p.path("repo")},
	} {
		got := r.Checks[i]
		if got.Exit != want.Exit || got.Tail != want.Tail || got.Why != want.Why || got.Late {
			t.Errorf("%+v, want %+v", got, want)
		}
	}
}

func TestChecksComeAfterTheAgentsSetup(t *testing.T) {
	_, r := checks(t, time.Minute, []devcontainer.Stage{shell("setup 1", "echo made >made"), shell("setup 2", "echo no such host; exit 6"), shell("setup 3", "rm made")}, "cat made")
	if !strings.Contains(r.Setup, "setup 2: its command ended with exit status 6") || !strings.Contains(r.Setup, "no such host") {
		t.Errorf("%+v", r)
	}
	if len(r.Checks) != 1 || r.Checks[0].Exit != 0 || r.Checks[0].Tail != "made" {
		t.Errorf("%+v", r)
	}
}

func TestChecksEndWithTheirTime(t *testing.T) {
	p, r := checks(t, 2*time.Second, nil, "echo begun; echo $$ >"+"$LOG; sleep 1000", "echo more")
	if len(r.Checks) != 2 || !r.Checks[0].Late || r.Checks[0].Exit != -1 || r.Checks[0].Tail != "begun" || !r.Checks[1].Late || r.Checks[1].Exit != -1 {
		t.Errorf("%+v", r)
	}
	if _, err := os.Stat("/proc/" + p.log()); err == nil || p.log() == "" {
		t.Errorf("process %q goes on", p.log())
	}
}

func TestWhatIsPrintedOfChecksIsBounded(t *testing.T) {
	_, r := checks(t, time.Minute, nil, "head -c 10000000 /dev/zero | tr '\\0' x; echo; for i in $(seq 100); do echo $i; done; exit 1")
	if c := r.Checks[0]; c.Exit != 1 || len(c.Tail) > 2<<10 || !strings.HasSuffix(c.Tail, "\n99\n100") {
		t.Errorf("%+v", c)
	}
}

func TestACommitThatIsNotThereIsNotChecked(t *testing.T) {
	p, _ := newSetup(t)
	p.commit("agent/3-x", "work")
	r := shim.Check(t.Context(), p.cfg, strings.Repeat("1", 40), []string{"true"}, time.Minute)
	if !strings.HasPrefix(r.Broken, "cloning the commit: git checkout: exit status 128: ") || len(r.Checks) != 0 {
		t.Errorf("%+v", r)
	}
}
