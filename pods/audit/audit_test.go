package audit_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"unicode"

	"codeberg.org/devaipod/devaipod/pods/audit"
)

// The test's program is also the process that writes and is killed.
func TestMain(m *testing.M) {
	if path := os.Getenv("AUDIT_WRITER"); path != "" {
		l := audit.New(audit.Config{Path: path, MaxSize: 1 << 30})
		for n := 0; os.Getenv("AUDIT_COUNT") == "" || n < 200; n++ {
			if err := l.Add(audit.Entry{Act: "write", Who: os.Getenv("AUDIT_NAME"), Done: fmt.Sprint(n, strings.Repeat(" x", 500)), Result: "done"}); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			if n == 20 {
				fmt.Fprintln(os.Stdout, "at it")
			}
		}
		return
	}
	os.Exit(m.Run())
}

// writer starts a process that adds to a file.
func writer(t *testing.T, path, name, count string) (*exec.Cmd, *bytes.Buffer) {
	t.Helper()
	var said bytes.Buffer
	cmd := exec.Command(os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), "AUDIT_WRITER="+path, "AUDIT_NAME="+name, "AUDIT_COUNT="+count)
	cmd.Stderr = &said
	return cmd, &said
}

func read(t *testing.T, path string) []audit.Entry {
	t.Helper()
	found, err := audit.Read(path)
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestEntriesAreKeptAsTheyWere(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	if found := read(t, path); len(found) != 0 {
		t.Fatalf("a file that is not there has %v", found)
	}
	l := audit.New(audit.Config{Path: path, MaxSize: 1 << 20, Hide: func(s string) string { return strings.ReplaceAll(s, "s3cret", "[secret]") }})
	want := audit.Entry{Act: "start", About: "ada/app#3", Who: "@ada", Rule: "may push", Done: "pod x", Result: "done"}
	for range 2 {
		if err := l.Add(want); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Add(audit.Entry{Act: "push s3cret", About: "s3cret", Who: "s3cret", Rule: "s3cret", Done: "a s3cret b", Result: "s3cret"}); err != nil {
		t.Fatal(err)
	}
	found := read(t, path)
	if len(found) != 3 {
		t.Fatalf("%d entries", len(found))
	}
	got := found[0]
	if got.Time.IsZero() {
		t.Error("it has no time")
	}
	if got.Time = want.Time; got != want {
		t.Errorf("got %+v", got)
	}
	if text, _ := os.ReadFile(path); bytes.Contains(text, []byte("s3cret")) {
		t.Errorf("what is hidden is there: %s", text)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info.Mode(), err)
	}
}

func TestHostileTextsAreBoundedAndPrintable(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	l := audit.New(audit.Config{Path: path, MaxSize: 1 << 20})
	evil := "a\x1b]0;x\x07\x1b[2J\r\n\u202eb\u200bc\x00\xff\u009b\u2028" + strings.Repeat("é", 1<<20)
	if err := l.Add(audit.Entry{Act: evil, About: evil, Who: evil, Rule: evil, Done: evil, Result: evil}); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if len(text) > 32<<10 || bytes.Count(text, []byte("\n")) != 1 {
		t.Errorf("%d bytes, %d lines", len(text), bytes.Count(text, []byte("\n")))
	}
	e := read(t, path)[0]
	for _, s := range []string{e.Act, e.About, e.Who, e.Rule, e.Done, e.Result} {
		for _, r := range s {
			if !unicode.IsPrint(r) {
				t.Errorf("%U is kept", r)
			}
		}
	}
}

// A kill in the middle of a line costs that line alone.
func TestAKillCostsNoLineButTheOne(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	for round := range 3 {
		cmd, said := writer(t, path, fmt.Sprint("round", round), "")
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := out.Read(make([]byte, 6)); err != nil {
			t.Fatal(err, said)
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // it was killed
		n := len(read(t, path))
		if n < 20*(round+1) {
			t.Errorf("%d entries after round %d", n, round)
		}
		// What a kill leaves in the middle of a write.
		f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString(`{"act":"torn","done":"ha`); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		if err := audit.New(audit.Config{Path: path}).Add(audit.Entry{Act: "after", Result: "done"}); err != nil {
			t.Fatal(err)
		}
		found := read(t, path)
		if len(found) != n+1 || found[n].Act != "after" {
			t.Errorf("%d entries after %d and another; the last is %+v", len(found), n, found[len(found)-1])
		}
	}
}

func TestTwoProcessesAddToOneFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	var cmds []*exec.Cmd
	for _, name := range []string{"one", "two"} {
		cmd, said := writer(t, path, name, "200")
		if err := cmd.Start(); err != nil {
			t.Fatal(err, said)
		}
		cmds = append(cmds, cmd)
	}
	for _, cmd := range cmds {
		if err := cmd.Wait(); err != nil {
			t.Fatal(err)
		}
	}
	next := map[string]int{}
	for _, e := range read(t, path) {
		if n, _, _ := strings.Cut(e.Done, " "); n != fmt.Sprint(next[e.Who]) {
			t.Fatalf("%s's number %d is %q", e.Who, next[e.Who], n)
		}
		next[e.Who]++
	}
	if next["one"] != 200 || next["two"] != 200 {
		t.Errorf("%v", next)
	}
}

// Never less than the newest MaxSize bytes are kept, and a reader that follows sees
// all, also what is put aside meanwhile, and what several goroutines write.
func TestWhatIsPutAsideIsNotLost(t *testing.T) {
	const size, all = 20 << 10, 600
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	l := audit.New(audit.Config{Path: path, MaxSize: size})
	r := audit.NewReader(path)
	defer r.Close() //nolint:errcheck // it was read only
	seen := map[string]int{}
	follow := func() {
		found, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range found {
			seen[e.Done]++
		}
	}
	for n := 0; n < all; n += 4 {
		var done sync.WaitGroup
		for i := range 4 {
			done.Add(1)
			go func() {
				defer done.Done()
				if err := l.Add(audit.Entry{Act: "push", Done: fmt.Sprint(n + i), Result: "done"}); err != nil {
					t.Error(err)
				}
			}()
		}
		done.Wait()
		if follow(); n == 100 {
			if _, err := os.Stat(path + ".1"); err == nil {
				t.Fatal("it was put aside early")
			}
		}
	}
	if len(seen) != all {
		t.Errorf("the reader saw %d of %d", len(seen), all)
	}
	for done, n := range seen {
		if n != 1 {
			t.Errorf("it saw %s %d times", done, n)
		}
	}
	kept := int64(0)
	for _, name := range []string{path, path + ".1"} {
		info, err := os.Stat(name)
		if err != nil || info.Size() > size {
			t.Fatalf("%v %v", info, err)
		}
		kept += info.Size()
	}
	if last := read(t, path); kept < size-200 || len(last) < 150 {
		t.Errorf("%d bytes and %d entries are kept", kept, len(last))
	}
}

func TestWhatIsSeenToAgainIsOneAct(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	for range 2 { // another process
		l := audit.New(audit.Config{Path: path, MaxSize: 1 << 20})
		for range 2 {
			for _, comment := range []string{"7", "8"} {
				if err := l.AddOnce(audit.Entry{Act: "order", Done: "comment " + comment, Result: "taken"}); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	if found := read(t, path); len(found) != 2 {
		t.Errorf("%+v", found)
	}
}

// A disk that is full is an error, and what was there stays whole.
func TestAFullDiskIsAnError(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	l := audit.New(audit.Config{Path: path, MaxSize: 1 << 20})
	if err := l.Add(audit.Entry{Act: "first", Result: "done"}); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	// The kernel cuts a write off at this size, as a full disk does.
	small := syscall.Rlimit{Cur: uint64(info.Size()) + 10, Max: syscall.RLIM_INFINITY & (1<<63 - 1)}
	var was syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &was); err != nil {
		t.Fatal(err)
	}
	small.Max = was.Max
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &small); err != nil {
		t.Fatal(err)
	}
	err = l.Add(audit.Entry{Act: "second", Result: "done"})
	if e := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &was); e != nil {
		t.Fatal(e)
	}
	if !errors.Is(err, syscall.EFBIG) || l.Trouble() == "" {
		t.Errorf("%v; %q", err, l.Trouble())
	}
	if err := l.Add(audit.Entry{Act: "third", Result: "done"}); err != nil || l.Trouble() != "" {
		t.Fatal(err, l.Trouble())
	}
	if found := read(t, path); len(found) != 2 || found[0].Act != "first" || found[1].Act != "third" {
		t.Errorf("%+v", found)
	}
	if text, err := os.ReadFile(path); err != nil || bytes.Count(text, []byte("\n")) != 2 {
		t.Errorf("%s %v", text, err)
	}
}

func TestEntriesOfASubject(t *testing.T) {
	for _, tt := range []struct {
		about, subject string
		want           bool
	}{
		{"ada/app#3", "", true}, {"ada/app#3", "ada/app#3", true}, {"ada/app#33", "ada/app#3", false},
		{"ada/app#3", "ada/app", true}, {"ada/app@dev", "ada/app", true}, {"ada/app", "ada/app", true}, {"ada/application#3", "ada/app", false}, {"", "ada/app", false},
	} {
		if got := (audit.Entry{About: tt.about}).Of(tt.subject); got != tt.want {
			t.Errorf("%q of %q: %t", tt.about, tt.subject, got)
		}
	}
}
