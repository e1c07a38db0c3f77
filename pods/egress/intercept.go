package egress

import (
	"bufio"
	"compress/gzip"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"sync"

	"codeberg.org/devaipod/devaipod/pods/redact"
)

// A Header is put on requests to a host, in place of any of that name.
type Header struct {
	Name, Value string
	// Secrets are what must not come back in an answer, as it is or as in a URL's
	// query. When there are none, it is Value, and what Value has after its scheme
	// ("Bearer", RFC 9110, 11.4).
	Secrets []string
}

func (h Header) secrets() []string {
	all := h.Secrets
	if len(all) == 0 {
		all = []string{h.Value}
		if _, rest, ok := strings.Cut(h.Value, " "); ok {
			all = append(all, strings.TrimSpace(rest))
		}
	}
	for _, s := range all {
		if escaped := url.QueryEscape(s); escaped != s {
			all = append(all[:len(all):len(all)], escaped)
		}
	}
	return all
}

// intercepts tells whether the proxy ends TLS of a tunnel itself.
func (p *Proxy) intercepts(to target) bool {
	return p.within != nil && to.port == 443 && to.host.name != "" && len(p.cfg.Inject(to.host.name)) > 0
}

// An interceptor is the server at the end of those tunnels.
type interceptor struct {
	p       *Proxy
	server  *http.Server
	conns   chan net.Conn
	done    chan struct{}
	once    sync.Once
	forward *httputil.ReverseProxy
}

func (p *Proxy) newInterceptor() *interceptor {
	i := &interceptor{p: p, conns: make(chan net.Conn), done: make(chan struct{})}
	transport := p.newTransport()
	transport.TLSClientConfig = &tls.Config{RootCAs: p.cfg.Roots, MinVersion: tls.VersionTLS12}
	i.forward = p.newForwarder(unheralded{transport}, i.rewrite)
	i.forward.ModifyResponse = i.redact
	i.server = Server(http.HandlerFunc(i.handle), p.cfg.Log)
	i.server.TLSNextProto = map[string]func(*http.Server, *tls.Conn, http.Handler){}
	i.server.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		if t, ok := c.(*tls.Conn); ok {
			if inner, ok := t.NetConn().(*innerConn); ok {
				return context.WithValue(ctx, targetKey{}, inner.to)
			}
		}
		return ctx
	}
	go func() { _ = i.server.Serve(i) }() // ends with close, for no other reason
	return i
}

// Accept, Close and Addr make it the listener of its own server.
func (i *interceptor) Accept() (net.Conn, error) {
	select {
	case c := <-i.conns:
		return c, nil
	case <-i.done:
		return nil, net.ErrClosed
	}
}

// Close implements [net.Listener].
func (i *interceptor) Close() error {
	i.once.Do(func() { close(i.done) })
	return nil
}

// Addr implements [net.Listener].
func (i *interceptor) Addr() net.Addr { return &net.UnixAddr{Name: "gate", Net: "unix"} }

func (i *interceptor) close() {
	if err := i.server.Close(); err != nil {
		i.p.cfg.Log.Debug("egress: closing", "err", err)
	}
	_ = i.Close() // if the server had not begun
}

// An innerConn is a client's side of a tunnel. It tells when the server is done
// with it.
type innerConn struct {
	net.Conn
	early  *bufio.Reader
	to     target
	once   sync.Once
	closed chan struct{}
}

func (c *innerConn) Read(b []byte) (int, error) { return c.early.Read(b) }

func (c *innerConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// serve hands a tunnel to the server and waits for its end.
func (i *interceptor) serve(ctx context.Context, t *tunnel) {
	inner := &innerConn{Conn: t.client, early: t.early, to: t.to, closed: make(chan struct{})}
	defer inner.Close() //nolint:errcheck // nobody is left to tell
	conn := tls.Server(inner, &tls.Config{
		MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"},
		GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
			if err := t.check(hello{name: h.ServerName}); err != nil {
				i.p.note(&refusal{to: t.to, blocked: true, why: "is blocked: " + err.Error()})
				return nil, err
			}
			return nil, nil //nolint:nilnil // the configuration as it is
		},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return i.p.cfg.CA.leaf(t.to.host.name) },
	})
	select {
	case i.conns <- conn:
	case <-ctx.Done():
		return
	case <-i.done:
		return
	}
	select {
	case <-inner.closed:
	case <-ctx.Done():
	}
}

// handle serves one request of such a tunnel.
func (i *interceptor) handle(w http.ResponseWriter, r *http.Request) {
	to, _ := r.Context().Value(targetKey{}).(target)
	asked := r.Host
	if _, _, found := splitPort(asked); !found {
		asked += ":443"
	}
	named, err := parseTarget(asked)
	switch {
	case err != nil || named != to || r.URL.IsAbs() || r.Method == http.MethodConnect:
		say(w, r, http.StatusMisdirectedRequest, "devaipod: this connection is for https://"+to.host.String()+"/ alone")
	case r.Method == http.MethodTrace:
		say(w, r, http.StatusMethodNotAllowed, "devaipod: TRACE would tell the secret that the gate puts on")
	case !mayUpgrade(r):
		say(w, r, http.StatusNotImplemented, "devaipod: the gate does not switch protocols on a host that it puts a secret on")
	default:
		fullDuplex(w)
		// Once: what was put on is what is looked for in the answer.
		headers := i.p.cfg.Inject(to.host.name)
		i.forward.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), headersKey{}, headers)))
	}
}

// headersKey is the context's key of what is put on a request.
type headersKey struct{}

func headersOf(r *http.Request) []Header {
	headers, _ := r.Context().Value(headersKey{}).([]Header)
	return headers
}

func (i *interceptor) rewrite(pr *httputil.ProxyRequest) {
	to, _ := pr.In.Context().Value(targetKey{}).(target)
	pr.Out.URL.Scheme, pr.Out.URL.Host, pr.Out.Host = "https", to.String(), to.host.String()
	rewriteCommon(pr)
	// In what is compressed, or comes in parts that the client chose, a secret can't
	// be seen.
	pr.Out.Header.Set("Accept-Encoding", "identity")
	pr.Out.Header.Del("Range")
	pr.Out.Header.Del("If-Range")
	for _, h := range headersOf(pr.In) {
		pr.Out.Header.Set(h.Name, h.Value)
	}
}

// redact takes the secrets out of an answer.
func (i *interceptor) redact(resp *http.Response) error {
	body := &redactedBody{Closer: resp.Body, Reader: resp.Body, resp: resp}
	coding := strings.ToLower(resp.Header.Get("Content-Encoding"))
	hasBody := resp.Request.Method != http.MethodHead && resp.ContentLength != 0
	if len(resp.Header.Values("Content-Encoding")) > 1 || hasBody && !slices.Contains([]string{"", "identity", "gzip", "x-gzip"}, coding) {
		return fmt.Errorf("it answered in the coding %s, though it was asked for none, and secrets can't be taken out of that", printable(coding))
	}
	if hasBody && strings.HasSuffix(coding, "gzip") {
		body.Reader = &lazyGzip{from: resp.Body}
		resp.Header.Del("Content-Encoding")
	}
	for _, h := range headersOf(resp.Request) {
		for _, secret := range h.secrets() {
			body.secrets = append(body.secrets, secret)
			body.Reader = redact.NewReader(body.Reader, secret)
			redact.Header(resp.Header, secret)
		}
	}
	if hasBody {
		resp.Header.Del("Content-Length") // it may be another now
		resp.ContentLength = -1
		resp.Body = body
	}
	return nil
}

// A redactedBody also looks at what comes after the body.
type redactedBody struct {
	io.Reader
	io.Closer
	resp    *http.Response
	secrets []string
}

func (b *redactedBody) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if errors.Is(err, io.EOF) {
		for _, secret := range b.secrets {
			redact.Header(b.resp.Trailer, secret)
		}
	}
	return n, err
}

// A lazyGzip waits with reading until it is read.
type lazyGzip struct {
	from io.Reader
	gz   *gzip.Reader
}

func (l *lazyGzip) Read(p []byte) (int, error) {
	if l.gz == nil {
		gz, err := gzip.NewReader(l.from)
		if err != nil {
			return 0, err
		}
		l.gz = gz
	}
	return l.gz.Read(p)
}

// unheralded keeps a server's 1xx answers, which nobody redacts, from going back:
// ReverseProxy listens to them through the request's context.
type unheralded struct{ next http.RoundTripper }

// RoundTrip implements [http.RoundTripper].
func (u unheralded) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := u.next.RoundTrip(r.WithContext(bare{r.Context()}))
	if resp != nil {
		resp.Request = r
	}
	return resp, err
}

// bare is a context that ends as another does and has no values.
type bare struct{ context.Context }

// Value implements [context.Context].
func (bare) Value(any) any { return nil }
