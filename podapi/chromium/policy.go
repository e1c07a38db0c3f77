package chromium

import (
	"encoding/json"
	"fmt"

	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"
)

// Policy puts a Content-Security-Policy on the documents that the window loads from now
// on: by an element of their head, before anything else is in that (html.spec.whatwg.org,
// 4.2.5.3). Browsers hold a page to it as to a header.
func (b *Browser) Policy(policy string) error {
	quoted, err := json.Marshal(policy)
	if err != nil {
		return err
	}
	script := fmt.Sprintf(`new MutationObserver((_, seen) => {
  if (!document.head) return;
  seen.disconnect();
  const meta = document.createElement("meta");
  meta.httpEquiv = "Content-Security-Policy";
  meta.content = %s;
  document.head.prepend(meta);
}).observe(document, { childList: true, subtree: true });`, quoted)
	_, err = chromedp.Call(b, page.AddScriptToEvaluateOnNewDocument, page.AddScriptToEvaluateOnNewDocumentParams{Source: script})
	return err
}
