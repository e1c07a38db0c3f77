package testkit_test

import (
	"encoding/json"
	"errors"
	"slices"
	"testing"

	"codeberg.org/devaipod/devaipod/cmd/internal/testkit"
	"codeberg.org/devaipod/devaipod/forge"
)

// joining is what devaipod asks of a forge that it joins as a guest; it comes
// after labelsAndComments and webhook, and uses what they made.
func joining(t *testing.T, c *forge.Client, prov forge.Provisioner, api *testkit.API) {
	ctx := t.Context()
	with := func(user string, scopes ...string) *forge.Client {
		token, err := prov.Token(ctx, user, "join-"+user+"-"+scopes[len(scopes)-1], scopes)
		must(t, err)
		client, err := forge.New(forge.Config{URL: api.URL, Token: token})
		must(t, err)
		return client
	}
	all := []string{"read:user", "write:repository", "write:issue", "write:admin"}
	for _, tt := range []struct {
		user    string
		has     []string
		missing []string
	}{
		{"svc", all, nil},
		{"svc", []string{"read:user", "write:repository", "write:issue"}, all[3:]},
		{"svc", []string{"read:repository", "read:issue", "read:user", "read:admin"}, all[1:]},
		{"bot", []string{"write:repository"}, []string{"read:user", "write:issue", "write:admin"}},
		{"bot", []string{"write:admin"}, all[:3]}, // no admin, but the scope is there
	} {
		if got, err := with(tt.user, tt.has...).MissingScopes(ctx, all...); err != nil || !slices.Equal(got, tt.missing) {
			t.Errorf("%s with %v lacks %v, %v, want %v", tt.user, tt.has, got, err, tt.missing)
		}
	}
	wrong, err := forge.New(forge.Config{URL: api.URL, Token: "0123456789012345678901234567890123456789"})
	must(t, err)
	if _, err := wrong.MissingScopes(ctx, all...); !errors.Is(err, forge.ErrForbidden) {
		t.Errorf("a token that is none: %v", err)
	}
	// Who may push is asked with Sudo, for which no admin scope is needed.
	token, err := prov.Token(ctx, "svc", "join-sudo", []string{"read:user", "read:repository"})
	must(t, err)
	least, err := forge.New(forge.Config{URL: api.URL, Token: token})
	must(t, err)
	if can, err := least.CanWrite(ctx, forge.Repo{Owner: "acme", Name: "code"}, "bot"); err != nil || !can {
		t.Errorf("the bot, a collaborator, may push: %v, %v", can, err)
	}
	// An account, and a token by its password.
	if there, err := c.HasUser(ctx, "guest-bot"); err != nil || there {
		t.Errorf("there before: %v, %v", there, err)
	}
	must(t, c.CreateUser(ctx, forge.User{Name: "guest-bot", Email: "guest-bot@noreply.localhost", Password: "A2B3C4D5E6F7-a1"}))
	if there, err := c.HasUser(ctx, "guest-bot"); err != nil || !there {
		t.Errorf("there after: %v, %v", there, err)
	}
	must(t, c.SetPassword(ctx, "guest-bot", "B2B3C4D5E6F7-a1"))
	if _, err := c.CreateToken(ctx, "guest-bot", "A2B3C4D5E6F7-a1", "one", all[:3]); !errors.Is(err, forge.ErrForbidden) {
		t.Errorf("with the old password: %v", err)
	}
	token, err = c.CreateToken(ctx, "guest-bot", "B2B3C4D5E6F7-a1", "one", all[:3])
	must(t, err)
	guest, err := forge.New(forge.Config{URL: api.URL, Token: token})
	must(t, err)
	if me, err := guest.Me(ctx); err != nil || me != (forge.Account{Login: "guest-bot"}) {
		t.Errorf("%+v, %v", me, err)
	}
	// A label that nobody made, and one of the organization's.
	for label, want := range map[string]bool{"devaipod": true, "no such label": false} {
		if any, err := c.AnyLabeled(ctx, label); err != nil || any != want {
			t.Errorf("%s is on an issue: %v, %v", label, any, err)
		}
	}
	must(t, api.Post(ctx, "/orgs/acme/labels", map[string]string{"name": "org-wide", "color": "#123456"}, nil))
	must(t, api.Post(ctx, "/repos/acme/code/issues/2/labels", map[string][]string{"labels": {"org-wide"}}, nil))
	r := forge.Repo{Owner: "acme", Name: "code"}
	must(t, c.RemoveLabel(ctx, r, 2, "org-wide"))
	if issue, err := c.Issue(ctx, r, 2); err != nil || !slices.Equal(issue.Labels, []string{"devaipod"}) {
		t.Errorf("labels %v, %v", issue.Labels, err)
	}
	// Our webhook goes, and no other.
	_, err = c.EnsureSystemHook(ctx, "http://127.0.0.1:1/guest", "secret")
	must(t, err)
	must(t, c.RemoveSystemHook(ctx, "http://127.0.0.1:1/guest"))
	var hooks []json.RawMessage
	if must(t, api.Get(ctx, "/admin/hooks", &hooks)); len(hooks) != 1 {
		t.Errorf("%d hooks", len(hooks))
	}
}
