package cache_test

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// `make bench`: the cache beside git clone file:// of the same bare repository,
// and beside git http-backend behind nginx, both Debian's. What is compared runs
// in turn; nothing here asserts a time.

// rivals are the three ways to one repository.
type rivals struct {
	*world
	bare    string
	cache   *process // in its everyday setting
	forgets *process // keeps no answer: upload-pack runs each time
	nginx   *process
	urls    map[string]string // of the repository, by rival
}

const benchRounds = 5

// newRivals makes a repository of 100 MB, packed with a bitmap, and serves it.
func newRivals(b *testing.B) *rivals {
	b.Helper()
	for _, program := range []string{"nginx", "fcgiwrap"} {
		if _, err := exec.LookPath(program); err != nil {
			b.Fatalf("%v: install it with: apt-get install -y --no-install-recommends nginx-light fcgiwrap", err)
		}
	}
	w := &world{t: b, dir: b.TempDir(), log: &lockedBuffer{}, clock: &clock{}}
	gitconfig(b, w.dir)
	r := &rivals{world: w, bare: filepath.Join(w.dir, "srv", "large.git")}
	git(b, "/", "init", "-q", "--bare", r.bare)
	importLarge(b, r.bare, 3000)
	git(b, r.bare, "repack", "-q", "-a", "-d", "-b")
	git(b, r.bare, "pack-refs", "--all")
	git(b, r.bare, "commit-graph", "write", "--reachable", "--no-progress")

	allow := "localhost" + w.dir + "/srv/*"
	r.cache = w.start([]string{"TEST_CACHE_DIR=" + filepath.Join(w.dir, "cache"), "TEST_CACHE_ALLOW=" + allow, "TEST_CACHE_AGE=1h"})
	r.forgets = w.start([]string{"TEST_CACHE_DIR=" + filepath.Join(w.dir, "cache"), "TEST_CACHE_ALLOW=" + allow, "TEST_CACHE_AGE=1h", "TEST_CACHE_ANSWERS=1"})
	path := "/git/localhost" + r.bare
	r.urls = map[string]string{
		"file": "file://" + r.bare, "cache": "http://" + r.cache.addr + path, "forgets": "http://" + r.forgets.addr + path, "nginx": r.startNginx(b),
	}
	git(b, "/", "ls-remote", r.urls["cache"]) // fetches it
	r.tend(b)
	return r
}

// importLarge fills a repository: many small commits, and files that don't
// compress, 36 KiB for each.
func importLarge(b *testing.B, bare string, commits int) {
	b.Helper()
	cmd := exec.Command("git", "--git-dir", bare, "fast-import", "--quiet")
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	w := bufio.NewWriter(in)
	noise := make([]byte, 36<<10)
	for i := range commits {
		if _, err := rand.Read(noise); err != nil {
			b.Fatal(err)
		}
		fmt.Fprintf(w, "commit refs/heads/main\ncommitter T <t@example.org> %d +0000\ndata 8\nchange\n\n", 1_600_000_000+i)
		fmt.Fprintf(w, "M 100644 inline dir%d/file%d\ndata %d\n", i%50, i, len(noise))
		w.Write(noise) //nolint:errcheck // Flush tells
		text := fmt.Sprintf("line %d\n%s", i, strings.Repeat("the same text as before\n", 40))
		fmt.Fprintf(w, "\nM 100644 inline text%d\ndata %d\n%s\n", i%200, len(text), text)
		if i%100 == 0 {
			fmt.Fprintf(w, "reset refs/tags/v%d\nfrom refs/heads/main\n\n", i)
		}
	}
	if err := w.Flush(); err != nil {
		b.Fatal(err)
	}
	in.Close()
	if err := cmd.Wait(); err != nil {
		b.Fatal(err)
	}
}

// tend waits until the cache has packed its copy as well as the upstream's is.
func (r *rivals) tend(b *testing.B) {
	b.Helper()
	dirs, err := filepath.Glob(filepath.Join(r.dir, "cache/repos/*/git"))
	if err != nil || len(dirs) != 1 {
		b.Fatal(dirs, err)
	}
	git(b, dirs[0], "repack", "-q", "-a", "-d", "-b", "--write-midx")
	git(b, dirs[0], "commit-graph", "write", "--reachable", "--no-progress")
}

// startNginx serves the repository as gitweb's and git's documents say:
// http-backend by fcgiwrap behind nginx.
func (r *rivals) startNginx(b *testing.B) (url string) {
	b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	dir := filepath.Join(r.dir, "nginx")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		b.Fatal(err)
	}
	backend := filepath.Join(strings.TrimSpace(run(b, "/", "git", "--exec-path")), "git-http-backend")
	conf := fmt.Sprintf(`daemon off; worker_processes auto; pid %[1]s/pid; error_log stderr crit;
events { worker_connections 512; }
http {
  access_log off; client_body_temp_path %[1]s/body; proxy_temp_path %[1]s/proxy; fastcgi_temp_path %[1]s/fastcgi; uwsgi_temp_path %[1]s/uwsgi; scgi_temp_path %[1]s/scgi;
  server { listen %[2]s; client_max_body_size 0;
    location / { include /etc/nginx/fastcgi_params; fastcgi_buffering off; fastcgi_read_timeout 600;
      fastcgi_param SCRIPT_FILENAME %[3]s; fastcgi_param GIT_HTTP_EXPORT_ALL ""; fastcgi_param GIT_PROJECT_ROOT %[4]s;
      fastcgi_param HTTP_GIT_PROTOCOL $http_git_protocol; fastcgi_param PATH_INFO $uri; fastcgi_pass unix:%[1]s/fcgi; } } }
`, dir, addr, backend, filepath.Dir(r.bare))
	if os.Getuid() == 0 {
		conf = "user root;" + conf
	}
	if err := os.WriteFile(filepath.Join(dir, "conf"), []byte(conf), 0o600); err != nil {
		b.Fatal(err)
	}
	wrap := exec.Command("fcgiwrap", "-c", "40", "-s", "unix:"+dir+"/fcgi")
	wrap.Env = append(os.Environ(), "GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*")
	r.nginx = &process{t: b, cmd: exec.Command("nginx", "-e", "stderr", "-c", filepath.Join(dir, "conf")), addr: addr}
	for _, cmd := range []*exec.Cmd{wrap, r.nginx.cmd} {
		if err := cmd.Start(); err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { _ = cmd.Process.Signal(os.Interrupt); _ = cmd.Wait() })
	}
	url = "http://" + addr + "/large.git"
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if out, err := try("/", "git", "ls-remote", url); err == nil {
			return url
		} else if time.Now().After(end) {
			b.Fatalf("nginx: %v %s", err, out)
		}
	}
}

// inTurn runs f for each name, round by round, after one that does not count,
// and returns the medians in seconds.
func inTurn(b *testing.B, names []string, f func(name string)) map[string]float64 {
	b.Helper()
	times := map[string][]float64{}
	for round := range 1 + benchRounds {
		for i := range names {
			name := names[(i+round)%len(names)]
			start := time.Now()
			f(name)
			if round > 0 {
				times[name] = append(times[name], time.Since(start).Seconds())
			}
		}
	}
	medians := map[string]float64{}
	for name, t := range times {
		t = slices.Sorted(slices.Values(t))
		medians[name] = t[len(t)/2]
	}
	return medians
}

// tell reports seconds and ratios; the time of the function is none.
func tell(b *testing.B, medians map[string]float64, ratios ...[2]string) {
	b.Helper()
	b.ReportMetric(0, "ns/op")
	for name, s := range medians {
		b.ReportMetric(s, name+"-s")
	}
	for _, r := range ratios {
		b.ReportMetric(medians[r[0]]/medians[r[1]], r[0]+"/"+r[1])
	}
}

// BenchmarkWarmClone is git clone --bare of 100 MB.
func BenchmarkWarmClone(b *testing.B) {
	r := newRivals(b)
	n := 0
	m := inTurn(b, []string{"file", "cache", "forgets", "nginx"}, func(name string) {
		n++
		to := filepath.Join(r.dir, "clone"+strconv.Itoa(n))
		git(b, "/", "clone", "-q", "--bare", r.urls[name], to)
		if err := os.RemoveAll(to); err != nil {
			b.Fatal(err)
		}
	})
	tell(b, m, [2]string{"cache", "file"}, [2]string{"forgets", "file"}, [2]string{"nginx", "file"})
}

// BenchmarkNewPodsClone is how a new pod gets its clone (of TEST_BENCH_MB; 300),
// without the work tree: lent and cloned, beside git clone --reference of the
// cache's own copy and beside a whole clone, all by the pod's way to the cache.
func BenchmarkNewPodsClone(b *testing.B) {
	mb := 300
	if s := os.Getenv("TEST_BENCH_MB"); s != "" {
		var err error
		if mb, err = strconv.Atoi(s); err != nil {
			b.Fatal(err)
		}
	}
	w := newWorld(b)
	bare := filepath.Join(w.up.root, "app.git")
	git(b, "/", "init", "-q", "--bare", bare)
	importLarge(b, bare, mb*1000/36)
	git(b, bare, "repack", "-q", "-a", "-d", "-b")
	w.up.number(b, "app", "7")
	w.open(w.lends)
	url := w.reads("app")
	began := time.Now()
	first := w.lend("app", "7")
	b.ReportMetric(time.Since(began).Seconds(), "first-lent-s")
	copies, err := filepath.Glob(filepath.Join(w.dir, "cache/repos/*/git"))
	if err != nil || len(copies) != 1 {
		b.Fatal(copies, err)
	}
	n := 0
	m := inTurn(b, []string{"lent", "reference", "whole"}, func(name string) {
		args := []string{"clone", "-q", "--no-checkout"}
		switch name {
		case "lent":
			if n%2 == 0 { // now and then it has to be made
				if err := w.cache.Keep(inUse()); err != nil {
					b.Fatal(err)
				}
			}
			args = append(args, "--reference", w.lend("app", "7"))
		case "reference":
			args = append(args, "--reference", copies[0])
		}
		n++
		to := filepath.Join(w.dir, "clone"+strconv.Itoa(n))
		git(b, "/", append(args, url, to)...)
		b.ReportMetric(float64(bytesBelow(b, to))/1e6, name+"-MB")
		if err := os.RemoveAll(to); err != nil {
			b.Fatal(err)
		}
	})
	b.ReportMetric(float64(bytesBelow(b, first))/1e6, "repository-MB")
	tell(b, m, [2]string{"lent", "reference"}, [2]string{"lent", "whole"})
}

// BenchmarkNothingNew is twenty times git ls-remote, and twenty times git fetch
// that brings nothing.
func BenchmarkNothingNew(b *testing.B) {
	r := newRivals(b)
	clone := filepath.Join(r.dir, "clone")
	git(b, "/", "clone", "-q", "--bare", r.bare, clone)
	b.Run("ls-remote", func(b *testing.B) {
		tell(b, inTurn(b, []string{"cache", "nginx"}, func(name string) {
			for range 20 {
				git(b, "/", "ls-remote", r.urls[name])
			}
		}), [2]string{"cache", "nginx"})
	})
	b.Run("fetch", func(b *testing.B) {
		tell(b, inTurn(b, []string{"cache", "nginx"}, func(name string) {
			for range 20 {
				git(b, clone, "fetch", "-q", r.urls[name], "refs/heads/*:refs/heads/*")
			}
		}), [2]string{"cache", "nginx"})
	})
}

// BenchmarkClientsAtOnce is the download of a whole clone by several clients at
// once: the server's part, without their index-pack.
func BenchmarkClientsAtOnce(b *testing.B) {
	r := newRivals(b)
	body := r.wholeClone(b)
	for _, clients := range []int{1, 8, 32} {
		b.Run(strconv.Itoa(clients), func(b *testing.B) {
			peak := map[string]int64{}
			var size int64
			m := inTurn(b, []string{"cache", "forgets", "nginx"}, func(name string) {
				stop := watchMemory(map[string]int{"cache": r.cache.cmd.Process.Pid, "forgets": r.forgets.cmd.Process.Pid}[name], func(kb int64) { peak[name] = max(peak[name], kb) })
				var wait sync.WaitGroup
				for range clients {
					wait.Go(func() { size, _ = download(b, r.urls[name], body) })
				}
				wait.Wait()
				stop()
			})
			tell(b, m, [2]string{"cache", "nginx"}, [2]string{"forgets", "nginx"})
			for name, s := range m {
				b.ReportMetric(float64(clients)*float64(size)/s/1e6, name+"-MB/s")
			}
			b.ReportMetric(float64(peak["cache"])/1024, "cache-peak-MB")
			b.ReportMetric(float64(peak["forgets"])/1024, "forgets-peak-MB")
		})
	}
}

// BenchmarkFirstByte is the time until the first byte of a whole clone.
func BenchmarkFirstByte(b *testing.B) {
	r := newRivals(b)
	body := r.wholeClone(b)
	first := map[string][]float64{}
	for round := range 1 + benchRounds {
		for _, name := range []string{"cache", "forgets", "nginx"} {
			if _, t := download(b, r.urls[name], body); round > 0 {
				first[name] = append(first[name], t.Seconds())
			}
		}
	}
	m := map[string]float64{}
	for name, t := range first {
		m[name] = slices.Sorted(slices.Values(t))[len(t)/2]
	}
	tell(b, m, [2]string{"cache", "nginx"}, [2]string{"forgets", "nginx"})
}

// wholeClone is the request of a clone, in protocol version 2.
func (r *rivals) wholeClone(b *testing.B) []byte {
	b.Helper()
	var body bytes.Buffer
	pkt := func(s string) { fmt.Fprintf(&body, "%04x%s", len(s)+4, s) }
	pkt("command=fetch")
	pkt("object-format=sha1")
	body.WriteString("0001")
	for _, s := range []string{"thin-pack", "no-progress", "include-tag", "ofs-delta"} {
		pkt(s)
	}
	pkt("want " + strings.TrimSpace(git(b, r.bare, "rev-parse", "refs/heads/main")) + "\n")
	pkt("done\n")
	body.WriteString("0000")
	return body.Bytes()
}

// download posts a fetch and throws the answer away.
func download(b *testing.B, url string, body []byte) (size int64, first time.Duration) {
	b.Helper()
	req, err := http.NewRequest(http.MethodPost, url+"/git-upload-pack", bytes.NewReader(body))
	if err != nil {
		b.Error(err)
		return 0, 0
	}
	req.Header.Set("Content-Type", "application/x-git-upload-pack-request")
	req.Header.Set("Git-Protocol", "version=2")
	start := time.Now()
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		b.Error(err)
		return 0, 0
	}
	defer resp.Body.Close()
	one := make([]byte, 1)
	if _, err := io.ReadFull(resp.Body, one); err != nil || resp.StatusCode != http.StatusOK {
		b.Errorf("%s: %s, %v", url, resp.Status, err)
	}
	first = time.Since(start)
	size, err = io.Copy(io.Discard, resp.Body)
	if err != nil || size < 100e6 {
		b.Errorf("%s: %d bytes, %v", url, size, err)
	}
	return size, first
}

// watchMemory looks at a process and its children until it is stopped; pid 0 is
// nobody.
func watchMemory(pid int, see func(kb int64)) (stop func()) {
	if pid == 0 {
		return func() {}
	}
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			see(residentKB(pid))
			select {
			case <-done:
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	}()
	return func() { close(done); <-ended }
}

// residentKB is the proportional memory of a process and all below it, in KiB:
// what several share is counted once.
func residentKB(pid int) (sum int64) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0 // it has ended
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "Pss:" {
			n, err := strconv.ParseInt(f[1], 10, 64)
			if err != nil {
				return 0
			}
			sum = n
		}
	}
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		return sum
	}
	for _, task := range tasks {
		children, err := os.ReadFile(task)
		if err != nil {
			continue // that thread has ended
		}
		for child := range strings.FieldsSeq(string(children)) {
			if n, err := strconv.Atoi(child); err == nil {
				sum += residentKB(n)
			}
		}
	}
	return sum
}
