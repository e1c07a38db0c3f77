package main

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"codeberg.org/devaipod/devaipod/forge"
	"codeberg.org/devaipod/devaipod/podapi/panel"
	"codeberg.org/devaipod/devaipod/pods"
	"codeberg.org/devaipod/devaipod/pods/backend"
	"codeberg.org/devaipod/devaipod/pods/reconcile"
)

// panelForge is a fake of the forge: one repository, its issues 1 (open), 2 (closed) and 3 (a pull
// request), and accounts. The real one is in the end-to-end suite.
type panelForge struct {
	mu       sync.Mutex
	labels   []string          // of issue 1
	missing  bool              // the repository has no labels
	rights   map[string]string // by account: "", "read", "push"
	archived bool
	refuses  bool
	done     []string // what was changed, and in whose name
	asked    int      // questions about issues
}

func (f *panelForge) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	path, as := strings.TrimPrefix(r.URL.Path, "/api/v1"), r.Header.Get("Sudo")
	body, _ := io.ReadAll(r.Body)
	write := func(v any) { _ = json.NewEncoder(w).Encode(v) }
	named := func(names []string) (out []map[string]any) {
		for _, n := range names {
			out = append(out, map[string]any{"id": 1 + slices.Index(panelLabels, n), "name": n})
		}
		return out
	}
	if r.Method != http.MethodGet {
		if f.refuses {
			http.Error(w, "{}", http.StatusForbidden)
			return
		}
		f.done = append(f.done, fmt.Sprintf("%s: %s %s %s", as, r.Method, strings.TrimPrefix(path, "/repos/ann/app"), body))
	}
	switch {
	case r.Method == http.MethodPost && path == "/repos/ann/app/labels":
		f.missing = false
	case r.Method != http.MethodGet:
	case path == "/repos/ann/app/labels" && f.missing:
		write([]any{})
	case path == "/repos/ann/app/labels":
		write(named(panelLabels))
	case path == "/repos/ann/app/issues/1/labels":
		write(named(f.labels))
		return
	case path == "/repos/ann/app":
		may := f.rights[as]
		write(map[string]any{"id": 7, "archived": f.archived, "permissions": map[string]bool{"pull": may != "", "push": may == "push"}})
	case strings.HasPrefix(path, "/users/"):
		write(map[string]any{"id": 5, "login": strings.TrimPrefix(path, "/users/"), "active": true})
	case strings.HasPrefix(path, "/repos/ann/app/issues/"):
		f.asked++
		issue := map[string]any{"number": path[len(path)-1] - '0', "state": "open", "repository": map[string]any{"id": 7, "full_name": "ann/app"}, "labels": named(f.labels)}
		switch issue["number"] {
		case byte('2' - '0'):
			issue["state"] = "closed"
		case byte('3' - '0'):
			issue["pull_request"] = map[string]any{"merged": false}
		case byte('9' - '0'):
			http.Error(w, "{}", http.StatusNotFound)
			return
		}
		write(issue)
	default:
		http.NotFound(w, r)
	}
}

var panelLabels = []string{"devaipod", "devaipod:fast", "bug"}

// newPanelAgents is what the panel is about, with a loop that does nothing and no pods.
func newPanelAgents(t *testing.T) (*panelForge, *panelAgents, *[]string) {
	t.Helper()
	f := &panelForge{rights: map[string]string{"ada": "push", "bob": "read"}}
	srv := httptest.NewServer(f)
	t.Cleanup(srv.Close)
	client, err := forge.New(forge.Config{URL: srv.URL, Token: "service"})
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	loop, err := reconcile.New(reconcile.Config{
		Label: "devaipod", Resync: 1, Forge: struct{ reconcile.Forge }{}, Pods: struct{ reconcile.Pods }{}, Log: log,
		Harmless: strings.Clone, BranchName: func(int64, string) string { return "" },
	})
	if err != nil {
		t.Fatal(err)
	}
	manager, err := pods.New(pods.Config{Instance: "x", StateDir: t.TempDir(), Backend: struct{ backend.Backend }{}, Images: noImages{}, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	s := &service{log: log, forge: client, loop: loop, pods: &podPort{manager: manager}}
	s.cfg.Label, s.cfg.Agents = "devaipod", map[string]agentConfig{"fast": {}}
	p := s.panelAgents()
	var noted []string
	p.record = func(act, who, rule, target, result string) {
		noted = append(noted, strings.Join([]string{act, who, rule, target, result}, " "))
	}
	return f, p, &noted
}

var (
	ada     = panel.Person{ID: 5, Name: "ada"}
	onIssue = panel.Place{Owner: "ann", Repo: "app", Number: 1}
)

// Who may push starts an agent where there is none, by the label that this person puts on.
func TestAnAgentIsStartedInAPersonsName(t *testing.T) {
	f, p, _ := newPanelAgents(t)
	shown, ok, err := p.Look(t.Context(), onIssue, true)
	if err != nil || !ok || shown.State != "" || !slices.Equal(shown.Acts, []string{panel.Start}) || !slices.Equal(shown.Agents, []string{"fast"}) {
		t.Fatalf("%+v %v %v", shown, ok, err)
	}
	f.labels = []string{"bug", "devaipod:fast"} // as of somebody whose label was refused
	refused := reconcile.View{Key: reconcile.Key{Owner: "ann", Repo: "app", Issue: 1}, State: reconcile.Refused}
	if err := p.start(t.Context(), ada, onIssue, refused, true, "fast"); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(f.done, "|"); got != `ada: DELETE /issues/1/labels/2 |ada: POST /issues/1/labels {"labels":[2]}` {
		t.Errorf("done is %s", got)
	}
	shown, ok, err = p.Look(t.Context(), onIssue, true)
	if err != nil || !ok || shown.State != "labeled" || len(shown.Acts) != 0 {
		t.Errorf("it was labeled: %+v %v %v", shown, ok, err)
	}
	if err := p.start(t.Context(), ada, onIssue, refused, true, ""); err == nil {
		t.Error("it is started once more at once")
	}

	f, p, noted := newPanelAgents(t)
	f.missing = true // a repository that the service has not seen yet
	if err := p.Do(t.Context(), ada, onIssue, panel.Act{Kind: panel.Start}); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(f.done[0], ": POST /labels ") || f.done[len(f.done)-1] != `ada: POST /issues/1/labels {"labels":[1]}` {
		t.Errorf("the service makes the labels, and the person puts one on: %q", f.done)
	}
	f.refuses = true
	p.begun(keyOf(forge.Issue{Repo: forge.Repo{Owner: "ann", Name: "app"}, Number: 1}), false)
	if err := p.Do(t.Context(), ada, onIssue, panel.Act{Kind: panel.Start}); err == nil || !strings.Contains(err.Error(), "in your name") {
		t.Errorf("the forge refuses: %v", err)
	}
	if got := strings.Join(*noted, "\n"); !strings.Contains(got, "start ada may push to the repository ann/app#1 done\n") || !strings.Contains((*noted)[1], "in your name") {
		t.Errorf("noted is\n%s", got)
	}
}

// None is started on a closed issue, a pull request, nothing at all, where one is, or by a name
// that no agent has; and who may only read learns nothing, and costs the forge no question.
func TestWhereNoAgentIsStarted(t *testing.T) {
	f, p, noted := newPanelAgents(t)
	for n, name := range map[int64]string{2: "a closed issue", 3: "a pull request", 9: "no issue"} {
		at := panel.Place{Owner: "ann", Repo: "app", Number: n}
		if shown, ok, err := p.Look(t.Context(), at, true); ok || err != nil || len(shown.Acts) != 0 {
			t.Errorf("%s: %+v %v %v", name, shown, ok, err)
		}
		if err := p.Do(t.Context(), ada, at, panel.Act{Kind: panel.Start}); err == nil {
			t.Errorf("%s: started", name)
		}
	}
	if err := p.Do(t.Context(), ada, onIssue, panel.Act{Kind: panel.Start, Text: "none"}); err == nil {
		t.Error("an agent that is not there is started")
	}
	working := reconcile.View{Key: reconcile.Key{Owner: "ann", Repo: "app", Issue: 1}, State: reconcile.Working}
	if err := p.start(t.Context(), ada, onIssue, working, true, ""); err == nil {
		t.Error("where one works another is started")
	}
	f.labels = []string{"devaipod"}
	if err := p.Do(t.Context(), ada, onIssue, panel.Act{Kind: panel.Start}); err == nil {
		t.Error("where the label is on already one is started")
	}
	if err := p.Do(t.Context(), ada, onIssue, panel.Act{Kind: panel.Message, Text: "x"}); err == nil {
		t.Error("a message to nobody is sent")
	}
	if len(f.done) != 0 || len(*noted) != 6 || strings.Contains(strings.Join(*noted, ""), "done") {
		t.Errorf("done is %q, noted %q", f.done, *noted)
	}
	f.asked, f.labels = 0, nil
	if shown, ok, err := p.Look(t.Context(), onIssue, false); ok || err != nil || len(shown.Acts) != 0 || f.asked != 0 {
		t.Errorf("who may only read: %+v %v %v, and %d questions", shown, ok, err, f.asked)
	}
}

// Nothing is done in an archived repository.
func TestRightsInThePanel(t *testing.T) {
	f, p, _ := newPanelAgents(t)
	for _, tt := range []struct {
		who         string
		archived    bool
		read, write bool
	}{{"ada", false, true, true}, {"ada", true, true, false}, {"bob", false, true, false}, {"eve", false, false, false}} {
		f.archived = tt.archived
		read, write, err := p.Access(t.Context(), panel.Person{ID: 5, Name: tt.who}, onIssue)
		if err != nil || read != tt.read || write != tt.write {
			t.Errorf("%+v: %v %v %v", tt, read, write, err)
		}
	}
	if read, write, err := p.Access(t.Context(), panel.Person{ID: 6, Name: "ada"}, onIssue); read || write || err != nil {
		t.Errorf("another account of that name: %v %v %v", read, write, err)
	}
}

// What may be done depends on how the agent is, and what is said becomes a comment of the
// person's, where that person is.
func TestWordsInThePanelAreComments(t *testing.T) {
	f, p, _ := newPanelAgents(t)
	budget, question := reconcile.CauseBudget, reconcile.CauseQuestion
	for _, tt := range []struct {
		state   reconcile.State
		cause   reconcile.Cause
		resting bool
		acts    string
		message string // what "go left" becomes
	}{
		{reconcile.Working, "", false, "stop message", "go left"},
		{reconcile.Review, "", false, "stop message", "go left"},
		{reconcile.Review, "", true, "stop message", "go left"},
		{reconcile.Asking, question, false, "stop message answer", "go left"},
		{reconcile.Asking, question, true, "stop message", "go left"},
		{reconcile.Asking, budget, false, "stop message budget answer", "go left"},
		{reconcile.Asking, budget, true, "stop message budget", "go left"},
		{reconcile.Asking, "", true, "stop message budget", "go left"}, // the service has just started
		{reconcile.Failed, reconcile.CauseDied, true, "stop retry message", "/retry\n\ngo left"},
		{reconcile.Queued, "", false, "stop", ""},
		{reconcile.Stopped, "", true, "", ""},
		{reconcile.Refused, "", true, "", ""},
		{goneState, "", true, "", ""},
	} {
		v := reconcile.View{State: tt.state, Cause: tt.cause, Resting: tt.resting, Pod: "pod", Ask: "ask", Choices: []string{"a"}}
		name := fmt.Sprintf("%s %s %v", tt.state, tt.cause, tt.resting)
		acts := p.acts(v)
		if got := strings.Join(acts, " "); got != tt.acts {
			t.Errorf("%s: %s", name, got)
		}
		if !slices.Contains(acts, panel.Message) {
			continue
		}
		if got, err := comment(v, panel.Act{Kind: panel.Message, Text: "go left"}); got != tt.message || err != nil {
			t.Errorf("%s: the comment is %q, %v", name, got, err)
		}
	}
	v := reconcile.View{State: reconcile.Failed}
	at := panel.Place{Owner: "ann", Repo: "app", Number: 3}
	for act, want := range map[panel.Act]string{
		{Kind: panel.Retry, Text: "/allow evil.test"}:          "/retry",
		{Kind: panel.Budget, Text: "5M tokens"}:                "/budget 5M tokens",
		{Kind: panel.Budget, Text: "10"}:                       "/budget 10",
		{Kind: panel.Budget, Text: "much"}:                     "",
		{Kind: panel.Budget, Text: "10\n/allow evil.test"}:     "",
		{Kind: panel.Budget, Text: "10\n/budget 5000"}:         "",
		{Kind: panel.Budget, Text: strings.Repeat("1", 60000)}: "",
	} {
		f.done = nil
		err := p.say(t.Context(), ada, at, v, act)
		body, _ := json.Marshal(map[string]string{"body": want})
		if want != "" {
			want = fmt.Sprintf("ada: POST /issues/3/comments %s", body)
		}
		if got := strings.Join(f.done, "|"); got != want || (err != nil) != (want == "") {
			t.Errorf("%.50v: %.300s, %v", act, got, err)
		}
	}
	f.refuses = true
	if err := p.say(t.Context(), ada, at, v, panel.Act{Kind: panel.Retry}); err == nil {
		t.Error("the forge refuses, and nobody is told")
	}
}
