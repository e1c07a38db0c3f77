package egress_test

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/iotest"

	"codeberg.org/devaipod/devaipod/pods/egress"
)

// clientHello is what crypto/tls sends first.
func clientHello(t testing.TB, cfg *tls.Config) []byte {
	t.Helper()
	ours, theirs := net.Pipe()
	defer theirs.Close()
	go func() {
		_ = tls.Client(ours, cfg).Handshake() // nobody answers
		ours.Close()
	}()
	var head [5]byte
	if _, err := io.ReadFull(theirs, head[:]); err != nil {
		t.Fatal(err)
	}
	body := make([]byte, binary.BigEndian.Uint16(head[3:]))
	if _, err := io.ReadFull(theirs, body); err != nil {
		t.Fatal(err)
	}
	return append(head[:], body...)
}

// records cuts a ClientHello into records of n bytes.
func records(one []byte, n int) (all []byte) {
	for body := one[5:]; len(body) > 0; {
		piece := body[:min(n, len(body))]
		body = body[len(piece):]
		all = append(all, one[0], one[1], one[2], byte(len(piece)>>8), byte(len(piece)))
		all = append(all, piece...)
	}
	return all
}

// ext is one extension of a hand-made ClientHello.
type ext struct {
	kind uint16
	body []byte
}

func vec(size int, b []byte) []byte {
	var n [4]byte
	binary.BigEndian.PutUint32(n[:], uint32(len(b)))
	return append(bytes.Clone(n[4-size:]), b...)
}

func sni(names ...string) ext {
	var list []byte
	for _, name := range names {
		list = append(list, 0)
		list = append(list, vec(2, []byte(name))...)
	}
	return ext{0, vec(2, list)}
}

// handmade is a ClientHello with these extensions.
func handmade(exts ...ext) []byte {
	b := append([]byte{3, 3}, make([]byte, 32)...)
	b = append(b, vec(1, nil)...)
	b = append(b, vec(2, []byte{0x13, 1})...)
	b = append(b, vec(1, []byte{0})...)
	if exts != nil {
		var all []byte
		for _, e := range exts {
			all = append(all, byte(e.kind>>8), byte(e.kind))
			all = append(all, vec(2, e.body)...)
		}
		b = append(b, vec(2, all)...)
	}
	return record(append([]byte{1}, vec(3, b)...))
}

func record(b []byte) []byte { return append([]byte{22, 3, 1}, vec(2, b)...) }

func TestAClientHelloIsRead(t *testing.T) {
	for name, cfg := range map[string]*tls.Config{
		"TLS 1.3":              {ServerName: "a.example.com"},
		"TLS 1.2":              {ServerName: "a.example.com", MaxVersion: tls.VersionTLS12},
		"without post-quantum": {ServerName: "a.example.com", CurvePreferences: []tls.CurveID{tls.X25519}, NextProtos: []string{"h2", "http/1.1"}},
	} {
		whole := clientHello(t, cfg)
		for how, r := range map[string]io.Reader{
			"at once":          bytes.NewReader(whole),
			"byte by byte":     iotest.OneByteReader(bytes.NewReader(whole)),
			"in small records": bytes.NewReader(records(whole, 7)),
			"with more behind": bytes.NewReader(append(bytes.Clone(whole), 20, 3, 3, 0, 1, 1)),
		} {
			raw, host, ech, err := egress.ReadHello(r)
			want := whole
			if strings.Contains(how, "records") {
				want = records(whole, 7)
			}
			if err != nil || host != "a.example.com" || ech || !bytes.Equal(raw, want) {
				t.Errorf("%s %s: %d bytes of %d, name %q, ech %v, %v", name, how, len(raw), len(want), host, ech, err)
			}
		}
		for n := range len(whole) {
			if _, _, _, err := egress.ReadHello(bytes.NewReader(whole[:n])); err == nil {
				t.Fatalf("%s: %d bytes of %d are whole", name, n, len(whole))
			}
		}
	}
	for how, b := range map[string][]byte{"no extensions": handmade(), "an empty list of them": handmade([]ext{}...), "others": handmade(ext{16, vec(2, vec(1, []byte("h2")))})} {
		if _, host, _, err := egress.ReadHello(bytes.NewReader(b)); err != nil || host != "" {
			t.Errorf("%s: name %q, %v", how, host, err)
		}
	}
	if _, host, ech, err := egress.ReadHello(bytes.NewReader(handmade(sni("a.example"), ext{0xfe0d, []byte{0}}))); err != nil || host != "a.example" || !ech {
		t.Errorf("ECH: %q, %v, %v", host, ech, err)
	}
}

func TestWhatIsNoClientHelloIsRefused(t *testing.T) {
	good := handmade(sni("a.example"))
	change := func(at int, b byte) []byte {
		c := bytes.Clone(good)
		c[at] = b
		return c
	}
	huge := record(append([]byte{1}, append([]byte{0xff, 0xff, 0xff}, make([]byte, 1000)...)...))
	flood := bytes.Repeat(record([]byte{1}), 20000)
	for name, b := range map[string][]byte{
		"two names":               handmade(sni("a.example", "b.example")),
		"no name in the list":     handmade(sni()),
		"an empty name":           handmade(sni("")),
		"a name of another kind":  handmade(ext{0, vec(2, append([]byte{1}, vec(2, []byte("a.example"))...))}),
		"an empty extension":      handmade(ext{0, nil}),
		"the extension twice":     handmade(sni("a.example"), sni("b.example")),
		"ECH twice":               handmade(sni("a.example"), ext{0xfe0d, nil}, ext{0xfe0d, nil}),
		"bytes after the list":    handmade(ext{0, append(sni("a.example").body, 0)}),
		"another version":         change(1, 2),
		"another message":         change(5, 2),
		"TLS 4":                   change(9, 4),
		"a length that is less":   change(8, good[8]-1),
		"a session that is long":  change(43, 200),
		"a record of no bytes":    append([]byte{22, 3, 1, 0, 0}, good...),
		"a record that is large":  {22, 3, 1, 0x40, 1},
		"a message that is large": huge,
		"many small records":      flood,
		"another message behind":  record(append(bytes.Clone(good[5:]), 1, 0, 0, 0)),
		"an alert in the middle":  append(records(good, 10)[:15], 21, 3, 1, 0, 2, 2, 0),
		"bytes after extensions":  record(append([]byte{1}, vec(3, append(bytes.Clone(good[9:]), 0))...)),
	} {
		if _, host, _, err := egress.ReadHello(bytes.NewReader(b)); !errors.Is(err, egress.ErrHello) {
			t.Errorf("%s: name %q, %v", name, host, err)
		}
	}
	for _, s := range []string{"GET / HTTP/1.1\r\n", "SSH-2.0-x\r\n", "\x80\x2e\x01\x03\x01", "\x15\x03\x01"} {
		if _, _, _, err := egress.ReadHello(strings.NewReader(s)); !errors.Is(err, egress.ErrNotTLS) {
			t.Errorf("%q: %v", s, err)
		}
	}
}

// What we read of a ClientHello is what crypto/tls reads, however it comes.
func FuzzClientHello(f *testing.F) {
	f.Add(clientHello(f, &tls.Config{ServerName: "a.example.com"}))
	f.Add(records(clientHello(f, &tls.Config{ServerName: "a.example.com"}), 7))
	f.Add(handmade(sni("a.example"), ext{0xfe0d, nil}))
	f.Add(handmade())
	f.Add([]byte("GET / HTTP/1.1\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		raw, name, ech, err := egress.ReadHello(bytes.NewReader(b))
		if err != nil {
			return
		}
		if !bytes.HasPrefix(b, raw) {
			t.Fatal("what was read is not what came")
		}
		again, name2, ech2, err := egress.ReadHello(iotest.OneByteReader(bytes.NewReader(raw)))
		if err != nil || name2 != name || ech2 != ech || !bytes.Equal(again, raw) {
			t.Fatalf("byte by byte it is another: %q %q, %v", name, name2, err)
		}
		if saw, ok := serverSees(raw); ok && saw != name {
			t.Errorf("a server sees the name %q, we see %q", saw, name)
		}
	})
}

// serverSees is the name that crypto/tls takes out of a ClientHello, if it takes it.
func serverSees(raw []byte) (name string, ok bool) {
	seen := errors.New("seen")
	conn := &readOnly{Reader: bytes.NewReader(raw)}
	err := tls.Server(conn, &tls.Config{GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		name = h.ServerName
		return nil, seen
	}}).Handshake()
	return name, errors.Is(err, seen)
}

type readOnly struct {
	net.Conn
	io.Reader
}

func (r *readOnly) Read(b []byte) (int, error)  { return r.Reader.Read(b) }
func (r *readOnly) Write(b []byte) (int, error) { return len(b), nil }
func (r *readOnly) Close() error                { return nil }
