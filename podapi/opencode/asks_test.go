package opencode_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"codeberg.org/devaipod/devaipod/podapi"
	"codeberg.org/devaipod/devaipod/podapi/opencode"
)

const (
	busy = `{"ses_1":{"type":"busy"}}`
	// asking is a turn that has come to a tool in which it waits.
	asking = `[` + userTurn + `,{"info":{"id":"m2","role":"assistant"},"parts":[{"id":"p","callID":"c","type":"tool","tool":"question","state":{"status":"running"}}]}]`
	tool   = `"tool":{"messageID":"m2","callID":"c"}`
	colors = `{"question":"Which color?","header":"h","options":[{"label":"red","description":"like blood"},{"label":"blue","description":"blue"}]}`
	sizes  = `{"question":"Which sizes?","header":"h","multiple":true,"options":[{"label":"small","description":""},{"label":"large","description":""},{"label":"huge","description":""}]}`
)

// told is a driver of an agent that works on its task.
func told(t *testing.T) (s *stub, d *opencode.Driver) {
	t.Helper()
	s = newStub()
	s.sessions = []map[string]any{{"id": "ses_1", "title": "ann/hello#3@7"}}
	s.set(busyAt(""), busy, "[]", 0)
	d = run(t, s)
	wait(t, d, "at work", state(podapi.Working))
	return s, d
}

func say(t *testing.T, d *opencode.Driver, text string) {
	t.Helper()
	if err := d.Send(t.Context(), text); err != nil {
		t.Fatal(err)
	}
}

func question(id string, questions ...string) string {
	return fmt.Sprintf(`[{"id":%q,"sessionID":"ses_1",%s,"questions":[%s]}]`, id, tool, strings.Join(questions, ","))
}

func TestAQuestionIsAskedWithItsChoicesAndTheAnswerGoesBack(t *testing.T) {
	for name, tt := range map[string]struct{ question, answer, want string }{
		"by number":               {colors, "2", `["blue"]`},
		"by name":                 {colors, "Red.", `["red"]`},
		"in own words":            {colors, "green, or blue", `["green, or blue"]`},
		"with several":            {sizes, "1, huge", `["small","huge"]`},
		"with several, and words": {sizes, "1, and tiny", `["1, and tiny"]`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, d := told(t)
			s.set(asking, busy, question("que_1", tt.question), 0)
			sum := wait(t, d, "asking", state(podapi.Asking))
			if sum.Cause != podapi.CauseQuestion || sum.Mark == "" || len(sum.Choices) < 2 || !strings.HasPrefix(sum.Question, "Which") {
				t.Errorf("%+v", sum)
			}
			if tt.question == colors && (sum.Choices[0] != podapi.Choice{ID: "red", Name: "red: like blood"} || sum.Choices[1].Name != "blue") {
				t.Errorf("choices %+v", sum.Choices)
			}
			if err := d.Note(t.Context(), "red"); err != nil { // which answers nothing
				t.Fatal(err)
			}
			s.set(asking, busy, s.asked, 0)
			say(t, d, tt.answer)
			wait(t, d, "at work", state(podapi.Working))
			s.mu.Lock()
			defer s.mu.Unlock()
			if want := `/question/que_1/reply {"answers":[` + tt.want + `]}`; len(s.replies) != 1 || s.replies[0] != want || len(s.prompts) != 1 {
				t.Errorf("%q, want %q; prompts %q", s.replies, want, s.prompts)
			}
		})
	}
}

func TestQuestionsThatAreAnsweredTogetherAreAskedOneByOne(t *testing.T) {
	t.Parallel()
	s, d := told(t)
	s.set(asking, busy, question("que_1", colors, sizes), 0)
	first := wait(t, d, "asking", state(podapi.Asking))
	say(t, d, "red")
	second := wait(t, d, "asking the second", func(sum podapi.Summary) bool { return sum.Question != first.Question })
	if first.Mark == second.Mark || second.State != podapi.Asking || len(second.Choices) != 3 {
		t.Errorf("%+v, then %+v", first, second)
	}
	// A reply that fails is none, and can be given again.
	s.mu.Lock()
	s.replyErr = 500
	s.mu.Unlock()
	if err := d.Send(t.Context(), "2"); err == nil {
		t.Error("a reply that failed is taken for one")
	}
	say(t, d, "2,3")
	wait(t, d, "at work", state(podapi.Working))
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.replies) != 1 || !strings.HasSuffix(s.replies[0], `{"answers":[["red"],["large","huge"]]}`) {
		t.Errorf("%q", s.replies)
	}
}

// A control that is started again asks for what was not answered yet.
func TestAnswersOutliveAControl(t *testing.T) {
	for name, tt := range map[string]struct {
		spoil func(file string) error
		want  string
	}{
		"kept":    {func(string) error { return nil }, "Which sizes?"},
		"spoiled": {func(file string) error { return os.WriteFile(file, []byte(`{"id":"que_1","answers":[["r`), 0o600) }, "Which color?"},
		"lost":    {os.Remove, "Which color?"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newStub()
			s.answers = filepath.Join(t.TempDir(), "answers.json")
			s.sessions = []map[string]any{{"id": "ses_1", "title": "ann/hello#3@7"}}
			s.set(asking, busy, question("que_1", colors, sizes), 0)
			var second podapi.Summary
			t.Run("one control", func(t *testing.T) {
				d := run(t, s)
				wait(t, d, "asking", state(podapi.Asking))
				say(t, d, "red")
				second = wait(t, d, "asking the second", func(sum podapi.Summary) bool { return strings.HasPrefix(sum.Question, "Which sizes?") })
			})
			if err := tt.spoil(s.answers); err != nil {
				t.Fatal(err)
			}
			d := run(t, s)
			again := wait(t, d, "asking", state(podapi.Asking))
			if !strings.HasPrefix(again.Question, tt.want) || (again.Mark == second.Mark) != (name == "kept") {
				t.Fatalf("%+v, after %+v", again, second)
			}
			if name != "kept" {
				say(t, d, "red")
			}
			say(t, d, "2,3")
			wait(t, d, "at work", state(podapi.Working))
			s.mu.Lock()
			defer s.mu.Unlock()
			if len(s.replies) != 1 || !strings.HasSuffix(s.replies[0], `{"answers":[["red"],["large","huge"]]}`) {
				t.Errorf("%q", s.replies)
			}
		})
	}
}

func TestAPermissionIsAskedForAndTheAnswerGoesBack(t *testing.T) {
	for name, tt := range map[string]struct{ of, answer, want string }{
		"once":                      {"ses_1", "1", `{"reply":"once"}`},
		"by name":                   {"ses_1", "allow always", `{"reply":"always"}`},
		"by its id":                 {"ses_1", "reject", `{"reply":"reject"}`},
		"in own words":              {"ses_1", "use ninja", `{"message":"use ninja","reply":"reject"}`},
		"of a session for its part": {"ses_2", "once", `{"reply":"once"}`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, d := told(t)
			call := tool
			if tt.of != "ses_1" {
				call = `"tool":{"messageID":"m9","callID":"c"}`
			}
			s.mu.Lock()
			s.messages, s.wanted = asking, fmt.Sprintf(`[{"id":"per_1","sessionID":%q,"permission":"bash","patterns":["make"],"always":["make *"],%s}]`, tt.of, call)
			s.mu.Unlock()
			sum := wait(t, d, "asking", state(podapi.Asking))
			if sum.Cause != podapi.CausePermission || len(sum.Choices) != 3 || !strings.Contains(sum.Question, "bash make?") || !strings.Contains(sum.Question, "make *") {
				t.Errorf("%+v", sum)
			}
			say(t, d, tt.answer)
			wait(t, d, "at work", state(podapi.Working))
			s.mu.Lock()
			defer s.mu.Unlock()
			if len(s.replies) != 1 || s.replies[0] != "/permission/per_1/reply "+tt.want || len(s.prompts) != 0 {
				t.Errorf("%q, prompts %q", s.replies, s.prompts)
			}
		})
	}
}

// What was asked in a call that was broken off, or in a session of somebody else's,
// waits for nobody: it would hold the agent up for ever.
func TestWhatIsAskedForNothingIsNoAsk(t *testing.T) {
	for name, entry := range map[string]string{
		"of a call that has ended": `{"id":"per_1","sessionID":"ses_1","permission":"bash","patterns":["make"],"tool":{"messageID":"m2","callID":"ended"}}`,
		"of an older message":      `{"id":"per_1","sessionID":"ses_1","permission":"bash","patterns":["make"],"tool":{"messageID":"m0","callID":"c"}}`,
		"of somebody else's":       `{"id":"per_1","sessionID":"ses_3","permission":"bash","patterns":["make"],` + tool + `}`,
		"of one that is not there": `{"id":"per_1","sessionID":"ses_4","permission":"bash","patterns":["make"],` + tool + `}`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, d := told(t)
			s.mu.Lock()
			s.wanted = `[` + entry + `]`
			s.messages = `[` + userTurn + `,{"info":{"id":"m2","role":"assistant"},"parts":[{"id":"p0","callID":"ended","type":"tool","tool":"bash","state":{"status":"error"}},{"id":"p","callID":"c","type":"tool","tool":"bash","state":{"status":"running","input":{"command":"next"}}}]}]`
			s.mu.Unlock()
			wait(t, d, "at its next step", func(sum podapi.Summary) bool { return sum.Activity == "bash next" && sum.State == podapi.Working })
			say(t, d, "1")
			s.mu.Lock()
			defer s.mu.Unlock()
			if len(s.replies) != 0 || len(s.prompts) != 1 {
				t.Errorf("replies %q, prompts %q", s.replies, s.prompts)
			}
		})
	}
}
