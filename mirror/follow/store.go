package follow

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A Record says that a repository of the forge follows an upstream, and what was
// last seen of both.
type Record struct {
	ID       int64  `json:"id"`       // the forge's number, which stays when it is renamed
	Repo     string `json:"repo"`     // owner/name, when it was last seen
	Upstream string `json:"upstream"` // what the git cache calls it: github.com/git/git.git
	Branch   string `json:"branch"`   // that is followed
	// MakeDefault: the branch is to become the default one of the forge.
	MakeDefault bool `json:"make_default,omitempty"`
	// MergeByPush: the forge was told to mark pull requests as merged whose commits
	// come from upstream.
	MergeByPush bool `json:"merge_by_push,omitempty"`
	// MadeRule: the rule that protects the branch is of our making.
	MadeRule bool `json:"made_rule,omitempty"`

	Seen    string `json:"seen,omitempty"`    // the branch upstream
	Written string `json:"written,omitempty"` // the branch on the forge, when it last was as upstream
	// Tags are the upstream's, by name without refs/tags/: and those that it had
	// and the forge has still.
	Tags map[string]string `json:"tags,omitempty"`
	// Pushed is when commits were last pushed whose messages name issues; zero once
	// what the forge made of that is undone.
	Pushed time.Time `json:"pushed,omitzero"`

	Troubles []Trouble `json:"troubles,omitempty"`
}

// A Trouble is what keeps a repository from being as its upstream is.
type Trouble struct {
	// Kind is one of diverged, branch, default, tags-moved, tags-removed, upstream,
	// forge, refused, archived, protection.
	Kind  string    `json:"kind"`
	Text  string    `json:"text"`
	Next  string    `json:"next,omitempty"` // what to do about it
	Since time.Time `json:"since"`          // a trouble of that kind is there
	Mark  string    `json:"mark"`           // another one is told of anew
}

// A Store keeps records, a file for each, in a directory. It is safe for
// concurrent use, by several processes too.
type Store struct{ dir string }

// OpenStore makes the directory if it is not there.
func OpenStore(dir string) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the directory of what is followed: %w", err)
	}
	return &Store{dir}, nil
}

func (s *Store) file(id int64) string {
	return filepath.Join(s.dir, strconv.FormatInt(id, 10)+".json")
}

// Get reads the record of a repository; ok is false when it follows nothing.
func (s *Store) Get(id int64) (rec Record, ok bool, err error) {
	b, err := os.ReadFile(s.file(id))
	if errors.Is(err, fs.ErrNotExist) {
		return Record{}, false, nil
	}
	if err != nil {
		return Record{}, false, err
	}
	if err := json.Unmarshal(b, &rec); err != nil {
		return Record{}, false, fmt.Errorf("%s is damaged (%w): remove it, and let the repository follow anew (devaipod forge follow)", s.file(id), err)
	}
	if rec.ID != id {
		return Record{}, false, fmt.Errorf("%s tells of repository %d: remove it", s.file(id), rec.ID)
	}
	return rec, true, nil
}

// List reads all records, by name. Those that can be read are returned with the
// error of those that can't.
func (s *Store) List() ([]Record, error) {
	files, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, err
	}
	var all []Record
	for _, f := range files {
		name, ours := strings.CutSuffix(f.Name(), ".json")
		id, e := strconv.ParseInt(name, 10, 64)
		if !ours || e != nil {
			continue
		}
		rec, ok, e := s.Get(id)
		if err = errors.Join(err, e); ok {
			all = append(all, rec)
		}
	}
	slices.SortFunc(all, func(a, b Record) int { return cmp.Or(strings.Compare(a.Repo, b.Repo), cmp.Compare(a.ID, b.ID)) })
	return all, err
}

// Put writes a record in place of what is there. It is durable when Put returns.
func (s *Store) Put(rec Record) error {
	return s.locked(func() error { return s.write(rec) })
}

// Remove takes a record away; none is no error.
func (s *Store) Remove(id int64) error {
	return s.locked(func() error {
		if err := os.Remove(s.file(id)); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	})
}

// Change changes a record, if there is one.
func (s *Store) Change(id int64, change func(*Record)) error {
	return s.locked(func() error {
		rec, ok, err := s.Get(id)
		if err != nil || !ok {
			return err
		}
		change(&rec)
		return s.write(rec)
	})
}

// update writes a record that was looked at, unless somebody has removed it
// meanwhile, or let it follow something else.
func (s *Store) update(rec Record) error {
	return s.locked(func() error {
		now, ok, err := s.Get(rec.ID)
		if err != nil || !ok || now.Upstream != rec.Upstream || now.Branch != rec.Branch {
			return err
		}
		return s.write(rec)
	})
}

func (s *Store) locked(change func() error) error {
	f, err := os.OpenFile(filepath.Join(s.dir, "lock"), os.O_CREATE|os.O_RDWR|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	defer f.Close() // and with it the lock goes
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		return fmt.Errorf("locking %s: %w", f.Name(), err)
	}
	return change()
}

// write replaces the file at once: a kill leaves the old or the new one. The
// caller has the lock.
func (s *Store) write(rec Record) error {
	b, err := json.MarshalIndent(rec, "", "  ")
	if err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(s.dir, "new"), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(b, '\n'))
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), s.file(rec.ID))
}
