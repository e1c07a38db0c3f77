package scriptedmodel_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"

	"codeberg.org/devaipod/devaipod/cmd/internal/scriptedmodel"
	"codeberg.org/devaipod/devaipod/pods/model"
	"codeberg.org/devaipod/devaipod/pods/usage"
)

// wires has what each API's own requests and answers look like. A request has a
// task, a call and its result; %s is for what makes it streamed.
var wires = map[string]struct {
	path, streamPath string
	header           string
	models           string
	stream           string // in the body
	body             string
	signs            string // what the call must have, "" for nothing
	text, call, end  string // patterns of a streamed answer
	broken           string // what a wrong key is told
}{
	scriptedmodel.Chat: {
		path: "/v1/chat/completions", header: "Authorization: Bearer ", models: "/v1/models", stream: `"stream":true,`,
		body: `{%s"messages":[{"role":"system","content":"be good"},{"role":"user","content":[{"type":"text","text":"THE-TASK"}]},
			{"role":"assistant","content":"","tool_calls":[{"id":"c1","type":"function","function":{"name":"bash","arguments":"{\"a\":1}"}}]},
			{"role":"tool","tool_call_id":"c1","content":"it went"}],"tools":[{"type":"function","function":{"name":"bash"}}]}`,
		text: `"content":"I say so"`, call: `"arguments":"{\\"command\\":\\"ls\\"}"`, end: `(?s)"finish_reason":"(stop|tool_calls)".*data: \[DONE\]\n`,
		broken: `"code":401`,
	},
	scriptedmodel.Responses: {
		path: "/v1/responses", header: "Authorization: Bearer ", models: "/v1/models", stream: `"stream":true,`,
		body: `{%s"store":false,"input":[{"role":"developer","content":"be good"},{"role":"user","content":[{"type":"input_text","text":"THE-TASK"}]},
			{"type":"function_call","call_id":"c1","name":"bash","arguments":"{\"a\":1}"},
			{"type":"function_call_output","call_id":"c1","output":"it went"}],"tools":[{"type":"function","name":"bash"}]}`,
		text: `(?s)output_text.delta.*"delta":"I sa".*"delta":"y so".*"text":"I say so"`,
		call: `(?s)"type":"function_call".*"delta":"{\\"comman".*"delta":"d\\":\\"ls\\"}".*"arguments":"{\\"command\\":\\"ls\\"}"`,
		end:  `event: response.completed\ndata: `, broken: `"code":401`,
	},
	scriptedmodel.Messages: {
		path: "/v1/messages", header: "X-Api-Key: ", models: "/v1/models", stream: `"stream":true,`,
		body: `{%s"max_tokens":100,"system":[{"type":"text","text":"be good","cache_control":{"type":"ephemeral"}}],"messages":[{"role":"user","content":[{"type":"text","text":"THE-TASK"}]},
			{"role":"assistant","content":[{"type":"text","text":"so"},{"type":"tool_use","id":"c1","name":"bash","input":{"a":1}}]},
			{"role":"user","content":[{"type":"tool_result","tool_use_id":"c1","content":"it went"}]}],"tools":[{"name":"bash","input_schema":{}}]}`,
		text: `(?s)"text":"I sa".*"text":"y so"`, call: `(?s)"type":"tool_use".*"partial_json":"{\\"comman".*"partial_json":"d\\":\\"ls\\"}"`,
		end: `(?s)"stop_reason":"(end_turn|tool_use)".*event: message_stop\n`, broken: `"type":"authentication_error"`,
	},
	scriptedmodel.Gemini: {
		path: "/v1beta/models/m:generateContent", streamPath: "/v1beta/models/m:streamGenerateContent?alt=sse", header: "X-Goog-Api-Key: ", models: "/v1beta/models",
		body: `{%s"systemInstruction":{"parts":[{"text":"be good"}]},"contents":[{"role":"user","parts":[{"text":"THE-TASK"}]},
			{"role":"model","parts":[{"text":"so"},{"functionCall":{"name":"bash","args":{"a":1}},"thoughtSignature":"YzE="}]},
			{"role":"user","parts":[{"functionResponse":{"name":"bash","response":{"name":"bash","content":"it went"}}}]}],"tools":[{"functionDeclarations":[{"name":"bash"}]}]}`,
		signs: `,"thoughtSignature":"YzE="`, text: `(?s)"text":"I sa".*"text":"y so"`,
		call: `"functionCall":{"args":{"command":"ls"},"name":"bash"},"thoughtSignature":"Y2FsbF`, end: `"finishReason":"STOP"`,
		broken: `"status":"UNAUTHENTICATED"`,
	},
}

func send(t *testing.T, h http.Handler, path, header, body string) (int, string) {
	t.Helper()
	method := http.MethodPost
	if body == "" {
		method = http.MethodGet
	}
	req := httptest.NewRequestWithContext(t.Context(), method, path, strings.NewReader(body))
	if name, value, ok := strings.Cut(header, ": "); ok {
		req.Header.Set(name, value)
		if name == "X-Api-Key" {
			req.Header.Set("Anthropic-Version", "2023-06-01")
		}
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, req)
	b, err := io.ReadAll(w.Result().Body)
	if err != nil {
		t.Fatal(err)
	}
	return w.Code, string(b)
}

func TestEachAPICarriesTheSame(t *testing.T) {
	for api, wire := range wires {
		for what, reply := range map[string]scriptedmodel.Reply{
			"text": {Text: "I say so"}, "call": {Tool: "bash", Arguments: map[string]any{"command": "ls"}},
		} {
			m := scriptedmodel.New(key, func(scriptedmodel.Request) scriptedmodel.Reply { return reply })
			streamPath := wire.streamPath
			if streamPath == "" {
				streamPath = wire.path
			}
			code, streamed := send(t, m, streamPath, wire.header+key, fmt.Sprintf(wire.body, wire.stream))
			pattern := map[string]string{"text": wire.text, "call": wire.call}[what]
			if code != http.StatusOK || !regexp.MustCompile(pattern).MatchString(streamed) || !regexp.MustCompile(wire.end).MatchString(streamed) {
				t.Errorf("%s, %s streamed: %d %s", api, what, code, streamed)
			}
			code, whole := send(t, m, wire.path, wire.header+key, fmt.Sprintf(wire.body, ""))
			if code != http.StatusOK || strings.Contains(whole, "data:") || !strings.Contains(whole, map[string]string{"text": "I say so", "call": "bash"}[what]) {
				t.Errorf("%s, %s as a whole: %d %s", api, what, code, whole)
			}
			var counted usage.Totals
			for _, answer := range []string{streamed, whole} {
				var meter model.Meter
				if _, err := meter.Write([]byte(answer)); err != nil {
					t.Fatal(err)
				}
				tokens, ok := meter.Tokens()
				if !ok || !strings.Contains(answer, scriptedmodel.Name) {
					t.Errorf("%s, %s does not say all: %s", api, what, answer)
				}
				counted = counted.Add(usage.Totals{Requests: 1, Tokens: tokens})
			}
			if said := m.Used(); said != counted || said.Tokens.Sum() != 220 {
				t.Errorf("%s, %s: it says %+v, its answers %+v", api, what, said, counted)
			}
			requests := m.Requests()
			if len(requests) != 2 {
				t.Fatalf("%s: noted %+v", api, requests)
			}
			for _, r := range requests {
				want := scriptedmodel.ToolCall{ID: "c1", Tool: "bash", Arguments: `{"a":1}`, Answered: true, Result: "it went"}
				if r.API != api || strings.TrimSpace(r.System) != "be good" || r.User != "THE-TASK\n" || !r.HasTools || len(r.Calls) != 1 || r.Calls[0] != want {
					t.Errorf("%s: noted %+v", api, r)
				}
			}
		}
	}
}

func TestEachAPIRefusesInItsOwnWords(t *testing.T) {
	headers := []string{"", "Authorization: Bearer ", "X-Api-Key: ", "X-Goog-Api-Key: "}
	for api, wire := range wires {
		m := scriptedmodel.New(key, scriptedmodel.Tasks())
		body := fmt.Sprintf(wire.body, "")
		for _, header := range headers {
			shown := header + key
			if header == wire.header {
				shown += "x"
			}
			if code, got := send(t, m, wire.path, shown, body); code != http.StatusUnauthorized || !strings.Contains(got, wire.broken) {
				t.Errorf("%s, %s: %d %s", api, shown, code, got)
			}
		}
		for name, body := range map[string]string{
			"no conversation": strings.Repeat("[", 3), "a result of no call": strings.NewReplacer(`"call_id":"c1","output"`, `"call_id":"c2","output"`,
				`"tool_call_id":"c1"`, `"tool_call_id":"c2"`, `"tool_use_id":"c1"`, `"tool_use_id":"c2"`, `"functionResponse":{"name":"bash"`, `"functionResponse":{"name":"other"`).Replace(body),
			"no signature": strings.Replace(body, wire.signs, "", 1),
		} {
			if name == "no signature" && wire.signs == "" {
				continue
			}
			if code, got := send(t, m, wire.path, wire.header+key, body); code != http.StatusBadRequest {
				t.Errorf("%s, %s: %d %s", api, name, code, got)
			}
		}
		if n := len(m.Requests()); n != 0 {
			t.Errorf("%s: noted %d requests", api, n)
		}
		if code, got := send(t, m, wire.models, wire.header+key, ""); code != http.StatusOK || !strings.Contains(got, scriptedmodel.Name) {
			t.Errorf("%s: models %d %s", api, code, got)
		}
		if code, _ := send(t, m, wire.models, "", ""); code != http.StatusUnauthorized {
			t.Errorf("%s: models without a key: %d", api, code)
		}
	}
}

// A stream that breaks off is not taken for one that is whole.
func TestEachAPIBreaksOff(t *testing.T) {
	for api, wire := range wires {
		m := scriptedmodel.New(key, func(scriptedmodel.Request) scriptedmodel.Reply {
			return scriptedmodel.Reply{Broken: scriptedmodel.Half}
		})
		server := httptest.NewServer(m)
		path := wire.streamPath
		if path == "" {
			path = wire.path
		}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL+path, strings.NewReader(fmt.Sprintf(wire.body, wire.stream)))
		if err != nil {
			t.Fatal(err)
		}
		name, value, _ := strings.Cut(wire.header+key, ": ")
		req.Header.Set(name, value)
		req.Header.Set("Anthropic-Version", "2023-06-01")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		if err == nil || !strings.Contains(string(b), "I was about to") || m.Used().Requests != 0 {
			t.Errorf("%s: %v %s", api, err, b)
		}
		if err := resp.Body.Close(); err != nil {
			t.Error(err)
		}
		server.Close()
		var meter model.Meter
		if _, err := meter.Write(b); err != nil {
			t.Fatal(err)
		}
		if _, ok := meter.Tokens(); ok {
			t.Errorf("%s: it counts as whole", api)
		}
	}
}
