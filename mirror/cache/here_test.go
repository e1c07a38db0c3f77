package cache_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"codeberg.org/devaipod/devaipod/mirror/cache"
)

func TestAFileOfTheDefaultBranch(t *testing.T) {
	w := newWorld(t)
	w.open(w.lends)
	work := w.up.numbered(t, "app", "1")
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(work, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("rules", "one\x00two\n")
	write("large", strings.Repeat("x", 1001))
	if err := os.Symlink("rules", filepath.Join(work, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(work, "dir"), 0o700); err != nil {
		t.Fatal(err)
	}
	write("dir/rules", "below")
	for _, name := range []string{"a", "b", "c"} {
		if err := os.Mkdir(filepath.Join(work, "dir", name), 0o700); err != nil {
			t.Fatal(err)
		}
		write("dir/"+name+"/x", "")
	}
	commit(t, work, "rules")
	git(t, work, "push", "-q", "origin", "main")
	git(t, work, "checkout", "-q", "-b", "agent/1-x")
	write("rules", "an agent's")
	commit(t, work, "an agent's")
	git(t, work, "push", "-q", "origin", "agent/1-x")

	if _, ok, err := w.cache.File(t.Context(), forgeAddr("app"), "1", "rules", 1000); ok || err != nil {
		t.Errorf("a repository that is not here has a file: %v %v", ok, err)
	}
	if _, err := w.cache.Here(t.Context(), forgeAddr("app")); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct{ identity, path, want string }{
		"a file":              {"1", "rules", "one\x00two\n"},
		"one of a directory":  {"1", "dir/rules", "below"},
		"none":                {"1", "nothing", "-"},
		"a link":              {"1", "link", "-"},
		"a directory":         {"1", "dir", "-"},
		"a pattern":           {"1", "*", "-"},
		"a path that climbs":  {"1", "../rules", "-"},
		"another of its name": {"2", "rules", "-"},
	} {
		text, ok, err := w.cache.File(t.Context(), forgeAddr("app"), tt.identity, tt.path, 1000)
		got := string(text)
		if !ok {
			got = "-"
		}
		if err != nil || got != tt.want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	for _, tt := range []struct{ identity, path, want string }{
		{"1", "dir", "[a b c]"}, {"1", "dir/", "[a b c]"}, {"1", "dir/a", "[]"}, {"1", "nothing", "[]"}, {"1", "rules", "[]"}, {"2", "dir", "[]"},
	} {
		names, err := w.cache.Folders(t.Context(), forgeAddr("app"), tt.identity, tt.path, 1000)
		if err != nil || fmt.Sprint(names) != tt.want {
			t.Errorf("folders of %q: %q, %v", tt.path, names, err)
		}
	}
	if _, err := w.cache.Folders(t.Context(), forgeAddr("app"), "1", "dir", 5); !errors.Is(err, cache.ErrTooLarge) {
		t.Errorf("many folders: %v", err)
	}
	if _, ok, err := w.cache.File(t.Context(), forgeAddr("app"), "1", "large", 1000); ok || !errors.Is(err, cache.ErrTooLarge) {
		t.Errorf("a large one: %v %v", ok, err)
	}
}

func TestTheFilesOfAFolderAsAnArchive(t *testing.T) {
	w := newWorld(t)
	w.open(w.lends)
	work := w.up.numbered(t, "app", "1")
	if err := os.Mkdir(filepath.Join(work, "dev"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(work, "dev/Containerfile"), []byte("FROM x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	commit(t, work, "dev")
	git(t, work, "push", "-q", "origin", "main")
	if _, ok, err := w.cache.Tree(t.Context(), forgeAddr("app"), "1", "dev"); ok || err != nil {
		t.Errorf("a repository that is not here has a folder: %v %v", ok, err)
	}
	if _, err := w.cache.Here(t.Context(), forgeAddr("app")); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		identity, folder string
		want             bool
	}{
		"a folder":            {"1", "dev", true},
		"all of it":           {"1", ".", true},
		"none":                {"1", "nothing", false},
		"a file":              {"1", "dev/Containerfile", false},
		"a path that climbs":  {"1", "../dev", false},
		"an option":           {"1", "--all", false},
		"another of its name": {"2", "dev", false},
	} {
		if id, ok, err := w.cache.Tree(t.Context(), forgeAddr("app"), tt.identity, tt.folder); ok != tt.want || err != nil || tt.want && len(id) != 40 {
			t.Errorf("%s: %q %v %v", name, id, ok, err)
		}
	}
	id, _, err := w.cache.Tree(t.Context(), forgeAddr("app"), "1", "dev")
	if want := strings.TrimSpace(git(t, work, "rev-parse", "HEAD:dev")); err != nil || id != want {
		t.Errorf("the folder is %s, want %s (%v)", id, want, err)
	}
	var archive bytes.Buffer
	if err := w.cache.Archive(t.Context(), forgeAddr("app"), "1", id, &archive); err != nil {
		t.Fatal(err)
	}
	var names []string
	for r := tar.NewReader(&archive); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, h.Name)
	}
	if strings.Join(names, " ") != "Containerfile" {
		t.Errorf("it has %q", names)
	}
	if err := w.cache.Archive(t.Context(), forgeAddr("app"), "2", id, &archive); err == nil {
		t.Error("another repository's files were read")
	}
}
