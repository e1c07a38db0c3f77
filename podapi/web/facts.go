package web

import (
	"context"
	"fmt"
	"strings"
	"time"

	"codeberg.org/devaipod/devaipod/podapi"
)

// A Fact is one thing that people are told of a pod: by its page, and by `devaipod
// status`.
type Fact struct {
	Name  string   `json:"name"`
	Lines []string `json:"lines"` // hostile
	// Top is what a page tells first, Alert what somebody has to look at, Warn what may be
	// lost, Pre what is set out in columns.
	Top, Alert, Warn, Pre bool `json:"-"`
}

// Link is the URL of a fact that is one, "" for others.
func (f Fact) Link() string {
	if len(f.Lines) == 1 && (f.Name == "url" || f.Name == "pull request" || f.Name == "ci") {
		return httpOnly(f.Lines[0])
	}
	return ""
}

// A known is all that is known of a pod.
type known struct {
	Pod
	Summary podapi.Summary
	Silent  string // why there is no summary
	Work    Work
	WorkErr string
}

// know finds out.
func (s *Site) know(ctx context.Context, p Pod) known {
	k := s.hear(ctx, p)
	var err error
	if k.Work, err = s.cfg.Pods.Work(ctx, p.Name); err != nil {
		k.WorkErr = err.Error()
	}
	return k
}

// hear is that without the agent's work, which costs more.
func (s *Site) hear(ctx context.Context, p Pod) known {
	k := known{Pod: p}
	if p.Runs {
		c, err := s.cfg.Pods.Control(p.Name)
		if err == nil {
			k.Summary, err = c.Summary(ctx)
		}
		if err != nil {
			k.Silent = err.Error()
		}
	}
	return k
}

// Brief are the facts of a pod without those of its agent's work, false when there is
// none with that name.
func (s *Site) Brief(ctx context.Context, name string) ([]Fact, bool) {
	p, ok := s.find(name)
	if !ok {
		return nil, false
	}
	return s.hear(ctx, p).Facts(), true
}

// Facts are those of a pod, false when there is none with that name.
func (s *Site) Facts(ctx context.Context, name string) ([]Fact, bool) {
	p, ok := s.find(name)
	if !ok {
		return nil, false
	}
	return s.know(ctx, p).Facts(), true
}

// Facts are what there is to tell, in the order in which it is told.
func (k known) Facts() (out []Fact) {
	add := func(f Fact, lines ...string) {
		for _, line := range lines {
			if strings.TrimSpace(line) != "" {
				f.Lines = append(f.Lines, line)
			}
		}
		if len(f.Lines) > 0 {
			out = append(out, f)
		}
	}
	k.addState(add)
	add(Fact{Name: "issue"}, strings.TrimSpace(k.Issue+"  "+k.Title))
	add(Fact{Name: "url"}, k.URL)
	add(Fact{Name: "pull request"}, k.PullRequest)
	add(Fact{Name: "ci"}, k.CI)
	add(Fact{Name: "branch"}, k.Branch)
	add(Fact{Name: "agent"}, k.Agent)
	add(Fact{Name: "pod"}, k.Container)
	add(Fact{Name: "ssh"}, k.SSH)
	add(Fact{Name: "labeled by"}, k.Labeler)
	add(Fact{Name: "started"}, when(k.Started))
	add(Fact{Name: "checked"}, k.Checked)
	add(Fact{Name: "approved"}, k.Approved)
	add(Fact{Name: "used"}, k.Used)
	if k.Open {
		add(Fact{Name: "network", Warn: true}, "open: every public host")
	}
	k.addWork(add)
	var blocked, setups []string
	for _, b := range k.Blocked {
		line := b.Host + "  " + b.Why
		if b.Allow != "" {
			line += "  (/allow " + b.Allow + ")"
		}
		blocked = append(blocked, line)
	}
	for _, st := range k.Summary.Setups {
		setups = append(setups, strings.TrimSuffix(st.Container+": "+st.Stage+": "+st.Error, ": "))
	}
	add(Fact{Name: "blocked"}, blocked...)
	add(Fact{Name: "setup"}, setups...)
	return out
}

// addState adds how the agent is.
func (k known) addState(add func(Fact, ...string)) {
	state := k.State
	if k.Place > 0 {
		state += fmt.Sprintf(" (number %d)", k.Place)
	}
	add(Fact{Name: "state", Top: true}, state)
	if k.Summary.State != "" {
		add(Fact{Name: "agent is", Top: true}, strings.TrimSpace(string(k.Summary.State)+" for "+since(k.Summary.Since)))
	} else {
		add(Fact{Name: "agent is", Top: true}, k.Doing)
	}
	if k.Silent != "" {
		add(Fact{Name: "silent", Top: true, Alert: true}, "the pod does not answer: "+k.Silent)
	}
	add(Fact{Name: "trouble", Top: true, Alert: true}, k.Trouble)
	if !strings.Contains(k.Why, k.Summary.Question) {
		add(Fact{Name: "asks", Top: true, Alert: true}, k.Summary.Question)
	}
	if !strings.Contains(k.Why, k.Summary.Error) {
		add(Fact{Name: "error", Top: true, Alert: true}, k.Summary.Error)
	}
	add(Fact{Name: "why", Top: true, Alert: k.State == "asking" || k.State == "failed"}, k.Why)
	var choices []string
	for i, c := range k.Pod.Choices {
		choices = append(choices, fmt.Sprintf("%d. %s", i+1, c))
	}
	add(Fact{Name: "choice", Top: true}, choices...)
	add(Fact{Name: "note", Top: true}, k.Note)
	add(Fact{Name: "version", Top: true, Alert: true}, k.Summary.Version)
	now := k.Summary.Activity
	if now == "" {
		now = k.Activity
	}
	add(Fact{Name: "now"}, now)
	var todo []string
	for _, t := range k.Summary.Todo {
		todo = append(todo, t.Text+" ("+t.Status+")")
	}
	add(Fact{Name: "todo"}, todo...)
	add(Fact{Name: "last words"}, k.Summary.Message)
}

// addWork adds how the agent's work stands.
func (k known) addWork(add func(Fact, ...string)) {
	w := k.Work
	if k.WorkErr != "" {
		add(Fact{Name: "git", Warn: true}, "can't be told: "+k.WorkErr)
	}
	if w.At.IsZero() {
		return
	}
	add(Fact{Name: "git"}, w.git())
	add(Fact{Name: "not pushed", Warn: true}, w.Unpushed...)
	add(Fact{Name: "not committed", Warn: true}, w.Uncommitted...)
	add(Fact{Name: "saved"}, when(w.At)+" ("+since(w.At)+" ago)")
	add(Fact{Name: "not saved", Warn: true}, w.NotSaved...)
	add(Fact{Name: "changes", Pre: true}, strings.TrimRight(w.Stat, "\n"))
}

// git tells in a line how the clone stands.
func (w Work) git() string {
	var parts []string
	for _, part := range []struct {
		n    int
		what string
	}{{w.Ahead, "ahead"}, {w.Behind, "behind"}, {len(w.Unpushed), "not pushed"}, {len(w.Uncommitted), "files not committed"}} {
		if part.n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", part.n, part.what))
		}
	}
	if len(parts) == 0 {
		return "nothing that is not on the forge"
	}
	return strings.Join(parts, ", ")
}

func when(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.Local().Format(time.DateTime)
}
