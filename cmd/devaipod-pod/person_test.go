package main_test

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	main "codeberg.org/devaipod/devaipod/cmd/devaipod-pod"
	"codeberg.org/devaipod/devaipod/pods/podfile"
)

// A clone in a volume, beside the repository that it is of.
func cloneIn(t *testing.T) (volume, repo string, git func(args ...string)) {
	t.Helper()
	volume = t.TempDir()
	repo = filepath.Join(volume, "repo")
	env := append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@b", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@b")
	in := func(dir string, args ...string) {
		t.Helper()
		cmd := exec.Command("git", args...)
		cmd.Dir, cmd.Env = dir, env
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("git %v: %v\n%s", args, err, out)
		}
	}
	origin := filepath.Join(t.TempDir(), "origin")
	in("/", "init", "--quiet", "-b", "main", origin)
	in(origin, "commit", "--quiet", "--allow-empty", "-m", "first")
	in("/", "clone", "--quiet", origin, repo)
	return volume, repo, func(args ...string) { t.Helper(); in(repo, args...) }
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
}

func TestWhatAWorkspaceHoldsThatNobodyElseHas(t *testing.T) {
	for name, tt := range map[string]struct {
		do   func(t *testing.T, volume, repo string, git func(...string))
		want string // of each list, the begin
	}{
		"nothing": {func(*testing.T, string, string, func(...string)) {}, "commits= changes= stashes= beside="},
		"what git makes again, and what is ignored": {func(t *testing.T, _, repo string, git func(...string)) {
			write(t, filepath.Join(repo, ".git/info/exclude"), "out/\n")
			write(t, filepath.Join(repo, "out/x"), "1")
			git("switch", "--quiet", "-c", "other")
		}, "commits= changes= stashes= beside="},
		"a commit on a branch that is not checked out": {func(_ *testing.T, _, _ string, git func(...string)) {
			git("switch", "--quiet", "-c", "other")
			git("commit", "--quiet", "--allow-empty", "-m", "mine")
			git("switch", "--quiet", "main")
		}, "commits=mine changes= stashes= beside="},
		"a commit on no branch": {func(_ *testing.T, _, _ string, git func(...string)) {
			git("checkout", "--quiet", "--detach")
			git("commit", "--quiet", "--allow-empty", "-m", "mine")
		}, "commits=mine changes= stashes= beside="},
		"files, a stash, and what lies beside": {func(t *testing.T, volume, repo string, git func(...string)) {
			write(t, filepath.Join(repo, "f"), "1")
			git("add", "f")
			git("stash")
			write(t, filepath.Join(repo, "g"), "1")
			write(t, filepath.Join(volume, "notes"), "1")
		}, "commits= changes=?? g stashes=stash@{0} beside=notes"},
		"an interrupted clone": {func(t *testing.T, volume, repo string, _ func(...string)) {
			if err := os.Rename(repo, filepath.Join(volume, "repo.new")); err != nil {
				t.Fatal(err)
			}
		}, "commits= changes= stashes= beside="},
		"programs that the clone names are not run": {func(t *testing.T, volume, repo string, git func(...string)) {
			bad := filepath.Join(t.TempDir(), "bad")
			write(t, bad, "#!/bin/sh\ntouch "+filepath.Join(volume, "ran")+"\n")
			git("config", "core.fsmonitor", bad)
			git("config", "core.pager", bad)
			git("config", "gpg.program", bad)
			git("config", "log.showSignature", "true")
			write(t, filepath.Join(repo, ".git/hooks/post-index-change"), "#!/bin/sh\ntouch "+filepath.Join(volume, "ran")+"\n")
			write(t, filepath.Join(repo, "f"), "1")
		}, "commits= changes=?? f stashes= beside="},
	} {
		t.Run(name, func(t *testing.T) {
			volume, repo, git := cloneIn(t)
			tt.do(t, volume, repo, git)
			w, err := main.Inventory(t.Context(), volume, repo)
			if err != nil {
				t.Fatal(err)
			}
			got := fmt.Sprintf("commits=%s changes=%s stashes=%s beside=%s", cut(w.Commits), strings.Join(w.Changes, ","), first(w.Stashes), strings.Join(w.Beside, ","))
			if got != tt.want {
				t.Errorf("%s\nwant %s", got, tt.want)
			}
			if w.Empty() != (tt.want == "commits= changes= stashes= beside=") {
				t.Errorf("empty: %v", w.Empty())
			}
		})
	}
}

// cut leaves the commits' subjects.
func cut(commits []string) string {
	var out []string
	for _, c := range commits {
		_, subject, _ := strings.Cut(c, " ")
		out = append(out, subject)
	}
	return strings.Join(out, ",")
}

func first(list []string) string {
	if len(list) == 0 {
		return ""
	}
	word, _, _ := strings.Cut(list[0], " ")
	return word
}

func TestAWorkspaceThatCantBeReadIsNotEmpty(t *testing.T) {
	volume, repo, _ := cloneIn(t)
	write(t, filepath.Join(repo, "work"), "1")
	if err := os.RemoveAll(filepath.Join(repo, ".git")); err != nil {
		t.Fatal(err)
	}
	if w, err := main.Inventory(t.Context(), volume, repo); err == nil {
		t.Errorf("without .git: %+v", w)
	}
	volume, repo, _ = cloneIn(t)
	write(t, filepath.Join(repo, ".git/HEAD"), "nonsense")
	if w, err := main.Inventory(t.Context(), volume, repo); err == nil {
		t.Errorf("with a damaged HEAD: %+v", w)
	}
}

func TestTheShellOfAUser(t *testing.T) {
	passwd := []byte("root:x:0:0:root:/root:/bin/ash\nagent:x:1000:1000::/home/agent:/bin/zsh\nd:x:7:7::/:/usr/sbin/nologin\nbroken\ne:x:8:8::/:/bin/false\n")
	for uid, want := range map[int]string{0: "/bin/ash", 1000: "/bin/zsh", 7: "", 8: "", 9: ""} {
		if got := main.ShellOf(passwd, uid); got != want {
			t.Errorf("%d: %q, want %q", uid, got, want)
		}
	}
}

func TestASignalReachesTheCommandAndNotItsChildren(t *testing.T) {
	const mark = "0123456789abcdefMARK"
	cmd := exec.Command("sh", "-c", `trap 'echo got; exit 9' USR1; sh -c 'trap "echo child" USR1; echo ready; while :; do sleep 0.05; done' & wait; kill $!`)
	cmd.Env = append(os.Environ(), podfile.EnvMark+"="+mark)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	lines.Scan() // ready
	if err := main.Signal([]string{mark, "10"}); err != nil {
		t.Error(err)
	}
	lines.Scan()
	if got := lines.Text(); got != "got" {
		t.Errorf("%q", got)
	}
	if err := main.Signal([]string{mark, "9"}); err != nil { // the child, which is the oldest now
		t.Error(err)
	}
	_ = cmd.Wait() // it ends with the 9 of its trap
	if code := cmd.ProcessState.ExitCode(); code != 9 {
		t.Errorf("code %d", code)
	}
	for main.Signal([]string{mark, "9"}) == nil { // until that is gone
		time.Sleep(time.Millisecond)
	}
	for _, args := range [][]string{{mark, "9"}, {"short", "9"}, {mark, "nine"}, {mark, "0"}, {mark}} {
		if err := main.Signal(args); err == nil {
			t.Errorf("%v was done", args)
		}
	}
}
