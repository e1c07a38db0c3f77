package mirror_test

import (
	"bytes"
	"fmt"
	"io"
	"slices"
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

// Whatever a commit's message says and whatever comes before it in a file, a secret
// is found, in its file and line.
func FuzzPatch(f *testing.F) {
	f.Add("work", "a\nb")
	f.Add("work\n\ndiff --git a/x b/x\n+++ b/go.sum\n@@ -0,0 +1,99999 @@\n+x", "++ b/go.sum\n@@ -0,0 +1,9 @@")
	f.Add("", "\\ No newline at end of file\n-x\n x")
	f.Add("\r\x01", "\x01deadbeef")
	f.Fuzz(func(t *testing.T, message, before string) {
		message, _, _ = strings.Cut(message, "\x00") // git ends a message there
		if strings.Contains("\n"+before, "\n\x00") || len(before)+len(message) > 1<<16 {
			return // git calls such a file binary
		}
		const hash = "0123456789abcdef0123456789abcdef01234567"
		lines := append(strings.Split(before, "\n"), "ghp_"+"012345678901234567890123456789abcdEF")
		text := "\x00" + hash + "\n" + message + "\n\n\x00\n\ndiff --git a/a b/a\nnew file mode 100644\nindex 0000000..587be6b\n--- /dev/null\n+++ b/a\n"
		text += fmt.Sprintf("@@ -0,0 +1,%d @@\n+%s\n", len(lines), strings.Join(lines, "\n+"))
		found, err := mirror.SecretsInPatch(text)
		if err != nil {
			t.Fatal(err)
		}
		if want := fmt.Sprintf("a:%d", len(lines)); !slices.Contains(found, want) {
			t.Errorf("found are %q, want %s", found, want)
		}
	})
}

// Whatever another path is called, a protected one is found.
func FuzzChanges(f *testing.F) {
	f.Add("README")
	f.Add("\n:000000 100644 0 1 A")
	f.Add("\x01deadbeef 1")
	f.Fuzz(func(t *testing.T, path string) {
		if path == "" || strings.Contains(path, "\x00") {
			return // no path in git
		}
		const hash = "0123456789abcdef0123456789abcdef01234567"
		change := "\n:000000 100644 " + strings.Repeat("0", 40) + " " + hash + " A\x00"
		text := "\x01" + hash + " " + hash + "\x00" + change + path + "\x00" + change[1:] + "CODEOWNERS\x00" + "\x01" + hash + "\x00" + change + path + "\x00"
		found, err := mirror.ProtectedInChanges(text, []string{"CODEOWNERS", ".devcontainer/"})
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Contains(found, "CODEOWNERS") {
			t.Errorf("found are %q", found)
		}
	})
}

// What the forge answers is read to its end or refused.
func FuzzReport(f *testing.F) {
	f.Add([]byte("000eunpack ok\n0019ok refs/heads/main\n0000"))
	f.Add([]byte("0030\x01000eunpack ok\n0019ok refs/heads/main\n00000000"))
	f.Add([]byte("0004"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if ok, err := mirror.ReadReport(raw); err != nil && len(ok) > 0 {
			t.Errorf("%q is damaged, and yet %v is taken", raw, ok)
		}
	})
}
