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

// What the client asks must not grow with what the forge holds. The answers
// here are as the sibling 1.23.8 gives them; the real one is asked in
// cmd/internal/testkit.

// bigForge answers from lists in memory and counts.
type bigForge struct {
	calls  int
	lists  map[string][]any // by path, in the order in which they are listed
	things map[string]any   // by path
	most   int              // entries of a page, 0 for as many as are asked for
	link   map[string]bool  // paths whose lists have a Link header
	date   string
	before func(r *http.Request) // called before an answer
	posted []string
}

func (f *bigForge) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.calls++
	if f.before != nil {
		f.before(r)
	}
	w.Header()["Date"] = nil
	if f.date != "" {
		w.Header().Set("Date", f.date)
	}
	path := strings.TrimPrefix(r.URL.Path, "/api/v1")
	list, listed := f.lists[path]
	switch {
	case r.Method == http.MethodPost && listed: // a comment
		var in struct{ Body string }
		_ = json.NewDecoder(r.Body).Decode(&in)
		f.posted = append(f.posted, in.Body)
		f.comment(path, len(f.posted), in.Body)
		f.write(w, f.lists[path][len(list)])
	case listed:
		f.page(w, r, path, list)
	case f.things[path] != nil:
		f.write(w, f.things[path])
	default:
		http.Error(w, `{"message":"not here"}`, http.StatusNotFound)
	}
}

func (f *bigForge) write(w http.ResponseWriter, v any) { _ = json.NewEncoder(w).Encode(v) }

func (f *bigForge) comment(path string, id int, body string) {
	c := map[string]any{"id": id, "body": body, "user": map[string]any{"login": "bot"}}
	f.lists[path] = append(f.lists[path], c)
	f.things["/repos/a/b/issues/comments/"+strconv.Itoa(id)] = c
}

func (f *bigForge) page(w http.ResponseWriter, r *http.Request, path string, list []any) {
	q := r.URL.Query()
	limit, _ := strconv.Atoi(q.Get("limit"))
	page, _ := strconv.Atoi(q.Get("page"))
	if limit == 0 {
		f.write(w, list)
		return
	}
	if f.most > 0 {
		limit = min(limit, f.most)
	}
	if since := q.Get("since"); since != "" && strings.HasSuffix(path, "timeline") {
		at, _ := time.Parse(time.RFC3339, since)
		var later []any
		for _, e := range list {
			if m, ok := e.(map[string]any); ok && !m["created_at"].(time.Time).Before(at) {
				later = append(later, e)
			}
		}
		list = later
	}
	from, to := min((page-1)*limit, len(list)), min(page*limit, len(list))
	if f.link[path] {
		w.Header().Set("X-Total-Count", strconv.Itoa(len(list)))
		if to < len(list) {
			w.Header().Set("Link", fmt.Sprintf(`<http://x/?page=%d>; rel="next"`, page+1))
		} else if page > 1 {
			w.Header().Set("Link", `<http://x/?page=1>; rel="first"`)
		}
	}
	some := []any{}
	for _, e := range list[from:to] {
		if e != nil { // nil: hidden, or gone and in the index still
			some = append(some, e)
		}
	}
	f.write(w, some)
}

func (f *bigForge) client(t *testing.T) *forge.Client {
	t.Helper()
	srv := httptest.NewServer(f)
	t.Cleanup(srv.Close)
	c, err := forge.New(forge.Config{URL: srv.URL, BotUser: "bot"})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// cost is how many calls f makes.
func (f *bigForge) cost(do func()) int {
	before := f.calls
	do()
	return f.calls - before
}

var ab = forge.Repo{Owner: "a", Name: "b"}

const pullsPath = "/repos/a/b/pulls"

func (f *bigForge) pull(n int, branch, base, state string, repo int) {
	p := map[string]any{
		"number": n, "state": state, "title": "t", "user": map[string]any{"login": "bot"},
		"head": map[string]any{"label": branch, "repo": map[string]any{"id": repo}},
		"base": map[string]any{"ref": base, "repo_id": repo, "repo": map[string]any{"id": repo}},
	}
	f.lists[pullsPath] = append([]any{p}, f.lists[pullsPath]...)
	f.things[pullsPath+"/"+strconv.Itoa(n)] = p
}

func TestFindingAPullRequestAmongMany(t *testing.T) {
	f := &bigForge{lists: map[string][]any{pullsPath: {}}, things: map[string]any{}, link: map[string]bool{pullsPath: true}}
	c := f.client(t)
	find := func(branch string) (n int64, state string) {
		p, ok, err := c.PullForBranch(t.Context(), ab, branch)
		if err != nil || ok != (p.Number != 0) {
			t.Fatalf("%+v, %v, %v", p, ok, err)
		}
		return p.Number, p.State
	}
	want := func(branch string, number int64, most int) {
		t.Helper()
		var got int64
		if calls := f.cost(func() { got, _ = find(branch) }); got != number || calls > most {
			t.Errorf("%s: found %d with %d calls, want %d with at most %d", branch, got, calls, number, most)
		}
	}
	want("agent/1-x", 0, 1)
	for n := 1; n <= 500; n++ {
		f.pull(n, fmt.Sprintf("agent/%d-x", n), "main", "closed", 7)
	}
	want("agent/1-x", 1, 52) // once: all of them
	want("agent/1-x", 1, 2)
	want("agent/900-x", 0, 1)
	// A newer one of the same branch, onto a base that somebody chose.
	f.pull(501, "agent/1-x", "release", "open", 7)
	want("agent/1-x", 501, 1)
	for n := 502; n <= 530; n++ {
		f.pull(n, fmt.Sprintf("agent/%d-x", n), "main", "open", 7)
	}
	want("agent/1-x", 501, 5)
	if _, state := find("agent/1-x"); state != "open" {
		t.Errorf("its state is %s", state)
	}
	f.things[pullsPath+"/501"].(map[string]any)["state"] = "closed"
	if _, state := find("agent/1-x"); state != "closed" {
		t.Errorf("its state is %s", state)
	}
	// Deleted: the older one is its newest again.
	delete(f.things, pullsPath+"/501")
	f.lists[pullsPath] = append(f.lists[pullsPath][:29], f.lists[pullsPath][30:]...)
	want("agent/1-x", 1, 20)
	// Another repository of the same name.
	f.lists[pullsPath] = nil
	want("agent/1-x", 0, 4)
	f.pull(3, "agent/1-x", "main", "open", 8)
	want("agent/1-x", 3, 2)
	f.pull(4, "agent/2-x", "main", "open", 9)
	want("agent/2-x", 4, 2)
}

func TestAComment(t *testing.T) {
	const path = "/repos/a/b/issues/1/comments"
	f := &bigForge{lists: map[string][]any{path: {}}, things: map[string]any{}}
	c := f.client(t)
	put := func(body string, changed bool, most int) {
		t.Helper()
		calls := f.cost(func() {
			if got, err := c.PutComment(t.Context(), ab, 1, "m", body); err != nil || got != changed {
				t.Errorf("%q: changed %t, %v", body, got, err)
			}
		})
		if calls > most {
			t.Errorf("%q: %d calls", body, calls)
		}
	}
	put("one", true, 2)
	put("one", false, 0)
	put("two", true, 1)
	// Somebody deletes it.
	f.lists[path] = nil
	delete(f.things, "/repos/a/b/issues/comments/1")
	put("three", true, 3)
	put("four", true, 1)
	if len(f.posted) != 2 {
		t.Errorf("wrote %q", f.posted)
	}
}

func TestALabelInALongTimeline(t *testing.T) {
	const path = "/repos/a/b/issues/1/timeline"
	f := &bigForge{lists: map[string][]any{path: {}}}
	c := f.client(t)
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	add := func(kind, body, user string) {
		at = at.Add(time.Second)
		id := len(f.lists[path]) + 1
		f.lists[path] = append(f.lists[path], map[string]any{
			"id": id, "type": kind, "body": body, "created_at": at, "user": map[string]any{"login": user}, "label": map[string]any{"name": "go"},
		})
	}
	want := func(user string, most int) {
		t.Helper()
		var ev forge.LabelEvent
		var on bool
		var err error
		if calls := f.cost(func() { ev, on, err = c.LabelEvent(t.Context(), ab, 1, "go") }); on != (user != "") || err != nil || on && ev.User != user || calls > most {
			t.Errorf("by %q with %d calls, %v; want %q with at most %d", ev.User, calls, err, user, most)
		}
	}
	want("", 1)
	add("label", "1", "ann")
	for range 5000 {
		add("comment", "hello", "eve")
	}
	f.lists[path][60] = nil // not for our eyes: its page is a short one
	want("ann", 102)
	want("ann", 2)
	add("label", "", "eve")
	want("", 2)
	at = at.Add(-time.Second) // in the same second
	add("label", "1", "bob")
	want("bob", 2)
	want("bob", 2)
}

const searchPath = "/repos/issues/search"

func issueJSON(n int) any {
	return map[string]any{
		"id": n, "number": n, "state": "open", "repository": map[string]any{"full_name": "a/b"}, "labels": []any{map[string]any{"name": "go"}},
	}
}

func TestAListThatShrinksWhileItIsRead(t *testing.T) {
	f := &bigForge{lists: map[string][]any{searchPath: {}}, link: map[string]bool{searchPath: true}}
	for n := 500; n > 0; n-- {
		f.lists[searchPath] = append(f.lists[searchPath], issueJSON(n))
	}
	f.before = func(r *http.Request) {
		if r.URL.Query().Get("page") == "2" { // the newest loses its label
			f.lists[searchPath], f.before = f.lists[searchPath][1:], nil
		}
	}
	found, _, err := f.client(t).LabeledIssues(t.Context(), "go")
	seen := map[int64]int{}
	for _, i := range found {
		seen[i.Number]++
	}
	for n := int64(1); n < 500; n++ {
		if seen[n] != 1 {
			t.Errorf("issue %d was listed %d times, %v", n, seen[n], err)
		}
	}
}

func TestPagesOfOtherSizes(t *testing.T) {
	f := &bigForge{lists: map[string][]any{searchPath: {}}, link: map[string]bool{searchPath: true}, most: 20}
	for n := 200; n > 0; n-- {
		f.lists[searchPath] = append(f.lists[searchPath], issueJSON(n))
		if n > 100 && n <= 140 {
			f.lists[searchPath][200-n] = nil // two pages of what is gone
		}
	}
	if found, _, err := f.client(t).ChangedIssues(t.Context(), time.Now()); err != nil || len(found) != 160 {
		t.Errorf("%d issues, %v", len(found), err)
	}
	f.lists[searchPath] = make([]any, 30000)
	if _, _, err := f.client(t).ChangedIssues(t.Context(), time.Now()); !errors.Is(err, forge.ErrTooMany) {
		t.Errorf("more than can be listed: %v", err)
	}
}

func TestTheForgesClock(t *testing.T) {
	f := &bigForge{lists: map[string][]any{searchPath: {}}, date: "Fri, 02 Jan 2026 03:04:05 GMT"}
	c := f.client(t)
	if _, asOf, err := c.ChangedIssues(t.Context(), time.Now()); err != nil || !asOf.Equal(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)) {
		t.Errorf("as of %s, %v", asOf, err)
	}
	f.date = ""
	if _, asOf, err := c.ChangedIssues(t.Context(), time.Now()); err != nil || !asOf.IsZero() {
		t.Errorf("without a date: %s, %v", asOf, err)
	}
}
