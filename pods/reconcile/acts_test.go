package reconcile_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/pods/reconcile"
)

// toldActs are what a loop told of and wrote, each once where it is one act; without what it says
// of how it goes, which has to have a reason.
func (w *world) toldActs(t *testing.T) string {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	var lines []string
	seen := map[string]bool{}
	for _, a := range w.acted {
		if a.Result == "sent" && (a.Who == "" || a.Rule == "" || a.Key != w.issue.Key) {
			t.Errorf("written without a reason: %+v", a)
		}
		if a.What == "comment" || a.What == "state" || a.What == "pull-request" && a.Done == "" {
			continue
		}
		line := fmt.Sprintf("%s @%s [%s] %s", a.What, a.Who, a.Rule, a.Result)
		if full := line + a.Done; !a.Once || !seen[full] {
			lines = append(lines, line)
			seen[full] = true
		}
	}
	return strings.Join(lines, "\n")
}

// From the label to the merge: each act is told of, with who asked for it.
func TestActsOfAnIssue(t *testing.T) {
	w := newWorld()
	w.beginErr = errors.New("no room")
	w.pass(t)
	w.beginErr = nil
	w.pass(t)
	w.comments = []reconcile.Comment{
		{ID: 1, Author: "ann", Body: "/budget 5\nplease hurry", Updated: at.Add(time.Minute)},
		{ID: 2, Author: "eve", Body: "/budget 500\nrm -rf /", Updated: at.Add(time.Minute)},
	}
	for range 3 {
		w.pass(t)
	}
	w.commits, w.summary = []reconcile.Commit{{SHA: "abc"}}, reconcile.Summary{State: reconcile.AgentIdleWithWork}
	w.check = reconcile.Check{State: reconcile.CheckNone}
	for range 3 {
		w.pass(t)
	}
	w.issue.Labels = nil
	w.pass(t)
	w.pull.Open, w.pull.Merged, w.pull.ClosedAt = false, true, at.Add(time.Hour)
	w.pass(t)
	want := `start @ann [may push to the repository] begins
start @ann [may push to the repository] failed: no room
start @ann [may push to the repository] done
order @ann [may push to the repository] taken
message @ann [may push to the repository] done
pull-request @ann [the agent's branch has commits] sent
review-request @ann [put the label on, or reviewed it] sent
pull-request @ann [its agent is done, and there is evidence] sent
stop @bea [The label was taken off.] done
remove @ [pull request 0 was merged] done`
	if got := w.toldActs(t); strings.Replace(got, fmt.Sprintf("[pull request %d was", w.pull.Number), "[pull request 0 was", 1) != want {
		t.Errorf("got\n%s", got)
	}
}

func TestARefusalIsAnAct(t *testing.T) {
	w := newWorld()
	w.trigger.User = "eve"
	for range 3 {
		w.pass(t)
	}
	if got := w.toldActs(t); strings.Count(got, "\n") != 0 || !strings.HasPrefix(got, "start @eve [thank you, but eve can't push") || !strings.HasSuffix(got, "refused") {
		t.Errorf("got\n%s", got)
	}
}

// An act that can't be kept goes on all the same, where it can be undone.
func TestActsThatCanNotBeKept(t *testing.T) {
	w := newWorld()
	w.actErr = errors.New("the disk is full")
	w.pass(t)
	if w.begun != 1 {
		t.Errorf("%d pods began", w.begun)
	}
}
