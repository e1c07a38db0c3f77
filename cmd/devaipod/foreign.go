package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http/httpproxy"

	"codeberg.org/devaipod/devaipod/forge"
)

// A forge that is already there (forge.url), as opposed to the one that we run
// in a container: how it is reached.

// joined tells whether the forge is somebody else's.
func (c config) joined() bool { return c.Forge.URL != "" }

// forgeURL is the forge's address, without a slash at its end.
func (c config) forgeURL() string {
	if c.joined() {
		return strings.TrimRight(c.Forge.URL, "/")
	}
	return "http://" + c.Forge.Listen
}

// stackWords are what of this instance runs besides the service.
func (c config) stackWords() string {
	if c.joined() {
		return "pods"
	}
	return "pods, forge"
}

// validateForge checks what says which forge is used, and how it is reached.
func (c config) validateForge() error {
	if !c.joined() {
		for key, value := range map[string]string{"forge.ca": c.Forge.CA, "forge.webhook": c.Forge.Webhook} {
			if value != "" {
				return fmt.Errorf("%s = %q: is for a forge that is already there; set forge.url too, or leave it empty", key, value)
			}
		}
		return nil
	}
	u, err := httpURL("forge.url", c.Forge.URL)
	if err != nil {
		return err
	}
	if u.Scheme == "http" && !isLoopback(u.Hostname()) {
		return fmt.Errorf("forge.url = %q: tokens and code would cross the network in clear; use https (forge.ca names a private authority), or a tunnel that ends on this machine's loopback", c.Forge.URL)
	}
	if c.Forge.CA != "" {
		if u.Scheme != "https" || !filepath.IsAbs(c.Forge.CA) {
			return fmt.Errorf("forge.ca = %q: want the absolute path of a PEM file, for a forge.url of https", c.Forge.CA)
		}
	}
	if c.Forge.Webhook != "" {
		_, err = httpURL("forge.webhook", c.Forge.Webhook)
	}
	return err
}

func httpURL(key, s string) (*url.URL, error) {
	u, err := url.Parse(s)
	if err != nil || u.Hostname() == "" || (u.Scheme != "http" && u.Scheme != "https") || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("%s: want http(s)://HOST/PATH without user, query and fragment, like https://git.example.org", key)
	}
	return u, nil
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || (ip != nil && ip.IsLoopback())
}

// forgeTransport carries all that goes to the forge: its API's calls, and
// pods' git.
func (c config) forgeTransport() (http.RoundTripper, error) {
	t := &http.Transport{
		DisableCompression:    true,
		MaxIdleConnsPerHost:   8,
		IdleConnTimeout:       time.Minute,
		TLSHandshakeTimeout:   30 * time.Second,
		ResponseHeaderTimeout: 10 * time.Minute, // receive-pack answers when it is done
	}
	if c.joined() {
		proxy := httpproxy.FromEnvironment().ProxyFunc() // as git does; never for loopback
		t.Proxy = func(r *http.Request) (*url.URL, error) { return proxy(r.URL) }
	}
	if c.Forge.CA == "" {
		return explained{t}, nil
	}
	pem, err := os.ReadFile(c.Forge.CA)
	if err != nil {
		return nil, fmt.Errorf("reading forge.ca: %w", err)
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool() // a machine without authorities of its own
	}
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("forge.ca: %s holds no certificate; want a PEM file with -----BEGIN CERTIFICATE-----", c.Forge.CA)
	}
	t.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	return explained{t}, nil
}

// explained says with an error of TLS what to do about it.
type explained struct{ http.RoundTripper }

func (e explained) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := e.RoundTripper.RoundTrip(r)
	if hint := tlsHint(err); hint != "" {
		err = fmt.Errorf("%w; %s", err, hint)
	}
	return resp, err
}

func tlsHint(err error) string {
	var unknown x509.UnknownAuthorityError
	var name x509.HostnameError
	var invalid x509.CertificateInvalidError
	var record tls.RecordHeaderError
	switch {
	case err == nil:
		return ""
	case errors.As(err, &unknown):
		return "if that authority is yours, name its PEM file in forge.ca"
	case errors.As(err, &name):
		return "write forge.url with a name that the certificate is for"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return "the forge's certificate, or this machine's clock, is out of date"
	case errors.As(err, &record):
		return "no TLS is spoken there: is forge.url right, and its port?"
	}
	return ""
}

// gitEnv sets keys of git for the forge's URL alone, besides what the
// environment sets already, and makes git trust what forge.ca names.
func (c config) gitEnv(keysAndValues ...string) []string {
	if c.Forge.CA != "" {
		keysAndValues = append(keysAndValues, "sslCAInfo", c.Forge.CA)
	}
	for i := 0; i < len(keysAndValues); i += 2 {
		keysAndValues[i] = "http." + c.forgeURL() + "/." + keysAndValues[i]
	}
	return configEnv(keysAndValues...)
}

// configEnv sets keys of git besides what the environment sets already.
func configEnv(keysAndValues ...string) []string {
	if len(keysAndValues) == 0 {
		return nil
	}
	n, err := strconv.Atoi(os.Getenv("GIT_CONFIG_COUNT"))
	if err != nil || n < 0 {
		n = 0
	}
	var env []string
	for kv := range slices.Chunk(keysAndValues, 2) {
		env = append(env, fmt.Sprintf("GIT_CONFIG_KEY_%d=%s", n, kv[0]), fmt.Sprintf("GIT_CONFIG_VALUE_%d=%s", n, kv[1]))
		n++
	}
	return append(env, fmt.Sprintf("GIT_CONFIG_COUNT=%d", n))
}

// prepareAgain is how long a repository counts as prepared.
const prepareAgain = 10 * time.Minute

// prepareWanted readies a repository of a forge that we joined when the first
// of its issues is labeled, and no other: most are none of our business. The
// label that starts is the people's own.
func (s *service) prepareWanted() func(context.Context, forge.Repo) error {
	if !s.cfg.joined() {
		return nil
	}
	var mu sync.Mutex
	done := map[forge.Repo]time.Time{}
	return func(ctx context.Context, repo forge.Repo) error {
		mu.Lock()
		defer mu.Unlock()
		if time.Since(done[repo]) < prepareAgain {
			return nil
		}
		err := prepareRepository(ctx, s.forge, repo, forge.StateLabels())
		if err == nil {
			done[repo] = time.Now()
		}
		return err
	}
}

// prepareForRun readies the repository that an issue shall be opened in.
func (a *app) prepareForRun(ctx context.Context, creds credentials, repo forge.Repo) error {
	if !a.cfg.joined() {
		return nil
	}
	service, err := a.serviceForge(creds)
	if err != nil {
		return err
	}
	return prepareRepository(ctx, service, repo, a.cfg.labels())
}

// tellJoined says once what is different on a forge that we joined.
func (s *service) tellJoined() {
	if s.cfg.Forge.Webhook == "" {
		s.log.Info("no webhook (forge.webhook is empty): labels are seen by polling alone", "every", s.cfg.Service.Resync)
	}
}
