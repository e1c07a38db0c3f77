package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"codeberg.org/devaipod/devaipod/cmd/internal/testkit/lab"
)

// marked makes sure that an answer came from the lab.
func (a *attempt) marked(answer string) (string, error) {
	if !strings.Contains(answer, a.Nonce) {
		return "", fmt.Errorf("the answer is not the lab's: %.80q", answer)
	}
	return "answered by the lab", nil
}

// dialled connects, sends what, and wants the lab's answer.
func (a *attempt) dialled(ctx context.Context, network, addr, what string) (string, error) {
	conn, err := new(net.Dialer).DialContext(ctx, network, addr)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	return a.exchange(ctx, conn, what)
}

func (a *attempt) exchange(ctx context.Context, conn net.Conn, what string) (string, error) {
	text, err := ask(ctx, conn, what)
	if err != nil && text == "" {
		return "", err
	}
	return a.marked(text)
}

// ask sends what, and reads until the lab's mark could be there, or the end.
func ask(ctx context.Context, conn net.Conn, what string) (string, error) {
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return "", err
		}
	}
	if what != "" {
		if _, err := conn.Write([]byte(what)); err != nil {
			return "", err
		}
	}
	var text []byte
	buf := make([]byte, 4096)
	for len(text) < 64<<10 {
		n, err := conn.Read(buf)
		text = append(text, buf[:n]...)
		if err != nil || strings.Contains(string(text), "lab=") {
			return string(text), err
		}
	}
	return string(text), nil
}

// request is one for a web server of the lab's.
func (a *attempt) request(host string) string {
	return "GET /" + a.token + " HTTP/1.1\r\nHost: " + host + "\r\nConnection: close\r\n\r\n"
}

func port(addr string, n int) string { return net.JoinHostPort(addr, strconv.Itoa(n)) }

var rawProbes = []probe{
	{name: "raw-icmp", class: "raw sockets", try: func(ctx context.Context, a *attempt) (string, error) {
		return a.ping(ctx, "ip4:icmp", "", &net.IPAddr{IP: net.ParseIP(lab.AllowedAddr)}, ipv4.ICMPTypeEcho)
	}},
	{name: "raw-packet-socket", class: "raw sockets", try: func(context.Context, *attempt) (string, error) {
		link, err := otherLink()
		if err != nil {
			return "", err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return "", fmt.Errorf("packet(7): %w", err)
		}
		defer closeFD(fd)
		// 0x88b5 is IEEE's for experiments: nobody answers.
		to := &unix.SockaddrLinklayer{Ifindex: link.Index, Protocol: 0xb588, Halen: 6, Addr: [8]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}}
		return "sent a frame by " + link.Name, unix.Sendto(fd, []byte("escape"), 0, to)
	}},
	{name: "raw-forged-source", class: "raw sockets", try: func(_ context.Context, a *attempt) (string, error) {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			return "", fmt.Errorf("raw(7): %w", err)
		}
		defer closeFD(fd)
		to := netip.MustParseAddr(lab.AllowedAddr).As4()
		a.sent = true
		return "sent a packet in another's name", unix.Sendto(fd, forged(netip.MustParseAddr("203.0.113.77").As4(), to, a.token), 0, &unix.SockaddrInet4{Addr: to})
	}},
	{name: "raw-tcp", class: "raw sockets", try: func(_ context.Context, a *attempt) (string, error) {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
		if err != nil {
			return "", fmt.Errorf("raw(7): %w", err)
		}
		defer closeFD(fd)
		return "connected a raw socket", unix.Connect(fd, &unix.SockaddrInet4{Addr: netip.MustParseAddr(lab.AllowedAddr).As4()})
	}},
}

// forged is a UDP packet to one of the lab's ports (RFC 791, RFC 768).
func forged(from, to [4]byte, payload string) []byte {
	p := make([]byte, 28, 28+len(payload))
	p[0], p[8], p[9] = 0x45, 64, unix.IPPROTO_UDP // the kernel fills in length and checksum
	copy(p[12:], from[:])
	copy(p[16:], to[:])
	binary.BigEndian.PutUint16(p[20:], 4000)
	binary.BigEndian.PutUint16(p[22:], uint16(lab.UDPPorts[0]))
	binary.BigEndian.PutUint16(p[24:], uint16(8+len(payload)))
	return append(p, payload...)
}

func closeFD(fd int) { _ = unix.Close(fd) } // nothing was written that could be lost

// otherLink is an interface that is up and is not loopback.
func otherLink() (*net.Interface, error) {
	all, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	for _, i := range all {
		if i.Flags&net.FlagLoopback == 0 && i.Flags&net.FlagUp != 0 {
			return &i, nil
		}
	}
	return nil, errors.New("no interface but loopback")
}

// ping sends an echo request and wants the answer to it.
func (a *attempt) ping(ctx context.Context, network, from string, to net.Addr, kind icmp.Type) (string, error) {
	conn, err := icmp.ListenPacket(network, from)
	if err != nil {
		return "", err
	}
	defer conn.Close() //nolint:errcheck // what was sent came back or not
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline.Add(-time.Second)); err != nil {
		return "", err
	}
	m := icmp.Message{Type: kind, Body: &icmp.Echo{ID: 7, Seq: 1, Data: []byte(a.token)}}
	packed, err := m.Marshal(nil)
	if err != nil {
		return "", err
	}
	if _, err := conn.WriteTo(packed, to); err != nil {
		return "", err
	}
	buf := make([]byte, 4096)
	for {
		n, who, err := conn.ReadFrom(buf)
		if err != nil {
			return "", err
		}
		if strings.Contains(string(buf[:n]), a.token) && buf[0] != packed[0] {
			return "an echo from " + who.String(), nil
		}
	}
}

// resolve asks the lab's name server directly, for a text of its.
func (a *attempt) resolve(ctx context.Context, network string) (string, error) {
	a.sent = true
	r := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, port(lab.ResolverAddr, 53))
	}}
	texts, err := r.LookupTXT(ctx, a.token+".test.")
	if err != nil {
		return "", err
	}
	return a.marked(strings.Join(texts, " "))
}

var dnsProbes = []probe{
	{name: "dns-system", class: "DNS", try: func(ctx context.Context, a *attempt) (string, error) {
		a.sent = true
		texts, err := (&net.Resolver{PreferGo: true}).LookupTXT(ctx, a.token+".test.")
		if err != nil {
			return "", err
		}
		return a.marked(strings.Join(texts, " "))
	}},
	{name: "dns-udp", class: "DNS", try: func(ctx context.Context, a *attempt) (string, error) { return a.resolve(ctx, "udp") }},
	{name: "dns-tcp", class: "DNS", try: func(ctx context.Context, a *attempt) (string, error) { return a.resolve(ctx, "tcp") }},
	{name: "dns-leak-by-proxy", class: "DNS", try: func(ctx context.Context, a *attempt) (string, error) {
		// The name itself is the message: a proxy must not even look it up.
		a.sent = true
		text, err := a.byProxy(ctx, a.get("http://"+a.token+".test/", a.token+".test"))
		return "", errors.Join(err, fmt.Errorf("answered %.60q", text))
	}},
	{name: "dns-leak-by-connect", class: "DNS", try: func(ctx context.Context, a *attempt) (string, error) {
		a.sent = true
		_, err := a.connect(ctx, a.token+".test:443")
		return "", err
	}},
}

func overUDP(addr string, n int) func(context.Context, *attempt) (string, error) {
	return func(ctx context.Context, a *attempt) (string, error) {
		a.sent = true
		return a.dialled(ctx, "udp", port(addr, n), a.token)
	}
}

func overTCP(addr string, n int) func(context.Context, *attempt) (string, error) {
	return func(ctx context.Context, a *attempt) (string, error) {
		return a.dialled(ctx, "tcp", port(addr, n), a.request("denied.test"))
	}
}

var packetProbes = []probe{
	{name: "tcp-web", class: "TCP", try: overTCP(lab.DeniedAddr, 80)},
	{name: "tcp-tls-port", class: "TCP", try: func(ctx context.Context, a *attempt) (string, error) {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", port(lab.DeniedAddr, 443))
		if err != nil {
			return "", err
		}
		return "connected", conn.Close()
	}},
	{name: "tcp-mail", class: "TCP", try: overTCP(lab.AllowedAddr, 25)},
	{name: "ipv6-web", class: "IPv6", try: overTCP(lab.Denied6, 80)},
	{name: "ipv6-udp", class: "IPv6", try: overUDP(lab.Denied6, 5000)},
	{name: "ipv6-mapped", class: "IPv6", try: func(ctx context.Context, a *attempt) (string, error) {
		fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return "", err
		}
		defer closeFD(fd)
		return "connected", unix.Connect(fd, &unix.SockaddrInet6{Port: 80, Addr: netip.MustParseAddr("::ffff:" + lab.DeniedAddr).As16()})
	}},
	{name: "ipv6-ping", class: "IPv6", try: func(ctx context.Context, a *attempt) (string, error) {
		return a.ping(ctx, "udp6", "::", &net.UDPAddr{IP: net.ParseIP(lab.Denied6)}, ipv6.ICMPTypeEchoRequest)
	}},
	{name: "udp-echo", class: "UDP", try: overUDP(lab.DeniedAddr, 5000)},
	{name: "udp-quic", class: "UDP", try: overUDP(lab.AllowedAddr, 443)},
	{name: "udp-time", class: "UDP", try: overUDP(lab.DeniedAddr, 123)},
	{name: "icmp-ping", class: "ICMP", try: func(ctx context.Context, a *attempt) (string, error) {
		return a.ping(ctx, "udp4", "0.0.0.0", &net.UDPAddr{IP: net.ParseIP(lab.DeniedAddr)}, ipv4.ICMPTypeEcho)
	}},
	{name: "icmp-ping-host", class: "ICMP", try: func(ctx context.Context, a *attempt) (string, error) {
		return a.ping(ctx, "udp4", "0.0.0.0", &net.UDPAddr{IP: net.ParseIP(a.Host)}, ipv4.ICMPTypeEcho)
	}},
	{name: "icmp-unreachable", class: "ICMP", try: func(ctx context.Context, a *attempt) (string, error) {
		// A closed port answers by ICMP, which a connected socket is told.
		conn, err := new(net.Dialer).DialContext(ctx, "udp", port(lab.DeniedAddr, 9))
		if err != nil {
			return "", err
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(2 * time.Second)); err != nil {
			return "", err
		}
		if _, err := conn.Write([]byte("x")); err != nil {
			return "", err
		}
		if _, err = conn.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNREFUSED) {
			return "", fmt.Errorf("no word by ICMP: %w", err)
		}
		return "told that the port is closed", nil
	}},
}
