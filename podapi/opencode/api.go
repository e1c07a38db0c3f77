// Package opencode drives opencode (opencode.ai) through the HTTP API of
// `opencode serve`, as version 1.18.33 has it (its /doc).
//
// [Driver] makes one session for a task, gives it the prompt once, and works
// out from several signals what the agent is doing: opencode's status and its
// messages, which are asked for again and again, and the gate's view of the
// model. Events only make it look sooner: a single idle event is not to be
// relied on.
package opencode

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"codeberg.org/devaipod/devaipod/podapi"
)

// maxAnswer bounds what is read of one answer: it comes from the agent's
// container.
const maxAnswer = 32 << 20

// api is opencode's HTTP API at a unix socket that the agent can replace by
// anything.
type api struct {
	http *http.Client
	dir  string // of the repository in the agent's container
}

func newAPI(socket, dir string) *api {
	return &api{dir: dir, http: &http.Client{
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			MaxIdleConnsPerHost: 4, IdleConnTimeout: 30 * time.Second, ResponseHeaderTimeout: answerWithin,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return podapi.Dial(ctx, socket) },
		},
	}}
}

// answerWithin is how long an answer may take.
const answerWithin = 20 * time.Second

// health asks which version answers.
func (a *api) health(ctx context.Context, within time.Duration) (version string, err error) {
	var out struct {
		Version string `json:"version"`
	}
	err = a.ask(ctx, within, http.MethodGet, "/global/health", nil, nil, &out)
	return podapi.Line(out.Version, 60), err
}

// call makes one request about the repository's directory.
func (a *api) call(ctx context.Context, method, path string, in, out any) error {
	return a.ask(ctx, answerWithin, method, path, nil, in, out)
}

func (a *api) ask(ctx context.Context, within time.Duration, method, path string, query url.Values, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	resp, err := a.open(ctx, method, path, query, in)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return err
	}
	if len(b) > maxAnswer {
		return fmt.Errorf("opencode's answer to %s is larger than %d bytes", path, maxAnswer)
	}
	if resp.StatusCode == http.StatusNotFound {
		return fmt.Errorf("opencode has no %s: %w", path, errGone)
	}
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return fmt.Errorf("it answered %s to %s %s: %.300s (%w)", resp.Status, method, path, b, errStrange)
	}
	if out == nil {
		return nil
	}
	// Unknown routes are answered with the web page and 200.
	if !strings.Contains(resp.Header.Get("Content-Type"), "json") {
		return fmt.Errorf("it does not know %s %s (%w)", method, path, errStrange)
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("its answer to %s %s: %w (%w)", method, path, err, errStrange)
	}
	return nil
}

// errStrange is an answer that the version of opencode that this is written after
// does not give.
var errStrange = errors.New("not as opencode " + Tested + " answers")

// errGone is what opencode no longer has.
var errGone = errors.New("it is gone")

func (a *api) open(ctx context.Context, method, path string, query url.Values, in any) (*http.Response, error) {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(b)
	}
	if query == nil {
		query = url.Values{}
	}
	query.Set("directory", a.dir)
	req, err := http.NewRequestWithContext(ctx, method, "http://opencode"+path+"?"+query.Encode(), body)
	if err != nil {
		return nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	return a.http.Do(req)
}

type session struct {
	ID    string `json:"id"`
	Title string `json:"title"`
}

// message is one of a session, with its parts.
type message struct {
	Info struct {
		ID     string `json:"id"`
		Role   string `json:"role"`
		Finish string `json:"finish"`
		Error  *struct {
			Name string `json:"name"`
			Data struct {
				Message    string `json:"message"`
				StatusCode int    `json:"statusCode"`
			} `json:"data"`
		} `json:"error"`
		Time struct {
			Completed float64 `json:"completed"`
		} `json:"time"`
	} `json:"info"`
	Parts []part `json:"parts"`
}

type part struct {
	ID     string `json:"id"`
	CallID string `json:"callID"`
	Type   string `json:"type"` // text, tool, reasoning, step-start, …
	Text   string `json:"text"`
	Tool   string `json:"tool"`
	State  *struct {
		Status string          `json:"status"` // pending, running, completed, error
		Title  string          `json:"title"`
		Input  json.RawMessage `json:"input"`
		Output string          `json:"output"`
		Error  string          `json:"error"`
	} `json:"state"`
}

// text joins a message's text parts.
func (m message) text() string {
	var b strings.Builder
	for _, p := range m.Parts {
		if p.Type == "text" {
			b.WriteString(p.Text)
		}
	}
	return b.String()
}

// interrupted tells a message that a killed opencode has left behind.
func (m message) interrupted() bool { return m.Info.Role == "assistant" && m.Info.Time.Completed == 0 }

// sessions lists the sessions with a title, leaving out those that others
// have started for a subtask.
func (a *api) sessions(ctx context.Context, title string) ([]session, error) {
	var out []session
	query := url.Values{"roots": {"true"}, "search": {title}, "limit": {"1000"}}
	return out, a.ask(ctx, answerWithin, http.MethodGet, "/session", query, nil, &out)
}

func (a *api) newSession(ctx context.Context, title string) (session, error) {
	var out session
	return out, a.call(ctx, http.MethodPost, "/session", map[string]any{"title": title}, &out)
}

// newest is how many messages a look reads: a step of the agent is one, and
// the whole of a long session would be too much to ask for every second.
const newest = "30"

// messages are the session's newest, oldest first.
func (a *api) messages(ctx context.Context, id string) ([]message, error) {
	var out []message
	return out, a.ask(ctx, answerWithin, http.MethodGet, "/session/"+url.PathEscape(id)+"/message", url.Values{"limit": {newest}}, nil, &out)
}

func (a *api) prompt(ctx context.Context, id, text string) error {
	in := map[string]any{"parts": []map[string]string{{"type": "text", "text": text}}}
	return a.call(ctx, http.MethodPost, "/session/"+url.PathEscape(id)+"/prompt_async", in, nil)
}

func (a *api) abort(ctx context.Context, id string) error {
	return a.call(ctx, http.MethodPost, "/session/"+url.PathEscape(id)+"/abort", nil, nil)
}

// sessionStatus is "busy", "retry" with a message, or "" for idle: an idle
// session has no entry.
type sessionStatus struct {
	Type    string `json:"type"`
	Message string `json:"message"`
	Attempt int    `json:"attempt"`
}

func (a *api) status(ctx context.Context, id string) (sessionStatus, error) {
	var out map[string]sessionStatus
	err := a.call(ctx, http.MethodGet, "/session/status", nil, &out)
	if s := out[id]; s.Type != "idle" {
		return s, err
	}
	return sessionStatus{}, err
}
