package egress

import (
	"crypto/sha256"
	"crypto/subtle"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

// maxConns bounds a server's connections; tunnels have left it and are bounded by
// Config.MaxTunnels.
const maxConns = 1024

// Server returns a server for h that is made for hostile clients: a header has to
// be there whole within 10 s and have no more than 64 KB, a connection may idle
// for a minute, and of more than 1024 connections the newest are closed.
func Server(h http.Handler, log *slog.Logger) *http.Server {
	var mu sync.Mutex
	open := map[net.Conn]bool{}
	return &http.Server{
		Handler: h, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 64 << 10,
		DisableGeneralOptionsHandler: true,
		ErrorLog:                     slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		ConnState: func(c net.Conn, state http.ConnState) {
			mu.Lock()
			defer mu.Unlock()
			switch state {
			case http.StateNew:
				if len(open) >= maxConns {
					c.Close()
					return
				}
				open[c] = true
			case http.StateHijacked, http.StateClosed:
				delete(open, c)
			case http.StateActive, http.StateIdle:
			}
		},
	}
}

// Token tells whether a request shows token to the proxy: as a Bearer (RFC 6750),
// or as the user or the password of Basic (RFC 7617). It compares in constant time.
func Token(token string) func(*http.Request) bool {
	want := sha256.Sum256([]byte(token))
	return func(r *http.Request) bool {
		is := func(s string) int {
			got := sha256.Sum256([]byte(s))
			return subtle.ConstantTimeCompare(got[:], want[:])
		}
		text := r.Header.Get("Proxy-Authorization")
		scheme, bearer, _ := strings.Cut(text, " ")
		if strings.EqualFold(scheme, "Bearer") {
			return token != "" && is(strings.TrimSpace(bearer)) == 1
		}
		basic := http.Request{Header: http.Header{"Authorization": {text}}}
		user, password, ok := basic.BasicAuth()
		return ok && token != "" && is(user)|is(password) == 1
	}
}
