// Package relay joins listeners and dialers: bytes that come in on one side go
// out on the other, each half-close passed on. It is how a port on a
// container's loopback leads to a unix socket, and a unix socket to a port.
package relay

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"syscall"
	"time"
)

// A Dialer opens the far side of one connection.
type Dialer func(ctx context.Context) (net.Conn, error)

// Unix dials the socket at path.
func Unix(path string) Dialer {
	return func(ctx context.Context) (net.Conn, error) { return new(net.Dialer).DialContext(ctx, "unix", path) }
}

// TCP dials addr.
func TCP(addr string) Dialer {
	return func(ctx context.Context) (net.Conn, error) { return new(net.Dialer).DialContext(ctx, "tcp", addr) }
}

// Serve accepts on l and joins each connection with one of dial's, until ctx
// ends or l fails. It closes l and every connection, waits for them, and
// returns nil when it was ctx that ended it.
func Serve(ctx context.Context, l net.Listener, dial Dialer, log *slog.Logger) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	return Accept(ctx, l, func(near net.Conn) {
		wg.Go(func() {
			far, err := dial(ctx)
			if err != nil {
				log.Debug("relay: the far side does not answer", "err", err)
				_ = near.Close() // what the near side sees of it
				return
			}
			Join(ctx, near, far)
		})
	}, log)
}

// Accept gives each connection to take, until ctx ends or l fails. It closes l, and
// returns nil when it was ctx that ended it.
func Accept(ctx context.Context, l net.Listener, take func(net.Conn), log *slog.Logger) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = l.Close() }) // makes Accept return
	defer stop()
	for {
		near, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			if passing(err) {
				log.Warn("relay: accepting; trying again", "err", err)
				select {
				case <-ctx.Done():
				case <-time.After(50 * time.Millisecond):
				}
				continue
			}
			return errors.Join(err, l.Close())
		}
		take(near)
	}
}

// passing tells errors of accept(2) after which it can go on: whoever opens too
// many connections does not close the door for good.
func passing(err error) bool {
	for _, e := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ECONNABORTED, syscall.ENOBUFS, syscall.ENOMEM} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// Join copies both ways until both are done or ctx ends, and closes both.
func Join(ctx context.Context, a, b io.ReadWriteCloser) {
	closeBoth := func() { _, _ = a.Close(), b.Close() }
	stop := context.AfterFunc(ctx, closeBoth)
	defer stop()
	defer closeBoth()
	var wg sync.WaitGroup
	wg.Add(2)
	go func() { defer wg.Done(); oneWay(a, b) }()
	go func() { defer wg.Done(); oneWay(b, a) }()
	wg.Wait()
}

// oneWay copies src to dst. Its end, or its error, shows to dst as the end of
// the stream; there is nobody else to tell.
func oneWay(dst, src io.ReadWriteCloser) {
	_, err := io.Copy(dst, src)
	half, ok := dst.(interface{ CloseWrite() error })
	if err != nil || !ok || half.CloseWrite() != nil {
		_, _ = dst.Close(), src.Close()
	}
}
