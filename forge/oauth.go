package forge

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
)

// An OAuthApp is an application by which people log in elsewhere as who they are here.
type OAuthApp struct {
	ID        int64    `json:"id,omitempty"`
	Name      string   `json:"name"`
	Client    string   `json:"client_id,omitempty"`
	Secret    string   `json:"client_secret,omitempty"` // told once, when it is made
	Redirects []string `json:"redirect_uris"`
	Private   bool     `json:"confidential_client"` // it can keep a secret
}

// A Login is an account's name and password, in the place of a token that has the scope
// write:user; the zero value is the client's token.
type Login struct{ User, Password string }

func (l Login) info() *url.Userinfo {
	if l == (Login{}) {
		return nil
	}
	return url.UserPassword(l.User, l.Password)
}

func (c *Client) oauthApps(ctx context.Context, as Login) ([]OAuthApp, error) {
	return pages[OAuthApp](ctx, c, call{method: "GET", path: "/user/applications/oauth2", login: as.info()})
}

// HasOAuthApp tells whether the token's account has an application with a client id and
// one redirection.
func (c *Client) HasOAuthApp(ctx context.Context, client, redirect string) (bool, error) {
	apps, err := c.oauthApps(ctx, Login{})
	for _, a := range apps {
		if a.Client == client && len(a.Redirects) == 1 && a.Redirects[0] == redirect {
			return true, nil
		}
	}
	return false, err
}

// MakeOAuthApp makes one for an account, in the place of those with its name.
func (c *Client) MakeOAuthApp(ctx context.Context, as Login, name, redirect string) (OAuthApp, error) {
	if err := c.RemoveOAuthApp(ctx, as, name); err != nil {
		return OAuthApp{}, err
	}
	var app OAuthApp
	err := c.do(ctx, call{method: "POST", path: "/user/applications/oauth2", login: as.info(), body: OAuthApp{Name: name, Redirects: []string{redirect}, Private: true}}, &app)
	if err == nil && (app.Client == "" || app.Secret == "") {
		err = fmt.Errorf("the forge answered without a secret for the application %s", name)
	}
	return app, err
}

// RemoveOAuthApp removes those of an account with a name.
func (c *Client) RemoveOAuthApp(ctx context.Context, as Login, name string) error {
	apps, err := c.oauthApps(ctx, as)
	for _, a := range apps {
		if a.Name != name {
			continue
		}
		e := c.do(ctx, call{method: http.MethodDelete, path: fmt.Sprintf("/user/applications/oauth2/%d", a.ID), login: as.info()}, nil)
		if !errors.Is(e, ErrNotFound) {
			err = errors.Join(err, e)
		}
	}
	return err
}
