package main_test

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"

	main "codeberg.org/devaipod/devaipod/cmd/devaipod"
	"codeberg.org/devaipod/devaipod/forge"
	"codeberg.org/devaipod/devaipod/mirror/follow"
)

func TestWhatAnUpstreamIsCalled(t *testing.T) {
	for url, want := range map[string]string{
		"https://github.com/git/git.git":                      "github.com/git/git.git",
		"https://github.com:443/git/git":                      "github.com/git/git",
		"https://git.example.org:8443/x.git":                  "git.example.org:8443/x.git",
		"http://127.0.0.1:3000/a/b.git":                       "127.0.0.1:3000/a/b.git",
		"http://git.example.org:80/x":                         "git.example.org/x",
		"https://ada@github.com/git/git":                      "github.com/git/git",
		"ssh://git@git.example.org:2222/a/b.git":              "git.example.org/a/b.git",
		"git@github.com:git/git.git":                          "github.com/git/git.git",
		"git@github.com:/srv/git.git":                         "github.com/srv/git.git",
		"http://127.0.0.1:8090/git/github.com/git/git.git":    "github.com/git/git.git",
		"http://127.0.0.1:8090/git/localhost/srv/git/lib.git": "localhost/srv/git/lib.git",
		"http://127.0.0.1:8091/git/github.com/git/git.git":    "127.0.0.1:8091/git/github.com/git/git.git",
		"github.com/git/git":                                  "github.com/git/git",
		"/srv/git/lib.git":                                    "",
		"file:///srv/git/lib.git":                             "",
		"git://git.example.org/lib.git":                       "",
	} {
		if got, err := main.AddressOf("127.0.0.1:8090", url); got != want || (err == nil) != (want != "") {
			t.Errorf("%s: %q, %v; want %q", url, got, err, want)
		}
	}
}

// A service that is no site admin any more is told 404 of what is private.
func TestOnlyASiteAdminSaysThatARepositoryIsGone(t *testing.T) {
	admin, status := true, http.StatusNotFound
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/api/v1/user":
			fmt.Fprintf(w, `{"login": "svc", "is_admin": %t}`, admin)
		default:
			w.WriteHeader(status)
			fmt.Fprint(w, `{"id": 7, "name": "app", "owner": {"login": "ann"}, "default_branch": "main", "archived": true}`)
		}
	}))
	defer srv.Close()
	client, err := forge.New(forge.Config{URL: srv.URL, Token: "t"})
	if err != nil {
		t.Fatal(err)
	}
	f := main.NewFollowForge(client)
	if _, err := f.Repository(t.Context(), 7); !errors.Is(err, follow.ErrGone) {
		t.Errorf("to a site admin: %v", err)
	}
	admin = false
	if _, err := f.Repository(t.Context(), 7); err == nil || errors.Is(err, follow.ErrGone) {
		t.Errorf("to another account: %v", err)
	}
	status = http.StatusOK
	if got, err := f.Repository(t.Context(), 7); err != nil || got != (follow.Repository{Name: "ann/app", DefaultBranch: "main", Archived: true}) {
		t.Errorf("one that is there: %+v, %v", got, err)
	}
}
