package egress_test

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/pods/egress"
)

func TestAnAllowedHostIsReachedByTLS(t *testing.T) {
	w := newWorld(t, nil, "a.example.com")
	noise := make([]byte, 8<<20)
	if _, err := rand.Read(noise); err != nil {
		t.Fatal(err)
	}
	w.site("a.example.com", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		got, err := io.ReadAll(r.Body)
		if err != nil || !bytes.Equal(got, noise) {
			t.Errorf("the host got %d bytes, %v", len(got), err)
		}
		if r.Header.Get("Proxy-Authorization") != "" {
			t.Error("the host got the pod's token")
		}
		say(rw, string(got))
	}))
	resp, err := w.client().Post("https://a.example.com/", "x/y", bytes.NewReader(noise))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if got := readAll(t, resp.Body); got != string(noise) {
		t.Errorf("%d bytes came back", len(got))
	}
	if len(w.proxy.Blocked()) != 0 {
		t.Errorf("blocked: %v", w.proxy.Blocked())
	}
}

func TestATunnelIsRefusedInWords(t *testing.T) {
	w := newWorld(t, nil, "a.example.com", "*.example.org", "ssh.example.com:22", "metadata.example.com", "both.example.com", "gone.example.com", "none.example.com", "down.example.com", "1.1.1.1")
	for name, addrs := range map[string][]string{
		"metadata.example.com": {"169.254.169.254"},
		"both.example.com":     {"93.184.215.9", "10.0.0.1"},
		"loop.example.org":     {"::1"},
		"mapped.example.org":   {"::ffff:192.168.1.1"},
		"nat.example.org":      {"64:ff9b::a00:1"},
		"own.example.org":      {"0.0.0.0"},
		"down.example.com":     {"93.184.215.9"},
		"evil.example.net":     {"93.184.215.9"},
	} {
		w.name(name, addrs...)
	}
	w.mu.Lock()
	w.names["none.example.com."] = nil
	w.mu.Unlock()
	const list, private, allow = "it is not on the list of hosts that this pod may reach", "which is no address of the public internet", "/allow "
	for _, tt := range []struct {
		to     string
		status int
		words  []string
	}{
		{"evil.example.net:443", 403, []string{"evil.example.net:443 is blocked", list, allow + "evil.example.net on the issue"}},
		{"evil.example.net:8443", 403, []string{list, allow + "evil.example.net:8443 on the issue"}},
		{"a.example.com:22", 403, []string{list, allow + "a.example.com:22 on"}},
		{"a.example.com:80", 403, []string{"CONNECT is not allowed at port 80", allow + "a.example.com:80 on"}},
		{"example.org:443", 403, []string{list}},
		{"169.254.169.254:443", 403, []string{"it is no address of the public internet. Pods reach"}},
		{"[::1]:443", 403, []string{"[::1]:443 is blocked: it is no address of the public internet"}},
		{"8.8.8.8:443", 403, []string{list, allow + "8.8.8.8 on"}},
		{"metadata.example.com:443", 403, []string{"169.254.169.254", private}},
		{"both.example.com:443", 403, []string{"10.0.0.1", private}},
		{"loop.example.org:443", 403, []string{"::1", private}},
		{"mapped.example.org:443", 403, []string{"192.168.1.1", private}},
		{"nat.example.org:443", 403, []string{"64:ff9b::a00:1", private}},
		{"own.example.org:443", 403, []string{"0.0.0.0", private}},
		{"gone.example.com:443", 502, []string{"there is no such name"}},
		{"none.example.com:443", 502, []string{"no address"}},
		{"down.example.com:443", 502, []string{"connection refused"}},
		{"localhost:443", 400, []string{"it has no dot"}},
		{"a.example.com", 400, []string{"not HOST:PORT"}},
		{"a.example.com:443/x", 400, []string{"port"}},
		{"u@a.example.com:443", 400, []string{"not a host name"}},
		{"a.example.com:0443", 400, []string{"port"}},
		{"a.example.com:-1", 400, []string{"port"}},
		{"2130706433:443", 400, []string{"looks like an IP address"}},
		{"0x7f.1:443", 400, []string{"looks like an IP address"}},
		{"[fe80::1%25eth0]:443", 400, []string{"zone"}},
		{strings.Repeat("a", 300) + ".example:443", 400, []string{"253"}},
	} {
		_, resp := w.connect(tt.to)
		body := readAll(t, resp.Body)
		if resp.StatusCode != tt.status {
			t.Errorf("%.40s: %s", tt.to, resp.Status)
		}
		// The status line says it all, as does the body.
		if line := strings.TrimPrefix(resp.Status, fmt.Sprintf("%d ", tt.status)); line+"\n" != body || !strings.HasPrefix(line, "devaipod: ") {
			if resp.StatusCode != 400 || !strings.Contains(body, "400") { // net/http's own
				t.Errorf("%.40s: status %q, body %q", tt.to, resp.Status, body)
			}
		}
		if got := resp.Header.Get("X-Devaipod-Blocked"); (got != "") != (tt.status == 403) {
			t.Errorf("%.40s: X-Devaipod-Blocked %q", tt.to, got)
		}
		for _, words := range tt.words {
			if !strings.Contains(body, words) && !strings.Contains(body, "400 Bad Request") {
				t.Errorf("%.40s: %q lacks %q", tt.to, body, words)
			}
		}
	}
	for _, to := range w.dialled() {
		if to != netip.MustParseAddrPort("93.184.215.9:443") {
			t.Errorf("%v was dialled", to)
		}
	}
	if n := len(w.dialled()); n != 1 {
		t.Errorf("%d times dialled", n)
	}
}

// A name whose answer changes leads only to what was looked at.
func TestTheAddressThatWasLookedAtIsTheOneDialled(t *testing.T) {
	turn := 0
	w := newWorld(t, nil, "a.example.com:7")
	w.raw("a.example.com", 7, func(c *net.TCPConn) { echo(c) })
	public := w.names["a.example.com."]
	for range 3 {
		c := w.tunnel("a.example.com:7")
		if _, err := c.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		c.Close()
		turn++
	}
	w.name("a.example.com", "127.0.0.1")
	if _, resp := w.connect("a.example.com:7"); resp.StatusCode != 403 {
		t.Errorf("rebound: %s", resp.Status)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.asked["a.example.com."] != turn+1 {
		t.Errorf("the name was looked up %d times for %d tunnels", w.asked["a.example.com."], turn+1)
	}
	for _, to := range w.dials {
		if to != netip.AddrPortFrom(public[0], 7) {
			t.Errorf("%v was dialled", to)
		}
	}
}

func TestTheNextAddressIsTriedWhenOneIsDown(t *testing.T) {
	w := newWorld(t, nil, "a.example.com:7")
	l := w.listen()
	go func() {
		if c, err := l.Accept(); err == nil {
			say(c, "here")
			c.Close()
		}
	}()
	w.name("a.example.com", "93.184.215.1", "93.184.215.2", "2606:4700::1", "93.184.215.3")
	w.lead(netip.MustParseAddr("93.184.215.3"), 7, l)
	if got := readAll(t, w.tunnel("a.example.com:7")); got != "here" {
		t.Errorf("got %q", got)
	}
	if all := w.dialled(); all[0] != netip.MustParseAddrPort("[2606:4700::1]:7") {
		t.Errorf("dialled %v", all)
	}
	w.name("a.example.com", "93.184.215.1", "93.184.215.2")
	if _, resp := w.connect("a.example.com:7"); resp.StatusCode != 502 || !strings.Contains(resp.Status, "refused") {
		t.Errorf("all down: %s", resp.Status)
	}
}

func TestOnlyTLSForTheHostItselfGoesOut(t *testing.T) {
	w := newWorld(t, func(c *egress.Config) { c.HelloWithin = 200 * time.Millisecond }, "a.example.com", "b.example.com:8443", "93.184.215.200", "c.example.com:7000")
	var mu sync.Mutex
	got := map[string]int{} // bytes that came out
	count := func(name string) func(*net.TCPConn) {
		return func(c *net.TCPConn) {
			n, _ := io.Copy(io.Discard, c)
			mu.Lock()
			defer mu.Unlock()
			got[name] += int(n)
		}
	}
	w.raw("a.example.com", 443, count("a"))
	w.raw("b.example.com", 8443, count("b"))
	w.raw("c.example.com", 7000, count("c"))
	w.name("unused.example.com", "93.184.215.200")
	l := w.listen()
	w.lead(netip.MustParseAddr("93.184.215.200"), 443, l)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); count("ip")(c.(*net.TCPConn)) }()
		}
	}()
	hello := func(name string) []byte { return clientHello(t, &tls.Config{ServerName: name}) }
	denied, broken := []byte{21, 3, 1, 0, 2, 2, 49}, []byte{21, 3, 1, 0, 2, 2, 50}
	for name, tt := range map[string]struct {
		to    string
		first []byte
		last  []byte // what the client is told
		why   string
	}{
		"another name":               {"a.example.com:443", hello("evil.example.com"), denied, "TLS asks for another host, evil.example.com"},
		"another name, in pieces":    {"a.example.com:443", records(hello("evil.example.com"), 5), denied, "TLS asks for another host"},
		"a name below":               {"a.example.com:443", hello("x.a.example.com"), denied, "TLS asks for another host"},
		"no name":                    {"a.example.com:443", handmade(), denied, "no SNI"},
		"two names":                  {"a.example.com:443", handmade(sni("a.example.com", "evil.example.com")), broken, "malformed"},
		"an encrypted hello":         {"a.example.com:443", handmade(sni("a.example.com"), ext{0xfe0d, []byte{1}}), denied, "encrypted ClientHello"},
		"http":                       {"a.example.com:443", []byte("GET / HTTP/1.1\r\n\r\n"), []byte("devaipod: a.example.com:443 is blocked: what came first is not TLS, which is all that passes at this port\n"), "is not TLS"},
		"half a hello and the end":   {"a.example.com:443", hello("a.example.com")[:100], nil, ""},
		"another name, other port":   {"b.example.com:8443", hello("evil.example.com"), denied, "TLS asks for another host"},
		"ssh at a port for TLS":      {"b.example.com:8443", []byte("SSH-2.0-x\r\n"), []byte("devaipod: b.example.com:8443 is blocked: what came first is not TLS, which is all that passes at this port\n"), "is not TLS"},
		"a name at an address":       {"93.184.215.200:443", hello("evil.example.com"), denied, "where CONNECT had an address"},
		"TLS at a port for anything": {"c.example.com:7000", hello("evil.example.com"), denied, "TLS asks for another host"},
		"a bad hello there":          {"c.example.com:7000", handmade(sni()), broken, "malformed"},
	} {
		c := w.tunnel(tt.to)
		if _, err := c.Write(tt.first); err != nil {
			t.Fatal(err)
		}
		if tt.last == nil {
			must(t, c.CloseWrite())
		}
		if told := readAll(t, c); told != string(tt.last) {
			t.Errorf("%s: told %q", name, told)
		}
		c.Close()
		if tt.why == "" {
			continue
		}
		if b := w.proxy.Blocked()[0]; !strings.Contains(b.Why, tt.why) || b.Allow != "" || fmt.Sprintf("%s:%d", b.Host, b.Port) != tt.to {
			t.Errorf("%s: noted as %+v", name, b)
		}
	}
	// Nothing at all is said: the tunnel ends by itself.
	if told := readAll(t, w.tunnel("a.example.com:443")); told != "" {
		t.Errorf("silence was answered with %q", told)
	}
	eventually(t, "all tunnels have ended", func() bool { return w.proxy.Tunnels() == 0 })
	mu.Lock()
	if len(got) > 0 {
		for name, n := range got {
			if n > 0 {
				t.Errorf("%d bytes went out to %s", n, name)
			}
		}
	}
	mu.Unlock()
	// What is right passes as it is, to the byte, with what comes along with it.
	for to, first := range map[string][]byte{
		"a.example.com:443":  append(records(hello("A.Example.Com"), 9), 20, 3, 3, 0, 1, 1),
		"b.example.com:8443": hello("b.example.com"),
		"93.184.215.200:443": handmade(),
		"c.example.com:7000": []byte("\x00anything"),
	} {
		mu.Lock()
		clear(got)
		mu.Unlock()
		c := w.tunnel(to)
		if _, err := c.Write(first); err != nil {
			t.Fatal(err)
		}
		must(t, c.CloseWrite())
		readAll(t, c)
		eventually(t, to+" has it all", func() bool {
			mu.Lock()
			defer mu.Unlock()
			return len(got) == 1 && (got["a"]+got["b"]+got["c"]+got["ip"]) == len(first)
		})
	}
}

func TestOpenRulesReachAllPublicHostsOnly(t *testing.T) {
	w := newWorld(t, func(c *egress.Config) { c.Rules = egress.Open() })
	w.site("any.example.net", http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) { say(rw, "hello") }))
	for _, scheme := range []string{"http", "https"} {
		resp, err := w.client().Get(scheme + "://any.example.net/")
		if err != nil {
			t.Fatal(err)
		}
		if got := readAll(t, resp.Body); got != "hello" {
			t.Errorf("%s: %q", scheme, got)
		}
		resp.Body.Close()
	}
	w.name("in.example.net", "192.168.0.1")
	w.name("ech.example.net")
	w.raw("ech.example.net", 443, func(c *net.TCPConn) { drain(c); say(c, "end") })
	before := len(w.dialled())
	for _, to := range []string{"in.example.net:443", "127.0.0.1:443", "[fd00:ec2::254]:80", "[::ffff:169.254.169.254]:80"} {
		if _, resp := w.connect(to); resp.StatusCode != 403 {
			t.Errorf("%s: %s", to, resp.Status)
		}
	}
	if n := len(w.dialled()); n != before {
		t.Errorf("%d were dialled", n-before)
	}
	c := w.tunnel("ech.example.net:443")
	say(c, string(handmade(sni("ech.example.net"), ext{0xfe0d, []byte{1}})))
	must(t, c.CloseWrite())
	if got := readAll(t, c); got != "end" {
		t.Errorf("with ECH: %q", got)
	}
}

func TestEachHalfOfATunnelEndsByItself(t *testing.T) {
	w := newWorld(t, nil, "*.example.com:7", "tls.example.com")
	w.raw("late.example.com", 7, func(c *net.TCPConn) { // answers when it has all
		b, _ := io.ReadAll(c)
		say(c, string(b))
	})
	w.raw("first.example.com", 7, func(c *net.TCPConn) { // ends first, and reads on
		say(c, "hello")
		must(t, c.CloseWrite())
		b, _ := io.ReadAll(c)
		w.name("saw." + fmt.Sprintf("%x", sha256.Sum256(b))[:10])
	})
	w.raw("slow.example.com", 7, func(c *net.TCPConn) {
		drain(c)
		time.Sleep(100 * time.Millisecond)
		say(c, "after the end")
	})
	c := w.tunnel("late.example.com:7")
	say(c, "all of it")
	must(t, c.CloseWrite())
	if got := readAll(t, c); got != "all of it" {
		t.Errorf("after the client's end: %q", got)
	}
	c = w.tunnel("first.example.com:7")
	if got := readAll(t, c); got != "hello" {
		t.Errorf("the server speaks first: %q", got)
	}
	say(c, "still here")
	must(t, c.CloseWrite())
	saw := "saw." + fmt.Sprintf("%x", sha256.Sum256([]byte("still here")))[:10] + "."
	eventually(t, "what came after the server's end arrives", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.names[saw] != nil
	})
	c = w.tunnel("slow.example.com:7")
	must(t, c.CloseWrite())
	if got := readAll(t, c); got != "after the end" {
		t.Errorf("a client that only listens: %q", got)
	}
	eventually(t, "all tunnels have ended", func() bool { return w.proxy.Tunnels() == 0 })
}

// The time for a ClientHello is no time limit of the tunnel.
func TestATunnelMayIdle(t *testing.T) {
	w := newWorld(t, func(c *egress.Config) { c.HelloWithin = 300 * time.Millisecond }, "a.example.com", "b.example.com:7")
	w.raw("a.example.com", 443, func(c *net.TCPConn) { echo(c) })
	w.raw("b.example.com", 7, func(c *net.TCPConn) { echo(c) })
	first := clientHello(t, &tls.Config{ServerName: "a.example.com"})
	for to, first := range map[string][]byte{"a.example.com:443": first, "b.example.com:7": nil} {
		c := w.tunnel(to)
		say(c, string(first))
		if _, err := io.ReadFull(c, make([]byte, len(first))); err != nil {
			t.Fatal(err)
		}
		time.Sleep(700 * time.Millisecond)
		say(c, "ping")
		must(t, c.CloseWrite())
		if got := readAll(t, c); got != "ping" {
			t.Errorf("%s after idling: %q", to, got)
		}
	}
}

func TestAHostThatDoesNotReadHoldsTheClient(t *testing.T) {
	w := newWorld(t, nil, "a.example.com:7")
	read := make(chan bool)
	total := make(chan int64, 1)
	w.raw("a.example.com", 7, func(c *net.TCPConn) {
		<-read
		n, _ := io.Copy(io.Discard, c)
		total <- n
	})
	c := w.tunnel("a.example.com:7")
	var sent int64
	for buf := make([]byte, 1<<20); sent < 1<<30; {
		must(t, c.SetWriteDeadline(time.Now().Add(time.Second)))
		n, err := c.Write(buf)
		if sent += int64(n); err != nil {
			break
		}
	}
	if sent >= 256<<20 {
		t.Errorf("%d bytes went into nowhere", sent)
	}
	close(read)
	must(t, c.CloseWrite())
	if n := <-total; n != sent {
		t.Errorf("%d bytes came of %d", n, sent)
	}
}

func TestNewRulesHoldAtOnce(t *testing.T) {
	w := newWorld(t, nil, "a.example.com:7", "b.example.com:7", "a.example.com")
	for _, name := range []string{"a.example.com", "b.example.com", "c.example.com"} {
		w.raw(name, 7, func(c *net.TCPConn) { echo(c) })
	}
	ping := func(c *tunnelled) error {
		if _, err := c.Write([]byte("x")); err != nil {
			return err
		}
		_, err := io.ReadFull(c, make([]byte, 1))
		return err
	}
	a, b := w.tunnel("a.example.com:7"), w.tunnel("b.example.com:7")
	if err := errors.Join(ping(a), ping(b)); err != nil {
		t.Fatal(err)
	}
	if _, resp := w.connect("c.example.com:7"); resp.StatusCode != 403 {
		t.Errorf("c before: %s", resp.Status)
	}
	w.proxy.SetRules(mustParse(t, "*.example.com:8", "b.example.com:7", "c.example.com:7"))
	if got := readAll(t, a); got != "" {
		t.Errorf("a's end: %q", got)
	}
	if err := ping(b); err != nil {
		t.Errorf("b: %v", err)
	}
	if err := ping(w.tunnel("c.example.com:7")); err != nil {
		t.Errorf("c: %v", err)
	}
	if _, resp := w.connect("a.example.com:7"); resp.StatusCode != 403 {
		t.Errorf("a after: %s", resp.Status)
	}
}

// What is being dialled, or has not said hello, is cut as well.
func TestNewRulesCutWhatHasNotBegun(t *testing.T) {
	w := newWorld(t, nil, "a.example.com", "b.example.com:7")
	w.raw("a.example.com", 443, func(c *net.TCPConn) { echo(c) })
	w.raw("b.example.com", 7, func(c *net.TCPConn) { echo(c) })
	a, b := w.tunnel("a.example.com:443"), w.tunnel("b.example.com:7")
	w.proxy.SetRules(egress.Rules{})
	if got := readAll(t, a) + readAll(t, b); got != "" {
		t.Errorf("%q", got)
	}
}

func TestTunnelsAreBounded(t *testing.T) {
	w := newWorld(t, func(c *egress.Config) { c.MaxTunnels = 3 }, "a.example.com:7")
	w.raw("a.example.com", 7, func(c *net.TCPConn) { echo(c) })
	var open []*tunnelled
	for range 3 {
		open = append(open, w.tunnel("a.example.com:7"))
	}
	if _, resp := w.connect("a.example.com:7"); resp.StatusCode != 503 || !strings.Contains(resp.Status, "3 connections") || resp.Header.Get("X-Devaipod-Blocked") != "" {
		t.Errorf("the fourth: %s", resp.Status)
	}
	open[0].Close()
	eventually(t, "there is room again", func() bool { return w.proxy.Tunnels() == 2 })
	w.tunnel("a.example.com:7")
	if n := w.proxy.Tunnels(); n != 3 {
		t.Errorf("%d tunnels", n)
	}
	w.proxy.Close()
	if _, resp := w.connect("a.example.com:7"); resp.StatusCode != 503 {
		t.Errorf("after Close: %s", resp.Status)
	}
}

func TestATokenIsWanted(t *testing.T) {
	w := newWorld(t, nil, "a.example.com:7")
	w.raw("a.example.com", 7, func(c *net.TCPConn) { say(c, "in") })
	basic := func(user, password string) string {
		r, _ := http.NewRequest("GET", "http://x/", nil)
		r.SetBasicAuth(user, password)
		return r.Header.Get("Authorization")
	}
	for value, want := range map[string]int{
		"": 407, "Bearer": 407, "Bearer x": 407, "Bearer " + token + "x": 407, token: 407, "Basic " + token: 407, "Digest " + token: 407,
		basic("x", "y"): 407, basic("", ""): 407, "Basic !": 407,
		"Bearer " + token: 200, "bearer " + token: 200, basic(token, ""): 200, basic("devaipod", token): 200, basic(token, "x"): 200,
	} {
		_, resp := w.ask("CONNECT a.example.com:7 HTTP/1.1\r\nHost: a\r\nProxy-Authorization: " + value + "\r\n\r\n")
		if resp.StatusCode != want {
			t.Errorf("%q: %s", value, resp.Status)
		}
		if want == 407 && (!strings.HasPrefix(resp.Header.Get("Proxy-Authenticate"), "Basic ") || !strings.Contains(readAll(t, resp.Body), "https_proxy")) {
			t.Errorf("%q: %v", value, resp.Header)
		}
	}
	if len(w.proxy.Blocked()) != 0 {
		t.Error("a stranger fills the list of what was blocked")
	}
	if strings.Contains(w.log.String(), token) {
		t.Error("the log tells the token")
	}
	none := egress.Token("")
	if r, _ := http.NewRequest("GET", "http://x/", nil); none(r) {
		t.Error("no token is a token")
	}
}

func TestAConnectWithABodyIsRefused(t *testing.T) {
	w := newWorld(t, nil, "a.example.com:7")
	w.raw("a.example.com", 7, func(c *net.TCPConn) { echo(c) })
	for _, head := range []string{"Content-Length: 3\r\n\r\nabc", "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "Content-Length: 1\r\nContent-Length: 2\r\n\r\nabc"} {
		if _, resp := w.ask("CONNECT a.example.com:7 HTTP/1.1\r\nHost: a\r\n" + authorization + head); resp.StatusCode != 400 {
			t.Errorf("%q: %s", head, resp.Status)
		}
	}
	if n := len(w.dialled()); n != 0 {
		t.Errorf("%d were dialled", n)
	}
}

func TestWhatWasBlockedIsBounded(t *testing.T) {
	now := time.Unix(1e9, 0)
	var mu sync.Mutex
	w := newWorld(t, func(c *egress.Config) {
		c.Now = func() time.Time {
			mu.Lock()
			defer mu.Unlock()
			now = now.Add(time.Second)
			return now
		}
	})
	for i := range 150 {
		w.connect(fmt.Sprintf("h%d.example.com:443", i))
	}
	w.connect("h60.example.com:443")
	w.connect("h60.example.com:22")
	all := w.proxy.Blocked()
	if len(all) != 100 {
		t.Fatalf("%d are kept", len(all))
	}
	if b := all[0]; b.Host != "h60.example.com" || b.Port != 22 || b.Count != 1 || b.Allow != "h60.example.com:22" {
		t.Errorf("newest: %+v", b)
	}
	if b := all[1]; b.Port != 443 || b.Count != 2 || !b.Last.After(b.First) || b.Allow != "h60.example.com" || !strings.Contains(b.Why, "not on the list") {
		t.Errorf("before that: %+v", b)
	}
	if b := all[99]; b.Host != "h51.example.com" {
		t.Errorf("oldest: %+v", b)
	}
	w.connect("bad\x01name\x7f\xc3\xa9.example.com:443")
	for _, b := range w.proxy.Blocked() {
		if !strings.HasSuffix(b.Host, ".example.com") || strings.ContainsAny(b.Host, "\x01\x7fé") {
			t.Errorf("kept %q", b.Host)
		}
	}
	if n := strings.Count(w.log.String(), "h60.example.com:443"); n != 1 {
		t.Errorf("one host is logged %d times", n)
	}
}

// Clients that don't read their refusals don't keep others from theirs.
func TestManyAreRefusedAtATime(t *testing.T) {
	w := newWorld(t, nil)
	for i := range 200 {
		_, resp := w.connect("evil.example.net:443")
		// The first find their reason in the status line, too.
		text := resp.Header.Get("X-Devaipod-Blocked")
		if resp.StatusCode != 403 || !strings.Contains(text, "evil.example.net:443 is blocked") || i < 60 && resp.Status != "403 "+text {
			t.Fatalf("the %dth: %s %q", i, resp.Status, text)
		}
	}
	if n := w.proxy.Blocked()[0].Count; n != 200 {
		t.Errorf("%d were noted", n)
	}
}

// Ten thousand connections, and those that are slow, leave room for one that is
// served.
func TestAFloodOfConnections(t *testing.T) {
	w := newWorld(t, nil, "a.example.com:7")
	w.raw("a.example.com", 7, func(c *net.TCPConn) { say(c, "in") })
	var mu sync.Mutex
	var conns []net.Conn
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			for range 1000 {
				c, err := net.Dial("unix", w.socket)
				if err != nil {
					continue // the queue is full
				}
				say(c, "CONNECT a.exam")
				mu.Lock()
				conns = append(conns, c)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	eventually(t, "no more connections are held than may be", func() bool {
		held := 0
		for _, c := range conns {
			must(t, c.SetReadDeadline(time.Now().Add(time.Millisecond)))
			if _, err := c.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
				held++
			}
		}
		return held > 0 && held <= egress.MaxConns
	})
	for _, c := range conns {
		c.Close()
	}
	eventually(t, "it serves again", func() bool {
		c, err := net.Dial("unix", w.socket)
		if err != nil {
			return false
		}
		defer c.Close()
		say(c, "CONNECT a.example.com:7 HTTP/1.1\r\nHost: a\r\n"+authorization+"\r\n")
		b, err := io.ReadAll(c)
		return err == nil && strings.HasSuffix(string(b), "\r\n\r\nin")
	})
}
