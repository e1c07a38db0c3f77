// Package tunnel joins connections on one side of a byte stream with TCP ports of
// the loopback on the other: [Serve] is the far side, in a container that has no
// network, [New] makes the near one. The stream is what a command in that container
// reads and writes.
//
// It is HTTP/2 (RFC 9113) with a request for each connection, so that many share a
// stream and a slow one keeps none waiting. The body of a request is what goes to
// the port. The body of an answer is what comes from it, in frames of a length (two
// bytes, big-endian) and as many bytes; a length of 0 says that the port sends no
// more, while it may still be sent to.
package tunnel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// maxFrame is the longest frame, in bytes.
const maxFrame = 1<<16 - 1

// maxStreams is how many connections a tunnel carries at a time; more wait.
const maxStreams = 1000

func protocols() *http.Protocols {
	p := new(http.Protocols)
	p.SetUnencryptedHTTP2(true)
	return p
}

// Serve dials for the other side until in ends or ctx does.
func Serve(ctx context.Context, in io.Reader, out io.Writer) error {
	one := &oneConn{conn: &pipe{Reader: in, Writer: out, closed: make(chan struct{})}}
	srv := &http.Server{
		Handler: http.HandlerFunc(serveOne), Protocols: protocols(), HTTP2: &http.HTTP2Config{MaxConcurrentStreams: maxStreams},
		ReadHeaderTimeout: 10 * time.Second, BaseContext: func(net.Listener) context.Context { return ctx },
	}
	stop := context.AfterFunc(ctx, func() { _ = one.conn.Close() })
	defer stop()
	if err := srv.Serve(one); !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

// dialPort opens a port of this container's loopback, of either kind.
func dialPort(ctx context.Context, port string) (*net.TCPConn, error) {
	var first error
	for _, host := range []string{"127.0.0.1", "::1"} {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", net.JoinHostPort(host, port))
		if err == nil {
			return conn.(*net.TCPConn), nil //nolint:forcetypeassert // it is one
		}
		if first == nil {
			first = err
		}
	}
	return nil, first
}

// serveOne carries one connection.
func serveOne(w http.ResponseWriter, r *http.Request) {
	port := strings.TrimPrefix(r.URL.Path, "/")
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		http.Error(w, "no port: "+port, http.StatusBadRequest)
		return
	}
	conn, err := dialPort(r.Context(), port)
	if errors.Is(err, syscall.ECONNREFUSED) {
		http.Error(w, "nothing listens there", http.StatusNotFound)
		return
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer conn.Close() //nolint:errcheck // what went wrong before counts
	w.WriteHeader(http.StatusOK)
	flush := http.NewResponseController(w)
	if flush.Flush() != nil {
		return
	}
	var up sync.WaitGroup
	defer up.Wait()
	up.Go(func() {
		_, err := io.Copy(conn, r.Body)
		if err == nil {
			err = conn.CloseWrite()
		}
		if err != nil { // the other side has gone, or this one
			_ = conn.SetLinger(0)
			_ = conn.Close()
		}
	})
	if err := send(w, flush, conn); err != nil {
		_, _ = conn.Close(), r.Body.Close() // ends the other direction
		panic(http.ErrAbortHandler)
	}
}

// send writes what conn sends, in frames, until it sends no more.
func send(w io.Writer, flush *http.ResponseController, conn io.Reader) error {
	buf := make([]byte, 2+maxFrame)
	for {
		n, err := conn.Read(buf[2:])
		if n > 0 {
			binary.BigEndian.PutUint16(buf, uint16(n)) //nolint:gosec // at most maxFrame
			if _, err := w.Write(buf[:2+n]); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			if _, err := w.Write([]byte{0, 0}); err != nil {
				return err
			}
			return flush.Flush()
		}
		if err != nil {
			return err
		}
		if err := flush.Flush(); err != nil {
			return err
		}
	}
}

// ErrRefused says that nothing listens at a port.
var ErrRefused = errors.New("nothing listens there")

// A Tunnel is the near side. Its methods may be called concurrently.
type Tunnel struct{ transport *http.Transport }

// New makes a tunnel through the streams that open gives: one at a time, and
// another when that has ended.
func New(open func(ctx context.Context) (io.ReadWriteCloser, error)) *Tunnel {
	return &Tunnel{&http.Transport{
		Protocols: protocols(), DisableCompression: true, MaxConnsPerHost: 1, HTTP2: &http.HTTP2Config{StrictMaxConcurrentRequests: true},
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			rw, err := open(ctx)
			if err != nil {
				return nil, err
			}
			return &pipe{Reader: rw, Writer: rw, closer: rw, closed: make(chan struct{})}, nil
		},
	}}
}

// Close ends the tunnel's stream when it carries nothing any more.
func (t *Tunnel) Close() { t.transport.CloseIdleConnections() }

// A Conn is one connection through a tunnel. It may be read and written
// concurrently.
type Conn struct {
	up     *io.PipeWriter
	down   io.ReadCloser
	cancel context.CancelFunc
	left   int  // bytes of the frame
	ended  bool // the port sends no more
}

// Dial opens a port of the far side's loopback. The error is ErrRefused when
// nothing listens there.
func (t *Tunnel) Dial(ctx context.Context, port uint16) (*Conn, error) {
	r, w := io.Pipe()
	ctx, cancel := context.WithCancel(ctx)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://tunnel/"+strconv.Itoa(int(port)), r)
	if err != nil {
		cancel()
		return nil, err
	}
	resp, err := t.transport.RoundTrip(req)
	if err != nil {
		cancel()
		return nil, err
	}
	if resp.StatusCode == http.StatusOK {
		return &Conn{up: w, down: resp.Body, cancel: cancel}, nil
	}
	defer cancel()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 4096))
	if resp.StatusCode == http.StatusNotFound {
		return nil, ErrRefused
	}
	return nil, errors.Join(fmt.Errorf("port %d: %s", port, strings.TrimSpace(string(text))), err, resp.Body.Close())
}

// Read reads what the port sends.
func (c *Conn) Read(b []byte) (int, error) {
	if c.left == 0 && !c.ended {
		var head [2]byte
		if _, err := io.ReadFull(c.down, head[:]); err != nil {
			return 0, noEnd(err)
		}
		c.left = int(binary.BigEndian.Uint16(head[:]))
		c.ended = c.left == 0
	}
	if c.ended {
		return 0, io.EOF
	}
	n, err := c.down.Read(b[:min(len(b), c.left)])
	c.left -= n
	if n > 0 {
		err = nil
	}
	return n, noEnd(err)
}

// noEnd is err of a stream that must not end here.
func noEnd(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Write sends to the port.
func (c *Conn) Write(b []byte) (int, error) { return c.up.Write(b) }

// CloseWrite tells the port that no more is sent to it.
func (c *Conn) CloseWrite() error { return c.up.Close() }

// Close ends the connection.
func (c *Conn) Close() error {
	c.cancel()
	return errors.Join(c.up.CloseWithError(io.ErrClosedPipe), c.down.Close())
}

// A pipe is a stream as HTTP wants it.
type pipe struct {
	io.Reader
	io.Writer
	closer io.Closer // nil for none
	once   sync.Once
	closed chan struct{}
}

func (p *pipe) Close() (err error) {
	p.once.Do(func() {
		close(p.closed)
		if p.closer != nil {
			err = p.closer.Close()
		}
	})
	return err
}

func (p *pipe) LocalAddr() net.Addr              { return pipeAddr{} }
func (p *pipe) RemoteAddr() net.Addr             { return pipeAddr{} }
func (p *pipe) SetDeadline(time.Time) error      { return nil }
func (p *pipe) SetReadDeadline(time.Time) error  { return nil }
func (p *pipe) SetWriteDeadline(time.Time) error { return nil }

type pipeAddr struct{}

func (pipeAddr) Network() string { return "pipe" }
func (pipeAddr) String() string  { return "pipe" }

// oneConn listens for a connection that is there already, and ends with it.
type oneConn struct {
	conn  *pipe
	taken bool
}

func (l *oneConn) Accept() (net.Conn, error) {
	if !l.taken {
		l.taken = true
		return l.conn, nil
	}
	<-l.conn.closed
	return nil, io.EOF
}

func (l *oneConn) Close() error   { return l.conn.Close() }
func (l *oneConn) Addr() net.Addr { return pipeAddr{} }
