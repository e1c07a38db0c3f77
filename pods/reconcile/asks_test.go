package reconcile_test

import (
	"strings"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/pods/reconcile"
)

// bells are the comments by which people were told that the agent asks.
func (w *world) bells() (out []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for subject, body := range w.said {
		if strings.HasPrefix(subject, "ask-") {
			out = append(out, body)
		}
	}
	return out
}

func wants(mark string) reconcile.Summary {
	return reconcile.Summary{
		State: reconcile.AgentAsking, Cause: reconcile.CausePermission, Mark: mark,
		Question: "May it do this: make, @bob?", Choices: []string{"Allow once, @carl", "Reject\n> **forged**"},
	}
}

func TestAnAskIsToldWithItsChoicesOnce(t *testing.T) {
	w := newWorld()
	w.pass(t)
	w.summary = wants("per_1")
	v := w.pass(t)
	if v.State != reconcile.Asking || v.Doing != reconcile.AgentAsking || len(v.Choices) != 2 {
		t.Errorf("%+v", v)
	}
	bells := w.bells()
	if len(bells) != 1 || !strings.HasPrefix(bells[0], "@ann\n") || strings.Count(bells[0], "@") != 1 {
		t.Fatalf("told by %q", bells)
	}
	for _, body := range []string{bells[0], w.said["status"]} {
		for _, want := range []string{"\n> 1. Allow once, (at)carl\n", "\n> 2. Reject > **forged**\n", "with a choice's number or name in a comment", "`devaipod send ann/hello#3 "} {
			if !strings.Contains(body, want) {
				t.Errorf("%q lacks %q", body, want)
			}
		}
	}
	w.pass(t) // another loop, as after a restart
	if bells := w.bells(); len(bells) != 1 {
		t.Errorf("one ask is told %d times", len(bells))
	}
	w.summary = wants("per_2") // the same words, and another ask
	w.pass(t)
	if bells := w.bells(); len(bells) != 2 {
		t.Errorf("two asks are told %d times", len(bells))
	}
}

// The loop's own look finds an ask that follows another at once.
func TestAnAskBehindAnotherIsSeen(t *testing.T) {
	w := newWorld()
	w.pass(t)
	w.summary = wants("per_1")
	c := w.config()
	c.Watch = 10 * time.Millisecond
	var changed []reconcile.View
	c.Changed = func(v reconcile.View) { changed = append(changed, v) }
	w.with(t, c, func(*reconcile.Loop) {
		w.set(func() { w.summary = wants("per_2") })
		for end := time.Now().Add(20 * time.Second); len(w.bells()) != 2; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("told by %q", w.bells())
			}
		}
	})
	if len(changed) != 2 || changed[0].Ask == "" || changed[1].Ask == "" || changed[0].Ask == changed[1].Ask {
		t.Errorf("the service is told of %+v", changed)
	}
}

func TestAnAnswerReachesTheAgentAndRingsNoBell(t *testing.T) {
	w := newWorld()
	w.pass(t)
	w.summary = wants("per_1")
	// Said before the loop came to see what was asked.
	w.comments = []reconcile.Comment{{ID: 5, Author: "ann", Body: "1", Updated: at.Add(time.Minute)}, {ID: 6, Author: "eve", Body: "2", Updated: at.Add(time.Minute)}}
	w.pass(t)
	if len(w.told) != 1 || w.told[0] != "5 1" || len(w.bells()) != 0 {
		t.Errorf("the agent was told %q, people by %q", w.told, w.bells())
	}
}

// The answer to what an agent asks in the midst of its work is no review of it, and what is said to one
// that ended without a commit is answered on the pull request that it makes of that.
func TestWhatIsSaidBeforeThePullRequestIsAnsweredOnIt(t *testing.T) {
	for name, tt := range map[string]struct {
		sum  reconcile.Summary
		want string
	}{
		"an answer to it":      {wants("per_1"), ""},
		"a message to it":      {reconcile.Summary{State: reconcile.AgentIdleWithout, Message: "What now?", Mark: "m1"}, "About what ann said:"},
		"words for a question": {reconcile.Summary{State: reconcile.AgentAsking, Cause: reconcile.CauseQuestion, Question: "Why?", Mark: "q1"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld()
			w.pass(t)
			w.summary = tt.sum
			w.comments = []reconcile.Comment{{ID: 5, Author: "ann", Body: "1", Updated: at.Add(time.Minute)}}
			w.pass(t)
			if len(w.told) != 1 || w.text.Title != "" {
				t.Fatalf("the agent was told %q, and its pull request is %+v", w.told, w.text)
			}
			// It is done before anybody looks at what it pushed.
			w.summary = reconcile.Summary{State: reconcile.AgentIdleWithWork}
			w.turn(1, "Done.")
			v := w.pass(t)
			if v.State != reconcile.Review || v.Pull == 0 || w.text.Draft {
				t.Fatalf("%+v, text %+v", v, w.text)
			}
			if said := w.said["answer comment 5"]; (said != "") != (tt.want != "") || !strings.Contains(said, tt.want) {
				t.Errorf("said %q, want %q", said, tt.want)
			}
		})
	}
}

// What is asked may be answered days later, when its pod sleeps; with no budget left that would be in vain.
func TestAnAnswerWakesAPodThatSleeps(t *testing.T) {
	w := newWorld()
	w.pass(t)
	w.summary = wants("per_1")
	w.summary.Since = w.now
	w.pass(t)
	w.now = w.now.Add(25 * time.Hour)
	if v := w.pass(t); !v.Resting || v.State != reconcile.Asking || w.stopped != 1 {
		t.Fatalf("%+v, stopped %d times", v, w.stopped)
	}
	w.comments = []reconcile.Comment{{ID: 6, Author: "eve", Body: "2", Updated: w.now}}
	if w.pass(t); w.resumed != 0 {
		t.Fatal("it was woken by somebody who may not push")
	}
	w.comments = append(w.comments, reconcile.Comment{ID: 7, Author: "ann", Body: "1", Updated: w.now})
	w.steered.Over = true
	if w.pass(t); w.resumed != 0 {
		t.Fatal("it was woken without a budget")
	}
	w.steered.Over = false
	for range 2 { // the agent has asked since long ago, and takes a moment
		if w.pass(t); w.resumed != 1 || w.stopped != 1 || len(w.told) != 1 || w.told[0] != "7 1" {
			t.Fatalf("resumed %d times, stopped %d times, told %q", w.resumed, w.stopped, w.told)
		}
	}
}

func TestWhatIsAskedOtherwiseIsToldToo(t *testing.T) {
	for name, tt := range map[string]struct {
		sum  reconcile.Summary
		want string
		none string
	}{
		"with work":                   {reconcile.Summary{State: reconcile.AgentIdleWithWork, Message: "nothing to do", Mark: "m1"}, "It left work in its clone", ""},
		"without, whatever it says":   {reconcile.Summary{State: reconcile.AgentIdleWithout, Message: "all is pushed", Mark: "m1"}, "without pushing a commit. It said", "left work"},
		"a budget":                    {reconcile.Summary{State: reconcile.AgentAsking, Cause: reconcile.CauseBudget, Question: "The budget is used up."}, "/budget 10", "with a choice"},
		"a question for their words":  {reconcile.Summary{State: reconcile.AgentAsking, Cause: reconcile.CauseQuestion, Question: "Why?"}, "Answer it in a comment, or with", "1."},
		"of a version that is unkown": {reconcile.Summary{State: reconcile.AgentAsking, Cause: reconcile.CauseQuestion, Question: "Why?", Version: "opencode 9"}, "opencode 9.", ""},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld()
			w.pass(t)
			w.summary = tt.sum
			v := w.pass(t)
			bells := w.bells()
			if v.State != reconcile.Asking || v.Doing != tt.sum.State || len(bells) != 1 {
				t.Fatalf("%+v %q", v, bells)
			}
			if said := bells[0] + w.said["status"]; !strings.Contains(said, tt.want) || tt.none != "" && strings.Contains(said, tt.none) {
				t.Errorf("told %q", said)
			}
		})
	}
}

// An agent ends right after its push, which the forge shows a moment later.
func TestNobodyIsCalledBeforeTheForgeCanShowAPush(t *testing.T) {
	for name, pushed := range map[string]bool{"it pushed": true, "it did not": false} {
		t.Run(name, func(t *testing.T) {
			w := newWorld()
			w.pass(t)
			w.summary = reconcile.Summary{State: reconcile.AgentIdleWithWork, Since: w.now, Mark: "m1"}
			if v := w.pass(t); v.State != reconcile.Working || v.Why != "" || len(w.bells()) != 0 {
				t.Fatalf("at once: %+v %q", v, w.bells())
			}
			want, bells := reconcile.Asking, 1
			if pushed {
				w.commits = []reconcile.Commit{{}}
				want, bells = reconcile.Review, 0
			}
			w.now = w.now.Add(6 * time.Second)
			if v := w.pass(t); v.State != want || len(w.bells()) != bells {
				t.Errorf("later: %+v %q", v, w.bells())
			}
		})
	}
}

// A forge that merges has the commits in the base before the pull request is merged; nobody is called
// meanwhile. One whose branch has nothing any more for other reasons is told of.
func TestAPullRequestWithNothingMayBeAboutToBeMerged(t *testing.T) {
	w := doneWorld(t)
	w.pass(t)
	w.commits = nil
	w.now = w.now.Add(10 * time.Second)
	for range 2 {
		if w.pass(t); w.state != reconcile.Review || len(w.bells()) != 0 {
			t.Fatalf("state %s, told %q", w.state, w.bells())
		}
	}
	v := w.with(t, w.config(), func(l *reconcile.Loop) {
		w.set(func() { w.now = w.now.Add(time.Minute) })
		l.Kick(w.issue.Key)
		l.Settle()
	})
	if v.State != reconcile.Asking || len(w.bells()) != 1 {
		t.Errorf("%+v, told %q", v, w.bells())
	}
}

func TestAnAgentThatIsReadyIsStarting(t *testing.T) {
	w := newWorld()
	w.summary = reconcile.Summary{State: reconcile.AgentReady}
	w.pass(t)
	if v := w.pass(t); v.State != reconcile.Starting || v.Doing != reconcile.AgentReady {
		t.Errorf("%+v", v)
	}
}
