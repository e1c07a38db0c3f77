package main_test

import (
	"archive/tar"
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	main "codeberg.org/devaipod/devaipod/cmd/devaipod"
)

// entry is one of a tar's; its text is a file's content or a link's target.
type entry struct {
	kind       byte
	name, text string
	mode       int64
}

func tarOf(t *testing.T, entries ...entry) *bytes.Buffer {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := &tar.Header{Typeflag: e.kind, Name: e.name, Mode: e.mode}
		if h.Mode == 0 {
			h.Mode = 0o755
		}
		if e.kind == tar.TypeReg {
			h.Size = int64(len(e.text))
		} else {
			h.Linkname = e.text
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if e.kind == tar.TypeReg {
			if _, err := w.Write([]byte(e.text)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &b
}

// tree lists what is below a directory, with contents and targets.
func tree(t *testing.T, dir string) string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		line := rel
		switch {
		case d.Type()&fs.ModeSymlink != 0:
			to, err := os.Readlink(path)
			if err != nil {
				return err
			}
			line += " -> " + to
		case d.IsDir():
			line += "/"
		default:
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			line += "=" + string(text)
		}
		out = append(out, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

func TestWhatComesOutOfAPodStaysInItsPlace(t *testing.T) {
	const file, dir, link, hard = tar.TypeReg, tar.TypeDir, tar.TypeSymlink, tar.TypeLink
	for name, tt := range map[string]struct {
		entries []entry
		name    string // "." for the directory itself
		want    string // of what is in the target
		left    int
		fails   bool
	}{
		"a directory, under another name": {entries: []entry{{kind: dir, name: "a/"}, {kind: dir, name: "a/b"}, {kind: file, name: "a/b/c", text: "1"}, {kind: link, name: "a/l", text: "b/c"}, {kind: hard, name: "a/h", text: "a/b/c"}},
			name: "x", want: "x/ x/b/ x/b/c=1 x/h=1 x/l -> b/c"},
		"what a directory holds": {entries: []entry{{kind: dir, name: "a"}, {kind: file, name: "a/f", text: "1"}, {kind: link, name: "a/l", text: "f"}}, name: ".", want: "f=1 l -> f"},
		"one file":               {entries: []entry{{kind: file, name: "f", text: "1"}}, name: "g", want: "g=1"},
		"names that lead out": {entries: []entry{{kind: dir, name: "a"}, {kind: file, name: "../evil", text: "1"}, {kind: file, name: "a/../../evil", text: "1"}, {kind: file, name: "a/b/../../../../evil", text: "1"}},
			name: "x", want: "x/", left: 3},
		"an absolute name is one below": {entries: []entry{{kind: dir, name: "/a"}, {kind: file, name: "/a/f", text: "1"}}, name: "x", want: "x/ x/f=1"},
		"symlinks that lead out": {entries: []entry{{kind: dir, name: "a"}, {kind: link, name: "a/abs", text: "/etc/passwd"}, {kind: link, name: "a/up", text: "../../x"}, {kind: link, name: "a/beside", text: "../other"}},
			name: "x", want: "x/", left: 3},
		"a file through a symlink": {entries: []entry{{kind: dir, name: "a"}, {kind: dir, name: "a/d"}, {kind: link, name: "a/l", text: "d"}, {kind: file, name: "a/l/f", text: "1"}},
			name: "x", want: "x/ x/d/ x/l -> d", left: 1},
		"a symlink by way of another": {entries: []entry{{kind: dir, name: "a"}, {kind: link, name: "a/self", text: "."}, {kind: link, name: "a/out", text: "self/.."}, {kind: link, name: "a/out2", text: "self/../self"}},
			name: "x", want: "x/ x/self -> .", left: 2},
		"a symlink below a symlink that goes up": {entries: []entry{{kind: dir, name: "a"}, {kind: dir, name: "a/b"}, {kind: link, name: "a/b/p", text: ".."}, {kind: link, name: "a/b/p/q", text: "../.."}},
			name: "x", want: "x/ x/b/ x/b/p -> ..", left: 1},
		"a file in a symlink's place": {entries: []entry{{kind: dir, name: "a"}, {kind: file, name: "a/f", text: "1"}, {kind: link, name: "a/l", text: "f"}, {kind: file, name: "a/l", text: "2"}},
			name: "x", want: "x/ x/f=1 x/l=2"},
		"a directory in a symlink's place": {entries: []entry{{kind: dir, name: "a"}, {kind: dir, name: "a/d"}, {kind: link, name: "a/l", text: "d"}, {kind: dir, name: "a/l"}, {kind: file, name: "a/l/f", text: "1"}},
			name: "x", want: "x/ x/d/ x/l -> d", left: 1},
		"hard links to what is not there": {entries: []entry{{kind: dir, name: "a"}, {kind: hard, name: "a/h", text: "/etc/passwd"}, {kind: hard, name: "a/h2", text: "../../../etc/passwd"}, {kind: hard, name: "a/h3", text: "a/none"}},
			name: "x", want: "x/", left: 3},
		"devices and pipes":       {entries: []entry{{kind: dir, name: "a"}, {kind: tar.TypeFifo, name: "a/p"}, {kind: tar.TypeChar, name: "a/c"}, {kind: tar.TypeBlock, name: "a/b"}}, name: "x", want: "x/", left: 3},
		"a file over a directory": {entries: []entry{{kind: dir, name: "a"}, {kind: dir, name: "a/d"}, {kind: file, name: "a/d", text: "1"}}, name: "x", want: "x/ x/d/", fails: true},
	} {
		t.Run(name, func(t *testing.T) {
			top := t.TempDir()
			in := filepath.Join(top, "in")
			if err := os.Mkdir(in, 0o755); err != nil {
				t.Fatal(err)
			}
			left, err := main.Unpack(tarOf(t, tt.entries...), in, tt.name)
			if (err != nil) != tt.fails {
				t.Fatal(err)
			}
			if got := tree(t, in); got != tt.want {
				t.Errorf("there is\n%s\nwant\n%s", got, tt.want)
			}
			if left != tt.left {
				t.Errorf("%d left out, want %d", left, tt.left)
			}
			if beside, err := os.ReadDir(top); err != nil || len(beside) != 1 {
				t.Errorf("beside it: %v, %v", beside, err)
			}
		})
	}
}

// The person's own symlinks are theirs: nothing is written through them.
func TestCopyingDoesNotFollowSymlinksThatAreThere(t *testing.T) {
	top := t.TempDir()
	in, out := filepath.Join(top, "in"), filepath.Join(top, "out")
	for _, err := range []error{os.MkdirAll(filepath.Join(in, "a"), 0o755), os.Mkdir(out, 0o755), os.WriteFile(filepath.Join(out, "f"), []byte("mine"), 0o600), os.Symlink(out, filepath.Join(in, "a", "l")), os.Symlink(filepath.Join(out, "f"), filepath.Join(in, "a", "f"))} {
		if err != nil {
			t.Fatal(err)
		}
	}
	left, err := main.Unpack(tarOf(t, entry{kind: tar.TypeDir, name: "a"}, entry{kind: tar.TypeReg, name: "a/f", text: "theirs"}, entry{kind: tar.TypeReg, name: "a/l/f", text: "theirs"}), in, "a")
	if err != nil || left != 1 {
		t.Errorf("%d left out, %v", left, err)
	}
	if got, want := tree(t, top), "in/ in/a/ in/a/f=theirs in/a/l -> "+out+" out/ out/f=mine"; got != want {
		t.Errorf("there is\n%s\nwant\n%s", got, want)
	}
}

func TestFilesThatComeOutHaveNoBitsThatHarm(t *testing.T) {
	in := t.TempDir()
	if _, err := main.Unpack(tarOf(t, entry{kind: tar.TypeReg, name: "f", text: "1", mode: 0o6777}), in, "f"); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(filepath.Join(in, "f"))
	if err != nil || info.Mode() != 0o755 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}

func FuzzUnpack(f *testing.F) {
	f.Add("a/b", "../x", byte('2'), "a/b/c", "t", byte('0'))
	f.Add("a/p", "..", byte('2'), "a/p/../../q", "/etc/passwd", byte('2'))
	f.Add("a", ".", byte('2'), "a/..", "x", byte('5'))
	f.Add("a/l", "self/../..", byte('2'), "a/l", "x", byte('1'))
	f.Fuzz(func(t *testing.T, n1, t1 string, k1 byte, n2, t2 string, k2 byte) {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, h := range []*tar.Header{{Typeflag: tar.TypeDir, Name: "a/", Mode: 0o755}, {Typeflag: k1, Name: n1, Linkname: t1, Mode: 0o777}, {Typeflag: k2, Name: n2, Linkname: t2, Mode: 0o777}} {
			if w.WriteHeader(h) != nil {
				return // no archive
			}
		}
		if w.Close() != nil {
			return
		}
		top := t.TempDir()
		in := filepath.Join(top, "deep", "in")
		if err := os.MkdirAll(in, 0o755); err != nil {
			t.Fatal(err)
		}
		_, _ = main.Unpack(&b, in, "a") // what is wrong with it is not the point
		for _, dir := range []string{top, filepath.Dir(in)} {
			if beside, err := os.ReadDir(dir); err != nil || len(beside) != 1 {
				t.Fatalf("beside it: %v, %v", beside, err)
			}
		}
		err := filepath.WalkDir(in, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.Type()&fs.ModeSymlink == 0 {
				return err
			}
			if real, err := filepath.EvalSymlinks(path); err == nil && real != in && !strings.HasPrefix(real, in+"/") {
				t.Errorf("%s leads to %s", path, real)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}

func TestNamesOfThingsInPods(t *testing.T) {
	for arg, want := range map[string][2]string{
		"ada/app@main:a:b":                      {"ada/app@main", "a:b"},
		"ada/app#3:/x":                          {"ada/app#3", "/x"},
		"main:":                                 {"main", ""},
		"http://127.0.0.1:3000/a/b/issues/3:/x": {"http://127.0.0.1:3000/a/b/issues/3", "/x"},
	} {
		if pod, in, ok := main.PodPath(arg); !ok || pod != want[0] || in != want[1] {
			t.Errorf("%s: %q %q %v", arg, pod, in, ok)
		}
	}
	for _, arg := range []string{"-", "./a:b", "/a:b", "../a:b", "plain"} {
		if pod, in, ok := main.PodPath(arg); ok {
			t.Errorf("%s: %q %q", arg, pod, in)
		}
	}
}
