package podman

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"

	"codeberg.org/devaipod/devaipod/pods/backend"
)

// The fence keeps control containers, the only ones of a pod with a network, from
// the host and from other containers: rules of the kernel's packet filter
// (nft(8)), in one table of the instance's own, for interfaces by their names. So
// it is in no other program's way, what flushes other tables leaves it alone, and
// it stands whatever addresses the host has. Making it anew is one transaction,
// done whenever a pod is made or removed and at each pass of the service.
//
// Without root, the networks are in a namespace that podman keeps, and so is the
// fence; it goes when that goes. From there a host is reached by its own addresses
// through podman's slirp4netns(1), so those are fenced off by number.

// bridgePrefix begins the names of an instance's interfaces. Names of interfaces
// have at most 15 bytes.
func bridgePrefix(instance string) string {
	sum := sha256.Sum256([]byte(instance))
	return "dvp" + hex.EncodeToString(sum[:2])
}

// bridge is the interface on the host of a pod's network.
func bridge(instance, pod string) string {
	sum := sha256.Sum256([]byte(pod))
	return bridgePrefix(instance) + hex.EncodeToString(sum[:4])
}

// fence is what is known of it.
type fence struct {
	mu   sync.Mutex
	told string // the last failure that was logged
}

// A fencing says what the rules are made from.
type fencing struct {
	instance  string
	others    []string     // interfaces of other networks of podman's
	resolvers []netip.Addr // that containers ask
	host      []netip.Addr // addresses of the host, where it is behind a router of podman's
}

func fenceTable(instance string) string { return "devaipod_" + instance }

// noFence removes the table, if it is there.
func noFence(instance string) string {
	return fmt.Sprintf("add table inet %[1]s\ndelete table inet %[1]s\n", fenceTable(instance))
}

// rules are the text for nft -f: what comes from our interfaces may go on to other
// networks, and ask the name servers, wherever they are.
func (f fencing) rules() string {
	var b strings.Builder
	ours := fmt.Sprintf("%q", bridgePrefix(f.instance)+"*")
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	resolvers := func() {
		for _, r := range f.resolvers {
			line("  iifname %s %s daddr %s meta l4proto { tcp, udp } th dport 53 accept", ours, family(r), r)
		}
	}
	b.WriteString(noFence(f.instance))
	line("table inet %s {", fenceTable(f.instance))
	line(" chain input {\n  type filter hook input priority -10; policy accept;")
	line("  iifname %s ct state established,related accept", ours)
	resolvers()
	line("  iifname %s icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit } accept", ours)
	line("  iifname %s reject with icmpx type admin-prohibited\n }", ours)
	line(" chain forward {\n  type filter hook forward priority -10; policy accept;")
	resolvers()
	line("  iifname %[1]s oifname %[1]s reject with icmpx type admin-prohibited", ours)
	for _, o := range f.others {
		if !strings.HasPrefix(o, bridgePrefix(f.instance)) {
			line("  iifname %s oifname %q reject with icmpx type admin-prohibited", ours, o)
		}
	}
	for _, a := range f.host {
		line("  iifname %s %s daddr %s reject with icmpx type admin-prohibited", ours, family(a), a)
	}
	line("  oifname %s ct state new drop\n }\n}", ours)
	return b.String()
}

func family(a netip.Addr) string {
	if a.Is4() {
		return "ip"
	}
	return "ip6"
}

// Fence makes the fence what it has to be now, or removes it when the instance has
// no pod. It is cheap, and may be called at any time.
func (p *Pods) Fence(ctx context.Context) error {
	p.fence.mu.Lock()
	defer p.fence.mu.Unlock()
	host, err := p.Host(ctx)
	if err != nil {
		return err
	}
	bridges, err := p.Bridges(ctx)
	if err != nil {
		return err
	}
	if host.Rootless {
		// With nobody in it, podman's namespace is not there, and to enter it would
		// make it, and leave a slirp4netns(1) behind.
		if runs, err := p.egressRuns(ctx); err != nil || !runs {
			return err
		}
	}
	if !slices.ContainsFunc(bridges, func(b string) bool { return strings.HasPrefix(b, bridgePrefix(p.instance)) }) {
		if host.Rootless {
			return nil // it is gone with the last network, or goes
		}
		return nft(ctx, host, noFence(p.instance))
	}
	f, err := newFencing(p.instance, host, bridges)
	if err != nil {
		return err
	}
	return nft(ctx, host, f.rules())
}

// egressRuns tells whether a container with a network of ours runs.
func (p *Pods) egressRuns(ctx context.Context) (bool, error) {
	found, err := p.Containers(ctx, map[string]string{labelEgress: bridgePrefix(p.instance)})
	return slices.ContainsFunc(found, func(t backend.Thing) bool { return t.Running }), err
}

// KeepFence calls Fence now and at every interval, until ctx ends.
func (p *Pods) KeepFence(ctx context.Context, every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		p.tryFence(ctx)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// tryFence is Fence; a failure is logged when it is new. LackingFence says at the
// service's start what that means.
func (p *Pods) tryFence(ctx context.Context) {
	err := p.Fence(ctx)
	p.fence.mu.Lock()
	defer p.fence.mu.Unlock()
	switch {
	case err == nil:
		p.fence.told = ""
	case ctx.Err() == nil && err.Error() != p.fence.told:
		p.fence.told = err.Error()
		p.log.Warn("pods' control containers are not fenced off from this host and other containers", "err", err)
	}
}

// LackingFence says, as Lacking does, that this host can't keep control containers
// from itself and other containers; "" when it can.
func LackingFence(ctx context.Context, h Host) string {
	f, err := newFencing("probe", h, []string{"probe0"})
	if err == nil {
		err = nft(ctx, h, f.rules(), checkOnly)
	}
	if err != nil {
		return fmt.Sprintf("no fence: their control containers can reach services of this host that listen on all addresses, and other containers (%s)", err)
	}
	return ""
}

func newFencing(instance string, host Host, bridges []string) (fencing, error) {
	f := fencing{instance: instance, others: bridges}
	conf, err := os.Open("/etc/resolv.conf")
	if err == nil {
		defer conf.Close()
		f.resolvers, err = nameServers(conf)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return f, fmt.Errorf("reading the name servers: %w", err)
	}
	if !host.Rootless {
		return f, nil // its own addresses are those it gets packets for
	}
	// slirp4netns(1): the host's loopback and its name server, as its networks see them.
	f.host = []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 2, 2}), netip.MustParseAddr("fd00::2")}
	f.resolvers = append(f.resolvers, netip.AddrFrom4([4]byte{10, 0, 2, 3}))
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return f, fmt.Errorf("listing this host's addresses: %w", err)
	}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil && !p.Addr().IsLoopback() && !p.Addr().IsLinkLocalUnicast() {
			f.host = append(f.host, p.Addr().Unmap())
		}
	}
	return f, nil
}

// maxConf is how much of resolv.conf(5) is read, in bytes.
const maxConf = 64 << 10

// nameServers are those of a resolv.conf(5) that containers can ask.
func nameServers(conf io.Reader) ([]netip.Addr, error) {
	text, err := io.ReadAll(io.LimitReader(conf, maxConf))
	if err != nil {
		return nil, err
	}
	var out []netip.Addr
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) < 2 || f[0] != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(f[1]); err == nil && !a.IsLoopback() && a.Zone() == "" {
			out = append(out, a.Unmap())
		}
	}
	return out, nil
}

// checkOnly has nft look at rules, and change nothing.
const checkOnly = "--check"

// nft runs nft(8) where podman's networks are. What is only to be checked is looked
// at in a namespace of its own, where that is without root: it makes none of
// podman's.
func nft(ctx context.Context, host Host, rules string, args ...string) error {
	program, err := exec.LookPath("nft")
	if err != nil {
		program = "/usr/sbin/nft" // where an ordinary user's PATH does not lead
	}
	command := append([]string{program}, append(args, "-f", "-")...)
	switch {
	case host.Rootless && os.Getuid() == 0, !host.Rootless && os.Getuid() != 0:
		return errors.New("podman runs as another user than the service, who can't make rules where its networks are")
	case host.Rootless && slices.Contains(args, checkOnly):
		command = append([]string{"podman", "unshare", "unshare", "--net"}, command...)
	case host.Rootless:
		command = append([]string{"podman", "unshare", "--rootless-netns"}, command...)
	}
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Stdin = strings.NewReader(rules)
	if out, err := cmd.CombinedOutput(); err != nil {
		if errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%w; install nftables", err)
		}
		said := strings.ReplaceAll(strings.Join(strings.Fields(string(out)), " "), `"`, "'")
		return fmt.Errorf("making rules with nft: %w: %.300s", err, said) // in one line
	}
	return nil
}
