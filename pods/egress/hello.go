package egress

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// What a ClientHello may have in bytes: with keys for post-quantum exchange and
// all extensions there are, it has 2 to 4 KB.
const maxHello = 32 << 10

// A hello is what the proxy wants to know of a TLS ClientHello.
type hello struct {
	name string // the server's (RFC 6066, 3), "" when there is none
	ech  bool   // it has an encrypted ClientHello (RFC 9849), real or not
}

// errNotTLS: what came is something else.
var errNotTLS = errors.New("what came first is not TLS")

// errHello: it looks like TLS and is not a ClientHello as the RFC has it.
var errHello = errors.New("the TLS ClientHello is malformed")

// TLS record and message types (RFC 8446, 5.1 and 4; RFC 6066; RFC 9849).
const (
	recordHandshake = 22
	messageHello    = 1
	extServerName   = 0
	extECH          = 0xfe0d
	nameHost        = 0
)

// readHello reads the records of one ClientHello, which may be in pieces, and
// nothing more. raw is what was read, to be passed on as it is. Whatever a server
// could read in another way is refused.
func readHello(r io.Reader) (raw []byte, h hello, err error) {
	var message []byte
	for len(message) < 4 || len(message) < 4+length24(message) {
		var head [5]byte
		if _, err := io.ReadFull(r, head[:1]); err != nil {
			return nil, h, cut(err)
		}
		if head[0] != recordHandshake {
			if len(raw) == 0 {
				return nil, h, errNotTLS
			}
			return nil, h, errHello
		}
		if _, err := io.ReadFull(r, head[1:]); err != nil {
			return nil, h, cut(err)
		}
		size := int(binary.BigEndian.Uint16(head[3:]))
		if head[1] != 3 || size == 0 || size > 1<<14 || len(raw)+5+size > maxHello {
			return nil, h, errHello
		}
		raw = append(raw, head[:]...)
		start := len(raw)
		raw = append(raw, make([]byte, size)...)
		if _, err := io.ReadFull(r, raw[start:]); err != nil {
			return nil, h, cut(err)
		}
		message = append(message, raw[start:]...)
		if message[0] != messageHello || len(message) >= 4 && length24(message) > maxHello {
			return nil, h, errHello
		}
	}
	if len(message) != 4+length24(message) {
		return nil, h, errHello // another message in the same record
	}
	h, ok := parseHello(message[4:])
	if !ok {
		return nil, h, errHello
	}
	return raw, h, nil
}

func length24(message []byte) int {
	return int(message[1])<<16 | int(message[2])<<8 | int(message[3])
}

func cut(err error) error { return fmt.Errorf("no whole TLS ClientHello came: %w", err) }

// parseHello reads the body of a ClientHello (RFC 8446, 4.1.2).
func parseHello(b []byte) (h hello, ok bool) {
	c := cursor{rest: b}
	version := c.take(2)
	c.take(32) // random
	session := c.vector(1)
	suites := c.vector(2)
	compression := c.vector(1)
	if c.bad || version[0] != 3 || len(session) > 32 || len(suites) == 0 || len(suites)%2 != 0 || len(compression) == 0 {
		return h, false
	}
	if len(c.rest) == 0 {
		return h, true // before TLS 1.2 there need be no extensions
	}
	extensions := cursor{rest: c.vector(2)}
	if c.bad || len(c.rest) != 0 {
		return h, false
	}
	seen := map[uint16]bool{}
	for len(extensions.rest) > 0 {
		kind, body := extensions.number(), extensions.vector(2)
		if extensions.bad || seen[kind] {
			return h, false
		}
		seen[kind] = true
		switch kind {
		case extECH:
			h.ech = true
		case extServerName:
			if h.name, ok = parseServerName(body); !ok {
				return h, false
			}
		}
	}
	return h, true
}

// parseServerName wants one name, that of a host: the RFC knows no other kind.
func parseServerName(b []byte) (string, bool) {
	c := cursor{rest: b}
	list := cursor{rest: c.vector(2)}
	if c.bad || len(c.rest) != 0 {
		return "", false
	}
	kind := list.take(1)
	name := list.vector(2)
	if list.bad || len(list.rest) != 0 || kind[0] != nameHost || len(name) == 0 {
		return "", false
	}
	return string(name), true
}

// A cursor takes fields off the front of rest; bad once one was not there.
type cursor struct {
	rest []byte
	bad  bool
}

// take returns n bytes, zeros when there are fewer.
func (c *cursor) take(n int) []byte {
	if n > len(c.rest) {
		c.bad, c.rest = true, nil
		return make([]byte, n)
	}
	b := c.rest[:n]
	c.rest = c.rest[n:]
	return b
}

func (c *cursor) number() uint16 { return binary.BigEndian.Uint16(c.take(2)) }

// vector is a field with its length in size bytes before it (RFC 8446, 3.4).
func (c *cursor) vector(size int) []byte {
	n := 0
	for _, b := range c.take(size) {
		n = n<<8 | int(b)
	}
	if n > len(c.rest) {
		c.bad, c.rest = true, nil
		return nil
	}
	return c.take(n)
}
