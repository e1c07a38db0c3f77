package reconcile_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/pods/reconcile"
)

var (
	stories    = flag.Int("stories", 200, "how many stories TestAnyStoryEndsWell tells; a single one with all that happens in it")
	firstStory = flag.Uint64("story", 1, "the number of the first one")
)

// A story is an agent and its people, who do what they may do at any time, in any order, while the
// forge, the pod or the service fails now and then.
type story struct {
	*world
	rnd   *rand.Rand
	log   func(format string, a ...any)
	turns int
	asks  int
	next  int64 // the number of what is said next

	ids     map[string]string // what the agent was told, by the names under which it is told once
	inbox   []string          // of that, what it has not read
	remarks []int64           // line comments that it has read since its turn began
	words   map[string]bool   // that people said to it; true once it was told
	never   []string          // that it must not be told
	lines   []int64           // line comments of people who may push
	errs    []string          // what was not to be
	landed  bool
	runsCI  int64
}

// before is what the agent is told of a thread as it was.
var before = regexp.MustCompile(`(?m)^ *Before that, .*$`)

func newStory(t *testing.T, seed uint64) *story {
	s := &story{
		world: newWorld(), rnd: rand.New(rand.NewPCG(seed, 0)), next: 100,
		ids: map[string]string{}, words: map[string]bool{}, log: func(string, ...any) {},
	}
	if *stories == 1 {
		s.log = t.Logf
	}
	s.writers["bob"], s.ci.State = true, reconcile.CINone
	return s
}

// Tell is what a pod does: it takes each once.
func (s *story) Tell(_ context.Context, _ reconcile.Key, id, text string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tellErr != nil {
		return s.tellErr
	}
	if _, known := s.ids[id]; known {
		return nil
	}
	s.log("the agent is told %s: %q", id, text)
	s.ids[id], s.inbox = text, append(s.inbox, text)
	news := before.ReplaceAllString(text, "")
	for word, told := range s.words {
		if !strings.Contains(news, word) {
			continue
		}
		if told {
			s.errs = append(s.errs, word+" is told twice")
		}
		s.words[word] = true
	}
	if s.chance(5) { // it was waiting for that, and done before anybody looks again
		s.agent()
		s.agent()
	}
	return nil
}

// Begin makes a pod for a label, whose task has what the issue says; or the same pod goes on.
func (s *story) Begin(ctx context.Context, t reconcile.Task) error {
	if err := s.world.Begin(ctx, t); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.log("a pod for label event %d", t.Trigger.ID)
	for word, told := range s.words {
		if strings.Contains(t.Prompt, word) && !told {
			s.words[word] = true
		}
	}
	s.inbox = nil
	s.summary = reconcile.Summary{State: reconcile.AgentWorking, Mark: fmt.Sprint("turn ", s.turns), Since: s.now}
	return nil
}

// label takes the label off, or puts it on.
func (s *story) label() {
	s.now = s.now.Add(time.Second)
	s.issue.Updated = s.now
	if s.labeled(s.issue.Labels) {
		s.log("the label is taken off")
		s.issue.Labels = slices.DeleteFunc(slices.Clone(s.issue.Labels), func(l string) bool { return l == "devaipod" })
		return
	}
	s.issue.Labels = append(slices.Clone(s.issue.Labels), "devaipod")
	s.trigger = reconcile.Trigger{ID: s.trigger.ID + 1, User: "ann", At: s.now}
	s.log("label event %d", s.trigger.ID)
	s.now = s.now.Add(time.Second)
}

func (s *story) labeled(labels []string) bool { return slices.Contains(labels, "devaipod") }

func (s *story) chance(one int) bool { return s.rnd.IntN(one) == 0 }

// agent does what an agent does next. The lock is held.
func (s *story) agent() {
	sum := &s.summary
	if s.pod == nil || !s.pod.Whole {
		return
	}
	if sum.State != reconcile.AgentWorking {
		if len(s.inbox) == 0 {
			return
		}
		*sum = reconcile.Summary{State: reconcile.AgentWorking, Mark: fmt.Sprint("turn ", s.turns)}
	}
	for _, text := range s.inbox {
		for _, id := range s.lines {
			if strings.Contains(text, fmt.Sprintf("[%d] ", id)) {
				s.remarks = append(s.remarks, id)
			}
		}
	}
	s.inbox = nil
	switch s.rnd.IntN(5) {
	case 0:
		s.asks++
		*sum = reconcile.Summary{State: reconcile.AgentAsking, Cause: reconcile.CauseQuestion, Question: "Which one?", Mark: fmt.Sprint("que ", s.asks)}
	case 1, 2:
		s.push()
	default:
		s.turnEnds()
	}
	s.log("the agent: %s, %s", sum.State, sum.Mark)
}

func (s *story) push() {
	s.commits = append(slices.Clone(s.commits), reconcile.Commit{SHA: fmt.Sprintf("%010dabcdef", len(s.commits)+1), Subject: "More"})
}

func (s *story) turnEnds() {
	s.turns++
	words := "Done."
	for _, id := range s.remarks {
		if s.chance(2) {
			words += fmt.Sprintf("\n[%d] I did that.", id)
		}
	}
	s.remarks = nil
	state := reconcile.AgentIdleWithWork
	if s.chance(2) {
		state = reconcile.AgentIdleWithout
	}
	s.now = s.now.Add(time.Millisecond)
	s.summary = reconcile.Summary{State: state, Mark: fmt.Sprint("turn ", s.turns), Message: words, Since: s.now}
	s.now = s.now.Add(time.Millisecond)
}

// word is what somebody says now.
func (s *story) word(who string) string {
	s.next++
	w := fmt.Sprintf("W%dW", s.next)
	if who == "stranger" || who == "demo-bot" {
		s.never = append(s.never, w)
	} else {
		s.words[w] = false
	}
	s.log("%s says %s", who, w)
	return w
}

// people do something. The lock is held.
func (s *story) people() {
	who := []string{"ann", "bob", "stranger", "demo-bot"}[s.rnd.IntN(4)]
	onPull := s.pull != nil && s.pull.Open
	switch what := s.rnd.IntN(12); {
	case what < 2 && onPull:
		w := s.word(who)
		s.onPull = append(slices.Clone(s.onPull), reconcile.Comment{ID: s.next, Author: who, Body: w, Updated: s.now})
		s.pullAt = s.now
	case what < 5 && onPull:
		s.review(who)
	case what < 7 && len(s.commits) > 0:
		v := reconcile.Vote{Author: who, Approves: !s.chance(3), Commit: s.head()}
		s.log("%s votes %+v", who, v)
		s.say(v)
	case what < 8 && onPull:
		s.push()
		s.foreign = s.head()
		s.log("somebody pushes %s", s.foreign)
	case what < 9:
		s.comments = s.without(s.comments)
		s.onPull = s.without(s.onPull)
	default:
		s.comment(who, "")
	}
}

func (s *story) head() string { return s.commits[len(s.commits)-1].SHA }

// without lets somebody delete a comment that the agent does not have.
func (s *story) without(all []reconcile.Comment) []reconcile.Comment {
	for i, c := range all {
		if told, known := s.words[c.Body]; known && !told && s.chance(3) {
			s.log("%s is deleted", c.Body)
			delete(s.words, c.Body)
			s.never = append(s.never, c.Body)
			return slices.Delete(slices.Clone(all), i, i+1)
		}
	}
	return all
}

// Land is what a forge does, if it may be done.
func (s *story) Land(ctx context.Context, l reconcile.Landing) (reconcile.Landed, error) {
	s.mu.Lock()
	newest := reconcile.Vote{}
	for _, v := range s.verdicts {
		if v.Author == l.Approvers[0] && v.Commit == s.head() {
			newest = v
		}
	}
	if l.Commit != s.head() || !newest.Approves || !s.writers[newest.Author] || newest.Author == "demo-bot" || s.untold() || s.pull.Draft || slices.ContainsFunc(s.inbox, func(text string) bool { return text != ofCI }) {
		s.errs = append(s.errs, fmt.Sprintf("%+v lands: the newest is %+v, the head %s, untold %t, pull request %+v", l, newest, s.head(), s.untold(), s.pull))
	}
	s.log("it lands: %+v", l)
	s.landed = true
	s.mu.Unlock()
	return s.world.Land(ctx, l)
}

// ofCI is a round in the inbox; what CI has said may be over before the agent takes it up.
const ofCI = "CI has failed"

// TellCI is Tell, of a round.
func (s *story) TellCI(ctx context.Context, k reconcile.Key, r reconcile.Round) error {
	if err := s.world.TellCI(ctx, k, r); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.log("the agent is told of CI at %s", r.Commit)
	s.inbox = append(s.inbox, ofCI)
	return nil
}

// runs has CI tell something of the head.
func (s *story) runs() {
	s.runsCI++
	s.ci = reconcile.CI{State: []reconcile.CIState{reconcile.CINone, reconcile.CIPending, reconcile.CISuccess, reconcile.CIFailure}[s.rnd.IntN(4)]}
	if s.ci.State == reconcile.CIFailure {
		s.ci.Jobs = []reconcile.CIJob{failed("test", s.runsCI)}
	}
	s.log("CI says %s", s.ci.State)
}

func (s *story) comment(who, orders string) {
	w := s.word(who)
	s.comments = append(slices.Clone(s.comments), reconcile.Comment{ID: s.next, Author: who, Body: orders + w, Updated: s.now})
	s.issue.Updated = s.now
}

func (s *story) review(who string) {
	r := reconcile.PullReview{Author: who, Verdict: reconcile.Changes, Body: s.word(who), At: s.now}
	r.ID = s.next
	if len(s.commits) > 0 {
		r.Commit = s.head()
	}
	for range s.rnd.IntN(3) {
		w := s.word(who)
		c := remark(s.next, who, "a.go", int64(s.rnd.IntN(3)), w)
		c.Review, c.Updated = r.ID, s.now
		r.Comments = append(r.Comments, c)
		if _, counts := s.words[w]; counts {
			s.lines = append(s.lines, c.ID)
		}
	}
	s.reviews = append(slices.Clone(s.reviews), r)
	s.pullAt = s.now
}

var errFault = errors.New("a fault of the story")

// fault has something fail until the next look. The lock is held.
func (s *story) fault() {
	n := s.rnd.IntN(20)
	after := func() error {
		if n--; n < 0 {
			return errFault
		}
		return nil
	}
	what := s.rnd.IntN(5)
	switch what {
	case 0:
		s.fails = after
	case 1:
		s.tellErr = errFault
	case 2:
		n %= 3
		s.giveFail = func(reconcile.Given) error { return after() }
	case 3:
		s.sumErr = errFault
	case 4:
		s.answering = func(reconcile.LineComment) error { return errFault }
	}
	s.log("fault %d, after %d", what, n)
}

func (s *story) sound() {
	s.fails, s.tellErr, s.giveFail, s.sumErr, s.answering = nil, nil, nil, nil, nil
}

// Handle implements [slog.Handler], for what the loop says loudly.
func (s *story) Handle(_ context.Context, r slog.Record) error {
	text := r.Message
	r.Attrs(func(a slog.Attr) bool { text += fmt.Sprintf(" %s=%v", a.Key, a.Value); return true })
	s.log("log: %s", text)
	if r.Level >= slog.LevelError && !strings.Contains(text, errFault.Error()) {
		s.errs = append(s.errs, text)
	}
	return nil
}

func (s *story) Enabled(context.Context, slog.Level) bool { return true }
func (s *story) WithAttrs([]slog.Attr) slog.Handler       { return s }
func (s *story) WithGroup(string) slog.Handler            { return s }

func (s *story) config() reconcile.Config {
	c := s.world.config()
	c.Pods, c.Log, c.Deadline = s, slog.New(s), 0
	c.Lander, c.Approvals, c.CIWait = s, 1, time.Minute
	return c
}

// looks runs a service through some looks, with what happens before each.
func (s *story) looks(t *testing.T, n int, happens func()) reconcile.View {
	t.Helper()
	s.sound()
	return s.with(t, s.config(), func(l *reconcile.Loop) {
		for range n {
			s.set(happens)
			l.Kick(s.issue.Key)
			l.Settle()
		}
	})
}

func (s *story) happens() {
	s.sound()
	if s.landed {
		return
	}
	s.now = s.now.Add(time.Duration(1+s.rnd.IntN(100)) * time.Second)
	if s.chance(20) && len(s.inbox) == 0 {
		s.now = s.now.Add(25 * time.Hour)
	}
	for range 1 + s.rnd.IntN(3) {
		if s.chance(2) {
			s.agent()
		}
		if s.chance(4) {
			s.people()
		}
		if s.chance(12) {
			s.runs()
		}
		if s.chance(25) {
			s.label()
		}
	}
	if s.chance(4) {
		s.fault()
	}
}

// settles lets the agent and the service go on, with no more from people and no faults.
func (s *story) settles(t *testing.T) (v reconcile.View) {
	t.Helper()
	for range 60 {
		v = s.looks(t, 1, func() {
			s.sound()
			s.now = s.now.Add(10 * time.Second)
			if s.ci = (reconcile.CI{State: reconcile.CISuccess}); s.landed {
				return
			}
			if v.State == reconcile.Refused || !s.labeled(s.issue.Labels) {
				s.label()
				return
			}
			switch waits := s.summary.State == reconcile.AgentAsking || s.summary.State != reconcile.AgentWorking && len(s.commits) == 0; {
			case v.State == reconcile.Failed: // it was away for too long
				s.comment("ann", "/retry\n\n")
			case waits && len(s.inbox) == 0 && !s.untold(): // somebody has an answer
				s.comment("ann", "")
			}
			if s.summary.State == reconcile.AgentWorking && len(s.commits) == 0 {
				s.push()
			}
			s.agent()
		})
	}
	return v
}

// untold tells whether the agent still has to be told something.
func (s *story) untold() bool {
	for _, told := range s.words {
		if !told {
			return true
		}
	}
	return false
}

func (s *story) check(t *testing.T, v reconcile.View) {
	t.Helper()
	switch {
	case s.landed:
		if s.pod != nil || !s.pull.Merged || s.issue.Open || s.state != reconcile.Done {
			t.Errorf("it landed, and at the end: %q, pod %v, pull request %+v, labels %q", s.state, s.pod, s.pull, s.issue.Labels)
		}
	case v.State != reconcile.Review || s.pull == nil || s.text.Draft:
		t.Errorf("at the end: %s %+v, draft=%t", v.State, v, s.text.Draft)
	}
	for w, told := range s.words {
		if !told {
			t.Errorf("the agent was not told %s", w)
		}
	}
	for _, text := range s.ids {
		for _, w := range s.never {
			if strings.Contains(before.ReplaceAllString(text, ""), w) {
				t.Errorf("the agent was told %s", w)
			}
		}
	}
	for _, id := range s.lines {
		if n := strings.Count(s.answers[id], "devaipod answer"); n != 1 {
			t.Errorf("comment %d has %d answers: %s", id, n, s.answers[id])
		}
	}
	for _, g := range s.given {
		if g.Given && !g.Settled {
			t.Errorf("given, and not answered: %+v", g)
		}
	}
	for _, e := range s.errs {
		t.Error(e)
	}
}

// Whatever people say, and whenever, reaches the agent once and is answered, or not at all where they
// take it back before; the work comes to review, or lands as somebody approved of it who had all that
// was said done before; and nothing is an error but what failed.
func TestAnyStoryEndsWell(t *testing.T) {
	for seed := *firstStory; seed < *firstStory+uint64(*stories); seed++ {
		s := newStory(t, seed)
		for range 8 { // services
			s.looks(t, 1+s.rnd.IntN(6), s.happens)
		}
		s.check(t, s.settles(t))
		if t.Failed() {
			t.Fatalf("go test ./pods/reconcile -run TestAnyStoryEndsWell -stories 1 -story %d", seed)
		}
	}
}
