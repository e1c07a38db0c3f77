package saver_test

import (
	"bytes"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Our rules are git's: both say the same of the same tree.
func TestIgnoringIsGits(t *testing.T) {
	for _, tt := range []struct{ rules, files string }{
		{"*.o\n!keep.o\n", "a.o keep.o d/x.o d/keep.o"},
		{"/top\nmid/x\n**/any/y\nz/**\na/**/b\n", "top d/top mid/x d/mid/x any/y d/any/y d/e/any/y z/1 d/z/1 a/b a/c/b a/c/d/b"},
		{"dir/\n", "dir d/dir/x e/dir"},
		{"# comment\n\\#hash\n\\!bang\ntrail\\ \nspaces   \n", "#hash !bang trail\u00a0x spaces"},
		{"[a-c]x\n[!a-c]y\n[^d]z\n[]]\n[a\n\\[b\n[[:digit:]]d\n[\\]]e\n[+-9]s\n", "ax dx ay dy az dz ] [a [b 5d ]e x/s"},
		{"a?c\nd*f\n*.*.x\n", "abc ac a/c def d/f deeef a.b.x a.x"},
		{"foo**/bar\na**b\n**\n!keep\n", "foox/y/bar axxb keep other"},
		{"build/*\n!build/keep\n", "build/x build/keep"},
		{"build\n!build/keep\n", "build/x build/keep"},
		{"\ufeffbom\ncr\r\n\r\n", "bom cr"},
		{"\xff*\n?\u00e9\n", "\xffx a\u00e9 \u00e9"},
		{"abc\\\n/\n//\n!\n  \n", "abc abc\\ x"},
		{"x/\n!x/\ny\n!y/\n", "x/1 y/1"},
	} {
		p := newPlace(t)
		p.write(".gitignore", tt.rules)
		for _, name := range strings.Fields(tt.files) {
			p.write(name, "x")
		}
		p.sameAsGit(tt.rules)
	}
}

// The same with rules and trees by chance.
func TestIgnoringIsGitsByChance(t *testing.T) {
	p := newPlace(t)
	r := rand.New(rand.NewPCG(seed(t), 1))
	part := func(of string) string {
		var b strings.Builder
		for range 1 + r.IntN(4) {
			b.WriteByte(of[r.IntN(len(of))])
		}
		return b.String()
	}
	for range 15 {
		for _, top := range []string{"a", "b", "c", ".gitignore"} {
			must(t, os.RemoveAll(filepath.Join(p.clone, top)))
		}
		var all string
		for _, dir := range []string{"", "a/", "a/b/"} {
			var rules string
			for range 1 + r.IntN(5) {
				rules += part("!/ab*?.") + part("ab/*?[]!-c\\") + part("abc/* ") + "\n"
			}
			p.write(dir+".gitignore", rules)
			all += dir + ":\n" + rules
		}
		for range 30 {
			path := filepath.Join(p.clone, "a", part("abc"), part("abc/"), part("abc."))
			if os.MkdirAll(filepath.Dir(path), 0o755) != nil || filepath.Base(path) == ".gitignore" {
				continue // a file has the place of a folder
			}
			if _, err := os.Lstat(path); err != nil {
				must(t, os.WriteFile(path, nil, 0o644))
			}
		}
		p.sameAsGit(all)
		if t.Failed() {
			return
		}
	}
}

func (p *place) sameAsGit(rules string) {
	p.t.Helper()
	cmd := exec.Command("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
	cmd.Dir, cmd.Env = p.clone, environ
	out, err := cmd.Output()
	must(p.t, err)
	want := strings.FieldsFunc(string(out), func(r rune) bool { return r == 0 })
	slices.Sort(want)
	p.once()
	cmd = exec.Command("git", "ls-tree", "-r", "-z", "--name-only", work)
	cmd.Dir = p.server
	out, err = cmd.Output()
	must(p.t, err)
	got := strings.Split(string(bytes.TrimSuffix(out, []byte{0})), "\x00")
	if !slices.Equal(got, want) {
		p.t.Errorf("rules %q: saved %q, want %q", rules, got, want)
	}
}
