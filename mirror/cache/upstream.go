package cache

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"codeberg.org/devaipod/devaipod/mirror/gitproc"
	"codeberg.org/devaipod/devaipod/mirror/smarthttp"
)

// Git's two services.
const (
	uploadPack  = "git-upload-pack"
	receivePack = "git-receive-pack"
)

const (
	dialLimit = 20 * time.Second
	maxMoves  = 3 // redirects
)

// A Host says how the repositories of one host are reached.
type Host struct {
	// URL is the base that a path is put behind: "ssh://git@example.org/",
	// "https://example.org/git/". Empty for https://HOST/, and http:// where the
	// host is a loopback address.
	URL string
	// SSH is the command line of the ssh client, as in git's core.sshCommand:
	// "ssh -i /path/to/key". Empty for "ssh". It never asks anybody anything.
	SSH string
	// Transport carries the requests to URL; nil for one of the cache's own, which
	// checks each address that it dials.
	Transport http.RoundTripper
	// Refs are kept beside [Config.Refs]: "refs/pull/*/head".
	Refs []string
	// Always asks the host each time, whatever [Config.MaxAge] says.
	Always bool
	// Unchecked takes objects as they are, without git's fsck: one bad object that
	// this host has let in does not keep all else from being read.
	Unchecked bool
	// Identity tells what repository has a path ("owner/repo") now, by what it keeps
	// under another name and no other ever has; "" when there is none that it may
	// tell of, an error when nobody answers. What is here under a name is thrown
	// away when another repository takes it. nil where nobody can tell: names are
	// all there is then, and nothing is lent.
	Identity func(ctx context.Context, path string) (string, error)
	// Rest is the longest that the host is left alone after failures; five minutes
	// when 0.
	Rest time.Duration
	// Push lets [Cache.Push] write there.
	Push bool
}

// An upstream is where one repository comes from.
type upstream struct {
	addr    Address
	verdict verdict
	home    *url.URL // of the host
	url     *url.URL // http, https, ssh or file; below home
	ssh     string   // the client's command line
	via     http.RoundTripper

	unchecked bool
}

// upstream says where an address leads, when the rules allow it.
func (c *Cache) upstream(addr Address) (upstream, error) {
	u := upstream{addr: addr, verdict: c.cfg.Allow.check(addr)}
	if u.verdict == refused {
		return u, &RefusedError{What: addr.String(), Why: "no pattern of mirror.allow_upstream lets it pass"}
	}
	base := "https://" + addr.Host + "/"
	host, own := c.cfg.Hosts[addr.Host]
	u.via, u.unchecked = host.Transport, host.Unchecked
	u.ssh = cmp.Or(host.SSH, "ssh") + " -o BatchMode=yes -o ConnectTimeout=20"
	switch {
	case own && host.URL != "":
		base = strings.TrimSuffix(host.URL, "/") + "/"
	case addr.Host == localhost:
		base = "file:///"
	case isLoopback(hostOnly(addr.Host)):
		base = "http://" + addr.Host + "/"
	}
	at, err := url.Parse(base)
	if err != nil {
		return u, fmt.Errorf("mirror.host %s: url: %w", addr.Host, err)
	}
	switch at.Scheme {
	case "http", "https", "file", "ssh":
	default:
		return u, fmt.Errorf("mirror.host %s: url %s: want http, https, ssh or file", addr.Host, at.Redacted())
	}
	if at.Scheme != "http" && at.Scheme != "https" && u.verdict != named {
		return u, &RefusedError{What: addr.String(), Why: "by " + at.Scheme + " only hosts are asked that mirror.allow_upstream names"}
	}
	u.home, u.url = at, at.JoinPath(addr.Path+".git")
	return u, nil
}

// bare is the same upstream where its name does not end in ".git".
func (u upstream) bare() upstream {
	other := *u.url
	other.Path = strings.TrimSuffix(other.Path, ".git")
	u.url = &other
	return u
}

func isLoopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == localhost || err == nil && ip.IsLoopback()
}

// web tells whether the upstream speaks HTTP.
func (u upstream) web() bool { return u.url.Scheme == "http" || u.url.Scheme == "https" }

// What an upstream can say, beside an answer.
var (
	errUnauthorized = errors.New("the upstream wants credentials")
	errNotFound     = errors.New("the upstream knows no such repository")
)

// An unreachableError is an upstream that does not answer, or not as git does.
type unreachableError struct{ err error }

func (e *unreachableError) Error() string { return "the upstream does not answer: " + e.err.Error() }
func (e *unreachableError) Unwrap() error { return e.err }

// A forwarder is the way of git's children to upstreams that speak HTTP: a
// loopback server, which knows the sessions that are open and nothing else.
// Credentials stay in this process.
type forwarder struct {
	listener net.Listener
	server   *http.Server
	clients  map[verdict]*http.Client
	max      int64
	patience time.Duration
	received prometheus.Counter

	mu       sync.Mutex
	sessions map[string]*session
}

// A place is where a session's upstream is: elsewhere after a redirect.
type place struct {
	base    *url.URL
	verdict verdict
	via     http.RoundTripper // nil for the forwarder's own
}

// A session is one upstream, asked with one set of credentials.
type session struct {
	f     *forwarder
	ctx   context.Context
	token string
	host  string   // as addresses call it
	home  *url.URL // of the host
	allow func(Address) verdict
	auth  string      // value of the Authorization header, or ""
	push  atomic.Bool // a child may push
	stays atomic.Bool // no redirect is followed

	mu    sync.Mutex
	at    place
	err   error // why the upstream did not answer as it should
	bytes int64
}

func newForwarder(max int64, patience time.Duration, received prometheus.Counter, log *slog.Logger) (*forwarder, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listening for git's children: %w", err)
	}
	f := &forwarder{listener: l, clients: map[verdict]*http.Client{}, max: max, patience: patience, received: received, sessions: map[string]*session{}}
	for _, v := range []verdict{public, named} {
		f.clients[v] = &http.Client{Transport: transport(v, patience), CheckRedirect: noRedirect}
	}
	f.server = &http.Server{Handler: f, ReadHeaderTimeout: 10 * time.Second, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn)}
	go f.server.Serve(l) //nolint:errcheck // ends by close
	return f, nil
}

func noRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// transport dials only where v lets it, and undoes no compression. It asks no
// proxy: a proxy would resolve names behind our back.
func transport(v verdict, patience time.Duration) *http.Transport {
	return &http.Transport{
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			d := net.Dialer{Timeout: dialLimit, Control: func(_, to string, _ syscall.RawConn) error { return mayDial(v, address, to) }}
			return d.DialContext(ctx, network, address)
		},
		DisableCompression: true, MaxIdleConnsPerHost: 4, IdleConnTimeout: 30 * time.Second,
		TLSHandshakeTimeout: dialLimit, ResponseHeaderTimeout: patience, ForceAttemptHTTP2: true,
	}
}

// do asks an upstream. It is an error when a rule forbids that, or when there is
// no answer.
func (f *forwarder) do(v verdict, via http.RoundTripper, req *http.Request) (*http.Response, error) {
	client := f.clients[v]
	if via != nil {
		client = &http.Client{Transport: via, CheckRedirect: noRedirect}
	}
	resp, err := client.Do(req)
	var refusal *RefusedError
	switch {
	case errors.As(err, &refusal):
		return nil, refusal
	case err != nil:
		return nil, &unreachableError{cause(req.Context(), err)}
	}
	return resp, nil
}

func (f *forwarder) close() error {
	err := f.server.Close()
	for _, c := range f.clients {
		c.CloseIdleConnections()
	}
	return err
}

// open starts a session, which lasts until ctx ends or it is closed.
func (f *forwarder) open(ctx context.Context, u upstream, auth string, allow func(Address) verdict) *session {
	s := &session{f: f, ctx: ctx, token: rand.Text(), host: u.addr.Host, home: u.home, allow: allow, auth: auth, at: place{u.url, u.verdict, u.via}}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.sessions[s.token] = s
	return s
}

func (s *session) close() {
	s.f.mu.Lock()
	defer s.f.mu.Unlock()
	delete(s.f.sessions, s.token)
}

// sessionHeader carries the session's secret. The URL is seen in a list of
// processes, and anybody on the machine can reach the forwarder's port.
const sessionHeader = "Devaipod-Session"

// config lets a child in.
func (s *session) config() []string {
	return []string{"http.extraHeader=" + sessionHeader + ": " + s.token}
}

// address is where children find the upstream.
func (s *session) address() string { return "http://" + s.f.listener.Addr().String() + "/upstream" }

// failure is what went wrong at the upstream, if anything did.
func (s *session) failure() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

func (s *session) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.err = err
	}
}

// ServeHTTP takes what git's children ask.
func (f *forwarder) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := strings.TrimPrefix(r.URL.Path, "/upstream/")
	f.mu.Lock()
	s := f.sessions[r.Header.Get(sessionHeader)]
	f.mu.Unlock()
	switch {
	case s == nil:
		http.Error(w, "no such session", http.StatusNotFound)
	case r.Method == http.MethodGet && path == "info/refs" && s.lets(r.URL.Query().Get("service")) || r.Method == http.MethodPost && s.lets(path):
		s.serve(w, r, path)
	default:
		http.Error(w, "no such route", http.StatusNotFound)
	}
}

// lets tells whether a child may use one of git's services there.
func (s *session) lets(service string) bool {
	return service == uploadPack || s.push.Load() && service == receivePack
}

func (s *session) serve(w http.ResponseWriter, r *http.Request, path string) {
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	defer context.AfterFunc(s.ctx, func() { cancel(context.Cause(s.ctx)) })()
	err := smarthttp.Duplex(w)
	if err == nil {
		err = s.pass(ctx, cancel, w, r, path)
	}
	if err == nil {
		return
	}
	if r.Context().Err() == nil && !errors.Is(err, errHungUp) {
		s.fail(err)
	}
	panic(http.ErrAbortHandler) // git must not take it for whole
}

// pass passes a question on, and its answer back.
func (s *session) pass(ctx context.Context, cancel context.CancelCauseFunc, w http.ResponseWriter, r *http.Request, path string) error {
	resp, err := s.ask(ctx, r, path)
	if err != nil {
		return err
	}
	return s.relay(ctx, cancel, w, resp)
}

// relay passes an answer on, as far as the limits let it. Its errors are the
// upstream's, or errHungUp.
func (s *session) relay(ctx context.Context, cancel context.CancelCauseFunc, w http.ResponseWriter, resp *http.Response) error {
	defer resp.Body.Close()
	for _, h := range []string{"Content-Type", "Content-Encoding", "Content-Length"} {
		if v := resp.Header.Get(h); v != "" {
			w.Header().Set(h, v)
		}
	}
	w.WriteHeader(resp.StatusCode)
	idle := time.AfterFunc(s.f.patience, func() { cancel(fmt.Errorf("no byte for %s", s.f.patience)) })
	defer idle.Stop()
	var failed error // of the upstream
	err := smarthttp.Stream(w, readerFunc(func(b []byte) (int, error) {
		n, err := resp.Body.Read(b)
		idle.Reset(s.f.patience)
		if err != nil && !errors.Is(err, io.EOF) {
			err = &unreachableError{cause(ctx, err)}
			failed = err
		}
		if s.count(n) > s.f.max {
			failed = &RefusedError{What: s.at.base.Redacted(), Why: fmt.Sprintf("it sends more than %d bytes (mirror.max_repository)", s.f.max)}
			return n, failed
		}
		return n, err
	}))
	if err != nil && (failed == nil || errors.Is(failed, context.Canceled)) {
		return errHungUp
	}
	return err
}

// errHungUp is a client that went before the answer's end.
var errHungUp = errors.New("the client has gone")

func (s *session) count(n int) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bytes += int64(n)
	s.f.received.Add(float64(n))
	return s.bytes
}

// ask sends git's request to the upstream, and takes nothing but git's answer.
func (s *session) ask(ctx context.Context, r *http.Request, path string) (*http.Response, error) {
	resp, err := s.send(ctx, r, path)
	if err != nil {
		return nil, err
	}
	service := path
	if path == "info/refs" {
		service = r.URL.Query().Get("service")
	}
	if err := judge(resp, service, path); err != nil {
		resp.Body.Close()
		return nil, err
	}
	return resp, nil
}

// send sends a request to the upstream. The first question of a session may be
// sent elsewhere, if the rules allow that place too.
func (s *session) send(ctx context.Context, r *http.Request, path string) (*http.Response, error) {
	for moves := 0; ; moves++ {
		s.mu.Lock()
		at := s.at
		s.mu.Unlock()
		to := at.base.JoinPath(path)
		if path == "info/refs" {
			to.RawQuery = "service=" + url.QueryEscape(r.URL.Query().Get("service"))
		}
		var body io.Reader
		if r.Method == http.MethodPost {
			body = r.Body
		}
		req, err := http.NewRequestWithContext(ctx, r.Method, to.String(), body)
		if err != nil {
			return nil, err
		}
		if body != nil {
			req.ContentLength = r.ContentLength
		}
		for _, h := range []string{"Content-Type", "Content-Encoding", "Accept", "Accept-Encoding", "Git-Protocol"} {
			if v := r.Header.Get(h); v != "" {
				req.Header.Set(h, v)
			}
		}
		req.Header.Set("User-Agent", "git/2 (devaipod)")
		if s.auth != "" {
			req.Header.Set("Authorization", s.auth)
		}
		resp, err := s.f.do(at.verdict, at.via, req)
		if err != nil {
			return nil, err
		}
		if resp.StatusCode/100 == 3 && path == "info/refs" && moves < maxMoves {
			err := s.move(resp)
			resp.Body.Close()
			if err != nil {
				return nil, err
			}
			continue
		}
		return resp, nil
	}
}

// judge tells an answer of git's from any other.
func judge(resp *http.Response, service, path string) error {
	want := "application/x-" + service + "-result"
	if path == "info/refs" {
		want = "application/x-" + service + "-advertisement"
	}
	switch got := resp.Header.Get("Content-Type"); {
	case resp.StatusCode == http.StatusUnauthorized || resp.StatusCode == http.StatusForbidden:
		return errUnauthorized
	case resp.StatusCode == http.StatusNotFound || resp.StatusCode == http.StatusGone:
		return errNotFound
	case resp.StatusCode != http.StatusOK:
		return &unreachableError{fmt.Errorf("it says %d %s", resp.StatusCode, http.StatusText(resp.StatusCode))}
	case got != want:
		return &unreachableError{fmt.Errorf("what it sends is %q and not git's smart protocol", clip(gitproc.Printable(got)))}
	}
	return nil
}

// move follows a redirect: to an address that the rules allow, never from https
// to http, and without the credentials when it is another host.
func (s *session) move(resp *http.Response) error {
	to, err := resp.Location()
	if err != nil {
		return &unreachableError{err}
	}
	path, ok := strings.CutSuffix(to.Path, "/info/refs")
	s.mu.Lock()
	defer s.mu.Unlock()
	refuse := func(why string) error {
		return &RefusedError{What: s.at.base.Redacted(), Why: fmt.Sprintf("it redirects to %s://%s, %s", clip(gitproc.Printable(to.Scheme)), clip(gitproc.Printable(to.Host)), why)}
	}
	if !ok || to.User != nil {
		return refuse("which is no repository")
	}
	if s.stays.Load() {
		return refuse("and nothing is exported but to the URL that is followed")
	}
	if to.Scheme != "https" && (to.Scheme != "http" || s.at.base.Scheme == "https") {
		return refuse("which is less safe")
	}
	via := s.at.via
	name := strings.TrimSuffix(to.Host, map[string]string{"https": ":443", "http": ":80"}[to.Scheme]) + path
	if within, ok := strings.CutPrefix(to.Scheme+"://"+to.Host+path, strings.TrimSuffix(s.home.String(), "/")+"/"); ok {
		name = s.host + "/" + within // renamed, on the host that was asked
	} else {
		via = nil
	}
	addr, err := ParseAddress(name)
	if err != nil {
		return refuse("which is no repository")
	}
	v := s.allow(addr)
	if v == refused || addr.Host == localhost {
		return refuse("which no pattern of mirror.allow_upstream lets pass")
	}
	if to.Host != s.at.base.Host && s.auth != "" {
		return refuse("another host, which does not get the credentials")
	}
	s.at = place{&url.URL{Scheme: to.Scheme, Host: to.Host, Path: path}, v, via}
	return nil
}

// cause is the innermost reason of an HTTP client's error: without the URL.
func cause(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }
