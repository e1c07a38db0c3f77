package reconcile

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// reconcileOne takes the next step for one issue.
func (l *Loop) reconcileOne(ctx context.Context, k Key, pod Pod, has bool, pods map[Key]Pod) error {
	i, err := l.cfg.Forge.Issue(ctx, k)
	if err == nil {
		if err = l.reconcileIssue(ctx, i, pod, has, pods); err == nil {
			l.seen(i, pod, has)
		}
		return err
	}
	switch {
	case errors.Is(err, ErrGone):
		if !has {
			return l.leave(k)
		}
		l.cfg.Log.Warn("the issue is gone; its pod is stopped and its work kept", "issue", k.String())
		l.seen(Issue{Key: k}, pod, has)
		return l.cfg.Pods.Stop(ctx, k)
	default:
		return err
	}
}

// wanted tells whether the issue asks for an agent.
func (i Issue) wanted(label string) bool { return i.Open && slices.Contains(i.Labels, label) }

func (l *Loop) reconcileIssue(ctx context.Context, i Issue, pod Pod, has bool, pods map[Key]Pod) error {
	k := i.Key
	if !i.wanted(l.cfg.Label) {
		if !has {
			return errors.Join(l.leaveState(ctx, i), l.leave(k))
		}
		return l.finish(ctx, i, pod)
	}
	tr, ok, err := l.cfg.Forge.Trigger(ctx, k)
	if err != nil {
		return fmt.Errorf("asking who labeled %s: %w", k, err)
	}
	if has && ok && pod.TriggerID == tr.ID {
		return l.advance(ctx, i, pod)
	}
	return l.begin(ctx, i, tr, ok, pods)
}

// leave forgets an issue that nobody wants and that has no pod.
func (l *Loop) leave(k Key) error {
	l.forget(k)
	return l.cfg.Pods.Keep(k, nil)
}

// leaveState takes the label agent/queued off an issue that waits no more.
func (l *Loop) leaveState(ctx context.Context, i Issue) error {
	if !slices.Contains(i.Labels, stateScope+string(Queued)) {
		return nil
	}
	return l.cfg.Forge.SetState(ctx, i, "")
}

// begin decides whether a label may start a pod (invariant S1) and starts it.
// Whatever can't be found out starts nothing.
func (l *Loop) begin(ctx context.Context, i Issue, tr Trigger, ok bool, pods map[Key]Pod) error {
	kept, err := l.cfg.Pods.Kept(i.Key)
	if err != nil {
		return err
	}
	if kept == nil || !ok || kept.Trigger.ID != tr.ID {
		task, why, err := l.pin(ctx, i, tr, ok)
		if err != nil {
			return err
		}
		if why != "" {
			return l.refuse(ctx, i, why)
		}
		if err := l.cfg.Pods.Keep(i.Key, &task); err != nil {
			return fmt.Errorf("keeping the task of %s: %w", i.Key, err)
		}
		kept = &task
	}
	task := *kept
	if pull, found, err := l.cfg.Forge.Pull(ctx, i.Key, task.Branch); err != nil {
		return err
	} else if found && pull.Merged && pull.ClosedAt.After(tr.At) {
		// Its pod was removed, and we were killed before the label was.
		return l.merged(ctx, i, pull, task.Branch)
	}
	if l.cfg.Max > 0 && l.busy(i.Key, pods) >= l.cfg.Max {
		return l.queue(ctx, i, task)
	}
	l.cfg.Log.Info("starting a pod", "issue", i.Key.String(), "labeler", tr.User, "text", task.TextHash, "branch", task.Branch)
	delete(l.resumes, i.Key)
	v := View{State: Working, Branch: task.Branch, Activity: "starting", Labeler: tr.User, Started: l.cfg.Now()}
	if err := l.cfg.Pods.Begin(ctx, task); err != nil {
		v.State, v.Activity = Queued, ""
		v.Why = "The pod can't start yet: " + firstLine(err.Error()) + ". It is tried again."
		return errors.Join(err, l.show(ctx, i, v))
	}
	// From here on the pod carries it.
	if err := l.cfg.Pods.Keep(i.Key, nil); err != nil {
		return err
	}
	return l.show(ctx, i, v)
}

// pin asks whether the label may start a pod and, if so, takes the text as it
// is now; why says what forbids it. The pin is kept until the pod carries it:
// our own writes on the issue change its time of update, by which an edit after
// the label is seen, so the question can be asked only once.
func (l *Loop) pin(ctx context.Context, i Issue, tr Trigger, ok bool) (task Task, why string, err error) {
	if why, err := l.refusal(ctx, i, tr, ok); err != nil || why != "" {
		return Task{}, why, err
	}
	base, why, err := l.base(ctx, i)
	if err != nil || why != "" {
		return Task{}, why, err
	}
	// Every edit, label and comment moves the issue's time of update; the forge
	// keeps whole seconds, and takes the two times one after the other.
	if i.Updated.After(tr.At.Add(time.Second)) {
		return Task{}, "the issue may have changed after the label was put on; please read it again, then take the label off and put it on again", nil
	}
	comments, err := l.cfg.Forge.Comments(ctx, i.Key)
	if err != nil {
		return Task{}, "", err
	}
	tx := pinned(i, comments, tr)
	branch := l.cfg.BranchName(i.Issue, i.Title)
	return Task{
		Key: i.Key, Title: i.Title, Branch: branch, Base: base, Trigger: tr,
		Model: tx.model(tr.User), Prompt: tx.prompt(branch, base), TextHash: tx.hash(),
	}, "", nil
}

// refusal says why a label starts nothing, "" when it may.
func (l *Loop) refusal(ctx context.Context, i Issue, tr Trigger, ok bool) (string, error) {
	switch {
	case !ok:
		return "the forge does not tell who put the label on; take it off and put it on again", nil
	case slices.ContainsFunc(l.cfg.Ours, func(u string) bool { return strings.EqualFold(u, tr.User) }):
		return "the label was put on by devaipod's own account; a person has to do that", nil
	}
	can, err := l.cfg.Forge.CanWrite(ctx, i.Key, tr.User)
	if err != nil {
		return "", fmt.Errorf("asking whether %s may write to %s/%s: %w", tr.User, i.Owner, i.Repo, err)
	}
	if !can {
		return fmt.Sprintf("thank you, but %s can't push code to this repository, and only somebody who can may start an agent; please ask one of them to put the label on", tr.User), nil
	}
	return "", nil
}

// base is the branch that the work starts from.
func (l *Loop) base(ctx context.Context, i Issue) (name, why string, err error) {
	def, ok, err := l.cfg.Forge.DefaultBranch(ctx, i.Key)
	switch {
	case err != nil:
		return "", "", err
	case !ok:
		return "", "the repository is empty; push a first commit, then take the label off and put it on again", nil
	case i.Ref == "":
		return def, "", nil
	}
	name = strings.TrimPrefix(i.Ref, "refs/heads/")
	ok, err = l.cfg.Forge.HasBranch(ctx, i.Key, name)
	if err == nil && !ok {
		return "", fmt.Sprintf("the issue is about the branch %s, which the repository does not have; choose another, then take the label off and put it on again", code(name)), nil
	}
	return name, "", err
}

// refuse tells once, politely, and starts nothing.
func (l *Loop) refuse(ctx context.Context, i Issue, why string) error {
	v := View{Key: i.Key, Issue: i.Key.String(), Title: i.Title, URL: i.URL, State: Refused, Why: why}
	l.mu.Lock()
	l.views[i.Key] = v
	l.mu.Unlock()
	body := fmt.Sprintf("No agent was started: %s.", l.cfg.Harmless(why))
	if l.said[i.Key].body == body {
		return nil
	}
	l.cfg.Log.Warn("not started", "issue", i.Key.String(), "why", why)
	if err := l.cfg.Forge.Say(ctx, i.Key, "refused", body); err != nil {
		return fmt.Errorf("telling on %s why nothing starts: %w", i.Key, err)
	}
	l.said[i.Key] = said{body: body, state: Refused, at: time.Now()}
	return nil
}

// queue tells that an issue waits for its turn.
func (l *Loop) queue(ctx context.Context, i Issue, t Task) error {
	return l.show(ctx, i, View{
		State: Queued, Labeler: t.Trigger.User, Branch: t.Branch, limit: true,
		Why: fmt.Sprintf("%d agents are working, and no more may at a time (agent.max).", l.cfg.Max),
	})
}

// busy counts the pods whose agent works, other than k's.
func (l *Loop) busy(k Key, pods map[Key]Pod) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for key, p := range pods {
		v, known := l.views[key]
		if key != k && p.Whole && (!known || v.State == Working) {
			n++
		}
	}
	// Started in this pass, after the pods were listed.
	for key, v := range l.views {
		if _, listed := pods[key]; !listed && key != k && v.State == Working {
			n++
		}
	}
	return n
}

// advance brings a pod's branch and pull request to where its agent is.
func (l *Loop) advance(ctx context.Context, i Issue, pod Pod) error {
	v := View{Key: i.Key, State: Working, Branch: pod.Branch, Pod: pod.Name, Labeler: pod.Labeler, Started: pod.Started}
	pull, err := l.pull(ctx, pod)
	if err != nil {
		return err
	}
	v.Pull, v.PullRequest = pull.Number, pull.URL
	switch {
	case pull.Merged:
		return l.merged(ctx, i, pull, pod.Branch)
	case pull.Number != 0 && !pull.Open:
		if err := l.cfg.Pods.Stop(ctx, i.Key); err != nil {
			return err
		}
		v.State, v.Why = Stopped, fmt.Sprintf("Pull request %d was closed without a merge.", pull.Number)
		return l.show(ctx, i, v)
	}
	if state, rests := l.rests(i, pod); rests {
		v.State, v.Resting = state, true
		if old, ok := l.View(i.Key); ok && old.State == state {
			v.Why, v.Cause = old.Why, old.Cause
		}
		l.keepView(i, v)
		return nil
	}
	sum, err := l.summary(ctx, pod)
	if err != nil {
		return err
	}
	commits, err := l.cfg.Forge.Ahead(ctx, i.Key, pod.Base, pod.Branch)
	if err != nil {
		return err
	}
	v.judge(sum, len(commits))
	if len(commits) > 0 {
		if v, err = l.propose(ctx, i, pod, v, pull, sum, commits); err != nil {
			return err
		}
	}
	if err := l.limit(ctx, &v, pod, sum); err != nil {
		return err
	}
	return l.show(ctx, i, v)
}

// rests tells whether a pod was stopped on purpose while its agent waited for a
// person, or had failed; the issue's label says which. It needs no processes
// then, and is not started again.
func (l *Loop) rests(i Issue, pod Pod) (State, bool) {
	if !pod.Stopped {
		return "", false
	}
	for _, s := range []State{Asking, Review, Failed} {
		if slices.Contains(i.Labels, stateScope+string(s)) {
			return s, true
		}
	}
	return "", false
}

// limit ends what has gone on for too long: work at the deadline, and the
// processes of a pod that waits for a person.
func (l *Loop) limit(ctx context.Context, v *View, pod Pod, sum Summary) error {
	now := l.cfg.Now()
	if v.State == Working {
		if l.cfg.Deadline == 0 || pod.Created.IsZero() {
			return nil
		}
		if v.until = pod.Created.Add(l.cfg.Deadline); now.Before(v.until) {
			return nil
		}
		v.State, v.Cause, v.Activity = Failed, CauseDeadline, ""
		v.Why = fmt.Sprintf("It has worked for %s, which is as long as an agent may (agent.deadline).", l.cfg.Deadline)
		return l.stop(ctx, v)
	}
	if l.cfg.Rest == 0 || sum.Since.IsZero() {
		return nil
	}
	if v.until = sum.Since.Add(l.cfg.Rest); now.Before(v.until) {
		return nil
	}
	return l.stop(ctx, v)
}

// stop ends a pod's processes; what v says stays true.
func (l *Loop) stop(ctx context.Context, v *View) error {
	v.Resting, v.until = true, time.Time{}
	return l.cfg.Pods.Stop(ctx, v.Key)
}

// judge turns what the agent says, and what it pushed, into a state. What it
// says it pushed counts for nothing.
func (v *View) judge(sum Summary, commits int) {
	v.Cause = sum.Cause
	switch sum.State {
	case AgentDone:
		if v.State = Review; commits == 0 {
			v.State, v.Cause = Asking, CauseNothing
			v.Why = "The agent ended without pushing a commit. It said:\n\n" + orNothing(sum.Message)
		}
	case AgentAsking:
		v.State, v.Why = Asking, "The agent asks:\n\n"+orNothing(sum.Question)
	case AgentFailed:
		v.State, v.Why = Failed, orNothing(sum.Error)
	case AgentStarting:
		v.State, v.Activity = Working, "starting"
	default:
		v.State, v.Activity = Working, sum.Activity
	}
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
func (l *Loop) summary(ctx context.Context, pod Pod) (Summary, error) {
	if !pod.Whole {
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
		}
	}
	sum, err := l.cfg.Pods.Summary(ctx, pod.Key)
	if err == nil {
		delete(l.away, pod.Key)
		return sum, nil
	}
	now := l.cfg.Now()
	if !pod.Whole || now.Sub(pod.Started) < apiWithin {
		return Summary{State: AgentStarting}, nil // it is not up yet
	}
	since, known := l.away[pod.Key]
	switch {
	case !known:
		l.away[pod.Key] = now
	case now.Sub(since) > awayLimit:
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
// agent is done. The labeler is asked for a review before it stops being a
// draft, so that a kill between the two asks again instead of never.
func (l *Loop) propose(ctx context.Context, i Issue, pod Pod, v View, pull Pull, sum Summary, commits []Commit) (View, error) {
	v.Title = i.Title
	if pull.Number == 0 {
		draft := pullText(v, i.Key, sum, commits, nil, l.cfg.Harmless)
		draft.Draft = true
		opened, err := l.cfg.Forge.PutPull(ctx, i.Key, pod.Branch, pod.Base, draft)
		if err != nil {
			return v, fmt.Errorf("opening a pull request for %s: %w", i.Key, err)
		}
		pull, v.Pull, v.PullRequest = opened, opened.Number, opened.URL
		l.cfg.Log.Info("pull request opened", "issue", i.Key.String(), "pull", pull.Number)
	}
	if v.State == Review && pull.Draft {
		err := l.cfg.Forge.RequestReview(ctx, i.Key, pull.Number, pod.Labeler)
		switch {
		case errors.Is(err, ErrRefused): // may push, and may not see pull requests
			l.cfg.Log.Warn("the labeler can't be asked for a review", "issue", i.Key.String(), "labeler", pod.Labeler, "err", err)
		case err != nil:
			return v, fmt.Errorf("asking %s for a review of pull request %d: %w", pod.Labeler, pull.Number, err)
		}
	}
	changes, err := l.cfg.Forge.Changes(ctx, i.Key, pull.Number)
	if err != nil {
		return v, err
	}
	if _, err := l.cfg.Forge.PutPull(ctx, i.Key, pod.Branch, pod.Base, pullText(v, i.Key, sum, commits, changes, l.cfg.Harmless)); err != nil {
		return v, fmt.Errorf("updating pull request %d of %s: %w", pull.Number, i.Key, err)
	}
	return v, nil
}

// finish ends the pod of an issue that is closed or has lost its label.
func (l *Loop) finish(ctx context.Context, i Issue, pod Pod) error {
	v := View{State: Stopped, Branch: pod.Branch, Pod: pod.Name, Labeler: pod.Labeler, Started: pod.Started}
	pull, err := l.pull(ctx, pod)
	if err != nil {
		return err
	}
	if pull.Merged {
		return l.merged(ctx, i, pull, pod.Branch)
	}
	v.Pull, v.PullRequest = pull.Number, pull.URL
	if err := l.cfg.Pods.Stop(ctx, i.Key); err != nil {
		return err
	}
	v.Why = "The label was taken off."
	if !i.Open {
		v.Why = "The issue was closed."
	}
	return l.show(ctx, i, v)
}

// merged ends it all: the label is taken off where the merge did not close the
// issue, so that nothing starts again, it is told, and the pod is removed. The
// pod goes last: while it is there, a kill in between is made good.
func (l *Loop) merged(ctx context.Context, i Issue, pull Pull, branch string) error {
	if i.Open && slices.Contains(i.Labels, l.cfg.Label) {
		if err := l.cfg.Forge.Unlabel(ctx, i.Key); err != nil {
			return err
		}
	}
	err := l.show(ctx, i, View{State: Done, Branch: branch, Pull: pull.Number, PullRequest: pull.URL,
		Why: fmt.Sprintf("Pull request %d was merged.", pull.Number)})
	if err != nil {
		return err
	}
	return l.cfg.Pods.Remove(ctx, i.Key)
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return strings.TrimSuffix(clip(line, 500), ".")
}
