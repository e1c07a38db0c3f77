package model_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"codeberg.org/devaipod/devaipod/pods/model"
	"codeberg.org/devaipod/devaipod/pods/podfile"
	"codeberg.org/devaipod/devaipod/pods/usage"
)

const (
	openai    = podfile.APIOpenAI
	responses = podfile.APIResponses
	anthropic = podfile.APIAnthropic
	gemini    = podfile.APIGemini
)

// call is the end of a request's path, as each API has it.
var call = map[string]string{openai: "chat/completions", responses: "responses", anthropic: "messages", gemini: "m:streamGenerateContent"}

// What an honest agent may well send.
func TestWhatIsAdmittedIsNotTouched(t *testing.T) {
	for name, tt := range map[string]struct{ api, body string }{
		"tools of its own":                  {openai, `{"model":"m","messages":[],"tools":[{"type":"function","function":{"name":"bash"}},{"type":"custom"}]}`},
		"a key that comes in two objects":   {openai, `{"model":"m","messages":[{"role":"a","x":[{"role":1},{"role":2}]},{"role":"b"}],"n":1.50}`},
		"a data URL":                        {openai, `{"model":"m","messages":[{"content":[{"type":"image_url","image_url":{"url":"data:image/png;base64,AA=="}}]}]}`},
		"tool arguments that hold anything": {anthropic, `{"model":"m","messages":[{"content":[{"type":"tool_use","input":{"source":{"type":"url"},"image_url":"http://x","file_id":"f"}}]}],"tools":[{"name":"a"},{"type":"custom","name":"b"},{"type":"bash_20250124","name":"bash"}]}`},
		"an image in itself":                {anthropic, `{"model":"m","messages":[{"content":[{"type":"image","source":{"type":"base64","data":"AA"}}]}]}`},
		"markup that JSON need not escape":  {openai, `{"model":"m","messages":[{"content":"<a> & \u003c \/"}]}`},
		"what is switched off":              {openai, `{"model":"m","web_search_options":null,"background":false,"previous_response_id":null,"tools":null}`},
		"responses":                         {responses, `{"model":"m","tools":[{"type":"function","name":"f"},{"type":"custom"}],"input":[{"type":"message","content":[{"type":"input_text","text":"a"},{"type":"input_image","image_url":"data:image/png;base64,AA"},{"type":"input_file","file_data":"data:a/b;base64,AA"}]},{"type":"function_call_output","output":"https://x"}],"store":false}`},
		"gemini":                            {gemini, `{"contents":[{"role":"user","parts":[{"text":"a"},{"inlineData":{"mimeType":"a","data":"AA"}},{"functionCall":{"args":{"fileData":1}}},{"functionResponse":{"name":"f","response":{"fileData":{"fileUri":"x"}}}}]}],"tools":[{"functionDeclarations":[{"name":"f"}]}],"toolConfig":{}}`},
	} {
		req, err := model.Rules{API: tt.api, Name: "m"}.Admit(call[tt.api], []byte(tt.body))
		if err != nil || string(req.Body) != tt.body || req.Stripped != nil || req.Free {
			t.Errorf("%s: %q %s %v", name, req.Stripped, req.Body, err)
		}
	}
}

func TestWhatIsRefused(t *testing.T) {
	for name, tt := range map[string]struct{ api, body string }{
		"another model":                   {openai, `{"model":"dear"}`},
		"no model":                        {openai, `{"messages":[]}`},
		"the model named twice":           {openai, `{"model":"dear","model":"m"}`},
		"the model in two spellings":      {openai, `{"model":"m","MODEL":"dear"}`},
		"the model in letters like it":    {openai, `{"model":"m","mo_del":"dear"}`},
		"a key twice deep inside":         {openai, `{"model":"m","messages":[{"content":[{"type":"a","type":"b"}]}]}`},
		"a tool with two spellings":       {openai, `{"model":"m","tools":[{"type":"web_search","Type":"function"}]}`},
		"a tool whose type is no text":    {openai, `{"model":"m","tools":[{"type":["web_search"]}]}`},
		"a tool that is no object":        {openai, `{"model":"m","tools":["web_search"]}`},
		"a tool that is null":             {openai, `{"model":"m","tools":[null]}`},
		"tools that are no list":          {openai, `{"model":"m","tools":{"type":"x"}}`},
		"an image that is fetched":        {openai, `{"model":"m","messages":[{"content":[{"type":"image_url","image_url":{"url":"https://example.org/?leak"}}]}]}`},
		"an image in another spelling":    {openai, `{"model":"m","meſsageſ":[{"Content":[{"Image_URL":{"Url":"https://example.org/?leak"}}]}]}`},
		"a file by its id":                {openai, `{"model":"m","messages":[{"content":[{"type":"file","file":{"file_id":"f"}}]}]}`},
		"a source that is fetched":        {anthropic, `{"model":"m","messages":[{"content":[{"type":"tool_result","content":[{"source":{"type":"url","url":"https://example.org"}}]}]}]}`},
		"a source by its id":              {anthropic, `{"model":"m","system":[{"type":"document","source":{"type":"file","file_id":"f"}}]}`},
		"another's answer":                {openai, `{"model":"m","previous_response_id":"resp_1"}`},
		"another's conversation":          {openai, `{"model":"m","conversation":"c"}`},
		"a prompt that lies there":        {openai, `{"model":"m","prompt":{"id":"p"}}`},
		"work in the background":          {openai, `{"model":"m","background":true}`},
		"an item that lies there":         {openai, `{"model":"m","input":[{"type":"item_reference","id":"i"}]}`},
		"an image by URL, in responses":   {openai, `{"model":"m","input":[{"content":[{"type":"input_image","image_url":"https://example.org"}]}]}`},
		"a file by URL, in responses":     {openai, `{"model":"m","input":[{"content":[{"type":"input_file","file_url":"https://example.org"}]}]}`},
		"a file by id, in responses":      {openai, `{"model":"m","input":[{"content":[{"type":"input_file","file_id":"f"}]}]}`},
		"an output that is fetched":       {openai, `{"model":"m","input":[{"type":"function_call_output","output":[{"type":"input_image","image_url":"https://example.org"}]}]}`},
		"other models to fall back to":    {openai, `{"model":"m","models":["dear"]}`},
		"gemini's file":                   {gemini, `{"contents":[{"parts":[{"fileData":{"fileUri":"https://example.org"}}]}]}`},
		"gemini's file in the other way":  {gemini, `{"contents":[{"parts":[{"file_data":{"file_uri":"gs://x"}}]}]}`},
		"gemini's file in an instruction": {gemini, `{"system_instruction":{"parts":[{"file_data":{"file_uri":"gs://x"}}]}}`},
		"gemini's file in a response":     {gemini, `{"contents":[{"parts":[{"functionResponse":{"parts":[{"fileData":{"fileUri":"x"}}]}}]}]}`},
		"gemini's cache of another":       {gemini, `{"cachedContent":"cachedContents/1"}`},
		"a list instead of a request":     {openai, `[]`},
		"null instead of a request":       {openai, `null`},
		"what is not JSON":                {openai, `{"tools":`},
		"two requests":                    {openai, `{"model":"m"}{"model":"dear"}`},
	} {
		if req, err := (model.Rules{API: tt.api, Name: "m"}).Admit(call[tt.api], []byte(tt.body)); err == nil {
			t.Errorf("%s is let through as %s", name, req.Body)
		}
	}
	for _, c := range []string{"dear:generateContent", "m", "m:batchEmbedContents", "m:generateContent:x", "../x:generateContent"} {
		if _, err := (model.Rules{API: gemini, Name: "m"}).Admit(c, []byte(`{}`)); err == nil {
			t.Errorf("%s is let through", c)
		}
	}
}

func TestWhatTheProviderWouldRunIsTakenOut(t *testing.T) {
	for name, tt := range map[string]struct{ api, body, want, stripped string }{
		"a search":               {openai, `{"model":"m","web_search_options":{},"n":1}`, `{"model":"m","n":1}`, "[websearchoptions]"},
		"a tool, and its choice": {openai, `{"model":"m","tool_choice":{"type":"web_search"},"tools":[{"type":"web_search"},{"type":"function","function":{"x":1.50,"y":"<"}}]}`, `{"model":"m","tools":[{"type":"function","function":{"x":1.50,"y":"<"}}]}`, "[web_search]"},
		"all tools there are":    {openai, `{"model":"m","tools":[{"type":"code_interpreter"}],"Tool_Choice":"required"}`, `{"model":"m"}`, "[code_interpreter]"},
		"another spelling":       {openai, `{"model":"m","Toolſ":[{"type":"web_search_preview"}]}`, `{"model":"m"}`, "[web_search_preview]"},
		"MCP and a container":    {anthropic, `{"model":"m","mcp_servers":[{}],"container":"c"}`, `{"model":"m"}`, "[container mcpservers]"},
		"anthropic's":            {anthropic, `{"model":"m","tools":[{"type":"web_fetch_20250910"},{"name":"own"}]}`, `{"model":"m","tools":[{"name":"own"}]}`, "[web_fetch_20250910]"},
		"no type":                {openai, `{"model":"m","tools":[{"name":"x"}]}`, `{"model":"m"}`, "[a tool without a type]"},
		"gemini's":               {gemini, `{"tools":[{"googleSearch":{},"functionDeclarations":[{"name":"f"}]},{"code_execution":{}}]}`, `{"tools":[{"functionDeclarations":[{"name":"f"}]}]}`, "[code_execution googleSearch]"},
	} {
		rules := model.Rules{API: tt.api, Name: "m"}
		req, err := rules.Admit(call[tt.api], []byte(tt.body))
		if err != nil || string(req.Body) != tt.want || fmt.Sprint(req.Stripped) != tt.stripped {
			t.Errorf("%s: %s %s %v", name, req.Body, req.Stripped, err)
		}
		rules.ProviderTools = []string{"web_search", "web_fetch", "code_interpreter", "mcp", "code_execution", "google_search"}
		if name == "no type" {
			continue
		}
		if req, err := rules.Admit(call[tt.api], []byte(tt.body)); err != nil || string(req.Body) != tt.body {
			t.Errorf("%s, allowed: %s %v", name, req.Body, err)
		}
	}
}

func TestHowMuchOutputIsAskedFor(t *testing.T) {
	for body, want := range map[string]int64{
		`{"model":"m"}`:                  0,
		`{"model":"m","max_tokens":100}`: 100,
		`{"model":"m","max_tokens":100,"n":3,"max_completion_tokens":50}`:             300,
		`{"model":"m","max_output_tokens":7}`:                                         7,
		`{"model":"m","max_tokens":-5,"n":0}`:                                         0,
		`{"model":"m","max_tokens":1e300,"n":1e300}`:                                  1<<31 - 1,
		`{"model":"m","generation_config":{"maxOutputTokens":40,"candidateCount":2}}`: 80,
		`{"model":"m","max_tokens":"many"}`:                                           0,
	} {
		req, err := model.Rules{API: openai, Name: "m"}.Admit("chat/completions", []byte(body))
		if err != nil || req.MaxOutput != want {
			t.Errorf("%s: %d %v", body, req.MaxOutput, err)
		}
	}
	if req, err := (model.Rules{API: anthropic, Name: "m"}).Admit("messages/count_tokens", []byte(`{"model":"m"}`)); err != nil || !req.Free {
		t.Errorf("%+v %v", req, err)
	}
	if req, err := (model.Rules{API: gemini, Name: "m"}).Admit("m:countTokens", []byte(`{}`)); err != nil || !req.Free {
		t.Errorf("%+v %v", req, err)
	}
}

// The shapes are those of the APIs' references.
func TestWhatAnAnswerSaysWasUsed(t *testing.T) {
	for name, tt := range map[string]struct {
		answer string
		want   usage.Tokens
		ok     bool
	}{
		"chat": {`{"id":"c","choices":[{"message":{"content":"\"usage\":{\"prompt_tokens\":9}"}}],"usage":{"prompt_tokens":19,"completion_tokens":10,"prompt_tokens_details":{"cached_tokens":4}}}`,
			usage.Tokens{Input: 15, Output: 10, CacheRead: 4}, true},
		"chat over lines": {"{\n  \"usage\": {\n\n    \"prompt_tokens\": 19,\n    \"completion_tokens\": 10\n  }\n}\n", usage.Tokens{Input: 19, Output: 10}, true},
		"chat as it comes": {"data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}],\"usage\":null}\n\ndata: {\"choices\":[],\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":2}}\r\n\r\ndata: [DONE]\n\n",
			usage.Tokens{Input: 5, Output: 2}, true},
		"chat that does not say": {"data: {\"choices\":[]}\n\ndata: [DONE]\n\n", usage.Tokens{}, false},
		"responses as they come": {"event: response.created\ndata: {\"type\":\"response.created\",\"response\":{\"usage\":null}}\n\nevent: response.completed\ndata: {\"type\":\"response.completed\",\"response\":{\"usage\":{\"input_tokens\":36,\"input_tokens_details\":{\"cached_tokens\":6},\"output_tokens\":87}}}\n\n",
			usage.Tokens{Input: 30, Output: 87, CacheRead: 6}, true},
		"messages as they come": {"event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":25,\"output_tokens\":1,\"cache_creation_input_tokens\":7,\"cache_read_input_tokens\":8}}}\n\nevent: ping\ndata: {\"type\": \"ping\"}\n\nevent: message_delta\ndata: {\"type\":\"message_delta\",\"usage\":{\"output_tokens\":15}}\n\n",
			usage.Tokens{Input: 25, Output: 15, CacheRead: 8, CacheWrite: 7}, true},
		"messages broken off": {"data: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":25,\"output_tokens\":1}}}\n\n", usage.Tokens{Input: 25, Output: 1}, false},
		"messages":            {`{"type":"message","usage":{"input_tokens":3,"output_tokens":4}}`, usage.Tokens{Input: 3, Output: 4}, true},
		"gemini as it comes": {"data: {\"candidates\":[{\"content\":{}}],\"usageMetadata\":{\"promptTokenCount\":10,\"totalTokenCount\":10}}\n\ndata: {\"candidates\":[{\"finishReason\":\"STOP\"}],\"usageMetadata\":{\"promptTokenCount\":10,\"cachedContentTokenCount\":4,\"candidatesTokenCount\":6,\"thoughtsTokenCount\":5}}\n\n",
			usage.Tokens{Input: 10, Output: 11, CacheRead: 4}, true},
		"gemini broken off": {"data: {\"candidates\":[{\"content\":{}}],\"usageMetadata\":{\"promptTokenCount\":10,\"candidatesTokenCount\":6}}\n\n", usage.Tokens{Input: 10, Output: 6}, false},
		"gemini, one of two": {"data: {\"candidates\":[{\"index\":0},{\"index\":1}],\"usageMetadata\":{\"promptTokenCount\":10,\"candidatesTokenCount\":6}}\n\ndata: {\"candidates\":[{\"index\":1,\"finishReason\":\"STOP\"}],\"usageMetadata\":{\"promptTokenCount\":10,\"candidatesTokenCount\":8}}\n\n",
			usage.Tokens{Input: 10, Output: 8}, false},
		"gemini that refuses":      {`{"promptFeedback":{"blockReason":"SAFETY"},"usageMetadata":{"promptTokenCount":10}}`, usage.Tokens{Input: 10}, true},
		"gemini that only thought": {`{"candidates":[{"index":-1,"finishReason":"MAX_TOKENS"}],"usageMetadata":{"promptTokenCount":10,"thoughtsTokenCount":7}}`, usage.Tokens{Input: 10, Output: 7}, true},
		"gemini in a list":         {"[{\"usageMetadata\":{\"promptTokenCount\":10}},\n{\"candidates\":[{\"finishReason\":\"STOP\"}],\"usageMetadata\":{\"promptTokenCount\":10,\"candidatesTokenCount\":6}}\n]\n", usage.Tokens{Input: 10, Output: 6}, true},
		"text":                     {"a \"usage of text", usage.Tokens{}, false},
		"less than none":           {`{"usage":{"input_tokens":-5,"output_tokens":-1}}`, usage.Tokens{}, true},
		"a long line first": {"data: \"usage" + strings.Repeat("x", 5<<20) + "\n\ndata: {\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":2}}\n\n",
			usage.Tokens{Input: 5, Output: 2}, true},
	} {
		for _, size := range []int{1, 7, 1 << 20} {
			if size == 1 && len(tt.answer) > 1<<20 {
				continue
			}
			var m model.Meter
			for rest := tt.answer; rest != ""; {
				n, err := m.Write([]byte(rest[:min(size, len(rest))]))
				if err != nil || n != min(size, len(rest)) {
					t.Fatal(n, err)
				}
				rest = rest[n:]
			}
			if got, ok := m.Tokens(); got != tt.want || ok != tt.ok {
				t.Errorf("%s in pieces of %d: %+v %v", name, size, got, ok)
			}
		}
	}
}

func FuzzAdmit(f *testing.F) {
	f.Add(0, []byte(`{"model":"m","tools":[{"type":"web_search"}],"tool_choice":"auto"}`))
	f.Add(1, []byte(`{"model":"m","messages":[{"content":[{"source":{"type":"base64"}}]}],"mcp_servers":[]}`))
	f.Add(2, []byte(`{"tools":[{"googleSearch":{},"functionDeclarations":[]}]}`))
	apis := []string{openai, anthropic, gemini, responses}
	f.Fuzz(func(t *testing.T, api int, body []byte) {
		rules := model.Rules{API: apis[uint(api)%4], Name: "m"}
		req, err := rules.Admit(call[rules.API], body)
		if err != nil {
			return
		}
		if !json.Valid(req.Body) {
			t.Fatalf("%q becomes %q", body, req.Body)
		}
		// What goes out has nothing left to take out.
		again, err := rules.Admit(call[rules.API], req.Body)
		if err != nil || again.Stripped != nil {
			t.Errorf("%q goes out as %q, with %q in it: %v", body, req.Body, again.Stripped, err)
		}
	})
}

func FuzzMeter(f *testing.F) {
	f.Add([]byte("data: {\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":2}}\n\n"), 3)
	f.Add([]byte("[{\"usageMetadata\":{\"promptTokenCount\":10}}]"), 1)
	f.Fuzz(func(t *testing.T, answer []byte, cut int) {
		var whole, cutUp model.Meter
		_, _ = whole.Write(answer)
		n := int(uint(cut) % uint(len(answer)+1))
		_, _ = cutUp.Write(answer[:n])
		_, _ = cutUp.Write(answer[n:])
		a, aok := whole.Tokens()
		b, bok := cutUp.Tokens()
		if a != b || aok != bok || min(a.Input, a.Output, a.CacheRead, a.CacheWrite) < 0 {
			t.Errorf("%+v %v, cut at %d %+v %v", a, aok, n, b, bok)
		}
	})
}
