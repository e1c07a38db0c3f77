package reconcile

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// People also start an agent by assigning the bot to an issue, or by mentioning it in a
// comment or in the text that they open an issue with. The loop puts the trigger label
// on for them, with the service's account, and the label stands for what called from
// then on. Whose word it is, is worked out again from the forge, whenever that label is
// to start something: a label of ours that nobody called for starts nothing.

// A Call is how somebody called the bot to an issue.
type Call struct {
	ID       int64 // of its event, which are numbered like those of labels; 0 for the issue's text
	User     string
	At       time.Time
	Assigned bool
	Word     string // behind a mention
}

// Calls are how people called since the last event of a trigger label, the oldest first.
type Calls struct {
	All   []Call
	First bool   // there was no event of one
	By    string // who took one off last, "" for nobody
}

// Caller is what the loop needs of a [Forge] to see them.
type Caller interface {
	// Calls lists how people called since a trigger label was put on or taken off
	// last. There are none while one is on.
	Calls(ctx context.Context, k Key) (Calls, error)
	// Called lists open issues that may call and changed at since or later, by the
	// forge's clock.
	Called(ctx context.Context, since time.Time) ([]Issue, error)
	// Stands tells whether the comment of a mention is there, unchanged, and written here by
	// whom it bears the name of.
	Stands(ctx context.Context, k Key, c Call) (bool, error)
	// PutLabel puts the trigger label on, that of an agent where it has a name.
	PutLabel(ctx context.Context, k Key, agent string) error
}

// callsFor is how long a call counts on an issue that has changed since.
const callsFor = 24 * time.Hour

// called is the newest call by somebody who may push, of those that there are. The
// issue's own text is one, where it has never been labeled.
func (l *Loop) called(ctx context.Context, i Issue, calls []Call, first bool) (Call, bool, error) {
	calls = slices.Clone(calls)
	if first && i.Calls {
		calls = slices.Insert(calls, 0, Call{User: i.Author, At: i.Created})
	}
	may := map[string]bool{}
	for _, c := range slices.Backward(calls) {
		if l.isOurs(c.User) {
			continue
		}
		if _, asked := may[c.User]; !asked {
			can, err := l.trusts(ctx, i.Key, c.User)
			if err != nil {
				return Call{}, false, err
			}
			may[c.User] = can
		}
		if !may[c.User] {
			continue
		}
		if c.ID == 0 || c.Assigned {
			return c, true, nil
		}
		if stands, err := l.cfg.Forge.Stands(ctx, i.Key, c); err != nil || stands {
			return c, stands, err
		}
	}
	return Call{}, false, nil
}

// answer puts the label on an issue that somebody called the bot to. What changed after
// the call is found out as it is after a label; on an issue that has gone on for long
// without anybody looking, the call is over.
func (l *Loop) answer(ctx context.Context, i Issue) (labeled bool, err error) {
	if !i.Open {
		return false, nil
	}
	calls, err := l.cfg.Forge.Calls(ctx, i.Key)
	if err != nil {
		return false, fmt.Errorf("asking who called on %s: %w", i.Key, err)
	}
	call, ok, err := l.called(ctx, i, calls.All, calls.First)
	if err != nil || !ok || i.Updated.Sub(call.At) > callsFor || call.ID == 0 && changedAfter(i.Updated, Trigger{At: call.At}) {
		return false, err
	}
	agent := ""
	if slices.Contains(l.cfg.Agents, call.Word) {
		agent = call.Word
	}
	ctx = l.because(ctx, Act{What: "label", Who: call.User, Rule: mayPush, Done: call.words()})
	labeled, err = l.write(ctx, i, func() error { return l.cfg.Forge.PutLabel(ctx, i.Key, agent) })
	if err != nil {
		return false, fmt.Errorf("putting the label on %s, as %s asked: %w", i.Key, call.User, err)
	}
	if labeled {
		l.Kick(i.Key)
	}
	return labeled, nil
}

// words tell of a call.
func (c Call) words() string {
	switch {
	case c.Assigned:
		return fmt.Sprintf("assigned the bot (event %d)", c.ID)
	case c.ID == 0:
		return "mentioned the bot in the issue's text"
	}
	return fmt.Sprintf("mentioned the bot in comment %d", c.ID)
}

// cause finds whose word a label of ours is, and from when. It stays ours where nobody
// called for it, and so starts nothing.
func (l *Loop) cause(ctx context.Context, i Issue, tr Trigger) (Trigger, error) {
	if !l.isOurs(tr.User) {
		return tr, nil
	}
	kept, err := l.cfg.Pods.Kept(i.Key)
	if err != nil {
		return tr, err
	}
	if kept != nil && kept.Trigger.ID == tr.ID {
		return kept.Trigger, nil
	}
	call, ok, err := l.called(ctx, i, tr.Calls, tr.First)
	if ok {
		tr.User, tr.At = call.User, call.At
	}
	return tr, err
}

// unlabeler is who took the label off an issue, for the log of acts; "" when that is not known.
func (l *Loop) unlabeler(ctx context.Context, i Issue) string {
	if !i.Open {
		return ""
	}
	calls, err := l.cfg.Forge.Calls(ctx, i.Key)
	if err != nil { // the agent stops all the same
		l.cfg.Log.Warn("asking who took the label off", "issue", i.Key.String(), "err", err)
	}
	if l.isOurs(calls.By) { // that is told of by itself
		return ""
	}
	return calls.By
}

// sentAway takes the label off an issue that the bot is not assigned to any more.
func (l *Loop) sentAway(ctx context.Context, i Issue, by string) error {
	ctx = l.because(ctx, Act{What: "unlabel", Who: by, Rule: "the bot was assigned, and is not any more"})
	err := l.cfg.Forge.Unlabel(ctx, i.Key)
	if err == nil {
		l.Kick(i.Key)
	}
	return err
}

// callers are the issues on which somebody may have called, as newly as the feed asks.
func (l *Loop) callers(ctx context.Context, whole bool) ([]Issue, error) {
	since := l.feed.since.Add(-l.cfg.Overlap)
	if whole {
		since = l.cfg.Now().Add(-callsFor)
	}
	found, err := l.cfg.Forge.Called(ctx, since)
	if errors.Is(err, ErrTooMany) {
		l.cfg.Log.Warn("more issues call for the bot than the forge lists; those that change are looked at", "since", since)
		err = nil
	}
	for n := range found {
		found[n].Calls = true
	}
	return found, err
}
