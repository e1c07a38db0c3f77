package gate_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"codeberg.org/devaipod/devaipod/pods/gate"
	"codeberg.org/devaipod/devaipod/pods/podfile"
	"codeberg.org/devaipod/devaipod/pods/witness"
)

func TestWhatTheModelHasTheAgentRunIsNoted(t *testing.T) {
	answer := "data: {\"choices\":[{\"delta\":{\"tool_calls\":[{\"index\":0,\"id\":\"call_a\",\"function\":{\"name\":\"bash\",\"arguments\":\"{\\\"command\\\":\\\"go \"}}]}}]}\n\n" +
		"data: {\"choices\":[{\"delta\":{\"tool_calls\":[{\"index\":0,\"function\":{\"arguments\":\"test\\\"}\"}}]}}]}\r\n\r\ndata: [DONE]\n\n"
	broken := strings.Repeat("data: {\"tool_calls\":[{{{ \x00\xff\n", 1000)
	saying := answer
	p := newPlaceFor(t, podfile.APIOpenAI, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		fmt.Fprint(w, saying)
	})
	dir := t.TempDir()
	p.config.Witness = witness.Open(dir, "task", p.config.Log)
	g, err := gate.New(p.config)
	if err != nil {
		t.Fatal(err)
	}
	p.agent.Config.Handler = g.Handler(gate.Agent)
	for _, turn := range []struct{ request, answer string }{
		{goodChat, answer},
		{`{"model":"m","messages":[{"role":"tool","tool_call_id":"call_a","content":"ok  hello\nexit code: 0"}]}`, broken},
		{`{"model":"m","messages":[{"role":"tool","tool_call_id":7,"content":{"a":[]}}]}`, ""},
	} {
		saying = turn.answer
		// What passes is as it was, whatever is seen in it.
		if resp, body := ask(t, p.agent, "POST", chatRoute, agentTok, turn.request); resp.StatusCode != 200 || body != turn.answer {
			t.Fatalf("%s %q", resp.Status, body)
		}
	}
	p.config.Witness.Close()
	seen, err := witness.Commands(dir, "task")
	if err != nil || len(seen) != 1 {
		t.Fatal(seen, err)
	}
	if c := seen[0]; c.Command != "go test" || c.Result == nil || c.Result.Exit == nil || *c.Result.Exit != 0 {
		t.Errorf("%+v", c)
	}
}
