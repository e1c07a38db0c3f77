package cache_test

import (
	"errors"
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
	if _, ok, err := w.cache.File(t.Context(), forgeAddr("app"), "1", "large", 1000); ok || !errors.Is(err, cache.ErrTooLarge) {
		t.Errorf("a large one: %v %v", ok, err)
	}
}
