package forge

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
)

// A Label of a repository. An exclusive one replaces its siblings of the same
// scope (what stands before the last slash).
type Label struct {
	Name        string
	Color       string // "#rrggbb"
	Description string
	Exclusive   bool
}

const stateScope = "agent/"

// Triggers tells whether a label starts an agent: the trigger label itself, or one
// with an agent's name behind it (devaipod:fast).
func Triggers(trigger, label string) bool {
	return label == trigger || strings.HasPrefix(label, trigger+":")
}

// TriggerOf is the label that starts an agent, by the agent's name if it has one.
func TriggerOf(trigger, agent string) string {
	if agent == "" {
		return trigger
	}
	return trigger + ":" + agent
}

// DefaultLabels are the labels that start agents, also those by name, and the
// scoped, exclusive ones that tell an agent's state.
func DefaultLabels(trigger string, agents ...string) []Label {
	labels := StateLabels()
	for _, name := range agents {
		labels = append(labels, Label{Name: TriggerOf(trigger, name), Color: "#6f42c1", Description: "Start the coding agent " + name + " on this issue"})
	}
	// Last: where it is, the others are.
	return append(labels, Label{Name: trigger, Color: "#6f42c1", Description: "Start a coding agent on this issue"})
}

// StateLabels tell an agent's state.
func StateLabels() (labels []Label) {
	for _, s := range []struct{ state, color, text string }{
		{"queued", "#bfbfbf", "Waiting to start"},
		{"working", "#1d76db", "An agent is working on this"},
		{"asking", "#fbca04", "The agent needs a person"},
		{"review", "#0e8a16", "A pull request is ready for review"},
		{"done", "#5319e7", "Done"},
		{"failed", "#b60205", "The agent failed"},
	} {
		labels = append(labels, Label{Name: stateScope + s.state, Color: s.color, Description: s.text, Exclusive: true})
	}
	return labels
}

// labelJSON is the SDK's Label and the exclusive that it lacks.
type labelJSON struct {
	ID          int64  `json:"id,omitempty"`
	Name        string `json:"name"`
	Color       string `json:"color"`
	Description string `json:"description"`
	Exclusive   bool   `json:"exclusive"`
}

// EnsureLabels makes the labels that a repository lacks and makes them
// exclusive where they must be; colours and descriptions are the people's.
func (c *Client) EnsureLabels(ctx context.Context, r Repo, want []Label) (changed bool, err error) {
	have, err := pages[labelJSON](ctx, c, call{method: "GET", path: r.path("/labels")})
	if err != nil {
		return false, err
	}
	for _, w := range want {
		i := slices.IndexFunc(have, func(h labelJSON) bool { return h.Name == w.Name })
		body := labelJSON{Name: w.Name, Color: w.Color, Description: w.Description, Exclusive: w.Exclusive}
		switch {
		case i < 0:
			err = c.do(ctx, call{method: "POST", path: r.path("/labels"), body: body}, nil)
		case have[i].Exclusive != w.Exclusive:
			err = c.do(ctx, call{method: "PATCH", path: r.path("/labels/%d", have[i].ID), body: map[string]bool{"exclusive": w.Exclusive}}, nil)
		default:
			continue
		}
		if err != nil {
			return changed, fmt.Errorf("label %s: %w", w.Name, err)
		}
		changed = true
	}
	return changed, nil
}

// AddLabels puts labels on an issue, as the account of the client's token.
func (c *Client) AddLabels(ctx context.Context, r Repo, n int64, names ...string) error {
	return c.AddLabelsAs(ctx, r, n, "", names...)
}

// AddLabelsAs is that as another account's act (Sudo), as with [Client.RemoveLabelAs].
func (c *Client) AddLabelsAs(ctx context.Context, r Repo, n int64, user string, names ...string) error {
	ids, err := c.labelIDs(ctx, r, names)
	if err != nil {
		return err
	}
	err = c.do(ctx, call{method: "POST", path: r.path("/issues/%d/labels", n), body: map[string][]int64{"labels": ids}, sudo: user}, nil)
	if err != nil {
		return fmt.Errorf("putting %s on %s#%d: %w", strings.Join(names, ", "), r, n, err)
	}
	return nil
}

// labelIDs looks names up: not every forge takes names.
func (c *Client) labelIDs(ctx context.Context, r Repo, names []string) ([]int64, error) {
	have, err := pages[labelJSON](ctx, c, call{method: "GET", path: r.path("/labels")})
	if err != nil {
		return nil, err
	}
	var ids []int64
	for _, name := range names {
		i := slices.IndexFunc(have, func(h labelJSON) bool { return h.Name == name })
		if i < 0 {
			return nil, fmt.Errorf("%s has no label %s: %w", r, name, ErrNotFound)
		}
		ids = append(ids, have[i].ID)
	}
	return ids, nil
}

// SetState makes agent/<state> the issue's only label of that scope; "" takes
// the scope's label off. No call is made when i.Labels says so already.
func (c *Client) SetState(ctx context.Context, i Issue, state string) (changed bool, err error) {
	var now []string
	for _, l := range i.Labels {
		if strings.HasPrefix(l, stateScope) {
			now = append(now, l)
		}
	}
	if state != "" {
		if len(now) == 1 && now[0] == stateScope+state {
			return false, nil
		}
		// Exclusive: the forge takes the siblings off itself.
		return true, c.AddLabels(ctx, i.Repo, i.Number, stateScope+state)
	}
	for _, l := range now {
		if err := c.RemoveLabel(ctx, i.Repo, i.Number, l); err != nil {
			return changed, err
		}
		changed = true
	}
	return changed, nil
}

// RemoveLabel takes a label off an issue; one that is not on it is no error. The
// label may be the repository's or its organization's.
func (c *Client) RemoveLabel(ctx context.Context, r Repo, n int64, name string) error {
	return c.RemoveLabelAs(ctx, r, n, name, "")
}

// RemoveLabelAs is that as another account's act (Sudo), for which the service is a site
// admin; the forge refuses it where that account may not. "" is the service's own.
func (c *Client) RemoveLabelAs(ctx context.Context, r Repo, n int64, name, user string) error {
	issue, err := c.Issue(ctx, r, n)
	if err != nil || !slices.Contains(issue.Labels, name) {
		return err
	}
	r = issue.Repo     // it may have been renamed
	var on []labelJSON // this route has no pages
	if err := c.do(ctx, call{method: "GET", path: r.path("/issues/%d/labels", n)}, &on); err != nil {
		return err
	}
	i := slices.IndexFunc(on, func(l labelJSON) bool { return l.Name == name })
	if i < 0 {
		return nil
	}
	err = c.do(ctx, call{method: http.MethodDelete, path: r.path("/issues/%d/labels/%d", n, on[i].ID), sudo: user}, nil)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return fmt.Errorf("taking %s off %s#%d: %w", name, r, n, err)
	}
	return nil
}
