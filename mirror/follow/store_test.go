package follow_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"codeberg.org/devaipod/devaipod/mirror/follow"
)

func TestRecords(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "follow")
	s, err := follow.OpenStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	for id, name := range map[int64]string{1: "b/x", 2: "a/y", 3: "c/z"} {
		if err := s.Put(follow.Record{ID: id, Repo: name, Tags: map[string]string{"v1": "c0ffee"}}); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"", "1.json"} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
	if err := s.Remove(3); err != nil {
		t.Error(err)
	}
	if err := s.Remove(3); err != nil {
		t.Error("removed twice:", err)
	}
	// One that can't be read does not hide the others.
	for name, text := range map[string]string{"4.json": "{", "5.json": `{"id": 1}`, "notes.json": "{"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	all, err := s.List()
	if len(all) != 2 || all[0].Repo != "a/y" || all[1].Repo != "b/x" || all[1].Tags["v1"] != "c0ffee" {
		t.Errorf("listed: %+v", all)
	}
	if err == nil || !strings.Contains(err.Error(), "4.json is damaged") || !strings.Contains(err.Error(), "5.json tells of repository 1") {
		t.Errorf("said: %v", err)
	}
}
