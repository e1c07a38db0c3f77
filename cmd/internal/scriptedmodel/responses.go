package scriptedmodel

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"codeberg.org/devaipod/devaipod/pods/usage"
)

// responses is the part of OpenAI's responses API (platform.openai.com/docs/
// api-reference/responses, and .../responses-streaming) that opencode uses.
type responses struct{}

type responsesRequest struct {
	Stream       bool              `json:"stream"`
	Instructions string            `json:"instructions"`
	Input        json.RawMessage   `json:"input"` // a string, or a list of items
	Tools        []json.RawMessage `json:"tools"`
}

type responsesItem struct {
	Type    string          `json:"type"` // a message, when there is none
	Role    string          `json:"role"`
	Content json.RawMessage `json:"content"` // a string, or a list of parts
	// Of a function_call, and of its function_call_output.
	CallID    string          `json:"call_id"`
	Name      string          `json:"name"`
	Arguments string          `json:"arguments"`
	Output    json.RawMessage `json:"output"` // a string, or a list of parts
}

func (responses) key(h http.Header) string { return bearer(h) }

func (responses) said() usage.Tokens { return usage.Tokens{Input: 70, Output: 10, CacheRead: 30} }

func (responses) models() any { return chat{}.models() }

func (responses) fail(w http.ResponseWriter, status int, text string) { chat{}.fail(w, status, text) }

func (responses) read(_ *http.Request, body []byte) (Request, bool, error) {
	var in responsesRequest
	if err := json.Unmarshal(body, &in); err != nil {
		return Request{}, false, err
	}
	req := Request{API: Responses, HasTools: len(in.Tools) > 0, System: in.Instructions}
	var items []responsesItem
	if json.Unmarshal(in.Input, &items) != nil {
		if req.User = text(in.Input); req.User == "" {
			return Request{}, false, errors.New("input is neither text nor a list of items")
		}
	}
	for _, item := range items {
		if err := req.item(item); err != nil {
			return Request{}, false, err
		}
	}
	return req, in.Stream, nil
}

func (r *Request) item(item responsesItem) error {
	switch item.Type {
	case "", "message":
		switch item.Role {
		case "system", "developer":
			r.System += text(item.Content) + "\n"
		case "user":
			r.User += text(item.Content) + "\n"
		}
	case "function_call":
		r.Calls = append(r.Calls, ToolCall{ID: item.CallID, Tool: item.Name, Arguments: item.Arguments})
	case "function_call_output":
		return r.answered(text(item.Output), byID(item.CallID))
	default:
		return fmt.Errorf("an item of type %q", item.Type)
	}
	return nil
}

// response is one as it is before it is completed.
func (responses) response(id string) map[string]any {
	return map[string]any{
		"id": "resp_" + id, "object": "response", "created_at": 1735689600, "status": "in_progress", "model": Name,
		"output": []any{}, "error": nil, "incomplete_details": nil, "usage": nil,
	}
}

// completed is a response at its end.
func (s responses) completed(id string, item map[string]any) map[string]any {
	t, v := s.said(), s.response(id)
	v["status"], v["output"] = "completed", []any{item}
	v["usage"] = map[string]any{
		"input_tokens": t.Input + t.CacheRead, "input_tokens_details": map[string]int64{"cached_tokens": t.CacheRead},
		"output_tokens": t.Output, "output_tokens_details": map[string]int64{"reasoning_tokens": 4}, "total_tokens": t.Sum(),
	}
	return v
}

// begin begins a stream. The function writes one more event, of an item if where
// is not empty.
func (s responses) begin(w http.ResponseWriter, id string) func(kind, where string, v map[string]any) {
	write, n := events(w), 0
	event := func(kind, where string, v map[string]any) {
		v["type"], v["sequence_number"] = kind, n
		if where != "" {
			v["output_index"], v["item_id"] = 0, where
		}
		n++
		write(kind, v)
	}
	event("response.created", "", map[string]any{"response": s.response(id)})
	event("response.in_progress", "", map[string]any{"response": s.response(id)})
	return event
}

func (s responses) half(w http.ResponseWriter, id string) {
	event, item := s.begin(w, id), "msg_"+id
	event("response.output_item.added", item, map[string]any{"item": responsesMessage(item, "in_progress")})
	event("response.content_part.added", item, map[string]any{"content_index": 0, "part": responsesText("")})
	event("response.output_text.delta", item, map[string]any{"content_index": 0, "delta": begun})
}

func responsesText(text string) map[string]any {
	return map[string]any{"type": "output_text", "text": text, "annotations": []any{}}
}

func responsesMessage(id, status string, parts ...any) map[string]any {
	return map[string]any{"id": id, "type": "message", "role": "assistant", "status": status, "content": append([]any{}, parts...)}
}

func responsesCall(a answer, status, args string) map[string]any {
	return map[string]any{"id": "fc_" + a.id, "type": "function_call", "status": status, "call_id": a.id, "name": a.tool, "arguments": args}
}

func (s responses) send(w http.ResponseWriter, _ *http.Request, a answer) {
	item := responsesMessage("msg_"+a.id, "completed", responsesText(a.text))
	if a.tool != "" {
		item = responsesCall(a, "completed", a.args)
	}
	if !a.stream {
		whole(w, s.completed(a.id, item))
		return
	}
	event, id := s.begin(w, a.id), item["id"].(string)
	if a.tool != "" {
		event("response.output_item.added", id, map[string]any{"item": responsesCall(a, "in_progress", "")})
		for _, piece := range pieces(a.args) {
			event("response.function_call_arguments.delta", id, map[string]any{"delta": piece})
		}
		event("response.function_call_arguments.done", id, map[string]any{"arguments": a.args})
	} else {
		event("response.output_item.added", id, map[string]any{"item": responsesMessage(id, "in_progress")})
		event("response.content_part.added", id, map[string]any{"content_index": 0, "part": responsesText("")})
		for _, piece := range pieces(a.text) {
			event("response.output_text.delta", id, map[string]any{"content_index": 0, "delta": piece})
		}
		event("response.output_text.done", id, map[string]any{"content_index": 0, "text": a.text})
		event("response.content_part.done", id, map[string]any{"content_index": 0, "part": responsesText(a.text)})
	}
	event("response.output_item.done", id, map[string]any{"item": item})
	event("response.completed", "", map[string]any{"response": s.completed(a.id, item)})
}
