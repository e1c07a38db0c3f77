package main

import (
	"bytes"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// A fakeForge checks tokens as a forge does, and keeps what was changed.
type fakeForge struct {
	tokens map[string]fakeToken
	users  map[string]bool
	hooks  []string

	mu      sync.Mutex
	changes []string
}

type fakeToken struct {
	login  string
	admin  bool
	scopes string
}

const allScopes = "read:user write:repository write:issue write:admin"

func (f *fakeForge) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	path, ok := strings.CutPrefix(r.URL.Path, "/git/api/v1")
	if !ok || strings.HasPrefix(path, "/forgejo") {
		w.WriteHeader(404)
		return
	}
	if path == "/version" {
		fmt.Fprint(w, `{"version": "1.2.3"}`)
		return
	}
	if user, password, ok := r.BasicAuth(); ok {
		f.changes = append(f.changes, "token of "+user)
		if len(password) < 20 {
			w.WriteHeader(400)
		}
		f.tokens["minted"] = fakeToken{login: user, scopes: "read:user write:repository write:issue"}
		fmt.Fprint(w, `{"sha1": "minted"}`)
		return
	}
	t, known := f.tokens[strings.TrimPrefix(r.Header.Get("Authorization"), "token ")]
	if !known {
		w.WriteHeader(401)
		return
	}
	part := strings.Split(path, "/")
	scope := map[string]string{"user": "user", "users": "user", "repos": "repository", "admin": "admin"}[part[1]]
	if len(part) > 4 && part[4] == "issues" {
		scope = "issue"
	}
	if !strings.Contains(t.scopes, "write:"+scope) && (r.Method != "GET" || !strings.Contains(t.scopes, "read:"+scope)) {
		w.WriteHeader(403)
		fmt.Fprintf(w, `{"message": "token does not have at least one of required scope(s): [%s]"}`, scope)
		return
	}
	f.answer(w, r, path, t)
}

func (f *fakeForge) answer(w http.ResponseWriter, r *http.Request, path string, t fakeToken) {
	name := path[strings.LastIndex(path, "/")+1:]
	switch {
	case strings.Contains(path, "nobody-"):
		w.WriteHeader(404)
	case r.Method != "GET":
		f.changes = append(f.changes, r.Method+" "+path)
		var in struct {
			Username string
			Config   map[string]string
		}
		if r.Method != "DELETE" && json.NewDecoder(r.Body).Decode(&in) != nil {
			w.WriteHeader(400)
		}
		switch {
		case path == "/admin/users":
			f.users[in.Username] = true
		case path == "/admin/hooks":
			f.hooks = append(f.hooks, in.Config["url"])
		case r.Method == "DELETE":
			f.hooks = nil
		}
	case path == "/user":
		fmt.Fprintf(w, `{"login": %q, "is_admin": %v}`, t.login, t.admin)
	case path == "/admin/hooks":
		var list []string
		for i, url := range f.hooks {
			list = append(list, fmt.Sprintf(`{"id": %d, "config": {"url": %q}}`, i+1, url))
		}
		fmt.Fprintf(w, "[%s]", strings.Join(list, ","))
	case strings.HasPrefix(path, "/users/") && !f.users[name]:
		w.WriteHeader(404)
	default:
		fmt.Fprint(w, "{}")
	}
}

// changed are the changes since it was asked last.
func (f *fakeForge) changed() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := f.changes
	f.changes = nil
	return out
}

// joining is an app whose forge.url is f, over TLS and in a sub-path.
func joining(t *testing.T, f *fakeForge) (a *app, said *bytes.Buffer) {
	t.Helper()
	srv := httptest.NewTLSServer(f)
	t.Cleanup(srv.Close)
	dir := t.TempDir()
	ca := filepath.Join(dir, "ca.pem")
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	if err := os.WriteFile(ca, block, 0o600); err != nil {
		t.Fatal(err)
	}
	said = &bytes.Buffer{}
	a = &app{out: said, errOut: said, log: slog.New(slog.DiscardHandler)}
	a.cfg.Instance, a.cfg.StateDir = "test", filepath.Join(dir, "state")
	a.cfg.Forge.URL, a.cfg.Forge.CA = srv.URL+"/git/", ca
	if err := a.makeStateDir(); err != nil {
		t.Fatal(err)
	}
	return a, said
}

func (a *app) joinWith(t *testing.T, role, token string) error {
	t.Helper()
	a.in = strings.NewReader(token + "\n")
	return a.forgeJoin(t.Context(), role)
}

func TestMissingRightsAreListedAtOnceWithTheWayToGrantThem(t *testing.T) {
	for name, tt := range map[string]struct {
		role    string
		token   fakeToken
		bot     bool // its token is there already
		webhook string
		want    []string // none when the token is taken
		not     string
	}{
		"a site admin's with all scopes": {role: "service", token: fakeToken{"svc", true, allScopes}},
		"no admin and two scopes short": {role: "service", token: fakeToken{"ann", false, "read:user write:repository"},
			want: []string{"missing rights (3)", "write:issue, for finding labeled issues", "write:admin, for making the bot's account and token\n", "forge join bot",
				"ann as a site administrator", "/git/admin/users", "/git/user/settings/applications with the scopes read:user, write:repository, write:issue, write:admin"}},
		"no scope at all": {role: "service", token: fakeToken{"svc", true, ""}, want: []string{"(4)", "read:user, for whose token it is"}, not: "site administrator"},
		"with a bot's token and no webhook the service needs no write:admin": {role: "service", bot: true,
			token: fakeToken{"svc", true, "read:user write:repository write:issue"}},
		"a webhook needs it": {role: "service", bot: true, webhook: "http://127.0.0.1:8090/hooks/forge", token: fakeToken{"svc", true, "read:user write:repository write:issue"},
			want: []string{"(1)", "write:admin, for making the webhook\n", "leave forge.webhook empty"}, not: "join bot"},
		"a bot that may all":        {role: "bot", token: fakeToken{"bob", true, allScopes}, want: []string{"(1)", "bob as no site administrator"}},
		"a bot that can't comment":  {role: "bot", token: fakeToken{"bob", false, "read:user write:repository"}, want: []string{"(1)", "write:issue, for commenting"}},
		"a bot":                     {role: "bot", token: fakeToken{"bob", false, "read:user write:repository write:issue"}},
		"the bot as the service":    {role: "service", bot: true, token: fakeToken{"robot", true, allScopes}, want: []string{"(1)", "an account of its own"}},
		"the bot as the person":     {role: "person", bot: true, token: fakeToken{"robot", false, allScopes}, want: []string{"(1)", "an account of your own"}},
		"a person":                  {role: "person", token: fakeToken{"ann", false, "write:user write:repository write:issue read:user"}},
		"a person who may not open": {role: "person", token: fakeToken{"ann", false, "read:user write:repository"}, want: []string{"(1)", "write:issue, for opening and labeling issues (run)"}},
	} {
		t.Run(name, func(t *testing.T) {
			f := &fakeForge{tokens: map[string]fakeToken{"given": tt.token}, users: map[string]bool{}}
			a, said := joining(t, f)
			a.cfg.Forge.Webhook = tt.webhook
			if tt.bot {
				if err := a.writeCredentials(credentials{Forge: a.cfg.forgeURL(), Bot: "robot", BotToken: "other"}); err != nil {
					t.Fatal(err)
				}
			}
			err := a.joinWith(t, tt.role, "given")
			if changes := f.changed(); len(changes) != 0 {
				t.Errorf("changed %v", changes)
			}
			c, _ := a.loadCredentials()
			if kept := *c.token(tt.role) == "given" && *c.account(tt.role) == tt.token.login; kept != (tt.want == nil) {
				t.Errorf("kept: %v", kept)
			}
			if tt.want == nil {
				if err != nil || !strings.Contains(said.String(), "as "+tt.token.login) {
					t.Errorf("%v\n%s", err, said)
				}
				return
			}
			if exitCode(err) != codeNeedsHuman || strings.Contains(err.Error(), "given") {
				t.Fatalf("code %d: %v", exitCode(err), err)
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("lacks %q:\n%v", want, err)
				}
			}
			if tt.not != "" && strings.Contains(err.Error(), tt.not) {
				t.Errorf("has %q:\n%v", tt.not, err)
			}
		})
	}
}

func TestAWrongTokenIsNotKept(t *testing.T) {
	a, _ := joining(t, &fakeForge{})
	err := a.joinWith(t, "service", "mistyped")
	if exitCode(err) != codeNeedsHuman || !strings.Contains(err.Error(), "a token that the forge takes") || strings.Contains(err.Error(), "mistyped") {
		t.Errorf("%v", err)
	}
	if c, err := a.loadCredentials(); !errors.Is(err, errNoForge) {
		t.Errorf("kept %+v, %v", c, err)
	}
	if err := a.joinWith(t, "service", ""); exitCode(err) != codeUsage {
		t.Errorf("no token: %v", err)
	}
}

func TestJoiningMakesTheBotOnceAndFollowsTheWebhook(t *testing.T) {
	f := &fakeForge{tokens: map[string]fakeToken{"given": {"svc", true, allScopes}}, users: map[string]bool{}}
	a, said := joining(t, f)
	if err := a.joinForge(t.Context()); exitCode(err) != codeNeedsHuman || !strings.Contains(err.Error(), "service: a token") || len(f.changed()) != 0 {
		t.Errorf("without a token: %v", err)
	}
	if err := a.joinWith(t, "service", "given"); err != nil {
		t.Fatal(err)
	}
	up := func(want ...string) {
		t.Helper()
		if err := a.joinForge(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := f.changed(); !slices.Equal(got, want) {
			t.Errorf("changed %q, want %q", got, want)
		}
	}
	up("POST /admin/users", "token of test-bot")
	if !strings.Contains(said.String(), "webhook  none: labels are looked for every") {
		t.Error(said)
	}
	up()
	a.cfg.Forge.Webhook = "https://svc.example.org/hooks/forge"
	up("POST /admin/hooks")
	up("PATCH /admin/hooks/1")
	a.cfg.Forge.Webhook = ""
	up("DELETE /admin/hooks/1")
	// A token that was revoked is made anew, on the account that is ours.
	delete(f.tokens, "minted")
	up("PATCH /admin/users/test-bot", "token of test-bot")
	c, err := a.readCredentials()
	if err != nil || c.Bot != "test-bot" || c.BotToken != "minted" || c.Service != "svc" {
		t.Errorf("%+v, %v", c, err)
	}
	if b, err := os.ReadFile(a.cfg.file(credentialsFile)); err != nil || bytes.Contains(b, []byte("password")) {
		t.Errorf("%s, %v", b, err)
	}
}

func TestAPersonsTokenThatLacksStopsNothing(t *testing.T) {
	f := &fakeForge{tokens: map[string]fakeToken{"given": {"svc", true, allScopes}, "mine": {"ann", false, allScopes}}, users: map[string]bool{}}
	a, said := joining(t, f)
	for role, token := range map[string]string{"service": "given", "person": "mine"} {
		if err := a.joinWith(t, role, token); err != nil {
			t.Fatal(err)
		}
	}
	delete(f.tokens, "mine")
	if err := a.joinForge(t.Context()); err != nil || !strings.Contains(said.String(), "lacking  person: a token that the forge takes") {
		t.Errorf("%v\n%s", err, said)
	}
	if err := a.joinForge(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestSomebodysAccountIsNotTakenForOurs(t *testing.T) {
	f := &fakeForge{tokens: map[string]fakeToken{"given": {"svc", true, allScopes}}, users: map[string]bool{"test-bot": true}}
	a, _ := joining(t, f)
	if err := a.joinWith(t, "service", "given"); exitCode(err) != codeNeedsHuman || !strings.Contains(err.Error(), "test-bot is there and not made by this instance") {
		t.Errorf("%v", err)
	}
	if got := f.changed(); len(got) != 0 {
		t.Errorf("changed %v", got)
	}
	// A run that was killed between noting the account and its token goes on.
	if err := a.writeCredentials(credentials{Forge: a.cfg.forgeURL(), Service: "svc", ServiceToken: "given", Bot: "test-bot", BotMade: true}); err != nil {
		t.Fatal(err)
	}
	if err := a.joinForge(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := f.changed(); !slices.Equal(got, []string{"PATCH /admin/users/test-bot", "token of test-bot"}) {
		t.Errorf("changed %v", got)
	}
}

func TestTokensAreNotSentToAnotherForge(t *testing.T) {
	f := &fakeForge{tokens: map[string]fakeToken{"given": {"svc", true, allScopes}}, users: map[string]bool{}}
	a, _ := joining(t, f)
	for name, c := range map[string]credentials{
		"from our own":     {Service: "svc", ServiceToken: "given"},
		"from another one": {Forge: "https://elsewhere.example.org", Service: "svc", ServiceToken: "given", BotToken: "b"},
	} {
		if err := a.writeCredentials(c); err != nil {
			t.Fatal(err)
		}
		if err := a.joinForge(t.Context()); exitCode(err) != codeRefused || !strings.Contains(err.Error(), "not sent there") {
			t.Errorf("%s: %v", name, err)
		}
		err := a.joinWith(t, "service", "given")
		if c.Forge == "" && exitCode(err) != codeRefused {
			t.Errorf("%s, with a token: %v", name, err)
		}
		if got, e := a.loadCredentials(); c.Forge != "" && (err != nil || e != nil || got.Forge != a.cfg.forgeURL() || got.BotToken != "") {
			t.Errorf("%s, with a token: %v, %+v", name, err, got)
		}
	}
	a.cfg.Forge.URL, a.cfg.Forge.Listen = "", "127.0.0.1:3000"
	if _, err := a.readCredentials(); exitCode(err) != codeRefused {
		t.Errorf("to our own: %v", err)
	}
}

func TestWhatIsWrongWithTheURLIsSaid(t *testing.T) {
	pages := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasPrefix(r.URL.Path, "/moved"):
			http.Redirect(w, r, "https://new.example.org"+r.URL.Path, http.StatusMovedPermanently)
		case strings.HasPrefix(r.URL.Path, "/page"):
			fmt.Fprint(w, "<html>")
		case strings.HasPrefix(r.URL.Path, "/json"):
			fmt.Fprint(w, "{}")
		default:
			w.WriteHeader(404)
		}
	}))
	defer pages.Close()
	gone := httptest.NewServer(nil)
	gone.Close()
	for name, tt := range map[string]struct {
		change func(*config)
		want   string
	}{
		"an unknown authority":    {func(c *config) { c.Forge.CA = "" }, "forge.ca"},
		"a name it is not for":    {func(c *config) { c.Forge.URL = strings.Replace(c.Forge.URL, "127.0.0.1", "localhost", 1) }, "a name that the certificate is for"},
		"http where TLS is meant": {func(c *config) { c.Forge.URL = strings.Replace(pages.URL, "http", "https", 1) }, "forge.url"},
		"the sub-path left out":   {func(c *config) { c.Forge.URL = strings.TrimSuffix(c.Forge.URL, "/git/") }, "sub-path"},
		"a page":                  {func(c *config) { c.Forge.URL = pages.URL + "/page" }, "is no forge's API"},
		"another JSON":            {func(c *config) { c.Forge.URL = pages.URL + "/json" }, "sub-path"},
		"a redirect":              {func(c *config) { c.Forge.URL = pages.URL + "/moved" }, "https://new.example.org/moved"},
		"nobody there":            {func(c *config) { c.Forge.URL = gone.URL }, "does not answer"},
		"no file":                 {func(c *config) { c.Forge.CA = "/nowhere/ca.pem" }, "forge.ca"},
		"no certificate in it":    {func(c *config) { c.Forge.CA = "/proc/self/status" }, "holds no certificate"},
	} {
		t.Run(name, func(t *testing.T) {
			a, _ := joining(t, &fakeForge{})
			tt.change(&a.cfg)
			if _, err := a.reach(t.Context()); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			} else if strings.Contains(err.Error(), "is it up?") != (name == "nobody there") {
				t.Errorf("%v", err)
			}
		})
	}
}

func TestWithoutATokenItIsSaidWhichOneIsNeeded(t *testing.T) {
	a, _ := joining(t, &fakeForge{})
	if err := a.writeCredentials(credentials{Forge: a.cfg.forgeURL(), Service: "svc", ServiceToken: "given"}); err != nil {
		t.Fatal(err)
	}
	if err := a.serve(t.Context()); exitCode(err) != codeNeedsHuman || !strings.Contains(err.Error(), "forge up") {
		t.Errorf("serve without the bot's: %v", err)
	}
	if _, err := a.personForge(credentials{}); exitCode(err) != codeNeedsHuman || !strings.Contains(err.Error(), "devaipod forge join person < token") {
		t.Errorf("the person's: %v", err)
	}
}

func TestTheEnvironmentsProxyIsForAForgeElsewhere(t *testing.T) {
	t.Setenv("HTTPS_PROXY", "http://proxy.example.org:3128")
	for forgeURL, want := range map[string]string{
		"https://git.example.org": "http://proxy.example.org:3128", "https://localhost:3000": "", "": "",
	} {
		var c config
		c.Forge.URL, c.Forge.Listen = forgeURL, "127.0.0.1:3000"
		rt, err := c.forgeTransport()
		if err != nil {
			t.Fatal(err)
		}
		r := httptest.NewRequest("GET", c.forgeURL()+"/api/v1/version", nil)
		got := ""
		if proxy := rt.(explained).RoundTripper.(*http.Transport).Proxy; proxy != nil {
			if u, err := proxy(r); err != nil {
				t.Error(err)
			} else if u != nil {
				got = u.String()
			}
		}
		if got != want {
			t.Errorf("%s goes by %q, want %q", c.forgeURL(), got, want)
		}
	}
}

func TestAForgesURLsAreKnown(t *testing.T) {
	a := &app{}
	a.cfg.Forge.URL = "https://git.example.org:8443/sub/"
	for remote, want := range map[string]string{
		"https://git.example.org:8443/sub/ann/hello.git": "ann/hello",
		"https://git.example.org:8443/sub/ann/hello":     "ann/hello",
		"https://me@git.example.org:8443/sub/ann/hello":  "ann/hello",
		"https://git.example.org:8443/ann/hello.git":     "",
		"https://git.example.org:8443/subs/ann/hello":    "",
		"https://git.example.org/sub/ann/hello.git":      "",
		"https://evil.example.org:8443/sub/ann/hello":    "",
		"git@git.example.org:ann/hello.git":              "ann/hello",
		"git.example.org:ann/hello":                      "ann/hello",
		"ssh://git@git.example.org:2222/ann/hello.git":   "ann/hello",
		"git@evil.example.org:ann/hello.git":             "",
		"/srv/git/ann/hello":                             "",
	} {
		if got, ok := a.repoOf(remote); ok != (want != "") || (ok && got != want) {
			t.Errorf("%s: %q, %v", remote, got, ok)
		}
	}
	for s, want := range map[string]string{
		"https://git.example.org:8443/sub/ann/hello/issues/3":                "ann/hello#3",
		"https://git.example.org:8443/sub/ann/hello/pulls/4#issuecomment-12": "ann/hello#4",
		"ann/hello#5": "ann/hello#5",
		"https://git.example.org:8443/ann/hello/issues/3": "",
	} {
		if k, err := a.issueKey(t.Context(), s); (err == nil) != (want != "") || (err == nil && k.String() != want) {
			t.Errorf("%s: %s, %v", s, k, err)
		}
	}
}

func TestGitTrustsTheForgesAuthorityForTheForgeAlone(t *testing.T) {
	t.Setenv("GIT_CONFIG_COUNT", "2")
	var c config
	c.Forge.Listen = "127.0.0.1:3000"
	if env := c.gitEnv(); env != nil {
		t.Errorf("%q", env)
	}
	c.Forge.URL, c.Forge.CA = "https://git.example.org/sub/", "/etc/ca.pem"
	want := []string{
		"GIT_CONFIG_KEY_2=http.https://git.example.org/sub/.extraHeader", "GIT_CONFIG_VALUE_2=x",
		"GIT_CONFIG_KEY_3=http.https://git.example.org/sub/.sslCAInfo", "GIT_CONFIG_VALUE_3=/etc/ca.pem", "GIT_CONFIG_COUNT=4",
	}
	if env := c.gitEnv("extraHeader", "x"); !slices.Equal(env, want) {
		t.Errorf("%q", env)
	}
}
