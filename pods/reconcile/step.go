package reconcile

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// reconcileOne takes the next step for one issue.
func (l *Loop) reconcileOne(ctx context.Context, k Key, pods map[Key]Pod) error {
	i, err := l.cfg.Forge.Issue(ctx, k)
	switch pod, has := pods[k]; {
	case errors.Is(err, ErrGone):
		return l.gone(ctx, k, pod, has)
	case err != nil && has:
		return errors.Join(err, l.overdue(ctx, pod))
	case err != nil:
		return err
	}
	if i.Key != k {
		l.renamed(k, i.Key)
	}
	pod, has := podOf(i, pods)
	err = l.reconcileIssue(ctx, i, pod, has, pods)
	if errors.Is(err, ErrReadOnly) {
		err = l.readOnly(ctx, i, pod, has)
	}
	if err == nil {
		l.seen(i, pod, has)
	}
	return err
}

// wanted tells whether the issue asks for an agent.
func (i Issue) wanted(label string) bool { return i.Open && i.triggered(label) }

// triggered tells whether an issue has the trigger label, or one that names an
// agent.
func (i Issue) triggered(label string) bool {
	return slices.ContainsFunc(i.Labels, func(l string) bool { return l == label || strings.HasPrefix(l, label+":") })
}

func (l *Loop) reconcileIssue(ctx context.Context, i Issue, pod Pod, has bool, pods map[Key]Pod) error {
	k := i.Key
	ctx = l.because(ctx, Act{Key: k})
	if other, taken := pods[k]; taken && !has {
		return l.namesake(ctx, i, other)
	}
	if !i.wanted(l.cfg.Label) {
		if labeled, err := l.answer(ctx, i); labeled || err != nil {
			return err
		}
		if !has {
			return errors.Join(l.leaveState(ctx, i), l.leave(k))
		}
		return l.finish(ctx, i, pod)
	}
	tr, ok, err := l.cfg.Forge.Trigger(ctx, k)
	if err != nil {
		return fmt.Errorf("asking who labeled %s: %w", k, err)
	}
	if ok && tr.Away {
		return l.sentAway(ctx, i, tr.AwayBy)
	}
	if has && ok && pod.TriggerID == tr.ID {
		return l.advance(ctx, i, pod, tr)
	}
	return l.begin(ctx, i, tr, ok, pod, has)
}

// leave forgets an issue that nobody wants and that has no pod.
func (l *Loop) leave(k Key) error {
	l.forget(k)
	delete(l.pins, k)
	delete(l.ordered, k)
	l.mu.Lock()
	delete(l.pressed, k)
	l.mu.Unlock()
	delete(l.given, k)
	delete(l.heeds, k)
	delete(l.reviewed, k)
	delete(l.stuck, k)
	delete(l.collided, k)
	delete(l.emptied, k)
	delete(l.landedSince, k)
	delete(l.going, k)
	return l.cfg.Pods.Keep(k, nil)
}

// leaveState takes the label agent/queued off an issue that waits no more.
func (l *Loop) leaveState(ctx context.Context, i Issue) error {
	if !slices.Contains(i.Labels, stateScope+string(Queued)) {
		return nil
	}
	_, err := l.write(ctx, i, func() error { return l.cfg.Forge.SetState(ctx, i, "") })
	return err
}

// advance brings a pod's branch and pull request to where its agent is.
func (l *Loop) advance(ctx context.Context, i Issue, pod Pod, tr Trigger) error {
	ctx = l.because(ctx, Act{Who: pod.Labeler, Rule: mayPush})
	v := View{Key: i.Key, State: Working, Branch: pod.Branch, Pod: pod.Name, Labeler: pod.Labeler, Started: pod.Started, Agent: tr.Agent, pod: pod.Key}
	l.elapsed(pod.Key, "created", pod.Created) // seen as soon as they can be
	l.elapsed(pod.Key, "started", pod.Started)
	pull, err := l.pull(ctx, pod)
	if err != nil {
		return err
	}
	v.Pull, v.PullRequest, v.open = pull.Number, pull.URL, pull
	switch {
	case pull.Merged:
		return l.merged(ctx, i, pull, pod)
	case pull.Number != 0 && !pull.Open:
		v.State, v.Why = Stopped, fmt.Sprintf("Pull request %d was closed without a merge.", pull.Number)
		if err := l.halt(ctx, i.Key, pod, "", v.Why); err != nil {
			return err
		}
		return l.show(ctx, i, v)
	}
	orders, steered, err := l.steer(ctx, i, pod, pull, &v)
	if err != nil {
		return err
	}
	if asleep, err := l.sleeps(ctx, i, pod, pull, v, steered, orders); asleep || err != nil {
		return err
	}
	if pod.Full != "" {
		v.State, v.Cause, v.Why = Failed, CauseDisk, pod.Full+"."
		return errors.Join(l.stop(ctx, &v), l.show(ctx, i, v))
	}
	if _, idle := i.labeled(idles); !pod.Whole && (pod.Stopped || !idle) && !l.mayStart(i.Key) {
		l.wait(i, v, tr)
		return nil
	}
	sum, err := l.summary(ctx, i, pod)
	if err != nil {
		return err
	}
	commits, over, err := l.ahead(ctx, i, pod, pull)
	if over || err != nil {
		return err
	}
	v.judge(sum, len(commits), l.exits[pod.Key])
	if len(commits) > 0 {
		if v, err = l.propose(ctx, i, pod, v, pull, sum, commits, orders); err != nil {
			return err
		}
	}
	over, lands := l.landAwake(ctx, i, pod, pull, &v, sum.Mark)
	if over {
		return lands
	}
	if err := l.hear(ctx, pod, pull, &v, sum, commits, orders); err != nil {
		return errors.Join(lands, err)
	}
	return errors.Join(lands, l.show(ctx, i, v))
}

// steer reads what people ordered, and brings the pod to it.
func (l *Loop) steer(ctx context.Context, i Issue, pod Pod, pull Pull, v *View) (orders Orders, steered Steered, err error) {
	if orders, err = l.ordersFor(ctx, i, pod, pull); err != nil {
		return orders, steered, err
	}
	if steered, err = l.cfg.Pods.Steer(ctx, pod.Key, orders); err != nil {
		return orders, steered, err
	}
	v.Used, v.Note, v.Open = steered.Used, steered.Note, steered.Open
	return orders, steered, l.words(pod, v, orders)
}

// words notes what people have said last for a pod, and when.
func (l *Loop) words(pod Pod, v *View, o Orders) error {
	has, err := l.givenTo(v.Key, pod)
	if err != nil {
		return err
	}
	v.word, v.ordered = max(o.word(), has.word), o.At
	if has.last.After(o.At) {
		v.ordered = has.last
	}
	if at, e := l.baseTold(pod); e != nil || at.After(v.ordered) {
		v.ordered, err = at, e
	}
	return err
}

// ahead is what the branch has that its base lacks. Where a pull request has nothing any more, it
// is looked at again: if it was merged meanwhile, all is over.
func (l *Loop) ahead(ctx context.Context, i Issue, pod Pod, pull Pull) (commits []Commit, over bool, err error) {
	commits, err = l.cfg.Forge.Ahead(ctx, i.Key, pod.Base, pod.Branch)
	if err != nil || len(commits) > 0 || pull.Number == 0 {
		return commits, false, err
	}
	if pull, err = l.pull(ctx, pod); err != nil {
		return commits, false, err
	}
	if pull.Merged {
		return nil, true, l.merged(ctx, i, pull, pod)
	}
	if l.cfg.Lander != nil && pull.Open && !pull.Draft {
		a, err := l.approval(ctx, i, pod, pull)
		if err == nil {
			over, err = l.finished(ctx, i, pod, a)
		}
		if over || err != nil {
			return nil, over, err
		}
	}
	if pull.Open && l.merging(i.Key, pull.Head) {
		time.AfterFunc(l.cfg.Watch, func() { l.Kick(i.Key) })
		return nil, true, nil
	}
	return nil, false, nil
}

// mergesWithin is how long a forge may take to merge: its base has the commits before the pull
// request is merged.
const mergesWithin = 30 * time.Second

// emptied is since when a pull request has nothing any more.
type emptied struct {
	head  string
	since time.Duration // Uptime
}

// merging tells whether a pull request that has nothing any more may be about to be merged.
func (l *Loop) merging(k Key, head string) bool {
	now := l.cfg.Uptime()
	if e, known := l.emptied[k]; !known || e.head != head {
		l.emptied[k] = emptied{head, now}
	}
	return now-l.emptied[k].since < mergesWithin
}

// listen gives the agent what people said, beside [Loop.review]. It tells whether there was anything.
func (l *Loop) listen(ctx context.Context, pod Pod, pull Pull, v View, sum Summary, commits []Commit, o Orders) (told bool, err error) {
	mark, head := sum.Mark, ""
	if v.State == Working || v.Cause == CauseQuestion || v.Cause == CausePermission { // its turn goes on
		mark = ""
	}
	if len(commits) > 0 {
		head = commits[len(commits)-1].SHA
	}
	if v.State == Review { // which was seen to before its work was put up for review
		return false, nil
	}
	if v.State == Working {
		if err := l.tellMoved(ctx, pod, v.Key, mark, head); err != nil {
			return false, err
		}
	}
	if told, err = l.tell(ctx, pod, v, o, mark, head); err != nil || !v.listens() {
		return told, err
	}
	reviews, err := l.tellReviews(ctx, pod, v, pull, mark, head)
	return told || reviews, err
}

// nothingFor is how long an agent must have ended without a commit before a person is
// called for that.
const nothingFor = 5 * time.Second

// hear gives the agent what people said, and else sees to it that they are told what
// it asks, and to its time.
func (l *Loop) hear(ctx context.Context, pod Pod, pull Pull, v *View, sum Summary, commits []Commit, o Orders) error {
	told, err := l.listen(ctx, pod, pull, *v, sum, commits, o)
	ended := l.elapsed(pod.Key, "since", sum.Since)
	switch {
	case v.Cause == CauseNothing && !sum.Since.IsZero() && ended < nothingFor:
		v.State, v.Cause, v.Why, v.Activity = Working, "", "", "it ended; the forge is about to show what it pushed"
		v.lookAt(l.cfg.Uptime() + nothingFor - ended)
	case v.State == Asking && !told:
		v.Ask = cmp.Or(v.Ask, askName(pod, sum))
	case v.State == Asking: // it may be answered now
		v.Ask = ""
		k := v.Key
		time.AfterFunc(l.cfg.Watch, func() { l.Kick(k) })
	}
	if told && v.State != Working {
		return err // it is at it soon
	}
	return errors.Join(err, l.limit(ctx, v, pod, sum))
}

// rests tells whether a pod was stopped on purpose while its agent waited for a
// person, or had failed; the issue's label says which. It needs no processes
// then, and is not started again.
func (l *Loop) rests(i Issue, pod Pod) (State, bool) {
	if !pod.Stopped {
		return Gone, false
	}
	return i.labeled(idles)
}

func idles(st stage) bool { return st.idle }

// sleeps tells whether a pod rests and goes on doing so, and then keeps the view of it.
func (l *Loop) sleeps(ctx context.Context, i Issue, pod Pod, pull Pull, v View, steered Steered, o Orders) (bool, error) {
	state, rests := l.rests(i, pod)
	if !rests {
		return false, nil
	}
	wakes, err := l.wakes(ctx, i, pod, pull, state, steered, o)
	if !wakes && err == nil && state == Review {
		var over bool
		v.State = Review
		if over, wakes, err = l.landAsleep(ctx, i, pod, pull, &v); over {
			return true, err
		}
	}
	if !wakes {
		l.rest(i, v, state)
		err = errors.Join(err, l.collide(ctx, i, pull))
	}
	return !wakes, err
}

// rest keeps the view of a pod that sleeps in a state; why is as it was.
func (l *Loop) rest(i Issue, v View, state State) {
	v.State, v.Resting = state, true
	if old, ok := l.View(i.Key); ok && old.State == state {
		v.Why, v.Cause, v.Checked = old.Why, old.Cause, old.Checked
	}
	l.keepView(i, v)
}

// limit ends what has gone on for too long: work at the deadline, and the
// processes of a pod that waits for a person.
func (l *Loop) limit(ctx context.Context, v *View, pod Pod, sum Summary) error {
	if life[v.State].place {
		if l.cfg.Deadline == 0 || pod.Created.IsZero() {
			return nil
		}
		worked := l.worked(v, pod)
		if worked < l.cfg.Deadline {
			v.lookAt(l.cfg.Uptime() + l.cfg.Deadline - worked)
			return nil
		}
		v.State, v.Cause, v.Activity = Failed, CauseDeadline, ""
		v.Why = fmt.Sprintf("It has worked for %s, which is as long as an agent may (agent.deadline).", l.cfg.Deadline)
		return l.stop(ctx, v)
	}
	if v.Cause == CauseDied || v.Cause == CauseUnreachable { // nothing more comes of it
		return l.stop(ctx, v)
	}
	if l.cfg.Rest == 0 || sum.Since.IsZero() || v.State == Checking {
		return nil
	}
	waited := l.elapsed(pod.Key, "since", sum.Since)
	if !pod.Entered.IsZero() { // somebody may be in it
		waited = min(waited, l.elapsed(pod.Key, "entered", pod.Entered))
	}
	if !v.ordered.IsZero() { // it may not have taken that up yet
		waited = min(waited, l.elapsed(pod.Key, "ordered", v.ordered))
	}
	if waited < l.cfg.Rest {
		v.lookAt(l.cfg.Uptime() + l.cfg.Rest - waited)
		return nil
	}
	return l.stop(ctx, v)
}

// worked is for how long an agent has worked, or could.
func (l *Loop) worked(v *View, pod Pod) time.Duration {
	worked := l.elapsed(pod.Key, "created", pod.Created)
	if !v.ordered.IsZero() { // somebody wants it to go on
		worked = min(worked, l.elapsed(pod.Key, "ordered", v.ordered))
	}
	return worked
}

// stop ends a pod's processes; what v says stays true.
func (l *Loop) stop(ctx context.Context, v *View) error {
	v.Resting, v.until = true, 0
	return l.cfg.Pods.Stop(ctx, v.pod)
}

// judge turns what the agent says, and what it pushed, into a state. What it
// says it pushed counts for nothing.
func (v *View) judge(sum Summary, commits int, exit string) {
	v.judgeState(sum, commits)
	if exit != "" && (v.Cause == CauseNothing || v.State == Failed && v.Cause != CauseDied) {
		v.Why += "\n\nIt was started again before: " + exit + "."
	}
}

func (v *View) judgeState(sum Summary, commits int) {
	v.Cause, v.Blocked, v.setups, v.Doing, v.mark, v.summed = sum.Cause, sum.Blocked, wrong(sum.Setups), sum.State, sum.Mark, sum.State
	if sum.Version != "" {
		v.Note = strings.TrimSpace(v.Note + "\n\n" + clipLine(sum.Version, 300) + ".")
	}
	for _, s := range sum.Setups {
		if s.Error != "" {
			v.Note = strings.TrimSpace(v.Note + fmt.Sprintf("\n\nThe setup of the %s's container ended early. It says: %s", s.Container, clipLine(s.Error, 500)))
		}
	}
	switch sum.State {
	case AgentIdleWithWork, AgentIdleWithout:
		if v.State, v.Doing = Review, AgentIdleWithWork; commits == 0 {
			v.Doing, v.State, v.Cause = sum.State, Asking, CauseNothing
			v.Why = "The agent ended without pushing a commit."
			if sum.State == AgentIdleWithWork {
				v.Why += fmt.Sprintf(" It left work in its clone, which is saved (devaipod diff %s).", v.Key)
			}
			v.Why += " It said:\n\n" + orNothing(sum.Message)
		}
	case AgentAsking:
		v.State, v.Choices, v.Why = Asking, sum.Choices, "The agent asks:\n\n"+orNothing(sum.Question)
		if sum.Cause == CauseBudget {
			v.Why = sum.Question
		}
	case AgentFailed:
		v.State, v.Why = Failed, orNothing(sum.Error)
	case AgentStarting, AgentReady:
		v.State, v.Activity = Starting, string(sum.State)
		if sum.Activity != "" {
			v.Activity = sum.Activity
		}
	default:
		v.State, v.Activity = Working, sum.Activity
	}
}

// wrong counts the containers whose setup went wrong.
func wrong(setups []Setup) int {
	n := 0
	for _, s := range setups {
		if s.Error != "" {
			n++
		}
	}
	return n
}

func orNothing(s string) string {
	if strings.TrimSpace(s) == "" {
		return "(nothing)"
	}
	return s
}

const (
	// apiWithin is how long a pod's API may take to be up.
	apiWithin = 20 * time.Second
	// awayLimit is how long it may be away later, with its container running.
	awayLimit = 3 * time.Minute
)

// summary asks the pod; one that is not whole is started again, a few times.
func (l *Loop) summary(ctx context.Context, i Issue, pod Pod) (Summary, error) {
	if !pod.Whole {
		// In an archived repository nothing can come of it.
		if _, _, err := l.cfg.Forge.DefaultBranch(ctx, i.Key); err != nil {
			return Summary{}, err
		}
		if l.resumes[pod.Key] >= maxResumes {
			why := pod.Exit
			if why == "" {
				why = "a part of the pod ended"
			}
			return Summary{State: AgentFailed, Cause: CauseDied, Error: why + "; started again " + fmt.Sprint(maxResumes) + " times without success"}, nil
		}
		l.cfg.Log.Warn("starting a pod again", "pod", pod.Name, "exit", pod.Exit, "tries_before", l.resumes[pod.Key])
		if err := l.cfg.Pods.Resume(ctx, pod.Key); err != nil {
			return Summary{}, fmt.Errorf("starting %s again: %w", pod.Name, err)
		}
		if pod.Exit != "" && !pod.Stopped { // it ended by itself
			l.resumes[pod.Key]++
			l.exits[pod.Key] = pod.Exit
		}
	}
	sum, err := l.cfg.Pods.Summary(ctx, pod.Key)
	if err == nil {
		delete(l.away, pod.Key)
		return sum, nil
	}
	now := l.cfg.Uptime()
	if !pod.Whole || l.elapsed(pod.Key, "started", pod.Started) < apiWithin {
		return Summary{State: AgentStarting}, nil // it is not up yet
	}
	since, known := l.away[pod.Key]
	switch {
	case !known:
		l.away[pod.Key] = now
	case now-since > awayLimit:
		return Summary{State: AgentFailed, Cause: CauseUnreachable, Error: fmt.Sprintf("The pod's control container runs and has not answered for %s: %s.", awayLimit, firstLine(err.Error()))}, nil
	}
	return Summary{}, fmt.Errorf("asking %s how it is: %w", pod.Name, err)
}

// pull finds the pod's pull request; its number is 0 when there is none. One
// that was merged before the pod's label was put on belongs to an earlier run.
func (l *Loop) pull(ctx context.Context, pod Pod) (Pull, error) {
	pull, found, err := l.cfg.Forge.Pull(ctx, pod.Key, pod.Branch)
	if err != nil || !found || (!pull.Open && pull.ClosedAt.Before(pod.TriggerAt)) {
		return Pull{}, err
	}
	return pull, nil
}

// propose opens the pull request or brings it up to date: a draft until the
// agent is done and there is evidence ([Loop.ready]). One that has left draft stays so until its agent works
// again, or another commit is there.
func (l *Loop) propose(ctx context.Context, i Issue, pod Pod, v View, pull Pull, sum Summary, commits []Commit, o Orders) (View, error) {
	v.Title = i.Title
	if pull.Number == 0 {
		draft := pullText(v, i.Key, sum, commits, nil, nil, l.cfg.Harmless)
		draft.Draft = true
		why := l.because(ctx, Act{What: "pull-request", Rule: "the agent's branch has commits", Done: fmt.Sprintf("opens a draft, from %s to %s", pod.Branch, pod.Base)})
		opened, err := l.cfg.Forge.PutPull(why, i.Key, pod.Branch, pod.Base, draft)
		if err != nil {
			return v, fmt.Errorf("opening a pull request for %s: %w", i.Key, err)
		}
		pull, v.Pull, v.PullRequest = opened, opened.Number, opened.URL
		l.cfg.Log.Info("pull request opened", "issue", i.Key.String(), "pull", pull.Number)
	}
	if err := l.review(ctx, pod, &v, pull, sum, commits, o); err != nil {
		return v, err
	}
	if v.State == Starting && !pull.Draft { // what its agent does is not known yet
		return v, nil
	}
	changes, err := l.cfg.Forge.Changes(ctx, i.Key, pull.Number)
	if err != nil {
		return v, err
	}
	var ev *Evidence
	if v.State == Review {
		if ev, err = l.evidence(ctx, pod, &v, pull, sum, commits[len(commits)-1].SHA, changes); err != nil {
			return v, err
		}
	}
	if v.State == Review && ev.Check.State != CheckRunning {
		if err := l.ready(ctx, i, pod, pull, *ev); err != nil {
			return v, err
		}
	}
	text := pullText(v, i.Key, sum, commits, changes, ev, l.cfg.Harmless)
	text.Number = pull.Number // somebody may just have merged it
	if pull.Draft && !text.Draft {
		ctx = l.because(ctx, Act{What: "pull-request", Rule: "its agent is done, and there is evidence",
			Done: fmt.Sprintf("%d is no draft any more, at %s", pull.Number, commits[len(commits)-1].SHA)})
	}
	if _, err := l.cfg.Forge.PutPull(ctx, i.Key, pod.Branch, pod.Base, text); err != nil {
		return v, fmt.Errorf("updating pull request %d of %s: %w", pull.Number, i.Key, err)
	}
	return v, nil
}

// requestReview asks people for a review: the labeler, whoever's words were given to the agent, and
// who has approved of what was there before.
func (l *Loop) requestReview(ctx context.Context, i Issue, pull Pull, people []string) error {
	slices.Sort(people)
	for _, who := range slices.Compact(people) {
		why := l.because(ctx, Act{What: "review-request", Rule: "put the label on, or reviewed it", Done: fmt.Sprintf("%s is asked to review %d", who, pull.Number)})
		err := l.cfg.Forge.RequestReview(why, i.Key, pull.Number, who)
		switch {
		case errors.Is(err, ErrRefused): // may push, and may not see pull requests
			l.cfg.Log.Warn("somebody can't be asked for a review", "issue", i.Key.String(), "who", who, "err", err)
		case err != nil:
			return fmt.Errorf("asking %s for a review of pull request %d: %w", who, pull.Number, err)
		}
	}
	return nil
}

// finish ends the pod of an issue that is closed or has lost its label.
func (l *Loop) finish(ctx context.Context, i Issue, pod Pod) error {
	v := View{State: Stopped, Branch: pod.Branch, Pod: pod.Name, Labeler: pod.Labeler, Started: pod.Started, pod: pod.Key}
	pull, err := l.pull(ctx, pod)
	if err != nil {
		return err
	}
	if pull.Merged {
		return l.merged(ctx, i, pull, pod)
	}
	v.Pull, v.PullRequest = pull.Number, pull.URL
	v.Why = "The label was taken off."
	if !i.Open {
		v.Why = "The issue was closed."
	}
	who := l.unlabeler(ctx, i)
	if err := l.halt(ctx, i.Key, pod, who, v.Why); err != nil {
		return err
	}
	ctx = l.because(ctx, Act{Who: cmp.Or(who, pod.Labeler), Rule: v.Why})
	return l.show(ctx, i, v)
}

// halt stops a pod that nobody wants to run any more.
func (l *Loop) halt(ctx context.Context, k Key, pod Pod, who, why string) error {
	if pod.Stopped {
		return nil
	}
	if err := l.cfg.Pods.Stop(ctx, pod.Key); err != nil {
		return err
	}
	l.note(Act{What: "stop", Key: k, Who: who, Rule: why, Done: pod.Name}, nil)
	return nil
}

// conclude ends it all once a pull request is merged: the label is taken off where the
// merge did not close the issue, so that nothing starts again, it is told, and the pod
// is removed. The pod goes last: while it is there, a kill in between is made good.
func (l *Loop) conclude(ctx context.Context, i Issue, pull Pull, pod Pod) error {
	ctx = l.because(ctx, Act{Who: pod.Labeler, Rule: fmt.Sprintf("pull request %d was merged", pull.Number)})
	if i.wanted(l.cfg.Label) {
		if err := l.cfg.Forge.Unlabel(ctx, i.Key); err != nil {
			return err
		}
		var err error
		if i, err = l.cfg.Forge.Issue(ctx, i.Key); err != nil {
			return err
		}
	}
	err := l.show(ctx, i, View{State: Done, Doing: AgentGone, Branch: pod.Branch, pod: pod.Key, Pull: pull.Number, PullRequest: pull.URL,
		Why: fmt.Sprintf("Pull request %d was merged.", pull.Number)})
	if err != nil {
		return err
	}
	if err := l.cfg.Pods.Remove(ctx, pod.Key); err != nil {
		return err
	}
	l.note(Act{What: "remove", Key: i.Key, Rule: fmt.Sprintf("pull request %d was merged", pull.Number), Done: pod.Name}, nil)
	return nil
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return strings.TrimSuffix(clipLine(line, 500), ".")
}
