package main_test

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"codeberg.org/devaipod/devaipod/ci/job"
	devaipod "codeberg.org/devaipod/devaipod/cmd/devaipod"
)

func TestWhatALocalRunLeavesIsRemovedOnceItIsDead(t *testing.T) {
	dirs := devaipod.NewLocalDirs(t.TempDir())
	if err := dirs.Sweep(); err != nil {
		t.Fatal(err) // there was none ever
	}
	living, a, end, _, err := dirs.Begin()
	if err != nil {
		t.Fatal(err)
	}
	dead, b, _, kill, err := dirs.Begin()
	if err != nil {
		t.Fatal(err)
	}
	if !dirs.Lives(a) || !dirs.Lives(b+1) || dirs.Lives(1) || dirs.Lives(1<<39) || a>>20 == b>>20 {
		t.Errorf("runs of the tasks %d and %d", a, b)
	}
	if err := kill(); err != nil {
		t.Fatal(err)
	}
	if err := dirs.Sweep(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dead); !errors.Is(err, fs.ErrNotExist) || dirs.Lives(b) {
		t.Errorf("the dead one's directory: %v", err)
	}
	if _, err := os.Stat(living); err != nil || !dirs.Lives(a) {
		t.Errorf("the living one's directory: %v", err)
	}
	if err := end(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(living); !errors.Is(err, fs.ErrNotExist) || dirs.Lives(a) {
		t.Errorf("after its end: %v", err)
	}
}

// One that begins is not taken for dead, whoever looks.
func TestLocalRunsBeginWhileOthersLook(t *testing.T) {
	dirs := devaipod.NewLocalDirs(t.TempDir())
	stop := make(chan struct{})
	var looking, all sync.WaitGroup
	for range 2 {
		looking.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := dirs.Sweep(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for range 4 {
		all.Go(func() {
			for range 50 {
				path, task, end, _, err := dirs.Begin()
				if err != nil {
					t.Error(err)
					return
				}
				if _, err := os.Stat(path); err != nil || !dirs.Lives(task) {
					t.Errorf("it begins and is gone: %v", err)
				}
				if err := end(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	close(stop)
	looking.Wait()
}

// A place for working trees.
type gitPlace struct {
	t   *testing.T
	dir string
}

func newGitPlace(t *testing.T) *gitPlace {
	p := &gitPlace{t, t.TempDir()}
	p.git("init", "-q", "-b", "main")
	return p
}

func (p *gitPlace) git(args ...string) string {
	p.t.Helper()
	cmd := exec.CommandContext(p.t.Context(), "git", append([]string{"-c", "user.name=x", "-c", "user.email=x@example.com"}, args...)...)
	cmd.Dir = p.dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		p.t.Fatalf("git %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

func (p *gitPlace) write(name, text string, mode os.FileMode) {
	p.t.Helper()
	path := filepath.Join(p.dir, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(text), mode)); err != nil {
		p.t.Fatal(err)
	}
}

func TestATreeGoesInAsItLiesThere(t *testing.T) {
	p := newGitPlace(t)
	p.write(".gitignore", "ignored\nbuilt/\n", 0o600)
	for _, name := range []string{"changed", "gone", "dir/of/link", "kept/ignored-too"} {
		p.write(name, "committed", 0o600)
	}
	p.git("add", "--force", ".")
	p.git("commit", "-q", "-m", "one")
	p.git("commit", "-q", "-m", "two", "--allow-empty")
	p.write("changed", "changed", 0o600)
	p.write("sub/new", "new", 0o700)
	p.write("ignored", "no", 0o600)
	p.write("built/x", "no", 0o600)
	p.write("other/.git/HEAD", "ref: refs/heads/main", 0o600)
	// What the index has below a directory that now leads elsewhere is gone.
	secret := filepath.Join(t.TempDir(), "of")
	if err := errors.Join(os.MkdirAll(secret, 0o700), os.WriteFile(secret+"/link", []byte("secret"), 0o600),
		os.Remove(p.dir+"/gone"), os.RemoveAll(p.dir+"/dir"), os.Symlink(filepath.Dir(secret), p.dir+"/dir"), os.Symlink("/etc/passwd", p.dir+"/passwd")); err != nil {
		t.Fatal(err)
	}
	// Nothing of the tree's configuration is run.
	outside := t.TempDir()
	hook, ran := filepath.Join(outside, "hook"), filepath.Join(outside, "ran")
	if err := os.WriteFile(hook, []byte("#!/bin/sh\ntouch "+ran+"\n"), 0o700); err != nil { //nolint:gosec // a program
		t.Fatal(err)
	}
	p.git("config", "uploadpack.packObjectsHook", hook)
	p.git("config", "core.fsmonitor", hook)
	for _, history := range []bool{false, true} {
		to := &gitPlace{t, filepath.Join(t.TempDir(), "tree")}
		if err := devaipod.Snapshot(t.Context(), filepath.Join(p.dir, "sub"), to.dir, history); err != nil {
			t.Fatal(err)
		}
		var got []string
		err := filepath.WalkDir(to.dir, func(path string, d fs.DirEntry, err error) error {
			if name, _ := filepath.Rel(to.dir, path); err == nil && !d.IsDir() && !strings.HasPrefix(name, ".git/") {
				got = append(got, name)
			}
			return err
		})
		if want := []string{".gitignore", "changed", "dir", "kept/ignored-too", "passwd", "sub/new"}; err != nil || !slices.Equal(got, want) {
			t.Errorf("%q, %v, want %q", got, err, want)
		}
		if text, err := os.ReadFile(to.dir + "/changed"); err != nil || string(text) != "changed" {
			t.Errorf("%s, %v", text, err)
		}
		for name, mode := range map[string]fs.FileMode{"changed": 0o644, "sub/new": 0o755} { // anybody in a container reads it
			if info, err := os.Stat(filepath.Join(to.dir, name)); err != nil || info.Mode() != mode {
				t.Errorf("%s: %v, %v", name, info.Mode(), err)
			}
		}
		if link, err := os.Readlink(to.dir + "/passwd"); err != nil || link != "/etc/passwd" {
			t.Errorf("%s, %v", link, err)
		}
		want := "two"
		if history {
			want = "two\none"
		}
		if got := to.git("log", "--format=%s"); got != want {
			t.Errorf("commits %q", got)
		}
		if got := to.git("rev-parse", "--abbrev-ref", "HEAD") + to.git("remote"); got != "main" {
			t.Errorf("%q", got)
		}
	}
	if _, err := os.Stat(ran); err == nil {
		t.Error("the tree's configuration had a program run")
	}
}

func TestATreeWithoutACommit(t *testing.T) {
	p := newGitPlace(t)
	p.write("file", "new", 0o600)
	to := filepath.Join(t.TempDir(), "tree")
	if err := devaipod.Snapshot(t.Context(), p.dir, to, false); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(to + "/file"); err != nil || string(text) != "new" {
		t.Errorf("%s, %v", text, err)
	}
}

func TestWhereWorkflowsAre(t *testing.T) {
	p := newGitPlace(t)
	if _, err := devaipod.WorkflowsOf(t.Context(), p.dir, ""); err == nil || !strings.Contains(err.Error(), "has no workflows: none of .forgejo/workflows, .gitea/workflows, .github/workflows is there") {
		t.Error(err)
	}
	if _, err := devaipod.WorkflowsOf(t.Context(), t.TempDir(), ""); err == nil || !strings.Contains(err.Error(), "is in no working tree of git") {
		t.Error(err)
	}
	p.write(".github/workflows/hub.yaml", "hub", 0o600)
	p.write(".gitea/workflows/a.yml", "a", 0o600)
	p.write(".gitea/workflows/b.yaml", "b", 0o600)
	p.write(".gitea/workflows/README.md", "no", 0o600)
	files, err := devaipod.WorkflowsOf(t.Context(), p.dir, "")
	if err != nil || len(files) != 2 || string(files["a.yml"]) != "a" || string(files["b.yaml"]) != "b" {
		t.Errorf("%q, %v", files, err)
	}
	if files, err = devaipod.WorkflowsOf(t.Context(), p.dir, "b.yaml"); err != nil || len(files) != 1 {
		t.Errorf("%q, %v", files, err)
	}
	if files, err = devaipod.WorkflowsOf(t.Context(), p.dir, p.dir+"/.github/workflows/hub.yaml"); err != nil || string(files["hub.yaml"]) != "hub" {
		t.Errorf("%q, %v", files, err)
	}
	if _, err = devaipod.WorkflowsOf(t.Context(), p.dir, "hub.yaml"); err == nil || !strings.Contains(err.Error(), "has no workflow hub.yaml; it has a.yml, b.yaml") {
		t.Error(err)
	}
	p.write(".gitea/workflows/large.yml", strings.Repeat("#", 1<<20+1), 0o600)
	if _, err = devaipod.WorkflowsOf(t.Context(), p.dir, ""); err == nil || !strings.Contains(err.Error(), "has more than 1048576 bytes") {
		t.Error(err)
	}
}

func TestALineOfAJobSteersNoTerminal(t *testing.T) {
	var out bytes.Buffer
	devaipod.JobLines(&out, "test (\x1b]0;x\x07)", "\x1b[31mred\x1b[0m \x1b[2Jgone\x1b]52;c;eA==\x07 \u202eend\r")
	if got, want := out.String(), "test (^[]0;x^G) | red gone end\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestWhatComesOfAMatrix(t *testing.T) {
	got := devaipod.Together([]job.Need{
		{Result: job.Success, Outputs: map[string]string{"a": "1", "b": "2"}}, {Result: job.Failure, Outputs: map[string]string{"a": ""}}, {Result: job.Skipped},
	})
	if got.Result != job.Failure || got.Outputs["a"] != "1" || got.Outputs["b"] != "2" {
		t.Errorf("%+v", got)
	}
	if got := devaipod.Together([]job.Need{{Result: job.Skipped}, {Result: job.Success}}); got.Result != job.Success {
		t.Errorf("%+v", got)
	}
}
