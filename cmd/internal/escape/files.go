package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"codeberg.org/devaipod/devaipod/pods/podfile"
)

// opens is a probe that wants to open one of the files for writing. It writes
// nothing.
func opens(paths ...string) func(context.Context, *attempt) (string, error) {
	return func(context.Context, *attempt) (string, error) {
		err := errors.New("no such file")
		for _, pattern := range paths {
			found, e := filepath.Glob(pattern)
			if e != nil {
				return "", e
			}
			for _, path := range found {
				var f *os.File
				if f, err = os.OpenFile(path, os.O_WRONLY, 0); err == nil {
					return "could write to " + path, f.Close()
				}
			}
		}
		return "", err
	}
}

// reads is a probe that wants to read something of one of the files.
func reads(paths ...string) func(context.Context, *attempt) (string, error) {
	return func(context.Context, *attempt) (string, error) {
		var errs []error
		for _, path := range paths {
			f, err := os.Open(path)
			if err != nil {
				errs = append(errs, err)
				continue
			}
			n, err := f.Read(make([]byte, 16))
			if err = errors.Join(err, f.Close()); n > 0 {
				return "read " + path, nil
			}
			errs = append(errs, fmt.Errorf("%s is empty", path), err)
		}
		return "", errors.Join(errs...)
	}
}

var fileProbes = []probe{
	{name: "proc-sysctl", class: "/proc", try: opens("/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe")},
	{name: "proc-sysctl-net", class: "/proc", try: opens("/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv4/conf/lo/rp_filter")},
	{name: "proc-trigger", class: "/proc", try: opens("/proc/sysrq-trigger", "/proc/sys/vm/drop_caches")},
	{name: "proc-kernel", class: "/proc", try: reads("/proc/kcore", "/proc/vmallocinfo", "/proc/slabinfo")},
	{name: "proc-keys", class: "/proc", try: reads("/proc/keys")},
	{name: "proc-timers", class: "/proc", try: reads("/proc/timer_list")},
	{name: "proc-root-of-others", class: "/proc", try: func(_ context.Context, a *attempt) (string, error) {
		roots, err := filepath.Glob("/proc/[0-9]*/root" + a.Marker)
		if err != nil || len(roots) == 0 {
			return "", errors.Join(errors.New("no process has the host's root"), err)
		}
		return "the host's files are at " + roots[0], nil
	}},
	{name: "proc-symbols", class: "/proc", try: func(context.Context, *attempt) (string, error) {
		f, err := os.Open("/proc/kallsyms")
		if err != nil {
			return "", err
		}
		defer f.Close()
		line := make([]byte, 16)
		if _, err := io.ReadFull(f, line); err != nil {
			return "", err
		}
		if strings.Trim(string(line), "0") == "" {
			return "", errors.New("addresses are hidden")
		}
		return "knows where the kernel is", nil
	}},

	{name: "sys-write", class: "/sys", try: opens("/sys/kernel/mm/*/enabled", "/sys/kernel/uevent_helper", "/sys/kernel/profiling", "/sys/module/*/parameters/*")},
	{name: "sys-cgroup", class: "/sys", try: opens("/sys/fs/cgroup/cgroup.procs", "/sys/fs/cgroup/*/cgroup.procs", "/sys/fs/cgroup/*/*/cgroup.procs")},
	{name: "sys-devices", class: "/sys", try: opens("/sys/class/*/*/uevent", "/sys/bus/*/drivers_probe")},
	{name: "sys-links", class: "/sys", try: func(context.Context, *attempt) (string, error) {
		links, err := os.ReadDir("/sys/class/net")
		if err != nil {
			return "", err
		}
		for _, l := range links {
			// Kernels give every namespace tunnels that lead nowhere, and are down.
			state, err := os.ReadFile(filepath.Join("/sys/class/net", l.Name(), "flags"))
			if flags, e := strconv.ParseUint(strings.TrimSpace(string(state)), 0, 32); l.Name() != "lo" && errors.Join(err, e) == nil && flags&unix.IFF_UP != 0 {
				return "sees " + l.Name(), nil
			}
		}
		return "", errors.New("no interface but loopback")
	}},

	{name: "device-log", class: "devices", try: func(context.Context, *attempt) (string, error) {
		f, err := os.OpenFile("/dev/kmsg", os.O_RDONLY|unix.O_NONBLOCK, 0)
		if err != nil {
			return "", err
		}
		return "opened the kernel's log", f.Close()
	}},
	{name: "device-log-by-call", class: "devices", try: func(context.Context, *attempt) (string, error) {
		const sizeOfBuffer = 10 // SYSLOG_ACTION_SIZE_BUFFER reads nothing
		if _, err := unix.Klogctl(3, make([]byte, sizeOfBuffer)); err != nil {
			return "", err
		}
		return "read the kernel's log", nil
	}},
	{name: "device-made", class: "devices", try: func(context.Context, *attempt) (string, error) {
		return OpenNode(unix.S_IFCHR, 1, 11) // /dev/kmsg
	}},
	{name: "device-disk", class: "devices", needs: "disk that root may open", try: func(context.Context, *attempt) (string, error) {
		major, minor, err := Disk()
		if err != nil {
			return "", err
		}
		return OpenNode(unix.S_IFBLK, major, minor)
	}},
	{name: "device-listed", class: "devices", try: func(context.Context, *attempt) (string, error) {
		// What a container has by itself is in runc's default, and the terminals.
		ordinary := " console core fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero "
		all, err := os.ReadDir("/dev")
		if err != nil {
			return "", err
		}
		for _, d := range all {
			if !strings.Contains(ordinary, " "+d.Name()+" ") {
				return "has /dev/" + d.Name(), nil
			}
		}
		return "", errors.New("the usual devices, and no other")
	}},
}

// OpenNode makes a device, opens it for reading, and removes it.
func OpenNode(kind uint32, major, minor uint32) (string, error) {
	dir, err := os.MkdirTemp("", "node")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "node")
	defer func() { _ = os.RemoveAll(dir) }() // empty, or the node
	if err := unix.Mknod(path, kind|0o600, int(unix.Mkdev(major, minor))); err != nil {
		return "", fmt.Errorf("mknod: %w", err)
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	closeFD(fd)
	return fmt.Sprintf("opened device %d:%d", major, minor), nil
}

// Disk is the first block device that the kernel tells of.
func Disk() (major, minor uint32, err error) {
	text, err := os.ReadFile("/proc/partitions")
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(text)) {
		if n, _ := fmt.Sscan(line, &major, &minor); n == 2 {
			return major, minor, nil
		}
	}
	return 0, 0, errors.New("no block device")
}

// mounts is a probe that mounts something somewhere, and takes it off.
func mounts(source, kind string, flags uintptr) func(context.Context, *attempt) (string, error) {
	return func(context.Context, *attempt) (string, error) {
		dir, err := os.MkdirTemp("", "mount")
		if err != nil {
			return "", err
		}
		defer func() { _ = os.Remove(dir) }() // stays if something is still there
		if err := unix.Mount(source, dir, kind, flags, ""); err != nil {
			return "", fmt.Errorf("mount: %w", err)
		}
		return "mounted " + kind + source, unix.Unmount(dir, unix.MNT_DETACH)
	}
}

var mountProbes = []probe{
	{name: "mount-tmpfs", class: "mounts", try: mounts("tmpfs", "tmpfs", 0)},
	{name: "mount-proc", class: "mounts", try: mounts("proc", "proc", 0)},
	{name: "mount-bind", class: "mounts", try: mounts("/", "", unix.MS_BIND)},
	{name: "mount-new-api", class: "mounts", try: func(context.Context, *attempt) (string, error) {
		fd, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
		if err != nil {
			return "", fmt.Errorf("fsopen: %w", err)
		}
		closeFD(fd)
		return "opened a file system", nil
	}},
	{name: "mount-write-tools", class: "mounts", try: func(context.Context, *attempt) (string, error) {
		path := filepath.Join(podfile.ToolsDir, "escape")
		f, err := os.Create(path)
		if err != nil {
			return "", err
		}
		return "wrote to the tools", errors.Join(f.Close(), os.Remove(path))
	}},
	{name: "mount-of-the-host", class: "mounts", try: func(_ context.Context, a *attempt) (string, error) {
		text, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil {
			return "", err
		}
		for line := range strings.Lines(string(text)) {
			if f := strings.Fields(line); len(f) > 4 {
				if _, err := os.Stat(filepath.Join(f[4], filepath.Base(a.Marker))); err == nil {
					return "the host's files are at " + f[4], nil
				}
			}
		}
		return "", errors.New("no mount has the host's files")
	}},
	{name: "mount-by-handle", class: "mounts", try: func(context.Context, *attempt) (string, error) {
		// The way of "shocker": a file of the host by its number.
		at := "/"
		h, _, err := unix.NameToHandleAt(unix.AT_FDCWD, at, 0)
		if errors.Is(err, unix.EOPNOTSUPP) { // overlayfs
			at = "/dev"
			h, _, err = unix.NameToHandleAt(unix.AT_FDCWD, at, 0)
		}
		if err != nil {
			return "", fmt.Errorf("name_to_handle_at: %w", err)
		}
		root, err := os.Open(at)
		if err != nil {
			return "", err
		}
		defer root.Close()
		fd, err := unix.OpenByHandleAt(int(root.Fd()), h, unix.O_RDONLY|unix.O_CLOEXEC)
		if err != nil && !errors.Is(err, unix.ESTALE) {
			return "", fmt.Errorf("open_by_handle_at: %w", err)
		}
		if err == nil {
			closeFD(fd)
		}
		return "may open files by number", nil
	}},
}
