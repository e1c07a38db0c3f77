package scriptedmodel

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"codeberg.org/devaipod/devaipod/pods/usage"
)

// gemini is the part of Gemini's generateContent (ai.google.dev/api/
// generate-content) that opencode uses. As those of generation 3, this model signs
// its calls and wants to see the signatures again (ai.google.dev/gemini-api/docs/
// thought-signatures).
type gemini struct{}

type geminiRequest struct {
	System   geminiContent   `json:"systemInstruction"`
	Contents []geminiContent `json:"contents"`
	Tools    []struct {
		Functions []json.RawMessage `json:"functionDeclarations"`
	} `json:"tools"`
}

type geminiContent struct {
	Role  string       `json:"role"`
	Parts []geminiPart `json:"parts"`
}

type geminiPart struct {
	Text      string `json:"text,omitempty"`
	Signature string `json:"thoughtSignature,omitempty"`
	// Calls and responses need no ids: they come in the same order.
	Call *struct {
		Name string          `json:"name"`
		Args json.RawMessage `json:"args"`
	} `json:"functionCall,omitempty"`
	Response *struct {
		Name     string `json:"name"`
		Response struct {
			Content json.RawMessage `json:"content"` // free by the reference; so opencode has it
		} `json:"response"`
	} `json:"functionResponse,omitempty"`
}

func (gemini) key(h http.Header) string { return h.Get("X-Goog-Api-Key") }

func (gemini) said() usage.Tokens { return usage.Tokens{Input: 80, Output: 10, CacheRead: 20} }

func (gemini) models() any {
	return map[string]any{"models": []any{map[string]any{
		"name": "models/" + Name, "displayName": Name, "supportedGenerationMethods": []string{"generateContent"},
	}}}
}

func (gemini) fail(w http.ResponseWriter, status int, text string) {
	name := map[int]string{
		http.StatusBadRequest: "INVALID_ARGUMENT", http.StatusUnauthorized: "UNAUTHENTICATED", http.StatusTooManyRequests: "RESOURCE_EXHAUSTED",
	}[status]
	if name == "" {
		name = "INTERNAL"
	}
	failure(w, status, map[string]any{"error": map[string]any{"code": status, "message": text, "status": name}})
}

func (gemini) read(r *http.Request, body []byte) (Request, bool, error) {
	_, method, _ := strings.Cut(r.PathValue("call"), ":")
	if method != "generateContent" && method != "streamGenerateContent" {
		return Request{}, false, fmt.Errorf("the scripted model has no method %q", method)
	}
	var in geminiRequest
	if err := json.Unmarshal(body, &in); err != nil {
		return Request{}, false, err
	}
	req := Request{API: Gemini}
	for _, p := range in.System.Parts {
		req.System += p.Text + "\n"
	}
	for _, t := range in.Tools {
		req.HasTools = req.HasTools || len(t.Functions) > 0
	}
	for _, c := range in.Contents {
		for _, p := range c.Parts {
			if err := req.part(c.Role, p); err != nil {
				return Request{}, false, err
			}
		}
	}
	return req, method == "streamGenerateContent", nil
}

func (r *Request) part(role string, p geminiPart) error {
	switch {
	case p.Call != nil:
		id, err := base64.StdEncoding.DecodeString(p.Signature)
		if err != nil || len(id) == 0 {
			return errors.New("Function call is missing a thought_signature in functionCall parts") //nolint:staticcheck // in the provider's words
		}
		r.Calls = append(r.Calls, ToolCall{ID: string(id), Tool: p.Call.Name, Arguments: string(p.Call.Args)})
	case p.Response != nil:
		return r.answered(text(p.Response.Response.Content), func(c ToolCall) bool { return c.Tool == p.Response.Name })
	case role == "user":
		r.User += p.Text + "\n"
	}
	return nil
}

// thoughts are tokens of an answer that nobody sees, and that cost.
const thoughts = 4

// chunk is a part of an answer; more are fields of the candidate.
func (g gemini) chunk(id string, output int64, part, more map[string]any) map[string]any {
	t := g.said()
	candidate := map[string]any{"index": 0, "content": map[string]any{"role": "model", "parts": []any{part}}}
	for key, value := range more {
		candidate[key] = value
	}
	return map[string]any{
		"candidates": []any{candidate}, "modelVersion": Name, "responseId": id,
		"usageMetadata": map[string]int64{
			"promptTokenCount": t.Input + t.CacheRead, "cachedContentTokenCount": t.CacheRead,
			"candidatesTokenCount": output, "thoughtsTokenCount": thoughts, "totalTokenCount": t.Input + t.CacheRead + output + thoughts,
		},
	}
}

func (g gemini) half(w http.ResponseWriter, id string) {
	events(w)("", g.chunk(id, 1, map[string]any{"text": begun}, nil))
}

func (g gemini) send(w http.ResponseWriter, r *http.Request, a answer) {
	output := g.said().Output - thoughts
	end := map[string]any{"finishReason": "STOP"}
	call := map[string]any{
		"functionCall":     map[string]any{"name": a.tool, "args": json.RawMessage(a.args)},
		"thoughtSignature": base64.StdEncoding.EncodeToString([]byte(a.id)),
	}
	if !a.stream {
		part := map[string]any{"text": a.text}
		if a.tool != "" {
			part = call
		}
		whole(w, g.chunk(a.id, output, part, end))
		return
	}
	var chunks []any
	if a.tool != "" {
		chunks = append(chunks, g.chunk(a.id, 1, call, nil), g.chunk(a.id, output, map[string]any{"text": ""}, end))
	} else {
		halves := pieces(a.text)
		chunks = append(chunks, g.chunk(a.id, 1, map[string]any{"text": halves[0]}, nil), g.chunk(a.id, output, map[string]any{"text": halves[1]}, end))
	}
	if r.URL.Query().Get("alt") != "sse" {
		whole(w, chunks) // a list, as it comes
		return
	}
	event := events(w)
	for _, c := range chunks {
		event("", c)
	}
}
