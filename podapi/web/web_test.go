package web_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/podapi"
	"codeberg.org/devaipod/devaipod/podapi/conform"
	"codeberg.org/devaipod/devaipod/podapi/web"
)

const (
	token   = "the-token-of-this-test"
	podName = "devaipod-tool-3-abcdef"
	evil    = `<img src=x onerror=alert(1)><script>alert(2)</script>"'` + "\x1b[31m"
)

// agent is a driver that notes what it is told.
type agent struct {
	mu    sync.Mutex
	sum   podapi.Summary
	told  []string
	pages http.RoundTripper
}

// Pages implements podapi.Paged.
func (a *agent) Pages() http.RoundTripper {
	return trip(func(r *http.Request) (*http.Response, error) { return a.pages.RoundTrip(r) })
}

func (a *agent) Run(context.Context) error { return nil }
func (a *agent) Summary() podapi.Summary {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.sum
}

func (a *agent) Send(_ context.Context, text string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.told = append(a.told, text)
	return nil
}
func (a *agent) Stop(ctx context.Context) error { return a.Send(ctx, "STOP") }

func (a *agent) heard() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return strings.Join(a.told, "|")
}

// world is a site over one pod, whose agent is real but for what drives it.
type world struct {
	agent   *agent
	journal *podapi.Journal
	client  *podapi.Client
	pod     web.Pod
	work    web.Work
	listen  string
	dir     string // of the journal
	site    *web.Site
	mu      sync.Mutex // of pod
}

func (w *world) List() []web.Pod {
	w.mu.Lock()
	defer w.mu.Unlock()
	return []web.Pod{w.pod}
}

func (w *world) Control(name string) (*podapi.Client, error) {
	if name != podName {
		return nil, errors.New("no such pod")
	}
	return w.client, nil
}
func (w *world) Work(context.Context, string) (web.Work, error) { return w.work, nil }
func (w *world) Diff(context.Context, string) (string, error) {
	return "diff --git a/x b/x\n--- a/x\n+++ b/x\n@@ -1 +1 @@\n-old\n+" + evil + "\n", nil
}

func (w *world) Past(_ string, before int64, n int) ([]podapi.Event, error) {
	return podapi.TranscriptPage(w.dir, before, n)
}

func (w *world) Unpushed(context.Context, string) (int, error) { return len(w.work.Unpushed), nil }

func (w *world) Retry(string) error { return w.agent.Send(context.Background(), "RETRY") }

func newWorld(t testing.TB) *world {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	w := &world{
		agent: &agent{sum: podapi.Summary{State: podapi.Asking, Since: time.Now(), Question: "which " + evil, Activity: "bash " + evil, Choices: []podapi.Choice{{ID: "o", Name: "choice " + evil}}, Todo: []podapi.Todo{{Text: "todo " + evil, Status: evil}}, Message: evil, Version: "version " + evil}}, dir: t.TempDir(),
		pod:  web.Pod{Name: podName, Issue: "ada/tool#3", Title: "Fix " + evil, URL: "http://forge.test/ada/tool/issues/3", State: "asking", Doing: "asking " + evil, Choices: []string{"choice " + evil}, Why: evil, PullRequest: "javascript:alert(1)", Runs: true, Used: "$0.12 of $5.00", Blocked: []web.Block{{Host: "evil.test:443", Why: evil, Allow: "evil.test"}}},
		work: web.Work{At: time.Now(), Branch: evil, Ahead: 2, Unpushed: []string{evil}, Uncommitted: []string{"added " + evil}, Stat: " x | 2 +-", NotSaved: []string{evil}},
	}
	w.journal = podapi.OpenJournal(w.dir, log)
	socket := filepath.Join(t.TempDir(), "control.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	api := httptest.NewUnstartedServer(podapi.NewServer(w.agent, w.journal, log))
	api.Listener = l
	api.Start()
	t.Cleanup(api.Close)
	w.client = podapi.NewClient(socket).Through(conform.Transport)
	// The site has to know its port before it is made.
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w.listen = tcp.Addr().String()
	if w.site, err = web.New(web.Config{Pods: w, Listen: w.listen, Token: token, Log: log}); err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(w.site.Handler(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(rw, "not a page")
	})))
	srv.Listener = tcp
	srv.Start()
	t.Cleanup(srv.Close)
	return w
}

func (w *world) url(name, path string) string {
	_, port, _ := net.SplitHostPort(w.listen)
	return "http://" + name + ".localhost:" + port + path
}

// browser has cookies by host, and finds every name at the site.
func (w *world) browser(t *testing.T) *http.Client {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	return &http.Client{Jar: jar, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", w.listen)
		},
	}}
}

func do(t *testing.T, c *http.Client, method, link, body string, head map[string]string) (status int, text string, at *url.URL) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, link, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	for k, v := range head {
		if k == "Host" {
			req.Host = v
		}
		req.Header.Set(k, v)
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b), resp.Request.URL
}

// A ticket lets one browser in, once; from the list a link leads to a pod's page.
func TestATicketLetsOneBrowserIn(t *testing.T) {
	w := newWorld(t)
	link := w.site.Open("")
	b := w.browser(t)
	if status, text, at := do(t, b, "GET", link, "", nil); status != 200 || at.Path != "/pods/" || !strings.Contains(text, "ada/tool#3") {
		t.Fatalf("%d at %s: %s", status, at, text)
	}
	if status, text, at := do(t, b, "GET", w.url("pods", "/pods/enter?pod="+podName), "", nil); status != 200 || at.String() != w.url(podName, "/") || !strings.Contains(text, "Tell it something") {
		t.Errorf("%d at %s: %s", status, at, text)
	}
	other := w.browser(t)
	if status, text, _ := do(t, other, "GET", link, "", nil); status != 401 || !strings.Contains(text, "was used already") {
		t.Errorf("again: %d %s", status, text)
	}
	if status, _, at := do(t, w.browser(t), "GET", w.site.Open(podName), "", nil); status != 200 || at.String() != w.url(podName, "/") {
		t.Errorf("a pod's own ticket: %d at %s", status, at)
	}
	// A ticket for one origin is none for another.
	_, ticket, _ := strings.Cut(w.site.Open(""), "ticket=")
	if status, _, _ := do(t, other, "GET", w.url(podName, "/enter?ticket="+ticket), "", nil); status != 401 {
		t.Errorf("at another origin: %d", status)
	}
}

func TestTheTokenLogsIn(t *testing.T) {
	w := newWorld(t)
	b := w.browser(t)
	if status, text, _ := do(t, b, "GET", w.url("pods", "/pods/"), "", nil); status != 401 || strings.Contains(text, "ada/tool") {
		t.Errorf("before: %d %s", status, text)
	}
	if status, text, _ := do(t, b, "POST", w.url("pods", "/pods/login"), "token=wrong", nil); status != 401 || !strings.Contains(text, "not the token") {
		t.Errorf("another: %d %s", status, text)
	}
	if status, text, _ := do(t, b, "POST", w.url("pods", "/pods/login"), "token="+token, nil); status != 200 || !strings.Contains(text, "ada/tool#3") {
		t.Errorf("the token: %d %s", status, text)
	}
	if status, _, at := do(t, b, "GET", w.url(podName, "/"), "", nil); status != 200 || at.String() != w.url(podName, "/") {
		t.Errorf("a pod's page: %d at %s", status, at)
	}
	if status, _, _ := do(t, b, "POST", w.url("pods", "/pods/logout"), "", nil); status != 401 {
		t.Errorf("after logging out: %d", status)
	}
}

// Nobody sees or does anything who is not in, at whatever path.
func TestStrangersGetNothing(t *testing.T) {
	w := newWorld(t)
	b := w.browser(t)
	b.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	for _, c := range []struct{ method, link string }{
		{"GET", w.url("pods", "/pods/")}, {"GET", w.url("pods", "/pods/rows")}, {"GET", w.url("pods", "/pods/enter?pod="+podName)},
		{"GET", w.url("pods", "/pods/enter?pod="+podName+"&ticket=GUESSED")},
		{"GET", w.url(podName, "/")}, {"GET", w.url(podName, "/facts")}, {"GET", w.url(podName, "/diff")}, {"GET", w.url(podName, "/events")},
		{"POST", w.url(podName, "/messages")}, {"POST", w.url(podName, "/stop")}, {"POST", w.url(podName, "/retry")}, {"GET", w.url(podName, "/past")}, {"GET", w.url(podName, "/enter?ticket=GUESSED")},
		{"GET", w.url("devaipod-other-1-ffffff", "/")},
	} {
		status, text, _ := do(t, b, c.method, c.link, "text=hello", nil)
		if status != 401 && status != 303 || strings.Contains(text, "ada/tool") {
			t.Errorf("%s %s: %d %s", c.method, c.link, status, text)
		}
	}
	if got := w.agent.heard(); got != "" {
		t.Errorf("the agent was told %q", got)
	}
	for _, forged := range []string{"", "x", "99999999999.", "99999999999.AAAA", "1.AAAA"} {
		if status, _, _ := do(t, b, "GET", w.url(podName, "/facts"), "", map[string]string{"Cookie": "devaipod=" + forged}); status != 401 {
			t.Errorf("a cookie %q: %d", forged, status)
		}
	}
}

// entered is a browser that is on the pod's page, and its cookie there.
func (w *world) entered(t *testing.T) (*http.Client, string) {
	t.Helper()
	b := w.browser(t)
	if status, text, _ := do(t, b, "GET", w.site.Open(podName), "", nil); status != 200 {
		t.Fatalf("%d %s", status, text)
	}
	at, err := url.Parse(w.url(podName, "/"))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range b.Jar.Cookies(at) {
		return b, c.Name + "=" + c.Value
	}
	t.Fatal("no cookie")
	return nil, ""
}

// A cookie is good at the origin that it was made for, and nowhere else.
func TestACookieIsOfOneOrigin(t *testing.T) {
	w := newWorld(t)
	_, cookie := w.entered(t)
	stranger := w.browser(t)
	for link, want := range map[string]int{
		w.url(podName, "/facts"): 200, w.url("pods", "/pods/rows"): 401, w.url("devaipod-other-1-ffffff", "/facts"): 401,
	} {
		if status, _, _ := do(t, stranger, "GET", link, "", map[string]string{"Cookie": cookie}); status != want {
			t.Errorf("%s: %d, want %d", link, status, want)
		}
	}
}

// A name that somebody points at this machine gets no page, and what is no page is
// not ours to refuse.
func TestOtherHostsGetNoPages(t *testing.T) {
	w := newWorld(t)
	_, cookie := w.entered(t)
	b := w.browser(t)
	b.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	base := "http://" + w.listen
	_, port, _ := net.SplitHostPort(w.listen)
	for _, c := range []struct {
		host, path string
		want       int
	}{
		{"rebound.example:" + port, "/pods/", 421}, {"rebound.example:" + port, "/pods/rows", 421}, {podName + ".localhost", "/pods/", 421},
		{podName + ".localhost.example:" + port, "/pods/", 421}, {"a." + podName + ".localhost:" + port, "/pods/", 421},
		{"localhost:" + port, "/pods/", 303}, {w.listen, "/", 303},
		{"rebound.example:" + port, "/git/x", 200}, {w.listen, "/hooks/forge", 200}, {"rebound.example:" + port, "/", 200},
	} {
		status, text, _ := do(t, b, "GET", base+c.path, "", map[string]string{"Host": c.host, "Cookie": cookie})
		if status != c.want || strings.Contains(text, "ada/tool") || status == 200 && text != "not a page" {
			t.Errorf("%s at %s: %d %s", c.path, c.host, status, text)
		}
	}
}

// Another site's page, an agent's among them, does nothing by way of the person's
// browser.
func TestOtherSitesDoNothing(t *testing.T) {
	w := newWorld(t)
	b, _ := w.entered(t)
	for _, head := range []map[string]string{
		{"Origin": w.url("devaipod-other-1-ffffff", "")}, {"Origin": "null"}, {"Origin": "http://evil.test", "Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"},
	} {
		for _, path := range []string{"/messages", "/stop", "/retry"} {
			if status, text, _ := do(t, b, "POST", w.url(podName, path), "text=hello", head); status != 403 {
				t.Errorf("%s with %v: %d %s", path, head, status, text)
			}
		}
	}
	if got := w.agent.heard(); got != "" {
		t.Errorf("the agent was told %q", got)
	}
	own := map[string]string{"Origin": w.url(podName, ""), "Sec-Fetch-Site": "same-origin"}
	if status, text, _ := do(t, b, "POST", w.url(podName, "/messages"), "text=+hello+", own); status != 200 {
		t.Errorf("from its own: %d %s", status, text)
	}
	if status, text, _ := do(t, b, "POST", w.url(podName, "/stop"), "", own); status != 204 {
		t.Errorf("stop from its own: %d %s", status, text)
	}
	if got := w.agent.heard(); got != "hello|STOP" {
		t.Errorf("the agent was told %q", got)
	}
	for body, want := range map[string]int{"text=+": 400, "text=%": 400, "text=" + strings.Repeat("x", 70<<10): 413} {
		if status, text, _ := do(t, b, "POST", w.url(podName, "/messages"), body, own); status != want || want == 413 && !strings.Contains(text, "64 KiB") {
			t.Errorf("a message of %d bytes: %d %s", len(body), status, text)
		}
	}
}

// What an agent says is text, and no link but to a page.
func TestWhatAnAgentSaysIsText(t *testing.T) {
	w := newWorld(t)
	w.journal.Add(podapi.EventText, evil)
	b, _ := w.entered(t)
	list, _ := do2(t, w.browser(t), w.site.Open(""))
	for name, text := range map[string]string{
		"list": list, "page": first(do2(t, b, w.url(podName, "/"))), "facts": first(do2(t, b, w.url(podName, "/facts"))), "diff": first(do2(t, b, w.url(podName, "/diff"))),
	} {
		if strings.Contains(text, "<img") || strings.Contains(text, "<script>") || strings.Contains(text, `="javascript:`) {
			t.Errorf("the %s has markup of the agent's:\n%s", name, text)
		}
		if !strings.Contains(text, "&lt;img src=x") {
			t.Errorf("the %s does not have the agent's words:\n%s", name, text)
		}
	}
}

func first(text string, _ http.Header) string { return text }

func do2(t *testing.T, c *http.Client, link string) (string, http.Header) {
	t.Helper()
	resp, err := c.Get(link)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	csp := resp.Header.Get("Content-Security-Policy")
	if !strings.Contains(csp, "default-src 'none'") || strings.Contains(csp, "unsafe") || !strings.Contains(csp, "frame-ancestors 'none'") {
		t.Errorf("%s may run what it likes: %q", link, csp)
	}
	return string(b), resp.Header
}

// What the person's browser sends along stays here: the pod gets neither cookie nor
// authorization, and sets no cookie.
func TestThePodGetsNothingOfThePersons(t *testing.T) {
	w := newWorld(t)
	b, _ := w.entered(t)
	var got http.Header
	w.client = w.client.Through(func(http.RoundTripper) http.RoundTripper {
		return trip(func(r *http.Request) (*http.Response, error) {
			got = r.Header.Clone()
			return &http.Response{StatusCode: 200, Header: http.Header{"Set-Cookie": {"devaipod=stolen"}}, Body: http.NoBody, Request: r}, nil
		})
	})
	_, head := do2(t, b, w.url(podName, "/events"))
	if got == nil || got.Get("Cookie") != "" || got.Get("Authorization") != "" {
		t.Errorf("the pod got %v", got)
	}
	if head.Get("Set-Cookie") != "" {
		t.Errorf("the pod set %s", head.Get("Set-Cookie"))
	}
}

type trip func(*http.Request) (*http.Response, error)

func (f trip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// hostile is an agent's server: it shows what it was sent, sets a cookie that it
// should not, and echoes what comes over a connection that was upgraded.
type hostile struct{ seen http.Header }

func (h *hostile) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.seen = r.Header.Clone()
	if r.Header.Get("Upgrade") != "" {
		conn, both, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		_, _ = io.Copy(conn, both)
		return
	}
	w.Header().Set("Set-Cookie", "devaipod=stolen; Domain=localhost")
	body, _ := io.ReadAll(r.Body)
	_, _ = io.WriteString(w, r.Method+" "+r.URL.RequestURI()+" "+strings.Repeat("x", len(body)))
}

// serveAgent gives the world's agent pages of its own.
func (w *world) serveAgent(t *testing.T) *hostile {
	t.Helper()
	h := &hostile{}
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	w.agent.pages = &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", srv.Listener.Addr().String())
	}}
	return h
}

// An agent's own pages are at an origin of their own, for who has logged in, and get
// nothing of what the browser has.
func TestAnAgentsOwnPages(t *testing.T) {
	w := newWorld(t)
	h := w.serveAgent(t)
	own := w.url(podName+"-a", "")
	stranger := w.browser(t)
	for path, want := range map[string]int{"/": 401, "/session": 401, "/.devaipod-enter?ticket=GUESSED": 401} {
		if status, text, _ := do(t, stranger, "GET", own+path, "", nil); status != want || strings.Contains(text, "GET ") {
			t.Errorf("a stranger at %s: %d %s", path, status, text)
		}
	}
	_, cookie := w.entered(t) // of the pod's page
	if status, _, _ := do(t, stranger, "GET", own+"/session", "", map[string]string{"Cookie": cookie}); status != 401 {
		t.Errorf("with the page's cookie: %d", status)
	}
	if h.seen != nil {
		t.Fatalf("the agent was asked %v", h.seen)
	}

	b := w.browser(t)
	if status, _, _ := do(t, b, "GET", w.site.Open(""), "", nil); status != 200 {
		t.Fatal(status)
	}
	if status, text, at := do(t, b, "GET", own+"/", "", nil); status != 200 || text != "GET / " || at.String() != own+"/" {
		t.Fatalf("%d at %s: %s", status, at, text)
	}
	large := strings.Repeat("y", 3<<20)
	if status, text, _ := do(t, b, "PUT", own+"/a/b?c=d", large, map[string]string{"Authorization": "Basic eA==", "Origin": own, "Sec-Fetch-Site": "same-origin"}); status != 200 || text != "PUT /a/b?c=d "+strings.Repeat("x", len(large)) {
		t.Errorf("a large body: %d %.60s", status, text)
	}
	for _, name := range []string{"Cookie", "Authorization"} {
		if got := h.seen.Get(name); got != "" {
			t.Errorf("the agent got %s: %s", name, got)
		}
	}
	at, err := url.Parse(own)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range b.Jar.Cookies(at) {
		if c.Value == "stolen" {
			t.Error("the agent set a cookie")
		}
	}
	if status, _, _ := do(t, b, "POST", own+"/session", "", map[string]string{"Sec-Fetch-Site": "cross-site", "Origin": "http://evil.test"}); status != 403 {
		t.Errorf("another site's request: %d", status)
	}
	w.upgrade(t, b, at)
}

// upgrade speaks over a connection that becomes something else.
func (w *world) upgrade(t *testing.T, b *http.Client, at *url.URL) {
	t.Helper()
	conn, err := net.Dial("tcp", w.listen)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	cookies := b.Jar.Cookies(at)
	if len(cookies) != 1 {
		t.Fatalf("cookies %v", cookies)
	}
	if _, err := io.WriteString(conn, "GET /pty HTTP/1.1\r\nHost: "+at.Host+"\r\nConnection: Upgrade\r\nUpgrade: echo\r\nCookie: "+cookies[0].String()+"\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(conn)
	resp, err := http.ReadResponse(lines, nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("%v, %v", resp, err)
	}
	if _, err := io.WriteString(conn, "hello\n"); err != nil {
		t.Fatal(err)
	}
	if line, err := lines.ReadString('\n'); err != nil || line != "hello\n" {
		t.Errorf("%q, %v", line, err)
	}
}
