package scriptedmodel

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
)

// The part of OpenAI's chat completions API (platform.openai.com/docs/
// api-reference/chat) that opencode uses.

type wireRequest struct {
	Model    string            `json:"model"`
	Stream   bool              `json:"stream"`
	Messages []wireMessage     `json:"messages"`
	Tools    []json.RawMessage `json:"tools"`
}

type wireMessage struct {
	Role       string          `json:"role"`
	Content    json.RawMessage `json:"content"` // a string, or a list of parts
	ToolCallID string          `json:"tool_call_id"`
	ToolCalls  []struct {
		ID       string       `json:"id"`
		Function wireFunction `json:"function"`
	} `json:"tool_calls"`
}

type wireFunction struct {
	Name      string `json:"name"`
	Arguments string `json:"arguments"`
}

func (m wireMessage) text() string {
	var s string
	if json.Unmarshal(m.Content, &s) == nil {
		return s
	}
	var parts []struct {
		Text string `json:"text"`
	}
	if json.Unmarshal(m.Content, &parts) != nil {
		return ""
	}
	var b strings.Builder
	for _, p := range parts {
		b.WriteString(p.Text)
	}
	return b.String()
}

// request turns the wire's form into what a script reads.
func (w wireRequest) request() Request {
	r := Request{HasTools: len(w.Tools) > 0}
	results := map[string]string{}
	for _, m := range w.Messages {
		if m.Role == "tool" {
			results[m.ToolCallID] = m.text()
		}
	}
	for _, m := range w.Messages {
		switch m.Role {
		case "system":
			r.System += m.text() + "\n"
		case "user":
			r.User += m.text() + "\n"
		}
		for _, c := range m.ToolCalls {
			result, answered := results[c.ID]
			r.Calls = append(r.Calls, ToolCall{ID: c.ID, Tool: c.Function.Name, Arguments: c.Function.Arguments, Answered: answered, Result: result})
		}
	}
	return r
}

// send writes a reply, streamed as server-sent events or whole.
func send(w http.ResponseWriter, stream bool, r Reply, id string) {
	delta := map[string]any{"role": "assistant", "content": r.Text}
	finish := "stop"
	if r.Tool != "" {
		args, err := json.Marshal(r.Arguments)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		delta["tool_calls"] = []map[string]any{{"index": 0, "id": id, "type": "function", "function": wireFunction{r.Tool, string(args)}}}
		finish = "tool_calls"
	}
	usage := map[string]int{"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
	if !stream {
		w.Header().Set("Content-Type", "application/json")
		writeJSON(w, "", map[string]any{
			"id": id, "object": "chat.completion", "model": Name, "usage": usage,
			"choices": []any{map[string]any{"index": 0, "message": delta, "finish_reason": finish}},
		})
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	chunk := func(delta map[string]any, finish any, usage any) {
		writeJSON(w, "data: ", map[string]any{
			"id": id, "object": "chat.completion.chunk", "model": Name, "usage": usage,
			"choices": []any{map[string]any{"index": 0, "delta": delta, "finish_reason": finish}},
		})
	}
	chunk(delta, nil, nil)
	chunk(map[string]any{}, finish, usage)
	fmt.Fprint(w, "data: [DONE]\n\n")
}

func writeJSON(w http.ResponseWriter, prefix string, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // plain data
	}
	fmt.Fprintf(w, "%s%s\n\n", prefix, b)
	if f, ok := w.(http.Flusher); ok {
		f.Flush()
	}
}
