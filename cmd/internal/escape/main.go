package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

func main() {
	if err := run(context.Background(), os.Args, os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "escape:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdin io.Reader, stdout io.Writer) error {
	switch filepath.Base(args[0]) {
	case "opencode":
		return wait(ctx, stdout)
	case "git":
		return playGit(args)
	}
	if len(args) < 2 {
		return errors.New("want configure, get, fetch, serve, victim, or to be called opencode or git")
	}
	switch args[1] {
	case "configure":
		text, err := io.ReadAll(stdin)
		if err != nil {
			return err
		}
		return os.WriteFile(ConfigPath, text, 0o644)
	case "get":
		return get(ctx, args[2:], stdout)
	case "fetch":
		return fetch(ctx, args[2:], stdin, stdout)
	case "serve":
		return serve(args[2:])
	case "victim":
		return beVictim(args[2:], stdout)
	case "try":
		return tryAgain(ctx, stdout)
	case "container":
		return contain(args[2:])
	case "say":
		fmt.Fprintln(stdout, os.Geteuid()) // what a new process is
		return nil
	}
	return fmt.Errorf("unknown command %q", args[1])
}

// get prints what a web server answers.
func get(ctx context.Context, args []string, stdout io.Writer) error {
	if len(args) != 1 {
		return errors.New("want get HOST:PORT")
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", args[0])
	if err != nil {
		return err
	}
	defer conn.Close()
	text, err := ask(ctx, conn, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	fmt.Fprintln(stdout, text)
	if text != "" {
		return nil
	}
	return err
}

// fetch prints what comes of a URL, as programs in a pod ask for one: by the proxy
// that their environment names, trusting the authorities that it names, and more
// that are given on stdin.
func fetch(ctx context.Context, args []string, stdin io.Reader, stdout io.Writer) error {
	if len(args) != 1 {
		return errors.New("want fetch URL")
	}
	roots, err := x509.SystemCertPool()
	if err != nil {
		return err
	}
	more, err := io.ReadAll(stdin)
	if err != nil {
		return err
	}
	roots.AppendCertsFromPEM(more)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, args[0], nil)
	if err != nil {
		return err
	}
	client := &http.Client{Transport: &http.Transport{Proxy: http.ProxyFromEnvironment, TLSClientConfig: &tls.Config{RootCAs: roots}}}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	fmt.Fprintf(stdout, "%s\n%s", resp.Status, text)
	return err
}

// serve is a web server that answers with a text.
func serve(args []string) error {
	if len(args) != 2 {
		return errors.New("want serve ADDRESS TEXT")
	}
	server := &http.Server{Addr: args[0], ReadHeaderTimeout: patience, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, args[1])
	})}
	return server.ListenAndServe()
}

// playGit makes what the shim takes for a clone; no probe needs more of it.
func playGit(args []string) error {
	if len(args) > 1 && args[1] == "clone" {
		return os.MkdirAll(filepath.Join(args[len(args)-1], ".git"), 0o755)
	}
	return nil
}

// Done is printed after the last result.
const Done = "escape: all tried"

// wait is the agent: it tries when it is told to, and then goes on, as an agent's
// server does.
func wait(ctx context.Context, stdout io.Writer) error {
	for {
		text, err := os.ReadFile(ConfigPath)
		if errors.Is(err, fs.ErrNotExist) {
			time.Sleep(50 * time.Millisecond)
			continue
		}
		if err != nil {
			return err
		}
		var c Config
		if err := json.Unmarshal(text, &c); err != nil {
			time.Sleep(50 * time.Millisecond) // half of it
			continue
		}
		if c.Engine {
			err = asEngine(ctx, stdout)
		} else {
			err = tryAll(ctx, &c, stdout)
		}
		if err != nil {
			return err
		}
		fmt.Fprintln(stdout, Done)
		time.Sleep(keep)
		return nil
	}
}

// tryAgain tries all in another process, by the same configuration.
func tryAgain(ctx context.Context, stdout io.Writer) error {
	text, err := os.ReadFile(ConfigPath)
	if err != nil {
		return err
	}
	var c Config
	if err := json.Unmarshal(text, &c); err != nil {
		return err
	}
	return tryAll(ctx, &c, stdout)
}

// A probe is one way out. Its function returns what it has reached, or why not.
type probe struct {
	name, class string
	needs       string // what a kernel may lack
	try         func(context.Context, *attempt) (string, error)
}

// An attempt is one run of a probe.
type attempt struct {
	*Config
	token string // sent means tried: the lab knows whether it came
	sent  bool
}

// patience is for one probe.
const patience = 4 * time.Second

// atOnce is how many probes run at a time.
const atOnce = 8

func probes() []probe {
	return slices.Concat(rawProbes, dnsProbes, packetProbes, socketProbes, netlinkProbes, hostProbes, proxyProbes, fileProbes, mountProbes, processProbes, namespaceProbes, privilegeProbes, secretProbes)
}

// Names are the names of all probes, by class.
func Names() map[string][]string {
	all := map[string][]string{}
	for _, p := range probes() {
		all[p.class] = append(all[p.class], p.name)
	}
	return all
}

func tryAll(ctx context.Context, c *Config, stdout io.Writer) error {
	var wg sync.WaitGroup
	all := probes()
	results, slots := make([]Result, len(all)), make(chan struct{}, atOnce)
	for i, p := range all {
		slots <- struct{}{}
		wg.Go(func() {
			results[i] = p.run(ctx, c)
			<-slots
		})
	}
	wg.Wait()
	enc := json.NewEncoder(stdout)
	for _, r := range results {
		if err := enc.Encode(r); err != nil {
			return err
		}
	}
	return nil
}

func (p probe) run(ctx context.Context, c *Config) Result {
	r := Result{Name: p.name, Class: p.class}
	if p.needs != "" && slices.Contains(c.Lacks, p.needs) {
		r.Lacks, r.Detail = p.needs, "not tried: this kernel has no "+p.needs
		return r
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	a := &attempt{Config: c, token: c.Run + "-" + p.name}
	type end struct {
		detail string
		err    error
	}
	ended := make(chan end, 1)
	go func() {
		detail, err := p.try(ctx, a)
		ended <- end{detail, err}
	}()
	select {
	case e := <-ended:
		r.Reached, r.Detail = e.err == nil, e.detail
		if e.err != nil {
			r.Detail = e.err.Error()
		}
		if a.sent {
			r.Token = a.token
		}
	case <-time.After(patience + time.Second):
		r.Detail, r.Token = "no answer", a.token
	}
	r.Detail = fmt.Sprintf("%.160s", strings.ReplaceAll(r.Detail, "\n", "; "))
	return r
}
