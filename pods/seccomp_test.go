package pods_test

import (
	"encoding/json"
	"testing"

	"codeberg.org/devaipod/devaipod/pods"
)

// What the profile does the escape suite shows; here, that each call which decides
// is named in the rules that it should be in, and nowhere else.
func TestTheSeccompProfile(t *testing.T) {
	for name, nested := range map[string]bool{"a pod's": false, "a nested one": true} {
		t.Run(name, func(t *testing.T) { profile(t, nested) })
	}
}

// profile looks at one. What makes containers a nested one admits.
func profile(t *testing.T, nested bool) {
	t.Helper()
	text, err := pods.SeccompProfile(nested)
	if err != nil {
		t.Fatal(err)
	}
	var p struct {
		DefaultAction string
		ArchMap       []struct{ SubArchitectures []string }
		Syscalls      []struct {
			Names    []string
			Action   string
			ErrnoRet *uint
			Args     []struct{ Index, Value uint64 }
		}
	}
	if err := json.Unmarshal(text, &p); err != nil {
		t.Fatal(err)
	}
	if p.DefaultAction != "SCMP_ACT_ERRNO" {
		t.Errorf("by default: %s", p.DefaultAction)
	}
	for _, a := range p.ArchMap {
		if len(a.SubArchitectures) > 0 {
			t.Errorf("other ways to call: %v", a)
		}
	}
	freely := map[string]bool{}
	for _, s := range p.Syscalls {
		for _, n := range s.Names {
			if s.Action == "SCMP_ACT_ALLOW" && len(s.Args) == 0 {
				freely[n] = true
			}
		}
	}
	for name, want := range map[string]bool{
		"read": true, "execve": true, "ptrace": true, "connect": true, "landlock_restrict_self": true, "inotify_add_watch": true,
		"socket": false, "socketcall": false, "socketpair": false, "clone3": false, "keyctl": false, "bpf": false, "io_uring_setup": false, "fsopen": false, "fsconfig": false, "mount_setattr": false,
		"perf_event_open": false, "userfaultfd": false, "finit_module": false, "open_by_handle_at": false, "mknod": true,
		"clone": nested, "unshare": nested, "setns": nested, "mount": nested, "umount2": nested, "pivot_root": nested, "chroot": nested, "sethostname": nested,
	} {
		if freely[name] != want {
			t.Errorf("%s is admitted whatever its arguments: %v, want %v", name, freely[name], want)
		}
	}
}
