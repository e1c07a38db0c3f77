package opencode_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf8"

	"codeberg.org/devaipod/devaipod/podapi"
	"codeberg.org/devaipod/devaipod/podapi/opencode"
)

// stream is what opencode's event stream has in a turn, as it was seen.
const stream = `data: {"id":"evt_1","type":"server.connected","properties":{}}

data: {"id":"evt_2","type":"session.status","properties":{"sessionID":"ses_1","status":{"type":"busy"}}}

data: {"id":"evt_3","type":"message.part.updated","properties":{"part":{"id":"p","type":"tool","tool":"bash","state":{"status":"running","input":{"command":"make"}}}}}

data: {"id":"evt_4","type":"session.status","properties":{"sessionID":"ses_1","status":{"type":"idle"}}}

data: {"id":"evt_5","type":"session.idle","properties":{"sessionID":"ses_1"}}

`

// Whatever of the events gets through, the state is what opencode answers when asked.
func TestAnEventStreamThatIsCutAtEachByte(t *testing.T) {
	t.Parallel()
	s := newStub()
	s.poll = 2 * time.Millisecond
	s.sessions = []map[string]any{{"id": "ses_1", "title": "ann/hello#3@7"}}
	s.set(busyAt(""), busy, "[]", 0)
	var n atomic.Int64
	s.events = func(w http.ResponseWriter) {
		cut := n.Add(1) - 1
		_, _ = io.WriteString(w, stream[:min(int(cut), len(stream))]) // a client that went does not matter
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler) // the connection ends without an end
	}
	d := run(t, s)
	asks := false
	for int(n.Load()) <= len(stream) {
		if asks = !asks; asks {
			s.set(asking, busy, question("que_1", colors), 0)
			wait(t, d, "asking", state(podapi.Asking))
		} else {
			s.set(busyAt(fmt.Sprint(n.Load())), busy, "[]", 0)
			wait(t, d, "working", state(podapi.Working))
		}
	}
	s.set(ended("did it"), "{}", "[]", 0)
	wait(t, d, "done", state(podapi.Done))
	if len(s.prompts) != 0 {
		t.Errorf("prompts %q", s.prompts)
	}
}

// ended is a turn that has ended with a text.
func ended(text string) string {
	quoted, _ := json.Marshal(text)
	return `[` + userTurn + `,{"info":{"id":"m2","role":"assistant","finish":"stop","time":{"completed":1}},"parts":[{"id":"p","type":"text","text":` + string(quoted) + `}]}]`
}

// An agent that says that it is idle while its model is asked is at work, also when
// each answer falls between two looks.
func TestAnAgentThatLiesAboutBeingIdle(t *testing.T) {
	t.Parallel()
	s := newStub()
	s.sessions = []map[string]any{{"id": "ses_1", "title": "ann/hello#3@7"}}
	s.set(ended("all is done"), "{}", "[]", 0)
	d := run(t, s)
	for end := time.Now().Add(3 * podapi.Settle); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		s.mu.Lock()
		s.traffic.Received++
		s.mu.Unlock()
		if sum := d.Summary(); sum.State == podapi.Done {
			t.Fatalf("%+v", sum)
		}
	}
	wait(t, d, "done", state(podapi.Done))
	s.set(ended("all is done"), "{}", "[]", 1)
	wait(t, d, "seen at work", state(podapi.Working))
	s.set(ended("all is done"), "{}", "[]", 0)
	wait(t, d, "done", state(podapi.Done))
}

func TestHugeAndBinaryMessages(t *testing.T) {
	t.Parallel()
	s := newStub()
	s.sessions = []map[string]any{{"id": "ses_1", "title": "ann/hello#3@7"}}
	junk := "\x00\x1b[31m\u202e\U0001F600"
	s.set(strings.Replace(ended(strings.Repeat(junk, 400_000)), `\u0000`, "\xff\xfe\\u0000", 10), "{}", "[]", 0)
	d := run(t, s)
	sum := wait(t, d, "done", state(podapi.Done))
	b, err := json.Marshal(sum)
	if err != nil || len(b) > 512<<10 || !utf8.ValidString(sum.Message) || !strings.Contains(sum.Message, "\x1b[31m") {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	events, _ := s.journal.After(0)
	for _, ev := range events {
		if len(ev.Text) > 9<<10 || !utf8.ValidString(ev.Text) {
			t.Errorf("an event of %d bytes", len(ev.Text))
		}
	}
	said := strings.Repeat(junk, 50_000)
	say(t, d, said)
	var got struct{ Parts []struct{ Text string } }
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := json.Unmarshal([]byte(s.prompts[0]), &got); err != nil || got.Parts[0].Text != said {
		t.Errorf("%d bytes came as %d, %v", len(said), len(s.prompts[0]), err)
	}
}

// Another version is told of by name, once, and the session goes on with it: a tools
// volume that was renewed brings it at a restart.
func TestAnotherVersionOfOpencodeIsTold(t *testing.T) {
	t.Parallel()
	s := newStub()
	s.sessions = []map[string]any{{"id": "ses_1", "title": "ann/hello#3@7"}}
	s.set(busyAt(""), busy, "[]", 0)
	d := run(t, s)
	if sum := wait(t, d, "at work", state(podapi.Working)); sum.Version != "" {
		t.Errorf("the version that was tested is told: %+v", sum)
	}
	for version, want := range map[string]string{"1.0.0": "opencode 1.0.0 is", "9.9.9": "opencode 9.9.9 is", "": "of a version that it does not tell"} {
		s.mu.Lock()
		s.version, s.status = version, "not up" // it starts again
		s.mu.Unlock()
		wait(t, d, "away", func(sum podapi.Summary) bool { return sum.Activity == "opencode does not answer" })
		s.set(busyAt("x"), busy, "[]", 0)
		wait(t, d, "told", func(sum podapi.Summary) bool {
			return sum.Activity == "bash make" && strings.Contains(sum.Version, "not the version that devaipod was tested with ("+opencode.Tested+")") && strings.Contains(sum.Version, want)
		})
	}
	s.mu.Lock()
	s.version, s.status = opencode.Tested, "not up"
	s.mu.Unlock()
	wait(t, d, "away", func(sum podapi.Summary) bool { return sum.Activity == "opencode does not answer" })
	s.set(busyAt("xx"), busy, "[]", 0)
	wait(t, d, "as tested again", func(sum podapi.Summary) bool { return sum.Version == "" && sum.Activity == "bash make" })
	told := 0
	events, _ := s.journal.After(0)
	for _, ev := range events {
		if strings.Contains(ev.Text, "not the version") {
			told++
		}
	}
	if told != 3 || len(s.prompts) != 0 || len(s.sessions) != 1 {
		t.Errorf("told %d times, prompts %q, %d sessions", told, s.prompts, len(s.sessions))
	}
}

// A version whose API is another fails by name instead of starting for ever.
func TestAnAPIThatIsAnotherFailsByName(t *testing.T) {
	for path, want := range map[string]string{
		"/session":               "it does not know GET /session",
		"/session/status":        "it does not know GET /session/status",
		"/session/ses_1/message": "it does not know GET /session/ses_1/message",
	} {
		t.Run(path, func(t *testing.T) {
			t.Parallel()
			s := newStub()
			s.stall, s.version, s.unknown = 300*time.Millisecond, "9.9.9", path
			d := run(t, s)
			sum := wait(t, d, "failed", state(podapi.Failed))
			if sum.Cause != podapi.CauseError || !strings.Contains(sum.Error, want) || !strings.Contains(sum.Error, "opencode 9.9.9 is not the version") {
				t.Errorf("%+v", sum)
			}
			s.mu.Lock()
			s.unknown = ""
			s.mu.Unlock()
			wait(t, d, "at work, once it answers", state(podapi.Working))
		})
	}
}

func TestTheTestedVersionIsTheImages(t *testing.T) {
	text, err := os.ReadFile("../../compose/images/agent/package.json")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), `"opencode-linux-x64": "`+opencode.Tested+`"`) {
		t.Errorf("the image has another version than %s: %s", opencode.Tested, text)
	}
}
