package ci

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"
)

// The order by which a person approves a commit, on a line of its own in a comment. It
// names the whole commit: what it names was looked at, which of the branch's newest can't
// be known (an agent may push between the look and the comment), and a part of a name can
// be made to fit two.
const approveOrder = "/approve-ci"

// waitsFor is how long after a job needed approval comments are read for one.
const waitsFor = 30 * 24 * time.Hour

// askedFor is how long a run that was to be run again has for its first job to begin, until
// that is asked for once more.
const askedFor = 10 * time.Minute

// A Said is a comment on an issue or pull request of a repository: of its text the lines that are
// orders.
type Said struct {
	Issue            int64
	Author, Body     string
	Created, Updated time.Time
}

// An ApprovalForge is what an [Approver] needs of the forge. Repositories are meant by
// their numbers there.
type ApprovalForge interface {
	// Said lists the comments in a repository since a time, the oldest first.
	Said(ctx context.Context, repo int64, since time.Time) ([]Said, error)
	// MayApprove says whether an account may push to the repository, and is no agent's.
	MayApprove(ctx context.Context, repo int64, login string) (bool, error)
	// ChangesWorkflows is that of [Rules].
	ChangesWorkflows(ctx context.Context, repo int64, commit string) (bool, error)
	// Rerun has a run's jobs run again.
	Rerun(ctx context.Context, repo int64, run int64) error
	// Answer makes text our one answer to approvals on an issue.
	Answer(ctx context.Context, repo, issue int64, text string) error
}

// An Approver looks for approvals of commits whose jobs need one, and has those jobs run
// again. It goes by what is on record and by what the forge has, and so may end at any
// time. Its methods may be called concurrently.
type Approver struct {
	Store *Store
	Forge ApprovalForge
	Log   *slog.Logger
	// Acted is told of what was approved or run again, in a repository by its number, by
	// whom, and how it ended; nil for nobody. It is set before Run.
	Acted func(repo int64, what, by, done string, err error)

	kick  chan struct{}
	asked map[waiting]time.Time // runs that were asked for, and when
}

// NewApprover makes one.
func NewApprover(store *Store, f ApprovalForge, log *slog.Logger) *Approver {
	return &Approver{Store: store, Forge: f, Log: log, kick: make(chan struct{}, 1), asked: map[waiting]time.Time{}}
}

// Kick says that there may be an approval, or something that waits for one.
func (a *Approver) Kick() {
	select {
	case a.kick <- struct{}{}:
	default:
	}
}

// Run looks at each Kick, and every so often, until ctx is done.
func (a *Approver) Run(ctx context.Context, often time.Duration) {
	for ctx.Err() == nil {
		if err := a.pass(ctx); err != nil && ctx.Err() == nil {
			a.Log.Warn("looking for approvals of CI; it is tried again later", "err", err)
		}
		t := time.NewTimer(often)
		select {
		case <-t.C:
		case <-a.kick:
		case <-ctx.Done():
		}
		t.Stop()
	}
}

// Approve keeps by's approval of the commit of a job that needs one. It is an error where
// that would change nothing: what the job is, or the commit, is beyond approval.
func (a *Approver) Approve(ctx context.Context, task int64, by string) error {
	rec, err := a.Store.Get(task)
	if err != nil {
		return err
	}
	if rec.Tier != NeedsApproval {
		return fmt.Errorf("job %d needs no approval: it is %s", task, rec.Tier)
	}
	return a.approve(ctx, rec.RepoID, rec.Commit, by)
}

// Approved is that of [Rules].
func (a *Approver) Approved(_ context.Context, repo int64, commit string) (bool, error) {
	return a.Store.Approved(repo, commit)
}

// ErrWorkflows says that a commit can't be approved.
var ErrWorkflows = errors.New("it changes workflows, compared with the default branch, and what they say of themselves never gets secrets; bring the change of workflows to the default branch first")

func (a *Approver) approve(ctx context.Context, repo int64, commit, by string) error {
	changes, err := a.Forge.ChangesWorkflows(ctx, repo, commit)
	if err != nil {
		return fmt.Errorf("whether %s changes workflows can't be told: %w", commit, err)
	}
	if changes {
		return fmt.Errorf("%s is not approved: %w", commit, ErrWorkflows)
	}
	err = a.Store.Approve(repo, commit, Approval{By: by, Time: time.Now()})
	a.acted(repo, "ci-approve", by, "commit "+commit, err)
	if err != nil {
		return err
	}
	a.Log.Info("a commit's jobs are approved", "repo", repo, "commit", commit, "by", by)
	a.Kick()
	return nil
}

func (a *Approver) acted(repo int64, what, by, done string, err error) {
	if a.Acted != nil {
		a.Acted(repo, what, by, done, err)
	}
}

// A waiting is a run in which a job needs approval.
type waiting struct {
	repo        int64
	commit, run string
}

// pass looks once.
func (a *Approver) pass(ctx context.Context) error {
	runs, err := a.waiting()
	if err != nil {
		return err
	}
	var errs error
	for repo, since := range sinces(runs) {
		errs = errors.Join(errs, a.read(ctx, repo, since, runs))
	}
	for w, ended := range runs {
		errs = errors.Join(errs, a.again(ctx, w, ended))
	}
	for w := range a.asked {
		if _, waits := runs[w]; !waits {
			delete(a.asked, w)
		}
	}
	return errs
}

// waiting are the runs with a job that needs approval and was not run since, and when the
// last such job ended.
func (a *Approver) waiting() (map[waiting]time.Time, error) {
	running, err := a.Store.Running()
	if err != nil {
		return nil, err
	}
	ended, err := a.Store.List()
	if err != nil {
		return nil, err
	}
	type one struct {
		repo     int64
		run, job string
	}
	newer := map[one]int64{} // the first attempt of which there is anything newer
	for _, r := range running {
		newer[one{r.RepoID, r.Run, r.Job}] = attempt(r)
	}
	runs := map[waiting]time.Time{}
	for _, r := range ended { // the newest first
		key := one{r.RepoID, r.Run, r.Job}
		last, known := newer[key]
		if known && attempt(r.Info) < last {
			continue
		}
		newer[key] = attempt(r.Info)
		w := waiting{r.RepoID, r.Commit, r.Run}
		// Where attempts have no numbers it can't be told which ended after the approval.
		if r.Tier == NeedsApproval && r.RepoID > 0 && attempt(r.Info) > 0 && time.Since(r.Ended) < waitsFor && r.Ended.After(runs[w]) {
			runs[w] = r.Ended
		}
	}
	return runs, nil
}

// attempt is the number of a job's attempt, 0 where it is not known.
func attempt(i Info) int64 {
	n, err := strconv.ParseInt(i.Attempt, 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// sinces is from when on comments of repositories are to be read: since somewhat before
// the oldest of what waits ended, as a person may be quicker than the job.
func sinces(runs map[waiting]time.Time) map[int64]time.Time {
	out := map[int64]time.Time{}
	for w, ended := range runs {
		if first, known := out[w.repo]; !known || ended.Before(first) {
			out[w.repo] = ended
		}
	}
	for repo, first := range out {
		out[repo] = first.Add(-time.Hour)
	}
	return out
}

// read takes the approvals from a repository's comments. The newest on an issue is
// answered.
func (a *Approver) read(ctx context.Context, repo int64, since time.Time, runs map[waiting]time.Time) error {
	said, err := a.Forge.Said(ctx, repo, since)
	if err != nil {
		return fmt.Errorf("reading what was said in repository %d: %w", repo, err)
	}
	wanted := map[string]bool{} // commits: whether they wait yet
	for w := range runs {
		if w.repo == repo {
			wanted[w.commit] = true
		}
	}
	answers := map[int64]string{}
	for _, s := range said {
		commits := approvals(s.Body)
		if len(commits) == 0 {
			continue
		}
		may, err := a.Forge.MayApprove(ctx, repo, s.Author)
		if err != nil {
			return fmt.Errorf("asking whether %s may push to repository %d: %w", s.Author, repo, err)
		}
		for _, commit := range commits {
			if !may {
				break
			}
			if answers[s.Issue], err = a.heed(ctx, repo, s, commit, wanted); err != nil {
				return err
			}
		}
	}
	var errs error
	for issue, text := range answers {
		errs = errors.Join(errs, a.Forge.Answer(ctx, repo, issue, text))
	}
	return errs
}

// approvals are the commits that a comment approves, the first ten; "" for one that it
// does not name.
func approvals(body string) []string {
	var commits []string
	for line := range strings.Lines(body) {
		words := strings.Fields(line)
		if len(words) == 0 || !strings.HasPrefix(line, approveOrder) || words[0] != approveOrder || len(commits) == 10 {
			continue
		}
		commit := ""
		if len(words) == 2 && commitID.MatchString(words[1]) {
			commit = words[1]
		}
		commits = append(commits, commit)
	}
	return commits
}

// heed does what a person who may approve said, and returns what is to be answered.
func (a *Approver) heed(ctx context.Context, repo int64, s Said, commit string, waits map[string]bool) (string, error) {
	if commit == "" {
		return howToApprove("", waits), nil
	}
	done, err := a.Store.Approved(repo, commit)
	switch {
	case err != nil || done:
	case !waits[commit]:
		return howToApprove(fmt.Sprintf("No job of %s waits. ", commit), waits), nil
	case !s.Created.Equal(s.Updated):
		return howToApprove("That comment was changed after it was written, and by whom can't be told. ", waits), nil
	default:
		err = a.approve(ctx, repo, commit, s.Author)
	}
	if errors.Is(err, ErrWorkflows) {
		return err.Error() + ".", nil
	}
	return fmt.Sprintf("%s is approved. Its jobs that asked for more are run again, with what they asked for.", commit), err
}

// howToApprove is why an order did nothing, and what would.
func howToApprove(why string, waits map[string]bool) string {
	why += "To approve what jobs of a commit ask for, name all of the commit that you looked at, so that nothing newer is meant by mistake."
	if len(waits) == 0 {
		return why
	}
	why += " These wait:\n\n"
	for _, c := range sortedKeys(waits) {
		why += "    " + approveOrder + " " + c + "\n"
	}
	return why
}

// again has a run whose commit was approved after its jobs ended run again.
func (a *Approver) again(ctx context.Context, w waiting, ended time.Time) error {
	approval, err := a.Store.approvalOf(w.repo, w.commit)
	if err != nil || !approval.Time.After(ended) || time.Since(a.asked[w]) < askedFor {
		return err
	}
	run, err := strconv.ParseInt(w.run, 10, 64)
	if err != nil {
		return fmt.Errorf("run %q of repository %d: %w", w.run, w.repo, err)
	}
	a.asked[w] = time.Now()
	err = a.Forge.Rerun(ctx, w.repo, run)
	a.acted(w.repo, "ci-rerun", approval.By, fmt.Sprintf("run %d of commit %s, which was approved", run, w.commit), err)
	if err != nil {
		a.asked[w] = time.Now().Add(time.Minute - askedFor)
		return fmt.Errorf("having run %d of repository %d run again, which was approved (it can be run again on the forge by hand): %w", run, w.repo, err)
	}
	return nil
}
