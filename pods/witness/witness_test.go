package witness_test

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"codeberg.org/devaipod/devaipod/pods"
	"codeberg.org/devaipod/devaipod/pods/model"
	"codeberg.org/devaipod/devaipod/pods/witness"
)

func open(dir, task string) *witness.Journal {
	return witness.Open(dir, task, slog.New(slog.DiscardHandler))
}

func bash(id, command string) model.Call {
	return model.Call{ID: id, Tool: "bash", Arguments: fmt.Sprintf(`{"command":%q,"description":"x"}`, command)}
}

// told is a request that has the results of calls: pairs of id and text.
func told(pairs ...string) []byte {
	var all []string
	for i := 0; i < len(pairs); i += 2 {
		all = append(all, fmt.Sprintf(`{"role":"tool","tool_call_id":%q,"content":%q}`, pairs[i], pairs[i+1]))
	}
	return []byte(`{"messages":[` + strings.Join(all, ",") + `]}`)
}

// kept is what is kept, in short.
func kept(t *testing.T, dir, task string) string {
	t.Helper()
	all, err := witness.Commands(dir, task)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, c := range all {
		text := c.Command + " -> "
		switch r := c.Result; {
		case r == nil:
			text += "?"
		case r.Exit != nil:
			text += fmt.Sprintf("%d %s", *r.Exit, r.Tail)
		default:
			text += fmt.Sprintf("failed=%t %s", r.Failed, r.Tail)
		}
		out = append(out, text)
	}
	return strings.Join(out, "|")
}

func TestACommandHasTheResultThatALaterRequestTells(t *testing.T) {
	dir := t.TempDir()
	j := open(dir, "one")
	j.Told([]byte(`{"messages":[{"role":"user","content":"do it"}]}`))
	j.Called([]model.Call{bash("a", "go test ./..."), {ID: "r", Tool: "read", Arguments: `{"filePath":"x"}`}, bash("b", "ls")})
	j.Told(told("a", "FAIL\nexit code: 1", "r", "text", "x", "of no call"))
	j.Told(told("a", "what it was is told once", "r", "text", "b", "file"))
	j.Close()
	if got, want := kept(t, dir, "one"), "go test ./... -> 1 FAIL\nexit code: 1|ls -> failed=false file"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	// Another run's are apart; the same goes on after a restart.
	j = open(dir, "two")
	j.Called([]model.Call{bash("a", "make test")})
	j.Close()
	if got := kept(t, dir, "two"); got != "make test -> ?" {
		t.Error(got)
	}
	j = open(dir, "two")
	j.Told(told("a", "ok"))
	j.Close()
	j.Called([]model.Call{bash("late", "x")})
	j.Close()
	if got := kept(t, dir, "two"); got != "make test -> failed=false ok" {
		t.Error(got)
	}
	if err := pods.RemoveRecords(dir); err != nil || kept(t, dir, "") != "" {
		t.Error(err)
	}
}

func TestResultsGoToTheRightCommands(t *testing.T) {
	for name, tt := range map[string]struct {
		do   func(j *witness.Journal)
		want string
	}{
		"told before the answer had ended": {func(j *witness.Journal) {
			j.Told(told("a", "ok"))
			j.Called([]model.Call{bash("a", "x")})
		}, "x -> failed=false ok"},
		"all calls have one name": {func(j *witness.Journal) {
			j.Called([]model.Call{bash("0", "first")})
			j.Told(told("0", "1st"))
			j.Called([]model.Call{bash("0", "second")})
			j.Told(told("0", "1st", "0", "2nd"))
		}, "first -> failed=false 1st|second -> failed=false 2nd"},
		"one that nobody answers": {func(j *witness.Journal) {
			j.Called([]model.Call{bash("a", "x")})
			j.Told(told("b", "y"))
		}, "x -> ?"},
		"as lists of words": {func(j *witness.Journal) {
			j.Called([]model.Call{{ID: "a", Tool: "shell", Arguments: `{"command":["bash","-lc","go test"]}`}, {ID: "b", Tool: "local_shell", Arguments: `{"type":"exec","command":["go","vet","./..."]}`}})
		}, "go test -> ?|go vet ./... -> ?"},
		"what is no command": {func(j *witness.Journal) {
			j.Called([]model.Call{{ID: "a", Tool: "str_replace_based_edit_tool", Arguments: `{"command":"view"}`}, {ID: "b", Tool: "bash", Arguments: `{"restart":true}`}, {ID: "c", Tool: "bash", Arguments: `{"comma`}, {ID: "d", Tool: "bash"}})
		}, ""},
		"bare text": {func(j *witness.Journal) {
			j.Called([]model.Call{{ID: "a", Tool: "developer__shell", Arguments: "ls"}})
		}, "ls -> ?"},
	} {
		dir := t.TempDir()
		j := open(dir, "one")
		tt.do(j)
		j.Close()
		if got := kept(t, dir, "one"); got != tt.want {
			t.Errorf("%s: %s, want %s", name, got, tt.want)
		}
	}
}

func TestWhichCodeAResultTells(t *testing.T) {
	for text, want := range map[string]string{
		"ok":                                    "-",
		"Exit code 1\nFAIL":                     "1",
		"<metadata>\nexit code: 2\n</metadata>": "2",
		`{"output":"x","metadata":{"exit_code":3,"duration_seconds":0.1}}`: "3",
		"Process exited with code 4":                                       "4",
		"Exit Code: -1":                                                    "-1",
		"exit code 99999999999":                                            "-",
		strings.Repeat("x", 300) + "\nexit code 7\n" + strings.Repeat("y", 400): "-",
	} {
		dir := t.TempDir()
		j := open(dir, "")
		j.Called([]model.Call{bash("a", "x")})
		j.Told(told("a", text))
		j.Close()
		all, err := witness.Commands(dir, "")
		if err != nil || len(all) != 1 || all[0].Result == nil {
			t.Fatalf("%q: %+v %v", text, all, err)
		}
		got := "-"
		if e := all[0].Result.Exit; e != nil {
			got = fmt.Sprint(*e)
		}
		if got != want {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
	}
}

func TestWhatIsAHugeOneIsBounded(t *testing.T) {
	dir := t.TempDir()
	j := open(dir, "one")
	var all sync.WaitGroup
	huge := strings.Repeat("é\x1b[2J", 20_000)
	for n := range 8 {
		all.Go(func() {
			for i := range 50 {
				id := fmt.Sprint(n, "-", i)
				j.Called([]model.Call{bash(id, huge[:50_001])})
				j.Told(told(id, huge))
			}
		})
	}
	all.Wait()
	j.Close()
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(files) == 0 || len(files) > 2 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		if info, err := os.Stat(file); err != nil || info.Size() > 5<<20 {
			t.Error(file, info.Size(), err)
		}
	}
	found, err := witness.Commands(dir, "one")
	if err != nil || len(found) == 0 {
		t.Fatal(len(found), err)
	}
	for _, c := range found {
		if len(c.Command) > 1100 || c.Result != nil && len(c.Result.Tail) > 1100 {
			t.Fatalf("%d, %+v", len(c.Command), c.Result)
		}
	}
}

func TestALineThatAKillCutOffHurtsNoOther(t *testing.T) {
	dir := t.TempDir()
	j := open(dir, "one")
	j.Called([]model.Call{bash("a", "x")})
	j.Close()
	f, err := os.OpenFile(filepath.Join(dir, witness.FileName), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString("\n{\"id\":\"a\",\"resu"); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	j = open(dir, "one")
	j.Told(told("a", "ok"))
	j.Close()
	if got := kept(t, dir, "one"); got != "x -> failed=false ok" {
		t.Error(got)
	}
}

func TestWhatIsACheck(t *testing.T) {
	own := []string{"sh check.sh", "make proof"}
	for command, want := range map[string]bool{
		"go test ./...": true,
		"cd sub && CGO_ENABLED=0 go  test -run X":     true,
		"timeout 60 npm test":                         true,
		"npm ci; npm run test -- --watch=false":       true,
		"make -C x; make check":                       true,
		"(cd a && cargo test)":                        true,
		"python -m pytest -q | tail -5":               true,
		"uv run pytest":                               true,
		"sh check.sh":                                 true,
		"cd /workspace/repo && make proof 2>&1":       true,
		"echo go test":                                false,
		"git commit -m 'make test' && true # go test": false,
		"go testing":                                  false,
		"make":                                        false,
		"ls":                                          false,
		"":                                            false,
	} {
		if got := witness.IsCheck(command, own); got != want {
			t.Errorf("%q: %t", command, got)
		}
	}
	if witness.IsCheck("ls", []string{"", " "}) {
		t.Error("an empty check is in everything")
	}
}
