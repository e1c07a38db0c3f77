package model_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"codeberg.org/devaipod/devaipod/pods/model"
)

// The shapes are those of the APIs' references.
var callAnswers = map[string]struct {
	answer string
	want   string
}{
	"chat": {`{"id":"c","choices":[{"index":0,"message":{"role":"assistant","content":null,"tool_calls":[{"id":"call_a","type":"function","function":{"name":"bash","arguments":"{\"command\":\"go test ./...\"}"}},{"id":"call_b","type":"function","function":{"name":"read","arguments":"{}"}}]},"finish_reason":"tool_calls"}],"usage":{"prompt_tokens":82,"completion_tokens":17}}`,
		`call_a bash {"command":"go test ./..."}|call_b read {}`},
	"chat as it comes": {"data: {\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[{\"index\":0,\"id\":\"call_a\",\"type\":\"function\",\"function\":{\"name\":\"bash\",\"arguments\":\"\"}}]}}]}\n\n" +
		"data: {\"choices\":[{\"index\":0,\"delta\":{\"tool_calls\":[{\"index\":0,\"function\":{\"arguments\":\"{\\\"comm\"}}]}}]}\n\n" +
		"data: {\"choices\":[{\"index\":0,\"delta\":{\"tool_calls\":[{\"index\":1,\"id\":\"call_b\",\"function\":{\"name\":\"read\",\"arguments\":\"{}\"}}]}}]}\n\n" +
		"data: {\"choices\":[{\"index\":0,\"delta\":{\"tool_calls\":[{\"index\":0,\"function\":{\"arguments\":\"and\\\":\\\"a\\\"}\"}}]}}]}\n\ndata: [DONE]\n\n",
		`call_a bash {"command":"a"}|call_b read {}`},
	"chat whose pieces have no places": {"data: {\"choices\":[{\"delta\":{\"tool_calls\":[{\"id\":\"a\",\"function\":{\"name\":\"x\",\"arguments\":\"1\"}}]}}]}\n\ndata: {\"choices\":[{\"delta\":{\"tool_calls\":[{\"id\":\"b\",\"function\":{\"name\":\"y\",\"arguments\":\"2\"}}]}}]}\n\n",
		`a x 1|b y 2`},
	"messages": {`{"type":"message","content":[{"type":"text","text":"I run \"tool_use\""},{"type":"tool_use","id":"toolu_1","name":"bash","input":{"command":"make check"}}],"stop_reason":"tool_use","usage":{"input_tokens":3,"output_tokens":4}}`,
		`toolu_1 bash {"command":"make check"}`},
	"messages as they come": {"event: content_block_start\ndata: {\"type\":\"content_block_start\",\"index\":1,\"content_block\":{\"type\":\"tool_use\",\"id\":\"toolu_1\",\"name\":\"bash\",\"input\":{}}}\n\n" +
		"event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":1,\"delta\":{\"type\":\"input_json_delta\",\"partial_json\":\"\"}}\n\n" +
		"event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":1,\"delta\":{\"type\":\"input_json_delta\",\"partial_json\":\"{\\\"command\\\":\"}}\n\n" +
		"event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":1,\"delta\":{\"type\":\"input_json_delta\",\"partial_json\":\" \\\"ls\\\"}\"}}\n\n" +
		"event: content_block_stop\ndata: {\"type\":\"content_block_stop\",\"index\":1}\n\n",
		`toolu_1 bash {"command": "ls"}`},
	"responses": {`{"object":"response","output":[{"type":"reasoning","summary":[]},{"type":"function_call","id":"fc_1","call_id":"call_1","name":"shell","arguments":"{\"command\":[\"bash\",\"-lc\",\"ls\"]}"},{"type":"local_shell_call","call_id":"call_2","action":{"type":"exec","command":["ls"]}},{"type":"custom_tool_call","call_id":"call_3","name":"exec","input":"ls"}],"usage":{"input_tokens":1,"output_tokens":1}}`,
		`call_1 shell {"command":["bash","-lc","ls"]}|call_2 local_shell {"type":"exec","command":["ls"]}|call_3 exec ls`},
	"responses as they come": {"event: response.output_item.added\ndata: {\"type\":\"response.output_item.added\",\"item\":{\"type\":\"function_call\",\"call_id\":\"call_1\",\"name\":\"bash\",\"arguments\":\"\"}}\n\n" +
		"event: response.function_call_arguments.delta\ndata: {\"type\":\"response.function_call_arguments.delta\",\"delta\":\"{}\"}\n\n" +
		"event: response.output_item.done\ndata: {\"type\":\"response.output_item.done\",\"item\":{\"type\":\"function_call\",\"call_id\":\"call_1\",\"name\":\"bash\",\"arguments\":\"{}\"}}\n\n" +
		"event: response.completed\ndata: {\"type\":\"response.completed\",\"response\":{\"output\":[{\"type\":\"function_call\",\"call_id\":\"call_1\",\"name\":\"bash\",\"arguments\":\"{}\"}],\"usage\":{\"input_tokens\":36,\"output_tokens\":87}}}\n\n",
		`call_1 bash {}`},
	"gemini": {`{"candidates":[{"content":{"parts":[{"text":"a"},{"functionCall":{"id":"f1","name":"run_shell_command","args":{"command":"ls"}},"thoughtSignature":"x"}]},"finishReason":"STOP"}],"usageMetadata":{"promptTokenCount":10}}`,
		`f1 run_shell_command {"command":"ls"}`},
	"gemini as it comes": {"data: {\"candidates\":[{\"content\":{\"parts\":[{\"functionCall\":{\"name\":\"bash\",\"args\":{\"command\":\"ls\"}}}]}}]}\n\n",
		unnamedLs + ` bash {"command":"ls"}`},
	"gemini in a list": {"[{\"candidates\":[{\"content\":{\"parts\":[{\"functionCall\":{\"name\":\"bash\",\"args\":{ \"command\" : \"\\u006cs\" }}}]}}]},\n{\"usageMetadata\":{\"promptTokenCount\":10}}\n]\n",
		unnamedLs + ` bash { "command" : "\u006cs" }`},
	"a text that speaks of calls": {`{"choices":[{"message":{"content":"{\"tool_calls\":[{\"id\":\"a\"}]}"}}]}`, ``},
	"calls of the wrong types":    {`{"choices":[{"message":{"tool_calls":[{"id":7,"function":{"name":[],"arguments":{}}}]}}],"content":{"type":"tool_use"},"output":"a_call","candidates":7}`, ``},
	"no JSON":                     {"data: {{{ \"tool_calls\"\n\n", ``},
}

// unnamedLs is made of the tool bash and the arguments {"command":"ls"}.
const unnamedLs = "=56d80925c5cce22a561196d9"

func callsText(calls []model.Call) string {
	var all []string
	for _, c := range calls {
		all = append(all, c.ID+" "+c.Tool+" "+c.Arguments)
	}
	return strings.Join(all, "|")
}

func TestWhichToolsAnAnswerAsksFor(t *testing.T) {
	for name, tt := range callAnswers {
		for _, size := range []int{1, 7, 1 << 20} {
			var m model.Meter
			for rest := tt.answer; rest != ""; {
				n, _ := m.Write([]byte(rest[:min(size, len(rest))]))
				rest = rest[n:]
			}
			m.Tokens()
			if got := callsText(m.Calls()); got != tt.want {
				t.Errorf("%s in pieces of %d:\n%s\nwant\n%s", name, size, got, tt.want)
			}
		}
	}
}

func TestHowMuchOfCallsIsKept(t *testing.T) {
	var m model.Meter
	for i := range 1000 {
		fmt.Fprintf(&m, "data: {\"choices\":[{\"delta\":{\"tool_calls\":[{\"index\":%d,\"id\":\"c%d\",\"function\":{\"name\":\"bash\",\"arguments\":\"\"}}]}}]}\n\n", i, i)
		for range 3 {
			fmt.Fprintf(&m, "data: {\"choices\":[{\"delta\":{\"tool_calls\":[{\"index\":%d,\"function\":{\"arguments\":%q}}]}}]}\n\n", i, strings.Repeat("x", 40<<10))
		}
	}
	fmt.Fprintf(&m, "data: {\"choices\":[{\"delta\":{\"tool_calls\":[{\"index\":0,\"id\":%q,\"function\":{\"name\":\"bash\"}}]}}]}\n\n", strings.Repeat("x", 1000))
	m.Tokens()
	calls := m.Calls()
	if len(calls) != 64 {
		t.Errorf("%d calls", len(calls))
	}
	for _, c := range calls {
		if len(c.Arguments) != model.MaxArguments {
			t.Fatalf("%d bytes of arguments", len(c.Arguments))
		}
	}
}

func TestWhatARequestTellsOfCalls(t *testing.T) {
	for name, tt := range map[string]struct{ body, want string }{
		"chat": {`{"model":"m","messages":[{"role":"user","content":"do"},{"role":"assistant","tool_calls":[{"id":"a"}]},{"role":"tool","tool_call_id":"a","content":"FAIL"},{"role":"tool","tool_call_id":"b","content":[{"type":"text","text":"o"},{"type":"text","text":"k"}]}]}`,
			"a FAIL false|b ok false"},
		"messages": {`{"model":"m","messages":[{"role":"user","content":"do"},{"role":"user","content":[{"type":"tool_result","tool_use_id":"a","is_error":true,"content":"Exit code 1"},{"type":"text","text":"x"},{"type":"tool_result","tool_use_id":"b","content":[{"type":"text","text":"ok"}]}]}]}`,
			"a Exit code 1 true|b ok false"},
		"responses": {`{"model":"m","input":[{"role":"user","content":"do"},{"type":"function_call","call_id":"a","name":"x","arguments":"{}"},{"type":"function_call_output","call_id":"a","output":"ok"},{"type":"local_shell_call_output","call_id":"b","output":"{}"}]}`,
			"a ok false|b {} false"},
		"responses to a text": {`{"model":"m","input":"do"}`, ""},
		"gemini, without ids": {`{"contents":[{"role":"user","parts":[{"text":"do"}]},{"role":"model","parts":[{"functionCall":{"name":"bash","args":{"command":"ls"}}},{"functionCall":{"name":"bash","args":{"command":"no"}}}]},{"role":"user","parts":[{"functionResponse":{"name":"bash","response":{"output":"first"}}}]}]}`,
			unnamedLs + " first false"},
		"gemini, with ids": {`{"contents":[{"parts":[{"functionCall":{"id":"f","name":"bash","args":{}}}]},{"parts":[{"functionResponse":{"id":"f","name":"bash","response":{"deep":{"x":1}}}}]}]}`,
			`f {"deep":{"x":1}} false`},
		"a result of no call": {`{"contents":[{"parts":[{"functionResponse":{"name":"bash","response":{"output":"x"}}}]}]}`, ""},
		"wrong types":         {`{"messages":[{"role":7,"tool_call_id":[],"content":{}},7],"input":{},"contents":[{"parts":{}}]}`, ""},
		"no JSON":             {`{"messages":`, ""},
	} {
		var all []string
		for _, r := range model.Results([]byte(tt.body)) {
			all = append(all, fmt.Sprint(r.ID, " ", r.Text, " ", r.Failed))
		}
		if got := strings.Join(all, "|"); got != tt.want {
			t.Errorf("%s: %s, want %s", name, got, tt.want)
		}
	}
}

func FuzzCalls(f *testing.F) {
	for _, tt := range callAnswers {
		f.Add([]byte(tt.answer), 3)
	}
	f.Fuzz(func(t *testing.T, answer []byte, cut int) {
		var whole, cutUp model.Meter
		_, _ = whole.Write(answer)
		n := int(uint(cut) % uint(len(answer)+1))
		_, _ = cutUp.Write(answer[:n])
		_, _ = cutUp.Write(answer[n:])
		whole.Tokens()
		cutUp.Tokens()
		if a, b := callsText(whole.Calls()), callsText(cutUp.Calls()); a != b {
			t.Errorf("%q, cut at %d %q", a, n, b)
		}
	})
}

func FuzzResults(f *testing.F) {
	f.Add([]byte(`{"messages":[{"role":"tool","tool_call_id":"a","content":"x"},{"role":"user","content":[{"type":"tool_result","tool_use_id":"b","content":[]}]}]}`))
	f.Add([]byte(`{"input":[{"type":"function_call_output","call_id":"a","output":"x"}]}`))
	f.Add([]byte(`{"contents":[{"parts":[{"functionCall":{"name":"a"}}]},{"parts":[{"functionResponse":{"name":"a","response":{}}}]}]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		for _, r := range model.Results(body) {
			if r.ID == "" || len(r.ID)+len(r.Text) > 8*len(body) || !json.Valid(body) {
				t.Errorf("%q has %+v", body, r)
			}
		}
	})
}
