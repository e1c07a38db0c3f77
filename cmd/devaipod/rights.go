package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"codeberg.org/devaipod/devaipod/forge"
)

// roleScopes are the scopes that a token needs on a forge that we join.
var roleScopes = map[string][]string{
	"service": {"read:user", "write:repository", "write:issue", "write:admin"},
	"bot":     {"read:user", "write:repository", "write:issue"},
	"person":  {"read:user", "write:repository", "write:issue"},
}

// scopeUse says what a role needs a scope for.
var scopeUse = map[string]string{
	"read:user":                "whose token it is",
	"service write:repository": "letting the bot push, making labels",
	"service write:issue":      "finding labeled issues, telling their state by labels",
	"bot write:repository":     "reading and pushing code, opening pull requests",
	"bot write:issue":          "commenting",
	"person write:repository":  "forge add, checkout",
	"person write:issue":       "opening and labeling issues (run)",
}

// A lack is a right that is missing, what for, and the way to grant it.
type lack struct{ role, right, use, grant string }

func (l lack) String() string {
	return fmt.Sprintf("%s: %s, for %s\n    %s", l.role, l.right, l.use, l.grant)
}

// refuseLacks lists what is missing, if anything is.
func (a *app) refuseLacks(lacks []lack, outcome string) error {
	if len(lacks) == 0 {
		return nil
	}
	lines := []string{fmt.Sprintf("%s: missing rights (%d); %s", a.cfg.forgeURL(), len(lacks), outcome)}
	for _, l := range lacks {
		lines = append(lines, "  "+l.String())
	}
	return &exitError{codeNeedsHuman, errors.New(strings.Join(lines, "\n"))}
}

// lacks looks at the tokens of some roles, changes nothing on the forge, and
// returns all that is missing. It notes in c whose tokens they are, and forgets
// a bot's token that can be made anew.
func (a *app) lacks(ctx context.Context, c *credentials, roles ...string) ([]lack, error) {
	var all []lack
	// The bot first: whether its account has to be made decides what the
	// service's token must be able to do.
	slices.Sort(roles)
	for _, role := range roles {
		if *c.token(role) == "" {
			if role == "service" {
				all = append(all, lack{role, "a token", "everything", a.howToJoin(role)})
			}
			continue
		}
		found, err := a.lacksOf(ctx, c, role)
		if err != nil {
			return nil, err
		}
		all = append(all, found...)
	}
	if slices.Contains(roles, "service") && c.ServiceToken != "" && c.BotToken == "" && !c.BotMade {
		there, err := a.taken(ctx, c)
		if err != nil {
			return nil, err
		}
		if there {
			all = append(all, lack{"bot", "an account", "comments and pushes",
				fmt.Sprintf("%s is there and not made by this instance: choose another `instance`, or if it may be used, %s", a.botName(), a.howToJoin("bot"))})
		}
	}
	return append(all, twice(c)...), nil
}

// taken tells whether somebody has the name that the bot would get.
func (a *app) taken(ctx context.Context, c *credentials) (bool, error) {
	service, err := a.forgeWith(c.ServiceToken)
	if err != nil {
		return false, err
	}
	there, err := service.HasUser(ctx, a.botName())
	if errors.Is(err, forge.ErrForbidden) {
		return false, nil // the token's own lack, told already
	}
	return there, err
}

// lacksOf looks at one token.
func (a *app) lacksOf(ctx context.Context, c *credentials, role string) ([]lack, error) {
	client, err := a.forgeWith(*c.token(role))
	if err != nil {
		return nil, err
	}
	missing, err := client.MissingScopes(ctx, a.needed(c, role)...)
	var e *forge.Error
	if errors.As(err, &e) && e.Status == http.StatusUnauthorized {
		if role == "bot" && c.BotMade {
			c.BotToken = ""
			return nil, nil
		}
		return []lack{{role, "a token that the forge takes", "everything", "it is wrong, revoked or out of date; " + a.howToJoin(role)}}, nil
	}
	if err != nil {
		return nil, err
	}
	var all []lack
	for _, scope := range missing {
		all = append(all, a.scopeLack(c, role, scope))
	}
	if slices.Contains(missing, "read:user") {
		return all, nil // whose it is can't be asked
	}
	account, err := client.Me(ctx)
	if errors.As(err, &e) && e.Status < 500 {
		return append(all, lack{role, "an account that may use the API", "everything", fmt.Sprintf("the forge says: %.200q", e.Message)}), nil
	}
	if err != nil {
		return nil, err
	}
	*c.account(role) = account.Login
	users := a.cfg.forgeURL() + "/admin/users"
	switch {
	case role == "service" && !account.Admin:
		all = append(all, lack{role, account.Login + " as a site administrator", "asking whether who put a label on may push (Sudo)",
			"let a site administrator tick that at " + users + ", or give the token of an account that is one"})
	case role == "bot" && account.Admin:
		all = append(all, lack{role, account.Login + " as no site administrator", "pods' pushes go by its rights", "take that from it at " + users + ", or use another account"})
	}
	return all, nil
}

// needed are the scopes that a role's token needs as things are.
func (a *app) needed(c *credentials, role string) []string {
	scopes := roleScopes[role]
	if role == "service" && c.BotToken != "" && a.cfg.Forge.Webhook == "" && c.Webhook == "" {
		scopes = slices.DeleteFunc(slices.Clone(scopes), func(s string) bool { return s == "write:admin" })
	}
	return scopes
}

func (a *app) scopeLack(c *credentials, role, scope string) lack {
	l := lack{role, "the token's scope " + scope, scopeUse[scope], ""}
	if l.use == "" {
		l.use = scopeUse[role+" "+scope]
	}
	l.grant = "scopes can't be added to a token: " + a.howToJoin(role)
	if scope == "write:admin" {
		var uses, ways []string
		if a.cfg.Forge.Webhook != "" || c.Webhook != "" {
			uses, ways = append(uses, "the webhook"), append(ways, "leave forge.webhook empty")
		}
		if c.BotToken == "" {
			uses, ways = append(uses, "the bot's account and token"), append(ways, "give the bot's first (devaipod forge join bot)")
		}
		l.use = "making " + strings.Join(uses, " and ")
		l.grant += "\n    or do without it: " + strings.Join(ways, ", and ")
	}
	return l
}

// twice refuses one account in two roles.
func twice(c *credentials) []lack {
	var all []lack
	if c.Service != "" && strings.EqualFold(c.Service, c.Bot) {
		all = append(all, lack{"bot", "an account of its own", "telling the agent's work from the service's", "it is the service's, " + c.Service + ": use another"})
	}
	for _, other := range []string{c.Service, c.Bot} {
		if other != "" && strings.EqualFold(other, c.Person) {
			all = append(all, lack{"person", "an account of your own", "labels that devaipod's accounts put on start nothing", other + " is devaipod's: use a token of yours"})
			break
		}
	}
	return all
}
