package main_test

import (
	"strings"
	"syscall"
	"testing"

	"codeberg.org/devaipod/devaipod/podapi"
	"codeberg.org/devaipod/devaipod/pods/podfile"
)

// careful is opencode that asks before it writes.
func careful(args ...string) []string {
	return append([]string{"sh", "-c", `OPENCODE_CONFIG_CONTENT=$(printf %s "$OPENCODE_CONFIG_CONTENT" | sed 's/"\*":"allow"/&,"edit":"ask"/') exec opencode "$@"`, "careful"}, args...)
}

func asking(cause podapi.Cause) func(podapi.Summary) bool {
	return func(s podapi.Summary) bool { return s.State == podapi.Asking && s.Cause == cause }
}

// The real opencode asks a question, and for a permission: the answers reach it, and it
// goes on. What it asks outlives a control, and what was asked in a turn that was
// broken off is no ask in the next.
func TestTheRealOpencodeAsksAndIsAnswered(t *testing.T) {
	t.Parallel()
	p := newPod(t, "scenario: asks\nnonce: "+nonce)
	p.startShim(careful("serve", "--hostname", "127.0.0.1", "--port", "4096")...)
	control := p.startControl()
	first := p.wait("asking", asking(podapi.CauseQuestion))
	if first.Question != "Which color, @everyone?" || len(first.Choices) != 2 || first.Choices[1] != (podapi.Choice{ID: "blue", Name: "blue: as the sky"}) {
		t.Errorf("%+v", first)
	}
	control.kill(t, syscall.SIGKILL)
	p.startControl()
	if again := p.wait("asking still", asking(podapi.CauseQuestion)); again.Mark != first.Mark || first.Mark == "" {
		t.Errorf("the same question is %q, then %q", first.Mark, again.Mark)
	}
	p.send("2")
	wants := p.wait("asking to write", asking(podapi.CausePermission))
	if !strings.Contains(wants.Question, "NONCE.sha256") || len(wants.Choices) != 3 {
		t.Errorf("%+v", wants)
	}
	if err := p.client().Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.wait("stopped", func(s podapi.Summary) bool { return s.State == podapi.Failed })
	p.send("go on")
	next := p.wait("asking to write again", asking(podapi.CausePermission))
	if next.Mark == wants.Mark {
		t.Errorf("it asks what it asked before: %+v", next)
	}
	p.send("allow once")
	sum := p.wait("done", done)
	p.mustHoldTheProof()
	if !strings.Contains(sum.Message, `"blue"`) {
		t.Errorf("%+v", sum)
	}
}

func TestTheRealOpencodeAsksByItsProtocolAndIsAnswered(t *testing.T) {
	t.Parallel()
	p := newPodWith(t, podfile.DriverACP, "nonce: "+nonce)
	file, err := podfile.Read(p.path("run"))
	if err == nil {
		file.Ask = true
		err = podfile.Write(p.path("run"), file)
	}
	if err != nil {
		t.Fatal(err)
	}
	p.startShim(careful("acp")...)
	p.startControl()
	sum := p.wait("asking to write", asking(podapi.CausePermission))
	if len(sum.Choices) < 2 || sum.Mark == "" {
		t.Errorf("%+v", sum)
	}
	p.send("1")
	p.wait("done", done)
	p.mustHoldTheProof()
}

func (p *pod) send(text string) {
	p.t.Helper()
	if err := p.client().Send(p.t.Context(), text); err != nil {
		p.t.Fatal(err)
	}
}
