package forge

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// glob are the characters that make a rule's name a pattern of branches.
const glob = `*?[]{}\`

// ProtectBranch sees to it that only the service's account may push to a branch
// and merge pull requests into it, site admins included; made tells whether
// there was no rule of the branch's name. What else a rule says is left alone.
// It takes a client of an admin of the repository. Whoever is one too can take
// the rule away again; so this is to be called now and then.
func (c *Client) ProtectBranch(ctx context.Context, r Repo, branch string) (made bool, err error) {
	if strings.ContainsAny(branch, glob) {
		return false, fmt.Errorf("the branch %q can't be protected: a rule of that name would be a pattern", branch)
	}
	v, err := c.Version(ctx)
	if err != nil {
		return false, err
	}
	want := map[string]any{
		"enable_push": true, "enable_push_whitelist": true, "push_whitelist_usernames": []any{c.cfg.ServiceUser}, "push_whitelist_teams": []any{},
		"push_whitelist_deploy_keys": false, "unprotected_file_patterns": "",
		"enable_merge_whitelist": true, "merge_whitelist_usernames": []any{c.cfg.ServiceUser}, "merge_whitelist_teams": []any{},
		v.adminsToo(): true,
	}
	var have map[string]any
	err = c.do(ctx, call{method: "GET", path: rulePath(r, branch)}, &have)
	switch {
	case errors.Is(err, ErrNotFound):
		made = true
		want["rule_name"] = branch
		err = c.do(ctx, call{method: "POST", path: r.path("/branch_protections"), body: want}, nil)
	case err == nil && !says(have, want):
		err = c.do(ctx, call{method: http.MethodPatch, path: rulePath(r, branch), body: want}, nil)
	}
	if err != nil {
		return made, fmt.Errorf("protecting %s of %s: %w", branch, r, err)
	}
	return made, c.effective(ctx, r, branch)
}

// effective is an error when another rule comes before the branch's own, as one
// that is a pattern can.
func (c *Client) effective(ctx context.Context, r Repo, branch string) error {
	var b struct {
		Rule string `json:"effective_branch_protection_name"`
	}
	err := c.do(ctx, call{method: "GET", path: r.path("/branches/%s", escapePath(branch))}, &b)
	if errors.Is(err, ErrNotFound) {
		return nil // it is yet to be pushed
	}
	if err == nil && b.Rule != "" && b.Rule != branch {
		err = fmt.Errorf("the rule %.100q of %s comes before that of %s: remove it, or put it behind", b.Rule, r, branch)
	}
	return err
}

// says tells whether a rule has all that is wanted; a field that the forge does
// not know is none of ours.
func says(have, want map[string]any) bool {
	for field, value := range want {
		got, known := have[field]
		if !known {
			continue
		}
		names, several := value.([]any)
		if !several {
			if got != value {
				return false
			}
			continue
		}
		listed, _ := got.([]any) // null for none
		if !slices.Equal(listed, names) {
			return false
		}
	}
	return true
}

// UnprotectBranch takes the branch's rule away; none is no error.
func (c *Client) UnprotectBranch(ctx context.Context, r Repo, branch string) error {
	err := c.do(ctx, call{method: http.MethodDelete, path: rulePath(r, branch)}, nil)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	return err
}

func rulePath(r Repo, branch string) string {
	return r.path("/branch_protections/") + url.PathEscape(branch)
}

// MergeByPush lets the forge mark a pull request as merged once its commits
// have come to the base branch by a push.
func (c *Client) MergeByPush(ctx context.Context, r Repo) error {
	return c.do(ctx, call{method: http.MethodPatch, path: r.path(""), body: map[string]bool{"autodetect_manual_merge": true}}, nil)
}

// SetDefaultBranch makes a branch that is there the default one.
func (c *Client) SetDefaultBranch(ctx context.Context, r Repo, branch string) error {
	return c.do(ctx, call{method: http.MethodPatch, path: r.path(""), body: map[string]string{"default_branch": branch}}, nil)
}
