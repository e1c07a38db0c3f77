package saver

import (
	"bufio"
	"context"
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
)

// blobs writes contents into the store by one git fast-import, which reads them
// from us and never from the agent's files. An id is worked out here, and holds
// once close has returned nil.
type blobs struct {
	out  *bufio.Writer
	pipe *os.File
	done chan error
	size int64 // written so far
	buf  []byte
}

// smallFile is how much of a file is held in memory.
const smallFile = 1 << 20

func (s *store) startBlobs(ctx context.Context) (*blobs, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	b := &blobs{out: bufio.NewWriterSize(w, 64<<10), pipe: w, done: make(chan error, 1)}
	go func() {
		err := s.run(ctx, call{args: []string{"fast-import", "--quiet", "--done", "--depth=0"}, stdin: r, limit: patience * s.limit})
		b.done <- errors.Join(err, r.Close())
	}()
	return b, nil
}

// add writes size bytes of from. A content that turns out to be shorter is
// errChanged; what was written of it is of no use, and no harm.
func (b *blobs) add(size int64, from io.Reader) (id string, err error) {
	if size <= smallFile {
		return b.addSmall(size, from)
	}
	sum := sha1.New()
	fmt.Fprintf(sum, "blob %d\x00", size)
	fmt.Fprintf(b.out, "blob\ndata %d\n", size)
	n, err := io.Copy(io.MultiWriter(b.out, sum), io.LimitReader(from, size))
	b.size += size
	if n < size {
		_, padErr := io.CopyN(b.out, zeros{}, size-n)
		if err == nil || padErr != nil {
			err = errors.Join(errChanged, padErr)
		}
		if padErr != nil {
			return "", padErr
		}
	}
	if _, nl := b.out.WriteString("\n"); err != nil || nl != nil {
		return "", errors.Join(err, nl)
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

func (b *blobs) addSmall(size int64, from io.Reader) (id string, err error) {
	if b.buf == nil {
		b.buf = make([]byte, smallFile)
	}
	n, err := io.ReadFull(from, b.buf[:size])
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return "", err
	}
	content := b.buf[:n] // what there is of it
	sum := sha1.New()
	fmt.Fprintf(sum, "blob %d\x00", n)
	sum.Write(content)
	fmt.Fprintf(b.out, "blob\ndata %d\n", n)
	b.size += int64(n)
	_, err = b.out.Write(content)
	_, nl := b.out.WriteString("\n")
	return hex.EncodeToString(sum.Sum(nil)), errors.Join(err, nl)
}

// close ends the writing; only then are the contents there.
func (b *blobs) close() error {
	_, err := b.out.WriteString("done\n")
	err = errors.Join(err, b.out.Flush(), b.pipe.Close())
	if ended := <-b.done; ended != nil {
		return fmt.Errorf("writing contents: %w", ended)
	}
	return err
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }
