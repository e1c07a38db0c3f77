package testkit_test

import (
	"context"
	"io"
	"net"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/pods"
	"codeberg.org/devaipod/devaipod/pods/podman"
)

// lentTo serves a repository with one commit on the pod's branch in place of the
// service, at the socket that checks read from.
func lentTo(t *testing.T, m *pods.Manager, s pods.Spec) (commit string) {
	t.Helper()
	root := t.TempDir()
	git := func(args ...string) string {
		cmd := exec.Command("git", args...)
		cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@b", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@b")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("git %v: %v\n%s", args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	server := filepath.Join(root, "work", s.Owner, s.Repo+".git")
	tree := filepath.Join(root, "tree")
	git("init", "--quiet", "--bare", server)
	git("init", "--quiet", tree)
	must(t, os.WriteFile(filepath.Join(tree, "file"), []byte("pushed\n"), 0o644))
	git("-C", tree, "add", "-A")
	git("-C", tree, "commit", "--quiet", "--message", "Work")
	git("-C", tree, "push", "--quiet", server, "HEAD:refs/heads/"+s.Branch)
	core := git("--exec-path")
	must(t, m.MakeCheckDir(s.Key))
	l, err := net.Listen("unix", m.CheckSocket(s.Key))
	must(t, err)
	must(t, os.Chmod(m.CheckSocket(s.Key), 0o666))
	srv := httptest.NewUnstartedServer(&cgi.Handler{
		Path: filepath.Join(core, "git-http-backend"), Stderr: io.Discard,
		Env: []string{"GIT_PROJECT_ROOT=" + root, "GIT_HTTP_EXPORT_ALL=1", "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*"},
	})
	srv.Listener = l
	srv.Start()
	t.Cleanup(srv.Close)
	return git("-C", tree, "rev-parse", "HEAD")
}

func TestAPodsCommitIsChecked(t *testing.T) {
	ctx := t.Context()
	withGit(t)
	m, tools := podManager(t, "checks")
	before := names(t)
	k := pods.Key{Owner: "ann", Repo: "hello", Issue: 3}
	s := spec(tools, k)
	s.AgentImage = gitBox
	ensure := func(checks ...string) {
		t.Helper()
		s.Dev.Agent.Checks = checks
		_, err := m.Ensure(ctx, s)
		must(t, err)
	}
	ensure("cat file && touch /workspace/repo/left /workspace/beside $HOME/at-home",
		"ls /workspace /home/agent; exit 3", // each has what the one before has left, and nothing of the agent's
		"sleep 1000 & env | grep -e TOKEN -e proxy -e PROXY; id -u; cat /proc/net/dev | grep -c :; touch /etc/x",
		`echo '{"commit":"'$(cat .git/HEAD)'","checks":[]}' >/proc/1/fd/1`)
	commit := lentTo(t, m, s)
	name := m.Name(k)
	_, err := world.Podman(ctx, "run", "--rm", "--network", "none", "--user", "1000:1000", "--volume", name+"-agent-workspace:/workspace", "--volume", name+"-agent-home:/home/agent", gitBox,
		"sh", "-c", "touch /workspace/of-the-agent /home/agent/of-the-agent")
	must(t, err)
	around := names(t)
	for range 2 { // each is a new one
		r, err := m.Check(ctx, k, commit, time.Minute)
		must(t, err)
		if r.Broken != "" || r.Setup != "" || len(r.Checks) != 4 {
			t.Fatalf("%+v", r)
		}
		for i, want := range []struct {
			exit int
			tail string
		}{{0, "pushed"}, {3, "/home/agent:\nat-home\n\n/workspace:\nbeside\nrepo"}, {1, "1000\n1\ntouch: /etc/x: Read-only file system"}, {1, "/proc/1/fd/1: Permission denied"}} {
			if c := r.Checks[i]; c.Exit != want.exit || !strings.HasSuffix(c.Tail, want.tail) {
				t.Errorf("%+v, want %+v", c, want)
			}
		}
		if got := names(t); got != around {
			t.Errorf("left\n%s\nwant\n%s", got, around)
		}
	}

	// One that takes all the memory there is fails, and is told of, whomever it hits.
	// Where podman's service runs, its monitor leaves a file of that name then.
	t.Cleanup(func() { _ = os.Remove("oom") })
	ensure("x=x; while :; do x=$x$x; done")
	r, err := m.Check(ctx, k, commit, time.Minute)
	if err == nil && (len(r.Checks) != 1 || r.Checks[0].Exit == 0) {
		t.Errorf("%+v, %v", r, err)
	}
	r, err = m.Check(ctx, k, strings.Repeat("1", 40), time.Minute)
	if err != nil || !strings.Contains(r.Broken, "cloning the commit") {
		t.Errorf("%+v, %v", r, err)
	}

	// Nothing is left of one that nobody wants any more, nor of one whose service was
	// killed; and the pod's own things stay.
	ensure("sleep 1000")
	around = names(t)
	short, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() {
		_, err := m.Check(short, k, commit, time.Minute)
		ended <- err
	}()
	for names(t) == around || !strings.Contains(names(t), name+"-check") {
		select {
		case err := <-ended:
			t.Fatal(err)
		case <-time.After(20 * time.Millisecond):
		}
	}
	cancel()
	if err := <-ended; err == nil {
		t.Error("it ended well")
	}
	if got := names(t); got != around {
		t.Errorf("left\n%s\nwant\n%s", got, around)
	}
	labels := map[string]string{"devaipod.instance": "checks", "devaipod.pod": name, "devaipod.role": "check", "devaipod.repo": "ann/hello", "devaipod.issue": "3"}
	for _, v := range []string{name + "-check", name + "-check-home"} {
		_, err := world.client.EnsureVolume(ctx, v, labels)
		must(t, err)
	}
	old := podman.Container{Name: name + "-check", Image: box, Command: []string{"sleep", "1000"}, Network: "none", Labels: labels}
	_, err = world.client.EnsureContainer(ctx, old)
	must(t, err)
	must(t, world.client.StartContainer(ctx, old.Name))
	did, err := m.Collect(ctx, pods.Limits{})
	if must(t, err); len(did.Removed) == 0 || len(did.Kept) != 0 {
		t.Errorf("collected %+v", did)
	}
	if got := names(t); got != around {
		t.Errorf("left\n%s\nwant\n%s", got, around)
	}
	must(t, m.RemoveAll(ctx))
	if got := names(t); got != before {
		t.Errorf("left\n%s\nwant\n%s", got, before)
	}
}

// What agents did is kept while their pod is there, and then for as long as is wanted.
func TestWhatAgentsDidIsPrunedByAge(t *testing.T) {
	ctx := t.Context()
	m, tools := podManager(t, "records")
	here, gone, recent := pods.Key{Owner: "ann", Repo: "hello", Issue: 1}, pods.Key{Owner: "ann", Repo: "hello", Issue: 2}, pods.Key{Owner: "ann", Repo: "hello", Issue: 3}
	_, err := m.Ensure(ctx, spec(tools, here))
	must(t, err)
	must(t, m.Stop(ctx, here))
	old := time.Now().Add(-48 * time.Hour)
	files := []string{"transcript.jsonl", "transcript.jsonl.1", "commands.jsonl", "checks/a.json", "evidence/a.json", "usage.jsonl"}
	for _, k := range []pods.Key{here, gone, recent} {
		dir := m.UsageDir(k)
		for _, name := range files {
			file := filepath.Join(dir, name)
			must(t, os.MkdirAll(filepath.Dir(file), 0o700))
			must(t, os.WriteFile(file, nil, 0o600))
			must(t, os.Chtimes(file, old, old))
			must(t, os.Chtimes(filepath.Dir(file), old, old))
		}
	}
	must(t, os.WriteFile(filepath.Join(m.UsageDir(recent), "evidence", "b.json"), nil, 0o600))
	has := func(k pods.Key) (n int) {
		for _, name := range files {
			if _, err := os.Stat(filepath.Join(m.UsageDir(k), name)); err == nil {
				n++
			}
		}
		return n
	}
	for _, lim := range []pods.Limits{{}, {RecordAge: 24 * time.Hour, Dry: true}} {
		_, err := m.Collect(ctx, lim)
		must(t, err)
		if has(here) != 6 || has(gone) != 6 || has(recent) != 6 {
			t.Errorf("%+v: %d, %d and %d files are left", lim, has(here), has(gone), has(recent))
		}
	}
	did, err := m.Collect(ctx, pods.Limits{RecordAge: 24 * time.Hour})
	must(t, err)
	// Its account stays: a new pod of the issue goes on counting.
	if has(here) != 6 || has(gone) != 1 || has(recent) != 6 || len(did.Removed) != 1 {
		t.Errorf("%+v: %d, %d and %d files are left", did, has(here), has(gone), has(recent))
	}
	must(t, m.RemoveAll(ctx))
}
