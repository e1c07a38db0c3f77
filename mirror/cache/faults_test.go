package cache_test

import (
	"bytes"
	"compress/gzip"
	"compress/zlib"
	"context"
	"crypto/rand"
	"crypto/sha1"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/mirror/cache"
)

func TestAnUpstreamThatIsDown(t *testing.T) {
	w := newWorld(t)
	w.up.repo(t, "app")
	before := git(t, "/", "ls-remote", w.at("app"))
	w.up.asked()
	w.up.down.Store(true)
	for _, version := range []string{"0", "1", "2"} {
		if got := git(t, "/", "-c", "protocol.version="+version, "ls-remote", w.at("app")); got != before {
			t.Errorf("version %s: it lists %s", version, got)
		}
		to := filepath.Join(t.TempDir(), "clone")
		out, err := try("/", "git", "-c", "protocol.version="+version, "clone", w.at("app"), to)
		if err != nil || !strings.Contains(out, "remote: devaipod: "+w.up.host+" does not answer") {
			t.Errorf("version %s: the clone says %v %s", version, err, out)
		}
	}
	resp := w.get("app", "")
	if s := resp.Header.Get("Cache-Status"); !strings.HasPrefix(s, "devaipod; hit; ttl=-") || !strings.Contains(s, "does not answer") {
		t.Errorf("Cache-Status: %s", s)
	}
	if asked := w.up.asked(); asked["GET info/refs"] > 3 {
		t.Errorf("an upstream that is down was asked %d times", asked["GET info/refs"])
	}
	if out, err := try("/", "git", "clone", w.at("other"), filepath.Join(t.TempDir(), "clone")); err == nil || !strings.Contains(out, "does not answer") || !strings.Contains(out, "try again later") {
		t.Errorf("a repository that is not here: %v %s", err, out)
	}
	w.up.down.Store(false)
	w.clock.advance(10 * time.Minute)
	to := filepath.Join(t.TempDir(), "clone")
	if out := git(t, "/", "clone", w.at("app"), to); strings.Contains(out, "does not answer") {
		t.Errorf("once it is back: %s", out)
	}
}

func basic(user, password string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
}

func TestWhoMayRead(t *testing.T) {
	const token = "Bearer ours"
	w := newWorld(t, func(c *cache.Config) {
		c.MaxAge = time.Hour
		c.Ours = func(r *http.Request) bool { return r.Header.Get("Authorization") == token }
	})
	work := w.up.repo(t, "app")
	w.up.private.Store(true)
	status := func(auth string) int { t.Helper(); return w.get("app", auth).StatusCode }
	for name, tt := range map[string]struct {
		auth string
		want int
	}{
		"nobody": {"", 401}, "somebody else": {basic("eve", "x"), 401}, "ours, which has no credentials": {token, 401},
	} {
		if got := status(tt.auth); got != tt.want {
			t.Errorf("before anything is here, %s: %d, want %d", name, got, tt.want)
		}
	}
	if left, err := os.ReadDir(filepath.Join(w.dir, "cache/repos")); err != nil || len(left) > 0 {
		t.Errorf("what nobody may read left %v %v", left, err)
	}
	mine := basic(user, password)
	if got := status(mine); got != 200 {
		t.Errorf("ada: %d", got)
	}
	for name, tt := range map[string]struct {
		auth string
		want int
	}{
		"nobody": {"", 401}, "somebody else": {basic("eve", "x"), 401}, "ada": {mine, 200}, "ours": {token, 401},
	} {
		if got := status(tt.auth); got != tt.want {
			t.Errorf("once it is here, %s: %d, want %d", name, got, tt.want)
		}
		// Not by the second question alone, either.
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, w.at("app")+"/git-upload-pack", strings.NewReader("0014command=ls-refs\n0000"))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Git-Protocol", "version=2")
		if tt.auth != "" {
			req.Header.Set("Authorization", tt.auth)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != tt.want {
			t.Errorf("ls-refs by %s: %d, want %d", name, resp.StatusCode, tt.want)
		}
	}
	// A stale answer is no way around.
	w.up.down.Store(true)
	w.clock.advance(2 * time.Hour)
	for name, auth := range map[string]string{"nobody": "", "somebody else": basic("eve", "x"), "ada, who can't be asked about": mine} {
		if got := status(auth); got != 401 && got != 502 {
			t.Errorf("stale, %s: %d", name, got)
		}
	}
	w.up.down.Store(false)
	w.clock.advance(2 * time.Hour)
	if got := status(mine); got != 200 {
		t.Errorf("ada again: %d", got)
	}
	// What becomes public is anybody's; what becomes private is nobody's.
	w.up.private.Store(false)
	w.clock.advance(2 * time.Hour)
	if got := status(""); got != 200 {
		t.Errorf("public: %d", got)
	}
	w.up.private.Store(true)
	w.clock.advance(2 * time.Hour)
	if got := status(""); got != 401 {
		t.Errorf("private again: %d", got)
	}
	// By git itself, which asks for the password when it is told so.
	helper := "!f() { echo username=" + user + "; echo password=" + password + "; }; f"
	to := filepath.Join(t.TempDir(), "clone")
	git(t, "/", "-c", "credential.helper="+helper, "clone", "-q", w.at("app"), to)
	if a, b := git(t, to, "rev-parse", "origin/main"), git(t, work, "rev-parse", "main"); a != b {
		t.Errorf("cloned %s, want %s", a, b)
	}
	w.mustNotHold(password, strings.TrimPrefix(mine, "Basic "))
}

// mustNotHold looks for secrets on the cache's disk and in its log.
func (w *world) mustNotHold(secrets ...string) {
	w.t.Helper()
	err := filepath.WalkDir(filepath.Join(w.dir, "cache"), func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		for _, s := range secrets {
			if strings.Contains(string(b), s) {
				w.t.Errorf("%s holds %s", path, s)
			}
		}
		return err
	})
	if err != nil {
		w.t.Error(err)
	}
	for _, s := range secrets {
		if strings.Contains(w.log.String(), s) {
			w.t.Errorf("the log holds %s: %s", s, w.log)
		}
	}
}

func TestOurOwnCredentials(t *testing.T) {
	const token = "Bearer ours"
	w := newWorld(t)
	w.up.repo(t, "app")
	w.up.private.Store(true)
	w.open(func(c *cache.Config) {
		c.Dir += "-2"
		c.Ours = func(r *http.Request) bool { return r.Header.Get("Authorization") == token }
		c.Credentials = func(_ context.Context, _, url string) (string, string, error) {
			if url != w.up.url+"/app.git" {
				t.Errorf("credentials for %s", url)
			}
			return user, password, nil
		}
	})
	if got := w.get("app", "").StatusCode; got != 401 {
		t.Errorf("nobody gets %d", got)
	}
	if got := w.get("app", token).StatusCode; got != 200 {
		t.Errorf("ours gets %d", got)
	}
	w.up.down.Store(true)
	if got := w.get("app", token).StatusCode; got != 200 {
		t.Errorf("ours gets %d of what is stale", got)
	}
	if got := w.get("app", "").StatusCode; got == 200 {
		t.Errorf("nobody gets what is stale")
	}
}

func TestRedirects(t *testing.T) {
	w := newWorld(t)
	w.up.repo(t, "app")
	other := newUpstream(t)
	other.repo(t, "app")
	for name, tt := range map[string]struct{ to, say string }{
		"to a host that is not allowed": {other.url + "/app.git/info/refs?service=git-upload-pack", "no pattern of mirror.allow_upstream"},
		"to no repository":              {w.up.url + "/elsewhere", "no repository"},
		"to a file":                     {"file:///etc/passwd/info/refs", "less safe"},
		"to localhost's files":          {"http://localhost/etc.git/info/refs", "no pattern"},
		"with a password":               {"http://u:p@" + w.up.host + "/app.git/info/refs", "no repository"},
	} {
		w.clock.advance(time.Hour)
		f := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { http.Redirect(rw, r, tt.to, http.StatusFound) })
		w.up.answer.Store(&f)
		out, err := try("/", "git", "ls-remote", w.at("app"))
		if err == nil || !strings.Contains(out, tt.say) {
			t.Errorf("%s: %v %s", name, err, out)
		}
	}
	if asked := other.asked(); len(asked) > 0 {
		t.Errorf("a host that is not allowed was asked %v", asked)
	}
	// A repository that was renamed is found.
	w.clock.advance(time.Hour)
	w.up.answer.Store(nil)
	w.up.moved.Store(true)
	want := git(t, "/", "ls-remote", w.up.url+"/app.git")
	if got := git(t, "/", "ls-remote", w.at("old")); got != want {
		t.Errorf("a renamed repository: %s, want %s", got, want)
	}
	git(t, "/", "clone", "-q", w.at("old"), filepath.Join(t.TempDir(), "clone"))
}

func TestAddressesThatAreNone(t *testing.T) {
	w := newWorld(t)
	for _, path := range []string{
		"/git/", "/git/x", "/git/x.git/info/refs", "/git/h/..%2fa.git/info/refs", "/git/h/%2e%2e/a.git/info/refs", "/git/h/a%5cb.git/info/refs",
		"/git/-h/a.git/info/refs", "/git/h/-a.git/info/refs", "/git/ext::sh/a.git/info/refs", "/git/h//a.git/info/refs",
		"/git/h/a.git/b.git/info/refs", "/git/h:0/a.git/info/refs", "/git/h:99999/a.git/info/refs", "/git/h:x/a.git/info/refs",
		"/git/u:p@h/a.git/info/refs", "/git/127.1/a.git/info/refs", "/git/0x7f000001/a.git/info/refs", "/git/2130706433/a.git/info/refs",
		"/git/[::ffff:127.0.0.1]/a.git/info/refs", "/git/h/a%00.git/info/refs", "/git/h/a%0a.git/info/refs", "/git/h/%ff.git/info/refs",
	} {
		resp := w.raw(path + "?service=git-upload-pack")
		if resp.StatusCode != http.StatusBadRequest && resp.StatusCode != http.StatusForbidden {
			t.Errorf("%s: %s", path, resp.Status)
		}
	}
	if left, err := os.ReadDir(filepath.Join(w.dir, "cache/repos")); err != nil || len(left) > 0 {
		t.Errorf("left: %v %v", left, err)
	}
}

// raw asks for a path as it is written.
func (w *world) raw(path string) *http.Response {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.t.Context(), http.MethodGet, w.url, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	req.URL.Opaque = path
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { resp.Body.Close() })
	return resp
}

func TestWhatIsNotServed(t *testing.T) {
	w := newWorld(t)
	w.up.repo(t, "app")
	for _, path := range []string{"info/refs", "HEAD", "objects/info/packs", "config"} {
		if resp := w.raw("/git/" + w.up.host + "/app.git/" + path); resp.StatusCode != http.StatusForbidden {
			t.Errorf("%s: %s", path, resp.Status)
		}
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, w.at("app")+"/info/refs?service=git-upload-pack", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = "rebound.example.org"
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusForbidden {
		t.Errorf("by another name: %s", resp.Status)
	}
	if out, err := try("/", "git", "ls-remote", w.url+"/git/github.com/a/b.git"); err == nil || !strings.Contains(out, "mirror.allow_upstream") {
		t.Errorf("an upstream that is not allowed: %v %s", err, out)
	}
}

func TestAFetchThatBreaksOff(t *testing.T) {
	w := newWorld(t)
	work := w.up.repo(t, "app")
	w.up.cut.Store(300)
	if out, err := try("/", "git", "clone", w.at("app"), filepath.Join(t.TempDir(), "clone")); err == nil {
		t.Errorf("a first fetch that breaks off looks well: %s", out)
	}
	w.up.cut.Store(0)
	w.clock.advance(time.Hour)
	git(t, "/", "clone", "-q", w.at("app"), filepath.Join(t.TempDir(), "clone"))
	before := git(t, "/", "ls-remote", w.at("app"))
	for _, text := range []string{"five", "six"} {
		commit(t, work, strings.Repeat(text, 1000))
	}
	git(t, work, "push", "-q", "origin", "main")
	w.up.cut.Store(300)
	if got := git(t, "/", "ls-remote", w.at("app")); got != before {
		t.Errorf("half a fetch shows: %s", got)
	}
	w.up.cut.Store(0)
	w.clock.advance(time.Hour)
	want := git(t, "/", "ls-remote", w.up.url+"/app.git")
	if got := git(t, "/", "ls-remote", w.at("app")); got != want {
		t.Errorf("after it: %s, want %s", got, want)
	}
	to := filepath.Join(t.TempDir(), "clone")
	git(t, "/", "clone", "-q", w.at("app"), to)
	git(t, to, "fsck", "--strict")
	left, err := filepath.Glob(filepath.Join(w.dir, "cache/repos/*/git/objects/pack/tmp_*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left: %v %v", left, err)
	}
}

// A first fetch over a line that breaks off again and again gets to its end all
// the same, since what has come stays.
func TestAFirstFetchGoesOnWhereItBrokeOff(t *testing.T) {
	w := newWorld(t)
	work := w.up.repo(t, "app")
	for range 8 {
		noise(t, filepath.Join(work, "noise"), 600<<10)
		commit(t, work, "noise")
	}
	git(t, work, "push", "-q", "origin", "main")
	w.up.cut.Store(1500 << 10) // two commits, and not three
	tries := 0
	for ; ; tries++ {
		out, err := try("/", "git", "ls-remote", w.at("app"))
		if err == nil {
			break
		}
		if tries == 30 {
			t.Fatalf("it does not get to its end: %s", out)
		}
		w.clock.advance(time.Hour)
		if err := w.cache.Tend(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if tries == 0 {
		t.Error("nothing broke off")
	}
	w.up.cut.Store(0)
	to := filepath.Join(t.TempDir(), "clone")
	git(t, "/", "clone", "-q", "--mirror", w.at("app"), to)
	git(t, to, "fsck", "--strict")
	for _, args := range [][]string{{"rev-list", "--all", "--count"}, {"for-each-ref"}} {
		if a, b := git(t, to, args...), git(t, filepath.Join(w.up.root, "app.git"), args...); a != b {
			t.Errorf("git %s says %s, upstream %s", args[0], a, b)
		}
	}
	if left, err := filepath.Glob(filepath.Join(w.dir, "cache/repos/*/git.*")); err != nil || len(left) > 0 {
		t.Errorf("left: %v %v", left, err)
	}
}

// An upstream that has no more of its history itself is no reason to ask for ever.
func TestAFirstFetchOfWhatIsShallow(t *testing.T) {
	w := newWorld(t)
	w.up.noisy(t, "whole", 4<<20)
	git(t, "/", "clone", "-q", "--bare", "--depth=1", "file://"+w.up.root+"/whole.git", w.up.root+"/app.git")
	w.up.cut.Store(2 << 20)
	if out, err := try("/", "git", "ls-remote", w.at("app")); err == nil {
		t.Errorf("it breaks off and looks well: %s", out)
	}
	w.up.cut.Store(0)
	w.clock.advance(time.Hour)
	to := filepath.Join(t.TempDir(), "clone")
	git(t, "/", "clone", "-q", w.at("app"), to)
	if n := strings.TrimSpace(git(t, to, "rev-list", "--count", "HEAD")); n != "1" {
		t.Errorf("it has %s commits", n)
	}
}

// What nobody goes on with goes.
func TestAFirstFetchThatIsGivenUp(t *testing.T) {
	w := newWorld(t)
	w.up.noisy(t, "app", 4<<20)
	w.up.cut.Store(2 << 20)
	for range 2 {
		if out, err := try("/", "git", "ls-remote", w.at("app")); err == nil {
			t.Errorf("it breaks off and looks well: %s", out)
		}
		if left, err := filepath.Glob(filepath.Join(w.dir, "cache/repos/*/git.part.json")); err != nil || len(left) != 1 {
			t.Errorf("left: %v %v", left, err)
		}
		w.clock.advance(time.Hour)
	}
	w.clock.advance(30 * time.Hour)
	if err := w.cache.Tend(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(filepath.Join(w.dir, "cache/repos")); err != nil || len(left) > 0 {
		t.Errorf("left: %v %v", left, err)
	}
}

// whole is what git asks for all of a repository's main branch (gitprotocol-v2(5)).
func (w *world) whole(name string) string {
	w.t.Helper()
	head := strings.Fields(git(w.t, "/", "ls-remote", w.at(name), "main"))[0]
	return fmt.Sprintf("0011command=fetch0001000fno-progress0032want %s\n0009done\n0000", head)
}

// upload asks as git does.
func (w *world) upload(name, want string) *http.Response {
	w.t.Helper()
	req, err := http.NewRequest(http.MethodPost, w.at(name)+"/git-upload-pack", strings.NewReader(want))
	if err != nil {
		w.t.Fatal(err)
	}
	req.Header.Set("Git-Protocol", "version=2")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	return resp
}

// A client may be slow as long as it is not still, also where its answer is made
// for it alone.
func TestAClientThatIsSlow(t *testing.T) {
	const patience = 500 * time.Millisecond
	w := newWorld(t)
	w.up.noisy(t, "app", 32<<20)
	want := w.whole("app")
	for name, kept := range map[string]int64{"kept": 0, "made for it": 1 << 60} { // no disk has room for that
		w.open(func(c *cache.Config) { c.Patience, c.MaxAnswers = patience, kept })
		resp := w.upload("app", want)
		var err error
		n := int64(0)
		for err == nil {
			var k int64
			k, err = io.CopyN(io.Discard, resp.Body, 1<<20)
			n += k
			time.Sleep(patience / 10)
		}
		resp.Body.Close()
		if !errors.Is(err, io.EOF) || n < 32<<20 {
			t.Errorf("%s: a slow client gets %d bytes: %v", name, n, err)
		}
	}
}

// noise writes a file that does not compress.
func noise(t *testing.T, file string, size int) {
	t.Helper()
	b := make([]byte, size)
	if _, err := rand.Read(b); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// noisy makes a repository with a file that does not compress.
func (up *upstream) noisy(t *testing.T, name string, size int) {
	t.Helper()
	work := up.repo(t, name)
	noise(t, filepath.Join(work, "noise"), size)
	commit(t, work, "noise")
	git(t, work, "push", "-q", "origin", "main")
}

func TestPeersThatAreSilent(t *testing.T) {
	w := newWorld(t)
	w.up.noisy(t, "app", 32<<20)
	want := w.whole("app")
	w.open(func(c *cache.Config) { c.Patience = time.Second })
	// A client that asks and does not read, and one that does not ask to the end;
	// what they ask for has been made before.
	resp := w.upload("app", want)
	if n, err := io.Copy(io.Discard, resp.Body); err != nil || n < 32<<20 {
		t.Fatalf("it has %d bytes, %v", n, err)
	}
	resp.Body.Close()
	for name, body := range map[string]string{"reads nothing": want, "asks half": want[:40]} {
		conn, err := net.Dial("tcp", strings.TrimPrefix(w.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		fmt.Fprintf(conn, "POST /git/%s/app.git/git-upload-pack HTTP/1.1\r\nHost: localhost\r\nGit-Protocol: version=2\r\nContent-Length: %d\r\n\r\n%s", w.up.host, len(want), body)
		time.Sleep(3 * time.Second)
		if err := conn.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if n, err := io.Copy(io.Discard, conn); err == nil && n > 32<<20 || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a client that %s gets %d bytes in the end: %v", name, n, err)
		}
	}
	// An upstream that takes the question and says nothing.
	_, release := w.up.slow(t)
	defer release()
	w.up.repo(t, "silent")
	w.clock.advance(time.Hour)
	if out, err := try("/", "git", "clone", "-q", w.at("silent"), filepath.Join(t.TempDir(), "clone")); err == nil || !strings.Contains(out, "does not answer (") {
		t.Errorf("a silent upstream: %v %s", err, out)
	}
}

func TestRequestsThatAreBombs(t *testing.T) {
	w := newWorld(t)
	w.up.repo(t, "app")
	before := git(t, "/", "ls-remote", w.at("app"))
	var bomb bytes.Buffer
	zw := gzip.NewWriter(&bomb)
	_, err := io.CopyN(zw, zeros{}, 256<<20)
	if err = errors.Join(err, zw.Close()); err != nil {
		t.Fatal(err)
	}
	flushes := strings.Repeat("0000", 16<<20/4)
	for name, tt := range map[string]struct {
		encoding string
		body     io.Reader
	}{
		"256 MB of zeros, compressed": {"gzip", &bomb},
		"something that is not gzip":  {"gzip", strings.NewReader("no")},
		"another encoding":            {"br", strings.NewReader("no")},
		"16 MB of flushes":            {"", strings.NewReader(flushes)},
		"a packet with no end":        {"", strings.NewReader("ffff" + strings.Repeat("x", 1000))},
		"not packets at all":          {"", strings.NewReader("zzzz")},
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, w.at("app")+"/git-upload-pack", tt.body)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Encoding", tt.encoding)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			continue // it hung up
		}
		n, err := io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if resp.StatusCode == http.StatusOK && n > 1000 {
			t.Errorf("%s: %s, %d bytes, %v", name, resp.Status, n, err)
		}
	}
	if after := git(t, "/", "ls-remote", w.at("app")); after != before {
		t.Errorf("afterwards it lists %s", after)
	}
	if strings.Contains(w.log.String(), "damaged") {
		t.Errorf("a bad request made it doubt the repository: %s", w.log)
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// An upstream that speaks git's protocol by hand: one branch, and a pack of a
// few hundred bytes with an object in it that inflates to 8 GB.
func TestAPackThatIsABomb(t *testing.T) {
	w := newWorld(t)
	w.up.repo(t, "app")
	git(t, "/", "ls-remote", w.at("app"))
	f := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		pkt := func(s string) { fmt.Fprintf(rw, "%04x%s", len(s)+4, s) }
		up := r.URL.Query().Get("service") != ""
		rw.Header().Set("Content-Type", map[bool]string{true: "application/x-git-upload-pack-advertisement", false: "application/x-git-upload-pack-result"}[up])
		body, err := io.ReadAll(r.Body)
		switch {
		case err != nil:
		case up:
			pkt("version 2\n")
			pkt("ls-refs\n")
			pkt("fetch\n")
			pkt("object-format=sha1\n")
		case bytes.Contains(body, []byte("command=ls-refs")):
			pkt(strings.Repeat("1", 40) + " refs/heads/main\n")
		default:
			pkt("packfile\n")
			pkt("\x01" + string(bombPack(t)))
		}
		fmt.Fprint(rw, "0000")
	})
	w.up.answer.Store(&f)
	w.clock.advance(time.Hour)
	out, err := try("/", "git", "clone", "-q", w.at("bomb"), filepath.Join(t.TempDir(), "clone"))
	if err == nil || !strings.Contains(out, "Out of memory") {
		t.Errorf("a bomb: %v %s", err, out)
	}
	// What can't be brought here is not tried again for each who asks.
	w.up.asked()
	if out, err := try("/", "git", "clone", "-q", w.at("bomb"), filepath.Join(t.TempDir(), "clone")); err == nil || !strings.Contains(out, "Out of memory") {
		t.Errorf("once more: %v %s", err, out)
	}
	if asked := w.up.asked(); len(asked) > 0 {
		t.Errorf("the upstream was asked again at once: %v", asked)
	}
	w.up.answer.Store(nil)
	w.clock.advance(time.Hour)
	git(t, "/", "clone", "-q", w.at("app"), filepath.Join(t.TempDir(), "clone"))
	if left, err := filepath.Glob(filepath.Join(w.dir, "cache/repos/*bomb*")); err != nil || len(left) > 0 {
		t.Errorf("left: %v %v", left, err)
	}
}

// bombPack is a pack of a blob of 16 MB of zeros, and of a delta that copies it 512
// times: 8 GB (gitformat-pack(5)).
func bombPack(t *testing.T) []byte {
	t.Helper()
	deflate := func(b []byte) []byte {
		var out bytes.Buffer
		zw := zlib.NewWriter(&out)
		_, err := zw.Write(b)
		if err = errors.Join(err, zw.Close()); err != nil {
			t.Fatal(err)
		}
		return out.Bytes()
	}
	varint := func(n uint64) (b []byte) {
		for ; n >= 0x80; n >>= 7 {
			b = append(b, byte(n)|0x80)
		}
		return append(b, byte(n))
	}
	head := func(kind byte, size uint64) []byte {
		first := kind<<4 | byte(size&15)
		if size >>= 4; size == 0 {
			return []byte{first}
		}
		return append([]byte{first | 0x80}, varint(size)...)
	}
	const base, times = 0xffffff, 512
	pack := []byte("PACK\x00\x00\x00\x02\x00\x00\x00\x02")
	start := len(pack)
	pack = append(append(pack, head(3, base)...), deflate(make([]byte, base))...)
	delta := append(varint(base), varint(base*times)...)
	for range times {
		delta = append(delta, 0x80|0x70, 0xff, 0xff, 0xff) // copy base from offset 0
	}
	back := len(pack) - start
	offset := []byte{byte(back & 0x7f)}
	for back >>= 7; back > 0; back >>= 7 {
		back--
		offset = append([]byte{byte(back&0x7f) | 0x80}, offset...)
	}
	pack = append(append(append(pack, head(6, uint64(len(delta)))...), offset...), deflate(delta)...)
	sum := sha1.Sum(pack) //nolint:gosec // git's format
	return append(pack, sum[:]...)
}

// Many refs are slow and nothing else: 100,000, or TEST_REFS of them.
func TestManyRefs(t *testing.T) {
	w := newWorld(t, func(c *cache.Config) { c.MaxAge = time.Hour })
	work := w.up.repo(t, "app")
	head := strings.TrimSpace(git(t, work, "rev-parse", "main"))
	n := 100_000
	if text := os.Getenv("TEST_REFS"); text != "" {
		var err error
		if n, err = strconv.Atoi(text); err != nil {
			t.Fatalf("TEST_REFS: %v", err)
		}
	}
	var refs strings.Builder
	refs.WriteString("# pack-refs with: peeled fully-peeled sorted \n" + head + " refs/heads/main\n")
	for i := range n {
		fmt.Fprintf(&refs, "%s refs/tags/many/%07d\n", head, i)
	}
	bare := filepath.Join(w.up.root, "app.git")
	git(t, bare, "pack-refs", "--all")
	if err := os.WriteFile(filepath.Join(bare, "packed-refs"), []byte(refs.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if got := lines(git(t, "/", "ls-remote", "--tags", w.at("app"))); got != n {
			t.Errorf("it lists %d refs, want %d", got, n)
		}
	}
	to := filepath.Join(t.TempDir(), "clone")
	git(t, "/", "clone", "-q", "--no-tags", "--depth=1", w.at("app"), to)
	git(t, to, "fetch", "-q", "--no-tags", "origin", fmt.Sprintf("refs/tags/many/%07d", n-1))
}

// Objects that are made to trick who checks them out don't get in; old faults
// that harm nobody do.
func TestObjectsAreChecked(t *testing.T) {
	w := newWorld(t)
	for name, tt := range map[string]struct {
		objects func(bare string) (commit string)
		refused string
	}{
		"a file called .git": {func(bare string) string { return dotGit(t, bare) }, "hasDotgit"},
		"a commit with a time zone of old": {func(bare string) string {
			tree := object(t, bare, "tree", "")
			return object(t, bare, "commit", "tree "+tree+"\nauthor A <a@b> 1 +051800\ncommitter A <a@b> 1 +051800\n\nx\n")
		}, ""},
	} {
		repo := strings.ReplaceAll(name, " ", "-")
		bare := filepath.Join(w.up.root, repo+".git")
		git(t, "/", "init", "-q", "--bare", bare)
		git(t, bare, "update-ref", "refs/heads/main", tt.objects(bare))
		out, err := try("/", "git", "ls-remote", w.at(repo))
		if tt.refused == "" && err != nil || tt.refused != "" && (err == nil || !strings.Contains(out, tt.refused)) {
			t.Errorf("%s: %v %s", name, err, out)
		}
	}
}

// dotGit makes a commit with a folder called .git in it.
func dotGit(t *testing.T, bare string) string {
	t.Helper()
	blob := strings.TrimSpace(git(t, bare, "hash-object", "-w", filepath.Join(bare, "HEAD")))
	sub := object(t, bare, "tree", "100644 config\x00"+raw(t, blob))
	tree := object(t, bare, "tree", "40000 .git\x00"+raw(t, sub))
	return object(t, bare, "commit", "tree "+tree+"\nauthor A <a@b> 1 +0000\ncommitter A <a@b> 1 +0000\n\nx\n")
}

// object writes an object as it is, without git's checks.
func object(t *testing.T, bare, kind, content string) string {
	t.Helper()
	cmd := exec.Command("git", "hash-object", "--literally", "-w", "--stdin", "-t", kind)
	cmd.Dir, cmd.Stdin = bare, strings.NewReader(content)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("a %s: %v", kind, err)
	}
	return strings.TrimSpace(string(out))
}

func raw(t *testing.T, id string) string {
	t.Helper()
	b, err := hex.DecodeString(id)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
