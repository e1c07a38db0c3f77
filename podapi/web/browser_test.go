package web_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"codeberg.org/devaipod/devaipod/podapi"
)

// A browser is a real Chromium that notes what it should not see.
type chromium struct {
	context.Context
	mu    sync.Mutex
	wrong []string
}

func (c *chromium) note(format string, a ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wrong = append(c.wrong, fmt.Sprintf(format, a...))
}

func startChromium(t testing.TB) *chromium {
	t.Helper()
	program, err := exec.LookPath("chromium")
	if err != nil {
		t.Fatal("there is no chromium for the pages' tests: run .ci/install")
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(program), chromedp.NoSandbox, chromedp.DisableGPU,
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-background-networking", true), chromedp.Flag("disable-component-update", true),
		// Whatever a page asks for, nothing leaves this machine.
		chromedp.Flag("host-resolver-rules", "MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE *.localhost"))
	ctx, cancel := chromedp.NewExecAllocator(t.Context(), options...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	c := &chromium{Context: ctx}
	if err := chromedp.Listen(ctx, c.hear); err != nil {
		t.Fatalf("starting chromium: %v", err)
	}
	if _, err := chromedp.Call(ctx, network.Enable, network.EnableParams{}); err != nil {
		t.Fatal(err)
	}
	return c
}

func (c *chromium) hear(ev any) {
	switch ev := ev.(type) {
	case *page.EventJavascriptDialogOpening:
		c.note("a dialog: %s", ev.Message)
	case *runtime.EventExceptionThrown:
		c.note("a script broke: %s at %s:%d", ev.ExceptionDetails.Text, ev.ExceptionDetails.URL, ev.ExceptionDetails.LineNumber)
	case *network.EventRequestWillBeSent:
		if at, err := url.Parse(ev.Request.URL); err != nil || !strings.HasSuffix(at.Hostname(), ".localhost") {
			c.note("asked %s", ev.Request.URL)
		}
	}
}

// patience is how long a page may take for one thing.
const patience = 30 * time.Second

func (c *chromium) run(t testing.TB, actions ...chromedp.Action[chromedp.Void]) {
	t.Helper()
	ctx, cancel := context.WithTimeout(c, patience)
	defer cancel()
	if err := chromedp.Do(ctx, actions...); err != nil {
		t.Fatalf("%v; the page is\n%s\nand %q", err, c.text(), c.wrong)
	}
}

// text is what the page shows, for messages.
func (c *chromium) text() string {
	ctx, cancel := context.WithTimeout(c, patience)
	defer cancel()
	text, err := chromedp.Run(ctx, chromedp.Evaluate[string]("location.href + '\\n' + document.body.innerText"))
	if err != nil {
		return err.Error()
	}
	return text
}

// value is a script's result.
func value[T any](t testing.TB, c *chromium, script string) T {
	t.Helper()
	ctx, cancel := context.WithTimeout(c, patience)
	defer cancel()
	v, err := chromedp.Run(ctx, chromedp.Evaluate[T](script, chromedp.EvalAwaitPromise))
	if err != nil {
		t.Fatalf("%s: %v", podapi.Clip(script, 200), err)
	}
	return v
}

// sees waits until a script's result is true.
func (c *chromium) sees(t testing.TB, what, script string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(c, patience)
	defer cancel()
	if _, err := chromedp.Run(ctx, chromedp.Poll[bool](script, chromedp.WithPollingInterval(50*time.Millisecond))); err != nil {
		t.Fatalf("%s: %v; the page is\n%s", what, err, c.text())
	}
}

// follow clicks on a link, in one step: a page puts what it shows anew when something changes,
// links and all.
func (c *chromium) follow(t testing.TB, text string) {
	t.Helper()
	c.sees(t, "the link "+text, `(a => a ? (a.click(), true) : false)([...document.querySelectorAll("a")].find(a => a.textContent === `+quoted(text)+`))`)
}

// axeVersion is the release of axe-core (npm) that looks for what keeps people out.
const axeVersion = "4.14.1"

// axe is its script, fetched once.
func axe(t *testing.T) string {
	t.Helper()
	dir := os.Getenv("DEVAIPOD_CACHE")
	if dir == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			t.Fatal(err)
		}
		dir = filepath.Join(cache, "devaipod")
	}
	file := filepath.Join(dir, "axe-"+axeVersion+".js")
	if _, err := os.Stat(file); err != nil {
		tmp := t.TempDir()
		cmd := exec.CommandContext(t.Context(), "npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--no-save", "--prefix", tmp, "axe-core@"+axeVersion)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("fetching axe-core from npm: %v\n%s", err, out)
		}
		text, err := os.ReadFile(filepath.Join(tmp, "node_modules/axe-core/axe.min.js"))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file+".new", text, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(file+".new", file); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// accessible fails on what axe finds, in light and dark and at a phone's width, and on
// a page that is wider than the phone.
func (c *chromium) accessible(t *testing.T, what, script string) {
	t.Helper()
	for _, scheme := range []string{"light", "dark"} {
		for _, width := range []int64{1280, 360} {
			media := emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}}
			if _, err := chromedp.Call(c, emulation.SetEmulatedMedia, media); err != nil {
				t.Fatal(err)
			}
			c.run(t, chromedp.EmulateViewport(width, 800))
			value[any](t, c, script+"; null")
			found := value[string](t, c, `axe.run().then(r => r.violations.map(v => v.id + ": " + v.nodes.map(n => n.html).join(" ")).join("\n"))`)
			wide := value[bool](t, c, `document.documentElement.scrollWidth > document.documentElement.clientWidth`)
			if found != "" || wide {
				t.Errorf("%s, %s, %d pixels wide (too wide: %t):\n%s", what, scheme, width, wide, found)
			}
		}
	}
	c.run(t, chromedp.ResetViewport())
}

// A person logs in, looks at an agent, tells it something and stops it, with mouse and
// keyboard, in a real browser; what the agent says does nothing there.
func TestInARealBrowser(t *testing.T) {
	w := newWorld(t)
	w.journal.Add(podapi.EventText, "before "+evil)
	c := startChromium(t)
	checker := axe(t)

	c.run(t, chromedp.Navigate(w.url("pods", "/pods/")), chromedp.WaitVisible("#token"))
	c.accessible(t, "the login", checker)
	c.run(t, chromedp.SendKeys("#token", token+kb.Enter), chromedp.WaitVisible("#rows table"))
	c.accessible(t, "the list", checker)
	c.follow(t, "ada/tool#3")
	c.run(t, chromedp.WaitVisible("#events"))
	c.sees(t, "the pod's page", `location.href === `+quoted(w.url(podName, "/")))
	c.accessible(t, "the page", checker)

	w.journal.Add(podapi.EventTool, "live "+evil)
	c.sees(t, "an event as it comes", `[...document.querySelectorAll("#events li.tool span")].some(e => e.textContent === `+quoted("live "+evil)+`)`)
	w.agent.mu.Lock()
	w.agent.sum.Activity, w.agent.sum.Message = "", "I am at it"
	w.agent.mu.Unlock()
	w.journal.Add(podapi.EventState, "working")
	c.sees(t, "what is new of the state", `document.querySelector("#facts").textContent.includes("I am at it")`)
	if markup := value[int](t, c, `document.querySelectorAll("img, main script").length`); markup != 0 {
		t.Errorf("the page has %d images or scripts of the agent's", markup)
	}

	c.run(t, chromedp.Click("#text"), chromedp.SendKeys("#text", "go left"), chromedp.KeyEvent(kb.Enter, chromedp.KeyModifiers(kb.ModifierCtrl)))
	c.sees(t, "that it was sent", `document.querySelector("#said").textContent === "Sent."`)
	c.sees(t, "what was said", `[...document.querySelectorAll("#events li.person span")].some(e => e.textContent === "go left")`)
	c.run(t, chromedp.KeyEvent(kb.Tab), chromedp.KeyEvent(kb.Tab), chromedp.KeyEvent(kb.Enter)) // to the second button
	c.sees(t, "that it was stopped", `document.querySelector("#said").textContent.includes("stop")`)
	if got := w.agent.heard(); got != "go left|STOP" {
		t.Errorf("the agent was told %q", got)
	}

	if shown := value[bool](t, c, `document.getElementById("retry") !== null`); shown {
		t.Error("it can be tried again though it has not failed")
	}
	w.mu.Lock()
	w.pod.State = "failed"
	w.mu.Unlock()
	w.journal.Add(podapi.EventState, "failed")
	c.sees(t, "the button to try again", `document.querySelector("#retry button") !== null`)
	c.accessible(t, "the page of one that failed", checker)
	c.run(t, chromedp.Focus("#retry button"), chromedp.KeyEvent(kb.Enter))
	c.sees(t, "that it tries again", `document.querySelector("#said").textContent === "It tries again."`)
	if got := w.agent.heard(); got != "go left|STOP|RETRY" {
		t.Errorf("the agent was told %q", got)
	}

	c.follow(t, "See the changes")
	c.run(t, chromedp.WaitVisible("pre.diff"))
	c.accessible(t, "the changes", checker)
	for _, wrong := range c.wrong {
		t.Error(wrong)
	}
}

// Of a long history a page has the newest, and the rest in parts when it is asked for,
// with a script or without.
func TestALongHistory(t *testing.T) {
	w := newWorld(t)
	for i := range 10_000 {
		w.journal.Add(podapi.EventTool, fmt.Sprintf("%d %s", i+1, evil))
	}
	c := startChromium(t)
	c.run(t, chromedp.Navigate(w.site.Open(podName)), chromedp.WaitVisible("#events"))
	shown := `[...document.querySelectorAll("#events li.tool span")].map(e => parseInt(e.textContent)).join()`
	list := func(from, to int) string {
		var b []string
		for i := from; i <= to; i++ {
			b = append(b, fmt.Sprint(i))
		}
		return strings.Join(b, ",")
	}
	if got := value[string](t, c, shown); got != list(9801, 10_000) {
		t.Errorf("the page begins with %.200s", got)
	}
	if size := value[int](t, c, `document.documentElement.outerHTML.length`); size > 200_000 {
		t.Errorf("the page has %d characters", size)
	}
	c.run(t, chromedp.Focus("#events a[data-before]"), chromedp.KeyEvent(kb.Enter))
	c.sees(t, "the ones before", shown+" === "+quoted(list(9601, 10_000)))
	c.accessible(t, "the page with more of it", axe(t))
	w.journal.Add(podapi.EventTool, "10001 comes")
	c.sees(t, "what comes", shown+" === "+quoted(list(9601, 10_001)))
	c.run(t, chromedp.Navigate(w.url(podName, "/?before=200")), chromedp.WaitVisible("#events"))
	if got := value[string](t, c, shown); got != list(1, 199) {
		t.Errorf("before 200 there are %.200s", got)
	}
	if markup := value[int](t, c, `document.querySelectorAll("img, main script").length`); markup != 0 {
		t.Errorf("the page has %d images or scripts of the agent's", markup)
	}
	for _, wrong := range c.wrong {
		t.Error(wrong)
	}
}

func quoted(s string) string {
	b, err := json.Marshal(s)
	if err != nil {
		panic(err)
	}
	return string(b)
}
