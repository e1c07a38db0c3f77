package model

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"strings"
)

// A Call is a tool that an answer asks the agent to run.
type Call struct {
	// ID names it in later requests. Gemini may give none: then it is made of all
	// that the call says, begins with [Unnamed], and two alike have the same.
	ID   string
	Tool string
	// Arguments are JSON, or a custom tool's own text; of longer ones than
	// [MaxArguments] the beginning.
	Arguments string
}

// Unnamed begins the ids of calls that have none of the provider's.
const Unnamed = "="

// MaxArguments is how many bytes are kept of a call's arguments.
const MaxArguments = 64 << 10

// Bounds on what is kept of an answer's calls; what is more is left out.
const (
	maxCalls  = 64
	maxCallID = 200 // bytes
)

// calls are those of one answer, as it comes.
type calls struct {
	all  []*called
	open map[[2]int64]*called // those that come in pieces, by their places in the answer
}

type called struct {
	id, tool  string
	arguments []byte
}

// callMarks are in what tells of a call.
var callMarks = [][]byte{[]byte(`"tool_calls"`), []byte(`_call"`), []byte(`"tool_use"`), []byte(`"input_json_delta"`), []byte(`"functionCall"`)}

// event looks for calls in an event's data, or in a whole answer.
func (c *calls) event(data []byte) {
	told := false
	for _, mark := range callMarks {
		told = told || bytes.Contains(data, mark)
	}
	if !told { // most tell of none
		return
	}
	var a callsAnswer
	// A field may be another thing in another API: the others count.
	if err := json.Unmarshal(data, &a); err != nil && !errors.As(err, new(*json.UnmarshalTypeError)) {
		return
	}
	for _, choice := range a.Choices {
		for i, t := range choice.Message.ToolCalls {
			c.piece(choice.Index, int64(i), t.ID, t.Function.Name, t.Function.Arguments)
		}
		for _, t := range choice.Delta.ToolCalls {
			c.piece(choice.Index, t.Index, t.ID, t.Function.Name, t.Function.Arguments)
		}
	}
	for i, b := range a.Content {
		c.block(int64(i), b)
	}
	if a.Type == "content_block_start" {
		a.Block.Input = nil // it comes in pieces
		c.block(a.Index, a.Block)
	}
	var delta struct {
		PartialJSON string `json:"partial_json"`
	}
	if a.Type == "content_block_delta" && json.Unmarshal(a.Delta, &delta) == nil {
		c.piece(0, a.Index, "", "", delta.PartialJSON)
	}
	if a.Type == "response.output_item.done" {
		c.item(a.Item)
	}
	for _, item := range a.Output {
		c.item(item)
	}
	for _, candidate := range a.Candidates {
		for _, p := range candidate.Content.Parts {
			if f := p.Call; f != nil {
				c.add(f.id(), f.Name, string(f.Args))
			}
		}
	}
}

// callsAnswer is what tells of calls in the answers of all APIs, whole or in pieces.
type callsAnswer struct {
	Choices []struct { // chat completions
		Index          int64
		Message, Delta struct {
			ToolCalls []struct {
				Index    int64
				ID       string
				Function struct{ Name, Arguments string }
			} `json:"tool_calls"`
		}
	}
	Type    string // of an event, messages or responses
	Index   int64
	Delta   json.RawMessage
	Block   block         `json:"content_block"`
	Content []block       // messages
	Item    responsesItem // responses
	Output  []responsesItem
	// Gemini
	Candidates []struct{ Content geminiContent }
}

// A block is a part of a message.
type block struct {
	Type, ID, Name string
	Input          json.RawMessage
	ToolUseID      string `json:"tool_use_id"`
	Content        json.RawMessage
	IsError        bool `json:"is_error"`
}

// A responsesItem is a call, or the output of one.
type responsesItem struct {
	Type      string
	CallID    string `json:"call_id"`
	Name      string
	Arguments string
	Input     string          // of a custom tool
	Action    json.RawMessage // of a local shell
	Output    json.RawMessage
}

type geminiContent struct {
	Parts []struct {
		Call     *geminiCall `json:"functionCall"`
		Response *struct {
			ID, Name string
			Response json.RawMessage
		} `json:"functionResponse"`
	}
}

type geminiCall struct {
	ID, Name string
	Args     json.RawMessage
}

// id is the call's own, or made of what it says, however that is written.
func (g *geminiCall) id() string {
	if g.ID != "" {
		return g.ID
	}
	var args any
	_ = json.Unmarshal(g.Args, &args) // what is none is nil
	text, err := json.Marshal([]any{g.Name, args})
	if err != nil {
		return ""
	}
	sum := sha256.Sum256(text)
	return Unnamed + hex.EncodeToString(sum[:12])
}

func (c *calls) block(at int64, b block) {
	if b.Type == "tool_use" {
		c.piece(0, at, b.ID, b.Name, string(b.Input))
	}
}

func (c *calls) item(i responsesItem) {
	switch i.Type {
	case "function_call":
		c.add(i.CallID, i.Name, i.Arguments)
	case "custom_tool_call":
		c.add(i.CallID, i.Name, i.Input)
	case "local_shell_call", "shell_call":
		c.add(i.CallID, strings.TrimSuffix(i.Type, "_call"), string(i.Action))
	}
}

// piece is a part of the call at a place of the answer; the first one names it.
func (c *calls) piece(choice, at int64, id, tool, arguments string) {
	place := [2]int64{choice, at}
	call := c.open[place]
	if call == nil || id != "" && id != call.id {
		if call = c.add(id, tool, ""); call == nil {
			return
		}
		if c.open == nil {
			c.open = map[[2]int64]*called{}
		}
		c.open[place] = call
	}
	call.arguments = append(call.arguments, arguments[:min(len(arguments), MaxArguments-len(call.arguments))]...)
}

// add notes a call, nil for one that is left out.
func (c *calls) add(id, tool, arguments string) *called {
	if id == "" || tool == "" || len(id) > maxCallID || len(tool) > maxCallID || len(c.all) == maxCalls {
		return nil
	}
	// Copied: what the texts are cut from is an answer of any size.
	call := &called{strings.Clone(id), strings.Clone(tool), []byte(arguments[:min(len(arguments), MaxArguments)])}
	c.all = append(c.all, call)
	return call
}

// Calls are the tools that the answer asked for, after Tokens.
func (m *Meter) Calls() []Call {
	var out []Call
	for _, c := range m.calls.all {
		out = append(out, Call{c.id, c.tool, string(c.arguments)})
	}
	return out
}

// A Result is what a request tells the model of a call.
type Result struct {
	ID     string
	Text   string
	Failed bool // so it says; not every API can
}

// Results are those that a request that was admitted has, in the order of its
// conversation, which is told anew in each request.
func Results(body []byte) []Result {
	var in struct {
		Messages []struct {
			Role       string
			ToolCallID string `json:"tool_call_id"`
			Content    json.RawMessage
		}
		Input    json.RawMessage
		Contents []geminiContent
	}
	if err := json.Unmarshal(body, &in); err != nil && !errors.As(err, new(*json.UnmarshalTypeError)) {
		return nil
	}
	var out []Result
	for _, m := range in.Messages {
		var blocks []block
		switch {
		case m.Role == "tool" && m.ToolCallID != "":
			out = append(out, Result{ID: m.ToolCallID, Text: text(m.Content)})
		case m.Role == "user" && json.Unmarshal(m.Content, &blocks) == nil:
			for _, b := range blocks {
				if b.Type == "tool_result" && b.ToolUseID != "" {
					out = append(out, Result{ID: b.ToolUseID, Text: text(b.Content), Failed: b.IsError})
				}
			}
		}
	}
	var items []json.RawMessage
	_ = json.Unmarshal(in.Input, &items) // a text alone has none
	for _, raw := range items {
		var item responsesItem
		_ = json.Unmarshal(raw, &item) // another kind of item may have other types
		if strings.HasSuffix(item.Type, "_call_output") && item.CallID != "" {
			out = append(out, Result{ID: item.CallID, Text: text(item.Output)})
		}
	}
	return append(out, geminiResults(in.Contents)...)
}

// geminiResults come in the order of the calls, where these have no ids.
func geminiResults(contents []geminiContent) (out []Result) {
	waiting := map[string][]string{} // ids, by the tool's name
	for _, c := range contents {
		for _, p := range c.Parts {
			if f := p.Call; f != nil {
				waiting[f.Name] = append(waiting[f.Name], f.id())
			}
			r := p.Response
			if r == nil {
				continue
			}
			id := r.ID
			if ids := waiting[r.Name]; len(ids) > 0 {
				waiting[r.Name] = ids[1:]
				if id == "" {
					id = ids[0]
				}
			}
			if id != "" {
				out = append(out, Result{ID: id, Text: geminiText(r.Response)})
			}
		}
	}
	return out
}

// geminiText is the text in a response, which is an object of any shape.
func geminiText(raw json.RawMessage) string {
	var o map[string]json.RawMessage
	_ = json.Unmarshal(raw, &o) // what is none has no such field
	for _, key := range []string{"output", "content", "result", "error"} {
		if s := text(o[key]); s != "" {
			return s
		}
	}
	return string(raw)
}

// text is a string, or the texts of a list of parts, or else the JSON.
func text(content json.RawMessage) string {
	var s string
	if json.Unmarshal(content, &s) == nil {
		return s
	}
	var parts []struct{ Text string }
	if json.Unmarshal(content, &parts) != nil {
		return string(content)
	}
	var b strings.Builder
	for _, p := range parts {
		b.WriteString(p.Text)
	}
	return b.String()
}
