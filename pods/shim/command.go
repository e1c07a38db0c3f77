package shim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"codeberg.org/devaipod/devaipod/pods/devcontainer"
	"codeberg.org/devaipod/devaipod/pods/podfile"
)

// command runs one of a stage to its end, or to the end of its time.
func (c *Config) command(ctx context.Context, stage string, command devcontainer.Command) error {
	within := c.Setup.Within
	if within <= 0 {
		within = setupWithin
	}
	_, err := c.execute(ctx, stage, command, within)
	return err
}

// execute runs a command, and returns the last lines that it wrote.
func (c *Config) execute(ctx context.Context, stage string, command devcontainer.Command, within time.Duration) (said string, err error) {
	name := "its command"
	if command.Name != "" {
		name = command.Name
		stage += " " + command.Name
	}
	args, env := Args(command, os.Getenv), c.setupEnv()
	cmd := exec.Command(Find(args[0], env), args[1:]...)
	cmd.Dir, cmd.Env = c.setupDir(), env
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	// A pipe of our own: what it leaves running may go on to write into it, and the
	// end of the command does not wait for that.
	read, write, err := os.Pipe()
	if err != nil {
		return "", err
	}
	cmd.Stdout, cmd.Stderr = write, write
	c.Log.Info("running", "stage", stage, "command", clip(strings.Join(args, " "), 300))
	if err := cmd.Start(); err != nil {
		return "", errors.Join(fmt.Errorf("%s can't be started: %w", name, err), read.Close(), write.Close())
	}
	out := &output{to: c.stderr(), left: maxOutput}
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		defer read.Close()
		_, _ = io.Copy(out, read) // it ends with the last who can write
	}()
	err = errors.Join(write.Close(), c.await(ctx, cmd, within))
	select {
	case <-drained:
	case <-time.After(drainWithin): // something that it has started goes on
	}
	if left := out.end(); left > 0 {
		c.Log.Warn("output left out", "stage", stage, "bytes", left)
	}
	if said = out.last(); err != nil {
		err = &failedError{fmt.Errorf("%s %w", name, err), said}
	}
	return said, err
}

// A failedError is of a command, with the last lines that it wrote.
type failedError struct {
	error
	said string
}

func (e *failedError) Unwrap() error { return e.error }

// drainWithin is how long the rest of a command's output is waited for.
const drainWithin = 200 * time.Millisecond

// await waits for a command, and ends its process group at the end of its time or
// of ours.
func (c *Config) await(ctx context.Context, cmd *exec.Cmd, within time.Duration) error {
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	over := time.NewTimer(within)
	defer over.Stop()
	var why error
	select {
	case err := <-exited:
		if exit := new(exec.ExitError); errors.As(err, &exit) {
			return fmt.Errorf("ended with %w", exit)
		}
		return err
	case <-over.C:
		why = fmt.Errorf("had not ended after %s", within)
	case <-ctx.Done():
		why = ctx.Err()
	}
	group := -cmd.Process.Pid
	_ = syscall.Kill(group, syscall.SIGTERM) // who is gone needs none
	select {
	case <-exited:
	case <-time.After(grace):
	}
	_ = syscall.Kill(group, syscall.SIGKILL) // and its children, too
	select {
	case <-exited:
	case <-time.After(grace): // the kernel does not let it go; the stage ends all the same
	}
	return why
}

// Args are a command as it is executed.
func Args(command devcontainer.Command, getenv func(string) string) []string {
	if command.Shell != "" {
		return []string{"/bin/sh", "-c", devcontainer.Expand(command.Shell, getenv)}
	}
	var out []string
	for _, a := range command.Args {
		out = append(out, devcontainer.Expand(a, getenv))
	}
	return out
}

// Find looks a program up as the environment has it in PATH; what is not found there
// is left to who starts it.
func Find(name string, environ []string) string {
	if strings.Contains(name, "/") {
		return name
	}
	for _, kv := range slices.Backward(environ) {
		path, ok := strings.CutPrefix(kv, "PATH=")
		if !ok {
			continue
		}
		for _, dir := range filepath.SplitList(path) {
			file := filepath.Join(dir, name)
			if info, err := os.Stat(file); err == nil && filepath.IsAbs(file) && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
				return file
			}
		}
		break
	}
	return name
}

// setupDir is the folder that is meant, if the branch has it.
func (c *Config) setupDir() string {
	if info, err := os.Stat(c.Setup.Dir); err == nil && info.IsDir() {
		return c.Setup.Dir
	}
	return c.RepoDir
}

// setupEnv is the environment of lifecycle commands and the agent.
func (c *Config) setupEnv() []string { return Environ(c.env(), c.Setup) }

// Environ is an environment with what a setup changes of it.
func Environ(environ []string, s podfile.Setup) []string {
	have := map[string]string{}
	for _, kv := range environ {
		name, value, _ := strings.Cut(kv, "=")
		have[name] = value
	}
	out := slices.DeleteFunc(slices.Clone(environ), func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		_, changed := s.Env[name]
		return changed || name == podfile.EnvSetup || slices.Contains(s.Unset, name)
	})
	for name, value := range s.Env {
		out = append(out, name+"="+devcontainer.Expand(value, func(n string) string { return have[n] }))
	}
	return out
}

// Bounds on what a command may write into the container's log, in bytes.
const (
	maxOutput = 256 << 10 // from its beginning
	maxTail   = 8 << 10   // and of its end
)

// Of what a command that failed wrote, who waits for it is shown so much.
const (
	maxSaid      = 2 << 10 // bytes
	maxSaidLines = 20
)

// output passes on what comes first, and keeps the last of the rest.
type output struct {
	mu   sync.Mutex
	to   io.Writer
	left int
	lost int64
	tail []byte
	said []byte // the end of all of it
	over bool
}

// last are the last lines.
func (o *output) last() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	text := strings.TrimSpace(strings.ToValidUTF8(string(o.said[max(0, len(o.said)-maxSaid):]), "\uFFFD"))
	lines := strings.Split(text, "\n")
	return strings.Join(lines[max(0, len(lines)-maxSaidLines):], "\n")
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	n := len(b)
	if o.said = append(o.said, b...); len(o.said) > 2*maxSaid {
		o.said = slices.Clone(o.said[len(o.said)-maxSaid:])
	}
	if first := min(o.left, len(b)); first > 0 {
		if _, err := o.to.Write(b[:first]); err != nil {
			o.left = first // a log that is away: the command goes on
		}
		o.left -= first
		b = b[first:]
	}
	if o.over {
		return n, nil
	}
	o.lost += int64(len(b))
	if o.tail = append(o.tail, b...); len(o.tail) > 2*maxTail {
		o.tail = slices.Clone(o.tail[len(o.tail)-maxTail:])
	}
	return n, nil
}

// end passes the tail on, and tells how many bytes were left out before it. What
// comes later is lost, but for what is left of the beginning.
func (o *output) end() int64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.over = true
	tail := o.tail[max(0, len(o.tail)-maxTail):]
	o.tail = nil
	if _, err := o.to.Write(tail); err != nil {
		return o.lost
	}
	return o.lost - int64(len(tail))
}

func clip(s string, n int) string {
	if len(s) > n {
		return strings.ToValidUTF8(s[:n], "") + "…"
	}
	return s
}

func (c *Config) stderr() io.Writer {
	if c.Output != nil {
		return c.Output
	}
	return os.Stderr
}
