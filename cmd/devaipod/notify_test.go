package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/pods/audit"
	"codeberg.org/devaipod/devaipod/pods/reconcile"
)

// told is a webhook that notes what it gets, and fails as often as it is told to.
type told struct {
	*httptest.Server
	got   chan string
	fails int // the server's goroutine alone; requests come one at a time
}

func newTold(t *testing.T) *told {
	w := &told{got: make(chan string, 100)}
	w.Server = httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if w.fails > 0 {
			w.fails--
			http.Error(rw, "not now", http.StatusServiceUnavailable)
			return
		}
		w.got <- r.Header.Get("Authorization") + "|" + r.Header.Get("Title") + "|" + r.Header.Get("Click") + "|" + string(body)
	}))
	t.Cleanup(w.Close)
	return w
}

func (w *told) next(t *testing.T) string {
	t.Helper()
	select {
	case s := <-w.got:
		return s
	case <-time.After(20 * time.Second):
		t.Fatal("nobody was told")
		return ""
	}
}

// runNotifier runs one as a service does, until stop.
func runNotifier(t *testing.T, dir string, c notifyConfig) (*chronicle, func()) {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	happened, err := openChronicle(filepath.Join(dir, "events.jsonl"), log)
	if err != nil {
		t.Fatal(err)
	}
	n := &notifier{
		notifyConfig: c, instance: "dev", happened: happened, file: filepath.Join(dir, "notified"), again: time.Millisecond, log: log,
		keep:     audit.New(audit.Config{Path: filepath.Join(dir, auditFile)}).Add,
		issueURL: func(pod string) string { return "http://forge.test/" + pod },
		key:      func() (string, error) { return c.Secret, nil },
	}
	ctx, stop := context.WithCancel(t.Context())
	done := n.start(ctx)
	return happened, func() { stop(); <-done }
}

// Each thing is told once, whatever fails, and however often the service starts.
func TestANoticeIsToldOnce(t *testing.T) {
	w, dir := newTold(t), t.TempDir()
	cfg := notifyConfig{URL: w.URL, Format: notifyJSON, On: []string{"asking", "review"}, Secret: "s3"}
	first, err := openChronicle(filepath.Join(dir, "events.jsonl"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	first.add(happening{Kind: kindAgent, Pod: "ada/x#1", State: "asking", Ask: "ask-1", Why: "long ago"})

	happened, stop := runNotifier(t, dir, cfg)
	w.fails = 2
	happened.add(happening{Kind: kindAgent, Pod: "ada/x#2", State: "working"})
	happened.add(happening{Kind: kindWorkspace, Pod: "ada/x@main", State: "asking"})
	happened.add(happening{Kind: kindAgent, Pod: "ada/x#2", State: "asking", Ask: "ask-1", Why: "which\x1b[31m?"})
	got := w.next(t)
	head, body, _ := strings.Cut(got, "{")
	var n notice
	if err := json.Unmarshal([]byte("{"+body), &n); err != nil {
		t.Fatalf("%s: %v", got, err)
	}
	if head != "Bearer s3|||" || n.Issue != "ada/x#2" || n.State != "asking" || n.Was != "working" || n.Why != "which[31m?" || n.URL != "http://forge.test/ada/x#2" || n.Instance != "dev" {
		t.Errorf("told %q, %+v", head, n)
	}
	stop()

	happened, stop = runNotifier(t, dir, cfg)
	defer func() { stop() }()
	happened.add(happening{Kind: kindAgent, Pod: "ada/x#2", State: "asking", Ask: "ask-1"}) // still
	happened.add(happening{Kind: kindAgent, Pod: "ada/x#2", State: "review", PullRequest: "http://forge.test/p/1"})
	if got := w.next(t); !strings.Contains(got, `"state":"review"`) || !strings.Contains(got, `"pull_request":"http://forge.test/p/1"`) {
		t.Errorf("then %s", got)
	}

	// What it asks behind that is told too, and what it asked before is not.
	happened.add(happening{Kind: kindAgent, Pod: "ada/x#2", State: "asking", Ask: "ask-1"})
	happened.add(happening{Kind: kindAgent, Pod: "ada/x#2", State: "asking", Ask: "ask-2", Why: "the second"})
	if got := w.next(t); !strings.Contains(got, "the second") {
		t.Errorf("then %s", got)
	}
	stop()
	happened, stop = runNotifier(t, dir, cfg)
	for _, again := range []happening{{State: "asking", Ask: "ask-2"}, {State: "working"}, {State: "asking"}, {State: "asking", Ask: "ask-1"}, {State: "asking", Ask: "ask-2"}, {State: "asking", Ask: "ask-3", Why: "the third"}} {
		again.Kind, again.Pod = kindAgent, "ada/x#2"
		happened.add(again)
	}
	if got := w.next(t); !strings.Contains(got, "the third") {
		t.Errorf("then %s", got)
	}

	// One that is not delivered is given up, and the next one comes.
	w.fails = notifyTries
	happened.add(happening{Kind: kindAgent, Pod: "ada/x#3", State: "asking", Ask: "ask-1"})
	happened.add(happening{Kind: kindAgent, Pod: "ada/x#4", State: "asking", Ask: "ask-1"})
	if got := w.next(t); !strings.Contains(got, "ada/x#4") {
		t.Errorf("at last %s", got)
	}

	// Each is in the audit log, and the one that was given up twice.
	kept, err := audit.Read(filepath.Join(dir, auditFile))
	var lines []string
	for _, e := range kept {
		lines = append(lines, e.About+" "+e.Rule+": "+e.Done+" "+e.Result)
	}
	to := "POST to " + strings.TrimPrefix(w.URL, "http://")
	asks := " notify.on has asking: " + to + " "
	want := []string{"ada/x#2" + asks + sent, "ada/x#2 notify.on has review: " + to + " " + sent, "ada/x#2" + asks + sent, "ada/x#2" + asks + sent, "ada/x#3" + asks + sent, "ada/x#3" + asks + "failed: " + strings.TrimPrefix(w.URL, "http://") + " answered 503 Service Unavailable", "ada/x#4" + asks + sent}
	if err != nil || !slices.Equal(lines, want) {
		t.Errorf("kept %q, %v, want %q", lines, err, want)
	}
}

// A notice that may have arrived is not sent again: not when the connection breaks, nor by
// the service that is started after one that was killed in the middle.
func TestANoticeThatMayHaveArrivedIsNotToldAgain(t *testing.T) {
	dir, got, hang := t.TempDir(), make(chan string, 100), make(chan struct{})
	w := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		var n notice
		if err := json.Unmarshal(body, &n); err != nil {
			t.Error(err)
		}
		got <- n.Issue
		switch n.Issue {
		case "ada/x#1":
			panic(http.ErrAbortHandler)
		case "ada/x#2":
			<-hang
		}
	}))
	defer w.Close()
	defer close(hang)
	next := func(want string) {
		t.Helper()
		select {
		case s := <-got:
			if s != want {
				t.Errorf("told of %s, want %s", s, want)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("nobody was told of %s", want)
		}
	}
	cfg := notifyConfig{URL: w.URL, Format: notifyJSON, On: []string{"asking"}}
	happened, stop := runNotifier(t, dir, cfg)
	happened.add(happening{Kind: kindAgent, Pod: "ada/x#1", State: "asking", Ask: "ask-1"})
	next("ada/x#1")
	happened.add(happening{Kind: kindAgent, Pod: "ada/x#2", State: "asking", Ask: "ask-1"})
	next("ada/x#2")
	stop() // before there is an answer
	happened, stop = runNotifier(t, dir, cfg)
	defer func() { stop() }()
	happened.add(happening{Kind: kindAgent, Pod: "ada/x#3", State: "asking", Ask: "ask-1"})
	next("ada/x#3")
}

// Where a notice can't go is kept without what may be secret of the address.
func TestANoticeThatFailsKeepsItsAddressToItself(t *testing.T) {
	w, dir := newTold(t), t.TempDir()
	w.Close()
	happened, stop := runNotifier(t, dir, notifyConfig{URL: w.URL + "/my-topic", Format: notifyNtfy, On: []string{"failed"}})
	defer stop()
	happened.add(happening{Kind: kindAgent, Pod: "ada/x#2", State: "failed"})
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		kept, err := audit.Read(filepath.Join(dir, auditFile))
		if err != nil || time.Now().After(end) {
			t.Fatal(kept, err)
		}
		if len(kept) == 2 {
			if last := kept[1].Result; strings.Contains(last, "my-topic") || !strings.HasPrefix(last, "failed: asking 127.0.0.1:") {
				t.Error(last)
			}
			return
		}
	}
}

func TestANoticeForNtfy(t *testing.T) {
	w := newTold(t)
	happened, stop := runNotifier(t, t.TempDir(), notifyConfig{URL: w.URL, Format: notifyNtfy, On: []string{"failed"}})
	defer stop()
	happened.add(happening{Kind: kindAgent, Pod: "ada/x#2", State: "failed", Why: "no key"})
	if got := w.next(t); got != "|ada/x#2: failed|http://forge.test/ada/x#2|no key" {
		t.Errorf("told %q", got)
	}
}

func TestNotifySettings(t *testing.T) {
	good := notifyConfig{URL: "https://ntfy.example/topic", Format: "ntfy", On: []string{string(reconcile.Review)}}
	if err := errors.Join(good.check(), notifyConfig{}.check()); err != nil {
		t.Error(err)
	}
	for want, c := range map[string]notifyConfig{
		"notify.url":    {URL: "ftp://x", Format: "json"},
		"notify.format": {URL: "http://x", Format: "xml"},
		"notify.on":     {URL: "http://x", Format: "json", On: []string{"sleeping"}},
	} {
		if err := c.check(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}
