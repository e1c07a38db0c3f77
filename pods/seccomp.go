package pods

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"go.podman.io/common/pkg/seccomp"
	"golang.org/x/sys/unix"

	"codeberg.org/devaipod/devaipod/pods/podfile"
)

// What a container may ask of the kernel is podman's own profile with less: a
// container without a network still shares with the host what network namespaces
// don't divide (the sockets to the machine under a virtual one, vsock(7)), and what
// no user namespace divides (keyrings, which are a user's: keyrings(7)). And who
// may make namespaces has all of the kernel's code for root in reach.

// notAdmitted are calls that podman's profile may admit and ours does not.
var notAdmitted = []string{
	"name_to_handle_at", "open_by_handle_at", "fanotify_init", "fanotify_mark", "quotactl", "quotactl_fd",
	"bpf", "perf_event_open", "userfaultfd", "io_uring_setup", "io_uring_enter", "io_uring_register", "vmsplice",
	"syslog", "reboot", "acct", "kexec_load", "kexec_file_load", "init_module", "finit_module", "delete_module",
}

// notThere are calls that are answered as by a kernel that has none of them, so that
// programs take their other way: clone and mount, and no keyring.
var notThere = []string{
	"clone3", "mount_setattr", "move_mount", "open_tree", "fsopen", "fsconfig", "fsmount", "fspick",
	"add_key", "keyctl", "request_key",
}

// forEngines are the calls by which a program makes containers, beside clone's
// namespaces: admitted where pods may be nested, and nowhere else.
var forEngines = []string{"unshare", "setns", "mount", "umount", "umount2", "pivot_root", "chroot", "sethostname", "setdomainname"}

// families are those that a pod's sockets may be of; AF_NETLINK is for programs
// that list their own interfaces.
var families = []uint64{unix.AF_UNIX, unix.AF_INET, unix.AF_INET6, unix.AF_NETLINK}

// namespaces are clone(2)'s flags that make some.
const namespaces = unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET

// seccompProfile is the profile as podman reads it (containers-seccomp.json(5)); a
// nested one admits what container engines need.
func seccompProfile(nested bool) ([]byte, error) {
	p := seccomp.DefaultProfile()
	ours := slices.Concat([]string{"socket", "socketcall", "socketpair", "clone"}, notAdmitted, notThere, forEngines)
	for _, call := range p.Syscalls {
		if call.Name != "" {
			call.Names, call.Name = append(call.Names, call.Name), ""
		}
		call.Names = slices.DeleteFunc(call.Names, func(n string) bool { return slices.Contains(ours, n) })
	}
	p.Syscalls = slices.DeleteFunc(p.Syscalls, func(s *seccomp.Syscall) bool { return len(s.Names) == 0 })
	// By other ways of calling the kernel (32 bits), arguments could not be looked at.
	for i := range p.ArchMap {
		p.ArchMap[i].SubArches = nil
	}
	refused := func(errno unix.Errno) (code *uint) { n := uint(errno); return &n }
	admit := func(name string, args ...*seccomp.Arg) {
		p.Syscalls = append(p.Syscalls, &seccomp.Syscall{Names: []string{name}, Action: seccomp.ActAllow, Args: args})
	}
	for _, f := range families {
		args := []*seccomp.Arg{{Index: 0, Value: f, Op: seccomp.OpEqualTo}}
		if f == unix.AF_NETLINK {
			args = append(args, &seccomp.Arg{Index: 2, Value: unix.NETLINK_ROUTE, Op: seccomp.OpEqualTo})
		}
		admit("socket", args...)
	}
	admit("socketpair", &seccomp.Arg{Index: 0, Value: unix.AF_UNIX, Op: seccomp.OpEqualTo})
	denied := notAdmitted
	if nested {
		for _, call := range append([]string{"clone"}, forEngines...) {
			admit(call)
		}
	} else {
		admit("clone", &seccomp.Arg{Index: cloneFlags(), Value: namespaces, ValueTwo: 0, Op: seccomp.OpMaskedEqual})
		denied = slices.Concat(denied, forEngines)
	}
	p.Syscalls = append(p.Syscalls,
		&seccomp.Syscall{
			Names: []string{"socket"}, Action: seccomp.ActErrno, ErrnoRet: refused(unix.EAFNOSUPPORT),
			Args: []*seccomp.Arg{{Index: 0, Value: unix.AF_NETLINK, Op: seccomp.OpGreaterThan}},
		},
		&seccomp.Syscall{Names: notThere, Action: seccomp.ActErrno, ErrnoRet: refused(unix.ENOSYS)},
		&seccomp.Syscall{Names: denied, Action: seccomp.ActErrno, ErrnoRet: refused(unix.EPERM)},
	)
	return json.Marshal(p)
}

// SeccompFile keeps the profile of containers that are none of engines, and is its path.
func (m *Manager) SeccompFile() (path string, err error) { return m.seccompFile(false) }

// seccompFile keeps the profile where podman finds it, under a name that tells its
// content: with another devaipod containers are made anew.
func (m *Manager) seccompFile(nested bool) (path string, err error) {
	profile, err := seccompProfile(nested)
	if err != nil {
		return "", fmt.Errorf("making the seccomp profile: %w", err)
	}
	sum := sha256.Sum256(profile)
	path = filepath.Join(m.cfg.StateDir, "seccomp-"+hex.EncodeToString(sum[:4])+".json")
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return path, err
	}
	return path, podfile.Replace(path, profile)
}
