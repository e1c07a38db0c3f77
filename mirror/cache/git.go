package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"codeberg.org/devaipod/devaipod/mirror/smarthttp"
)

// A child is one call of git. Nothing of a person's or the machine's
// configuration takes part in it.
type child struct {
	dir    string   // the repository; "" for none
	config []string // beside what every child gets, "name=value"
	env    []string // the same
	args   []string
	stdin  io.Reader
	stdout io.Writer
	stderr io.Writer // as well as the error; nil for the error alone
	lock   *os.File  // held for as long as the child lives
}

// config is what every child of ours is run with; the last of a name counts.
var config = []string{
	"core.hooksPath=/dev/null",
	"core.bigFileThreshold=16m",      // larger files stream: they are never in memory whole
	"core.fsync=committed,reference", // a repository outlives a loss of power
	"core.packedGitWindowSize=64m",
	"core.packedGitLimit=1g", // within maxMemory
	"gc.auto=0",              // upkeep has its own time
	"maintenance.auto=false",
	"protocol.allow=never",
	"protocol.http.allow=always", // our own forwarder
	"fetch.fsckObjects=true",
	// What old repositories have, and what harms nobody.
	"fetch.fsck.zeroPaddedFilemode=ignore",
	"fetch.fsck.badTimezone=ignore",
	"fetch.fsck.badDate=ignore",
	"fetch.fsck.badEmail=ignore",
	"fetch.fsck.badName=ignore",
	"fetch.fsck.missingEmail=ignore",
	"fetch.fsck.missingNameBeforeEmail=ignore",
	"fetch.fsck.missingSpaceBeforeDate=ignore",
	"fetch.fsck.missingSpaceBeforeEmail=ignore",
	"fetch.fsck.multipleAuthors=ignore",
	"fetch.fsck.nullSha1=ignore",
	"fetch.fsck.missingTaggerEntry=ignore",
}

// environ is a child's whole environment.
func environ(config, more []string) []string {
	env := []string{
		"PATH=" + os.Getenv("PATH"), "LC_ALL=C", "HOME=/nonexistent",
		"GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null", "GIT_TERMINAL_PROMPT=0", "GIT_ASKPASS=false", "GIT_ADVICE=0",
		fmt.Sprintf("GIT_CONFIG_COUNT=%d", len(config)),
	}
	for i, kv := range config {
		k, v, _ := strings.Cut(kv, "=")
		env = append(env, fmt.Sprintf("GIT_CONFIG_KEY_%d=%s", i, k), fmt.Sprintf("GIT_CONFIG_VALUE_%d=%s", i, v))
	}
	return append(env, more...) // the last of a name counts
}

// run runs git to its end. When ctx ends first, git is asked to end, so that it
// removes its temporary files, and killed if it does not.
func (c child) run(ctx context.Context) error {
	args := c.args
	if c.dir != "" {
		args = append([]string{"--git-dir", c.dir}, args...)
	}
	cmd := exec.CommandContext(ctx, "git", args...)
	cmd.Env, cmd.Stdin, cmd.Stdout = environ(slices.Concat(config, c.config), c.env), c.stdin, c.stdout
	cmd.Dir = "/"
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	said := &tail{max: 4096}
	cmd.Stderr = said
	if c.stderr != nil {
		cmd.Stderr = io.MultiWriter(said, c.stderr)
	}
	if c.lock != nil {
		cmd.ExtraFiles = []*os.File{c.lock}
	}
	err := cmd.Start()
	if err == nil {
		err = limit(cmd.Process.Pid)
		err = errors.Join(err, cmd.Wait())
	}
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return &gitError{command: c.args[0], said: said.lines(), err: err}
}

// maxMemory bounds a child's address space, and that of each of its own
// children, in bytes: an object may say that it inflates to anything.
const maxMemory = 6 << 30

// limit bounds a child that has just been started: it has yet to load git.
func limit(pid int) error {
	for what, n := range map[int]uint64{unix.RLIMIT_AS: maxMemory, unix.RLIMIT_CORE: 0} {
		if err := unix.Prlimit(pid, what, &unix.Rlimit{Cur: n, Max: n}, nil); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("limiting git: %w", err)
		}
	}
	return nil
}

// A gitError is a call of git that ended badly, with git's own words.
type gitError struct {
	command, said string
	err           error
}

func (e *gitError) Error() string {
	if e.said == "" {
		return fmt.Sprintf("git %s: %s", e.command, e.err)
	}
	return fmt.Sprintf("git %s: %s", e.command, e.said)
}

func (e *gitError) Unwrap() error { return e.err }

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

// lines are what counts of it: complaints, without progress, printable.
func (t *tail) lines() string {
	var keep []string
	for line := range strings.FieldsFuncSeq(string(t.b), func(r rune) bool { return r == '\n' || r == '\r' }) {
		line = smarthttp.Printable(strings.TrimSpace(line))
		for _, prefix := range []string{"fatal: ", "error: ", "remote: error: ", "remote: fatal: "} {
			if rest, ok := strings.CutPrefix(line, prefix); ok {
				keep = append(keep, rest)
				break
			}
		}
	}
	if n := len(keep); n > 3 {
		keep = keep[n-3:]
	}
	return strings.Join(keep, "; ")
}
