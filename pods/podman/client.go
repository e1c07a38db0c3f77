// Package podman is a thin layer over podman's API bindings: a few verbs on
// containers, pods, volumes, networks and images, each idempotent by
// name, with errors that name the thing and the next step.
//
// [Find] finds an API service or starts one, [Connect] gives a [Client].
// Ensure… verbs make what is missing; a container whose specification has
// changed is made anew, which a hash in a label tells. What carries labels is
// found and removed by them.
//
// It follows podman's libpod API (docs.podman.io, API v4 and later) and is run
// against a 4.3.1 server.
package podman

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/containers/podman/v5/pkg/bindings"
	"github.com/containers/podman/v5/pkg/errorhandling"
)

// A Client talks to one podman API service. Its methods are safe for
// concurrent use.
type Client struct {
	conn   context.Context // carries the bindings' connection, nothing else
	socket string          // of the service
	fault  func(point string)
	host   *atomic.Pointer[Host] // nil until it was asked for

	hostFile string
}

// Connect opens a connection to the service at uri (unix:///path).
func Connect(ctx context.Context, uri string) (*Client, error) {
	// The bindings keep the connection in a context; cancelling the caller's
	// must not end it, so each call joins the two (see with).
	conn, err := bindings.NewConnection(context.WithoutCancel(ctx), uri)
	if err != nil {
		return nil, fmt.Errorf("connecting to podman at %s: %w", uri, err)
	}
	socket, ok := cutUnix(uri)
	if !ok {
		return nil, fmt.Errorf("connecting to podman at %s: want unix:///PATH", uri)
	}
	return &Client{conn: conn, socket: socket, host: new(atomic.Pointer[Host])}, nil
}

// Socket is the path of the service's unix socket.
func (c *Client) Socket() string { return c.socket }

// KeepHost returns a client that keeps what [Client.Host] says in a file, for other
// processes that ask the same service.
func (c *Client) KeepHost(file string) *Client {
	d := *c
	d.hostFile = file
	return &d
}

// WithFault returns a client that calls f, with a name, before each call that
// makes, starts, stops or removes something: tests end the process there. A nil
// f is none.
func (c *Client) WithFault(f func(point string)) *Client {
	d := *c
	d.fault = f
	return &d
}

func (c *Client) change(what, name string) {
	if c.fault != nil {
		c.fault("podman: " + what + " " + name)
	}
}

// with joins the connection with a caller's deadline and cancellation.
func (c *Client) with(ctx context.Context) (context.Context, context.CancelFunc) {
	joined, cancel := context.WithCancel(c.conn)
	stop := context.AfterFunc(ctx, cancel)
	return joined, func() { stop(); cancel() }
}

// status is the HTTP status in an error of the bindings, 0 for none.
func status(err error) int {
	var e *errorhandling.ErrorModel
	if errors.As(err, &e) {
		return e.ResponseCode
	}
	return 0
}

// notFound is also what podman answers of something that goes away while it looks.
func notFound(err error) bool {
	return status(err) == http.StatusNotFound || err != nil && strings.Contains(err.Error(), "does not exist in database")
}
func conflict(err error) bool { return status(err) == http.StatusConflict }

// seconds rounds up, for podman's whole-second timeouts.
func seconds(d time.Duration) uint { return uint((d + time.Second - 1) / time.Second) }
