package forge

import (
	"context"
	"errors"
	"net/url"
)

// A Status is the newest of its name that a commit has.
type Status struct {
	Name, URL string
	// State is pending, success, error, failure, warning, or what else the forge calls
	// it.
	State string
}

// Statuses are those of a commit, 50 of them at most; none also of one that is not there.
func (c *Client) Statuses(ctx context.Context, r Repo, commit string) ([]Status, error) {
	var got struct {
		Statuses []struct {
			Status    string `json:"status"`
			Context   string `json:"context"`
			TargetURL string `json:"target_url"`
		} `json:"statuses"`
	}
	err := c.do(ctx, call{method: "GET", path: r.path("/commits/%s/status", url.PathEscape(commit)), query: url.Values{"limit": {"50"}}}, &got)
	if errors.Is(err, ErrNotFound) {
		return nil, nil
	}
	var out []Status
	for _, s := range got.Statuses {
		out = append(out, Status{Name: s.Context, URL: s.TargetURL, State: s.Status})
	}
	return out, err
}

// SetStatus gives a commit a status, as the bot. The newest of its name counts. The forge
// takes at most 255 characters of about.
func (c *Client) SetStatus(ctx context.Context, r Repo, commit string, s Status, about string) error {
	body := map[string]string{"context": s.Name, "state": s.State, "target_url": s.URL, "description": about}
	return c.do(ctx, call{method: "POST", path: r.path("/statuses/%s", url.PathEscape(commit)), body: body, bot: true}, nil)
}
