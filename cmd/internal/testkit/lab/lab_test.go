package lab_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/cmd/internal/testkit/lab"
)

var inside bool

func TestMain(m *testing.M) {
	inside = lab.Inside()
	os.Exit(m.Run())
}

// TestTheLab runs itself again in namespaces of its own, while a witness in this
// one sees to it that nothing of the lab's comes here.
func TestTheLab(t *testing.T) {
	if os.Getuid() != 0 {
		t.Log("NOT RUN: the lab's network namespaces need root")
		return
	}
	if !inside {
		if _, err := lab.New(t.Context()); err == nil {
			t.Fatal("a lab was made on the machine's own network")
		}
		w, err := lab.NewWitness()
		must(t, err)
		must(t, lab.Enter(os.Stdout, os.Stderr, "-test.run=^TestTheLab$", "-test.count=1"))
		if n, err := w.Count(); err != nil || n != 0 {
			t.Errorf("%d packets of the lab's came to this machine's own network (%v)", n, err)
		}
		return
	}
	w, err := lab.NewWitness()
	must(t, err)
	l, err := lab.New(t.Context())
	must(t, err)
	defer func() { must(t, l.Close()) }()
	web(t, l)
	names(t, l)
	others(t, l)
	throughTheProxy(t, l)
	must(t, l.Sealed(t.Context()))
	if n, err := w.Count(); err != nil || n == 0 {
		t.Errorf("a witness where the lab is counted %d packets (%v)", n, err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func get(t *testing.T, c *http.Client, u string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u, nil)
	must(t, err)
	resp, err := c.Do(req)
	must(t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	must(t, err)
	return string(b)
}

func web(t *testing.T, l *lab.Lab) {
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(l.CA()) {
		t.Fatal("no authority")
	}
	dialer := &net.Dialer{Resolver: l.Resolver()}
	c := &http.Client{Transport: &http.Transport{DialContext: dialer.DialContext, TLSClientConfig: &tls.Config{RootCAs: roots}, DisableKeepAlives: true}}
	for u, want := range map[string]string{
		"http://allowed.test/":          l.Mark(lab.AllowedName),
		"https://allowed.test/":         l.Mark(lab.AllowedName) + " sni=allowed.test",
		"https://denied.test/":          l.Mark(lab.DeniedName),
		"http://denied.test:8081/":      l.Mark(lab.DeniedName),
		"http://198.51.100.20/":         l.Mark(lab.DeniedName),
		"http://[2001:db8:1::20]/":      l.Mark(lab.DeniedName),
		"http://169.254.169.254/latest": l.Mark("metadata"),
	} {
		if got := get(t, c, u); !strings.Contains(got, want) {
			t.Errorf("%s: %q, want %q", u, got, want)
		}
	}
	port, err := l.Host("0.0.0.0", "host")
	must(t, err)
	if got := get(t, c, fmt.Sprintf("http://%s:%d/", lab.HostAddr, port)); !strings.Contains(got, l.Mark("host")) {
		t.Errorf("the host: %q", got)
	}
}

func names(t *testing.T, l *lab.Lab) {
	r, ctx := l.Resolver(), t.Context()
	if got, err := r.LookupHost(ctx, "nowhere.test"); err == nil {
		t.Errorf("a name that is not there: %v", got)
	}
	if !l.Saw("nowhere.TEST") || l.Saw("never-asked") {
		t.Error("the lab does not know what it was asked")
	}
	l.Rebind("turns.test", netip.MustParseAddr(lab.AllowedAddr), netip.MustParseAddr("127.0.0.1"))
	for _, want := range []string{lab.AllowedAddr, "127.0.0.1", lab.AllowedAddr} {
		if got, err := r.LookupHost(ctx, "turns.test"); err != nil || len(got) != 1 || got[0] != want {
			t.Errorf("%v %v, want %s", got, err, want)
		}
	}
	if got, err := r.LookupTXT(ctx, "any.test"); err != nil || len(got) != 1 || got[0] != l.Mark("dns") {
		t.Errorf("%v %v", got, err)
	}
}

func others(t *testing.T, l *lab.Lab) {
	for _, at := range [][2]string{{"tcp", lab.AllowedAddr + ":2525"}, {"udp", lab.DeniedAddr + ":443"}, {"udp6", "[" + lab.Allowed6 + "]:5000"}} {
		conn, err := net.Dial(at[0], at[1])
		must(t, err)
		must(t, conn.SetDeadline(time.Now().Add(10*time.Second)))
		_, err = conn.Write([]byte("to-" + at[1]))
		must(t, err)
		buf := make([]byte, 1000)
		n, err := conn.Read(buf)
		must(t, err)
		if !strings.Contains(string(buf[:n]), l.Nonce) || at[0] != "tcp" && !l.Saw("to-"+at[1]) {
			t.Errorf("%s: %q", at[1], buf[:n])
		}
		must(t, conn.Close())
	}
}

func throughTheProxy(t *testing.T, l *lab.Lab) {
	const at = "127.0.0.1:8099"
	must(t, l.Proxy(at, "the-key"))
	c := &http.Client{Transport: &http.Transport{
		Proxy: http.ProxyURL(&url.URL{Scheme: "http", Host: at}), TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true,
	}}
	for _, u := range []string{"http://denied.test/", "https://denied.test/"} {
		if got := get(t, c, u); !strings.Contains(got, l.Mark(lab.DeniedName)) {
			t.Errorf("%s: %q", u, got)
		}
	}
	if got := get(t, http.DefaultClient, "http://"+at+"/model/v1/models"); !strings.Contains(got, "Bearer the-key") {
		t.Errorf("the model: %q", got)
	}
}
