package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"codeberg.org/devaipod/devaipod/forge"
	"codeberg.org/devaipod/devaipod/mirror"
	"codeberg.org/devaipod/devaipod/mirror/cache"
	"codeberg.org/devaipod/devaipod/pods/audit"
	"codeberg.org/devaipod/devaipod/pods/reconcile"
)

var app3 = forge.Repo{Owner: "ada", Name: "app"}

// auditForge is a client of a fake forge that answers each write with status, and looks
// whether the log has it then.
func auditForge(t *testing.T, a *app, status *int) *forge.Client {
	t.Helper()
	a.cfg.Forge.URL = ""
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, "/comments"):
			fmt.Fprint(w, `[{"id": 7, "user": {"login": "bot"}, "body": "<!-- m -->\nold"}]`)
		case r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, "/labels"):
			fmt.Fprint(w, `[{"id": 1, "name": "agent/review", "exclusive": true}]`)
		case r.Method == http.MethodGet:
			fmt.Fprint(w, `{"number": 3, "name": "app", "owner": {"login": "ada"}, "repository": {"full_name": "ada/app"}, "labels": [{"id": 1, "name": "agent/review"}]}`)
		default:
			text, err := os.ReadFile(a.cfg.file(auditFile))
			if want := r.Method + " " + strings.TrimPrefix(r.URL.Path, "/api/v1"); err != nil || !bytes.Contains(text, []byte(want)) && !strings.HasSuffix(want, "/merge") {
				t.Errorf("%s is made before it is kept: %s %v", want, text, err)
			}
			w.WriteHeader(*status)
			fmt.Fprintf(w, `{"id": 7, "message": "no: tok-service-1"}`)
		}
	}))
	t.Cleanup(srv.Close)
	a.cfg.Forge.Listen = strings.TrimPrefix(srv.URL, "http://")
	c, err := a.newForge(forge.Config{Token: "tok-service-1", BotToken: "tok-bot-12345", BotUser: "bot", ServiceUser: "svc"}, "svc")
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// keptActs is what the log has, without the times.
func keptActs(t *testing.T, a *app) string {
	t.Helper()
	found, err := audit.Read(a.cfg.file(auditFile))
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, e := range found {
		lines = append(lines, strings.Join([]string{e.Act, e.About, e.Who, e.Rule, e.Done, e.Result}, "|"))
	}
	return strings.Join(lines, "\n")
}

// What is written to the forge is kept before it is made, with who asked and why, once; what
// fails once more. A secret in what the forge says is not in it.
func TestWritesToTheForgeAreKept(t *testing.T) {
	a, _ := auditApp(t)
	if err := os.WriteFile(a.cfg.file("forge.json"), []byte(`{"service_token": "tok-service-1"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	status := http.StatusCreated
	c := auditForge(t, a, &status)
	ctx := because(t.Context(), reconcile.Act{Key: reconcile.Key{Owner: "ada", Repo: "app", Issue: 3}, Who: "ann", Rule: "may push to the repository"})
	port := forgePort{client: c, label: "devaipod", instance: "x", bot: "bot"}
	do := func(err error) {
		t.Helper()
		if (status >= 300) != (err != nil) {
			t.Error(err)
		}
	}
	for _, body := range []string{"new", "newer", "newest"} { // an edit tells nothing new
		_, err := c.PutComment(ctx, app3, 4, "m", body)
		do(err)
	}
	do(port.SetState(ctx, reconcile.Issue{Key: reconcile.Key{Owner: "ada", Repo: "app", Issue: 3}}, "review"))
	do(c.RequestReview(because(ctx, reconcile.Act{What: "review-request", Done: "bob is asked"}), app3, 4, "bob"))
	do(c.SetStatus(t.Context(), app3, "c0ffee", forge.Status{Name: "a", State: "success"}, ""))
	do(c.Merge(audit.Kept(t.Context()), app3, 4, "c0ffee")) // whose entries are the caller's
	do(c.SetDefaultBranch(byCommandLine(t.Context()), app3, "main"))
	do(c.RemoveLabelAs(t.Context(), app3, 3, "agent/review", "eve"))
	status = http.StatusForbidden
	do(c.DeleteRepo(t.Context(), app3))
	want := `comment|ada/app#3|@ann|may push to the repository|PATCH /repos/ada/app/issues/comments/7 as bot|sent
state|ada/app#3|@ann|may push to the repository|review; POST /repos/ada/app/issues/3/labels as svc|sent
review-request|ada/app#3|@ann|may push to the repository|bob is asked; POST /repos/ada/app/pulls/4/requested_reviewers as bot|sent
status|ada/app|the service||POST /repos/ada/app/statuses/c0ffee as bot|sent
repository|ada/app|the command line|the state directory is its user's|PATCH /repos/ada/app as svc|sent
unlabel|ada/app#3|@eve||DELETE /repos/ada/app/issues/3/labels/1 as eve|sent
repository|ada/app|the service||DELETE /repos/ada/app as svc|sent
repository|ada/app|the service||DELETE /repos/ada/app as svc|failed: the forge answered 403 to DELETE /repos/ada/app: no: [secret]`
	if got := keptActs(t, a); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// So is what the forge's own command is asked to do.
func TestTheForgesOwnCommandIsKept(t *testing.T) {
	a, _ := auditApp(t)
	cli := a.keptCLI(func(_ context.Context, _ io.Reader, args ...string) (string, error) {
		if args[0] == "bad" {
			return "", errors.New("no such thing")
		}
		return "out", nil
	})
	ctx := byCommandLine(t.Context())
	if out, err := cli(ctx, nil, "admin", "user", "create"); out != "out" || err != nil {
		t.Error(out, err)
	}
	if _, err := cli(ctx, nil, "bad"); err == nil {
		t.Error("it says nothing")
	}
	by := "the command line|the state directory is its user's|the forge's own command: "
	want := "account||" + by + "admin user create|sent\naccount||" + by + "bad|sent\naccount||" + by + "bad|failed: no such thing"
	if got := keptActs(t, a); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestKindsOfWrites(t *testing.T) {
	for call, want := range map[string]string{
		"POST /repos/ada/app/issues/3/comments":             "comment ada/app#3",
		"DELETE /repos/ada/app/issues/comments/7":           "comment ada/app",
		"POST /repos/ada/app/issues/3/labels":               "label ada/app#3",
		"DELETE /repos/ada/app/issues/3/labels/2":           "unlabel ada/app#3",
		"POST /repos/ada/app/issues":                        "issue ada/app",
		"PATCH /repos/ada/app/issues/3":                     "issue ada/app#3",
		"POST /repos/ada/app/pulls":                         "pull-request ada/app",
		"POST /repos/ada/app/pulls/4/reviews":               "answer ada/app#4",
		"POST /ada/app/pulls/4/files/reviews/comments":      "answer ada/app#4",
		"POST /repos/ada/app/pulls/4/merge":                 "merge ada/app#4",
		"POST /ada/app/actions/runs/7/rerun":                "actions ada/app",
		"POST /repos/ada/app/labels":                        "labels ada/app",
		"PUT /repos/ada/app/collaborators/bot":              "collaborator ada/app",
		"PATCH /repos/ada/app/branch_protections/main":      "branch-rule ada/app",
		"POST /orgs/acme/repos":                             "repository ",
		"POST /user/repos":                                  "repository ",
		"POST /admin/users/ada/repos":                       "repository ",
		"POST /admin/hooks":                                 "webhook ",
		"PATCH /admin/hooks/5":                              "webhook ",
		"POST /admin/users":                                 "account ",
		"POST /users/bot/tokens":                            "account ",
		"DELETE /user/applications/oauth2/6":                "application ",
		"POST /repos/ada/app/something/that/nobody/thought": "forge ada/app",
		"POST /something":                                   "forge ",
	} {
		method, path, _ := strings.Cut(call, " ")
		if act, about := kindOf(forge.Write{Method: method, Path: path}); act+" "+about != want {
			t.Errorf("%s: %s %s, want %s", call, act, about, want)
		}
	}
}

// All clients of the forge are made where their writes are kept.
func TestClientsOfTheForgeAreMadeInOnePlace(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil || len(files) < 50 {
		t.Fatal(len(files), err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasSuffix(file, "_test.go") && file != "writes.go" && bytes.Contains(text, []byte("forge.New(")) {
			t.Errorf("%s makes a client without newForge", file)
		}
	}
}

// What the service pushes to the forge is kept, and what it lets no agent push, of which there
// may be much.
func TestPushesAreKept(t *testing.T) {
	a, _ := auditApp(t)
	a.keepPush(t.Context(), cache.Address{Host: forgeHost, Path: "ada/app"}, map[string]string{"refs/tags/v1": "b", "refs/heads/main": "a"}, nil)
	a.keepPush(t.Context(), cache.Address{Host: forgeHost, Path: "ada/app"}, map[string]string{"refs/heads/main": "a"}, errors.New("gone"))
	a.keepCopy(byCommandLine(context.Background()), app3, "ann", nil)
	want := `sync|ada/app|the service|it follows an upstream|refs/heads/main a, refs/tags/v1 b|sent
sync|ada/app|the service|it follows an upstream|refs/heads/main a|failed: gone
copy|ada/app|the command line|the state directory is its user's|branches and tags, as ann|sent`
	if got := keptActs(t, a); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	s := auditService(t, a)
	d := mirror.Delivery{Repo: "ada/app", Issue: "ada/app#3", Agent: "opencode", Refs: []string{"refs/heads/main c0ffee"}}
	for range 2 * mostRefused {
		s.pushRefused(d, "only to branches of its own")
	}
	other := d
	other.Issue = "ada/app#4"
	s.pushRefused(other, "it has a secret")
	s.pushed(d)
	s.pushRefused(d, "once more")
	got := strings.Split(strings.TrimPrefix(keptActs(t, a), want+"\n"), "\n")
	first := "push|ada/app#3|the agent opencode|only to branches of its own|refs/heads/main c0ffee|refused"
	if len(got) != mostRefused+3 || got[0] != first || got[mostRefused-1] != first+"; the last of 100 in a row that is kept" ||
		!strings.HasPrefix(got[mostRefused], "push|ada/app#4|") || !strings.HasSuffix(got[mostRefused+2], "|once more|refs/heads/main c0ffee|refused") {
		t.Errorf("%d lines:\n%s", len(got), strings.Join(got[max(0, len(got)-5):], "\n"))
	}
}
