package reconcile_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/pods/reconcile"
)

// reviewWorld is one whose agent's pull request is ready for review, with what people say
// to it, in the order in which they said it.
func reviewWorld(t *testing.T, verdicts ...reconcile.Vote) *world {
	t.Helper()
	w := doneWorld(t)
	w.summary.Mark = "turn 1"
	w.writers["bob"], w.writers["cleo"], w.writers["demo-service"] = true, true, true
	if v := w.land(t); v.State != reconcile.Review || w.text.Draft || len(w.landings) > 0 {
		t.Fatalf("%+v, draft=%t, landed %v", v, w.text.Draft, w.landings)
	}
	w.say(verdicts...)
	return w
}

func (w *world) say(verdicts ...reconcile.Vote) {
	for _, v := range verdicts {
		v.ID = int64(len(w.verdicts) + 1)
		w.verdicts = append(w.verdicts, v)
	}
}

// land makes a pass of a loop that lands what one person approves.
func (w *world) land(t *testing.T, change ...func(*reconcile.Config)) reconcile.View {
	t.Helper()
	c := w.config()
	c.Lander, c.Approvals, c.Ours = w, 1, []string{"demo-bot", "demo-service"}
	for _, f := range change {
		f(&c)
	}
	return w.with(t, c, func(*reconcile.Loop) {})
}

func yes(who string) reconcile.Vote {
	return reconcile.Vote{Author: who, Approves: true, Commit: head}
}

func no(who string) reconcile.Vote { return reconcile.Vote{Author: who, Commit: head} }

func of(v reconcile.Vote, commit string) reconcile.Vote { v.Commit = commit; return v }

func dismissed(v reconcile.Vote) reconcile.Vote { v.Dismissed = true; return v }

func TestWhichApprovalsCount(t *testing.T) {
	older := "0123456789abcdef"
	for name, tt := range map[string]struct {
		says   []reconcile.Vote
		change func(*world)
		needs  int
		own    bool
		lands  string // who approved, "" when it does not
	}{
		"one who may push":                 {says: []reconcile.Vote{yes("ann")}, lands: "ann"},
		"nobody":                           {},
		"the bot":                          {says: []reconcile.Vote{yes("demo-bot")}},
		"the bot, in other letters":        {says: []reconcile.Vote{yes("Demo-Bot")}},
		"the service":                      {says: []reconcile.Vote{yes("demo-service")}},
		"one who may not push":             {says: []reconcile.Vote{yes("stranger")}},
		"one who was dismissed":            {says: []reconcile.Vote{dismissed(yes("ann"))}},
		"one of an older commit":           {says: []reconcile.Vote{of(yes("ann"), older)}},
		"one of no commit":                 {says: []reconcile.Vote{of(yes("ann"), "")}},
		"one who then asks for changes":    {says: []reconcile.Vote{yes("ann"), no("ann")}},
		"one who asked for changes before": {says: []reconcile.Vote{dismissed(no("ann")), yes("ann")}, lands: "ann"},
		"the newest was dismissed":         {says: []reconcile.Vote{yes("ann"), dismissed(no("ann"))}},
		"another asks for changes":         {says: []reconcile.Vote{yes("ann"), no("bob")}},
		"another did, of an older commit":  {says: []reconcile.Vote{of(no("bob"), older), yes("ann")}, lands: "ann"},
		"who may not push asks for them":   {says: []reconcile.Vote{yes("ann"), no("stranger")}, lands: "ann"},
		"one of two":                       {says: []reconcile.Vote{yes("ann"), yes("ann")}, needs: 2},
		"two of two":                       {says: []reconcile.Vote{yes("ann"), yes("bob")}, needs: 2, lands: "ann bob"},
		"the author of a commit":           {says: []reconcile.Vote{yes("ann")}, change: func(w *world) { w.hands = []string{"demo-bot", "Ann"} }},
		"that one, where it may":           {says: []reconcile.Vote{yes("ann")}, change: func(w *world) { w.hands = []string{"ann"} }, own: true, lands: "ann"},
		"that one and another":             {says: []reconcile.Vote{yes("ann"), yes("bob")}, change: func(w *world) { w.hands = []string{"ann"} }, lands: "bob"},
		"CI is pending":                    {says: []reconcile.Vote{yes("ann")}, change: func(w *world) { w.ci = reconcile.CI{State: reconcile.CIPending} }},
		"CI is well":                       {says: []reconcile.Vote{yes("ann")}, change: func(w *world) { w.ci = reconcile.CI{State: reconcile.CISuccess} }, lands: "ann"},
		"it goes elsewhere now":            {says: []reconcile.Vote{yes("ann")}, change: func(w *world) { w.base = "release" }},
	} {
		t.Run(name, func(t *testing.T) {
			w := reviewWorld(t, tt.says...)
			if tt.change != nil {
				tt.change(w)
			}
			v := w.land(t, func(c *reconcile.Config) { c.Approvals, c.OwnApprovals = max(1, tt.needs), tt.own })
			if tt.lands == "" {
				if len(w.landings) > 0 || w.removed > 0 || v.State != reconcile.Review {
					t.Errorf("it landed: %v, %+v", w.landings, v)
				}
				return
			}
			if len(w.landings) != 1 || w.removed != 1 || v.State != reconcile.Done {
				t.Fatalf("landed %v, removed %d, %+v", w.landings, w.removed, v)
			}
			if l := w.landings[0]; l.Commit != head || strings.Join(l.Approvers, " ") != tt.lands || l.Pull != 4 || l.Base != "main" || l.Branch != "agent/3-work" {
				t.Errorf("landed %+v", l)
			}
			has(t, w.said["landing"], "**Landed**: "+head, "merged into `main`")
		})
	}
}

func TestNothingLandsInDoubt(t *testing.T) {
	for name, doubt := range map[string]func(*world){
		"whether an account may push": func(w *world) { w.canErr = errors.New("away") },
		"who made the commits":        func(w *world) { w.handsErr = errors.New("away") },
	} {
		w := reviewWorld(t, yes("ann"))
		doubt(w)
		v := w.land(t)
		if len(w.landings) > 0 || !strings.Contains(v.Trouble, "away") {
			t.Errorf("%s: landed %v, %+v", name, w.landings, v)
		}
	}
}

func TestNothingLandsUnasked(t *testing.T) {
	w := reviewWorld(t, yes("ann"))
	if v := w.land(t, func(c *reconcile.Config) { c.Approvals = 0 }); len(w.landings) > 0 || v.State != reconcile.Review {
		t.Errorf("landed %v", w.landings)
	}
	w.summary.State = reconcile.AgentWorking // somebody told it something
	if v := w.land(t); len(w.landings) > 0 || v.State != reconcile.Working {
		t.Errorf("landed %v while its agent works: %+v", w.landings, v)
	}
	w.summary.State = reconcile.AgentIdleWithWork
	w.pull.Draft = true
	w.check.State = reconcile.CheckRunning
	if v := w.land(t); len(w.landings) > 0 {
		t.Errorf("landed %v as a draft: %+v", w.landings, v)
	}
}

func TestAPushVoidsApprovals(t *testing.T) {
	w := reviewWorld(t, yes("ann"), yes("bob"))
	w.pushes(2)
	if v := w.land(t, func(c *reconcile.Config) { c.Approvals = 2 }); len(w.landings) > 0 || v.State != reconcile.Review {
		t.Fatalf("landed %v, %+v", w.landings, v)
	}
	w.say(of(yes("ann"), "0000000000000002"), of(yes("bob"), "0000000000000002"))
	w.land(t, func(c *reconcile.Config) { c.Approvals = 2 })
	if len(w.landings) != 1 || w.landings[0].Commit != "0000000000000002" {
		t.Errorf("landed %v", w.landings)
	}
}

func TestAPullRequestLandsWhileItsPodSleeps(t *testing.T) {
	w := reviewWorld(t, yes("ann"))
	w.pod.Whole, w.pod.Stopped = false, true
	if v := w.land(t); len(w.landings) != 1 || v.State != reconcile.Done || w.removed != 1 || w.resumed != 0 {
		t.Errorf("landed %v, %+v, resumed %d", w.landings, v, w.resumed)
	}
}

func TestWhatDoesNotLandIsToldOnceAndTriedAgain(t *testing.T) {
	for _, sleeps := range []bool{false, true} {
		w := reviewWorld(t, yes("ann"))
		if sleeps {
			w.pod.Whole, w.pod.Stopped = false, true
		}
		w.landing = func() error { return fmt.Errorf("%w: the upstream refuses, says @bob", reconcile.ErrRefused) }
		for range 3 {
			if v := w.land(t); v.State != reconcile.Review || !strings.Contains(v.Trouble, "the upstream refuses") {
				t.Fatalf("sleeps=%t: %s, %q", sleeps, v.State, v.Trouble)
			}
		}
		if len(w.landings) < 3 || len(w.said) != 2 {
			t.Errorf("tried %d times, said %q", len(w.landings), w.said)
		}
		has(t, w.said["landing"], "not landed yet", "> ", "the upstream refuses, says (at)bob", "1 of 1 approvals of fedcba9876 (ann)")
		w.landing = nil
		if v := w.land(t); v.State != reconcile.Done || w.removed != 1 {
			t.Errorf("%+v", v)
		}
	}
}

func TestWhatIsPossibleSoonIsNotTold(t *testing.T) {
	w := reviewWorld(t, yes("ann"))
	w.landing = func() error { return reconcile.ErrLater }
	for range 2 {
		if v := w.land(t); v.State != reconcile.Review || v.Trouble == "" || w.said["landing"] != "" {
			t.Errorf("%s %q, said %q", v.State, v.Trouble, w.said["landing"])
		}
	}
	w.landing = nil
	if v := w.land(t); v.State != reconcile.Done {
		t.Errorf("%s", v.State)
	}
}

func TestTheBaseIsMergedInByTheAgentAndApprovedAnew(t *testing.T) {
	for _, sleeps := range []bool{false, true} {
		w := reviewWorld(t, yes("ann"))
		if sleeps {
			w.pod.Whole, w.pod.Stopped = false, true
		}
		w.now = w.now.Add(20 * time.Hour) // longer than an agent may work
		w.summary.Since = w.now
		w.landing = func() error { return &reconcile.BehindError{Base: "ba5e", Why: "main has moved to ba5e"} }
		for range 3 { // as after restarts
			if v := w.land(t); v.State != reconcile.Working || w.tellsCI != 1 {
				t.Fatalf("sleeps=%t: %+v, told %d times", sleeps, v, w.tellsCI)
			}
		}
		for _, text := range w.toldCI {
			has(t, text, head, "git merge ba5e", "git fetch origin main", "git push origin HEAD:agent/3-work", "do not rebase")
		}
		w.summary.State = reconcile.AgentWorking
		if v := w.land(t); v.State != reconcile.Working {
			t.Errorf("it is given no time: %+v", v)
		}
		// It pushes the merge: nobody has approved of that yet.
		w.landing = nil
		w.summary.State = reconcile.AgentIdleWithWork
		w.pushes(2)
		tried := len(w.landings)
		if v := w.land(t); v.State != reconcile.Review || len(w.landings) != tried || w.tellsCI != 1 {
			t.Errorf("%+v, landed %v, told %d times", v, w.landings, w.tellsCI)
		}
		w.say(of(yes("ann"), "0000000000000002"))
		if v := w.land(t); v.State != reconcile.Done || w.landings[len(w.landings)-1].Commit != "0000000000000002" {
			t.Errorf("%+v, landed %v", v, w.landings)
		}
	}
}

// A kill between keeping the message and giving it tells it once; another commit of the base
// is told of anew; and who ends without the merge leaves it to a person.
func TestEachCommitOfTheBaseIsToldOfOnce(t *testing.T) {
	w := reviewWorld(t, yes("ann"))
	w.landing = func() error { return &reconcile.BehindError{Base: "ba5e", Why: "main has moved to ba5e"} }
	w.ciErr = errors.New("killed")
	w.land(t)
	if w.tellsCI != 0 || len(w.rounds) != 1 || w.rounds[0].Told {
		t.Fatalf("told %d, %+v", w.tellsCI, w.rounds)
	}
	w.ciErr = nil
	w.land(t)
	w.land(t)
	if w.tellsCI != 1 || len(w.toldCI) != 1 {
		t.Errorf("told %d times", w.tellsCI)
	}
	w.summary.Mark = "turn 2"
	for range 2 {
		if v := w.land(t); v.State != reconcile.Review || w.tellsCI != 1 || v.Landing != "1 of 1 approvals of fedcba9876 (ann), not landed: main has moved to ba5e" {
			t.Errorf("%+v, told %d times", v, w.tellsCI)
		}
	}
	has(t, w.said["landing"], "ended without", "main has moved to ba5e")
	w.landing = func() error { return &reconcile.BehindError{Base: "ba5e2", Why: "main has moved to ba5e2"} }
	if v := w.land(t); v.State != reconcile.Working || w.tellsCI != 2 || len(w.toldCI) != 2 {
		t.Errorf("%+v, told %d times", v, w.tellsCI)
	}
	// None of that counts as a round of CI.
	w.ci = reconcile.CI{State: reconcile.CIFailure, Jobs: []reconcile.CIJob{failed("test", 1)}}
	w.summary.Mark = "turn 3"
	if v := w.land(t); v.State != reconcile.Working || w.tellsCI != 3 {
		t.Errorf("%+v, told %d times", v, w.tellsCI)
	}
	for _, text := range w.toldCI {
		if strings.Contains(text, "CI failed") {
			has(t, text, "the time 1 of 3")
		}
	}
}

func TestAHeadThatMovesMeanwhileIsLookedAtAnew(t *testing.T) {
	w := reviewWorld(t, yes("ann"))
	first := true
	w.landing = func() error {
		if first {
			first = false
			return reconcile.ErrMoved
		}
		return nil
	}
	c := w.config()
	c.Lander, c.Approvals = w, 1
	w.with(t, c, (*reconcile.Loop).Settle)
	if len(w.landings) != 2 || w.removed != 1 || w.said["landing"] == "" {
		t.Errorf("landed %v, said %q", w.landings, w.said)
	}
}

// A service that was killed once the commit was upstream, and the forge's copy had followed.
func TestWhatIsInTheBaseIsMarkedAsMerged(t *testing.T) {
	for _, sleeps := range []bool{false, true} {
		w := reviewWorld(t, of(yes("ann"), ""))
		if sleeps {
			w.pod.Whole, w.pod.Stopped = false, true
		}
		w.commits, w.pull.Head, w.upstream = nil, head, "up/lib"
		w.say(yes("ann"))
		if v := w.land(t); v.State != reconcile.Done || w.removed != 1 || len(w.landings) != 0 {
			t.Errorf("sleeps=%t: %+v, landed %v", sleeps, v, w.landings)
		}
		has(t, w.said["landing"], "**Landed**: "+head, "it is in `main` of `up/lib`")
	}
}

func TestAPersonLandsByHand(t *testing.T) {
	w := reviewWorld(t)
	export := func(lands bool) (a reconcile.Approval) {
		t.Helper()
		c := w.config()
		c.Lander, c.Ours = w, []string{"demo-bot"} // approvals = 0
		w.with(t, c, func(l *reconcile.Loop) {
			var err error
			if a, err = l.Export(t.Context(), w.issue.Key, lands); err != nil {
				t.Error(err)
			}
			if _, err := l.Export(t.Context(), reconcile.Key{Owner: "ann", Repo: "other", Issue: 1}, lands); !errors.Is(err, reconcile.ErrGone) {
				t.Errorf("an issue that is not there: %v", err)
			}
		})
		return a
	}
	if a := export(true); len(w.landings) > 0 || a.Landed || a.Needs != 1 || len(a.Lacks) != 1 || a.Commit != head || a.Pull != 4 {
		t.Errorf("%+v", a)
	}
	w.say(yes("ann"))
	if a := export(false); len(w.landings) > 0 || a.Landed || len(a.Lacks) > 0 || a.Goes == nil || a.Goes.New != head || len(a.Goes.Commits) != 2 {
		t.Errorf("%+v", a)
	}
	w.landing = func() error { return reconcile.ErrRefused }
	if a := export(true); a.Landed || !a.Refused || a.Failed == "" || w.removed > 0 {
		t.Errorf("%+v", a)
	}
	w.landing = nil
	if a := export(true); !a.Landed || w.removed != 1 || strings.Join(a.Approvers, " ") != "ann" {
		t.Errorf("%+v", a)
	}
}
