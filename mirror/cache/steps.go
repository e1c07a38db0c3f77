package cache

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"codeberg.org/devaipod/devaipod/mirror/gitproc"
)

// A first fetch that breaks off brings nothing: git can't use half a pack. So
// the next one goes in steps, the newest commits first, and what a step has
// brought stays, in git.part/, for the one after it.

// steps is how far that is, in git.part.json.
type steps struct {
	Address  string `json:"address"`
	Identity string `json:"identity,omitempty"` // of what is fetched
	Depth    int    `json:"depth"`              // of history that is here, in commits
	Step     int    `json:"step"`               // how many more are asked for next
}

const (
	worthSteps = 1 << 20 // bytes that came before a fetch broke off
	largest    = 1 << 24 // step
	abandoned  = 24 * time.Hour
)

func (r *repo) part() string { return r.file("git.part") }

// readSteps tells how far a first fetch in steps is; ok is false when none is
// under way.
func (r *repo) readSteps() (s steps, ok bool, err error) {
	b, err := os.ReadFile(r.part() + ".json")
	if errors.Is(err, fs.ErrNotExist) {
		return s, false, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &s)
	}
	return s, err == nil, err
}

func (r *repo) saveSteps(s steps) error {
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return r.replace("git.part.json", b)
}

// brokeOff notes that a first fetch did not get to its end, so that the next
// goes in steps, if it came far enough for that to be of use.
func (r *repo) brokeOff(way *way, who string, err error) error {
	var away *unreachableError
	if !errors.As(err, &away) || way.session == nil || way.session.count(0) < worthSteps {
		return err
	}
	return errors.Join(err, r.saveSteps(steps{Address: r.addr.String(), Identity: who, Step: 1}))
}

// cloneInSteps goes on with a first fetch. A step that breaks off is made a
// smaller one next time.
func (r *repo) cloneInSteps(ctx context.Context, way *way, lock *os.File, s steps) error {
	// Harmless where it has been made before (git-init(1)).
	if err := (gitproc.Child{Args: []string{"init", "--bare", "--quiet", "--template=", r.part()}}).Run(ctx); err != nil {
		return err
	}
	for {
		args := r.fetchArgs("--progress", fmt.Sprintf("--depth=%d", s.Depth+s.Step))
		err := way.run(ctx, gitproc.Child{Dir: r.part(), Args: args, Lock: lock, Stderr: r.c.progress(r.addr)})
		if err != nil {
			s.Step = max(1, s.Step/4)
			return errors.Join(err, r.saveSteps(s))
		}
		s.Depth, s.Step = s.Depth+s.Step, min(4*s.Step, largest)
		if err := r.saveSteps(s); err != nil {
			return err
		}
		_, err = os.Stat(filepath.Join(r.part(), "shallow"))
		if errors.Is(err, fs.ErrNotExist) || err == nil && s.Depth > largest {
			return nil // all of it is here; the upstream itself may be shallow
		}
		if err != nil {
			return err
		}
	}
}

// sweepSteps removes what first fetches have left that nobody goes on with.
func (c *Cache) sweepSteps() error {
	files, err := filepath.Glob(filepath.Join(c.cfg.Dir, "repos/*/git.part.json"))
	for _, file := range files {
		info, e := os.Stat(file)
		if e != nil || c.now().Sub(info.ModTime()) < abandoned {
			continue // it may just have come to its end
		}
		r := &repo{c: c, dir: filepath.Dir(file)}
		s, ok, e := r.readSteps()
		if e != nil || !ok {
			err = errors.Join(err, e)
			continue
		}
		addr, e := ParseAddress(s.Address)
		if e != nil || addr.dir() != filepath.Base(r.dir) {
			err = errors.Join(err, fmt.Errorf("%s tells of another repository; remove the directory", file))
			continue
		}
		err = errors.Join(err, c.repo(addr).abandon())
	}
	return err
}

func (r *repo) abandon() error {
	lock, err := r.tryLock()
	if err != nil || lock == nil {
		return err // somebody goes on with it
	}
	defer lock.Close()
	if _, ok, err := r.load(); err != nil || !ok {
		return errors.Join(err, r.discard())
	}
	return r.endSteps()
}

// endSteps removes what steps have left. The caller has the lock.
func (r *repo) endSteps() error {
	return errors.Join(remove(r.part()+".json"), os.RemoveAll(r.part()))
}
