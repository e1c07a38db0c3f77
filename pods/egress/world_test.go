package egress_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/pods/egress"
)

const token = "the-pods-token"

// A world has a proxy, and an internet of its own: names lead to public addresses,
// and what is dialled there reaches a listener on this machine's loopback. Nothing
// is sent anywhere else.
type world struct {
	t       testing.TB
	proxy   *egress.Proxy
	addr    string // of the proxy, TCP
	socket  string // and a unix socket
	origins *egress.CA
	roots   *x509.CertPool
	log     lockedBuffer

	mu    sync.Mutex
	names map[string][]netip.Addr
	asked map[string]int // how often a name was resolved
	ways  map[netip.AddrPort]string
	dials []netip.AddrPort
	next  byte
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// newWorld starts a proxy with these rules; change may change the rest.
func newWorld(t testing.TB, change func(*egress.Config), patterns ...string) *world {
	t.Helper()
	before := runtime.NumGoroutine()
	w := &world{t: t, names: map[string][]netip.Addr{}, asked: map[string]int{}, ways: map[netip.AddrPort]string{}, roots: x509.NewCertPool()}
	var err error
	if w.origins, err = egress.NewCA(); err != nil {
		t.Fatal(err)
	}
	w.roots.AppendCertsFromPEM(certOf(t, w.origins))
	cfg := egress.Config{
		Rules: mustParse(t, patterns...), Authorized: egress.Token(token), Resolve: w.resolve, Dial: w.dial, Roots: w.roots,
		Log: slog.New(slog.NewTextHandler(&w.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	if change != nil {
		change(&cfg)
	}
	if w.proxy, err = egress.New(cfg); err != nil {
		t.Fatal(err)
	}
	server := egress.Server(w.proxy, cfg.Log)
	w.socket = filepath.Join(t.TempDir(), "s")
	for network, at := range map[string]string{"tcp": "127.0.0.1:0", "unix": w.socket} {
		l, err := net.Listen(network, at)
		if err != nil {
			t.Fatal(err)
		}
		if network == "tcp" {
			w.addr = l.Addr().String()
		}
		go func() { _ = server.Serve(l) }()
	}
	t.Cleanup(func() {
		must(t, server.Close())
		w.proxy.Close()
		eventually(t, "no goroutine is left", func() bool { return runtime.NumGoroutine() <= before })
	})
	return w
}

func certOf(t testing.TB, ca *egress.CA) []byte {
	t.Helper()
	cert, _, err := ca.PEM()
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for range 1000 {
		if ok() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	buf := make([]byte, 1<<20)
	t.Errorf("never: %s\n%s", what, buf[:runtime.Stack(buf, true)])
}

func (w *world) resolve(_ context.Context, name string) ([]netip.Addr, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asked[name]++
	all, ok := w.names[name]
	if !ok {
		return nil, &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
	}
	return append([]netip.Addr(nil), all...), nil
}

func (w *world) dial(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	w.mu.Lock()
	w.dials = append(w.dials, to)
	way, ok := w.ways[to]
	w.mu.Unlock()
	if !ok {
		return nil, &net.OpError{Op: "dial", Err: errors.New("connection refused")}
	}
	return new(net.Dialer).DialContext(ctx, "tcp", way)
}

func (w *world) dialled() []netip.AddrPort {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]netip.AddrPort(nil), w.dials...)
}

// name makes a name lead to addresses; to a new public one when there are none.
func (w *world) name(name string, addrs ...string) netip.Addr {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(addrs) == 0 {
		w.next++
		addrs = []string{fmt.Sprintf("93.184.215.%d", w.next)}
	}
	var all []netip.Addr
	for _, a := range addrs {
		all = append(all, netip.MustParseAddr(a))
	}
	w.names[name+"."] = all
	return all[0]
}

// lead makes a public address and port lead to a listener.
func (w *world) lead(ip netip.Addr, port uint16, l net.Listener) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ways[netip.AddrPortFrom(ip, port)] = l.Addr().String()
}

func (w *world) listen() net.Listener {
	w.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { l.Close() })
	return l
}

// site serves https on 443 and http on 80 of a name.
func (w *world) site(name string, h http.Handler) {
	w.t.Helper()
	ip := w.name(name)
	cert, err := w.origins.Leaf(name, time.Now())
	if err != nil {
		w.t.Fatal(err)
	}
	server := &http.Server{Handler: h, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	w.t.Cleanup(func() { _ = server.Close() }) // its listeners are closed by then
	plain, secure := w.listen(), w.listen()
	w.lead(ip, 80, plain)
	w.lead(ip, 443, secure)
	go func() { _ = server.Serve(plain) }()
	go func() { _ = server.Serve(tls.NewListener(secure, &tls.Config{Certificates: []tls.Certificate{*cert}})) }()
}

// raw runs do with each connection to a port of a name.
func (w *world) raw(name string, port uint16, do func(c *net.TCPConn)) {
	w.t.Helper()
	l := w.listen()
	w.lead(w.name(name), port, l)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				do(c.(*net.TCPConn))
			}()
		}
	}()
}

// client is a person's program: it goes through the proxy and trusts the origins.
func (w *world) client(more ...*egress.CA) *http.Client {
	roots := w.roots.Clone()
	for _, ca := range more {
		roots.AppendCertsFromPEM(certOf(w.t, ca))
	}
	t := &http.Transport{
		Proxy:           http.ProxyURL(&url.URL{Scheme: "http", Host: w.addr, User: url.UserPassword("devaipod", token)}),
		TLSClientConfig: &tls.Config{RootCAs: roots}, DisableCompression: true,
	}
	w.t.Cleanup(t.CloseIdleConnections)
	return &http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// half is a connection that can be closed for writing alone.
type half interface {
	net.Conn
	CloseWrite() error
}

// tunnelled is the client's side of a tunnel.
type tunnelled struct {
	half
	r *bufio.Reader
}

func (c *tunnelled) Read(b []byte) (int, error) { return c.r.Read(b) }

const authorization = "Proxy-Authorization: Bearer " + token + "\r\n"

// ask sends a request as it is over the unix socket, and reads the answer's head.
func (w *world) ask(request string) (*tunnelled, *http.Response) {
	w.t.Helper()
	conn, err := net.Dial("unix", w.socket)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { conn.Close() })
	if _, err := io.WriteString(conn, request); err != nil {
		w.t.Fatal(err)
	}
	c := &tunnelled{conn.(half), bufio.NewReader(conn)}
	method, _, _ := strings.Cut(request, " ")
	resp, err := http.ReadResponse(c.r, &http.Request{Method: method})
	if err != nil {
		w.t.Fatalf("%.100q: %v", request, err)
	}
	return c, resp
}

func (w *world) connect(to string) (*tunnelled, *http.Response) {
	w.t.Helper()
	return w.ask("CONNECT " + to + " HTTP/1.1\r\nHost: " + to + "\r\n" + authorization + "\r\n")
}

// tunnel is a CONNECT that must succeed.
func (w *world) tunnel(to string) *tunnelled {
	w.t.Helper()
	c, resp := w.connect(to)
	if resp.StatusCode != 200 {
		w.t.Fatalf("CONNECT %s: %s", to, resp.Status)
	}
	return c
}

func readAll(t testing.TB, r io.Reader) string {
	t.Helper()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Errorf("reading: %v", err)
	}
	return string(b)
}

func newLog() *slog.Logger { return slog.New(slog.DiscardHandler) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Error(err)
	}
}

// say writes; whether it arrived is what the other side's reader tells.
func say(w io.Writer, text string) { _, _ = io.WriteString(w, text) }

func echo(c net.Conn) { _, _ = io.Copy(c, c) }

func drain(c net.Conn) { _, _ = io.Copy(io.Discard, c) }
