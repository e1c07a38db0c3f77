package forge_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/forge"
)

// rules plays the part of a forge that keeps one rule, as JSON.
type rules struct {
	rule      map[string]any
	effective string
	hidden    bool     // the service is not listed
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
		lets := func(field string) bool { names, _ := f.rule[field].([]any); return slices.Contains(names, any("svc")) }
		fmt.Fprintf(w, `{"effective_branch_protection_name": %q, "user_can_push": %t, "user_can_merge": %t}`,
			f.effective, lets("push_whitelist_usernames"), lets("merge_whitelist_usernames"))
	case r.Method == http.MethodGet && f.rule == nil:
		w.WriteHeader(http.StatusNotFound)
	case r.Method == http.MethodGet && f.hidden:
		rule := maps.Clone(f.rule)
		rule["push_whitelist_usernames"], rule["merge_whitelist_usernames"] = nil, nil
		_ = json.NewEncoder(w).Encode(rule)
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
	fake.hidden = true // as on the sibling, who is a site admin and no collaborator
	protect(false)
	fake.rule["push_whitelist_usernames"] = nil
	protect(false, "PATCH "+all+"/release%2F1")
	protect(false)
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
	const (
		closedByUs = `[{"id": 1, "type": "close", "user": {"login": "svc"}}]`
		issue      = `{"id": %[1]d, "number": %[1]d, "state": %[2]q, "pull_request": %[3]s, "repository": {"id": 1, "full_name": "ann/app"}}`
		pull       = `{"number": %d, "state": %q, "merged": %t, "user": {"login": "bot"}, "head": {"label": %[4]q, "ref": %[4]q, "repo": {"id": 1}}, "base": {"ref": "main", "repo": {"id": 1}, "repo_id": 1}}`
	)
	issues := []struct {
		what, state, pull, timeline string
		undone                      bool
	}{
		{"closed by a commit", "closed", "null", closedByUs, true},
		{"opened by a person after that", "open", "null", `[{"id": 2, "type": "close", "user": {"login": "svc"}}, {"id": 3, "type": "reopen", "user": {"login": "ann"}}]`, false},
		{"opened by a commit", "open", "null", `[{"id": 4, "type": "close", "user": {"login": "ann"}}, {"id": 5, "type": "reopen", "user": {"login": "svc"}}]`, true},
		{"named by a commit", "closed", "null", `[{"id": 6, "type": "close", "user": {"login": "ann"}}, {"id": 7, "type": "commit_ref", "user": {"login": "svc"}}]`, false},
		{"undone before", "open", "null", `[{"id": 8, "type": "close", "user": {"login": "svc"}}, {"id": 9, "type": "reopen", "user": {"login": "bot"}}]`, false},
		{"a pull request", "closed", "{}", closedByUs, false},
		{"one whose agent's work is merged", "closed", "null", closedByUs, false},
		{"one whose agent's work is there, and not marked yet", "closed", "null", closedByUs, false},
		{"one whose agent is at work", "closed", "null", closedByUs, true},
	}
	var wrote, want, list []string
	for n, i := range issues {
		list = append(list, fmt.Sprintf(issue, n+1, i.state, i.pull))
		if i.undone {
			want = append(want, fmt.Sprintf("%d %s by b", n+1, map[string]string{"open": "closed", "closed": "open"}[i.state]))
		}
	}
	c := twoAccounts(t, func(w http.ResponseWriter, r *http.Request) {
		part := strings.Split(r.URL.Path, "/")
		last := part[len(part)-1]
		n, _ := strconv.Atoi(part[len(part)-2])
		switch {
		case r.Method != http.MethodGet:
			var body struct{ State string }
			if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
				t.Error(err)
			}
			wrote = append(wrote, last+" "+body.State+" by "+strings.TrimPrefix(r.Header.Get("Authorization"), "token "))
			fmt.Fprint(w, "{}")
		case last == "timeline" && r.URL.Query().Get("page") == "1":
			fmt.Fprint(w, issues[n-1].timeline)
		case last == "timeline":
			fmt.Fprint(w, "[]")
		case last == "pulls":
			fmt.Fprintf(w, "[%s, %s, %s]", fmt.Sprintf(pull, 23, "open", false, "agent/9-c"), fmt.Sprintf(pull, 22, "open", false, "agent/8-b"), fmt.Sprintf(pull, 21, "closed", true, "agent/7-a"))
		case last == "8-b":
			fmt.Fprint(w, `{"commits": []}`)
		case last == "9-c":
			fmt.Fprint(w, `{"commits": [{"sha": "c0ffee"}]}`)
		default:
			fmt.Fprintf(w, "[%s]", strings.Join(list, ","))
		}
	})
	undone, err := c.UndoKeywords(t.Context(), time.Now())
	if err != nil || !slices.Equal(undone, []string{"ann/app#1", "ann/app#3", "ann/app#9"}) {
		t.Errorf("undone: %q, %v", undone, err)
	}
	if !slices.Equal(wrote, want) {
		t.Errorf("written: %q, want %q", wrote, want)
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
