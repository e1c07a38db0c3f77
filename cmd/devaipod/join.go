package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"codeberg.org/devaipod/devaipod/forge"
)

// Joining a forge that is already there: tokens come in by `forge join`, and
// `forge up` makes what is missing. Rights are looked at before anything is
// made, and what lacks is told all at once (rights.go).

func (a *app) forgeJoinCmd() *cobra.Command {
	return &cobra.Command{
		Use: "join [service|bot|person]", Short: "Take a token for a forge that is already there",
		Args: args(cobra.MatchAll(cobra.MaximumNArgs(1), cobra.OnlyValidArgs)), ValidArgs: []string{"service", "bot", "person"},
		Long: `Take a token for the forge at forge.url from standard input (on a terminal it is
asked for and not shown), check what it may do, and keep it in the state directory.
What it lacks is listed, with how to grant it.

  devaipod forge join < token           of a site admin's account for the service
  devaipod forge join person < token    yours, for run, forge add and checkout
  devaipod forge join bot < token       of the account that comments and pushes

The service's account has to be one of its own: labels that it puts on start
nothing. The bot's token can be left out where the service's has write:admin: then
devaipod forge up makes the account and the token.`,
		RunE: func(cmd *cobra.Command, rest []string) error {
			role := "service"
			if len(rest) > 0 {
				role = rest[0]
			}
			return a.forgeJoin(cmd.Context(), role)
		},
	}
}

// howToJoin is the command that gives a role's token.
func (a *app) howToJoin(role string) string {
	if !a.cfg.joined() {
		return "run `devaipod forge up`"
	}
	return fmt.Sprintf("make one at %s/user/settings/applications with the scopes %s, then: devaipod forge join %s < token",
		a.cfg.forgeURL(), strings.Join(roleScopes[role], ", "), role)
}

// forThisForge refuses to send tokens to another forge than they are for.
func (a *app) forThisForge(c credentials) error {
	want := ""
	if a.cfg.joined() {
		want = a.cfg.forgeURL()
	}
	if c.Forge == want || c.ServiceToken+c.BotToken+c.PersonToken == "" {
		return nil
	}
	return &exitError{codeRefused, fmt.Errorf("the tokens of instance %s are for %s, and forge.url leads to %s: they are not sent there; use another --instance, or set forge.url back",
		a.cfg.Instance, orElse(c.Forge, "its own forge"), orElse(want, "the instance's own forge"))}
}

func (a *app) forgeJoin(ctx context.Context, role string) (err error) {
	if !a.cfg.joined() {
		return usagef("forge.url is not set: put the URL of the forge to join into the configuration (docs/devaipod.toml)")
	}
	unlock, err := a.lockUp("`devaipod forge up` or `forge join`")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	c, err := a.loadCredentials()
	if err != nil && !errors.Is(err, errNoForge) {
		return err
	}
	if err := a.forThisForge(c); err != nil {
		// A forge may move; one of our own is another thing.
		if c.Forge == "" || role != "service" {
			return err
		}
		c = credentials{}
	}
	token, err := a.readSecret("the token")
	if err != nil {
		return err
	}
	c.Forge = a.cfg.forgeURL()
	c.set(role, token)
	version, err := a.reach(ctx, token)
	if err != nil {
		return err
	}
	lacks, err := a.lacks(ctx, &c, role)
	if err != nil {
		return unreachable(err)
	}
	if err := a.refuseLacks(lacks, "the token was not kept"); err != nil {
		return err
	}
	if err := a.writeCredentials(c); err != nil {
		return err
	}
	a.step("joined   %s (%s) as %s, the %s's account", a.cfg.forgeURL(), version, *c.account(role), role)
	var st serviceStatus
	if role != "person" && a.api().get(ctx, "/api/status", &st) == nil {
		a.step("the service goes on with what it had, until devaipod forge up -d")
	}
	return nil
}

func (c *credentials) account(role string) *string {
	return map[string]*string{"service": &c.Service, "bot": &c.Bot, "person": &c.Person}[role]
}

func (c *credentials) token(role string) *string {
	return map[string]*string{"service": &c.ServiceToken, "bot": &c.BotToken, "person": &c.PersonToken}[role]
}

// set takes a token that was given; whose it is is asked later.
func (c *credentials) set(role, token string) {
	*c.token(role), *c.account(role) = token, ""
	if role == "bot" {
		c.BotMade = false
	}
}

// reach asks the forge what it is: as anybody, so that no token goes to what is
// no forge, and with a token only where strangers are told nothing. What it is
// stays unknown where the token is refused too; the rights tell of that.
func (a *app) reach(ctx context.Context, token string) (forge.Version, error) {
	client, err := a.forgeWith("")
	if err != nil {
		return forge.Version{}, err
	}
	v, err := client.Version(ctx)
	if errors.Is(err, forge.ErrForbidden) {
		if client, err = a.forgeWith(token); err != nil {
			return v, err
		}
		v, err = client.Version(ctx)
	}
	var e *forge.Error
	switch {
	case errors.Is(err, forge.ErrForbidden):
		return forge.Version{Software: "a forge"}, nil
	case err == nil && v.Version != "":
		return v, nil
	case err == nil || errors.As(err, &e):
		return v, &exitError{codeUnreachable, fmt.Errorf("no forge's API answers at %s/api/v1 (%w): is forge.url right, with the sub-path if it has one?", a.cfg.forgeURL(), err)}
	case tlsHint(err) != "":
		return v, &exitError{codeUnreachable, err}
	case strings.Contains(err.Error(), "reading the forge's answer"):
		return v, &exitError{codeUnreachable, fmt.Errorf("what answers at %s/api/v1 is no forge's API (%w): is forge.url right, with the sub-path if it has one?", a.cfg.forgeURL(), err)}
	}
	return v, unreachable(err)
}

// forgeWith is a client with one token.
func (a *app) forgeWith(token string) (*forge.Client, error) {
	return a.newForge(forge.Config{Token: token}, "")
}

// joinForge is what `forge up` does with a forge that is there.
func (a *app) joinForge(ctx context.Context) error {
	c, err := a.readCredentials()
	if err != nil && !errors.Is(err, errNoForge) {
		return err
	}
	version, err := a.reach(ctx, c.ServiceToken)
	if err != nil {
		return err
	}
	lacks, err := a.lacks(ctx, &c, "service", "bot", "person")
	if err != nil {
		return unreachable(err)
	}
	// The service does without the person's token.
	yours := slices.DeleteFunc(slices.Clone(lacks), func(l lack) bool { return l.role != "person" })
	lacks = slices.DeleteFunc(lacks, func(l lack) bool { return l.role == "person" })
	if err := a.refuseLacks(lacks, "nothing was made"); err != nil {
		return err
	}
	for _, l := range yours {
		a.step("lacking  %s", l)
	}
	if c.BotToken == "" {
		if err := a.makeBot(ctx, &c); err != nil {
			return err
		}
	}
	if err := a.joinHook(ctx, &c); err != nil {
		return err
	}
	if err := a.joinPanel(ctx, &c); err != nil {
		return err
	}
	a.step("forge    %s (%s), joined as %s, bot %s", a.cfg.forgeURL(), version, c.Service, c.Bot)
	if c.PersonToken == "" {
		a.step("person   no token of yours: run and forge add need one (devaipod forge join person)")
	}
	if c.Webhook == "" {
		a.step("webhook  none: labels are looked for every %s (see forge.webhook)", a.cfg.Service.Resync)
	} else {
		a.step("webhook  %s", c.Webhook)
	}
	return nil
}

// botName is the account that we make.
func (a *app) botName() string { return a.cfg.Instance + "-bot" }

// makeBot makes the bot's account and a token of it, for which a password is
// needed: a random one that is kept nowhere.
func (a *app) makeBot(ctx context.Context, c *credentials) error {
	service, err := a.forgeWith(c.ServiceToken)
	if err != nil {
		return err
	}
	if !c.BotMade {
		// Before it is made, so that a run that is killed knows it for its own.
		c.Bot, c.BotMade = a.botName(), true
		if err := a.writeCredentials(*c); err != nil {
			return err
		}
	}
	password := rand.Text() + "-a1"
	there, err := service.HasUser(ctx, c.Bot)
	switch {
	case err != nil:
	case there:
		err = service.SetPassword(ctx, c.Bot, password)
	default:
		a.step("making   the account %s", c.Bot)
		err = service.CreateUser(ctx, forge.User{Name: c.Bot, Email: c.Bot + "@noreply.localhost", Password: password})
	}
	if err != nil {
		return fmt.Errorf("making the bot's account %s: %w; or make one yourself and give its token: %s", c.Bot, err, a.howToJoin("bot"))
	}
	if c.BotToken, err = service.CreateToken(ctx, c.Bot, password, tokenName(), roleScopes["bot"]); err != nil {
		return fmt.Errorf("making a token for %s with its password: %w; if the forge forbids that, log in as %s and give a token: %s", c.Bot, err, c.Bot, a.howToJoin("bot"))
	}
	return a.writeCredentials(*c)
}

// joinHook brings the webhook on the forge to what forge.webhook says.
func (a *app) joinHook(ctx context.Context, c *credentials) error {
	if c.Webhook == "" && a.cfg.Forge.Webhook == "" {
		return nil
	}
	service, err := a.forgeWith(c.ServiceToken)
	if err != nil {
		return err
	}
	if c.Webhook != a.cfg.Forge.Webhook && c.Webhook != "" {
		if err := service.RemoveSystemHook(ctx, c.Webhook); err != nil {
			return fmt.Errorf("removing the webhook to %s: %w", c.Webhook, err)
		}
	}
	c.Webhook = a.cfg.Forge.Webhook
	if c.WebhookSecret == "" {
		c.WebhookSecret = rand.Text() + rand.Text()
	}
	if err := a.writeCredentials(*c); err != nil {
		return err
	}
	if c.Webhook == "" {
		return nil
	}
	if _, err := service.EnsureSystemHook(ctx, c.Webhook, c.WebhookSecret); err != nil {
		return fmt.Errorf("setting up the webhook to %s: %w", c.Webhook, err)
	}
	return nil
}

// leaveForge takes our webhook off a forge that we joined, before the last of
// what we know of it is removed. What stays there is told.
func (a *app) leaveForge(ctx context.Context) {
	c, err := a.readCredentials()
	if errors.Is(err, errNoForge) {
		return // never joined
	}
	if err != nil {
		a.step("what this instance made on a forge stays there: %v", err)
		return
	}
	if service, err := a.serviceForge(c); err != nil {
		a.step("what this instance made on the forge stays there: %v", err)
	} else if err := a.leaveFollowed(ctx, service); err != nil {
		a.step("rules that let this instance alone write default branches stay on the forge: %v", err)
	}
	if c.Webhook != "" {
		service, err := a.forgeWith(c.ServiceToken)
		if err == nil {
			err = service.RemoveSystemHook(ctx, c.Webhook)
		}
		if err != nil {
			a.step("the webhook to %s could not be taken off the forge (%v): remove it at %s/admin/hooks", c.Webhook, err, a.cfg.forgeURL())
		}
	}
	if err := a.leavePanel(ctx, c); err != nil {
		a.step("the application by which people logged in to the panel stays on the forge: %v", err)
	}
	if c.BotMade {
		a.step("the account %s stays on the forge, with its comments and pull requests: %s/admin/users", c.Bot, a.cfg.forgeURL())
	}
	a.step("revoke the tokens that you made for this instance, at %s/user/settings/applications", a.cfg.forgeURL())
}
