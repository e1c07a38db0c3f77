package forge_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/forge"
)

// rules plays the part of a forge that keeps one rule, as JSON.
type rules struct {
	rule      map[string]any
	effective string
	wrote     []string // method and path
}

func (f *rules) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet {
		f.wrote = append(f.wrote, r.Method+" "+r.URL.EscapedPath())
	}
	switch {
	case r.URL.Path == "/api/v1/version":
		fmt.Fprint(w, `{"version": "14.0.0"}`)
	case r.URL.Path == "/api/forgejo/v1/version":
	case strings.HasPrefix(r.URL.Path, "/api/v1/repos/ann/app/branches/"):
		fmt.Fprintf(w, `{"effective_branch_protection_name": %q}`, f.effective)
	case r.Method == http.MethodGet && f.rule == nil:
		w.WriteHeader(http.StatusNotFound)
	case r.Method == http.MethodGet:
		_ = json.NewEncoder(w).Encode(f.rule)
	case r.Method == http.MethodDelete:
		f.rule = nil
	default:
		if f.rule == nil {
			f.rule = map[string]any{"required_approvals": 2.0}
		}
		if err := json.NewDecoder(r.Body).Decode(&f.rule); err != nil {
			w.WriteHeader(http.StatusBadRequest)
		}
	}
}

func TestABranchIsProtectedOnce(t *testing.T) {
	fake := &rules{effective: "release/1"}
	srv := httptest.NewServer(fake)
	defer srv.Close()
	c, err := forge.New(forge.Config{URL: srv.URL, Token: "t", ServiceUser: "svc"})
	if err != nil {
		t.Fatal(err)
	}
	app := forge.Repo{Owner: "ann", Name: "app"}
	protect := func(want bool, wrote ...string) {
		t.Helper()
		fake.wrote = nil
		made, err := c.ProtectBranch(t.Context(), app, "release/1")
		if err != nil || made != want || !slices.Equal(fake.wrote, wrote) {
			t.Errorf("made %t, %v, wrote %q; want %t and %q", made, err, fake.wrote, want, wrote)
		}
	}
	const all = "/api/v1/repos/ann/app/branch_protections"
	protect(true, "POST "+all)
	protect(false)
	for field, value := range map[string]any{
		"enable_push_whitelist": false, "push_whitelist_usernames": []any{"svc", "ann"}, "push_whitelist_teams": []any{"Owners"},
		"push_whitelist_deploy_keys": true, "enable_merge_whitelist": false, "merge_whitelist_usernames": nil,
		"unprotected_file_patterns": "*", "apply_to_admins": false,
	} {
		fake.rule[field] = value
		protect(false, "PATCH "+all+"/release%2F1")
		protect(false)
	}
	if fake.rule["required_approvals"] != 2.0 {
		t.Errorf("what else the rule says is now %v", fake.rule["required_approvals"])
	}
	fake.effective = "**"
	if _, err := c.ProtectBranch(t.Context(), app, "release/1"); err == nil || !strings.Contains(err.Error(), `rule "**"`) {
		t.Errorf("another rule comes before: %v", err)
	}
	if _, err := c.ProtectBranch(t.Context(), app, "a{b"); err == nil {
		t.Error("a rule that is a pattern is made")
	}
	if err := c.UnprotectBranch(t.Context(), app, "release/1"); err != nil || fake.rule != nil {
		t.Errorf("the rule is %v, %v", fake.rule, err)
	}
}

func TestWordsInCommitsTurnNoIssue(t *testing.T) {
	var wrote []string
	timelines := map[string]string{
		"1": `[{"id": 1, "type": "close", "user": {"login": "svc"}}]`,                                                              // by a commit
		"2": `[{"id": 2, "type": "close", "user": {"login": "svc"}}, {"id": 3, "type": "reopen", "user": {"login": "ann"}}]`,       // a person after it
		"3": `[{"id": 4, "type": "close", "user": {"login": "ann"}}, {"id": 5, "type": "reopen", "user": {"login": "svc"}}]`,       // a commit after a person
		"4": `[{"id": 6, "type": "close", "user": {"login": "ann"}}, {"id": 7, "type": "commit_ref", "user": {"login": "svc"}}]`,   // named only
		"5": `[{"id": 8, "type": "close", "user": {"login": "svc"}}, {"id": 9, "type": "reopen", "user": {"login": "bot"}}]`,       // undone already
		"6": `[{"id": 10, "type": "merge_pull", "user": {"login": "ann"}}, {"id": 11, "type": "close", "user": {"login": "svc"}}]`, // a pull request
	}
	c := twoAccounts(t, func(w http.ResponseWriter, r *http.Request) {
		part := strings.Split(r.URL.Path, "/")
		switch {
		case r.Method != http.MethodGet:
			var body struct{ State string }
			if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
				t.Error(err)
			}
			wrote = append(wrote, part[len(part)-1]+" "+body.State+" by "+r.Header.Get("Authorization"))
			fmt.Fprint(w, "{}")
		case strings.HasSuffix(r.URL.Path, "/timeline") && r.URL.Query().Get("page") == "1":
			fmt.Fprint(w, timelines[part[len(part)-2]])
		case strings.HasSuffix(r.URL.Path, "/timeline"):
			fmt.Fprint(w, "[]")
		default:
			var all []string
			for n, state := range map[int]string{1: "closed", 2: "open", 3: "open", 4: "closed", 5: "open", 6: "closed"} {
				pull := "null"
				if n == 6 {
					pull = "{}"
				}
				all = append(all, fmt.Sprintf(`{"id": %d, "number": %d, "state": %q, "pull_request": %s, "repository": {"id": 1, "full_name": "ann/app"}}`, n, n, state, pull))
			}
			fmt.Fprintf(w, "[%s]", strings.Join(all, ","))
		}
	})
	undone, err := c.UndoKeywords(t.Context(), time.Now())
	slices.Sort(undone)
	if err != nil || !slices.Equal(undone, []string{"ann/app#1", "ann/app#3"}) {
		t.Errorf("undone: %q, %v", undone, err)
	}
	slices.Sort(wrote)
	if !slices.Equal(wrote, []string{"1 open by token b", "3 closed by token b"}) {
		t.Errorf("written: %q", wrote)
	}
}

// twoAccounts is a client that has the names of service and bot, and the bot's token.
func twoAccounts(t *testing.T, h http.HandlerFunc) *forge.Client {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	c, err := forge.New(forge.Config{URL: srv.URL, Token: "t", BotToken: "b", BotUser: "bot", ServiceUser: "svc"})
	if err != nil {
		t.Fatal(err)
	}
	return c
}
