package forge

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	sdk "codeberg.org/mvdkleijn/forgejo-sdk/forgejo/v3"
)

// A RepoInfo is what the forge tells of a repository.
type RepoInfo struct {
	Repo                     Repo
	ID                       int64 // which stays when it is renamed
	DefaultBranch            string
	CloneURL, HTMLURL        string
	Empty, Archived, Private bool
	Actions                  bool // are on
}

func infoOf(r sdk.Repository) RepoInfo {
	return RepoInfo{
		Repo: Repo{login(r.Owner), r.Name}, ID: r.ID, DefaultBranch: r.DefaultBranch, CloneURL: r.CloneURL, HTMLURL: r.HTMLURL,
		Empty: r.Empty, Archived: r.Archived, Private: r.Private, Actions: r.HasActions,
	}
}

// Repository reads one; ErrNotFound when there is none.
func (c *Client) Repository(ctx context.Context, r Repo) (RepoInfo, error) {
	var got sdk.Repository
	if err := c.do(ctx, call{method: "GET", path: r.path("")}, &got); err != nil {
		return RepoInfo{}, err
	}
	return infoOf(got), nil
}

// RepositoryByID reads one by the number that stays when it is renamed;
// ErrNotFound when it is gone.
func (c *Client) RepositoryByID(ctx context.Context, id int64) (RepoInfo, error) {
	var got sdk.Repository
	if err := c.do(ctx, call{method: "GET", path: fmt.Sprintf("/repositories/%d", id)}, &got); err != nil {
		return RepoInfo{}, err
	}
	return infoOf(got), nil
}

// Repositories lists all that the token's account can see.
func (c *Client) Repositories(ctx context.Context) ([]RepoInfo, error) {
	var out []RepoInfo
	in := call{method: "GET", path: "/repos/search"}
	for page := 1; page <= maxPages; page++ {
		in.query = url.Values{"limit": {fmt.Sprint(pageSize)}, "page": {fmt.Sprint(page)}, "sort": {"id"}}
		var answer struct {
			Data []sdk.Repository `json:"data"`
		}
		header, err := c.doHeader(ctx, in, &answer)
		if err != nil {
			return nil, err
		}
		for _, r := range answer.Data {
			out = append(out, infoOf(r))
		}
		if !more(header, len(answer.Data), pageSize, len(out)) {
			return out, nil
		}
	}
	return nil, fmt.Errorf("the forge has more than %d repositories: %w", maxPages*pageSize, ErrTooMany)
}

// CreateRepo makes an empty repository as the account of the client's token,
// for itself or an organization; created is false when it was there.
func (c *Client) CreateRepo(ctx context.Context, r Repo, private bool, defaultBranch string) (info RepoInfo, created bool, err error) {
	if info, err := c.Repository(ctx, r); err == nil || !errors.Is(err, ErrNotFound) {
		return info, false, err
	}
	me, err := c.WhoAmI(ctx)
	if err != nil {
		return RepoInfo{}, false, err
	}
	path := "/user/repos"
	if !strings.EqualFold(me, r.Owner) {
		path = "/orgs/" + url.PathEscape(r.Owner) + "/repos"
	}
	var got sdk.Repository
	err = c.do(ctx, call{method: "POST", path: path, body: sdk.CreateRepoOption{Name: r.Name, Private: private, DefaultBranch: defaultBranch}}, &got)
	return infoOf(got), err == nil, err
}

// DeleteRepo removes a repository for good.
func (c *Client) DeleteRepo(ctx context.Context, r Repo) error {
	return c.do(ctx, call{method: http.MethodDelete, path: r.path("")}, nil)
}

// EnsureBot makes the bot a collaborator who may push.
func (c *Client) EnsureBot(ctx context.Context, r Repo) error {
	who := r.path("/collaborators/%s", url.PathEscape(c.cfg.BotUser))
	var got struct {
		Permission string `json:"permission"`
	}
	err := c.do(ctx, call{method: "GET", path: who + "/permission"}, &got)
	if err == nil && (got.Permission == "write" || got.Permission == "admin" || got.Permission == "owner") {
		return nil
	}
	if err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	return c.do(ctx, call{method: http.MethodPut, path: who, body: map[string]string{"permission": "write"}}, nil)
}

// A Branch and its newest commit.
type Branch struct{ Name, SHA string }

// Branch tells a branch's newest commit, false when it is not there.
func (c *Client) Branch(ctx context.Context, r Repo, name string) (sha string, ok bool, err error) {
	var b sdk.Branch
	err = c.do(ctx, call{method: "GET", path: r.path("/branches/%s", escapePath(name))}, &b)
	if errors.Is(err, ErrNotFound) {
		return "", false, nil
	}
	if err != nil || b.Commit == nil {
		return "", false, err
	}
	return b.Commit.ID, true, nil
}

// escapePath escapes a branch name for a route that takes slashes.
func escapePath(s string) string { return strings.ReplaceAll(url.PathEscape(s), "%2F", "/") }

// Branches lists those whose name starts with prefix.
func (c *Client) Branches(ctx context.Context, r Repo, prefix string) ([]Branch, error) {
	found, err := pages[sdk.Branch](ctx, c, call{method: "GET", path: r.path("/branches")})
	if err != nil {
		return nil, err
	}
	var out []Branch
	for _, b := range found {
		if strings.HasPrefix(b.Name, prefix) && b.Commit != nil {
			out = append(out, Branch{b.Name, b.Commit.ID})
		}
	}
	return out, nil
}

// A Commit that a comparison found.
type Commit struct{ SHA, Subject, Author string }

// Compare lists the commits that head has and base has not, oldest first.
func (c *Client) Compare(ctx context.Context, r Repo, base, head string) ([]Commit, error) {
	var cmp struct {
		Commits []sdk.Commit `json:"commits"`
	}
	if err := c.do(ctx, call{method: "GET", path: r.path("/compare/%s...%s", escapePath(base), escapePath(head))}, &cmp); err != nil {
		return nil, err
	}
	var out []Commit
	for i := len(cmp.Commits) - 1; i >= 0; i-- { // the forge lists the newest first
		k := cmp.Commits[i]
		one := Commit{}
		if k.CommitMeta != nil {
			one.SHA = k.SHA
		}
		if k.RepoCommit != nil {
			one.Subject, _, _ = strings.Cut(k.RepoCommit.Message, "\n")
			if k.RepoCommit.Author != nil {
				one.Author = k.RepoCommit.Author.Name
			}
		}
		out = append(out, one)
	}
	return out, nil
}

// A Pull is a pull request.
type Pull struct {
	Number              int64
	Title, Body         string // Title without the draft prefix
	State               string // "open" or "closed"
	Merged, Draft       bool
	HeadBranch, HeadSHA string
	MergeBase           string // the commit where its branch left the base
	Own                 bool   // its branch is of the repository itself
	Base, Author, URL   string
	BaseSHA             string    // the base's newest commit
	Closed              time.Time // when closed or merged, else zero
	Updated             time.Time // of its text, comments or reviews; whole seconds
	Reviewers           []string  // who is asked
}

// draftPrefix makes a pull request a draft on both forges.
const draftPrefix = "WIP: "

// pullJSON is the SDK's PullRequest and what it lacks.
type pullJSON struct {
	sdk.PullRequest
	Draft     bool        `json:"draft"`
	Requested []*sdk.User `json:"requested_reviewers"`
}

func pullOf(p pullJSON) Pull {
	out := Pull{
		Number: p.Index, Title: strings.TrimPrefix(p.Title, draftPrefix), Body: p.Body, State: string(p.State), Merged: p.HasMerged,
		Draft: strings.HasPrefix(p.Title, draftPrefix), Author: login(p.Poster), URL: p.HTMLURL, MergeBase: p.MergeBase,
	}
	if p.Head != nil {
		// The label keeps the branch's name when the branch is gone and the ref
		// has become refs/pull/N/head.
		out.HeadBranch, out.HeadSHA = p.Head.Name, p.Head.Sha
		// A merged one's branch may be gone, and its repository then null; its
		// name is kept.
		out.Own = p.Head.Repository == nil || (p.Base != nil && p.Base.Repository != nil && p.Head.Repository.ID == p.Base.Repository.ID)
	}
	if p.Base != nil {
		out.Base, out.BaseSHA = p.Base.Ref, p.Base.Sha
	}
	if p.Updated != nil {
		out.Updated = *p.Updated
	}
	// As the time of a merge by push the forge tells when its commit says that it was made.
	if at := cmp.Or(p.PullRequest.Closed, p.Merged); at != nil {
		out.Closed = *at
	}
	for _, u := range p.Requested {
		out.Reviewers = append(out.Reviewers, login(u))
	}
	return out
}

// A PullSpec is what a pull request shall be. Its title is plain text, in which
// what would make it a draft or close issues is taken out.
type PullSpec struct {
	Head, Base  string
	Title, Body string
	Draft       bool
	// Number is the one that is meant; 0 for none yet.
	Number int64
}

// EnsurePull opens a pull request as the bot, or brings the open one of that
// branch to spec. One with a number that is not open any more stays as it is, and
// no other is opened: it was merged or closed a moment ago.
func (c *Client) EnsurePull(ctx context.Context, r Repo, spec PullSpec) (p Pull, changed bool, err error) {
	if spec.Title = harmlessTitle(spec.Title); spec.Title == "" {
		spec.Title = spec.Head
	}
	title, body := spec.Title, bounded(spec.Body)
	if spec.Draft {
		title = draftPrefix + title
	}
	found, ok, err := c.PullForBranch(ctx, r, spec.Head)
	if err != nil {
		return Pull{}, false, err
	}
	if spec.Number != 0 && (!ok || found.State != "open" || found.Number != spec.Number) {
		return found, false, nil
	}
	if !ok || found.State != "open" {
		var got pullJSON
		in := sdk.CreatePullRequestOption{Head: spec.Head, Base: spec.Base, Title: title, Body: body}
		err := c.do(ctx, call{method: "POST", path: r.path("/pulls"), body: in, bot: true}, &got)
		if err != nil {
			return Pull{}, false, err
		}
		return pullOf(got), true, nil
	}
	if found.Title == spec.Title && found.Draft == spec.Draft && strings.TrimSpace(found.Body) == strings.TrimSpace(body) {
		return found, false, nil
	}
	edits := []map[string]string{{"title": title, "body": body}}
	if found.Draft && !spec.Draft { // the forge changes the title first, and with it says that the text is for reading
		edits = []map[string]string{{"body": body}, edits[0]}
	}
	var got pullJSON
	for _, edit := range edits {
		if err := c.do(ctx, call{method: http.MethodPatch, path: r.path("/pulls/%d", found.Number), body: edit, bot: true}, &got); err != nil {
			return Pull{}, false, err
		}
	}
	return pullOf(got), true, nil
}

// RequestReview asks somebody for a review, as the bot. Asking again somebody
// who is asked already changes nothing; ErrInvalid for who can't be asked.
func (c *Client) RequestReview(ctx context.Context, r Repo, n int64, user string) error {
	return c.do(ctx, call{method: "POST", path: r.path("/pulls/%d/requested_reviewers", n), body: map[string][]string{"reviewers": {user}}, bot: true}, nil)
}

// A FileStat is one file of a pull request.
type FileStat struct {
	Path           string
	Added, Deleted int
}

// PullFiles is a pull request's diff stat.
func (c *Client) PullFiles(ctx context.Context, r Repo, n int64) ([]FileStat, error) {
	found, err := pages[sdk.ChangedFile](ctx, c, call{method: "GET", path: r.path("/pulls/%d/files", n)})
	if err != nil {
		return nil, err
	}
	var out []FileStat
	for _, f := range found {
		out = append(out, FileStat{f.Filename, f.Additions, f.Deletions})
	}
	return out, nil
}
