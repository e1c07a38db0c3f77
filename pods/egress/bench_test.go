package egress_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"codeberg.org/devaipod/devaipod/pods/egress"
	"codeberg.org/devaipod/devaipod/pods/relay"
)

// `make bench`: a tunnel of ours beside no proxy, beside tinyproxy, and beside
// nginx as a TCP proxy that looks at the ClientHello (it has no CONNECT), both
// Debian's. What is compared runs in turn; nothing here asserts a time.

// benchHost is on loopback, for the proxy of the benchmark alone.
const benchHost = "origin.example.com"

// benchAt makes this binary the proxy, as a process of its own, and benchTo the
// relay of a shim to a proxy on a unix socket.
const (
	benchAt = "TEST_EGRESS_LISTEN"
	benchTo = "TEST_EGRESS_RELAY"
)

func TestMain(m *testing.M) {
	if at := os.Getenv(benchAt); at != "" {
		fmt.Fprintln(os.Stderr, serveBench(at))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// listenAt listens at a path or an address.
func listenAt(at string) (net.Listener, error) {
	if strings.HasPrefix(at, "/") {
		return net.Listen("unix", at)
	}
	return net.Listen("tcp", at)
}

func dialAt(at string) (net.Conn, error) {
	if strings.HasPrefix(at, "/") {
		return net.Dial("unix", at)
	}
	return net.Dial("tcp", at)
}

func serveBench(at string) error {
	l, err := listenAt(at)
	if err != nil {
		return err
	}
	if to := os.Getenv(benchTo); to != "" {
		return relay.Serve(context.Background(), l, relay.Unix(to), slog.New(slog.DiscardHandler))
	}
	rules, err := egress.Parse([]string{benchHost + ":" + os.Getenv("TEST_EGRESS_PORT")})
	if err != nil {
		return err
	}
	loopback := netip.MustParseAddr("127.0.0.1")
	log := slog.New(slog.DiscardHandler)
	p, err := egress.New(egress.Config{
		Rules: rules, Authorized: egress.Token(token), Log: log,
		Resolve:   func(context.Context, string) ([]netip.Addr, error) { return []netip.Addr{loopback}, nil },
		Reachable: func(ip netip.Addr) bool { return ip == loopback },
	})
	if err != nil {
		return err
	}
	return egress.Server(p, log).Serve(l)
}

// A way leads to the origin.
type way struct {
	name string
	addr string
	ask  string // what a client says first, "" for nothing
}

// open is a connection to the origin that has begun with a ClientHello.
func (w way) open(b testing.TB, hello []byte) net.Conn {
	b.Helper()
	c, err := net.Dial("tcp", w.addr)
	if err != nil {
		b.Fatal(err)
	}
	if w.ask != "" {
		say(c, w.ask)
		resp, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: http.MethodConnect})
		if err != nil || resp.StatusCode != 200 {
			b.Fatal(w.name, resp, err)
		}
	}
	if _, err := c.Write(hello); err != nil {
		b.Fatal(err)
	}
	return c
}

func freeAddr(b testing.TB) string {
	b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// begin runs a process until the benchmark's end, and waits until it listens.
func begin(b testing.TB, addr string, cmd *exec.Cmd) {
	b.Helper()
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		b.Fatalf("%v: install it with: apt-get install -y --no-install-recommends tinyproxy-bin nginx-light libnginx-mod-stream", err)
	}
	b.Cleanup(func() {
		// nginx ends its workers only when it is asked to end.
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		_ = cmd.Wait()
	})
	eventually(b, addr+" listens", func() bool {
		c, err := dialAt(addr)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
}

// ours begins the proxy at an address or a path, or a relay to one.
func ours(b testing.TB, at, origin, relayTo string) *exec.Cmd {
	b.Helper()
	_, port, err := net.SplitHostPort(origin)
	if err != nil {
		b.Fatal(err)
	}
	self := exec.Command(os.Args[0])
	self.Env = append(os.Environ(), benchAt+"="+at, "TEST_EGRESS_PORT="+port, benchTo+"="+relayTo)
	begin(b, at, self)
	return self
}

func askOurs(origin string) string {
	_, port, _ := strings.Cut(origin, ":")
	return "CONNECT " + benchHost + ":" + port + " HTTP/1.1\r\nHost: x\r\n" + authorization + "\r\n"
}

// inPod is the way of a pod: the shim's relay, and the gate behind its socket.
func inPod(b testing.TB, origin string) (w way, shim, gate *exec.Cmd) {
	b.Helper()
	socket, at := filepath.Join(b.TempDir(), "s"), freeAddr(b)
	gate = ours(b, socket, origin, "")
	return way{"pod", at, askOurs(origin)}, ours(b, at, origin, socket), gate
}

func ways(b testing.TB, origin string) []way {
	b.Helper()
	dir := b.TempDir()
	_, port, err := net.SplitHostPort(origin)
	if err != nil {
		b.Fatal(err)
	}
	conf := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			b.Fatal(err)
		}
		return path
	}
	gate, tiny, nginx := freeAddr(b), freeAddr(b), freeAddr(b)
	ours(b, gate, origin, "")
	pod, _, _ := inPod(b, origin)
	_, tinyPort, _ := strings.Cut(tiny, ":")
	begin(b, tiny, exec.Command("tinyproxy", "-d", "-c", conf("tinyproxy.conf", "Port "+tinyPort+
		"\nListen 127.0.0.1\nTimeout 600\nMaxClients 500\nAllow 127.0.0.1\nLogLevel Critical\nLogFile \""+dir+"/log\"\nConnectPort "+port+"\n")))
	text := fmt.Sprintf(`load_module /usr/lib/nginx/modules/ngx_stream_module.so;
daemon off; worker_processes auto; pid %[1]s/pid; error_log stderr crit;
events { worker_connections 1024; }
stream { server { listen %[2]s; ssl_preread on; proxy_pass %[3]s; } }
`, dir, nginx, origin)
	begin(b, nginx, exec.Command("nginx", "-e", "stderr", "-c", conf("nginx.conf", text)))
	return []way{
		{"direct", origin, ""},
		{"devaipod", gate, askOurs(origin)},
		pod,
		{"tinyproxy", tiny, "CONNECT " + origin + " HTTP/1.1\r\nHost: x\r\n\r\n"},
		{"nginx", nginx, ""},
	}
}

const (
	benchRounds = 7
	benchBytes  = 1 << 30
	benchTrips  = 2000 // round trips on one connection, and
	benchConns  = 300  // connections, in a round
)

// links are what the origin sends over, by the byte that asks for them: "1" and
// "2" are links of 1 and 10 Gbit/s (SO_MAX_PACING_RATE, socket(7)).
var links = map[string]struct {
	name  string
	rate  int // bytes a second, 0 for none
	bytes int
}{"d": {"loopback", 0, benchBytes}, "1": {"1 Gbit/s", 125_000_000, 128 << 20}, "2": {"10 Gbit/s", 1_250_000_000, 512 << 20}}

// startOrigin answers a ClientHello and one more byte: that of a link with as much
// as is sent over it, "e" with an echo of all that comes.
func startOrigin(b testing.TB) string {
	b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { l.Close() })
	serve := func(c net.Conn) {
		defer c.Close()
		if _, _, _, err := egress.ReadHello(c); err != nil {
			return
		}
		var what [1]byte
		if _, err := io.ReadFull(c, what[:]); err != nil {
			return
		}
		if what[0] == 'e' {
			echo(c)
			return
		}
		link := links[string(what[:])]
		if link.rate > 0 && pace(c, link.rate) != nil {
			return // its client misses it
		}
		buf := make([]byte, 256<<10)
		for range link.bytes / len(buf) {
			if _, err := c.Write(buf); err != nil {
				return
			}
		}
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go serve(c)
		}
	}()
	return l.Addr().String()
}

// pace has the kernel send no faster.
func pace(c net.Conn, rate int) error {
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		return err
	}
	var set error
	err = raw.Control(func(fd uintptr) { set = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MAX_PACING_RATE, rate) })
	return errors.Join(err, set)
}

// download takes what comes over a link, and tells how fast it came, in MB/s.
func (w way) download(b testing.TB, hello []byte, link string, waste []byte) float64 {
	b.Helper()
	c := w.open(b, hello)
	defer c.Close()
	say(c, link)
	start := time.Now()
	n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{c}, waste)
	if err != nil || n != int64(links[link].bytes) {
		b.Fatal(w.name, n, err)
	}
	return float64(n) / 1e6 / time.Since(start).Seconds()
}

// On a link that is slower than a machine's memory a tunnel takes nothing away.
func BenchmarkEgressOverALink(b *testing.B) {
	hello := clientHello(b, &tls.Config{ServerName: benchHost})
	all := ways(b, startOrigin(b))
	waste := make([]byte, 256<<10)
	rows := map[string]string{}
	for b.Loop() {
		for _, link := range []string{"1", "2"} {
			speeds, ratios := map[string][]float64{}, map[string][]float64{}
			for range benchRounds {
				for _, w := range all {
					speed := w.download(b, hello, link, waste)
					speeds[w.name] = append(speeds[w.name], speed)
					ratios[w.name] = append(ratios[w.name], speed/speeds["direct"][len(speeds["direct"])-1])
				}
			}
			for _, w := range all {
				s, r := speeds[w.name], ratios[w.name]
				slices.Sort(s)
				slices.Sort(r)
				rows[w.name] += fmt.Sprintf("   %-9s %5.0f MB/s, of direct %.2f (%.2f to %.2f)", links[link].name, s[len(s)/2], r[len(r)/2], r[0], r[len(r)-1])
			}
			r := ratios["pod"]
			b.ReportMetric(r[len(r)/2], "of-direct-at-"+strings.ReplaceAll(links[link].name, " ", ""))
		}
	}
	b.ReportMetric(0, "ns/op")
	var table strings.Builder
	for _, w := range all {
		fmt.Fprintf(&table, "%-10s%s\n", w.name, rows[w.name])
	}
	b.Logf("medians of %d rounds, in turn:\n%s", benchRounds, table.String())
}

func quantile(all []time.Duration, q float64) time.Duration {
	slices.Sort(all)
	return all[min(int(float64(len(all))*q), len(all)-1)]
}

func BenchmarkEgress(b *testing.B) {
	hello := clientHello(b, &tls.Config{ServerName: benchHost})
	all := ways(b, startOrigin(b))
	speeds := map[string][]float64{}
	kept, fresh := map[string][]time.Duration{}, map[string][]time.Duration{}
	waste := make([]byte, 256<<10)
	message := make([]byte, 200)
	trip := func(c net.Conn) {
		if _, err := c.Write(message); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(c, waste[:len(message)]); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		for range benchRounds {
			for _, w := range all {
				speeds[w.name] = append(speeds[w.name], w.download(b, hello, "d", waste))

				c := w.open(b, hello)
				say(c, "e")
				trip(c)
				for range benchTrips {
					start := time.Now()
					trip(c)
					kept[w.name] = append(kept[w.name], time.Since(start))
				}
				c.Close()
				for range benchConns {
					start := time.Now()
					c := w.open(b, hello)
					say(c, "e")
					trip(c)
					fresh[w.name] = append(fresh[w.name], time.Since(start))
					c.Close()
				}
			}
		}
	}
	report(b, all, speeds, kept, fresh)
}

func report(b *testing.B, all []way, speeds map[string][]float64, kept, fresh map[string][]time.Duration) {
	var table strings.Builder
	fmt.Fprintf(&table, "%-10s %8s %8s   %19s   %19s\n", "", "MB/s", "MB/s", "round trip, µs", "new connection, µs")
	fmt.Fprintf(&table, "%-10s %8s %8s   %9s %9s   %9s %9s\n", "", "median", "max", "p50", "p99", "p50", "p99")
	median := map[string]float64{}
	for _, w := range all {
		s := speeds[w.name]
		slices.Sort(s)
		median[w.name] = s[len(s)/2]
		fmt.Fprintf(&table, "%-10s %8.0f %8.0f", w.name, s[len(s)/2], s[len(s)-1])
		for _, times := range [][]time.Duration{kept[w.name], fresh[w.name]} {
			fmt.Fprintf(&table, "   %9d %9d", quantile(times, 0.5).Microseconds(), quantile(times, 0.99).Microseconds())
		}
		fmt.Fprintln(&table)
	}
	b.Logf("a tunnel of %d MB, %d round trips of 200 bytes and %d connections each, in %d rounds:\n%s", benchBytes>>20, benchTrips, benchConns, benchRounds, table.String())
	added := func(times map[string][]time.Duration, q float64) float64 {
		return float64((quantile(times["pod"], q) - quantile(times["direct"], q)).Microseconds())
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(median["devaipod"]/max(median["tinyproxy"], median["nginx"]), "of-best-MB/s")
	b.ReportMetric(median["pod"]/max(median["tinyproxy"], median["nginx"]), "pod-of-best-MB/s")
	b.ReportMetric(added(kept, 0.99), "added-p99-µs")
	b.ReportMetric(added(fresh, 0.99), "added-p99-new-µs")
}
