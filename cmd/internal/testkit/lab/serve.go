package lab

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// serve opens the hosts' sockets and answers on them until Close.
func (l *Lab) serve() error {
	return l.inside(func() error {
		var errs []error
		site := http.HandlerFunc(l.site)
		for _, addr := range []string{AllowedAddr, DeniedAddr, Allowed6, Denied6} {
			for _, port := range []int{80, 8081} {
				errs = append(errs, l.web(addr, port, site, false))
			}
			errs = append(errs, l.web(addr, 443, site, true))
			for _, port := range EchoPorts {
				errs = append(errs, l.echoTCP(addr, port))
			}
			for _, port := range UDPPorts {
				errs = append(errs, l.echoUDP(addr, port))
			}
		}
		errs = append(errs, l.web(MetadataAddr, 80, http.HandlerFunc(l.metadata), false), l.web(ModelAddr, ModelPort, http.HandlerFunc(l.model), false), l.resolver())
		return errors.Join(errs...)
	})
}

func listen(addr string, port int) (net.Listener, error) {
	return net.Listen("tcp", net.JoinHostPort(addr, strconv.Itoa(port)))
}

// web serves h, with a certificate for whatever name is asked for if secure.
func (l *Lab) web(addr string, port int, h http.Handler, secure bool) error {
	ln, err := listen(addr, port)
	if err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	server := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, ErrorLog: log.New(io.Discard, "", 0), TLSConfig: l.ca.config()}
	l.closers = append(l.closers, server.Close)
	if secure {
		go func() { _ = server.ServeTLS(ln, "", "") }() // until Close
	} else {
		go func() { _ = server.Serve(ln) }()
	}
	return nil
}

// Mark is in what a site answers: which one, and that it is of this lab.
func (l *Lab) Mark(site string) string { return "site=" + site + " lab=" + l.Nonce }

// site is every web site of the lab. Which one it is tells the Host header, at
// whichever address, as at a content delivery network; /to?u=URL redirects.
func (l *Lab) site(w http.ResponseWriter, r *http.Request) {
	host := r.Host
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.Trim(host, "[]") // of an IPv6 address without a port
	body, err := io.ReadAll(io.LimitReader(r.Body, 64<<10))
	l.see(host + " " + r.URL.String() + " " + string(body))
	if err != nil {
		return // broken off
	}
	if to := r.URL.Query().Get("u"); to != "" {
		w.Header().Set("Location", to) // as it is
		w.WriteHeader(http.StatusFound)
		return
	}
	sni := ""
	if r.TLS != nil {
		sni = r.TLS.ServerName
	}
	fmt.Fprintf(w, "%s sni=%s\n", l.Mark(siteOf(host, sni, r)), sni)
}

// siteOf is whose content a request gets: by its Host header, and where that is
// an address, by the name that TLS was asked for, or by the address.
func siteOf(host, sni string, r *http.Request) string {
	if _, err := netip.ParseAddr(host); err != nil {
		return host
	}
	if sni != "" {
		return sni
	}
	if local, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok {
		if a, err := netip.ParseAddrPort(local.String()); err == nil && (a.Addr().String() == DeniedAddr || a.Addr().String() == Denied6) {
			return DeniedName
		}
	}
	return AllowedName
}

// metadata is what clouds have at their address (IMDSv1 and v2 alike).
func (l *Lab) metadata(w http.ResponseWriter, r *http.Request) {
	l.see("metadata " + r.URL.String())
	fmt.Fprintf(w, "%s\n", l.Mark("metadata"))
}

// model is a provider that tells the key that it was shown, in every form.
func (l *Lab) model(w http.ResponseWriter, r *http.Request) {
	if _, err := io.Copy(io.Discard, io.LimitReader(r.Body, 1<<20)); err != nil {
		return
	}
	key := r.Header.Get("Authorization")
	l.mu.Lock()
	if len(l.models) < maxSeen {
		l.models = append(l.models, key)
	}
	l.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Key", key)
	raw := []byte(key)
	if len(key) > len("Bearer ") {
		raw = raw[len("Bearer "):]
	}
	answer := map[string]any{"object": "list", "plain": key}
	if r.URL.Query().Get("encoded") != "" {
		answer["base64"], answer["hex"], answer["url"] = base64.StdEncoding.EncodeToString(raw), hex.EncodeToString(raw), url.QueryEscape(string(raw))
	}
	_ = json.NewEncoder(w).Encode(answer) // the client is gone: nobody to tell
}

// ModelKeys are the Authorization headers that the model has seen.
func (l *Lab) ModelKeys() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]string(nil), l.models...)
}

// echoTCP greets as a mail server does, and sends back what comes.
func (l *Lab) echoTCP(addr string, port int) error {
	ln, err := listen(addr, port)
	if err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	l.closers = append(l.closers, ln.Close)
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return // closed
			}
			go l.echo(conn, port)
		}
	}()
	return nil
}

func (l *Lab) echo(conn net.Conn, port int) {
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return
	}
	if _, err := fmt.Fprintf(conn, "220 port=%d %s\r\n", port, l.Mark("echo")); err != nil {
		return
	}
	buf := make([]byte, 4096)
	for {
		n, err := conn.Read(buf)
		if n > 0 {
			l.see(string(buf[:n]))
			if _, err := conn.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// echoUDP answers each packet with the lab's mark.
func (l *Lab) echoUDP(addr string, port int) error {
	conn, err := net.ListenPacket("udp", net.JoinHostPort(addr, strconv.Itoa(port)))
	if err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	l.closers = append(l.closers, conn.Close)
	go func() {
		buf := make([]byte, 4096)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return // closed
			}
			l.see(string(buf[:n]))
			// One that came from a forged address is not answered.
			_, _ = conn.WriteTo([]byte(l.Mark("udp")), from)
		}
	}()
	return nil
}

// Host serves on an address of the host itself, in the namespace that New was
// called in, and returns its port.
func (l *Lab) Host(addr, site string) (int, error) {
	ln, err := net.Listen("tcp", net.JoinHostPort(addr, "0"))
	if err != nil {
		return 0, fmt.Errorf("lab: %w", err)
	}
	l.Serve(ln, site)
	tcp, ok := ln.Addr().(*net.TCPAddr)
	if !ok {
		return 0, errors.New("lab: not TCP")
	}
	return tcp.Port, nil
}

// Serve answers on a listener of any kind with the mark of a site, by HTTP.
func (l *Lab) Serve(ln net.Listener, site string) {
	server := &http.Server{ReadHeaderTimeout: 10 * time.Second, ErrorLog: log.New(io.Discard, "", 0), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		l.see(site + " " + r.URL.String())
		fmt.Fprintf(w, "%s\n", l.Mark(site))
	})}
	l.closers = append(l.closers, server.Close)
	go func() { _ = server.Serve(ln) }() // until Close
}

// Resolver asks the lab's name server, from the host.
func (l *Lab) Resolver() *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, net.JoinHostPort(ResolverAddr, "53"))
	}}
}
