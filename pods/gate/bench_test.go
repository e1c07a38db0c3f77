package gate_test

import (
	"bufio"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/pods/podfile"
)

// BenchmarkStream measures how much later a token comes through the gate than
// straight from the model: a stream of 300 events, one a millisecond, each with the
// time at which it was sent; both ways in turn.
func BenchmarkStream(b *testing.B) {
	model := func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		rc := http.NewResponseController(w)
		for range 300 {
			fmt.Fprintf(w, "data: {\"choices\":[{\"delta\":{\"content\":\"%d\"}}]}\n\n", time.Now().UnixNano())
			if rc.Flush() != nil {
				return
			}
			time.Sleep(time.Millisecond)
		}
	}
	p := newPlaceFor(b, podfile.APIOpenAI, model)
	straight := httptest.NewServer(http.HandlerFunc(model))
	defer straight.Close()
	late := map[string][]time.Duration{}
	take := func(way, url string) {
		req, err := http.NewRequest(http.MethodPost, url, strings.NewReader(goodChat))
		if err != nil {
			b.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+agentTok)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			b.Fatal(err)
		}
		defer resp.Body.Close()
		for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
			_, rest, ok := strings.Cut(lines.Text(), `"content":"`)
			if !ok {
				continue
			}
			digits, _, _ := strings.Cut(rest, `"`)
			sent, err := strconv.ParseInt(digits, 10, 64)
			if err != nil {
				b.Fatal(err)
			}
			late[way] = append(late[way], time.Since(time.Unix(0, sent)))
		}
	}
	for b.Loop() {
		take("straight", straight.URL)
		take("gate", p.agent.URL+chatRoute)
	}
	at := func(way string, share float64) float64 {
		all := late[way]
		slices.Sort(all)
		return float64(all[int(share*float64(len(all)-1))].Microseconds())
	}
	for _, share := range []float64{0.5, 0.99} {
		name := fmt.Sprintf("µs-p%.0f", share*100)
		b.ReportMetric(at("straight", share), name+"-straight")
		b.ReportMetric(at("gate", share)-at("straight", share), name+"-added")
	}
}
