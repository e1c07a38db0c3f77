package gate_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/pods/egress"
	"codeberg.org/devaipod/devaipod/pods/gate"
	"codeberg.org/devaipod/devaipod/pods/podfile"
)

// An outside is hosts at public addresses, which are a server on loopback.
type outside struct {
	t      *testing.T
	server *httptest.Server
	names  map[string]string // addresses by name
	told   chan []string     // hosts that the agent is told of

	mu     sync.Mutex
	policy podfile.Policy
	saw    []*http.Request
	config gate.Config
	gate   *gate.Gate
	agent  *httptest.Server
	work   *httptest.Server
	ca     *x509.CertPool // of the gate
}

func newOutside(t *testing.T) *outside {
	o := &outside{t: t, told: make(chan []string, 10), names: map[string]string{
		"a.example.org.": "93.184.216.34", "b.example.org.": "93.184.216.35", "inside.example.org.": "10.1.2.3",
		"self.example.org.": "127.0.0.1", "link.example.org.": "169.254.169.254",
	}}
	o.server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		o.mu.Lock()
		o.saw = append(o.saw, r)
		o.mu.Unlock()
		fmt.Fprintf(w, "%s says %s", r.Host, r.Header.Get("Authorization"))
	}))
	t.Cleanup(o.server.Close)
	p := newPlace(t, podfile.APIOpenAI, says("{}"))
	ca, err := egress.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	cert, _, err := ca.PEM()
	if err != nil {
		t.Fatal(err)
	}
	o.ca = x509.NewCertPool()
	o.ca.AppendCertsFromPEM(cert)
	cfg := p.config
	cfg.CA, cfg.Roots = ca, x509.NewCertPool()
	cfg.Roots.AddCert(o.server.Certificate())
	cfg.Policy = func() (podfile.Policy, error) { o.mu.Lock(); defer o.mu.Unlock(); return o.policy, nil }
	cfg.Resolve = func(_ context.Context, name string) ([]netip.Addr, error) {
		if a, ok := o.names[name]; ok {
			return []netip.Addr{netip.MustParseAddr(a)}, nil
		}
		return nil, &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
	}
	cfg.Dial = func(ctx context.Context, _ netip.AddrPort) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", o.server.Listener.Addr().String())
	}
	o.config = cfg
	if o.gate, err = gate.New(cfg); err != nil {
		t.Fatal(err)
	}
	o.agent, o.work = httptest.NewServer(o.gate.Handler(gate.Agent)), httptest.NewServer(o.gate.Handler(gate.Workspace))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); o.gate.Watch(ctx, func(hosts []string) { o.told <- hosts }) }()
	t.Cleanup(func() { cancel(); <-ended; o.agent.Close(); o.work.Close() })
	return o
}

// allow makes a network hold, and waits until it does.
func (o *outside) allow(n podfile.Network, inject ...podfile.Injection) {
	o.t.Helper()
	o.mu.Lock()
	o.policy.Network, o.policy.Inject = n, inject
	o.mu.Unlock()
	time.Sleep(600 * time.Millisecond) // more than twice as long as the gate takes to look
}

// get asks a host by a door's proxy.
func (o *outside) get(door *httptest.Server, token, target string, roots *x509.CertPool) string {
	proxy, err := url.Parse(door.URL)
	if err != nil {
		o.t.Fatal(err)
	}
	proxy.User = url.UserPassword("devaipod", token)
	client := &http.Client{Transport: &http.Transport{Proxy: http.ProxyURL(proxy), DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: roots, InsecureSkipVerify: roots == nil}}}
	resp, err := client.Get(target)
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

func TestHostsOnTheListAreReached(t *testing.T) {
	o := newOutside(t)
	if got := o.get(o.agent, agentTok, "https://a.example.org/", nil); !strings.Contains(got, "a.example.org:443 is blocked") {
		t.Errorf("without a list: %q", got)
	}
	o.allow(podfile.Network{Allow: []string{"a.example.org", "inside.example.org", "self.example.org", "link.example.org"}})
	for name, tt := range map[string]struct {
		door          *httptest.Server
		token, target string
		want          string
	}{
		"the agent":                 {o.agent, agentTok, "https://a.example.org/", "a.example.org says "},
		"the workspace":             {o.work, workTok, "https://a.example.org/", "a.example.org says "},
		"another host":              {o.agent, agentTok, "https://b.example.org/", "is blocked"},
		"with the other's token":    {o.agent, workTok, "https://a.example.org/", "Proxy Authentication Required"},
		"without a token":           {o.agent, "", "https://a.example.org/", "Proxy Authentication Required"},
		"a private address":         {o.agent, agentTok, "https://inside.example.org/", "10.1.2.3"},
		"this machine":              {o.agent, agentTok, "https://self.example.org/", "127.0.0.1"},
		"what clouds tell of it":    {o.agent, agentTok, "https://link.example.org/", "169.254.169.254"},
		"the service by the proxy":  {o.agent, agentTok, "http://service/dial/model", "has no dot"},
		"the gate's model by proxy": {o.agent, agentTok, "http://127.0.0.1:8099/model/v1/models", "127.0.0.1"},
	} {
		if got := o.get(tt.door, tt.token, tt.target, nil); !strings.Contains(got, tt.want) || strings.Contains(got, " says ") != strings.Contains(tt.want, " says ") {
			t.Errorf("%s: %q", name, got)
		}
	}
	// Addresses that the configuration names, but never this machine's own.
	o.allow(podfile.Network{Allow: []string{"inside.example.org", "self.example.org", "link.example.org"}, Private: []string{"10.1.0.0/16", "127.0.0.0/8", "169.254.0.0/16"}})
	if got := o.get(o.agent, agentTok, "https://inside.example.org/", nil); got != "inside.example.org says " {
		t.Errorf("a private address that is named: %q", got)
	}
	for _, name := range []string{"self", "link"} {
		if got := o.get(o.agent, agentTok, "https://"+name+".example.org/", nil); strings.Contains(got, "says") {
			t.Errorf("%s: %q", name, got)
		}
	}
	o.allow(podfile.Network{Open: true})
	if got := o.get(o.agent, agentTok, "https://b.example.org/", nil); got != "b.example.org says " {
		t.Errorf("open: %q", got)
	}
	if got := o.get(o.agent, agentTok, "https://inside.example.org/", nil); strings.Contains(got, "says") {
		t.Errorf("open, a private address: %q", got)
	}
	// A list that can't be read lets nothing through.
	o.allow(podfile.Network{Allow: []string{"a.example.org", "https://nonsense"}})
	if got := o.get(o.agent, agentTok, "https://a.example.org/", nil); !strings.Contains(got, "is blocked") {
		t.Errorf("a bad list: %q", got)
	}
}

// What was refused is known, until it is allowed; then the agent is told, once.
func TestTheAgentIsToldOfWhatIsAllowed(t *testing.T) {
	o := newOutside(t)
	time.Sleep(300 * time.Millisecond)
	o.get(o.agent, agentTok, "https://early.example.org/", nil)
	if blocked := o.gate.Blocked(); len(blocked) > 0 {
		t.Errorf("before the model was asked: %+v", blocked)
	}
	if resp, body := ask(t, o.agent, "POST", chatRoute, agentTok, goodChat); resp.StatusCode != 200 {
		t.Fatal(resp.Status, body)
	}
	for range 3 {
		o.get(o.agent, agentTok, "https://a.example.org/", nil)
	}
	o.get(o.agent, agentTok, "https://b.example.org/", nil)
	o.get(o.work, workTok, "https://person.example.org/", nil)
	blocked := o.gate.Blocked()
	if len(blocked) != 2 || blocked[0].Host != "b.example.org" || blocked[1].Count != 3 || blocked[1].Allow != "a.example.org" || blocked[1].Port != 443 {
		t.Fatalf("%+v", blocked)
	}
	o.allow(podfile.Network{Allow: []string{"a.example.org"}})
	if hosts := <-o.told; !slices.Equal(hosts, []string{"a.example.org"}) {
		t.Errorf("told of %q", hosts)
	}
	if blocked := o.gate.Blocked(); len(blocked) != 1 || blocked[0].Host != "b.example.org" {
		t.Errorf("%+v", blocked)
	}
	o.allow(podfile.Network{Allow: []string{"a.example.org", "c.example.org"}})
	if len(o.told) > 0 {
		t.Errorf("told again of %q", <-o.told)
	}
}

// A rule that goes cuts what is open.
func TestATunnelEndsWithItsRule(t *testing.T) {
	o := newOutside(t)
	o.allow(podfile.Network{Allow: []string{"a.example.org"}})
	conn, err := net.Dial("tcp", o.agent.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "CONNECT a.example.org:443 HTTP/1.1\r\nHost: a.example.org:443\r\nProxy-Authorization: Bearer %s\r\n\r\n", agentTok)
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil || resp.StatusCode != 200 {
		t.Fatal(resp, err)
	}
	secure := tls.Client(conn, &tls.Config{ServerName: "a.example.org", InsecureSkipVerify: true})
	if err := secure.HandshakeContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	o.allow(podfile.Network{})
	if err := secure.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if n, err := secure.Read(make([]byte, 1)); err == nil || strings.Contains(err.Error(), "timeout") {
		t.Errorf("%d bytes, %v", n, err)
	}
}

// Secrets are put into the agent's requests to their host, and nowhere else; the
// agent does not get to see them.
func TestSecretsForAHost(t *testing.T) {
	o := newOutside(t)
	const secret = "s3cr3t-of-the-registry"
	inject := podfile.Injection{Host: "example.com", Header: "Authorization", Value: "Bearer " + secret, Secret: secret}
	o.names["example.com."], o.names["www.example.com."] = "93.184.216.36", "93.184.216.37"
	o.allow(podfile.Network{Allow: []string{"example.com", "*.example.com"}}, inject)
	// The server's certificate is good for example.com and names below it.
	if got := o.get(o.agent, agentTok, "https://example.com/", o.ca); got != "example.com says Bearer [key]" && !strings.Contains(got, "says") || strings.Contains(got, secret) {
		t.Errorf("the agent: %q", got)
	}
	saw := func() []string {
		o.mu.Lock()
		defer o.mu.Unlock()
		var out []string
		for _, r := range o.saw {
			out = append(out, r.Host+" "+r.Header.Get("Authorization"))
		}
		o.saw = nil
		return out
	}
	if got := saw(); !slices.Equal(got, []string{"example.com Bearer " + secret}) {
		t.Errorf("the host saw %q", got)
	}
	o.get(o.agent, agentTok, "https://www.example.com/", nil)
	o.get(o.work, workTok, "https://example.com/", nil)
	if got := saw(); !slices.Equal(got, []string{"www.example.com ", "example.com "}) {
		t.Errorf("others saw %q", got)
	}
	// A new value holds at once, and one that was removed goes nowhere.
	inject.Value, inject.Secret = "Bearer another-one", "another-one"
	o.allow(podfile.Network{Allow: []string{"example.com"}}, inject)
	o.get(o.agent, agentTok, "https://example.com/", o.ca)
	if got := saw(); !slices.Equal(got, []string{"example.com Bearer another-one"}) {
		t.Errorf("after a rotation the host saw %q", got)
	}
	o.allow(podfile.Network{Allow: []string{"example.com"}})
	o.get(o.agent, agentTok, "https://example.com/", nil)
	if got := saw(); !slices.Equal(got, []string{"example.com "}) {
		t.Errorf("without a secret the host saw %q", got)
	}
}
