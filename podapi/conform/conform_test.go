package conform_test

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/gin-gonic/gin"

	"codeberg.org/devaipod/devaipod/podapi"
	"codeberg.org/devaipod/devaipod/podapi/conform"
)

// idle is a driver of nothing.
type idle struct{}

func (idle) Run(context.Context) error          { return nil }
func (idle) Summary() podapi.Summary            { return podapi.Summary{} }
func (idle) Send(context.Context, string) error { return nil }
func (idle) Stop(context.Context) error         { return nil }

// What is served is documented, and what is documented is served.
func TestTheDocumentHasEveryRoute(t *testing.T) {
	doc, err := conform.Read()
	if err != nil {
		t.Fatal(err)
	}
	var documented, served []string
	for path, item := range doc.Paths.Map() {
		for method := range item.Operations() {
			documented = append(documented, method+" "+path)
		}
	}
	server, ok := podapi.NewServer(idle{}, &podapi.Journal{}, slog.New(slog.DiscardHandler)).(*gin.Engine)
	if !ok {
		t.Fatal("the server is not gin's")
	}
	for _, r := range server.Routes() {
		served = append(served, r.Method+" "+r.Path)
	}
	slices.Sort(documented)
	slices.Sort(served)
	if !slices.Equal(documented, served) {
		t.Errorf("documented are\n%s\nserved are\n%s", strings.Join(documented, "\n"), strings.Join(served, "\n"))
	}
}

// said answers always the same.
type said struct {
	status            int
	contentType, body string
}

func (s said) RoundTrip(*http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: s.status, Header: http.Header{"Content-Type": {s.contentType}}, Body: io.NopCloser(strings.NewReader(s.body))}, nil
}

func TestWhatIsNotDocumentedIsAnError(t *testing.T) {
	const (
		summary = `{"state": "working", "since": "2026-01-02T03:04:05Z", "model": {"in_flight": 0, "requests": 1}}`
		event   = `{"id": 1, "time": "2026-01-02T03:04:05Z", "type": "text", "text": "x"}`
	)
	asJSON := func(body string) said { return said{200, "application/json; charset=utf-8", body} }
	stream := func(body string) said { return said{200, "text/event-stream", body} }
	nothing := said{204, "", ""}
	for _, c := range []struct {
		name, method, path, body string
		answer                   said
		wrong                    string // "" for right
	}{
		{"a summary", "GET", "/summary", "", asJSON(summary), ""},
		{"events", "GET", "/events?after=1&follow=0", "", stream("id: 1\ndata: " + event + "\n\n: still here\n\n"), ""},
		{"a transcript", "GET", "/transcript", "", said{200, "application/jsonl", event + "\n"}, ""},
		{"a message", "POST", "/messages", `{"text": "hello"}`, nothing, ""},
		{"an error", "POST", "/messages", `{"text": "hello"}`, said{503, "text/plain; charset=utf-8", "no"}, ""},

		{"another route", "GET", "/secrets", "", asJSON("{}"), "no matching operation"},
		{"another method", "DELETE", "/summary", "", asJSON(summary), "method not allowed"},
		{"a parameter", "GET", "/events?from=1", "", stream(""), `no parameter "from"`},
		{"a parameter's value", "GET", "/events?after=x", "", stream(""), "after"},
		{"a body", "POST", "/messages", `{"words": "hello"}`, nothing, "text"},
		{"a body where there is none", "POST", "/stop", "x", nothing, "body"},
		{"a status", "GET", "/summary", "", said{500, "text/plain", "oh"}, "status"},
		{"a kind of content", "GET", "/summary", "", said{200, "text/html", "<p>"}, "Content-Type"},
		{"a property", "GET", "/summary", "", asJSON(strings.Replace(summary, `"since"`, `"extra": 1, "since"`, 1)), "extra"},
		{"a value", "GET", "/summary", "", asJSON(strings.Replace(summary, "working", "sleeping", 1)), "state"},
		{"a body of none", "POST", "/stop", "", said{204, "text/plain", "x"}, "no body"},
		{"an event", "GET", "/events", "", stream("data: " + strings.Replace(event, "text", "song", 1) + "\n\n"), "event is not as documented"},
		{"an event of a transcript", "GET", "/transcript", "", said{200, "application/jsonl", "{}\n"}, "event is not as documented"},
		{"a field of an event", "GET", "/events", "", stream("event: x\n"), "no line of an event"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var body io.Reader
			if c.body != "" {
				body = strings.NewReader(c.body)
			}
			req, err := http.NewRequestWithContext(t.Context(), c.method, "http://pod"+c.path, body)
			if err != nil {
				t.Fatal(err)
			}
			if c.body != "" && c.wrong != "body" {
				req.Header.Set("Content-Type", "application/json")
			}
			var got []byte
			resp, err := conform.Transport(c.answer).RoundTrip(req)
			if err == nil {
				got, err = io.ReadAll(resp.Body)
				_ = resp.Body.Close()
			}
			switch {
			case c.wrong == "" && (err != nil || string(got) != c.answer.body):
				t.Errorf("got %q, %v", got, err)
			case c.wrong != "" && (err == nil || !strings.Contains(err.Error(), c.wrong)):
				t.Errorf("got %q, %v; want an error of %q", got, err, c.wrong)
			}
		})
	}
}
