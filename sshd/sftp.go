package sshd

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/pkg/sftp"
	gossh "golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"
)

// Bounds on a packet of SFTP, as limits@openssh.com tells them.
const (
	maxPacket  = 256 << 10
	maxRead    = 255 << 10
	maxWrite   = 255 << 10
	maxHandles = 1 << 12
)

// serveSFTP serves version 3 of SFTP (draft-ietf-secsh-filexfer-02) on a channel until
// the client ends it. The library does directories, links and what there is to know of
// names; open files, what it lacks, and what it does in another way than OpenSSH's
// sftp-server, a [layer] does. Relative paths are of this process's directory.
func serveSFTP(channel io.ReadWriteCloser) error {
	l := newLayer(channel)
	defer l.files.closeAll()
	server, err := sftp.NewServer(l, sftp.WithAllocator(), sftp.WithMaxTxPacket(maxRead))
	if err != nil {
		return err
	}
	err = server.Serve()
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return nil // the client has gone
	}
	return err
}

// The packets that the layer knows.
const (
	fxpVersion  = 2
	fxpOpen     = 3
	fxpClose    = 4
	fxpRead     = 5
	fxpWrite    = 6
	fxpFstat    = 8
	fxpFsetstat = 10
	fxpRemove   = 13
	fxpMkdir    = 14
	fxpRmdir    = 15
	fxpRealpath = 16
	fxpRename   = 18
	fxpStatus   = 101
	fxpHandle   = 102
	fxpData     = 103
	fxpName     = 104
	fxpAttrs    = 105
	fxpExtended = 200
	fxpReply    = 201
)

// The codes of a status.
const (
	fxOK          = 0
	fxEOF         = 1
	fxNoSuchFile  = 2
	fxDenied      = 3
	fxFailure     = 4
	fxBadMessage  = 5
	fxUnsupported = 8
)

// What the layer adds to the library's extensions: OpenSSH's PROTOCOL, 4, and
// draft-ietf-secsh-filexfer-extensions-00 for copy-data.
var extensions = []struct{ Name, Version string }{
	{"fsync@openssh.com", "1"}, {"limits@openssh.com", "1"}, {"lsetstat@openssh.com", "1"},
	{"expand-path@openssh.com", "1"}, {"copy-data", "1"},
}

// A layer stands between a client and the library and answers some requests itself. As
// with OpenSSH's server each is served once all that came before it is answered, which
// clients that do not wait rely upon: the library on its own would let two writes of one
// place, or a write and a setstat, overtake each other. What is asked about open files
// never gets to the library, which hands each request on to one goroutine after another.
type layer struct {
	channel io.ReadWriteCloser
	in      *bufio.Reader
	passing int    // bytes of a packet that are still to be passed on
	whole   []byte // a packet to be passed on that was read already
	packet  []byte // the packet that was read last
	files   files

	mu      sync.Mutex
	idle    sync.Cond
	pending int    // requests that the library has not answered
	closed  bool   // it will answer no more
	out     []byte // an answer of the library's, as far as it is there
}

func newLayer(channel io.ReadWriteCloser) *layer {
	l := &layer{channel: channel, in: bufio.NewReaderSize(channel, 64<<10), files: files{open: map[string]*file{}}}
	l.idle.L = &l.mu
	return l
}

func (l *layer) Close() error {
	l.mu.Lock()
	l.closed = true
	l.idle.Broadcast()
	l.mu.Unlock()
	return l.channel.Close()
}

// Read gives the library the requests that are for it.
func (l *layer) Read(p []byte) (int, error) {
	for l.passing == 0 && len(l.whole) == 0 {
		if err := l.next(); err != nil {
			return 0, err
		}
	}
	if len(l.whole) > 0 {
		n := copy(p, l.whole)
		l.whole = l.whole[n:]
		return n, nil
	}
	n, err := l.in.Read(p[:min(len(p), l.passing)])
	l.passing -= n
	return n, err
}

// next looks at the next request.
func (l *layer) next() error {
	head, err := l.in.Peek(5)
	if err != nil {
		if len(head) > 0 {
			return io.ErrUnexpectedEOF
		}
		return err
	}
	length, kind := int(binary.BigEndian.Uint32(head)), head[4]
	if length < 1 || length > maxPacket {
		return fmt.Errorf("a packet of %d bytes", length)
	}
	l.drain()
	serve := l.servant(kind)
	if serve == nil {
		l.passOn()
		l.passing = 4 + length
		return nil
	}
	l.packet = slices.Grow(l.packet[:0], 4+length)[:4+length]
	if _, err := io.ReadFull(l.in, l.packet); err != nil {
		return err
	}
	if length < 5 {
		return errors.New("a packet that ends early")
	}
	id, body := binary.BigEndian.Uint32(l.packet[5:]), l.packet[9:]
	if kind == fxpExtended {
		serve, body = l.extension(body)
	}
	if serve != nil {
		if answer := serve(id, body); answer != nil {
			return l.answer(answer)
		}
	}
	l.passOn() // a handle, or an extension, of the library's
	l.whole = l.packet
	return nil
}

// servant is who answers requests of a kind, nil for the library. It may answer nothing,
// which leaves the one request to the library.
func (l *layer) servant(kind byte) func(uint32, []byte) []byte {
	switch kind {
	case fxpOpen:
		return l.files.add
	case fxpClose:
		return l.files.close
	case fxpRead:
		return l.files.read
	case fxpWrite:
		return l.files.write
	case fxpFstat:
		return l.files.stat
	case fxpFsetstat:
		return l.files.set
	case fxpRemove:
		return named(unix.Unlink)
	case fxpRmdir:
		return named(unix.Rmdir)
	case fxpMkdir:
		return withAttributes(mkdir)
	case fxpRealpath:
		return realpath
	case fxpRename:
		return rename
	case fxpExtended:
		return unknown // until its name is read
	}
	return nil
}

func unknown(id uint32, _ []byte) []byte { return status(id, errUnsupported) }

// extension is who answers an extended request, nil for the library.
func (l *layer) extension(body []byte) (func(uint32, []byte) []byte, []byte) {
	var m struct {
		Name string
		Rest []byte `ssh:"rest"`
	}
	if gossh.Unmarshal(body, &m) != nil {
		return unknown, nil
	}
	switch m.Name {
	case "fsync@openssh.com":
		return l.files.sync, m.Rest
	case "copy-data":
		return l.files.copy, m.Rest
	case "limits@openssh.com":
		return limits, m.Rest
	case "lsetstat@openssh.com":
		return withAttributes(lsetstat), m.Rest
	case "expand-path@openssh.com":
		return expand, m.Rest
	}
	return nil, body
}

func (l *layer) passOn() {
	l.mu.Lock()
	l.pending++
	l.mu.Unlock()
}

// drain waits until the library has answered all.
func (l *layer) drain() {
	l.mu.Lock()
	for l.pending > 0 && !l.closed {
		l.idle.Wait()
	}
	l.mu.Unlock()
}

func (l *layer) answer(packet []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, err := l.channel.Write(packet)
	return err
}

// Write takes the library's answers, which come in pieces, and sends each in one.
func (l *layer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.out = append(l.out, p...)
	if len(l.out) < 5 || len(l.out) < 4+int(binary.BigEndian.Uint32(l.out)) {
		return len(p), nil
	}
	if l.out[4] == fxpVersion {
		for _, e := range extensions {
			l.out = append(l.out, gossh.Marshal(e)...)
		}
		binary.BigEndian.PutUint32(l.out, uint32(len(l.out)-4))
	}
	_, err := l.channel.Write(l.out)
	l.out = l.out[:0]
	if l.pending--; l.pending == 0 {
		l.idle.Broadcast()
	}
	return len(p), err
}

// packet is an answer.
func packet(kind byte, id uint32, body []byte) []byte {
	p := make([]byte, 9, 9+len(body))
	binary.BigEndian.PutUint32(p, uint32(5+len(body)))
	p[4] = kind
	binary.BigEndian.PutUint32(p[5:], id)
	return append(p, body...)
}

var (
	errUnsupported = errors.New("the operation is not supported")
	errMalformed   = errors.New("the request is malformed")
)

// status is how something went.
func status(id uint32, err error) []byte {
	code, text := uint32(fxOK), "Success"
	var no syscall.Errno
	switch {
	case err == nil:
	case errors.Is(err, io.EOF):
		code = fxEOF
	case errors.Is(err, os.ErrNotExist):
		code = fxNoSuchFile
	case errors.Is(err, os.ErrPermission):
		code = fxDenied
	case errors.Is(err, errUnsupported):
		code = fxUnsupported
	case errors.Is(err, errMalformed):
		code = fxBadMessage
	default:
		code = fxFailure
	}
	if errors.As(err, &no) {
		text = no.Error()
	} else if err != nil {
		text = err.Error()
	}
	return packet(fxpStatus, id, gossh.Marshal(struct {
		Code       uint32
		Text, Lang string
	}{code, text, ""}))
}

// named is a request of one path.
func named(do func(string) error) func(uint32, []byte) []byte {
	return func(id uint32, body []byte) []byte {
		var m struct{ Path string }
		if gossh.Unmarshal(body, &m) != nil {
			return status(id, errMalformed)
		}
		return status(id, do(m.Path))
	}
}

// attributes are those of a file, as far as the flags name them.
type attributes struct {
	Flags uint32
	Rest  []byte
}

// The flags of attributes.
const (
	attrSize  = 1
	attrOwner = 2
	attrMode  = 4
	attrTimes = 8
)

// take reads a number of bytes/4 words.
func (a *attributes) take(flag uint32, words int) ([]uint32, bool) {
	if a.Flags&flag == 0 || len(a.Rest) < 4*words {
		return nil, false
	}
	out := make([]uint32, words)
	for i := range out {
		out[i] = binary.BigEndian.Uint32(a.Rest[4*i:])
	}
	a.Rest = a.Rest[4*words:]
	return out, true
}

// withAttributes is a request of a path and attributes.
func withAttributes(do func(string, attributes) error) func(uint32, []byte) []byte {
	return func(id uint32, body []byte) []byte {
		var m struct {
			Path  string
			Flags uint32
			Rest  []byte `ssh:"rest"`
		}
		if gossh.Unmarshal(body, &m) != nil {
			return status(id, errMalformed)
		}
		return status(id, do(m.Path, attributes{m.Flags, m.Rest}))
	}
}

// mode is the mode among them, or another.
func (a attributes) mode(other uint32) uint32 {
	a.take(attrSize, 2)
	a.take(attrOwner, 2)
	if w, ok := a.take(attrMode, 1); ok {
		return w[0] & 0o7777
	}
	return other
}

func mkdir(path string, a attributes) error { return unix.Mkdir(path, a.mode(0o777)) }

// lsetstat sets what is a link's own: OpenSSH's PROTOCOL, 4.6.
func lsetstat(path string, a attributes) error {
	if a.Flags&attrSize != 0 {
		return errUnsupported // a link has none to be set
	}
	var errs []error
	if w, ok := a.take(attrOwner, 2); ok {
		errs = append(errs, unix.Lchown(path, int(w[0]), int(w[1])))
	}
	if w, ok := a.take(attrMode, 1); ok {
		errs = append(errs, unix.Fchmodat(unix.AT_FDCWD, path, w[0]&0o7777, unix.AT_SYMLINK_NOFOLLOW))
	}
	if w, ok := a.take(attrTimes, 2); ok {
		errs = append(errs, unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{{Sec: int64(w[0])}, {Sec: int64(w[1])}}, unix.AT_SYMLINK_NOFOLLOW))
	}
	return errors.Join(errs...)
}

// rename does not overwrite, as version 3 wants it; posix-rename@openssh.com does.
func rename(id uint32, body []byte) []byte {
	var m struct{ Old, New string }
	if gossh.Unmarshal(body, &m) != nil {
		return status(id, errMalformed)
	}
	err := unix.Renameat2(unix.AT_FDCWD, m.Old, unix.AT_FDCWD, m.New, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) { // the file system has no such rename
		if _, err = os.Lstat(m.New); err == nil {
			err = unix.EEXIST
		} else if errors.Is(err, os.ErrNotExist) {
			err = unix.Rename(m.Old, m.New)
		}
	}
	return status(id, err)
}

func realpath(id uint32, body []byte) []byte {
	var m struct{ Path string }
	if gossh.Unmarshal(body, &m) != nil {
		return status(id, errMalformed)
	}
	return name(id, m.Path)
}

// expand is realpath with ~ for the home directory: OpenSSH's PROTOCOL, 4.9.
func expand(id uint32, body []byte) []byte {
	var m struct{ Path string }
	if gossh.Unmarshal(body, &m) != nil {
		return status(id, errMalformed)
	}
	if m.Path == "~" || strings.HasPrefix(m.Path, "~/") {
		m.Path = filepath.Join(Me().Home, m.Path[1:])
	} else if strings.HasPrefix(m.Path, "~") {
		return status(id, errUnsupported)
	}
	return name(id, m.Path)
}

// name answers with realpath(3) of a path, whose last part need not be there.
func name(id uint32, path string) []byte {
	path, err := filepath.Abs(path)
	if err != nil {
		return status(id, err)
	}
	real, err := filepath.EvalSymlinks(path)
	if errors.Is(err, os.ErrNotExist) {
		if real, err = filepath.EvalSymlinks(filepath.Dir(path)); err == nil {
			real = filepath.Join(real, filepath.Base(path))
		}
	}
	if err != nil {
		return status(id, err)
	}
	return packet(fxpName, id, gossh.Marshal(struct {
		Count      uint32
		Name, Long string
		Attr       uint32
	}{1, real, real, 0}))
}

// limits tells what a packet may have: OpenSSH's PROTOCOL, 4.8.
func limits(id uint32, _ []byte) []byte {
	return packet(fxpReply, id, gossh.Marshal(struct{ Packet, Read, Write, Handles uint64 }{maxPacket, maxRead, maxWrite, maxHandles}))
}
