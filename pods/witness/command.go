package witness

import (
	"encoding/json"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"codeberg.org/devaipod/devaipod/pods/model"
)

// A Command is one that the model asked for. All its texts are of an agent or a
// model: hostile.
type Command struct {
	At      time.Time `json:"at"`   // when the model had asked
	Task    string    `json:"task"` // of the run, as the podfile has it
	ID      string    `json:"id"`   // the call's
	Tool    string    `json:"tool"`
	Command string    `json:"command"`
	Result  *Result   `json:"result,omitempty"` // nil when the gate saw none
}

// A Result is what the agent told the model of a command.
type Result struct {
	At time.Time `json:"at"` // when it first did
	// Exit is the code that it ended with, nil where the text does not tell.
	Exit   *int   `json:"exit,omitempty"`
	Failed bool   `json:"failed,omitempty"` // the agent marked it so
	Tail   string `json:"tail,omitempty"`   // the last lines
}

// Bounds on what is kept of a command.
const (
	maxCommand = 1 << 10 // bytes
	maxTail    = 1 << 10 // bytes
	tailLines  = 10
)

var (
	word     = regexp.MustCompile(`[a-z0-9]+`)
	shells   = []string{"bash", "sh", "shell", "terminal", "exec", "execute", "command", "cmd", "run"}
	exitCode = regexp.MustCompile(`(?i)\b(?:exit(?:ed)?|return)[ _]?(?:with )?(?:code|status)\b["']?\s*[:=]?\s*(-?\d{1,9})\b`)
)

// commandOf is the command that a call runs; ok is false for a call that runs none.
func commandOf(c model.Call) (command string, ok bool) {
	if !slices.ContainsFunc(word.FindAllString(strings.ToLower(c.Tool), -1), func(w string) bool { return slices.Contains(shells, w) }) {
		return "", false
	}
	var args map[string]json.RawMessage
	if json.Unmarshal([]byte(c.Arguments), &args) != nil {
		whole := strings.HasPrefix(strings.TrimSpace(c.Arguments), "{") && len(c.Arguments) < model.MaxArguments
		return clip(c.Arguments, maxCommand), c.Arguments != "" && !whole // a tool that takes bare text, or one that is cut off
	}
	for _, key := range []string{"command", "cmd", "script", "commands", "input"} {
		var one string
		var several []string
		switch {
		case json.Unmarshal(args[key], &one) == nil && one != "":
			return clip(one, maxCommand), true
		case json.Unmarshal(args[key], &several) == nil && len(several) > 0:
			// ["bash", "-lc", "go test"]: the last is what a person would have typed
			if n := len(several); n == 3 && strings.HasPrefix(several[1], "-") && strings.HasSuffix(several[1], "c") {
				return clip(several[2], maxCommand), true
			}
			return clip(strings.Join(several, " "), maxCommand), true
		}
	}
	return "", false
}

// resultOf is what is kept of a result.
func resultOf(r model.Result, at time.Time) *Result {
	out := &Result{At: at, Failed: r.Failed, Tail: tail(r.Text)}
	// Agents tell the code before or behind the output; what is between is the
	// command's own.
	for _, part := range []string{r.Text[:min(len(r.Text), 200)], r.Text[max(0, len(r.Text)-300):]} {
		if m := exitCode.FindStringSubmatch(part); m != nil {
			if n, err := strconv.Atoi(m[1]); err == nil {
				out.Exit = &n
				break
			}
		}
	}
	return out
}

// tail is the last lines of a text.
func tail(s string) string {
	s = strings.ToValidUTF8(strings.TrimSpace(s[max(0, len(s)-maxTail):]), "")
	lines := strings.Split(s, "\n")
	return strings.Join(lines[max(0, len(lines)-tailLines):], "\n")
}

// clip bounds a text, in bytes, and makes it valid UTF-8.
func clip(s string, n int) string {
	if len(s) > n {
		s = s[:n]
		for len(s) > 0 && !utf8.RuneStart(s[len(s)-1]) {
			s = s[:len(s)-1]
		}
		s += "…"
	}
	return strings.ToValidUTF8(s, "")
}
