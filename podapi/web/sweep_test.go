package web_test

import (
	"net/http"
	"strings"
	"testing"
)

// open are the routes that need no login: they give nothing away, or are the login.
var open = map[string]bool{
	"home GET /{$}": true, "home GET /pods": true, "home GET /pods/static/": true, "home GET /pods/enter": true, "home POST /pods/login": true, "home POST /pods/logout": true,
	"page GET /static/": true, "page GET /enter": true, "agent GET /.devaipod-enter": true,
}

// A swept is one route, as a browser asks for it.
type swept struct{ kind, pattern, method, host, path string }

// sweep is every route that there is.
func (w *world) sweep() (all []swept) {
	hosts := map[string]string{"home": "pods", "page": podName, "agent": podName + "-a"}
	for kind, patterns := range w.site.Routes() {
		for _, pattern := range patterns {
			method, path, ok := strings.Cut(pattern, " ")
			if !ok {
				method, path = "GET", pattern
			}
			path = strings.TrimSuffix(path, "{$}")
			all = append(all, swept{kind, pattern, method, hosts[kind], path})
			if !ok {
				all = append(all, swept{kind, pattern, "POST", hosts[kind], path}, swept{kind, pattern, "DELETE", hosts[kind], path + "session"})
			}
		}
	}
	return all
}

// Of every route: who is not in gets nothing, nor who is in at another pod; a name that
// is not ours gets nothing; another site's page writes nothing; a page runs no script but
// its own.
func TestNoRouteLetsOthersIn(t *testing.T) {
	w := newWorld(t)
	h := w.serveAgent(t)
	_, cookie := w.entered(t) // of the pod's page
	other := strings.Replace(podName, "tool", "else", 1)
	b := w.browser(t)
	b.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	routes := w.sweep()
	if len(routes) < 20 {
		t.Fatalf("only %d routes", len(routes))
	}
	for _, r := range routes {
		what := r.kind + " " + r.method + " " + r.path
		ask := func(how, host, path string, head map[string]string, want func(status int) bool) {
			t.Helper()
			status, text, _ := do(t, b, r.method, w.url(host, path), "text=hello", head)
			if !want(status) || strings.Contains(text, "ada/tool") {
				t.Errorf("%s, %s: %d %.100s", what, how, status, text)
			}
		}
		refused := func(status int) bool { return status == 401 || status == 303 || status == 403 || status == 404 }
		if !open[r.kind+" "+r.pattern] {
			ask("no cookie", r.host, r.path, nil, refused)
			ask("a forged cookie", r.host, r.path, map[string]string{"Cookie": "devaipod=99999999999.AAAA"}, refused)
			if r.kind != "page" {
				ask("the cookie of a pod's page", r.host, r.path, map[string]string{"Cookie": cookie}, refused)
			}
			ask("the cookie of another pod", strings.Replace(r.host, podName, other, 1), r.path, map[string]string{"Cookie": cookie}, func(status int) bool {
				return refused(status) || r.kind == "home"
			})
		}
		ask("a name that is not ours", r.host, r.path, map[string]string{"Host": "rebound.example", "Cookie": cookie}, func(status int) bool { return status != 200 || !strings.HasPrefix(r.path, "/pods") })
		if r.method != "GET" {
			for _, head := range []map[string]string{{"Origin": w.url(podName+"-a", "")}, {"Origin": "null"}, {"Sec-Fetch-Site": "same-site"}, {"Sec-Fetch-Site": "cross-site"}} {
				head["Cookie"] = cookie
				if r.host == podName+"-a" && head["Origin"] == w.url(r.host, "") {
					continue // its own
				}
				ask("another page", r.host, r.path, head, func(status int) bool { return status == 403 })
			}
		}
	}
	if got := w.agent.heard(); got != "" || h.seen != nil {
		t.Errorf("the agent was told %q and asked %v", got, h.seen)
	}
}

// Every answer that is a page says what it may run, and every cookie is of one host and
// out of scripts' reach.
func TestEveryPageIsBound(t *testing.T) {
	w := newWorld(t)
	in, _ := w.entered(t)
	if status, _, _ := do(t, in, "GET", w.site.Open(""), "", nil); status != 200 {
		t.Fatal(status)
	}
	for _, b := range []*http.Client{in, w.browser(t)} {
		b.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
		for _, r := range w.sweep() {
			if r.kind == "agent" || r.path == "/events" || r.path == "/pods/logout" {
				continue // the agent says what its pages may do, at an origin of their own
			}
			req, err := http.NewRequestWithContext(t.Context(), r.method, w.url(r.host, r.path), nil)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := b.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			csp := resp.Header.Get("Content-Security-Policy")
			if !strings.Contains(csp, "default-src 'none'") || strings.Contains(csp, "unsafe") || !strings.Contains(csp, "frame-ancestors 'none'") || resp.Header.Get("X-Content-Type-Options") != "nosniff" {
				t.Errorf("%s %s: %d may run what it likes: %q", r.method, r.path, resp.StatusCode, csp)
			}
			for _, c := range resp.Cookies() {
				if c.Domain != "" || !c.HttpOnly || c.SameSite != http.SameSiteLaxMode {
					t.Errorf("%s %s: the cookie is %+v", r.method, r.path, c)
				}
			}
		}
	}
}
