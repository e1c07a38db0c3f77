package command_test

import (
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
	"sync/atomic"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/podapi"
	"codeberg.org/devaipod/devaipod/podapi/command"
	"codeberg.org/devaipod/devaipod/podapi/command/wire"
)

// A stand-in for the shim, whose runs are as a test says; the real one runs real
// programs in pods/shim and cmd/devaipod-pod.
type standIn struct {
	computes atomic.Int64

	mu      sync.Mutex
	run     wire.Run
	output  string
	texts   []string
	ends    int // DELETEs
	traffic podapi.Traffic
	answer  func(http.ResponseWriter) // in place of a run's state
	began   func(s *standIn)          // how a run goes; it is called with the lock held
}

func (s *standIn) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch r.Method {
	case http.MethodPut:
		b, _ := io.ReadAll(r.Body)
		s.texts = append(s.texts, string(b))
		s.run, s.output = wire.Run{ID: strings.TrimPrefix(r.URL.Path, "/run/"), Running: true}, ""
		s.began(s)
	case http.MethodDelete:
		s.ends++
		s.run.Running = false
		s.run.Code = 143
	default:
		if s.answer != nil {
			s.answer(w)
			return
		}
		var after int
		_, _ = fmt.Sscan(r.URL.Query().Get("after"), &after)
		run := s.run
		run.Total = int64(len(s.output))
		after = min(after, len(s.output))
		run.Output = []byte(s.output[after:min(len(s.output), after+wire.MaxOutput)])
		run.Next = int64(after + len(run.Output))
		_ = json.NewEncoder(w).Encode(run)
	}
}

func (s *standIn) set(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

// ended is a run that ends at once.
func ended(code int, output string) func(*standIn) {
	return func(s *standIn) { s.run.Running, s.run.Code, s.output = false, code, output }
}

type driven struct {
	*command.Driver
	t       *testing.T
	journal *podapi.Journal
	end     func()
}

func listen(t *testing.T, s *standIn) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "agent.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(s)
	server.Listener = l
	server.Start()
	t.Cleanup(server.Close)
	return socket
}

func drive(t *testing.T, s *standIn, socket string, stall time.Duration) *driven {
	t.Helper()
	j, log := &podapi.Journal{}, slog.New(slog.DiscardHandler)
	d := command.New(command.Config{
		Socket: socket, Journal: j, Poll: 10 * time.Millisecond, Stall: stall, Silence: stall, Log: log,
		Book:    podapi.OpenBook(socket+".book", func(path string, b []byte) error { return os.WriteFile(path, b, 0o600) }, "ann/hello#3@7", "THE-TASK", log),
		Traffic: func() podapi.Traffic { s.mu.Lock(); defer s.mu.Unlock(); return s.traffic }, Computes: s.computes.Load,
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	end := sync.OnceFunc(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	t.Cleanup(end)
	return &driven{d, t, j, end}
}

func (d *driven) is(want podapi.State) podapi.Summary {
	d.t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		s := d.Summary()
		if s.State == want {
			return s
		}
		if time.Now().After(end) {
			d.t.Fatalf("never %s: %+v", want, s)
		}
	}
}

func (d *driven) said() (lines []string) {
	events, _ := d.journal.After(0)
	for _, e := range events {
		lines = append(lines, e.Type+": "+e.Text)
	}
	return lines
}

const long = 20 * time.Second

func TestAProgramThatEndsWellIsDone(t *testing.T) {
	s := &standIn{began: ended(0, "one\r\ntwo\n\nthree \xff")}
	d := drive(t, s, listen(t, s), long)
	if sum := d.is(podapi.Done); sum.Message != "one\ntwo\nthree \uFFFD" {
		t.Errorf("%+v", sum)
	}
	if got := strings.Join(d.said(), "|"); got != "state: ready|state: working|text: one|text: two|text: three \uFFFD|state: done" {
		t.Error(got)
	}
	s.set(func() { s.began = ended(3, "no\n") })
	if err := d.Send(t.Context(), "more"); err != nil {
		t.Fatal(err)
	}
	if sum := d.is(podapi.Failed); !strings.Contains(sum.Error, "exit code 3") || !strings.Contains(sum.Error, "no") {
		t.Errorf("%+v", sum)
	}
	if len(s.texts) != 2 || s.texts[0] != "THE-TASK" || !strings.HasSuffix(s.texts[1], "more") || !strings.Contains(s.texts[1], "THE-TASK") {
		t.Errorf("told %q", s.texts)
	}
}

func TestItIsNotDoneWhileAMessageWaits(t *testing.T) {
	s := &standIn{began: func(*standIn) {}}
	d := drive(t, s, listen(t, s), long)
	d.is(podapi.Working)
	if err := d.Send(t.Context(), "more"); err != nil {
		t.Fatal(err)
	}
	s.set(func() { s.began = ended(0, "two\n"); ended(0, "one\n")(s) })
	if sum := d.is(podapi.Done); sum.Message != "two" {
		t.Errorf("%+v", sum)
	}
	if got := strings.Join(d.said(), "|"); strings.Count(got, "state: done") != 1 {
		t.Error(got)
	}
}

func TestHowItFails(t *testing.T) {
	for name, tt := range map[string]struct {
		began   func(*standIn)
		traffic podapi.Traffic
		want    podapi.State
		cause   podapi.Cause
		say     string
	}{
		"it can't be started": {func(s *standIn) { s.run.Running, s.run.Error = false, "no such file" }, podapi.Traffic{}, podapi.Failed, podapi.CauseError, "no such file"},
		"the model refused":   {ended(1, ""), podapi.Traffic{LastStatus: 401, LastError: "the model answered 401"}, podapi.Failed, podapi.CauseRefused, "answered 401"},
		"there is no budget":  {ended(1, ""), podapi.Traffic{Spent: "$5 of $5 is spent"}, podapi.Asking, podapi.CauseBudget, "$5 of $5"},
	} {
		t.Run(name, func(t *testing.T) {
			s := &standIn{began: tt.began, traffic: tt.traffic}
			d := drive(t, s, listen(t, s), long)
			if sum := d.is(tt.want); sum.Cause != tt.cause || !strings.Contains(sum.Error+sum.Question, tt.say) {
				t.Errorf("%+v", sum)
			}
			if tt.cause == podapi.CauseBudget {
				s.set(func() { s.traffic.Spent, s.began = "", ended(0, "") })
				d.is(podapi.Done)
			}
		})
	}
}

func TestAControlThatWasStartedAgainFindsTheRun(t *testing.T) {
	s := &standIn{began: func(s *standIn) { s.output = "at work\n" }}
	socket := listen(t, s)
	d := drive(t, s, socket, long)
	for d.is(podapi.Working).Activity != "at work" {
		time.Sleep(5 * time.Millisecond)
	}
	d.end()
	s.set(func() { ended(0, "at work\nfinished\n")(s) })
	d = drive(t, s, socket, long)
	if sum := d.is(podapi.Done); !strings.HasSuffix(sum.Message, "finished") || len(s.texts) != 1 {
		t.Errorf("%+v, told %q", sum, s.texts)
	}
	d.end()
	s.set(func() { s.run = wire.Run{} }) // its container was stopped and started
	d = drive(t, s, socket, long)
	if sum := d.Summary(); sum.State != podapi.Done {
		t.Errorf("%+v", sum)
	}
	time.Sleep(100 * time.Millisecond)
	if len(s.texts) != 1 {
		t.Errorf("it was run again: %q", s.texts)
	}
}

func TestARunThatEndsWithItsContainerIsBegunAgainOnce(t *testing.T) {
	s := &standIn{began: func(*standIn) {}}
	d := drive(t, s, listen(t, s), long)
	for n := range 2 {
		for began := false; !began; time.Sleep(5 * time.Millisecond) {
			s.set(func() { began = len(s.texts) == n+1 && s.run.ID != "" })
		}
		time.Sleep(100 * time.Millisecond) // some looks
		s.set(func() { s.run = wire.Run{} })
	}
	if sum := d.is(podapi.Failed); sum.Cause != podapi.CauseInterrupted || len(s.texts) != 2 {
		t.Errorf("%+v, told %q", sum, s.texts)
	}
}

func TestAStallIsBegunAgainOnceAndThenTold(t *testing.T) {
	s := &standIn{began: func(*standIn) {}}
	d := drive(t, s, listen(t, s), 300*time.Millisecond)
	if sum := d.is(podapi.Failed); sum.Cause != podapi.CauseStalled || len(s.texts) != 2 || s.ends != 2 {
		t.Errorf("%+v, told %q, ended %d times", sum, s.texts, s.ends)
	}
}

// What computes is no stall, though it says nothing.
func TestARunThatComputesIsNotStalled(t *testing.T) {
	t.Parallel()
	s := &standIn{began: func(*standIn) {}}
	d := drive(t, s, listen(t, s), time.Second)
	d.is(podapi.Working)
	for range 25 {
		time.Sleep(100 * time.Millisecond)
		s.computes.Add(1)
	}
	s.mu.Lock()
	texts, ends := len(s.texts), s.ends
	s.mu.Unlock()
	if texts != 1 || ends != 0 {
		t.Errorf("begun %d times, ended %d times", texts, ends)
	}
	d.is(podapi.Failed) // once it computes no more
}

func TestAPersonEndsARun(t *testing.T) {
	s := &standIn{began: func(*standIn) {}}
	d := drive(t, s, listen(t, s), long)
	d.is(podapi.Working)
	if err := d.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if sum := d.is(podapi.Failed); !strings.Contains(sum.Error, "by a person") || s.ends != 1 {
		t.Errorf("%+v", sum)
	}
}

// What answers in the agent's container may be anything.
func TestAShimThatLies(t *testing.T) {
	for name, answer := range map[string]func(http.ResponseWriter){
		"of another shape":  func(w http.ResponseWriter) { fmt.Fprint(w, `{"id":[]}`) },
		"without an end":    func(w http.ResponseWriter) { fmt.Fprint(w, strings.Repeat(" ", 8<<20)+"{}") },
		"refuses":           func(w http.ResponseWriter) { http.Error(w, "no", http.StatusTeapot) },
		"leads elsewhere":   func(w http.ResponseWriter) { w.Header().Set("Location", "http://127.0.0.1:1/"); w.WriteHeader(302) },
		"says nothing more": func(http.ResponseWriter) {},
	} {
		t.Run(name, func(t *testing.T) {
			s := &standIn{answer: answer}
			d := drive(t, s, listen(t, s), 300*time.Millisecond)
			if sum := d.is(podapi.Failed); sum.Cause != podapi.CauseSilent {
				t.Errorf("%+v", sum)
			}
		})
	}
	t.Run("about its output", func(t *testing.T) {
		s := &standIn{}
		n := 0
		s.began = func(s *standIn) {
			s.answer = func(w http.ResponseWriter) {
				n++
				fmt.Fprintf(w, `{"id":%q,"running":%v,"next":%d,"total":-5,"output":"YQ=="}`, s.run.ID, n < 20, 1<<40-n)
			}
		}
		d := drive(t, s, listen(t, s), long)
		if sum := d.is(podapi.Done); len(sum.Message) > 100 {
			t.Errorf("%+v", sum)
		}
	})
}
