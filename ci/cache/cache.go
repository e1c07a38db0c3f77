// Package cache is what jobs of workflows save between runs: the server that
// actions/cache and programs like it find at ACTIONS_CACHE_URL. It speaks version 1 of
// that API, as @actions/cache does with every server but github.com; version 2 is used
// there alone, where ACTIONS_CACHE_SERVICE_V2 is set.
//
// A [Store] keeps the entries of all repositories in a directory. [Store.Job] gives the
// [http.Handler] of one job, whose [Scope] says what that job restores and where it
// saves; nothing that the job sends changes it. A save is a reservation, chunks in any
// order, and a commit (upload.go); a restore is a question and a download (handler.go).
//
// # Files
//
// An entry is a directory, DIR/entries/ID, with the archive and entry.json. ID is made of
// what the entry is found by. It is made in DIR/tmp, flushed, and renamed, so it is there
// whole or not at all; it goes the same way back. What a kill leaves in DIR/tmp goes with
// the next [Open]. An archive's time of change is that of the entry's last use.
//
// # Room
//
// Entries are counted in shares: for each repository what trusted jobs saved, and what
// others did. When all together exceed the limit, the largest share loses what was used
// least recently, and no save takes anything from a share that is smaller than its own:
// so whoever floods the cache loses his own, and leaves the others an equal part.
package cache

import (
	"cmp"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// A Tier says who saved an entry.
type Tier string

const (
	// Untrusted jobs may be an agent's.
	Untrusted Tier = "untrusted"
	// Trusted jobs read no secrets.
	Trusted Tier = "trusted"
	// Secret is of trusted jobs that do.
	Secret Tier = "secret"
)

// A Scope says whose job it is.
type Scope struct {
	Repo int64  // the forge's number
	Name string // OWNER/NAME, for people
	Tier Tier
	Ref  string // where it saves, and looks first
	Base string // of a pull request, the ref that it is to be merged into; or ""
	Main string // the ref of the default branch
}

// A layer is where a job looks at a time.
type layer struct {
	ref   string
	tiers []Tier
}

func (l layer) has(e *Entry) bool {
	if e.Ref != l.ref {
		return false
	}
	for _, t := range l.tiers {
		if e.Tier == t {
			return true
		}
	}
	return false
}

// layers are all that a job restores from. One that is trusted reads nothing that another
// has saved; what was saved with secrets at hand is read with secrets alone.
func (s Scope) layers() []layer {
	switch s.Tier {
	case Untrusted:
		return []layer{{s.Ref, []Tier{Untrusted}}, {s.Main, []Tier{Trusted}}}
	case Trusted:
		return []layer{{s.Ref, []Tier{Trusted}}, {s.Base, []Tier{Trusted}}, {s.Main, []Tier{Trusted}}}
	case Secret:
		both := []Tier{Trusted, Secret}
		return []layer{{s.Ref, both}, {s.Base, both}, {s.Main, both}}
	}
	return nil
}

// Config of a Store. Zero values have the defaults that are named.
type Config struct {
	Dir string // its own
	// Max is the most that all entries take, bytes. An entry, and what a job has sent
	// and not committed, take a quarter at most.
	Max int64
	// Entries is the most in a share, 10,000.
	Entries int
	// Idle is how long nothing may come of an upload, or go on a connection, until it
	// is given up: 5 minutes.
	Idle time.Duration
	Log  *slog.Logger
}

const (
	// overhead is what an entry takes beside its archive, bytes.
	overhead = 16 << 10
	// unused is how long an entry stays that nobody uses.
	unused = 30 * 24 * time.Hour
)

// A Store keeps entries. Its methods may be called concurrently; there is one for a
// directory at a time.
type Store struct {
	Config
	mu       sync.Mutex
	used     int64 // bytes, of all shares
	shares   map[owner]*share
	reserved map[string]bool // IDs that are being saved
}

// An owner is whose share an entry counts to.
type owner struct {
	repo      int64
	untrusted bool
}

type share struct {
	entries map[string]*Entry
	used    int64 // bytes, of entries and what is being saved
}

// Open reads what there is, and removes what is no whole entry, was not used for 30 days,
// or is too much.
func Open(c Config) (*Store, error) {
	if c.Dir == "" || c.Max <= 0 || c.Log == nil {
		return nil, errors.New("ci/cache: Dir, Max and Log must be set")
	}
	c.Entries, c.Idle = cmp.Or(c.Entries, 10_000), cmp.Or(c.Idle, 5*time.Minute)
	s := &Store{Config: c, shares: map[owner]*share{}, reserved: map[string]bool{}}
	if err := os.RemoveAll(filepath.Join(c.Dir, "tmp")); err != nil {
		return nil, err
	}
	for _, d := range []string{"tmp", "entries"} {
		if err := os.MkdirAll(filepath.Join(c.Dir, d), 0o700); err != nil {
			return nil, err
		}
	}
	all, broken, err := read(c.Dir)
	if err != nil {
		return nil, err
	}
	for _, id := range broken {
		c.Log.Warn("removing a broken entry of the CI cache", "id", id)
		if err := Remove(c.Dir, id); err != nil {
			return nil, err
		}
	}
	for _, e := range all {
		sh := s.share(e.owner())
		sh.entries[e.ID] = e
		s.count(sh, e.cost())
	}
	s.expire()
	return s, s.take(owner{}, 0)
}

// share is that of an owner. It is called with the lock held, as count, drop, largest,
// match and newest are.
func (s *Store) share(o owner) *share {
	sh := s.shares[o]
	if sh == nil {
		sh = &share{entries: map[string]*Entry{}}
		s.shares[o] = sh
	}
	return sh
}

func (s *Store) count(sh *share, n int64) {
	sh.used += n
	s.used += n
}

// drop forgets an entry and moves it away; what is to be removed then is returned.
func (s *Store) drop(sh *share, e *Entry) string {
	delete(sh.entries, e.ID)
	s.count(sh, -e.cost())
	gone, err := moveAway(s.Dir, e.ID)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.Log.Warn("removing an entry of the CI cache", "id", e.ID, "err", err)
	}
	return gone
}

// largest is the share that gives up something for n bytes more of sh; nil if there is none.
func (s *Store) largest(sh *share, n int64) *share {
	var most *share
	for o, other := range s.shares {
		if len(other.entries) > 0 && (most == nil || other.used > most.used || other.used == most.used && o.untrusted) {
			most = other
		}
	}
	if most == nil || most.used > sh.used+n {
		return most
	}
	if len(sh.entries) > 0 {
		return sh
	}
	return nil
}

// errFull says that there is no room that a save may take.
var errFull = errors.New("the cache is full of what others have, or are saving")

// take counts n bytes more to an owner, and makes room for them.
func (s *Store) take(o owner, n int64) error {
	s.mu.Lock()
	sh := s.share(o)
	var gone []string
	var err error
	for err == nil && s.used+n > s.Max {
		if from := s.largest(sh, n); from != nil {
			gone = append(gone, s.drop(from, from.oldest()))
		} else {
			err = errFull
		}
	}
	for len(sh.entries) >= s.Entries {
		gone = append(gone, s.drop(sh, sh.oldest()))
	}
	if err == nil {
		s.count(sh, n)
	}
	s.mu.Unlock()
	s.remove(gone)
	return err
}

// give takes back what take counted.
func (s *Store) give(o owner, n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.count(s.share(o), -n)
}

// expire removes what nobody has used.
func (s *Store) expire() {
	s.mu.Lock()
	var gone []string
	for o, sh := range s.shares {
		for _, e := range sh.entries {
			if time.Since(e.Used) > unused {
				gone = append(gone, s.drop(sh, e))
			}
		}
		if len(sh.entries) == 0 && sh.used == 0 {
			delete(s.shares, o)
		}
	}
	s.mu.Unlock()
	s.remove(gone)
}

func (s *Store) remove(gone []string) {
	for _, dir := range gone {
		if dir == "" {
			continue
		}
		if err := os.RemoveAll(dir); err != nil {
			s.Log.Warn("removing an entry of the CI cache", "err", err)
		}
	}
}

// oldest is the entry that was used least recently.
func (sh *share) oldest() *Entry {
	var old *Entry
	for _, e := range sh.entries {
		if old == nil || e.Used.Before(old.Used) {
			old = e
		}
	}
	return old
}

// find is the entry that a job restores for keys, and its use; nil if there is none. In
// each layer the keys are tried in turn: first one that is the same, then the newest that
// begins with it. Upper and lower case are the same, as on GitHub.
func (s *Store) find(scope Scope, keys []string, version string) *Entry {
	for {
		s.mu.Lock()
		e := s.match(scope, keys, version)
		if e == nil {
			s.mu.Unlock()
			return nil
		}
		now := time.Now()
		if err := os.Chtimes(archive(s.Dir, e.ID), now, now); err == nil {
			e.Used = now
			found := *e
			s.mu.Unlock()
			return &found
		}
		// It was removed by a command, or the disk is broken.
		gone := s.drop(s.share(e.owner()), e)
		s.mu.Unlock()
		s.remove([]string{gone})
	}
}

func (s *Store) match(scope Scope, keys []string, version string) *Entry {
	for _, l := range scope.layers() {
		if l.ref == "" {
			continue
		}
		for _, key := range keys {
			if e := s.newest(scope.Repo, l, strings.ToLower(key), version); e != nil {
				return e
			}
		}
	}
	return nil
}

// newest is the best match for a key, in lower case, in one layer.
func (s *Store) newest(repo int64, l layer, key, version string) *Entry {
	var best *Entry
	exact := false
	for _, o := range []owner{{repo, false}, {repo, true}} {
		sh := s.shares[o]
		if sh == nil {
			continue
		}
		for _, e := range sh.entries {
			if e.Version != version || !l.has(e) || !strings.HasPrefix(e.folded, key) {
				continue
			}
			same := e.folded == key
			if best == nil || same && !exact || same == exact && e.newer(best) {
				best, exact = e, same
			}
		}
	}
	return best
}

// visible is the entry of an ID, if a job of that scope may read it.
func (s *Store) visible(scope Scope, id string) *Entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range []owner{{scope.Repo, false}, {scope.Repo, true}} {
		sh := s.shares[o]
		if sh == nil || sh.entries[id] == nil {
			continue
		}
		e := *sh.entries[id]
		for _, l := range scope.layers() {
			if l.ref != "" && l.has(&e) {
				return &e
			}
		}
	}
	return nil
}

// reserve makes sure that one job at a time saves an entry that is not there.
func (s *Store) reserve(e *Entry) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.reserved[e.ID] {
		return false
	}
	sh := s.share(e.owner())
	if old := sh.entries[e.ID]; old != nil {
		if _, err := os.Stat(archive(s.Dir, e.ID)); !errors.Is(err, fs.ErrNotExist) {
			return false
		}
		s.drop(sh, old) // a command has removed it
	}
	s.reserved[e.ID] = true
	return true
}

func (s *Store) unreserve(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.reserved, id)
}

// add lists an entry that was made, whose cost take has counted.
func (s *Store) add(e *Entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.share(e.owner()).entries[e.ID] = e
}
