package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"codeberg.org/devaipod/devaipod/pods/audit"
	"codeberg.org/devaipod/devaipod/pods/reconcile"
	"codeberg.org/devaipod/devaipod/pods/secret"
)

func auditApp(t *testing.T) (*app, *bytes.Buffer) {
	t.Helper()
	var out bytes.Buffer
	a := &app{out: &out, log: slog.New(slog.DiscardHandler)}
	a.cfg.StateDir, a.cfg.Audit.MaxSize = t.TempDir(), "1MiB"
	return a, &out
}

func auditService(t *testing.T, a *app) *service {
	t.Helper()
	log, err := a.openAudit()
	if err != nil {
		t.Fatal(err)
	}
	return &service{audit: log, log: a.log}
}

// What is in the state directory as a secret is in no entry.
func TestNothingSecretIsInTheAudit(t *testing.T) {
	a, _ := auditApp(t)
	values := map[string]string{"service": "tok-service-1", "bot": "tok-bot-12345", "person": "tok-person-1", "hook": "tok-hook-1234", "model": "sk-model-1234", "web": "tok-pages-123", "panel": "tok-panel-123"}
	creds, err := json.Marshal(credentials{ServiceToken: values["service"], BotToken: values["bot"], PersonToken: values["person"], WebhookSecret: values["hook"], PanelSecret: values["panel"]})
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"forge.json": string(creds), tokenFile: values["web"] + "\n"} {
		if err := os.WriteFile(a.cfg.file(name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.cfg.secrets().Put(secret.Secret{Name: "model"}, values["model"]); err != nil {
		t.Fatal(err)
	}
	s := auditService(t, a)
	for _, v := range values {
		if err := s.acted(reconcile.Act{What: v, Who: v, Rule: "x" + v, Done: v + v, Result: "failed: https://u:" + v + "@example.org"}); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(a.cfg.file(auditFile))
	if err != nil {
		t.Fatal(err)
	}
	for name, v := range values {
		if bytes.Contains(text, []byte(v)) {
			t.Errorf("the secret %s is in %s", name, text)
		}
	}
	if n := bytes.Count(text, []byte("[secret]")); n != 6*len(values) {
		t.Errorf("%d of %d places are marked", n, 6*len(values))
	}
}

// What the command line has the service do is kept, with how it ended; what only reads,
// or only hurries, is not.
func TestCommandsAreKept(t *testing.T) {
	a, out := auditApp(t)
	s := auditService(t, a)
	h := s.keepCommands(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "locked") {
			http.Error(w, "no", http.StatusConflict)
		}
	}))
	for _, call := range []string{
		"POST /api/pods/ada/app/3/rm?force=true", "POST /api/pods/ada/locked/3/messages", "POST /api/workspaces/ada/app/dev/up", "POST /api/ci/7/rerun",
		"POST /api/prune?dry=false", "POST /api/follow/7", "POST /api/saved/7/3/forget",
		"GET /api/pods/ada/app/3", "POST /api/pods/ada/app/3/kick", "POST /api/steer", "POST /api/open", "POST /api/prune?dry=true",
	} {
		method, path, _ := strings.Cut(call, " ")
		h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(method, path, nil))
	}
	if err := a.printAudit(context.Background(), auditQuery{}); err != nil {
		t.Fatal(err)
	}
	var got []string
	for line := range strings.Lines(out.String()) {
		_, rest, _ := strings.Cut(line, "  ")
		got = append(got, strings.TrimSpace(strings.Replace(rest, "  "+byCommand+"  the state directory is its user's", "", 1)))
	}
	want := []string{
		"ada/app#3  rm  force=true  done", "ada/locked#3  messages  refused (409)", "ada/app@dev  up  done", "-  ci-rerun  /api/ci/7/rerun  done",
		"-  prune  /api/prune dry=false  done", "-  sync  /api/follow/7  done", "-  forget  /api/saved/7/3/forget  done",
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// Only what is asked for is printed, and nothing that steers a terminal, also of a file
// that somebody else has written to.
func TestTheAuditIsPrinted(t *testing.T) {
	a, out := auditApp(t)
	s := auditService(t, a)
	for n, about := range []string{"ada/app#3", "ada/app#4", "ada/lib#1", "ada/app#3"} {
		if err := s.note(audit.Entry{Act: "push", About: about, Done: fmt.Sprint("n", n), Result: "done"}); err != nil {
			t.Fatal(err)
		}
	}
	for want, q := range map[string]auditQuery{
		"0 1 2 3": {}, "0 3": {about: "ada/app#3"}, "0 1 3": {about: "ada/app"}, "1 3": {about: "ada/app", newest: 2}, "": {since: 1},
	} {
		out.Reset()
		if err := a.printAudit(context.Background(), q); err != nil {
			t.Fatal(err)
		}
		var got []string
		for line := range strings.Lines(out.String()) {
			_, rest, _ := strings.Cut(line, "  n")
			got = append(got, strings.Fields(rest)[0])
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%+v: %q, want %q", q, got, want)
		}
	}
	line, err := json.Marshal(audit.Entry{Act: evil, About: evil, Who: evil, Rule: evil, Done: evil, Result: evil})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(a.cfg.file(auditFile), append(line, '\n'), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, a.asJSON = range []bool{false, true} {
		out.Reset()
		if err := a.printAudit(context.Background(), auditQuery{}); err != nil {
			t.Fatal(err)
		}
		if strings.Count(out.String(), "\n") != 1 || strings.ContainsAny(out.String(), "\x1b\r\a\u202e\u009b") {
			t.Errorf("%q", out)
		}
	}
}

// What can't be kept is said loudly: to who asks, in the log, and in the list.
func TestWhatCanNotBeKeptIsSaid(t *testing.T) {
	a, _ := auditApp(t)
	var said bytes.Buffer
	a.log = slog.New(slog.NewTextHandler(&said, nil))
	s := auditService(t, a)
	if err := os.Mkdir(a.cfg.file(auditFile), 0o700); err != nil {
		t.Fatal(err)
	}
	err := s.acted(reconcile.Act{What: "start"})
	if err == nil || !strings.Contains(said.String(), "level=ERROR") || s.audit.Trouble() == "" || errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v; %s", err, said.String())
	}
}
