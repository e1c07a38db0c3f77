package forge

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	sdk "codeberg.org/mvdkleijn/forgejo-sdk/forgejo/v3"
)

// An Issue (or pull request) as the forge has it.
type Issue struct {
	Repo             Repo
	RepoID           int64 // which stays when the repository is renamed
	Number           int64
	Title, Body      string
	State            string // "open" or "closed"
	Author           string
	Ref              string // the branch that it names, if any
	Labels           []string
	Created, Updated time.Time // whole seconds
	IsPull           bool
	URL              string
	Brought          bool // from another forge, by whose account it says that it was written
}

func issueOf(r Repo, i sdk.Issue) Issue {
	out := Issue{
		Repo: r, Number: i.Index, Title: i.Title, Body: i.Body, State: string(i.State), Ref: i.Ref,
		Created: i.Created, Updated: i.Updated, IsPull: i.PullRequest != nil, URL: i.HTMLURL, Author: login(i.Poster),
		Brought: i.OriginalAuthor != "",
	}
	if i.Repository != nil { // its name now: r may be an earlier one
		out.RepoID = i.Repository.ID
		if owner, name, ok := strings.Cut(i.Repository.FullName, "/"); ok {
			out.Repo = Repo{owner, name}
		}
	}
	for _, l := range i.Labels {
		out.Labels = append(out.Labels, l.Name)
	}
	return out
}

func login(u *sdk.User) string {
	if u == nil {
		return ""
	}
	return u.UserName
}

// LabeledIssues lists the open issues with a label in all repositories that
// the service can see, as they were at asOf, by the forge's clock.
func (c *Client) LabeledIssues(ctx context.Context, label string) (out []Issue, asOf time.Time, err error) {
	found, asOf, err := c.search(ctx, url.Values{"labels": {label}, "state": {"open"}, "type": {"issues"}})
	for _, issue := range found {
		// An unknown label makes the forge drop the filter.
		if !issue.IsPull && issue.State == "open" && slices.Contains(issue.Labels, label) {
			out = append(out, issue)
		}
	}
	return out, asOf, err
}

// ChangedIssues lists the issues and pull requests, in whatever state, that
// changed at since or later, in all repositories that the service can see, as
// they were at asOf, by the forge's clock; ErrTooMany for more than 20,000.
// The forge answers from an index that follows changes within seconds.
func (c *Client) ChangedIssues(ctx context.Context, since time.Time) (out []Issue, asOf time.Time, err error) {
	return c.search(ctx, url.Values{"state": {"all"}, "since": {since.UTC().Format(time.RFC3339)}})
}

// search asks for issues in all repositories. asOf is the Date of the first
// answer (RFC 9110, 6.6.1), zero when there is none. The newest issue comes
// first; one that leaves the list while it is read moves those behind it to
// pages that were read already, so a list whose length has changed is read anew.
func (c *Client) search(ctx context.Context, query url.Values) (out []Issue, asOf time.Time, err error) {
	return c.searchAs(ctx, false, query)
}

// searchAs is search, as the bot or as the service.
func (c *Client) searchAs(ctx context.Context, bot bool, query url.Values) (out []Issue, asOf time.Time, err error) {
	seen := map[int64]bool{}
	for range 3 {
		var first, last string
		begun := false
		err := eachPage(ctx, c, call{method: "GET", path: "/repos/issues/search", query: query, bot: bot}, func(some []sdk.Issue, header http.Header, more bool) bool {
			last = header.Get("X-Total-Count")
			if !begun {
				begun, first = true, last
			}
			if date, err := http.ParseTime(header.Get("Date")); err == nil && asOf.IsZero() {
				asOf = date
			}
			for _, i := range some {
				if i.Repository != nil && !seen[i.ID] {
					seen[i.ID] = true
					out = append(out, issueOf(Repo{}, i))
				}
			}
			return more
		})
		if err != nil || first == last {
			return out, asOf, err
		}
	}
	return out, asOf, nil
}

// Issue reads one; ErrNotFound when there is none. One of a renamed repository
// is found under its old name too, as long as no other has taken that.
func (c *Client) Issue(ctx context.Context, r Repo, n int64) (Issue, error) {
	var i sdk.Issue
	if err := c.do(ctx, call{method: "GET", path: r.path("/issues/%d", n)}, &i); err != nil {
		return Issue{}, err
	}
	return issueOf(r, i), nil
}

// An IssueSpec is a new issue.
type IssueSpec struct {
	Title, Body string
	Ref         string   // branch it is about, "" for none
	Labels      []string // by name; they must exist
}

// CreateIssue opens an issue as the account of the client's token, and puts
// the labels on in a second call: one that needs write permission and fails
// without it, where labels given at creation are dropped in silence.
func (c *Client) CreateIssue(ctx context.Context, r Repo, spec IssueSpec) (Issue, error) {
	var i sdk.Issue
	in := sdk.CreateIssueOption{Title: spec.Title, Body: spec.Body, Ref: spec.Ref}
	if err := c.do(ctx, call{method: "POST", path: r.path("/issues"), body: in}, &i); err != nil {
		return Issue{}, fmt.Errorf("opening an issue in %s: %w", r, err)
	}
	if len(spec.Labels) > 0 {
		if err := c.AddLabels(ctx, r, i.Index, spec.Labels...); err != nil {
			return issueOf(r, i), err
		}
	}
	return issueOf(r, i), nil
}

// A LabelEvent is the putting on of a label.
type LabelEvent struct {
	ID    int64
	User  string
	At    time.Time
	Label string // which of the labels that start agents it was
	// Calls are how people called the bot since the event of these labels before it, the
	// oldest first; First says that there was none.
	Calls []Call
	First bool
	// Away says that the bot was assigned and is not any more, since then; AwayBy whose
	// doing that is.
	Away   bool
	AwayBy string
}

type timelineEntry struct {
	ID      int64     `json:"id"`
	Type    string    `json:"type"`
	Body    string    `json:"body"` // for labels "1" when put on, "" when taken off
	Created time.Time `json:"created_at"`
	Updated time.Time `json:"updated_at"`
	User    *sdk.User `json:"user"`
	// Of who is assigned to the issue.
	Assignee *sdk.User `json:"assignee"`
	Removed  bool      `json:"removed_assignee"`
	Label    *struct {
		Name string `json:"name"`
	} `json:"label"`
}

// A labelMark is how the labels that start agents were on an issue after the
// timeline's entry id.
type labelMark struct {
	id   int64
	at   time.Time // of that entry
	on   map[string]LabelEvent
	last LabelEvent // the newest that put one of them on or took it off
	// Since that: how people called the bot, and that it was sent away.
	calls  []Call
	away   bool
	awayBy string
}

// LabelEvent finds the newest putting on of a label that starts agents ([Triggers])
// which nothing undid; ok is false when there is none, and then ev has the ID,
// the account and the time of what undid it, if anything did. The whole timeline is read once, and
// later what came to it.
//
// Seen on the sibling 1.23.8: an issue created with a label has that event
// too. An issue's updated_at moves with every label, comment, assignment and
// edit of title or body, but not with a comment's edit or a reaction; an edit
// of the body leaves no entry in the timeline. Times are whole seconds. The
// timeline has no Link header, its count is that of the page, and what the
// account may not see is left out of a page: only an empty one is the last.
func (c *Client) LabelEvent(ctx context.Context, r Repo, n int64, label string) (ev LabelEvent, ok bool, err error) {
	key := onIssue{r, n, label}
	c.mu.Lock()
	mark := c.events[key]
	c.mu.Unlock()
	if mark.on = maps.Clone(mark.on); mark.on == nil {
		mark.on = map[string]LabelEvent{}
	}
	in := call{method: "GET", path: r.path("/issues/%d/timeline", n)}
	if mark.id != 0 {
		in.query = url.Values{"since": {mark.at.UTC().Format(time.RFC3339)}}
	}
	var entries []timelineEntry
	err = eachPage(ctx, c, in, func(some []timelineEntry, _ http.Header, _ bool) bool {
		entries = append(entries, some...)
		return len(some) > 0
	})
	if err != nil {
		return LabelEvent{}, false, err
	}
	slices.SortStableFunc(entries, func(a, b timelineEntry) int { return cmp.Compare(a.ID, b.ID) })
	for _, e := range entries {
		if e.ID <= mark.id {
			continue
		}
		mark.id, mark.at = e.ID, e.Created
		if e.Type != "label" || e.Label == nil || !Triggers(label, e.Label.Name) {
			mark.take(e, c.cfg.BotUser)
			continue
		}
		mark.last = LabelEvent{ID: e.ID, User: login(e.User), At: e.Created, Label: e.Label.Name, Calls: mark.calls, First: mark.last.ID == 0}
		mark.calls, mark.away = nil, false
		if delete(mark.on, e.Label.Name); e.Body == "1" {
			mark.on[e.Label.Name] = mark.last
		}
	}
	c.mu.Lock()
	c.events[key] = mark
	c.mu.Unlock()
	for _, on := range mark.on {
		if on.ID > ev.ID {
			ev = on
		}
	}
	switch {
	case len(mark.on) == 0:
		return LabelEvent{ID: mark.last.ID, User: mark.last.User, At: mark.last.At, Calls: mark.calls, First: mark.last.ID == 0}, false, nil
	case ev.User == "":
		return LabelEvent{}, false, nil
	}
	ev.Away, ev.AwayBy = mark.away, mark.awayBy
	return ev, true, nil
}

// CanWrite asks whether an account may push code to a repository. Any doubt is an error.
func (c *Client) CanWrite(ctx context.Context, r Repo, user string) (bool, error) {
	a, err := c.Access(ctx, r, user)
	return a.Push, err
}

// An Access is what an account may do with a repository's code. Its ID is the account's
// number, which another one of that name does not have; 0 for none that may sign in. Repo
// is the repository's, 0 for one that the account may not see.
type Access struct {
	ID, Repo   int64
	Read, Push bool
	Archived   bool // the repository takes no changes
}

// Access asks that, by looking at the repository as that account (Sudo, for which the
// service is a site admin). Any doubt is an error. The permission that the collaborator
// route tells is not enough: a team that may write issues and has no access to code is
// "write" there.
func (c *Client) Access(ctx context.Context, r Repo, user string) (Access, error) {
	if user == "" {
		return Access{}, nil
	}
	var u sdk.User
	if err := c.do(ctx, call{method: "GET", path: "/users/" + url.PathEscape(user)}, &u); err != nil {
		if errors.Is(err, ErrNotFound) {
			return Access{}, nil
		}
		return Access{}, err
	}
	if u.ProhibitLogin || !u.IsActive || !strings.EqualFold(u.UserName, user) {
		return Access{}, nil
	}
	var repo sdk.Repository
	err := c.do(ctx, call{method: "GET", path: r.path(""), sudo: u.UserName}, &repo)
	switch {
	case errors.Is(err, ErrNotFound):
		return Access{ID: u.ID}, nil // may not even see it
	case err != nil:
		return Access{}, err
	case repo.Permissions == nil:
		return Access{}, fmt.Errorf("the forge did not tell what %s may do in %s", user, r)
	}
	return Access{ID: u.ID, Repo: repo.ID, Read: repo.Permissions.Pull, Push: repo.Permissions.Push, Archived: repo.Archived}, nil
}

// A Comment on an issue.
type Comment struct {
	ID, Issue        int64
	Author, Body     string
	Created, Updated time.Time
}

// Comments lists an issue's comments, oldest first.
func (c *Client) Comments(ctx context.Context, r Repo, n int64) ([]Comment, error) {
	// This route has no pages: it answers all at once.
	var found []sdk.Comment
	if err := c.do(ctx, call{method: "GET", path: r.path("/issues/%d/comments", n)}, &found); err != nil {
		return nil, err
	}
	var out []Comment
	for _, m := range found {
		out = append(out, commentOf(m, n))
	}
	return out, nil
}

func commentOf(m sdk.Comment, issue int64) Comment {
	return Comment{ID: m.ID, Issue: issue, Author: login(m.Poster), Body: m.Body, Created: m.Created, Updated: m.Updated}
}

// CommentsSince lists the comments on all issues and pull requests of a repository that
// were written or changed at since or later, the oldest first.
func (c *Client) CommentsSince(ctx context.Context, r Repo, since time.Time) ([]Comment, error) {
	found, err := pages[sdk.Comment](ctx, c, call{method: "GET", path: r.path("/issues/comments"), query: url.Values{"since": {since.UTC().Format(time.RFC3339)}}})
	var out []Comment
	for _, m := range found {
		// One of the two is empty; both end in the number.
		on := cmp.Or(m.PRURL, m.IssueURL)
		n, err := strconv.ParseInt(on[strings.LastIndexByte(on, '/')+1:], 10, 64)
		if err != nil {
			return nil, fmt.Errorf("a comment in %s is on %.200q, which has no number", r, on)
		}
		out = append(out, commentOf(m, n))
	}
	return out, err
}

// CommentAs comments on an issue or a pull request as another account's act (Sudo); the
// forge refuses it where that account may not.
func (c *Client) CommentAs(ctx context.Context, r Repo, n int64, body, user string) error {
	err := c.do(ctx, call{method: "POST", path: r.path("/issues/%d/comments", n), body: map[string]string{"body": body}, sudo: user}, nil)
	if err != nil {
		return fmt.Errorf("commenting on %s#%d: %w", r, n, err)
	}
	return nil
}

// marked is the bot's comment with a marker, as we wrote it last.
type marked struct {
	id   int64
	body string
}

// PutComment makes the bot's one comment with a marker say body: it edits the
// one that is there if it differs, writes one if there is none, and removes
// doubles that a kill in between has left. Only the bot's own comments count.
// The comments are listed the first time, and when the one that was found is
// gone.
func (c *Client) PutComment(ctx context.Context, r Repo, n int64, marker, body string) (changed bool, err error) {
	line := "<!-- " + marker + " -->"
	body = line + "\n" + bounded(body)
	key := onIssue{r, n, marker}
	c.mu.Lock()
	mine, known := c.marked[key]
	c.mu.Unlock()
	if !known {
		if mine, changed, err = c.findMarked(ctx, r, n, line); err != nil {
			return changed, err
		}
	}
	if mine.body == body {
		c.mu.Lock()
		c.marked[key] = mine
		c.mu.Unlock()
		return changed, nil
	}
	text := map[string]string{"body": body}
	in := call{method: "PATCH", path: r.path("/issues/comments/%d", mine.id), body: text, bot: true}
	if mine.id == 0 {
		in.method, in.path = "POST", r.path("/issues/%d/comments", n)
	}
	var got sdk.Comment
	err = c.do(ctx, in, &got)
	c.mu.Lock()
	delete(c.marked, key) // after an error nothing is sure
	if err == nil && got.ID != 0 {
		c.marked[key] = marked{got.ID, body}
	}
	c.mu.Unlock()
	if known && errors.Is(err, ErrNotFound) {
		return c.PutComment(ctx, r, n, marker, strings.TrimPrefix(body, line+"\n"))
	}
	return err == nil || changed, err
}

// CloseIssue closes an issue, as the bot.
func (c *Client) CloseIssue(ctx context.Context, r Repo, n int64) error {
	return c.do(ctx, call{method: "PATCH", path: r.path("/issues/%d", n), body: map[string]string{"state": "closed"}, bot: true}, nil)
}

// EditComment makes the bot's comment with a marker say body, if there is one.
func (c *Client) EditComment(ctx context.Context, r Repo, n int64, marker, body string) (changed bool, err error) {
	mine, _, err := c.findMarked(ctx, r, n, "<!-- "+marker+" -->")
	if err != nil || mine.id == 0 {
		return false, err
	}
	return c.PutComment(ctx, r, n, marker, body)
}

// findMarked finds the bot's comment that begins with line, and removes doubles.
func (c *Client) findMarked(ctx context.Context, r Repo, n int64, line string) (mine marked, changed bool, err error) {
	all, err := c.Comments(ctx, r, n)
	if err != nil {
		return mine, false, err
	}
	for _, m := range all {
		if !strings.EqualFold(m.Author, c.cfg.BotUser) || !strings.HasPrefix(m.Body, line) {
			continue
		}
		if mine.id == 0 {
			mine = marked{m.ID, m.Body}
			continue
		}
		if err := c.do(ctx, call{method: "DELETE", path: r.path("/issues/comments/%d", m.ID), bot: true}, nil); err != nil && !errors.Is(err, ErrNotFound) {
			return mine, changed, err
		}
		changed = true
	}
	return mine, changed, nil
}

// maxText bounds what we post, in bytes.
const maxText = 60 << 10

func bounded(s string) string {
	if len(s) <= maxText {
		return s
	}
	return strings.ToValidUTF8(s[:maxText], "") + "\n\n(cut: too long)"
}
