package sshd

import (
	"context"
	"io"
	"net"
	"sync"
	"time"
)

// ServeStream serves the one connection that comes in by r and goes out by w, as
// sshd -i does with its standard streams, until it or ctx ends, and waits until its
// commands were told. Closing r must end a Read of it.
func (s *Server) ServeStream(ctx context.Context, r io.ReadCloser, w io.WriteCloser) {
	c := &stream{Reader: r, Writer: w, ends: []io.Closer{r, w}}
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	s.ssh.HandleConn(c)
	_ = c.Close()
	s.end()
}

// A stream is two pipes as a connection. It has no deadlines: x/crypto/ssh sets none.
type stream struct {
	io.Reader
	io.Writer
	ends []io.Closer
	once sync.Once
}

func (s *stream) Close() (err error) {
	s.once.Do(func() {
		for _, e := range s.ends {
			if bad := e.Close(); err == nil {
				err = bad
			}
		}
	})
	return err
}

func (*stream) LocalAddr() net.Addr              { return nowhere{} }
func (*stream) RemoteAddr() net.Addr             { return nowhere{} }
func (*stream) SetDeadline(time.Time) error      { return nil }
func (*stream) SetReadDeadline(time.Time) error  { return nil }
func (*stream) SetWriteDeadline(time.Time) error { return nil }

// nowhere is where a stream comes from.
type nowhere struct{}

func (nowhere) Network() string { return "stream" }
func (nowhere) String() string  { return "standard streams" }
