package main_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"codeberg.org/devaipod/devaipod/mirror"
)

// A leftWorld is a machine on which no service, pod or forge is any more: the
// state directory is, with what an agent's saver has saved.
type leftWorld struct {
	dir, bin, state, own string
	work                 *mirror.Work
	previous             string
	at                   time.Time
}

func newLeftWorld(t *testing.T) *leftWorld {
	t.Helper()
	dir := t.TempDir()
	bin, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	w := &leftWorld{dir: dir, bin: bin, state: filepath.Join(dir, "state"), own: filepath.Join(dir, "own"), at: time.Now().Add(-time.Hour).Truncate(time.Second)}
	for name, value := range map[string]string{
		"HOME": dir, "XDG_CONFIG_HOME": dir, "GIT_CONFIG_NOSYSTEM": "1", "NO_COLOR": "", "TERM": "xterm",
		"DEVAIPOD_FORGE_LISTEN": "127.0.0.1:9", // nobody listens there
		"GIT_AUTHOR_NAME":       "a", "GIT_AUTHOR_EMAIL": "a@example.org", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@example.org",
	} {
		t.Setenv(name, value)
	}
	w.work, err = mirror.NewWork(mirror.WorkConfig{
		ForgeURL: "http://127.0.0.1:9", Dir: filepath.Join(w.state, "work"), Launcher: []string{filepath.Join(w.bin, "devaipod-box")},
		Token: func() string { return "" }, Log: slog.New(slog.DiscardHandler),
		Copy:  func(string, int64) (string, bool) { return "", false },
		Known: func(context.Context, string) (string, error) { return "", errors.New("no cache") },
		Name:  func(_ context.Context, id int64) (string, error) { return fmt.Sprintf("ada/app%d", id%10), nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	mustGit(t, dir, "init", "-q", "-b", "main", w.own)
	w.file(t, "README", "hello\n")
	w.git(t, "add", ".")
	w.git(t, "commit", "-qm", "first")
	w.git(t, "switch", "-q", "-c", "agent/3-fix")
	return w
}

func (w *leftWorld) git(t *testing.T, args ...string) string {
	t.Helper()
	return strings.TrimSpace(mustGit(t, w.own, args...))
}

func (w *leftWorld) file(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(w.own, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// save saves the agent's clone as its saver does, into a store.
func (w *leftWorld) save(t *testing.T, store int64, lacks ...string) string {
	t.Helper()
	rules := mirror.SaveRules{RepoID: store, Issue: 3, Quota: 64 << 20}
	door := httptest.NewServer(w.work.Saves(func() (mirror.SaveRules, error) { return rules, nil }))
	defer door.Close()
	w.git(t, "add", "--all")
	tree, head := w.git(t, "write-tree"), w.git(t, "rev-parse", "HEAD")
	w.git(t, "reset", "-q")
	said := map[string]any{"branch": "agent/3-fix", "head": head, "previous": w.previous}
	var list []map[string]string
	for _, path := range lacks {
		list = append(list, map[string]string{"path": path, "why": "nested repository"})
	}
	said["not_saved"] = append(list, map[string]string{"path": "node_modules", "why": "ignored"})
	body, err := json.Marshal(said)
	if err != nil {
		t.Fatal(err)
	}
	args := []string{"commit-tree", tree, "-p", head, "-m", "Saved at some time", "-m", string(body)}
	if w.previous != "" {
		args = []string{"commit-tree", tree, "-p", w.previous, "-p", head, "-m", "Saved at some time", "-m", string(body)}
	}
	w.at = w.at.Add(10 * time.Minute)
	t.Setenv("GIT_COMMITTER_DATE", fmt.Sprintf("%d +0000", w.at.Unix()))
	w.previous = w.git(t, args...)
	w.git(t, "push", "-q", door.URL+"/saved.git", "+"+w.previous+":refs/saved/3/work", "+refs/heads/*:refs/saved/3/heads/*")
	return w.previous
}

func (w *leftWorld) command(dir string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(w.bin, "devaipod"), append([]string{"--state-dir", w.state}, args...)...)
	cmd.Dir = dir
	return cmd
}

// devaipod runs the program in a directory.
func (w *leftWorld) devaipod(t *testing.T, dir string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errOut bytes.Buffer
	cmd := w.command(dir, args...)
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	var ended *exec.ExitError
	if err != nil && !errors.As(err, &ended) {
		t.Fatal(err)
	}
	return out.String(), errOut.String(), cmd.ProcessState.ExitCode()
}

// With nothing but the state directory left: what was changed, which snapshots
// there are, and all of it back as it was.
func TestWorkComesBack(t *testing.T) {
	w := newLeftWorld(t)
	if _, errOut, code := w.devaipod(t, w.dir, "recover", "ada/app7#3"); code != 5 || !strings.Contains(errOut, "nothing is saved of ada/app7#3") || !strings.Contains(errOut, "forge up") {
		t.Errorf("of nothing: %d %s", code, errOut)
	}
	w.file(t, "committed", "text\n")
	w.git(t, "add", ".")
	w.git(t, "commit", "-qm", "work")
	w.file(t, "README", "hello, you\n")
	first := w.save(t, 7)
	w.file(t, "later", "text\n")
	w.save(t, 7, "lib/\x1b[31mdeep")

	out, errOut, code := w.devaipod(t, w.dir, "diff", "ada/app7#3")
	if code != 0 || !strings.Contains(out, "+hello, you\n") || !strings.Contains(out, "diff --git a/committed") || strings.Contains(out, "\x1b") {
		t.Errorf("diff: %d %s %s", code, out, errOut)
	}
	if !strings.Contains(errOut, "saved      "+w.at.Local().Format(time.DateTime)) || !strings.Contains(errOut, "lib/[31mdeep: nested repository") || !strings.Contains(errOut, "node_modules: ignored") {
		t.Errorf("it says %q", errOut)
	}
	if out, _, _ := w.devaipod(t, w.dir, "diff", "ada/app7#3", "--name-only"); out != "README\ncommitted\nlater\n" {
		t.Errorf("names are %q", out)
	}
	if out, _, _ := w.devaipod(t, w.dir, "diff", "ada/app7#3", "--stat"); !strings.Contains(out, "3 files changed") {
		t.Errorf("stat is %q", out)
	}
	if out, _, _ := w.devaipod(t, w.dir, "diff", "ada/app7#3", "--base", w.git(t, "rev-parse", "HEAD"), "--name-only"); out != "README\nlater\n" {
		t.Errorf("names since the commit are %q", out)
	}
	if _, errOut, code := w.devaipod(t, w.dir, "diff", "ada/app7#3", "--base", "nowhere"); code != 1 || !strings.Contains(errOut, "--base") {
		t.Errorf("with another base: %d %s", code, errOut)
	}
	var d struct {
		Files []struct {
			Path  string
			Added int
		}
	}
	out, _, _ = w.devaipod(t, w.dir, "diff", "ada/app7#3", "--json")
	if err := json.Unmarshal([]byte(out), &d); err != nil || len(d.Files) != 3 || d.Files[0].Path != "README" || d.Files[0].Added != 1 {
		t.Errorf("as JSON it is %s", out)
	}

	var list struct {
		Snapshots []struct{ Commit, Branch string }
	}
	out, _, _ = w.devaipod(t, w.dir, "recover", "ada/app7#3", "--list", "--json")
	if err := json.Unmarshal([]byte(out), &list); err != nil || len(list.Snapshots) != 2 || list.Snapshots[1].Commit != first {
		t.Errorf("the list is %s", out)
	}
	out, errOut, code = w.devaipod(t, w.dir, "recover", "ada/app7#3")
	if want := filepath.Join(w.dir, "app7-3"); code != 0 || out != want+"\n" {
		t.Errorf("recover: %d %s %s", code, out, errOut)
	}
	if got := mustGit(t, filepath.Join(w.dir, "app7-3"), "status", "--porcelain"); got != " M README\n?? later\n" {
		t.Errorf("its status is %q", got)
	}
	if _, errOut, code := w.devaipod(t, w.dir, "recover", "ada/app7#3"); code != 1 || !strings.Contains(errOut, "there already") {
		t.Errorf("again: %d %s", code, errOut)
	}
	for at, later := range map[string]bool{first[:8]: false, w.at.Add(-time.Minute).Local().Format(time.DateTime): false, "1s": true} {
		dir := filepath.Join(t.TempDir(), "back")
		if _, errOut, code := w.devaipod(t, w.dir, "recover", "ada/app7#3", "--at", at, "--dir", dir); code != 0 {
			t.Errorf("at %s: %d %s", at, code, errOut)
		}
		if _, err := os.Stat(filepath.Join(dir, "later")); (err == nil) != later {
			t.Errorf("at %s: %v", at, err)
		}
	}
	for at, want := range map[string]int{"100h": 1, "never": 2, "abcdef12": 1} {
		if _, errOut, code := w.devaipod(t, w.dir, "recover", "ada/app7#3", "--at", at, "--dir", "x"); code != want {
			t.Errorf("at %s: %d %s", at, code, errOut)
		}
	}
	// A relative one is relative to where the person is.
	if out, errOut, code := w.devaipod(t, w.dir, "recover", "ada/app7#3", "--dir", "here"); code != 0 || out != filepath.Join(w.dir, "here")+"\n" {
		t.Errorf("into here: %d %s %s", code, out, errOut)
	}
	out, _, _ = w.devaipod(t, w.dir, "df", "--json")
	if !strings.Contains(out, `"count":1`) || !strings.Contains(out, w.state+"/work") {
		t.Errorf("df: %s", out)
	}
	// The service does not run; status says at least this.
	if _, errOut, code := w.devaipod(t, w.dir, "status", "ada/app7#3"); code != 5 || !strings.Contains(errOut, "devaipod recover ada/app7#3 brings it back") {
		t.Errorf("status: %d %s", code, errOut)
	}
}

// Several repositories may have had one name.
func TestWhichRepositoryIsMeant(t *testing.T) {
	w := newLeftWorld(t)
	w.file(t, "one", "text\n")
	w.save(t, 7)
	w.previous = ""
	w.file(t, "two", "text\n")
	w.save(t, 17)
	if _, errOut, code := w.devaipod(t, w.dir, "diff", "ada/app7#3", "--name-only"); code != 2 || !strings.Contains(errOut, "--store with one of 7 17") {
		t.Errorf("without a number: %d %s", code, errOut)
	}
	if out, errOut, code := w.devaipod(t, w.dir, "diff", "ada/app7#3", "--name-only", "--store", "17"); code != 0 || out != "one\ntwo\n" {
		t.Errorf("with one: %d %s %s", code, out, errOut)
	}
	if _, errOut, code := w.devaipod(t, w.dir, "diff", "ada/app7#3", "--store", "27"); code != 1 || !strings.Contains(errOut, "nothing is saved") {
		t.Errorf("with a wrong one: %d %s", code, errOut)
	}
}

// In a checkout it becomes a branch, beside what the person has.
func TestCheckoutOfWhatWasSaved(t *testing.T) {
	w := newLeftWorld(t)
	w.file(t, "committed", "text\n")
	w.git(t, "add", ".")
	w.git(t, "commit", "-qm", "work")
	w.file(t, "README", "hello, you\n")
	w.save(t, 7)
	clone := filepath.Join(w.dir, "clone")
	mustGit(t, w.dir, "clone", "-q", "-b", "main", w.own, clone)
	mustGit(t, clone, "remote", "set-url", "origin", "http://127.0.0.1:9/ada/app7.git")
	hook := filepath.Join(clone, ".git/hooks/post-checkout")
	if err := os.WriteFile(hook, []byte("#!/bin/sh\ntouch "+w.dir+"/ran\n"), 0o700); err != nil { //nolint:gosec // a hook
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(clone, "README"), []byte("mine\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, errOut, code := w.devaipod(t, clone, "checkout", "3", "--saved"); code != 1 || !strings.Contains(errOut, "README") {
		t.Errorf("over changes of one's own: %d %s", code, errOut)
	}
	if b, err := os.ReadFile(filepath.Join(clone, "README")); err != nil || string(b) != "mine\n" {
		t.Errorf("they are %q, %v", b, err)
	}
	if err := os.WriteFile(filepath.Join(clone, "README"), []byte("hello\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, errOut, code := w.devaipod(t, clone, "checkout", "3", "--saved"); code != 0 || !strings.Contains(errOut, "git reset") {
		t.Errorf("checkout: %d %s", code, errOut)
	}
	if got := mustGit(t, clone, "rev-parse", "--abbrev-ref", "HEAD"); got != "saved/3\n" {
		t.Errorf("it is on %s", got)
	}
	w.file(t, "later", "text\n")
	newest := w.save(t, 7)
	if _, errOut, code := w.devaipod(t, clone, "checkout", "3", "--saved"); code != 0 {
		t.Errorf("again: %d %s", code, errOut)
	}
	if got := mustGit(t, clone, "rev-parse", "HEAD", "refs/devaipod/saved/3/work"); got != newest+"\n"+newest+"\n" {
		t.Errorf("it is at %s", got)
	}
	if _, err := os.Stat(filepath.Join(w.dir, "ran")); err == nil {
		t.Error("a hook ran")
	}
	mustGit(t, clone, "commit", "-q", "--allow-empty", "-m", "mine")
	w.file(t, "latest", "text\n")
	w.save(t, 7)
	if _, errOut, code := w.devaipod(t, clone, "checkout", "3", "--saved"); code != 1 || !strings.Contains(errOut, "git branch -m") {
		t.Errorf("over commits of one's own: %d %s", code, errOut)
	}
	if _, errOut, code := w.devaipod(t, w.dir, "checkout", "ada/app7#3", "--saved"); code != 2 {
		t.Errorf("outside of a checkout: %d %s", code, errOut)
	}
}

// What an agent writes reaches no terminal as an order, and git's colours are ours.
func TestADiffOnATerminal(t *testing.T) {
	w := newLeftWorld(t)
	w.file(t, "evil\x1b]0;name\x07", "\x1b[2J\x9b31m\u202e\rx\n+++ b/not-a-header\n@@ -1 +1 @@\n")
	w.save(t, 7)
	out := w.onTerminal(t, "diff", "ada/app7#3")
	text := strings.NewReplacer("\x1b[1m", "", "\x1b[32m", "<green>", "\x1b[31m", "", "\x1b[36m", "<cyan>", "\x1b[m", "", "\r\n", "\n").Replace(out)
	if strings.ContainsAny(text, "\x1b\x07\r\u202e") || strings.Contains(text, "\x9b") {
		t.Errorf("the terminal gets %q", text)
	}
	for _, want := range []string{`<green>+^[[2J\x9b31m<U+202E>^Mx`, "<green>++++ b/not-a-header", "<green>+@@ -1 +1 @@", "<cyan>@@ -0,0 +1,3 @@"} {
		if !strings.Contains(text, want) {
			t.Errorf("it shows %q, want %q", text, want)
		}
	}
	raw, _, _ := w.devaipod(t, w.dir, "diff", "ada/app7#3")
	if !strings.Contains(raw, "\x1b[2J\x9b31m\u202e\rx\n") {
		t.Errorf("elsewhere it is %q", raw)
	}
	t.Setenv("NO_COLOR", "1")
	if out := w.onTerminal(t, "diff", "ada/app7#3"); strings.Contains(out, "\x1b") {
		t.Errorf("without colours it shows %q", out)
	}
}

// onTerminal runs the program with a terminal for its output (pts(4)).
func (w *leftWorld) onTerminal(t *testing.T, args ...string) string {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	tty, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	read := make(chan struct{})
	go func() {
		defer close(read)
		_, _ = out.ReadFrom(master) // it ends with EIO when the last one has closed the other end
	}()
	cmd := w.command(w.dir, args...)
	cmd.Stdout = tty
	if err := cmd.Run(); err != nil {
		t.Error(err)
	}
	tty.Close()
	<-read
	return out.String()
}

// A bundle that does not fit leaves nothing.
func TestABundleOnAFullDisk(t *testing.T) {
	w := newLeftWorld(t)
	noise := make([]byte, 1<<20)
	for i, x := 0, uint32(1); i < len(noise); i++ {
		x = x*1664525 + 1013904223
		noise[i] = byte(x >> 24)
	}
	w.file(t, "big", string(noise))
	w.save(t, 7)
	full := filepath.Join(w.dir, "full")
	if err := os.Mkdir(full, 0o700); err != nil {
		t.Fatal(err)
	}
	script := `mount -t tmpfs -o size=256k full "$1" && "$2" --state-dir "$3" recover ada/app7#3 --bundle "$1/work.bundle"; echo code=$?; ls -A "$1"`
	out, err := exec.Command("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh", full, filepath.Join(w.bin, "devaipod"), w.state).CombinedOutput()
	if err != nil || !strings.HasSuffix(string(out), "code=1\n") || !strings.Contains(string(out), "writing what was saved of ada/app7#3 to "+full) {
		t.Errorf("%v %s", err, out)
	}
	file := filepath.Join(w.dir, "work.bundle")
	if out, errOut, code := w.devaipod(t, w.dir, "recover", "ada/app7#3", "--bundle", "work.bundle"); code != 0 || out != file+"\n" {
		t.Errorf("where there is room: %d %s", code, errOut)
	}
	mustGit(t, w.dir, "clone", "-q", file, "from-bundle")
}
