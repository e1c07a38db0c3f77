package scriptedmodel

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"codeberg.org/devaipod/devaipod/pods/usage"
)

// messages is the part of Anthropic's messages API (docs.anthropic.com/en/api/
// messages, and .../messages-streaming) that opencode uses.
type messages struct{}

// versionHeader is one that each request must have.
const versionHeader = "Anthropic-Version"

type messagesRequest struct {
	Stream    bool            `json:"stream"`
	MaxTokens int64           `json:"max_tokens"`
	System    json.RawMessage `json:"system"` // a string, or a list of blocks
	Messages  []struct {
		Role    string          `json:"role"`
		Content json.RawMessage `json:"content"` // a string, or a list of blocks
	} `json:"messages"`
	Tools []json.RawMessage `json:"tools"`
}

type messagesBlock struct {
	Type string `json:"type"`
	Text string `json:"text"`
	// Of a tool_use.
	ID    string          `json:"id"`
	Name  string          `json:"name"`
	Input json.RawMessage `json:"input"`
	// Of a tool_result.
	ToolUseID string          `json:"tool_use_id"`
	Content   json.RawMessage `json:"content"`
}

func (messages) key(h http.Header) string { return h.Get("X-Api-Key") }

func (messages) said() usage.Tokens {
	return usage.Tokens{Input: 60, Output: 10, CacheRead: 25, CacheWrite: 15}
}

func (messages) models() any {
	return map[string]any{"has_more": false, "first_id": Name, "last_id": Name, "data": []any{
		map[string]string{"type": "model", "id": Name, "display_name": Name, "created_at": "2025-01-01T00:00:00Z"},
	}}
}

func (messages) fail(w http.ResponseWriter, status int, text string) {
	kind := map[int]string{
		http.StatusBadRequest: "invalid_request_error", http.StatusUnauthorized: "authentication_error", http.StatusTooManyRequests: "rate_limit_error",
	}[status]
	if kind == "" {
		kind = "api_error"
	}
	failure(w, status, map[string]any{"type": "error", "error": map[string]string{"type": kind, "message": text}})
}

func (messages) read(r *http.Request, body []byte) (Request, bool, error) {
	if r.Header.Get(versionHeader) == "" {
		return Request{}, false, errors.New("anthropic-version: header is required")
	}
	var in messagesRequest
	if err := json.Unmarshal(body, &in); err != nil {
		return Request{}, false, err
	}
	if in.MaxTokens < 1 {
		return Request{}, false, errors.New("max_tokens: Field required")
	}
	req := Request{API: Messages, HasTools: len(in.Tools) > 0, System: text(in.System)}
	for _, m := range in.Messages {
		var blocks []messagesBlock
		if json.Unmarshal(m.Content, &blocks) != nil {
			blocks = []messagesBlock{{Type: "text", Text: text(m.Content)}}
		}
		for _, b := range blocks {
			if err := req.block(m.Role, b); err != nil {
				return Request{}, false, err
			}
		}
	}
	return req, in.Stream, nil
}

func (r *Request) block(role string, b messagesBlock) error {
	switch b.Type {
	case "text":
		if role == "user" {
			r.User += b.Text + "\n"
		}
	case "tool_use":
		r.Calls = append(r.Calls, ToolCall{ID: b.ID, Tool: b.Name, Arguments: string(b.Input)})
	case "tool_result":
		return r.answered(text(b.Content), byID(b.ToolUseID))
	default:
		return fmt.Errorf("a block of type %q", b.Type)
	}
	return nil
}

// message is one without its content.
func (m messages) message(id string, output int64) map[string]any {
	t := m.said()
	return map[string]any{
		"id": "msg_" + id, "type": "message", "role": "assistant", "model": Name, "content": []any{}, "stop_reason": nil, "stop_sequence": nil,
		"usage": map[string]int64{
			"input_tokens": t.Input, "cache_read_input_tokens": t.CacheRead, "cache_creation_input_tokens": t.CacheWrite, "output_tokens": output,
		},
	}
}

// begin is a stream until a block has begun; delta writes a part of that.
func (m messages) begin(w http.ResponseWriter, id string, block map[string]any) (event func(string, any), delta func(map[string]string)) {
	write := events(w)
	event = func(kind string, v any) {
		v.(map[string]any)["type"] = kind
		write(kind, v)
	}
	event("message_start", map[string]any{"message": m.message(id, 1)})
	event("content_block_start", map[string]any{"index": 0, "content_block": block})
	event("ping", map[string]any{})
	return event, func(d map[string]string) { event("content_block_delta", map[string]any{"index": 0, "delta": d}) }
}

func (m messages) half(w http.ResponseWriter, id string) {
	_, delta := m.begin(w, id, map[string]any{"type": "text", "text": ""})
	delta(map[string]string{"type": "text_delta", "text": begun})
}

func (m messages) send(w http.ResponseWriter, _ *http.Request, a answer) {
	t := m.said()
	stop, kind, field, said := "end_turn", "text_delta", "text", a.text
	block := map[string]any{"type": "text", "text": a.text}
	if a.tool != "" {
		stop, kind, field, said = "tool_use", "input_json_delta", "partial_json", a.args
		block = map[string]any{"type": "tool_use", "id": a.id, "name": a.tool, "input": json.RawMessage(a.args)}
	}
	if !a.stream {
		message := m.message(a.id, t.Output)
		message["content"], message["stop_reason"] = []any{block}, stop
		whole(w, message)
		return
	}
	if a.tool != "" {
		block["input"] = map[string]any{} // it comes in pieces
	} else {
		block["text"] = ""
	}
	event, delta := m.begin(w, a.id, block)
	for _, piece := range pieces(said) {
		delta(map[string]string{"type": kind, field: piece})
	}
	event("content_block_stop", map[string]any{"index": 0})
	event("message_delta", map[string]any{
		"delta": map[string]any{"stop_reason": stop, "stop_sequence": nil}, "usage": map[string]int64{"output_tokens": t.Output},
	})
	event("message_stop", map[string]any{})
}
