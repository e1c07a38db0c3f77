package egress

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"strings"
	"sync"
	"time"
)

// newTransport makes requests to where the proxy dials, and nowhere else. It is
// for New alone.
func (p *Proxy) newTransport() *http.Transport {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	t := &http.Transport{
		Proxy: nil, DisableCompression: true, Protocols: protocols,
		MaxIdleConns: 64, MaxIdleConnsPerHost: 8, IdleConnTimeout: 30 * time.Second,
		TLSHandshakeTimeout: 10 * time.Second, MaxResponseHeaderBytes: 256 << 10,
		DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
			to, err := parseTarget(addr)
			if err != nil {
				return nil, err
			}
			return p.dial(ctx, to)
		},
	}
	p.ways = append(p.ways, t)
	return t
}

// buffers are those that bodies are copied with.
type buffers struct{ pool sync.Pool }

func (b *buffers) Get() []byte {
	if buf, ok := b.pool.Get().(*[]byte); ok {
		return *buf
	}
	return make([]byte, 64<<10)
}

func (b *buffers) Put(buf []byte) { b.pool.Put(&buf) }

// newForwarder passes requests on, anew: [httputil.ReverseProxy] leaves out the
// headers that are for one hop (RFC 9110, 7.6.1).
func (p *Proxy) newForwarder(t http.RoundTripper, rewrite func(*httputil.ProxyRequest)) *httputil.ReverseProxy {
	return &httputil.ReverseProxy{
		Transport: t, Rewrite: rewrite, FlushInterval: -1, BufferPool: new(buffers),
		ErrorLog: slog.NewLogLogger(p.cfg.Log.Handler(), slog.LevelDebug),
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			to, _ := r.Context().Value(targetKey{}).(target)
			p.refuse(w, r, asRefusal(to, whyCut(r.Context(), err)))
		},
	}
}

// targetKey is the context's key of a request's target.
type targetKey struct{}

// whyCut prefers our own reason to the one that the transport saw.
func whyCut(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); errors.Is(cause, errRules) || errors.Is(cause, errClosed) {
		return cause
	}
	return err
}

// servePlain serves one http:// request.
func (p *Proxy) servePlain(w http.ResponseWriter, r *http.Request) {
	to, no := plainTarget(r)
	if no != nil {
		p.refuse(w, r, no)
		return
	}
	ctx, leave, no := p.enter(r.Context(), to, false)
	if no != nil {
		p.refuse(w, r, no)
		return
	}
	defer leave()
	fullDuplex(w)
	p.plain.ServeHTTP(w, r.WithContext(context.WithValue(ctx, targetKey{}, to)))
}

// fullDuplex lets an answer begin before the request has come to its end.
func fullDuplex(w http.ResponseWriter) {
	// HTTP/1 over a connection always can, and a test's recorder need not.
	_ = http.NewResponseController(w).EnableFullDuplex()
}

func plainTarget(r *http.Request) (target, *refusal) {
	no := func(why string) (target, *refusal) { return target{}, malformed(r.URL.Host, why) }
	if r.URL.Scheme != "http" {
		return no("the proxy takes http:// URLs, and CONNECT for https")
	}
	if r.URL.User != nil {
		return no("its URL holds a password (RFC 9110, 4.2.4)")
	}
	authority := r.URL.Host
	if _, _, found := splitPort(authority); !found {
		authority += ":80"
	}
	to, err := parseTarget(authority)
	if err != nil {
		return no(err.Error())
	}
	if to.port == 443 {
		return no("port 443 is for https, by CONNECT")
	}
	if !mayUpgrade(r) {
		return no("the proxy does not switch protocols; use wss:// and https://, by CONNECT")
	}
	return to, nil
}

// mayUpgrade tells whether a request can be served without the upgrade that it
// asks for: HTTP/2 is an offer, which Java's client makes to everybody.
func mayUpgrade(r *http.Request) bool {
	up := r.Header.Get("Upgrade")
	return up == "" || strings.EqualFold(up, "h2c")
}

// rewritePlain makes the request that goes out: to the host of the URL, whatever
// its Host header said (RFC 9112, 3.2.2).
func (p *Proxy) rewritePlain(pr *httputil.ProxyRequest) {
	to, _ := pr.In.Context().Value(targetKey{}).(target)
	pr.Out.URL.Host = to.String()
	pr.Out.Host = strings.TrimSuffix(to.String(), ":80")
	rewriteCommon(pr)
}

func rewriteCommon(pr *httputil.ProxyRequest) {
	pr.Out.URL.RawQuery = pr.In.URL.RawQuery // as it came
	// What ReverseProxy leaves for upgrades and for trailers.
	for _, name := range []string{"Upgrade", "Connection", "Http2-Settings", "Proxy-Authorization", "Proxy-Connection"} {
		pr.Out.Header.Del(name)
	}
	pr.Out.Header.Add("Via", "1.1 devaipod") // RFC 9110, 7.6.3
}
