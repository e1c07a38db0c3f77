package cache

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// An Entry is one archive that a job has saved. It does not change.
type Entry struct {
	ID      string    `json:"id"`
	RepoID  int64     `json:"repo_id"`
	Repo    string    `json:"repo"` // OWNER/NAME at that time
	Tier    Tier      `json:"tier"`
	Ref     string    `json:"ref"`
	Key     string    `json:"key"`
	Version string    `json:"version"` // what the job's client says of paths and compression
	Size    int64     `json:"size"`    // bytes
	Created time.Time `json:"created"`
	Used    time.Time `json:"used"` // last

	folded string // Key, in lower case
}

// newEntry is the one that a job with that scope saves under a key.
func newEntry(s Scope, key, version string) *Entry {
	e := &Entry{RepoID: s.Repo, Repo: s.Name, Tier: s.Tier, Ref: s.Ref, Key: key, Version: version}
	e.folded = strings.ToLower(key)
	e.ID = e.id()
	return e
}

// id is made of what an entry is found by.
func (e *Entry) id() string {
	h := sha256.Sum256(fmt.Appendf(nil, "%d %q %q %q %q", e.RepoID, e.Tier, e.Ref, e.folded, e.Version))
	return hex.EncodeToString(h[:])
}

func (e *Entry) owner() owner { return owner{e.RepoID, e.Tier == Untrusted} }

// cost is what it counts for, bytes.
func (e *Entry) cost() int64 { return e.Size + overhead }

func (e *Entry) newer(than *Entry) bool {
	if !e.Created.Equal(than.Created) {
		return e.Created.After(than.Created)
	}
	return e.ID > than.ID
}

func archive(dir, id string) string { return filepath.Join(dir, "entries", id, "archive") }

// List is the entries in a store's directory, those used last first. It needs no Store.
func List(dir string) ([]Entry, error) {
	all, _, err := read(dir)
	if err != nil {
		return nil, err
	}
	list := make([]Entry, 0, len(all))
	for _, e := range all {
		list = append(list, *e)
	}
	slices.SortFunc(list, func(a, b Entry) int { return b.Used.Compare(a.Used) })
	return list, nil
}

// Remove removes an entry, also while a Store is open. The error is fs.ErrNotExist where
// there is none.
func Remove(dir, id string) error {
	gone, err := moveAway(dir, id)
	if err != nil {
		return err
	}
	return os.RemoveAll(gone)
}

// moveAway takes an entry out of the list, as a whole, to where it can be removed.
func moveAway(dir, id string) (string, error) {
	if strings.ContainsAny(id, "/\x00") || id == "" || id == "." || id == ".." {
		return "", fmt.Errorf("%q is no entry: %w", id, fs.ErrNotExist)
	}
	gone := filepath.Join(dir, "tmp", "gone-"+rand.Text())
	if err := os.Rename(filepath.Join(dir, "entries", id), gone); err != nil {
		return "", err
	}
	return gone, nil
}

// read reads all entries, and names what is none.
func read(dir string) (all []*Entry, broken []string, err error) {
	names, err := os.ReadDir(filepath.Join(dir, "entries"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	for _, n := range names {
		e, err := readEntry(dir, n.Name())
		switch {
		case err == nil:
			all = append(all, e)
		case errors.Is(err, fs.ErrPermission):
			return nil, nil, err
		default:
			broken = append(broken, n.Name())
		}
	}
	return all, broken, err
}

func readEntry(dir, id string) (*Entry, error) {
	text, err := os.ReadFile(filepath.Join(dir, "entries", id, "entry.json"))
	if err != nil {
		return nil, err
	}
	e := &Entry{}
	if err := json.Unmarshal(text, e); err != nil {
		return nil, err
	}
	e.folded = strings.ToLower(e.Key)
	info, err := os.Stat(archive(dir, id))
	if err != nil {
		return nil, err
	}
	if e.ID != id || e.id() != id || info.Size() != e.Size {
		return nil, errors.New("it is not what it says")
	}
	e.Used = info.ModTime()
	return e, nil
}

// write makes e of the archive in dir, a directory of the store's tmp, which is to be
// flushed already.
func (s *Store) write(e *Entry, dir string) error {
	text, err := json.Marshal(e)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(dir, "entry.json"), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err = errors.Join(err, f.Sync(), f.Close(), syncDir(dir)); err != nil {
		return err
	}
	// No entry is replaced by this: a directory that is not empty stays.
	if err := os.Rename(dir, filepath.Join(s.Dir, "entries", e.ID)); err != nil {
		return err
	}
	return syncDir(filepath.Join(s.Dir, "entries"))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
