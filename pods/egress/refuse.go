package egress

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"
)

// A refusal is a request that is not passed on, and what its client is told.
type refusal struct {
	status int
	to     target
	host   string // as the client wrote it, when it is no target
	why    string // the end of a sentence that begins with the host
	next   string // what to do, a sentence; may be ""
	// blocked: a rule of ours says no, which a person may want to see.
	blocked bool
	allow   string // the pattern that would allow it, "" when none does
}

func (r *refusal) Error() string { return r.text() }

func (r *refusal) text() string {
	name := r.host
	if name == "" {
		name = r.to.String()
	}
	text := "devaipod: " + printable(name) + " " + r.why
	if r.next != "" {
		text += ". " + r.next
	}
	return text
}

func notAllowed(to target, connect bool) *refusal {
	if to.port == 80 && connect {
		return &refusal{
			status: http.StatusForbidden, to: to, blocked: true, allow: to.rule(true), why: "is blocked: CONNECT is not allowed at port 80",
			next: "Ask the proxy for the http:// URL itself, or a person can allow the tunnel with the comment /allow " + to.rule(true) + " on the issue",
		}
	}
	return &refusal{
		status: http.StatusForbidden, to: to, blocked: true, allow: to.rule(connect), why: "is blocked: it is not on the list of hosts that this pod may reach",
		next: "A person can allow it with the comment /allow " + to.rule(connect) + " on the issue",
	}
}

func notPublic(to target, why string) *refusal {
	return &refusal{
		status: http.StatusForbidden, to: to, blocked: true, why: "is blocked: " + why,
		next: "Pods reach addresses of the public internet only",
	}
}

func tooMany(to target, n int) *refusal {
	return &refusal{
		status: http.StatusServiceUnavailable, to: to, why: fmt.Sprintf("has to wait: %d connections through the proxy are open, which is all it takes", n),
		next: "Close some and try again",
	}
}

func unanswered(to target, why string) *refusal {
	return &refusal{status: http.StatusBadGateway, to: to, why: "can't be reached: " + why}
}

func malformed(host, why string) *refusal {
	return &refusal{status: http.StatusBadRequest, host: host, why: "can't be asked for: " + why}
}

// note keeps and logs what a rule of ours refused.
func (p *Proxy) note(no *refusal) {
	if !no.blocked {
		p.cfg.Log.Debug("egress: refused", "why", no.text())
		return
	}
	if first := p.blocked.add(no); first {
		p.cfg.Log.Warn("egress: refused", "host", printable(no.to.String()), "why", no.why)
	}
}

// header of answers that are a refusal by a rule.
const blockedHeader = "X-Devaipod-Blocked"

// maxRefusing bounds the connections on which a refusal is being read: they are no
// longer the server's to count.
const maxRefusing = 64

// refuse tells a client no. Where it can it writes the answer itself: programs
// such as pip, go and java show people the status line and no more of it.
func (p *Proxy) refuse(w http.ResponseWriter, r *http.Request, no *refusal) {
	p.note(no)
	if r.ContentLength == 0 && p.refuseInLine(w, r, no) {
		return
	}
	if no.blocked {
		w.Header().Set(blockedHeader, oneLine(no.text()))
	}
	say(w, r, no.status, oneLine(no.text()))
}

// refuseInLine writes a refusal with its text in the status line. It returns false,
// and has written nothing, when that can't be.
func (p *Proxy) refuseInLine(w http.ResponseWriter, r *http.Request, no *refusal) bool {
	defer p.refusing.Add(-1)
	if p.refusing.Add(1) > maxRefusing {
		return false
	}
	conn, buf, err := http.NewResponseController(w).Hijack()
	if errors.Is(err, http.ErrNotSupported) {
		return false
	}
	if err == nil {
		defer conn.Close()
		err = writeRefusal(conn, buf.Writer, r, no)
	}
	if err != nil {
		p.cfg.Log.Debug("egress: the client left", "err", err)
	}
	return true
}

// say answers without waiting for a body that may never come, as the server would.
func say(w http.ResponseWriter, r *http.Request, status int, text string) {
	if r.ContentLength != 0 {
		fullDuplex(w)
		w.Header().Set("Connection", "close")
		// A recorder in a test has no deadline.
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(refuseWithin))
	}
	http.Error(w, text, status)
}

// refuseWithin is how long a client has to read a refusal.
const refuseWithin = 5 * time.Second

func writeRefusal(conn net.Conn, w *bufio.Writer, r *http.Request, no *refusal) error {
	text := oneLine(no.text())
	// A client that does not read must not hold us.
	if err := conn.SetDeadline(time.Now().Add(refuseWithin)); err != nil {
		return err
	}
	fmt.Fprintf(w, "HTTP/1.1 %d %s\r\n", no.status, text)
	if no.blocked {
		fmt.Fprintf(w, "%s: %s\r\n", blockedHeader, text)
	}
	fmt.Fprintf(w, "Content-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\nConnection: close\r\n\r\n", len(text)+1)
	if r.Method != http.MethodHead {
		fmt.Fprintf(w, "%s\n", text)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	return lastWords(conn)
}

// lastWords closes conn's sending half, and waits for the client to have read: to
// close with bytes unread would take back what was sent (RFC 9112, 9.6).
func lastWords(conn net.Conn) error {
	half, ok := conn.(interface{ CloseWrite() error })
	if !ok {
		return nil
	}
	if err := half.CloseWrite(); err != nil {
		return err
	}
	var waste [512]byte
	for range 128 {
		if _, err := conn.Read(waste[:]); err != nil {
			return nil //nolint:nilerr // it has read, or has gone
		}
	}
	return nil
}

// oneLine keeps what fits a status line: errors of resolvers and servers may hold
// anything.
func oneLine(s string) string {
	s = strings.Map(func(c rune) rune {
		if c < ' ' || c >= 0x7f {
			return '?'
		}
		return c
	}, s)
	return s[:min(len(s), 800)]
}
