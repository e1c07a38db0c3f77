package reconcile

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Orders are what people who may push said on the issue for its pod: in comments,
// on lines of their own that begin with a slash.
type Orders struct {
	Budget []string // of /budget, the oldest first
	Allow  []string // of /allow: hosts
	At     time.Time
	// Retry is the newest /retry, with what the agent is told; its ID is 0 for none.
	Retry Said
	// Said is what they said to the agent, or to one another: comments without their
	// orders, the oldest first.
	Said []Said
}

// Said is one of them.
type Said struct {
	ID   int64
	Text string
	At   time.Time // when it was said, or changed
	By   string    // whose comment it is, "" for a button
	pull bool      // it is on the pull request
}

// ordered are an issue's orders, as they were when it and its pull request were updated last.
type ordered struct {
	updated [2]time.Time
	first   time.Duration // Uptime at which the update was first seen
	read    time.Duration
	orders  Orders
}

// settles is how long after an update another one may bear the same time: the
// forge keeps whole seconds, by a clock of its own.
const settles = 5 * time.Second

// orders reads the comments of the issue and of its pull request, when one has changed since
// they were read. Whoever wrote or changed an order must be allowed to push now; any doubt is an
// error.
func (l *Loop) orders(ctx context.Context, i Issue, pull Pull) (Orders, error) {
	read := l.cfg.Uptime()
	first, updated := read, [2]time.Time{i.Updated, pull.Updated}
	if last, known := l.ordered[i.Key]; known && last.updated == updated {
		if first = last.first; last.read-first > settles {
			return last.orders, nil
		}
	}
	comments, err := l.comments(ctx, i.Key, pull.Number)
	if err != nil {
		return Orders{}, err
	}
	var o Orders
	may := map[string]bool{}
	for _, c := range comments {
		orders, said := OrdersIn(c.Body)
		budget, allow, retry := linesAfter(orders, "/budget "), linesAfter(orders, "/allow "), hasOrder(orders, "/retry")
		if len(budget)+len(allow)+len(said) == 0 && !retry || l.isOurs(c.Author) {
			continue
		}
		trusted, asked := may[c.Author]
		if !asked {
			if trusted, err = l.trusts(ctx, i.Key, c.Author); err != nil {
				return Orders{}, err
			}
			may[c.Author] = trusted
		}
		if !trusted {
			continue
		}
		if said != "" {
			o.Said = append(o.Said, Said{c.ID, said, c.Updated, c.Author, c.pull})
		}
		if retry {
			o.Retry = Said{c.ID, cmp.Or(said, again), c.Updated, c.Author, c.pull}
		}
		if len(budget)+len(allow) == 0 && !retry {
			continue
		}
		o.Budget, o.Allow = append(o.Budget, budget...), append(o.Allow, allow...)
		l.ordersTaken(i.Key, c, budget, allow, retry)
		if c.Updated.After(o.At) {
			o.At = c.Updated
		}
	}
	l.ordered[i.Key] = ordered{updated, first, read, o}
	return o, nil
}

// comments are those of an issue and of its pull request, if it has one, the oldest first.
func (l *Loop) comments(ctx context.Context, k Key, pull int64) ([]Comment, error) {
	all, err := l.cfg.Forge.Comments(ctx, k)
	if err != nil {
		return nil, fmt.Errorf("reading what was said on %s: %w", k, err)
	}
	if pull == 0 {
		return all, nil
	}
	k.Issue = pull
	more, err := l.cfg.Forge.Comments(ctx, k)
	if err != nil {
		return nil, fmt.Errorf("reading what was said on pull request %s: %w", k, err)
	}
	more = slices.Clone(more)
	for i := range more {
		more[i].pull = true
	}
	all = slices.Concat(all, more)
	slices.SortStableFunc(all, func(a, b Comment) int { return cmp.Compare(a.ID, b.ID) })
	return all, nil
}

// OrdersIn takes a comment apart: the lines that begin with a slash, and the rest. In a block of
// code and in what is not shown (<!-- -->) such a line is somebody else's, or an example.
func OrdersIn(body string) (orders, said string) {
	var o, rest strings.Builder
	fence, hidden := "", false
	for line := range strings.Lines(body) {
		shown := !hidden && fence == ""
		text := strings.TrimSpace(line)
		switch {
		case fence != "":
			if strings.HasPrefix(text, fence) && strings.Trim(text, fence[:1]) == "" {
				fence = ""
			}
		case shown && (strings.HasPrefix(text, "```") || strings.HasPrefix(text, "~~~")):
			fence = text[:len(text)-len(strings.TrimLeft(text, text[:1]))]
		default:
			if begin, end := strings.LastIndex(line, "<!--"), strings.LastIndex(line, "-->"); begin != end {
				hidden = begin > end
			}
		}
		if shown && strings.HasPrefix(line, "/") {
			o.WriteString(line)
		} else {
			rest.WriteString(line)
		}
	}
	return o.String(), strings.TrimSpace(rest.String())
}

// hasOrder tells whether a line of a comment is a command that takes nothing.
func hasOrder(body, command string) bool {
	for line := range strings.Lines(body) {
		if strings.TrimRight(line, " \r\n") == command {
			return true
		}
	}
	return false
}

// again is what an agent is told that is to try again, when people say nothing else.
const again = "Somebody asks you to try again. Go on with the task from where you were, and push your work when it is done."

// Retry has the agent on an issue try again, as /retry does. It is forgotten with the
// process.
func (l *Loop) Retry(k Key) {
	l.mu.Lock()
	now := l.cfg.Now()
	l.pressed[k] = Said{ID: -now.UnixMicro(), Text: again, At: now} // no comment has such an id
	l.mu.Unlock()
	l.Kick(k)
}

// word is the newest comment of a person's to the agent, 0 for none: after it the agent
// has all its rounds of CI again.
func (o Orders) word() int64 {
	newest := o.Retry.ID
	for _, s := range o.Said {
		newest = max(newest, s.ID)
	}
	return newest
}

// retries is what asks for another try and has not been seen to: the button, or a
// comment since the label.
func (l *Loop) retries(k Key, pod Pod, o Orders) (Said, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s, ok := l.pressed[k]; ok {
		return s, true
	}
	return o.Retry, o.Retry.ID != 0 && o.Retry.At.After(pod.TriggerAt) && o.Retry.ID > l.heeds[k]
}

// ordersFor are an issue's, for its pod.
func (l *Loop) ordersFor(ctx context.Context, i Issue, pod Pod, pull Pull) (Orders, error) {
	o, err := l.orders(ctx, i, pull)
	if err == nil {
		err = l.heeded(i.Key, pod, o)
	}
	return o, err
}

// heeded knows of a /retry that was seen to before this process was there.
func (l *Loop) heeded(k Key, pod Pod, o Orders) error {
	if _, wanted := l.retries(k, pod, Orders{Retry: o.Retry}); !wanted || o.Retry.ID == 0 {
		return nil
	}
	last, err := l.cfg.Pods.Heeded(pod.Key)
	if err != nil {
		return fmt.Errorf("reading which /retry on %s was seen to: %w", k, err)
	}
	l.noteHeed(k, last)
	return nil
}

// heed notes that what asked for another try was seen to, also for the next process.
func (l *Loop) heed(k Key, pod Pod, s Said) error {
	if s.ID > 0 { // a comment; the button is forgotten with the process
		if err := l.cfg.Pods.Heed(pod.Key, s.ID); err != nil {
			return fmt.Errorf("keeping which /retry on %s was seen to: %w", k, err)
		}
	} else if err := l.cfg.Pods.ForgiveRounds(pod.Key); err != nil {
		return fmt.Errorf("giving the agent of %s its rounds of CI again: %w", k, err)
	}
	l.noteHeed(k, s.ID)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.pressed[k] == s {
		delete(l.pressed, k)
	}
	return nil
}

func (l *Loop) noteHeed(k Key, comment int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.heeds[k] = max(l.heeds[k], comment)
}

// wakes tells whether people's words wake a pod that rests in a state, or CI does. One that is to
// try again may end by itself as often as a new one.
func (l *Loop) wakes(ctx context.Context, i Issue, pod Pod, pull Pull, state State, steered Steered, o Orders) (bool, error) {
	retry, wanted := l.retries(i.Key, pod, o)
	if wanted && retry.At.After(pod.Started) && (state == Failed || state == Asking) {
		delete(l.resumes, pod.Key)
		delete(l.away, pod.Key)
		return true, nil
	}
	if state != Review && state != Asking {
		return false, nil
	}
	if state == Review || !steered.Over { // else it asks for a budget already
		if heard, err := l.heard(ctx, i.Key, pod, pull, o); heard || err != nil {
			return heard, err
		}
	}
	if state == Asking && steered.Wake {
		return true, nil
	}
	return l.ciNews(ctx, i, pod, state)
}

// heard tells whether people have said something that the agent does not have.
func (l *Loop) heard(ctx context.Context, k Key, pod Pod, pull Pull, o Orders) (bool, error) {
	new, err := l.untold(k, pod, o)
	if err != nil || len(new) > 0 {
		return err == nil, err
	}
	n, _, err := l.reviewNews(ctx, pod, k, pull)
	return len(n.words) > 0, err
}

// untold are the comments that a pod's agent does not have: on the issue since its label, on the pull
// request since its first one, for of these no task has any.
func (l *Loop) untold(k Key, pod Pod, o Orders) (out []Said, err error) {
	has, err := l.givenTo(k, pod)
	if err != nil {
		return nil, err
	}
	for _, s := range o.Said {
		since := pod.TriggerAt // the task has those from before
		if s.pull {
			since = has.first
		}
		if s.At.After(since) && !has.words[commentID(s.ID)] {
			out = append(out, s)
		}
	}
	return out, nil
}

// tell gives an agent that works or asks what people said since its label was put on,
// each once, and one that has failed what asks it to try again. It tells whether there
// was anything.
func (l *Loop) tell(ctx context.Context, pod Pod, v View, o Orders, mark, head string) (told bool, err error) {
	if retry, wanted := l.retries(v.Key, pod, o); wanted {
		switch {
		case v.State == Working: // at it
			if err := l.heed(v.Key, pod, retry); err != nil {
				return false, err
			}
		case v.Cause == CauseDied || v.Cause == CauseUnreachable: // it is stopped, and woken then
		case v.State == Failed, v.State == Asking:
			if err = l.tellOne(ctx, pod, v, retry, mark, head); err == nil {
				err = l.heed(v.Key, pod, retry)
			}
			return err == nil, err
		}
	}
	if !v.listens() {
		return false, nil
	}
	all, err := l.untold(v.Key, pod, o)
	if len(all) > 0 {
		all, err = l.still(ctx, v, all)
	}
	for _, s := range all {
		if err := l.tellOne(ctx, pod, v, s, mark, head); err != nil {
			return told, err
		}
		told = true
	}
	return told, err
}

// still are those that were not deleted meanwhile, which does not move an issue's time.
func (l *Loop) still(ctx context.Context, v View, all []Said) ([]Said, error) {
	now, err := l.comments(ctx, v.Key, v.Pull)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all, func(s Said) bool {
		return !slices.ContainsFunc(now, func(c Comment) bool { return c.ID == s.ID })
	}), nil
}

// listens tells whether the agent takes what people say.
func (v View) listens() bool {
	answers := v.Cause == CauseQuestion || v.Cause == CausePermission || v.Cause == CauseNothing || v.Cause == CauseCI
	return v.State == Working || v.State == Review || v.State == Asking && answers
}

func (l *Loop) tellOne(ctx context.Context, pod Pod, v View, s Said, mark, head string) error {
	id := commentID(s.ID)
	return l.give(ctx, pod, v.Key, Given{ID: string(id), Mark: mark, Commit: head, Authors: []string{s.By}, Words: []ID{id}}, s.Text)
}

// linesAfter are the rests of the lines that begin with a command.
func linesAfter(body, command string) []string {
	var out []string
	for line := range strings.Lines(body) {
		if rest, ok := strings.CutPrefix(strings.TrimRight(line, "\r\n"), command); ok && strings.TrimSpace(rest) != "" {
			out = append(out, strings.TrimSpace(rest))
		}
	}
	return out
}

// Steered is what came of orders.
type Steered struct {
	Used string // what the issue's pods have used, in words
	Note string // what people should know of the orders: one that was not understood
	Open bool   // it reaches every public host
	// Over is set while its budget is used up: it can do nothing.
	Over bool
	// Wake is set when a pod that rests has something to do again.
	Wake bool
}
