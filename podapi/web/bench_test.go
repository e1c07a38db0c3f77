package web_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"codeberg.org/devaipod/devaipod/podapi"
)

// `make bench`: how long it takes from an event in the journal until it is in the page of
// a real Chromium, beside the time that one answer of the same site takes to get there
// (fetch of what changes nothing), which has the same way to go twice.
func BenchmarkEventToBrowser(b *testing.B) {
	w := newWorld(b)
	c := startChromium(b)
	c.run(b, chromedp.Navigate(w.site.Open(podName)), chromedp.WaitVisible("#events"))
	value[any](b, c, `window.seen = {};
new MutationObserver((all) => {
  for (const m of all) for (const n of m.addedNodes) {
    const told = n.querySelector && n.querySelector("span");
    if (told) seen[told.textContent] = performance.timeOrigin + performance.now();
  }
}).observe(document.getElementById("events"), { childList: true }); null`)
	var took, fetched []time.Duration
	const rounds = 200
	for b.Loop() {
		sent := map[string]time.Time{}
		for i := range rounds {
			text := fmt.Sprint("event ", len(took)+i)
			sent[text] = time.Now()
			w.journal.Add(podapi.EventTool, text)
			time.Sleep(50 * time.Millisecond)
		}
		c.sees(b, "all events", fmt.Sprintf("seen[%q] !== undefined", fmt.Sprint("event ", len(took)+rounds-1)))
		for text, at := range value[map[string]float64](b, c, "seen") {
			if began, ok := sent[text]; ok {
				took = append(took, time.UnixMicro(int64(at*1000)).Sub(began))
			}
		}
		for range rounds {
			ms := value[float64](b, c, `(async () => { const t = performance.now(); await (await fetch("/static/page.css", { cache: "no-store" })).text(); return performance.now() - t; })()`)
			fetched = append(fetched, time.Duration(ms*float64(time.Millisecond)))
		}
	}
	at := func(all []time.Duration, q float64) float64 {
		slices.Sort(all)
		return float64(all[int(q*float64(len(all)-1))].Microseconds()) / 1000
	}
	b.ReportMetric(0, "ns/op")
	for unit, q := range map[string]float64{"p50": 0.5, "p99": 0.99} {
		b.ReportMetric(at(took, q), unit+"-ms")
		b.ReportMetric(at(fetched, q), unit+"-fetch-ms")
	}
	b.ReportMetric(at(took, 0.5)/at(fetched, 0.5), "of-fetch")
	if bad := strings.Join(c.wrong, "; "); bad != "" {
		b.Error(bad)
	}
}
