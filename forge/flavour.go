package forge

import (
	"context"
	"errors"
	"sync"
)

// Forgejo and its sibling Gitea serve the same API family. All that differs in
// what we ask of them is in this file; what differs in webhooks that come in is
// taken both ways (hooks.go).

// A Version is which forge this is.
type Version struct {
	Software string // "forgejo" or "gitea"
	Version  string
}

// String is like "forgejo 11.0.15".
func (v Version) String() string { return v.Software + " " + v.Version }

// flavour is what a client has found out of its forge.
type flavour struct {
	mu    sync.Mutex
	known Version
}

// hookType is the kind of webhook whose headers carry the forge's own name:
// the sibling refuses "forgejo" with 422.
func (v Version) hookType() string { return v.Software }

// adminsToo is the field of a branch's rule that holds site admins to it as
// well; each of the two ignores the other's.
func (v Version) adminsToo() string {
	if v.Software == "gitea" {
		return "block_admin_merge_override" // since 1.23; what they push is held to it anyway
	}
	return "apply_to_admins"
}

// nativeVersion is in an API that Forgejo alone has. Source: Forgejo's
// public/assets/forgejo/api.v1.yml.
const nativeVersion = "/api/forgejo/v1/version"

// Version asks the forge what it is, once: only Forgejo has an API of its own
// name, and the sibling answers 404 there.
func (c *Client) Version(ctx context.Context) (Version, error) {
	c.is.mu.Lock()
	defer c.is.mu.Unlock()
	if c.is.known.Software != "" {
		return c.is.known, nil
	}
	var v struct {
		Version string `json:"version"`
	}
	if err := c.do(ctx, call{method: "GET", path: "/version"}, &v); err != nil {
		return Version{}, err
	}
	got := Version{"forgejo", v.Version}
	switch err := c.do(ctx, call{method: "GET", path: nativeVersion}, nil); {
	case errors.Is(err, ErrNotFound):
		got.Software = "gitea"
	case err != nil:
		return Version{}, err
	}
	c.is.known = got
	return got, nil
}
