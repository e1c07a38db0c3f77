package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"time"

	"codeberg.org/devaipod/devaipod/forge"
)

// Scopes of the three tokens (docs/security.md says what each is for).
var (
	serviceScopes = []string{"write:admin", "write:repository", "write:issue", "read:user", "read:organization"}
	botScopes     = []string{"write:repository", "write:issue", "read:user"}
	personScopes  = []string{"write:repository", "write:issue", "write:user", "write:organization"}
)

// relayHook is where the forge sends its webhooks: the relay in its own pod.
const relayHook = "http://127.0.0.1:8090/hooks/forge"

// provision waits for the forge and makes what is missing: accounts, tokens,
// the webhook. Each token is stored as soon as it is made, so that a killed
// run leaves at most one unused token behind.
func (a *app) provision(ctx context.Context, cli forge.AdminCLI, who person) error {
	c, err := a.readCredentials()
	if err != nil && !errors.Is(err, errNoForge) {
		return err
	}
	c.Service, c.Bot = a.cfg.Instance+"-service", a.cfg.Instance+"-bot"
	c.Person = orElse(c.Person, who.name)
	if err := a.waitForge(ctx); err != nil {
		return err
	}
	if c.WebhookSecret == "" {
		c.WebhookSecret = rand.Text() + rand.Text()
		if err := a.writeCredentials(c); err != nil {
			return err
		}
	}
	prov := forge.Provisioner{CLI: a.keptCLI(cli)}
	if err := a.accounts(ctx, prov, &c, who); err != nil {
		return err
	}
	client, err := a.serviceForge(c)
	if err != nil {
		return err
	}
	if _, err := client.EnsureSystemHook(ctx, relayHook, c.WebhookSecret); err != nil {
		return fmt.Errorf("setting up the webhook: %w", err)
	}
	return nil
}

// accounts makes service, bot and person, and a token for each.
func (a *app) accounts(ctx context.Context, prov forge.Provisioner, c *credentials, who person) (err error) {
	for _, acc := range []struct {
		name, email string
		admin       bool
		token       *string
		scopes      []string
	}{
		{c.Service, c.Service + "@noreply.localhost", true, &c.ServiceToken, serviceScopes},
		{c.Bot, c.Bot + "@noreply.localhost", false, &c.BotToken, botScopes},
		{c.Person, orElse(who.email, c.Person+"@localhost.localdomain"), true, &c.PersonToken, personScopes},
	} {
		isPerson := acc.name == c.Person
		works := func() bool { return a.tokenWorks(ctx, *acc.token, acc.name, acc.admin && !isPerson) }
		if works() {
			continue
		}
		user := forge.User{Name: acc.name, Email: acc.email, Admin: acc.admin}
		if isPerson {
			user.Password = who.password
		}
		if prov.Admin, err = a.serviceForge(*c); err != nil {
			return err
		}
		password, created, err := prov.EnsureUser(ctx, user)
		if err != nil {
			return fmt.Errorf("making the account %s: %w", acc.name, err)
		}
		if created && isPerson {
			a.tellLogin(acc.name, password, user.Password != "")
		}
		if *acc.token, err = prov.Token(ctx, acc.name, tokenName(), acc.scopes); err != nil {
			return fmt.Errorf("making a token for %s: %w", acc.name, err)
		}
		if err := a.writeCredentials(*c); err != nil {
			return err
		}
		if works() {
			continue
		}
		user.Admin = acc.admin && !isPerson // what a person is, is not ours to say
		if err := a.repairAccount(ctx, prov, *c, user); err != nil {
			return err
		}
		if !works() {
			return fmt.Errorf("the account %s does not work on the forge: look at it in %s/admin/users", acc.name, a.cfg.forgeURL())
		}
	}
	return nil
}

// repairAccount enables an account that somebody has disabled, as the service
// or, where that is the one, as the person, with a token for this once.
func (a *app) repairAccount(ctx context.Context, prov forge.Provisioner, c credentials, u forge.User) error {
	a.step("enabling the account %s", u.Name)
	if !a.tokenWorks(ctx, c.ServiceToken, c.Service, true) {
		token, err := prov.Token(ctx, c.Person, tokenName(), []string{"write:admin", "read:user"})
		if err != nil {
			return fmt.Errorf("making a token for %s: %w", c.Person, err)
		}
		if prov.Admin, err = a.newForge(forge.Config{Token: token}, c.Person); err != nil {
			return err
		}
	}
	if err := prov.RepairUser(ctx, u); err != nil {
		return fmt.Errorf("the account %s is disabled, or no site admin any more, and can't be repaired from here (%w): enable it as another site admin in %s/admin/users, then run `devaipod forge up` again", u.Name, err, a.cfg.forgeURL())
	}
	return nil
}

// repairRepositories gives every repository what it lacks of labels, and the
// bot its place in it; the service does it for those that come later.
func (a *app) repairRepositories(ctx context.Context) error {
	creds, err := a.readCredentials()
	if err != nil {
		return err
	}
	client, err := a.serviceForge(creds)
	if err != nil {
		return err
	}
	repos, err := client.Repositories(ctx)
	if err != nil {
		return fmt.Errorf("listing repositories: %w", err)
	}
	for _, r := range repos {
		if r.Archived {
			continue
		}
		if err := prepareRepository(ctx, client, r.Repo, a.cfg.labels()); err != nil {
			return err
		}
	}
	return nil
}

// tellLogin shows the person's account, and a password made for it, once.
func (a *app) tellLogin(name, password string, given bool) {
	if given {
		a.step("login    %s / (the password you gave)", name)
		return
	}
	a.step("login    %s / %s   (shown this once; change it in the forge's settings)", name, password)
}

// tokenWorks tells whether a token is that account's, and a site admin's where
// it must be.
func (a *app) tokenWorks(ctx context.Context, token, account string, admin bool) bool {
	if token == "" {
		return false
	}
	client, err := a.forgeWith(token)
	if err != nil {
		return false
	}
	got, err := client.Me(ctx)
	return err == nil && got.Login == account && (got.Admin || !admin)
}

// waitForge waits until the forge answers.
func (a *app) waitForge(ctx context.Context) error {
	client, err := a.forgeWith("")
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	for {
		err := client.Healthy(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return &exitError{codeUnreachable, fmt.Errorf("the forge does not answer at %s: %w; see devaipod forge logs forge", a.cfg.forgeURL(), err)}
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// tokenName is one that no earlier token has: a lost one can't be read back.
func tokenName() string {
	var b [4]byte
	_, _ = io.ReadFull(rand.Reader, b[:]) // never fails (crypto/rand)
	return "devaipod-" + hex.EncodeToString(b[:])
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}
