// Package gitproc runs git as a child process: with nothing of a person's or the
// machine's configuration, under limits, and, where it reads what nobody vouches
// for, in a [Box].
package gitproc

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
)

// A Child is one call of git.
type Child struct {
	Dir    string   // the repository; "" for none
	Config []string // beside what every child gets, "name=value"
	Env    []string // the same
	Args   []string
	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer // as well as the error; nil for the error alone
	Lock   *os.File  // held for as long as the child lives
	Box    *Box      // nil for one that may do what this process may
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
}

// Forgiven is what old repositories have that fsck complains about, and that
// harms nobody (git-fsck(1)).
var Forgiven = []string{
	"zeroPaddedFilemode", "badTimezone", "badDate", "badEmail", "badName", "missingEmail", "missingNameBeforeEmail",
	"missingSpaceBeforeDate", "missingSpaceBeforeEmail", "multipleAuthors", "nullSha1", "missingTaggerEntry",
}

// environ is a child's whole environment.
func environ(config, more []string) []string {
	env := []string{
		"PATH=" + os.Getenv("PATH"), "LC_ALL=C", "HOME=/nonexistent",
		"GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null", "GIT_TERMINAL_PROMPT=0", "GIT_ASKPASS=false", "GIT_ADVICE=0",
		fmt.Sprintf("GIT_CONFIG_COUNT=%d", len(config)+len(Forgiven)),
	}
	n := 0
	set := func(k, v string) {
		env = append(env, fmt.Sprintf("GIT_CONFIG_KEY_%d=%s", n, k), fmt.Sprintf("GIT_CONFIG_VALUE_%d=%s", n, v))
		n++
	}
	for _, name := range Forgiven {
		set("fetch.fsck."+name, "ignore")
	}
	for _, kv := range config {
		k, v, _ := strings.Cut(kv, "=")
		set(k, v)
	}
	return append(env, more...) // the last of a name counts
}

// Run runs git to its end. When ctx ends first, git is asked to end, so that it
// removes its temporary files, and killed if it does not. What git itself
// complains of is an [Error].
func (c Child) Run(ctx context.Context) error {
	err := c.run(ctx, c.Box != nil && !noSpaces.Load())
	if c.Box != nil && refusedSpaces(err) && noSpaces.CompareAndSwap(false, true) {
		err = c.run(ctx, false) // nothing has been started yet
	}
	return err
}

func (c Child) run(ctx context.Context, spaces bool) error {
	args := c.Args
	if c.Dir != "" {
		args = append([]string{"--git-dir", c.Dir}, args...)
	}
	cmd := exec.CommandContext(ctx, "git", args...)
	limits := map[int]uint64{unix.RLIMIT_AS: maxMemory, unix.RLIMIT_CORE: 0}
	if c.Box != nil {
		var err error
		if cmd, err = c.Box.command(ctx, args, spaces); err != nil {
			return err
		}
		limits = nil // the box has its own
	}
	cmd.Env, cmd.Stdin, cmd.Stdout = environ(slices.Concat(config, c.Config), c.Env), c.Stdin, c.Stdout
	cmd.Dir = "/"
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	said := &Tail{Max: 4096}
	cmd.Stderr = said
	if c.Stderr != nil {
		cmd.Stderr = io.MultiWriter(said, c.Stderr)
	}
	if c.Lock != nil {
		cmd.ExtraFiles = []*os.File{c.Lock}
	}
	err := cmd.Start()
	if err == nil {
		err = errors.Join(limit(cmd.Process.Pid, limits), cmd.Wait())
	}
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return &Error{Command: c.Args[0], Said: said.Complaints(), Err: err}
}

// maxMemory bounds a child's address space, and that of each of its own
// children, in bytes: an object may say that it inflates to anything.
const maxMemory = 6 << 30

// limit bounds a child that has just been started: it has yet to load git.
func limit(pid int, limits map[int]uint64) error {
	for what, n := range limits {
		if err := unix.Prlimit(pid, what, &unix.Rlimit{Cur: n, Max: n}, nil); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("limiting git: %w", err)
		}
	}
	return nil
}

// An Error is a call of git that ended badly, with git's own words.
type Error struct {
	Command, Said string
	Err           error
}

func (e *Error) Error() string {
	if e.Said == "" {
		return fmt.Sprintf("git %s: %s", e.Command, e.Err)
	}
	return fmt.Sprintf("git %s: %s", e.Command, e.Said)
}

func (e *Error) Unwrap() error { return e.Err }

// A Tail keeps the last bytes that are written to it. It is not safe for
// concurrent use.
type Tail struct {
	Max   int // bytes
	Bytes []byte
}

func (t *Tail) Write(p []byte) (int, error) {
	t.Bytes = append(t.Bytes, p...)
	if n := len(t.Bytes) - t.Max; n > 0 {
		t.Bytes = append(t.Bytes[:0], t.Bytes[n:]...)
	}
	return len(p), nil
}

// Complaints are what counts of it: complaints of git's, of our cache or of a box's launcher,
// without progress, printable.
func (t *Tail) Complaints() string {
	var keep []string
	for line := range strings.FieldsFuncSeq(string(t.Bytes), func(r rune) bool { return r == '\n' || r == '\r' }) {
		line = Printable(strings.TrimSpace(line))
		for _, prefix := range []string{"fatal: ", "error: ", "remote: error: ", "remote: fatal: ", "remote: devaipod: ", "devaipod-box: ", "fatal error: "} {
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

// Printable replaces what a terminal might take as an order, and what is no
// UTF-8.
func Printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 || r == '\u2028' || r == '\u2029' {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
}
