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
	switch {
	case errors.Is(err, ErrGone):
		if !has {
			return nil
		}
		l.cfg.Log.Warn("the issue is gone; its pod is stopped and its work kept", "issue", k.String())
		return l.cfg.Pods.Stop(ctx, k)
	case err != nil:
		return err
	}
	if !i.Open || !slices.Contains(i.Labels, l.cfg.Label) {
		if !has {
			return l.leave(i)
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
func (l *Loop) leave(i Issue) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if v, ok := l.views[i.Key]; ok && v.State != Done && v.State != Stopped {
		delete(l.views, i.Key)
	}
	return nil
}

// begin decides whether a label may start a pod (invariant S1) and starts it.
// Whatever can't be found out starts nothing.
func (l *Loop) begin(ctx context.Context, i Issue, tr Trigger, ok bool, pods map[Key]Pod) error {
	task, pinned := l.pins[i.Key]
	if !pinned || !ok || task.Trigger.ID != tr.ID {
		why, err := l.pin(ctx, i, tr, ok)
		if err != nil {
			return err
		}
		if why != "" {
			return l.refuse(ctx, i, why)
		}
		task = l.pins[i.Key]
	}
	if pull, found, err := l.cfg.Forge.Pull(ctx, i.Key, task.Branch); err != nil {
		return err
	} else if found && pull.Merged && pull.ClosedAt.After(tr.At) {
		// Its pod was removed, and we were killed before the label was.
		return l.merged(ctx, i, pull, task.Branch)
	}
	if l.cfg.Max > 0 && l.busy(i.Key, pods) >= l.cfg.Max {
		l.queue(i, tr)
		return nil
	}
	l.cfg.Log.Info("starting a pod", "issue", i.Key.String(), "labeler", tr.User, "text", task.TextHash, "branch", task.Branch)
	delete(l.resumes, i.Key)
	v := View{State: Working, Branch: task.Branch, Activity: "starting", Labeler: tr.User, Started: time.Now()}
	if err := l.cfg.Pods.Begin(ctx, task); err != nil {
		v.State, v.Activity = Queued, ""
		v.Why = "The pod can't start yet: " + firstLine(err.Error()) + ". It is tried again."
		return errors.Join(err, l.show(ctx, i, v))
	}
	delete(l.pins, i.Key) // from here on the pod carries it
	return l.show(ctx, i, v)
}

// pin asks whether the label may start a pod and, if so, keeps the text as it
// is now; why says what forbids it. The pin is kept in memory until the pod
// carries it: our own writes on the issue change its time of update, by which
// an edit after the label is seen, so the question can be asked only once.
func (l *Loop) pin(ctx context.Context, i Issue, tr Trigger, ok bool) (why string, err error) {
	if why, err := l.refusal(ctx, i, tr, ok); err != nil || why != "" {
		return why, err
	}
	base, why, err := l.base(ctx, i)
	if err != nil || why != "" {
		return why, err
	}
	// Every edit, label and comment moves the issue's time of update; the forge
	// keeps whole seconds, and takes the two times one after the other.
	if i.Updated.After(tr.At.Add(time.Second)) {
		return "the issue may have changed after the label was put on; please read it again, then take the label off and put it on again", nil
	}
	comments, err := l.cfg.Forge.Comments(ctx, i.Key)
	if err != nil {
		return "", err
	}
	tx := pinned(i, comments, tr)
	branch := l.cfg.BranchName(i.Issue, i.Title)
	l.pins[i.Key] = Task{
		Key: i.Key, Title: i.Title, Branch: branch, Base: base, Trigger: tr,
		Model: tx.model(tr.User), Prompt: tx.prompt(branch, base), TextHash: tx.hash(),
	}
	return "", nil
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

// queue shows an issue as waiting, to those who ask us.
func (l *Loop) queue(i Issue, tr Trigger) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.views[i.Key] = View{
		Key: i.Key, Issue: i.Key.String(), Title: i.Title, URL: i.URL, State: Queued, Labeler: tr.User,
		Why: fmt.Sprintf("%d agents are working, and no more may at a time (agent.max)", l.cfg.Max),
	}
}

// busy counts the pods whose agent works, other than k's.
func (l *Loop) busy(k Key, pods map[Key]Pod) int {
	n := 0
	for key, p := range pods {
		v, known := l.View(key)
		if key != k && p.Whole && (!known || v.State == Working) {
			n++
		}
	}
	// Started in this pass, after the pods were listed.
	for _, v := range l.Views() {
		if _, listed := pods[v.Key]; !listed && v.Key != k && v.State == Working {
			n++
		}
	}
	return n
}

// advance brings a pod's branch and pull request to where its agent is.
func (l *Loop) advance(ctx context.Context, i Issue, pod Pod) error {
	v := View{State: Working, Branch: pod.Branch, Pod: pod.Name, Labeler: pod.Labeler, Started: pod.Started}
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
	sum, err := l.summary(ctx, pod)
	if err != nil {
		return err
	}
	commits, err := l.cfg.Forge.Ahead(ctx, i.Key, pod.Base, pod.Branch)
	if err != nil {
		return err
	}
	v.State, v.Why, v.Activity = judge(sum, len(commits))
	if len(commits) > 0 {
		if v, err = l.propose(ctx, i, pod, v, pull, sum, commits); err != nil {
			return err
		}
	}
	return l.show(ctx, i, v)
}

// judge turns what the agent says, and what it pushed, into a state.
func judge(sum Summary, commits int) (s State, why, activity string) {
	switch sum.State {
	case AgentDone:
		if commits > 0 {
			return Review, "", ""
		}
		return Asking, "The agent ended without pushing a commit. It said:\n\n" + orNothing(sum.Message), ""
	case AgentAsking:
		return Asking, "The agent asks:\n\n" + orNothing(sum.Question), ""
	case AgentFailed:
		return Failed, orNothing(sum.Error), ""
	case AgentStarting:
		return Working, "", "starting"
	}
	return Working, "", sum.Activity
}

func orNothing(s string) string {
	if strings.TrimSpace(s) == "" {
		return "(nothing)"
	}
	return s
}

// apiWithin is how long a pod's API may take to be up.
const apiWithin = 20 * time.Second

// summary asks the pod; one that is not whole is started again, a few times.
func (l *Loop) summary(ctx context.Context, pod Pod) (Summary, error) {
	if !pod.Whole {
		if l.resumes[pod.Key] >= maxResumes {
			why := pod.Exit
			if why == "" {
				why = "a part of the pod ended"
			}
			return Summary{State: AgentFailed, Error: why + "; started again " + fmt.Sprint(maxResumes) + " times without success"}, nil
		}
		l.cfg.Log.Warn("starting a pod again", "pod", pod.Name, "exit", pod.Exit, "tries_before", l.resumes[pod.Key])
		if err := l.cfg.Pods.Resume(ctx, pod.Key); err != nil {
			return Summary{}, fmt.Errorf("starting %s again: %w", pod.Name, err)
		}
		if pod.Exit != "" { // it ended by itself; a first start that was cut short counts not
			l.resumes[pod.Key]++
		}
	}
	sum, err := l.cfg.Pods.Summary(ctx, pod.Key)
	switch {
	case err == nil:
		return sum, nil
	case !pod.Whole || time.Since(pod.Started) < apiWithin:
		return Summary{State: AgentStarting}, nil // its pod-api is not up yet
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
