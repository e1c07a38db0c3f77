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

// Where an upstream's HEAD points is found however its list is cut in pieces, and
// is nothing that it does not say.
func FuzzHead(f *testing.F) {
	f.Add("ref: refs/heads/main\tHEAD\n1234\tHEAD\n", 7)
	f.Add("1234\tHEAD\nref: refs/heads/x\tHEAD\n", 1)
	f.Add("ref: -x\tHEAD", 100)
	f.Fuzz(func(t *testing.T, list string, piece int) {
		piece = max(piece, 1)
		var pieces []string
		for rest := list; rest != ""; {
			n := min(piece, len(rest))
			pieces, rest = append(pieces, rest[:n]), rest[n:]
		}
		got := cache.Head(pieces...)
		if strings.Contains(got, "\n") || got != "" && !strings.Contains(list, "ref: "+got+"\tHEAD") {
			t.Errorf("%q has the head %q", list, got)
		}
		if len(list) < 4096 && got != cache.Head(list) {
			t.Errorf("%q has the head %q in pieces of %d, and %q whole", list, got, piece, cache.Head(list))
		}
	})
}

// A redirect leads nowhere but where the rules allow, as safely as before, and
// takes credentials to no other host.
func FuzzRedirect(f *testing.F) {
	allow, err := cache.ParseAllow([]string{"up.example", "*.other.example/open/*"})
	if err != nil {
		f.Fatal(err)
	}
	for _, to := range []string{
		"https://up.example/b.git/info/refs", "/b/info/refs?service=git-upload-pack", "http://up.example/b.git/info/refs", "https://x.other.example/open/b/info/refs",
		"https://up.example:443/b/info/refs", "https://a@up.example/b/info/refs", "//127.0.0.1/b/info/refs", "https://up.example/../b/info/refs", "file:///etc/info/refs",
	} {
		f.Add(to, true)
		f.Add(to, false)
	}
	f.Fuzz(func(t *testing.T, location string, withAuth bool) {
		auth := ""
		if withAuth {
			auth = "Basic x"
		}
		base := &url.URL{Scheme: "https", Host: "up.example", Path: "/a.git"}
		to, byName, err := cache.Moved(allow, base, auth, location)
		if err != nil {
			if to != base {
				t.Errorf("%q is refused, and leads to %s", location, to)
			}
			return
		}
		host := strings.TrimSuffix(strings.ToLower(to.Host), ":443")
		elsewhere := strings.HasSuffix(host, ".other.example") && strings.HasPrefix(to.Path, "/open/") && !byName
		if to.Scheme != "https" || to.User != nil || host != "up.example" && !elsewhere || elsewhere && withAuth {
			t.Errorf("%q leads to %s (%v)", location, to, byName)
		}
	})
}
