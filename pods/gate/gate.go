package gate

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"codeberg.org/devaipod/devaipod/pods/egress"
	"codeberg.org/devaipod/devaipod/pods/model"
	"codeberg.org/devaipod/devaipod/pods/podfile"
	"codeberg.org/devaipod/devaipod/pods/usage"
	"codeberg.org/devaipod/devaipod/pods/witness"
)

// A Role is whose socket a request came in on.
type Role string

// The two roles. The workspace is a person's: it may read git, and nothing
// else yet.
const (
	Agent     Role = "agent"
	Workspace Role = "workspace"
)

// Config is what a [Gate] is made from.
type Config struct {
	File *podfile.File
	// Policy is the pod's policy now. Without one nothing goes to the model.
	Policy func() (podfile.Policy, error)
	// Usage is the account of what the model costs.
	Usage *usage.Journal
	// Witness is told what the model asks the agent to run, and what the agent says
	// came of it; nil for nobody.
	Witness *witness.Journal
	// CA signs for the hosts that secrets are for; nil for no secrets. Roots are who
	// may sign for those hosts themselves; the system's when nil.
	CA    *egress.CA
	Roots *x509.CertPool
	// Resolve and Dial are those of the proxy ([egress.Config]); nil for the system's.
	Resolve func(ctx context.Context, name string) ([]netip.Addr, error)
	Dial    func(ctx context.Context, to netip.AddrPort) (net.Conn, error)
	// Service dials the service's socket.
	Service func(ctx context.Context) (net.Conn, error)
	// Patience is how long a request waits for a service that is away, such as
	// one that is being started again; a minute when 0.
	Patience time.Duration
	// Backoff is the pause before a model that has too much to do is asked again,
	// and then twice as much; a second when 0.
	Backoff time.Duration
	// Now is the clock, [time.Now] when nil. Its wall clock may jump: spans are
	// measured by what is monotonic in it.
	Now func() time.Time
	Log *slog.Logger
}

// A Gate admits what a pod may reach. Its handlers are safe for concurrent use.
type Gate struct {
	cfg     Config
	model   *url.URL
	direct  *http.Client // to the model
	service *http.Client // to the service
	limiter limiter
	traffic traffic
	ways    *ways
	setups  setups
}

// New checks cfg and returns a gate. It makes no call.
func New(cfg Config) (*Gate, error) {
	base, err := url.Parse(cfg.File.Model.BaseURL)
	if cfg.File.Model != (podfile.Model{}) && (err != nil || base.Host == "" || (base.Scheme != "http" && base.Scheme != "https")) {
		return nil, fmt.Errorf("the model's URL %q: want http(s)://HOST/PATH", cfg.File.Model.BaseURL)
	}
	if cfg.Policy == nil || cfg.Usage == nil {
		return nil, errors.New("a gate wants a policy and an account")
	}
	if cfg.File.AgentToken == "" || cfg.File.WorkspaceToken == "" {
		return nil, errors.New("the podfile has no tokens")
	}
	if cfg.Patience == 0 {
		cfg.Patience = time.Minute
	}
	if cfg.Backoff == 0 {
		cfg.Backoff = time.Second
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	cfg.Service = patient(cfg.Service, cfg.Patience)
	g := &Gate{cfg: cfg, model: base, limiter: limiter{rate.NewLimiter(rate.Inf, 1), cfg.Now}, traffic: traffic{now: cfg.Now}}
	if g.ways, err = newWays(cfg); err != nil {
		return nil, err
	}
	noRedirect := func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	modelTransport := &http.Transport{
		Proxy: nil, DisableCompression: true, MaxIdleConnsPerHost: 8, IdleConnTimeout: 90 * time.Second, TLSHandshakeTimeout: 10 * time.Second,
	}
	if cfg.File.Model.ViaService {
		modelTransport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) { return dialModel(ctx, cfg.Service) }
	}
	g.direct = &http.Client{Transport: modelTransport, CheckRedirect: noRedirect}
	g.service = &http.Client{CheckRedirect: noRedirect, Transport: &http.Transport{
		DisableCompression: true,
		DialContext:        func(ctx context.Context, _, _ string) (net.Conn, error) { return cfg.Service(ctx) },
	}}
	return g, nil
}

// patient dials again until somebody answers, a request's patience is over, or
// its client has gone.
func patient(dial func(context.Context) (net.Conn, error), patience time.Duration) func(context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) {
		over := time.After(patience)
		for {
			conn, err := dial(ctx)
			if err == nil {
				return conn, nil
			}
			select {
			case <-ctx.Done():
				return nil, err
			case <-over:
				return nil, err
			case <-time.After(100 * time.Millisecond):
			}
		}
	}
}

// modelPrefix is the model's base URL at the gate.
const modelPrefix = "/model/v1"

// Handler is the door of one role.
func (g *Gate) Handler(role Role) http.Handler {
	token := g.cfg.File.AgentToken
	if role == Workspace {
		token = g.cfg.File.WorkspaceToken
	}
	mux := http.NewServeMux()
	if role == Agent {
		for _, route := range model.Routes(g.cfg.File.Model.API) {
			mux.HandleFunc(route.Method+" "+modelPrefix+route.Pattern, g.forwardModel)
		}
	}
	repo := "/work/" + g.cfg.File.Repo + ".git"
	mux.HandleFunc("GET "+repo+"/info/refs", func(w http.ResponseWriter, r *http.Request) {
		if role == Workspace && r.URL.Query().Get("service") == "git-receive-pack" {
			refuse(w, http.StatusForbidden, "devaipod: a workspace may read this repository and not push to it; fetch from the workspace where your own credentials are (docs/guide.md, A pod of your own)")
			return
		}
		g.forwardGit(w, r)
	})
	mux.HandleFunc("POST "+repo+"/git-upload-pack", g.forwardGit)
	if role == Agent {
		mux.HandleFunc("POST "+repo+"/git-receive-pack", g.forwardGit)
		// What was saved is the agent's own work, and not all of it was meant for
		// others: a person has it from the command line.
		mux.HandleFunc("GET "+podfile.RestorePath, g.forwardGit)
	}
	mux.HandleFunc("POST "+podfile.SetupPath, func(w http.ResponseWriter, r *http.Request) { g.setups.take(role, w, r) })
	// Repositories of other hosts: the service says which.
	mux.HandleFunc("GET /git/", g.forwardGit)
	mux.HandleFunc("POST /git/", g.forwardGit)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		g.cfg.Log.Warn("gate: refused", "role", role, "method", r.Method, "path", clean(r.URL.Path))
		refuse(w, http.StatusForbidden, fmt.Sprintf("devaipod: this pod reaches its model and %s, and nothing else", repo))
	})
	return g.ways.out(role, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !authorized(r, token) {
			refuse(w, http.StatusUnauthorized, "devaipod: the gate's token is missing or wrong")
			return
		}
		mux.ServeHTTP(w, r)
	}))
}

// authorized compares in constant time, whatever the lengths.
func authorized(r *http.Request, token string) bool {
	got := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
	for _, name := range []string{"X-Api-Key", "X-Goog-Api-Key"} {
		if got == "" {
			got = r.Header.Get(name)
		}
	}
	a, b := sha256.Sum256([]byte(got)), sha256.Sum256([]byte(token))
	return subtle.ConstantTimeCompare(a[:], b[:]) == 1
}

// forwardGit hands a git request to the service as it is, without credentials.
func (g *Gate) forwardGit(w http.ResponseWriter, r *http.Request) {
	// The answer may begin before the body has been sent on to its end. The server
	// would close the body then.
	err := http.NewResponseController(w).EnableFullDuplex()
	if err != nil && !errors.Is(err, http.ErrNotSupported) {
		refuse(w, http.StatusInternalServerError, "devaipod: "+err.Error())
		return
	}
	out, err := http.NewRequestWithContext(r.Context(), r.Method, "http://service"+r.URL.RequestURI(), r.Body)
	if err != nil {
		refuse(w, http.StatusBadRequest, "devaipod: "+err.Error())
		return
	}
	copyHeaders(out.Header, r.Header, "Content-Type", "Content-Encoding", "Accept", "Git-Protocol", "User-Agent")
	out.ContentLength = r.ContentLength
	resp, err := g.service.Do(out)
	if err != nil {
		refuse(w, http.StatusBadGateway, "devaipod: the service does not answer; try again in a minute")
		return
	}
	defer resp.Body.Close()
	copyHeaders(w.Header(), resp.Header, "Content-Type", "Cache-Control")
	w.WriteHeader(resp.StatusCode)
	if err := stream(w, w, resp.Body, nil); err != nil && r.Context().Err() == nil {
		panic(http.ErrAbortHandler) // a cut-off answer must not look whole
	}
}

func copyHeaders(dst, src http.Header, names ...string) {
	for _, n := range names {
		if v := src.Values(n); len(v) > 0 {
			dst[http.CanonicalHeaderKey(n)] = v
		}
	}
}

func refuse(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write([]byte(text + "\n")) // the client is gone: nobody to tell
}

// clean bounds what an agent wrote, for a log line.
func clean(s string) string { return fmt.Sprintf("%.200q", s) }

// Traffic is what the gate has seen of the model. Unlike what the agent's own
// process says, it can be trusted.
type Traffic struct {
	Seen
	FirstRequest time.Time
	Used         usage.Totals
}

// Seen is what an agent's driver judges by.
type Seen struct {
	InFlight     int
	Requests     int64
	LastRequest  time.Time
	LastResponse time.Time
	Received     int64  // bytes of answers that were no errors
	LastStatus   int    // HTTP status, 0 when the model did not answer
	LastError    string // in words, "" when the last request went well
	Failures     int    // requests that failed, in a row
	Spent        string // why the budget has no room for the last request, "" when it has
}

type traffic struct {
	now     func() time.Time
	mu      sync.Mutex
	t       Traffic
	refused *usage.Entry // the last request, when the budget had no room for it
}

// Traffic is the state now.
func (g *Gate) Traffic() Traffic {
	g.traffic.mu.Lock()
	t, refused := g.traffic.t, g.traffic.refused
	g.traffic.mu.Unlock()
	t.Used, _ = g.cfg.Usage.Totals()
	if refused == nil {
		return t
	}
	policy, err := g.cfg.Policy()
	if err != nil {
		t.Spent = err.Error()
	} else {
		t.Spent = g.cfg.Usage.Refuses(policy.Budget, *refused) // it may have been raised
	}
	return t
}

// spend notes a request that the budget had no room for, nil for one that it had.
func (t *traffic) spend(refused *usage.Entry) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.refused = refused
}

func (t *traffic) begin() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.t.InFlight++
	t.t.Requests++
	if t.t.LastRequest = t.now(); t.t.FirstRequest.IsZero() {
		t.t.FirstRequest = t.t.LastRequest
	}
}

// received counts what came of an answer, as it comes.
func (t *traffic) received(n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.t.Received += int64(n)
}

func (t *traffic) end(status int, failure string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.t.InFlight--
	t.t.LastResponse, t.t.LastStatus, t.t.LastError = t.now(), status, failure
	if t.t.Failures++; failure == "" {
		t.t.Failures = 0
	}
}
