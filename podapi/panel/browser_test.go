package panel_test

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"

	"codeberg.org/devaipod/devaipod/podapi/chromium"
)

// inPanel is JavaScript for the panel's inside.
const inPanel = `document.querySelector("#devaipod-panel").shadowRoot`

func press(text string) chromedp.Action[chromedp.Void] {
	quoted, err := json.Marshal(text)
	if err != nil {
		panic(err)
	}
	return chromedp.Click(chromedp.JSPath(`[...` + inPanel + `.querySelectorAll("button")].find(b => b.textContent.startsWith(` + string(quoted) + `))`))
}

// Under a policy that allows a page scripts and styles of its own origin alone, and a way to
// the service, a person logs in by the forge and answers, with clicks; what an agent says
// does nothing; when the service goes, so does the panel, and nothing else.
func TestInARealBrowser(t *testing.T) {
	w := newWorld(t)
	w.policy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src http://" + w.host
	b, err := chromium.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(b.Run(chromedp.Navigate(w.forge.URL+"/ada/tool/issues/3"), chromedp.WaitVisible("#devaipod-panel")))
	must(b.Run(press("Log in")))
	must(b.Sees("the agent's state", inPanel+`.querySelector(".state").textContent === "asking"`))
	must(b.Sees("what it does, as text", inPanel+`.textContent.includes("onerror=alert(1)") && `+inPanel+`.querySelectorAll("img, script").length === 0`))
	must(b.Sees("no link that is a script", inPanel+`.querySelectorAll("a").length === 0`))
	must(b.Run(press("2. blue")))
	must(b.Sees("that it was answered", inPanel+`.textContent.includes("Answered.")`))
	must(b.Run(chromedp.SendKeys(chromedp.JSPath(inPanel+`.querySelector("textarea")`), "go left"), press("Send")))
	must(b.Sees("that it was sent", inPanel+`.textContent.includes("Sent, as a comment of yours.") && `+inPanel+`.querySelector("textarea").value === ""`))
	must(b.Run(chromedp.SendKeys(chromedp.JSPath(inPanel+`.querySelector("input")`), "5M tokens"), press("Raise the budget")))
	must(b.Sees("that it was raised", inPanel+`.textContent.includes("Raised") && `+inPanel+`.querySelector("input").value === ""`))
	// What is drawn anew takes the focus from nobody who writes.
	must(b.Run(chromedp.SendKeys(chromedp.JSPath(inPanel+`.querySelector("textarea")`), "half a ")))
	w.set(func() { w.shown.Facts[3].Lines = []string{"$0.13 of $5.00"} })
	must(b.Sees("what it used by now", inPanel+`.textContent.includes("$0.13")`))
	must(b.Sees("that it can be written on", inPanel+`.activeElement === `+inPanel+`.querySelector("textarea")`))
	must(b.Run(press("Stop")))
	must(b.Sees("that it stops", inPanel+`.textContent.includes("It stops")`))
	w.set(func() { w.failing = errors.New("there " + evil) })
	must(b.Run(press("Try again")))
	must(b.Sees("why it can't be done", inPanel+`.textContent.includes("there <img")`))
	if got := strings.Join(w.done, "|"); got != "ann ada/tool#3 answer 2ask-1|ann ada/tool#3 message go left|ann ada/tool#3 budget 5M tokens|ann ada/tool#3 stop |ann ada/tool#3 retry " {
		t.Errorf("done is %q", got)
	}
	// On an issue without an agent there are the buttons that start one, and nothing else.
	w.set(func() { w.done, w.failing = nil, nil })
	must(b.Run(chromedp.Navigate(w.forge.URL+"/ada/tool/issues/6"), chromedp.WaitVisible("#devaipod-panel")))
	must(b.Sees("the buttons that start one", inPanel+`.querySelectorAll("form:not([hidden]), .state").length === 0 && [...`+inPanel+`.querySelectorAll("div button")].map(b => b.textContent).join("|") === "Start an agent|Start fast"`))
	must(b.Run(press("Start an agent")))
	must(b.Sees("that it starts", inPanel+`.textContent.includes("It starts")`))
	must(b.Run(press("Start fast")))
	must(b.Sees("that it starts", inPanel+`.querySelectorAll("button:disabled").length === 0`))
	w.set(func() {
		if got := strings.Join(w.done, "|"); got != "ann ada/tool#6 start |ann ada/tool#6 start fast" {
			t.Errorf("done is %q", got)
		}
	})
	must(b.Run(chromedp.Navigate(w.forge.URL + "/ada/tool/issues/3")))
	// It stays logged in, and sees no buttons once it may not push.
	w.set(func() { w.rights["ann"] = "read" })
	must(b.Run(chromedp.Reload()))
	must(b.Sees("the panel without what it may not do", inPanel+`.querySelectorAll("form:not([hidden]), div button").length === 0 && `+inPanel+`.textContent.includes("2. blue")`))
	w.set(func() { w.rights = nil })
	must(b.Run(chromedp.Reload()))
	must(b.Sees("no panel", `document.querySelector("#devaipod-panel") === null && document.querySelector(".issue-content-right") !== null`))

	w.set(func() { w.rights = map[string]string{"ann": "write"} })
	must(b.Run(chromedp.Reload(), chromedp.WaitVisible("#devaipod-panel")))
	before := len(b.Wrong())
	w.server.Close()
	must(b.Sees("no panel without the service", `document.querySelector("#devaipod-panel") === null`))
	must(b.Run(chromedp.Reload(), chromedp.WaitVisible("h1")))
	must(b.Sees("the page", `document.querySelector("h1").textContent === "Issue"`))
	for _, wrong := range b.Wrong()[before:] {
		if !strings.Contains(wrong, "net::ERR_") {
			t.Error(wrong)
		}
	}
	for _, wrong := range b.Wrong()[:before] {
		if !strings.Contains(wrong, "409 (Conflict)") && !strings.Contains(wrong, "404 (Not Found)") && !strings.Contains(wrong, "401 (Unauthorized)") {
			t.Error(wrong)
		}
	}
}

// A page of another origin that opens the login gets nothing from it, and one that sends a
// token to the panel is not heard.
func TestTheTokenGoesToTheForgesPageAlone(t *testing.T) {
	w := newWorld(t)
	other := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Content-Type", "text/html")
		_, _ = rw.Write([]byte(`<!doctype html><title>other</title><button>Open</button><script>
const heard = [];
addEventListener("message", (e) => heard.push(e.data));
document.querySelector("button").onclick = () => { window.popup = open("http://` + w.host + `/login"); };
</script>`))
	}))
	defer other.Close()
	b, err := chromium.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	if err := b.Run(chromedp.Navigate(other.URL), chromedp.Click(chromedp.CSS("button"))); err != nil {
		t.Fatal(err)
	}
	if err := b.Sees("the end of the login", `window.popup && window.popup.closed`); err != nil {
		t.Fatal(err)
	}
	if err := b.Sees("nothing that came of it", `heard.length === 0`); err != nil {
		t.Error(err)
	}
	if err := b.Run(chromedp.Navigate(w.forge.URL+"/ada/tool/issues/3"), chromedp.WaitVisible("#devaipod-panel")); err != nil {
		t.Fatal(err)
	}
	script := `window.postMessage({devaipod: {token: "x", user: "ann"}}, "*"); new Promise(r => setTimeout(() => r(localStorage.getItem("devaipod.panel") === null), 0))`
	ok, err := chromedp.Run(b, chromedp.Evaluate[bool](script, chromedp.EvalAwaitPromise))
	if err != nil || !ok {
		t.Errorf("a token from elsewhere is kept: %v", err)
	}
}
