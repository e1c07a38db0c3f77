package gate_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"codeberg.org/devaipod/devaipod/pods/gate"
	"codeberg.org/devaipod/devaipod/pods/podfile"
)

func TestWhatAContainerSaysOfItsSetupIsKeptInBounds(t *testing.T) {
	p := newPlace(t, podfile.APIOpenAI, func(http.ResponseWriter, *http.Request) {})
	for _, body := range []string{"", "[]", `{"stage": 3}`, `{"stage": "` + strings.Repeat("x", podfile.MaxSetupState) + `"}`} {
		if resp, _ := ask(t, p.agent, "POST", podfile.SetupPath, agentTok, body); resp.StatusCode != 400 {
			t.Errorf("%.20q: %s", body, resp.Status)
		}
	}
	if resp, _ := ask(t, p.agent, "POST", podfile.SetupPath, workTok, `{}`); resp.StatusCode != 401 {
		t.Errorf("another's token: %s", resp.Status)
	}
	if got := p.gate.Setups(); len(got) != 0 {
		t.Errorf("%+v", got)
	}
	for i, stage := range []string{"one", "two"} {
		if resp, body := ask(t, p.agent, "POST", podfile.SetupPath, agentTok, fmt.Sprintf(`{"stage": %q}`, stage)); resp.StatusCode != 204 {
			t.Errorf("%d: %s %s", i, resp.Status, body)
		}
	}
	ask(t, p.workspace, "POST", podfile.SetupPath, workTok, `{"stage": "three", "error": "why", "ended": true}`)
	got := p.gate.Setups()
	if len(got) != 2 || got[gate.Agent].Stage != "two" || got[gate.Workspace] != (podfile.SetupState{Stage: "three", Error: "why", Ended: true}) {
		t.Errorf("%+v", got)
	}
}
