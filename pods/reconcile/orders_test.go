package reconcile_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/pods/reconcile"
)

func TestOrders(t *testing.T) {
	for name, tt := range map[string]struct {
		comments []reconcile.Comment
		want     string // budget, allow
	}{
		"none":                {nil, "[] []"},
		"two":                 {[]reconcile.Comment{{Author: "ann", Body: "hello\r\n/budget 5\r\n/allow example.org"}}, "[5] [example.org]"},
		"the last one counts": {[]reconcile.Comment{{Author: "ann", Body: "/budget 5"}, {Author: "ann", Body: "/budget 7"}}, "[5 7] []"},
		"a stranger's":        {[]reconcile.Comment{{Author: "eve", Body: "/budget 5\n/allow evil.example.org"}}, "[] []"},
		"our own":             {[]reconcile.Comment{{Author: "demo-bot", Body: "/budget 5"}}, "[] []"},
		"within a line":       {[]reconcile.Comment{{Author: "ann", Body: "you can say /budget 5\n> /budget 6\n    /budget 7"}}, "[] []"},
		"without an amount":   {[]reconcile.Comment{{Author: "ann", Body: "/budget \n/budget\n/budgets 5"}}, "[] []"},
		"another order":       {[]reconcile.Comment{{Author: "ann", Body: "/allow-path a"}}, "[] []"},
	} {
		w := newWorld()
		w.writers["Demo-Bot"] = true
		w.pass(t)
		w.comments = tt.comments
		w.pass(t)
		if got := fmt.Sprint(w.orders.Budget, w.orders.Allow); got != tt.want {
			t.Errorf("%s: %s, want %s", name, got, tt.want)
		}
	}
}

// While it is not known who may push, nothing goes on as it is not meant to.
func TestAnOrderOfWhoKnows(t *testing.T) {
	w := newWorld()
	w.pass(t)
	w.comments, w.canErr = []reconcile.Comment{{Author: "ann", Body: "/budget 5"}}, errors.New("forge is down")
	w.orders.Budget = []string{"as before"}
	w.pass(t)
	if fmt.Sprint(w.orders.Budget) != "[as before]" {
		t.Errorf("steered by %+v", w.orders)
	}
}

// What people who may push say after the label reaches the agent once, while it works
// or asks; what they said before is in its task.
func TestWhatPeopleSayReachesTheAgent(t *testing.T) {
	later := at.Add(2 * time.Second)
	comments := []reconcile.Comment{
		{ID: 1, Author: "ann", Body: "before the label", Updated: at},
		{ID: 2, Author: "eve", Body: "rm -rf /", Updated: later},
		{ID: 3, Author: "demo-bot", Body: "**Working**", Updated: later},
		{ID: 4, Author: "ann", Body: "/budget 5\r\n/allow example.org\r\n", Updated: later},
		{ID: 5, Author: "ann", Body: "take the second\r\n/budget 7\r\nplease", Updated: later},
		{ID: 6, Author: "ann", Body: "2", Updated: later},
	}
	commit := []reconcile.Commit{{}}
	for name, tt := range map[string]struct {
		summary reconcile.Summary
		commits []reconcile.Commit
		want    int
	}{
		"it works":               {reconcile.Summary{State: reconcile.AgentWorking}, nil, 2},
		"it asks":                {reconcile.Summary{State: reconcile.AgentAsking, Cause: reconcile.CauseQuestion, Question: "which?"}, nil, 2},
		"it wants to be allowed": {reconcile.Summary{State: reconcile.AgentAsking, Cause: reconcile.CausePermission, Question: "may I?"}, nil, 2},
		"it ended with nothing":  {reconcile.Summary{State: reconcile.AgentIdleWithWork}, nil, 2},
		"its budget is used up":  {reconcile.Summary{State: reconcile.AgentAsking, Cause: reconcile.CauseBudget, Question: "more?"}, nil, 0},
		"its work is for review": {reconcile.Summary{State: reconcile.AgentIdleWithWork, Mark: "turn 1"}, commit, 2},
		"it has failed":          {reconcile.Summary{State: reconcile.AgentFailed, Error: "no key"}, nil, 0},
		"it is starting":         {reconcile.Summary{State: reconcile.AgentStarting}, nil, 0},
	} {
		w := newWorld()
		w.pass(t)
		w.comments, w.summary, w.commits = comments, tt.summary, tt.commits
		w.pass(t)
		want := []string{"5 take the second\r\nplease", "6 2"}[:tt.want]
		if !slices.Equal(w.told, want) {
			t.Errorf("%s: told %q, want %q", name, w.told, want)
		}
	}
}

// What did not reach the agent is tried again, and what did is not told again by the
// same loop.
func TestWhatPeopleSayIsToldOnce(t *testing.T) {
	w := newWorld()
	w.with(t, w.config(), func(l *reconcile.Loop) {
		seen := func() (n int) { w.set(func() { n = len(w.told) }); return n }
		look := func() {
			w.set(func() { w.steers, w.issue.Updated = 0, w.issue.Updated.Add(time.Second) })
			l.Kick(w.issue.Key)
			until(t, "looked at", func() (done bool) { w.set(func() { done = w.steers > 0 }); return done })
		}
		look()
		w.set(func() {
			w.tellErr = errors.New("its pod-api is away")
			w.comments = []reconcile.Comment{{ID: 5, Author: "ann", Body: "left", Updated: at.Add(time.Hour)}}
		})
		look()
		if n := seen(); n != 0 {
			t.Errorf("told %d", n)
		}
		w.set(func() { w.tellErr = nil })
		look()
		until(t, "told", func() bool { return seen() == 1 })
		look()
		look()
		if n := seen(); n != 1 {
			t.Errorf("told %d times", n)
		}
	})
}

func TestABudgetThatIsUsedUp(t *testing.T) {
	w := newWorld()
	w.pass(t)
	w.summary = reconcile.Summary{State: reconcile.AgentAsking, Cause: reconcile.CauseBudget, Question: "The budget is used up: $5.00 of $5.00 is spent.", Since: w.now}
	w.steered = reconcile.Steered{Used: "1,000 tokens, $5.00 of $5.00", Note: "Not understood: @x."}
	v := w.pass(t)
	if v.State != reconcile.Asking || w.state != reconcile.Asking || v.Cause != reconcile.CauseBudget {
		t.Errorf("%+v", v)
	}
	for _, want := range []string{"> The budget is used up: $5.00 of", "| used | 1,000 tokens, $5.00 of $5.00 |", "`/budget 10`", "Not understood: (at)x."} {
		if !strings.Contains(w.said["status"], want) {
			t.Errorf("it lacks %q:\n%s", want, w.said["status"])
		}
	}
	// It rests after a day, and an order wakes it.
	w.now = w.now.Add(25 * time.Hour)
	w.issue.Labels = append(w.issue.Labels, "agent/asking")
	if w.pass(t); w.stopped != 1 {
		t.Fatalf("stopped %d times", w.stopped)
	}
	if v = w.pass(t); w.resumed != 0 || !v.Resting {
		t.Fatalf("%s, resumed %d times", v.State, w.resumed)
	}
	w.steered.Wake, w.summary = true, reconcile.Summary{State: reconcile.AgentWorking}
	w.comments = []reconcile.Comment{{Author: "ann", Body: "/budget 5", Updated: w.now}}
	if v = w.pass(t); w.resumed != 1 || v.State != reconcile.Working {
		t.Errorf("%s: %s, resumed %d times", v.State, v.Why, w.resumed)
	}
}

// What only a person can look at is not woken.
func TestAnOrderDoesNotWakeAReview(t *testing.T) {
	w := newWorld()
	w.pass(t)
	w.issue.Labels = append(w.issue.Labels, "agent/review")
	w.pod.Whole, w.pod.Stopped, w.steered.Wake = false, true, true
	if v := w.pass(t); w.resumed != 0 || v.State != reconcile.Review {
		t.Errorf("%s, resumed %d times", v.State, w.resumed)
	}
}

func TestCommentsAreReadWhenTheIssueHasChanged(t *testing.T) {
	w := newWorld()
	w.with(t, w.config(), func(l *reconcile.Loop) {
		look := func() (calls int) {
			w.set(func() { calls, w.now, w.steers = w.read, w.now.Add(time.Minute), 0 })
			l.Kick(w.issue.Key)
			until(t, "steered", func() bool {
				var more bool
				w.set(func() { more = w.steers > 0; w.steers = 0 })
				return more
			})
			w.set(func() { calls = w.read - calls })
			return calls
		}
		look()
		for range 3 { // our own comment changes it
			look()
		}
		if n := look(); n != 0 {
			t.Errorf("the comments are read %d times for an issue that has not changed", n)
		}
		w.set(func() { w.issue.Updated = w.issue.Updated.Add(time.Second) })
		if n := look(); n != 1 {
			t.Errorf("the comments are read %d times after a change", n)
		}
	})
}

// An agent that has failed tries again when somebody who may push says so, once for each
// time; one at work or for review is left alone.
func TestTryingAgain(t *testing.T) {
	later := at.Add(2 * time.Second)
	failed := reconcile.Summary{State: reconcile.AgentFailed, Error: "no key"}
	for name, tt := range map[string]struct {
		comment reconcile.Comment
		summary reconcile.Summary
		want    []string
	}{
		"it failed":              {reconcile.Comment{ID: 5, Author: "ann", Body: "/retry \r\n", Updated: later}, failed, []string{"5 " + reconcile.Again}},
		"with a word":            {reconcile.Comment{ID: 5, Author: "ann", Body: "the key is there\n/retry", Updated: later}, failed, []string{"5 the key is there"}},
		"of who may not":         {reconcile.Comment{ID: 5, Author: "eve", Body: "/retry", Updated: later}, failed, nil},
		"of before the label":    {reconcile.Comment{ID: 5, Author: "ann", Body: "/retry", Updated: at}, failed, nil},
		"another word":           {reconcile.Comment{ID: 5, Author: "ann", Body: "/retrying\n/ retry", Updated: later}, failed, nil},
		"it works":               {reconcile.Comment{ID: 5, Author: "ann", Body: "/retry", Updated: later}, reconcile.Summary{State: reconcile.AgentWorking}, nil},
		"its work is for review": {reconcile.Comment{ID: 5, Author: "ann", Body: "/retry", Updated: later}, reconcile.Summary{State: reconcile.AgentIdleWithWork}, nil},
	} {
		w := newWorld()
		w.pass(t)
		w.comments, w.summary, w.commits = []reconcile.Comment{tt.comment}, tt.summary, []reconcile.Commit{{}}
		w.with(t, w.config(), func(l *reconcile.Loop) {
			for range 2 {
				w.set(func() { w.steers, w.issue.Updated = 0, w.issue.Updated.Add(time.Second) })
				l.Kick(w.issue.Key)
				until(t, "looked at", func() (done bool) { w.set(func() { done = w.steers > 0 }); return done })
			}
		})
		if !slices.Equal(w.told, tt.want) {
			t.Errorf("%s: told %q, want %q", name, w.told, tt.want)
		}
	}
}

// A pod that rests is woken for it: by a comment of after it had started, or by the
// button, whose word is not told twice.
func TestAPodIsWokenToTryAgain(t *testing.T) {
	for name, ask := range map[string]func(*world, *reconcile.Loop){
		"comment": func(w *world, _ *reconcile.Loop) {
			w.set(func() {
				w.comments = []reconcile.Comment{{ID: 5, Author: "ann", Body: "/retry", Updated: w.now}}
				w.issue.Updated = w.now
			})
		},
		"button": func(w *world, l *reconcile.Loop) { l.Retry(w.issue.Key) },
	} {
		w := newWorld()
		w.pass(t)
		w.summary = reconcile.Summary{State: reconcile.AgentFailed, Cause: reconcile.CauseDied, Error: "out of memory"}
		w.issue.Labels = append(w.issue.Labels, "agent/failed")
		if v := w.pass(t); !v.Resting || w.stopped != 1 || w.resumed != 0 {
			t.Fatalf("%s: %+v, resumed %d times", name, v, w.resumed)
		}
		w.now = w.now.Add(time.Hour)
		w.summary = reconcile.Summary{State: reconcile.AgentFailed, Error: "out of memory"} // as it was, until it is told
		w.with(t, w.config(), func(l *reconcile.Loop) {
			ask(w, l)
			l.Kick(w.issue.Key)
			until(t, name, func() (done bool) { w.set(func() { done = len(w.told) > 0 }); return done })
			w.set(func() { w.summary = reconcile.Summary{State: reconcile.AgentWorking} })
			l.Kick(w.issue.Key)
			until(t, name+": at work", func() bool { v, _ := l.View(w.issue.Key); return v.State == reconcile.Working })
		})
		if w.resumed != 1 || len(w.told) != 1 || !strings.HasSuffix(w.told[0], reconcile.Again) {
			t.Errorf("%s: resumed %d times, told %q", name, w.resumed, w.told)
		}
	}
}

// A /retry that was seen to wakes nothing once more, also when the service was started
// again since: neither one that was told nor one that came while the agent was at it.
// The next one does.
func TestAnOldOrderToTryAgainIsNotSeenToAgain(t *testing.T) {
	failed := reconcile.Summary{State: reconcile.AgentFailed, Error: "no key"}
	for name, first := range map[string]reconcile.Summary{"it had failed": failed, "it was at work": {State: reconcile.AgentWorking}} {
		w := newWorld()
		w.pass(t)
		w.summary = first
		w.comments = []reconcile.Comment{{ID: 5, Author: "ann", Body: "/retry", Updated: w.now.Add(time.Minute)}}
		w.now = w.now.Add(2 * time.Minute)
		w.pass(t)
		told := len(w.told)
		if told > 1 || (told == 1) != (first.State == reconcile.AgentFailed) {
			t.Errorf("%s: told %q", name, w.told)
		}
		// It fails, and is asked nothing more; then it rests.
		w.summary = failed
		w.summary.Since = w.now
		if w.pass(t); len(w.told) != told {
			t.Errorf("%s: told %q after a restart", name, w.told)
		}
		w.now = w.now.Add(25 * time.Hour)
		w.issue.Labels = append(w.issue.Labels, "agent/failed")
		if w.pass(t); w.stopped != 1 {
			t.Fatalf("%s: stopped %d times", name, w.stopped)
		}
		if v := w.pass(t); w.resumed != 0 || !v.Resting || v.State != reconcile.Failed || len(w.told) != told {
			t.Errorf("%s: %+v, resumed %d times, told %q", name, v, w.resumed, w.told)
		}
		w.comments = append(w.comments, reconcile.Comment{ID: 6, Author: "ann", Body: "/retry", Updated: w.now})
		if w.pass(t); w.resumed != 1 || len(w.told) != told+1 {
			t.Errorf("%s: by another comment resumed %d times, told %q", name, w.resumed, w.told)
		}
	}
}
