package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Proxy answers at addr as a pod's gate would that lets everything through: an
// HTTP proxy to wherever it is asked, by the lab's names, and the model with its
// key on /model/. It believes all that it is told, and reads no more than a
// connection's first request. Escapes by a proxy are shown to work with it.
func (l *Lab) Proxy(addr, key string) error {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	l.closers = append(l.closers, ln.Close)
	p := &proxy{key: key, dialer: &net.Dialer{Timeout: 5 * time.Second, Resolver: l.Resolver()}}
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return // closed
			}
			go func() {
				defer conn.Close()
				if err := p.handle(conn); err != nil {
					// Who has gone need not be told.
					_, _ = fmt.Fprintf(conn, "HTTP/1.1 502 Bad Gateway\r\nConnection: close\r\n\r\n%s\n", err)
				}
			}()
		}
	}()
	return nil
}

type proxy struct {
	key    string
	dialer *net.Dialer
}

// maxHead is how many lines a request's head may have.
const maxHead = 200

func (p *proxy) handle(conn net.Conn) error {
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return err
	}
	r := bufio.NewReader(conn)
	var head []string
	for len(head) < maxHead {
		line, err := r.ReadString('\n')
		if err != nil {
			return err
		}
		if line = strings.TrimRight(line, "\r\n"); line == "" {
			break
		}
		if !strings.HasPrefix(strings.ToLower(line), "proxy-authorization:") {
			head = append(head, line)
		}
	}
	if len(head) == 0 {
		return errors.New("no request")
	}
	f := strings.Fields(head[0])
	if len(f) != 3 {
		return fmt.Errorf("no request line: %q", head[0])
	}
	to := f[1]
	if f[0] != "CONNECT" {
		u, err := url.Parse(f[1])
		if err != nil {
			return err
		}
		if u.Host == "" {
			u.Host = net.JoinHostPort(ModelAddr, strconv.Itoa(ModelPort))
			head = append(slices.DeleteFunc(head, func(h string) bool { return strings.HasPrefix(strings.ToLower(h), "authorization:") }), "Authorization: Bearer "+p.key)
		}
		if to = u.Host; u.Port() == "" {
			to = net.JoinHostPort(u.Hostname(), "80")
		}
		// In origin form (RFC 9112, section 3.2.1), with the Host as it came.
		head[0] = f[0] + " " + u.RequestURI() + " HTTP/1.1"
	}
	up, err := p.dialer.DialContext(context.Background(), "tcp", to)
	if err != nil {
		return err
	}
	defer up.Close()
	if f[0] == "CONNECT" {
		_, err = io.WriteString(conn, "HTTP/1.1 200 OK\r\n\r\n")
	} else {
		_, err = io.WriteString(up, strings.Join(head, "\r\n")+"\r\n\r\n")
	}
	if err != nil {
		return err
	}
	go func() {
		_, _ = io.Copy(up, r) // either is gone
		if tcp, ok := up.(*net.TCPConn); ok {
			_ = tcp.CloseWrite()
		}
	}()
	_, _ = io.Copy(conn, up)
	return nil
}
