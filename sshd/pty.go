package sshd

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/creack/pty"
	gossh "golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"
)

// windowSize is in characters and pixels.
type windowSize struct{ Columns, Rows, Width, Height uint32 }

// A terminal is a session's PTY. Its methods may be called on nil.
type terminal struct {
	master *os.File
	name   string
	term   string

	mu   sync.Mutex
	held *os.File // the other end, until a process has it
}

const (
	maxModes = 1 << 10 // bytes
	maxTerm  = 64
)

// openTerminal opens what a pty-req asks for: RFC 4254, 6.2.
func openTerminal(payload []byte) (*terminal, error) {
	var req struct {
		Term  string
		Size  windowSize
		Modes string
	}
	if err := unmarshalPTY(payload, &req.Term, &req.Size, &req.Modes); err != nil {
		return nil, err
	}
	master, slave, err := pty.Open()
	if err != nil {
		return nil, err
	}
	t := &terminal{master: master, held: slave, name: slave.Name(), term: req.Term}
	if err := errors.Join(setModes(slave, []byte(req.Modes)), t.resize(req.Size)); err != nil {
		t.close()
		return nil, err
	}
	return t, nil
}

func unmarshalPTY(payload []byte, term *string, size *windowSize, modes *string) error {
	var m struct {
		Term                         string
		Columns, Rows, Width, Height uint32
		Modes                        string
	}
	if err := gossh.Unmarshal(payload, &m); err != nil {
		return err
	}
	if len(m.Term) > maxTerm || len(m.Modes) > maxModes {
		return fmt.Errorf("a terminal's type of %d bytes and modes of %d are too long", len(m.Term), len(m.Modes))
	}
	for _, c := range m.Term {
		if c <= ' ' || c > '~' || c == '=' {
			return fmt.Errorf("%q is no terminal's type", m.Term)
		}
	}
	*term, *size, *modes = m.Term, windowSize{m.Columns, m.Rows, m.Width, m.Height}, m.Modes
	return nil
}

// slave gives away the end that a process gets.
func (t *terminal) slave() (*os.File, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.held == nil {
		return nil, os.ErrClosed
	}
	f := t.held
	t.held = nil
	return f, nil
}

func (t *terminal) resize(w windowSize) error {
	if t == nil {
		return os.ErrInvalid
	}
	clip := func(n uint32) uint16 { return uint16(min(n, 1<<16-1)) }
	return pty.Setsize(t.master, &pty.Winsize{Rows: clip(w.Rows), Cols: clip(w.Columns), X: clip(w.Width), Y: clip(w.Height)})
}

// pending is how many bytes of output wait to be read.
func (t *terminal) pending() (n int) {
	c, err := t.master.SyscallConn()
	if err != nil {
		return 0
	}
	_ = c.Control(func(fd uintptr) { n, err = unix.IoctlGetInt(int(fd), unix.TIOCINQ) })
	if err != nil {
		return 0
	}
	return n
}

// close hangs the terminal up.
func (t *terminal) close() {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.held != nil {
		_ = t.held.Close()
		t.held = nil
	}
	_ = t.master.Close()
}

// A bit is a flag of a terminal. Which of its words it is in differs.
type bit struct {
	word func(*unix.Termios) *uint32
	mask uint32
}

func input(t *unix.Termios) *uint32   { return &t.Iflag }
func local(t *unix.Termios) *uint32   { return &t.Lflag }
func output(t *unix.Termios) *uint32  { return &t.Oflag }
func control(t *unix.Termios) *uint32 { return &t.Cflag }

// The opcodes of RFC 4254, 8, and RFC 8160.
var (
	bits = map[byte]bit{
		30: {input, unix.IGNPAR}, 31: {input, unix.PARMRK}, 32: {input, unix.INPCK}, 33: {input, unix.ISTRIP},
		34: {input, unix.INLCR}, 35: {input, unix.IGNCR}, 36: {input, unix.ICRNL}, 37: {input, unix.IUCLC},
		38: {input, unix.IXON}, 39: {input, unix.IXANY}, 40: {input, unix.IXOFF}, 41: {input, unix.IMAXBEL}, 42: {input, unix.IUTF8},
		50: {local, unix.ISIG}, 51: {local, unix.ICANON}, 52: {local, unix.XCASE}, 53: {local, unix.ECHO},
		54: {local, unix.ECHOE}, 55: {local, unix.ECHOK}, 56: {local, unix.ECHONL}, 57: {local, unix.NOFLSH},
		58: {local, unix.TOSTOP}, 59: {local, unix.IEXTEN}, 60: {local, unix.ECHOCTL}, 61: {local, unix.ECHOKE}, 62: {local, unix.PENDIN},
		70: {output, unix.OPOST}, 71: {output, unix.OLCUC}, 72: {output, unix.ONLCR}, 73: {output, unix.OCRNL},
		74: {output, unix.ONOCR}, 75: {output, unix.ONLRET},
		92: {control, unix.PARENB}, 93: {control, unix.PARODD},
	}
	chars = map[byte]int{
		1: unix.VINTR, 2: unix.VQUIT, 3: unix.VERASE, 4: unix.VKILL, 5: unix.VEOF, 6: unix.VEOL, 7: unix.VEOL2,
		8: unix.VSTART, 9: unix.VSTOP, 10: unix.VSUSP, 12: unix.VREPRINT, 13: unix.VWERASE, 14: unix.VLNEXT, 16: unix.VSWTC, 18: unix.VDISCARD,
	}
	sizes = map[byte]uint32{90: unix.CS7, 91: unix.CS8}
)

// lastMode is the last opcode with an argument of four bytes; what is after it can't
// be read on.
const lastMode = 159

// setModes brings a terminal to the encoded modes, as far as they are known.
func setModes(f *os.File, modes []byte) error {
	c, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = c.Control(func(fd uintptr) {
		t, err := unix.IoctlGetTermios(int(fd), unix.TCGETS)
		if err != nil {
			failed = err
			return
		}
		apply(t, modes)
		failed = unix.IoctlSetTermios(int(fd), unix.TCSETS, t)
	})
	return errors.Join(err, failed)
}

func apply(t *unix.Termios, modes []byte) {
	for len(modes) >= 5 && modes[0] != 0 && modes[0] <= lastMode {
		op, arg := modes[0], uint32(modes[1])<<24|uint32(modes[2])<<16|uint32(modes[3])<<8|uint32(modes[4])
		modes = modes[5:]
		if b, ok := bits[op]; ok && arg != 0 {
			*b.word(t) |= b.mask
		} else if ok {
			*b.word(t) &^= b.mask
		} else if i, ok := chars[op]; ok {
			if t.Cc[i] = byte(arg); arg >= 255 {
				t.Cc[i] = 0 // _POSIX_VDISABLE
			}
		} else if size, ok := sizes[op]; ok && arg != 0 {
			t.Cflag = t.Cflag&^unix.CSIZE | size
		}
	}
}
