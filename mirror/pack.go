package mirror

import (
	"bufio"
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Limits bound what one push may bring.
type Limits struct {
	Push     int64 // bytes of the pack as it is sent
	Unpacked int64 // bytes of all that it inflates to
	File     int64 // bytes of one object
	Objects  int64
}

// A LimitError tells which limit a push is over, in words for who pushes.
type LimitError struct{ What, Next string }

func (e *LimitError) Error() string { return e.What + "; " + e.Next }

var errPack = errors.New("the pack is damaged")

// A packReader reads one pack (gitformat-pack(5)) object by object, so that
// limits hold before git unpacks anything, and tells where it ends, so that its
// last bytes can be held back. What it has read goes to sink, in order, but for
// the trailer.
type packReader struct {
	limits Limits
	sink   func(p []byte) error

	in       io.Reader
	buf      []byte // read and not passed to sink; of it, [:at] is consumed
	at       int
	total    int64 // consumed
	unpacked int64 // of the objects so far
	inflate  io.ReadCloser
}

// Kinds of objects in a pack.
const (
	packOffsetDelta = 6
	packRefDelta    = 7
)

// readPack reads the pack to its end and returns its trailer, the checksum of
// idSize bytes. What follows it in r is an error too.
func readPack(r io.Reader, idSize int, limits Limits, sink func(p []byte) error) (trailer []byte, err error) {
	p := &packReader{limits: limits, sink: sink, in: r, buf: make([]byte, 0, 64<<10)}
	defer func() {
		if e := new(LimitError); errors.Is(err, io.ErrUnexpectedEOF) && !errors.As(err, &e) {
			err = fmt.Errorf("%w: it ends early", errPack)
		}
	}()
	var head [12]byte
	if _, err := io.ReadFull(p, head[:]); err != nil {
		return nil, unexpected(err)
	}
	version, count := binary.BigEndian.Uint32(head[4:]), int64(binary.BigEndian.Uint32(head[8:]))
	if !bytes.Equal(head[:4], []byte("PACK")) || version != 2 && version != 3 {
		return nil, fmt.Errorf("%w: it begins with %q", errPack, head[:8])
	}
	if count > limits.Objects {
		return nil, &LimitError{fmt.Sprintf("the push has %d objects, and %d are allowed", count, limits.Objects), "push less at a time"}
	}
	for range count {
		if err := p.object(idSize); err != nil {
			return nil, err
		}
	}
	if err := p.flush(); err != nil {
		return nil, err
	}
	p.sink = func([]byte) error { return nil } // what follows is held back
	trailer = make([]byte, idSize)
	if _, err := io.ReadFull(p, trailer); err != nil {
		return nil, unexpected(err)
	}
	if _, err := p.ReadByte(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%w: more follows after its end", errPack)
	}
	return trailer, nil
}

// unexpected is an error of the reader's, where an end of file comes too early.
func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// object reads one object.
func (p *packReader) object(idSize int) error {
	kind, size, err := p.head()
	if err != nil {
		return unexpected(err)
	}
	switch kind {
	case 1, 2, 3, 4: // commit, tree, blob, tag
	case packOffsetDelta:
		if _, err := p.varint(); err != nil {
			return unexpected(err)
		}
	case packRefDelta:
		if _, err := io.CopyN(io.Discard, p, int64(idSize)); err != nil {
			return unexpected(err)
		}
	default:
		return fmt.Errorf("%w: an object of kind %d", errPack, kind)
	}
	if err := p.fits(size); err != nil {
		return err
	}
	if p.unpacked += size; p.unpacked > p.limits.Unpacked {
		return &LimitError{fmt.Sprintf("the push unpacks to more than %s, which are allowed", bytesText(p.limits.Unpacked)), "push less at a time"}
	}
	return p.content(kind, size)
}

// fits holds an object's size to the limit.
func (p *packReader) fits(size int64) error {
	if size < 0 || size > p.limits.File {
		return &LimitError{fmt.Sprintf("a file in it has %s, and %s are allowed", bytesText(size), bytesText(p.limits.File)), "take it out of the commits that have it, or keep it with Git LFS"}
	}
	return nil
}

// content inflates an object, which must have just the size that it says.
func (p *packReader) content(kind int, size int64) error {
	if p.inflate == nil {
		z, err := zlib.NewReader(p)
		if err != nil {
			return unexpected(err)
		}
		p.inflate = z
	} else if z, ok := p.inflate.(zlib.Resetter); ok {
		if err := z.Reset(p, nil); err != nil {
			return unexpected(err)
		}
	}
	body := io.Reader(p.inflate)
	if kind == packOffsetDelta || kind == packRefDelta {
		r := bufio.NewReaderSize(p.inflate, 32) // what it reads ahead is in the count below
		counted := &countReader{r: r}
		if err := p.delta(counted); err != nil {
			return err
		}
		body, size = r, size-counted.n
	}
	n, err := io.Copy(io.Discard, io.LimitReader(body, size+1))
	if err != nil {
		return unexpected(err)
	}
	if n != size {
		return fmt.Errorf("%w: an object has another size than it says", errPack)
	}
	return nil
}

// delta reads a delta's head: the sizes of what it is made from and of what it
// makes.
func (p *packReader) delta(r io.ByteReader) error {
	for range 2 {
		size, err := littleVarint(r, 0, 0)
		if err != nil {
			return unexpected(err)
		}
		if err := p.fits(size); err != nil {
			return err
		}
	}
	return nil
}

// head reads an object's kind and size.
func (p *packReader) head() (kind int, size int64, err error) {
	b, err := p.ReadByte()
	if err != nil {
		return 0, 0, err
	}
	kind, size = int(b>>4&7), int64(b&15)
	if b&0x80 != 0 {
		size, err = littleVarint(p, size, 4)
	}
	return kind, size, err
}

// littleVarint reads a number of 7 bits a byte, the lowest first, that goes on
// from what is known of it.
func littleVarint(r io.ByteReader, n int64, shift uint) (int64, error) {
	for ; shift < 60; shift += 7 {
		b, err := r.ReadByte()
		if err != nil {
			return 0, err
		}
		n |= int64(b&0x7f) << shift
		if b&0x80 == 0 {
			return n, nil
		}
	}
	return 0, fmt.Errorf("%w: a size has too many digits", errPack)
}

// varint reads an offset, whose value is git's to check.
func (p *packReader) varint() (n int, err error) {
	for n = 1; n <= 10; n++ {
		b, err := p.ReadByte()
		if err != nil || b&0x80 == 0 {
			return n, err
		}
	}
	return n, fmt.Errorf("%w: an offset has too many digits", errPack)
}

// ReadByte is io.ByteReader, by which inflating reads no further than it must.
func (p *packReader) ReadByte() (byte, error) {
	if p.at == len(p.buf) {
		if err := p.fill(); err != nil {
			return 0, err
		}
	}
	p.at++
	return p.buf[p.at-1], nil
}

func (p *packReader) Read(b []byte) (int, error) {
	if p.at == len(p.buf) {
		if err := p.fill(); err != nil {
			return 0, err
		}
	}
	n := copy(b, p.buf[p.at:])
	p.at += n
	return n, nil
}

// fill reads on, after passing on all that was consumed.
func (p *packReader) fill() error {
	if err := p.flush(); err != nil {
		return err
	}
	if p.total > p.limits.Push {
		return &LimitError{fmt.Sprintf("the push has more than %s, which are allowed", bytesText(p.limits.Push)), "push less at a time, or keep large files with Git LFS"}
	}
	n, err := p.in.Read(p.buf[:cap(p.buf)])
	p.buf = p.buf[:n]
	if n > 0 {
		return nil
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return err
}

// flush passes on what was consumed.
func (p *packReader) flush() error {
	if p.at == 0 {
		return nil
	}
	err := p.sink(p.buf[:p.at])
	p.total += int64(p.at)
	p.buf = p.buf[:copy(p.buf[:cap(p.buf)], p.buf[p.at:])]
	p.at = 0
	return err
}

// A countReader counts the bytes that were read one by one.
type countReader struct {
	r *bufio.Reader
	n int64
}

func (c *countReader) ReadByte() (byte, error) {
	c.n++
	return c.r.ReadByte()
}

// bytesText is a size for people.
func bytesText(n int64) string {
	const units = "KMGTPE"
	if n < 1<<10 {
		return fmt.Sprintf("%d bytes", n)
	}
	v, i := float64(n)/(1<<10), 0
	for v >= 1<<10 && i < len(units)-1 {
		v /= 1 << 10
		i++
	}
	return fmt.Sprintf("%.4g %ciB", v, units[i])
}
