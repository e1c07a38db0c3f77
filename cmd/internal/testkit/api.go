package testkit

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
)

// An API asks the forge's REST API as one account: with Token, if there is one; else, and about
// tokens, which the forge tells to a password alone, with name and password.
type API struct {
	URL      string // of the forge
	User     string
	Password string
	Token    string
}

// A StatusError is an answer of the forge other than 2xx.
type StatusError struct {
	Code int
	Text string
}

func (e *StatusError) Error() string { return fmt.Sprintf("status %d: %s", e.Code, e.Text) }

// Do sends body as JSON (nil for none) and returns the answer's body.
func (a *API) Do(ctx context.Context, method, path string, body any) ([]byte, error) {
	var content io.Reader
	switch b := body.(type) {
	case nil:
	case []byte:
		content = bytes.NewReader(b)
	default:
		text, err := json.Marshal(b)
		if err != nil {
			return nil, err
		}
		content = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, method, a.URL+"/api/v1"+path, content)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	if a.Token != "" && (a.Password == "" || !strings.Contains(path, "/tokens")) {
		req.Header.Set("Authorization", "token "+a.Token)
	} else {
		req.SetBasicAuth(a.User, a.Password)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 32<<20))
	if err != nil {
		return nil, err
	}
	if resp.StatusCode/100 != 2 {
		return answer, fmt.Errorf("%s %s as %s: %w", method, path, a.User, &StatusError{resp.StatusCode, strings.TrimSpace(string(answer))})
	}
	return answer, nil
}

// Get reads path into v.
func (a *API) Get(ctx context.Context, path string, v any) error {
	b, err := a.Do(ctx, http.MethodGet, path, nil)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, v)
}

// Post sends body and reads the answer into v, nil to drop it.
func (a *API) Post(ctx context.Context, path string, body, v any) error {
	b, err := a.Do(ctx, http.MethodPost, path, body)
	if err != nil || v == nil {
		return err
	}
	return json.Unmarshal(b, v)
}

// An Issue as the forge shows it.
type Issue struct {
	Number int64   `json:"number"`
	Title  string  `json:"title"`
	Body   string  `json:"body"`
	State  string  `json:"state"`
	URL    string  `json:"html_url"`
	Labels []Label `json:"labels"`
}

// A Label of an issue.
type Label struct {
	Name string `json:"name"`
}

// A Comment on an issue.
type Comment struct {
	ID   int64  `json:"id"`
	Body string `json:"body"`
	User User   `json:"user"`
}

// A User of the forge.
type User struct {
	Login string `json:"login"`
}

// A Pull is a pull request as the forge shows it.
type Pull struct {
	Number int64  `json:"number"`
	Title  string `json:"title"`
	Body   string `json:"body"`
	State  string `json:"state"`
	Draft  bool   `json:"draft"`
	Merged bool   `json:"merged"`
	URL    string `json:"html_url"`
	Diff   string `json:"diff_url"`
	User   User   `json:"user"`
	Head   struct {
		Ref string `json:"ref"`
		SHA string `json:"sha"`
	} `json:"head"`
	Base struct {
		Ref string `json:"ref"`
	} `json:"base"`
	Reviewers []User `json:"requested_reviewers"`
}

// CreateIssue opens an issue in repo (owner/name).
func (a *API) CreateIssue(ctx context.Context, repo, title, body string) (Issue, error) {
	var i Issue
	err := a.Post(ctx, "/repos/"+repo+"/issues", map[string]string{"title": title, "body": body}, &i)
	return i, err
}

// Label puts a label on an issue, by name.
func (a *API) Label(ctx context.Context, repo string, issue int64, label string) error {
	return a.Post(ctx, fmt.Sprintf("/repos/%s/issues/%d/labels", repo, issue), map[string][]string{"labels": {label}}, nil)
}

// Comments lists the comments of an issue, oldest first.
func (a *API) Comments(ctx context.Context, repo string, issue int64) ([]Comment, error) {
	var c []Comment
	return c, a.Get(ctx, fmt.Sprintf("/repos/%s/issues/%d/comments", repo, issue), &c)
}

// Pulls lists the pull requests that came from an issue's branches, the newest
// first.
func (a *API) Pulls(ctx context.Context, repo string, issue int64) ([]Pull, error) {
	var all, found []Pull
	err := a.Get(ctx, "/repos/"+repo+"/pulls?state=all&limit=50", &all)
	// The forge answers 404 for a moment after a repository's first push.
	if status := new(StatusError); errors.As(err, &status) && status.Code == http.StatusNotFound {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	for _, p := range all {
		if strings.HasPrefix(p.Head.Ref, fmt.Sprintf("agent/%d-", issue)) {
			found = append(found, p)
		}
	}
	return found, nil
}

// Diff is a pull request's diff.
func (a *API) Diff(ctx context.Context, repo string, pull int64) (string, error) {
	b, err := a.Do(ctx, http.MethodGet, fmt.Sprintf("/repos/%s/pulls/%d.diff", repo, pull), nil)
	return string(b), err
}

// StatusComment finds the one comment in which the service's bot tells how the
// work on an issue is going; how many such comments there are must be one.
func StatusComment(comments []Comment, instance string) (text string, count int) {
	for _, c := range comments {
		if c.User.Login == instance+"-bot" && strings.Contains(c.Body, "<!-- devaipod:"+instance+":status -->") {
			text, count = c.Body, count+1
		}
	}
	return text, count
}
