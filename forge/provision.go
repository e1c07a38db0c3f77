package forge

import (
	"context"
	"fmt"
	"io"
	"regexp"
	"strings"
)

// An AdminCLI runs the forge's own command with arguments, as the forge's user
// inside its container, and returns what it printed on standard output.
type AdminCLI func(ctx context.Context, stdin io.Reader, args ...string) (stdout string, err error)

// A Provisioner makes accounts and tokens on a forge that is ours.
type Provisioner struct {
	CLI AdminCLI
	// Admin is a site admin's client, needed to set a password that was wanted.
	Admin *Client
}

// A User is an account to be made.
type User struct {
	Name, Email string
	Password    string // "" to have one made
	Admin       bool
}

var randomPassword = regexp.MustCompile(`(?m)generated random password is '([^']+)'`)

// EnsureUser makes an account unless there is one of that name; password is
// the new account's. No password is ever an argument of a process: the forge
// makes a random one, and one that was wanted replaces it through the API.
func (p Provisioner) EnsureUser(ctx context.Context, u User) (password string, created bool, err error) {
	args := []string{"admin", "user", "create", "--username", u.Name, "--email", u.Email, "--random-password", "--random-password-length", "24", "--must-change-password=false"}
	if u.Admin {
		args = append(args, "--admin")
	}
	out, err := p.CLI(ctx, nil, args...)
	if err != nil {
		if strings.Contains(err.Error(), "user already exists") {
			return "", false, nil
		}
		return "", false, err
	}
	m := randomPassword.FindStringSubmatch(out)
	if m == nil {
		return "", true, fmt.Errorf("the forge made the account %s and did not print its password", u.Name)
	}
	if u.Password == "" {
		return m[1], true, nil
	}
	if err := p.Admin.SetPassword(ctx, u.Name, u.Password); err != nil {
		return "", true, fmt.Errorf("setting the password of %s: %w", u.Name, err)
	}
	return u.Password, true, nil
}

// RepairUser lets an account of ours that is there sign in again, and makes it
// an admin if it has to be one. Admin must be another account's client when
// that account itself can't sign in.
func (p Provisioner) RepairUser(ctx context.Context, u User) error {
	body := map[string]any{"source_id": 0, "login_name": u.Name, "active": true, "prohibit_login": false}
	if u.Admin {
		body["admin"] = true
	}
	return p.Admin.do(ctx, call{method: "PATCH", path: "/admin/users/" + u.Name, body: body}, nil)
}

// Token mints an access token. The name must be new: a token can't be read
// back.
func (p Provisioner) Token(ctx context.Context, user, name string, scopes []string) (string, error) {
	out, err := p.CLI(ctx, nil, "admin", "user", "generate-access-token", "--username", user, "--token-name", name, "--scopes", strings.Join(scopes, ","), "--raw")
	if err != nil {
		return "", err
	}
	token := strings.TrimSpace(out)
	if len(token) < 20 || strings.ContainsAny(token, " \n\t") {
		return "", fmt.Errorf("the forge printed no token for %s", user)
	}
	return token, nil
}
