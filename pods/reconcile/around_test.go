package reconcile_test

import (
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/pods/reconcile"
)

// look makes the loop look at the world's issue, and waits until it has.
func (w *world) look(l *reconcile.Loop, k reconcile.Key) {
	l.Kick(k)
	l.Settle()
}

// label puts the trigger label on once more, by somebody.
func (w *world) label(user string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.issue.Updated = w.issue.Updated.Add(time.Minute)
	w.trigger = reconcile.Trigger{ID: w.trigger.ID + 2, User: user, At: w.issue.Updated}
	if !slices.Contains(w.issue.Labels, "devaipod") {
		w.issue.Labels = append(w.issue.Labels, "devaipod")
	}
}

func (w *world) unlabel() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.issue.Updated = w.issue.Updated.Add(time.Minute)
	w.trigger.ID++
	w.issue.Labels = slices.DeleteFunc(slices.Clone(w.issue.Labels), func(l string) bool { return l == "devaipod" })
}

func TestEventsInAnyOrderAndNumberAreOne(t *testing.T) {
	w := newWorld()
	w.with(t, w.config(), func(l *reconcile.Loop) {
		var wg sync.WaitGroup
		for range 10 {
			wg.Add(1)
			go func() {
				defer wg.Done()
				for n := range int64(100) {
					l.Kick(reconcile.Key{Owner: "ann", Repo: "hello", Issue: n})
					l.Kick(reconcile.Key{Owner: "nobody", Repo: "nothing", Issue: 3})
				}
			}()
		}
		wg.Wait()
		w.look(l, w.issue.Key)
	})
	if w.begun != 1 || len(w.said) != 1 {
		t.Errorf("begun %d, said %q", w.begun, w.said)
	}
}

func TestAnIssueThatIsGoneStopsItsPodAndIsListed(t *testing.T) {
	w := newWorld()
	c := w.config()
	c.Watch = time.Millisecond
	k := w.issue.Key
	w.with(t, c, func(l *reconcile.Loop) {
		w.set(func() { w.issue.Key = reconcile.Key{} })
		l.Kick(k)
		until(t, "stopped", func() bool { v, _ := l.View(k); return v.State == reconcile.Stopped })
		v, _ := l.View(k)
		if !strings.Contains(v.Why, "devaipod rm ann/hello#3") || v.Title != "Fix it" || !w.pod.Stopped {
			t.Errorf("%+v: %q", v.State, v.Why)
		}
		w.look(l, k)
		w.mu.Lock()
		before := w.calls
		w.mu.Unlock()
		time.Sleep(100 * time.Millisecond) // a hundred looks of watch
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.calls != before {
			t.Errorf("the forge is asked again and again: %d times", w.calls-before)
		}
	})
}

func TestAPodThatIsRemovedIsListedNoMore(t *testing.T) {
	w := newWorld()
	w.with(t, w.config(), func(l *reconcile.Loop) {
		k := w.issue.Key
		w.set(func() { w.issue.Key = reconcile.Key{} })
		for range 20 { // beside a pass that is going on
			l.KickAll()
			l.Kick(k)
		}
		if err := l.Remove(t.Context(), k); err != nil {
			t.Error(err)
		}
		w.look(l, k)
		if v, known := l.View(k); known || w.pod != nil {
			t.Errorf("%+v is still known", v.State)
		}
	})
}

func TestAPodThatRestsIsNotLookedAtAgainAndAgain(t *testing.T) {
	w := newWorld()
	w.pass(t)
	w.summary = reconcile.Summary{State: reconcile.AgentAsking, Question: "?", Since: w.now}
	w.pass(t)
	w.now = w.now.Add(25 * time.Hour)
	w.pass(t)
	w.sumErr = errors.New("it does not run")
	c := w.config()
	c.Watch = time.Millisecond
	w.with(t, c, func(l *reconcile.Loop) {
		w.look(l, w.issue.Key)
		w.mu.Lock()
		before := w.calls
		w.mu.Unlock()
		time.Sleep(100 * time.Millisecond)
		w.mu.Lock()
		defer w.mu.Unlock()
		if v, _ := l.View(w.issue.Key); w.calls != before || !v.Resting {
			t.Errorf("asked %d times, %+v", w.calls-before, v.State)
		}
	})
}

func TestAnArchivedRepositoryIsLeftAloneUntilItIsNot(t *testing.T) {
	w := newWorld()
	w.with(t, w.config(), func(l *reconcile.Loop) {
		w.set(func() { w.archived, w.summary.Activity, w.now = true, "busy", w.now.Add(time.Hour) })
		l.Kick(w.issue.Key)
		until(t, "stopped", func() bool { v, _ := l.View(w.issue.Key); return v.State == reconcile.Stopped })
		v, _ := l.View(w.issue.Key)
		if !w.pod.Stopped || !strings.Contains(v.Why, "archived") || v.Trouble != "" {
			t.Errorf("%+v", v.Why)
		}
		w.look(l, w.issue.Key)
		if w.resumed != 0 {
			t.Error("started again in an archive")
		}
		w.set(func() { w.archived = false })
		l.Kick(w.issue.Key)
		until(t, "back", func() bool { v, _ := l.View(w.issue.Key); return v.State == reconcile.Working })
		if w.resumed != 1 || w.begun != 1 {
			t.Errorf("resumed %d, begun %d", w.resumed, w.begun)
		}
	})
	w = newWorld()
	w.archived = true
	if v := w.pass(t); v.State != reconcile.Refused || w.begun != 0 || !strings.Contains(v.Why, "archived") {
		t.Errorf("a label in an archive: %+v, begun %d", v.Why, w.begun)
	}
}

func TestATaskThatCannotBeKeptIsToldAndStartsWithItsPin(t *testing.T) {
	w := newWorld()
	w.keepErr = errors.New("no space left on device")
	w.with(t, w.config(), func(l *reconcile.Loop) {
		until(t, "told", func() bool {
			w.mu.Lock()
			defer w.mu.Unlock()
			return strings.Contains(w.said["status"], "no space left")
		})
		if w.begun != 0 || w.state != reconcile.Queued {
			t.Errorf("begun %d, %s", w.begun, w.state)
		}
		w.set(func() { w.keepErr, w.issue.Body = nil, "something else" })
		l.Kick(w.issue.Key)
		until(t, "started", func() bool { w.mu.Lock(); defer w.mu.Unlock(); return w.begun == 1 })
	})
	if strings.Contains(w.task.Prompt, "something else") || w.said["refused"] != "" {
		t.Errorf("started with\n%s\nsaid %q", w.task.Prompt, w.said)
	}
}

func TestAPodThatCanNeverStartFailsInTheEnd(t *testing.T) {
	w := newWorld()
	w.beginErr = errors.New("no image")
	w.with(t, w.config(), func(l *reconcile.Loop) {
		until(t, "queued", func() bool { w.mu.Lock(); defer w.mu.Unlock(); return w.state == reconcile.Queued })
		w.set(func() { w.now = w.now.Add(5 * time.Hour) })
		l.Kick(w.issue.Key)
		until(t, "failed", func() bool { w.mu.Lock(); defer w.mu.Unlock(); return w.state == reconcile.Failed })
		if said := w.said["status"]; !strings.Contains(said, "could not be started for 4h") || !strings.Contains(said, "no image") {
			t.Errorf("said %q", said)
		}
		w.set(func() { w.beginErr, w.now = nil, w.now.Add(2*time.Hour) })
		l.KickAll()
		until(t, "working", func() bool { w.mu.Lock(); defer w.mu.Unlock(); return w.state == reconcile.Working })
	})
	if w.said["refused"] != "" {
		t.Errorf("said %q", w.said)
	}
}

func TestALabelPutOnWhileWeWriteIsSeen(t *testing.T) {
	t.Run("while the pod is made", func(t *testing.T) {
		w := newWorld()
		w.during = sync.OnceFunc(func() { w.unlabel(); w.label("ann") })
		w.with(t, w.config(), func(l *reconcile.Loop) {
			until(t, "begun again", func() bool { w.mu.Lock(); defer w.mu.Unlock(); return w.begun == 2 && w.state == reconcile.Working })
		})
		if w.pod.TriggerID != w.trigger.ID || w.said["refused"] != "" {
			t.Errorf("for %d, want %d; said %q", w.pod.TriggerID, w.trigger.ID, w.said)
		}
	})
	t.Run("while the pod is made, within one second of the first", func(t *testing.T) {
		w := newWorld()
		w.during = sync.OnceFunc(func() { w.set(func() { w.trigger.ID += 2 }) })
		w.with(t, w.config(), func(l *reconcile.Loop) {
			until(t, "begun again", func() bool { w.mu.Lock(); defer w.mu.Unlock(); return w.begun == 2 && w.state == reconcile.Working })
		})
		if w.said["refused"] != "" {
			t.Errorf("said %q", w.said)
		}
	})
	t.Run("while the pod is stopped", func(t *testing.T) {
		w := newWorld()
		w.pass(t)
		w.unlabel()
		w.during = sync.OnceFunc(func() { w.label("ann") })
		w.with(t, w.config(), func(l *reconcile.Loop) {
			until(t, "begun again", func() bool { w.mu.Lock(); defer w.mu.Unlock(); return w.begun == 2 && w.state == reconcile.Working })
		})
		if w.said["refused"] != "" {
			t.Errorf("said %q", w.said)
		}
	})
	t.Run("between two writes", func(t *testing.T) {
		w := newWorld()
		w.saying = sync.OnceFunc(func() { w.unlabel(); w.label("ann") })
		w.with(t, w.config(), func(l *reconcile.Loop) {
			until(t, "begun again", func() bool {
				l.Kick(w.issue.Key)
				w.mu.Lock()
				defer w.mu.Unlock()
				return w.begun == 2 && w.state == reconcile.Working
			})
		})
		if w.said["refused"] != "" {
			t.Errorf("said %q", w.said)
		}
	})
	t.Run("between two writes, with a change of the text", func(t *testing.T) {
		w := newWorld()
		w.saying = sync.OnceFunc(func() {
			w.unlabel()
			w.label("ann")
			w.set(func() { w.issue.Body, w.issue.Updated = "something else", w.issue.Updated.Add(time.Second) })
		})
		w.with(t, w.config(), func(l *reconcile.Loop) {
			until(t, "refused", func() bool {
				l.Kick(w.issue.Key)
				w.mu.Lock()
				defer w.mu.Unlock()
				return strings.Contains(w.said["refused"], "changed after")
			})
		})
		if w.begun != 1 {
			t.Errorf("begun %d", w.begun)
		}
	})
	t.Run("before our writes, with a change of the text between", func(t *testing.T) {
		w := newWorld()
		w.beginErr = errors.New("no image")
		w.pass(t)
		w.label("ann") // another label while it waits, and then another text
		w.set(func() { w.issue.Body, w.issue.Updated = "something else", w.issue.Updated.Add(time.Minute) })
		if w.pass(t); !strings.Contains(w.said["refused"], "changed after") {
			t.Errorf("said %q", w.said)
		}
	})
	t.Run("by somebody who may not, over a pod that runs", func(t *testing.T) {
		w := newWorld()
		w.pass(t)
		w.unlabel()
		w.label("stranger")
		if v := w.pass(t); v.State != reconcile.Refused || !w.pod.Stopped || w.state != "" {
			t.Errorf("%s, stopped %t, label %q", v.State, w.pod.Stopped, w.state)
		}
	})
}

func TestALabelThatFlapsEndsInOnePod(t *testing.T) {
	w := newWorld()
	w.with(t, w.config(), func(l *reconcile.Loop) {
		for range 200 {
			w.unlabel()
			l.Kick(w.issue.Key)
			time.Sleep(time.Duration(rand.IntN(2000)) * time.Microsecond)
			w.label("ann")
			l.Kick(w.issue.Key)
			time.Sleep(time.Duration(rand.IntN(2000)) * time.Microsecond)
		}
		until(t, "the last label's pod", func() bool {
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.pod != nil && w.pod.TriggerID == w.trigger.ID && w.pod.Whole && w.state == reconcile.Working
		})
	})
	if w.said["status"] == "" {
		t.Errorf("said %q", w.said)
	}
}

func TestARenamedRepositoryKeepsItsPods(t *testing.T) {
	w := newWorld()
	w.issue.RepoID = 5
	w.pass(t)
	old := w.issue.Key
	w.formerly, w.issue.Key = old, reconcile.Key{Owner: "ann", Repo: "welcome", Issue: 3}
	c := w.config()
	v := w.with(t, c, func(l *reconcile.Loop) {
		w.look(l, old)
		if l.PodKey(w.issue.Key) != old || len(l.Views()) != 1 {
			t.Errorf("%s belongs to %s, %d views", l.PodKey(w.issue.Key), w.issue.Key, len(l.Views()))
		}
		w.unlabel()
		l.Kick(w.issue.Key)
		until(t, "stopped", func() bool { w.mu.Lock(); defer w.mu.Unlock(); return w.pod.Stopped })
		w.label("ann")
		l.Kick(w.issue.Key)
		until(t, "begun anew", func() bool { w.mu.Lock(); defer w.mu.Unlock(); return w.begun == 2 })
		// Also while its pod can't be started.
		w.unlabel()
		l.Kick(w.issue.Key)
		until(t, "stopped", func() bool { w.mu.Lock(); defer w.mu.Unlock(); return w.pod.Stopped })
		w.set(func() { w.beginErr = errors.New("no room") })
		w.label("ann")
		l.Kick(w.issue.Key)
		until(t, "waiting", func() bool { v, _ := l.View(w.issue.Key); return v.State == reconcile.Queued })
		if l.PodKey(w.issue.Key) != old {
			t.Errorf("%s belongs to %s", l.PodKey(w.issue.Key), w.issue.Key)
		}
		w.set(func() { w.beginErr = nil })
		l.Kick(w.issue.Key)
		until(t, "at work", func() bool { v, _ := l.View(w.issue.Key); return v.State == reconcile.Starting })
	})
	if w.task.Key != old || v.State != reconcile.Starting || !strings.Contains(w.task.Prompt, "ann/welcome") {
		t.Errorf("the pod is %s, %+v", w.task.Key, v.State)
	}
}

func TestAnotherRepositoryOfTheSameNameGetsNothingOfTheOld(t *testing.T) {
	w := newWorld()
	w.issue.RepoID = 5
	w.pass(t)
	w.issue.RepoID = 6
	w.unlabel()
	if v := w.pass(t); v.State != reconcile.Stopped || !w.pod.Stopped || w.said["refused"] != "" {
		t.Errorf("without the label: %+v, said %q", v.State, w.said)
	}
	w.label("ann")
	if v := w.pass(t); v.State != reconcile.Refused || !strings.Contains(w.said["refused"], "devaipod rm ann/hello#3") || w.begun != 1 || !w.pod.Stopped {
		t.Errorf("%+v, said %q, begun %d", v.State, w.said, w.begun)
	}
	w.pod = nil // devaipod rm
	w.label("ann")
	if v := w.pass(t); v.State != reconcile.Starting || w.begun != 2 {
		t.Errorf("%+v, begun %d", v.State, w.begun)
	}
}

func TestWhyAPodWasStartedAgainIsToldWhenItFails(t *testing.T) {
	w := newWorld()
	w.with(t, w.config(), func(l *reconcile.Loop) {
		w.set(func() { w.pod.Whole, w.pod.Exit = false, "the agent's container ran out of memory (agent.memory)" })
		l.Kick(w.issue.Key)
		until(t, "started again", func() bool { w.mu.Lock(); defer w.mu.Unlock(); return w.resumed == 1 })
		w.set(func() {
			w.summary = reconcile.Summary{State: reconcile.AgentFailed, Cause: reconcile.CauseInterrupted, Error: "its turn was interrupted"}
		})
		l.Kick(w.issue.Key)
		until(t, "failed", func() bool { w.mu.Lock(); defer w.mu.Unlock(); return w.state == reconcile.Failed })
	})
	if said := w.said["status"]; !strings.Contains(said, "interrupted") || !strings.Contains(said, "ran out of memory (agent.memory)") {
		t.Errorf("said %q", said)
	}
}

func TestTitlesAreOneShortLine(t *testing.T) {
	w := newWorld()
	w.issue.Title = "a\nb\x1b[2J\u202e " + strings.Repeat("é", 300)
	w.commits = []reconcile.Commit{{SHA: strings.Repeat("a", 40), Subject: strings.Repeat("long ", 100)}}
	w.pass(t)
	w.pass(t)
	if title := w.text.Title; strings.ContainsAny(title, "\n\x1b\u202e") || !strings.HasPrefix(title, "a b") || !strings.HasSuffix(title, "…") || len(title) > 210 {
		t.Errorf("the title is %q", title)
	}
	if strings.Contains(w.text.Body, "cut: too long") {
		t.Errorf("the pull request says\n%s", w.text.Body)
	}
}

func TestWhatAPodSaysOfItsSetupIsToldAsItsWords(t *testing.T) {
	w := newWorld()
	w.set(func() {
		w.summary = reconcile.Summary{State: reconcile.AgentStarting, Activity: "setup: onCreateCommand"}
	})
	w.with(t, w.config(), func(l *reconcile.Loop) {
		w.set(func() { w.now = w.now.Add(10 * time.Second) }) // it was told that it starts a moment ago
		l.Kick(w.issue.Key)
		until(t, "what it does", func() bool {
			w.mu.Lock()
			defer w.mu.Unlock()
			return strings.Contains(w.said["status"], "setup: onCreateCommand")
		})
		w.set(func() {
			w.now = w.now.Add(10 * time.Second)
			w.summary = reconcile.Summary{State: reconcile.AgentWorking, Setups: []reconcile.Setup{
				{Container: "agent", Stage: "setup 1", Error: "exit status 1\n\n# A heading " + strings.Repeat("x", 2000)}, {Container: "workspace", Stage: "onCreateCommand"},
			}}
		})
		l.Kick(w.issue.Key)
		until(t, "what went wrong", func() bool {
			w.mu.Lock()
			defer w.mu.Unlock()
			return strings.Contains(w.said["status"], "The setup of the agent's container ended early. It says: exit status 1 (number) A heading x")
		})
	})
	if said := w.said["status"]; strings.Contains(said, "workspace") || len(said) > 1500 || !strings.Contains(said, "agent is working") {
		t.Errorf("said %q", said)
	}
}

// Nobody's event says that something goes on in a pod whose work waits for a review.
func TestAPodThatWaitsForAReviewIsWatched(t *testing.T) {
	for _, idle := range []reconcile.AgentState{reconcile.AgentIdleWithWork, reconcile.AgentIdleWithout} {
		t.Run(string(idle), func(t *testing.T) {
			w := doneWorld(t)
			w.summary.State, w.summary.Activity = idle, "the last command"
			c := w.config()
			c.Watch = time.Millisecond
			w.with(t, c, func(l *reconcile.Loop) {
				is := func(s reconcile.State) func() bool {
					return func() bool { v, _ := l.View(w.issue.Key); return v.State == s }
				}
				until(t, "in review", is(reconcile.Review))
				w.set(func() { w.now, w.calls = w.now.Add(time.Hour), 0 })
				time.Sleep(50 * time.Millisecond)
				if n := w.called(); n > 20 {
					t.Errorf("the forge was asked %d times, and nothing was new", n)
				}
				w.set(func() { w.summary.Blocked = []reconcile.Block{{Host: "registry.example.org", Port: 443}} })
				until(t, "told of what was refused", func() bool {
					w.mu.Lock()
					defer w.mu.Unlock()
					return strings.Contains(w.said["status"], "registry.example.org")
				})
				w.set(func() { w.summary.State = reconcile.AgentWorking })
				until(t, "at work again", is(reconcile.Working))
			})
		})
	}
}
