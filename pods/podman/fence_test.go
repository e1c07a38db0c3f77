package podman_test

import (
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"codeberg.org/devaipod/devaipod/pods/podman"
)

func TestTheFencesRulesAreRules(t *testing.T) {
	rules := podman.FenceRules("dev", []string{"podman0", podman.BridgePrefix("dev") + "0123abcd"},
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
	got, err := podman.NameServers(strings.NewReader("search x\nnameserver 127.0.0.53\nnameserver 192.0.2.1\n# nameserver 192.0.2.2\nnameserver fe80::1%eth0\nnameserver\nnameserver x\nnameserver 2001:db8::1 # y\n"))
	want := []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v", got, err)
	}
}
