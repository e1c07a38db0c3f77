// Package chromium drives a real browser for tests: [Start], then [Browser.Run] with
// chromedp's actions, [Browser.Sees] to wait for what a page comes to show, and
// [Browser.Wrong] for what went wrong meanwhile in any of its windows.
package chromium

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"sync"
	"time"

	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/cdproto/target"
	"github.com/chromedp/chromedp"
)

// patience is how long a page may take for one thing.
const patience = 60 * time.Second

// A Browser is one with a window. Its methods are for one goroutine.
type Browser struct {
	context.Context // of the window

	cancel []context.CancelFunc
	mu     sync.Mutex
	wrong  []string
}

// Start starts one, with a profile of its own. It looks up no names but those of this machine.
func Start(ctx context.Context) (*Browser, error) {
	program, err := exec.LookPath("chromium")
	if err != nil {
		return nil, fmt.Errorf("there is no chromium for tests of pages: run .ci/install: %w", err)
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(program), chromedp.NoSandbox, chromedp.DisableGPU,
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-background-networking", true), chromedp.Flag("disable-component-update", true),
		chromedp.Flag("host-resolver-rules", "MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE *.localhost, EXCLUDE 127.0.0.1"))
	ctx, end := chromedp.NewExecAllocator(ctx, options...)
	b := &Browser{cancel: []context.CancelFunc{end}}
	return b, b.open(ctx)
}

// Window is a window that a page opens while act runs: the same browser.
func (b *Browser) Window(act ...chromedp.Action[chromedp.Void]) (*Browser, error) {
	opened := chromedp.WaitNewTarget(b, func(i *target.Info) bool { return i.URL != "" })
	if err := b.Run(act...); err != nil {
		return nil, err
	}
	select {
	case id := <-opened:
		w := &Browser{}
		return w, w.open(b, chromedp.WithTargetID(id))
	case <-time.After(patience):
		return nil, errors.New("no window was opened")
	}
}

func (b *Browser) open(ctx context.Context, options ...chromedp.ContextOption) error {
	ctx, end := chromedp.NewContext(ctx, options...)
	b.Context, b.cancel = ctx, append([]context.CancelFunc{end}, b.cancel...)
	if err := chromedp.Listen(ctx, b.hear); err != nil {
		return fmt.Errorf("starting chromium: %w", err)
	}
	return nil
}

// Close ends it, or closes the window.
func (b *Browser) Close() {
	for _, end := range b.cancel {
		end()
	}
}

func (b *Browser) hear(ev any) {
	text := ""
	switch ev := ev.(type) {
	case *page.EventJavascriptDialogOpening:
		text = "a dialog: " + ev.Message
	case *runtime.EventExceptionThrown:
		text = fmt.Sprintf("a script broke: %s at %s:%d", ev.ExceptionDetails.Text, ev.ExceptionDetails.URL, ev.ExceptionDetails.LineNumber)
	case *log.EventEntryAdded:
		if ev.Entry.Level == log.EntryLevelError {
			text = ev.Entry.Text + " " + ev.Entry.URL
		}
	}
	if text != "" {
		b.note(text)
	}
}

func (b *Browser) note(text string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.wrong = append(b.wrong, text)
}

// Wrong are the errors of the window's pages so far: broken scripts, dialogs, what the
// console has.
func (b *Browser) Wrong() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]string(nil), b.wrong...)
}

// Run does as a person would.
func (b *Browser) Run(actions ...chromedp.Action[chromedp.Void]) error {
	ctx, cancel := context.WithTimeout(b, patience)
	defer cancel()
	if err := chromedp.Do(ctx, actions...); err != nil {
		return fmt.Errorf("%w; the page is\n%s", err, b.text())
	}
	return nil
}

// Sees waits until an expression is true; one that breaks is not, yet, nor is one in a
// page that is just going.
func (b *Browser) Sees(what, script string) error { return b.SeesWithin(patience, what, script) }

// SeesWithin is [Browser.Sees] with a limit of its own.
func (b *Browser) SeesWithin(limit time.Duration, what, script string) error {
	ctx, cancel := context.WithTimeout(b, limit)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		ok, err := chromedp.Run(ctx, chromedp.Evaluate[bool]("(() => { try { return !!("+script+"); } catch { return false; } })()"))
		if ok && err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%s: %w; the page is\n%s\nand %q", what, errors.Join(ctx.Err(), err), b.text(), b.Wrong())
		}
	}
}

// Picture is the window as a PNG.
func (b *Browser) Picture() ([]byte, error) {
	ctx, cancel := context.WithTimeout(b, patience)
	defer cancel()
	return chromedp.Run(ctx, chromedp.CaptureScreenshot())
}

// text is what the page shows, for messages.
func (b *Browser) text() string {
	ctx, cancel := context.WithTimeout(b, patience)
	defer cancel()
	text, err := chromedp.Run(ctx, chromedp.Evaluate[string](`location.href + "\n" + document.body?.innerText + "\n" + (document.querySelector("#devaipod-panel")?.shadowRoot.querySelector("h2").parentNode.textContent ?? "")`))
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(text)
}
