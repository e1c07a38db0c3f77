package forge_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/forge"
)

// Forgejo can't be run here, so the client is held to what Forgejo says of its
// own API: every call is recorded and looked up in the tables that
// testdata/forgejo/README.md tells of.

// undocumented are the calls that are not in the tables, with their source.
var undocumented = map[string]string{
	// Its state is documented as an object, for the type has no name in Go that it knows.
	"POST /repos/ann/full/pulls/3/reviews":                                   "a review's event is a string",
	"POST /repos/ann/full/statuses/0123456789012345678901234567890123456789": "a status's state is a string",
	"GET /api/forgejo/v1/version":                                            "Forgejo's other API: public/assets/forgejo/api.v1.yml of Forgejo v11.0.1",
}

// A recorded call, and from where in the package it was made.
type recorded struct {
	method, path string // below /api/v1
	query        []string
	body         map[string]any
	sudo         bool
	lines        []string // "issues.go:60", the callers in this package
}

func (r recorded) String() string { return r.method + " " + r.path }

// A recorder answers the client's calls as fake says, and keeps them.
type recorder struct {
	fake  func(method, path string) (status int, body string)
	mu    sync.Mutex
	calls []recorded
	told  []string // the writes, as the client tells of them
}

func (r *recorder) RoundTrip(req *http.Request) (*http.Response, error) {
	c := recorded{method: req.Method, path: strings.TrimPrefix(req.URL.Path, "/git/api/v1"), sudo: req.Header.Get("Sudo") != ""}
	c.path = strings.TrimPrefix(c.path, "/git")
	for key := range req.URL.Query() {
		c.query = append(c.query, key)
	}
	if req.Body != nil {
		b, err := io.ReadAll(req.Body)
		if err == nil {
			err = json.Unmarshal(b, &c.body)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: the body is no JSON object: %w", c, err)
		}
	}
	pcs := make([]uintptr, 64)
	for frames := runtime.CallersFrames(pcs[:runtime.Callers(2, pcs)]); ; {
		f, more := frames.Next()
		if strings.Contains(f.Function, "devaipod/forge.") {
			c.lines = append(c.lines, fmt.Sprintf("%s:%d", filepath.Base(f.File), f.Line))
		}
		if !more {
			break
		}
	}
	r.mu.Lock()
	r.calls = append(r.calls, c)
	r.mu.Unlock()
	status, body := r.fake(c.method, c.path)
	return &http.Response{StatusCode: status, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(body)), Request: req}, nil
}

// An operation that a forge documents.
type operation struct {
	method string
	path   []string
	query  []string
	body   map[string]string // field to JSON type
}

// documented is the table of one version.
type documented struct {
	operations []operation
	headers    []string
}

func readTable(t *testing.T, file string) documented {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var d documented
	for lines := bufio.NewScanner(f); lines.Scan(); {
		col := strings.Split(lines.Text(), "\t")
		if len(col) != 4 {
			t.Fatalf("%s: %q has %d columns", file, lines.Text(), len(col))
		}
		if col[0] == "HEADER" {
			d.headers = append(d.headers, col[1])
			continue
		}
		op := operation{method: col[0], path: strings.Split(col[1], "/"), query: strings.Split(col[2], ","), body: map[string]string{}}
		for _, field := range strings.Split(col[3], ",") {
			name, kind, _ := strings.Cut(field, ":")
			op.body[name] = kind
		}
		d.operations = append(d.operations, op)
	}
	if len(d.operations) < 400 {
		t.Fatalf("%s has only %d operations", file, len(d.operations))
	}
	return d
}

// matches tells how many parts of a path are named literally, -1 for another
// path. A branch and a comparison may have slashes: their routes end in *.
func (op operation) matches(method string, path []string) int {
	last := op.path[len(op.path)-1]
	if last == "{branch}" || last == "{basehead}" {
		path = slices.Clone(path[:min(len(path), len(op.path))])
	}
	if op.method != method || len(op.path) != len(path) {
		return -1
	}
	literal := 0
	for i, want := range op.path {
		switch {
		case want == path[i]:
			literal++
		case !strings.HasPrefix(want, "{") || path[i] == "":
			return -1
		}
	}
	return literal
}

// complaints says what of a call the documentation lacks.
func (d documented) complaints(c recorded) (out []string) {
	var op *operation
	best := -1
	for i := range d.operations {
		if n := d.operations[i].matches(c.method, strings.Split(c.path, "/")); n > best {
			op, best = &d.operations[i], n
		}
	}
	if op == nil {
		return []string{"is not documented"}
	}
	for _, key := range c.query {
		if !slices.Contains(op.query, key) {
			out = append(out, "has no query parameter "+key)
		}
	}
	for field, value := range c.body {
		want, ok := op.body[field]
		if !ok {
			out = append(out, "has no body field "+field)
		} else if got := kindOf(value); value != nil && got != want && (got != "number" || want != "integer") {
			out = append(out, fmt.Sprintf("wants %s as %s, not %s", field, want, got))
		}
	}
	if c.sudo && !slices.Contains(d.headers, "Sudo") {
		out = append(out, "has no header Sudo")
	}
	return out
}

func kindOf(v any) string {
	switch v.(type) {
	case string:
		return "string"
	case bool:
		return "boolean"
	case float64:
		return "number"
	case []any:
		return "array"
	}
	return "object"
}

var repo = forge.Repo{Owner: "ann", Name: "full"}

// exercises are the arguments of calls that together reach every line of the
// client that calls the forge. A method that is not here fails the test.
var exercises = map[string][][]any{
	"Access":           {{repo, "ann"}},
	"AddLabels":        {{repo, int64(1), "devaipod"}},
	"AddLabelsAs":      {{repo, int64(1), "ann", "devaipod"}},
	"AnswerByReview":   {{repo, int64(3), forge.LineComment{Path: "a", Line: 1}, "b"}},
	"AnyLabeled":       {{"devaipod"}},
	"Branch":           {{repo, "agent/1-x"}},
	"Branches":         {{repo, "agent/"}},
	"ChangedIssues":    {{time.Unix(1700000000, 0)}},
	"Called":           {{time.Unix(1700000000, 0)}},
	"CallStands":       {{repo, forge.Call{ID: 7, User: "ann"}}},
	"CallsOf":          {{repo, int64(1), "devaipod"}},
	"CanWrite":         {{repo, "ann"}},
	"CommentAs":        {{repo, int64(1), "b", "ann"}},
	"Comments":         {{repo, int64(1)}},
	"CommentsSince":    {{repo, time.Unix(1700000000, 0)}},
	"Compare":          {{repo, "main", "agent/1-x"}},
	"CreateIssue":      {{repo, forge.IssueSpec{Title: "t", Body: "b", Ref: "main", Labels: []string{"devaipod"}}}},
	"CreateRepo":       {{forge.Repo{Owner: "ann", Name: "none"}, true, "main"}, {forge.Repo{Owner: "acme", Name: "none"}, true, "main"}},
	"CreateToken":      {{"bot", "password", "name", []string{"read:user"}}},
	"CreateUser":       {{forge.User{Name: "bot", Email: "bot@example.org", Password: "password"}}},
	"DeleteRepo":       {{repo}},
	"DispatchWorkflow": {{repo, "test.yaml", "main", map[string]string{"a": "b"}}},
	"CloseIssue":       {{repo, int64(1)}},
	"EditComment":      {{repo, int64(1), "marker", "newer"}, {repo, int64(2), "marker", "newer"}},
	"EnsureBot":        {{repo}},
	"EnsureLabels":     {{repo, forge.DefaultLabels("devaipod")}},
	"EnsurePull":       {{repo, forge.PullSpec{Head: "agent/1-x", Base: "main", Title: "t", Body: "b"}}, {repo, forge.PullSpec{Head: "agent/2-y", Base: "main", Title: "t", Body: "b", Draft: true}}},
	"EnsureSystemHook": {{"http://127.0.0.1:8090/there", "secret"}, {"http://127.0.0.1:8090/new", "secret"}},
	"HasOAuthApp":      {{"client", "http://panel.localhost:8090/callback"}},
	"HasUser":          {{"ann"}},
	"Hands":            {{repo, "main", "agent/1-x"}},
	"Healthy":          {{}},
	"Issue":            {{repo, int64(1)}},
	"LabelEvent":       {{repo, int64(1), "devaipod"}},
	"LabeledIssues":    {{"devaipod"}},
	"MissingScopes":    {{"read:user", "write:repository", "write:issue", "write:admin"}},
	"MakeOAuthApp":     {{forge.Login{}, "devaipod", "http://panel.localhost:8090/callback"}},
	"Me":               {{}},
	"MarkMerged":       {{repo, int64(3), "c0ffee"}},
	"Merge":            {{repo, int64(3), "c0ffee"}},
	"MergeByPush":      {{repo}},
	"ProtectBranch":    {{repo, "main"}, {repo, "none"}},
	"Pull":             {{repo, int64(3)}},
	"PullFiles":        {{repo, int64(3)}},
	"PullForBranch":    {{repo, "agent/1-x"}, {repo, "agent/1-x"}},
	"PutComment":       {{repo, int64(1), "marker", "new"}, {repo, int64(2), "marker", "new"}},
	"RemoveLabel":      {{repo, int64(1), "devaipod"}},
	"RemoveLabelAs":    {{repo, int64(1), "devaipod", "ann"}},
	"RemoveOAuthApp":   {{forge.Login{User: "svc", Password: "password"}, "devaipod"}},
	"RemoveSystemHook": {{"http://127.0.0.1:8090/there"}},
	"Repositories":     {{}},
	"Repository":       {{repo}},
	"RepositoryByID":   {{int64(1)}},
	"RequestReview":    {{repo, int64(3), "ann"}},
	"Reviews":          {{repo, int64(3)}},
	"RootEntries":      {{repo, "0123456789012345678901234567890123456789"}},
	"RunnerToken":      {{repo}},
	"SSHKeys":          {{"ann"}},
	"SetDefaultBranch": {{repo, "main"}},
	"SetPassword":      {{"bot", "password"}},
	"SetState":         {{forge.Issue{Repo: repo, Number: 1, Labels: []string{"agent/working"}}, "review"}, {forge.Issue{Repo: repo, Number: 1, Labels: []string{"agent/working"}}, ""}},
	"SetStatus":        {{repo, "0123456789012345678901234567890123456789", forge.Status{Name: "a", State: "success"}, "well"}},
	"Statuses":         {{repo, "0123456789012345678901234567890123456789"}},
	"UndoKeywords":     {{time.Unix(1700000000, 0)}},
	"UnprotectBranch":  {{repo, "main"}},
	"Verdicts":         {{repo, int64(3)}},
	"Version":          {{}},
	"WhoAmI":           {{}},
}

// answers of the fake forge to reads; all else succeeds with an empty object.
var answers = map[string]string{
	"/version":                  `{"version": "11.0.3+gitea-1.22.0"}`,
	"/api/forgejo/v1/version":   `{"version": "11.0.3+gitea-1.22.0"}`,
	"/user":                     `{"login": "ann", "is_admin": true}`,
	"/user/applications/oauth2": `[{"id": 6, "name": "devaipod", "client_id": "client", "redirect_uris": ["http://panel.localhost:8090/callback"]}]`,
	"/users/ann":                `{"login": "ann", "active": true}`,
	"/users/ann/keys":           `[{"key": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA ann"}]`,
	"/admin/hooks":              `[{"id": 5, "config": {"url": "http://127.0.0.1:8090/there"}}]`,
	"/repositories/1":           `{"id": 1, "name": "full", "owner": {"login": "ann"}}`,
	"/repos/ann/full/branch_protections/main":                                 `{"rule_name": "main", "enable_push": false}`,
	"/repos/ann/full/branches/main":                                           `{"name": "main", "effective_branch_protection_name": "main", "user_can_push": true, "user_can_merge": true}`,
	"/repos/ann/full/commits/0123456789012345678901234567890123456789/status": `{"state": "pending", "statuses": [{"status": "pending", "context": "a", "target_url": "u"}]}`,
	"/repos/search":                                                      `{"data": []}`,
	"/repos/issues/search":                                               `[{"id": 5, "number": 5, "state": "closed", "repository": {"id": 1, "full_name": "ann/full"}}]`,
	"/repos/ann/full/issues/5/timeline":                                  `[{"id": 9, "type": "close", "user": {"login": "svc"}}]`,
	"/repos/ann/full":                                                    `{"name": "full", "owner": {"login": "ann"}, "permissions": {"push": true}}`,
	"/repos/ann/full/actions/runners/registration-token":                 `{"token": "t"}`,
	"/repos/ann/full/labels":                                             `[{"id": 1, "name": "devaipod", "exclusive": true}, {"id": 2, "name": "agent/working", "exclusive": true}, {"id": 3, "name": "agent/review", "exclusive": true}]`,
	"/repos/ann/full/branches":                                           `[]`,
	"/repos/ann/full/branches/agent/1-x":                                 `{"name": "agent/1-x", "commit": {"id": "c0ffee"}}`,
	"/repos/ann/full/compare/main...agent/1-x":                           `{"commits": []}`,
	"/repos/ann/full/issues/1":                                           `{"number": 1, "labels": [{"id": 1, "name": "devaipod"}, {"id": 2, "name": "agent/working"}]}`,
	"/repos/ann/full/issues/1/labels":                                    `[{"id": 1, "name": "devaipod"}, {"id": 2, "name": "agent/working"}]`,
	"/repos/ann/full/issues/1/timeline":                                  `[]`,
	"/repos/ann/full/issues/1/comments":                                  `[{"id": 7, "user": {"login": "bot"}, "body": "<!-- marker -->\nold"}, {"id": 8, "user": {"login": "bot"}, "body": "<!-- marker -->\ndouble"}]`,
	"/repos/ann/full/issues/comments/7":                                  `{"id": 7, "user": {"login": "ann"}, "body": "x"}`,
	"/repos/ann/full/issues/2/comments":                                  `[]`,
	"/repos/ann/full/issues/comments":                                    `[{"id": 7, "user": {"login": "ann"}, "body": "x", "pull_request_url": "https://forge.example.org/git/ann/full/pulls/3"}]`,
	"/repos/ann/full/git/trees/0123456789012345678901234567890123456789": `{"total_count": 1, "tree": [{"path": "README", "sha": "c0ffee"}]}`,
	"/repos/ann/full/pulls":                                              `[{"number": 3, "state": "open", "title": "old", "user": {"login": "bot"}, "head": {"label": "agent/1-x", "ref": "agent/1-x", "repo": {"id": 1}}, "base": {"ref": "main", "repo": {"id": 1}}}]`,
	"/repos/ann/full/pulls/3":                                            `{"number": 3, "state": "open", "title": "old", "user": {"login": "bot"}}`,
	"/repos/ann/full/pulls/3/files":                                      `[]`,
	"/repos/ann/full/pulls/3/reviews":                                    `[{"id": 5, "user": {"login": "ann"}, "state": "APPROVED", "commit_id": "c0ffee", "comments_count": 1}]`,
	"/repos/ann/full/pulls/3/reviews/5/comments":                         `[]`,
	"/repos/ann/full/collaborators/bot/permission":                       `{"permission": "read"}`,
}

// later are other answers, from the second time on that a method's client asks.
var later = map[string]string{
	"/repos/ann/full/issues/5/timeline": `[]`,
	"/repos/ann/full/pulls":             `[{"number": 4, "state": "open", "title": "newer", "user": {"login": "bot"}, "head": {"label": "agent/9-z", "ref": "agent/9-z", "repo": {"id": 1}}, "base": {"ref": "main", "repo": {"id": 1}}}]`,
}

// record runs all exercises, against what looks like Forgejo in a sub-path.
func record(t *testing.T) []recorded { return newRecord(t).calls }

func newRecord(t *testing.T) *recorder {
	asked := map[string]int{}
	rec := &recorder{fake: func(method, path string) (int, string) {
		asked[path]++
		body, ok := answers[path]
		if other := later[path]; other != "" && asked[path] > 1 {
			body = other
		}
		switch {
		case method == "POST" && path == "/user/applications/oauth2":
			return 201, `{"client_id": "client", "client_secret": "secret"}`
		case method == "POST" && path == "/users/bot/tokens":
			return 201, `{"sha1": "token"}`
		case strings.Contains(path, "none") || strings.Contains(path, "nobody-"):
			if method == "GET" || strings.Contains(path, "nobody-") {
				return 404, `{"message": "not found"}`
			}
			return 201, `{}`
		case method != "GET":
			return 200, `{}`
		case !ok:
			t.Errorf("the fake has no answer to GET %s", path)
			return 500, ""
		default:
			return 200, body
		}
	}}
	newClient := func() *forge.Client {
		c, err := forge.New(forge.Config{URL: "https://forge.example.org/git/", Token: "t", BotToken: "b", BotUser: "bot", ServiceUser: "svc", Transport: rec, Writes: func(_ context.Context, w forge.Write, failed error) {
			if failed != nil {
				t.Errorf("%s %s is told to have failed: %v", w.Method, w.Path, failed)
			}
			rec.told = append(rec.told, w.Method+" "+w.Path)
		}})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	methods := reflect.TypeFor[*forge.Client]()
	for i := range methods.NumMethod() {
		name := methods.Method(i).Name
		if len(exercises[name]) == 0 {
			t.Errorf("%s is not exercised: what it calls is not held to Forgejo's API", name)
		}
		clear(asked)
		c := newClient()
		for _, args := range exercises[name] {
			in := []reflect.Value{reflect.ValueOf(t.Context())}
			for _, a := range args {
				in = append(in, reflect.ValueOf(a))
			}
			results := reflect.ValueOf(c).MethodByName(name).Call(in)
			if err, _ := results[len(results)-1].Interface().(error); err != nil {
				t.Errorf("%s%v: %v", name, args, err)
			}
		}
	}
	prov := forge.Provisioner{Admin: newClient(), CLI: func(context.Context, io.Reader, ...string) (string, error) {
		return "generated random password is 'x'", nil
	}}
	user := forge.User{Name: "bot", Email: "bot@example.org", Password: "password", Admin: true}
	if _, _, err := prov.EnsureUser(t.Context(), user); err != nil {
		t.Error(err)
	}
	if err := prov.RepairUser(t.Context(), user); err != nil {
		t.Error(err)
	}
	return rec
}

// What changes something is told of, each once and in its order; what only asks what a token
// may do is not.
func TestEveryWriteIsTold(t *testing.T) {
	rec := newRecord(t)
	var wrote []string
	for _, c := range rec.calls {
		if c.method != http.MethodGet && !strings.Contains(c.path, "nobody-") {
			wrote = append(wrote, c.String())
		}
	}
	if len(wrote) < 30 || !slices.Equal(rec.told, wrote) {
		t.Errorf("told of\n%s\nwrote\n%s", strings.Join(rec.told, "\n"), strings.Join(wrote, "\n"))
	}
}

func TestEveryCallIsInForgejosOwnDocumentation(t *testing.T) {
	calls := record(t)
	tables, err := filepath.Glob("testdata/forgejo/*.tsv")
	if err != nil || len(tables) < 2 {
		t.Fatalf("tables %v, %v", tables, err)
	}
	known := map[string]bool{}
	for _, file := range tables {
		api := readTable(t, file)
		for _, c := range calls {
			if undocumented[c.String()] != "" {
				known[c.String()] = true
				continue
			}
			for _, complaint := range api.complaints(c) {
				t.Errorf("%s %s (called at %v), by %s", c, complaint, c.lines, filepath.Base(file))
			}
		}
	}
	for c := range undocumented {
		if !known[c] {
			t.Errorf("%s is listed as undocumented and never called", c)
		}
	}
}

// TestEveryCallSiteIsRecorded reads the package's source: no line that calls the
// forge may have been left out above.
func TestEveryCallSiteIsRecorded(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range record(t) {
		for _, line := range c.lines {
			seen[line] = true
		}
	}
	sites := callSites(t)
	if len(sites) < 30 {
		t.Fatalf("only %d call sites found", len(sites))
	}
	for _, site := range sites {
		if !slices.ContainsFunc(site, func(line string) bool { return seen[line] }) {
			t.Errorf("the call at %s is not exercised", site[0])
		}
	}
}

// callSites are the lines of each expression that hands a call to one of the
// functions that make it: those with a parameter of type call.
func callSites(t *testing.T) (sites [][]string) {
	fset := token.NewFileSet()
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	makes := map[string]bool{}
	var functions []*ast.FuncDecl
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(fset, name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok {
				continue
			}
			functions = append(functions, fn)
			makes[fn.Name.Name] = makes[fn.Name.Name] || takesCall(fn)
		}
	}
	for _, fn := range functions {
		if takesCall(fn) || fn.Body == nil {
			continue // it hands on what it was given
		}
		ast.Inspect(fn.Body, func(n ast.Node) bool {
			if e, ok := n.(*ast.CallExpr); ok && makes[calledName(e.Fun)] {
				var lines []string
				for p := fset.Position(e.Pos()); p.Line <= fset.Position(e.End()).Line; p.Line++ {
					lines = append(lines, fmt.Sprintf("%s:%d", p.Filename, p.Line))
				}
				sites = append(sites, lines)
			}
			return true
		})
	}
	return sites
}

func takesCall(fn *ast.FuncDecl) bool {
	return slices.ContainsFunc(fn.Type.Params.List, func(p *ast.Field) bool {
		id, ok := p.Type.(*ast.Ident)
		return ok && id.Name == "call"
	})
}

func calledName(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.SelectorExpr:
		return e.Sel.Name
	case *ast.IndexExpr: // a type argument
		return calledName(e.X)
	}
	return ""
}

// TestOnlyThisPackageSpeaksToTheForgesAPI keeps calls from being made where they
// are not recorded. ci/door makes none: it looks at those of others.
func TestOnlyThisPackageSpeaksToTheForgesAPI(t *testing.T) {
	var seen []string
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == "internal" || d.Name() == "testdata" || (strings.HasPrefix(d.Name(), ".") && d.Name() != "..")):
			return fs.SkipDir // the test kit's, and what is no source
		case !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go"):
			return nil
		}
		text, err := os.ReadFile(path)
		if bytes.Contains(text, []byte(`/api/v1"`)) || bytes.Contains(text, []byte(`/api/v1/`)) {
			seen = append(seen, filepath.Dir(path))
		}
		return err
	})
	if seen = slices.Compact(seen); err != nil || !slices.Equal(seen, []string{"../ci/door", "../forge"}) {
		t.Errorf("the forge's API is named in %q, %v", seen, err)
	}
}

func TestACallThatForgejoLacksIsFound(t *testing.T) {
	api := readTable(t, "testdata/forgejo/11.0.3.tsv")
	for name, tt := range map[string]struct {
		call recorded
		want string
	}{
		"all is documented":       {recorded{method: "POST", path: "/repos/a/b/issues/1/labels", body: map[string]any{"labels": []any{1.0}}}, ""},
		"a branch with a slash":   {recorded{method: "GET", path: "/repos/a/b/branches/agent/1-x"}, ""},
		"another path":            {recorded{method: "GET", path: "/repos/a/b/issues/1/likes"}, "is not documented"},
		"another method":          {recorded{method: "PUT", path: "/repos/a/b/issues/1"}, "is not documented"},
		"another parameter":       {recorded{method: "GET", path: "/repos/issues/search", query: []string{"sort_by"}}, "has no query parameter sort_by"},
		"another field":           {recorded{method: "PATCH", path: "/admin/hooks/5", body: map[string]any{"type": "gitea"}}, "has no body field type"},
		"a field of another type": {recorded{method: "POST", path: "/repos/a/b/labels", body: map[string]any{"exclusive": "yes"}}, "wants exclusive as boolean, not string"},
	} {
		if got := strings.Join(api.complaints(tt.call), "; "); got != tt.want {
			t.Errorf("%s: %q, want %q", name, got, tt.want)
		}
	}
	api.headers = nil
	if got := api.complaints(recorded{method: "GET", path: "/user", sudo: true}); !slices.Equal(got, []string{"has no header Sudo"}) {
		t.Errorf("sudo: %q", got)
	}
}
