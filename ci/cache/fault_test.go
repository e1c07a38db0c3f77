package cache_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/ci/cache"
)

func TestASenderThatStops(t *testing.T) {
	t.Parallel()
	s := open(t, cache.Config{Dir: t.TempDir(), Idle: 300 * time.Millisecond})
	c := newClient(t, s, cache.Scope{Tier: cache.Untrusted, Ref: main})
	conn := dial(t, c)
	fmt.Fprintf(conn, "POST %scaches HTTP/1.1\r\nHost: x\r\nContent-Length: 30\r\n\r\n{", cache.Path)
	code, text := answer(t, conn)
	if code != 408 || !strings.Contains(text, "nothing came") {
		t.Errorf("%d %s", code, text)
	}
	code = 404
	for n := 0; code == 404 && n < 10; n++ { // as long as the upload was given up before its chunk came
		conn = dial(t, c)
		fmt.Fprintf(conn, "PATCH %s%s HTTP/1.1\r\nHost: x\r\nContent-Range: bytes 0-9/*\r\nContent-Length: 10\r\n\r\nabc", cache.Path, c.reserve(fmt.Sprint(n)))
		code, text = answer(t, conn)
	}
	if code != 408 {
		t.Errorf("%d %s", code, text)
	}
}

func TestAReaderThatStops(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	newClient(t, open(t, cache.Config{Dir: dir}), cache.Scope{Tier: cache.Trusted, Ref: main}).save("k", strings.Repeat("x", 16<<20))
	s := open(t, cache.Config{Dir: dir, Idle: 300 * time.Millisecond})
	c := newClient(t, s, cache.Scope{Tier: cache.Trusted, Ref: main})
	_, path, _ := strings.Cut(c.find("v", "k").ArchiveLocation, c.URL)
	ended := make(chan struct{})
	c.ended.Store(&ended)
	conn := dial(t, c)
	fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", path)
	<-ended
	if n, err := io.Copy(io.Discard, conn); n >= 16<<20 {
		t.Errorf("%d bytes came, %v", n, err)
	}
}

func dial(t *testing.T, c *client) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", c.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func answer(t *testing.T, conn net.Conn) (int, string) {
	t.Helper()
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(text)
}

func TestAFullDisk(t *testing.T) {
	const within = "DEVAIPOD_TEST_FULL_DISK"
	dir := os.Getenv(within)
	if dir == "" {
		// The same once more, in a mount namespace with a small disk.
		cmd := exec.Command("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", `mount -t tmpfs -o size=2m full "$0" && exec "$@"`, t.TempDir(), os.Args[0], "-test.run=^TestAFullDisk$")
		cmd.Env = append(os.Environ(), within+"="+cmd.Args[len(cmd.Args)-3])
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	c := newClient(t, open(t, cache.Config{Dir: dir}), cache.Scope{Tier: cache.Trusted, Ref: main})
	c.save("small", "abc")
	at := c.reserve("large")
	c.wants(204, "", "PATCH", at, "bytes 0-999999/*", strings.NewReader(random(1_000_000)))
	c.wants(507, "the disk of the cache is full", "PATCH", at, "bytes 1000000-2999999/*", strings.NewReader(random(2_000_000)))
	c.wants(404, "being saved", "POST", at, "", size(3_000_000))
	c.wants(507, "the disk of the cache is full", "POST", "caches", "", reservation("large", 3_000_000))
	if n := left(t, dir); len(n) > 0 {
		t.Errorf("left %q", n)
	}
	c.save("next", strings.Repeat("x", 1_000_000)) // there is room again
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 4<<20), 0o600); err == nil {
		t.Fatal("the disk is not full")
	}
	if got := c.restored("small"); got != "abc" {
		t.Errorf("restored %q", got)
	}
	for key := range entries(t, dir) { // what is removed makes room
		if err := cache.Remove(dir, entries(t, dir)[key].ID); err != nil {
			t.Error(err)
		}
	}
	if n := left(t, dir); len(n) > 0 {
		t.Errorf("left %q", n)
	}
}

// saveUntilKilled is the directory of a process that does nothing but save.
const saveUntilKilled = "DEVAIPOD_TEST_SAVE_UNTIL_KILLED"

func saveForEver(dir string) int {
	s, err := cache.Open(cache.Config{Dir: dir, Max: 8 << 20, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	job := s.Job(cache.Scope{Repo: 1, Tier: cache.Trusted, Ref: main}, "http://127.0.0.1/")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Fprintln(os.Stdout, l.Addr())
	fmt.Fprintln(os.Stderr, http.Serve(l, job))
	return 1
}

func TestKilledWhileItSaves(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	text := random(300_000)
	for round := range 4 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), saveUntilKilled+"="+dir)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		addr, err := bufio.NewReader(out).ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		before := len(entries(t, dir))
		over := make(chan struct{})
		for i := range 3 {
			go func() {
				for n := 0; saveOnce("http://"+strings.TrimSpace(addr)+cache.Path, fmt.Sprintf("k%d-%d-%d", round, i, n), text); n++ {
				}
				over <- struct{}{}
			}()
		}
		waitFor(t, "some are saved", func() bool { return len(entries(t, dir)) >= min(before+3+2*round, 20) })
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // killed
		for range 3 {
			<-over
		}
		c := newClient(t, open(t, cache.Config{Dir: dir, Max: 8 << 20}), cache.Scope{Tier: cache.Trusted, Ref: main})
		if n := left(t, dir); len(n) > 0 {
			t.Errorf("left %q", n)
		}
		all := entries(t, dir)
		if names, err := os.ReadDir(filepath.Join(dir, "entries")); err != nil || len(names) != len(all) {
			t.Errorf("%d entries of %d are whole, %v", len(all), len(names), err)
		}
		for key := range all {
			if got := c.restored(key); got != text {
				t.Errorf("%s has %d bytes", key, len(got))
			}
		}
		c.job.Close()
	}
}

// saveOnce tells whether it could save.
func saveOnce(api, key, text string) bool {
	do := func(method, path string, body io.Reader) (string, bool) {
		r, err := http.NewRequest(method, api+path, body)
		if err != nil {
			return "", false
		}
		r.Header.Set("Content-Range", fmt.Sprintf("bytes 0-%d/*", len(text)-1))
		res, err := http.DefaultClient.Do(r)
		if err != nil {
			return "", false
		}
		defer res.Body.Close()
		answer, err := io.ReadAll(res.Body)
		return string(answer), err == nil && res.StatusCode < 300
	}
	answer, ok := do("POST", "caches", reservation(key, 0))
	var num int64
	if n, err := fmt.Sscanf(answer, `{"cacheId":%d}`, &num); !ok || n != 1 || err != nil {
		return false
	}
	at := fmt.Sprintf("caches/%d", num)
	if _, ok := do("PATCH", at, strings.NewReader(text)); !ok {
		return false
	}
	_, ok = do("POST", at, size(len(text)))
	return ok
}

func TestWhatIsNoEntryGoes(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c := newClient(t, open(t, cache.Config{Dir: dir}), cache.Scope{Tier: cache.Trusted, Ref: main})
	for _, key := range []string{"good", "short", "without", "garbage", "other", "old"} {
		c.save(key, "text of "+key)
	}
	c.reserve("half")
	all := entries(t, dir)
	in := func(key, file string) string { return filepath.Join(dir, "entries", all[key].ID, file) }
	old := time.Now().Add(-31 * 24 * time.Hour)
	other, err := os.ReadFile(in("good", "entry.json"))
	if err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{
		"short": os.Truncate(in("short", "archive"), 3), "without": os.Remove(in("without", "archive")),
		"garbage": os.WriteFile(in("garbage", "entry.json"), []byte("{"), 0o600), "other": os.WriteFile(in("other", "entry.json"), other, 0o600),
		"old": os.Chtimes(in("old", "archive"), old, old), "a file": os.WriteFile(filepath.Join(dir, "entries", "file"), nil, 0o600),
		"an empty one": os.Mkdir(filepath.Join(dir, "entries", strings.Repeat("0", 64)), 0o700),
	} {
		if err != nil {
			t.Fatal(what, err)
		}
	}
	c = newClient(t, open(t, cache.Config{Dir: dir}), cache.Scope{Tier: cache.Trusted, Ref: main})
	names, err := os.ReadDir(filepath.Join(dir, "entries"))
	if err != nil || len(names) != 1 || names[0].Name() != all["good"].ID || len(left(t, dir)) > 0 {
		t.Errorf("%v %v, left %q", names, err, left(t, dir))
	}
	c.save("short", "anew")
	if c.restored("short") != "anew" || c.restored("good") != "text of good" {
		t.Error("they can't be restored")
	}
}

func TestListAndRemove(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if list, err := cache.List(dir); err != nil || len(list) != 0 {
		t.Errorf("before there is one: %v %v", list, err)
	}
	c := newClient(t, open(t, cache.Config{Dir: dir}), cache.Scope{Tier: cache.Secret, Ref: main})
	c.save("A", "aa")
	c.save("b", "b")
	c.restored("A")
	list, err := cache.List(dir)
	if err != nil || len(list) != 2 || list[0].Key != "A" || list[0].Size != 2 || list[0].Repo != "ada/app" || list[0].RepoID != 1 || list[0].Tier != cache.Secret || list[0].Ref != main || list[0].Created.IsZero() {
		t.Errorf("%+v %v", list, err)
	}
	if err := cache.Remove(dir, list[0].ID); err != nil {
		t.Error(err)
	}
	if c.restored("A") != "" || c.restored("b") != "b" {
		t.Error("what was removed is restored")
	}
	c.save("a", "anew")
	if err := cache.Remove(dir, entries(t, dir)["a"].ID); err != nil {
		t.Error(err)
	}
	c.save("A", "third") // nobody had asked for it
	if got := c.restored("a"); got != "third" {
		t.Errorf("%q", got)
	}
	for _, id := range []string{list[0].ID + "0", "", ".", "..", "../entries", "\x00"} {
		if err := cache.Remove(dir, id); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%q: %v", id, err)
		}
	}
	if n := left(t, dir); len(n) > 0 || len(entries(t, dir)) != 2 {
		t.Errorf("left %q", n)
	}
}
