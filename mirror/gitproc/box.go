package gitproc

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"github.com/landlock-lsm/go-landlock/landlock"
	lls "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"
)

// A Box is what a child runs in that reads what nobody vouches for. It sees the
// directories named here and git itself, nothing else of the file system
// (landlock(7)); it has no network, no capability and no way to gain one
// (user_namespaces(7), network_namespaces(7)); and it has limits
// (setrlimit(2)). A kernel without one of these leaves that one out, and [Probe]
// says so.
type Box struct {
	// Launcher is the command that calls [Enter] with the arguments that follow.
	Launcher []string `json:"-"`

	Read   []string      `json:"read"`   // directories
	Write  []string      `json:"write"`  // directories, to read as well
	Memory int64         `json:"memory"` // bytes of address space, of each process
	CPU    time.Duration `json:"cpu"`    // of each process, in whole seconds
	File   int64         `json:"file"`   // bytes of the largest file that is written
	Files  uint64        `json:"files"`  // open at once
}

// noSpaces is set where the kernel makes no namespaces for us.
var noSpaces atomic.Bool

const spaces = syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET | syscall.CLONE_NEWIPC

// refusedSpaces tells whether a process was not started for want of namespaces
// (clone(2), ERRORS).
func refusedSpaces(err error) bool {
	var started *exec.ExitError
	return !errors.As(err, &started) && (errors.Is(err, unix.EPERM) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EUSERS))
}

// command is git with args in the box.
func (b *Box) command(ctx context.Context, args []string, apart bool) (*exec.Cmd, error) {
	text, err := json.Marshal(b)
	if err != nil {
		return nil, err
	}
	launch := append(append(b.Launcher[1:len(b.Launcher):len(b.Launcher)], string(text)), args...)
	cmd := exec.CommandContext(ctx, b.Launcher[0], launch...)
	if apart {
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags:  spaces,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: os.Getuid(), HostID: os.Getuid(), Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: os.Getgid(), HostID: os.Getgid(), Size: 1}},
		}
	}
	return cmd, nil
}

// Probe runs git in a box once. It tells git's version, and names what this kernel
// has not of a box: nothing, where all is well.
func Probe(ctx context.Context, launcher []string) (version string, lacking []string, err error) {
	var out bytes.Buffer
	box := &Box{Launcher: launcher, Memory: 1 << 30, CPU: 10 * time.Second, File: 1 << 20, Files: 64}
	if err := (Child{Args: []string{"version"}, Stdout: &out, Box: box}).Run(ctx); err != nil {
		return "", nil, err
	}
	return strings.TrimPrefix(strings.TrimSpace(out.String()), "git version "), missing(), nil
}

func missing() []string {
	var out []string
	if v, err := lls.LandlockGetABIVersion(); err != nil || v < 1 {
		out = append(out, "the kernel has no Landlock: git that reads pushes can read what the service can (CONFIG_SECURITY_LANDLOCK, lsm=landlock)")
	}
	if noSpaces.Load() {
		out = append(out, "the kernel lets this user make no namespaces: git that reads pushes is not cut off from the network (kernel.unprivileged_userns_clone, AppArmor)")
	}
	return out
}

// Enter puts this process into a box and turns it into git. The arguments are
// the box, as JSON, and git's own. It returns only when that fails.
func Enter(args []string) error {
	if len(args) < 2 {
		return errors.New("want a box and git's arguments")
	}
	var b Box
	if err := json.Unmarshal([]byte(args[0]), &b); err != nil {
		return fmt.Errorf("reading the box: %w", err)
	}
	git, err := exec.LookPath("git")
	if err != nil {
		return err
	}
	// What follows holds for this thread, and for what it becomes.
	runtime.LockOSThread()
	if err := b.close(git); err != nil {
		return fmt.Errorf("entering the box: %w", err)
	}
	if err := execWithin(b.Memory, git, append([]string{"git"}, args[1:]...), os.Environ()); err != nil {
		return fmt.Errorf("running %s: %w", git, err)
	}
	return nil
}

// execWithin is execve(2) with a limit to the address space. Go's runtime has
// reserved more than that for itself, and dies when it is refused the next page:
// between the limit and the end of this program nothing may allocate.
func execWithin(memory int64, path string, args, env []string) error {
	name, err := syscall.BytePtrFromString(path)
	if err != nil {
		return err
	}
	argv, err := syscall.SlicePtrFromStrings(args)
	if err != nil {
		return err
	}
	envp, err := syscall.SlicePtrFromStrings(env)
	if err != nil {
		return err
	}
	limit := &unix.Rlimit{Cur: uint64(memory), Max: uint64(memory)}
	debug.SetGCPercent(-1) // its workers would allocate, too
	_, _, errno := syscall.RawSyscall6(unix.SYS_PRLIMIT64, 0, unix.RLIMIT_AS, uintptr(unsafe.Pointer(limit)), 0, 0, 0)
	if errno == 0 {
		_, _, errno = syscall.RawSyscall(unix.SYS_EXECVE, uintptr(unsafe.Pointer(name)), uintptr(unsafe.Pointer(&argv[0])), uintptr(unsafe.Pointer(&envp[0])))
	}
	return errno
}

// close takes from this thread what git is not to have; its memory is for
// [execWithin] to bound.
func (b *Box) close(git string) error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	for c := uintptr(0); c <= unix.CAP_LAST_CAP; c++ {
		// Root's capabilities come back at exec but for what is dropped here. Who
		// has none can't drop any; an older kernel does not know the last ones.
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil && !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EINVAL) {
			return err
		}
	}
	real, err := filepath.EvalSymlinks(git)
	if err != nil {
		return err
	}
	err = landlock.V6.BestEffort().Restrict(
		landlock.RODirs("/usr", "/bin", "/lib", "/lib64", "/nix/store", "/gnu/store", filepath.Dir(real)).IgnoreIfMissing(),
		landlock.ROFiles("/etc/ld.so.cache", "/etc/ld.so.preload", "/dev/urandom", "/dev/random", "/dev/zero").IgnoreIfMissing(),
		landlock.RWFiles("/dev/null").IgnoreIfMissing(),
		landlock.RODirs(b.Read...).IgnoreIfMissing(),
		landlock.RWDirs(b.Write...),
	)
	if err != nil {
		return err
	}
	for _, l := range []struct {
		what int
		n    uint64
	}{
		{unix.RLIMIT_CPU, uint64(b.CPU / time.Second)}, {unix.RLIMIT_FSIZE, uint64(b.File)}, {unix.RLIMIT_NOFILE, b.Files}, {unix.RLIMIT_CORE, 0},
	} {
		if err := syscall.Setrlimit(l.what, &syscall.Rlimit{Cur: l.n, Max: l.n}); err != nil {
			return err
		}
	}
	return nil
}
