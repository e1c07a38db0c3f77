package main_test

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	main "codeberg.org/devaipod/devaipod/cmd/internal/escape"
	"codeberg.org/devaipod/devaipod/cmd/internal/testkit/lab"
	"codeberg.org/devaipod/devaipod/pods"
	"codeberg.org/devaipod/devaipod/pods/podman"
)

// Files in the user's home by which the two processes speak.
const (
	givenFile   = "given.json"
	resultsFile = "results.json"
)

// runAsUser runs the pod's part of the test as the ordinary user, in the same
// namespaces, and returns what the probes said in a pod, and in a nested one.
func runAsUser(t *testing.T, p *place) (sealed, nested map[string]main.Result) {
	t.Helper()
	u, err := user.Lookup(os.Getenv(userEnv))
	must(t, err)
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	must(t, err)
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	must(t, err)
	given := p.config
	given.Run += "u"
	given.Host = lab.HostAddr
	text, err := json.Marshal(given)
	must(t, err)
	must(t, os.WriteFile(filepath.Join(u.HomeDir, givenFile), text, 0o644))
	cmd := exec.Command(filepath.Join(p.dir, "bin/self"), "-test.run=^TestEscape$", "-test.v=true", "-test.count=1")
	cmd.Dir = u.HomeDir
	cmd.Env = []string{"HOME=" + u.HomeDir, "USER=" + u.Username, "PATH=" + os.Getenv("PATH"), "TMPDIR=" + u.HomeDir, placeEnv + "=" + p.dir, userEnv + "=" + u.Username, lab.InsideEnv}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	out, err := cmd.CombinedOutput()
	t.Logf("as %s:\n%s", u.Username, out)
	must(t, err)
	text, err = os.ReadFile(filepath.Join(u.HomeDir, resultsFile))
	must(t, err)
	var all [2]map[string]main.Result
	must(t, json.Unmarshal(text, &all))
	return p.seen(all[0]), p.seen(all[1])
}

// escapeAsUser is the ordinary user's part: a pod, a nested one, and a container beside
// them.
func escapeAsUser(t *testing.T) {
	home := os.Getenv("HOME")
	p := &place{dir: os.Getenv(placeEnv), base: home, key: pods.Key{Owner: "ann", Repo: "hello", Issue: 3}, canary: []string{"sk+a-key-of-the-users/="}}
	text, err := os.ReadFile(filepath.Join(home, givenFile))
	must(t, err)
	must(t, json.Unmarshal(text, &p.config))
	p.podman(t)
	p.config.Sockets = append(p.config.Sockets, p.path("w/podman.sock"))
	p.twoPods(t)
	// A container on a network of its own, where the fence has to be: one without a
	// network of a name, as the forge's, is beyond slirp4netns(1) then.
	_, err = p.world.Podman(t.Context(), "network", "create", "peers")
	must(t, err)
	_, err = p.world.Podman(t.Context(), "run", "--detach", "--name", "forge", "--network", "peers", image, "/bin/escape", "serve", fmt.Sprintf(":%d", p.config.LoopPort), "site=forge lab="+p.config.Nonce)
	must(t, err)
	p.config.Forge = p.address(t, "forge")
	all := [2]map[string]main.Result{p.tryIn(t, "the user's pod", p.agent(), p.config)}
	nested := p.config
	nested.Control, nested.Engine, nested.Run = p.makePod(t, nestedKey, "control"), true, p.config.Run+"n"
	all[1] = p.tryIn(t, "the user's nested pod", p.container(nestedKey, pods.RoleAgent), nested)
	fenceAsUser(t, p)
	must(t, p.manager.RemoveAll(t.Context()))
	must(t, p.world.Remove(t.Context()))
	text, err = json.Marshal(all)
	must(t, err)
	must(t, os.WriteFile(filepath.Join(home, resultsFile), text, 0o600))
}

// fenceAsUser tries from another container on control's network, to which the same
// rules apply.
func fenceAsUser(t *testing.T, p *place) {
	t.Helper()
	get := func(addr string) bool {
		out, _ := p.world.Podman(t.Context(), "run", "--rm", "--network", p.manager.Name(p.key)+"-egress", image, "/bin/escape", "get", addr)
		return strings.Contains(out, p.config.Nonce)
	}
	want := func(when string, reached bool) {
		t.Helper()
		for what, addr := range map[string]string{"the host": net.JoinHostPort(lab.HostAddr, strconv.Itoa(p.config.HostPort)), "another container": p.config.Forge} {
			if got := get(addr); got != reached {
				t.Errorf("%s, control reaches %s: %v, want %v", when, what, got, reached)
			}
		}
		if !get(net.JoinHostPort(lab.AllowedName, "80")) {
			t.Errorf("%s, control does not reach the world", when)
		}
	}
	must(t, p.runs.Fence(t.Context()))
	want("as it is made", false)
	command(t, "podman", "unshare", "--rootless-netns", "/usr/sbin/nft", "delete", "table", "inet", "devaipod_escape")
	want("without the fence", true)
	must(t, p.runs.Fence(t.Context()))
	want("when it is made again", false)
	host, err := p.client.Host(t.Context())
	must(t, err)
	if why := podman.LackingFence(t.Context(), host); why != "" || !host.Rootless {
		t.Errorf("podman without root: %v; there is a fence, and this host lacks: %s", host.Rootless, why)
	}
}
