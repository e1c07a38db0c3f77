package main_test

import (
	"os"
	"strings"
	"syscall"
	"testing"

	"codeberg.org/devaipod/devaipod/podapi"
	"codeberg.org/devaipod/devaipod/pods/podfile"
)

// newPodWith is one whose agent is spoken to by another driver.
func newPodWith(t *testing.T, driver, issue string) *pod {
	t.Helper()
	p := newPod(t, issue)
	p.speaks(driver)
	return p
}

// speaks sets the driver, before control starts.
func (p *pod) speaks(driver string) {
	p.t.Helper()
	p.driver = driver
	file, err := podfile.Read(p.path("run"))
	if err == nil {
		file.Driver = driver
		err = podfile.Write(p.path("run"), file)
	}
	if err != nil {
		p.t.Fatal(err)
	}
}

var opencodeACP = []string{"opencode", "acp"}

// The real opencode by the Agent Client Protocol: killed with its container and its
// control in the middle of a turn, it goes on in the same session.
func TestAnAgentByItsProtocolGoesOnAfterAKill(t *testing.T) {
	t.Parallel()
	p := newPodWith(t, podfile.DriverACP, "scenario: slow\nnonce: "+nonce)
	shim, control := p.startShim(opencodeACP...), p.startControl()
	committed := func(podapi.Summary) bool {
		requests := p.script.Requests()
		return len(requests) > 0 && strings.Contains(lastResult(requests[len(requests)-1].Calls), "committed:")
	}
	p.wait("committed", committed)
	shim.kill(t, syscall.SIGKILL)
	control.kill(t, syscall.SIGKILL)
	p.startControl()
	shim = p.startShim(opencodeACP...)
	p.script.Release("")
	sum := p.wait("done", done)
	p.mustHoldTheProof()
	if !strings.Contains(sum.Message, "NONCE.sha256") || sum.Session == "" {
		t.Errorf("%+v", sum)
	}
	requests := p.script.Requests()
	if n := strings.Count(requests[len(requests)-1].User, "THE-TASK"); n != 1 {
		t.Errorf("the task was given %d times", n)
	}
	if events := p.events(); !strings.Contains(events, "interrupted") || !strings.Contains(events, `"type":"tool"`) {
		t.Errorf("events: %s", events)
	}
	if code := shim.kill(t, syscall.SIGTERM); code != 143 {
		t.Errorf("the shim ended with %d", code)
	}
}

func TestAnAgentByItsProtocolIsToldFailuresAndMessages(t *testing.T) {
	t.Parallel()
	p := newPodWith(t, podfile.DriverACP, "scenario: model-error")
	p.startShim(opencodeACP...)
	control := p.startControl()
	sum := p.wait("failed", func(s podapi.Summary) bool { return s.State == podapi.Failed })
	if sum.Cause != podapi.CauseRefused || !strings.Contains(sum.Error, "401") {
		t.Errorf("summary %+v", sum)
	}
	// Another control has it from its book, and hands a message on.
	control.kill(t, syscall.SIGKILL)
	p.startControl()
	p.wait("failed still", func(s podapi.Summary) bool { return s.State == podapi.Failed })
	if err := p.client().Send(t.Context(), "ONE-MORE-WORD"); err != nil {
		t.Fatal(err)
	}
	p.wait("told", func(podapi.Summary) bool { // of the same session: the script says no again
		requests := p.script.Requests()
		return strings.Contains(requests[len(requests)-1].User, "ONE-MORE-WORD")
	})
}

// A plain program pushes; a control that is killed meanwhile finds it at work, and a
// message starts it again.
func TestAPlainProgramPushesAndIsStartedAgainByAMessage(t *testing.T) {
	t.Parallel()
	p := newPodWith(t, podfile.DriverCommand, "nonce: "+nonce)
	p.startShim("sh", "-c", `
		echo begun
		while ! test -e "$HOME/go"; do sleep 0.1; done
		case $1 in *AGAIN*) echo "no more"; exit 9;; esac
		printf %s "$(sed -n 's/^nonce: //p' "$2")" | sha256sum | cut -d' ' -f1 > NONCE.sha256
		git add -A && git commit -qm "Write down the proof" && `+"git push -q origin HEAD:"+branch+` && echo pushed`, "agent", "{prompt}", "{prompt_file}")
	control := p.startControl()
	p.wait("at work", func(s podapi.Summary) bool { return s.State == podapi.Working && s.Activity == "begun" })
	control.kill(t, syscall.SIGKILL)
	p.startControl()
	p.wait("at work", func(s podapi.Summary) bool { return s.State == podapi.Working && s.Activity == "begun" })
	if err := os.WriteFile(p.path("home/go"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if sum := p.wait("done", done); sum.Message != "begun\npushed" {
		t.Errorf("%+v", sum)
	}
	p.mustHoldTheProof()
	if err := p.client().Send(t.Context(), "AGAIN"); err != nil {
		t.Fatal(err)
	}
	sum := p.wait("failed", func(s podapi.Summary) bool { return s.State == podapi.Failed })
	if !strings.Contains(sum.Error, "exit code 9") || !strings.Contains(sum.Error, "no more") {
		t.Errorf("%+v", sum)
	}
}
