package main_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/cookiejar"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"codeberg.org/devaipod/devaipod/podapi"
	"codeberg.org/devaipod/devaipod/podapi/web"
	"codeberg.org/devaipod/devaipod/pods/podfile"
	"codeberg.org/devaipod/devaipod/pods/relay"
)

// `make bench`: the way of a person's browser to the agent's own pages, beside no way
// at all and beside nginx (Debian's) as the reverse proxy. Each part is a process of its
// own; pod-api is the program that is shipped, and the shim's relay is behind all but
// "direct". What is compared runs in turn; nothing here asserts a time.

// asBench makes the test program a part of that: backend, relay or site, at and to.
const (
	asBench = "PLAY_BENCH"
	benchAt = "PLAY_BENCH_AT"
	benchTo = "PLAY_BENCH_TO"
)

const (
	benchPod   = "devaipod-bench-1-abcdef"
	benchLogin = "the-token-of-this-benchmark"
)

func playBench(part string) error {
	at, to := os.Getenv(benchAt), os.Getenv(benchTo)
	network := "tcp"
	if strings.HasPrefix(at, "/") {
		network = "unix"
	}
	l, err := net.Listen(network, at)
	if err != nil {
		return err
	}
	log := slog.New(slog.DiscardHandler)
	switch part {
	case "backend":
		return (&http.Server{Handler: http.HandlerFunc(benchBackend), ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, c)
		}}).Serve(l)
	case "relay":
		return relay.Serve(context.Background(), l, relay.TCP(to), log)
	case "site":
		site, err := web.New(web.Config{Pods: onePod{podapi.NewClient(to)}, Listen: at, Token: benchLogin, Log: log})
		if err != nil {
			return err
		}
		return (&http.Server{Handler: site.Handler(http.NotFoundHandler())}).Serve(l)
	}
	return errors.New("no such part: " + part)
}

// connKey finds a request's connection.
type connKey struct{}

// benchBackend is the agent's server: "/down?bytes=N&rate=N" sends, "/up" takes, "/sse"
// tells the time a thousand times, and all else is a short answer.
func benchBackend(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/down":
		n, _ := strconv.Atoi(r.FormValue("bytes"))
		rate, _ := strconv.Atoi(r.FormValue("rate"))
		if raw, err := r.Context().Value(connKey{}).(*net.TCPConn).SyscallConn(); err == nil && rate > 0 {
			_ = raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MAX_PACING_RATE, rate) }) // its client misses it
			w.Header().Set("Connection", "close")                                                                                 // it stays slow
		}
		w.Header().Set("Content-Length", strconv.Itoa(n))
		for buf := make([]byte, 256<<10); n > 0; n -= len(buf) {
			if _, err := w.Write(buf[:min(n, len(buf))]); err != nil {
				return
			}
		}
	case "/up":
		n, _ := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{r.Body}, make([]byte, 256<<10))
		fmt.Fprint(w, n)
	case "/sse":
		w.Header().Set("Content-Type", "text/event-stream")
		for range benchEvents {
			time.Sleep(time.Millisecond)
			fmt.Fprintf(w, "data: %d\n\n", time.Now().UnixNano())
			if http.NewResponseController(w).Flush() != nil {
				return
			}
		}
	default:
		_, _ = w.Write(bytes.Repeat([]byte("x"), 200))
	}
}

// onePod is what the site of the benchmark is about.
type onePod struct{ control *podapi.Client }

func (p onePod) List() []web.Pod {
	return []web.Pod{{Name: benchPod, Issue: "ada/bench#1", Runs: true}}
}
func (p onePod) Control(string) (*podapi.Client, error)          { return p.control, nil }
func (p onePod) Past(string, int64, int) ([]podapi.Event, error) { return nil, nil }
func (p onePod) Retry(string) error                              { return nil }
func (p onePod) Unpushed(context.Context, string) (int, error)   { return 0, nil }
func (p onePod) Diff(context.Context, string) (string, error)    { return "", nil }
func (p onePod) Work(context.Context, string) (web.Work, error)  { return web.Work{}, nil }

const (
	benchRounds = 5
	benchBytes  = 256 << 20
	benchTrips  = 2000
	benchEvents = 1000
)

// A way leads to the backend.
type way struct {
	name    string
	against string // the way that it is compared with
	network string
	addr    string
	prefix  string
	host    string
	cookie  string
	client  *http.Client

	down, up, paced, faster []float64 // MB/s
	trips, told             []time.Duration
}

func (w *way) open() {
	w.client = &http.Client{Transport: &http.Transport{
		MaxIdleConnsPerHost: 4, ReadBufferSize: 64 << 10, WriteBufferSize: 256 << 10, DisableCompression: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, w.network, w.addr)
		},
	}}
}

func (w *way) do(b *testing.B, method, path string, body io.Reader, size int64) *http.Response {
	b.Helper()
	req, err := http.NewRequestWithContext(b.Context(), method, "http://"+w.host+w.prefix+path, body)
	if err != nil {
		b.Fatal(err)
	}
	req.ContentLength = size
	if w.cookie != "" {
		req.Header.Set("Cookie", w.cookie)
	}
	resp, err := w.client.Do(req)
	if err != nil || resp.StatusCode != http.StatusOK {
		b.Fatal(w.name, method, path, resp, err)
	}
	return resp
}

func speed(n int64, since time.Time) float64 { return float64(n) / 1e6 / time.Since(since).Seconds() }

// zeros are a body of a request.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

func (w *way) download(b *testing.B, bytes, rate int, waste []byte) float64 {
	b.Helper()
	start := time.Now()
	resp := w.do(b, "GET", fmt.Sprintf("/down?bytes=%d&rate=%d", bytes, rate), nil, 0)
	defer resp.Body.Close()
	n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{resp.Body}, waste)
	if err != nil || n != int64(bytes) {
		b.Fatal(w.name, n, err)
	}
	return speed(n, start)
}

func (w *way) round(b *testing.B, waste []byte) {
	b.Helper()
	w.down = append(w.down, w.download(b, benchBytes, 0, waste))
	start := time.Now()
	resp := w.do(b, "PUT", "/up", io.LimitReader(zeros{}, benchBytes), benchBytes)
	if text, err := io.ReadAll(resp.Body); err != nil || string(text) != strconv.Itoa(benchBytes) {
		b.Fatal(w.name, string(text), err)
	}
	w.up = append(w.up, speed(benchBytes, start))
	lines := bufio.NewScanner(w.do(b, "GET", "/sse", nil, 0).Body)
	for lines.Scan() {
		if at, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
			sent, err := strconv.ParseInt(at, 10, 64)
			if err != nil {
				b.Fatal(err)
			}
			w.told = append(w.told, time.Since(time.Unix(0, sent)))
		}
	}
	w.paced = append(w.paced, w.download(b, 64<<20, 125_000_000, waste))
	w.faster = append(w.faster, w.download(b, 256<<20, 1_250_000_000, waste))
}

// trip is a short request.
func (w *way) trip(b *testing.B) {
	b.Helper()
	start := time.Now()
	resp := w.do(b, "GET", "/x", nil, 0)
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		b.Fatal(err)
	}
	w.trips = append(w.trips, time.Since(start))
	resp.Body.Close()
}

// begin runs a process until the benchmark's end, and waits until it listens.
func begin(b *testing.B, network, addr string, cmd *exec.Cmd) {
	b.Helper()
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		b.Fatalf("%v: run .ci/install bench", err)
	}
	b.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		_ = cmd.Wait()
	})
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		c, err := net.Dial(network, addr)
		if err == nil {
			c.Close()
			return
		}
		if time.Now().After(end) {
			b.Fatal(addr, err)
		}
	}
}

func part(b *testing.B, name, network, at, to string) {
	b.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), asBench+"="+name, benchAt+"="+at, benchTo+"="+to)
	begin(b, network, at, cmd)
}

func freeAddr(b *testing.B) string {
	b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// pageWays begins all that there is between a browser and the agent's server.
func pageWays(b *testing.B) []*way {
	b.Helper()
	l := newLone(b, answers)
	backend, site, one, two := freeAddr(b), freeAddr(b), freeAddr(b), l.path("nginx.sock")
	agent, control := l.path("a/"+podfile.AgentSocket), l.path("run/"+podfile.ControlSocket)
	part(b, "backend", "tcp", backend, "")
	part(b, "relay", "unix", agent, backend)
	l.start()
	part(b, "site", "tcp", site, control)
	server := `upstream %[1]s { server unix:%[3]s; keepalive 8; }
server { listen %[2]s; location / { proxy_pass http://%[1]s; proxy_http_version 1.1; proxy_set_header Connection "";
 proxy_buffering off; proxy_request_buffering off; client_max_body_size 0; } }` + "\n"
	user := "" // nginx's workers are another one's unless root says whose
	if os.Getuid() == 0 {
		user = "user root; "
	}
	conf := user + fmt.Sprintf("daemon off; worker_processes auto; pid %[1]s/pid; error_log stderr crit;\nevents { worker_connections 1024; }\nhttp { access_log off; client_body_temp_path %[1]s/c; proxy_temp_path %[1]s/p; fastcgi_temp_path %[1]s/f; uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/s;\n", l.dir) +
		fmt.Sprintf(server, "agent", "unix:"+two, agent) + fmt.Sprintf(server, "near", one, two) + "}\n"
	l.must(os.WriteFile(l.path("nginx.conf"), []byte(conf), 0o600))
	begin(b, "tcp", one, exec.Command("nginx", "-e", "stderr", "-c", l.path("nginx.conf")))
	_, port, _ := net.SplitHostPort(site)
	browser := &way{name: "browser's way", against: "direct", network: "tcp", addr: site, host: benchPod + "-a.localhost:" + port}
	browser.cookie = enter(b, site, browser.host)
	return []*way{
		{name: "direct", network: "tcp", addr: backend, host: "x"},
		browser,
		{name: "nginx twice", against: "direct", network: "tcp", addr: one, host: "x"},
		{name: "shim's socket", network: "unix", addr: agent, host: "x"},
		{name: "pod-api", against: "shim's socket", network: "unix", addr: control, prefix: "/agent", host: "pod"},
		{name: "nginx", against: "shim's socket", network: "unix", addr: two, host: "x"},
	}
}

// enter logs in as a person does, and returns the cookie for the agent's pages.
func enter(b *testing.B, site, host string) string {
	b.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		b.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(site)
	c := &http.Client{Jar: jar, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", site)
	}}}
	for _, ask := range []func() (*http.Response, error){
		func() (*http.Response, error) {
			return c.PostForm("http://pods.localhost:"+port+"/pods/login", map[string][]string{"token": {benchLogin}})
		},
		func() (*http.Response, error) { return c.Get("http://" + host + "/") },
	} {
		resp, err := ask()
		if err != nil || resp.StatusCode != http.StatusOK {
			b.Fatal(resp, err)
		}
		resp.Body.Close()
		for _, cookie := range jar.Cookies(resp.Request.URL) {
			if resp.Request.URL.Host == host {
				return cookie.String()
			}
		}
	}
	b.Fatal("no cookie for " + host)
	return ""
}

func quantile[T int64 | float64 | time.Duration](all []T, q float64) T {
	all = slices.Clone(all)
	slices.Sort(all)
	return all[min(int(float64(len(all))*q), len(all)-1)]
}

// against is the median of two ways' ratios, round by round.
func against(a, b []float64) float64 {
	var all []float64
	for i := range a {
		all = append(all, a[i]/b[i])
	}
	return quantile(all, 0.5)
}

func BenchmarkPages(b *testing.B) {
	all, waste := pageWays(b), make([]byte, 256<<10)
	for b.Loop() {
		for range benchRounds {
			for _, w := range all {
				w.open()
				w.round(b, waste)
			}
			for range benchTrips {
				for _, w := range all {
					w.trip(b)
				}
			}
			for _, w := range all {
				w.client.CloseIdleConnections()
			}
		}
	}
	b.ReportMetric(0, "ns/op")
	by := map[string]*way{}
	var t strings.Builder
	fmt.Fprintf(&t, "%-14s %-13s %14s %14s %14s %14s  %16s  %16s\n", "", "against", "MB/s down", "MB/s up", "at 1 Gbit/s", "at 10 Gbit/s", "round trip, µs", "event, µs")
	for _, w := range all {
		by[w.name] = w
		fmt.Fprintf(&t, "%-14s %-13s", w.name, w.against)
		ref := by[w.against]
		for _, s := range [][2][]float64{{w.down, ref.of().down}, {w.up, ref.of().up}, {w.paced, ref.of().paced}, {w.faster, ref.of().faster}} {
			ratio := ""
			if ref != nil {
				ratio = fmt.Sprintf("%.2f", against(s[0], s[1]))
			}
			fmt.Fprintf(&t, " %8.0f %5s", quantile(s[0], 0.5), ratio)
		}
		for _, times := range [][]time.Duration{w.trips, w.told} {
			fmt.Fprintf(&t, "  %7d %8d", quantile(times, 0.5).Microseconds(), quantile(times, 0.99).Microseconds())
		}
		fmt.Fprintln(&t)
	}
	b.Logf("medians and (of times) p50 and p99 of %d rounds, each of %d MB down and up, %d requests and %d events:\n%s", benchRounds, benchBytes>>20, benchTrips, benchEvents, t.String())
	for _, w := range []string{"browser's way", "pod-api"} {
		unit, ref := strings.ReplaceAll(w, " ", "-"), by[by[w].against]
		b.ReportMetric(float64((quantile(by[w].trips, 0.99) - quantile(ref.trips, 0.99)).Microseconds()), unit+"-added-p99-µs")
	}
}

// of is w, or an empty way.
func (w *way) of() *way {
	if w == nil {
		return &way{}
	}
	return w
}
