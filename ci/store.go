package ci

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"codeberg.org/devaipod/devaipod/ci/job"
)

// Info says which job of which run a task is.
type Info struct {
	Task     int64  `json:"task"`
	Repo     string `json:"repo"`    // OWNER/NAME
	RepoID   int64  `json:"repo_id"` // 0 where the event does not tell
	Run      string `json:"run"`     // the run's number in its repository
	Attempt  string `json:"attempt,omitempty"`
	Workflow string `json:"workflow"`       // file
	Job      string `json:"job"`            // id
	Name     string `json:"name,omitempty"` // that the forge lists it by
	Event    string `json:"event"`
	Ref      string `json:"ref"`
	Commit   string `json:"commit"`
	Actor    string `json:"actor"`
	// Steps are the names of the workflow's.
	Steps []string `json:"steps,omitempty"`
}

// A Record is what is kept of a job that ended.
type Record struct {
	Info
	Tier    Tier      `json:"tier"`
	Reasons []string  `json:"reasons,omitempty"` // for the tier
	Result  string    `json:"result"`
	Reason  string    `json:"reason,omitempty"` // for the result, where it is none of the workflow's
	Failed  string    `json:"failed,omitempty"` // the first step that failed
	Tail    string    `json:"tail,omitempty"`   // of its log, or the job's; at most 8 KiB
	Started time.Time `json:"started"`
	Ended   time.Time `json:"ended"`
}

// Person says in words why it is for a person that a job failed, and tells nothing about
// its commit: it was not run, or not to its end. It is "" for all others.
func (r Record) Person() string {
	switch {
	case r.Tier == NeedsApproval:
		return string(NeedsApproval) + ": " + strings.Join(r.Reasons, "; ")
	case r.Result == job.Cancelled:
		return "it was cancelled"
	case r.Reason == ErrStopping.Error(), r.Reason == Lost:
		return r.Reason
	}
	return ""
}

// A Store reads and writes what a runner keeps in its directory, which needs no runner to
// run. Its methods may be called concurrently, from several processes, too.
type Store struct{ dir string }

// OpenStore names the store in a runner's directory.
func OpenStore(dir string) *Store { return &Store{dir} }

func (s *Store) record(task int64) string {
	return filepath.Join(s.dir, "jobs", strconv.FormatInt(task, 10)+".json")
}

func (s *Store) stateFile(task int64) string {
	return filepath.Join(s.dir, "tasks", strconv.FormatInt(task, 10)+".json")
}

// LogFile is the whole log of a job, which grows while the job runs: lines of a time
// (RFC 3339), a space, and what was printed.
func (s *Store) LogFile(task int64) string {
	return filepath.Join(s.dir, "jobs", strconv.FormatInt(task, 10)+".log")
}

// SummaryFile is what the steps of a job wrote to GITHUB_STEP_SUMMARY, Markdown. It is not
// there if they wrote none.
func (s *Store) SummaryFile(task int64) string {
	return filepath.Join(s.dir, "jobs", strconv.FormatInt(task, 10)+".md")
}

// Get is the record of a job that ended. The error is fs.ErrNotExist where there is none.
func (s *Store) Get(task int64) (Record, error) {
	var rec Record
	return rec, readJSON(s.record(task), &rec)
}

// Info is which job a task is, of one that runs, too; fs.ErrNotExist where there is none.
func (s *Store) Info(task int64) (Info, error) {
	var st state
	if err := readJSON(s.stateFile(task), &st); err == nil {
		return st.Info, nil
	}
	rec, err := s.Get(task)
	return rec.Info, err
}

// List is all records, the newest first.
func (s *Store) List() ([]Record, error) {
	ids, err := s.ids("jobs")
	if err != nil {
		return nil, err
	}
	var all []Record
	for _, id := range ids {
		rec, err := s.Get(id)
		if errors.Is(err, fs.ErrNotExist) {
			continue // pruned meanwhile
		}
		if err != nil {
			return nil, err
		}
		all = append(all, rec)
	}
	return all, nil
}

// Of are the records of a repository's commit, the newest first. The repository's name is
// the one that it had then.
func (s *Store) Of(repo, commit string) ([]Record, error) {
	all, err := s.List()
	return slices.DeleteFunc(all, func(r Record) bool { return r.Commit != commit || !strings.EqualFold(r.Repo, repo) }), err
}

// Running is the jobs that have not ended, the newest first.
func (s *Store) Running() ([]Info, error) {
	states, err := s.underWay()
	var all []Info
	for _, st := range states {
		if st.Result == "" {
			all = append(all, st.Info)
		}
	}
	return all, err
}

// underWay is the tasks of which the forge has not been told the end.
func (s *Store) underWay() ([]state, error) {
	ids, err := s.ids("tasks")
	if err != nil {
		return nil, err
	}
	var all []state
	for _, id := range ids {
		var st state
		err := readJSON(s.stateFile(id), &st)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil || st.Task != id {
			// The forge can be told of it all the same.
			st = state{Info: Info{Task: id}}
		}
		all = append(all, st)
	}
	return all, nil
}

// ids are the numbers of the JSON files in a directory, the largest first.
func (s *Store) ids(dir string) ([]int64, error) {
	entries, err := os.ReadDir(filepath.Join(s.dir, dir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var ids []int64
	for _, e := range entries {
		name, is := strings.CutSuffix(e.Name(), ".json")
		if id, err := strconv.ParseInt(name, 10, 64); is && err == nil {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	slices.Reverse(ids)
	return ids, nil
}

// prune removes all but the newest keep records, with their logs.
func (s *Store) prune(keep int) error {
	ids, err := s.ids("jobs")
	if err != nil || len(ids) <= keep {
		return err
	}
	var errs error
	for _, id := range ids[keep:] {
		if _, err := os.Stat(s.stateFile(id)); err == nil {
			continue // the forge has not got all of it yet
		}
		for _, f := range []string{s.LogFile(id), s.SummaryFile(id), s.record(id)} {
			if err := os.Remove(f); err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = errors.Join(errs, err)
			}
		}
	}
	return errs
}

var commitID = regexp.MustCompile(`^[0-9a-f]{40}([0-9a-f]{24})?$`)

// approval is the file that says that a commit was approved.
func (s *Store) approval(repo int64, commit string) (string, error) {
	if repo <= 0 || !commitID.MatchString(commit) {
		return "", fmt.Errorf("repository %d, commit %q: these name no commit", repo, commit)
	}
	return filepath.Join(s.dir, "approvals", fmt.Sprintf("%d-%s", repo, commit)), nil
}

// An Approval says who approved a commit, and when.
type Approval struct {
	By   string    `json:"by"`
	Time time.Time `json:"time"`
}

// Approve keeps that jobs of a commit of a repository (the forge's number of it) may have
// what they ask for. The caller has made sure that a trusted person said so.
func (s *Store) Approve(repo int64, commit string, a Approval) error {
	file, err := s.approval(repo, commit)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	return writeJSON(file, a)
}

// Approved says whether a commit was approved.
func (s *Store) Approved(repo int64, commit string) (bool, error) {
	a, err := s.approvalOf(repo, commit)
	return !a.Time.IsZero(), err
}

// approvalOf is a commit's approval, zero for none.
func (s *Store) approvalOf(repo int64, commit string) (Approval, error) {
	var a Approval
	file, err := s.approval(repo, commit)
	if err != nil {
		return a, err
	}
	err = readJSON(file, &a)
	if errors.Is(err, fs.ErrNotExist) {
		return Approval{}, nil
	}
	if err == nil && a.Time.IsZero() {
		err = fmt.Errorf("%s: there is no time in it", file)
	}
	return a, err
}

// approvalAge is how long an approval counts.
const approvalAge = 90 * 24 * time.Hour

// sweep removes what a kill left half written, and old approvals.
func (s *Store) sweep() error {
	approvals, errs := filepath.Glob(filepath.Join(s.dir, "approvals", "*-*"))
	for _, f := range approvals {
		if st, err := os.Stat(f); err == nil && time.Since(st.ModTime()) > approvalAge {
			errs = errors.Join(errs, os.Remove(f))
		}
	}
	for _, d := range []string{"", "tasks", "jobs", "runners", "approvals"} {
		left, err := filepath.Glob(filepath.Join(s.dir, d, ".tmp-*"))
		errs = errors.Join(errs, err)
		for _, f := range left {
			errs = errors.Join(errs, os.Remove(f))
		}
	}
	return errs
}

// writeJSON replaces a file, mode 0600, as a whole or not at all.
func writeJSON(name string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(name), ".tmp-*")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

func readJSON(name string, v any) error {
	b, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, v)
}
