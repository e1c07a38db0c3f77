package egress_test

import (
	"bytes"
	"compress/gzip"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/pods/egress"
)

const secret = "sk-live-0123456789+/"

// newVault is a world whose proxy puts a secret on requests to api.example.com.
func newVault(t *testing.T, h http.HandlerFunc, patterns ...string) (*world, *egress.CA, *atomic.Bool) {
	t.Helper()
	ca, err := egress.NewCA("api.example.com")
	if err != nil {
		t.Fatal(err)
	}
	var off atomic.Bool
	w := newWorld(t, func(c *egress.Config) {
		c.CA = ca
		c.Inject = func(host string) []egress.Header {
			if host != "api.example.com" || off.Load() {
				return nil
			}
			return []egress.Header{{Name: "authorization", Value: "Bearer " + secret}, {Name: "X-Second", Value: "another-secret", Secrets: []string{"another-secret"}}}
		}
	}, append(patterns, "api.example.com", "other.example.com")...)
	w.site("api.example.com", h)
	w.site("other.example.com", h)
	return w, ca, &off
}

func get(t *testing.T, c *http.Client, url string, header ...string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequest("GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Error(err)
	}
	return resp, string(b)
}

func TestASecretIsPutOnAndNeverComesBack(t *testing.T) {
	saw := make(chan http.Header, 10)
	w, ca, _ := newVault(t, func(rw http.ResponseWriter, r *http.Request) {
		saw <- r.Header.Clone()
		auth := r.Header.Get("Authorization")
		rw.Header().Set("X-Echo", auth)
		rw.Header().Set("Trailer", "X-Last")
		switch r.URL.Path {
		case "/early":
			rw.Header().Set("Link", auth)
			rw.WriteHeader(http.StatusEarlyHints)
		case "/redirect":
			http.Redirect(rw, r, "https://other.example.com/?key="+secret, http.StatusFound)
			return
		case "/gzip":
			rw.Header().Set("Content-Encoding", "gzip")
			gz := gzip.NewWriter(rw)
			fmt.Fprintf(gz, "you are %s", auth)
			must(t, gz.Close())
			return
		case "/br":
			rw.Header().Set("Content-Encoding", "br")
		case "/length":
			rw.Header().Set("Content-Length", fmt.Sprint(len(auth)))
			say(rw, auth)
			return
		}
		fmt.Fprintf(rw, "you are %s and %s, %s", auth, r.Header.Get("X-Second"), "sk-live-0123456789%2B%2F")
		rw.Header().Set("X-Last", auth)
	})
	c := w.client(ca)
	for _, tt := range []struct {
		path   string
		status int
		body   string
	}{
		{"/", 200, "you are [key] and [key], [key]"}, {"/early", 200, "you are [key] and [key], [key]"},
		{"/gzip", 200, "you are [key]"}, {"/length", 200, "[key]"}, {"/redirect", 302, "/?key=[key]\">Found</a>.\n\n"}, {"/br", 502, "secrets can't be taken out of that\n"},
	} {
		resp, body := get(t, c, "https://api.example.com"+tt.path, "Authorization", "Bearer fake", "X-Second", "fake", "X-Mine", "1", "Range", "bytes=0-1", "Accept-Encoding", "gzip, br",
			"Proxy-Authorization", "Bearer inner", "Connection", "Authorization")
		all := fmt.Sprintf("%v %v %s", resp.Header, resp.Trailer, body)
		if strings.Contains(all, secret) || strings.Contains(all, "another-secret") {
			t.Errorf("%s: the secret came back: %s", tt.path, all)
		}
		if resp.StatusCode != tt.status || !strings.HasSuffix(body, tt.body) {
			t.Errorf("%s: %s %q", tt.path, resp.Status, body)
		}
		if tt.path == "/" && !strings.Contains(resp.Trailer.Get("X-Last"), "[key]") {
			t.Errorf("trailer %q", resp.Trailer)
		}
		if tt.path == "/redirect" && resp.Header.Get("Location") != "https://other.example.com/?key=[key]" {
			t.Errorf("redirected to %q", resp.Header.Get("Location"))
		}
		h := <-saw
		if v := h.Values("Authorization"); len(v) != 1 || v[0] != "Bearer "+secret || h.Get("X-Second") != "another-secret" || h.Get("X-Mine") != "1" {
			t.Errorf("%s: the host saw %q", tt.path, h)
		}
		if h.Get("Range") != "" || h.Get("Accept-Encoding") != "identity" || h.Get("Proxy-Authorization") != "" {
			t.Errorf("%s: the host saw %q", tt.path, h)
		}
	}
	if strings.Contains(w.log.String(), secret) {
		t.Error("the log tells the secret")
	}
}

func TestNobodyElseGetsTheSecret(t *testing.T) {
	var saw atomic.Int32
	w, ca, off := newVault(t, func(rw http.ResponseWriter, r *http.Request) {
		if strings.Contains(fmt.Sprint(r.Header), secret) {
			saw.Add(1)
		}
		say(rw, "hello")
	})
	// Not by plain http, and another host's TLS is its own.
	if _, body := get(t, w.client(), "http://api.example.com/"); body != "hello" || saw.Load() != 0 {
		t.Errorf("plain: %q, seen %d times", body, saw.Load())
	}
	resp, body := get(t, w.client(), "https://other.example.com/")
	if body != "hello" || saw.Load() != 0 {
		t.Errorf("other: %q, seen %d times", body, saw.Load())
	}
	if issuer := resp.TLS.PeerCertificates[0]; !bytes.Equal(issuer.AuthorityKeyId, mustCert(t, w.origins).SubjectKeyId) {
		t.Error("another host is intercepted")
	}
	if _, err := w.client().Get("https://api.example.com/"); err == nil {
		t.Error("a client that does not trust the gate gets an answer")
	}
	inner := func(name string) *tls.Conn {
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(certOf(t, ca))
		c := tls.Client(w.tunnel("api.example.com:443"), &tls.Config{RootCAs: roots, ServerName: name, NextProtos: []string{"h2", "http/1.1"}})
		t.Cleanup(func() { _ = c.Close() }) // it may be cut
		return c
	}
	for request, want := range map[string]string{
		"GET / HTTP/1.1\r\nHost: api.example.com\r\n\r\n":                                              "200 ",
		"GET / HTTP/1.1\r\nHost: API.example.com:443\r\n\r\n":                                          "200 ",
		"GET / HTTP/1.1\r\nHost: other.example.com\r\n\r\n":                                            "421 ",
		"GET / HTTP/1.1\r\nHost: api.example.com:80\r\n\r\n":                                           "421 ",
		"GET https://other.example.com/ HTTP/1.1\r\nHost: api.example.com\r\n\r\n":                     "421 ",
		"GET http://api.example.com/ HTTP/1.1\r\nHost: api.example.com\r\n\r\n":                        "421 ",
		"CONNECT api.example.com:443 HTTP/1.1\r\nHost: api.example.com\r\n\r\n":                        "421 ",
		"TRACE / HTTP/1.1\r\nHost: api.example.com\r\n\r\n":                                            "405 ",
		"GET / HTTP/1.1\r\nHost: api.example.com\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n": "501 ",
		"GET / HTTP/1.1\r\nHost: api.example.com\r\nHost: other.example.com\r\n\r\n":                   "400 ",
	} {
		c := inner("api.example.com")
		if _, err := io.WriteString(c, request); err != nil {
			t.Fatal(err)
		}
		if c.ConnectionState().NegotiatedProtocol != "http/1.1" {
			t.Error("not HTTP/1.1")
		}
		line := make([]byte, 13)
		if _, err := io.ReadFull(c, line); err != nil {
			t.Errorf("%q: %v", request, err)
		}
		if !strings.HasPrefix(string(line[9:]), want) {
			t.Errorf("%q: %q", request, line)
		}
	}
	if err := inner("other.example.com").Handshake(); err == nil {
		t.Error("another name in TLS is served")
	}
	if b := w.proxy.Blocked()[0]; !strings.Contains(b.Why, "TLS asks for another host, other.example.com") {
		t.Errorf("noted as %+v", b)
	}
	// A secret that is taken away is on no further request.
	off.Store(true)
	before := saw.Load()
	if _, body := get(t, w.client(), "https://api.example.com/"); body != "hello" || saw.Load() != before {
		t.Errorf("off: %q, seen %d times of %d", body, saw.Load(), before)
	}
	off.Store(false)
	// Rules hold there, too.
	c := inner("api.example.com")
	if err := c.Handshake(); err != nil {
		t.Fatal(err)
	}
	w.proxy.SetRules(egress.Rules{})
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("it is not cut")
	}
}

func mustCert(t *testing.T, ca *egress.CA) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode(certOf(t, ca))
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func TestTheHostIsVerifiedBeforeASecretIsSent(t *testing.T) {
	w, ca, _ := newVault(t, func(http.ResponseWriter, *http.Request) { t.Error("it was asked") })
	fake, err := egress.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	for name, signer := range map[string]struct {
		ca   *egress.CA
		name string
	}{"somebody else's certificate": {fake, "api.example.com"}, "another host's": {w.origins, "other.example.com"}, "the gate's own": {ca, "api.example.com"}} {
		leaf, err := signer.ca.Leaf(signer.name, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		w.raw("api.example.com", 443, func(c *net.TCPConn) {
			conn := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{*leaf}})
			if b, _ := io.ReadAll(conn); len(b) > 0 {
				t.Errorf("%s: it got %q", name, b)
			}
		})
		resp, body := get(t, w.client(ca), "https://api.example.com/")
		if resp.StatusCode != 502 || !strings.Contains(body, "api.example.com:443 can't be reached") || !strings.Contains(body, "certificate") {
			t.Errorf("%s: %s %q", name, resp.Status, body)
		}
	}
	w.name("api.example.com", "127.0.0.1")
	if resp, body := get(t, w.client(ca), "https://api.example.com/"); resp.StatusCode != 403 || !strings.Contains(body, "127.0.0.1") {
		t.Errorf("at a private address: %s %q", resp.Status, body)
	}
}

func TestAnInterceptedAnswerStreams(t *testing.T) {
	next := make(chan bool)
	w, ca, _ := newVault(t, func(rw http.ResponseWriter, _ *http.Request) {
		for i := range 3 {
			fmt.Fprintf(rw, "event %d\n", i)
			must(t, http.NewResponseController(rw).Flush())
			<-next
		}
	})
	resp, err := w.client(ca).Get("https://api.example.com/")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	for i := range 3 {
		buf := make([]byte, 100)
		n, err := resp.Body.Read(buf)
		if want := fmt.Sprintf("event %d\n", i); string(buf[:n]) != want || err != nil {
			t.Errorf("%q, %v", buf[:n], err)
		}
		next <- true
	}
}

func TestCertificatesAreForTheHostsOfTheSecretsAlone(t *testing.T) {
	ca, err := egress.NewCA("api.example.com")
	if err != nil {
		t.Fatal(err)
	}
	cert, key, err := ca.PEM()
	if err != nil {
		t.Fatal(err)
	}
	if ca, err = egress.LoadCA(cert, key); err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(cert)
	now := time.Now()
	verify := func(name string, at time.Time) error {
		leaf, err := ca.Leaf(name, now)
		if err != nil {
			t.Fatal(err)
		}
		_, err = leaf.Leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: roots, CurrentTime: at})
		return err
	}
	if err := verify("api.example.com", now); err != nil {
		t.Error(err)
	}
	if verify("bank.example.org", now) == nil || verify("example.com", now) == nil {
		t.Error("the CA is good for other hosts")
	}
	if verify("api.example.com", now.Add(25*time.Hour)) == nil {
		t.Error("a certificate lasts longer than a day")
	}
	one, _ := ca.Leaf("api.example.com", now.Add(22*time.Hour))
	two, _ := ca.Leaf("api.example.com", now.Add(24*time.Hour))
	if first, _ := ca.Leaf("api.example.com", now.Add(24*time.Hour)); one == two || first != two {
		t.Error("certificates are not kept for their time")
	}
	other, err := egress.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	otherCert, otherKey, err := other.PEM()
	if err != nil {
		t.Fatal(err)
	}
	leafPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: one.Certificate[0]})
	for name, pair := range map[string][2][]byte{"another's key": {cert, otherKey}, "no key": {cert, nil}, "no certificate": {key, key}, "a leaf": {leafPEM, key}, "mixed": {otherCert, key}} {
		if _, err := egress.LoadCA(pair[0], pair[1]); err == nil || !strings.Contains(err.Error(), "certificate authority") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := egress.NewCA("1.1.1.1"); err == nil {
		t.Error("a CA for an address")
	}
}

func TestAConfigThatIsWrongIsRefused(t *testing.T) {
	for name, cfg := range map[string]egress.Config{
		"nothing":              {},
		"no log":               {Authorized: egress.Token("x")},
		"secrets without CA":   {Authorized: egress.Token("x"), Log: newLog(), Inject: func(string) []egress.Header { return nil }},
		"nobody is let in yet": {Log: newLog()},
	} {
		if p, err := egress.New(cfg); err == nil {
			p.Close()
			t.Errorf("%s is taken", name)
		}
	}
}
