package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"codeberg.org/devaipod/devaipod/cmd/internal/testkit/lab"
)

var namespaceProbes = []probe{
	{name: "ns-user", class: "namespaces", try: clones(unix.CLONE_NEWUSER)},
	{name: "ns-user-net", class: "namespaces", try: clones(unix.CLONE_NEWUSER | unix.CLONE_NEWNET)},
	{name: "ns-pid", class: "namespaces", try: clones(unix.CLONE_NEWPID)},
	{name: "ns-by-clone", class: "namespaces", try: func(context.Context, *attempt) (string, error) {
		// Go's way to new namespaces is clone3, this is that of others.
		pid, _, errno := unix.RawSyscall6(unix.SYS_CLONE, unix.CLONE_NEWUSER|uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
		if errno == 0 && pid == 0 {
			for { // the child can do nothing else
				_, _, _ = unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
			}
		}
		if errno != 0 {
			return "", fmt.Errorf("clone: %w", errno)
		}
		_, err := unix.Wait4(int(pid), nil, 0, nil)
		return "made a user namespace", err
	}},
	{name: "ns-net", class: "namespaces", try: unshares(unix.CLONE_NEWNET)},
	{name: "ns-ipc", class: "namespaces", try: unshares(unix.CLONE_NEWIPC)},
	{name: "ns-clone3", class: "namespaces", try: func(context.Context, *attempt) (string, error) {
		// Its arguments are in memory, where no filter looks. With too few of them it
		// makes nothing (EINVAL), unless there is no such call (ENOSYS).
		_, _, errno := unix.RawSyscall(unix.SYS_CLONE3, 0, 1, 0)
		if errno == unix.ENOSYS {
			return "", fmt.Errorf("clone3: %w", errno)
		}
		return "has clone3: " + errno.Error(), nil
	}},
	{name: "ns-container", class: "namespaces", try: func(ctx context.Context, _ *attempt) (string, error) {
		dir, err := os.MkdirTemp("", "container")
		if err != nil {
			return "", err
		}
		defer func() { _ = os.Remove(dir) }() // what was mounted there went with the namespace
		cmd := inNamespaces(ctx, unix.CLONE_NEWUSER|unix.CLONE_NEWNS|unix.CLONE_NEWPID|unix.CLONE_NEWNET|unix.CLONE_NEWUTS|unix.CLONE_NEWIPC, "container", dir)
		out, err := cmd.CombinedOutput()
		if err == nil && strings.TrimSpace(string(out)) != "0" {
			err = errors.New("its program says nothing of root")
		}
		if err != nil {
			return "", fmt.Errorf("%w: %s", err, out)
		}
		return "ran a program in a container of its own", nil
	}},
	{name: "ns-enter", class: "namespaces", try: onVictim("entered its network", func(pid int) error {
		fd, err := unix.Open(fmt.Sprintf("/proc/%d/ns/net", pid), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer closeFD(fd)
		return lab.OnThread(func() error { return unix.Setns(fd, unix.CLONE_NEWNET) })
	})},
}

func unshares(flags int) func(context.Context, *attempt) (string, error) {
	return func(context.Context, *attempt) (string, error) {
		return "made a namespace", lab.OnThread(func() error { return unix.Unshare(flags) })
	}
}

// inNamespaces is this program, started in namespaces of its own, root of the user's.
func inNamespaces(ctx context.Context, flags uintptr, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "/proc/self/exe", args...)
	cmd.Args[0] = "escape"
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags}
	if flags&unix.CLONE_NEWUSER != 0 {
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	return cmd
}

// clones is a probe that starts a program in namespaces of its own.
func clones(flags uintptr) func(context.Context, *attempt) (string, error) {
	return func(ctx context.Context, _ *attempt) (string, error) {
		if err := inNamespaces(ctx, flags, "say").Run(); err != nil {
			return "", err
		}
		return "made namespaces", nil
	}
}

// asEngine tries all probes in namespaces of this program's own.
func asEngine(ctx context.Context, stdout io.Writer) error {
	cmd := inNamespaces(ctx, unix.CLONE_NEWUSER|unix.CLONE_NEWNS, "try")
	cmd.Stdout, cmd.Stderr = stdout, os.Stderr
	return cmd.Run()
}

// contain is what a container engine does, from within the namespaces that it made: a
// root file system with a program and /proc in it, and nothing of what was there before.
func contain(args []string) error {
	if len(args) != 1 {
		return errors.New("want container DIRECTORY")
	}
	root := args[0]
	program, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return err
	}
	for _, step := range []struct {
		what string
		do   func() error
	}{
		{"keeping mounts to itself", func() error { return unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "") }},
		{"mounting a root", func() error { return unix.Mount("tmpfs", root, "tmpfs", 0, "mode=755") }},
		{"putting a program there", func() error {
			err := os.Mkdir(filepath.Join(root, "proc"), 0o755)
			return errors.Join(err, os.WriteFile(filepath.Join(root, "escape"), program, 0o755))
		}},
		{"mounting /proc", func() error { return unix.Mount("proc", filepath.Join(root, "proc"), "proc", 0, "") }},
		{"naming it", func() error { return unix.Sethostname([]byte("container")) }},
		{"changing to the root", func() error { return errors.Join(unix.Chdir(root), unix.PivotRoot(".", ".")) }},
		{"leaving the old one", func() error { return unix.Unmount(".", unix.MNT_DETACH) }},
	} {
		if err := step.do(); err != nil {
			return fmt.Errorf("%s: %w", step.what, err)
		}
	}
	if os.Getpid() != 1 {
		return errors.New("it is not the first process")
	}
	return unix.Exec("/escape", []string{"escape", "say"}, nil)
}
