package mirror_test

import (
	"bytes"
	"io"
	"strings"
	"testing"
	"unicode/utf8"

	"codeberg.org/devaipod/devaipod/mirror"
)

// What an agent writes as a push's head is read to its end and no further, and
// what comes of it can be printed.
func FuzzReadCommands(f *testing.F) {
	zeros, ones := strings.Repeat("0", 40), strings.Repeat("1", 40)
	f.Add([]byte("0067" + zeros + " " + ones + " refs/heads/x\x00 report-status0000PACK"))
	f.Add([]byte("0000"))
	f.Add([]byte("0035shallow " + ones + "\n0000"))
	f.Add([]byte("fff0"))
	f.Add([]byte("0004"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		refs, raw, err := mirror.ReadCommands(r)
		if err != nil {
			return
		}
		rest, err := io.ReadAll(r)
		if err != nil || !bytes.Equal(append(raw, rest...), b) {
			t.Errorf("of %q it took %q and left %q", b, raw, rest)
		}
		for _, ref := range refs {
			if !utf8.ValidString(ref) || strings.ContainsAny(ref, "\x00\n\x1b") {
				t.Errorf("a ref called %q", ref)
			}
		}
	})
}
