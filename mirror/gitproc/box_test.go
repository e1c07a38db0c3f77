package gitproc_test

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/mirror/gitproc"
	"codeberg.org/devaipod/devaipod/mirror/gitproc/gitproctest"
)

func TestMain(m *testing.M) { os.Exit(gitproctest.Main(m)) }

// A world is a directory that a box may read, one that it may write, and one that
// it knows nothing of.
type world struct {
	t                      *testing.T
	read, write, elsewhere string
	box                    gitproc.Box
}

func newWorld(t *testing.T) *world {
	dir := t.TempDir()
	w := &world{t: t, read: filepath.Join(dir, "read"), write: filepath.Join(dir, "write"), elsewhere: filepath.Join(dir, "elsewhere")}
	for _, d := range []string{w.read, w.write, w.elsewhere} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(d, "file"), []byte("content of "+filepath.Base(d)+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	w.box = gitproc.Box{
		Launcher: gitproctest.Launcher, Read: []string{w.read}, Write: []string{w.write},
		Memory: 1 << 30, CPU: 2 * time.Second, File: 1 << 20, Files: 64,
	}
	return w
}

// sh runs a command as a child of git's, in the box.
func (w *world) sh(script string) (string, error) {
	var out, said bytes.Buffer
	err := gitproc.Child{Config: []string{"alias.x=!" + script}, Args: []string{"x"}, Stdout: &out, Stderr: &said, Box: &w.box}.Run(w.t.Context())
	return out.String() + said.String(), err
}

func TestWhatABoxLetsThrough(t *testing.T) {
	w := newWorld(t)
	for _, script := range []string{"cat " + w.read + "/file", "cat " + w.write + "/file", "echo x >" + w.write + "/new && rm " + w.write + "/new", "git version >/dev/null"} {
		if out, err := w.sh(script); err != nil {
			t.Errorf("%s: %v %s", script, err, out)
		}
	}
}

func TestWhatABoxKeepsFrom(t *testing.T) {
	w := newWorld(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	host, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	for what, script := range map[string]string{
		"a file elsewhere":        "cat " + w.elsewhere + "/file",
		"a list of files":         "ls " + w.elsewhere,
		"writing elsewhere":       "echo x >" + w.elsewhere + "/new",
		"writing what is read":    "echo x >" + w.read + "/new",
		"removing what is read":   "rm -f " + w.read + "/file",
		"the machine's passwords": "cat /etc/shadow /etc/passwd",
		"another's process":       fmt.Sprintf("cat /proc/%d/environ", os.Getpid()),
		"the network":             fmt.Sprintf("bash -c 'exec 3<>/dev/tcp/%s/%s'", host, port),
		"mounting":                "mount -t tmpfs none " + w.write,
		"another's files":         "chown 1 " + w.write + "/file",
	} {
		if out, err := w.sh(script); err == nil {
			t.Errorf("%s: %s went through: %s", what, script, out)
		}
	}
	if out, err := w.sh("grep ^Cap.*[1-9a-f] /proc/self/status"); err == nil {
		t.Errorf("it has capabilities: %s", out)
	}
}

func TestLimitsOfABox(t *testing.T) {
	w := newWorld(t)
	for what, script := range map[string]string{
		"memory":     "dd if=/dev/zero of=/dev/null bs=1500M count=1",
		"time":       "while :; do :; done",
		"file size":  "head -c 2000000 /usr/bin/git >" + w.write + "/large",
		"open files": "bash -c 'for i in $(seq 3 200); do eval \"exec $i<" + w.read + "/file\" || exit 1; done'",
	} {
		if out, err := w.sh(script); err == nil {
			t.Errorf("%s: %s went through: %.100s", what, script, out)
		}
	}
	if info, err := os.Stat(filepath.Join(w.write, "large")); err == nil && info.Size() > 1<<20 {
		t.Errorf("a file of %d bytes was written", info.Size())
	}
}

// A real repository is read and written from within a box, as the gate does it.
func TestGitInABox(t *testing.T) {
	w := newWorld(t)
	repo := filepath.Join(w.write, "r.git")
	for _, args := range [][]string{{"init", "-q", "--bare", repo}, {"--git-dir", repo, "fsck"}} {
		if err := (gitproc.Child{Args: args, Box: &w.box}).Run(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	out, err := exec.Command("git", "--git-dir", repo, "rev-parse", "--is-bare-repository").CombinedOutput()
	if err != nil || strings.TrimSpace(string(out)) != "true" {
		t.Errorf("%s %v", out, err)
	}
}

func TestProbe(t *testing.T) {
	version, lacking, err := gitproc.Probe(t.Context(), gitproctest.Launcher)
	if err != nil || !strings.HasPrefix(version, "2.") {
		t.Errorf("git is %q, %v", version, err)
	}
	for _, what := range lacking {
		t.Errorf("this machine can't show all that a box is: %s", what)
	}
	if _, _, err := gitproc.Probe(t.Context(), []string{"false"}); err == nil {
		t.Error("what does not run is no error")
	}
}

func TestAThingThatIsNoBox(t *testing.T) {
	for _, args := range [][]string{nil, {"{}"}, {"no", "version"}} {
		if err := gitproc.Enter(args); err == nil {
			t.Errorf("%q is taken", args)
		}
	}
}

// A launcher that needed memory after it has bounded its own would die of it now
// and then, and of much to pass on always.
func TestABoxIsEnteredWithMuchToPassOn(t *testing.T) {
	w := newWorld(t)
	var env []string
	for i := range 15 {
		env = append(env, fmt.Sprintf("MUCH_%d=%s", i, strings.Repeat("x", 100_000)))
	}
	for range 20 {
		if err := (gitproc.Child{Args: []string{"version"}, Env: env, Box: &w.box}).Run(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}
