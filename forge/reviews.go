package forge

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	sdk "codeberg.org/mvdkleijn/forgejo-sdk/forgejo/v3"
)

// A Review of a pull request, as it was submitted.
type Review struct {
	ID           int64
	Author, Body string
	State        string // APPROVED, REQUEST_CHANGES or COMMENT
	Commit       string // the head that was looked at
	At           time.Time
	Dismissed    bool
	Comments     []LineComment // with the answers to them, the oldest first
}

// A LineComment stands at a line of a pull request's diff. Those at the same line of the same
// file are a thread.
type LineComment struct {
	ID, Review    int64
	Author, Body  string
	Path, Hunk    string // Hunk is the diff above the line, the line itself last
	Line, OldLine int64  // of the file as it is proposed, or as it was; the other is 0
	At, Updated   time.Time
	Resolved      bool
}

// Reviews lists a pull request's reviews that were submitted, the oldest first, with all line
// comments. What is a draft still is nobody's but its author's, and not among them.
func (c *Client) Reviews(ctx context.Context, r Repo, pull int64) ([]Review, error) {
	found, err := c.reviewsOf(ctx, r, pull)
	if err != nil {
		return nil, err
	}
	var out []Review
	for _, v := range found {
		switch v.State {
		case sdk.ReviewStateApproved, sdk.ReviewStateRequestChanges, sdk.ReviewStateComment:
		default:
			continue
		}
		one := Review{ID: v.ID, Author: login(v.Reviewer), Body: v.Body, State: string(v.State), Commit: v.CommitID, At: v.Submitted, Dismissed: v.Dismissed}
		if v.CodeCommentsCount > 0 {
			if one.Comments, err = c.lineComments(ctx, r, pull, v.ID); errors.Is(err, ErrNotFound) {
				continue // it was deleted meanwhile
			}
			if err != nil {
				return nil, err
			}
		}
		out = append(out, one)
	}
	slices.SortStableFunc(out, func(a, b Review) int { return cmp.Or(a.At.Compare(b.At), cmp.Compare(a.ID, b.ID)) })
	return out, nil
}

// reviewsOf lists all that the forge calls a review of a pull request.
//
// Seen on the sibling 1.23.8: a review keeps the commit that was the head when it was
// submitted, in commit_id; what is not submitted is "PENDING", a request for a review
// "REQUEST_REVIEW".
func (c *Client) reviewsOf(ctx context.Context, r Repo, pull int64) ([]sdk.PullReview, error) {
	return pages[sdk.PullReview](ctx, c, call{method: "GET", path: r.path("/pulls/%d/reviews", pull)})
}

func (c *Client) lineComments(ctx context.Context, r Repo, pull, review int64) ([]LineComment, error) {
	var found []sdk.PullReviewComment // this route has no pages
	if err := c.do(ctx, call{method: "GET", path: r.path("/pulls/%d/reviews/%d/comments", pull, review)}, &found); err != nil {
		return nil, err
	}
	var out []LineComment
	for _, m := range found {
		out = append(out, LineComment{
			ID: m.ID, Review: m.ReviewID, Author: login(m.Reviewer), Body: m.Body, Path: m.Path, Hunk: m.DiffHunk,
			Line: int64(m.LineNum), OldLine: int64(m.OldLineNum), At: m.Created, Updated: m.Updated, Resolved: m.Resolver != nil, //nolint:gosec // lines of a file
		})
	}
	slices.SortFunc(out, func(a, b LineComment) int { return cmp.Compare(a.ID, b.ID) })
	return out, nil
}

// AnswerByReview comments at the line of a comment, as the bot, in a review of its own: where
// [Web.Answer] can't.
func (c *Client) AnswerByReview(ctx context.Context, r Repo, pull int64, to LineComment, body string) error {
	in := sdk.CreatePullReviewOptions{State: sdk.ReviewStateComment, Comments: []sdk.CreatePullReviewComment{
		{Path: to.Path, Body: bounded(body), NewLineNum: to.Line, OldLineNum: to.OldLine},
	}}
	return c.do(ctx, call{method: http.MethodPost, path: r.path("/pulls/%d/reviews", pull), body: in, bot: true}, nil)
}

// Answer answers a line comment in its thread, as the bot. The API has no way to.
func (w *Web) Answer(ctx context.Context, r Repo, pull int64, to LineComment, body string) error {
	form := url.Values{
		"origin": {"timeline"}, "single_review": {"true"}, "reply": {strconv.FormatInt(to.Review, 10)},
		"path": {to.Path}, "side": {"proposed"}, "line": {strconv.FormatInt(to.Line, 10)}, "content": {bounded(body)},
	}
	if to.Line == 0 {
		form.Set("side", "previous")
		form.Set("line", strconv.FormatInt(to.OldLine, 10))
	}
	return w.post(ctx, fmt.Sprintf("to answer comment %d on %s#%d", to.ID, r, pull), r, fmt.Sprintf("pulls/%d/files/reviews/comments", pull), form)
}
