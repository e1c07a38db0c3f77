package egress

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// tlsPorts are those on which a tunnel must begin with a ClientHello: https, and
// what is TLS from the first byte by IANA's registry or by habit.
var tlsPorts = []uint16{443, 465, 563, 636, 853, 989, 990, 993, 995, 2376, 4443, 5061, 5671, 6443, 6514, 8443, 8883, 9443}

// serveConnect serves one tunnel (RFC 9110, 9.3.6).
func (p *Proxy) serveConnect(w http.ResponseWriter, r *http.Request) {
	to, err := parseTarget(r.RequestURI)
	if err == nil && (r.ContentLength != 0 || len(r.TransferEncoding) > 0) {
		err = errors.New("a CONNECT has no body")
	}
	if err != nil {
		p.refuse(w, r, malformed(r.RequestURI, err.Error()))
		return
	}
	// A hijacked connection's reader ends the request's context when the client ends
	// its half, or a read takes too long; the tunnel goes on.
	ctx, leave, no := p.enter(context.WithoutCancel(r.Context()), to, true)
	if no != nil {
		p.refuse(w, r, no)
		return
	}
	defer leave()
	t := &tunnel{p: p, to: to}
	if p.intercepts(to) {
		if t.client, t.early, err = accept(w); err == nil {
			defer t.client.Close()
			p.within.serve(ctx, t)
		}
		return
	}
	far, err := p.dialFor(ctx, r, to)
	if err != nil {
		p.refuse(w, r, asRefusal(to, err))
		return
	}
	defer far.Close()
	if t.client, t.early, err = accept(w); err != nil {
		p.cfg.Log.Debug("egress: the client left", "err", err)
		return
	}
	defer t.client.Close()
	t.run(ctx, far)
}

// dialFor dials for as long as the client waits.
func (p *Proxy) dialFor(ctx context.Context, r *http.Request, to target) (net.Conn, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(r.Context(), cancel)
	defer stop()
	return p.dial(ctx, to)
}

func asRefusal(to target, err error) *refusal {
	if no := new(refusal); errors.As(err, &no) {
		return no
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return unanswered(to, "it ended the connection without an answer")
	}
	return unanswered(to, err.Error())
}

// accept tells the client that its tunnel is there, and takes over the connection.
func accept(w http.ResponseWriter) (net.Conn, *bufio.Reader, error) {
	conn, buf, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return nil, nil, err
	}
	// A deadline may be left over from the server.
	err = conn.SetDeadline(time.Time{})
	if err == nil {
		_, err = io.WriteString(conn, "HTTP/1.1 200 Connection established\r\n\r\n")
	}
	if err != nil {
		return nil, nil, errors.Join(err, conn.Close())
	}
	return conn, buf.Reader, nil
}

// A tunnel is the bytes of one CONNECT.
type tunnel struct {
	p      *Proxy
	to     target
	client net.Conn
	early  *bufio.Reader // reads of client; empty once first has returned
}

// run passes bytes both ways until both sides are done, or ctx ends.
func (t *tunnel) run(ctx context.Context, far net.Conn) {
	stop := context.AfterFunc(ctx, func() { _, _ = t.client.Close(), far.Close() })
	defer stop()
	mustBeTLS := slices.Contains(tlsPorts, t.to.port)
	if mustBeTLS && !t.sendFirst(far, true) {
		return
	}
	var down sync.WaitGroup
	down.Go(func() { oneWay(t.client, far) })
	if mustBeTLS || t.sendFirst(far, false) {
		oneWay(far, t.client)
	} else {
		_, _ = t.client.Close(), far.Close()
	}
	down.Wait()
}

// oneWay copies src to dst, and shows its end to dst as the end of the stream. On
// Linux the bytes between two sockets stay in the kernel (splice(2)).
func oneWay(dst, src net.Conn) {
	_, err := io.Copy(dst, src)
	half, ok := dst.(interface{ CloseWrite() error })
	if err != nil || !ok || half.CloseWrite() != nil {
		_, _ = dst.Close(), src.Close() // nobody is left to tell
	}
}

// sendFirst looks at the client's first bytes and passes them on if they are
// right. Otherwise it tells the client, and returns false.
func (t *tunnel) sendFirst(far net.Conn, mustBeTLS bool) bool {
	raw, err := t.first(mustBeTLS)
	if err != nil {
		t.tell(err)
		return false
	}
	// What has come along with them.
	rest, err := t.early.Peek(t.early.Buffered())
	if err != nil {
		return false
	}
	if raw = append(raw, rest...); len(raw) == 0 {
		return true
	}
	_, err = far.Write(raw)
	return err == nil
}

// first reads what has to be looked at before any of it goes out: the
// ClientHello, and on a port that is not for TLS nothing if it is something else.
func (t *tunnel) first(mustBeTLS bool) ([]byte, error) {
	if !mustBeTLS {
		// This may take for ever: the server may be the one that talks.
		b, err := t.early.Peek(1)
		if errors.Is(err, io.EOF) || err == nil && b[0] != recordHandshake {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
	}
	if err := t.client.SetReadDeadline(time.Now().Add(t.p.cfg.HelloWithin)); err != nil {
		return nil, err
	}
	raw, h, err := readHello(t.early)
	if err != nil {
		return nil, err
	}
	if err := t.check(h); err != nil {
		return nil, err
	}
	return raw, t.client.SetReadDeadline(time.Time{})
}

// A wrongHello is a ClientHello that is not for the host of CONNECT.
type wrongHello struct{ why, next string }

func (e *wrongHello) Error() string { return e.why }

func (t *tunnel) check(h hello) error {
	switch name := strings.ToLower(strings.TrimSuffix(h.name, ".")); {
	case name != t.to.host.name && t.to.host.name == "":
		return &wrongHello{why: fmt.Sprintf("TLS asks for the name %s, where CONNECT had an address", printable(name))}
	case name == "" && t.to.host.name != "":
		return &wrongHello{why: "TLS does not say for which host it is (no SNI)"}
	case name != t.to.host.name:
		return &wrongHello{why: fmt.Sprintf("TLS asks for another host, %s", printable(name))}
	case h.ech && !t.p.isOpen():
		return &wrongHello{
			why:  "TLS hides for which host it is (encrypted ClientHello)",
			next: "Turn that off: Chromium's --disable-features=EncryptedClientHello, Firefox's network.dns.echconfig.enabled and security.tls.ech.grease_probability",
		}
	}
	return nil
}

func (p *Proxy) isOpen() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.rules.open
}

// TLS alerts (RFC 8446, 6.2), fatal, as one record before any encryption.
var (
	alertDenied = []byte{21, 3, 1, 0, 2, 2, 49}
	alertDecode = []byte{21, 3, 1, 0, 2, 2, 50}
)

// tell ends the tunnel with a word that the client understands.
func (t *tunnel) tell(err error) {
	no := &refusal{to: t.to, blocked: true, why: "is blocked: " + err.Error()}
	wrong := new(wrongHello)
	var last []byte
	switch {
	case errors.As(err, &wrong):
		no.next, last = wrong.next, alertDenied
	case errors.Is(err, errHello):
		last = alertDecode
	case errors.Is(err, errNotTLS):
		no.why += ", which is all that passes at this port"
		last = []byte(oneLine(no.text()) + "\n")
	default:
		// It has gone, or took too long.
		t.p.cfg.Log.Debug("egress: a tunnel did not begin", "to", t.to.String(), "err", err)
		return
	}
	t.p.note(no)
	if err := t.client.SetDeadline(time.Now().Add(refuseWithin)); err != nil {
		return
	}
	if _, err := t.client.Write(last); err == nil {
		_ = lastWords(t.client) // nobody is left to tell
	}
}
