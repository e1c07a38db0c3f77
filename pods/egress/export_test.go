package egress

import (
	"crypto/tls"
	"io"
	"time"
)

// ReadHello is for tests of the parser: what was read, the name, and whether there
// is an encrypted ClientHello.
func ReadHello(r io.Reader) (raw []byte, name string, ech bool, err error) {
	raw, h, err := readHello(r)
	return raw, h.name, h.ech, err
}

// ErrHello and ErrNotTLS are what ReadHello may return.
var (
	ErrHello  = errHello
	ErrNotTLS = errNotTLS
)

// ParseTarget is the parser of what CONNECT has.
func ParseTarget(text string) (string, error) {
	to, err := parseTarget(text)
	return to.String(), err
}

// AllowsTunnel tells whether CONNECT is allowed.
func (r Rules) AllowsTunnel(text string) bool {
	to, err := parseTarget(text)
	return err == nil && r.allow(to, true)
}

// AllowsPlain tells whether plain http is allowed.
func (r Rules) AllowsPlain(text string) bool {
	to, err := parseTarget(text)
	return err == nil && r.allow(to, false)
}

// Leaf is a certificate for a host at a moment.
func (c *CA) Leaf(host string, now time.Time) (*tls.Certificate, error) {
	c.mu.Lock()
	c.now = func() time.Time { return now }
	c.mu.Unlock()
	return c.leaf(host)
}

// MaxConns is how many connections a server takes.
const MaxConns = maxConns
