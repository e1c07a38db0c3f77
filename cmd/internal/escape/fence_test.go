package main_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/cmd/internal/testkit/lab"
	"codeberg.org/devaipod/devaipod/pods"
	"codeberg.org/devaipod/devaipod/pods/backend"
	"codeberg.org/devaipod/devaipod/pods/podman"
)

// fence tries to reach from a control container's network what it must not: first
// as it is, then without the fence, to see that it could, and then after what may
// befall rules of the packet filter.
func fence(t *testing.T, p *place) {
	must(t, p.runs.Fence(t.Context()))
	beyond := map[string]string{
		"the host, at its bridge":       net.JoinHostPort(p.gateway(t, p.key), strconv.Itoa(p.config.HostPort)),
		"the host, at its own address":  net.JoinHostPort(lab.HostAddr, strconv.Itoa(p.config.HostPort)),
		"the host, at another's bridge": net.JoinHostPort(p.gateway(t, p.neighbour()), strconv.Itoa(p.config.HostPort)),
		"another pod's control":         p.config.Neighbour,
		"the forge's container":         p.config.Forge,
	}
	want := func(when string, reached bool) {
		t.Helper()
		for _, what := range slices.Sorted(maps.Keys(beyond)) {
			answer, err := p.fromControl(t, beyond[what])
			if got := strings.Contains(answer, p.lab.Nonce); got != reached {
				t.Errorf("%s, control reaches %s: %v, want %v (%v)", when, what, got, reached, err)
			}
		}
		if answer, err := p.fromControl(t, net.JoinHostPort(lab.AllowedName, "80")); !strings.Contains(answer, p.lab.Nonce) {
			t.Errorf("%s, control does not reach the world: %q, %v", when, answer, err)
		}
	}
	want("as it is made", false)
	command(t, "iptables", "-F")
	want("after a flush of iptables", false)
	command(t, "nft", "delete", "table", "inet", "devaipod_escape")
	command(t, "iptables", "-P", "FORWARD", "ACCEPT")
	want("without the fence", true)
	must(t, p.runs.Fence(t.Context()))
	want("when it is made again", false)
	host, err := p.client.Host(t.Context())
	must(t, err)
	if why := podman.LackingFence(t.Context(), host); why != "" {
		t.Errorf("there is a fence, and this host lacks: %s", why)
	}
}

// builds is what docs/security.md says of them: a step of a build has podman's usual
// network, and so reaches what no pod does.
func builds(t *testing.T, p *place) {
	steps := "FROM " + image + "\n"
	beyond := []string{net.JoinHostPort(lab.DeniedAddr, "80"), net.JoinHostPort(lab.HostAddr, strconv.Itoa(p.config.HostPort)), p.config.Forge}
	for _, addr := range beyond {
		steps += fmt.Sprintf("RUN [\"/bin/escape\", \"get\", %q]\n", addr)
	}
	var context, log bytes.Buffer
	w := tar.NewWriter(&context)
	must(t, w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "Containerfile", Mode: 0o644, Size: int64(len(steps))}))
	_, err := w.Write([]byte(steps))
	must(t, errors.Join(err, w.Close()))
	must(t, p.client.ImageBuild(t.Context(), backend.ImageBuild{Ref: "localhost/built:1", Context: &context, Dockerfile: "Containerfile"}, &log))
	if n := strings.Count(log.String(), p.lab.Nonce); n != len(beyond) {
		t.Errorf("a build reaches %d of %v; docs/security.md says otherwise:\n%s", n, beyond, log.String())
	}
}

// fromControl asks an address for a page, from the network of the pod's control.
func (p *place) fromControl(t *testing.T, addr string) (answer string, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	dial := func(ctx context.Context, network, to string) (conn net.Conn, err error) {
		e := lab.Within(p.namespace(t, p.container(p.key, pods.RoleControl)), func() error {
			// One address, so that the socket is made by this thread.
			host, port, err := net.SplitHostPort(to)
			if err == nil && net.ParseIP(host) == nil {
				var addrs []net.IP
				if addrs, err = resolverHere().LookupIP(ctx, "ip4", host); err == nil {
					host = addrs[0].String()
				}
			}
			if err == nil {
				conn, err = new(net.Dialer).DialContext(ctx, network, net.JoinHostPort(host, port))
			}
			return err
		})
		return conn, e
	}
	client := &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/", nil)
	must(t, err)
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}

// resolverHere asks the lab's name server. Its sockets may be made by other threads,
// so in the host's namespace: which is what podman's resolver does too.
func resolverHere() *net.Resolver { return &net.Resolver{PreferGo: true} }

func command(t *testing.T, program string, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), program, args...).CombinedOutput(); err != nil {
		t.Fatal(fmt.Errorf("%s %v: %w: %s", program, args, err, out))
	}
}
