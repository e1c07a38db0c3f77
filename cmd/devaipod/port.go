package main

import (
	"bufio"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// portTaken is an error that says who listens on addr, which the key of the
// configuration names.
func portTaken(addr, key string) error {
	by := "another program (see: ss -ltnp)"
	if name, pid := listener(addr); pid != 0 {
		by = fmt.Sprintf("%s, process %d", name, pid)
	}
	return fmt.Errorf("%s is taken by %s; stop it or set %s to another port", addr, by, key)
}

// needPort is an error when something listens on addr already.
func needPort(addr, key string) error {
	l, err := net.Listen("tcp", addr)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return portTaken(addr, key)
	case err != nil:
		return fmt.Errorf("%s can't be listened on: %w; set %s to another address", addr, err, key)
	}
	return l.Close()
}

// listener finds the process that listens on a TCP address, as /proc tells
// (proc(5)); pid is 0 when it can't be found, like another user's.
func listener(addr string) (name string, pid int) {
	want, err := netip.ParseAddrPort(addr)
	if err != nil {
		return "", 0
	}
	socket := ""
	for _, table := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		if inode := listening(table, want); inode != "" {
			socket = "socket:[" + inode + "]"
		}
	}
	if socket == "" {
		return "", 0
	}
	fds, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return "", 0
	}
	for _, fd := range fds {
		if to, err := os.Readlink(fd); err != nil || to != socket {
			continue // gone, another user's, or another file
		}
		dir := filepath.Dir(filepath.Dir(fd))
		comm, err := os.ReadFile(filepath.Join(dir, "comm"))
		if err != nil {
			continue
		}
		if pid, err = strconv.Atoi(filepath.Base(dir)); err == nil {
			return plain(strings.TrimSpace(string(comm)), 64), pid
		}
	}
	return "", 0
}

// listening is the inode of the socket in table that takes connections to
// want, on that address or on all, "" for none.
func listening(table string, want netip.AddrPort) string {
	f, err := os.Open(table)
	if err != nil {
		return ""
	}
	defer f.Close()
	const listen = "0A" // TCP_LISTEN
	for lines := bufio.NewScanner(f); lines.Scan(); {
		field := strings.Fields(lines.Text())
		if len(field) < 10 || field[3] != listen {
			continue
		}
		at, ok := procAddr(field[1])
		if ok && at.Port() == want.Port() && (at.Addr() == want.Addr() || at.Addr().IsUnspecified()) {
			return field[9]
		}
	}
	return ""
}

// procAddr reads "0100007F:1F90": 32-bit words in the host's order, which is
// little-endian wherever devaipod is built for.
func procAddr(s string) (netip.AddrPort, bool) {
	host, port, _ := strings.Cut(s, ":")
	b, err := hex.DecodeString(host)
	if err != nil || len(b)%4 != 0 {
		return netip.AddrPort{}, false
	}
	for word := range slices.Chunk(b, 4) {
		slices.Reverse(word)
	}
	addr, ok := netip.AddrFromSlice(b)
	n, err := strconv.ParseUint(port, 16, 16)
	return netip.AddrPortFrom(addr.Unmap(), uint16(n)), ok && err == nil
}
