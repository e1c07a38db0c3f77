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
	if made = errors.Is(err, ErrNotFound); made {
		want["rule_name"] = branch
		err = c.do(ctx, call{method: "POST", path: r.path("/branch_protections"), body: want}, nil)
	}
	var now effect
	if err == nil {
		now, err = c.effect(ctx, r, branch)
	}
	if err == nil && !made && !(says(have, want) && now.lets()) {
		if err = c.do(ctx, call{method: http.MethodPatch, path: rulePath(r, branch), body: want}, nil); err == nil {
			now, err = c.effect(ctx, r, branch)
		}
	}
	switch {
	case err != nil:
		return made, fmt.Errorf("protecting %s of %s: %w", branch, r, err)
	case now.Rule != "" && now.Rule != branch:
		return made, fmt.Errorf("the rule %.100q of %s comes before that of %s: remove it, or put it behind", now.Rule, r, branch)
	case !now.lets():
		return made, fmt.Errorf("the rule of %s for %s does not let %s write it", r, branch, c.cfg.ServiceUser)
	}
	return made, nil
}

// An effect is what all rules together make of a branch, for the service's
// account.
type effect struct {
	Rule     string `json:"effective_branch_protection_name"`
	CanPush  bool   `json:"user_can_push"`
	CanMerge bool   `json:"user_can_merge"`
	missing  bool   // the branch is yet to be pushed
}

func (e effect) lets() bool { return e.missing || e.CanPush && e.CanMerge }

func (c *Client) effect(ctx context.Context, r Repo, branch string) (e effect, err error) {
	err = c.do(ctx, call{method: "GET", path: r.path("/branches/%s", escapePath(branch))}, &e)
	if errors.Is(err, ErrNotFound) {
		return effect{missing: true}, nil
	}
	return e, err
}

// says tells whether a rule has all that is wanted, and lists nobody else. A
// field that the forge does not know is none of ours; nor does it list who is no
// reader of the repository but as a site admin, as the service may be.
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
		if slices.ContainsFunc(listed, func(name any) bool { return !slices.Contains(names, name) }) {
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
