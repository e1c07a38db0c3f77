package opencode_test

import (
	"cmp"
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
	"strings"
	"sync"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/podapi"
	"codeberg.org/devaipod/devaipod/podapi/opencode"
)

// stub plays the routes of opencode's HTTP API that the driver uses, in states
// that the real one is hard to bring into; the end-to-end suite drives the
// real one.
type stub struct {
	mu       sync.Mutex
	sessions []map[string]any
	messages string // JSON
	status   string
	asked    string // JSON of /question
	wanted   string // JSON of /permission, "" for none
	replies  []string
	replyErr int    // what a reply is answered with, once, 0 for 200
	version  string // "" for a server that does not tell
	prompts  []string
	inFlight int
	slow     bool // a prompt does not show in the messages
	aborted  int
	stall    time.Duration
	traffic  podapi.Traffic
	computes int64
	events   func(w http.ResponseWriter) // answers GET /event
	unknown  string                      // a path that it does not know
	journal  podapi.Journal
	poll     time.Duration
	answers  string // a file, "" for one of its own
}

func (s *stub) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	say := func(text string) { _, _ = io.WriteString(w, text) }
	if r.URL.Path == "/event" && s.events != nil {
		s.mu.Unlock()
		defer s.mu.Lock()
		s.events(w)
		return
	}
	if r.URL.Path == s.unknown {
		r.URL.Path = "/web-page"
	}
	switch r.Method + " " + r.URL.Path {
	case "GET /session":
		_ = json.NewEncoder(w).Encode(s.sessions)
	case "POST /session":
		var in map[string]any
		_ = json.NewDecoder(r.Body).Decode(&in)
		in["id"] = "ses_1"
		s.sessions = append(s.sessions, in)
		_ = json.NewEncoder(w).Encode(in)
	case "GET /session/ses_1/message":
		say(s.messages)
	case "POST /session/ses_1/prompt_async":
		b, _ := io.ReadAll(r.Body)
		s.prompts = append(s.prompts, string(b))
		if s.slow {
			w.WriteHeader(http.StatusNoContent)
			return
		}
		s.messages = `[{"info":{"id":"m1","role":"user"}}]`
		s.status = `{"ses_1":{"type":"busy"}}`
		w.WriteHeader(http.StatusNoContent)
	case "POST /session/ses_1/abort":
		s.aborted++
		say("true")
	case "POST /question/que_1/reply", "POST /permission/per_1/reply":
		if s.replyErr != 0 {
			w.WriteHeader(s.replyErr)
			s.replyErr = 0
			return
		}
		b, _ := io.ReadAll(r.Body)
		s.replies, s.asked, s.wanted = append(s.replies, r.URL.Path+" "+string(b)), "[]", ""
		say("true")
	case "GET /session/ses_2":
		say(`{"id":"ses_2","parentID":"ses_1"}`)
	case "GET /session/ses_3":
		say(`{"id":"ses_3"}`)
	case "GET /session/ses_2/message":
		say(`[{"info":{"id":"m9","role":"assistant"},"parts":[{"id":"p9","callID":"c","type":"tool","tool":"bash","state":{"status":"running"}}]}]`)
	case "GET /global/health":
		if s.version == "" {
			w.Header().Set("Content-Type", "text/html")
		}
		say(`{"healthy":true,"version":"` + s.version + `"}`)
	case "GET /session/status":
		say(s.status)
	case "GET /question":
		say(s.asked)
	case "GET /permission":
		say(cmp.Or(s.wanted, "[]"))
	default:
		w.Header().Set("Content-Type", "text/html")
		say("<html>")
	}
}

const userTurn = `{"info":{"id":"m1","role":"user"}}`

func run(t *testing.T, s *stub) *opencode.Driver {
	t.Helper()
	dir := t.TempDir()
	socket := filepath.Join(dir, "agent.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(s)
	server.Listener = l
	server.Start()
	t.Cleanup(server.Close)
	return drive(t, socket, s)
}

func drive(t *testing.T, socket string, s *stub) *opencode.Driver {
	t.Helper()
	d := opencode.New(opencode.Config{
		Socket: socket, Dir: "/workspace/repo", Key: "ann/hello#3@7", Prompt: "do it", Poll: cmp.Or(s.poll, 20*time.Millisecond), Stall: s.stall, Silence: s.stall,
		Traffic: func() podapi.Traffic {
			s.mu.Lock()
			defer s.mu.Unlock()
			t := s.traffic
			t.InFlight = s.inFlight
			return t
		},
		Computes: func() int64 { s.mu.Lock(); defer s.mu.Unlock(); return s.computes },
		Answers:  cmp.Or(s.answers, filepath.Join(t.TempDir(), "answers.json")),
		Replace:  func(path string, data []byte) error { return os.WriteFile(path, data, 0o600) },
		Journal:  &s.journal, Log: slog.New(slog.DiscardHandler),
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	return d
}

func wait(t *testing.T, d *opencode.Driver, what string, ok func(podapi.Summary) bool) podapi.Summary {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		s := d.Summary()
		if ok(s) {
			return s
		}
		if time.Now().After(deadline) {
			t.Fatalf("never %s: %+v", what, s)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func state(want podapi.State) func(podapi.Summary) bool {
	return func(s podapi.Summary) bool { return s.State == want }
}

func (s *stub) set(messages, status, asked string, inFlight int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.messages, s.status, s.asked, s.inFlight = messages, status, asked, inFlight
}

func newStub() *stub {
	return &stub{messages: "[]", status: "{}", asked: "[]", version: opencode.Tested}
}

func TestATurnThatEndsByItselfIsDone(t *testing.T) {
	t.Parallel()
	s := newStub()
	d := run(t, s)
	wait(t, d, "working", state(podapi.Working))
	done := `[` + userTurn + `,{"info":{"id":"m2","role":"assistant","finish":"stop","time":{"completed":1}},"parts":[{"id":"p","type":"text","text":"did it"}]}]`
	// Idle, and the model still answers: not the end.
	s.set(done, "{}", "[]", 1)
	time.Sleep(2 * time.Second)
	if got := d.Summary().State; got != podapi.Working {
		t.Errorf("with a request under way: %s", got)
	}
	s.set(done, "{}", "[]", 0)
	if sum := wait(t, d, "done", state(podapi.Done)); sum.Message != "did it" {
		t.Errorf("%+v", sum)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.prompts) != 1 || !strings.Contains(s.prompts[0], "do it") {
		t.Errorf("prompts: %q", s.prompts)
	}
	var was []string
	events, _ := s.journal.After(0)
	for _, ev := range events {
		if ev.Type == podapi.EventState {
			was = append(was, ev.Text)
		}
	}
	if got := strings.Join(was, " "); got != "ready working done" {
		t.Errorf("it was %s", got)
	}
}

func TestAPodAPIThatWasStartedAgainDoesNotPromptTwice(t *testing.T) {
	s := newStub()
	s.sessions = []map[string]any{{"id": "ses_0", "title": "something else"}, {"id": "ses_1", "title": "ann/hello#3@7"}}
	s.set(`[`+userTurn+`,{"info":{"id":"m2","role":"assistant"},"parts":[{"id":"p","type":"tool","tool":"bash","state":{"status":"running","input":{"command":"make"}}}]}]`, `{"ses_1":{"type":"busy"}}`, "[]", 0)
	d := run(t, s)
	wait(t, d, "at its tool", func(sum podapi.Summary) bool { return sum.Activity == "bash make" })
	time.Sleep(300 * time.Millisecond)
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.prompts) != 0 || len(s.sessions) != 2 {
		t.Errorf("prompts %q, sessions %v", s.prompts, s.sessions)
	}
}

// It does not seem to work before it is known that the turn was over long ago.
func TestAPodAPIThatWasStartedAgainFindsATurnThatWasOver(t *testing.T) {
	t.Parallel()
	s := newStub()
	s.sessions = []map[string]any{{"id": "ses_1", "title": "ann/hello#3@7"}}
	s.set(`[`+userTurn+`,{"info":{"id":"m2","role":"assistant","finish":"stop","time":{"completed":1}},"parts":[{"id":"p","type":"text","text":"did it"}]}]`, "{}", "[]", 0)
	wait(t, run(t, s), "done", state(podapi.Done))
	events, _ := s.journal.After(0)
	for _, ev := range events {
		if ev.Type == podapi.EventState && ev.Text != "done" {
			t.Errorf("it was %s", ev.Text)
		}
	}
}

func TestHowATurnCanEndOtherwise(t *testing.T) {
	for name, tt := range map[string]struct {
		messages, status, asked string
		want                    podapi.State
		say                     string
	}{
		"an error":   {`[` + userTurn + `,{"info":{"id":"m2","role":"assistant","time":{"completed":1},"error":{"name":"APIError","data":{"message":"401 no key"}}}}]`, "{}", "[]", podapi.Failed, "401 no key"},
		"a question": {`[` + userTurn + `]`, `{"ses_1":{"type":"busy"}}`, `[{"sessionID":"ses_1","questions":[{"question":"which one?"}]}]`, podapi.Asking, "which one?"},
		"retries":    {`[` + userTurn + `]`, `{"ses_1":{"type":"retry","attempt":2,"message":"overloaded"}}`, "[]", podapi.Working, "overloaded"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStub()
			s.sessions = []map[string]any{{"id": "ses_1", "title": "ann/hello#3@7"}}
			s.set(tt.messages, tt.status, tt.asked, 0)
			d := run(t, s)
			wait(t, d, "there", func(sum podapi.Summary) bool {
				return sum.State == tt.want && strings.Contains(sum.Error+sum.Question+sum.Activity, tt.say)
			})
		})
	}
}

func TestAnInterruptedTurnIsTakenUpOnce(t *testing.T) {
	t.Parallel()
	s := newStub()
	s.sessions = []map[string]any{{"id": "ses_1", "title": "ann/hello#3@7"}}
	cut := `[` + userTurn + `,{"info":{"id":"m2","role":"assistant"},"parts":[{"id":"p","type":"tool","tool":"bash","state":{"status":"running"}}]}]`
	s.set(cut, "{}", "[]", 0)
	d := run(t, s)
	wait(t, d, "going on", func(sum podapi.Summary) bool { return sum.State == podapi.Working })
	deadline := time.Now().Add(10 * time.Second)
	for {
		s.mu.Lock()
		n := len(s.prompts)
		s.mu.Unlock()
		if n == 1 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("never asked to go on")
		}
		time.Sleep(5 * time.Millisecond)
	}
	s.set(cut, "{}", "[]", 0)
	if sum := wait(t, d, "failed", state(podapi.Failed)); !strings.Contains(sum.Error, "interrupted") {
		t.Errorf("%+v", sum)
	}
}

// busyAt is a turn that has come to a tool with some output.
func busyAt(output string) string {
	return `[` + userTurn + `,{"info":{"id":"m2","role":"assistant"},"parts":[{"id":"p","type":"tool","tool":"bash","state":{"status":"running","output":"` + output + `","input":{"command":"make"}}}]}]`
}

func TestAStallIsNudgedOnceAndThenTold(t *testing.T) {
	t.Parallel()
	s := newStub()
	s.stall = 2 * time.Second
	s.sessions = []map[string]any{{"id": "ses_1", "title": "ann/hello#3@7"}}
	busy := `{"ses_1":{"type":"busy"}}`
	s.set(busyAt(""), busy, "[]", 0)
	d := run(t, s)
	// What moves is no stall, by whatever it moves.
	for i := range 15 {
		time.Sleep(100 * time.Millisecond)
		s.set(busyAt(strings.Repeat(".", i)), busy, "[]", 0)
	}
	for i := range 15 {
		time.Sleep(100 * time.Millisecond)
		s.mu.Lock()
		s.traffic.Received = int64(i)
		s.mu.Unlock()
	}
	for i := range 15 {
		time.Sleep(100 * time.Millisecond)
		s.mu.Lock()
		s.computes = int64(i)
		s.mu.Unlock()
	}
	s.mu.Lock()
	if s.aborted != 0 || len(s.prompts) != 0 {
		t.Errorf("while it moved: broken off %d times, prompts %q", s.aborted, s.prompts)
	}
	s.mu.Unlock()
	// A person's time to answer is no stall either.
	s.set(busyAt("x"), busy, `[{"sessionID":"ses_1","questions":[{"question":"which?"}]}]`, 0)
	time.Sleep(s.stall + time.Second)
	if sum := d.Summary(); sum.State != podapi.Asking || sum.Cause != podapi.CauseQuestion {
		t.Errorf("while it asks: %+v", sum)
	}
	s.set(busyAt("x"), busy, "[]", 0)
	wait(t, d, "nudged", func(podapi.Summary) bool { s.mu.Lock(); defer s.mu.Unlock(); return len(s.prompts) == 1 })
	s.set(busyAt("xy"), busy, "[]", 0)
	sum := wait(t, d, "given up", state(podapi.Failed))
	s.mu.Lock()
	defer s.mu.Unlock()
	if sum.Cause != podapi.CauseStalled || !strings.Contains(sum.Error, "bash make") || s.aborted != 1 || len(s.prompts) != 1 || !strings.Contains(s.prompts[0], "no progress") {
		t.Errorf("%+v, broken off %d times, prompts %q", sum, s.aborted, s.prompts)
	}
}

func TestAModelThatFailsWithoutEndEndsTheTurn(t *testing.T) {
	s := newStub()
	s.stall = 500 * time.Millisecond
	s.sessions = []map[string]any{{"id": "ses_1", "title": "ann/hello#3@7"}}
	busy := `{"ses_1":{"type":"busy"}}`
	s.set(busyAt(""), busy, "[]", 0)
	d := run(t, s)
	fails := func(n int) { // each answer has some bytes, which is no progress then
		s.mu.Lock()
		defer s.mu.Unlock()
		s.traffic.Received++
		s.traffic.LastStatus, s.traffic.LastError, s.traffic.Failures = 200, "the model's answer broke off", n
	}
	for n := range 9 {
		fails(n)
		time.Sleep(100 * time.Millisecond)
	}
	s.mu.Lock()
	if s.aborted != 0 {
		t.Error("given up after a few failures")
	}
	s.mu.Unlock()
	fails(12)
	wait(t, d, "broken off", func(podapi.Summary) bool { s.mu.Lock(); defer s.mu.Unlock(); return s.aborted > 0 })
	s.mu.Lock() // as after a request that was under way, and cut off
	s.traffic.LastStatus, s.traffic.LastError, s.traffic.Failures = 0, "", 0
	s.mu.Unlock()
	s.set(busyAt(""), "{}", "[]", 0)
	sum := wait(t, d, "told", state(podapi.Failed))
	if sum.Cause != podapi.CauseModel || !strings.Contains(sum.Error, "failed 12 times in a row") || !strings.Contains(sum.Error, "broke off") {
		t.Errorf("%+v", sum)
	}
	// Another turn, which a person may ask for, gets a chance of its own.
	s.set(busyAt("x"), busy, "[]", 0)
	wait(t, d, "at work", state(podapi.Working))
}

func TestAnAgentThatNeverStartsIsTold(t *testing.T) {
	s := newStub()
	s.stall = 300 * time.Millisecond
	d := drive(t, filepath.Join(t.TempDir(), "nobody.sock"), s)
	if sum := wait(t, d, "told", state(podapi.Failed)); sum.Cause != podapi.CauseSilent || !strings.Contains(sum.Error, "did not start") {
		t.Errorf("%+v", sum)
	}
}

func TestAFailureIsSortedByWhatTheGateSaw(t *testing.T) {
	failed := `[` + userTurn + `,{"info":{"id":"m2","role":"assistant","time":{"completed":1},"error":{"name":"APIError","data":{"message":"it says","statusCode":%d}}}}]`
	for name, tt := range map[string]struct {
		traffic podapi.Traffic
		status  int
		want    podapi.Cause
	}{
		"the key is wrong":       {podapi.Traffic{LastStatus: 401, LastError: "the model answered 401"}, 401, podapi.CauseRefused},
		"the gate refused":       {podapi.Traffic{LastStatus: 200}, 400, podapi.CauseRefused},
		"too many requests":      {podapi.Traffic{LastStatus: 429, LastError: "the model answered 429"}, 429, podapi.CauseLimited},
		"the model is broken":    {podapi.Traffic{LastStatus: 500, LastError: "the model answered 500"}, 500, podapi.CauseModel},
		"the model is not there": {podapi.Traffic{LastError: "the model does not answer"}, 502, podapi.CauseModel},
		"half an answer":         {podapi.Traffic{LastStatus: 200, LastError: "the model's answer broke off"}, 0, podapi.CauseModel},
		"something else":         {podapi.Traffic{LastStatus: 200}, 0, podapi.CauseError},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // each takes as long as a turn's end must be sure
			s := newStub()
			s.traffic = tt.traffic
			s.sessions = []map[string]any{{"id": "ses_1", "title": "ann/hello#3@7"}}
			s.set(fmt.Sprintf(failed, tt.status), "{}", "[]", 0)
			if sum := wait(t, run(t, s), "failed", state(podapi.Failed)); sum.Cause != tt.want {
				t.Errorf("%+v", sum)
			}
		})
	}
}

func TestABudgetThatIsUsedUpIsAskedFor(t *testing.T) {
	s := newStub()
	s.traffic = podapi.Traffic{LastStatus: 200, Spent: "$5.00 of $5.00 is spent"}
	s.sessions = []map[string]any{{"id": "ses_1", "title": "ann/hello#3@7"}}
	s.set(`[`+userTurn+`,{"info":{"id":"m2","role":"assistant","time":{"completed":1},"error":{"name":"APIError","data":{"message":"no","statusCode":402}}}}]`, "{}", "[]", 0)
	d := run(t, s)
	if sum := wait(t, d, "asking", state(podapi.Asking)); sum.Cause != podapi.CauseBudget || !strings.Contains(sum.Question, "$5.00 of $5.00 is spent") {
		t.Errorf("%+v", sum)
	}
	s.mu.Lock()
	prompts := len(s.prompts)
	s.traffic.Spent = ""
	s.mu.Unlock()
	wait(t, d, "at work again", state(podapi.Working))
	wait(t, d, "told so", func(podapi.Summary) bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.prompts) > 0
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	if prompts != 0 || len(s.prompts) != 1 || !strings.Contains(fmt.Sprint(s.prompts[0]), "has been raised") {
		t.Errorf("%d prompts, then %q", prompts, s.prompts)
	}
}

func TestASocketThatTheAgentReplacedIsNotFollowed(t *testing.T) {
	s := newStub()
	dir := t.TempDir()
	real, link := filepath.Join(dir, "service.sock"), filepath.Join(dir, "agent.sock")
	l, err := net.Listen("unix", real)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(s)
	server.Listener = l
	server.Start()
	defer server.Close()
	if err := os.Symlink(real, link); err != nil {
		t.Fatal(err)
	}
	d := drive(t, link, s)
	time.Sleep(500 * time.Millisecond)
	now := d.Summary().State
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.sessions) != 0 || now != podapi.Starting {
		t.Errorf("the link was followed: %v", s.sessions)
	}
}

func TestAPromptThatOpencodeIsSlowToShowIsNotSentTwice(t *testing.T) {
	s := newStub()
	s.slow = true
	d := run(t, s)
	wait(t, d, "working", state(podapi.Working))
	time.Sleep(time.Second) // some fifty looks
	s.set(`[`+userTurn+`]`, `{"ses_1":{"type":"busy"}}`, "[]", 0)
	time.Sleep(100 * time.Millisecond)
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.prompts) != 1 {
		t.Errorf("prompts: %q", s.prompts)
	}
}

// An opencode that is just starting accepts connections and never answers
// them.
func TestConnectionsThatAreNeverAnsweredDoNotHoldUpTheStart(t *testing.T) {
	s := newStub()
	socket := filepath.Join(t.TempDir(), "agent.sock")
	deaf, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	d := drive(t, socket, s)
	for range 2 { // the event stream's and the first look's
		c, err := deaf.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	server := httptest.NewUnstartedServer(s)
	server.Listener = deaf
	server.Start()
	defer server.Close()
	start := time.Now()
	wait(t, d, "working", state(podapi.Working))
	if took := time.Since(start); took > 8*time.Second {
		t.Errorf("it took %s", took)
	}
}

// A long session, of which each look shows the newest messages: all of it is journaled
// once, also when what was newest is taken back, and no more is remembered of it than
// is shown.
func TestALongSessionIsJournaledOnceAndNotRemembered(t *testing.T) {
	t.Parallel()
	const shown, looks = 30, 25
	s := newStub()
	s.sessions = []map[string]any{{"id": "ses_1", "title": "ann/hello#3@7"}}
	show := func(from int) {
		var all []string
		for n := from; n < from+shown; n++ {
			all = append(all, fmt.Sprintf(`{"info":{"id":"m%04d","role":"assistant","finish":"tool-calls","time":{"completed":1}},"parts":[{"id":"p%d","type":"text","text":"step %d"}]}`, n, n, n))
		}
		s.set(`[`+strings.Join(all, ",")+`]`, busy, "[]", 0)
	}
	var d *opencode.Driver
	t.Run("driven", func(t *testing.T) {
		show(0)
		d = run(t, s)
		for n := range looks {
			show(n * shown)
			wait(t, d, "journaled", func(podapi.Summary) bool { return s.journal.Has(fmt.Sprintf("p%d whole", (n+1)*shown-1)) })
		}
		show(shown)
		wait(t, d, "back", func(sum podapi.Summary) bool { return sum.Message == fmt.Sprint("step ", 2*shown-1) })
		show((looks - 1) * shown)
		wait(t, d, "where it was", func(sum podapi.Summary) bool { return sum.Message == fmt.Sprint("step ", looks*shown-1) })
	})
	told := map[string]int{}
	events, _ := s.journal.After(0)
	for _, ev := range events {
		if ev.Type == podapi.EventText {
			told[ev.Text]++
		}
	}
	for n := range looks * shown {
		if text := fmt.Sprint("step ", n); told[text] != 1 {
			t.Errorf("%q was told %d times", text, told[text])
		}
	}
	if n := d.Seen(); n > shown {
		t.Errorf("%d parts are remembered, of %d that are shown", n, shown)
	}
}

// What answers in the agent's container may be anything.
func TestAnswersThatAreTooLargeOrNoneAreNotTaken(t *testing.T) {
	for name, answer := range map[string]http.HandlerFunc{
		"without an end": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			junk := []byte(strings.Repeat(" ", 1<<20))
			for range 40 {
				if _, err := w.Write(junk); err != nil {
					return
				}
			}
			_, _ = io.WriteString(w, "[]")
		},
		"of another shape": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, `{"id":{"id":[]}}`)
		},
		"elsewhere": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://127.0.0.1:1/", http.StatusFound)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStub()
			socket := filepath.Join(t.TempDir(), "s")
			l, err := net.Listen("unix", socket)
			if err != nil {
				t.Fatal(err)
			}
			server := httptest.NewUnstartedServer(answer)
			server.Listener = l
			server.Start()
			t.Cleanup(server.Close)
			d := drive(t, socket, s)
			time.Sleep(700 * time.Millisecond)
			if sum := d.Summary(); sum.State != podapi.Starting {
				t.Errorf("%+v", sum)
			}
		})
	}
}
