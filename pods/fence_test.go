package pods_test

import (
	"encoding/json"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"codeberg.org/devaipod/devaipod/pods"
)

func TestTheFencesRulesAreRules(t *testing.T) {
	rules := pods.FenceRules("dev", []string{"podman0", pods.BridgePrefix("dev") + "0123abcd"},
		[]netip.Addr{netip.MustParseAddr("192.0.2.53"), netip.MustParseAddr("2001:db8::53")}, []netip.Addr{netip.MustParseAddr("203.0.113.2"), netip.MustParseAddr("2001:db8::2")})
	if strings.Contains(rules, "0123abcd") || !strings.Contains(rules, `oifname "podman0" reject`) || !strings.Contains(rules, "ip6 daddr 2001:db8::2 reject") {
		t.Errorf("rules:\n%s", rules)
	}
	// In a network namespace of its own, in which it does nothing to anybody, and as
	// root of a user's namespace, which everybody may be.
	file := filepath.Join(t.TempDir(), "rules")
	if err := os.WriteFile(file, []byte(rules), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("unshare", "--map-root-user", "--net", "sh", "-c", `PATH=$PATH:/usr/sbin; nft -f "$0" && nft -f "$0" && nft list ruleset`, file)
	out, err := cmd.CombinedOutput()
	if err != nil || strings.Count(string(out), "reject") != 5 {
		t.Errorf("nft: %v\n%s", err, out)
	}
}

func TestNameServersThatContainersCanAsk(t *testing.T) {
	got, err := pods.NameServers(strings.NewReader("search x\nnameserver 127.0.0.53\nnameserver 192.0.2.1\n# nameserver 192.0.2.2\nnameserver fe80::1%eth0\nnameserver\nnameserver x\nnameserver 2001:db8::1 # y\n"))
	want := []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v", got, err)
	}
}

// What the profile does the escape suite shows; here, that each call which decides
// is named in the rules that it should be in, and nowhere else.
func TestTheSeccompProfile(t *testing.T) {
	text, err := pods.SeccompProfile()
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
		"socket": false, "socketcall": false, "socketpair": false, "clone": false, "clone3": false, "keyctl": false, "unshare": false, "mount": false, "bpf": false, "io_uring_setup": false,
	} {
		if freely[name] != want {
			t.Errorf("%s is admitted whatever its arguments: %v, want %v", name, freely[name], want)
		}
	}
}
