package podapi_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"codeberg.org/devaipod/devaipod/podapi"
)

// driver is one that notes what it is told.
type driver struct {
	sum  podapi.Summary
	sent []string
	err  error
}

func (d *driver) Run(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
func (d *driver) Summary() podapi.Summary       { return d.sum }
func (d *driver) Send(_ context.Context, text string) error {
	d.sent = append(d.sent, text)
	return d.err
}
func (d *driver) Stop(context.Context) error { return d.Send(context.Background(), "stop") }

func serve(t *testing.T, d *driver, j *podapi.Journal) (*podapi.Client, string) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "control.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(podapi.NewServer(d, j, slog.New(slog.DiscardHandler)))
	s.Listener = l
	s.Start()
	t.Cleanup(s.Close)
	return podapi.NewClient(socket), socket
}

func TestTheClientAndTheServerAgree(t *testing.T) {
	d := &driver{sum: podapi.Summary{State: podapi.Asking, Question: "which?", Session: "s"}}
	d.sum.Model.Requests = 3
	c, _ := serve(t, d, &podapi.Journal{})
	ctx := t.Context()
	if got, err := c.Summary(ctx); err != nil || !reflect.DeepEqual(got, d.sum) {
		t.Errorf("%+v, %v", got, err)
	}
	for _, err := range []error{c.Send(ctx, "hello"), c.Stop(ctx)} {
		if err != nil {
			t.Error(err)
		}
	}
	if fmt.Sprint(d.sent) != "[hello stop]" {
		t.Errorf("the driver was told %q", d.sent)
	}
	if err := c.Send(ctx, "  "); err == nil || !strings.Contains(err.Error(), "400") {
		t.Errorf("an empty message: %v", err)
	}
	d.err = podapi.ErrNotReady
	if err := c.Send(ctx, "x"); err == nil || !strings.Contains(err.Error(), "not up yet") {
		t.Errorf("an agent that is not up: %v", err)
	}
}

func TestEventsReplayAndGoOn(t *testing.T) {
	j := &podapi.Journal{}
	for i := range 3 {
		j.Add(podapi.EventText, fmt.Sprint("old ", i))
	}
	c, _ := serve(t, &driver{}, j)
	req, err := http.NewRequestWithContext(t.Context(), "GET", "http://pod/events?after=1", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.Transport().RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	next := func() podapi.Event {
		for lines.Scan() {
			if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
				var ev podapi.Event
				if err := json.Unmarshal([]byte(data), &ev); err != nil {
					t.Fatal(err)
				}
				return ev
			}
		}
		t.Fatal("the stream ended")
		return podapi.Event{}
	}
	if a, b := next(), next(); a.Text != "old 1" || b.Text != "old 2" || b.ID != 3 {
		t.Errorf("replayed %+v %+v", a, b)
	}
	j.Add(podapi.EventTool, "new")
	if ev := next(); ev.Text != "new" || ev.ID != 4 || ev.Type != podapi.EventTool {
		t.Errorf("then %+v", ev)
	}
}

func TestTheJournalIsBounded(t *testing.T) {
	j := &podapi.Journal{}
	for range 6000 {
		j.Add(podapi.EventText, strings.Repeat("é", 8000))
	}
	events, _ := j.After(0)
	if n := len(events); n > 5000 || n < 4000 || events[n-1].ID != 6000 || len(events[0].Text) > 8300 {
		t.Errorf("%d events, the last %d, of %d bytes", n, events[n-1].ID, len(events[0].Text))
	}
}
