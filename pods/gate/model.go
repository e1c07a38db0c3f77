package gate

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/http/httptrace"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"codeberg.org/devaipod/devaipod/pods/model"
	"codeberg.org/devaipod/devaipod/pods/podfile"
	"codeberg.org/devaipod/devaipod/pods/redact"
	"codeberg.org/devaipod/devaipod/pods/usage"
)

// maxModelRequest bounds a request to the model, in bytes: a long context with
// images.
const maxModelRequest = 64 << 20

const (
	// perToken is how many bytes of a request make a token at least, for what is
	// reserved; text and code have three or four.
	perToken = 2
	// someOutput is how many tokens are reserved for an answer to a request that
	// sets no limit.
	someOutput = 16_384
)

// forwardModel sends a request on to the model with the real key, once there is
// room for it in the budget.
func (g *Gate) forwardModel(w http.ResponseWriter, r *http.Request) {
	policy, err := g.cfg.Policy()
	if err != nil {
		g.closed(w, err)
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxModelRequest))
	if err != nil {
		refuse(w, http.StatusRequestEntityTooLarge, "devaipod: "+err.Error())
		return
	}
	req := model.Request{Free: true}
	if r.Method == http.MethodPost {
		rules := model.Rules{API: g.cfg.File.Model.API, Name: g.cfg.File.Model.Name, ProviderTools: policy.ProviderTools}
		req, err = rules.Admit(r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:], body)
		if err != nil {
			g.cfg.Log.Warn("gate: refused a request to the model", "why", clean(err.Error()))
			refuse(w, http.StatusBadRequest, "devaipod: "+err.Error())
			return
		}
		if len(req.Stripped) > 0 {
			g.cfg.Log.Warn("gate: took out of a request what the provider would run", "what", clean(strings.Join(req.Stripped, ", ")))
		}
	}
	if err := g.limiter.wait(r.Context(), policy.Rate); err != nil {
		return // the agent has gone
	}
	n, ok := g.reserve(w, policy, req)
	if !ok {
		return
	}
	if !req.Free {
		g.cfg.Witness.Told(req.Body)
	}
	g.traffic.begin()
	began := g.cfg.Now()
	status, failure, used := g.relayModel(w, r, req, policy.Key)
	if !req.Free {
		used.At, used.Model, used.Agent, used.Time = g.cfg.Now().UTC(), g.cfg.File.Model.Name, g.cfg.File.Agent, g.cfg.Now().Sub(began)
		used.Cost = policy.Prices.Of(used.Tokens)
		if err := g.cfg.Usage.Settle(n, used); err != nil {
			g.cfg.Log.Error("gate: a request stays counted as it was reserved", "err", err)
		}
	}
	if r.Context().Err() != nil {
		failure = "" // the agent broke it off: nothing is wrong with the model
	}
	g.traffic.end(status, failure)
	if failure != "" {
		g.cfg.Log.Warn("gate: the model", "status", status, "err", failure)
	}
}

// closed refuses a request because something of ours is broken: what can't be
// counted, or has no rules, is not sent.
func (g *Gate) closed(w http.ResponseWriter, err error) {
	why := "the gate lets no request through: " + err.Error()
	g.cfg.Log.Error("gate: closed", "err", err)
	g.traffic.begin()
	g.traffic.end(http.StatusServiceUnavailable, why)
	refuse(w, http.StatusServiceUnavailable, "devaipod: "+why)
}

// reserve sets aside what a request may use at most, as far as can be told: a
// budget may be passed by as much as the last requests turn out to be dearer.
func (g *Gate) reserve(w http.ResponseWriter, policy podfile.Policy, req model.Request) (n int64, ok bool) {
	if req.Free {
		return 0, true
	}
	most := usage.Entry{At: g.cfg.Now().UTC(), Model: g.cfg.File.Model.Name, Agent: g.cfg.File.Agent, Tokens: reserved(req)}
	most.Cost = policy.Prices.Of(most.Tokens)
	n, why, err := g.cfg.Usage.Reserve(policy.Budget, most)
	if err != nil {
		g.closed(w, err)
		return 0, false
	}
	if why == "" {
		g.traffic.spend(nil)
		return n, true
	}
	g.traffic.spend(&most)
	g.cfg.Log.Warn("gate: over the budget", "why", why)
	refuse(w, http.StatusPaymentRequired, fmt.Sprintf("devaipod: the budget of this issue is used up: %s; a person can raise it by a comment on the issue, /budget AMOUNT", why))
	return 0, false
}

func reserved(req model.Request) usage.Tokens {
	t := usage.Tokens{Input: int64(len(req.Body)/perToken) + 1, Output: req.MaxOutput}
	if t.Output == 0 {
		t.Output = someOutput
	}
	return t
}

// out is the request as the model gets it.
func (g *Gate) out(r *http.Request, body []byte, key string) (*http.Request, error) {
	url := strings.TrimSuffix(g.model.String(), "/") + strings.TrimPrefix(r.URL.EscapedPath(), modelPrefix)
	if g.cfg.File.Model.API == podfile.APIGemini && r.URL.Query().Get("alt") == "sse" {
		url += "?alt=sse"
	}
	out, err := http.NewRequestWithContext(r.Context(), r.Method, url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	copyHeaders(out.Header, r.Header, "Content-Type", "Accept", "Anthropic-Version", "Anthropic-Beta")
	if key != "" {
		name, value := keyHeader(g.cfg.File.Model.API, key)
		out.Header.Set(name, value)
	}
	return out, nil
}

// keyHeader is the header that an API wants its key in; agents show the gate's
// token in the same.
func keyHeader(api, key string) (name, value string) {
	switch api {
	case podfile.APIAnthropic:
		return "X-Api-Key", key
	case podfile.APIGemini:
		return "X-Goog-Api-Key", key
	default:
		return "Authorization", "Bearer " + key
	}
}

// relayModel passes the model's answer back as it comes, and tells what it used.
func (g *Gate) relayModel(w http.ResponseWriter, r *http.Request, req model.Request, key string) (status int, failure string, used usage.Entry) {
	resp, sent, err := g.ask(r, req.Body, key)
	if err != nil {
		failure = fmt.Sprintf("the model at %s does not answer: %s", g.model.Host, cause(err))
		refuse(w, http.StatusBadGateway, "devaipod: "+failure)
		if sent {
			used.Input = reserved(req).Input // it may have got the request
		}
		return 0, failure, used
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 300 && resp.StatusCode < 400 {
		failure = fmt.Sprintf("the model answered %d, a redirect, which is not followed; is model.url right?", resp.StatusCode)
		refuse(w, http.StatusBadGateway, "devaipod: "+failure)
		return resp.StatusCode, failure, used
	}
	copyHeaders(w.Header(), resp.Header, "Content-Type", "Retry-After", "Retry-After-Ms", "Request-Id", "X-Request-Id")
	redact.Header(w.Header(), key)
	w.WriteHeader(resp.StatusCode)
	var head bytes.Buffer
	var meter model.Meter
	var bytesSeen int64
	body := redact.NewWriter(w, key)
	look := func(p []byte) {
		if head.Len() < 4096 {
			head.Write(p[:min(len(p), 4096-head.Len())])
		}
	}
	if resp.StatusCode == http.StatusOK {
		look = func(p []byte) {
			g.traffic.received(len(p))
			bytesSeen += int64(len(p))
			_, _ = meter.Write(p) // it has no errors
		}
	}
	err = stream(body, w, resp.Body, look)
	if err == nil {
		err = body.Flush()
	}
	if resp.StatusCode == http.StatusOK {
		used.Tokens = measured(&meter, req, bytesSeen)
		g.cfg.Witness.Called(meter.Calls())
	}
	if err != nil {
		return resp.StatusCode, "the model's answer broke off: " + cause(err), used
	}
	if resp.StatusCode != http.StatusOK {
		failure = fmt.Sprintf("the model answered %d: %.300s", resp.StatusCode, redact.String(head.String(), key))
	}
	return resp.StatusCode, failure, used
}

// measured is what an answer said was used. What it did not say is taken to be as
// it was reserved, but for an output that is longer than the answer.
func measured(m *model.Meter, req model.Request, received int64) usage.Tokens {
	used, whole := m.Tokens()
	if whole {
		return used
	}
	most := reserved(req)
	if used.Input+used.CacheRead+used.CacheWrite == 0 {
		used.Input = most.Input
	}
	used.Output = max(used.Output, min(most.Output, received/perToken))
	return used
}

// retries are how often a model that has too much to do is asked again.
const retries = 3

// ask sends the request, and again after a while to a model that has too much to
// do: nothing of an answer has come back to the agent then. It tells whether there
// was a connection to send the last try on, with TLS as it should be.
func (g *Gate) ask(r *http.Request, body []byte, key string) (resp *http.Response, sent bool, err error) {
	for try := 0; ; try++ {
		out, err := g.out(r, body, key)
		if err != nil {
			return nil, false, err
		}
		var connected atomic.Bool
		trace := &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { connected.Store(true) }}
		resp, err := g.direct.Do(out.WithContext(httptrace.WithClientTrace(out.Context(), trace)))
		if err != nil || try == retries || !busy(resp.StatusCode) {
			return resp, connected.Load(), err
		}
		pause, ok := retryAfter(resp.Header, g.cfg.Backoff<<try)
		if !ok {
			return resp, true, nil
		}
		g.cfg.Log.Info("gate: the model has too much to do", "status", resp.StatusCode, "again_in", pause)
		if err := resp.Body.Close(); err != nil {
			return nil, false, err
		}
		select {
		case <-r.Context().Done():
			return nil, false, r.Context().Err()
		case <-time.After(pause):
		}
	}
}

func busy(status int) bool {
	return status == http.StatusTooManyRequests || status == http.StatusServiceUnavailable || status == 529 // Anthropic's "overloaded"
}

// maxPause is how long an agent is kept waiting between two tries; a model that
// wants more says so to the agent.
const maxPause = 30 * time.Second

// retryAfter is how long to wait (RFC 9110, section 10.2.3; some providers tell
// milliseconds), usual when h does not say.
func retryAfter(h http.Header, usual time.Duration) (pause time.Duration, ok bool) {
	pause = usual
	for name, in := range map[string]time.Duration{"Retry-After-Ms": time.Millisecond, "Retry-After": time.Second} {
		if n, err := strconv.ParseFloat(h.Get(name), 64); err == nil && n >= 0 && !math.IsNaN(n) {
			pause = max(pause, time.Duration(min(n, 1e6)*float64(in)))
		}
	}
	return pause, pause <= maxPause
}

// A limiter holds requests back that come too fast.
type limiter struct {
	*rate.Limiter
	now func() time.Time
}

// wait waits for the turn of a request, of perMinute; 0 for no bound.
func (l *limiter) wait(ctx context.Context, perMinute int) error {
	limit := rate.Inf
	if perMinute > 0 {
		limit = rate.Every(time.Minute / time.Duration(perMinute))
	}
	now := l.now()
	if l.Limit() != limit {
		l.SetLimitAt(now, limit)
		l.SetBurstAt(now, max(1, perMinute/4))
	}
	turn := l.ReserveN(now, 1)
	select {
	case <-time.After(turn.DelayFrom(now)):
		return nil
	case <-ctx.Done():
		turn.CancelAt(l.now())
		return ctx.Err()
	}
}

// cause leaves the URL out of an HTTP client's error.
func cause(err error) string {
	for next := errors.Unwrap(err); next != nil; next = errors.Unwrap(err) {
		err = next
	}
	return err.Error()
}

// stream copies with a flush after each read, so that tokens come as they are
// made: what is read of r goes to dst, which writes to w, and is then shown to look,
// if that is not nil.
func stream(dst io.Writer, w http.ResponseWriter, r io.Reader, look func([]byte)) error {
	rc := http.NewResponseController(w)
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			_, werr := dst.Write(buf[:n])
			if werr == nil {
				if werr = rc.Flush(); errors.Is(werr, http.ErrNotSupported) {
					werr = nil
				}
			}
			if look != nil {
				look(buf[:n])
			}
			if werr != nil {
				return werr
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// Reach tells why no connection to the model can be made now, nil when one can. It
// sends nothing.
func (g *Gate) Reach(ctx context.Context) error {
	dial := new(net.Dialer).DialContext
	if g.cfg.File.Model.ViaService {
		dial = func(ctx context.Context, _, _ string) (net.Conn, error) { return dialModel(ctx, g.cfg.Service) }
	}
	conn, err := dial(ctx, "tcp", net.JoinHostPort(g.model.Hostname(), cmp.Or(g.model.Port(), map[string]string{"http": "80", "https": "443"}[g.model.Scheme])))
	if err != nil {
		return fmt.Errorf("connecting to the model at %s: %w", g.model.Host, err)
	}
	return conn.Close()
}

// dialModel reaches a model on the host's loopback through the service: an
// upgrade request, then the bare connection.
func dialModel(ctx context.Context, service func(context.Context) (net.Conn, error)) (net.Conn, error) {
	conn, err := service(ctx)
	if err != nil {
		return nil, fmt.Errorf("the service does not answer: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	br := bufio.NewReader(conn)
	if err := upgrade(conn, br); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return buffered{conn, br}, nil
}

// upgrade asks for the bare connection.
func upgrade(conn net.Conn, br *bufio.Reader) error {
	if _, err := io.WriteString(conn, "GET /dial/model HTTP/1.1\r\nHost: service\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"); err != nil {
		return err
	}
	resp, err := http.ReadResponse(br, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusSwitchingProtocols {
		return nil
	}
	text, err := io.ReadAll(io.LimitReader(resp.Body, 500))
	return errors.Join(fmt.Errorf("the service said: %s", strings.TrimSpace(string(text))), err)
}

// buffered reads first what came along with the upgrade's answer.
type buffered struct {
	net.Conn
	r *bufio.Reader
}

func (b buffered) Read(p []byte) (int, error) { return b.r.Read(p) }
