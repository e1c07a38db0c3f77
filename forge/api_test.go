package forge_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/forge"
)

func botClient(t *testing.T, h http.HandlerFunc) *forge.Client {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	c, err := forge.New(forge.Config{URL: srv.URL, Token: "t", BotToken: "b", BotUser: "bot", MaxAnswer: 64 << 10})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestHugeTextsHideNoOtherIssues(t *testing.T) {
	huge := strings.Repeat("<", 3<<10) // six times as long as JSON
	const poison, total = 57, 60
	c := botClient(t, func(w http.ResponseWriter, r *http.Request) {
		limit, _ := strconv.Atoi(r.URL.Query().Get("limit"))
		page, _ := strconv.Atoi(r.URL.Query().Get("page"))
		var some []map[string]any
		for n := (page-1)*limit + 1; n <= min(page*limit, total); n++ {
			body := "short"
			if n < 8 {
				body = huge
			}
			if n == poison {
				body = strings.Repeat(huge, 4)
			}
			some = append(some, map[string]any{"number": n, "state": "open", "body": body, "repository": map[string]any{"id": 5, "full_name": "ann/hello"}})
		}
		if page*limit < total {
			w.Header().Set("Link", `<x>; rel="next"`)
		} else {
			w.Header().Set("Link", `<x>; rel="first"`)
		}
		if err := json.NewEncoder(w).Encode(some); err != nil {
			return // the client has had enough
		}
	})
	found, err := c.ChangedIssues(t.Context(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	seen := map[int64]bool{}
	for _, i := range found {
		seen[i.Number] = true
	}
	for n := int64(1); n <= total; n++ {
		if seen[n] == (n == poison) {
			t.Errorf("issue %d is seen: %t", n, seen[n])
		}
	}
	if len(found) != total-1 {
		t.Errorf("%d issues, want %d", len(found), total-1)
	}
}

func TestARenamedRepositoryIsFollowedWithinTheForge(t *testing.T) {
	elsewhere := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		t.Errorf("the token went elsewhere: %s", r.Header.Get("Authorization"))
	}))
	defer elsewhere.Close()
	writes := 0
	c := botClient(t, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.Contains(r.URL.Path, "/ann/hello/"):
			if r.Method != http.MethodGet {
				writes++
			}
			http.Redirect(w, r, strings.Replace(r.URL.Path, "/hello/", "/welcome/", 1), http.StatusMovedPermanently)
		case strings.Contains(r.URL.Path, "/ann/away/"):
			http.Redirect(w, r, elsewhere.URL+r.URL.Path, http.StatusMovedPermanently)
		case r.Header.Get("Authorization") != "token t":
			w.WriteHeader(http.StatusUnauthorized)
		default:
			fmt.Fprint(w, `{"number": 3, "repository": {"id": 5, "full_name": "ann/welcome"}}`)
		}
	})
	i, err := c.Issue(t.Context(), forge.Repo{Owner: "ann", Name: "hello"}, 3)
	if err != nil || i.Repo.String() != "ann/welcome" || i.RepoID != 5 || i.Number != 3 {
		t.Errorf("%+v, %v", i, err)
	}
	if _, err := c.Issue(t.Context(), forge.Repo{Owner: "ann", Name: "away"}, 3); err == nil {
		t.Error("followed to another host")
	}
	if err := c.DeleteRepo(t.Context(), forge.Repo{Owner: "ann", Name: "hello/x"}); err == nil && writes > 0 {
		t.Error("a change was sent on")
	}
}

func TestAnArchivedRepositoryIsTold(t *testing.T) {
	c := botClient(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			fmt.Fprint(w, `[]`)
			return
		}
		w.WriteHeader(http.StatusLocked)
	})
	if _, err := c.PutComment(t.Context(), forge.Repo{Owner: "a", Name: "b"}, 1, "m", "text"); !errors.Is(err, forge.ErrReadOnly) {
		t.Errorf("%v", err)
	}
}

func TestThePullRequestsTitleHasNoForce(t *testing.T) {
	for title, want := range map[string]string{
		"Fix the typo":                 "Fix the typo",
		"WIP: [wip] wip: Fix the typo": "Fix the typo",
		"closes #1":                    "closes \u200b#\u200b1",
		"Fixes: ann/hello#7 and !8":    "Fixes: \u200bann/hello#\u200b7 and !\u200b8",
		"a < b & c > d":                "a < b & c > d", // plain text, shown as it is
		"[WIP]":                        "agent/1-x",
	} {
		var got string
		c := botClient(t, func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodGet {
				fmt.Fprint(w, `[]`)
				return
			}
			var in struct{ Title string }
			if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
				t.Error(err)
			}
			got = in.Title
			fmt.Fprint(w, `{}`)
		})
		if _, _, err := c.EnsurePull(t.Context(), forge.Repo{Owner: "a", Name: "b"}, forge.PullSpec{Head: "agent/1-x", Base: "main", Title: title}); err != nil {
			t.Error(err)
		}
		if got != want {
			t.Errorf("%q became %q, want %q", title, got, want)
		}
	}
}
