package main_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"codeberg.org/devaipod/devaipod/cmd/internal/testkit"
)

// A second devaipod that joins the suite's forge as somebody else's: under
// another host name, in a sub-path, and over TLS by an authority of its own.

// A front is the TLS proxy before the forge.
type front struct {
	mu   sync.Mutex
	seen []string
}

func (f *front) handler(forge *url.URL) http.Handler {
	proxy := &httputil.ReverseProxy{FlushInterval: -1, Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(forge)
		r.SetXForwarded()
	}}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		f.seen = append(f.seen, r.Method+" "+r.URL.Path)
		f.mu.Unlock()
		if !strings.HasPrefix(r.URL.Path, "/git/") {
			http.NotFound(w, r)
			return
		}
		http.StripPrefix("/git", proxy).ServeHTTP(w, r)
	})
}

// front makes the proxy; sets $FRONT, its URL, and $CA, the authority's file.
// `front seen` prints what was asked of it since.
func (c *call) front() error {
	if len(c.args) == 1 && c.args[0] == "seen" {
		f := c.fronted
		f.mu.Lock()
		defer f.mu.Unlock()
		slices.Sort(f.seen)
		c.printf("%s\n", strings.Join(slices.Compact(f.seen), "\n"))
		f.seen = nil
		return nil
	}
	forge, err := url.Parse(c.ForgeURL())
	if err != nil {
		return err
	}
	ca, cert, err := authority("localhost")
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	c.fronted = &front{}
	srv := &http.Server{
		Handler: c.fronted.handler(forge), ReadHeaderTimeout: 10 * time.Second, ErrorLog: log.New(io.Discard, "", 0),
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12},
	}
	go srv.ServeTLS(l, "", "") //nolint:errcheck // ends with the script
	c.ts.Defer(func() { _ = srv.Close() })
	file := c.ts.MkAbs("ca.pem")
	c.ts.Setenv("CA", file)
	c.ts.Setenv("FRONT", fmt.Sprintf("https://localhost:%d/git", l.Addr().(*net.TCPAddr).Port))
	return os.WriteFile(file, ca, 0o600)
}

// authority makes one, and a certificate of it for a host.
func authority(host string) (ca []byte, leaf tls.Certificate, err error) {
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, leaf, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, leaf, err
	}
	root := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "The tests' authority"}, NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	rootDER, err := x509.CreateCertificate(rand.Reader, root, root, caKey.Public(), caKey)
	if err != nil {
		return nil, leaf, err
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(2), DNSNames: []string{host}, NotAfter: time.Now().Add(24 * time.Hour),
	}, root, key.Public(), caKey)
	ca = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: rootDER})
	return ca, tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}

// second writes the configuration of the second devaipod, which joins the forge
// behind the front; with a webhook it hardly polls. From here on `exec devaipod`
// is that one. Sets $SECOND, its instance, and $STATE2.
func (c *call) second() error {
	instance, resync, webhook := c.Instance+"j", "2s", ""
	if len(c.args) == 1 {
		webhook, resync = c.args[0], "10m"
	}
	listen := c.env("LISTEN2") // as before: the service may have it
	if listen == "" {
		var err error
		if listen, err = testkit.FreeAddr(""); err != nil {
			return err
		}
	}
	state := filepath.Join(c.World.Dir, "j")
	text := fmt.Sprintf(`instance = %q
state_dir = %q
label = "elsewhere"

[service]
listen = %q
resync = %q

[forge]
url = %q
ca = %q
webhook = %q

[agent]
image = %q

[model]
api = %q
url = %q
name = %q
key = "model"
`, instance, state, listen, resync, c.env("FRONT")+"/", c.env("CA"), webhook, testkit.AgentImage, c.ModelAPI, c.ModelURL, c.ModelName)
	file := c.ts.MkAbs("second.toml")
	c.ts.Setenv("DEVAIPOD_CONFIG", file)
	c.ts.Setenv("SECOND", instance)
	c.ts.Setenv("STATE2", state)
	if c.env("LISTEN2") == "" {
		c.ts.Defer(func() { c.endSecond(file) })
	}
	c.ts.Setenv("LISTEN2", listen)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return err
	}
	return c.Run(c.ctx, testkit.Call{Args: []string{"--config", file, "secret", "set", "model"}, Stdin: modelKey})
}

// endSecond removes the second devaipod of a script that failed midway.
func (c *call) endSecond(config string) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c.ts.Logf("the second's service.log:\n%s", lastLines(filepath.Join(c.World.Dir, "j", "service.log"), 40))
	if err := c.Run(ctx, testkit.Call{Args: []string{"--config", config, "forge", "down", "--purge", "--force", "--no-bundle"}}); err != nil {
		c.ts.Logf("removing the second devaipod: %v", err)
	}
}

// hookrelay NAME PORT: in the forge's pod, a way from the forge's loopback to
// the second devaipod, as an admin's proxy would be.
func (c *call) hookRelay() error {
	if len(c.args) != 1 {
		return errors.New("usage: hookrelay PORT")
	}
	image, err := c.World.Podman(c.ctx, "inspect", "--format", "{{.ImageName}}", c.Instance+"-relay")
	if err != nil {
		return err
	}
	_, err = c.World.Podman(c.ctx, "run", "--detach", "--pull", "never", "--pod", c.Instance+"-forge-pod", "--name", c.env("SECOND")+"hook",
		"--label", "devaipod.instance="+c.Instance, "--security-opt", "label=disable", "--volume", c.env("STATE2")+"/relay:/run/service", "--entrypoint", "/devaipod-pod",
		strings.TrimSpace(image), "relay", "--listen", "127.0.0.1:"+c.args[0], "--to", "/run/service/service.sock")
	c.ts.Defer(func() {
		if _, err := c.World.Podman(context.WithoutCancel(c.ctx), "rm", "--force", "--time", "1", c.env("SECOND")+"hook"); err != nil {
			c.ts.Logf("%v", err)
		}
	})
	return err
}

// account NAME [admin]: makes an account on the forge.
func (c *call) account() error {
	if len(c.args) == 0 {
		return errors.New("usage: account NAME [admin]")
	}
	name, api := c.args[0], c.api(person)
	err := api.Post(c.ctx, "/admin/users", map[string]any{
		"username": name, "email": name + "@example.org", "password": c.password, "must_change_password": false,
	}, nil)
	if err == nil && len(c.args) > 1 {
		_, err = api.Do(c.ctx, "PATCH", "/admin/users/"+name, map[string]any{"login_name": name, "source_id": 0, "admin": true})
	}
	return err
}

// mint NAME FILE SCOPE…: a token of an account, into a file.
func (c *call) mint() error {
	if len(c.args) < 3 {
		return errors.New("usage: mint NAME FILE SCOPE…")
	}
	var got struct {
		Token string `json:"sha1"`
	}
	body := map[string]any{"name": c.args[1], "scopes": c.args[2:]}
	if err := c.api(c.args[0]).Post(c.ctx, "/users/"+c.args[0]+"/tokens", body, &got); err != nil {
		return err
	}
	return os.WriteFile(c.ts.MkAbs(c.args[1]), []byte(got.Token+"\n"), 0o600)
}
