package shim_test

import (
	"bytes"
	"context"
	"crypto/sha1"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"codeberg.org/devaipod/devaipod/mirror"
	"codeberg.org/devaipod/devaipod/mirror/gitproc/gitproctest"
	"codeberg.org/devaipod/devaipod/pods/podfile"
	"codeberg.org/devaipod/devaipod/pods/saver"
)

// A lockedBuffer is a log that several write to.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// A savingPlace has a work store too, that a saver saves to and the gate restores
// from: all of it the real thing.
type savingPlace struct {
	*place
	saver saver.Config
	rules mirror.SaveRules
	store string // the work store's repository
	log   *lockedBuffer
	pods  int
}

func newSavingPlace(t *testing.T) *savingPlace {
	t.Helper()
	p := &savingPlace{place: newPlace(t), log: &lockedBuffer{}}
	p.cfg.Log = slog.New(slog.NewTextHandler(p.log, nil))
	p.cfg.RepoDir = p.path("volume/repo")
	p.store = p.path("work/7.git")
	p.rules = mirror.SaveRules{RepoID: 7, Issue: 3, Quota: 64 << 20}
	must(t, os.Mkdir(p.path("volume"), 0o755))
	p.commit("main", "a")
	work, err := mirror.NewWork(mirror.WorkConfig{
		ForgeURL: "http://127.0.0.1:1", Token: func() string { return "" }, Dir: p.path("work"), Launcher: gitproctest.Launcher,
		Copy:   func(string, int64) (string, bool) { return "", false },
		Known:  func(context.Context, string) (string, error) { return p.upstream, nil },
		Name:   func(context.Context, int64) (string, error) { return "ann/hello", nil },
		Limits: mirror.Limits{Push: 64 << 20, Unpacked: 256 << 20, File: 32 << 20, Objects: 100_000},
		Log:    p.cfg.Log,
	})
	must(t, err)
	p.place.saved = work.Saved(mirror.Rules{Repo: "ann/hello", RepoID: 7}, 3)
	l, err := net.Listen("unix", p.path("save.sock"))
	must(t, err)
	saves := httptest.NewUnstartedServer(work.Saves(func() (mirror.SaveRules, error) {
		return p.rules, nil
	}))
	saves.Listener = l
	saves.Start()
	t.Cleanup(saves.Close)
	p.saver = saver.Config{Issue: 3, Workspace: p.path("volume"), Socket: p.path("save.sock"), MaxFile: 1 << 20, Log: p.cfg.Log}
	p.openGate()
	return p
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// agent is a pod's whole life: it has what the one before had saved, runs a shell
// script in its clone, and is saved.
func (p *savingPlace) agent(script string) podfile.Saved {
	p.t.Helper()
	if o := p.run("sh", "-ec", script); o.code != 0 || o.err != nil {
		p.t.Fatalf("the agent: %+v\n%s", o, p.log)
	}
	return p.save()
}

func (p *savingPlace) save() podfile.Saved {
	p.t.Helper()
	p.pods++
	p.saver.Home = p.path(fmt.Sprint("saver", p.pods))
	saved := saver.Once(p.t.Context(), p.saver)
	if !saved.Complete {
		p.t.Fatalf("not saved: %+v\n%s", saved, p.log)
	}
	return saved
}

// lose removes the pod's volume.
func (p *savingPlace) lose() {
	p.t.Helper()
	must(p.t, os.RemoveAll(p.cfg.RepoDir))
}

// state is all of a clone that must come back, in words.
func (p *savingPlace) state() string {
	p.t.Helper()
	dir := p.cfg.RepoDir
	var b strings.Builder
	head, err := os.ReadFile(filepath.Join(dir, ".git", "HEAD"))
	must(p.t, err)
	fmt.Fprintf(&b, "HEAD %s%s\n%s\n", head, p.git(dir, "status", "--porcelain=v2", "--untracked-files=all"), p.git(dir, "for-each-ref", "refs/heads", "refs/stash"))
	must(p.t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			if d != nil && d.Name() == ".git" {
				return fs.SkipDir
			}
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		text, err := os.Readlink(path)
		if info.Mode().IsRegular() {
			var content []byte
			content, err = os.ReadFile(path)
			text = fmt.Sprintf("%x", sha1.Sum(content))
		}
		fmt.Fprintln(&b, strings.TrimPrefix(path, dir), info.Mode().Type(), info.Mode()&0o100, text)
		return err
	}))
	return b.String()
}

// without makes sure that the agent has begun from the repository as it is.
func (p *savingPlace) without(t *testing.T, why string) {
	t.Helper()
	if got := p.git(p.cfg.RepoDir, "status", "--porcelain", "--branch"); got != "## agent/3-x" {
		t.Errorf("it begins with %s", got)
	}
	if got, want := p.git(p.cfg.RepoDir, "for-each-ref", "--format=%(refname)"), "refs/heads/agent/3-x\nrefs/heads/main\nrefs/remotes/origin/HEAD\nrefs/remotes/origin/main"; got != want {
		t.Errorf("it has the refs\n%s", got)
	}
	if log := p.log.String(); !strings.Contains(log, "level=ERROR") || !strings.Contains(log, "does not come back") || !strings.Contains(log, why) {
		t.Errorf("the log does not tell of %q:\n%s", why, log)
	}
}

// nothingBeside makes sure that there is the clone and nothing else.
func (p *savingPlace) nothingBeside(t *testing.T) {
	t.Helper()
	if left, err := filepath.Glob(p.path("volume/*")); err != nil || len(left) != 1 {
		t.Errorf("the volume has %v, %v", left, err)
	}
}

// leaveWork leaves a bit of everything behind.
const leaveWork = `
git config user.name a; git config user.email a@b
printf 'one\n' >edited; printf 'x\n' >removed; printf 'x\n' >renamed; printf 'x\n' >run; printf 'x\n' >becomes-a-folder
mkdir folder; printf 'x\n' >folder/file; ln -s edited link; ln -s edited link2
printf 'forced\n' >forced.o; printf '*.o\n/built/\n' >.gitignore
printf '*.dos text eol=crlf\n*.id ident\n*.utf16 text working-tree-encoding=UTF-16\n*.lfs filter=lfs\n' >.gitattributes
printf 'a\r\nb\r\n' >mixed.dos; printf '$Id$\n' >a.id; printf 'pointer\n' >a.lfs
git add . ; git add -f forced.o; git update-index --add --cacheinfo 160000,1111111111111111111111111111111111111111,module
head -c 2000000 /dev/urandom >large; git add large
git commit -qm 'not pushed'
mkdir -p module
git branch side; git switch -q side; git commit -q --allow-empty -m 'on the side'; git switch -q agent/3-x
printf 'stashed\n' >edited; printf 'new\n' >stashed-too; git stash -q -u; rm -rf large; git checkout -q large; mkdir -p module
printf 'two\n' >edited; rm removed; mv renamed moved; chmod +x run; rm link; ln -s /etc/passwd link; rm link2; printf 'a file now\n' >link2
rm becomes-a-folder; mkdir becomes-a-folder; printf 'y\n' >becomes-a-folder/in; rm -r folder; printf 'z\n' >folder
printf 'lf\nonly\n' >lf.dos; printf 'a\nc\n' >mixed.dos; printf '$Id: kept $ and more\n' >a.id; printf 'changed\n' >forced.o
mkdir -p deep/er; printf 'untracked\n' >deep/er/file; printf '\001\000bytes' >"deep/odd ü	name"; printf 'e\n' >empty-not; : >empty
`

func TestTheNextPodBeginsWithWhatWasSaved(t *testing.T) {
	for name, tt := range map[string]struct {
		more    string
		borrows bool
	}{
		"on its branch":            {"", false},
		"in a clone that borrows":  {"", true},
		"on another branch":        {"git switch -q -c own/branch", false},
		"detached":                 {"git switch -q --detach", false},
		"without the base branch":  {"git branch -q -D main; git branch main/below", false},
		"with all of it committed": {"git add -A; git commit -qm all", false},
	} {
		t.Run(name, func(t *testing.T) {
			p := newSavingPlace(t)
			if tt.borrows {
				p.borrowable()
				p.rules.Borrow, p.saver.Borrow = p.cfg.BorrowDir, []string{p.cfg.BorrowDir + "/objects"}
			}
			p.agent(leaveWork + tt.more + "\nmkdir built; printf 'ignored\n' >built/x; printf 'ignored\n' >x.o; rm -rf built x.o")
			before := p.state()
			p.lose()
			if o := p.run("sh", "-ec", "git fsck --no-dangling; git stash show -p --include-untracked stash@{0} | grep -q stashed; test -d module"); o.code != 0 || o.err != nil {
				t.Errorf("%+v\n%s", o, p.log)
			}
			if after := p.state(); after != before {
				t.Errorf("before\n%safter\n%s", before, after)
			}
			p.nothingBeside(t)
			for _, ref := range strings.Fields(p.git(p.cfg.RepoDir, "for-each-ref", "--format=%(refname)")) {
				if !strings.HasPrefix(ref, "refs/heads/") && !strings.HasPrefix(ref, "refs/remotes/origin/") && ref != "refs/stash" {
					t.Errorf("the clone has the ref %s", ref)
				}
			}
			if attributes := filepath.Join(p.cfg.RepoDir, ".git/info/attributes"); exists(attributes) {
				t.Error("attributes are switched off for good")
			}
		})
	}
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// The snapshots of the next pod follow those of the one before, and nothing of them
// is lost or kept twice.
func TestTheNextPodsSaverGoesOnFromWhatWasSaved(t *testing.T) {
	p := newSavingPlace(t)
	first := p.agent(leaveWork)
	p.lose()
	second := p.agent("printf 'three\n' >edited")
	if second.Previous != first.ID {
		t.Errorf("it follows %q, want %s", second.Previous, first.ID)
	}
	if kept := p.git(p.store, "for-each-ref", "refs/saved/3/kept"); kept != "" {
		t.Errorf("kept beside: %s", kept)
	}
	p.lose()
	if third := p.agent("grep three edited"); third.ID != second.ID {
		t.Error("a pod that changes nothing makes a snapshot")
	}
	if got := p.git(p.store, "show", first.ID+":edited"); got != "two" {
		t.Errorf("the first snapshot has %q", got)
	}
	p.git(p.store, "fsck", "--strict")
}

// After a merge of all that was saved, there is nothing to go on with.
func TestWhatTheBaseHasDoesNotComeBack(t *testing.T) {
	p := newSavingPlace(t)
	p.agent("printf x >work; git add .; git commit -qm work; git push -q origin HEAD:main")
	p.commit("later", "b")
	p.lose()
	if o := p.run("test", "-f", "work"); o.code != 0 || o.err != nil {
		t.Fatalf("%+v", o)
	}
	if got := p.git(p.cfg.RepoDir, "status", "--porcelain", "--branch"); got != "## agent/3-x" {
		t.Errorf("it begins with %s", got)
	}
	p.nothingBeside(t)
}

func TestAWorkspaceDoesNotBeginWithTheAgentsWork(t *testing.T) {
	p := newSavingPlace(t)
	p.agent("printf x >work")
	p.lose()
	p.cfg.Role = "workspace"
	if o := p.run("test", "!", "-e", "work"); o.code != 0 || o.err != nil {
		t.Errorf("%+v", o)
	}
}

// A service that is away while a pod starts costs time, not work.
func TestAServiceThatIsAwayIsWaitedFor(t *testing.T) {
	p := newSavingPlace(t)
	p.agent("printf x >work")
	p.lose()
	real := p.place.saved
	var asked atomic.Int64
	p.place.saved = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if asked.Add(1) <= 5 {
			http.Error(w, "devaipod: the service does not answer", http.StatusBadGateway)
			return
		}
		real.ServeHTTP(w, r)
	})
	if o := p.run("test", "-f", "work"); o.code != 0 || o.err != nil {
		t.Errorf("%+v\n%s", o, p.log)
	}
}

// A shim that ends in the middle leaves none, and the next one makes a whole one.
func TestAnEndInTheMiddleLeavesNoHalfOfIt(t *testing.T) {
	p := newSavingPlace(t)
	p.agent(leaveWork)
	before := p.state()
	p.lose()
	real := p.place.saved
	ctx, cancel := context.WithCancel(t.Context())
	p.place.saved = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		all := httptest.NewRecorder()
		real.ServeHTTP(all, r)
		_, _ = w.Write(all.Body.Bytes()[:all.Body.Len()/2])
		_ = http.NewResponseController(w).Flush()
		cancel()
		<-r.Context().Done()
		panic(http.ErrAbortHandler)
	})
	<-p.start(ctx, "true")
	if exists(p.cfg.RepoDir) {
		t.Error("there is half a clone")
	}
	p.place.saved = real
	// What a kill leaves of a clone.
	must(t, os.MkdirAll(p.cfg.RepoDir+".new/.git/refs", 0o755))
	must(t, os.WriteFile(p.cfg.RepoDir+".new/edited", []byte("half"), 0o600))
	if o := p.run("true"); o.code != 0 || o.err != nil {
		t.Errorf("%+v", o)
	}
	if after := p.state(); after != before {
		t.Errorf("before\n%safter\n%s", before, after)
	}
	p.nothingBeside(t)
}

// A clone that is there is the agent's: what was saved is not brought into it.
func TestACloneThatIsThereIsLeftAlone(t *testing.T) {
	p := newSavingPlace(t)
	p.agent("printf x >work")
	p.place.saved = http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("it asks for what was saved") })
	if o := p.run("rm", "work"); o.code != 0 || o.err != nil {
		t.Errorf("%+v", o)
	}
	if o := p.run("test", "!", "-e", "work"); o.code != 0 || o.err != nil {
		t.Errorf("%+v", o)
	}
}

// Whatever is broken, the agent begins, and it is told in the log.
func TestWhatCantBeRestored(t *testing.T) {
	p := newSavingPlace(t)
	p.agent("printf x >work; git add .; git commit -qm work; printf y >more")
	real, work := p.place.saved, p.git(p.store, "rev-parse", "refs/saved/3/work")
	hash := func(kind, text string) string {
		p.t.Helper()
		cmd := exec.Command("git", "hash-object", "-w", "--literally", "-t", kind, "--stdin")
		cmd.Dir, cmd.Stdin = p.store, strings.NewReader(text)
		out, err := cmd.CombinedOutput()
		if err != nil {
			p.t.Fatalf("%v %s", err, out)
		}
		return strings.TrimSpace(string(out))
	}
	// snapshot makes a snapshot of a tree that git would not make.
	snapshot := func(tree string) {
		p.t.Helper()
		head := p.git(p.store, "rev-parse", "refs/saved/3/heads/agent/3-x")
		commit := hash("commit", fmt.Sprintf("tree %s\nparent %s\nauthor a <a@b> 1 +0000\ncommitter a <a@b> 1 +0000\n\nSaved at x\n\n{\"branch\":\"agent/3-x\",\"head\":%q}\n", tree, head, head))
		p.git(p.store, "update-ref", "refs/saved/3/work", commit)
	}
	entry := func(mode, name, id string) string {
		raw := make([]byte, 20)
		_, err := fmt.Sscanf(id, "%40x", &raw)
		must(p.t, err)
		return mode + " " + name + "\x00" + string(raw)
	}
	answer := func(change func(body []byte) []byte) func() {
		return func() {
			p.place.saved = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				all := httptest.NewRecorder()
				real.ServeHTTP(all, r)
				_, _ = w.Write(change(all.Body.Bytes()))
			})
		}
	}
	status := func(code int) func() {
		return func() {
			p.place.saved = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no such thing", code) })
		}
	}
	more := func(line string) func() {
		return answer(func(b []byte) []byte {
			id := b[bytes.LastIndex(b[:bytes.Index(b, []byte(" refs/saved/3/work"))], []byte("\n"))+1:][:40]
			return bytes.Replace(b, []byte("\n\nPACK"), []byte("\n"+strings.ReplaceAll(line, "ID", string(id))+"\n\nPACK"), 1)
		})
	}
	for name, tt := range map[string]struct {
		do  func()
		why string
	}{
		"an old gate":            {status(http.StatusForbidden), "403"},
		"a store that is broken": {status(http.StatusInternalServerError), "no such thing"},
		"nothing":                {answer(func([]byte) []byte { return nil }), "no bundle"},
		"garbage":                {answer(func(b []byte) []byte { return bytes.Repeat([]byte("garbage\n"), 1000) }), "no bundle"},
		"a line without an end":  {answer(func(b []byte) []byte { return bytes.Repeat([]byte("x"), 1<<20) }), "no bundle"},
		"half a pack":            {answer(func(b []byte) []byte { return b[:len(b)-30] }), "unpacking"},
		"a byte that flipped":    {answer(func(b []byte) []byte { b[len(b)-25]++; return b }), "unpacking"},
		"no pack":                {answer(func(b []byte) []byte { return b[:bytes.Index(b, []byte("PACK"))] }), "unpacking"},
		"no snapshot":            {answer(func(b []byte) []byte { return bytes.Replace(b, []byte("/work\n"), []byte("/word\n"), 1) }), "no snapshot"},
		"a ref of another kind":  {more("ID refs/heads/main"), "no bundle"},
		"a ref that climbs":      {more("ID refs/saved/3/heads/../../../config"), "branches"},
		"a ref with a space":     {more("ID refs/saved/3/heads/a b"), "branches"},
		"a ref with a command":   {more("ID refs/saved/3/heads/x\x00delete refs/remotes/origin/main"), "branches"},
		"two refs for one place": {more("ID refs/saved/3/heads/agent/3-x/below"), "branches"},
		"an id that is nowhere":  {more(strings.Repeat("1", 40) + " refs/saved/3/heads/x"), "not whole"},
		"an id that is none":     {more("HEAD --upload-pack=x refs/saved/3/heads/x"), "no bundle"},
		"a message that is none": {func() {
			p.git(p.store, "update-ref", "refs/saved/3/work", "refs/saved/3/heads/agent/3-x")
		}, "snapshot"},
		"a tree with .git": {func() { snapshot(hash("tree", entry("100644", ".git", hash("blob", "x")))) }, "unpacking"},
		"a tree with a GIT folder": {func() {
			snapshot(hash("tree", entry("40000", ".GiT", p.git(p.store, "rev-parse", "refs/saved/3/work^{tree}"))))
		}, "unpacking"},
		"a tree that climbs": {func() {
			snapshot(hash("tree", entry("40000", "..", p.git(p.store, "rev-parse", "refs/saved/3/work^{tree}"))))
		}, "unpacking"},
		"a path in a link": {func() {
			snapshot(hash("tree", entry("120000", "x", hash("blob", p.dir))+entry("40000", "x", p.git(p.store, "rev-parse", "refs/saved/3/work^{tree}"))))
		}, "unpacking"},
	} {
		t.Run(name, func(t *testing.T) {
			p.lose()
			p.place.saved = real
			p.git(p.store, "update-ref", "refs/saved/3/work", work)
			*p.log = lockedBuffer{}
			tt.do()
			if o := p.run("true"); o.code != 0 || o.err != nil {
				t.Fatalf("%+v", o)
			}
			p.without(t, tt.why)
			p.nothingBeside(t)
		})
	}
}

// Nothing that an agent left may run while its work is brought back: no hook, no
// filter, no monitor, of files or of its home.
func TestNothingRunsWhileWorkIsRestored(t *testing.T) {
	p := newSavingPlace(t)
	ran := p.path("ran")
	hooks := p.path("hooks")
	must(t, os.Mkdir(hooks, 0o755))
	for _, hook := range []string{"post-checkout", "post-index-change", "post-rewrite", "pre-auto-gc", "script"} {
		must(t, os.WriteFile(filepath.Join(hooks, hook), []byte("#!/bin/sh\necho "+hook+" >>"+ran+"\ncat\n"), 0o755))
	}
	config := p.path("agents-config")
	must(t, os.WriteFile(config, fmt.Appendf(nil, "[core]\nhooksPath = %s\nfsmonitor = %s/script\n[filter \"x\"]\nsmudge = %s/script\nclean = %s/script\nrequired = true\n[submodule]\nrecurse = true\n[uploadpack]\npackObjectsHook = %s/script\n", hooks, hooks, hooks, hooks, hooks), 0o600))
	p.agent("printf '* filter=x\n' >.gitattributes; printf x >work; printf '[submodule \"m\"]\npath = m\nurl = ext::sh -c script\nupdate = !script\n' >.gitmodules; git add .; git commit -qm work; printf y >more")
	p.lose()
	t.Setenv("GIT_CONFIG_GLOBAL", config)
	if o := p.run("test", "-f", "more"); o.code != 0 || o.err != nil {
		t.Errorf("%+v\n%s", o, p.log)
	}
	if b, err := os.ReadFile(ran); err == nil {
		t.Errorf("there ran %s", b)
	}
	if b, err := os.ReadFile(filepath.Join(p.cfg.RepoDir, "work")); err != nil || string(b) != "x" {
		t.Errorf("%q, %v", b, err)
	}
}

// A stash that is none comes back as such, and keeps nothing else from it.
func TestAStashThatIsNone(t *testing.T) {
	p := newSavingPlace(t)
	p.agent("printf x >work; git update-ref refs/stash HEAD")
	p.lose()
	if o := p.run("sh", "-c", "test -f work && test $(git rev-parse refs/stash) = $(git rev-parse main)"); o.code != 0 || o.err != nil {
		t.Errorf("%+v\n%s", o, p.log)
	}
}

// Commits that can't be saved, since they can't be read, keep no file from coming
// back.
func TestFilesWithoutTheirCommits(t *testing.T) {
	p := newSavingPlace(t)
	p.agent("printf x >work; printf b >a; rm -rf .git/objects; mkdir .git/objects")
	p.lose()
	if o := p.run("sh", "-c", "test -f work && test $(git branch --show-current) = agent/3-x && test $(git diff --name-only) = a"); o.code != 0 || o.err != nil {
		t.Errorf("%+v\n%s", o, p.log)
	}
}
