package reconcile

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// What becomes of a pull request that people approve. An approval counts for the commit
// that was the head when it was given, and for no other: a push voids it. It must be by
// somebody who may push now, who is not ours, and who has made none of the commits, unless
// Config.OwnApprovals says so. Whoever asks for changes of that commit, and may push, keeps
// it from landing. CI must not have failed on it, or be pending.
//
// That very commit is landed then: by a merge in the forge, or upstream. What can't go there
// before the base is merged into it goes back to its agent, once for each commit of the base;
// what can't go for another reason is told on the pull request and tried again.

// A Vote is somebody's word on a pull request, submitted as a review.
type Vote struct {
	ID        int64 // a later one has a larger one
	Author    string
	Approves  bool // else it asks for changes
	Commit    string
	Dismissed bool
}

// A Landing is a commit that is to land.
type Landing struct {
	Key
	RepoID       int64
	Pull         int64
	Branch, Base string
	Commit       string
	Approvers    []string
}

// A Landed is where a commit went, or would go.
type Landed struct {
	Upstream string   `json:"upstream,omitempty"` // "" when it is merged in the forge
	Branch   string   `json:"to"`
	Old      string   `json:"old"` // where that branch is
	New      string   `json:"new"`
	Commits  []Commit `json:"commits"` // that go there, the oldest first
}

// ErrMoved is what a Lander answers when a pull request is not what it was: its head, its
// base, or whether it is open.
var ErrMoved = errors.New("the pull request has changed")

// A BehindError is what a Lander answers for a commit into which a commit of its base must
// be merged first.
type BehindError struct {
	Base string // that commit
	Why  string
	// Unasked is what was found without that anybody wanted to land; Clean what git can merge
	// by itself.
	Unasked, Clean bool
}

func (e *BehindError) Error() string { return e.Why }

// A Lander asks who approves, and lands. Its methods are idempotent. What is refused for
// good, as far as can be told, is an [ErrRefused]; what will soon be possible, an [ErrLater].
type Lander interface {
	// Votes lists those of a pull request, the oldest first.
	Votes(ctx context.Context, k Key, pull int64) ([]Vote, error)
	// Hands are the accounts that wrote or committed what a branch has and its base has
	// not, and the newest of these commits, "" where there is none.
	Hands(ctx context.Context, k Key, base, branch string) (newest string, accounts []string, err error)
	// Plan tells what Land would do. A BehindError comes with what is known.
	Plan(ctx context.Context, l Landing) (Landed, error)
	// Land brings the commit, and nothing else, to the base: by a merge of the pull request, or
	// upstream. Where that takes long it goes on beside the caller, and the answer is an
	// [UnderWayError]: the same one until it has ended, when the issue is to be kicked.
	Land(ctx context.Context, l Landing) (Landed, error)
	// Finish marks a pull request as merged whose head has come to its base by way of an
	// upstream; false where that is not so.
	Finish(ctx context.Context, l Landing) (bool, error)
}

// approval is how far people agree to a commit.
type approval struct {
	Landing
	needs int
	lacks []string // why it does not land, in words
	notes []string // what else there is to say
	there bool     // the base has all of the branch
}

func (a approval) words() string {
	by := ""
	if len(a.Approvers) > 0 {
		by = " (" + strings.Join(a.Approvers, ", ") + ")"
	}
	return fmt.Sprintf("%d of %d approvals of %s%s", len(a.Approvers), a.needs, short(a.Commit), by)
}

// approval asks who approves of a pull request's head. Any doubt is an error.
func (l *Loop) approval(ctx context.Context, i Issue, pod Pod, pull Pull) (approval, error) {
	a := approval{Landing: Landing{Key: i.Key, RepoID: i.RepoID, Pull: pull.Number, Branch: pod.Branch, Base: pull.Base, Commit: pull.Head}, needs: max(1, l.cfg.Approvals)}
	if pull.Base != pod.Base {
		a.lacks = append(a.lacks, fmt.Sprintf("the pull request goes to %s now, and the agent worked for %s", pull.Base, pod.Base))
	}
	words, err := l.cfg.Lander.Votes(ctx, i.Key, pull.Number)
	if err != nil {
		return a, err
	}
	for _, w := range lastWords(words, pull.Head) {
		if w.Dismissed || l.isOurs(w.Author) {
			continue
		}
		trusted, err := l.trusts(ctx, i.Key, w.Author)
		switch {
		case err != nil:
			return a, err
		case !trusted:
		case w.Approves:
			a.Approvers = append(a.Approvers, w.Author)
		default:
			a.lacks = append(a.lacks, w.Author+" asks for changes")
		}
	}
	if len(a.Approvers) > 0 {
		err = l.withoutHands(ctx, pod, &a)
	}
	if few := len(a.Approvers) < a.needs; few {
		a.lacks = append(a.lacks, fmt.Sprintf("%d of %d approvals are there", len(a.Approvers), a.needs))
	}
	if err != nil || len(a.lacks) > 0 {
		return a, err
	}
	ci, err := l.cfg.Forge.CI(ctx, i.Key, pull.Head)
	if err == nil && (ci.State == CIPending || ci.State == CIFailure) {
		a.lacks = append(a.lacks, fmt.Sprintf("CI of it: %s", ci.State))
	}
	return a, err
}

// withoutHands takes the approvals of those away who have made commits of the branch, and
// looks whether that is at the commit.
func (l *Loop) withoutHands(ctx context.Context, pod Pod, a *approval) error {
	newest, hands, err := l.cfg.Lander.Hands(ctx, a.Key, pod.Base, pod.Branch)
	if err != nil {
		return err
	}
	if a.there = newest == ""; !a.there && newest != a.Commit {
		a.lacks = append(a.lacks, "the branch's head has just moved")
	}
	a.Approvers = slices.DeleteFunc(a.Approvers, func(who string) bool {
		own := !l.cfg.OwnApprovals && slices.ContainsFunc(hands, Vote{Author: who}.by)
		if own {
			a.notes = append(a.notes, fmt.Sprintf("%s has made commits of it, so that this approval does not count (land.own)", who))
		}
		return own
	})
	return nil
}

// by tells whether a word is an account's.
func (w Vote) by(account string) bool { return strings.EqualFold(account, w.Author) }

// lastWords are the newest word of each author on a commit.
func lastWords(words []Vote, commit string) (out []Vote) {
	words = slices.Clone(words)
	slices.SortFunc(words, func(a, b Vote) int { return cmp.Compare(b.ID, a.ID) })
	for _, w := range words {
		if w.Commit == commit && commit != "" && !slices.ContainsFunc(out, func(o Vote) bool { return o.by(w.Author) }) {
			out = append(out, w)
		}
	}
	slices.Reverse(out)
	return out
}

// laterTries is how often in a row the other side may say "later" before people are told: for
// about a minute.
const laterTries = 5

// lands tells whether a pull request may land by itself, if people approve.
func (l *Loop) lands(v *View, pull Pull) bool {
	return l.cfg.Lander != nil && l.cfg.Approvals > 0 && v.State == Review && pull.Number != 0 && pull.Open && !pull.Draft
}

// land lands what is approved; over says that the pull request is merged, and all is done.
// Where the base has to be merged in first, behind tells which commit of it.
func (l *Loop) land(ctx context.Context, i Issue, pod Pod, pull Pull, v *View) (over bool, behind *BehindError, err error) {
	if !l.lands(v, pull) {
		behind, err = l.takesIn(ctx, i, pod, pull, v)
		return false, behind, err
	}
	a, err := l.approval(ctx, i, pod, pull)
	if err != nil {
		return false, nil, fmt.Errorf("counting the approvals of pull request %d of %s: %w", pull.Number, i.Key, err)
	}
	v.Landing = a.words()
	done, going, err := l.ended(i.Key, a.Commit)
	switch {
	case going == nil && a.there:
		over, err := l.finished(ctx, i, pod, a)
		return over, nil, err
	case going == nil && len(a.lacks) > 0:
		behind, err = l.takesIn(ctx, i, pod, pull, v)
		return false, behind, err
	case going == nil:
		done, err = l.start(ctx, i.Key, a)
	default:
		a = going.approval
	}
	var under *UnderWayError
	switch {
	case errors.As(err, &under):
		v.Landing += "; it is landing"
		return false, nil, nil
	case err == nil:
		over, err = l.landed(ctx, i, pod, a, done)
		return over, nil, err
	case errors.Is(err, ErrMoved): // approvals are counted anew
		l.Kick(i.Key)
		return false, nil, nil
	case errors.As(err, &behind):
		return false, behind, nil
	case ctx.Err() != nil:
		return false, nil, ctx.Err()
	case errors.Is(err, ErrLater) && l.errs[i.Key] < laterTries:
		return false, nil, err
	}
	err = fmt.Errorf("landing %s of pull request %d of %s: %w", short(a.Commit), pull.Number, i.Key, err)
	return false, nil, errors.Join(err, l.sayLanding(ctx, i, pull.Number, fmt.Sprintf("**Approved, and not landed yet**: %s.\n\n%s\nIt is tried again, ever more slowly. Nothing was rewritten.\n", a.words(), l.quoted(err))))
}

// landed tells where a commit went and ends its issue.
func (l *Loop) landed(ctx context.Context, i Issue, pod Pod, a approval, done Landed) (over bool, err error) {
	if err := l.sayLanded(ctx, i, a, done); err != nil {
		return false, err
	}
	over, err = l.mark(ctx, i, pod, a.Landing)
	if err == nil && !over { // another commit came meanwhile, or the forge is at it
		err = fmt.Errorf("%w: %s has landed, and pull request %d of %s is not marked as merged yet", ErrLater, short(a.Commit), a.Pull, i.Key)
	}
	return over, err
}

// landedText tells where a commit is.
func (a approval) landedText(done Landed) string {
	where := fmt.Sprintf("merged into %s", code(a.Base))
	switch {
	case done.Upstream != "" && done.Old == done.New:
		where = fmt.Sprintf("it is in %s of %s", code(done.Branch), code(done.Upstream))
	case done.Upstream != "":
		where = fmt.Sprintf("pushed to %s of %s, where %s was before", code(done.Branch), code(done.Upstream), short(done.Old))
	}
	return fmt.Sprintf("**Landed**: %s, %s; %s.\n", a.Commit, a.words(), where)
}

func (l *Loop) sayLanded(ctx context.Context, i Issue, a approval, done Landed) error {
	l.cfg.Log.Info("landed", "issue", i.Key.String(), "pull", a.Pull, "commit", a.Commit, "approved_by", a.Approvers, "upstream", done.Upstream)
	ctx = l.because(ctx, Act{Who: strings.Join(a.Approvers, ", "), Rule: "they approved of it (land.approvals)"})
	return l.sayLanding(ctx, i, a.Pull, a.landedText(done))
}

// sayLanding puts the one comment about landing on a pull request, or changes it.
func (l *Loop) sayLanding(ctx context.Context, i Issue, pull int64, body string) error {
	on := i.Key
	on.Issue = pull
	if err := l.cfg.Forge.Say(ctx, on, "landing", body); err != nil {
		return fmt.Errorf("telling on pull request %d of %s how it lands: %w", pull, i.Key, err)
	}
	return nil
}

func (l *Loop) quoted(err error) string {
	var b strings.Builder
	quote(&b, l.cfg.Harmless(clip(err.Error(), 1000)))
	return b.String()
}

// landAwake lands the pull request of a pod that runs, or gives its agent the base to merge
// in, and tells what is in its way; mark is of the turn that the agent has ended.
func (l *Loop) landAwake(ctx context.Context, i Issue, pod Pod, pull Pull, v *View, mark string) (over bool, err error) {
	over, behind, err := l.land(ctx, i, pod, pull, v)
	if !over {
		err = errors.Join(err, l.collide(ctx, i, pull))
	}
	if behind == nil {
		return over, err
	}
	r, known, e := l.baseRound(pod, behind.Base)
	switch {
	case e != nil:
		return false, errors.Join(err, e)
	case !known:
		e = l.tellRound(ctx, pod, v, l.newBaseRound(pod, mark, pull.Head, behind))
	case !r.Told: // we were killed, or the pod was away
		e = l.tellRound(ctx, pod, v, r)
	case r.Mark == mark: // it has not taken it up yet
		v.State = Working
	default:
		return false, errors.Join(err, l.sayStuck(ctx, i, pull, v, behind))
	}
	v.ordered = l.cfg.Now()
	v.Activity = "is told to merge " + short(behind.Base) + " of " + pod.Base + " in"
	return false, errors.Join(err, e)
}

// landAsleep lands the pull request of a pod that rests. The pod wakes when its agent has to
// merge the base in.
func (l *Loop) landAsleep(ctx context.Context, i Issue, pod Pod, pull Pull, v *View) (over, wakes bool, err error) {
	over, behind, err := l.land(ctx, i, pod, pull, v)
	if behind == nil {
		return over, false, err
	}
	r, known, err := l.baseRound(pod, behind.Base)
	if err != nil || !known || !r.Told {
		return false, err == nil, err
	}
	return false, false, l.sayStuck(ctx, i, pull, v, behind)
}

// finished ends an issue whose pull request has come to its base by way of an upstream, and
// is not merged yet for the forge: a landing that was cut off, or somebody else's push. That is told
// before it is marked, after which nobody would come here again.
func (l *Loop) finished(ctx context.Context, i Issue, pod Pod, a approval) (bool, error) {
	switch told, wait, err := l.tellLanding(ctx, i); {
	case wait || err != nil: // the issue is looked at again at its end
		return false, err
	case told:
		return l.mark(ctx, i, pod, a.Landing)
	}
	done, err := l.cfg.Lander.Plan(ctx, a.Landing)
	if err != nil || done.Upstream == "" || done.Old != done.New {
		return false, err
	}
	if err := l.sayFound(ctx, i, a, done); err != nil {
		return false, err
	}
	return l.mark(ctx, i, pod, a.Landing)
}

// sayFound tells of a commit that was found to have landed: somebody was killed, or did it by hand.
func (l *Loop) sayFound(ctx context.Context, i Issue, a approval, done Landed) error {
	l.note(Act{What: "landed", Key: i.Key, Who: strings.Join(a.Approvers, ", "), Rule: "it was found there", Done: fmt.Sprintf("%s is in %s", a.Commit, a.Base), Once: true}, nil)
	return l.sayLanding(ctx, i, a.Pull, a.landedText(done))
}

// merged ends the issue of a pull request that is found to be merged: by the forge itself, when its
// base had followed an upstream, or by a person. What people had approved is told of.
func (l *Loop) merged(ctx context.Context, i Issue, pull Pull, pod Pod) error {
	told, wait, err := l.tellLanding(ctx, i)
	if wait || err != nil {
		return err
	}
	landed := told
	if !told && l.cfg.Lander != nil {
		a, err := l.approval(ctx, i, pod, pull)
		if landed = len(a.Approvers) > 0; err == nil && landed {
			err = l.sayFound(ctx, i, a, Landed{})
		}
		if err != nil {
			return err
		}
	}
	if landed {
		if i, err = l.close(ctx, i, pull); err != nil {
			return err
		}
	}
	return l.conclude(ctx, i, pull, pod)
}

// mark sees to it that a pull request whose commit has landed is merged for the forge, too.
func (l *Loop) mark(ctx context.Context, i Issue, pod Pod, at Landing) (bool, error) {
	pull, err := l.pull(ctx, pod)
	if err == nil && !pull.Merged {
		if _, err = l.cfg.Lander.Finish(ctx, at); err == nil {
			pull, err = l.pull(ctx, pod)
		}
	}
	if err != nil || !pull.Merged {
		return false, err
	}
	if i, err = l.close(ctx, i, pull); err != nil {
		return false, err
	}
	return true, l.conclude(ctx, i, pull, pod)
}

// close closes the issue of a pull request that has landed as people approved. The forge does that by
// itself, but not where it found the commits in the base before the pull request was marked.
func (l *Loop) close(ctx context.Context, i Issue, pull Pull) (Issue, error) {
	now, err := l.cfg.Forge.Issue(ctx, i.Key)
	if err != nil || !now.Open {
		return now, err
	}
	ctx = l.because(ctx, Act{Rule: fmt.Sprintf("pull request %d was merged", pull.Number)})
	if err := l.cfg.Forge.Close(ctx, i.Key, pull.Base); err != nil {
		return i, fmt.Errorf("closing %s, whose pull request %d has landed: %w", i.Key, pull.Number, err)
	}
	return l.cfg.Forge.Issue(ctx, i.Key)
}

func (l *Loop) sayStuck(ctx context.Context, i Issue, pull Pull, v *View, behind *BehindError) error {
	what := "Approved, and not landed"
	switch {
	case behind.Clean: // it may land as it is
		return nil
	case behind.Unasked:
		what = "In conflict with its base"
	}
	v.Landing = strings.TrimPrefix(v.Landing+", not landed: "+firstLine(behind.Why), ", ")
	return l.sayLanding(ctx, i, pull.Number, fmt.Sprintf("**%s**: %s\nThe agent was told to merge that in, and ended without. Say in a comment on the issue, with a line `/retry`, what it should do, or do it by a push to its branch; that commit is to be approved then.\n", what, l.quoted(behind)))
}

// baseRound finds the message that told an agent of a commit of its base.
func (l *Loop) baseRound(pod Pod, base string) (Round, bool, error) {
	all, err := l.cfg.Pods.Rounds(pod.Key)
	if err != nil {
		return Round{}, false, fmt.Errorf("reading what the agent of %s was told of its base: %w", pod.Key, err)
	}
	for _, r := range all {
		if r.Trigger == pod.TriggerID && r.Base == base {
			return r, true, nil
		}
	}
	return Round{}, false, nil
}

// baseTold is when the pod's agent was told last to merge its base in: it has time again from then
// on.
func (l *Loop) baseTold(pod Pod) (at time.Time, err error) {
	if l.cfg.Lander == nil {
		return at, nil
	}
	all, err := l.cfg.Pods.Rounds(pod.Key)
	if err != nil {
		return at, fmt.Errorf("reading what the agent of %s was told of its base: %w", pod.Key, err)
	}
	for _, r := range all {
		if r.Base != "" && r.Trigger == pod.TriggerID && r.At.After(at) {
			at = r.At
		}
	}
	return at, nil
}

// newBaseRound is the message about a commit of the base that must be merged in. As a round
// it is of no person's word, so that it counts for none of CI's.
func (l *Loop) newBaseRound(pod Pod, mark, commit string, behind *BehindError) Round {
	h := sha256.Sum256(fmt.Appendf(nil, "%d base %s", pod.TriggerID, behind.Base))
	why := fmt.Sprintf("is approved, and can't go into %s as it is: that has moved to commit %s meanwhile", pod.Base, behind.Base)
	switch {
	case behind.Clean:
		why = fmt.Sprintf("is for review. Meanwhile %s has moved to commit %s: another agent's work has landed there that changes the same files, so that yours may need changes even where git merges it", pod.Base, behind.Base)
	case behind.Unasked:
		why = fmt.Sprintf("is for review, and conflicts with %s by now, which has moved to commit %s", pod.Base, behind.Base)
	}
	return Round{
		ID: hex.EncodeToString(h[:12]), Trigger: pod.TriggerID, Word: -1, Mark: mark, Commit: commit, Base: behind.Base, At: l.cfg.Now(),
		Text: fmt.Sprintf(`Your work, up to commit %s, %s.

Merge it in, do not rebase, and do not rewrite what you have pushed:

git fetch origin %s
git merge %s

Mend what conflicts, try it, commit, and push with: git push origin HEAD:%s
`, commit, why, pod.Base, behind.Base, pod.Branch),
	}
}

// An Approval is what is known of an issue's pull request before it lands, and what came of
// landing it. Its JSON is part of the command's output.
type Approval struct {
	Issue     string   `json:"issue"`
	Pull      int64    `json:"pull_request"`
	Commit    string   `json:"commit"`
	Approvers []string `json:"approved_by"`
	Needs     int      `json:"needs"`             // how many there must be
	Lacks     []string `json:"lacks,omitempty"`   // why it does not land, in words
	Notes     []string `json:"notes,omitempty"`   // what else there is to say
	Goes      *Landed  `json:"goes,omitempty"`    // where it goes, as far as that can be told
	Landed    bool     `json:"landed"`            // it is there
	Failed    string   `json:"failed,omitempty"`  // why it is not, although nothing lacks
	Refused   bool     `json:"refused,omitempty"` // by the other side, as far as can be told
}

// Export tells how an issue's pull request would land, and lands it when nothing lacks and
// that is wanted. It waits for a pass that is going on, and needs Run. ErrGone is of an issue
// without a pod.
func (l *Loop) Export(ctx context.Context, k Key, lands bool) (a Approval, err error) {
	if l.cfg.Lander == nil {
		return a, errors.New("nothing lands by this loop")
	}
	var under *UnderWayError
	if e := l.Between(ctx, func() { a, err = l.export(ctx, k, lands) }); e != nil {
		return a, e
	}
	if errors.As(err, &under) {
		return a, l.await(ctx, k, under, &a)
	}
	return a, err
}

func (l *Loop) export(ctx context.Context, k Key, lands bool) (Approval, error) {
	out := Approval{Issue: k.String(), Needs: max(1, l.cfg.Approvals), Approvers: []string{}}
	i, pod, pull, err := l.pullOf(ctx, k)
	if err != nil {
		return out, err
	}
	out.Pull, out.Commit, out.Landed = pull.Number, pull.Head, pull.Merged
	switch v, _ := l.View(i.Key); {
	case pull.Number == 0:
		out.Lacks = []string{"there is no pull request yet"}
		return out, nil
	case pull.Merged:
		return out, nil
	case !pull.Open:
		out.Lacks = append(out.Lacks, "the pull request is closed")
	case pull.Draft || v.State != Review:
		out.Lacks = append(out.Lacks, fmt.Sprintf("the agent is not done, or its work is not checked (%s)", v.State))
	}
	a, err := l.approval(ctx, i, pod, pull)
	if err != nil {
		return out, fmt.Errorf("counting the approvals of pull request %d of %s: %w", pull.Number, k, err)
	}
	out.Approvers, out.Lacks, out.Notes = append(out.Approvers, a.Approvers...), append(out.Lacks, a.lacks...), a.notes
	goes, err := l.cfg.Lander.Plan(ctx, a.Landing)
	var behind *BehindError
	if goes.Branch != "" {
		out.Goes = &goes
	}
	switch {
	case errors.As(err, &behind):
		l.Kick(i.Key) // its agent is told
		out.Lacks = append(out.Lacks, behind.Why+": its agent is told to merge that in once it is approved")
	case err != nil:
		out.Failed, out.Refused = err.Error(), errors.Is(err, ErrRefused)
	}
	if err != nil || len(out.Lacks) > 0 || !lands {
		return out, nil //nolint:nilerr // it is in what is told
	}
	return out, l.exportNow(ctx, i, pod, a, &out)
}

func (l *Loop) exportNow(ctx context.Context, i Issue, pod Pod, a approval, out *Approval) error {
	done, err := l.start(ctx, i.Key, a)
	var under *UnderWayError
	if errors.As(err, &under) {
		return err
	}
	if err != nil {
		l.Kick(i.Key)
		out.Failed, out.Refused = err.Error(), errors.Is(err, ErrRefused)
		return nil
	}
	out.Goes, out.Landed = &done, true
	if _, err = l.landed(ctx, i, pod, a, done); errors.Is(err, ErrLater) { // it is there, and the loop does the rest
		l.Kick(i.Key)
		err = nil
	}
	return err
}

// pullOf finds an issue's pod and pull request.
func (l *Loop) pullOf(ctx context.Context, k Key) (i Issue, pod Pod, pull Pull, err error) {
	if i, err = l.cfg.Forge.Issue(ctx, k); err != nil {
		return i, pod, pull, err
	}
	pods, err := l.pods(ctx)
	if err != nil {
		return i, pod, pull, err
	}
	pod, has := podOf(i, pods)
	if !has {
		return i, pod, pull, fmt.Errorf("%w: %s has no pod", ErrGone, k)
	}
	pull, err = l.pull(ctx, pod)
	return i, pod, pull, err
}
