package scriptedmodel

import (
	"encoding/json"
	"fmt"
	"net/http"

	"codeberg.org/devaipod/devaipod/pods/usage"
)

// chat is the part of OpenAI's chat completions API (platform.openai.com/docs/
// api-reference/chat) that opencode uses.
type chat struct{}

type chatRequest struct {
	Stream   bool              `json:"stream"`
	Messages []chatMessage     `json:"messages"`
	Tools    []json.RawMessage `json:"tools"`
}

type chatMessage struct {
	Role       string          `json:"role"`
	Content    json.RawMessage `json:"content"` // a string, or a list of parts
	ToolCallID string          `json:"tool_call_id"`
	ToolCalls  []struct {
		ID       string       `json:"id"`
		Function chatFunction `json:"function"`
	} `json:"tool_calls"`
}

type chatFunction struct {
	Name      string `json:"name"`
	Arguments string `json:"arguments"`
}

func (chat) key(h http.Header) string { return bearer(h) }

func (chat) said() usage.Tokens { return usage.Tokens{Input: 100, Output: 10} }

func (chat) models() any {
	return map[string]any{"object": "list", "data": []any{map[string]string{"id": Name, "object": "model"}}}
}

func (chat) fail(w http.ResponseWriter, status int, text string) {
	failure(w, status, map[string]any{"error": map[string]any{"message": text, "type": "scripted", "code": status}})
}

func (chat) read(_ *http.Request, body []byte) (Request, bool, error) {
	var in chatRequest
	if err := json.Unmarshal(body, &in); err != nil {
		return Request{}, false, err
	}
	r := Request{API: Chat, HasTools: len(in.Tools) > 0}
	for _, m := range in.Messages {
		switch m.Role {
		case "system":
			r.System += text(m.Content) + "\n"
		case "user":
			r.User += text(m.Content) + "\n"
		case "tool":
			if err := r.answered(text(m.Content), byID(m.ToolCallID)); err != nil {
				return Request{}, false, err
			}
		}
		for _, c := range m.ToolCalls {
			r.Calls = append(r.Calls, ToolCall{ID: c.ID, Tool: c.Function.Name, Arguments: c.Function.Arguments})
		}
	}
	return r, in.Stream, nil
}

func (chat) half(w http.ResponseWriter, id string) {
	events(w)("", chatChunk(id, map[string]any{"role": "assistant", "content": begun}, nil, nil))
}

func chatChunk(id string, delta map[string]any, finish, usage any) map[string]any {
	return map[string]any{
		"id": id, "object": "chat.completion.chunk", "model": Name, "usage": usage,
		"choices": []any{map[string]any{"index": 0, "delta": delta, "finish_reason": finish}},
	}
}

func (c chat) send(w http.ResponseWriter, _ *http.Request, a answer) {
	message := map[string]any{"role": "assistant", "content": a.text}
	finish := "stop"
	if a.tool != "" {
		message["tool_calls"] = []map[string]any{{"index": 0, "id": a.id, "type": "function", "function": chatFunction{a.tool, a.args}}}
		finish = "tool_calls"
	}
	t := c.said()
	usage := map[string]int64{"prompt_tokens": t.Input, "completion_tokens": t.Output, "total_tokens": t.Sum()}
	if !a.stream {
		whole(w, map[string]any{
			"id": a.id, "object": "chat.completion", "model": Name, "usage": usage,
			"choices": []any{map[string]any{"index": 0, "message": message, "finish_reason": finish}},
		})
		return
	}
	event := events(w)
	event("", chatChunk(a.id, message, nil, nil))
	event("", chatChunk(a.id, map[string]any{}, finish, usage))
	fmt.Fprint(w, "data: [DONE]\n\n")
}
