package acp_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/podapi"
	"codeberg.org/devaipod/devaipod/podapi/acp"
)

// A standIn is a stand-in for an agent that speaks the Agent Client Protocol, for
// these tests alone: it thinks nothing, and does what a test's script says, also what
// no agent should. It is written after the protocol's text and not with the driver's
// own types. The real `opencode acp` is driven in cmd/devaipod-pod.
type standIn struct {
	t      *testing.T
	socket string
	loads  bool // it can load sessions
	// allowed: nobody is asked for what it wants to be allowed.
	allowed bool
	// prompted is called for each prompt; a stop reason of "" leaves it unanswered.
	prompted func(*process, string) (stop string)
	// odd is called with each request first, and tells whether it took care of it.
	odd func(*process, frame) bool

	computes atomic.Int64

	mu      sync.Mutex
	started int
	prompts []string
	loaded  []string
	traffic podapi.Traffic
}

type frame struct {
	ID     any             `json:"id,omitempty"`
	Method string          `json:"method,omitempty"`
	Params json.RawMessage `json:"params,omitempty"`
	Result json.RawMessage `json:"result,omitempty"`
	Error  json.RawMessage `json:"error,omitempty"`
}

// A process is one connection to it, as the shim has it.
type process struct {
	*standIn
	net.Conn
	number    int
	answers   chan frame // to its own requests
	cancelled chan struct{}
}

func (s *standIn) listen() {
	s.t.Helper()
	l, err := net.Listen("unix", s.socket)
	if err != nil {
		s.t.Fatal(err)
	}
	var wg sync.WaitGroup
	s.t.Cleanup(func() { _ = l.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			s.started++
			p := &process{standIn: s, Conn: conn, number: s.started, answers: make(chan frame, 100), cancelled: make(chan struct{}, 10)}
			s.mu.Unlock()
			wg.Go(p.serve)
		}
	})
}

func (p *process) serve() {
	var wg sync.WaitGroup
	defer wg.Wait()
	defer close(p.answers)
	defer close(p.cancelled)
	defer p.Close()
	lines := bufio.NewReader(p.Conn)
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			return
		}
		var f frame
		if err := json.Unmarshal([]byte(line), &f); err != nil {
			p.t.Errorf("the driver sent %q: %v", line, err)
			return
		}
		if p.odd != nil && p.odd(p, f) {
			continue
		}
		switch f.Method {
		case "":
			select {
			case p.answers <- f:
			default: // nobody waits for so many
			}
		case "initialize":
			p.result(f.ID, fmt.Sprintf(`{"protocolVersion":1,"agentCapabilities":{"loadSession":%v},"authMethods":[]}`, p.loads))
		case "session/new":
			p.result(f.ID, fmt.Sprintf(`{"sessionId":"s%d"}`, p.number))
		case "session/load":
			var in struct{ SessionID string }
			_ = json.Unmarshal(f.Params, &in)
			p.mu.Lock()
			p.loaded = append(p.loaded, in.SessionID)
			p.mu.Unlock()
			p.update(in.SessionID, `{"sessionUpdate":"agent_message_chunk","content":{"type":"text","text":"of old"}}`)
			p.result(f.ID, `{}`)
		case "session/cancel":
			p.cancelled <- struct{}{}
		case "session/prompt":
			var in struct {
				SessionID string
				Prompt    []struct{ Text string }
			}
			_ = json.Unmarshal(f.Params, &in)
			p.mu.Lock()
			p.prompts = append(p.prompts, in.Prompt[0].Text)
			p.mu.Unlock()
			wg.Go(func() {
				if stop := p.prompted(p, in.SessionID); stop != "" {
					p.result(f.ID, fmt.Sprintf(`{"stopReason":%q}`, stop))
				}
			})
		}
	}
}

// line sends a line as it is.
func (p *process) line(text string) { _, _ = io.WriteString(p.Conn, text+"\n") } // who has gone does not see it

func (p *process) result(id any, result string) {
	p.line(fmt.Sprintf(`{"jsonrpc":"2.0","id":%v,"result":%s}`, id, result))
}

func (p *process) update(session, update string) {
	p.line(fmt.Sprintf(`{"jsonrpc":"2.0","method":"session/update","params":{"sessionId":%q,"update":%s}}`, session, update))
}

func (p *process) say(session, text string) {
	quoted, _ := json.Marshal(text)
	p.update(session, fmt.Sprintf(`{"sessionUpdate":"agent_message_chunk","content":{"type":"text","text":%s}}`, quoted))
}

// permission asks, and returns the answer's outcome.
func (p *process) permission(session string) string {
	p.line(fmt.Sprintf(`{"jsonrpc":"2.0","id":"ask-1","method":"session/request_permission","params":{"sessionId":%q,"toolCall":{"toolCallId":"t","title":"bash","rawInput":{"command":"make"}},"options":[{"optionId":"o1","name":"Allow once","kind":"allow_once"},{"optionId":"o2","name":"Never","kind":"reject_once"}]}}`, session))
	f := <-p.answers
	if f.ID != "ask-1" {
		return fmt.Sprint("answer to ", f.ID)
	}
	return string(f.Result)
}

func (s *standIn) told() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.prompts...)
}

func (s *standIn) seen(change func(*podapi.Traffic)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.traffic)
}

func newStandIn(t *testing.T, prompted func(*process, string) string) *standIn {
	return &standIn{t: t, socket: filepath.Join(t.TempDir(), "agent.sock"), prompted: prompted}
}

func replace(path string, data []byte) error { return os.WriteFile(path, data, 0o600) }

// driven is a driver with its journal.
type driven struct {
	*acp.Driver
	journal *podapi.Journal
	end     func()
}

// drive starts a driver; stall is short for what waits for it.
func (s *standIn) drive(stall time.Duration) *driven {
	s.t.Helper()
	j := &podapi.Journal{}
	log := slog.New(slog.DiscardHandler)
	d := acp.New(acp.Config{
		Socket: s.socket, Dir: "/workspace/repo", Book: podapi.OpenBook(s.socket+".book", replace, "ann/hello#3@7", "THE-TASK", log),
		Traffic: func() podapi.Traffic { s.mu.Lock(); defer s.mu.Unlock(); return s.traffic },
		Ask:     !s.allowed, Computes: s.computes.Load, Journal: j, Poll: 20 * time.Millisecond, Stall: stall, Silence: stall, Log: log,
	})
	ctx, cancel := context.WithCancel(s.t.Context())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	end := sync.OnceFunc(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			s.t.Error(err)
		}
	})
	s.t.Cleanup(end)
	return &driven{d, j, end}
}

func (d *driven) wait(t *testing.T, what string, ok func(podapi.Summary) bool) podapi.Summary {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		s := d.Summary()
		if ok(s) {
			return s
		}
		if time.Now().After(deadline) {
			t.Fatalf("never %s: %+v\n%s", what, s, d.said())
		}
	}
}

func (d *driven) is(t *testing.T, want podapi.State) podapi.Summary {
	t.Helper()
	return d.wait(t, string(want), func(s podapi.Summary) bool { return s.State == want })
}

// said is the journal.
func (d *driven) said() string {
	var b strings.Builder
	events, _ := d.journal.After(0)
	for _, e := range events {
		fmt.Fprintf(&b, "%s: %s\n", e.Type, e.Text)
	}
	return b.String()
}

const long = 30 * time.Second

func TestATurnIsToldWhole(t *testing.T) {
	s := newStandIn(t, func(p *process, id string) string {
		p.update(id, `{"sessionUpdate":"plan","entries":[{"content":"read","priority":"high","status":"completed"},{"content":"write","priority":"high","status":"in_progress"}]}`)
		p.update(id, `{"sessionUpdate":"agent_thought_chunk","content":{"type":"text","text":"hm, "}}`)
		p.update(id, `{"sessionUpdate":"agent_thought_chunk","content":{"type":"text","text":"hm"}}`)
		p.update(id, `{"sessionUpdate":"tool_call","toolCallId":"t1","title":"bash","status":"pending","rawInput":{"command":"make check"}}`)
		p.update(id, `{"sessionUpdate":"tool_call_update","toolCallId":"t1","status":"completed","content":[{"type":"content","content":{"type":"text","text":"all good"}}]}`)
		p.update(id, `{"sessionUpdate":"something_new","x":1}`)
		p.update("another session", `{"sessionUpdate":"agent_message_chunk","content":{"type":"text","text":"not mine"}}`)
		p.say(id, "I did ")
		p.say(id, "it.")
		return "end_turn"
	})
	s.listen()
	d := s.drive(long)
	sum := d.is(t, podapi.Done)
	if sum.Message != "I did it." || sum.Session != "s1" || len(sum.Todo) != 2 || sum.Todo[1] != (podapi.Todo{Text: "write", Status: "in_progress"}) {
		t.Errorf("%+v", sum)
	}
	if got := d.said(); !strings.HasPrefix(got, "state: ready\nstate: working\n") {
		t.Errorf("the journal begins %.100q", got)
	}
	want := "todo: completed: read\nin_progress: write\nthought: hm, hm\ntool: bash make check\ntool: all good\ntext: I did it.\nstate: done\n"
	if got := d.said(); !strings.HasSuffix(got, want) {
		t.Errorf("the journal is\n%swant\n%s", got, want)
	}
	if got := s.told(); len(got) != 1 || got[0] != "THE-TASK" {
		t.Errorf("told %q", got)
	}
	// A message is another turn, in the same process and session.
	if err := d.Send(t.Context(), "more"); err != nil {
		t.Fatal(err)
	}
	if got := d.Summary().State; got == podapi.Done {
		t.Error("done, with a message that waits")
	}
	d.wait(t, "done with more", func(sum podapi.Summary) bool { return sum.State == podapi.Done && len(s.told()) == 2 })
	if got := s.told(); got[1] != "more" || s.started != 1 {
		t.Errorf("told %q in %d processes", got, s.started)
	}
}

func TestAnEndThatTheModelGainsaysIsNone(t *testing.T) {
	s := newStandIn(t, func(*process, string) string { return "end_turn" })
	s.traffic.InFlight = 1
	s.listen()
	d := s.drive(long)
	d.is(t, podapi.Working)
	time.Sleep(2 * time.Second)
	if got := d.Summary().State; got != podapi.Working {
		t.Errorf("with a request under way: %s", got)
	}
	s.seen(func(t *podapi.Traffic) { t.InFlight = 0 })
	d.is(t, podapi.Done)
}

func TestHowTurnsEnd(t *testing.T) {
	for name, tt := range map[string]struct {
		stop    string
		traffic podapi.Traffic
		odd     func(*process, frame) bool
		want    podapi.State
		cause   podapi.Cause
		say     string
	}{
		"by itself":            {stop: "end_turn", want: podapi.Done},
		"refused by the model": {stop: "refusal", want: podapi.Failed, cause: podapi.CauseRefused},
		"at a limit":           {stop: "max_turn_requests", want: podapi.Failed, cause: podapi.CauseError, say: "max_turn_requests"},
		"with an end that says nothing of the key": {
			stop: "end_turn", traffic: podapi.Traffic{LastStatus: 401, LastError: "the model answered 401", Failures: 1}, want: podapi.Failed, cause: podapi.CauseRefused, say: "answered 401",
		},
		"without budget":                        {stop: "end_turn", traffic: podapi.Traffic{Spent: "$5 of $5 is spent"}, want: podapi.Asking, cause: podapi.CauseBudget, say: "$5 of $5"},
		"with an error":                         {odd: refuse("session/prompt", -32603, "it broke"), want: podapi.Failed, cause: podapi.CauseError, say: "it broke (-32603)"},
		"before it begins, for want of a login": {odd: refuse("session/new", -32000, "Authentication required"), want: podapi.Failed, cause: podapi.CauseError, say: "DEVAIPOD_TOKEN"},
		"with another version of the protocol": {odd: func(p *process, f frame) bool {
			if f.Method == "initialize" {
				p.result(f.ID, `{"protocolVersion":2}`)
			}
			return f.Method == "initialize"
		}, want: podapi.Failed, cause: podapi.CauseError, say: "speaks version 2"},
		"with nonsense for an answer": {odd: func(p *process, f frame) bool {
			if f.Method == "session/prompt" {
				p.result(f.ID, `[[1]]`)
			}
			return f.Method == "session/prompt"
		}, want: podapi.Failed, cause: podapi.CauseError},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newStandIn(t, func(*process, string) string { return tt.stop })
			s.traffic, s.odd = tt.traffic, tt.odd
			s.listen()
			d := s.drive(long)
			sum := d.is(t, tt.want)
			if sum.Cause != tt.cause || !strings.Contains(sum.Error+sum.Question, tt.say) {
				t.Errorf("%+v", sum)
			}
			time.Sleep(100 * time.Millisecond) // and it stays so
			if now := d.Summary(); now.State != tt.want || len(s.told()) > 1 {
				t.Errorf("then %+v, told %q", now, s.told())
			}
		})
	}
}

func refuse(method string, code int, text string) func(*process, frame) bool {
	return func(p *process, f frame) bool {
		if f.Method == method {
			p.line(fmt.Sprintf(`{"jsonrpc":"2.0","id":%v,"error":{"code":%d,"message":%q,"data":{"x":[1]}}}`, f.ID, code, text))
		}
		return f.Method == method
	}
}

func TestABudgetThatIsThereAgainIsGoneOnWith(t *testing.T) {
	s := newStandIn(t, func(*process, string) string { return "end_turn" })
	s.traffic.Spent = "$5 of $5 is spent"
	s.listen()
	d := s.drive(long)
	d.is(t, podapi.Asking)
	s.seen(func(t *podapi.Traffic) { t.Spent = "" })
	d.is(t, podapi.Done)
	if got := s.told(); len(got) != 2 || !strings.Contains(got[1], "has been raised") {
		t.Errorf("told %q", got)
	}
}

func TestAPermissionIsAskedForAndTheAnswerGoesBack(t *testing.T) {
	for name, tt := range map[string]struct{ answer, want, then string }{
		"by name":      {"allow once.", "o1", ""},
		"by number":    {" 1 ", "o1", ""},
		"by id":        {"o2", "o2", ""},
		"with a no":    {"never", "o2", ""},
		"in own words": {"no, use ninja", "o2", "no, use ninja"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := make(chan string, 1)
			s := newStandIn(t, nil)
			s.prompted = func(p *process, id string) string {
				if len(s.told()) == 1 {
					got <- p.permission(id)
				}
				return "end_turn"
			}
			s.listen()
			d := s.drive(400 * time.Millisecond) // a person may think for longer
			sum := d.is(t, podapi.Asking)
			if sum.Cause != podapi.CausePermission || sum.Question != "May it do this: bash make?" || len(sum.Choices) != 2 || sum.Choices[0] != (podapi.Choice{ID: "o1", Name: "Allow once"}) {
				t.Errorf("%+v", sum)
			}
			if err := d.Note(t.Context(), "2"); err != nil { // which answers nothing
				t.Fatal(err)
			}
			time.Sleep(600 * time.Millisecond)
			if err := d.Send(t.Context(), tt.answer); err != nil {
				t.Fatal(err)
			}
			if outcome := <-got; !strings.Contains(outcome, fmt.Sprintf(`"optionId":%q`, tt.want)) || !strings.Contains(outcome, `"selected"`) {
				t.Errorf("the agent was answered %s", outcome)
			}
			d.is(t, podapi.Done)
			if said := d.said(); strings.Count(said, "state: done") != 1 {
				t.Errorf("done more than once:\n%s", said)
			}
			want := []string{"THE-TASK", "2"}
			if tt.then != "" {
				want = append(want, tt.then)
			}
			if told := s.told(); !slices.Equal(told, want) {
				t.Errorf("told %q, want %q", told, want)
			}
		})
	}
}

func TestWhatAnAgentWantsIsAllowedUnlessPeopleAreToBeAsked(t *testing.T) {
	got := make(chan string, 1)
	s := newStandIn(t, func(p *process, id string) string {
		got <- p.permission(id)
		return "end_turn"
	})
	s.allowed = true
	s.listen()
	d := s.drive(long)
	if outcome := <-got; !strings.Contains(outcome, `"optionId":"o1"`) {
		t.Errorf("the agent was answered %s", outcome)
	}
	d.is(t, podapi.Done)
	if said := d.said(); strings.Contains(said, "asking") || !strings.Contains(said, "tool: allowed: bash make\n") {
		t.Error(said)
	}
}

func TestAPersonEndsATurn(t *testing.T) {
	s := newStandIn(t, func(p *process, id string) string {
		if out := p.permission(id); !strings.Contains(out, "cancelled") {
			p.t.Errorf("answered %s", out)
		}
		<-p.cancelled
		return "cancelled"
	})
	s.listen()
	d := s.drive(long)
	d.is(t, podapi.Asking)
	if err := d.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if sum := d.is(t, podapi.Failed); !strings.Contains(sum.Error, "by a person") || s.started != 1 {
		t.Errorf("%+v, %d processes", sum, s.started)
	}
}

func TestAStallIsNudgedOnceAndThenTold(t *testing.T) {
	for name, obeys := range map[string]bool{"of an agent that ends its turn": true, "of one that does not": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newStandIn(t, func(p *process, id string) string {
				p.say(id, "at the tool")
				<-p.cancelled
				if obeys {
					return "cancelled"
				}
				return ""
			})
			s.loads = true
			s.listen()
			d := s.drive(time.Second)
			sum := d.wait(t, "given up", func(sum podapi.Summary) bool { return sum.State == podapi.Failed })
			told := s.told()
			if sum.Cause != podapi.CauseStalled && obeys || len(told) != 2 {
				t.Errorf("%+v, told %q", sum, told)
			}
			if want := map[bool]string{true: "no progress", false: "interrupted"}[obeys]; !strings.Contains(told[1], want) {
				t.Errorf("told %q", told)
			}
		})
	}
}

// What computes is no stall, though it says nothing.
func TestAnAgentThatComputesIsNotStalled(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	s := newStandIn(t, func(*process, string) string {
		<-release
		return "end_turn"
	})
	s.listen()
	d := s.drive(time.Second)
	d.is(t, podapi.Working)
	for range 30 {
		time.Sleep(100 * time.Millisecond)
		s.computes.Add(1)
	}
	close(release)
	d.is(t, podapi.Done)
	if told := s.told(); len(told) != 1 {
		t.Errorf("told %q", told)
	}
}

// killed is what the end of its process is, in the middle of a turn.
func TestAnAgentThatIsKilledGoesOnOnce(t *testing.T) {
	for name, loads := range map[string]bool{"in its session": true, "in another": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newStandIn(t, nil)
			s.loads = loads
			s.prompted = func(p *process, id string) string {
				switch len(s.told()) {
				case 1, 3, 4:
					_, _ = io.WriteString(p.Conn, `{"jsonrpc":"2.0","id":3,"resu`) // half a line
					_ = p.Close()
					return ""
				}
				p.say(id, "done")
				return "end_turn"
			}
			s.listen()
			d := s.drive(long)
			sum := d.is(t, podapi.Done)
			told := s.told()
			if len(told) != 2 || !strings.Contains(told[1], "interrupted") || strings.Contains(told[1], "THE-TASK") == loads {
				t.Errorf("told %q", told)
			}
			if loads && (len(s.loaded) != 1 || s.loaded[0] != "s1") || sum.Message != "done" || strings.Contains(d.said(), "of old") {
				t.Errorf("loaded %q, %+v\n%s", s.loaded, sum, d.said())
			}
			// Killed again each time: told, and not tried without end.
			if err := d.Send(t.Context(), "more"); err != nil {
				t.Fatal(err)
			}
			if sum := d.is(t, podapi.Failed); sum.Cause != podapi.CauseInterrupted || len(s.told()) != 4 {
				t.Errorf("%+v, told %q", sum, s.told())
			}
		})
	}
}

func TestAControlThatWasStartedAgainGoesOn(t *testing.T) {
	s := newStandIn(t, nil)
	s.loads = true
	hold := make(chan struct{})
	s.prompted = func(p *process, id string) string {
		if len(s.told()) == 1 {
			<-hold
		}
		p.say(id, "finished")
		return "end_turn"
	}
	s.listen()
	d := s.drive(long)
	d.wait(t, "at work", func(podapi.Summary) bool { return len(s.told()) == 1 })
	if err := d.Send(t.Context(), "and this"); err != nil { // it waits for the turn's end
		t.Fatal(err)
	}
	d.end()
	close(hold)
	d = s.drive(long)
	d.wait(t, "done", func(sum podapi.Summary) bool { return sum.State == podapi.Done && len(s.told()) == 3 })
	if told := s.told(); !strings.Contains(told[1], "interrupted") || told[2] != "and this" {
		t.Errorf("told %q", told)
	}
	d.end()
	// One that has nothing to do is told of, and not started.
	before := s.started
	d = s.drive(long)
	if sum := d.Summary(); sum.State != podapi.Done || sum.Message != "finished" {
		t.Errorf("%+v", sum)
	}
	time.Sleep(200 * time.Millisecond)
	if s.started != before {
		t.Error("the agent was started for nothing")
	}
	// The same task under another name (a new label) is a new one.
	log := slog.New(slog.DiscardHandler)
	if p := podapi.OpenBook(s.socket+".book", replace, "ann/hello#3@8", "OTHER", log).Page(); p.Session != "" || len(p.Waiting) != 1 || p.Waiting[0] != "OTHER" {
		t.Errorf("%+v", p)
	}
}

func TestAnAgentThatCannotBeSpokenToIsTold(t *testing.T) {
	t.Run("nobody is there", func(t *testing.T) {
		t.Parallel()
		s := newStandIn(t, nil)
		if sum := s.drive(300*time.Millisecond).is(t, podapi.Failed); sum.Cause != podapi.CauseSilent || !strings.Contains(sum.Error, "did not start") {
			t.Errorf("%+v", sum)
		}
	})
	t.Run("it never answers", func(t *testing.T) {
		t.Parallel()
		s := newStandIn(t, nil)
		s.odd = func(*process, frame) bool { return true }
		s.listen()
		if sum := s.drive(500*time.Millisecond).is(t, podapi.Failed); sum.Cause != podapi.CauseSilent {
			t.Errorf("%+v", sum)
		}
	})
	t.Run("it ends at once", func(t *testing.T) {
		t.Parallel()
		s := newStandIn(t, nil)
		s.odd = func(p *process, _ frame) bool { p.line("usage: agent --help"); _ = p.Close(); return true }
		s.listen()
		d := s.drive(long)
		if sum := d.is(t, podapi.Failed); sum.Cause != podapi.CauseError || !strings.Contains(sum.Error, "ended 5 times") || !strings.Contains(d.said(), "usage: agent") {
			t.Errorf("%+v", sum)
		}
		started := s.started
		time.Sleep(300 * time.Millisecond)
		if s.started != started {
			t.Error("it is started without end")
		}
	})
}

func TestWhatNoAgentShouldSendIsEndured(t *testing.T) {
	huge := strings.Repeat("x", 9<<20)
	s := newStandIn(t, func(p *process, id string) string {
		for _, line := range []string{
			"Loading credentials…", "\x00\xff\xfe", "{", "[]", `{"jsonrpc":"2.0"}`, `{"id":77,"result":{}}`, strings.Repeat("[", 20_000), `{"id":{"a":1},"result":1}`,
			`{"method":"session/update","params":7}`, `{"method":"session/update","params":{"sessionId":"s1","update":{"sessionUpdate":"plan","entries":7}}}`,
			`{"method":"no/such/notification"}`, `{"jsonrpc":"2.0","method":"session/update","params":{"sessionId":"s1","update":"` + huge + `"}}`,
		} {
			p.line(line)
		}
		// What it asks for that is not offered is refused, and it goes on.
		for i, method := range []string{"fs/read_text_file", "fs/write_text_file", "terminal/create", "no/such/thing", "session/request_permission"} {
			p.line(fmt.Sprintf(`{"jsonrpc":"2.0","id":"r%d","method":%q,"params":{"sessionId":"s1","path":"/etc/shadow"}}`, i, method))
			if f := <-p.answers; f.ID != fmt.Sprint("r", i) || len(f.Error) == 0 {
				p.t.Errorf("%s was answered %+v", method, f)
			}
		}
		p.say(id, "\x1b[2J<script>still here")
		return "end_turn"
	})
	s.listen()
	d := s.drive(long)
	if sum := d.is(t, podapi.Done); !strings.Contains(sum.Message, "still here") || s.started != 1 {
		t.Errorf("%+v, %d processes", sum, s.started)
	}
	if got := d.said(); strings.Count(got, "is no message") != 5 || len(got) > 20_000 {
		t.Errorf("%d bytes: %.2000s", len(got), got)
	}
}

func TestAFloodIsEndured(t *testing.T) {
	const updates = 20_000 // as fast as it can, which is more than 1,000 a second
	s := newStandIn(t, func(p *process, id string) string {
		out := bufio.NewWriter(p.Conn)
		for i := range updates {
			fmt.Fprintf(out, `{"jsonrpc":"2.0","method":"session/update","params":{"sessionId":%q,"update":{"sessionUpdate":"agent_message_chunk","content":{"type":"text","text":"%d, "}}}}`+"\n", id, i)
		}
		// Permissions without end: what is too many is refused at once.
		for i := range 100 {
			fmt.Fprintf(out, `{"jsonrpc":"2.0","id":%d,"method":"session/request_permission","params":{"sessionId":%q,"toolCall":{"toolCallId":"t"},"options":[{"optionId":"o","name":"n","kind":"allow_once"}]}}`+"\n", i, id)
		}
		_ = out.Flush()
		for range 100 - 16 {
			<-p.answers
		}
		return "end_turn"
	})
	s.listen()
	d := s.drive(long)
	start := time.Now()
	sum := d.is(t, podapi.Done)
	if took := time.Since(start); took > 25*time.Second || len(sum.Message) > 40_000 {
		t.Errorf("it took %s, %d bytes", took, len(sum.Message))
	}
	if !strings.Contains(d.said(), fmt.Sprintf("%d, ", updates-1)) {
		t.Error("the end of the text is lost")
	}
}

func TestAnAgentThatDoesNotReadHoldsNobodyUp(t *testing.T) {
	s := newStandIn(t, nil)
	s.odd = func(p *process, f frame) bool {
		if f.Method == "session/prompt" {
			// It asks without end and reads no answer.
			for i := range 1_000_000 {
				if _, err := fmt.Fprintf(p.Conn, `{"jsonrpc":"2.0","id":%d,"method":"no/such/%s"}`+"\n", i, strings.Repeat("x", 1000)); err != nil {
					break
				}
			}
			return true
		}
		return false
	}
	s.listen()
	d := s.drive(500 * time.Millisecond)
	d.is(t, podapi.Working)
	start := time.Now()
	d.is(t, podapi.Failed)
	if err := d.Send(t.Context(), "hello"); err != nil {
		t.Error(err)
	}
	if took := time.Since(start); took > 60*time.Second {
		t.Errorf("it took %s", took)
	}
}
