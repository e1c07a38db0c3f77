package forge_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"codeberg.org/devaipod/devaipod/forge"
)

func client(t *testing.T, h http.HandlerFunc, token string) *forge.Client {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	c, err := forge.New(forge.Config{URL: srv.URL + "/git/", Token: token})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestTheForgeIsAskedOnceWhichItIs(t *testing.T) {
	for name, tt := range map[string]struct {
		native int // status of Forgejo's own API
		want   string
	}{
		"Forgejo":     {200, "forgejo"},
		"its sibling": {404, "gitea"},
	} {
		asked := map[string]int{}
		var hook struct{ Type string }
		c := client(t, func(w http.ResponseWriter, r *http.Request) {
			asked[r.URL.Path]++
			switch {
			case r.URL.Path == "/git/api/forgejo/v1/version":
				w.WriteHeader(tt.native)
			case r.Method == http.MethodPost:
				if err := json.NewDecoder(r.Body).Decode(&hook); err != nil {
					t.Error(err)
				}
			case strings.HasSuffix(r.URL.Path, "/hooks"):
				fmt.Fprint(w, "[]")
			default:
				fmt.Fprint(w, `{"version": "1.2.3"}`)
			}
		}, "")
		for range 2 {
			if v, err := c.Version(t.Context()); err != nil || v.String() != tt.want+" 1.2.3" {
				t.Errorf("%s: %s, %v", name, v, err)
			}
		}
		if _, err := c.EnsureSystemHook(t.Context(), "http://127.0.0.1:8090/hooks/forge", "secret"); err != nil || hook.Type != tt.want {
			t.Errorf("%s: a hook of type %q, %v", name, hook.Type, err)
		}
		if asked["/git/api/v1/version"] != 1 || asked["/git/api/forgejo/v1/version"] != 1 {
			t.Errorf("%s: asked %v", name, asked)
		}
	}
}

func TestWhatCantBeAskedIsNoFlavour(t *testing.T) {
	status := http.StatusInternalServerError
	c := client(t, func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "forgejo") {
			w.WriteHeader(status)
			return
		}
		fmt.Fprint(w, `{"version": "1.2.3"}`)
	}, "")
	if v, err := c.Version(t.Context()); err == nil {
		t.Errorf("%s, in spite of the error", v)
	}
	status = http.StatusOK
	if v, err := c.Version(t.Context()); err != nil || v.Software != "forgejo" {
		t.Errorf("%s, %v, once it answers", v, err)
	}
}

func TestMissingScopesAreFoundWithoutAChange(t *testing.T) {
	all := []string{"read:user", "write:repository", "write:issue", "write:admin"}
	for name, tt := range map[string]struct{ has, missing []string }{
		"all":            {all, nil},
		"none":           {nil, all},
		"some":           {[]string{"read:user", "write:issue"}, []string{"write:repository", "write:admin"}},
		"all but admin":  {all[:3], all[3:]},
		"only for admin": {all[3:], all[:3]},
	} {
		c := client(t, func(w http.ResponseWriter, r *http.Request) {
			scope := map[string]string{"user": "read:user", "admin": "write:admin", "repos": "write:repository"}[strings.Split(r.URL.Path, "/")[4]]
			if strings.Contains(r.URL.Path, "/issues/") {
				scope = "write:issue"
			}
			switch {
			case !slices.Contains(tt.has, scope):
				w.WriteHeader(403)
				fmt.Fprintf(w, `{"message": "token does not have at least one of required scope(s): [%s]"}`, scope)
			case r.Method == "GET":
				fmt.Fprint(w, `{"login": "ann"}`)
			default:
				if !strings.Contains(r.URL.Path, "nobody-") {
					t.Errorf("%s %s could change something", r.Method, r.URL.Path)
				}
				w.WriteHeader(404)
			}
		}, "t")
		if missing, err := c.MissingScopes(t.Context(), all...); err != nil || !slices.Equal(missing, tt.missing) {
			t.Errorf("%s: missing %v, %v, want %v", name, missing, err, tt.missing)
		}
	}
	c := client(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(401) }, "wrong")
	if missing, err := c.MissingScopes(t.Context(), all...); !errors.Is(err, forge.ErrForbidden) {
		t.Errorf("a wrong token: %v, %v", missing, err)
	}
	if _, err := c.MissingScopes(t.Context(), "write:everything"); err == nil {
		t.Error("an unknown scope counts as there")
	}
}

func TestAMovedForgeSaysWhereTo(t *testing.T) {
	c := client(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "token t" {
			t.Errorf("authorization %q", r.Header.Get("Authorization"))
		}
		http.Redirect(w, r, "https://elsewhere.example.org/api/v1/user", http.StatusMovedPermanently)
	}, "t")
	var e *forge.Error
	if _, err := c.WhoAmI(t.Context()); !errors.As(err, &e) || e.Status != 301 || !strings.Contains(err.Error(), "https://elsewhere.example.org/api/v1/user") {
		t.Errorf("%v", err)
	}
}

func TestATokenIsMintedWithThePassword(t *testing.T) {
	c := client(t, func(w http.ResponseWriter, r *http.Request) {
		user, password, ok := r.BasicAuth()
		b, err := io.ReadAll(r.Body)
		if !ok || user != "bot" || password != "secret" || err != nil || string(b) != `{"name":"n","scopes":["read:user"]}` {
			t.Errorf("%q %q %v: %s, %v", user, password, ok, b, err)
		}
		fmt.Fprint(w, `{"sha1": "minted"}`)
	}, "admin")
	if token, err := c.CreateToken(t.Context(), "bot", "secret", "n", []string{"read:user"}); err != nil || token != "minted" {
		t.Errorf("%q, %v", token, err)
	}
}

func TestALabelThatNobodyMadeIsOnNoIssue(t *testing.T) {
	for name, tt := range map[string]struct {
		answer string
		want   bool
	}{
		"the label is on one":            {`[{"number": 1, "labels": [{"name": "a"}, {"name": "devaipod"}]}]`, true},
		"it is on none":                  {`[]`, false},
		"there is none, so any issue is": {`[{"number": 1, "labels": [{"name": "a"}]}]`, false},
	} {
		c := client(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, tt.answer) }, "")
		if got, err := c.AnyLabeled(t.Context(), "devaipod"); err != nil || got != tt.want {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}
