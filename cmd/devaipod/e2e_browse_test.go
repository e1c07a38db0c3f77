package main_test

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"

	"github.com/chromedp/chromedp"

	"codeberg.org/devaipod/devaipod/podapi/chromium"
)

// browse does in a real browser what a file says, line by line; $NAME is the script's.
//
//	login [WHO]    as the person, or another, by the forge's own form
//	open PATH      of the forge
//	see EXPRESSION of JavaScript, to come true
//	panel TEXT     to come up in the panel
//	press TEXT     clicks the panel's button with that
//	say TEXT       writes that into the panel's box, and sends it
//	window CSS TEXT   presses that button, and clicks CSS in the window that it opens
//	link FACT      clicks a link that the panel has
//	picture FILE   into the directory TEST_PICTURES, if that is set
//	policy TEXT    a Content-Security-Policy of the forge's pages from now on
//	service VERB   as the script's word
//	quiet PATTERN  nothing was wrong so far but what matches
//	size W H       of the window
//	click WHERE    with the mouse; WHERE is CSS, or CSS `with` TEXT, and what is seen of it
//	type TEXT      by keys, to where the last click was; \n is Enter
//	look WHERE     scrolls there
//	shown WHERE    waits for that
//	reload WHERE   loads the page again until it has that
func (c *call) browse() error {
	if len(c.args) != 1 {
		return errors.New("usage: browse FILE")
	}
	b, err := chromium.Start(c.ctx)
	if err != nil {
		return err
	}
	defer b.Close()
	if err := b.Run(chromedp.EmulateViewport(1280, 1000)); err != nil {
		return err
	}
	for line := range strings.Lines(c.ts.ReadFile(c.args[0])) {
		word, rest, _ := strings.Cut(strings.TrimSpace(os.Expand(line, c.env)), " ")
		if err := c.browseOne(b, word, rest); err != nil {
			err = fmt.Errorf("%s %s: %w; wrong was %q", word, rest, err, b.Wrong())
			return errors.Join(err, picture(b, "failed.png"))
		}
	}
	return nil
}

// panelPart is the panel's inside.
const panelPart = `document.querySelector("#devaipod-panel").shadowRoot`

func asJSON(s string) string {
	b, err := json.Marshal(s)
	if err != nil {
		panic(err)
	}
	return string(b)
}

func panelButton(text string) chromedp.Action[chromedp.Void] {
	return chromedp.Click(chromedp.JSPath(`[...` + panelPart + `.querySelectorAll("button")].find(b => b.textContent.includes(` + asJSON(text) + `))`))
}

func (c *call) browseOne(b *chromium.Browser, word, rest string) error {
	switch word {
	case "":
		return nil
	case "login":
		return b.Run(chromedp.Navigate(c.ForgeURL()+"/user/login"), chromedp.SendKeys(chromedp.CSS("#user_name"), cmp.Or(rest, person)), chromedp.SendKeys(chromedp.CSS("#password"), c.password), chromedp.Click(chromedp.CSS("form button.primary")), chromedp.WaitVisible(chromedp.CSS(".dashboard")))
	case "open":
		return b.Run(chromedp.Navigate(c.ForgeURL()+rest), chromedp.WaitVisible(chromedp.CSS("body")))
	case "see":
		return b.Sees("that", rest)
	case "panel":
		return b.Sees("the panel", panelPart+`.querySelector("h2").parentNode.textContent.includes(`+asJSON(rest)+`)`)
	case "press":
		return b.Run(panelButton(rest))
	case "say":
		return b.Run(chromedp.SendKeys(chromedp.JSPath(panelPart+`.querySelector("textarea")`), rest), panelButton("Send"))
	case "window":
		css, text, _ := strings.Cut(rest, " ")
		w, err := b.Window(panelButton(text))
		if err != nil {
			return err
		}
		return w.Run(chromedp.Click(chromedp.CSS(css)))
	case "link":
		return b.Run(chromedp.Click(chromedp.JSPath(`[...` + panelPart + `.querySelectorAll("dd a")].find(a => a.parentNode.dataset.fact === ` + asJSON(rest) + `)`)))
	case "picture":
		return picture(b, rest)
	case "policy":
		return b.Policy(rest)
	case "service":
		return (&call{suite: c.suite, ts: c.ts, args: []string{rest}}).service()
	case "quiet":
		return quiet(b, rest)
	}
	return click(b, word, rest)
}

func quiet(b *chromium.Browser, but string) error {
	re, err := regexp.Compile(but)
	for _, wrong := range b.Wrong() {
		if err == nil && !re.MatchString(wrong) {
			err = fmt.Errorf("that was not to be: %s", wrong)
		}
	}
	return err
}
