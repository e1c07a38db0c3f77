package testkit

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// userPrefix begins the names of users that are made here, and of their
// directories.
const userPrefix = "dvu-"

// An OSUser is an ordinary user of this machine, made by root, with all of its
// files in one directory.
type OSUser struct {
	Name string
	Dir  string // its home

	id, gid uint32
	subs    []idRange
}

// idRange is some of the ids that the user's containers may have.
type idRange struct{ first, count uint64 }

// NewOSUser makes a user, and before that removes those that killed runs left.
// Only root can.
func NewOSUser(ctx context.Context) (*OSUser, error) {
	if err := sweepUsers(ctx); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", userPrefix)
	if err != nil {
		return nil, err
	}
	// By its pid file a run that was killed is known; so it is the first.
	err = os.WriteFile(filepath.Join(dir, "pid"), fmt.Append(nil, os.Getpid()), 0o644)
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		return nil, err
	}
	u := &OSUser{Name: filepath.Base(dir), Dir: dir}
	if err := quietly(ctx, "useradd", "--no-create-home", "--home-dir", dir, "--shell", "/usr/sbin/nologin", u.Name); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	err = u.look()
	if err == nil && len(u.subs) == 0 {
		err = fmt.Errorf("useradd gave %s no sub-uids, without which there is no podman for it; see SUB_UID_COUNT in /etc/login.defs", u.Name)
	}
	if err == nil {
		err = errors.Join(openDevices(), os.Chown(dir, int(u.id), int(u.gid)))
	}
	if err != nil {
		return nil, errors.Join(err, u.Remove(ctx))
	}
	return u, nil
}

// openDevices gives the devices that podman needs without root the modes that
// udev gives them; where there is no udev, they are root's alone.
func openDevices() error {
	for _, device := range []string{"/dev/net/tun", "/dev/fuse"} {
		if err := os.Chmod(device, 0o666); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// look reads the user's ids.
func (u *OSUser) look() error {
	line, err := lineOf("/etc/passwd", u.Name)
	if err != nil || len(line) < 6 {
		return errors.Join(err, fmt.Errorf("%s is no user", u.Name))
	}
	for field, to := range map[int]*uint32{2: &u.id, 3: &u.gid} {
		n, err := strconv.ParseUint(line[field], 10, 32)
		if err != nil || n == 0 {
			return fmt.Errorf("the ids of %s are %q", u.Name, line)
		}
		*to = uint32(n)
	}
	sub, err := lineOf("/etc/subuid", u.Name)
	if err != nil || len(sub) < 3 {
		return err
	}
	first, err := strconv.ParseUint(sub[1], 10, 32)
	if err != nil {
		return err
	}
	count, err := strconv.ParseUint(sub[2], 10, 32)
	u.subs = []idRange{{first, count}}
	return err
}

// lineOf is the line of a name in a file like /etc/passwd, nil if it has none.
func lineOf(file, name string) ([]string, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		if f := strings.Split(lines.Text(), ":"); f[0] == name {
			return f, nil
		}
	}
	return nil, nil
}

// Run runs a program as the user would, with nothing of this process's
// environment but what env says, and returns what it prints. It ends when this
// process does.
func (u *OSUser) Run(ctx context.Context, dir string, env []string, program string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir = dir
	cmd.Env = append([]string{
		"HOME=" + u.Dir, "USER=" + u.Name, "LOGNAME=" + u.Name, "LANG=C.UTF-8", "TMPDIR=" + filepath.Join(u.Dir, "tmp"),
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
	}, env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Credential: &syscall.Credential{Uid: u.id, Gid: u.gid},
		Pdeathsig:  syscall.SIGTERM,
	}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = time.Minute
	// The signal comes when the thread ends that has started the process (prctl(2)).
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	return cmd.CombinedOutput()
}

// Give puts a copy of a file or folder into the user's directory, as name, and
// makes it the user's. Big files that all may read are only linked.
func (u *OSUser) Give(path, name string) error {
	to := filepath.Join(u.Dir, name)
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return err
	case info.IsDir():
		err = os.CopyFS(to, os.DirFS(path))
	case info.Mode().Perm()&0o004 != 0 && os.Link(path, to) == nil:
		return nil
	default:
		err = copyFile(to, path, info.Mode().Perm())
	}
	return err
}

func copyFile(to, from string, mode fs.FileMode) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// Own makes the user the owner of all that is in its directory, but for files
// that are linked from elsewhere.
func (u *OSUser) Own() error {
	if err := os.MkdirAll(filepath.Join(u.Dir, "tmp"), 0o700); err != nil {
		return err
	}
	return filepath.WalkDir(u.Dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok && !d.IsDir() && st.Nlink > 1 {
			return nil
		}
		return os.Lchown(path, int(u.id), int(u.gid))
	})
}

// Remove ends all that the user and its containers run, and removes its files
// and the user. What is not there is no error.
func (u *OSUser) Remove(ctx context.Context) error {
	for try := 0; ; try++ {
		pids, err := u.Processes()
		if err != nil {
			return err
		}
		if len(pids) == 0 {
			break
		}
		if try > 100 {
			return fmt.Errorf("processes %v of %s do not end", pids, u.Name)
		}
		for _, pid := range pids {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("ending process %d of %s: %w", pid, u.Name, err)
			}
		}
		time.Sleep(100 * time.Millisecond)
	}
	if line, err := lineOf("/etc/passwd", u.Name); err != nil {
		return err
	} else if line != nil {
		if err := quietly(ctx, "userdel", u.Name); err != nil {
			return err
		}
	}
	// The pid file last: by it the next run finds what this one did not come to.
	entries, err := os.ReadDir(u.Dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		if e.Name() != "pid" {
			if err := os.RemoveAll(filepath.Join(u.Dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return os.RemoveAll(u.Dir)
}

// Processes are those with one of the user's ids, but for dead ones that
// nobody asked for their end.
func (u *OSUser) Processes() ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil || u.id == 0 {
		return nil, err
	}
	own := append([]idRange{{uint64(u.id), 1}}, u.subs...)
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		status, err := os.ReadFile("/proc/" + e.Name() + "/status")
		if err != nil || bytes.Contains(status, []byte("\nState:\tZ")) {
			continue // gone
		}
		_, rest, _ := strings.Cut(string(status), "\nUid:")
		f := strings.Fields(rest)
		if len(f) == 0 {
			continue
		}
		id, err := strconv.ParseUint(f[0], 10, 32)
		if err == nil && slices.ContainsFunc(own, func(r idRange) bool { return id >= r.first && id < r.first+r.count }) {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// sweepUsers removes the users whose runs were killed.
func sweepUsers(ctx context.Context) error {
	files, err := filepath.Glob(filepath.Join(os.TempDir(), userPrefix+"*", "pid"))
	for _, file := range files {
		pid, e := os.ReadFile(file)
		if e != nil {
			continue // another run removes it
		}
		if _, e := os.Stat("/proc/" + string(pid)); e == nil || len(pid) == 0 {
			continue
		}
		dir := filepath.Dir(file)
		u := &OSUser{Name: filepath.Base(dir), Dir: dir}
		line, e := lineOf("/etc/passwd", u.Name)
		if e == nil && line != nil {
			e = u.look()
		}
		if e == nil {
			e = u.Remove(ctx)
		}
		if e != nil {
			err = errors.Join(err, fmt.Errorf("removing the user that a killed run left: %w", e))
		}
	}
	return err
}

// quietly runs a program of which only errors are of interest.
func quietly(ctx context.Context, program string, args ...string) error {
	if out, err := exec.CommandContext(ctx, program, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}
