package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

// --json holds any rune there is, and shows a terminal none that steers it or hides.
func TestJSONOnATerminal(t *testing.T) {
	texts := map[string]any{"evil": evil, "key " + evil: "x", "raw": json.RawMessage("{ \"a\":\n\"\u202e\u009b\"}")}
	for r := range rune(utf8.MaxRune + 1) { // all that could do something, and some of the others
		if utf8.ValidRune(r) && (r < 0x3000 || unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp) || r%101 == 0) {
			texts[string(r)] = "<" + string(r) + ">"
		}
	}
	var out bytes.Buffer
	if err := (&app{out: &out}).printJSON(texts); err != nil {
		t.Fatal(err)
	}
	line, rest, _ := bytes.Cut(out.Bytes(), []byte("\n"))
	if len(rest) > 0 {
		t.Errorf("it is more than a line: %.100q", rest)
	}
	for _, r := range string(line) {
		if unicode.Is(unicode.Cc, r) || unicode.Is(unicode.Cf, r) {
			t.Errorf("%U gets to the terminal", r)
		}
	}
	var got map[string]any
	if err := json.Unmarshal(line, &got); err != nil {
		t.Fatal(err)
	}
	texts["raw"] = map[string]any{"a": "\u202e\u009b"}
	if len(got) != len(texts) {
		t.Errorf("%d texts of %d", len(got), len(texts))
	}
	for k, want := range texts {
		if s, ok := want.(string); ok && got[k] != s {
			t.Errorf("%q is %q, want %q", k, got[k], s)
		}
	}
}

// No command prints JSON in another way.
func TestAllJSONIsPrintedInOnePlace(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil || len(files) < 50 {
		t.Fatal(len(files), err)
	}
	calls := 0
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasSuffix(file, "_test.go") {
			calls += strings.Count(string(text), "a.printJSON(")
			if strings.Contains(string(text), "json.NewEncoder(a.out)") {
				t.Errorf("%s prints JSON past printJSON", file)
			}
		}
	}
	if calls < 20 {
		t.Errorf("only %d commands print JSON", calls)
	}
}
