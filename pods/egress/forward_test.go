package egress_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/pods/egress"
)

func TestAPlainRequestIsMadeAnew(t *testing.T) {
	w := newWorld(t, nil, "a.example.com", "a.example.com:8080")
	saw := make(chan string, 10)
	note := func(c *net.TCPConn) {
		r := bufio.NewReader(c)
		req, err := http.ReadRequest(r)
		if err != nil {
			return
		}
		var b strings.Builder
		body, err := io.ReadAll(req.Body)
		req.Body = io.NopCloser(bytes.NewReader(body))
		fmt.Fprintf(&b, "%s %s %s %v\n", req.Method, req.RequestURI, req.Host, err)
		if err := req.Header.Write(&b); err != nil {
			t.Error(err)
		}
		fmt.Fprintf(&b, "%s", body)
		saw <- b.String()
		say(c, "HTTP/1.1 301 Moved\r\nLocation: http://elsewhere.example.net/\r\nConnection: X-Hop\r\nX-Hop: 1\r\nProxy-Authenticate: Basic\r\nKeep-Alive: a\r\nX-End: 1\r\nContent-Length: 2\r\n\r\nok")
	}
	w.raw("a.example.com", 80, note)
	l := w.listen()
	w.lead(w.names["a.example.com."][0], 8080, l)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); note(c.(*net.TCPConn)) }()
		}
	}()
	_, resp := w.ask("POST http://A.example.com./p?a=1;b=%zz HTTP/1.1\r\nHost: evil.example.net\r\n" + authorization +
		"Connection: X-Mine, close\r\nX-Mine: 1\r\nKeep-Alive: 5\r\nProxy-Connection: keep-alive\r\nTE: gzip\r\nX-Forwarded-For: 1.2.3.4\r\nAccept-Encoding: br\r\nX-End: 2\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
	if body := readAll(t, resp.Body); body != "ok" || resp.StatusCode != 301 || resp.Header.Get("Location") != "http://elsewhere.example.net/" || resp.Header.Get("X-End") != "1" {
		t.Errorf("%s %q %q", resp.Status, resp.Header, body)
	}
	for _, name := range []string{"X-Hop", "Proxy-Authenticate", "Keep-Alive"} {
		if resp.Header.Get(name) != "" {
			t.Errorf("%s came back", name)
		}
	}
	want := "POST /p?a=1;b=%zz a.example.com <nil>\nAccept-Encoding: br\r\nVia: 1.1 devaipod\r\nX-End: 2\r\nabc"
	if got := <-saw; got != want {
		t.Errorf("the host saw\n%s\nwant\n%s", got, want)
	}
	if _, resp = w.ask("GET http://a.example.com:8080/ HTTP/1.0\r\n" + authorization + "\r\n"); resp.StatusCode != 301 {
		t.Errorf("HTTP/1.0: %s", resp.Status)
	}
	if got := <-saw; !strings.HasPrefix(got, "GET / a.example.com:8080 <nil>") {
		t.Errorf("the host saw %s", got)
	}
	// What Java's client offers everybody.
	if _, resp = w.ask("GET http://a.example.com/ HTTP/1.1\r\nHost: a.example.com\r\n" + authorization + "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n\r\n"); resp.StatusCode != 301 {
		t.Errorf("h2c: %s", resp.Status)
	}
	if got := <-saw; strings.Contains(strings.ToLower(got), "upgrade") || strings.Contains(strings.ToLower(got), "http2") {
		t.Errorf("the host saw %s", got)
	}
}

func TestAPlainRequestIsRefusedInWords(t *testing.T) {
	w := newWorld(t, nil, "a.example.com", "in.example.com", "down.example.com")
	w.name("a.example.com")
	w.name("down.example.com")
	w.name("in.example.com", "10.0.0.1")
	for _, tt := range []struct {
		request string
		status  int
		words   string
	}{
		{"GET http://evil.example.net/ HTTP/1.1\r\nHost: a.example.com\r\n", 403, "evil.example.net:80 is blocked: it is not on the list of hosts that this pod may reach. A person can allow it with the comment /allow evil.example.net on the issue"},
		{"POST http://evil.example.net/ HTTP/1.1\r\nHost: a.example.com\r\nContent-Length: 3\r\n", 403, "/allow evil.example.net on"},
		{"GET http://a.example.com:8080/ HTTP/1.1\r\nHost: a.example.com\r\n", 403, "/allow a.example.com:8080 on"},
		{"GET http://in.example.com/ HTTP/1.1\r\nHost: x\r\n", 403, "10.0.0.1, which is no address of the public internet"},
		{"GET http://127.0.0.1/ HTTP/1.1\r\nHost: x\r\n", 403, "no address of the public internet"},
		{"GET http://gone.example.com/ HTTP/1.1\r\nHost: x\r\n", 403, "not on the list"},
		{"GET http://down.example.com/ HTTP/1.1\r\nHost: x\r\n", 502, "connection refused"},
		{"GET https://a.example.com/ HTTP/1.1\r\nHost: x\r\n", 400, "CONNECT for https"},
		{"GET ftp://a.example.com/ HTTP/1.1\r\nHost: x\r\n", 400, "http:// URLs"},
		{"GET http://u:p@a.example.com/ HTTP/1.1\r\nHost: x\r\n", 400, "password"},
		{"GET http://a.example.com:443/ HTTP/1.1\r\nHost: x\r\n", 400, "443"},
		{"GET http:/// HTTP/1.1\r\nHost: x\r\n", 400, ""},
		{"GET http:a HTTP/1.1\r\nHost: x\r\n", 400, ""},
		{"GET / HTTP/1.1\r\nHost: a.example.com\r\n", 400, "this is a proxy"},
		{"GET http://a.example.com/ HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n", 400, "wss://"},
	} {
		_, resp := w.ask(tt.request + authorization + "\r\n")
		if body := readAll(t, resp.Body); resp.StatusCode != tt.status || !strings.Contains(body, tt.words) {
			t.Errorf("%q: %s %q", tt.request, resp.Status, body)
		}
		if got := resp.Header.Get("X-Devaipod-Blocked"); (got != "") != (tt.status == 403) {
			t.Errorf("%q: X-Devaipod-Blocked %q", tt.request, got)
		}
	}
	for _, to := range w.dialled() {
		if to.Addr() != w.names["down.example.com."][0] {
			t.Errorf("%v was dialled", to)
		}
	}
}

// What two servers could read in two ways is never sent on in one of them.
func TestNothingIsSmuggled(t *testing.T) {
	w := newWorld(t, nil, "a.example.com")
	saw := make(chan string, 100)
	w.raw("a.example.com", 80, func(c *net.TCPConn) {
		for r := bufio.NewReader(c); ; {
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			body, err := io.ReadAll(req.Body)
			saw <- fmt.Sprint(req.Method, " ", req.URL.Path, " ", len(body), err)
			say(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		}
	})
	for _, tt := range []string{
		"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n",
		"Content-Length: 4\r\nContent-Length: 5\r\n\r\nabcde",
		"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n",
		"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
		"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
		"Content-Length: +4\r\n\r\nabcd",
		"Content-Length: 0\r\n\r\n",
		"X: a\r\n b\r\nContent-Length: 0\r\n\r\n",
		"X\x00Y: a\r\nContent-Length: 0\r\n\r\n",
		"Transfer-Encoding: chunked\r\n\r\n4;x=\"\r\nabcd\r\n0\r\n\r\n",
	} {
		_, resp := w.ask("POST http://a.example.com/first HTTP/1.1\r\nHost: a.example.com\r\n" + authorization + tt)
		readAll(t, resp.Body)
		if resp.StatusCode != 200 && resp.StatusCode != 400 && resp.StatusCode != 501 {
			t.Errorf("%q: %s", tt, resp.Status)
		}
	}
	close(saw)
	for s := range saw {
		if !strings.HasPrefix(s, "POST /first ") {
			t.Errorf("the host saw %s", s)
		}
	}
}

func TestAPlainAnswerStreamsAndIsCut(t *testing.T) {
	w := newWorld(t, nil, "a.example.com")
	w.site("a.example.com", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if err := http.NewResponseController(rw).EnableFullDuplex(); err != nil {
			t.Error(err)
		}
		for i := range 2 {
			fmt.Fprintf(rw, "event %d\n", i)
			must(t, http.NewResponseController(rw).Flush())
			if b := make([]byte, 1); i == 0 {
				if _, err := io.ReadFull(r.Body, b); err != nil { // the client has read the first
					t.Error(err)
				}
			}
		}
		// The server sees the other side's end when it has the whole request.
		if _, err := io.Copy(io.Discard, r.Body); err == nil {
			<-r.Context().Done()
		}
	}))
	pr, pw := io.Pipe()
	req, _ := http.NewRequest("POST", "http://a.example.com/", pr)
	done := make(chan error, 1)
	go func() {
		resp, err := w.client().Do(req)
		if err != nil {
			done <- err
			return
		}
		defer resp.Body.Close()
		for r := bufio.NewReader(resp.Body); ; {
			line, err := r.ReadString('\n')
			if err != nil {
				done <- err
				return
			}
			switch line {
			case "event 0\n":
				say(pw, "x")
				must(t, pw.Close())
			case "event 1\n":
				w.proxy.SetRules(egress.Rules{})
			}
		}
	}()
	if err := <-done; !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("it ended with %v", err)
	}
}

func TestIsProxyRequest(t *testing.T) {
	for request, want := range map[string]bool{
		"CONNECT a:1 HTTP/1.1": true, "GET http://a/ HTTP/1.1": true, "GET / HTTP/1.1": false, "OPTIONS * HTTP/1.1": false, "CONNECT / HTTP/1.1": true,
	} {
		r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(request + "\r\nHost: a\r\n\r\n")))
		if err != nil {
			t.Fatal(err)
		}
		if egress.IsProxyRequest(r) != want {
			t.Errorf("%s: %v", request, !want)
		}
	}
}

// However a request is written, what is dialled is an address of a host on the
// list, at a port that the list has.
func FuzzConnect(f *testing.F) {
	for _, s := range []string{"a.example.com:443", "A.example.com.:443", "evil.example.net:443", "[::1]:443", "a.example.com:80", "127.0.0.1:80", "a.example.com:443\r\nHost: x", "/a.example.com:443"} {
		f.Add("CONNECT "+s+" HTTP/1.1\r\n", "")
		f.Add("GET http://"+s+"/ HTTP/1.1\r\nHost: y\r\n", "")
	}
	f.Add("POST http://a.example.com/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n", "3\r\nabc\r\n0\r\n\r\n")
	public, private := netip.MustParseAddr("93.184.215.1"), netip.MustParseAddr("10.0.0.1")
	var dialled []netip.AddrPort // one input at a time
	p, err := egress.New(egress.Config{
		Rules: mustParse(f, "a.example.com", "*.example.org:8443", "in.example.com"), Authorized: func(*http.Request) bool { return true },
		Resolve: func(_ context.Context, name string) ([]netip.Addr, error) {
			switch {
			case name == "a.example.com.", strings.HasSuffix(name, ".example.org."):
				return []netip.Addr{public}, nil
			case name == "in.example.com.":
				return []netip.Addr{public, private}, nil
			}
			return nil, fmt.Errorf("%q was looked up", name)
		},
		Dial: func(_ context.Context, to netip.AddrPort) (net.Conn, error) {
			dialled = append(dialled, to)
			return nil, errors.New("no")
		},
		Now: func() time.Time { return time.Unix(0, 0) },
		Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, head, body string) {
		r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(head + "\r\n" + body)))
		if err != nil {
			return
		}
		dialled = nil
		rw := httptest.NewRecorder()
		p.ServeHTTP(rw, r)
		if strings.Contains(rw.Body.String(), "was looked up") {
			t.Errorf("%q: %s", head, rw.Body)
		}
		for _, to := range dialled {
			if to.Addr() != public || to.Port() != 443 && to.Port() != 80 && to.Port() != 8443 || to.Port() == 80 && r.Method == http.MethodConnect {
				t.Errorf("%q: %v was dialled", head, to)
			}
		}
		if rw.Code < 400 || !strings.Contains(rw.Body.String(), "devaipod: ") && r.Method != http.MethodHead {
			t.Errorf("%q: %d %q", head, rw.Code, rw.Body)
		}
		if n := p.Tunnels(); n != 0 {
			t.Errorf("%q: %d are left", head, n)
		}
		for _, b := range p.Blocked() {
			if len(b.Host) > 253 || strings.ContainsFunc(b.Host+b.Allow, func(c rune) bool { return c <= ' ' || c >= 0x7f }) {
				t.Errorf("%q is kept as %+v", head, b)
			}
		}
		if s := rw.Header().Get("X-Devaipod-Blocked"); strings.ContainsFunc(s, func(c rune) bool { return c < ' ' || c >= 0x7f }) {
			t.Errorf("%q: header %q", head, s)
		}
	})
}
