package lab

import (
	"errors"
	"fmt"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// A Witness sees the packets of the network namespace that it was made in, and
// counts those from or to an address of the lab's. It changes nothing there.
type Witness struct{ fd int }

// The lab's ranges, as a packet's header has them: 198.51.100.0/24, 203.0.113.0/24 and
// 2001:db8::/32. (Not 192.0.2.0/24, which it has nothing in: there are machines that are there
// themselves, and their own packets would be taken for the lab's.)
var ranges4 = []uint32{0xc6336400, 0xcb007100}

const range6 = 0x20010db8

// NewWitness begins to count, by packet(7) with a filter in the kernel. It needs
// root.
func NewWitness() (*Witness, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("watching packets: %w", err)
	}
	w := &Witness{fd: fd}
	if err := w.begin(); err != nil {
		return nil, errors.Join(fmt.Errorf("watching packets: %w", err), unix.Close(fd))
	}
	return w, nil
}

func (w *Witness) begin() error {
	raw, err := bpf.Assemble(filter())
	if err != nil {
		return err
	}
	prog := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		prog[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	if err := unix.SetsockoptSockFprog(w.fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]}); err != nil {
		return err
	}
	const all = uint16(unix.ETH_P_ALL)<<8 | uint16(unix.ETH_P_ALL)>>8
	return unix.Bind(w.fd, &unix.SockaddrLinklayer{Protocol: all})
}

// filter lets packets of the lab's through, from the network header on.
func filter() []bpf.Instruction {
	match := func(offset, mask, value uint32) []bpf.Instruction {
		return []bpf.Instruction{
			bpf.LoadAbsolute{Off: offset, Size: 4}, bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: mask},
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: value, SkipTrue: 1}, bpf.RetConstant{Val: 64},
		}
	}
	no := bpf.RetConstant{Val: 0}
	v4 := []bpf.Instruction{bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.ETH_P_IP, SkipTrue: 1}, no}
	for _, r := range ranges4 {
		v4 = append(append(v4, match(12, 0xffffff00, r)...), match(16, 0xffffff00, r)...)
	}
	v4 = append(v4, no)
	v6 := append(append(match(8, 0xffffffff, range6), match(24, 0xffffffff, range6)...), no)
	head := []bpf.Instruction{bpf.LoadExtension{Num: bpf.ExtProto}, bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.ETH_P_IPV6, SkipTrue: uint8(len(v4))}}
	return append(append(head, v4...), v6...)
}

// Count ends the watch and tells how many packets of the lab's there were.
func (w *Witness) Count() (int, error) {
	stats, err := unix.GetsockoptTpacketStats(w.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err := errors.Join(err, unix.Close(w.fd)); err != nil {
		return 0, fmt.Errorf("counting packets: %w", err)
	}
	return int(stats.Packets), nil // those that found no room in the buffer are in it
}
