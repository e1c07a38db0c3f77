package sshd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	gossh "golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"
)

// files are those that a client has open. Only the one goroutine that reads its requests
// uses them.
type files struct {
	open  map[string]*file // by handle; the library's handles are numbers alone
	last  uint64
	reply []byte // of the last read
}

type file struct {
	*os.File
	append bool // writes go to the file's end, wherever the client wants them
}

func (f *files) closeAll() {
	for _, file := range f.open {
		_ = file.Close() // nobody is left to be told
	}
}

// The flags of an open request.
const (
	openRead   = 1
	openWrite  = 2
	openAppend = 4
	openCreate = 8
	openTrunc  = 16
	openExcl   = 32
)

// how is open(2)'s flags for those of a request.
func how(flags uint32) int {
	n := os.O_RDONLY
	switch flags & (openRead | openWrite) {
	case openRead | openWrite:
		n = os.O_RDWR
	case openWrite:
		n = os.O_WRONLY
	}
	for _, f := range [...]struct {
		flag uint32
		is   int
	}{{openAppend, os.O_APPEND}, {openCreate, os.O_CREATE}, {openTrunc, os.O_TRUNC}, {openExcl, os.O_EXCL}} {
		if flags&f.flag != 0 {
			n |= f.is
		}
	}
	return n
}

// add opens a file.
func (f *files) add(id uint32, body []byte) []byte {
	var m struct {
		Path       string
		How, Flags uint32
		Rest       []byte `ssh:"rest"`
	}
	if gossh.Unmarshal(body, &m) != nil {
		return status(id, errMalformed)
	}
	if m.How&(openRead|openWrite) == 0 {
		return status(id, unix.EINVAL)
	}
	if len(f.open) >= maxHandles {
		return status(id, unix.EMFILE)
	}
	file := &file{append: m.How&openAppend != 0}
	var err error
	if file.File, err = os.OpenFile(m.Path, how(m.How), os.FileMode(attributes{m.Flags, m.Rest}.mode(0o666)&0o777)); err != nil {
		return status(id, err)
	}
	f.last++
	handle := fmt.Sprintf("f%d", f.last)
	f.open[handle] = file
	return packet(fxpHandle, id, gossh.Marshal(struct{ Handle string }{handle}))
}

// named is the file of a request that has a handle and nothing else; nil for none of ours.
// The answer is to what names none.
func (f *files) named(id uint32, body []byte) (file *file, handle string, answer []byte) {
	var m struct{ Handle string }
	if gossh.Unmarshal(body, &m) != nil {
		return nil, "", status(id, errMalformed)
	}
	return f.open[m.Handle], m.Handle, nil
}

func (f *files) close(id uint32, body []byte) []byte {
	file, handle, answer := f.named(id, body)
	if file == nil {
		return answer
	}
	delete(f.open, handle)
	return status(id, file.Close())
}

// read answers in a buffer that the next read uses again.
func (f *files) read(id uint32, body []byte) []byte {
	var m struct {
		Handle string
		At     uint64
		Length uint32
	}
	if gossh.Unmarshal(body, &m) != nil {
		return status(id, errMalformed)
	}
	file := f.open[m.Handle]
	if file == nil {
		return nil
	}
	const head = 13
	size := head + int(min(m.Length, maxRead))
	f.reply = slices.Grow(f.reply[:0], size)[:size]
	n, err := file.ReadAt(f.reply[head:], int64(m.At))
	if err != nil && (n == 0 || !errors.Is(err, io.EOF)) {
		return status(id, err)
	}
	f.reply = f.reply[:head+n]
	binary.BigEndian.PutUint32(f.reply, uint32(head-4+n))
	f.reply[4] = fxpData
	binary.BigEndian.PutUint32(f.reply[5:], id)
	binary.BigEndian.PutUint32(f.reply[9:], uint32(n))
	return f.reply
}

func (f *files) write(id uint32, body []byte) []byte {
	handle, rest, ok := text(body)
	if !ok || len(rest) < 8 {
		return status(id, errMalformed)
	}
	at := binary.BigEndian.Uint64(rest)
	data, _, ok := text(rest[8:])
	if !ok {
		return status(id, errMalformed)
	}
	file := f.open[string(handle)]
	if file == nil {
		return nil
	}
	var err error
	if file.append {
		_, err = file.Write(data)
	} else {
		_, err = file.WriteAt(data, int64(at))
	}
	return status(id, err)
}

// text cuts a string off the beginning of a packet, without a copy.
func text(p []byte) (text, rest []byte, ok bool) {
	if len(p) < 4 || uint64(binary.BigEndian.Uint32(p)) > uint64(len(p)-4) {
		return nil, nil, false
	}
	end := 4 + int(binary.BigEndian.Uint32(p))
	return p[4:end], p[end:], true
}

func (f *files) stat(id uint32, body []byte) []byte {
	file, _, answer := f.named(id, body)
	if file == nil {
		return answer
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &st); err != nil {
		return status(id, err)
	}
	return packet(fxpAttrs, id, gossh.Marshal(struct {
		Flags                          uint32
		Size                           uint64
		UID, GID, Mode, Access, Modify uint32
	}{attrSize | attrOwner | attrMode | attrTimes, uint64(st.Size), st.Uid, st.Gid, st.Mode, uint32(st.Atim.Sec), uint32(st.Mtim.Sec)}))
}

// set sets all that can be set, and tells what could not.
func (f *files) set(id uint32, body []byte) []byte {
	var m struct {
		Handle string
		Flags  uint32
		Rest   []byte `ssh:"rest"`
	}
	if gossh.Unmarshal(body, &m) != nil {
		return status(id, errMalformed)
	}
	file := f.open[m.Handle]
	if file == nil {
		return nil
	}
	fd, a := int(file.Fd()), attributes{m.Flags, m.Rest}
	var errs []error
	if w, ok := a.take(attrSize, 2); ok {
		errs = append(errs, unix.Ftruncate(fd, int64(w[0])<<32|int64(w[1])))
	}
	if w, ok := a.take(attrOwner, 2); ok {
		errs = append(errs, unix.Fchown(fd, int(w[0]), int(w[1])))
	}
	if w, ok := a.take(attrMode, 1); ok {
		errs = append(errs, unix.Fchmod(fd, w[0]&0o7777))
	}
	if w, ok := a.take(attrTimes, 2); ok {
		errs = append(errs, unix.Futimes(fd, []unix.Timeval{{Sec: int64(w[0])}, {Sec: int64(w[1])}}))
	}
	return status(id, errors.Join(errs...))
}

// sync writes a file to the disk: OpenSSH's PROTOCOL, 4.5.
func (f *files) sync(id uint32, body []byte) []byte {
	file, _, answer := f.named(id, body)
	switch {
	case answer != nil:
		return answer
	case file == nil:
		return status(id, unix.EBADF)
	}
	return status(id, file.Sync())
}

// copy copies from one open file to another, without the client in between.
func (f *files) copy(id uint32, body []byte) []byte {
	var m struct {
		From   string
		At     uint64
		Length uint64 // 0 for all
		To     string
		ToAt   uint64
	}
	if gossh.Unmarshal(body, &m) != nil {
		return status(id, errMalformed)
	}
	from, to := f.open[m.From], f.open[m.To]
	if from == nil || to == nil {
		return status(id, unix.EBADF)
	}
	return status(id, copyRange(to, from, m.ToAt, m.At, m.Length))
}

// copyRange copies length bytes, all that there is when it is 0.
func copyRange(to, from *file, toAt, at, length uint64) error {
	a, err := from.Stat()
	if err != nil {
		return err
	}
	b, err := to.Stat()
	if err != nil {
		return err
	}
	if os.SameFile(a, b) && overlap(at, toAt, length) {
		return unix.EINVAL
	}
	if length == 0 {
		length = 1<<63 - 1
	}
	_, err = from.Seek(int64(at), io.SeekStart) // reads and writes do not use the place
	if err == nil && !to.append {
		_, err = to.Seek(int64(toAt), io.SeekStart)
	}
	if err == nil {
		_, err = io.Copy(to.File, io.LimitReader(from.File, int64(min(length, 1<<63-1))))
	}
	return err
}

func overlap(from, to, length uint64) bool {
	return length == 0 || from < to+length && to < from+length
}
