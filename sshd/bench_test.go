package sshd_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	gossh "golang.org/x/crypto/ssh"

	"codeberg.org/devaipod/devaipod/sshd"
)

// `make bench`: devaipod sshd, as it is shipped, beside OpenSSH's sshd and sftp-server
// with testdata/bench/sshd_config, both used by OpenSSH's clients, in turn, with the
// same cipher and key exchange, on a tmpfs. Nothing here asserts a time.

const (
	benchRounds = 5
	benchLogins = 20 // one after the other, in a round
	benchIdle   = 50 // connections that do nothing
)

// fromEnv is a number that the environment may set.
func fromEnv(b *testing.B, name string, n int) int {
	b.Helper()
	if text := os.Getenv(name); text != "" {
		var err error
		if n, err = strconv.Atoi(text); err != nil {
			b.Fatalf("%s: %v", name, err)
		}
	}
	return n
}

// A rival is a server that is measured, with a client's configuration for it.
type rival struct {
	b      *testing.B
	name   string
	dir    string // of its clients' configuration
	port   string
	pid    int
	key    gossh.Signer
	sink   string // the address of what a forward leads to
	tunnel string // the address that is forwarded there
}

// start runs a server until the benchmark's end, and waits until it listens.
func start(b *testing.B, name, dir string, argv func(port string) []string) *rival {
	b.Helper()
	r := &rival{b: b, name: name, dir: filepath.Join(dir, name), port: freePort(b)}
	if err := os.Mkdir(r.dir, 0o700); err != nil {
		b.Fatal(err)
	}
	var pub string
	r.key, pub = newKey(b, r.path("key"))
	write(b, r.path("authorized_keys"), pub+"\n")
	host, hostPub := newKey(b, r.path("host_key"))
	write(b, r.path("known_hosts"), "box "+hostPub+"\n")
	write(b, r.path("config"), fmt.Sprintf(`Host box
  HostName 127.0.0.1
  HostKeyAlias box
  Port %s
  User %s
  IdentityFile %s
  IdentitiesOnly yes
  IdentityAgent none
  UserKnownHostsFile %s
  StrictHostKeyChecking yes
  BatchMode yes
  Ciphers aes128-gcm@openssh.com
  KexAlgorithms curve25519-sha256
  HostKeyAlgorithms %s
  Compression no
`, r.port, sshd.Me().Name, r.path("key"), r.path("known_hosts"), host.PublicKey().Type()))
	args := argv(r.port)
	cmd := exec.Command(args[0], args[1:]...)
	log, err := os.Create(r.path("log"))
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = log.Close() }()
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		b.Fatalf("%v: make build makes bin/devaipod, and .ci/install bench installs OpenSSH's server", err)
	}
	r.pid = cmd.Process.Pid
	b.Cleanup(func() { _ = cmd.Process.Signal(syscall.SIGTERM); _ = cmd.Wait() })
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if c, err := net.Dial("tcp", "127.0.0.1:"+r.port); err == nil {
			_ = c.Close()
			return r
		}
		if time.Now().After(end) {
			text, _ := os.ReadFile(r.path("log"))
			b.Fatalf("%s does not listen: %s", name, text)
		}
	}
}

func (r *rival) path(name string) string { return filepath.Join(r.dir, name) }

// rivals are the two servers.
func rivals(b *testing.B, dir string) []*rival {
	b.Helper()
	binary, err := filepath.Abs("../bin/devaipod")
	if err != nil {
		b.Fatal(err)
	}
	config, err := filepath.Abs("testdata/bench/sshd_config")
	if err != nil {
		b.Fatal(err)
	}
	// The directory that it changes its root to before a login; the package's own
	// start script makes it.
	if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
		b.Fatal(err)
	}
	of := func(name, file string) string { return filepath.Join(dir, name, file) }
	return []*rival{
		start(b, "devaipod", dir, func(port string) []string {
			return []string{binary, "sshd", "--listen", "127.0.0.1:" + port, "--host-key", of("devaipod", "host_key"), "--authorized-keys", of("devaipod", "authorized_keys")}
		}),
		start(b, "OpenSSH", dir, func(port string) []string {
			return []string{"/usr/sbin/sshd", "-D", "-e", "-f", config, "-o", "Port=" + port, "-o", "HostKey=" + of("OpenSSH", "host_key"), "-o", "AuthorizedKeysFile=" + of("OpenSSH", "authorized_keys")}
		}),
	}
}

// run runs a client and tells how long it took.
func (r *rival) run(stdin, stdout string, args ...string) time.Duration {
	r.b.Helper()
	cmd := exec.Command(args[0], slices.Insert(args[1:], 0, "-F", r.path("config"))...)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	if stdin != "" {
		f, err := os.Open(stdin)
		if err != nil {
			r.b.Fatal(err)
		}
		defer func() { _ = f.Close() }()
		cmd.Stdin = f
	}
	if stdout != "" {
		f, err := os.OpenFile(stdout, os.O_WRONLY, 0)
		if err != nil {
			r.b.Fatal(err)
		}
		defer func() { _ = f.Close() }()
		cmd.Stdout = f
	}
	began := time.Now()
	if err := cmd.Run(); err != nil {
		r.b.Fatalf("%s: %v: %v: %s", r.name, args, err, errs.String())
	}
	return time.Since(began)
}

// sftp runs one line of OpenSSH's sftp.
func (r *rival) sftp(line string) time.Duration {
	r.b.Helper()
	write(r.b, r.path("batch"), line+"\n")
	return r.run("", "/dev/null", "sftp", "-q", "-b", r.path("batch"), "box")
}

// agreed is what client and server have agreed upon, as ssh -v tells it.
func (r *rival) agreed() string {
	r.b.Helper()
	text, err := exec.Command("ssh", "-v", "-F", r.path("config"), "box", "true").CombinedOutput()
	if err != nil {
		r.b.Fatalf("%s: %v: %s", r.name, err, text)
	}
	var lines []string
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "debug1: kex: ") {
			lines = append(lines, strings.TrimSpace(line)+"\n")
		}
	}
	return strings.Join(lines, "")
}

// A load is one thing that is measured; less is better.
type load struct {
	name string
	run  func(r *rival) time.Duration
}

// loads are of files in dir: big, of that many MiB, and many, of that many files.
func loads(b *testing.B, dir string, mb, files int) []load {
	b.Helper()
	big, many, up, down := filepath.Join(dir, "big"), filepath.Join(dir, "many"), filepath.Join(dir, "up"), filepath.Join(dir, "down")
	f, err := os.Create(big)
	if err == nil {
		err = f.Truncate(int64(mb) << 20)
	}
	if err == nil {
		buf := make([]byte, 1<<20) // real pages, and not zeros
		for i := range buf {
			buf[i] = byte(i * 131 >> 3)
		}
		for i := 0; i < mb && err == nil; i++ {
			_, err = f.WriteAt(buf, int64(i)<<20)
		}
		_ = f.Close()
	}
	if err == nil {
		err = os.Mkdir(many, 0o700)
	}
	for i := 0; i < files && err == nil; i++ {
		err = os.WriteFile(filepath.Join(many, fmt.Sprintf("file-%05d", i)), bytes.Repeat([]byte{byte(i)}, i*37%4096), 0o600)
	}
	if err != nil {
		b.Fatal(err)
	}
	// fresh leaves neither copy, so that none is written over another.
	fresh := func(paths ...string) {
		for _, path := range paths {
			if err := os.RemoveAll(path); err != nil {
				b.Fatal(err)
			}
		}
	}
	same := func(r *rival, a, b string) {
		if out, err := exec.Command("diff", "-r", a, b).CombinedOutput(); err != nil {
			r.b.Fatalf("%s: %v: %.2000s", r.name, err, out)
		}
	}
	return []load{
		{fmt.Sprintf("connect %d times", benchLogins), func(r *rival) (all time.Duration) {
			for range benchLogins {
				all += r.run("", "", "ssh", "box", "true")
			}
			return all
		}},
		{"stream out", func(r *rival) time.Duration { return r.run("", "/dev/null", "ssh", "box", "cat "+big) }},
		{"stream in", func(r *rival) time.Duration { return r.run(big, "", "ssh", "box", "cat >/dev/null") }},
		{"sftp put", func(r *rival) time.Duration { fresh(up); return r.sftp("put " + big + " " + up) }},
		{"sftp get", func(r *rival) time.Duration { fresh(down); return r.sftp("get " + big + " " + down) }},
		{fmt.Sprintf("sftp put %d files", files), func(r *rival) time.Duration {
			fresh(up)
			took := r.sftp("put -R " + many + " " + up)
			same(r, many, up)
			return took
		}},
		{fmt.Sprintf("sftp get %d files", files), func(r *rival) time.Duration {
			fresh(down)
			took := r.sftp("get -R " + many + " " + down)
			same(r, many, down)
			return took
		}},
		{"forward down", func(r *rival) time.Duration { return r.through('d', mb) }},
		{"forward up", func(r *rival) time.Duration { return r.through('u', mb) }},
	}
}

// sink is what a forward leads to: it sends mb MiB to who says d, and takes what comes
// from who says u, and says so.
func sink(b *testing.B, mb int) string {
	b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = l.Close() })
	serve := func(c net.Conn) {
		defer func() { _ = c.Close() }()
		what := make([]byte, 1)
		if _, err := io.ReadFull(c, what); err != nil {
			return
		}
		if what[0] == 'd' {
			_ = send(c, mb)
			return
		}
		if n, err := io.Copy(io.Discard, c); err == nil && n == int64(mb)<<20 {
			_, _ = c.Write(what)
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

func send(w io.Writer, mb int) error {
	buf := make([]byte, 1<<20)
	for range mb {
		if _, err := w.Write(buf); err != nil {
			return err
		}
	}
	return nil
}

// forward forwards a port to the sink until the end of what is measured by it: no other
// load has a second connection beside its own.
func (r *rival) forward() {
	r.b.Helper()
	r.tunnel = "127.0.0.1:" + freePort(r.b)
	cmd := exec.Command("ssh", "-F", r.path("config"), "-o", "ExitOnForwardFailure=yes", "-L", r.tunnel+":"+r.sink, "box", "echo up; cat")
	in, err := cmd.StdinPipe()
	if err != nil {
		r.b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		r.b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		r.b.Fatal(err)
	}
	r.b.Cleanup(func() { _ = in.Close(); _ = cmd.Wait(); r.tunnel = "" })
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "up\n" {
		r.b.Fatalf("%s: %q %v", r.name, line, err)
	}
}

// through sends mb MiB through the forward, down or up.
func (r *rival) through(way byte, mb int) time.Duration {
	r.b.Helper()
	if r.tunnel == "" {
		r.forward()
	}
	began := time.Now()
	c, err := net.Dial("tcp", r.tunnel)
	if err != nil {
		r.b.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if _, err := c.Write([]byte{way}); err != nil {
		r.b.Fatal(err)
	}
	want := int64(mb) << 20
	if way == 'u' {
		want = 1
		if err := send(c, mb); err != nil {
			r.b.Fatal(err)
		}
		_ = c.(*net.TCPConn).CloseWrite()
	}
	if n, err := io.Copy(io.Discard, c); err != nil || n != want {
		r.b.Fatalf("%s: %d bytes of %d, %v", r.name, n, want, err)
	}
	return time.Since(began)
}

// memory is what a server and its children have, in KiB.
func (r *rival) memory() (rss, pss int) {
	r.b.Helper()
	for _, pid := range family(r.b, r.pid) {
		text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid)) // it may have ended
		for line := range strings.Lines(string(text)) {
			f := strings.Fields(line)
			if len(f) < 2 || f[0] != "Rss:" && f[0] != "Pss:" {
				continue
			}
			n, err := strconv.Atoi(f[1])
			if err != nil {
				r.b.Fatal(err)
			}
			if f[0] == "Rss:" {
				rss += n
			} else {
				pss += n
			}
		}
	}
	return rss, pss
}

func family(b *testing.B, pid int) []int {
	b.Helper()
	all := []int{pid}
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		b.Fatal(err)
	}
	for _, list := range lists {
		text, _ := os.ReadFile(list) // it may have ended
		for _, f := range strings.Fields(string(text)) {
			child, err := strconv.Atoi(f)
			if err != nil {
				b.Fatal(err)
			}
			all = append(all, family(b, child)...)
		}
	}
	return all
}

// idle tells what a connection that does nothing costs, in KiB.
func (r *rival) idle() (rss, pss int) {
	r.b.Helper()
	time.Sleep(time.Second) // OpenSSH's children of connections that are over end
	rss0, pss0 := r.memory()
	for range benchIdle {
		c, err := gossh.Dial("tcp", "127.0.0.1:"+r.port, &gossh.ClientConfig{
			User: sshd.Me().Name, Auth: []gossh.AuthMethod{gossh.PublicKeys(r.key)},
			Config:          gossh.Config{KeyExchanges: []string{gossh.KeyExchangeCurve25519}},
			HostKeyCallback: gossh.InsecureIgnoreHostKey(), Timeout: 20 * time.Second, //nolint:gosec // a server of this test's
		})
		if err != nil {
			r.b.Fatal(r.name, err)
		}
		defer func() { _ = c.Close() }()
	}
	time.Sleep(time.Second) // and those that did the logins
	rss1, pss1 := r.memory()
	return (rss1 - rss0) / benchIdle, (pss1 - pss0) / benchIdle
}

func BenchmarkSSH(b *testing.B) {
	mb, files := fromEnv(b, "TEST_BENCH_MB", 1024), fromEnv(b, "TEST_BENCH_FILES", 10_000)
	dir, err := os.MkdirTemp("/dev/shm", "sshd-bench-") //nolint:usetesting // of the machine's memory
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = os.RemoveAll(dir) })
	both := rivals(b, dir)
	ours, theirs := both[0].agreed(), both[1].agreed()
	if ours != theirs || strings.Count(ours, "cipher: aes128-gcm@openssh.com MAC: <implicit> compression: none") != 2 || !strings.Contains(ours, "kex: algorithm: curve25519-sha256\n") {
		b.Fatalf("devaipod:\n%sOpenSSH:\n%s", ours, theirs)
	}
	b.Run("idle", func(b *testing.B) { // first, since what is not given back later would hide it
		for b.Loop() {
			for _, r := range both {
				r.b = b
				rss, pss := r.idle()
				b.ReportMetric(float64(rss), r.name+"-KiB-resident")
				b.ReportMetric(float64(pss), r.name+"-KiB-PSS")
			}
		}
		b.ReportMetric(0, "ns/op")
	})
	for _, r := range both {
		r.sink = sink(b, mb)
	}
	for _, l := range loads(b, dir, mb, files) {
		b.Run(l.name, func(b *testing.B) {
			both[0].b, both[1].b = b, b
			for b.Loop() {
				inTurn(b, both, l.run)
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}

// inTurn reports how fast ours was, as a ratio to the speed of the other's in the same
// round, and how much of the processors the servers and their commands had.
func inTurn(b *testing.B, both []*rival, run func(*rival) time.Duration) {
	b.Helper()
	took := [2][]time.Duration{}
	cpu := [2]float64{}
	var ratios []float64
	for round := range benchRounds + 1 {
		for i := range both {
			i = (i + round) % 2 // each goes first in turn
			before := both[i].cpu()
			t := run(both[i])
			if round > 0 { // the first does not count
				took[i] = append(took[i], t)
				cpu[i] += both[i].cpu() - before
			}
		}
		if round > 0 {
			ratios = append(ratios, float64(took[1][round-1])/float64(took[0][round-1]))
		}
	}
	slices.Sort(ratios)
	b.ReportMetric(ratios[len(ratios)/2], "speed")
	b.ReportMetric(ratios[0], "least-speed")
	b.ReportMetric(ratios[len(ratios)-1], "most-speed")
	for i, r := range both {
		slices.Sort(took[i])
		b.ReportMetric(took[i][len(took[i])/2].Seconds(), r.name+"-s")
		b.ReportMetric(cpu[i]/benchRounds, r.name+"-cpu-s")
	}
}

// cpu is the time of processors that a server and its children have had, in seconds:
// proc_pid_stat(5).
func (r *rival) cpu() (all float64) {
	r.b.Helper()
	for _, pid := range family(r.b, r.pid) {
		text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)) // it may have ended
		_, rest, _ := strings.Cut(string(text), ") ")
		f := strings.Fields(rest)
		if len(f) < 15 {
			continue
		}
		for _, ticks := range f[11:15] { // utime, stime, cutime, cstime
			n, err := strconv.Atoi(ticks)
			if err != nil {
				r.b.Fatal(err)
			}
			all += float64(n) / 100
		}
	}
	return all
}
