package reconcile

import (
	"context"
	"fmt"
)

// What happens to an issue whose place on the forge is lost, moved or closed to
// us: nothing can be told there, so the view says it.

// gone ends the pod of an issue that is not there any more. Its work is kept:
// only a person knows whether it still counts.
func (l *Loop) gone(ctx context.Context, k Key, pod Pod, has bool) error {
	if !has {
		return l.leave(k)
	}
	if err := l.cfg.Pods.Stop(ctx, pod.Key); err != nil {
		return err
	}
	l.end(Issue{Key: k}, pod, fmt.Sprintf("The issue is gone from the forge. Its pod is stopped and its work kept; `devaipod rm %s` removes it.", k))
	l.seen(Issue{Key: k}, pod, has)
	return l.cfg.Pods.Keep(k, nil)
}

// end stores the view of a stopped pod, and logs it when it is new.
func (l *Loop) end(i Issue, pod Pod, why string) {
	old, known := l.View(i.Key)
	if known && i.Title == "" {
		i.Title, i.URL = old.Title, old.URL
	}
	if old.Why != why {
		l.cfg.Log.Warn("stopped", "issue", i.Key.String(), "pod", pod.Name, "why", why)
	}
	l.keepView(i, View{State: Stopped, Why: why, Branch: pod.Branch, Pod: pod.Name, Labeler: pod.Labeler, Started: pod.Started, Resting: true, pod: pod.Key})
}

// readOnly ends the pod of an issue in an archived repository. When that takes
// changes again, the agent goes on: the label is still there.
func (l *Loop) readOnly(ctx context.Context, i Issue, pod Pod, has bool) error {
	const why = "The repository is archived: nothing can be pushed or told there. Work goes on within the hour after that is undone."
	delete(l.stuck, i.Key)
	if v, _ := l.View(i.Key); !has && life[v.State].place { // it was archived while the pod began
		pod, has = Pod{Key: v.pod, Branch: v.Branch, Labeler: v.Labeler}, true
	}
	if !has {
		l.keepView(i, View{State: Refused, Why: why})
		return nil
	}
	if err := l.cfg.Pods.Stop(ctx, pod.Key); err != nil {
		return err
	}
	l.end(i, pod, why)
	return nil
}

// overdue ends a pod past its deadline while the forge can't be asked. It is
// told when that is back.
func (l *Loop) overdue(ctx context.Context, pod Pod) error {
	if l.cfg.Deadline == 0 || pod.Created.IsZero() || pod.Stopped || l.elapsed(pod.Key, "created", pod.Created) < l.cfg.Deadline {
		return nil
	}
	if sum, err := l.cfg.Pods.Summary(ctx, pod.Key); err == nil && settled(sum.State) {
		return nil // it does not work any more
	}
	l.cfg.Log.Warn("stopping a pod at its deadline, with the forge away", "pod", pod.Name)
	return l.cfg.Pods.Stop(ctx, pod.Key)
}

// podOf finds the pod of an issue: by the repository's number where that is
// known, since names change hands.
func podOf(i Issue, pods map[Key]Pod) (Pod, bool) {
	pod, has := pods[i.Key]
	if has && (pod.RepoID == 0 || i.RepoID == 0 || pod.RepoID == i.RepoID) {
		return pod, true
	}
	for _, p := range pods {
		if p.RepoID != 0 && p.RepoID == i.RepoID && p.Issue == i.Issue {
			return p, true
		}
	}
	return Pod{}, false
}

// renamed moves what is known of an issue to its new name.
func (l *Loop) renamed(from, to Key) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if v, ok := l.views[from]; ok {
		v.Key, v.Issue = to, to.String()
		l.views[to] = v
		delete(l.views, from)
	}
	delete(l.line, from)
	if s, ok := l.said[from]; ok {
		l.said[to] = s
		delete(l.said, from)
	}
}

// namesake is about an issue whose pod's name is taken by a pod of an earlier
// repository with the same name. That one's volumes hold another repository's
// work: it is stopped, unless it goes on under another name, and the issue gets
// no pod until a person has removed it.
func (l *Loop) namesake(ctx context.Context, i Issue, other Pod) error {
	elsewhere := false
	for _, v := range l.Views() {
		elsewhere = elsewhere || (v.pod == other.Key && v.Key != i.Key)
	}
	if !elsewhere && !other.Stopped {
		if err := l.cfg.Pods.Stop(ctx, other.Key); err != nil {
			return err
		}
	}
	why := fmt.Sprintf("the pod of an issue with this number, in another repository that was called %s/%s before, is still here with its work; when that is not needed, run `devaipod rm %s`, then take the label off and put it on again", i.Owner, i.Repo, i.Key)
	if i.wanted(l.cfg.Label) {
		return l.refuse(ctx, i, why)
	}
	if !elsewhere {
		l.end(i, other, why)
	}
	return nil
}

// PodKey is the key of the pod that works on an issue: what it was called when
// the pod was made.
func (l *Loop) PodKey(k Key) Key {
	if v, ok := l.View(k); ok && v.pod != (Key{}) {
		return v.pod
	}
	return k
}
