package forge

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
)

// probes are calls that need a scope and change nothing, since what they name
// is not there: a token's scopes can't be read. Forgejo and its sibling check
// the scope of a group of routes before they look for its things (source:
// routers/api/v1/api.go of both).
var probes = map[string]func(nobody string) call{
	"read:user": func(string) call { return call{method: "GET", path: "/user"} },
	"write:repository": func(n string) call {
		return call{method: http.MethodPatch, path: Repo{n, n}.path(""), body: struct{}{}, probe: true}
	},
	"write:issue": func(n string) call {
		return call{method: http.MethodPatch, path: Repo{n, n}.path("/issues/1"), body: struct{}{}, probe: true}
	},
	"write:admin": func(n string) call { return call{method: http.MethodDelete, path: "/admin/users/" + n, probe: true} },
}

// MissingScopes tells which of the wanted scopes the client's token lacks:
// read:user, write:repository, write:issue, write:admin. ErrForbidden when the
// forge does not take the token at all.
func (c *Client) MissingScopes(ctx context.Context, want ...string) (missing []string, err error) {
	for _, scope := range want {
		probe, ok := probes[scope]
		if !ok {
			return nil, fmt.Errorf("no way is known to look for the scope %s", scope)
		}
		err := c.do(ctx, probe("nobody-"+strings.ToLower(rand.Text())), nil)
		var e *Error
		switch {
		case err == nil || errors.Is(err, ErrNotFound):
		case !errors.As(err, &e) || e.Status >= 500 || e.Status == http.StatusUnauthorized:
			return nil, err
		case e.Status == http.StatusForbidden && strings.Contains(e.Message, "scope"):
			missing = append(missing, scope)
		}
	}
	return missing, nil
}

// HasUser tells whether there is an account of that name.
func (c *Client) HasUser(ctx context.Context, name string) (bool, error) {
	err := c.do(ctx, call{method: "GET", path: "/users/" + url.PathEscape(name)}, nil)
	if errors.Is(err, ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// SSHKeys are the public keys that an account has put into the forge, each a line as in
// authorized_keys.
func (c *Client) SSHKeys(ctx context.Context, user string) (lines []string, err error) {
	type key struct {
		Key string `json:"key"`
	}
	keys, err := pages[key](ctx, c, call{method: "GET", path: "/users/" + url.PathEscape(user) + "/keys"})
	for _, k := range keys {
		lines = append(lines, k.Key)
	}
	return lines, err
}

// CreateUser makes an account, as a site admin.
func (c *Client) CreateUser(ctx context.Context, u User) error {
	body := map[string]any{
		"username": u.Name, "login_name": u.Name, "source_id": 0, "email": u.Email, "password": u.Password,
		"must_change_password": false, "send_notify": false,
	}
	return c.do(ctx, call{method: "POST", path: "/admin/users", body: body}, nil)
}

// SetPassword gives an account a new password, as a site admin.
func (c *Client) SetPassword(ctx context.Context, name, password string) error {
	body := map[string]any{"source_id": 0, "login_name": name, "password": password, "must_change_password": false}
	return c.do(ctx, call{method: http.MethodPatch, path: "/admin/users/" + url.PathEscape(name), body: body}, nil)
}

// CreateToken mints a token of an account, for which the forge wants the
// account's password. The name must be new.
func (c *Client) CreateToken(ctx context.Context, user, password, name string, scopes []string) (string, error) {
	var got struct {
		Token string `json:"sha1"`
	}
	err := c.do(ctx, call{method: "POST", path: "/users/" + url.PathEscape(user) + "/tokens", login: url.UserPassword(user, password),
		body: map[string]any{"name": name, "scopes": scopes}}, &got)
	if err == nil && got.Token == "" {
		err = fmt.Errorf("the forge answered without a token for %s", user)
	}
	return got.Token, err
}
