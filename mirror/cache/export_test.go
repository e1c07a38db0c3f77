package cache

import (
	"net/http"
	"net/url"
)

var (
	ParsePath = parsePath
	Warning   = warning
)

// Head is where HEAD points, by what git ls-remote prints, which comes in pieces.
func Head(pieces ...string) string {
	w := &refReader{sum: nullHash{}}
	for _, p := range pieces {
		_, _ = w.Write([]byte(p)) // never fails
	}
	return w.head
}

type nullHash struct{}

func (nullHash) Write(p []byte) (int, error) { return len(p), nil }
func (nullHash) Sum(b []byte) []byte         { return b }
func (nullHash) Reset()                      {}
func (nullHash) Size() int                   { return 0 }
func (nullHash) BlockSize() int              { return 1 }

// Moved is where a session goes that was redirected, and whether the rules name
// that host in full.
func Moved(allow Allow, base *url.URL, auth, location string) (to *url.URL, byName bool, err error) {
	home := &url.URL{Scheme: base.Scheme, Host: base.Host, Path: "/"}
	s := &session{host: base.Host, home: home, allow: allow.check, auth: auth, at: place{base: base, verdict: named}}
	resp := &http.Response{Header: http.Header{"Location": {location}}, Request: &http.Request{URL: base.JoinPath("info/refs")}}
	err = s.move(resp)
	return s.at.base, s.at.verdict == named, err
}
