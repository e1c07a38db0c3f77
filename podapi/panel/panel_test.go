package panel_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/podapi/panel"
)

const evil = `<img src=x onerror=alert(1)><script>alert(2)</script>"'`

// world is a panel, what it is about, and a fake of the forge: its logins and one page.
type world struct {
	t      testing.TB
	panel  *panel.Panel
	server *httptest.Server // of the panel, and of the fake forge by another listener
	host   string           // the panel's
	forge  *httptest.Server

	mu      sync.Mutex
	now     time.Time
	id      int64             // of ann's account
	rights  map[string]string // by name: "read", "write"
	broken  bool              // the forge does not say
	user    string            // who is logged in at the forge
	codes   map[string]string // by code: the challenge
	shown   panel.Shown
	done    []string
	refused []string
	failing error
	policy  string // Content-Security-Policy of the forge's page
}

func (w *world) Access(_ context.Context, who panel.Person, at panel.Place) (read, write bool, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.broken {
		return false, false, errors.New("the forge is away")
	}
	r := w.rights[who.Name]
	if who.ID != w.id || at.Repo != "tool" {
		r = ""
	}
	return r != "", r == "write", nil
}

func (w *world) Look(_ context.Context, at panel.Place, push bool) (panel.Shown, bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if at.Number == 6 { // one without an agent
		return panel.Shown{Issue: "ada/tool#6", Acts: []string{panel.Start}, Agents: []string{"fast"}}, push, nil
	}
	return w.shown, at.Number == 3 || at.Number == 4, nil
}

func (w *world) Do(_ context.Context, who panel.Person, at panel.Place, act panel.Act) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.done = append(w.done, fmt.Sprintf("%s %s %s %s%s", who.Name, at, act.Kind, act.Text, act.Ask))
	return w.failing
}

func (w *world) Refused(who panel.Person, at panel.Place, act panel.Act) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.refused = append(w.refused, who.Name+" "+act.Kind)
}

func (w *world) set(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{t: t, now: time.Now(), id: 7, rights: map[string]string{"ann": "write"}, user: "ann", codes: map[string]string{}}
	w.shown = panel.Shown{
		Issue: "ada/tool#3", State: "asking", Ask: "ask-1", Choices: []string{"red " + evil, "blue"}, Acts: []string{panel.Stop, panel.Retry, panel.Message, panel.Answer, panel.Budget}, Agents: []string{"fast"},
		Facts: []panel.Fact{{Name: "now", Lines: []string{evil}}, {Name: "ci", Lines: []string{"pending"}, Link: "javascript:alert(3)"}, {Name: "ssh", Lines: []string{"ssh x"}}, {Name: "used", Lines: []string{"$0.12 of $5.00"}}},
	}
	w.forge = httptest.NewServer(w.fakeForge())
	t.Cleanup(w.forge.Close)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	w.host = "panel.localhost:" + port
	w.panel, err = panel.New(panel.Config{
		Agents: w, Listen: l.Addr().String(), Forge: w.forge.URL, Client: "client", Secret: "secret", Key: "a-key", Log: slog.New(slog.DiscardHandler),
		Now: func() time.Time { w.mu.Lock(); defer w.mu.Unlock(); return w.now },
	})
	if err != nil {
		t.Fatal(err)
	}
	w.server = httptest.NewUnstartedServer(w.panel.Handler(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(rw, "not the panel") })))
	w.server.Listener = l
	w.server.Start()
	t.Cleanup(w.server.Close)
	return w
}

// fakeForge does what the forge does when somebody logs in elsewhere, and has a page with
// what our template makes. The real one is in the end-to-end suite.
func (w *world) fakeForge() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /login/oauth/authorize", func(rw http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		back := url.Values{"state": {q.Get("state")}, "code": {"code-of-" + q.Get("state")}}
		w.mu.Lock()
		w.codes[back.Get("code")] = q.Get("code_challenge")
		if w.user == "" {
			back = url.Values{"state": back["state"], "error": {"access_denied"}}
		}
		w.mu.Unlock()
		http.Redirect(rw, r, q.Get("redirect_uri")+"?"+back.Encode(), http.StatusSeeOther)
	})
	mux.HandleFunc("POST /login/oauth/access_token", func(rw http.ResponseWriter, r *http.Request) {
		w.mu.Lock()
		defer w.mu.Unlock()
		challenge, ok := w.codes[r.FormValue("code")]
		delete(w.codes, r.FormValue("code"))
		if !ok || challenge == "" || r.FormValue("client_secret") != "secret" || r.FormValue("code_verifier") == "" {
			http.Error(rw, `{"error": "unauthorized_client", "error_description": "no such code"}`, http.StatusBadRequest)
			return
		}
		_, _ = io.WriteString(rw, `{"access_token": "of-the-forge", "token_type": "bearer"}`)
	})
	mux.HandleFunc("GET /login/oauth/userinfo", func(rw http.ResponseWriter, r *http.Request) {
		w.mu.Lock()
		defer w.mu.Unlock()
		if r.Header.Get("Authorization") != "Bearer of-the-forge" {
			http.Error(rw, "{}", http.StatusUnauthorized)
			return
		}
		_ = json.NewEncoder(rw).Encode(map[string]string{"sub": fmt.Sprint(w.id), "preferred_username": w.user})
	})
	mux.HandleFunc("GET /ada/tool/issues/{n}", func(rw http.ResponseWriter, r *http.Request) {
		w.mu.Lock()
		defer w.mu.Unlock()
		rw.Header().Set("Content-Security-Policy", w.policy)
		rw.Header().Set("Content-Type", "text/html; charset=utf-8")
		fmt.Fprintf(rw, `<!doctype html><html lang="en"><title>3</title><h1>Issue</h1><div class="issue-content-right"><p>Labels</p></div>
<script defer src="/assets/devaipod/panel.js" data-service="http://%s" data-forge="%s" data-user="ann" data-repo="ada/tool" data-number="%s"></script>`, w.host, w.forge.URL, r.PathValue("n"))
	})
	mux.HandleFunc("GET /assets/devaipod/panel.js", func(rw http.ResponseWriter, _ *http.Request) {
		files, err := panel.Files(w.host, w.forge.URL)
		if err != nil {
			http.Error(rw, err.Error(), http.StatusInternalServerError)
			return
		}
		rw.Header().Set("Content-Type", "text/javascript")
		_, _ = rw.Write(files[1].Text)
	})
	return mux
}

// browser has cookies, and finds panel.localhost.
func (w *world) browser() *http.Client {
	jar, err := cookiejar.New(nil)
	if err != nil {
		w.t.Fatal(err)
	}
	return &http.Client{Jar: jar, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		if addr == w.host {
			addr = w.server.Listener.Addr().String()
		}
		return new(net.Dialer).DialContext(ctx, network, addr)
	}}}
}

func (w *world) do(c *http.Client, method, link, body string, head map[string]string) (int, string, http.Header) {
	w.t.Helper()
	req, err := http.NewRequestWithContext(context.Background(), method, link, strings.NewReader(body))
	if err != nil {
		w.t.Fatal(err)
	}
	for k, v := range head {
		if k == "Host" {
			req.Host = v
		}
		req.Header.Set(k, v)
	}
	resp, err := c.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return resp.StatusCode, string(b), resp.Header
}

var dataToken = regexp.MustCompile(`data-token="([^"]+)" data-user="([^"]+)" data-forge="([^"]+)"`)

// logIn is the token that a browser gets.
func (w *world) logIn(c *http.Client) string {
	w.t.Helper()
	status, text, _ := w.do(c, "GET", "http://"+w.host+"/login", "", nil)
	m := dataToken.FindStringSubmatch(html.UnescapeString(text))
	if status != 200 || m == nil || m[3] != w.forge.URL {
		w.t.Fatalf("logging in: %d %s", status, text)
	}
	return m[1]
}

// ask asks as the script does.
func (w *world) ask(token, method, path, body string, head map[string]string) (int, string, http.Header) {
	all := map[string]string{"Origin": w.forge.URL, "Authorization": "Bearer " + token}
	for k, v := range head {
		all[k] = v
	}
	return w.do(w.browser(), method, "http://"+w.host+path, body, all)
}

const here = "?repo=ada/tool&number=3"

// Who has logged in sees what the forge lets them see, and does what it lets them do: as
// it is then.
func TestRightsAreAskedEachTime(t *testing.T) {
	w := newWorld(t)
	token := w.logIn(w.browser())
	status, text, head := w.ask(token, "GET", "/look"+here, "", nil)
	var got panel.Shown
	if err := json.Unmarshal([]byte(text), &got); err != nil || status != 200 || got.Issue != "ada/tool#3" || len(got.Acts) != 5 || head.Get("Access-Control-Allow-Origin") != w.forge.URL {
		t.Fatalf("%d %s %v %v", status, text, head, err)
	}
	for _, act := range []string{`{"act": "message", "text": " go left "}`, `{"act": "stop"}`, `{"act": "answer", "text": "2", "ask": "ask-1"}`, `{"act": "start", "text": "fast"}`, `{"act": "budget", "text": "5"}`} {
		if status, text, _ := w.ask(token, "POST", "/act"+here, act, nil); status != 204 {
			t.Errorf("%s: %d %s", act, status, text)
		}
	}
	want := "ann ada/tool#3 message go left|ann ada/tool#3 stop |ann ada/tool#3 answer 2ask-1|ann ada/tool#3 start fast|ann ada/tool#3 budget 5"
	if got := strings.Join(w.done, "|"); got != want {
		t.Errorf("done is %q", got)
	}
	w.set(func() { w.rights["ann"] = "read" })
	if status, text, _ := w.ask(token, "GET", "/look"+here, "", nil); status != 200 || !strings.Contains(text, `"acts":null`) || strings.Contains(text, "fast") {
		t.Errorf("who may read sees %d %s", status, text)
	}
	if status, text, _ := w.ask(token, "GET", "/look?repo=ada/tool&number=6", "", nil); status != 404 || strings.Contains(text, "fast") {
		t.Errorf("who may read sees of an issue without an agent: %d %s", status, text)
	}
	if status, text, _ := w.ask(token, "POST", "/act?repo=ada/tool&number=6", `{"act": "start"}`, nil); status != 403 {
		t.Errorf("who may read starts: %d %s", status, text)
	}
	if status, text, _ := w.ask(token, "POST", "/act"+here, `{"act": "stop"}`, nil); status != 403 || !strings.Contains(text, "push") {
		t.Errorf("who lost the right to push: %d %s", status, text)
	}
	for name, change := range map[string]func(){"no rights": func() { w.rights = nil }, "another account of that name": func() { w.rights, w.id = map[string]string{"ann": "write"}, 8 }} {
		w.set(change)
		for _, r := range [][3]string{{"GET", "/look", ""}, {"POST", "/act", `{"act": "stop"}`}} {
			if status, text, _ := w.ask(token, r[0], r[1]+here, r[2], nil); status != 404 || strings.Contains(text, "asking") {
				t.Errorf("%s: %s: %d %s", name, r[1], status, text)
			}
		}
	}
	w.set(func() { w.broken = true })
	if status, text, _ := w.ask(token, "GET", "/look"+here, "", nil); status != 502 || strings.Contains(text, "asking") {
		t.Errorf("the forge does not say: %d %s", status, text)
	}
	if got := strings.Join(w.done, "|"); got != want || strings.Join(w.refused, "|") != "ann start|ann stop" {
		t.Errorf("done is %q, refused %q", got, w.refused)
	}
}

// Nothing is answered to other pages, other hosts and other tokens, and no cookie counts.
func TestOthersGetNothing(t *testing.T) {
	w := newWorld(t)
	token := w.logIn(w.browser())
	text, proof, _ := strings.Cut(token, ".")
	for name, tt := range map[string]struct {
		head map[string]string
		want int
	}{
		"no token":               {map[string]string{"Authorization": ""}, 401},
		"no proof":               {map[string]string{"Authorization": "Bearer " + text + "."}, 401},
		"another proof":          {map[string]string{"Authorization": "Bearer " + text + "." + strings.ToUpper(proof)}, 401},
		"another claim":          {map[string]string{"Authorization": "Bearer e30." + proof}, 401},
		"the token as a cookie":  {map[string]string{"Authorization": "", "Cookie": "devaipod=" + token + "; devaipod-login=" + token}, 401},
		"another origin":         {map[string]string{"Origin": "http://evil.test"}, 403},
		"another port":           {map[string]string{"Origin": "http://127.0.0.1:1"}, 403},
		"no origin":              {map[string]string{"Origin": ""}, 403},
		"origin null":            {map[string]string{"Origin": "null"}, 403},
		"the panel's own origin": {map[string]string{"Origin": "http://" + w.host}, 403},
	} {
		for _, r := range [][3]string{{"GET", "/look", ""}, {"POST", "/act", `{"act": "stop"}`}} {
			status, text, head := w.ask(token, r[0], r[1]+here, r[2], tt.head)
			if status != tt.want || strings.Contains(text, "asking") || status == 403 && head.Get("Access-Control-Allow-Origin") != "" {
				t.Errorf("%s: %s: %d %s %v", name, r[1], status, text, head)
			}
		}
	}
	_, port, _ := net.SplitHostPort(w.host)
	for _, host := range []string{"evil.test:" + port, "pod-a.localhost:" + port, "localhost:" + port, "127.0.0.1:" + port, "x.panel.localhost:" + port} {
		if _, text, _ := w.ask(token, "GET", "/look"+here, "", map[string]string{"Host": host}); text != "not the panel" {
			t.Errorf("at %s: %s", host, text)
		}
	}
	for origin, want := range map[string]int{w.forge.URL: 204, "http://evil.test": 403} {
		if status, _, head := w.ask("", "OPTIONS", "/act", "", map[string]string{"Origin": origin}); status != want || (head.Get("Access-Control-Allow-Headers") != "") != (want == 204) || head.Get("Access-Control-Allow-Credentials") != "" {
			t.Errorf("preflight from %s: %d %v", origin, status, head)
		}
	}
	w.set(func() { w.now = w.now.Add(13 * time.Hour) })
	if status, _, _ := w.ask(token, "GET", "/look"+here, "", nil); status != 401 {
		t.Errorf("an old token: %d", status)
	}
	if len(w.done)+len(w.refused) != 0 {
		t.Errorf("done is %q, refused %q", w.done, w.refused)
	}
}

func TestWhatIsNoPlaceAndNoAct(t *testing.T) {
	w := newWorld(t)
	token := w.logIn(w.browser())
	for _, q := range []string{"", "?repo=ada/tool", "?repo=ada&number=3", "?repo=../x&number=3", "?repo=ada/..&number=3", "?repo=ada/tool/x&number=3", "?repo=ada/tool&number=-3", "?repo=ada/tool&number=x"} {
		if status, _, _ := w.ask(token, "GET", "/look"+q, "", nil); status != 400 {
			t.Errorf("%q: %d", q, status)
		}
	}
	if status, _, _ := w.ask(token, "GET", "/look?repo=ada/tool&number=5", "", nil); status != 404 {
		t.Errorf("an issue without an agent: %d", status)
	}
	for _, body := range []string{"", "{", `{"act": "message", "text": " \n"}`, `{"act": "answer"}`, `{"act": "budget", "text": " "}`, `{"act": "message", "text": "` + strings.Repeat("x", 65<<10) + `"}`} {
		if status, _, _ := w.ask(token, "POST", "/act"+here, body, nil); status != 400 {
			t.Errorf("%.40q: %d", body, status)
		}
	}
	if len(w.done) != 0 {
		t.Errorf("done is %q", w.done)
	}
	w.set(func() { w.failing = errors.New("that can't be done now") })
	if status, text, _ := w.ask(token, "POST", "/act"+here, `{"act": "retry"}`, nil); status != 409 || !strings.Contains(text, "can't be done now") {
		t.Errorf("%d %s", status, text)
	}
}

// A login that was not begun in the same browser, was used, or that the forge refuses gives
// no token.
func TestALoginIsOfOneBrowser(t *testing.T) {
	w := newWorld(t)
	begin := func(c *http.Client) (back string) {
		c.CheckRedirect = func(r *http.Request, _ []*http.Request) error {
			if r.URL.Path == "/callback" {
				back = r.URL.String()
				return http.ErrUseLastResponse
			}
			return nil
		}
		if status, text, _ := w.do(c, "GET", "http://"+w.host+"/login", "", nil); status != 303 {
			t.Fatalf("%d %s", status, text)
		}
		return back
	}
	mine := w.browser()
	back := begin(mine)
	other := w.browser()
	begin(other) // a login of its own is under way there
	for name, c := range map[string]*http.Client{"another browser": w.browser(), "another one that logs in": other} {
		if status, text, _ := w.do(c, "GET", back, "", nil); status != 403 || dataToken.MatchString(text) {
			t.Errorf("%s: %d %s", name, status, text)
		}
	}
	wrong := strings.Replace(back, "state=", "state=X", 1)
	if status, text, _ := w.do(mine, "GET", wrong, "", nil); status != 403 || dataToken.MatchString(text) {
		t.Errorf("another state: %d %s", status, text)
	}

	mine = w.browser()
	back = begin(mine)
	at, err := url.Parse(back)
	if err != nil {
		t.Fatal(err)
	}
	cookies := mine.Jar.Cookies(at)
	if status, text, _ := w.do(mine, "GET", back, "", nil); status != 200 || !dataToken.MatchString(text) {
		t.Fatalf("%d %s", status, text)
	}
	if status, text, _ := w.do(mine, "GET", back, "", nil); status != 403 || dataToken.MatchString(text) {
		t.Errorf("again: %d %s", status, text)
	}
	mine.Jar.SetCookies(at, cookies) // a thief's
	if status, text, _ := w.do(mine, "GET", back, "", nil); status != 502 || dataToken.MatchString(text) {
		t.Errorf("a code that was used: %d %s", status, text)
	}

	w.set(func() { w.user = "" })
	if status, text, _ := w.do(w.browser(), "GET", "http://"+w.host+"/login", "", nil); status != 403 || dataToken.MatchString(text) {
		t.Errorf("who does not let the panel know: %d %s", status, text)
	}
	w.set(func() { w.user = evil })
	if status, text, _ := w.do(w.browser(), "GET", "http://"+w.host+"/login", "", nil); status != 502 || strings.Contains(text, "<img") {
		t.Errorf("a name that is none: %d %s", status, text)
	}
	w.forge.Close()
	if status, text, _ := w.do(mine, "GET", back, "", nil); status != 502 || dataToken.MatchString(text) {
		t.Errorf("the forge is down: %d %s", status, text)
	}
}

// What the forge serves quotes nothing of its own, and can't be made to by addresses.
func TestFiles(t *testing.T) {
	files, err := panel.Files("127.0.0.1:8090", "http://127.0.0.1:3000")
	if err != nil || len(files) != 2 {
		t.Fatal(files, err)
	}
	footer := string(files[0].Text)
	for _, want := range []string{panel.Mark, `{{if and .SignedUser .Repository .Issue}}`, `data-service="http://panel.localhost:8090"`, `data-forge="http://127.0.0.1:3000"`, `data-user="{{.SignedUser.Name}}"`, `src="{{AppSubUrl}}/assets/devaipod/panel.js?v=`} {
		if !strings.Contains(footer, want) {
			t.Errorf("the template lacks %s:\n%s", want, footer)
		}
	}
	for _, forge := range []string{`http://x"onload="`, "http://x/{{.}}", "http://x y"} {
		if _, err := panel.Files("127.0.0.1:8090", forge); err == nil {
			t.Errorf("%s is taken", forge)
		}
	}
	for _, word := range []string{"innerHTML", "outerHTML", "insertAdjacentHTML", "eval(", "document.write", "document.cookie"} {
		if strings.Contains(string(files[1].Text), word) {
			t.Errorf("the script uses %s", word)
		}
	}
}
