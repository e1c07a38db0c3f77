package mirror_test

import (
	"bytes"
	"compress/zlib"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/mirror"
)

const workflow = ".forgejo/workflows/ci.yml"

// put commits a file in the clone.
func (s *stack) put(t *testing.T, path, text string) {
	t.Helper()
	file := filepath.Join(s.clone, path)
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, file, text)
	git(t, s.clone, "add", "--all", ".")
	git(t, s.clone, "commit", "-qm", "put a file")
}

// trust commits a file to the forge's default branch, as a person does.
func (s *stack) trust(t *testing.T, path, text string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "person")
	git(t, "/", "clone", "-q", s.bare, dir)
	if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, path)), 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, path), text)
	git(t, dir, "add", ".")
	git(t, dir, "commit", "-qm", "by a person")
	git(t, dir, "push", "-q", "origin", "HEAD:main")
}

func (s *stack) head(t *testing.T) string {
	t.Helper()
	return strings.TrimSpace(git(t, s.clone, "rev-parse", "HEAD"))
}

// push pushes the clone's HEAD to the branch.
func (s *stack) push(t *testing.T, args ...string) (string, error) {
	t.Helper()
	return run(s.clone, append(append([]string{"push"}, args...), "origin", "HEAD:refs/heads/agent/3-work")...)
}

// taken pushes what must be taken.
func (s *stack) taken(t *testing.T, args ...string) {
	t.Helper()
	out, err := s.push(t, args...)
	if err != nil {
		t.Fatalf("a push was not taken: %s", out)
	}
	if got := s.onForge(t); got != s.head(t) {
		t.Fatalf("the forge has %s, want %s", got, s.head(t))
	}
}

// refused pushes what must be refused, with words, and must leave nothing.
func (s *stack) refused(t *testing.T, words ...string) string {
	t.Helper()
	before, objects := git(t, s.bare, "for-each-ref"), git(t, s.bare, "count-objects", "-v")
	out, err := s.push(t, "-f")
	if err == nil {
		t.Errorf("a push was taken, want words of %q:\n%s", words, out)
	}
	for _, w := range words {
		if !strings.Contains(out, w) {
			t.Errorf("git says\n%s\nwant %q", out, w)
		}
	}
	if after := git(t, s.bare, "for-each-ref"); after != before {
		t.Errorf("the forge's refs change from\n%s\nto\n%s", before, after)
	}
	settled(t, func() error {
		if after := git(t, s.bare, "count-objects", "-v"); after != objects {
			return fmt.Errorf("the forge's objects change from\n%s\nto\n%s", objects, after)
		}
		return s.nothingLeft()
	})
	return out
}

// nothingLeft is an error while the work store holds parts of a push.
func (s *stack) nothingLeft() error {
	left, err := filepath.Glob(filepath.Join(s.config.Dir, "*", "incoming-*"))
	if err == nil && len(left) > 0 {
		err = fmt.Errorf("%v stays", left)
	}
	return err
}

// settled waits for what goes on after an answer.
func settled(t *testing.T, check func() error) {
	t.Helper()
	var err error
	for range 200 {
		if err = check(); err == nil {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Error(err)
}

func (s *stack) onForge(t *testing.T) string {
	t.Helper()
	out, err := run(s.bare, "rev-parse", "--verify", "-q", "refs/heads/agent/3-work")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(out)
}

// store is the work store's repository.
func (s *stack) store(t *testing.T, args ...string) string {
	t.Helper()
	return git(t, filepath.Join(s.config.Dir, "7.git"), args...)
}

func TestProtectedPathsAreRefused(t *testing.T) {
	for name, change := range map[string]func(t *testing.T, s *stack) string{
		"a new one":       func(t *testing.T, s *stack) string { s.put(t, ".forgejo/workflows/new.yml", "x"); return "new.yml" },
		"a changed one":   func(t *testing.T, s *stack) string { s.put(t, workflow, "on: never\n"); return workflow },
		"deep below":      func(t *testing.T, s *stack) string { s.put(t, ".forgejo/workflows/a/b", "x"); return "workflows/a/b" },
		"code owners":     func(t *testing.T, s *stack) string { s.put(t, "CODEOWNERS", "* @agent"); return "CODEOWNERS" },
		"a dev container": func(t *testing.T, s *stack) string { s.put(t, ".devcontainer.json", "{}"); return ".devcontainer.json" },
		"in another case": func(t *testing.T, s *stack) string {
			s.put(t, ".Forgejo/WORKFLOWS/x.yml", "x")
			return ".Forgejo/WORKFLOWS/x.yml"
		},
		"in a case of dotted": func(t *testing.T, s *stack) string { s.put(t, ".forgejo/workflows/\u0130.yml", "x"); return ".yml" },
		"removed": func(t *testing.T, s *stack) string {
			git(t, s.clone, "rm", "-q", workflow)
			git(t, s.clone, "commit", "-qm", "remove")
			return workflow
		},
		"moved away": func(t *testing.T, s *stack) string {
			git(t, s.clone, "mv", workflow, "ci.yml")
			git(t, s.clone, "commit", "-qm", "move")
			return workflow
		},
		"its mode": func(t *testing.T, s *stack) string {
			git(t, s.clone, "update-index", "--chmod=+x", workflow)
			git(t, s.clone, "commit", "-qm", "chmod")
			return workflow
		},
		"a link in place of its directory": func(t *testing.T, s *stack) string {
			git(t, s.clone, "rm", "-q", "-r", ".forgejo")
			if err := os.Symlink("elsewhere", filepath.Join(s.clone, ".forgejo")); err != nil {
				t.Fatal(err)
			}
			s.put(t, "elsewhere/workflows/x.yml", "x")
			return ".forgejo"
		},
		"a submodule in place of one": func(t *testing.T, s *stack) string {
			git(t, s.clone, "update-index", "--add", "--cacheinfo", "160000,"+s.head(t)+",.devcontainer")
			git(t, s.clone, "commit", "-qm", "submodule")
			return ".devcontainer"
		},
		"undone by the next commit": func(t *testing.T, s *stack) string {
			s.put(t, workflow, "on: never\n")
			s.put(t, "README", "hello\n\n")
			git(t, s.clone, "checkout", "-q", "HEAD~2", "--", workflow)
			git(t, s.clone, "commit", "-qm", "undo")
			return workflow
		},
		"in another commit's message's place": func(t *testing.T, s *stack) string {
			write(t, filepath.Join(s.clone, "CODEOWNERS"), "* @agent\n")
			git(t, s.clone, "add", ".")
			git(t, s.clone, "commit", "-qm", "\x01deadbeef\n\n:100644 100644 1 2 M\x01README\n")
			return "CODEOWNERS"
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newStackWith(t, workflow, "on: push\n")
			want := change(t, s)
			s.refused(t, "protected path", want, "in commit", "What to do:", "/allow-path ")
		})
	}
}

// Only what no trusted ref has is looked at.
func TestMergingMainIsNeverRefused(t *testing.T) {
	s := newStackWith(t, workflow, "on: push\n")
	s.put(t, "work", "of the agent\n")
	s.taken(t)
	s.trust(t, workflow, "on: pull_request\n")
	s.trust(t, "CODEOWNERS", "* @alice\n")
	s.trust(t, "token", "ghp_"+"012345678901234567890123456789abcdEF\n") // a person's mistake
	git(t, s.clone, "fetch", "-q", "origin")
	git(t, s.clone, "merge", "-q", "-m", "merge main", "origin/main")
	s.put(t, "more", "work\n")
	s.taken(t)
	// A branch that begins at main, with nothing of its own.
	git(t, s.clone, "push", "-q", "origin", "origin/main:refs/heads/agent/3-again")
}

// A merge says that it took what both have; what it says else is its author's.
func TestAMergeThatLies(t *testing.T) {
	for name, lie := range map[string]func(t *testing.T, s *stack){
		"an older workflow, by its own side": func(t *testing.T, s *stack) {
			git(t, s.clone, "merge", "-q", "-s", "ours", "-m", "merge main", "origin/main")
		},
		"a workflow that neither has": func(t *testing.T, s *stack) {
			git(t, s.clone, "merge", "-q", "--no-commit", "origin/main")
			write(t, filepath.Join(s.clone, workflow), "on: never\n")
			git(t, s.clone, "commit", "-qam", "merge main")
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStackWith(t, workflow, "on: push\n")
			s.put(t, "work", "of the agent\n")
			s.trust(t, workflow, "on: pull_request\n")
			git(t, s.clone, "fetch", "-q", "origin")
			lie(t, s)
			s.refused(t, "protected path "+workflow, s.head(t)[:12])
		})
	}
	t.Run("of three", func(t *testing.T) {
		s := newStack(t)
		tree := strings.TrimSpace(git(t, s.clone, "rev-parse", "HEAD^{tree}"))
		var parents []string
		for _, m := range []string{"a", "b", "c"} {
			parents = append(parents, "-p", strings.TrimSpace(git(t, s.clone, "commit-tree", "-m", m, "-p", "HEAD", tree)))
		}
		git(t, s.clone, "reset", "-q", "--hard", strings.TrimSpace(git(t, s.clone, append(append([]string{"commit-tree", "-m", "all"}, parents...), tree)...)))
		s.refused(t, "octopus merge")
	})
}

// Anybody may open a pull request, and another issue's agent had another's leave.
func TestWhatIsOnTheForgeIsNotTrustedForThat(t *testing.T) {
	for _, ref := range []string{"refs/pull/1/head", "refs/heads/agent/4-other", "refs/heads/agent/31-other"} {
		s := newStack(t)
		s.put(t, workflow, "on: never\n")
		git(t, s.clone, "push", "-q", s.bare, "HEAD:"+ref)
		git(t, s.clone, "fetch", "-q", "origin")
		s.refused(t, "protected path "+workflow)
	}
	s := newStack(t)
	s.put(t, workflow, "on: never\n")
	git(t, s.clone, "push", "-q", s.bare, "HEAD:refs/heads/feature") // by who may push
	s.put(t, "work", "x")
	// The clone has it without having fetched it: the cache learns of it by the push.
	if out, err := s.push(t); err == nil || !strings.Contains(out, "push again") {
		t.Errorf("%v %s", err, out)
	}
	s.taken(t)
}

func TestSecretsAreRefused(t *testing.T) {
	const key = "ghp_" + "012345678901234567890123456789abcdEF"
	for name, add := range map[string]func(t *testing.T, s *stack) []string{
		"in a file": func(t *testing.T, s *stack) []string {
			s.put(t, "src/config.py", "a\nb\ntoken = '"+key+"'\n")
			return []string{"secret src/config.py, line 3", "github-pat"}
		},
		"excused in its line": func(t *testing.T, s *stack) []string {
			s.put(t, "a", "token = '"+key+"' # gitleaks:allow\n")
			return []string{"secret a, line 1"}
		},
		"in a commit that the next one undoes": func(t *testing.T, s *stack) []string {
			s.put(t, "a", key+"\n")
			first := s.head(t)
			s.put(t, "a", "nothing\n")
			return []string{"secret a, line 1, in commit " + first[:12]}
		},
		"in a message": func(t *testing.T, s *stack) []string {
			s.put(t, "a", "x")
			git(t, s.clone, "commit", "-q", "--amend", "-m", "work\n\ndiff --git a/x b/x\n+++ b/x\n@@ -0,0 +1,99999 @@\n+"+key+"\n")
			return []string{"secret in the message"}
		},
		"behind a message that looks like a patch": func(t *testing.T, s *stack) []string {
			s.put(t, "a", "x\n"+key+"\n")
			git(t, s.clone, "commit", "-q", "--amend", "-m", "work\n\ndiff --git a/go.sum b/go.sum\n+++ b/go.sum\n@@ -0,0 +1,99999 @@\n+x\n")
			return []string{"secret a, line 2"}
		},
		"behind a message whose encoding makes an end of it": func(t *testing.T, s *stack) []string {
			s.put(t, "a", "x\n"+key+"\n")
			head, _, _ := strings.Cut(git(t, s.clone, "cat-file", "commit", "HEAD"), "\n\n")
			raw := filepath.Join(t.TempDir(), "commit") // in UTF-7, +AAA- is a byte 0
			write(t, raw, head+"\nencoding UTF-7\n\nwork\n+AAA-\ndiff --git a/go.sum b/go.sum\n+-+-+- b/go.sum\n@@ -0,0 +-1,99999 @@\n+-x\n")
			git(t, s.clone, "update-ref", "HEAD", strings.TrimSpace(git(t, s.clone, "hash-object", "-t", "commit", "-w", raw)))
			return []string{"secret a, line 2"}
		},
		"behind a line that looks like a head": func(t *testing.T, s *stack) []string {
			s.put(t, "a", "++ b/go.sum\n"+key+"\n")
			return []string{"secret a, line 2"}
		},
		"in a merge": func(t *testing.T, s *stack) []string {
			s.put(t, "a", "x")
			s.trust(t, "b", "x")
			git(t, s.clone, "fetch", "-q", "origin")
			git(t, s.clone, "merge", "-q", "--no-commit", "origin/main")
			s.put(t, "b", "x\n"+key+"\n")
			return []string{"secret b, line 2"}
		},
		"in a file of a strange name": func(t *testing.T, s *stack) []string {
			s.put(t, "dir/é \"x\"", key+"\n")
			return []string{"secret \"dir/é \\\"x\\\"\", line 1"}
		},
		"a private key": func(t *testing.T, s *stack) []string {
			s.put(t, "id", "-----BEGIN OPENSSH PRIVATE KEY-----\n"+strings.Repeat("b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQAAAAAAAAABAAAAMwAAAAtz\n", 5)+"-----END OPENSSH PRIVATE KEY-----\n")
			return []string{"secret id, line 1", "private-key"}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newStack(t)
			words := add(t, s)
			out := s.refused(t, append(words, "What to do:")...)
			if strings.Contains(out+s.log.String(), key) {
				t.Error("the secret is told on")
			}
		})
	}
}

func TestNamesThatTrickAreRefused(t *testing.T) {
	for name, why := range map[string]string{
		"src/aux.c": "device", "NUL": "device", "com1.txt": "device", "ends.": "dot or a space", "dir /x": "dot or a space", "a\\b": "no part of a name", "a:b": "no part of a name",
		"zero\u200bwidth": "invisible", "bidi\u202egnp.exe": "invisible", "new\nline": "control", "esc\x1b[2J": "control", "latin\xe9": "not UTF-8",
		"readme": "README is there too", "ReadMe/x": "README is there too",
	} {
		t.Run(fmt.Sprintf("%q", name), func(t *testing.T) {
			t.Parallel()
			s := newStack(t)
			s.put(t, name, "x")
			if out := s.refused(t, "name ", why, "What to do:"); strings.ContainsAny(out, "\x1b\u202e\u200b") {
				t.Errorf("the name is printed as it is: %q", out)
			}
		})
	}
	t.Run("two of one push", func(t *testing.T) {
		s := newStack(t)
		s.put(t, "Straße/a", "x")
		s.put(t, "STRAßE/b", "x")
		s.refused(t, "is there too", "name ")
	})
	t.Run("branches", func(t *testing.T) {
		s := newStack(t)
		s.put(t, "a", "x")
		s.taken(t)
		for branch, why := range map[string]string{"agent/3-WORK": "is there too", "agent/3-nul/nul": "device", "agent/3-x\u200b": "invisible"} {
			if out, err := run(s.clone, "push", "origin", "HEAD:refs/heads/"+branch); err == nil || !strings.Contains(out, why) {
				t.Errorf("%q: %v %s", branch, err, out)
			}
		}
	})
	t.Run("what is there already", func(t *testing.T) {
		s := newStackWith(t, "src/aux.c", "by a person\n")
		s.put(t, "src/aux.c", "changed\n")
		s.taken(t)
	})
}

func TestWhatGitFindsDamagedIsRefused(t *testing.T) {
	for name, entry := range map[string]string{"a .git": ".git", "one for other systems": ".GIT", "one above": "..", "its hidden self": ".g\u200cit"} {
		t.Run(name, func(t *testing.T) {
			s := newStack(t)
			blob := strings.TrimSpace(git(t, s.clone, "hash-object", "-w", "README"))
			raw := append([]byte("100644 "+entry+"\x00"), hexBytes(t, blob)...)
			tree := filepath.Join(t.TempDir(), "tree")
			if err := os.WriteFile(tree, raw, 0o600); err != nil {
				t.Fatal(err)
			}
			id := strings.TrimSpace(git(t, s.clone, "hash-object", "-t", "tree", "--literally", "-w", tree))
			commit := strings.TrimSpace(git(t, s.clone, "commit-tree", "-m", "x", "-p", "HEAD", id))
			git(t, s.clone, "update-ref", "HEAD", commit)
			s.refused(t, "git refuses the push's objects", "What to do:")
		})
	}
}

func hexBytes(t *testing.T, text string) []byte {
	t.Helper()
	var b []byte
	if _, err := fmt.Sscanf(text, "%x", &b); err != nil {
		t.Fatal(err)
	}
	return b
}

func TestLimitsOfAPush(t *testing.T) {
	for name, tt := range map[string]struct {
		limits mirror.Limits
		words  []string
	}{
		"a file":  {mirror.Limits{Push: 1 << 30, Unpacked: 1 << 30, File: 1 << 20, Objects: 1000}, []string{"a file in it has 2 MiB, and 1 MiB", "LFS"}},
		"a push":  {mirror.Limits{Push: 1 << 20, Unpacked: 1 << 30, File: 1 << 30, Objects: 1000}, []string{"more than 1 MiB"}},
		"objects": {mirror.Limits{Push: 1 << 30, Unpacked: 1 << 30, File: 1 << 30, Objects: 2}, []string{"3 objects"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStack(t)
			s.config.Limits = tt.limits
			s.start(t)
			git(t, s.clone, "remote", "set-url", "origin", s.url+"/work/alice/hello.git")
			s.commit(t, "large", 2<<20)
			s.refused(t, append(tt.words, "What to do:")...)
		})
	}
}

// A trusted person lifts one path, once.
func TestALiftedPath(t *testing.T) {
	s := newStackWith(t, workflow, "on: push\n")
	var mu sync.Mutex
	var lifts []mirror.Lift
	fails := false
	s.rules.Lifts = func(context.Context) ([]mirror.Lift, error) {
		mu.Lock()
		defer mu.Unlock()
		if fails {
			return nil, errors.New("the forge is away")
		}
		return lifts, nil
	}
	allow := func(id int64, path string) {
		mu.Lock()
		defer mu.Unlock()
		lifts = append(lifts, mirror.Lift{ID: fmt.Sprint(id), Path: path})
	}
	s.start(t)
	git(t, s.clone, "remote", "set-url", "origin", s.url+"/work/alice/hello.git")
	s.put(t, workflow, "on: never\n")
	s.refused(t, workflow)
	allow(11, "CODEOWNERS")
	s.refused(t, workflow)
	allow(12, workflow)
	fails = true
	s.refused(t, workflow)
	fails = false
	s.put(t, "CODEOWNERS.md", "x")
	s.taken(t)
	s.put(t, "more", "work")
	s.taken(t) // what was lifted once is not looked at again
	s.put(t, workflow, "on: again\n")
	s.refused(t, workflow)
	allow(13, workflow)
	s.start(t) // and a new service knows what was used up
	git(t, s.clone, "remote", "set-url", "origin", s.url+"/work/alice/hello.git")
	s.taken(t)
	s.put(t, workflow, "on: thrice\n")
	s.refused(t, workflow)
	allow(14, "token")
	git(t, s.clone, "reset", "-q", "--hard", "HEAD~1")
	s.put(t, "token", "ghp_"+"012345678901234567890123456789abcdEF\n")
	s.taken(t)
}

// What ends a pack can't be sent ahead of the gate's word, whatever follows it.
func TestAPackWithMoreAtItsEndNeverReachesTheForge(t *testing.T) {
	s := newStack(t)
	s.put(t, workflow, "on: never\n")
	cmd := exec.Command("git", "pack-objects", "--revs", "--stdout", "-q")
	cmd.Dir, cmd.Stdin = s.clone, strings.NewReader("HEAD\n^origin/main\n")
	pack, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, more := range []int{1, 20, 64, 100 << 10} {
		body := pkt(strings.Repeat("0", 40)+" "+s.head(t)+" refs/heads/agent/3-work\x00report-status") + "0000" + string(pack) + strings.Repeat("x", more)
		out := s.post(t, body)
		if !strings.Contains(out, "ng refs/heads/agent/3-work") || s.onForge(t) != "" {
			t.Errorf("with %d bytes more: %q, and the forge has %q", more, out, s.onForge(t))
		}
	}
	settled(t, s.nothingLeft)
}

func (s *stack) post(t *testing.T, body string) string {
	t.Helper()
	resp, err := http.Post(s.url+"/work/alice/hello.git/git-receive-pack", "application/x-git-receive-pack-request", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var b bytes.Buffer
	if _, err := b.ReadFrom(resp.Body); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// Packs that are small and say, or do, that they unpack to much.
func TestAPackMadeToExplode(t *testing.T) {
	s := newStack(t)
	deflate := func(b []byte) string {
		var out bytes.Buffer
		z := zlib.NewWriter(&out)
		if _, err := z.Write(b); err != nil {
			t.Fatal(err)
		}
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
		return out.String()
	}
	head := func(kind byte, size uint64) string {
		b := []byte{kind<<4 | byte(size&15)}
		for size >>= 4; size > 0; size >>= 7 {
			b[len(b)-1] |= 0x80
			b = append(b, byte(size&0x7f))
		}
		return string(b)
	}
	pack := func(objects ...string) string {
		return "PACK\x00\x00\x00\x02" + string(binary.BigEndian.AppendUint32(nil, uint32(len(objects)))) + strings.Join(objects, "") + strings.Repeat("x", 20)
	}
	zeros := deflate(make([]byte, 30<<20))
	many := make([]string, 20)
	for i := range many {
		many[i] = head(3, 30<<20) + zeros
	}
	for name, p := range map[string]string{
		"a blob of a terabyte":       pack(head(3, 1<<40) + deflate([]byte("x"))),
		"more than a blob says":      pack(head(3, 1) + deflate(make([]byte, 40<<20))),
		"a delta to a terabyte":      pack(head(7, 9) + strings.Repeat("\x11", 20) + deflate([]byte("\x05\x80\x80\x80\x80\x80\x80\x01x"))),
		"many that are large":        pack(many...),
		"a size without end":         pack("\xbf" + strings.Repeat("\xff", 30)),
		"a million objects":          "PACK\x00\x00\x00\x02\x00\x10\x00\x00",
		"an offset before the start": pack(head(6, 3) + "\x7f" + deflate([]byte("\x01\x01x"))),
	} {
		body := pkt(strings.Repeat("0", 40)+" "+strings.Repeat("1", 40)+" refs/heads/agent/3-work\x00report-status") + "0000" + p
		if out := s.post(t, body); !strings.Contains(out, "ng refs/heads/agent/3-work") {
			t.Errorf("%s: %q", name, out)
		}
	}
	settled(t, s.nothingLeft)
	s.put(t, "a", "and then all is as before")
	s.taken(t)
}

// A push while the forge is down is looked at, kept, told of truly, and delivered.
func TestAPushWhileTheForgeIsDown(t *testing.T) {
	s := newStack(t)
	s.config.Wait = 100 * time.Millisecond
	s.start(t)
	git(t, s.clone, "remote", "set-url", "origin", s.url+"/work/alice/hello.git")
	s.put(t, "a", "first\n")
	s.taken(t)
	s.down.Store(true)
	s.put(t, "b", "second\n")
	words := []string{"not on the forge yet", "Pushing again later is not needed"}
	if out, err := s.push(t); err == nil || !strings.Contains(out, words[0]) || !strings.Contains(out, words[1]) {
		t.Fatalf("%v %s", err, out)
	}
	s.put(t, "c", "third\n")
	if out, err := s.push(t); err == nil || !strings.Contains(out, words[0]) {
		t.Fatalf("%v %s", err, out)
	}
	want := s.head(t)
	s.put(t, workflow, "on: never\n")
	if out, err := s.push(t); err == nil || !strings.Contains(out, "protected path") {
		t.Errorf("what is refused is refused without the forge too: %v %s", err, out)
	}
	if err := s.work.Deliver(t.Context(), map[string]bool{}); err == nil {
		t.Error("it is delivered to a forge that is down")
	}
	s.down.Store(false)
	s.start(t) // the service is killed meanwhile, too
	for range 2 {
		if err := s.work.Deliver(t.Context(), map[string]bool{}); err != nil {
			t.Fatal(err)
		}
		if got := s.onForge(t); got != want {
			t.Errorf("the forge has %s, want %s", got, want)
		}
	}
	if out := s.store(t, "for-each-ref", "refs/pending"); out != "" {
		t.Errorf("%s still waits", out)
	}
}

func TestWhatCantBeDeliveredIsKeptAndTold(t *testing.T) {
	s := newStack(t)
	s.config.Wait = 100 * time.Millisecond
	s.start(t)
	git(t, s.clone, "remote", "set-url", "origin", s.url+"/work/alice/hello.git")
	s.down.Store(true)
	s.put(t, "a", "mine\n")
	if out, err := s.push(t); err == nil {
		t.Fatal(out)
	}
	mine := s.head(t)
	git(t, s.clone, "reset", "-q", "--hard", "HEAD~1")
	s.put(t, "a", "somebody else's\n")
	git(t, s.clone, "push", "-q", s.bare, "HEAD:refs/heads/agent/3-work")
	s.down.Store(false)
	told := map[string]bool{}
	for range 2 {
		if err := s.work.Deliver(t.Context(), told); err != nil {
			t.Fatal(err)
		}
	}
	if got := s.onForge(t); got != s.head(t) {
		t.Errorf("the forge's branch is overwritten: %s", got)
	}
	if out := s.store(t, "rev-parse", "refs/pending/heads/agent/3-work"); strings.TrimSpace(out) != mine {
		t.Errorf("kept is %s, want %s", out, mine)
	}
	if n := strings.Count(s.log.String(), "moved on"); n != 1 {
		t.Errorf("it is told %d times", n)
	}
}

func TestEachPushIsRecorded(t *testing.T) {
	s := newStack(t)
	s.put(t, "a", "x")
	s.taken(t)
	var got mirror.Provenance
	if err := json.Unmarshal([]byte(s.store(t, "notes", "--ref=refs/notes/pushes", "show", s.head(t))), &got); err != nil {
		t.Fatal(err)
	}
	if got.Pusher != pusher || time.Since(got.At) > time.Minute {
		t.Errorf("recorded is %+v", got)
	}
	if out := git(t, s.bare, "for-each-ref"); strings.Contains(out, "notes") {
		t.Errorf("the forge has it too: %s", out)
	}
	if out := s.store(t, "rev-parse", "refs/accepted/heads/agent/3-work"); strings.TrimSpace(out) != s.head(t) {
		t.Errorf("accepted is %s", out)
	}
}

// A push that the forge itself refuses is told as the forge tells it, and is not
// taken for accepted: what it needed a permission for needs it still.
func TestAForgeThatRefuses(t *testing.T) {
	s := newStack(t)
	s.rules.Lifts = func(context.Context) ([]mirror.Lift, error) { return []mirror.Lift{{ID: "1", Path: "CODEOWNERS"}}, nil }
	s.start(t)
	git(t, s.clone, "remote", "set-url", "origin", s.url+"/work/alice/hello.git")
	s.put(t, "a", "x")
	s.taken(t)
	first := s.head(t)
	hook := filepath.Join(s.bare, "hooks", "pre-receive")
	if err := os.MkdirAll(filepath.Dir(hook), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(hook, []byte("#!/bin/sh\necho the forge has its own reasons >&2\nexit 1\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	s.put(t, "CODEOWNERS", "* @agent\n")
	out, err := s.push(t)
	if err == nil || !strings.Contains(out, "the forge has its own reasons") {
		t.Errorf("%v %s", err, out)
	}
	if got := s.store(t, "for-each-ref", "--format=%(refname) %(objectname)", "refs/accepted", "refs/lifted", "refs/pending"); got != "refs/accepted/heads/agent/3-work "+first+"\n" {
		t.Errorf("recorded is %s", got)
	}
	if err := os.Remove(hook); err != nil {
		t.Fatal(err)
	}
	s.taken(t)
}

func TestTwoPodsPushToOneRepository(t *testing.T) {
	s := newStack(t)
	rules := s.rules
	rules.BranchPrefix = "agent/4-"
	urls := []string{s.url, s.serve(t, rules)}
	var wait sync.WaitGroup
	for i, url := range urls {
		clone := filepath.Join(t.TempDir(), "clone")
		git(t, "/", "clone", "-q", url+"/work/alice/hello.git", clone)
		wait.Go(func() {
			for n := range 5 {
				if err := os.WriteFile(filepath.Join(clone, fmt.Sprintf("f%d", n)), []byte(url), 0o600); err != nil {
					t.Error(err)
				}
				for _, args := range [][]string{{"add", "."}, {"commit", "-qm", "x"}, {"push", "-q", "origin", fmt.Sprintf("HEAD:refs/heads/agent/%d-work", i+3)}} {
					if out, err := run(clone, args...); err != nil {
						t.Errorf("git %s: %v %s", args, err, out)
					}
				}
			}
		})
	}
	wait.Wait()
	if out := git(t, s.bare, "for-each-ref", "refs/heads/agent"); strings.Count(out, "\n") != 2 {
		t.Errorf("the forge has %s", out)
	}
}

// A client that goes midway leaves nothing, here or on the forge.
func TestAPusherThatGoes(t *testing.T) {
	s := newStack(t)
	s.commit(t, "large", 8<<20)
	before := git(t, s.bare, "count-objects", "-v")
	body := pkt(strings.Repeat("0", 40)+" "+s.head(t)+" refs/heads/agent/3-work\x00report-status") + "0000"
	cmd := exec.Command("git", "pack-objects", "--revs", "--stdout", "-q")
	cmd.Dir, cmd.Stdin = s.clone, strings.NewReader("HEAD\n^origin/main\n")
	pack, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequest("POST", s.url+"/work/alice/hello.git/git-receive-pack", &brokenOff{text: body + string(pack[:len(pack)/2])})
	if err != nil {
		t.Fatal(err)
	}
	if resp, err := http.DefaultClient.Do(req); err == nil {
		resp.Body.Close()
		t.Error("it is answered")
	}
	settled(t, s.nothingLeft)
	settled(t, func() error {
		if after := git(t, s.bare, "count-objects", "-v"); after != before {
			return fmt.Errorf("the forge has %s, want %s", after, before)
		}
		return nil
	})
}

// A brokenOff is a body that fails after its text.
type brokenOff struct{ text string }

func (b *brokenOff) Read(p []byte) (int, error) {
	if b.text == "" {
		return 0, errors.New("gone")
	}
	n := copy(p, b.text)
	b.text = b.text[n:]
	return n, nil
}

// What a killed service left is swept by the next.
func TestWhatAKilledServiceLeft(t *testing.T) {
	s := newStack(t)
	s.put(t, "a", "x")
	s.taken(t)
	left := []string{"7.git/incoming-1/pack/tmp_pack_x", "8.git.new/HEAD", "7.git/refs/accepted/heads/agent/3-work.lock", "7.git/packed-refs.lock"}
	for _, f := range left {
		f = filepath.Join(s.config.Dir, f)
		if err := os.MkdirAll(filepath.Dir(f), 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, f, "x")
	}
	s.start(t)
	git(t, s.clone, "remote", "set-url", "origin", s.url+"/work/alice/hello.git")
	for _, f := range left {
		if _, err := os.Stat(filepath.Join(s.config.Dir, f)); err == nil {
			t.Errorf("%s stays", f)
		}
	}
	s.put(t, "b", "x")
	s.taken(t)
}

// What people have reviewed stays on its branch, until one of them takes it off.
func TestAReviewedCommitStays(t *testing.T) {
	s := newStack(t)
	s.put(t, "a", "1")
	s.put(t, "b", "1")
	s.taken(t)
	reviewed := ""
	s.rules.Reviewed = func() (string, error) { return reviewed, nil }
	s.start(t)
	git(t, s.clone, "remote", "set-url", "origin", s.url+"/work/alice/hello.git")
	git(t, s.clone, "commit", "-q", "--amend", "-m", "not reviewed yet")
	s.taken(t, "-f")
	reviewed = s.head(t)
	git(t, s.clone, "commit", "-q", "--amend", "-m", "another")
	s.refused(t, "commit "+reviewed[:10]+" was reviewed, and stays as it is", "push without force")
	git(t, s.clone, "reset", "-q", "--hard", reviewed+"^")
	s.refused(t, "was reviewed")
	git(t, s.clone, "reset", "-q", "--hard", reviewed)
	s.put(t, "c", "1")
	s.taken(t)
	s.trust(t, "d", "1")
	git(t, s.clone, "fetch", "-q", "origin", "main")
	git(t, s.clone, "merge", "-q", "--no-edit", "FETCH_HEAD")
	s.taken(t)
	// A person has thrown it away: the agent takes that over.
	git(t, s.bare, "update-ref", "refs/heads/agent/3-work", "refs/heads/main")
	git(t, s.clone, "fetch", "-q", "origin", "agent/3-work")
	git(t, s.clone, "reset", "-q", "--hard", "FETCH_HEAD")
	s.put(t, "e", "1")
	s.taken(t)
}
