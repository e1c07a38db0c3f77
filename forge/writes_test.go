package forge_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"codeberg.org/devaipod/devaipod/forge"
)

// Each write is told before the forge sees it, in whose name it is, and how it failed.
func TestAWriteIsToldBeforeItIsMade(t *testing.T) {
	var log []string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/user/login") && r.Method == http.MethodPost {
			w.WriteHeader(http.StatusSeeOther) // which means that it is logged in
			return
		}
		if r.Method != http.MethodGet {
			log = append(log, "the forge: "+r.Method+" "+r.URL.Path)
		}
		if strings.Contains(r.URL.Path, "cancel") {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		_, _ = w.Write([]byte(`{}`))
	}))
	defer srv.Close()
	c, err := forge.New(forge.Config{URL: srv.URL, Token: "t", BotToken: "b", BotUser: "bot", Writes: func(_ context.Context, w forge.Write, failed error) {
		line := "told: " + w.Method + " " + w.Path + " as " + w.As
		if failed != nil {
			line += ", failed"
		}
		log = append(log, line)
	}})
	if err != nil {
		t.Fatal(err)
	}
	web := forge.NewWeb(c, true)
	if err := web.Rerun(t.Context(), repo, 7); err != nil {
		t.Error(err)
	}
	var answer *forge.Error
	if err := web.Cancel(t.Context(), repo, 7); !errors.As(err, &answer) {
		t.Error(err)
	}
	if err := c.SetStatus(t.Context(), repo, "c0ffee", forge.Status{Name: "a", State: "success"}, "well"); err != nil {
		t.Error(err)
	}
	want := []string{
		"told: PATCH /admin/users/bot as ", "the forge: PATCH /api/v1/admin/users/bot", // the password of its session
		"told: POST /ann/full/actions/runs/7/rerun as bot", "the forge: POST /ann/full/actions/runs/7/rerun",
		"told: POST /ann/full/actions/runs/7/cancel as bot", "the forge: POST /ann/full/actions/runs/7/cancel", "told: POST /ann/full/actions/runs/7/cancel as bot, failed",
		"told: POST /repos/ann/full/statuses/c0ffee as bot", "the forge: POST /api/v1/repos/ann/full/statuses/c0ffee",
	}
	if !slices.Equal(log, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(log, "\n"), strings.Join(want, "\n"))
	}
}
