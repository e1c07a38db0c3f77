package mirror

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// A GitStatus is how an agent's clone stood when it was saved last. All names in it are
// the agent's: hostile, and where they were no UTF-8 made so.
type GitStatus struct {
	At     time.Time `json:"at"`
	Branch string    `json:"branch,omitempty"` // "" for none
	Head   string    `json:"head,omitempty"`   // "" for a branch without a commit
	Base   string    `json:"base,omitempty"`   // where it left the nearest branch of the forge
	Ahead  int       `json:"ahead"`            // commits since the base
	Behind int       `json:"behind"`           // commits of the nearest branch since then
	// Unpushed are commits of HEAD that the forge does not have, the newest first; there
	// are at most 100 here.
	Unpushed []Commit `json:"unpushed"`
	// Changes are what of the files is not committed; there are at most 500 here.
	Changes []Change `json:"changes"`
}

// A Commit is one of a list.
type Commit struct {
	ID      string `json:"id"`
	Subject string `json:"subject"`
}

// A Change is a file that is not as HEAD has it. What is added may be in git's index
// or not.
type Change struct {
	Path string `json:"path"`
	How  string `json:"how"` // added, modified, deleted or type
}

const (
	maxUnpushed = 100
	maxChanges  = 500
)

// changes are git's letters (git-diff(1), --diff-filter).
var changes = map[string]string{"A": "added", "M": "modified", "D": "deleted", "T": "type"}

// Status is the state of the agent's clone as a snapshot has it.
func (w *SavedWork) Status(ctx context.Context, s Snapshot) (GitStatus, error) {
	st := GitStatus{At: s.At, Branch: s.Branch, Head: s.Head, Unpushed: []Commit{}, Changes: []Change{}}
	if s.Head == "" {
		return st, nil
	}
	var err error
	if st.Changes, err = w.uncommitted(ctx, s); err != nil {
		return st, err
	}
	have, err := w.everPushed(ctx)
	if err == nil {
		st.Unpushed, err = w.missing(ctx, s.Head, have)
	}
	if err != nil {
		return st, err
	}
	st.Base, err = w.Base(ctx, s, "")
	if errors.Is(err, ErrNoBase) {
		return st, nil
	}
	if err != nil {
		return st, err
	}
	if st.Ahead, err = w.count(ctx, []string{s.Head}, []string{st.Base}); err != nil {
		return st, err
	}
	st.Behind, err = w.behind(ctx, st.Base)
	return st, err
}

// uncommitted are the files that are not as the agent's HEAD has them.
func (w *SavedWork) uncommitted(ctx context.Context, s Snapshot) ([]Change, error) {
	out, err := w.output(ctx, nil, "diff-tree", "-r", "-z", "--no-renames", "--name-status", s.Head, s.ID)
	list := []Change{}
	parts := strings.Split(out, "\x00")
	for i := 0; i+1 < len(parts) && len(list) < maxChanges; i += 2 {
		list = append(list, Change{strings.ToValidUTF8(parts[i+1], "\uFFFD"), changes[parts[i]]})
	}
	return list, err
}

// missing are the commits of a history that others lack.
func (w *SavedWork) missing(ctx context.Context, of string, have []string) ([]Commit, error) {
	out, err := w.output(ctx, revisions([]string{of}, have), "log", "--stdin", "--format=%H %s", "--encoding=UTF-8", fmt.Sprintf("--max-count=%d", maxUnpushed))
	list := []Commit{}
	for line := range strings.Lines(out) {
		id, subject, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		list = append(list, Commit{id, strings.ToValidUTF8(subject, "\uFFFD")})
	}
	return list, err
}

// behind is by how many commits the nearest branch of the forge has gone on from base,
// as the cache knows it, or else as it was when the pod was made.
func (w *SavedWork) behind(ctx context.Context, base string) (int, error) {
	dirs := []string{w.known}
	if w.known == "" {
		var err error
		if dirs, err = w.lenders(); err != nil {
			return 0, err
		}
	}
	nearest := -1
	for _, dir := range dirs {
		found, err := refs(ctx, dir, "refs/heads/")
		if err != nil {
			return 0, err
		}
		for _, r := range found[:min(len(found), maxNear)] {
			if strings.HasPrefix(r.name, "refs/heads/"+agentPrefix) {
				continue
			}
			if from, err := w.output(ctx, nil, "merge-base", base, r.id); err != nil || from != base {
				continue // base is none of its commits
			}
			n, err := w.count(ctx, []string{r.id}, []string{base})
			if err != nil {
				return 0, err
			}
			if nearest < 0 || n < nearest {
				nearest = n
			}
		}
	}
	return max(0, nearest), nil
}

// maxNear bounds how many branches are looked at for the nearest.
const maxNear = 20

func (w *SavedWork) count(ctx context.Context, of, without []string) (int, error) {
	out, err := w.output(ctx, revisions(of, without), "rev-list", "--count", "--stdin")
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(out)
}
