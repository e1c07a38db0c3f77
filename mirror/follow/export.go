package follow

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"codeberg.org/devaipod/devaipod/mirror/cache"
)

// A BehindError is a commit that can't go upstream before what the upstream's branch has
// now is merged into it.
type BehindError struct{ Upstream string } // the commit there

func (e *BehindError) Error() string {
	return fmt.Sprintf("the upstream has moved to %.12s, which is not in it", e.Upstream)
}

// A TroubleError is a repository that can't follow its upstream just now.
type TroubleError struct{ Trouble }

func (e *TroubleError) Error() string { return e.Text }

// An Export is what goes upstream, or has gone there.
type Export struct {
	Upstream string         // what the git cache calls it
	Branch   string         // there
	Old, New string         // where it was, and the commit; Old is New when that is there already
	Commits  []cache.Commit // git rev-list Old..New, parents first
}

// Plan tells what [Follower.Export] would do now.
func (f *Follower) Plan(ctx context.Context, id int64, commit string) (Export, error) {
	defer f.take(id)()
	e, _, _, err := f.plan(ctx, id, commit)
	return e, err
}

// Export brings a commit, which the forge has, to the branch that a repository follows
// upstream, if it moves that forward, and then the forge's own branch to there. Both are
// looked at anew first; and what was killed after any step goes on by being called again.
func (f *Follower) Export(ctx context.Context, id int64, commit string) (Export, error) {
	defer f.take(id)()
	e, from, to, err := f.plan(ctx, id, commit)
	if err != nil {
		return e, err
	}
	if e.Old != commit {
		f.cfg.Fault("export: push refs/heads/" + e.Branch)
		if err := f.cfg.Cache.Export(ctx, from, to, e.Branch, e.Old, commit); err != nil {
			return e, fmt.Errorf("pushing %.12s to %s of %s: %w", commit, e.Branch, e.Upstream, err)
		}
		f.cfg.Log.Info("exported", "upstream", e.Upstream, "branch", e.Branch, "from", e.Old, "to", commit)
	}
	f.cfg.Fault("export: follow")
	view, err := f.look(ctx, id)
	if err != nil {
		return e, err
	}
	if err := inTheWay(view); err != nil {
		return e, fmt.Errorf("it is upstream, and the forge's copy does not follow: %w", err)
	}
	return e, nil
}

// take waits for the turn of a repository, and gives it back.
func (f *Follower) take(id int64) (give func()) {
	t := f.turn(id)
	t.mu.Lock()
	return func() {
		t.mu.Unlock()
		if t.again.Load() {
			f.Kick()
		}
	}
}

// plan looks at both sides. It returns the addresses of the forge's and the upstream's
// repositories as well.
func (f *Follower) plan(ctx context.Context, id int64, commit string) (e Export, from, to cache.Address, err error) {
	view, err := f.look(ctx, id)
	if err != nil {
		return e, from, to, err
	}
	e = Export{Upstream: view.Upstream, Branch: view.Branch, Old: view.Seen, New: commit}
	if err := inTheWay(view); err != nil {
		return e, from, to, err
	}
	if to, err = cache.ParseAddress(view.Upstream); err == nil {
		from, err = cache.ParseAddress(f.cfg.ForgeHost + "/" + view.Repo)
	}
	if err == nil {
		_, err = f.cfg.Cache.Sync(ctx, from)
	}
	if err != nil {
		return e, from, to, err
	}
	there, err := f.cfg.Cache.Ancestor(ctx, from, commit, e.Old)
	if err != nil {
		return e, from, to, err
	}
	if there {
		e.Old = commit
		return e, from, to, nil
	}
	forward, err := f.cfg.Cache.Ancestor(ctx, from, e.Old, commit)
	if err == nil && !forward {
		err = &BehindError{e.Old}
	}
	if err == nil {
		e.Commits, err = f.cfg.Cache.Between(ctx, from, e.Old, commit)
	}
	return e, from, to, err
}

// inTheWay is what keeps a repository from being as its upstream is, if anything does.
func inTheWay(v View) error {
	blocks := []string{"archived", "forge", "upstream", "diverged", "refused"}
	if i := slices.IndexFunc(v.Troubles, func(t Trouble) bool { return slices.Contains(blocks, t.Kind) }); i >= 0 {
		return &TroubleError{v.Troubles[i]}
	}
	if v.Seen == "" || v.Seen != v.Written {
		return errors.New("the forge's branch is not where the upstream's is")
	}
	return nil
}
