package reconcile

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// An Act is something that the loop did on somebody's word, or why it has the forge do
// something, for the log of such acts. Its texts may be hostile.
type Act struct {
	What string // one word: start, push, …
	Key  Key
	Who  string // the accounts that asked, with ", " between them; "" for nobody in particular
	Rule string // what allowed or forbade it
	Done string
	// Result is in words.
	Result string
	// Once says that the same act, in all its words, is seen to again and again, also by
	// the next process, and is one.
	Once bool
}

// mayPush is the rule S1, by which people's words count.
const mayPush = "may push to the repository"

// because is for what others see: it says why it is done.
func (l *Loop) because(ctx context.Context, a Act) context.Context {
	if l.cfg.Because == nil {
		return ctx
	}
	return l.cfg.Because(ctx, a)
}

// acted tells of an act. Its error, that the act can't be kept, is for what must not
// go on then: what can't be undone.
func (l *Loop) acted(a Act) error {
	if l.cfg.Acted == nil {
		return nil
	}
	return l.cfg.Acted(a)
}

// note tells of an act that goes on whether it can be kept or not, and of how it ended.
// What is only put off is not told.
func (l *Loop) note(a Act, err error) {
	switch {
	case errors.Is(err, ErrLater):
		return
	case err != nil:
		a.Result, a.Once = "failed: "+firstLine(err.Error()), true
	case a.Result == "":
		a.Result = "done"
	}
	_ = l.acted(a) // who keeps it says so
}

// startOf is the start of a task's pod.
func startOf(k Key, t Task) Act {
	return Act{What: "start", Key: k, Who: t.Trigger.User, Rule: mayPush,
		Done: fmt.Sprintf("label event %d, text %s, branch %s from %s", t.Trigger.ID, t.TextHash, t.Branch, t.Base)}
}

// starting tells of a start before it is made.
func (l *Loop) starting(k Key, t Task) {
	a := startOf(k, t)
	a.Result, a.Once = "begins", true
	l.note(a, nil)
}

// ordersTaken tells of the orders of a comment. They are read again and again.
func (l *Loop) ordersTaken(k Key, c Comment, budget, allow []string, retry bool) {
	var what []string
	for _, amount := range budget {
		what = append(what, "/budget "+amount)
	}
	for _, host := range allow {
		what = append(what, "/allow "+host)
	}
	if retry {
		what = append(what, "/retry")
	}
	l.note(Act{What: "order", Key: k, Who: c.Author, Rule: mayPush, Done: fmt.Sprintf("comment %d: %s", c.ID, strings.Join(what, "; ")), Result: "taken", Once: true}, nil)
}
