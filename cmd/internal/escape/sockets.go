package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"codeberg.org/devaipod/devaipod/pods/podfile"
)

// unixSite asks a unix socket for the host's site.
func (a *attempt) unixSite(ctx context.Context, path string) (string, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	text, err := ask(ctx, conn, a.request("x"))
	if text != "" {
		err = nil
	}
	return a.site("socket", text, err)
}

var socketProbes = []probe{
	{name: "unix-of-the-host", class: "unix sockets", try: func(ctx context.Context, a *attempt) (string, error) {
		err := errors.New("none is known")
		for _, path := range a.Sockets {
			var conn net.Conn
			if conn, err = new(net.Dialer).DialContext(ctx, "unix", path); err == nil {
				return "connected to " + path, conn.Close()
			}
		}
		return "", err
	}},
	{name: "unix-abstract", class: "unix sockets", try: func(ctx context.Context, a *attempt) (string, error) { return a.unixSite(ctx, a.Abstract) }},
	{name: "unix-listed", class: "unix sockets", try: func(ctx context.Context, a *attempt) (string, error) {
		return "listed: " + a.Abstract, hasText("/proc/net/unix", a.Abstract)
	}},
	{name: "unix-found", class: "unix sockets", try: func(ctx context.Context, _ *attempt) (string, error) {
		return foundSocket(ctx)
	}},
	{name: "unix-replace-gate", class: "unix sockets", try: func(context.Context, *attempt) (string, error) {
		// Who could take the gate's place would get the pod-api's trust, or the workspace's.
		path := filepath.Join(podfile.SocketDir, podfile.GateSocket)
		if err := os.Rename(path, path+".old"); err != nil {
			return "", err
		}
		return "moved the gate's socket", os.Rename(path+".old", path)
	}},
}

// foundSocket looks for a socket anywhere that is not the pod's own.
func foundSocket(ctx context.Context) (found string, err error) {
	err = walk(ctx, func(path string, d fs.DirEntry) error {
		if d.Type()&fs.ModeSocket == 0 || strings.HasPrefix(path, podfile.SocketDir+"/") {
			return nil
		}
		if conn, err := new(net.Dialer).DialContext(ctx, "unix", path); err == nil {
			found = "connected to " + path
			return errors.Join(conn.Close(), fs.SkipAll)
		}
		return nil
	})
	if err == nil && found == "" {
		err = errors.New("no socket but the gate's and the agent's")
	}
	return found, err
}

// walk goes through all files but those of the kernel.
func walk(ctx context.Context, see func(path string, d fs.DirEntry) error) error {
	err := filepath.WalkDir("/", func(path string, d fs.DirEntry, err error) error {
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			return fs.SkipDir // one that may not be listed
		case d.IsDir() && (path == "/proc" || path == "/sys"):
			return fs.SkipDir
		}
		return see(path, d)
	})
	if errors.Is(err, fs.SkipAll) {
		err = nil
	}
	return err
}

// hasText tells whether a file has a text in it.
func hasText(path, text string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if strings.Contains(lines.Text(), text) {
			return nil
		}
	}
	return fmt.Errorf("%s has no %.40q", path, text)
}

// anyPort is VMADDR_PORT_ANY and VMADDR_CID_ANY of vsock(7).
const anyPort = ^uint32(0)

// No probe connects by vsock: what answers there is the machine under this one.
var netlinkProbes = []probe{
	{name: "vsock-socket", class: "vsock and netlink", needs: "vsock", try: func(context.Context, *attempt) (string, error) {
		fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return "", fmt.Errorf("vsock(7): %w", err)
		}
		closeFD(fd)
		return "made a socket to the machine below", nil
	}},
	{name: "vsock-listen", class: "vsock and netlink", needs: "vsock", try: func(context.Context, *attempt) (string, error) {
		fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return "", fmt.Errorf("vsock(7): %w", err)
		}
		defer closeFD(fd)
		if err := unix.Bind(fd, &unix.SockaddrVM{CID: anyPort, Port: anyPort}); err != nil {
			return "", err
		}
		return "the machine below could connect", unix.Listen(fd, 1)
	}},
	{name: "netlink-links", class: "vsock and netlink", try: func(context.Context, *attempt) (string, error) {
		link, err := otherLink()
		if err != nil {
			return "", err
		}
		return "sees " + link.Name, nil
	}},
	{name: "netlink-routes", class: "vsock and netlink", try: func(context.Context, *attempt) (string, error) {
		rib, err := syscall.NetlinkRIB(unix.RTM_GETROUTE, unix.AF_INET)
		if err != nil {
			return "", err
		}
		messages, err := syscall.ParseNetlinkMessage(rib)
		if err != nil {
			return "", err
		}
		for _, m := range messages {
			// rtmsg: family, length of the destination, …: 0 is the default route.
			if m.Header.Type == unix.RTM_NEWROUTE && len(m.Data) > 1 && m.Data[1] == 0 {
				return "has a default route", nil
			}
		}
		return "", errors.New("no default route")
	}},
	{name: "netlink-change", class: "vsock and netlink", try: func(context.Context, *attempt) (string, error) {
		if err := changeAddress(unix.RTM_NEWADDR, unix.NLM_F_CREATE); err != nil {
			return "", err
		}
		return "gave loopback an address", changeAddress(unix.RTM_DELADDR, 0)
	}},
	{name: "packet-families", class: "vsock and netlink", try: func(context.Context, *attempt) (string, error) {
		var made []string
		for family, name := range map[int]string{unix.AF_ALG: "AF_ALG", unix.AF_KEY: "AF_KEY", unix.AF_XDP: "AF_XDP", unix.AF_VSOCK: "AF_VSOCK", unix.AF_PACKET: "AF_PACKET", unix.AF_TIPC: "AF_TIPC", unix.AF_BLUETOOTH: "AF_BLUETOOTH"} {
			for _, kind := range []int{unix.SOCK_RAW, unix.SOCK_SEQPACKET, unix.SOCK_STREAM} {
				if fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0); err == nil {
					closeFD(fd)
					made = append(made, name)
					break
				}
			}
		}
		if len(made) == 0 {
			return "", errors.New("no family but those of a pod")
		}
		return "made sockets of " + strings.Join(made, ", "), nil
	}},
}

// changeAddress adds an address to loopback, or takes it off (rtnetlink(7)).
func changeAddress(kind uint16, flags uint16) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer closeFD(fd)
	lo, err := net.InterfaceByName("lo")
	if err != nil {
		return err
	}
	const size = unix.SizeofNlMsghdr + unix.SizeofIfAddrmsg + 8
	var m [size]byte
	h := (*unix.NlMsghdr)(unsafe.Pointer(&m[0]))
	h.Len, h.Type, h.Flags = size, kind, unix.NLM_F_REQUEST|unix.NLM_F_ACK|flags
	i := (*unix.IfAddrmsg)(unsafe.Pointer(&m[unix.SizeofNlMsghdr]))
	i.Family, i.Prefixlen, i.Index = unix.AF_INET, 32, uint32(lo.Index)
	attr := m[unix.SizeofNlMsghdr+unix.SizeofIfAddrmsg:]
	attr[0], attr[2] = 8, unix.IFA_LOCAL
	copy(attr[4:], []byte{127, 9, 9, 9})
	if err := unix.Sendto(fd, m[:], 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	var answer [256]byte
	n, _, err := unix.Recvfrom(fd, answer[:], 0)
	if err != nil {
		return err
	}
	if n < unix.SizeofNlMsghdr+4 {
		return errors.New("a short answer by netlink")
	}
	if code := *(*int32)(unsafe.Pointer(&answer[unix.SizeofNlMsghdr])); code != 0 {
		return fmt.Errorf("netlink: %w", syscall.Errno(-code))
	}
	return nil
}

// number is a file's name as a number, of a process for one.
func number(name string) (int, bool) {
	n, err := strconv.Atoi(name)
	return n, err == nil
}
