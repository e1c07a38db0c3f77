package forge

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// UndoKeywords opens what the service has closed since then, and closes what it
// has opened, as the bot: the service does neither of its own will, but the
// forge does it in the name of whoever pushes a commit to the default branch
// whose message says "fixes #3", or "reopens owner/other#4". Left alone are
// issues that somebody has opened or closed after it, and those whose agent's
// work is merged. The names of those that were changed back are returned. The
// forge tells of changes within seconds, so this is to be called more than once
// after a push.
func (c *Client) UndoKeywords(ctx context.Context, since time.Time) (undone []string, err error) {
	changed, _, err := c.ChangedIssues(ctx, since)
	if err != nil {
		return nil, err
	}
	for _, i := range changed {
		if i.IsPull {
			continue // no word in a commit does that to one
		}
		turned, e := c.turnedByUs(ctx, i, since)
		if e == nil && turned {
			state := map[string]string{"closed": "open", "open": "closed"}[i.State]
			e = c.do(ctx, call{method: http.MethodPatch, path: i.Repo.path("/issues/%d", i.Number), body: map[string]string{"state": state}, bot: true}, nil)
			if e == nil {
				undone = append(undone, fmt.Sprintf("%s#%d", i.Repo, i.Number))
			}
		}
		if e != nil && !errors.Is(e, ErrNotFound) { // it has just been deleted
			err = errors.Join(err, fmt.Errorf("looking at who closed or opened %s#%d: %w", i.Repo, i.Number, e))
		}
	}
	return undone, err
}

// turnedByUs tells whether the service has closed or opened an issue, since
// then, with no good reason.
func (c *Client) turnedByUs(ctx context.Context, i Issue, since time.Time) (bool, error) {
	by, err := c.lastTurned(ctx, i, since)
	if err != nil || by != c.cfg.ServiceUser {
		return false, err
	}
	if i.State == "open" {
		return true, nil
	}
	merged, err := c.agentMerged(ctx, i)
	return !merged, err
}

// agentMerged tells whether what an agent did about an issue is on the base
// branch; the forge may not have marked the pull request yet.
func (c *Client) agentMerged(ctx context.Context, i Issue) (bool, error) {
	index, _, _, err := c.pullsOf(ctx, i.Repo)
	if err != nil {
		return false, err
	}
	for branch := range index.byBranch {
		if !strings.HasPrefix(branch, fmt.Sprintf("%s%d-", stateScope, i.Number)) {
			continue
		}
		pull, ok, err := c.PullForBranch(ctx, i.Repo, branch)
		if err != nil {
			return false, err
		}
		if ok && pull.Merged {
			return true, nil
		}
		ahead, err := c.Compare(ctx, i.Repo, pull.Base, branch)
		if errors.Is(err, ErrNotFound) {
			continue // the branch is gone
		}
		if err != nil || len(ahead) == 0 {
			return err == nil, err
		}
	}
	return false, nil
}

// lastTurned is who closed or opened an issue last, since then; "" for nobody.
func (c *Client) lastTurned(ctx context.Context, i Issue, since time.Time) (by string, err error) {
	in := call{method: "GET", path: i.Repo.path("/issues/%d/timeline", i.Number)}
	in.query = map[string][]string{"since": {since.UTC().Format(time.RFC3339)}}
	var last int64
	err = eachPage(ctx, c, in, func(some []timelineEntry, _ http.Header, _ bool) bool {
		for _, e := range some {
			if (e.Type == "close" || e.Type == "reopen") && e.ID > last {
				last, by = e.ID, login(e.User)
			}
		}
		return len(some) > 0
	})
	return by, err
}
