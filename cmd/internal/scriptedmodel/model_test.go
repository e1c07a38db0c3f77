package scriptedmodel_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/cmd/internal/scriptedmodel"
)

const (
	key  = "sk-test"
	task = "Push it with: git push origin HEAD:agent/3-proof\nnonce: 0123456789abcdef\n"
	// printf %s 0123456789abcdef | sha256sum
	proof = "9f9f5111f7b27a781f1f1ddde5ebc2dd2b796bfc7365c9c28b548e564176929f"
)

// talk is a conversation as an agent holds it.
type talk struct {
	t        *testing.T
	url      string
	messages []map[string]any
}

func newTalk(t *testing.T, text string) (*talk, *scriptedmodel.Server) {
	t.Helper()
	model := scriptedmodel.New(key, scriptedmodel.Tasks())
	server := httptest.NewServer(model)
	t.Cleanup(server.Close)
	return &talk{t: t, url: server.URL, messages: []map[string]any{
		{"role": "system", "content": "be good"},
		{"role": "user", "content": []map[string]string{{"type": "text", "text": text}}},
	}}, model
}

func (k *talk) post(auth string, request map[string]any) *http.Response {
	k.t.Helper()
	b, err := json.Marshal(request)
	if err != nil {
		k.t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(k.t.Context(), http.MethodPost, k.url+"/v1/chat/completions", bytes.NewReader(b))
	if err != nil {
		k.t.Fatal(err)
	}
	req.Header.Set("Authorization", auth)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		k.t.Fatal(err)
	}
	k.t.Cleanup(func() { _ = resp.Body.Close() })
	return resp
}

type call struct {
	ID       string `json:"id"`
	Function struct {
		Name      string `json:"name"`
		Arguments string `json:"arguments"`
	} `json:"function"`
}

// next asks for the next step, streamed: a text, or a tool's call.
func (k *talk) next() (text string, tool *call) {
	k.t.Helper()
	resp := k.post("Bearer "+key, map[string]any{"stream": true, "messages": k.messages, "tools": []any{map[string]any{"type": "function"}}})
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "text/event-stream" {
		k.t.Fatalf("%s, %s", resp.Status, resp.Header)
	}
	finish, end := "", false
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		if !ok {
			continue
		}
		if data == "[DONE]" {
			end = true
			break
		}
		var chunk struct {
			Model   string `json:"model"`
			Choices []struct {
				Delta struct {
					Content   string `json:"content"`
					ToolCalls []call `json:"tool_calls"`
				} `json:"delta"`
				Finish *string `json:"finish_reason"`
			} `json:"choices"`
		}
		if err := json.Unmarshal([]byte(data), &chunk); err != nil {
			k.t.Fatalf("%v: %s", err, data)
		}
		if chunk.Model != scriptedmodel.Name {
			k.t.Errorf("it calls itself %q", chunk.Model)
		}
		c := chunk.Choices[0]
		text += c.Delta.Content
		if len(c.Delta.ToolCalls) > 0 {
			tool = &c.Delta.ToolCalls[0]
		}
		if c.Finish != nil {
			finish = *c.Finish
		}
	}
	if want := map[bool]string{true: "tool_calls", false: "stop"}[tool != nil]; finish != want || !end {
		k.t.Errorf("finished with %q, ended %t", finish, end)
	}
	return text, tool
}

// answer tells what the tool said.
func (k *talk) answer(c *call, result string) {
	k.messages = append(k.messages,
		map[string]any{"role": "assistant", "content": "", "tool_calls": []any{map[string]any{"id": c.ID, "type": "function", "function": c.Function}}},
		map[string]any{"role": "tool", "tool_call_id": c.ID, "content": result})
}

// step expects a tool's call with want in its arguments, and answers it.
func (k *talk) step(tool, want, result string) {
	k.t.Helper()
	text, c := k.next()
	if c == nil || c.Function.Name != tool || !strings.Contains(c.Function.Arguments, want) {
		k.t.Fatalf("said %q, called %+v; want %s with %q", text, c, tool, want)
	}
	k.answer(c, result)
}

func TestTheTaskGoesOnOnlyByWhatTheToolsSay(t *testing.T) {
	k, model := newTalk(t, task)
	k.step("bash", "0123456789abcdef", "no sha256sum here")
	k.step("bash", "sha256sum", proof+"  -\n") // tried again
	k.step("write", proof, "Wrote file")
	k.step("bash", "git commit", "committed:Write down the proof")
	k.step("bash", "git push origin HEAD:agent/3-proof", "error: no route")
	k.step("bash", "git push origin HEAD:agent/3-proof", "push-went-well")
	if text, c := k.next(); c != nil || !strings.Contains(text, scriptedmodel.ProofFile) {
		t.Errorf("said %q, called %+v", text, c)
	}
	if got := model.Requests(); len(got) != 7 || !strings.Contains(got[0].System, "be good") || len(got[6].Calls) != 6 {
		t.Errorf("noted %+v", got)
	}
}

func TestAWrongDigestEndsTheTask(t *testing.T) {
	k, _ := newTalk(t, task)
	k.step("bash", "sha256sum", strings.Repeat("0", 64)+"  -")
	if text, c := k.next(); c != nil || !strings.Contains(text, "not the nonce's") {
		t.Errorf("said %q, called %+v", text, c)
	}
}

func TestAStepThatNeverWorksIsGivenUp(t *testing.T) {
	k, _ := newTalk(t, task)
	for range 3 {
		k.step("bash", "sha256sum", "command not found")
	}
	if text, c := k.next(); c != nil || !strings.Contains(text, "command not found") {
		t.Errorf("said %q, called %+v", text, c)
	}
}

func TestOtherScenarios(t *testing.T) {
	for name, tt := range map[string]struct{ text, say, tool string }{
		"nothing to do":       {"scenario: no-commits", "nothing to change", ""},
		"an unknown scenario": {"scenario: dance", "no scenario dance", ""},
		"no nonce":            {"please", "no nonce", ""},
		"a push to main":      {"scenario: push-main", "", "git commit"},
		"a look around":       {"scenario: env", "", "/proc/[0-9]*/environ"},
	} {
		k, _ := newTalk(t, tt.text)
		text, c := k.next()
		if (c == nil) != (tt.tool == "") || !strings.Contains(text, tt.say) || (c != nil && !strings.Contains(c.Function.Arguments, tt.tool)) {
			t.Errorf("%s: said %q, called %+v", name, text, c)
		}
	}
}

func TestTheSlowTaskWaitsBeforeThePush(t *testing.T) {
	k, model := newTalk(t, task+"scenario: slow\n")
	k.step("bash", "sha256sum", proof)
	k.step("write", proof, "ok")
	k.step("bash", "git commit", "committed:Write down the proof")
	came := make(chan *call, 1)
	go func() { _, c := k.next(); came <- c }()
	select {
	case <-came:
		t.Error("it did not wait")
	case <-time.After(200 * time.Millisecond):
	}
	model.Release("scenario: slow")
	c := <-came
	if c == nil || !strings.Contains(c.Function.Arguments, "git push") {
		t.Fatalf("called %+v", c)
	}
	k.answer(c, "the connection broke")
	if _, c = k.next(); c == nil || !strings.Contains(c.Function.Arguments, "git push") {
		t.Errorf("after a push that failed it called %+v", c)
	}
}

func TestWhatItAnswersWithAnError(t *testing.T) {
	k, model := newTalk(t, "scenario: model-error")
	for name, tt := range map[string]struct {
		auth    string
		request map[string]any
		status  int
		say     string
	}{
		"no key":              {"", nil, 401, "key is wrong"},
		"a wrong key":         {"Bearer " + key + "x", nil, 401, "key is wrong"},
		"no conversation":     {"Bearer " + key, map[string]any{"messages": 3}, 400, "cannot unmarshal"},
		"the task asks so":    {"Bearer " + key, map[string]any{"messages": k.messages, "tools": []any{map[string]any{}}}, 401, "as the task asks"},
		"a title, unstreamed": {"Bearer " + key, map[string]any{"messages": k.messages}, 200, `"Scripted task"`},
	} {
		resp := k.post(tt.auth, tt.request)
		b, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != tt.status || !strings.Contains(string(b), tt.say) || !json.Valid(b) {
			t.Errorf("%s: %s %s, %v", name, resp.Status, b, err)
		}
	}
	if n := len(model.Requests()); n != 2 {
		t.Errorf("noted %d requests", n)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, k.url+"/v1/models", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+key)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, err := io.ReadAll(resp.Body); err != nil || !strings.Contains(string(b), fmt.Sprintf("%q", scriptedmodel.Name)) {
		t.Errorf("models: %s, %v", b, err)
	}
}
