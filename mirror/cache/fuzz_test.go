package cache_test

import (
	"bytes"
	"net/url"
	"path/filepath"
	"strings"
	"testing"

	"codeberg.org/devaipod/devaipod/mirror/cache"
)

// What is an address is a plain name, and reads back as itself.
func FuzzParseAddress(f *testing.F) {
	for _, s := range []string{"github.com/git/git", "127.0.0.1:3000/a/b.git", "[::1]:80/a", "localhost/srv/git/x.git", "h/../a", "ext::sh/a", "-h/a", "h/-a", "h/a.git/b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		a, err := cache.ParseAddress(text)
		if err != nil {
			return
		}
		again, err := cache.ParseAddress(a.String())
		if err != nil || again != a {
			t.Errorf("%q is %v, which reads back as %v, %v", text, a, again, err)
		}
		if filepath.Clean("/"+a.Path) != "/"+a.Path || strings.ContainsAny(a.String(), "\\%?#\x00\n\r") || strings.HasPrefix(a.Host, "-") || strings.Contains("/"+a.Path, "/-") {
			t.Errorf("%q is %v", text, a)
		}
		u, err := url.Parse("https://" + a.Host + "/")
		if err != nil || u.Host != a.Host || u.User != nil {
			t.Errorf("%q has the host %q, which a URL takes for %v, %v", text, a.Host, u, err)
		}
	})
}

// A path that is served has an address that is one.
func FuzzParsePath(f *testing.F) {
	for _, s := range []string{"/git/github.com/git/git.git/info/refs", "/git/h/a.git/git-upload-pack", "/git/h/%2e%2e/a.git/x", "/git/h/a%2fb.git/x", "/git/h/a.git/b.git/x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, path string) {
		u, err := url.ParseRequestURI(path)
		if err != nil {
			return
		}
		a, route, err := cache.ParsePath(u)
		if err != nil {
			return
		}
		if _, err := cache.ParseAddress(a.String()); err != nil || !strings.HasPrefix(route, "/") {
			t.Errorf("%q is %v, %q: %v", path, a, route, err)
		}
	})
}

// A notice adds itself at most once and takes nothing away, however the answer
// is cut in pieces.
func FuzzNotice(f *testing.F) {
	f.Add([]byte("0008NAK\n0009\x01PACK0006\x02x0000"), 3)
	f.Add([]byte("0000"), 1)
	f.Add([]byte("00zz"), 2)
	f.Add([]byte("0004000500060006\x02a"), 4)
	f.Fuzz(func(t *testing.T, answer []byte, piece int) {
		if piece < 1 {
			piece = 1
		}
		const text = "a word"
		var out bytes.Buffer
		w := cache.Warning(&out, text)
		for rest := answer; len(rest) > 0; {
			n := min(piece, len(rest))
			if k, err := w.Write(rest[:n]); err != nil || k != n {
				t.Fatal(k, err)
			}
			rest = rest[n:]
		}
		got := bytes.Replace(out.Bytes(), []byte("000c\x02"+text+"\n"), nil, 1)
		if !bytes.HasPrefix(answer, got) || len(answer)-len(got) > 4 {
			t.Errorf("%q became %q", answer, out.Bytes())
		}
	})
}
