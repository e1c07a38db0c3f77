package main_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	main "codeberg.org/devaipod/devaipod/cmd/devaipod"
	"codeberg.org/devaipod/devaipod/cmd/internal/testkit"
)

// mirrorWorld is a person with a repository and a configuration of their own.
func mirrorWorld(t *testing.T) (dir string, devaipod func(ctx context.Context, args ...string) (stdout, stderr string, err error)) {
	t.Helper()
	dir = t.TempDir()
	t.Setenv("HOME", dir)
	t.Setenv("GIT_CONFIG_NOSYSTEM", "1")
	t.Setenv("XDG_CONFIG_HOME", filepath.Join(dir, "config"))
	t.Setenv("XDG_STATE_HOME", filepath.Join(dir, "state"))
	for _, args := range [][]string{
		{"config", "--global", "user.name", "Test"}, {"config", "--global", "user.email", "t@example.org"},
		{"init", "-q", "-b", "main", "srv/app"}, {"-C", "srv/app", "commit", "-q", "--allow-empty", "-m", "first"},
	} {
		mustGit(t, dir, args...)
	}
	return dir, func(ctx context.Context, args ...string) (string, string, error) {
		var out, errOut bytes.Buffer
		err := main.Run(ctx, args, strings.NewReader(""), &out, &errOut)
		return out.String(), errOut.String(), err
	}
}

func mustGit(t *testing.T, dir string, args ...string) string {
	t.Helper()
	cmd := exec.Command("git", args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("git %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// mirrorServe runs the cache until the test ends, or until stop.
func mirrorServe(t *testing.T, devaipod func(context.Context, ...string) (string, string, error), args ...string) (addr string, stop func()) {
	t.Helper()
	addr, err := testkit.FreeAddr("")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if _, errOut, err := devaipod(ctx, append([]string{"mirror", "serve", "--listen", addr}, args...)...); err != nil {
			t.Errorf("it ends with %v: %s", err, errOut)
		}
	}()
	for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		resp, err := http.Get("http://" + addr + "/healthz")
		if err == nil {
			resp.Body.Close()
			break
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
	stop = func() { cancel(); <-ended }
	t.Cleanup(stop)
	return addr, stop
}

func TestMirrorAlone(t *testing.T) {
	dir, devaipod := mirrorWorld(t)
	addr, stop := mirrorServe(t, devaipod, "--dir", dir+"/cache", "--allow-upstream", "localhost"+dir+"/srv/*")
	url := "http://" + addr + "/git/localhost" + dir + "/srv/app.git"
	mustGit(t, dir, "clone", "-q", url, "clone")
	if a, b := mustGit(t, dir, "-C", "clone", "rev-parse", "HEAD"), mustGit(t, dir, "-C", "srv/app", "rev-parse", "HEAD"); a != b {
		t.Errorf("cloned %s, want %s", a, b)
	}
	t.Setenv("DEVAIPOD_SERVICE_LISTEN", addr)
	out, errOut, err := devaipod(t.Context(), "mirror", "status", "--json")
	var counted map[string]float64
	if err != nil || json.Unmarshal([]byte(out), &counted) != nil || counted["requests_total refreshed refs"] != 1 || counted["sent_bytes_total"] == 0 {
		t.Errorf("its status is %v %s %s", err, out, errOut)
	}
	cmd := exec.Command("git", "ls-remote", "http://"+addr+"/git/localhost/etc/app.git")
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "mirror.allow_upstream") {
		t.Errorf("what is not allowed: %v %s", err, out)
	}
	stop()
	if _, errOut, err := devaipod(t.Context(), "mirror", "status"); err == nil || !strings.Contains(errOut, "start it with devaipod mirror serve") {
		t.Errorf("the status of what does not run: %v %s", err, errOut)
	}
}

// mirrorUpstream serves dir/srv by git's http-backend: to ada alone while it is
// private. It counts those who ask and are no cache.
func mirrorUpstream(t *testing.T, dir string) (server *httptest.Server, private *atomic.Bool, direct *atomic.Int32) {
	t.Helper()
	private, direct = new(atomic.Bool), new(atomic.Int32)
	backend := &cgi.Handler{
		Path: filepath.Join(strings.TrimSpace(mustGit(t, dir, "--exec-path")), "git-http-backend"),
		Env:  []string{"GIT_PROJECT_ROOT=" + dir + "/srv", "GIT_HTTP_EXPORT_ALL=1"},
	}
	server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.Contains(r.UserAgent(), "devaipod") {
			direct.Add(1)
		}
		if user, password, _ := r.BasicAuth(); private.Load() && (user != "ada" || password != "sesame") {
			w.Header().Set("WWW-Authenticate", `Basic realm="upstream"`)
			http.Error(w, "who are you?", http.StatusUnauthorized)
			return
		}
		b, err := io.ReadAll(r.Body) // CGI wants a length
		if err != nil {
			return
		}
		r.Body, r.ContentLength, r.TransferEncoding = io.NopCloser(bytes.NewReader(b)), int64(len(b)), nil
		backend.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	return server, private, direct
}

// What setup writes lets git fetch a repository and its submodules from the
// cache, by the names that they have upstream.
func TestMirrorSetup(t *testing.T) {
	dir, devaipod := mirrorWorld(t)
	upstream, private, direct := mirrorUpstream(t, dir)
	host := strings.TrimPrefix(upstream.URL, "http://")
	mustGit(t, dir, "init", "-q", "-b", "main", "srv/outer")
	mustGit(t, dir, "-C", "srv/outer", "-c", "protocol.allow=always", "submodule", "--quiet", "add", upstream.URL+"/app", "inner")
	mustGit(t, dir, "-C", "srv/outer", "commit", "-qm", "with a submodule")
	direct.Store(0)
	addr, _ := mirrorServe(t, devaipod, "--dir", dir+"/cache", "--max-age", "0s", "--allow-upstream", host)

	t.Setenv("DEVAIPOD_SERVICE_LISTEN", addr)
	run := func(args ...string) string {
		t.Helper()
		_, errOut, err := devaipod(t.Context(), append([]string{"mirror", "setup"}, args...)...)
		if err != nil {
			t.Fatal(errOut)
		}
		return errOut
	}
	if _, errOut, err := devaipod(t.Context(), "mirror", "setup"); err == nil || !strings.Contains(errOut, "name the hosts") {
		t.Errorf("without a host: %v %s", err, errOut)
	}
	before, err := os.ReadFile(filepath.Join(dir, ".gitconfig"))
	if err != nil {
		t.Fatal(err)
	}
	run(host)
	run(host) // once more changes nothing
	mustGit(t, dir, "clone", "-q", "--recurse-submodules", upstream.URL+"/outer.git", "clone")
	if a, b := mustGit(t, dir, "-C", "clone/inner", "rev-parse", "HEAD"), mustGit(t, dir, "-C", "srv/app", "rev-parse", "HEAD"); a != b {
		t.Errorf("the submodule has %s, want %s", a, b)
	}
	if n := direct.Load(); n > 0 {
		t.Errorf("git asked the upstream itself %d times", n)
	}
	// A private one by what the person's git knows for the upstream, and for no
	// other host. The helper is this program.
	private.Store(true)
	mustGit(t, dir, "config", "--global", "credential.http://"+host+".helper", "!f() { test $1 = get && echo username=ada && echo password=sesame; }; f")
	mustGit(t, dir, "-C", "srv/app", "commit", "-q", "--allow-empty", "-m", "second")
	helper := mustGit(t, dir, "config", "--global", "--get-all", "credential.http://"+addr+".helper")
	if !strings.HasPrefix(helper, "\n!'") || !strings.HasSuffix(helper, "' mirror credential\n") {
		t.Errorf("the credential helpers for the cache are %q", helper)
	}
	var said bytes.Buffer
	question := strings.NewReader("protocol=http\nhost=" + addr + "\npath=git/" + host + "/app.git\n\n")
	if err := main.Run(t.Context(), []string{"mirror", "credential", "get"}, question, &said, &said); err != nil || said.String() != "username=ada\npassword=sesame\n" {
		t.Errorf("asked for credentials, it says %v %s", err, said.String())
	}
	for _, path := range []string{"git/github.com/a/b.git", "other", ""} {
		said.Reset()
		t.Setenv("GIT_TERMINAL_PROMPT", "0")
		err := main.Run(t.Context(), []string{"mirror", "credential", "get"}, strings.NewReader("path="+path+"\n\n"), &said, io.Discard)
		if strings.Contains(said.String(), "sesame") {
			t.Errorf("asked for credentials of %q, it says %v %s", path, err, said.String())
		}
	}
	mustGit(t, dir, "clone", "-q", upstream.URL+"/app.git", "private")
	if a, b := mustGit(t, dir, "-C", "private", "rev-parse", "HEAD"), mustGit(t, dir, "-C", "srv/app", "rev-parse", "HEAD"); a != b || direct.Load() > 0 {
		t.Errorf("the private one has %s, want %s; %d direct", a, b, direct.Load())
	}
	mustGit(t, dir, "config", "--global", "--unset", "credential.http://"+host+".helper")
	run("--undo", "other.example.org")
	run("--undo")
	if after, err := os.ReadFile(filepath.Join(dir, ".gitconfig")); err != nil || string(after) != string(before) {
		t.Errorf("after --undo the configuration is %s, before %s", after, before)
	}
	if said := run("--undo"); !strings.Contains(said, "nothing to undo") {
		t.Errorf("once more: %s", said)
	}
}

// A private upstream is read by what the person's netrc has, or the
// configuration; through the server then by whoever has its token.
func TestMirrorCredentials(t *testing.T) {
	dir, devaipod := mirrorWorld(t)
	upstream, private, _ := mirrorUpstream(t, dir)
	private.Store(true)
	host := strings.TrimPrefix(upstream.URL, "http://")
	config := filepath.Join(dir, "devaipod.toml")
	t.Setenv("DEVAIPOD_CONFIG", config)
	t.Setenv("NETRC", filepath.Join(dir, "netrc"))
	t.Setenv("GIT_TERMINAL_PROMPT", "0")
	write := func(file, text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(config, fmt.Sprintf("[mirror]\ndir = %q\nallow_upstream = [%q, \"named.example\"]\n[[mirror.host]]\nname = \"named.example\"\nurl = %q\nuser = \"ada\"\npassword_file = %q\n",
		dir+"/cache", host, upstream.URL+"/", dir+"/password"))
	write(dir+"/password", "sesame\n")
	for _, c := range [][2]string{
		{"machine other.example login ada password sesame\n", "wants credentials"},
		{"machine 127.0.0.1 login ada password sesame\n", "fetched"},
		{"machine x login y password z\ndefault login ada password sesame\n", "nothing new"},
	} {
		text, want := c[0], c[1]
		write(os.Getenv("NETRC"), text)
		_, said, err := devaipod(t.Context(), "mirror", "sync", host+"/app")
		if !strings.Contains(said, want) {
			t.Errorf("with %q it says %v %s, want %s", text, err, said, want)
		}
	}
	write(os.Getenv("NETRC"), "what is this sesame\n")
	if _, said, err := devaipod(t.Context(), "mirror", "sync", "named.example/app"); err != nil || !strings.Contains(said, "fetched") {
		t.Errorf("with a password of the configuration's: %v %s", err, said)
	}
	write(os.Getenv("NETRC"), "machine 127.0.0.1 login ada password sesame\n")
	addr, _ := mirrorServe(t, devaipod)
	t.Setenv("DEVAIPOD_SERVICE_LISTEN", addr)
	token, err := os.ReadFile(dir + "/cache/token")
	if err != nil {
		t.Fatal(err)
	}
	for url, let := range map[string]bool{
		"http://" + addr: false, "http://devaipod:guess@" + addr: false,
		"http://devaipod:" + strings.TrimSpace(string(token)) + "@" + addr: true,
	} {
		for _, name := range []string{host, "named.example"} {
			cmd := exec.Command("git", "ls-remote", url+"/git/"+name+"/app.git")
			if out, err := cmd.CombinedOutput(); (err == nil) != let {
				t.Errorf("git ls-remote %s/git/%s: %v %s", url, name, err, out)
			}
		}
	}
	// A person's git shows the token by itself, for what needs it.
	if _, said, err := devaipod(t.Context(), "mirror", "setup", "named.example"); err != nil {
		t.Fatal(said)
	}
	var said bytes.Buffer
	question := strings.NewReader("protocol=http\nhost=" + addr + "\npath=git/named.example/app.git\n\n")
	if err := main.Run(t.Context(), []string{"mirror", "credential", "get"}, question, &said, &said); err != nil || said.String() != "username=devaipod\npassword="+string(token) {
		t.Errorf("asked for credentials, it says %v %s", err, said.String())
	}
	if info, err := os.Stat(dir + "/cache/token"); err != nil || info.Mode() != 0o600 {
		t.Errorf("the token's file: %v %v", info, err)
	}
}

func TestMirrorCommands(t *testing.T) {
	dir, devaipod := mirrorWorld(t)
	name := "localhost" + dir + "/srv/app"
	run := func(want string, args ...string) string {
		t.Helper()
		out, errOut, err := devaipod(t.Context(), append(append([]string{"mirror"}, args...), "--dir", dir+"/cache")...)
		if failed := err != nil; failed != strings.HasPrefix(want, "devaipod: ") || !strings.Contains(out+errOut, want) {
			t.Errorf("mirror %s: %v\n%s%s\nwant %s", strings.Join(args, " "), err, out, errOut, want)
		}
		return out
	}
	list := func() (all []map[string]any) {
		t.Helper()
		if err := json.Unmarshal([]byte(run("", "list", "--json")), &all); err != nil {
			t.Fatal(err)
		}
		return all
	}
	if all := list(); all == nil || len(all) > 0 {
		t.Errorf("an empty cache lists %v", all)
	}
	allow := []string{"--allow-upstream", "localhost" + dir + "/srv/*"}
	run("devaipod: "+name+".git", "sync", name) // not allowed
	run("devaipod: ", append([]string{"add"}, allow...)...)
	run("fetched", append([]string{"add", name}, allow...)...)
	run("nothing new", append([]string{"sync"}, allow...)...)
	run(name+".git", "list")
	if all := list(); len(all) != 1 || all[0]["address"] != name+".git" || all[0]["public"] != true || all[0]["size"].(float64) < 100 {
		t.Errorf("it lists %v", all)
	}
	for want, args := range map[string][]string{
		"git repositories": {"df"}, "0 B in all": {"prune", "--dry-run"}, "would remove " + name + ".git": {"prune", "--dry-run", "--older", "0s"},
	} {
		t.Setenv("DEVAIPOD_MIRROR_DIR", dir+"/cache")
		if out, errOut, err := devaipod(t.Context(), args...); err != nil || !strings.Contains(out, want) {
			t.Errorf("%s says %v %s%s, want %s", args, err, out, errOut, want)
		}
	}
	run("devaipod: localhost/other.git is not in the cache", "remove", "localhost/other")
	run(`devaipod: "-x" names no repository`, "remove", "--", "-x")
	t.Setenv("DEVAIPOD_MIRROR_ALLOW_UPSTREAM", allow[1])
	if err := os.Rename(filepath.Join(dir, "srv/app"), filepath.Join(dir, "srv/moved")); err != nil {
		t.Fatal(err)
	}
	run("devaipod: "+name+".git stays", "remove", name)
	if out, errOut, err := devaipod(t.Context(), "prune", "--older", "0s"); err == nil || !strings.Contains(errOut, name+".git stays") {
		t.Errorf("prune of what the upstream has no more says %v %s%s", err, out, errOut)
	}
	run("removed", "remove", "--force", name)
	if all := list(); len(all) > 0 {
		t.Errorf("after all it lists %v", all)
	}
}
