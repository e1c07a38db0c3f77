package model

import (
	"bytes"
	"encoding/json"

	"codeberg.org/devaipod/devaipod/pods/usage"
)

// maxEvent bounds what a [Meter] keeps of an answer, in bytes: a line of an event
// stream, or an answer that is no stream. What is longer is not looked at.
const maxEvent = 4 << 20

// A Meter reads in an answer, as it passes, what the provider says was used, and
// which tools the answer asks for. The zero value is ready. It is not safe for concurrent use.
type Meter struct {
	line     []byte
	skipping bool // the rest of a line that is too long
	tokens   usage.Tokens
	seen     bool
	output   bool // what it says of the output is final
	// Gemini's candidates, by their numbers as bits: those that have begun, and those
	// that have come to their end.
	begun, ended uint64
	calls        calls
}

// Write looks at the next bytes. It keeps a line at a time: events of a stream
// are lines (html.spec.whatwg.org/multipage/server-sent-events.html), and so is
// each part of an answer that is no stream, but that is looked at as a whole.
func (m *Meter) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		end := bytes.IndexByte(p, '\n')
		piece := p
		if end >= 0 {
			piece = p[:end]
		}
		switch {
		case m.skipping:
		case len(m.line)+len(piece) > maxEvent:
			m.line, m.skipping = nil, true
		default:
			m.line = append(m.line, piece...)
		}
		if end < 0 {
			break
		}
		p = p[end+1:]
		if m.skipping {
			m.skipping = false
		} else if data, is := bytes.CutPrefix(m.line, []byte("data:")); is {
			m.event(data)
			m.line = m.line[:0]
		} else if isField(m.line) {
			m.line = m.line[:0]
		} // else a line of a JSON text
	}
	return n, nil
}

// isField tells an event's other lines, and the empty one behind it, from JSON.
func isField(line []byte) bool {
	line = bytes.TrimSpace(line)
	if len(line) == 0 {
		return true
	}
	for _, name := range []string{"event:", "id:", "retry:", ":"} {
		if bytes.HasPrefix(line, []byte(name)) {
			return true
		}
	}
	return false
}

// Tokens are what the answer said, after its end; ok is false when it did not say
// it, or did not come to the end.
func (m *Meter) Tokens() (tokens usage.Tokens, ok bool) {
	m.event(bytes.TrimPrefix(m.line, []byte("data:"))) // an answer that is no stream
	m.line = nil
	return m.tokens, m.seen && m.output
}

// counts are a provider's, under the names that each has for them.
type counts struct {
	// OpenAI's chat completions
	PromptTokens        int64   `json:"prompt_tokens"`
	CompletionTokens    *int64  `json:"completion_tokens"`
	PromptTokensDetails details `json:"prompt_tokens_details"`
	// OpenAI's responses and Anthropic's messages
	InputTokens        int64   `json:"input_tokens"`
	OutputTokens       *int64  `json:"output_tokens"`
	InputTokensDetails details `json:"input_tokens_details"`
	CacheCreation      int64   `json:"cache_creation_input_tokens"`
	CacheRead          int64   `json:"cache_read_input_tokens"`
}

type details struct {
	CachedTokens int64 `json:"cached_tokens"`
}

// geminiCounts are Gemini's usageMetadata.
type geminiCounts struct {
	Prompt     int64 `json:"promptTokenCount"`
	Cached     int64 `json:"cachedContentTokenCount"`
	ToolUse    int64 `json:"toolUsePromptTokenCount"`
	Candidates int64 `json:"candidatesTokenCount"`
	Thoughts   int64 `json:"thoughtsTokenCount"`
}

// A candidate is one of Gemini's answers, or a piece of it.
type candidate struct {
	Index        int64  `json:"index"`
	FinishReason string `json:"finishReason"` // in its last piece
}

// event looks for counts and calls in an event's data, or in a whole answer.
func (m *Meter) event(data []byte) {
	m.calls.event(data)
	if !bytes.Contains(data, []byte(`"usage`)) && !bytes.Contains(data, []byte(`"candidates`)) { // most have none
		return
	}
	var list []json.RawMessage // Gemini's stream without events
	if json.Unmarshal(data, &list) == nil {
		for _, item := range list {
			if item[0] == '{' {
				m.event(item)
			}
		}
		return
	}
	var answer struct {
		Type    string  `json:"type"`
		Usage   *counts `json:"usage"`
		Message struct {
			Usage *counts `json:"usage"`
		} `json:"message"`
		Response struct {
			Usage *counts `json:"usage"`
		} `json:"response"`
		Metadata   *geminiCounts `json:"usageMetadata"`
		Candidates []candidate   `json:"candidates"`
		Feedback   struct {
			BlockReason string `json:"blockReason"`
		} `json:"promptFeedback"`
	}
	if json.Unmarshal(data, &answer) != nil {
		return
	}
	if c := answer.Message.Usage; c != nil {
		// Anthropic's message_start: its output has only begun.
		m.take(c, false)
	}
	for _, c := range []*counts{answer.Usage, answer.Response.Usage} {
		if c != nil {
			m.take(c, true)
		}
	}
	if c := answer.Metadata; c != nil {
		m.most(usage.Tokens{Input: c.Prompt + c.ToolUse - c.Cached, CacheRead: c.Cached, Output: c.Candidates + c.Thoughts})
	}
	m.candidates(answer.Candidates, answer.Feedback.BlockReason != "")
}

// candidates notes how far Gemini has come: every piece has counts, of what was
// made up to there.
func (m *Meter) candidates(all []candidate, blocked bool) {
	for _, c := range all {
		bit := uint64(1) << min(max(c.Index, 0), 63)
		if m.begun |= bit; c.FinishReason != "" && c.FinishReason != "FINISH_REASON_UNSPECIFIED" {
			m.ended |= bit
		}
	}
	if blocked || len(all) > 0 {
		m.output = m.begun == m.ended
	}
}

func (m *Meter) take(c *counts, final bool) {
	cached := c.PromptTokensDetails.CachedTokens + c.InputTokensDetails.CachedTokens
	t := usage.Tokens{Input: c.PromptTokens + c.InputTokens - cached, CacheRead: c.CacheRead + cached, CacheWrite: c.CacheCreation}
	for _, out := range []*int64{c.CompletionTokens, c.OutputTokens} {
		if out != nil {
			t.Output, m.output = *out, m.output || final
		}
	}
	m.most(t)
}

// most keeps the largest that was said of each: a stream says it again and again,
// never less.
func (m *Meter) most(t usage.Tokens) {
	m.seen = true
	m.tokens.Input = max(m.tokens.Input, t.Input)
	m.tokens.Output = max(m.tokens.Output, t.Output)
	m.tokens.CacheRead = max(m.tokens.CacheRead, t.CacheRead)
	m.tokens.CacheWrite = max(m.tokens.CacheWrite, t.CacheWrite)
}
