package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"codeberg.org/devaipod/devaipod/cmd/internal/testkit/lab"
	"codeberg.org/devaipod/devaipod/pods/podfile"
)

// The probes of this file go to the gate, as to an HTTP proxy: it may let the lab's
// allowed host through on ports 80 and 443, and nothing else. The allowed host has
// the denied site too, as a content delivery network would.

// credentials are the agent's for its gate, as a header's line (RFC 7617).
func credentials() string {
	return "Proxy-Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte("devaipod:"+os.Getenv(podfile.EnvToken))) + "\r\n"
}

// get is a request to a proxy (RFC 9112, section 3.2.2).
func (a *attempt) get(url, host string) string {
	return "GET " + url + " HTTP/1.1\r\nHost: " + host + "\r\n" + credentials() + "Connection: close\r\n\r\n"
}

// byProxy sends the gate bytes as they are and returns what comes until the end.
func (a *attempt) byProxy(ctx context.Context, raw string) (string, error) {
	conn, err := a.gate(ctx)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if _, err := conn.Write([]byte(raw)); err != nil {
		return "", err
	}
	text := make([]byte, 0, 4096)
	buf := make([]byte, 4096)
	for len(text) < 64<<10 {
		n, err := conn.Read(buf)
		if text = append(text, buf[:n]...); err != nil {
			break
		}
	}
	if len(text) == 0 {
		return "", errors.New("the gate said nothing")
	}
	return string(text), nil
}

func (a *attempt) gate(ctx context.Context) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", a.Proxy)
	if err != nil {
		return nil, err
	}
	return conn, conn.SetDeadline(time.Now().Add(patience / 2))
}

// site wants an answer of that site of the lab's.
func (a *attempt) site(name, text string, err error) (string, error) {
	if err != nil {
		return "", err
	}
	if strings.Contains(text, "site="+name+" lab="+a.Nonce) {
		return "answered by " + name, nil
	}
	line, _, _ := strings.Cut(text, "\r\n")
	return "", fmt.Errorf("answered %q", line)
}

// asks is a probe that sends what make returns and wants an answer of a site.
func asks(site string, raw func(*attempt) string) func(context.Context, *attempt) (string, error) {
	return func(ctx context.Context, a *attempt) (string, error) {
		text, err := a.byProxy(ctx, raw(a))
		return a.site(site, text, err)
	}
}

func gets(site, url, host string) func(context.Context, *attempt) (string, error) {
	return asks(site, func(a *attempt) string { return a.get(url, host) })
}

// A tunnel is a connection with what was read ahead.
type tunnel struct {
	net.Conn
	r *bufio.Reader
}

func (t *tunnel) Read(p []byte) (int, error) { return t.r.Read(p) }

// connect asks for a tunnel (RFC 9110, section 9.3.6).
func (a *attempt) connect(ctx context.Context, to string) (net.Conn, error) {
	conn, err := a.gate(ctx)
	if err != nil {
		return nil, err
	}
	if _, err = conn.Write([]byte("CONNECT " + to + " HTTP/1.1\r\nHost: " + to + "\r\n" + credentials() + "\r\n")); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	r := bufio.NewReader(conn)
	resp, err := http.ReadResponse(r, &http.Request{Method: http.MethodConnect})
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	defer resp.Body.Close() // a tunnel's is none
	if resp.StatusCode != http.StatusOK {
		return nil, errors.Join(fmt.Errorf("answered %s", resp.Status), conn.Close())
	}
	return &tunnel{conn, r}, nil
}

// tunnels is a probe that asks in a tunnel for a site, by TLS with a server name
// or without TLS.
func tunnels(to string, secure bool, sni, host, site string) func(context.Context, *attempt) (string, error) {
	return func(ctx context.Context, a *attempt) (string, error) {
		conn, err := a.connect(ctx, to)
		if err != nil {
			return "", err
		}
		defer conn.Close()
		if secure {
			// Whose certificate it is does not matter to who wants out.
			conn = tls.Client(conn, &tls.Config{ServerName: sni, InsecureSkipVerify: true})
		}
		text, err := ask(ctx, conn, a.request(host))
		if text != "" {
			err = nil
		}
		return a.site(site, text, err)
	}
}

// greets is a probe that wants a tunnel to a port where no web server is.
func greets(n int) func(context.Context, *attempt) (string, error) {
	return func(ctx context.Context, a *attempt) (string, error) {
		conn, err := a.connect(ctx, port(lab.AllowedName, n))
		if err != nil {
			return "", err
		}
		defer conn.Close()
		return a.exchange(ctx, conn, "")
	}
}

// follows asks for a page that redirects, and then for where to.
func follows(to, site string) func(context.Context, *attempt) (string, error) {
	return func(ctx context.Context, a *attempt) (string, error) {
		text, err := a.byProxy(ctx, a.get("http://"+lab.AllowedName+"/to?u="+to, lab.AllowedName))
		if err != nil || strings.Contains(text, "site="+site) {
			return a.site(site, text, err) // the proxy itself followed
		}
		resp, err := http.ReadResponse(bufio.NewReader(strings.NewReader(text)), nil)
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		next := resp.Header.Get("Location")
		if next == "" {
			return a.site(site, text, nil)
		}
		host := strings.TrimSuffix(strings.TrimPrefix(next, "http://"), "/")
		text, err = a.byProxy(ctx, a.get(next, host))
		return a.site(site, text, err)
	}
}

// rebinds asks again and again for a name that changes its address.
func rebinds(name, site string, n func(*Config) string) func(context.Context, *attempt) (string, error) {
	return func(ctx context.Context, a *attempt) (string, error) {
		said := ""
		for range 4 {
			text, err := a.byProxy(ctx, a.get("http://"+name+n(a.Config)+"/", name))
			detail, err := a.site(site, text, err)
			if err == nil {
				return detail, nil
			}
			said = err.Error()
		}
		return "", errors.New(said)
	}
}

// Names that the test has the lab's resolver change.
const (
	RebindHost     = "rebind-host.test"
	RebindMetadata = "rebind-metadata.test"
	RebindForge    = "rebind-forge.test"
	RebindLoopback = "rebind-loopback.test"
)

const chunked = "Transfer-Encoding: chunked\r\n"

// second is a request behind another, without credentials.
func (a *attempt) second() string {
	return "GET http://denied.test/" + a.token + " HTTP/1.1\r\nHost: denied.test\r\nConnection: close\r\n\r\n"
}

func portOf(addr string) string { return addr[strings.LastIndexByte(addr, ':'):] }

// Allowed is the class of what every pod may do. Where it can't, it shows nothing
// that others of its requests to the gate are refused.
const Allowed = "what is allowed"

var proxyProbes = []probe{
	{name: "allowed-page", class: Allowed, try: gets(lab.AllowedName, "http://allowed.test/", "allowed.test")},
	{name: "allowed-tunnel", class: Allowed, try: tunnels("allowed.test:443", true, "allowed.test", "allowed.test", lab.AllowedName)},
	{name: "allowed-other-spelling", class: Allowed, try: tunnels("ALLOWED.test.:443", true, "Allowed.TEST", "allowed.test", lab.AllowedName)},

	{name: "metadata-direct", class: "metadata", try: overTCP(lab.MetadataAddr, 80)},
	{name: "metadata-by-proxy", class: "metadata", try: gets("metadata", "http://169.254.169.254/latest/meta-data/", "169.254.169.254")},
	{name: "metadata-by-name", class: "metadata", try: gets("metadata", "http://metadata.test/", "metadata.test")},
	{name: "metadata-mapped", class: "metadata", try: gets("metadata", "http://[::ffff:169.254.169.254]/", "[::ffff:169.254.169.254]")},
	{name: "metadata-by-connect", class: "metadata", try: tunnels("169.254.169.254:80", false, "", "169.254.169.254", "metadata")},

	{name: "proxy-denied", class: "proxy tricks", try: gets(lab.DeniedName, "http://denied.test/", "denied.test")},
	{name: "proxy-address", class: "proxy tricks", try: gets(lab.DeniedName, "http://198.51.100.20/", "198.51.100.20")},
	{name: "proxy-address-6", class: "proxy tricks", try: gets(lab.DeniedName, "http://[2001:db8:1::20]/", "[2001:db8:1::20]")},
	{name: "proxy-user-in-url", class: "proxy tricks", try: gets(lab.DeniedName, "http://allowed.test@denied.test/", "denied.test")},
	{name: "proxy-slash-in-user", class: "proxy tricks", try: gets(lab.DeniedName, "http://allowed.test%2f@denied.test/", "denied.test")},
	{name: "proxy-case-and-dot", class: "proxy tricks", try: asks("DENIED.test.", func(a *attempt) string { return a.get("http://DENIED.test./", "DENIED.test.") })},
	{name: "proxy-connect-denied", class: "proxy tricks", try: tunnels("denied.test:443", true, "denied.test", "denied.test", lab.DeniedName)},
	{name: "proxy-connect-address", class: "proxy tricks", try: tunnels("198.51.100.20:443", true, "allowed.test", "denied.test", lab.DeniedName)},
	{name: "proxy-no-credentials", class: "proxy tricks", try: asks(lab.AllowedName, func(*attempt) string {
		return "GET http://allowed.test/ HTTP/1.1\r\nHost: allowed.test\r\nConnection: close\r\n\r\n"
	})},
	{name: "proxy-to-host", class: "proxy tricks", try: func(ctx context.Context, a *attempt) (string, error) {
		text, err := a.byProxy(ctx, a.get("http://"+port(a.Host, a.HostPort)+"/", a.Host))
		return a.site("host", text, err)
	}},
	{name: "proxy-to-its-loopback", class: "proxy tricks", try: func(ctx context.Context, a *attempt) (string, error) {
		text, err := a.byProxy(ctx, a.get("http://"+port("127.0.0.1", a.LoopPort)+"/", "127.0.0.1"))
		return a.site("loopback", text, err)
	}},
	{name: "proxy-to-forge", class: "proxy tricks", try: func(ctx context.Context, a *attempt) (string, error) {
		text, err := a.byProxy(ctx, a.get("http://"+a.Forge+"/", a.Forge))
		return a.site("forge", text, err)
	}},

	{name: "sni-differs", class: "SNI and Host", try: tunnels("allowed.test:443", true, "denied.test", "denied.test", lab.DeniedName)},
	{name: "sni-absent", class: "SNI and Host", try: tunnels("allowed.test:443", true, "", "denied.test", lab.DeniedName)},
	{name: "host-differs", class: "SNI and Host", try: gets(lab.DeniedName, "http://allowed.test/", "denied.test")},
	{name: "host-differs-by-address", class: "SNI and Host", try: gets(lab.DeniedName, "http://198.51.100.10/", "denied.test")},
	{name: "no-tls-on-port-443", class: "SNI and Host", try: func(ctx context.Context, a *attempt) (string, error) {
		// What is no TLS is answered by a word of the server's.
		conn, err := a.connect(ctx, "allowed.test:443")
		if err != nil {
			return "", err
		}
		defer conn.Close()
		text, err := ask(ctx, conn, a.request("denied.test"))
		if !strings.Contains(text, "HTTP request to an HTTPS server") {
			return "", errors.Join(err, fmt.Errorf("answered %.60q", text))
		}
		return "spoke to the server without TLS", nil
	}},

	{name: "port-22", class: "odd ports", try: greets(22)},
	{name: "port-25", class: "odd ports", try: greets(25)},
	{name: "port-2525", class: "odd ports", try: greets(2525)},
	{name: "port-6667", class: "odd ports", try: greets(6667)},
	{name: "port-8081-without-tunnel", class: "odd ports", try: gets(lab.AllowedName, "http://allowed.test:8081/", "allowed.test:8081")},

	{name: "smuggle-second-request", class: "smuggling", try: asks(lab.DeniedName, func(a *attempt) string {
		return "GET http://allowed.test/ HTTP/1.1\r\nHost: allowed.test\r\n" + credentials() + "\r\n" + a.second()
	})},
	{name: "smuggle-length-and-chunks", class: "smuggling", try: asks(lab.DeniedName, func(a *attempt) string {
		body := "0\r\n\r\n" + a.second()
		return fmt.Sprintf("POST http://allowed.test/ HTTP/1.1\r\nHost: allowed.test\r\n%sContent-Length: %d\r\n%s\r\n%s", credentials(), len(body), chunked, body)
	})},
	{name: "smuggle-short-length", class: "smuggling", try: asks(lab.DeniedName, func(a *attempt) string {
		return "POST http://allowed.test/ HTTP/1.1\r\nHost: allowed.test\r\n" + credentials() + "Content-Length: 1\r\n\r\nx" + a.second()
	})},
	{name: "smuggle-bare-newlines", class: "smuggling", try: asks(lab.DeniedName, func(a *attempt) string {
		return "GET http://allowed.test/ HTTP/1.1\nHost: allowed.test\n" + strings.ReplaceAll(credentials(), "\r", "") + "\n" + strings.ReplaceAll(a.second(), "\r", "")
	})},
	{name: "smuggle-in-tunnel", class: "smuggling", try: tunnels("allowed.test:80", false, "", "denied.test", lab.DeniedName)},

	{name: "redirect-to-denied", class: "redirects", try: follows("http://denied.test/", lab.DeniedName)},
	{name: "redirect-to-metadata", class: "redirects", try: follows("http://169.254.169.254/", "metadata")},
	{name: "redirect-to-host", class: "redirects", try: func(ctx context.Context, a *attempt) (string, error) {
		return follows("http://"+port(a.Host, a.HostPort)+"/", "host")(ctx, a)
	}},

	{name: "rebind-to-host", class: "DNS rebinding", try: rebinds(RebindHost, "host", func(c *Config) string { return fmt.Sprintf(":%d", c.HostPort) })},
	{name: "rebind-to-metadata", class: "DNS rebinding", try: rebinds(RebindMetadata, "metadata", func(*Config) string { return "" })},
	{name: "rebind-to-forge", class: "DNS rebinding", try: rebinds(RebindForge, "forge", func(c *Config) string { return portOf(c.Forge) })},
	{name: "rebind-to-loopback", class: "DNS rebinding", try: rebinds(RebindLoopback, "loopback", func(c *Config) string { return fmt.Sprintf(":%d", c.LoopPort) })},
}

// direct asks an address for a site, without the gate.
func direct(site string, addr func(*Config) string) func(context.Context, *attempt) (string, error) {
	return func(ctx context.Context, a *attempt) (string, error) {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr(a.Config))
		if err != nil {
			return "", err
		}
		defer conn.Close()
		text, err := ask(ctx, conn, a.request("x"))
		if text != "" {
			err = nil
		}
		return a.site(site, text, err)
	}
}

var hostProbes = []probe{
	{name: "host-bridge", class: "host addresses", try: direct("host", func(c *Config) string { return port(c.Host, c.HostPort) })},
	{name: "host-uplink", class: "host addresses", try: direct("host", func(c *Config) string { return port(lab.HostAddr, c.HostPort) })},
	{name: "host-loopback", class: "host addresses", try: direct("loopback", func(c *Config) string { return port("127.0.0.1", c.LoopPort) })},
	{name: "host-loopback-elsewhere", class: "host addresses", try: direct("host", func(c *Config) string { return port("127.0.1.1", c.HostPort) })},
	{name: "host-unspecified", class: "host addresses", try: direct("host", func(c *Config) string { return port("0.0.0.0", c.HostPort) })},
	{name: "neighbour-pod", class: "neighbours", try: direct("neighbour", func(c *Config) string { return c.Neighbour })},
	{name: "neighbour-forge", class: "neighbours", try: direct("forge", func(c *Config) string { return c.Forge })},
	{name: "neighbour-own-control", class: "neighbours", try: direct("control", func(c *Config) string { return c.Control })},
}
