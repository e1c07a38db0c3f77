package acp

import (
	"encoding/json"
	"strings"

	"github.com/coder/acp-go-sdk"

	"codeberg.org/devaipod/devaipod/podapi"
)

const (
	maxMessage = 32 << 10 // bytes of the agent's last words
	maxChunks  = 4 << 10  // bytes that are gathered before they are journaled
	maxTools   = 1000     // tool calls of a turn that are told apart
	maxTodo    = 50
	maxAsks    = 16 // permissions that wait
	maxChoices = 20
	maxGarbled = 5 // lines that are journaled
)

// view is what the agent has told of a session, or of a turn in it. It is locked by
// the driver's mutex.
type view struct {
	session  string
	old      bool // it tells again what it told before
	updates  int64
	activity string          // "" while it speaks
	message  strings.Builder // its last words
	kind     string          // of what is gathered: text or thought
	chunks   strings.Builder
	tools    map[acp.ToolCallId]string // their titles
	todo     []podapi.Todo
	asks     []ask
	garbled  int
}

// An ask is a permission that the agent waits for.
type ask struct {
	mark     string // the tool call's name
	question string
	choices  []podapi.Choice
	reject   acp.PermissionOptionId // the choice that rejects this once, "" for none
	answer   func(acp.RequestPermissionOutcome)
}

// reset begins another view. What was asked in the last one is over.
func (d *Driver) reset(next *view) {
	if next == nil {
		next = &view{}
	}
	d.mu.Lock()
	d.flush()
	asks := d.view.asks
	d.view = *next
	d.view.tools = map[acp.ToolCallId]string{}
	d.mu.Unlock()
	for _, a := range asks {
		a.answer(acp.NewRequestPermissionOutcomeCancelled())
	}
}

func (d *Driver) notified(method string, params json.RawMessage) {
	var n acp.SessionNotification
	if method != acp.ClientMethodSessionUpdate {
		return
	}
	if err := json.Unmarshal(params, &n); err != nil {
		return // of a kind that is not known here
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	v := &d.view
	if string(n.SessionId) != v.session {
		return
	}
	v.updates++
	if v.old {
		return
	}
	switch u := n.Update; {
	case u.AgentMessageChunk != nil:
		d.chunk(podapi.EventText, u.AgentMessageChunk.Content)
	case u.AgentThoughtChunk != nil:
		d.chunk(podapi.EventThought, u.AgentThoughtChunk.Content)
	case u.ToolCall != nil:
		d.tool(u.ToolCall)
	case u.ToolCallUpdate != nil:
		d.toolUpdate(u.ToolCallUpdate)
	case u.Plan != nil:
		d.plan(u.Plan.Entries)
	}
}

// chunk gathers text, which comes in small pieces.
func (d *Driver) chunk(kind string, content acp.ContentBlock) {
	v := &d.view
	if content.Text == nil {
		return // pictures, say
	}
	if v.kind != kind {
		d.flush()
		if v.kind = kind; kind == podapi.EventText {
			v.message.Reset()
		}
	}
	text := podapi.Clip(content.Text.Text, maxMessage)
	if v.activity = "thinking"; kind == podapi.EventText {
		v.activity = ""
		if v.message.Len() < maxMessage {
			v.message.WriteString(text)
		}
	}
	v.chunks.WriteString(text)
	if v.chunks.Len() > maxChunks {
		d.flush()
		v.kind = kind
	}
}

// flush journals what was gathered.
func (d *Driver) flush() {
	v := &d.view
	if text := v.chunks.String(); strings.TrimSpace(text) != "" {
		d.cfg.Journal.Add(v.kind, text)
	}
	v.chunks.Reset()
	v.kind = ""
}

func (d *Driver) tool(t *acp.SessionUpdateToolCall) {
	d.flush()
	title := titled(t.Title, t.RawInput)
	d.view.activity = title
	if len(d.view.tools) < maxTools {
		d.view.tools[t.ToolCallId] = title
	}
	d.cfg.Journal.Add(podapi.EventTool, title)
}

func (d *Driver) toolUpdate(t *acp.SessionToolCallUpdate) {
	title, known := d.view.tools[t.ToolCallId]
	if t.RawInput != nil && t.Title != nil {
		if better := titled(*t.Title, t.RawInput); known && better != title {
			d.flush()
			d.view.tools[t.ToolCallId], d.view.activity = better, better
			d.cfg.Journal.Add(podapi.EventTool, better)
		}
	}
	if t.Status == nil || *t.Status != acp.ToolCallStatusCompleted && *t.Status != acp.ToolCallStatusFailed {
		return
	}
	d.flush()
	delete(d.view.tools, t.ToolCallId)
	if out := strings.TrimSpace(contents(t.Content)); out != "" {
		d.cfg.Journal.Add(podapi.EventTool, podapi.Clip(out, 2000))
	}
}

// titled is a tool call in a line.
func titled(title string, input any) string {
	raw, err := json.Marshal(input)
	if err != nil {
		return podapi.Line(title, 200)
	}
	if told := podapi.Telling(raw); !strings.Contains(title, told) {
		title += " " + told
	}
	return podapi.Line(title, 200)
}

// contents are the texts of a tool's result.
func contents(all []acp.ToolCallContent) string {
	var b strings.Builder
	for _, c := range all {
		switch {
		case c.Content != nil && c.Content.Content.Text != nil:
			b.WriteString(podapi.Clip(c.Content.Content.Text.Text, 4<<10))
		case c.Diff != nil:
			b.WriteString("changed " + podapi.Line(c.Diff.Path, 200) + "\n")
		}
		if b.Len() > 4<<10 {
			break
		}
	}
	return b.String()
}

func (d *Driver) plan(entries []acp.PlanEntry) {
	d.flush()
	v := &d.view
	v.todo = nil
	var lines []string
	for _, e := range entries[:min(len(entries), maxTodo)] {
		todo := podapi.Todo{Text: podapi.Line(e.Content, 300), Status: podapi.Line(string(e.Status), 30)}
		v.todo = append(v.todo, todo)
		lines = append(lines, todo.Status+": "+todo.Text)
	}
	d.cfg.Journal.Add(podapi.EventTodo, strings.Join(lines, "\n"))
}

func (d *Driver) garbled(line []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.view.garbled++; d.view.garbled <= maxGarbled {
		d.cfg.Journal.Add(podapi.EventError, "the agent sent a line that is no message: "+podapi.Line(string(line[:min(len(line), 1000)]), 300))
	}
}

func (d *Driver) asked(method string, params json.RawMessage, answer func(any, *acp.RequestError)) {
	if method != acp.ClientMethodSessionRequestPermission {
		answer(nil, acp.NewMethodNotFound(podapi.Line(method, 100)))
		return
	}
	var req acp.RequestPermissionRequest
	if err := json.Unmarshal(params, &req); err != nil || len(req.Options) == 0 {
		answer(nil, acp.NewInvalidParams("want a session, a tool call and options"))
		return
	}
	a := ask{mark: podapi.Line(string(req.ToolCall.ToolCallId), 100), answer: func(o acp.RequestPermissionOutcome) { answer(acp.RequestPermissionResponse{Outcome: o}, nil) }}
	title := ""
	if req.ToolCall.Title != nil {
		title = *req.ToolCall.Title
	}
	a.question = "May it do this: " + titled(title, req.ToolCall.RawInput) + "?"
	for _, o := range req.Options[:min(len(req.Options), maxChoices)] {
		if len(o.OptionId) > maxID {
			continue
		}
		if o.Kind == acp.PermissionOptionKindRejectOnce && a.reject == "" {
			a.reject = o.OptionId
		}
		a.choices = append(a.choices, podapi.Choice{ID: string(o.OptionId), Name: podapi.Line(o.Name, 200)})
	}
	if allow := allows(req.Options); !d.cfg.Ask && allow != "" {
		d.cfg.Journal.Add(podapi.EventTool, "allowed: "+strings.TrimSuffix(strings.TrimPrefix(a.question, "May it do this: "), "?"))
		a.answer(acp.NewRequestPermissionOutcomeSelected(allow))
		return
	}
	d.mu.Lock()
	full := len(d.view.asks) >= maxAsks || string(req.SessionId) != d.view.session || d.view.old
	if !full {
		d.flush()
		d.view.asks = append(d.view.asks, a)
	}
	d.mu.Unlock()
	if full {
		a.answer(acp.NewRequestPermissionOutcomeCancelled())
	}
	d.kick()
}

// allows is the choice that allows what is asked, for good if there is such a one, ""
// for none.
func allows(options []acp.PermissionOption) acp.PermissionOptionId {
	for _, kind := range []acp.PermissionOptionKind{acp.PermissionOptionKindAllowAlways, acp.PermissionOptionKindAllowOnce} {
		for _, o := range options {
			if o.Kind == kind {
				return o.OptionId
			}
		}
	}
	return ""
}

// reply answers the oldest question, if there is one, with a person's text. What is none
// of the choices is a no.
func (d *Driver) reply(text string) {
	d.mu.Lock()
	if len(d.view.asks) == 0 {
		d.mu.Unlock()
		return
	}
	a := d.view.asks[0]
	d.view.asks = d.view.asks[1:]
	d.mu.Unlock()
	choice, ok := podapi.Choose(a.choices, text)
	switch {
	case ok:
		a.answer(acp.NewRequestPermissionOutcomeSelected(acp.PermissionOptionId(choice.ID)))
	case a.reject != "":
		a.answer(acp.NewRequestPermissionOutcomeSelected(a.reject))
	default:
		a.answer(acp.NewRequestPermissionOutcomeCancelled())
	}
}

// chooses tells whether a text is one of the choices that there are, and so no message.
func (d *Driver) chooses(text string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.view.asks) == 0 {
		return false
	}
	_, ok := podapi.Choose(d.view.asks[0].choices, text)
	return ok
}
