package podapi_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/podapi"
)

// watch opens /events on a connection of its own, as one that has seen an id.
func watch(t *testing.T, socket string, seen int64) net.Conn {
	t.Helper()
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if _, err := fmt.Fprintf(conn, "GET /events HTTP/1.1\r\nHost: pod\r\nLast-Event-ID: %d\r\n\r\n", seen); err != nil {
		t.Fatal(err)
	}
	return conn
}

// follow reads events until one of an id, or the connection's end, and returns the last
// whole one's; they have to come one after the other.
func follow(conn net.Conn, seen, until int64) (int64, error) {
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return seen, err
	}
	lines, id := bufio.NewReader(resp.Body), int64(0) // not closed: that would read to its end
	for seen < until {
		line, err := lines.ReadString('\n')
		if err != nil {
			return seen, err
		}
		if text, ok := strings.CutPrefix(line, "id: "); ok {
			if id, err = strconv.ParseInt(strings.TrimSpace(text), 10, 64); err != nil || id != seen+1 {
				return seen, fmt.Errorf("%w: after %d came %s, %w", errGap, seen, text, err)
			}
		}
		if line == "\n" && id != 0 {
			seen = id
		}
	}
	return seen, nil
}

var errGap = errors.New("events are missing")

// A thousand events a second, and a hundred that watch: who reads gets each once and in
// order, who does not is dropped, and finds all when it comes back, also what is no
// longer in memory. Nobody waits for them, and memory stays bounded.
func TestAFloodOfEvents(t *testing.T) {
	podapi.SetSlowest(2 * time.Second)
	defer podapi.SetSlowest(30 * time.Second)
	j := podapi.OpenJournal(t.TempDir(), quiet)
	_, socket := serve(t, &driver{}, j)
	const rate, last, slow = 1000, 3000, 20
	var readers sync.WaitGroup
	var lazy []net.Conn
	for i := range 100 {
		conn := watch(t, socket, 0)
		if i < slow {
			lazy = append(lazy, conn)
			continue
		}
		readers.Go(func() {
			seen, err := follow(conn, 0, last)
			for err != nil && !errors.Is(err, errGap) && t.Context().Err() == nil { // this machine is slow: it comes back, as browsers do
				seen, err = follow(watch(t, socket, seen), seen, last)
			}
			if err != nil {
				t.Errorf("a watcher got %d events: %v", seen, err)
			}
		})
	}
	text := strings.Repeat("\x1b[31m<b>\u202e", 5)
	tick := time.NewTicker(time.Second / rate * 10)
	defer tick.Stop()
	for range last / 10 {
		<-tick.C
		for range 10 {
			j.Add(podapi.EventTool, text)
		}
	}
	readers.Wait()
	var mem runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&mem)
	if mem.HeapAlloc > 64<<20 {
		t.Errorf("%d MB are held", mem.HeapAlloc>>20)
	}
	for _, conn := range lazy {
		seen, err := follow(conn, 0, last)
		if err == nil || errors.Is(err, errGap) {
			t.Fatalf("a watcher that reads nothing was not dropped: %d events, %v", seen, err)
		}
		if seen, err = follow(watch(t, socket, seen), seen, last); err != nil {
			t.Fatalf("it came back, and got as far as %d: %v", seen, err)
		}
	}
}

// The transcript comes in pages, from files and memory alike.
func TestPagesOfTheTranscript(t *testing.T) {
	dir := t.TempDir()
	for name, j := range map[string]*podapi.Journal{"kept": podapi.OpenJournal(dir, quiet), "in memory": {}} {
		c, _ := serve(t, &driver{}, j)
		if got := get(t, c, "/transcript?limit=5"); got != "" {
			t.Errorf("%s: of nothing: %q", name, got)
		}
		for i := range 1200 {
			j.Add(podapi.EventText, fmt.Sprint(i+1, strings.Repeat(" é", 100)))
		}
		ids := func(query string) (out []int64) {
			for line := range strings.Lines(get(t, c, "/transcript"+query)) {
				var ev podapi.Event
				if err := json.Unmarshal([]byte(line), &ev); err != nil || !strings.HasPrefix(ev.Text, fmt.Sprint(ev.ID, " ")) {
					t.Fatalf("%s: %q, %v", name, line, err)
				}
				out = append(out, ev.ID)
			}
			return out
		}
		for query, want := range map[string][2]int64{"?limit=3": {1198, 1200}, "?before=1200&limit=1000": {200, 1199}, "?before=11&limit=1000": {1, 10}, "?limit=1": {1200, 1200}, "?before=1&limit=5": {}, "": {1, 1200}} {
			got := ids(query)
			if name != "kept" && (want[0] < 1000 || len(got) < 1) {
				continue // the older ones are gone
			}
			if want == [2]int64{} && len(got) == 0 {
				continue
			}
			if len(got) == 0 || got[0] != want[0] || got[len(got)-1] != want[1] || int64(len(got)) != want[1]-want[0]+1 {
				t.Errorf("%s: %q is %d events: %v", name, query, len(got), got)
			}
		}
	}
	f, err := os.OpenFile(dir+"/"+podapi.TranscriptFile, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString("\n\nnonsense\n{\"id\": 9999, \"text\": \"torn"); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if page, err := podapi.TranscriptPage(dir, 1<<60, 2); err != nil || len(page) != 2 || page[1].ID != 1200 {
		t.Errorf("with a torn line: %+v, %v", page, err)
	}
	if page, err := podapi.TranscriptPage(t.TempDir(), 1<<60, 2); err != nil || len(page) != 0 {
		t.Errorf("of nothing: %+v, %v", page, err)
	}
}

func TestAMessageOverTheLimit(t *testing.T) {
	d := &driver{}
	c, socket := serve(t, d, &podapi.Journal{})
	if err := c.Send(t.Context(), strings.Repeat("x", 1<<20-100)); err != nil {
		t.Errorf("one just below it: %v", err)
	}
	for name, head := range map[string]string{"told": "Content-Length: 3000000", "not told": "Transfer-Encoding: chunked"} {
		conn, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		go func() {
			fmt.Fprintf(conn, "POST /messages HTTP/1.1\r\nHost: pod\r\nContent-Type: application/json\r\n%s\r\n\r\n", head)
			body := `{"text":"` + strings.Repeat("x", 3_000_000-11) + `"}`
			if name == "not told" {
				body = fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(body), body)
			}
			_, _ = io.WriteString(conn, body) // it is cut off
		}()
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(resp.Body)
		if resp.StatusCode != http.StatusRequestEntityTooLarge || string(text) != "a message has at most 1 MiB\n" {
			t.Errorf("%s: %s %q %v", name, resp.Status, text, err)
		}
	}
	if len(d.sent) != 1 {
		t.Errorf("the agent was told %d times", len(d.sent))
	}
}

// agentServer is a driver of an agent with a server of its own.
type agentServer struct {
	*driver
	http.RoundTripper
}

func (a agentServer) Pages() http.RoundTripper { return a }

// endless is an agent's answer that never ends.
type endless struct{ ctx context.Context }

func (e endless) Read(p []byte) (int, error) { return len(p), e.ctx.Err() }
func (endless) Close() error                 { return nil }

// RoundTrip answers with it.
func (endless) RoundTrip(r *http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Body: endless{r.Context()}, ContentLength: -1, Request: r}, nil
}

// Who reads slowly what an agent serves keeps nobody waiting, and little memory.
func TestSlowReadersOfAnAgentsPages(t *testing.T) {
	c, socket := serveDriver(t, agentServer{&driver{sum: podapi.Summary{State: podapi.Working}}, endless{}}, &podapi.Journal{})
	for range 100 {
		conn, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := io.WriteString(conn, "GET /agent/flood HTTP/1.1\r\nHost: pod\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Read(make([]byte, 10)); err != nil {
			t.Fatal(err)
		}
	}
	if sum, err := c.Summary(t.Context()); err != nil || sum.State != podapi.Working {
		t.Errorf("%+v, %v", sum, err)
	}
	var mem runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&mem)
	if mem.HeapAlloc > 32<<20 {
		t.Errorf("%d MB are held", mem.HeapAlloc>>20)
	}
}
