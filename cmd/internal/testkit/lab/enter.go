package lab

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// played says which part a process of [Enter] plays.
const played = "DEVAIPOD_LAB_PART"

// InsideEnv is the variable of a process that Inside knows as one inside: of one
// that is started there with an environment of its own.
const InsideEnv = played + "=inside"

// Enter starts this program again, with the same arguments and more, in network, process,
// mount, IPC and host name namespaces of its own, where Inside answers true. When
// it ends, the kernel ends all that it started, so that nothing is left behind
// however it ends. It needs root.
func Enter(stdout, stderr io.Writer, more ...string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(self, append(slices.Clone(os.Args[1:]), more...)...)
	cmd.Env = append(os.Environ(), played+"=init")
	cmd.Stdout, cmd.Stderr = stdout, stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		Pdeathsig:  syscall.SIGKILL,
	}
	// The signal comes when the thread ends that has started the process (prctl(2)).
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("in namespaces of its own: %w", err)
	}
	return nil
}

// Inside tells whether this is a process that Enter has started. The first
// process of the namespaces never returns from it: it starts the program once
// more, and reaps. Call it at the beginning of TestMain.
func Inside() bool {
	switch os.Getenv(played) {
	case "init":
		code, err := beInit()
		if err != nil {
			fmt.Fprintln(os.Stderr, "lab:", err)
		}
		os.Exit(code)
	case "inside":
		return true
	}
	return false
}

// Within runs f in the network namespace that is at path, as in
// /proc/PID/ns/net: sockets that f makes are there.
func Within(path string, f func() error) error {
	return OnThread(func() error {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			err = errors.Join(unix.Setns(fd, unix.CLONE_NEWNET), unix.Close(fd))
		}
		if err != nil {
			return fmt.Errorf("entering the network namespace %s: %w", path, err)
		}
		return f()
	})
}

// OnThread runs f on a thread that ends with it, so that f may change what is a
// thread's, such as its namespaces. It is never the process's first, by which
// /proc/self knows the process.
func OnThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == os.Getpid() {
			done <- OnThread(f)
			runtime.UnlockOSThread()
			return
		}
		done <- f()
	}()
	return <-done
}

// beInit is process 1: it makes the mounts that belong to the namespaces.
func beInit() (code int, err error) {
	err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
	if err == nil {
		err = unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	}
	if err == nil {
		err = os.MkdirAll("/run/netns", 0o755)
	}
	if err == nil { // podman keeps mounts of namespaces there
		err = unix.Mount("tmpfs", "/run/netns", "tmpfs", 0, "")
	}
	if err != nil {
		return 1, fmt.Errorf("making the namespaces' own mounts: %w", err)
	}
	self, err := os.Executable()
	if err != nil {
		return 1, err
	}
	cmd := exec.Command(self, os.Args[1:]...)
	cmd.Env = append(os.Environ(), InsideEnv)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Start(); err != nil {
		return 1, err
	}
	for {
		var ws syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &ws, 0, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			return 1, fmt.Errorf("waiting for the program: %w", err)
		case pid == cmd.Process.Pid && ws.Signaled():
			return 1, fmt.Errorf("the program was ended by %s", ws.Signal())
		case pid == cmd.Process.Pid:
			return ws.ExitStatus(), nil
		}
	}
}
