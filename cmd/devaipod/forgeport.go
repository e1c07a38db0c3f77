package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"codeberg.org/devaipod/devaipod/ci"
	"codeberg.org/devaipod/devaipod/forge"
	"codeberg.org/devaipod/devaipod/pods/audit"
	"codeberg.org/devaipod/devaipod/pods/reconcile"
)

// forgePort is the forge as the reconcile loop sees it.
type forgePort struct {
	client   *forge.Client
	label    string
	agents   []string // that have a label of their own
	instance string
	bot      string
	web      *forge.Web
	runs     []*ci.Store // what we ran of its Actions, and of detected checks
	// On a forge that we joined: what readies a repository before it is written
	// to; else nil.
	prepare func(context.Context, forge.Repo) error
}

var _ reconcile.Forge = forgePort{}

func repoOf(k reconcile.Key) forge.Repo { return forge.Repo{Owner: k.Owner, Name: k.Repo} }

// gone translates the forge's 404, readOnly its answer for archived repositories.
func gone(err error) error {
	if errors.Is(err, forge.ErrNotFound) {
		return fmt.Errorf("%w: %w", reconcile.ErrGone, err)
	}
	return err
}

func readOnly(err error) error {
	if errors.Is(err, forge.ErrReadOnly) {
		return fmt.Errorf("%w: %w", reconcile.ErrReadOnly, err)
	}
	return err
}

func (p forgePort) issueOf(i forge.Issue) reconcile.Issue {
	_, calls := forge.Mentioned(i.Body, p.bot)
	return reconcile.Issue{
		Created: i.Created, Calls: calls && !i.Brought,
		Key: reconcile.Key{Owner: i.Repo.Owner, Repo: i.Repo.Name, Issue: i.Number}, RepoID: i.RepoID,
		Title: i.Title, Body: i.Body, Author: i.Author, Ref: i.Ref, Open: i.State == "open",
		Labels: i.Labels, Updated: i.Updated, URL: i.URL, IsPull: i.IsPull,
	}
}

func (p forgePort) issuesOf(found []forge.Issue) (out []reconcile.Issue) {
	for _, i := range found {
		out = append(out, p.issueOf(i))
	}
	return out
}

func (p forgePort) Wanted(ctx context.Context) ([]reconcile.Issue, time.Time, error) {
	var all []forge.Issue
	var first time.Time
	for _, agent := range append([]string{""}, p.agents...) {
		label := forge.TriggerOf(p.label, agent)
		if p.prepare != nil {
			if some, err := p.client.AnyLabeled(ctx, label); err != nil {
				return nil, time.Time{}, err
			} else if !some {
				continue
			}
		}
		found, asOf, err := p.client.LabeledIssues(ctx, label)
		if err != nil {
			return nil, time.Time{}, err
		}
		if all = append(all, found...); first.IsZero() || asOf.Before(first) {
			first = asOf
		}
	}
	return p.issuesOf(all), first, nil
}

func (p forgePort) Changed(ctx context.Context, since time.Time) ([]reconcile.Issue, time.Time, error) {
	found, asOf, err := p.client.ChangedIssues(ctx, since)
	if errors.Is(err, forge.ErrTooMany) {
		err = fmt.Errorf("%w: %w", reconcile.ErrTooMany, err)
	}
	return p.issuesOf(found), asOf, err
}

func (p forgePort) Issue(ctx context.Context, k reconcile.Key) (reconcile.Issue, error) {
	i, err := p.client.Issue(ctx, repoOf(k), k.Issue)
	if err != nil {
		return reconcile.Issue{}, gone(err)
	}
	if i.IsPull {
		return reconcile.Issue{}, fmt.Errorf("%w: %s is a pull request", reconcile.ErrGone, k)
	}
	return p.issueOf(i), nil
}

func (p forgePort) Trigger(ctx context.Context, k reconcile.Key) (reconcile.Trigger, bool, error) {
	if p.prepare != nil {
		if err := p.prepare(ctx, repoOf(k)); err != nil {
			return reconcile.Trigger{}, false, err
		}
	}
	ev, ok, err := p.client.LabelEvent(ctx, repoOf(k), k.Issue, p.label)
	if err == nil && !ok && ev.ID != 0 {
		err = reconcile.ErrUndone
	}
	agent := strings.TrimPrefix(strings.TrimPrefix(ev.Label, p.label), ":")
	return reconcile.Trigger{ID: ev.ID, User: ev.User, At: ev.At, Agent: agent, Calls: callsOf(ev.Calls), First: ev.First, Away: ev.Away, AwayBy: ev.AwayBy}, ok, err
}

func (p forgePort) CanWrite(ctx context.Context, k reconcile.Key, user string) (bool, error) {
	return p.client.CanWrite(ctx, repoOf(k), user)
}

func (p forgePort) Comments(ctx context.Context, k reconcile.Key) ([]reconcile.Comment, error) {
	found, err := p.client.Comments(ctx, repoOf(k), k.Issue)
	if err != nil {
		return nil, err
	}
	var out []reconcile.Comment
	for _, c := range found {
		if !strings.EqualFold(c.Author, p.bot) {
			out = append(out, reconcile.Comment{ID: c.ID, Author: c.Author, Body: c.Body, Updated: c.Updated})
		}
	}
	return out, nil
}

func (p forgePort) DefaultBranch(ctx context.Context, k reconcile.Key) (string, bool, error) {
	r, err := p.client.Repository(ctx, repoOf(k))
	if err == nil && r.Archived {
		return "", false, reconcile.ErrReadOnly
	}
	return r.DefaultBranch, err == nil && !r.Empty && r.DefaultBranch != "", err
}

func (p forgePort) HasBranch(ctx context.Context, k reconcile.Key, name string) (bool, error) {
	_, ok, err := p.client.Branch(ctx, repoOf(k), name)
	return ok, err
}

func (p forgePort) SetState(ctx context.Context, i reconcile.Issue, s reconcile.State) error {
	issue := forge.Issue{Repo: repoOf(i.Key), Number: i.Issue, Labels: i.Labels}
	ctx = audit.Because(ctx, audit.Entry{Act: "state", Done: cmp.Or(string(s), "none")})
	_, err := p.client.SetState(ctx, issue, string(s))
	if !errors.Is(err, forge.ErrNotFound) {
		return readOnly(err)
	}
	// Somebody may have deleted the label.
	made, e := p.client.EnsureLabels(ctx, issue.Repo, forge.DefaultLabels(p.label, p.agents...))
	if e != nil || !made {
		return errors.Join(err, e)
	}
	_, err = p.client.SetState(ctx, issue, string(s))
	return err
}

func (p forgePort) Unlabel(ctx context.Context, k reconcile.Key) error {
	return readOnly(unlabel(ctx, p.client, k, p.label, ""))
}

func (p forgePort) Close(ctx context.Context, k reconcile.Key, branch string) error {
	main, _, err := p.DefaultBranch(ctx, k)
	if err != nil || main != branch {
		return err
	}
	return readOnly(p.client.CloseIssue(ctx, repoOf(k), k.Issue))
}

// unlabel takes all labels off that start agents, as the act of an account, "" for the
// client's own.
func unlabel(ctx context.Context, client *forge.Client, k reconcile.Key, trigger, as string) error {
	i, err := client.Issue(ctx, repoOf(k), k.Issue)
	for _, l := range i.Labels {
		if err == nil && forge.Triggers(trigger, l) {
			err = client.RemoveLabelAs(ctx, repoOf(k), k.Issue, l, as)
		}
	}
	return err
}

func (p forgePort) marker(subject string) string {
	return fmt.Sprintf("devaipod:%s:%s", p.instance, subject)
}

func (p forgePort) Say(ctx context.Context, k reconcile.Key, subject, body string) error {
	_, err := p.client.PutComment(ctx, repoOf(k), k.Issue, p.marker(subject), body)
	return readOnly(err)
}

func (p forgePort) Resay(ctx context.Context, k reconcile.Key, subject, body string) error {
	_, err := p.client.EditComment(ctx, repoOf(k), k.Issue, p.marker(subject), body)
	return readOnly(err)
}

func pullOf(p forge.Pull) reconcile.Pull {
	return reconcile.Pull{Number: p.Number, URL: p.URL, Open: p.State == "open", Merged: p.Merged, Draft: p.Draft, ClosedAt: p.Closed, MergeBase: p.MergeBase, Updated: p.Updated, Head: p.HeadSHA, Base: p.Base, BaseHead: p.BaseSHA}
}

func (p forgePort) Pull(ctx context.Context, k reconcile.Key, branch string) (reconcile.Pull, bool, error) {
	pull, ok, err := p.client.PullForBranch(ctx, repoOf(k), branch)
	return pullOf(pull), ok, err
}

func (p forgePort) Ahead(ctx context.Context, k reconcile.Key, base, branch string) ([]reconcile.Commit, error) {
	if _, ok, err := p.client.Branch(ctx, repoOf(k), branch); err != nil || !ok {
		return nil, err
	}
	found, err := p.client.Compare(ctx, repoOf(k), base, branch)
	if err != nil {
		return nil, err
	}
	var out []reconcile.Commit
	for _, c := range found {
		out = append(out, reconcile.Commit{SHA: c.SHA, Subject: c.Subject})
	}
	return out, nil
}

func (p forgePort) Changes(ctx context.Context, k reconcile.Key, pull int64) ([]reconcile.FileChange, error) {
	files, err := p.client.PullFiles(ctx, repoOf(k), pull)
	if err != nil {
		return nil, err
	}
	var out []reconcile.FileChange
	for _, f := range files {
		out = append(out, reconcile.FileChange{Path: f.Path, Added: f.Added, Deleted: f.Deleted})
	}
	return out, nil
}

func (p forgePort) CI(ctx context.Context, k reconcile.Key, commit string) (reconcile.CI, error) {
	found, err := p.client.Statuses(ctx, repoOf(k), commit)
	out := reconcile.CI{State: reconcile.CINone}
	worst := map[reconcile.CIState]int{reconcile.CISuccess: 1, reconcile.CIFailure: 2, reconcile.CIPending: 3}
	for _, s := range found {
		state := reconcile.CISuccess // also for what is skipped, and for warnings
		switch s.State {
		case "pending":
			state = reconcile.CIPending
		case "failure", "error":
			state = reconcile.CIFailure
		}
		if worst[state] > worst[out.State] {
			out.State = state
		}
		out.Jobs = append(out.Jobs, reconcile.CIJob{Name: s.Name, State: state, URL: s.URL})
	}
	if err == nil && slices.ContainsFunc(out.Jobs, func(j reconcile.CIJob) bool { return j.State == reconcile.CIFailure }) {
		err = p.explain(repoOf(k).String(), commit, out.Jobs)
	}
	return out, err
}

// explain adds what is known of the jobs that failed here. The forge alone says which did.
func (p forgePort) explain(repo, commit string, jobs []reconcile.CIJob) error {
	var records []ci.Record
	for _, store := range p.runs {
		some, err := store.Of(repo, commit)
		if err != nil {
			return fmt.Errorf("reading what is kept of jobs of CI: %w", err)
		}
		records = append(records, some...)
	}
	for i := range jobs {
		j := &jobs[i]
		if n := slices.IndexFunc(records, func(r ci.Record) bool { return isJob(*j, r) }); n >= 0 && j.State == reconcile.CIFailure {
			r := records[n]
			j.Run, j.Workflow, j.Step, j.Why, j.Tail, j.Person = r.Task, r.Workflow, r.Failed, r.Reason, r.Tail, r.Person()
		}
	}
	return nil
}

// isJob tells whether a record is of the job that a status is about: of the run that its
// address names, and called as it is.
func isJob(j reconcile.CIJob, r ci.Record) bool {
	if r.Event == detectEvent {
		return j.Name == detectName
	}
	return r.Run != "" && strings.Contains(j.URL+"/", "/actions/runs/"+r.Run+"/") && strings.Contains(" "+j.Name, " / "+r.Name+" (")
}

func (p forgePort) PutPull(ctx context.Context, k reconcile.Key, branch, base string, text reconcile.PullText) (reconcile.Pull, error) {
	pull, _, err := p.client.EnsurePull(ctx, repoOf(k), forge.PullSpec{Head: branch, Base: base, Title: text.Title, Body: text.Body, Draft: text.Draft, Number: text.Number})
	return pullOf(pull), readOnly(err)
}

func (p forgePort) Reviews(ctx context.Context, k reconcile.Key, pull int64) ([]reconcile.PullReview, error) {
	found, err := p.client.Reviews(ctx, repoOf(k), pull)
	var out []reconcile.PullReview
	for _, r := range found {
		one := reconcile.PullReview{ID: r.ID, Author: r.Author, Body: r.Body, Verdict: reconcile.Verdict(r.State), Commit: r.Commit, At: r.At, Dismissed: r.Dismissed}
		for _, c := range r.Comments {
			one.Comments = append(one.Comments, reconcile.LineComment{
				ID: c.ID, Review: c.Review, Author: c.Author, Body: c.Body, Path: c.Path, Hunk: c.Hunk, Line: c.Line, OldLine: c.OldLine, Commit: r.Commit, Updated: c.Updated,
			})
		}
		out = append(out, one)
	}
	return out, err
}

func (p forgePort) Answer(ctx context.Context, k reconcile.Key, pull int64, to reconcile.LineComment, body string) error {
	c := forge.LineComment{ID: to.ID, Review: to.Review, Path: to.Path, Line: to.Line, OldLine: to.OldLine}
	err := p.web.Answer(ctx, repoOf(k), pull, c, body)
	if errors.Is(err, forge.ErrNoSession) {
		err = p.client.AnswerByReview(ctx, repoOf(k), pull, c, body)
	}
	return readOnly(err)
}

func (p forgePort) RequestReview(ctx context.Context, k reconcile.Key, pull int64, user string) error {
	err := p.client.RequestReview(ctx, repoOf(k), pull, user)
	if errors.Is(err, forge.ErrInvalid) {
		return fmt.Errorf("%w: %w", reconcile.ErrRefused, err)
	}
	return readOnly(err)
}
