package testkit_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/cmd/internal/testkit"
	"codeberg.org/devaipod/devaipod/forge"
)

// The forge package against the real sibling forge, in its container.

// realForge starts it, with more settings if there are, and returns the
// service's client, and the API as the service account.
func realForge(t *testing.T, settings ...string) (*forge.Client, forge.Provisioner, *testkit.API) {
	t.Helper()
	ctx := t.Context()
	root, err := testkit.Root()
	must(t, err)
	build := exec.CommandContext(ctx, filepath.Join(root, "compose/images/build"), "load", "forge", testkit.ForgeImage)
	build.Env, build.Stdout, build.Stderr = world.Environ(), os.Stderr, os.Stderr
	must(t, build.Run())
	addr, err := testkit.FreeAddr("")
	must(t, err)
	run := []string{"run", "--detach", "--name", "forge", "--pull", "never", "--publish", addr + ":3000"}
	for _, s := range append(settings, "security__INSTALL_LOCK=true", "server__ROOT_URL=http://"+addr+"/", "webhook__ALLOWED_HOST_LIST=loopback") {
		run = append(run, "--env", "FORGEJO__"+s)
	}
	_, err = world.Podman(ctx, append(run, testkit.ForgeImage)...)
	must(t, err)
	t.Cleanup(func() {
		if _, err := world.Podman(context.WithoutCancel(ctx), "rm", "--force", "--volumes", "--time", "2", "forge"); err != nil {
			t.Error(err)
		}
	})
	url := "http://" + addr
	c, err := forge.New(forge.Config{URL: url})
	must(t, err)
	up := func() bool { err := c.Healthy(ctx); return err == nil || errors.Is(err, forge.ErrForbidden) }
	for deadline := time.Now().Add(time.Minute); !up(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the forge does not answer")
		}
	}
	prov := forge.Provisioner{CLI: func(ctx context.Context, _ io.Reader, args ...string) (string, error) {
		return world.Podman(ctx, append([]string{"exec", "-u", "git", "forge", "forgejo"}, args...)...)
	}}
	token := func(name string, admin bool, scopes ...string) string {
		if _, created, err := prov.EnsureUser(ctx, forge.User{Name: name, Email: name + "@example.org", Admin: admin}); err != nil || !created {
			t.Fatalf("making %s: %v, %v", name, created, err)
		}
		tok, err := prov.Token(ctx, name, "test", scopes)
		must(t, err)
		return tok
	}
	cfg := forge.Config{URL: url, ServiceUser: "svc", BotUser: "bot"}
	cfg.Token = token("svc", true, "write:admin", "write:repository", "write:issue", "write:user", "write:organization")
	cfg.BotToken = token("bot", false, "write:repository", "write:issue", "read:user")
	c, err = forge.New(cfg)
	must(t, err)
	prov.Admin = c
	return c, prov, &testkit.API{URL: url, User: "svc", Token: cfg.Token}
}

func TestTheRealForge(t *testing.T) {
	c, prov, api := realForge(t)
	ctx := t.Context()
	if v, err := c.Version(ctx); err != nil || v.Software != "gitea" || v.Version == "" {
		t.Errorf("version %+v, %v", v, err)
	}
	if me, err := c.WhoAmI(ctx); err != nil || me != "svc" {
		t.Errorf("I am %q, %v", me, err)
	}
	t.Run("accounts", func(t *testing.T) { accounts(t, c, prov, api) })
	t.Run("who may write", func(t *testing.T) { whoMayWrite(t, c, prov, api) })
	t.Run("applications", func(t *testing.T) { applications(t, prov, api) })
	t.Run("labels and comments", func(t *testing.T) { labelsAndComments(t, c, prov, api) })
	t.Run("calls", func(t *testing.T) { calls(t, c, prov, api) })
	t.Run("pull requests", func(t *testing.T) { pullRequests(t, c, api) })
	t.Run("webhook", func(t *testing.T) {
		for i, want := range []bool{true, false, false} {
			if changed, err := c.EnsureSystemHook(ctx, "http://127.0.0.1:8090/hooks/forge", fmt.Sprint("secret", i)); err != nil || changed != want {
				t.Errorf("time %d: made %v, %v", i+1, changed, err)
			}
		}
		var hooks []json.RawMessage
		if must(t, api.Get(ctx, "/admin/hooks", &hooks)); len(hooks) != 1 {
			t.Errorf("%d hooks", len(hooks))
		}
	})
	t.Run("joining", func(t *testing.T) { joining(t, c, prov, api) })
}

func accounts(t *testing.T, c *forge.Client, prov forge.Provisioner, api *testkit.API) {
	ctx := t.Context()
	password, created, err := prov.EnsureUser(ctx, forge.User{Name: "given", Email: "given@example.org", Password: "a-given-password-1"})
	if err != nil || !created || password != "a-given-password-1" {
		t.Fatalf("%q, %v, %v", password, created, err)
	}
	if _, created, err := prov.EnsureUser(ctx, forge.User{Name: "given", Email: "given@example.org"}); err != nil || created {
		t.Errorf("again: %v, %v", created, err)
	}
	as := &testkit.API{URL: api.URL, User: "given", Password: password}
	var me struct{ Login string }
	if must(t, as.Get(ctx, "/user", &me)); me.Login != "given" {
		t.Errorf("logged in as %q", me.Login)
	}
	if _, err := c.Repository(ctx, forge.Repo{Owner: "given", Name: "nothing"}); !errors.Is(err, forge.ErrNotFound) {
		t.Errorf("a repository that is not there: %v", err)
	}
}

func do(t *testing.T, api *testkit.API, method, path string, body any) {
	t.Helper()
	_, err := api.Do(t.Context(), method, path, body)
	must(t, err)
}

// whoMayWrite is the question of invariant S1, with all kinds of accounts.
func whoMayWrite(t *testing.T, c *forge.Client, prov forge.Provisioner, api *testkit.API) {
	ctx := t.Context()
	must(t, api.Post(ctx, "/orgs", map[string]any{"username": "acme"}, nil))
	must(t, api.Post(ctx, "/orgs/acme/repos", map[string]any{"name": "code", "auto_init": true, "private": true}, nil))
	r := forge.Repo{Owner: "acme", Name: "code"}
	people := map[string]struct {
		units map[string]string // of a team with these
		as    string            // or a collaborator
		want  bool
		read  bool
	}{
		"coder":       {units: map[string]string{"repo.code": "write", "repo.issues": "write"}, want: true, read: true},
		"triager":     {units: map[string]string{"repo.code": "read", "repo.issues": "write"}, read: true},
		"issuesonly":  {units: map[string]string{"repo.code": "none", "repo.issues": "write"}},
		"collwrite":   {as: "write", want: true, read: true},
		"collread":    {as: "read", read: true},
		"outsider":    {},
		"prohibited":  {as: "write"},
		"inactiveone": {as: "write"},
	}
	for name, p := range people {
		_, _, err := prov.EnsureUser(ctx, forge.User{Name: name, Email: name + "@example.org"})
		must(t, err)
		if p.units != nil {
			var team struct{ ID int64 }
			must(t, api.Post(ctx, "/orgs/acme/teams", map[string]any{"name": "t" + name, "permission": "write", "units_map": p.units, "includes_all_repositories": true}, &team))
			do(t, api, "PUT", fmt.Sprintf("/teams/%d/members/%s", team.ID, name), nil)
		}
		if p.as != "" {
			do(t, api, "PUT", "/repos/acme/code/collaborators/"+name, map[string]string{"permission": p.as})
		}
	}
	do(t, api, "PATCH", "/admin/users/prohibited", map[string]any{"source_id": 0, "login_name": "prohibited", "prohibit_login": true})
	do(t, api, "PATCH", "/admin/users/inactiveone", map[string]any{"source_id": 0, "login_name": "inactiveone", "active": false})
	for name, p := range people {
		got, err := c.CanWrite(ctx, r, name)
		if err != nil || got != p.want {
			t.Errorf("%s: %v, want %v (%v)", name, got, p.want, err)
		}
		if got, err := c.Access(ctx, r, name); err != nil || got.Push != p.want || got.Read != p.read || got.ID == 0 != strings.Contains("prohibited inactiveone", name) {
			t.Errorf("%s: %+v, want to read %v (%v)", name, got, p.read, err)
		}
	}
	for _, name := range []string{"nobody-of-that-name", "", "../svc"} {
		if got, _ := c.CanWrite(ctx, r, name); got {
			t.Errorf("%q may write", name)
		}
	}
	if got, err := c.CanWrite(ctx, r, "svc"); err != nil || !got {
		t.Errorf("the site's admin: %v, %v", got, err)
	}
	stranger, err := forge.New(forge.Config{URL: api.URL, Token: "0123456789012345678901234567890123456789"})
	must(t, err)
	if got, err := stranger.CanWrite(ctx, r, "coder"); err == nil || got {
		t.Errorf("asked with a token that is no good: %v, %v", got, err)
	}
	// The service sees private repositories of others.
	all, err := c.Repositories(ctx)
	if err != nil || !slices.ContainsFunc(all, func(i forge.RepoInfo) bool { return i.Repo == r }) {
		t.Errorf("repositories: %+v, %v", all, err)
	}
}

// An application is made once, told by its client id and redirection, and replaced.
func applications(t *testing.T, prov forge.Provisioner, api *testkit.API) {
	ctx := t.Context()
	token, err := prov.Token(ctx, "svc", "applications", []string{"write:user", "write:admin"})
	must(t, err)
	c, err := forge.New(forge.Config{URL: api.URL, Token: token})
	must(t, err)
	first, err := c.MakeOAuthApp(ctx, forge.Login{}, "test-panel", "http://panel.localhost:1/callback")
	must(t, err)
	second, err := c.MakeOAuthApp(ctx, forge.Login{}, "test-panel", "http://panel.localhost:2/callback")
	must(t, err)
	for _, has := range []struct {
		client, redirect string
		want             bool
	}{{first.Client, "http://panel.localhost:1/callback", false}, {second.Client, "http://panel.localhost:1/callback", false}, {second.Client, "http://panel.localhost:2/callback", true}} {
		if got, err := c.HasOAuthApp(ctx, has.client, has.redirect); err != nil || got != has.want {
			t.Errorf("%+v: %v, %v", has, got, err)
		}
	}
	must(t, c.SetPassword(ctx, "svc", "a-password-of-svc"))
	must(t, c.RemoveOAuthApp(ctx, forge.Login{User: "svc", Password: "a-password-of-svc"}, "test-panel"))
	if got, err := c.HasOAuthApp(ctx, second.Client, "http://panel.localhost:2/callback"); err != nil || got {
		t.Errorf("removed: %v, %v", got, err)
	}
	least, err := prov.Token(ctx, "svc", "reads", []string{"read:user"})
	must(t, err)
	c, err = forge.New(forge.Config{URL: api.URL, Token: least})
	must(t, err)
	if _, err := c.MakeOAuthApp(ctx, forge.Login{}, "test-panel", "http://panel.localhost:1/callback"); !errors.Is(err, forge.ErrForbidden) {
		t.Errorf("with a token that may not: %v", err)
	}
}

func labelsAndComments(t *testing.T, c *forge.Client, prov forge.Provisioner, api *testkit.API) {
	ctx := t.Context()
	r := forge.Repo{Owner: "acme", Name: "code"}
	want := forge.DefaultLabels("devaipod")
	if changed, err := c.EnsureLabels(ctx, r, want); err != nil || !changed {
		t.Fatalf("labels: %v, %v", changed, err)
	}
	must(t, c.EnsureBot(ctx, r))
	must(t, c.EnsureBot(ctx, r))
	if changed, err := c.EnsureLabels(ctx, r, want); err != nil || changed {
		t.Errorf("labels again: %v, %v", changed, err)
	}
	var issue forge.Issue
	for i := range 51 { // more than a page
		var err error
		issue, err = c.CreateIssue(ctx, r, forge.IssueSpec{Title: fmt.Sprint("issue ", i), Labels: []string{"devaipod"}})
		must(t, err)
	}
	found, asOf, err := c.LabeledIssues(ctx, "devaipod")
	if err != nil || time.Since(asOf).Abs() > time.Minute || len(found) != 51 || found[0].Repo != r {
		t.Errorf("labeled: %d, %v", len(found), err)
	}
	if found, _, err := c.LabeledIssues(ctx, "no such label"); err != nil || len(found) != 0 {
		t.Errorf("with an unknown label: %d, %v", len(found), err)
	}
	n := issue.Number
	ev, ok, err := c.LabelEvent(ctx, r, n, "devaipod")
	if err != nil || !ok || ev.User != "svc" || ev.At.IsZero() {
		t.Errorf("label event: %+v, %v, %v", ev, ok, err)
	}
	must(t, c.RemoveLabel(ctx, r, n, "devaipod"))
	must(t, c.RemoveLabel(ctx, r, n, "devaipod"))
	if _, ok, err := c.LabelEvent(ctx, r, n, "devaipod"); err != nil || ok {
		t.Errorf("after it was taken off: %v, %v", ok, err)
	}
	must(t, c.AddLabels(ctx, r, n, "devaipod"))
	if again, ok, err := c.LabelEvent(ctx, r, n, "devaipod"); err != nil || !ok || again.ID <= ev.ID {
		t.Errorf("put on again: %+v, %v, %v", again, ok, err)
	}
	// A label that names an agent counts too: of those that are on, the newest.
	if changed, err := c.EnsureLabels(ctx, r, forge.DefaultLabels("devaipod", "fast")); err != nil || !changed {
		t.Fatalf("labels: %v, %v", changed, err)
	}
	plain, _, err := c.LabelEvent(ctx, r, n, "devaipod")
	must(t, err)
	must(t, c.AddLabels(ctx, r, n, "devaipod:fast"))
	if fast, ok, err := c.LabelEvent(ctx, r, n, "devaipod"); err != nil || !ok || fast.Label != "devaipod:fast" || fast.ID <= plain.ID {
		t.Errorf("with an agent's name: %+v, %v, %v", fast, ok, err)
	}
	must(t, c.RemoveLabel(ctx, r, n, "devaipod:fast"))
	if got, ok, err := c.LabelEvent(ctx, r, n, "devaipod"); err != nil || !ok || got.ID != plain.ID {
		t.Errorf("taken off again: %+v, %v, %v, want %+v", got, ok, err, plain)
	}
	for _, state := range []string{"working", "review", "review", ""} {
		issue, err = c.Issue(ctx, r, n)
		must(t, err)
		_, err = c.SetState(ctx, issue, state)
		must(t, err)
		issue, err = c.Issue(ctx, r, n)
		must(t, err)
		labels := strings.Join(slices.Sorted(slices.Values(issue.Labels)), " ")
		if want := strings.TrimSpace(map[bool]string{true: "agent/" + state + " ", false: ""}[state != ""] + "devaipod"); labels != want {
			t.Errorf("state %q: labels %q, want %q", state, labels, want)
		}
	}
	for i, body := range []string{"one", "one", "two"} {
		changed, err := c.PutComment(ctx, r, n, "test:status", body)
		if err != nil || changed != (i != 1) {
			t.Errorf("comment %d: %v, %v", i, changed, err)
		}
	}
	// Somebody else's comment with our marker is not ours.
	must(t, api.Post(ctx, fmt.Sprintf("/repos/acme/code/issues/%d/comments", n), map[string]string{"body": "<!-- test:status -->\nfake"}, nil))
	_, err = c.PutComment(ctx, r, n, "test:status", "three")
	must(t, err)
	comments, err := c.Comments(ctx, r, n)
	if err != nil || len(comments) != 2 || comments[0].Author != "bot" || !strings.Contains(comments[0].Body, "three") || !strings.Contains(comments[1].Body, "fake") {
		t.Errorf("comments %+v, %v", comments, err)
	}
	if _, err := c.Issue(ctx, r, 9999); !errors.Is(err, forge.ErrNotFound) {
		t.Errorf("an issue that is not there: %v", err)
	}
}

func pullRequests(t *testing.T, c *forge.Client, api *testkit.API) {
	ctx := t.Context()
	r := forge.Repo{Owner: "acme", Name: "code"}
	file := map[string]any{"content": "aGkK", "message": "Add a file\n\nwith a body", "branch": "main", "new_branch": "agent/1-x"}
	must(t, api.Post(ctx, "/repos/acme/code/contents/dir/a%20file", file, nil))
	if sha, ok, err := c.Branch(ctx, r, "agent/1-x"); err != nil || !ok || len(sha) != 40 {
		t.Errorf("branch %q, %v, %v", sha, ok, err)
	}
	if _, ok, err := c.Branch(ctx, r, "agent/2-x"); err != nil || ok {
		t.Errorf("a branch that is not there: %v, %v", ok, err)
	}
	if found, err := c.Branches(ctx, r, "agent/1-"); err != nil || len(found) != 1 || found[0].Name != "agent/1-x" {
		t.Errorf("branches %+v, %v", found, err)
	}
	if commits, err := c.Compare(ctx, r, "main", "agent/1-x"); err != nil || len(commits) != 1 || commits[0].Subject != "Add a file" {
		t.Errorf("compare %+v, %v", commits, err)
	}
	if _, ok, err := c.PullForBranch(ctx, r, "agent/1-x"); err != nil || ok {
		t.Errorf("before there is one: %v, %v", ok, err)
	}
	spec := forge.PullSpec{Head: "agent/1-x", Base: "main", Title: "Add it", Body: "Closes #1", Draft: true}
	var p forge.Pull
	for i, change := range []func(){func() {}, func() {}, func() { spec.Draft = false }, func() { spec.Body = "other" }} {
		change()
		got, changed, err := c.EnsurePull(ctx, r, spec)
		if err != nil || changed != (i != 1) || got.Draft != spec.Draft || got.Title != "Add it" || got.Author != "bot" || (p.Number != 0 && got.Number != p.Number) {
			t.Fatalf("time %d: %+v, %v, %v", i+1, got, changed, err)
		}
		p = got
	}
	must(t, c.RequestReview(ctx, r, p.Number, "collwrite"))
	must(t, c.RequestReview(ctx, r, p.Number, "collwrite"))
	// May push, and may not read pull requests: a team with just these units.
	if err := c.RequestReview(ctx, r, p.Number, "coder"); !errors.Is(err, forge.ErrInvalid) {
		t.Errorf("asking somebody who can't see it: %v", err)
	}
	if files, err := c.PullFiles(ctx, r, p.Number); err != nil || len(files) != 1 || files[0] != (forge.FileStat{Path: "dir/a file", Added: 1}) {
		t.Errorf("files %+v, %v", files, err)
	}
	got, ok, err := c.PullForBranch(ctx, r, "agent/1-x")
	if err != nil || !ok || got.Number != p.Number || got.State != "open" || !slices.Equal(got.Reviewers, []string{"collwrite"}) {
		t.Errorf("found %+v, %v, %v", got, ok, err)
	}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(time.Second) {
		err := api.Post(ctx, fmt.Sprintf("/repos/acme/code/pulls/%d/merge", p.Number), map[string]any{"Do": "merge", "delete_branch_after_merge": true}, nil)
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	got, ok, err = c.PullForBranch(ctx, r, "agent/1-x")
	if err != nil || !ok || !got.Merged || got.Closed.IsZero() {
		t.Errorf("merged: %+v, %v, %v", got, ok, err)
	}
	// Who did not know of the merge yet opens no second one.
	spec.Number = p.Number
	if got, changed, err := c.EnsurePull(ctx, r, spec); err != nil || changed || !got.Merged || got.Number != p.Number {
		t.Errorf("put after the merge: %+v, %v, %v", got, changed, err)
	}
	if found, err := c.Statuses(ctx, r, p.HeadSHA); err != nil || len(found) != 0 {
		t.Errorf("statuses %+v, %v", found, err)
	}
	for _, state := range []string{"pending", "success"} {
		must(t, api.Post(ctx, "/repos/acme/code/statuses/"+p.HeadSHA, map[string]any{"state": state, "context": "build", "target_url": "https://ci.example.org/7"}, nil))
		if found, err := c.Statuses(ctx, r, p.HeadSHA); err != nil || !slices.Equal(found, []forge.Status{{Name: "build", URL: "https://ci.example.org/7", State: state}}) {
			t.Errorf("statuses %+v, %v", found, err)
		}
	}
}
