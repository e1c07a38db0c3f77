package scriptedmodel

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
)

// The APIs by their names in a [Request].
const (
	Chat      = "chat"      // OpenAI's chat completions
	Responses = "responses" // OpenAI's responses
	Messages  = "messages"  // Anthropic's messages
	Gemini    = "gemini"    // Gemini's generateContent
)

// begun is what a stream that breaks off has said.
const begun = "I was about to"

func bearer(h http.Header) string {
	key, _ := strings.CutPrefix(h.Get("Authorization"), "Bearer ")
	return key
}

// text is a string, or the texts of a list of parts.
func text(content json.RawMessage) string {
	var s string
	if json.Unmarshal(content, &s) == nil {
		return s
	}
	var parts []struct {
		Text string `json:"text"`
	}
	if json.Unmarshal(content, &parts) != nil {
		return ""
	}
	var b strings.Builder
	for _, p := range parts {
		b.WriteString(p.Text)
	}
	return b.String()
}

// answered notes the result of the first call that has none and that is says is
// meant.
func (r *Request) answered(result string, is func(ToolCall) bool) error {
	for i, c := range r.Calls {
		if !c.Answered && is(c) {
			r.Calls[i].Answered, r.Calls[i].Result = true, result
			return nil
		}
	}
	return fmt.Errorf("a tool's result %.60q belongs to no call", result)
}

func byID(id string) func(ToolCall) bool {
	return func(c ToolCall) bool { return c.ID == id }
}

// pieces are s as it comes in a stream: in two parts.
func pieces(s string) []string {
	r := []rune(s)
	return []string{string(r[:len(r)/2]), string(r[len(r)/2:])}
}

// whole writes an answer that is no stream.
func whole(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	writeJSON(w, "", v)
}

// events begins a stream of server-sent events (html.spec.whatwg.org/multipage/
// server-sent-events.html); the function writes one, of a type or of none.
func events(w http.ResponseWriter) func(kind string, v any) {
	w.Header().Set("Content-Type", "text/event-stream")
	return func(kind string, v any) {
		if kind != "" {
			fmt.Fprintf(w, "event: %s\n", kind)
		}
		writeJSON(w, "data: ", v)
	}
}

func failure(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	writeJSON(w, "", v)
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
