package opencode

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"

	"codeberg.org/devaipod/devaipod/podapi"
)

// A toolCall is the call of a tool in which the agent asks.
type toolCall struct {
	MessageID string `json:"messageID"`
	CallID    string `json:"callID"`
}

// A question is an entry of GET /question: some questions that are answered together.
type question struct {
	ID        string   `json:"id"`
	SessionID string   `json:"sessionID"`
	Tool      toolCall `json:"tool"`
	Questions []struct {
		Question string `json:"question"`
		Options  []struct {
			Label       string `json:"label"`
			Description string `json:"description"`
		} `json:"options"`
		Multiple bool `json:"multiple"`
	} `json:"questions"`
}

// A permission is an entry of GET /permission.
type permission struct {
	ID         string   `json:"id"`
	SessionID  string   `json:"sessionID"`
	Permission string   `json:"permission"`
	Patterns   []string `json:"patterns"`
	Always     []string `json:"always"`
	Tool       toolCall `json:"tool"`
}

// asked is what the agent waits for somebody to answer; its text is "" for nothing.
type asked struct {
	cause   podapi.Cause
	id      string // of the question or permission
	text    string
	choices []podapi.Choice

	labels   []string // the answer that each choice is
	multiple bool     // several choices are an answer, too
	more     int      // questions behind this one, of the same id
}

const (
	maxChoices  = 20
	maxQuestion = 4 << 10 // bytes
	maxID       = 200     // bytes
)

// permissions are the answers to one.
var permissions = []podapi.Choice{{ID: "once", Name: "Allow once"}, {ID: "always", Name: "Allow always"}, {ID: "reject", Name: "Reject"}}

// asks is the first thing that the session waits for; of questions that are answered
// together the one after those that are answered.
func (a *api) asks(ctx context.Context, id string, all []message, answered func(id string) [][]string) (asked, error) {
	var questions []question
	if err := a.call(ctx, http.MethodGet, "/question", nil, &questions); err != nil {
		return asked{}, err
	}
	for _, q := range questions {
		if n := len(answered(q.ID)); n < len(q.Questions) {
			if ours, err := a.waits(ctx, id, q.SessionID, q.Tool, all); ours || err != nil {
				return q.asked(n), err
			}
		}
	}
	var wanted []permission
	if err := a.call(ctx, http.MethodGet, "/permission", nil, &wanted); err != nil {
		return asked{}, err
	}
	for _, p := range wanted {
		if ours, err := a.waits(ctx, id, p.SessionID, p.Tool, all); ours || err != nil {
			return p.asked(), err
		}
	}
	return asked{}, nil
}

func (q question) asked(n int) asked {
	one := q.Questions[n]
	out := asked{cause: podapi.CauseQuestion, id: q.ID, text: podapi.Clip(one.Question, maxQuestion), multiple: one.Multiple, more: len(q.Questions) - n - 1}
	out.text = cmp.Or(strings.TrimSpace(out.text), "(a question without words)")
	if one.Multiple {
		out.text += "\n\n(Several may be chosen: their numbers, with commas.)"
	}
	for _, o := range one.Options[:min(len(one.Options), maxChoices)] {
		c := podapi.Choice{ID: podapi.Line(o.Label, 200), Name: podapi.Line(o.Label, 200)}
		if o.Description != "" && o.Description != o.Label {
			c.Name += ": " + podapi.Line(o.Description, 300)
		}
		out.choices, out.labels = append(out.choices, c), append(out.labels, o.Label)
	}
	return out
}

func (p permission) asked() asked {
	text := fmt.Sprintf("May it do this: %s %s?", p.Permission, strings.Join(p.Patterns, ", "))
	if len(p.Always) > 0 {
		text += fmt.Sprintf("\n\n(Always would be: %s)", strings.Join(p.Always, ", "))
	}
	return asked{cause: podapi.CausePermission, id: p.ID, text: podapi.Clip(text, maxQuestion), choices: permissions}
}

// waits tells whether a session is the task's, or one that it began for a part of it,
// and the tool call still waits in it: what was asked in one that was broken off
// stays on opencode's lists.
func (a *api) waits(ctx context.Context, own, of string, call toolCall, all []message) (bool, error) {
	if of != own {
		if ours, err := a.descends(ctx, of, own); !ours || err != nil {
			return false, err
		}
		var err error
		if all, err = a.messages(ctx, of); err != nil {
			return false, err
		}
	}
	for _, m := range all {
		if m.Info.ID != call.MessageID {
			continue
		}
		for _, p := range m.Parts {
			if p.CallID == call.CallID && p.State != nil {
				return p.State.Status == "pending" || p.State.Status == "running", nil
			}
		}
		return m.Info.Time.Completed == 0, nil
	}
	// Their names sort by time; those that are not here are older.
	return call.MessageID == "" || len(all) == 0 || call.MessageID > all[0].Info.ID, nil
}

// maxDepth bounds how many sessions lie between a task's and one for a part of it.
const maxDepth = 5

func (a *api) descends(ctx context.Context, id, from string) (bool, error) {
	for range maxDepth {
		var s struct {
			ParentID string `json:"parentID"`
		}
		err := a.call(ctx, http.MethodGet, "/session/"+url.PathEscape(id), nil, &s)
		switch {
		case errors.Is(err, errGone), errors.Is(err, errStrange), err == nil && s.ParentID == "":
			return false, nil
		case err != nil, s.ParentID == from:
			return err == nil, err
		}
		id = s.ParentID
	}
	return false, nil
}

// replyPermission answers one. What is no choice is a no, with the reason for it.
func (a *api) replyPermission(ctx context.Context, ask asked, text string) error {
	in := map[string]string{"reply": "reject", "message": text}
	if c, ok := podapi.Choose(ask.choices, text); ok {
		in = map[string]string{"reply": c.ID}
	}
	return a.call(ctx, http.MethodPost, "/permission/"+url.PathEscape(ask.id)+"/reply", in, nil)
}

// means are the answers to a question that a person's text is: choices, or the words
// themselves.
func (q asked) means(text string) []string {
	label := func(text string) (string, bool) {
		c, ok := podapi.Choose(q.choices, text)
		if !ok {
			return "", false
		}
		return q.labels[slices.Index(q.choices, c)], true
	}
	if one, ok := label(text); ok {
		return []string{one}
	}
	var some []string
	for part := range strings.FieldsFuncSeq(text, func(r rune) bool { return r == ',' || r == '\n' }) {
		one, ok := label(part)
		if !ok || !q.multiple {
			return []string{text}
		}
		some = append(some, one)
	}
	if len(some) == 0 {
		return []string{text}
	}
	return some
}

// answer gives a person's text to what the agent asks, if it asks anything; false
// when it does not.
func (d *Driver) answer(ctx context.Context, session, text string) (bool, error) {
	d.answering.Lock()
	defer d.answering.Unlock()
	st, err := d.api.status(ctx, session)
	if err != nil || st.Type == "" {
		return false, err
	}
	all, err := d.api.messages(ctx, session)
	if err != nil {
		return false, err
	}
	ask, err := d.api.asks(ctx, session, all, d.gathered.of)
	switch {
	case err != nil || ask.text == "":
		return false, err
	case ask.cause == podapi.CausePermission:
		err = d.api.replyPermission(ctx, ask, text)
	default:
		answers := append(d.gathered.of(ask.id), ask.means(text))
		if ask.more > 0 {
			d.gathered.keep(ask.id, answers)
			d.kick()
			return true, nil
		}
		err = d.api.call(ctx, http.MethodPost, "/question/"+url.PathEscape(ask.id)+"/reply", map[string]any{"answers": answers}, nil)
	}
	if errors.Is(err, errGone) { // meanwhile
		return false, nil
	}
	return err == nil, err
}

// gathered are answers to the first of several questions that are answered together;
// opencode is told all of them at once.
type gathered struct {
	path    string
	replace func(path string, data []byte) error
	log     *slog.Logger

	mu   sync.Mutex
	page struct {
		ID      string     `json:"id"`
		Answers [][]string `json:"answers"`
	}
}

// open reads those that a control before this one was given.
func (g *gathered) open() {
	text, err := os.ReadFile(g.path)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err == nil {
		err = json.Unmarshal(text, &g.page)
	}
	if err != nil {
		g.page.ID = ""
		g.log.Error("what was answered before can't be read; it is asked anew", "err", err)
	}
}

// of are those to an id.
func (g *gathered) of(id string) [][]string {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.page.ID != podapi.Clip(id, maxID) {
		return nil
	}
	return slices.Clone(g.page.Answers)
}

// keep keeps them. The work goes on where that fails: it is for a restart alone.
func (g *gathered) keep(id string, answers [][]string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.page.ID, g.page.Answers = podapi.Clip(id, maxID), answers
	text, err := json.Marshal(g.page)
	if err == nil {
		err = g.replace(g.path, text)
	}
	if err != nil {
		g.log.Error("an answer is not kept; after a restart it is asked for again", "err", err)
	}
}
