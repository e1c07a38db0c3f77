package main

import (
	"bytes"
	"context"
	"errors"
	"html"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"codeberg.org/devaipod/devaipod/podapi"
	"codeberg.org/devaipod/devaipod/podapi/web"
	"codeberg.org/devaipod/devaipod/pods/reconcile"
)

// evil is what an agent might say to a terminal or a browser.
const evil = "\x1b]0;owned\x07\x1b[2J\u009b31m\u202e<img src=x onerror=alert(1)>\r\x7f\b[click](javascript:x)"

// onePod is a pod of which all is known.
type onePod struct{ socket string }

func (onePod) List() []web.Pod {
	return []web.Pod{{
		Name: "devaipod-x-1-abcdef", Issue: "ada/x#1", Title: "Fix " + evil, URL: "http://forge.test/1", State: "queued", Why: "because " + evil, Agent: "fast", Branch: "agent/1-x",
		PullRequest: "http://forge.test/2", SSH: "ssh issue-1.x.ada.devaipod", CI: "http://forge.test/3", Used: "$1", Labeler: "ada", Started: time.Now(), Blocked: []web.Block{{Host: "h:443", Why: evil, Allow: "h"}, {Host: "i:1", Why: "no"}},
		Place: 2, Container: "devaipod-x-1-abcdef", Choices: []string{"left", "right"}, Checked: "passed", Approved: "1 of 2 approvals", Note: "note " + evil, Trouble: "trouble", Open: true, Runs: true,
	}}
}
func (p onePod) Control(string) (*podapi.Client, error) { return podapi.NewClient(p.socket), nil }
func (onePod) Work(context.Context, string) (web.Work, error) {
	return web.Work{At: time.Now(), Branch: "agent/1-x", Ahead: 1, Behind: 2, Unpushed: []string{"one " + evil, "two"}, Uncommitted: []string{"added x"}, Stat: " x | 1 +\n y | 2 +", NotSaved: []string{"big"}}, nil
}
func (onePod) Diff(context.Context, string) (string, error)    { return "", nil }
func (onePod) Unpushed(context.Context, string) (int, error)   { return 0, nil }
func (onePod) Past(string, int64, int) ([]podapi.Event, error) { return nil, nil }
func (onePod) Retry(string) error                              { return errors.New("no") }

// talker is its agent.
type talker struct{}

func (talker) Run(context.Context) error          { return nil }
func (talker) Send(context.Context, string) error { return nil }
func (talker) Stop(context.Context) error         { return nil }
func (talker) Summary() podapi.Summary {
	return podapi.Summary{
		State: podapi.Asking, Since: time.Now(), Activity: "bash " + evil, Message: "bye\n" + evil, Question: "which " + evil, Choices: []podapi.Choice{{ID: "a", Name: "left"}}, Version: "another",
		Todo: []podapi.Todo{{Text: "todo " + evil, Status: "pending"}}, Error: "broken", Setups: []podapi.Setup{{Container: "agent", Stage: "setup 1", Error: evil}},
	}
}

// factsWorld is a site of that pod, and a browser that is on its page.
func factsWorld(t *testing.T) (*web.Site, string) {
	t.Helper()
	log, socket := slog.New(slog.DiscardHandler), t.TempDir()+"/s"
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	api := httptest.NewUnstartedServer(podapi.NewServer(talker{}, &podapi.Journal{}, log))
	api.Listener = l
	api.Start()
	t.Cleanup(api.Close)
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	site, err := web.New(web.Config{Pods: onePod{socket}, Listen: tcp.Addr().String(), Token: "x", Log: log})
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(site.Handler(http.NotFoundHandler()))
	srv.Listener = tcp
	srv.Start()
	t.Cleanup(srv.Close)
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	browser := http.Client{Jar: jar, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", tcp.Addr().String())
	}}}
	resp, err := browser.Get(site.Open("devaipod-x-1-abcdef"))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	page, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatal(resp.Status, err)
	}
	return site, string(page)
}

// The command line tells the facts that the page tells, all of them, and neither lets an
// agent's words do anything.
func TestStatusTellsWhatThePageTells(t *testing.T) {
	site, page := factsWorld(t)
	facts, ok := site.Facts(t.Context(), "devaipod-x-1-abcdef")
	if !ok {
		t.Fatal("no facts")
	}
	var out bytes.Buffer
	if err := (&app{out: &out}).printFacts(facts); err != nil {
		t.Fatal(err)
	}
	var shown, printed []string
	for _, m := range regexp.MustCompile(`(?:data-fact="|<dt>)([a-z ]+)`).FindAllStringSubmatch(page, -1) {
		shown = append(shown, m[1])
	}
	for line := range strings.Lines(out.String()) {
		if name, _, _ := strings.Cut(line, "  "); name != "" && !slices.Contains(printed, name) {
			printed = append(printed, name)
		}
	}
	slices.Sort(shown)
	slices.Sort(printed)
	if len(shown) < 25 || !slices.Equal(shown, printed) {
		t.Errorf("the page tells\n%q, and status\n%q", shown, printed)
	}
	text := html.UnescapeString(page)
	for _, f := range facts {
		for _, line := range f.Lines {
			if f.Name != "agent is" && f.Name != "saved" && !strings.Contains(text, line) {
				t.Errorf("the page does not tell %s: %q", f.Name, line)
			}
			if first, _, _ := strings.Cut(plain(line, 4000), "\n"); !strings.Contains(out.String(), first) {
				t.Errorf("status does not tell %s: %q", f.Name, first)
			}
		}
	}
	if strings.Contains(page, "<img") || harmful(out.String()) {
		t.Errorf("an agent's words do something:\n%s\n%q", page, out.String())
	}
}

// harmful tells whether a terminal would do something but show it.
func harmful(text string) bool { return strings.ContainsAny(text, "\x1b\x07\u009b\u202e\r\x7f\b") }

// What an agent says does nothing to the terminal of who follows, waits, or lists.
func TestWhatAnAgentSaysDoesNothingToATerminal(t *testing.T) {
	v := reconcile.View{Key: reconcile.Key{Owner: "ada", Repo: "x", Issue: 1}, Issue: "ada/x#1", Title: evil, State: reconcile.Asking, Why: evil, Activity: evil, Note: evil, Cause: reconcile.CauseQuestion}
	for name, print := range map[string]func(*app) error{
		"logs": func(a *app) error { return a.printEvent(podapi.Event{ID: 1, Type: podapi.EventTool, Text: evil}) },
		"log":  func(a *app) error { _, err := cleanWriter{a.out}.Write([]byte(evil)); return err },
		"list": func(a *app) error { return a.printList([]reconcile.View{v}, nil) },
		"wait": func(a *app) error {
			a.tellChange(reconcile.View{}, v)
			return errors.Join(nil, ignoreCode(a.outcome(v), a))
		},
		"stuck": func(a *app) error {
			v.State, v.PullRequest = reconcile.Queued, "http://forge.test/2"
			a.tellChange(reconcile.View{}, v)
			return nil
		},
	} {
		var out bytes.Buffer
		a := &app{out: &out, errOut: &out}
		if err := print(a); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if harmful(out.String()) || out.Len() == 0 {
			t.Errorf("%s prints %q", name, out.String())
		}
	}
}

// ignoreCode prints an error as the program does.
func ignoreCode(err error, a *app) error {
	if err != nil {
		_, err = io.WriteString(a.errOut, err.Error())
	}
	return err
}

// The service's metrics count agents by state, and name none.
func TestAgentsAreCounted(t *testing.T) {
	r := prometheus.NewRegistry()
	r.MustRegister(podCount{func() []reconcile.View {
		return []reconcile.View{{Issue: "ada/x#1", State: reconcile.Working}, {Issue: "ada/x#2", State: reconcile.Working}, {Issue: "ada/x#3", State: reconcile.Asking}}
	}})
	w := httptest.NewRecorder()
	promhttp.HandlerFor(r, promhttp.HandlerOpts{}).ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	for _, want := range []string{`devaipod_pods{state="working"} 2`, `devaipod_pods{state="asking"} 1`, `devaipod_pods{state="failed"} 0`} {
		if !strings.Contains(w.Body.String(), want+"\n") {
			t.Errorf("no %s in\n%s", want, w.Body)
		}
	}
	if strings.Contains(w.Body.String(), "ada") {
		t.Errorf("they name a repository:\n%s", w.Body)
	}
}
