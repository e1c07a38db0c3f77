package saver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// settings are all that git is configured by. The agent's configuration,
// attributes and hooks are never read: no child has its repository.
var settings = []string{
	"core.hooksPath=/dev/null",
	"core.fsmonitor=false",
	"core.commitGraph=false", // the agent's could lie about parents
	"core.multiPackIndex=false",
	"core.bigFileThreshold=16m", // larger files stream: they are never in memory whole
	"core.packedGitWindowSize=16m",
	"core.packedGitLimit=128m",
	"core.deltaBaseCacheLimit=32m",
	"core.logAllRefUpdates=false",
	"pack.threads=1",
	"pack.window=4",
	"pack.windowMemory=64m",
	"gc.auto=0", // upkeep has its own time
	"maintenance.auto=false",
	"protocol.allow=never",
	"protocol.http.allow=always", // our own forwarder
	"http.followRedirects=false",
	"push.gpgSign=false",
	"user.name=devaipod saver",
	"user.email=saver@devaipod.invalid",
}

// maxMemory bounds a child's address space, in bytes.
const maxMemory = 2 << 30

// A call is one run of git.
type call struct {
	args   []string
	stdin  io.Reader
	stdout io.Writer
	env    []string      // beside what every child gets
	agent  bool          // the agent's objects can be read too
	limit  time.Duration // 0 is the store's
}

// environ is a child's whole environment.
func (s *store) environ(c call) []string {
	env := []string{
		"PATH=" + os.Getenv("PATH"), "LC_ALL=C", "HOME=/nonexistent",
		"GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null", "GIT_ATTR_NOSYSTEM=1", "GIT_NO_REPLACE_OBJECTS=1",
		"GIT_TERMINAL_PROMPT=0", "GIT_ASKPASS=false", "GIT_ADVICE=0",
		"GIT_DIR=" + s.dir, "GIT_INDEX_FILE=" + s.path("index"),
		fmt.Sprintf("GIT_CONFIG_COUNT=%d", len(settings)),
	}
	for i, kv := range settings {
		k, v, _ := strings.Cut(kv, "=")
		env = append(env, fmt.Sprintf("GIT_CONFIG_KEY_%d=%s", i, k), fmt.Sprintf("GIT_CONFIG_VALUE_%d=%s", i, v))
	}
	if c.agent {
		env = append(env, "GIT_ALTERNATE_OBJECT_DIRECTORIES="+s.view)
	}
	return append(env, c.env...) // the last of a name counts
}

// run runs git to its end, or to its time's: then its whole group is killed.
func (s *store) run(ctx context.Context, c call) error {
	limit := c.limit
	if limit == 0 {
		limit = s.limit
	}
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("git %s: it took longer than %s", c.args[0], limit))
	defer cancel()
	cmd := exec.CommandContext(ctx, "git", c.args...)
	cmd.Dir, cmd.Env, cmd.Stdin, cmd.Stdout = s.dir, s.environ(c), c.stdin, c.stdout
	cmd.ExtraFiles = []*os.File{s.lock} // held until the last child is gone
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	said := &tail{max: 4096}
	cmd.Stderr = said
	err := cmd.Start()
	if err == nil {
		err = errors.Join(confine(cmd.Process.Pid), cmd.Wait())
		reap(cmd.Process.Pid)
	}
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case said.text() != "":
		return fmt.Errorf("git %s: %w: %s", c.args[0], err, said.text())
	}
	return fmt.Errorf("git %s: %w", c.args[0], err)
}

// output is what a call prints, without the last line's end.
func (s *store) output(ctx context.Context, c call) (string, error) {
	var out bytes.Buffer
	c.stdout = &out
	err := s.run(ctx, c)
	return strings.TrimSuffix(out.String(), "\n"), err
}

// confine bounds a child that has just been started.
func confine(pid int) error {
	for what, n := range map[int]uint64{unix.RLIMIT_AS: maxMemory, unix.RLIMIT_CORE: 0} {
		if err := unix.Prlimit(pid, what, &unix.Rlimit{Cur: n, Max: n}, nil); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("limiting git: %w", err)
		}
	}
	return nil
}

// reap takes what a killed child has left to us when we are PID 1.
func reap(group int) {
	for {
		if pid, err := unix.Wait4(-group, nil, unix.WNOHANG, nil); pid <= 0 || err != nil {
			return
		}
	}
}

// A tail keeps the last bytes that are written to it.
type tail struct {
	max int
	b   []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.b = append(t.b, p...)
	if n := len(t.b) - t.max; n > 0 {
		t.b = append(t.b[:0], t.b[n:]...)
	}
	return len(p), nil
}

// text is on one line and printable: what git says may quote the agent.
func (t *tail) text() string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\r' || r == '\t':
			return ' '
		case r < ' ' || r == 0x7f || r == '\ufffd':
			return '?'
		}
		return r
	}, strings.TrimSpace(string(t.b)))
}
