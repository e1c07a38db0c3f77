package forge

import (
	"context"
	"net/url"
	"slices"

	sdk "codeberg.org/mvdkleijn/forgejo-sdk/forgejo/v3"
)

// AnyLabeled tells with one call whether an open issue has a label. On a forge
// where no label of that name exists the filter is dropped, and a search for it
// would list every issue of every repository.
func (c *Client) AnyLabeled(ctx context.Context, label string) (bool, error) {
	var found []sdk.Issue
	err := c.do(ctx, call{method: "GET", path: "/repos/issues/search",
		query: url.Values{"labels": {label}, "state": {"open"}, "type": {"issues"}, "limit": {"1"}}}, &found)
	if err != nil || len(found) == 0 {
		return false, err
	}
	return slices.ContainsFunc(found[0].Labels, func(l *sdk.Label) bool { return l.Name == label }), nil
}
