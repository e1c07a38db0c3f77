package cache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"codeberg.org/devaipod/devaipod/mirror/gitproc"
)

// What goes upstream: one commit, to one branch, forward. Nothing else of this package
// writes to a host that is not our own by our own credentials, but for clients that show
// the cache's token.

// Errors of [Cache.Export] that a caller decides on, beside those of [Cache.Ask].
var (
	// ErrMoved is a branch that is not where it was expected.
	ErrMoved = errors.New("the upstream's branch has moved")
	// ErrDeclined is a push that was not taken; the error has the upstream's words.
	ErrDeclined = errors.New("it refuses")
	// ErrNotForward is a commit that does not hold all that the branch has.
	ErrNotForward = errors.New("it is no fast-forward")
)

// Export brings a commit of a repository that is here, and is from a host of our own
// ([Host.Push]), to a branch of an upstream elsewhere, with our own credentials for it.
// The branch must be at old, of which the commit is a descendant: both are looked at here,
// the upstream is asked, and it moves the branch only if that is still at old. No other
// ref is written, and none is made.
func (c *Cache) Export(ctx context.Context, from, to Address, branch, old, commit string) error {
	ref := "refs/heads/" + branch
	switch {
	case branch == "" || strings.ContainsAny(branch, ":*+?[\\^~ ") || !objectID.MatchString(old) || !objectID.MatchString(commit):
		return fmt.Errorf("%.200q from %.80q to %.80q is nothing to export", ref, old, commit)
	case !c.cfg.Hosts[from.Host].Push || c.cfg.Hosts[to.Host].Push:
		return &RefusedError{What: to.String(), Why: "what is exported goes from a forge of our own to another host"}
	}
	if forward, err := c.Ancestor(ctx, from, old, commit); err != nil {
		return err
	} else if !forward {
		return fmt.Errorf("%w: %.12s to %.12s", ErrNotForward, old, commit)
	}
	way, err := c.exportWay(ctx, to)
	if err != nil {
		return err
	}
	defer way.close()
	if err := way.at(ctx, ref, old); err != nil {
		return err
	}
	said, result := &gitproc.Tail{Max: 8192}, &bytes.Buffer{}
	// The lease is what is expected, and takes nothing by force: old is an ancestor.
	args := []string{"push", "--porcelain", "--no-force", "--no-verify", "--no-follow-tags", "--no-signed", "--no-recurse-submodules", "--force-with-lease=" + ref + ":" + old, "upstream", commit + ":" + ref}
	err = way.run(ctx, gitproc.Child{Dir: c.repo(from).git(), Args: args, Stdout: result, Stderr: said})
	if refused := refusedRefs(result); err != nil && len(refused) > 0 {
		if e := way.at(ctx, ref, old); errors.Is(e, ErrMoved) {
			return e
		}
		return fmt.Errorf("%w %s%s", ErrDeclined, strings.Join(refused, ", "), remoteWords(said))
	}
	if err == nil { // the next fetch asks
		if e := c.repo(to).touch("pushed"); !errors.Is(e, os.ErrNotExist) {
			err = e
		}
	}
	return err
}

// exportWay is the way to an upstream's repository where something may be pushed: to where
// its name leads, and to no other place that it names.
func (c *Cache) exportWay(ctx context.Context, to Address) (*way, error) {
	u, err := c.upstream(to)
	if err != nil {
		return nil, err
	}
	if u.url.Scheme == "file" {
		if _, err := os.Stat(u.url.Path); errors.Is(err, os.ErrNotExist) {
			u = u.bare()
		}
	}
	auth, err := c.credentials(ctx, u)
	if err != nil {
		return nil, err
	}
	way := c.way(ctx, u, auth)
	if way.session != nil {
		way.session.push.Store(true)
		way.session.stays.Store(true)
	}
	return way, nil
}

// at asks whether a ref is at an object, now; ErrMoved when not.
func (w *way) at(ctx context.Context, ref, id string) error {
	var list bytes.Buffer
	if err := w.run(ctx, gitproc.Child{Args: []string{"ls-remote", "--quiet", "upstream", ref}, Stdout: &list}); err != nil {
		return err
	}
	if now := readRefs(&list).IDs[ref]; now != id {
		return fmt.Errorf("%w: %s is at %.12q and not at %.12s", ErrMoved, ref, now, id)
	}
	return nil
}

// A Commit of a repository, and the first line of its message.
type Commit struct {
	ID      string `json:"id"`
	Subject string `json:"subject"`
}

// mostListed is how many commits [Cache.Between] lists.
const mostListed = 1000

// Between lists what the commit new reaches and old does not, parents before children:
// git rev-list old..new. More than 1,000 are an error.
func (c *Cache) Between(ctx context.Context, addr Address, old, new string) ([]Commit, error) {
	var list bytes.Buffer
	args := []string{"log", fmt.Sprintf("--max-count=%d", mostListed+1), "--topo-order", "--reverse", "--no-show-signature", "--format=%H%x09%s", new, "^" + old, "--"}
	if err := (gitproc.Child{Dir: c.repo(addr).git(), Args: args, Stdout: &list}).Run(ctx); err != nil {
		return nil, err
	}
	var out []Commit
	for line := range strings.Lines(list.String()) {
		id, subject, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
		out = append(out, Commit{id, subject})
	}
	if len(out) > mostListed {
		return nil, fmt.Errorf("from %.12s to %.12s are more than %d commits", old, new, mostListed)
	}
	return out, nil
}
