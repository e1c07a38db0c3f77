package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"codeberg.org/devaipod/devaipod/cmd/internal/testkit/lab"
)

// victim finds the host's process that there is for it.
func (a *attempt) victim() (int, error) {
	all, err := os.ReadDir("/proc")
	if err != nil {
		return 0, err
	}
	for _, e := range all {
		pid, ok := number(e.Name())
		if !ok || pid == os.Getpid() {
			continue
		}
		line, err := os.ReadFile("/proc/" + e.Name() + "/cmdline")
		if err == nil && bytes.Contains(line, []byte(a.Victim)) {
			return pid, nil
		}
	}
	return 0, errors.New("the host's process is not to be seen")
}

// onVictim is a probe that does something to the host's process, to the one that
// has its number if it is not to be seen. It is done if the kernel says so and the
// process is the host's.
func onVictim(does string, do func(pid int) error) func(context.Context, *attempt) (string, error) {
	return func(_ context.Context, a *attempt) (string, error) {
		pid, hidden := a.victim()
		if hidden != nil {
			said := "done, to another"
			if err := do(a.VictimPID); err != nil {
				said = err.Error()
			}
			return "", fmt.Errorf("%w (by its number: %s)", hidden, said)
		}
		return does, do(pid)
	}
}

var processProbes = []probe{
	{name: "pid-seen", class: "signals and processes", try: onVictim("sees the host's process", func(int) error { return nil })},
	{name: "pid-signal", class: "signals and processes", try: onVictim("may signal it", func(pid int) error { return unix.Kill(pid, 0) })},
	{name: "pid-handle", class: "signals and processes", try: onVictim("has a handle of it", func(pid int) error {
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			return err
		}
		defer closeFD(fd)
		return unix.PidfdSendSignal(fd, 0, nil, 0)
	})},
	{name: "pid-schedule", class: "signals and processes", try: onVictim("may say where it runs", func(pid int) error {
		var have unix.CPUSet
		if err := unix.SchedGetaffinity(pid, &have); err != nil {
			return err
		}
		return unix.SchedSetaffinity(pid, &have)
	})},
	{name: "shared-memory", class: "signals and processes", try: func(_ context.Context, a *attempt) (string, error) {
		if _, err := unix.SysvShmGet(a.Segment, 0, 0); err != nil {
			return "", fmt.Errorf("shmget: %w", err)
		}
		return "has the host's shared memory", nil
	}},

	{name: "ptrace-seize", class: "ptrace", try: onVictim("traces it", func(pid int) error {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err := unix.PtraceSeize(pid); err != nil {
			return fmt.Errorf("ptrace: %w", err)
		}
		if err := unix.PtraceInterrupt(pid); err != nil {
			return fmt.Errorf("ptrace: %w", err)
		}
		var ws unix.WaitStatus
		if _, err := unix.Wait4(pid, &ws, unix.WALL, nil); err != nil {
			return err
		}
		return unix.PtraceDetach(pid)
	})},
	{name: "ptrace-memory", class: "ptrace", try: onVictim("may write to its memory", func(pid int) error {
		f, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", pid), os.O_RDWR, 0)
		if err != nil {
			return err
		}
		return f.Close()
	})},
	{name: "ptrace-read", class: "ptrace", try: onVictim("reads its memory", func(pid int) error {
		maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
		if err != nil {
			return err
		}
		var from uintptr
		if _, err := fmt.Sscanf(string(maps), "%x-", &from); err != nil {
			return fmt.Errorf("reading its maps: %w", err)
		}
		buf := make([]byte, 16)
		n, err := unix.ProcessVMReadv(pid, []unix.Iovec{{Base: &buf[0], Len: uint64(len(buf))}}, []unix.RemoteIovec{{Base: from, Len: len(buf)}}, 0)
		if err == nil && n == 0 {
			err = errors.New("read nothing")
		}
		return err
	})},
	{name: "ptrace-files", class: "ptrace", try: onVictim("takes its open files", func(pid int) error {
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			return err
		}
		defer closeFD(fd)
		got, err := unix.PidfdGetfd(fd, 0, 0)
		if err == nil {
			closeFD(got)
		}
		return err
	})},
}

// keep is how long a victim lives at most.
const keep = 10 * time.Minute

// beVictim puts a key into its user's keyring, and sleeps.
func beVictim(args []string, stdout io.Writer) error {
	if len(args) != 2 {
		return errors.New("want victim NAME KEY")
	}
	id, err := unix.AddKey("user", args[1], []byte("a key of the host"), unix.KEY_SPEC_USER_KEYRING)
	if err != nil {
		return fmt.Errorf("putting a key into the user's keyring: %w", err)
	}
	if _, err := unix.KeyctlInt(unix.KEYCTL_SET_TIMEOUT, id, int(keep.Seconds()), 0, 0); err != nil {
		return fmt.Errorf("bounding the key's life: %w", err)
	}
	fmt.Fprintln(stdout, "ready")
	time.Sleep(keep)
	return nil
}

// status is a line of /proc/self/status.
func status(name string) (string, error) {
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return "", err
	}
	_, rest, ok := strings.Cut(string(text), "\n"+name+":\t")
	if !ok {
		return "", fmt.Errorf("no %s in /proc/self/status", name)
	}
	value, _, _ := strings.Cut(rest, "\n")
	return value, nil
}

// isSet is a probe that wants a set of capabilities not to be empty.
func isSet(name string) func(context.Context, *attempt) (string, error) {
	return func(context.Context, *attempt) (string, error) {
		value, err := status(name)
		if err == nil && strings.Trim(value, "0") == "" {
			err = fmt.Errorf("%s is empty", name)
		}
		return name + " " + value, err
	}
}

var privilegeProbes = []probe{
	{name: "cap-effective", class: "privileges", try: isSet("CapEff")},
	{name: "cap-bounding", class: "privileges", try: isSet("CapBnd")},
	{name: "cap-setpcap", class: "privileges", try: func(context.Context, *attempt) (string, error) {
		return "may change what programs may have", lab.OnThread(func() error {
			return unix.Prctl(unix.PR_CAPBSET_DROP, unix.CAP_WAKE_ALARM, 0, 0, 0)
		})
	}},
	{name: "new-privileges", class: "privileges", try: func(context.Context, *attempt) (string, error) {
		value, err := status("NoNewPrivs")
		if err == nil && value != "0" {
			err = errors.New("no program gives privileges")
		}
		return "a program may give privileges", err
	}},
	{name: "setuid-call", class: "privileges", try: func(context.Context, *attempt) (string, error) {
		return "became root", lab.OnThread(func() error {
			if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, 0, 0, 0); errno != 0 {
				return fmt.Errorf("setresuid: %w", errno)
			}
			return nil
		})
	}},
	{name: "setuid-program", class: "privileges", try: func(ctx context.Context, _ *attempt) (string, error) {
		out, err := exec.CommandContext(ctx, SetuidPath, "say").Output()
		if err == nil && strings.TrimSpace(string(out)) != "0" {
			err = fmt.Errorf("it runs as %q", bytes.TrimSpace(out))
		}
		return "a program of root's runs as root", err
	}},
	{name: "chroot", class: "privileges", try: func(context.Context, *attempt) (string, error) {
		return "changed its root", lab.OnThread(func() error {
			if err := unix.Unshare(unix.CLONE_FS); err != nil { // so that it is this thread's alone
				return err
			}
			return unix.Chroot("/")
		})
	}},

	{name: "keyring-read", class: "keyring", try: func(_ context.Context, a *attempt) (string, error) {
		return "read a key of the host's", lab.OnThread(func() error {
			session, err := unix.KeyctlJoinSessionKeyring(a.token)
			if err != nil {
				return fmt.Errorf("keyctl: %w", err)
			}
			// A key is for who possesses it: through a keyring of one's own.
			if _, err := unix.KeyctlInt(unix.KEYCTL_LINK, unix.KEY_SPEC_USER_KEYRING, session, 0, 0); err != nil {
				return fmt.Errorf("keyctl: %w", err)
			}
			id, err := unix.KeyctlSearch(session, "user", a.Key, 0)
			if err != nil {
				return fmt.Errorf("keyctl: %w", err)
			}
			_, err = unix.KeyctlBuffer(unix.KEYCTL_READ, id, make([]byte, 100), 0)
			return err
		})
	}},
	{name: "keyring-add", class: "keyring", try: func(_ context.Context, a *attempt) (string, error) {
		return "added a key", lab.OnThread(func() error { // whose the keyring is
			id, err := unix.AddKey("user", a.token, []byte("x"), unix.KEY_SPEC_PROCESS_KEYRING)
			if err != nil {
				return fmt.Errorf("add_key: %w", err)
			}
			_, err = unix.KeyctlInt(unix.KEYCTL_REVOKE, id, 0, 0, 0)
			return err
		})
	}},
	{name: "keyring-request", class: "keyring", try: func(_ context.Context, a *attempt) (string, error) {
		_, err := unix.RequestKey("user", a.Key, "", unix.KEY_SPEC_PROCESS_KEYRING)
		// It is not there, or there is no program that would make it.
		if err != nil && !errors.Is(err, unix.ENOKEY) && !errors.Is(err, unix.ENOENT) {
			return "", fmt.Errorf("request_key: %w", err)
		}
		return "asked for a key", nil
	}},
}

// SetuidPath is a copy of this program in the image that is root's and says so.
const SetuidPath = "/bin/escape-root"
