package egress

import (
	"context"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// Config is what a [Proxy] is made from. Fields that may be nil or zero say so.
type Config struct {
	// Rules are those that hold until [Proxy.SetRules].
	Rules Rules
	// Authorized tells whether a request comes from the pod; [Token] makes one.
	Authorized func(*http.Request) bool
	// Resolve gives all addresses of a name, which ends with a dot: it is whole,
	// without a search list. [net.DefaultResolver] when nil.
	Resolve func(ctx context.Context, name string) ([]netip.Addr, error)
	// Reachable tells which addresses may be dialled; [Reachable] when nil.
	Reachable func(netip.Addr) bool
	// Dial connects by TCP; a [net.Dialer] when nil.
	Dial func(ctx context.Context, to netip.AddrPort) (net.Conn, error)

	// Inject gives the headers that requests to a host get, none for most hosts;
	// nil for none at all. It is asked for each request, in several goroutines.
	Inject func(host string) []Header
	// CA signs for the hosts that Inject gives headers for; wanted with Inject.
	CA *CA
	// Roots are who may sign for those hosts to us; the system's when nil.
	Roots *x509.CertPool

	// MaxTunnels bounds tunnels and plain requests that are under way; 256 when 0.
	MaxTunnels int
	// HelloWithin is how long a client has for its ClientHello, DialWithin how long
	// resolving and connecting may take; 30 s each when 0.
	HelloWithin, DialWithin time.Duration
	// Now is the time, for Blocked and certificates; [time.Now] when nil.
	Now func() time.Time
	Log *slog.Logger
}

func (c *Config) fill() error {
	if c.Authorized == nil || c.Log == nil {
		return errors.New("egress: Authorized and Log must be set")
	}
	if c.Inject != nil && c.CA == nil {
		return errors.New("egress: Inject needs a CA")
	}
	if c.Resolve == nil {
		c.Resolve = func(ctx context.Context, name string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", name)
		}
	}
	if c.Reachable == nil {
		c.Reachable = Reachable
	}
	if c.Dial == nil {
		c.Dial = func(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", to.String())
		}
	}
	if c.MaxTunnels == 0 {
		c.MaxTunnels = 256
	}
	if c.HelloWithin == 0 {
		c.HelloWithin = 30 * time.Second
	}
	if c.DialWithin == 0 {
		c.DialWithin = 30 * time.Second
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return nil
}

// A Proxy is the [http.Handler] of a pod's way out. All of its methods are safe
// for concurrent use. Close ends it.
type Proxy struct {
	cfg     Config
	plain   *httputil.ReverseProxy // http:// requests
	ways    []*http.Transport      // that keep connections for the next request
	within  *interceptor           // nil without Inject
	blocked blocked
	// refusing is how many connections are being told no.
	refusing atomic.Int32

	mu       sync.Mutex
	rules    Rules
	passages map[*passage]bool
	closed   bool
	idle     sync.WaitGroup // of passages
}

// New checks cfg and returns a proxy. It makes no call.
func New(cfg Config) (*Proxy, error) {
	if err := cfg.fill(); err != nil {
		return nil, err
	}
	p := &Proxy{cfg: cfg, rules: cfg.Rules, passages: map[*passage]bool{}, blocked: blocked{now: cfg.Now}}
	p.plain = p.newForwarder(p.newTransport(), p.rewritePlain)
	if cfg.Inject != nil {
		p.within = p.newInterceptor()
	}
	return p, nil
}

// A passage is one tunnel, or one plain request, that is under way.
type passage struct {
	to      target
	connect bool
	cancel  context.CancelCauseFunc
}

// Why a passage ends before its time.
var (
	errRules  = errors.New("the host is no longer allowed")
	errClosed = errors.New("the gate ends")
)

// enter admits a passage if the rules allow it now and there is room. Its context
// ends when they no longer do; leave must be called at its end.
func (p *Proxy) enter(ctx context.Context, to target, connect bool) (inside context.Context, leave func(), no *refusal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if to.host.name == "" && !p.cfg.Reachable(to.host.ip) {
		return nil, nil, notPublic(to, "it is no address of the public internet") // no rule allows it
	}
	if !p.rules.allow(to, connect) {
		return nil, nil, notAllowed(to, connect)
	}
	if p.closed || len(p.passages) >= p.cfg.MaxTunnels {
		return nil, nil, tooMany(to, len(p.passages))
	}
	inside, cancel := context.WithCancelCause(ctx)
	way := &passage{to: to, connect: connect, cancel: cancel}
	p.passages[way] = true
	p.idle.Add(1)
	return inside, func() {
		cancel(nil)
		p.mu.Lock()
		delete(p.passages, way)
		p.mu.Unlock()
		p.idle.Done()
	}, nil
}

// SetRules makes other rules hold. When it returns, what they allow is let in, and
// what they don't is being cut, whatever is under way there.
func (p *Proxy) SetRules(r Rules) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rules = r
	for way := range p.passages {
		if !r.allow(way.to, way.connect) {
			way.cancel(errRules)
		}
	}
	p.forget()
}

// forget closes connections that wait for another request.
func (p *Proxy) forget() {
	for _, t := range p.ways {
		t.CloseIdleConnections()
	}
}

// Tunnels is how many tunnels and plain requests are under way.
func (p *Proxy) Tunnels() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.passages)
}

// Close cuts all that is under way, waits for its end, and lets nothing in from
// then on.
func (p *Proxy) Close() {
	p.mu.Lock()
	p.closed = true
	for way := range p.passages {
		way.cancel(errClosed)
	}
	p.mu.Unlock()
	p.idle.Wait()
	if p.within != nil {
		p.within.close()
	}
	p.forget()
}

// IsProxyRequest tells a request to a proxy (RFC 9112, 3.2.2 and 3.2.3) from one
// to a server.
func IsProxyRequest(r *http.Request) bool {
	return r.Method == http.MethodConnect || r.URL.IsAbs()
}

// ServeHTTP implements [http.Handler].
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.ProtoMajor != 1:
		say(w, r, http.StatusHTTPVersionNotSupported, "devaipod: the proxy speaks HTTP/1.1")
	case !p.cfg.Authorized(r):
		w.Header().Add("Proxy-Authenticate", `Basic realm="devaipod"`)
		w.Header().Add("Proxy-Authenticate", `Bearer realm="devaipod"`)
		say(w, r, http.StatusProxyAuthRequired, "devaipod: the proxy's token is missing or wrong; the variable https_proxy has an address with the right one")
	case r.Method == http.MethodConnect:
		p.serveConnect(w, r)
	case r.URL.IsAbs():
		p.servePlain(w, r)
	default:
		say(w, r, http.StatusBadRequest, "devaipod: this is a proxy; it takes CONNECT, and requests for http:// URLs")
	}
}
