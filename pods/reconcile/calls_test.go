package reconcile_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/pods/reconcile"
)

// The world's part of [reconcile.Caller]: the label is put on by the service.

func (w *world) Calls(context.Context, reconcile.Key) (reconcile.Calls, error) {
	if err := w.up(); err != nil {
		return reconcile.Calls{}, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return reconcile.Calls{All: w.summons, First: w.first, By: "bea"}, nil
}

func (w *world) Called(_ context.Context, since time.Time) ([]reconcile.Issue, error) {
	if err := w.up(); err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.summons) == 0 && !w.issue.Calls || w.issue.Updated.Before(since) {
		return nil, nil
	}
	return []reconcile.Issue{w.issue}, nil
}

func (w *world) Stands(_ context.Context, _ reconcile.Key, c reconcile.Call) (bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return !w.changed[c.ID], nil
}

func (w *world) PutLabel(ctx context.Context, _ reconcile.Key, agent string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.labelErr != nil {
		return w.labelErr
	}
	w.wrote(ctx, "label")
	label := "devaipod"
	if agent != "" {
		label += ":" + agent
	}
	if w.putting != nil {
		w.putting()
	}
	w.labeled = append(w.labeled, label)
	w.issue.Labels = append(w.issue.Labels, label)
	w.issue.Updated = w.issue.Updated.Add(time.Minute)
	w.trigger = reconcile.Trigger{ID: w.trigger.ID + 100, User: "demo-service", At: w.issue.Updated, Agent: agent, Calls: w.summons, First: w.first}
	w.summons, w.first = nil, false
	return nil
}

// unlabeled is a world whose issue has no label yet, at minute 1.
func unlabeled(calls ...reconcile.Call) *world {
	w := newWorld()
	w.issue.Labels, w.trigger, w.summons, w.first = nil, reconcile.Trigger{}, calls, true
	w.issue.Created, w.issue.Author = at.Add(-time.Hour), "ann"
	return w
}

// settle lets a new loop look until nothing moves any more.
func (w *world) settle(t *testing.T) {
	t.Helper()
	c := w.config()
	c.Ours, c.Agents = []string{"demo-bot", "demo-service"}, []string{"fast"}
	w.writers["demo-service"] = true
	w.with(t, c, func(l *reconcile.Loop) { w.look(l, w.issue.Key) })
}

func TestWhoCallsStartsAnAgent(t *testing.T) {
	mention := func(id int64, user, word string) reconcile.Call {
		return reconcile.Call{ID: id, User: user, At: at, Word: word}
	}
	for name, tt := range map[string]struct {
		calls   []reconcile.Call
		change  func(w *world)
		labeled string // labels that were put on
		started string // on whose word
	}{
		"nobody":                          {nil, nil, "", ""},
		"a mention":                       {[]reconcile.Call{mention(5, "ann", "please")}, nil, "devaipod", "ann"},
		"a mention with an agent's name":  {[]reconcile.Call{mention(5, "ann", "fast")}, nil, "devaipod:fast", "ann"},
		"an assignment":                   {[]reconcile.Call{{ID: 5, User: "ann", At: at, Assigned: true}}, nil, "devaipod", "ann"},
		"a stranger":                      {[]reconcile.Call{mention(5, "eve", ""), {ID: 6, User: "eve", At: at, Assigned: true}}, nil, "", ""},
		"a stranger after who may":        {[]reconcile.Call{mention(5, "ann", ""), mention(6, "eve", "")}, nil, "devaipod", "ann"},
		"the bot":                         {[]reconcile.Call{mention(5, "demo-bot", ""), mention(6, "Demo-Service", "")}, nil, "", ""},
		"nobody knows who may":            {[]reconcile.Call{mention(5, "ann", "")}, func(w *world) { w.canErr = errors.New("the forge is down") }, "", ""},
		"a comment that was changed":      {[]reconcile.Call{mention(5, "ann", "")}, func(w *world) { w.changed = map[int64]bool{5: true} }, "", ""},
		"the issue's text":                {nil, func(w *world) { w.issue.Calls, w.issue.Created = true, at }, "devaipod", "ann"},
		"a text that was changed":         {nil, func(w *world) { w.issue.Calls, w.issue.Created = true, at.Add(-time.Minute) }, "", ""},
		"a stranger's text":               {nil, func(w *world) { w.issue.Calls, w.issue.Created, w.issue.Author = true, at, "eve" }, "", ""},
		"a text, and it was labeled once": {nil, func(w *world) { w.issue.Calls, w.issue.Created, w.first = true, at, false }, "", ""},
		"a call of long ago":              {[]reconcile.Call{mention(5, "ann", "")}, func(w *world) { w.issue.Updated = at.Add(25 * time.Hour) }, "", ""},
		"a closed issue":                  {[]reconcile.Call{mention(5, "ann", "")}, func(w *world) { w.issue.Open = false }, "", ""},
	} {
		w := unlabeled(tt.calls...)
		if tt.change != nil {
			tt.change(w)
		}
		w.settle(t)
		started := ""
		if w.begun > 0 {
			started = w.task.Trigger.User
		}
		if got := strings.Join(w.labeled, " "); got != tt.labeled || started != tt.started || w.begun > 1 {
			t.Errorf("%s: labeled %q and started %d times by %q, want %q, %q", name, got, w.begun, started, tt.labeled, tt.started)
		}
		if tt.started != "" && !w.task.Trigger.At.Equal(at) {
			t.Errorf("%s: the text is pinned as of %s", name, w.task.Trigger.At)
		}
	}
}

// What was changed after the call is not what was meant: that is told, as after a label.
func TestATextThatChangedAfterTheCall(t *testing.T) {
	w := unlabeled(reconcile.Call{ID: 5, User: "ann", At: at})
	w.issue.Updated = at.Add(time.Minute)
	w.settle(t)
	if w.begun != 0 || !strings.Contains(w.said["refused"], "may have changed after") {
		t.Errorf("started %d times; said %q", w.begun, w.said)
	}
	// While the label is put on, too.
	w = unlabeled(reconcile.Call{ID: 5, User: "ann", At: at})
	c := w.config()
	c.Ours = []string{"demo-bot", "demo-service"}
	w.putting = func() { w.issue.Body = "rm -rf /" }
	w.with(t, c, func(l *reconcile.Loop) {
		w.look(l, w.issue.Key)
	})
	if w.begun != 0 {
		t.Errorf("it started with %q", w.task.Prompt)
	}
}

// A label of ours without a cause starts nothing, nor does one whose cause has gone.
func TestALabelOfOursWithoutACause(t *testing.T) {
	for name, calls := range map[string][]reconcile.Call{
		"without": nil, "a stranger's": {{ID: 5, User: "eve", At: at}}, "our own": {{ID: 5, User: "demo-bot", At: at, Assigned: true}},
	} {
		w := newWorld()
		w.trigger = reconcile.Trigger{ID: 7, User: "demo-service", At: at, Calls: calls}
		w.settle(t)
		if w.begun != 0 || !strings.Contains(w.said["refused"], "own account") {
			t.Errorf("%s: started %d times; said %q", name, w.begun, w.said)
		}
	}
}

// After a stop nothing that was said before starts an agent again; who is called anew does.
func TestAnOldCallStartsNothing(t *testing.T) {
	w := unlabeled(reconcile.Call{ID: 5, User: "ann", At: at, Assigned: true})
	w.settle(t)
	if w.begun != 1 {
		t.Fatalf("started %d times", w.begun)
	}
	w.issue.Labels, w.issue.Updated = nil, w.issue.Updated.Add(time.Second)
	w.settle(t)
	w.settle(t)
	if w.begun != 1 || w.stopped == 0 {
		t.Errorf("started %d times, stopped %d times", w.begun, w.stopped)
	}
	w.issue.Updated = w.issue.Updated.Add(time.Hour)
	w.summons = []reconcile.Call{{ID: 500, User: "ann", At: w.issue.Updated}}
	w.now = w.issue.Updated.Add(time.Minute)
	w.settle(t)
	if w.begun != 2 {
		t.Errorf("started %d times", w.begun)
	}
}

// A bot that is not assigned any more is done: the label goes, and with it the agent.
func TestABotThatIsSentAway(t *testing.T) {
	w := unlabeled(reconcile.Call{ID: 5, User: "ann", At: at, Assigned: true})
	w.settle(t)
	w.trigger.Away = true
	w.settle(t)
	if len(w.issue.Labels) > 0 && slices.Contains(w.issue.Labels, "devaipod") || w.stopped == 0 {
		t.Errorf("labels %q, stopped %d times", w.issue.Labels, w.stopped)
	}
	if got := fmt.Sprint(w.acted); !strings.Contains(got, "unlabel") || !strings.Contains(got, "assigned the bot (event 5)") {
		t.Errorf("acts: %s", got)
	}
}
