package saver_test

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/pods/podfile"
)

func mkfifo(t *testing.T, path string) {
	t.Helper()
	must(t, syscall.Mkfifo(path, 0o644))
}

// touchy is a command that leaves a file behind when it is run.
func (p *place) touchy() (command, mark string) {
	mark = p.path("it-was-run")
	return "touch " + mark, mark
}

func TestNothingOfTheAgentsConfigurationIsRun(t *testing.T) {
	p := newPlace(t)
	command, mark := p.touchy()
	script := p.path("evil.sh")
	must(t, os.WriteFile(script, []byte("#!/bin/sh\n"+command+"\ncat\n"), 0o755))
	included := p.path("workspace/included")
	must(t, os.WriteFile(included, []byte("[core]\n\tfsmonitor = "+script+"\n\tsshCommand = "+script+"\n"), 0o644))
	for _, kv := range [][2]string{
		{"include.path", included}, {"core.fsmonitor", script}, {"core.hooksPath", p.path("workspace/repo/hooks")}, {"core.worktree", "/etc"},
		{"core.attributesFile", p.path("workspace/attributes")}, {"core.excludesFile", p.path("workspace/excludes")},
		{"filter.evil.clean", script}, {"filter.evil.smudge", script}, {"filter.evil.process", script}, {"filter.evil.required", "true"},
		{"diff.external", script}, {"core.editor", script}, {"core.pager", script}, {"credential.helper", "!" + script},
		{"core.alternateRefsCommand", script}, {"uploadpack.packObjectsHook", script}, {"protocol.ext.allow", "always"},
		{"url.ext::" + script + ".insteadOf", "http://"}, {"remote.origin.url", "ext::" + script}, {"core.gitProxy", script}, {"http.proxy", "http://127.0.0.1:1"},
	} {
		p.git("", "config", "--file", filepath.Join(p.clone, ".git/config"), kv[0], kv[1])
	}
	must(t, os.WriteFile(p.path("workspace/attributes"), []byte("* filter=evil\n"), 0o644))
	must(t, os.WriteFile(p.path("workspace/excludes"), []byte("*\n"), 0o644))
	p.write(".gitattributes", "* filter=evil text eol=crlf ident working-tree-encoding=UTF-16\n")
	p.write(".git/info/attributes", "* filter=evil\n")
	p.write(".git/info/exclude", "*\n")
	for _, hook := range []string{"post-index-change", "pre-push", "reference-transaction", "post-checkout", "pre-commit", "fsmonitor-watchman"} {
		for _, dir := range []string{".git/hooks/", "hooks/"} {
			p.write(dir+hook, "#!/bin/sh\n"+command+"\n")
			must(t, os.Chmod(filepath.Join(p.clone, dir, hook), 0o755))
		}
	}
	const text = "one\r\ntwo\n$Id$\n"
	p.write("file", text)
	p.once()
	if got := p.saved("file"); got+"\n" != text {
		t.Errorf("saved as %q, want %q", got, text)
	}
	if _, err := os.Stat(mark); err == nil {
		t.Error("something of the agent's was run")
	}
	// Nor does a saver look below a root that is replaced by a link.
	must(t, os.Rename(p.clone, p.clone+".old"))
	must(t, os.Symlink("/etc", p.clone))
	if told := p.once(); why(told.NotSaved)["."] != podfile.WhyUnread || p.saved("passwd") != "(none)" {
		t.Errorf("%v", told.NotSaved)
	}
}

func TestWhatCannotBeSavedIsListed(t *testing.T) {
	p := newPlace(t)
	p.cfg.MaxFile = 1 << 20
	p.write(".gitignore", "*.o\n/build/\n/half/\n")
	p.write("half/tracked", "t\n")
	p.git(p.clone, "add", "--force", "half/tracked")
	p.write("half/untracked", "u\n")
	p.write("x.o", "object")
	p.write("build/deep/one", "12345")
	p.write("build/two", "12345")
	p.write("huge", strings.Repeat("h", 1<<20+1))
	p.write("just", strings.Repeat("j", 1<<20))
	p.write("inner/file", "i\n")
	p.git(filepath.Join(p.clone, "inner"), "init", "--quiet")
	p.write("sub/.git", "gitdir: ../.git/modules/sub\n")
	p.write("sub/file", "s\n")
	p.write("odd/.git/config", "no repository\n")
	p.write("odd/file", "o\n")
	p.write("case/.GIT/file", "g\n")
	p.write("ntfs/git~1", "g\n")
	must(t, os.Symlink("x", filepath.Join(p.clone, ".gitmodules")))
	mkfifo(t, filepath.Join(p.clone, "fifo"))
	l, err := net.Listen("unix", filepath.Join(p.clone, "socket"))
	must(t, err)
	defer l.Close()
	must(t, os.Symlink(".", filepath.Join(p.clone, "loop")))
	must(t, os.Symlink("/etc", filepath.Join(p.clone, "etc")))
	must(t, os.WriteFile(p.path("workspace/beside"), nil, 0o644))
	deep := filepath.Join(p.clone, "deep")
	must(t, os.MkdirAll(filepath.Join(deep, strings.Repeat("d/", 260)), 0o755))
	told := p.once()
	got := why(told.NotSaved)
	for name, want := range map[string]string{
		"x.o": podfile.WhyIgnored, "build": podfile.WhyIgnored, "half": podfile.WhyIgnored, "huge": podfile.WhyLarge, "inner": podfile.WhyNested, "sub": podfile.WhyNested,
		"fifo": podfile.WhySpecial, "socket": podfile.WhySpecial, "odd/.git": podfile.WhyName, "case/.GIT": podfile.WhyName, "ntfs/git~1": podfile.WhyName,
		".gitmodules": podfile.WhyName, "../beside": podfile.WhyOutside, "deep/" + strings.Repeat("d/", 255) + "d": podfile.WhyDeep,
	} {
		if got[name] != want {
			t.Errorf("%s: %q, want %q", name, got[name], want)
		}
		delete(got, name)
	}
	if len(got) > 0 {
		t.Errorf("listed too: %v", got)
	}
	for _, n := range told.NotSaved {
		if n.Path == "build" && n.Size < 10 {
			t.Errorf("the size of an ignored folder: %+v", n)
		}
	}
	if got, want := p.files(), ".gitignore\nREADME\netc\nhalf/tracked\njust\nloop\nodd/file"; got != want {
		t.Errorf("saved:\n%s\nwant:\n%s", got, want)
	}
}

func TestOddNames(t *testing.T) {
	p := newPlace(t)
	all := []string{"new\nline", "tab\tand \"quotes\"", "-leading", "--all", "\xff\xfe not utf-8", "\\back\\slash", " spaces ", "ünïcödé", ":(top)magic", "#hash", "!bang", "*", "a.lock", "@{0}", strings.Repeat("n", 255)}
	for _, name := range all {
		p.write(name, "text of "+name)
		p.write("in/"+name+"/file", "below "+name)
	}
	told := p.once()
	if len(told.NotSaved) > 0 {
		t.Errorf("not saved: %v", told.NotSaved)
	}
	have := map[string]bool{}
	for _, name := range strings.Split(p.git(p.server, "ls-tree", "-r", "-z", "--name-only", work), "\x00") {
		have[name] = true
	}
	for _, name := range all {
		if !have[name] || !have["in/"+name+"/file"] {
			t.Errorf("%q is missing", name)
		}
	}
	// On the list, too, they are exact.
	p.write(".gitignore", "*utf-8\n")
	if got := why(p.once().NotSaved); got["\xff\xfe not utf-8"] != podfile.WhyIgnored {
		t.Errorf("%q", got)
	}
}

// Root reads everything, so an ordinary user runs this one.
func TestAnUnreadableFileIsListed(t *testing.T) {
	p := newPlace(t)
	p.write("secret", "s\n")
	must(t, os.Chmod(filepath.Join(p.clone, "secret"), 0))
	p.write("closed/file", "c\n")
	must(t, os.Chmod(filepath.Join(p.clone, "closed"), 0))
	t.Cleanup(func() { must(t, os.Chmod(filepath.Join(p.clone, "closed"), 0o755)) })
	saved := p.onceAsUser()
	if got := why(saved.NotSaved); got["secret"] != podfile.WhyUnread || got["closed"] != podfile.WhyUnread {
		t.Errorf("%v", got)
	}
}

func TestTheAgentsAlternatesAreNotRead(t *testing.T) {
	p := newPlace(t)
	other := p.path("other")
	must(t, os.MkdirAll(other, 0o755))
	p.git(other, "init", "--quiet")
	p.git(other, "commit", "--quiet", "--allow-empty", "-m", "of somebody else")
	foreign := p.git(other, "rev-parse", "HEAD")
	p.write(".git/objects/info/alternates", other+"/.git/objects\n")
	p.write(".git/refs/heads/stolen", foreign+"\n")
	told := p.once()
	if _, err := p.try(p.server, "cat-file", "-e", foreign); err == nil {
		t.Error("another repository's commit was saved")
	}
	if why(told.NotSaved)[".git/refs/heads/stolen"] != podfile.WhyCommits || told.Head == "" {
		t.Errorf("%v", told.NotSaved)
	}
	// But one that is known to be lent is.
	p.cfg.Borrow = []string{other + "/.git/objects"}
	if told := p.once(); len(told.NotSaved) > 0 || p.git(p.server, "rev-parse", "refs/saved/3/heads/stolen") != foreign {
		t.Errorf("%v", told.NotSaved)
	}
}

func TestBrokenObjectsCostOnlyThemselves(t *testing.T) {
	object := func(p *place, id string) string { return filepath.Join(p.clone, ".git/objects", id[:2], id[2:]) }
	for name, break_ := range map[string]func(t *testing.T, path string){
		"missing": func(t *testing.T, path string) { must(t, os.Remove(path)) },
		"a fifo":  func(t *testing.T, path string) { must(t, os.Remove(path)); mkfifo(t, path) },
		"a link out": func(t *testing.T, path string) {
			must(t, os.Rename(path, path+"x"))
			must(t, os.Symlink(path+"x", path))
		},
		"garbage": func(t *testing.T, path string) {
			must(t, os.Chmod(path, 0o644))
			must(t, os.WriteFile(path, []byte("garbage"), 0o644))
		},
		"another's": func(t *testing.T, path string) {
			must(t, os.Chmod(path, 0o644))
			other, err := filepath.Glob(filepath.Dir(filepath.Dir(path)) + "/??/*")
			must(t, err)
			for _, o := range other {
				if o != path {
					b, err := os.ReadFile(o)
					must(t, err)
					must(t, os.WriteFile(path, b, 0o644))
					return
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPlace(t)
			good := p.git(p.clone, "rev-parse", "HEAD")
			p.once()
			p.write("second", "2\n")
			p.commit("second")
			break_(t, object(p, p.git(p.clone, "rev-parse", "HEAD")))
			p.write("third", "3\n")
			start := time.Now()
			told := p.once()
			if time.Since(start) > time.Minute {
				t.Error("it hung")
			}
			if p.saved("second") != "2" || p.saved("third") != "3" || told.Head != good {
				t.Errorf("%+v", told)
			}
			if got := why(told.NotSaved); got[".git/HEAD"] != podfile.WhyCommits || got[".git/refs/heads/main"] != podfile.WhyCommits {
				t.Errorf("listed: %v", got)
			}
			p.git(p.server, "fsck", "--strict")
		})
	}
}

// What whoever takes pushes refuses must not stop all that comes after.
func TestCommitsThatGitRefusesCostOnlyThemselves(t *testing.T) {
	p := newPlace(t)
	blob := p.git(p.clone, "rev-parse", "HEAD:README")
	raw := []byte(fmt.Sprintf("100644 .git\x00%s", unhex(t, blob)))
	cmd := exec.Command("git", "hash-object", "-t", "tree", "-w", "--stdin", "--literally")
	cmd.Dir, cmd.Env, cmd.Stdin = p.clone, environ, strings.NewReader(string(raw))
	out, err := cmd.Output()
	must(t, err)
	evil := p.git(p.clone, "commit-tree", "-m", "evil", strings.TrimSpace(string(out)))
	p.git(p.clone, "update-ref", "refs/heads/evil", evil)
	p.write("work", "w\n")
	told := p.once()
	if p.saved("work") != "w" || why(told.NotSaved)[".git/refs/heads/evil"] != podfile.WhyCommits || told.Head == "" {
		t.Errorf("%+v", told)
	}
}

func unhex(t *testing.T, s string) string {
	t.Helper()
	var b []byte
	_, err := fmt.Sscanf(s, "%x", &b)
	must(t, err)
	return string(b)
}

func TestOverTheQuotaIsListed(t *testing.T) {
	p := newPlace(t)
	p.once()
	p.cfg.Quota = 2 << 20
	p.write("fits", strings.Repeat("f", 1<<19))
	p.write("too-much", strings.Repeat("t", 2<<20))
	told := p.once()
	if why(told.NotSaved)["too-much"] != podfile.WhyQuota || p.saved("fits") == "(none)" {
		t.Errorf("%v", told.NotSaved)
	}
}

// The agent can use up what its user may watch.
func TestWithoutWatchesItLooksAtEverything(t *testing.T) {
	for _, limit := range []string{"max_inotify_instances", "max_inotify_watches"} {
		t.Run(limit, func(t *testing.T) {
			p := newPlace(t)
			saver := p.run(limit)
			p.eventually("the first save", func() bool { return p.saved("README") == "hello" })
			p.write("a/b", "one\n")
			p.eventually("an edit", func() bool { return p.saved("a/b") == "one" })
			p.write("a/b", "two\n")
			p.eventually("another", func() bool { return p.saved("a/b") == "two" })
			if !strings.Contains(saver.said.String(), "looking at everything") {
				t.Errorf("the log does not say so: %s", saver.said)
			}
		})
	}
}
