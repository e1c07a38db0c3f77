package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"codeberg.org/devaipod/devaipod/pods/podfile"
	"codeberg.org/devaipod/devaipod/pods/shim"
	"codeberg.org/devaipod/devaipod/pods/tunnel"
)

// What the command line runs in a container for a person.

// runDial joins the standard streams with ports of the container's loopback.
func runDial(ctx context.Context, in io.Reader, out io.Writer) error {
	return tunnel.Serve(ctx, in, out)
}

// runLogin turns into the user's shell, in a directory. It is no login shell: those
// forget what the image has put into PATH (/etc/profile of Debian).
func runLogin(args []string) error {
	if len(args) == 1 {
		if err := os.Chdir(args[0]); err != nil { // it starts where it is, and says so
			fmt.Fprintln(os.Stderr, "devaipod: "+err.Error())
		}
	}
	passwd, err := os.ReadFile("/etc/passwd")
	if err != nil {
		passwd = nil // an image may do without
	}
	for _, shell := range []string{shellOf(passwd, os.Getuid()), "/bin/bash", "/bin/sh", "/usr/bin/bash", "/usr/bin/sh", "/bin/ash"} {
		if info, err := os.Stat(shell); err != nil || info.Mode()&0o111 == 0 || info.IsDir() {
			continue
		}
		err := syscall.Exec(shell, []string{filepath.Base(shell)}, append(os.Environ(), "SHELL="+shell)) //nolint:gosec // the image's own
		return fmt.Errorf("starting %s: %w", shell, err)
	}
	return errors.New("this image has no shell: run a program of it with devaipod exec, or use an image that has one")
}

// shellOf is a user's shell in passwd(5), "" for none that one could work in.
func shellOf(passwd []byte, uid int) string {
	for line := range bytes.Lines(passwd) {
		f := strings.Split(strings.TrimSpace(string(line)), ":")
		if len(f) == 7 && f[2] == strconv.Itoa(uid) && !strings.HasSuffix(f[6], "nologin") && !strings.HasSuffix(f[6], "/false") {
			return f[6]
		}
	}
	return ""
}

// runSignal sends a signal to the command that was started with mark in its
// environment, which its children have as well: the oldest of them.
func runSignal(args []string) error {
	if len(args) != 2 || len(args[0]) < 16 {
		return errors.New("signal: want MARK NUMBER")
	}
	sig, err := strconv.Atoi(args[1])
	if err != nil || sig <= 0 || sig > 64 {
		return fmt.Errorf("signal: %q is no signal's number", args[1])
	}
	pid, err := markedProcess("/proc", args[0])
	if err != nil {
		return err
	}
	return syscall.Kill(pid, syscall.Signal(sig))
}

// markedProcess is the oldest process with mark in its environment.
func markedProcess(proc, mark string) (pid int, err error) {
	files, err := filepath.Glob(filepath.Join(proc, "[0-9]*", "environ"))
	if err != nil {
		return 0, err
	}
	var oldest uint64
	for _, file := range files {
		env, err := os.ReadFile(file)
		if err != nil || !bytes.Contains(append([]byte{0}, env...), []byte("\x00"+podfile.EnvMark+"="+mark+"\x00")) {
			continue // another user's, or one that has ended
		}
		began, err := shim.BeganAt(filepath.Dir(file))
		n, err2 := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if err == nil && err2 == nil && n != os.Getpid() && (pid == 0 || began < oldest || began == oldest && n < pid) {
			pid, oldest = n, began
		}
	}
	if pid == 0 {
		return 0, errors.New("signal: the command has ended")
	}
	return pid, nil
}

// mostListed is how many entries of a kind inventory tells.
const mostListed = 50

// runInventory says, as a line of JSON, what the workspace holds that nobody else has.
func runInventory(ctx context.Context, volume, repo string, stdout io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	w, err := inventory(ctx, volume, repo)
	if err != nil {
		w.Broken = err.Error()
	}
	return json.NewEncoder(stdout).Encode(w)
}

func inventory(ctx context.Context, volume, repo string) (w podfile.Work, err error) {
	entries, err := os.ReadDir(volume)
	if err != nil {
		return w, err
	}
	for _, e := range entries {
		switch name := filepath.Join(volume, e.Name()); name {
		case repo, repo + ".new": // the second is a clone that did not come to its end
		default:
			w.Beside = append(w.Beside, e.Name())
		}
	}
	if _, err := os.Stat(filepath.Join(repo, ".git")); err != nil {
		if left, e := os.ReadDir(repo); e == nil && len(left) > 0 {
			return w, errors.New("the clone has no .git any more")
		}
		return w, nil
	}
	revs := []string{"--branches"}
	if _, err := gitLines(ctx, repo, "\n", "rev-parse", "--verify", "--quiet", "HEAD"); err == nil {
		revs = append(revs, "HEAD") // which may be on no branch
	}
	args := append([]string{"log", "--no-decorate", "--no-show-signature", "--format=%h %s"}, revs...)
	if w.Commits, err = gitLines(ctx, repo, "\n", append(args, "--not", "--remotes")...); err != nil {
		return w, err
	}
	if w.Changes, err = gitLines(ctx, repo, "\x00", "status", "--porcelain=v1", "-z", "--no-renames", "--untracked-files=normal"); err != nil {
		return w, err
	}
	if w.Stashes, err = gitLines(ctx, repo, "\n", "stash", "list", "--format=%gd %s"); err != nil {
		return w, err
	}
	for _, list := range []*[]string{&w.Commits, &w.Changes, &w.Stashes, &w.Beside} {
		if more := len(*list) - mostListed; more > 0 {
			*list, w.More = (*list)[:mostListed], w.More+more
		}
	}
	return w, nil
}

// gitLines are the lines that git prints of a clone, which may hold anything: it
// runs no program that the clone names.
func gitLines(ctx context.Context, repo, end string, args ...string) ([]string, error) {
	careful := []string{"-C", repo, "-c", "safe.directory=*", "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", "-c", "submodule.recurse=false"}
	cmd := exec.CommandContext(ctx, "git", append(careful, args...)...)
	cmd.Env = append(os.Environ(), "GIT_OPTIONAL_LOCKS=0", "GIT_TERMINAL_PROMPT=0", "GIT_PAGER=cat")
	var errOut bytes.Buffer
	cmd.Stderr = &errOut
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("git %s: %w: %.500s", args[0], err, strings.TrimSpace(errOut.String()))
	}
	text := strings.TrimSuffix(string(out), end)
	if text == "" {
		return nil, nil
	}
	return strings.Split(text, end), nil
}
