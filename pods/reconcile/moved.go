package reconcile

import (
	"context"
	"fmt"
	"slices"
	"strings"
)

// Somebody else may push to an agent's branch, by force as well. The gate keeps the agent from pushing
// that away (mirror, others.go), and the agent is told: at once while it works, else with the next
// words that are given to it.

// movedPrefix begins the names of such messages.
const movedPrefix = "moved "

// tellMoved tells the agent that its branch is at a head that it has not pushed, once for each.
func (l *Loop) tellMoved(ctx context.Context, pod Pod, k Key, mark, head string) error {
	has, err := l.givenTo(k, pod)
	if err != nil || head == "" || has.own == head {
		return err
	}
	id := movedPrefix + head
	if slices.ContainsFunc(has.all, func(g Given) bool { return g.ID == id && g.Given && g.Trigger == pod.TriggerID }) {
		return nil
	}
	own, err := l.cfg.Pods.Pushed(ctx, pod.Key, pod.Branch, head)
	switch {
	case err != nil:
		return fmt.Errorf("asking who has pushed %s to %s: %w", short(head), pod.Branch, err)
	case own:
		has.own = head
		return nil
	}
	return l.give(ctx, pod, k, Given{ID: id, Mark: mark, Commit: head}, fmt.Sprintf(`Somebody else has pushed to your branch %s: it is at commit %s now, which may not have all that you pushed. What they did stays. Take it over before you go on:

git fetch origin %s
git merge --ff-only FETCH_HEAD

If that can't be done, keep what you have (git stash -u; git branch mine-%s), go to theirs (git reset --hard FETCH_HEAD), and bring back of yours what is still wanted. Do not push with force.
`, pod.Branch, head, pod.Branch, short(head)))
}

// tellsMoved tells whether something that was given to an agent is that its branch was moved.
func (g Given) tellsMoved() bool { return strings.HasPrefix(g.ID, movedPrefix) }
