package mirror_test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"codeberg.org/devaipod/devaipod/mirror"
)

// packOf is a real pack, with deltas of both kinds when it is thin.
func packOf(t testing.TB, args ...string) []byte {
	t.Helper()
	return packOfSize(t, 200<<10, args...)
}

func packOfSize(t testing.TB, size int, args ...string) []byte {
	t.Helper()
	dir := t.TempDir()
	git := func(stdin string, args ...string) []byte {
		cmd := exec.Command("git", append([]string{"-c", "user.name=T", "-c", "user.email=t@example.org"}, args...)...)
		cmd.Dir, cmd.Stdin = dir, strings.NewReader(stdin)
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("git %s: %v", args, err)
		}
		return out
	}
	git("", "init", "-q")
	text := strings.Repeat("a line of it\n", 1000)
	noise := make([]byte, size)
	if _, err := rand.Read(noise); err != nil {
		t.Fatal(err)
	}
	for i, content := range []string{text, text + "more\n", "begin\n" + text, ""} {
		for name, b := range map[string][]byte{"text": []byte(content), "noise": noise[:len(noise)-i]} {
			if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		git("", "add", ".")
		git("", "commit", "-qm", "one more")
	}
	git("", "tag", "-am", "a tag", "v1")
	revs := "HEAD\nv1\n"
	if args != nil {
		revs = "HEAD\n^HEAD~2\n"
	}
	return git(revs, append([]string{"pack-objects", "--revs", "--stdout", "-q"}, args...)...)
}

var wide = mirror.Limits{Push: 1 << 30, Unpacked: 1 << 30, File: 1 << 30, Objects: 1 << 20}

func TestAPackIsPassedOnButForItsTrailer(t *testing.T) {
	for name, pack := range map[string][]byte{"whole": packOf(t), "thin": packOf(t, "--thin"), "with offsets": packOf(t, "--thin", "--delta-base-offset")} {
		for how, wrap := range map[string]func(io.Reader) io.Reader{"at once": func(r io.Reader) io.Reader { return r }, "byte by byte": iotest.OneByteReader, "with its end": iotest.DataErrReader} {
			var got bytes.Buffer
			trailer, err := mirror.ReadPack(wrap(bytes.NewReader(pack)), 20, wide, func(p []byte) error { got.Write(p); return nil })
			if err != nil {
				t.Fatalf("%s, %s: %v", name, how, err)
			}
			if end := len(pack) - 20; !bytes.Equal(got.Bytes(), pack[:end]) || !bytes.Equal(trailer, pack[end:]) {
				t.Errorf("%s, %s: %d of %d bytes were passed on, and a trailer of %d", name, how, got.Len(), len(pack), len(trailer))
			}
		}
	}
}

// What is no pack, or more than one, never has its last bytes passed on: they
// are what makes a pack whole for who gets it.
func TestADamagedPack(t *testing.T) {
	pack := packOf(t, "--thin")
	for name, bad := range map[string][]byte{
		"nothing":          nil,
		"a head alone":     pack[:12],
		"cut off":          pack[:len(pack)/2],
		"without trailer":  pack[:len(pack)-20],
		"half a trailer":   pack[:len(pack)-10],
		"more at its end":  append(bytes.Clone(pack), 'x'),
		"twice":            append(bytes.Clone(pack), pack...),
		"a trailer's bulk": append(bytes.Clone(pack), make([]byte, 100<<10)...),
		"another kind":     append([]byte("PACC"), pack[4:]...),
		"version nine":     append([]byte("PACK\x00\x00\x00\x09"), pack[8:]...),
	} {
		passed := 0
		_, err := mirror.ReadPack(bytes.NewReader(bad), 20, wide, func(p []byte) error { passed += len(p); return nil })
		if err == nil || passed > len(pack)-20 {
			t.Errorf("%s: %d bytes of %d are passed on, %v", name, passed, len(pack), err)
		}
	}
}

func TestLimitsOfAPack(t *testing.T) {
	pack := packOf(t)
	for name, change := range map[string]func(l *mirror.Limits){
		"its size":    func(l *mirror.Limits) { l.Push = 100 << 10 },
		"a file":      func(l *mirror.Limits) { l.File = 100 << 10 },
		"all of it":   func(l *mirror.Limits) { l.Unpacked = 100 << 10 },
		"its objects": func(l *mirror.Limits) { l.Objects = 3 },
	} {
		limits := wide
		change(&limits)
		_, err := mirror.ReadPack(bytes.NewReader(pack), 20, limits, func([]byte) error { return nil })
		if limit := new(mirror.LimitError); !errors.As(err, &limit) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A delta says in its head how large it makes a file.
	limits := wide
	limits.File = 10 << 10
	_, err := mirror.ReadPack(bytes.NewReader(packOf(t, "--thin")), 20, limits, func([]byte) error { return nil })
	if limit := new(mirror.LimitError); !errors.As(err, &limit) {
		t.Errorf("a delta that makes a large file: %v", err)
	}
}

func TestAnErrorOnThePacksWay(t *testing.T) {
	want := errors.New("full")
	if _, err := mirror.ReadPack(bytes.NewReader(packOf(t)), 20, wide, func([]byte) error { return want }); !errors.Is(err, want) {
		t.Error(err)
	}
}

// Whatever is sent, no more of it is passed on than was read, in order, and a
// pack that is taken is what git takes for one.
func FuzzPack(f *testing.F) {
	f.Add(packOfSize(f, 50))
	f.Add(packOfSize(f, 50, "--thin"))
	f.Add(packOfSize(f, 50, "--thin", "--delta-base-offset"))
	f.Add([]byte("PACK\x00\x00\x00\x02\x00\x00\x00\x00"))
	small := mirror.Limits{Push: 1 << 20, Unpacked: 1 << 20, File: 1 << 19, Objects: 100}
	f.Fuzz(func(t *testing.T, b []byte) {
		var got bytes.Buffer
		trailer, err := mirror.ReadPack(bytes.NewReader(b), 20, small, func(p []byte) error { got.Write(p); return nil })
		if !bytes.HasPrefix(b, got.Bytes()) {
			t.Fatalf("%q is passed on of %q", got.Bytes(), b)
		}
		if err == nil && !bytes.Equal(append(got.Bytes(), trailer...), b) {
			t.Errorf("%q is taken, and something else passed on", b)
		}
	})
}
