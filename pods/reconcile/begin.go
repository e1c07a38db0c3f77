package reconcile

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// begin decides whether a label may start a pod (invariant S1) and starts it.
// Whatever can't be found out starts nothing.
func (l *Loop) begin(ctx context.Context, i Issue, tr Trigger, ok bool, pod Pod, has bool) error {
	tr, err := l.cause(ctx, i, tr)
	if err != nil {
		return err
	}
	ctx = l.because(ctx, Act{Who: tr.User, Rule: mayPush})
	task, why, err := l.task(ctx, i, tr, ok)
	if err != nil {
		return err
	}
	if why != "" {
		if has && !pod.Stopped { // its own label was taken off
			if err := l.cfg.Pods.Stop(ctx, pod.Key); err != nil {
				return err
			}
		}
		l.note(Act{What: "start", Key: i.Key, Who: tr.User, Rule: why, Done: fmt.Sprintf("label event %d", tr.ID), Result: "refused", Once: true}, nil)
		return l.refuse(ctx, i, why)
	}
	if has {
		task.Key = pod.Key
	}
	unkept := l.cfg.Pods.Keep(i.Key, &task)
	if unkept != nil {
		return l.unstarted(ctx, i, task, fmt.Errorf("keeping the task of %s: %w", i.Key, unkept))
	}
	if pull, found, err := l.cfg.Forge.Pull(ctx, i.Key, task.Branch); err != nil {
		return err
	} else if found && pull.Merged && pull.ClosedAt.After(tr.At) {
		// Its pod was removed, and we were killed before the label was.
		pod.Key, pod.Branch = task.Key, task.Branch
		return l.merged(ctx, i, pull, pod)
	}
	if !l.mayStart(i.Key) {
		if has && !pod.Stopped { // what it did for an earlier label is over
			if err := l.cfg.Pods.Stop(ctx, pod.Key); err != nil {
				return err
			}
		}
		l.wait(i, View{Labeler: tr.User, Agent: tr.Agent, Branch: task.Branch, pod: task.Key}, tr)
		return nil
	}
	l.cfg.Log.Info("starting a pod", "issue", i.Key.String(), "labeler", tr.User, "text", task.TextHash, "branch", task.Branch)
	delete(l.resumes, task.Key)
	delete(l.exits, task.Key)
	l.starting(i.Key, task)
	err = l.cfg.Pods.Begin(ctx, task)
	l.note(startOf(i.Key, task), err)
	if err != nil {
		return l.unstarted(ctx, i, task, err)
	}
	// From here on the pod carries it.
	delete(l.pins, i.Key)
	delete(l.stuck, i.Key)
	if err := l.cfg.Pods.Keep(i.Key, nil); err != nil {
		return err
	}
	if now, ok, err := l.cfg.Forge.Trigger(ctx, i.Key); err != nil || !ok || now.ID != tr.ID {
		l.Kick(i.Key) // taken off and perhaps put on again meanwhile
		if errors.Is(err, ErrUndone) {
			return nil
		}
		return err
	}
	return l.show(ctx, i, View{State: Starting, Branch: task.Branch, Activity: "starting", Labeler: tr.User, Agent: tr.Agent, Started: l.cfg.Now(), pod: task.Key})
}

// task finds what was pinned for the label event, or pins it now; why says what
// forbids it.
func (l *Loop) task(ctx context.Context, i Issue, tr Trigger, ok bool) (task Task, why string, err error) {
	kept, err := l.cfg.Pods.Kept(i.Key)
	if err != nil {
		return Task{}, "", err
	}
	if ok && kept != nil && kept.Trigger.ID == tr.ID {
		return *kept, "", nil
	}
	if pinned, there := l.pins[i.Key]; ok && there && pinned.Trigger.ID == tr.ID {
		return pinned, "", nil
	}
	if task, why, err = l.pin(ctx, i, tr, ok); err == nil && why == "" {
		l.pins[i.Key] = task // should it not be possible to keep it
	}
	return task, why, err
}

// A stuck is a label event that no pod could be started for yet.
type stuck struct {
	label int64
	since time.Duration // Uptime
}

// unstarted tells why a pod can't start yet, and returns the reason, so that it
// is tried again; when that has gone on for too long it counts as failed, and is
// tried at the passes over everything alone.
func (l *Loop) unstarted(ctx context.Context, i Issue, t Task, err error) error {
	s, known := l.stuck[i.Key]
	if !known || s.label != t.Trigger.ID {
		s = stuck{label: t.Trigger.ID, since: l.cfg.Uptime()}
		l.stuck[i.Key] = s
	}
	v := View{State: Queued, Branch: t.Branch, Labeler: t.Trigger.User, Agent: t.Trigger.Agent, pod: t.Key,
		Why: "The pod can't start yet: " + firstLine(err.Error()) + ". It is tried again."}
	if l.cfg.Deadline > 0 && l.cfg.Uptime()-s.since >= l.cfg.Deadline {
		l.cfg.Log.Error("the pod could not be started", "issue", i.Key.String(), "for", l.cfg.Deadline, "err", err)
		v.State, v.Cause = Failed, CauseStart
		v.Why = fmt.Sprintf("The pod could not be started for %s: %s.", l.cfg.Deadline, firstLine(err.Error()))
		err = nil
	}
	return errors.Join(err, l.show(ctx, i, v))
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
	// Every edit, label and comment moves the issue's time of update.
	if changedAfter(i.Updated, tr) && !l.ours(i, tr) {
		return Task{}, "the issue may have changed after the label was put on; please read it again, then take the label off and put it on again", nil
	}
	comments, err := l.cfg.Forge.Comments(ctx, i.Key)
	if err != nil {
		return Task{}, "", err
	}
	tx := pinned(i, comments, tr)
	branch := l.cfg.BranchName(i.Issue, i.Title)
	return Task{
		Key: i.Key, RepoID: i.RepoID, Title: i.Title, Branch: branch, Base: base, Trigger: tr,
		Model: tx.model(tr.User), Prompt: tx.prompt(branch, base), TextHash: tx.hash(),
	}, "", nil
}

// refusal says why a label starts nothing, "" when it may.
func (l *Loop) refusal(ctx context.Context, i Issue, tr Trigger, ok bool) (string, error) {
	switch {
	case !ok:
		return "the forge does not tell who put the label on; take it off and put it on again", nil
	case l.isOurs(tr.User):
		return "the label was put on by devaipod's own account; a person has to do that", nil
	}
	can, err := l.cfg.Forge.CanWrite(ctx, i.Key, tr.User)
	if err != nil {
		return "", fmt.Errorf("asking whether %s may write to %s/%s: %w", tr.User, i.Owner, i.Repo, err)
	}
	if can && tr.Agent != "" && !slices.Contains(l.cfg.Agents, tr.Agent) {
		known := "none has a name"
		if len(l.cfg.Agents) > 0 {
			known = "known are " + strings.Join(l.cfg.Agents, ", ")
		}
		return fmt.Sprintf("there is no agent %s here: %s; put the label of one of them on, or %s alone", code(tr.Agent), known, code(l.cfg.Label)), nil
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
	l.keepView(i, View{State: Refused, Why: why})
	// The issue's own name, which may be part of a command to copy, stays whole.
	why = strings.ReplaceAll(l.cfg.Harmless(why), l.cfg.Harmless(i.Key.String()), i.Key.String())
	body := fmt.Sprintf("No agent was started: %s.", why)
	if l.said[i.Key].body == body {
		return nil
	}
	ctx = l.because(ctx, Act{Rule: "nothing starts, which is told"})
	done, err := l.write(ctx, i, func() error {
		if err := l.cfg.Forge.Say(ctx, i.Key, "refused", body); err != nil {
			return err
		}
		return l.cfg.Forge.SetState(ctx, i, "")
	})
	if err != nil {
		return fmt.Errorf("telling on %s why nothing starts: %w", i.Key, err)
	}
	if !done {
		return nil
	}
	l.cfg.Log.Warn("not started", "issue", i.Key.String(), "why", why)
	l.said[i.Key] = said{body: body, state: Refused, at: l.cfg.Uptime()}
	return nil
}
