package lab

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Addresses of the lab. The host is the namespace that New was called in.
const (
	HostAddr   = "203.0.113.2" // of the uplink
	routerAddr = "203.0.113.1"
	hostAddr6  = "2001:db8:ff::2"
	router6    = "2001:db8:ff::1"

	AllowedAddr  = "198.51.100.10" // also has the site of DeniedName, as a CDN would
	DeniedAddr   = "198.51.100.20"
	ModelAddr    = "198.51.100.30"
	ResolverAddr = "198.51.100.53"
	Allowed6     = "2001:db8:1::10"
	Denied6      = "2001:db8:1::20"
	MetadataAddr = "169.254.169.254"
)

// Names that the lab's resolver knows. Any other name below .test gets no
// address, and is noted.
const (
	AllowedName  = "allowed.test"
	DeniedName   = "denied.test"
	ModelName    = "model.test"
	MetadataName = "metadata.test"
)

// Names of sites of the allowed host's: two with TLS as it should be, and those of
// which the certificate is over, is for another name, and whose handshake is cut
// off.
const (
	SoundName   = "sound.tls.test"
	OtherName   = "other.tls.test"
	ExpiredName = "expired.tls.test"
	WrongName   = "wrong.tls.test"
	CutName     = "cut.tls.test"
)

// ModelPort is the model's port, by HTTP.
const ModelPort = 8000

// Ports of the allowed and the denied host beside 80 and 443: at EchoPorts there is
// a banner and an echo by TCP, at UDPPorts an echo by UDP.
var (
	EchoPorts = []int{22, 25, 2525, 6667}
	UDPPorts  = []int{123, 443, 5000}
)

// Uplink is the host's only way out, by name.
const Uplink = "uplink"

// A Lab is the hosts and what they have seen. Its methods may be called
// concurrently.
type Lab struct {
	Nonce string // in every answer of the lab's: who has it has reached the lab

	calls   chan func()
	closers []func() error
	ca      *authority

	mu     sync.Mutex
	seen   []string
	models []string // the model's Authorization headers
	mute   bool     // the resolver
	turns  map[string]int
	rebind map[string][]netip.Addr
}

// New makes the lab beside the network namespace of this process, and gives that a
// wire to it and a default route. It needs root, and a namespace without a network.
func New(ctx context.Context) (*Lab, error) {
	if err := alone(); err != nil {
		return nil, err
	}
	ca, err := newAuthority()
	if err != nil {
		return nil, err
	}
	l := &Lab{Nonce: rand.Text(), calls: make(chan func()), ca: ca, turns: map[string]int{}, rebind: map[string][]netip.Addr{}}
	started := make(chan error, 1)
	go OnThread(func() error { return l.live(started) }) //nolint:errcheck // it tells started
	if err := <-started; err != nil {
		return nil, err
	}
	if err := errors.Join(l.wire(ctx), l.serve()); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// Close ends the hosts and, with the last of their sockets, their namespace.
func (l *Lab) Close() error {
	var err error
	for _, c := range l.closers {
		err = errors.Join(err, c())
	}
	close(l.calls)
	return err
}

// alone makes sure that packets can't leave this namespace.
func alone() error {
	all, err := net.Interfaces()
	if err != nil {
		return err
	}
	for _, i := range all {
		// Kernels give every namespace tunnels that lead nowhere, and are down.
		if i.Flags&net.FlagLoopback == 0 && i.Flags&net.FlagUp != 0 {
			return fmt.Errorf("lab: this network namespace has the interface %s, so packets could leave it; enter one of the test's own first (lab.Enter)", i.Name)
		}
	}
	return nil
}

// live is the thread that is in the hosts' namespace, and runs what is to happen
// there, until Close.
func (l *Lab) live(started chan<- error) error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		started <- fmt.Errorf("lab: making a network namespace: %w; this needs root", err)
		return nil
	}
	started <- nil
	for f := range l.calls {
		f()
	}
	return nil
}

// inside runs f in the hosts' namespace: sockets and programs that it starts are
// there.
func (l *Lab) inside(f func() error) error {
	done := make(chan error, 1)
	l.calls <- func() { done <- f() }
	return <-done
}

// wire joins the two namespaces and gives the hosts their addresses.
func (l *Lab) wire(ctx context.Context) error {
	err := l.inside(func() error {
		return ip(ctx,
			"link set lo up",
			"link add wire type veth peer name "+Uplink+" netns "+strconv.Itoa(os.Getpid()),
			"addr add "+routerAddr+"/24 dev wire",
			"addr add "+router6+"/64 dev wire nodad",
			"link set wire up",
			"addr add "+AllowedAddr+"/32 dev lo", "addr add "+DeniedAddr+"/32 dev lo", "addr add "+ModelAddr+"/32 dev lo",
			"addr add "+ResolverAddr+"/32 dev lo", "addr add "+MetadataAddr+"/32 dev lo",
			"addr add "+Allowed6+"/128 dev lo nodad", "addr add "+Denied6+"/128 dev lo nodad",
		)
	})
	if err != nil {
		return err
	}
	err = ip(ctx,
		"link set lo up",
		"addr add "+HostAddr+"/24 dev "+Uplink,
		"addr add "+hostAddr6+"/64 dev "+Uplink+" nodad",
		"link set "+Uplink+" up",
		"route add default via "+routerAddr,
		"-6 route add default via "+router6,
	)
	if err != nil {
		return err
	}
	// As distributions have it, so that ping needs no privileges (icmp(7)).
	if err := os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte("0 2147483647"), 0o644); err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	return l.Sealed(ctx)
}

// Sealed looks again whether packets can end in the lab only: the host has no
// interface but loopback, bridges, their ends, and the uplink; and the hosts'
// namespace has no way on.
func (l *Lab) Sealed(ctx context.Context) error {
	links, err := exec.CommandContext(ctx, "ip", "-o", "-d", "link", "show").Output()
	if err != nil {
		return fmt.Errorf("lab: listing the host's links: %w", err)
	}
	for line := range strings.Lines(string(links)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		name := strings.TrimSuffix(f[1], ":")
		kind := strings.Contains(line, " veth ") || strings.Contains(line, " bridge ") || strings.Contains(line, "link/loopback")
		if !kind && strings.Contains(line, "UP") {
			return fmt.Errorf("lab: the host has the link %s, by which packets could leave the lab", name)
		}
	}
	return l.inside(func() error {
		out, err := exec.CommandContext(ctx, "ip", "-o", "route", "show", "default").Output()
		out6, err6 := exec.CommandContext(ctx, "ip", "-o", "-6", "route", "show", "default").Output()
		links, errLinks := exec.CommandContext(ctx, "ip", "-o", "link", "show", "up").Output()
		if err := errors.Join(err, err6, errLinks); err != nil {
			return fmt.Errorf("lab: reading the hosts' routes: %w", err)
		}
		if n := bytes.Count(links, []byte("\n")); len(bytes.TrimSpace(append(out, out6...))) > 0 || n != 2 {
			return fmt.Errorf("lab: the hosts have a way out: %s%s, %d interfaces", out, out6, n)
		}
		return nil
	})
}

// ip runs ip(8) with each of the arguments.
func ip(ctx context.Context, all ...string) error {
	for _, args := range all {
		if out, err := exec.CommandContext(ctx, "ip", strings.Fields(args)...).CombinedOutput(); err != nil {
			return fmt.Errorf("lab: ip %s: %w: %s", args, err, bytes.TrimSpace(out))
		}
	}
	return nil
}

// maxSeen bounds what the lab remembers, in entries.
const maxSeen = 100_000

// see notes what came to a host, whatever it is.
func (l *Lab) see(what string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.seen) < maxSeen {
		l.seen = append(l.seen, strings.ToLower(what))
	}
}

// Saw tells whether a token came to any host, in a name that was asked for, in a
// packet or in a request; letters are the same in both cases.
func (l *Lab) Saw(token string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	token = strings.ToLower(token)
	for _, s := range l.seen {
		if strings.Contains(s, token) {
			return true
		}
	}
	return false
}

// Rebind makes a name that has other addresses each time that it is asked for, in
// turn, with a time to live of 0.
func (l *Lab) Rebind(name string, addrs ...netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rebind[name] = addrs
}

// Mute makes the resolver answer nothing, or answer again.
func (l *Lab) Mute(mute bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mute = mute
}

// CA is the lab's certificate authority as PEM.
func (l *Lab) CA() []byte { return l.ca.pem }
