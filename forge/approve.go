package forge

import (
	"cmp"
	"context"
	"net/http"
	"slices"
	"strings"
	"time"

	sdk "codeberg.org/mvdkleijn/forgejo-sdk/forgejo/v3"
)

// A Verdict is a review of record that says yes or no to a pull request.
type Verdict struct {
	ID     int64
	Author string
	// Approves; else it asks for changes.
	Approves bool
	Commit   string // the head that it is of
	At       time.Time
	// Dismissed by somebody, or by a later review of the same author's.
	Dismissed bool
}

// Verdicts lists the reviews of a pull request that approve it or ask for changes, the
// oldest first.
func (c *Client) Verdicts(ctx context.Context, r Repo, n int64) ([]Verdict, error) {
	found, err := c.reviewsOf(ctx, r, n)
	if err != nil {
		return nil, err
	}
	var out []Verdict
	for _, f := range found {
		if who := login(f.Reviewer); who != "" && (f.State == sdk.ReviewStateApproved || f.State == sdk.ReviewStateRequestChanges) {
			out = append(out, Verdict{f.ID, who, f.State == sdk.ReviewStateApproved, f.CommitID, f.Submitted, f.Dismissed})
		}
	}
	slices.SortFunc(out, func(a, b Verdict) int { return cmp.Compare(a.ID, b.ID) })
	return out, nil
}

// Hands are the accounts that wrote or committed what head has and base has not, as far
// as the forge knows them by their addresses, and the newest of these commits; it is ""
// where there is none.
func (c *Client) Hands(ctx context.Context, r Repo, base, head string) (newest string, accounts []string, err error) {
	var got struct {
		Commits []sdk.Commit `json:"commits"`
	}
	if err := c.do(ctx, call{method: "GET", path: r.path("/compare/%s...%s", escapePath(base), escapePath(head))}, &got); err != nil {
		return "", nil, err
	}
	for i, k := range got.Commits { // the newest first
		if i == 0 && k.CommitMeta != nil {
			newest = k.SHA
		}
		for _, who := range []string{login(k.Author), login(k.Committer)} {
			if who != "" && !slices.Contains(accounts, who) {
				accounts = append(accounts, who)
			}
		}
	}
	return newest, accounts, nil
}

// Pull reads a pull request; ErrNotFound when there is none.
func (c *Client) Pull(ctx context.Context, r Repo, n int64) (Pull, error) {
	var got pullJSON
	if err := c.do(ctx, call{method: "GET", path: r.path("/pulls/%d", n)}, &got); err != nil {
		return Pull{}, err
	}
	return pullOf(got), nil
}

// Merge merges a pull request by a merge commit, as the service, if its head is that very
// commit: it is never squashed or rebased, which would make other commits of it. The
// forge answers 405 for what can't be merged (now), also while it finds out whether it
// can, and 409 for a conflict, a head or a base that has moved.
func (c *Client) Merge(ctx context.Context, r Repo, n int64, commit string) error {
	return c.do(ctx, call{method: "POST", path: r.path("/pulls/%d/merge", n), body: map[string]string{"Do": "merge", "head_commit_id": commit}}, nil)
}

// MarkMerged marks a pull request as merged whose head has come to its base by a push.
// The forge answers 409 when the commit is not in the base.
func (c *Client) MarkMerged(ctx context.Context, r Repo, n int64, commit string) error {
	if err := c.do(ctx, call{method: http.MethodPatch, path: r.path(""), body: map[string]bool{"allow_manual_merge": true}}, nil); err != nil {
		return err
	}
	return c.do(ctx, call{method: "POST", path: r.path("/pulls/%d/merge", n), body: map[string]string{"Do": "manually-merged", "MergeCommitID": commit}}, nil)
}

// TriesLater tells whether the forge has not yet found out whether a pull request can be
// merged, or can't be merged and does not say so more clearly.
func (e *Error) TriesLater() bool {
	return e.Status == http.StatusMethodNotAllowed && strings.Contains(strings.ToLower(e.Message), "try again later")
}
