package forge

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strings"
)

// A pullIndex is which pull requests of the bot a repository has, by branch.
// No route of the forge finds all of a branch: the one by base and head takes
// any of several, and none whose base somebody has changed. Numbers only grow,
// so the list, newest first, has to be read only down to what was known.
type pullIndex struct {
	repo     int64            // the forge's id: another repository may get the name
	newest   int64            // the highest number that was listed
	byBranch map[string]int64 // the newest pull request of each
}

// PullForBranch finds the bot's newest pull request from a branch of the
// repository itself, in whatever state. All are listed the first time; later
// it costs two calls, however many there are.
func (c *Client) PullForBranch(ctx context.Context, r Repo, head string) (Pull, bool, error) {
	index, listed, known, err := c.pullsOf(ctx, r)
	if err != nil {
		return Pull{}, false, err
	}
	n := index.byBranch[head]
	if p, ok := listed[n]; ok || n == 0 {
		return p, ok, nil
	}
	var got pullJSON
	err = c.do(ctx, call{method: "GET", path: r.path("/pulls/%d", n)}, &got)
	if errors.Is(err, ErrNotFound) && known { // it was deleted: is there an older one?
		c.mu.Lock()
		delete(c.pulls, r)
		c.mu.Unlock()
		return c.PullForBranch(ctx, r, head)
	}
	return pullOf(got), err == nil, err
}

// pullsOf brings a repository's index up to date; known tells whether there was
// one.
func (c *Client) pullsOf(ctx context.Context, r Repo) (index *pullIndex, listed map[int64]Pull, known bool, err error) {
	c.mu.Lock()
	have := c.pulls[r]
	c.mu.Unlock()
	if index, listed, err = c.listPulls(ctx, r, have); err != nil {
		return nil, nil, false, err
	}
	c.mu.Lock()
	c.pulls[r] = index
	c.mu.Unlock()
	return index, listed, have != nil, nil
}

// listPulls lists what came to an index, which may be nil, and returns a new
// one, with what it has read in passing.
func (c *Client) listPulls(ctx context.Context, r Repo, known *pullIndex) (*pullIndex, map[int64]Pull, error) {
	index, listed := &pullIndex{byBranch: map[string]int64{}}, map[int64]Pull{}
	in := call{method: "GET", path: r.path("/pulls"), query: url.Values{"state": {"all"}, "poster": {c.cfg.BotUser}}}
	if known != nil {
		in.query.Set("limit", "10") // an answer costs the forge work for each
		index.repo, index.newest = known.repo, known.newest
		for branch, n := range known.byBranch {
			index.byBranch[branch] = n
		}
	}
	other, sofar := false, 0
	err := eachPage(ctx, c, in, func(some []pullJSON, _ http.Header, more bool) bool {
		sofar += len(some)
		// Where the last one is known, so are all that follow.
		unknown := known == nil || (len(some) > 0 && some[len(some)-1].Index > known.newest)
		for _, p := range some {
			if p.Base != nil {
				other = other || (index.repo != 0 && p.Base.RepoID != index.repo)
				index.repo = p.Base.RepoID
			}
			index.newest = max(index.newest, p.Index)
			q := pullOf(p)
			if !q.Own || !strings.EqualFold(q.Author, c.cfg.BotUser) {
				continue
			}
			listed[q.Number] = q
			index.byBranch[q.HeadBranch] = max(index.byBranch[q.HeadBranch], q.Number)
		}
		return unknown && more
	})
	if err != nil {
		return nil, nil, err
	}
	// Made anew under its name, or emptied: nothing known is of use.
	if known != nil && (other || (sofar == 0 && known.newest != 0)) {
		return c.listPulls(ctx, r, nil)
	}
	return index, listed, nil
}
