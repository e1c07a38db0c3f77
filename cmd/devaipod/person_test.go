package main_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	main "codeberg.org/devaipod/devaipod/cmd/devaipod"
)

func TestDetachKeysAreHeldBackAndNothingElse(t *testing.T) {
	for _, tt := range []struct {
		keys, in, out string
		detached      bool
	}{
		{"ctrl-p,ctrl-q", "ls\x10\x11never", "ls", true},
		{"ctrl-p,ctrl-q", "\x10\x10\x11", "\x10", true},
		{"ctrl-p,ctrl-q", "a\x10b\x11c", "a\x10b\x11c", false},
		{"ctrl-p,ctrl-q", "end\x10", "end\x10", false},
		{"~,.", "~~a.~.", "~~a.", true},
		{"ctrl-]", "\x1b\x1d", "\x1b", true},
	} {
		for _, r := range []func(string) ([]byte, bool, error){
			func(s string) ([]byte, bool, error) { return main.Detaching(strings.NewReader(s), tt.keys) },
			func(s string) ([]byte, bool, error) {
				return main.Detaching(iotest.OneByteReader(strings.NewReader(s)), tt.keys)
			},
		} {
			if out, detached, err := r(tt.in); err != nil || string(out) != tt.out || detached != tt.detached {
				t.Errorf("%s: %q gives %q, %v, %v", tt.keys, tt.in, out, detached, err)
			}
		}
	}
	for _, bad := range []string{"ctrl-", "ctrl-P", "ab", "a,,b", "ctrl-1"} {
		if _, _, err := main.Detaching(strings.NewReader(""), bad); err == nil {
			t.Errorf("%q was taken for keys", bad)
		}
	}
}

func TestWhatHappenedIsToldOnceAndAfterARestart(t *testing.T) {
	file := filepath.Join(t.TempDir(), "events.jsonl")
	open := func() main.Chronicle {
		t.Helper()
		c, err := main.OpenChronicle(file)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	c := open()
	for _, state := range []string{"queued", "working", "working", "review"} {
		c.Add("agent", "a/b#1", state)
	}
	c.Add("workspace", "a/b@me", "running")
	all, last := c.After(0)
	want := "[a/b#1 >queued a/b#1 queued>working a/b#1 working>review a/b@me >running]"
	if fmt.Sprint(all) != want {
		t.Fatalf("%v, want %s", all, want)
	}

	// Killed while it wrote.
	f, err := os.OpenFile(file, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(`{"id":99,"kin`); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	c = open()
	c.Add("agent", "a/b#1", "review") // as the first pass after the start finds it
	if again, _ := c.After(0); fmt.Sprint(again) != want {
		t.Errorf("after a restart: %v", again)
	}
	c.Add("agent", "a/b#1", "done")
	c = open()
	if more, _ := c.After(last); fmt.Sprint(more) != "[a/b#1 review>done]" {
		t.Errorf("after it: %v", more)
	}
	if info, err := os.Stat(file); err != nil || info.Mode() != 0o600 {
		t.Errorf("%v %v", info.Mode(), err)
	}

	// It is bounded.
	for i := range 3000 {
		c.Add("agent", fmt.Sprintf("a/b#%d", i+2), "working")
	}
	if all, _ := open().After(0); len(all) != 2000 || all[1999] != "a/b#3001 >working" {
		t.Errorf("%d are kept, the last %v", len(all), all[len(all)-1:])
	}
}
