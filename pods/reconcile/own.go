package reconcile

import (
	"context"
	"fmt"
	"time"
)

// Our own writes on an issue move its time of update, by which pin tells that
// its text was changed after the label. What follows keeps the two apart.

// own is what our last writes on an issue, with nobody else's between them, have
// done to its time of update.
type own struct {
	before, after time.Time
	text          string // of the issue, the same before and after
}

// maxAgain is how often in a row a write is put off because its issue has changed
// meanwhile.
const maxAgain = 3

// write makes changes of ours on an issue. When somebody has changed the issue
// since it was read, which may be seconds ago, it is looked at anew instead, and
// done is false.
func (l *Loop) write(ctx context.Context, i Issue, writes func() error) (done bool, err error) {
	before, err := l.cfg.Forge.Issue(ctx, i.Key)
	if err != nil {
		return false, fmt.Errorf("looking at %s again: %w", i.Key, err)
	}
	if before.print() != i.print() && l.again[i.Key] < maxAgain {
		l.again[i.Key]++
		l.Kick(i.Key)
		return false, nil
	}
	delete(l.again, i.Key)
	if err := writes(); err != nil {
		return false, err
	}
	after, err := l.cfg.Forge.Issue(ctx, i.Key)
	if err != nil {
		return true, fmt.Errorf("looking at %s again: %w", i.Key, err)
	}
	last, known := l.own[i.Key]
	delete(l.own, i.Key)
	if hash := (text{issue: before}).hash(); hash == (text{issue: after}).hash() {
		o := own{before: before.Updated, after: after.Updated, text: hash}
		if known && last.text == hash && last.after.Equal(before.Updated) {
			o.before = last.before
		}
		l.own[i.Key] = o
	}
	return true, nil
}

// ours tells whether an issue's time of update is our own doing: the text is what
// it was before we wrote, and that had not changed since the label or was before
// it.
func (l *Loop) ours(i Issue, tr Trigger) bool {
	o, known := l.own[i.Key]
	return known && i.Updated.Equal(o.after) && (text{issue: i}).hash() == o.text && !changedAfter(o.before, tr)
}

// changedAfter tells whether a time of update is later than a label event. The
// forge keeps whole seconds, and takes the two times one after the other.
func changedAfter(updated time.Time, tr Trigger) bool {
	return updated.After(tr.At.Add(time.Second))
}
