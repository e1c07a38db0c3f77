package podapi_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"codeberg.org/devaipod/devaipod/podapi"
	"codeberg.org/devaipod/devaipod/podapi/conform"
	"codeberg.org/devaipod/devaipod/pods"
)

// driver is one that notes what it is told.
type driver struct {
	sum   podapi.Summary
	sent  []string
	err   error
	asked atomic.Int64 // how often for its summary
}

func (d *driver) Run(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
func (d *driver) Summary() podapi.Summary {
	d.asked.Add(1)
	return d.sum
}
func (d *driver) Send(_ context.Context, text string) error {
	d.sent = append(d.sent, text)
	return d.err
}
func (d *driver) Stop(context.Context) error { return d.Send(context.Background(), "stop") }

func serve(t *testing.T, d *driver, j *podapi.Journal) (*podapi.Client, string) {
	t.Helper()
	return serveDriver(t, d, j)
}

func serveDriver(t *testing.T, d podapi.Driver, j *podapi.Journal) (*podapi.Client, string) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "control.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(podapi.NewServer(d, j, quiet))
	s.Listener = l
	s.Start()
	t.Cleanup(s.Close)
	return podapi.NewClient(socket).Through(conform.Transport), socket
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

// get asks for a path and returns the answer's text.
func get(t *testing.T, c *podapi.Client, path string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "GET", "http://pod"+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.Transport().RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s, %v", path, resp.Status, err)
	}
	return string(b)
}

// probed is a driver with probes of its own.
type probed struct {
	*driver
	probes []podapi.Probe
}

func (p probed) Probes(context.Context) []podapi.Probe { return p.probes }

func TestEachProbeIsTold(t *testing.T) {
	for _, tt := range []struct {
		sum    podapi.Summary
		probes []podapi.Probe
		want   string
	}{
		{podapi.Summary{State: podapi.Working}, nil, "200 agent: ok\n"},
		{podapi.Summary{State: podapi.Starting}, nil, "503 agent: starting\n"},
		{podapi.Summary{State: podapi.Failed, Cause: podapi.CauseModel, Error: "no key"}, nil, "200 agent: ok\n"},
		{podapi.Summary{State: podapi.Failed, Cause: podapi.CauseSilent, Error: "mute\x00 for\n2m"}, nil, "503 agent: mute\x00 for 2m\n"},
		{podapi.Summary{State: podapi.Working, Version: "agent 2 is new"}, nil, "200 agent: ok (agent 2 is new)\n"},
		{podapi.Summary{State: podapi.Done}, []podapi.Probe{{Name: "clone"}, {Name: "model", Err: errors.New("refused\nhere")}}, "503 agent: ok\nclone: ok\nmodel: refused here\n"},
	} {
		w := httptest.NewRecorder()
		podapi.NewServer(probed{&driver{sum: tt.sum}, tt.probes}, &podapi.Journal{}, quiet).ServeHTTP(w, httptest.NewRequest("GET", "/readyz", nil))
		if got := fmt.Sprintf("%d %s", w.Code, w.Body); got != tt.want {
			t.Errorf("%+v: %q, want %q", tt.sum, got, tt.want)
		}
	}
}

// What a person says is among the messages, and all of it in the transcript.
func TestMessagesTranscriptAndMetrics(t *testing.T) {
	dir := t.TempDir()
	for name, j := range map[string]*podapi.Journal{"in memory": {}, "kept": podapi.OpenJournal(dir, quiet)} {
		t.Run(name, func(t *testing.T) {
			d := &driver{sum: podapi.Summary{State: podapi.Working}}
			d.sum.Model.Requests = 7
			c, _ := serve(t, d, j)
			if got := get(t, c, "/messages"); got != "[]" {
				t.Errorf("messages of nothing: %s", got)
			}
			j.Add(podapi.EventText, "shall I?")
			j.Add(podapi.EventTool, "bash")
			if err := c.Send(t.Context(), "do"); err != nil {
				t.Fatal(err)
			}
			for range 2 { // once
				if err := c.Tell(t.Context(), "comment 7", "and that"); err != nil {
					t.Fatal(err)
				}
			}
			d.err = podapi.ErrNotReady
			if err := c.Send(t.Context(), "nobody heard that"); err == nil {
				t.Error("a message went to nobody")
			}
			var said []podapi.Event
			if err := json.Unmarshal([]byte(get(t, c, "/messages")), &said); err != nil {
				t.Fatal(err)
			}
			if len(said) != 3 || said[0].Text != "shall I?" || said[1].Text != "do" || said[1].Type != podapi.EventPerson || said[2].Text != "and that" || fmt.Sprint(d.sent) != "[do and that nobody heard that]" {
				t.Errorf("messages are %+v", said)
			}
			if lines := strings.Split(get(t, c, "/transcript"), "\n"); len(lines) != 5 || !strings.Contains(lines[1], `"bash"`) || !strings.Contains(lines[2], `"do"`) {
				t.Errorf("the transcript is %q", lines)
			}
			before := d.asked.Load()
			all := get(t, c, "/metrics")
			if n := d.asked.Load() - before; n != 1 {
				t.Errorf("one look at the metrics asked %d times for the summary", n)
			}
			for _, want := range []string{`devaipod_agent_state{state="working"} 1`, `devaipod_agent_state{state="idle-with-work"} 0`, "devaipod_model_requests_total 7"} {
				if !strings.Contains(all, want+"\n") {
					t.Errorf("no %q in\n%s", want, all)
				}
			}
		})
	}
}

func TestEventsReplayAndGoOn(t *testing.T) {
	j := &podapi.Journal{}
	for i := range 3 {
		j.Add(podapi.EventText, fmt.Sprint("old ", i))
	}
	c, _ := serve(t, &driver{}, j)
	if ev := stream(t, c, "?after=1", "2")(); ev.ID != 3 {
		t.Errorf("a browser that comes back after 2 gets %+v", ev)
	}
	next := stream(t, c, "?after=1", "")
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
		j.Add(podapi.EventText, "short")
	}
	events, _ := j.After(0)
	if n := len(events); n > 1000 || n < 800 || events[n-1].ID != 6000 {
		t.Errorf("%d events, the last %d", n, events[n-1].ID)
	}
	for range 2000 {
		j.Add(podapi.EventText, strings.Repeat("é", 8000))
	}
	events, _ = j.After(0)
	held := 0
	for _, ev := range events {
		held += len(ev.Text)
	}
	if n := len(events); n < 100 || held > 2<<20 || events[n-1].ID != 8000 || len(events[n-1].Text) > 8300 {
		t.Errorf("%d events of %d bytes, the last %d of %d", n, held, events[n-1].ID, len(events[n-1].Text))
	}
}

// quiet is for what says nothing that matters.
var quiet = slog.New(slog.DiscardHandler)

func transcript(t *testing.T, dir string) (out []podapi.Event) {
	t.Helper()
	if err := podapi.ReadTranscript(dir, func(ev podapi.Event) error { out = append(out, ev); return nil }); err != nil {
		t.Fatal(err)
	}
	return out
}

// A pod-api that is started again goes on counting where the last one was, and
// tells nothing twice; what a kill left of a line is none.
func TestTheJournalIsKept(t *testing.T) {
	dir := t.TempDir()
	if got := transcript(t, dir); got != nil {
		t.Errorf("of nothing: %+v", got)
	}
	j := podapi.OpenJournal(dir, quiet)
	j.Once("part 1", podapi.EventText, "hello")
	j.Add(podapi.EventState, "working")
	f, err := os.OpenFile(filepath.Join(dir, podapi.TranscriptFile), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(`{"id": 3, "text": "torn`); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	j = podapi.OpenJournal(dir, quiet)
	j.Once("part 1", podapi.EventText, "hello")
	j.Once("part 2", podapi.EventText, "there")
	events, _ := j.After(1)
	if len(events) != 2 || events[0].ID != 2 || events[1].ID != 3 || events[1].Text != "there" {
		t.Errorf("goes on with %+v", events)
	}
	kept := transcript(t, dir)
	if len(kept) != 3 || kept[0].Text != "hello" || kept[1].Text != "working" || kept[2].Text != "there" {
		t.Errorf("kept are %+v", kept)
	}
}

// A long journal is two files, and the oldest of it goes.
func TestAKeptJournalIsBounded(t *testing.T) {
	dir := t.TempDir()
	j := podapi.OpenJournal(dir, quiet)
	const n = 10_000
	for range n {
		j.Add(podapi.EventText, strings.Repeat("x", 8<<10))
	}
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 2 {
		t.Fatalf("%v, %v", files, err)
	}
	for _, f := range files {
		if info, err := f.Info(); err != nil || info.Size() > 33<<20 {
			t.Errorf("%s has %d bytes, %v", f.Name(), info.Size(), err)
		}
	}
	kept := transcript(t, dir)
	for i, ev := range kept {
		if ev.ID != int64(n-len(kept)+1+i) {
			t.Fatalf("event %d of %d is %d", i, len(kept), ev.ID)
		}
	}
	if len(kept) < n/3 {
		t.Errorf("%d are left", len(kept))
	}
	for range 2 { // there is nothing the second time
		if err := pods.RemoveRecords(dir); err != nil {
			t.Error(err)
		}
	}
	if got := transcript(t, dir); got != nil {
		t.Errorf("%d events after all are removed", len(got))
	}
}

// A journal that can't be written is one in memory, until it can.
func TestAJournalThatCanNotBeWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		file := filepath.Join(dir, podapi.TranscriptFile)
		if err := os.Mkdir(file, 0o700); err != nil {
			t.Fatal(err)
		}
		var said strings.Builder
		j := podapi.OpenJournal(dir, slog.New(slog.NewTextHandler(&said, nil)))
		j.Add(podapi.EventText, "lost")
		if events, _ := j.After(0); len(events) != 1 || strings.Count(said.String(), "is not kept") != 1 {
			t.Errorf("%+v; the log says %s", events, said.String())
		}
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Minute) // of the bubble's clock
		j.Add(podapi.EventText, "kept")
		if got := transcript(t, dir); len(got) != 1 || got[0].Text != "kept" || got[0].ID != 2 {
			t.Errorf("kept are %+v", got)
		}
	})
}

// stream opens /events and returns what comes, event by event.
func stream(t *testing.T, c *podapi.Client, query, lastID string) func() podapi.Event {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "GET", "http://pod/events"+query, nil)
	if err != nil {
		t.Fatal(err)
	}
	if lastID != "" {
		req.Header.Set("Last-Event-ID", lastID)
	}
	resp, err := c.Transport().RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = resp.Body.Close() })
	lines := bufio.NewScanner(resp.Body)
	return func() podapi.Event {
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
}

func TestWhatAPersonChooses(t *testing.T) {
	choices := []podapi.Choice{{ID: "once", Name: "Allow once"}, {ID: "2", Name: "Never"}}
	for text, want := range map[string]string{
		"once": "once", " Allow Once. ": "once", "1": "once", "never!": "2", "2": "2", "0": "", "3": "", "": "", "allow": "", "once more": "",
	} {
		if got, ok := podapi.Choose(choices, text); got.ID != want || ok != (want != "") {
			t.Errorf("%q is %+v, want %q", text, got, want)
		}
	}
}

func TestABookThatCannotBeReadBeginsAnewAndIsBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "book")
	write := func(path string, b []byte) error { return os.WriteFile(path, b, 0o600) }
	if err := write(path, []byte(`{"key":"k","turn":`)); err != nil {
		t.Fatal(err)
	}
	open := func() *podapi.Book {
		return podapi.OpenBook(path, write, "k", "the task", slog.New(slog.DiscardHandler))
	}
	b := open()
	if p := b.Page(); p.Turn != "" || len(p.Waiting) != 1 || p.Waiting[0] != "the task" {
		t.Errorf("%+v", p)
	}
	b.Change(func(p *podapi.Page) { p.Begin() })
	for n := range 200 {
		if err := b.Add("more"); (err != nil) != (n >= 100) {
			t.Fatalf("message %d: %v", n, err)
		}
	}
	b.End(podapi.Summary{State: podapi.Done, Message: "did it"})
	if p := open().Page(); p.Turn != "" || p.Turns != 1 || len(p.Waiting) != 100 || p.Last.Message != "did it" {
		t.Errorf("%+v", p)
	}
}

func TestWhatIsWork(t *testing.T) {
	for status, want := range map[string]podapi.State{
		`{"ahead":0,"behind":3,"unpushed":[],"changes":[]}`:                                 podapi.IdleWithout,
		`{"ahead":1,"behind":0,"unpushed":[],"changes":[]}`:                                 podapi.IdleWithWork,
		`{"ahead":0,"behind":0,"unpushed":[{"id":"a","subject":"s"}],"changes":[]}`:         podapi.IdleWithWork,
		`{"ahead":0,"behind":0,"unpushed":[],"changes":[{"path":"f","how":"added"}]}`:       podapi.IdleWithWork,
		`{"at":"2026-01-02T03:04:05Z","ahead":0,"behind":0,"unpushed":null,"changes":null}`: podapi.IdleWithout,
	} {
		work, err := podapi.HasWork(json.RawMessage(status))
		if got := podapi.Idle(work); err != nil || got != want {
			t.Errorf("%s is %s, %v", status, got, err)
		}
	}
	if _, err := podapi.HasWork(json.RawMessage(`[]`)); err == nil {
		t.Error("nonsense is understood")
	}
}

// A turn that nobody saw begin has ended when it did.
func TestIdleIsSinceTheLastTurn(t *testing.T) {
	var j podapi.Journal
	s := podapi.NewStatus(&j)
	s.Set(podapi.Summary{State: podapi.IdleWithWork, Mark: "turn 1"})
	first := s.Get().Since
	s.Set(podapi.Summary{State: podapi.IdleWithWork, Mark: "turn 1", Activity: "x"})
	if !s.Get().Since.Equal(first) {
		t.Error("it is idle anew, with no turn")
	}
	s.Set(podapi.Summary{State: podapi.IdleWithWork, Mark: "turn 2"})
	if events, _ := j.After(0); !s.Get().Since.After(first) || len(events) != 1 {
		t.Errorf("since %s, as at first; %+v", first, events)
	}
}

// Each thing that is asked is an event, with its choices, also one right behind another.
func TestAsksAreJournaled(t *testing.T) {
	var j podapi.Journal
	s := podapi.NewStatus(&j)
	ask := podapi.Summary{State: podapi.Asking, Mark: "1", Question: "May it?", Choices: []podapi.Choice{{ID: "y", Name: "Yes"}, {ID: "n", Name: "No"}}}
	s.Set(ask)
	s.Set(ask)
	since := s.Get().Since
	ask.Mark = "2"
	s.Set(ask)
	events, _ := j.After(0)
	if len(events) != 2 || events[1].Text != "asking: May it?\n1. Yes\n2. No" || !s.Get().Since.Equal(since) {
		t.Errorf("%+v", events)
	}
}
