package forge

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strconv"
)

// RunnerToken is a token by which a runner of Actions registers for a repository. It takes a
// client of who administers it.
func (c *Client) RunnerToken(ctx context.Context, r Repo) (string, error) {
	var t struct {
		Token string `json:"token"`
	}
	err := c.do(ctx, call{method: "GET", path: r.path("/actions/runners/registration-token")}, &t)
	if err == nil && t.Token == "" {
		err = errors.New("the forge gave none; are Actions enabled there?")
	}
	if err != nil {
		return "", fmt.Errorf("asking for a runner's registration token for %s: %w", r, err)
	}
	return t.Token, nil
}

// RootEntries are the entries of a commit's root directory: names, and the hashes of what
// they are of. A directory with more than 20,000 is an error.
func (c *Client) RootEntries(ctx context.Context, r Repo, commit string) (map[string]string, error) {
	const size, most = 1000, 20
	all := map[string]string{}
	for page := 1; page <= most; page++ {
		var tree struct {
			Entries []struct {
				Path string `json:"path"`
				SHA  string `json:"sha"`
			} `json:"tree"`
			Truncated bool `json:"truncated"`
			Total     int  `json:"total_count"`
		}
		in := call{method: "GET", path: r.path("/git/trees/%s", url.PathEscape(commit)), query: url.Values{"page": {strconv.Itoa(page)}, "per_page": {strconv.Itoa(size)}}}
		if err := c.do(ctx, in, &tree); err != nil {
			return nil, fmt.Errorf("reading the files of %s in %s: %w", commit, r, err)
		}
		for _, e := range tree.Entries {
			all[e.Path] = e.SHA
		}
		switch {
		case len(all) == tree.Total:
			return all, nil
		case len(tree.Entries) == 0 || !tree.Truncated:
			return nil, fmt.Errorf("reading the files of %s in %s: the forge told %d of %d", commit, r, len(all), tree.Total)
		}
	}
	return nil, fmt.Errorf("the root directory of %s in %s: %w", commit, r, ErrTooMany)
}

// DispatchWorkflow has the forge run a workflow that has the event workflow_dispatch, as
// it is on a branch or tag.
func (c *Client) DispatchWorkflow(ctx context.Context, repo Repo, workflow, ref string, inputs map[string]string) error {
	body := map[string]any{"ref": ref}
	if len(inputs) > 0 {
		body["inputs"] = inputs
	}
	return c.do(ctx, call{method: "POST", path: repo.path("/actions/workflows/%s/dispatches", url.PathEscape(workflow)), body: body}, nil)
}
