package usage_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/pods/usage"
)

func open(t *testing.T, dir string) *usage.Journal {
	t.Helper()
	j, err := usage.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = j.Close() })
	return j
}

func entry(input, output int64) usage.Entry {
	tokens := usage.Tokens{Input: input, Output: output}
	return usage.Entry{At: time.Unix(1, 0).UTC(), Model: "m", Tokens: tokens, Cost: usage.Prices{Input: 1, Output: 10}.Of(tokens), Time: time.Second}
}

func reserve(t *testing.T, j *usage.Journal, b usage.Budget, e usage.Entry) int64 {
	t.Helper()
	n, why, err := j.Reserve(b, e)
	if err != nil || why != "" {
		t.Fatal(why, err)
	}
	return n
}

func TestAJournalIsTrueAfterAKill(t *testing.T) {
	dir := t.TempDir()
	j := open(t, dir)
	settled, lost := reserve(t, j, usage.Budget{}, entry(1000, 100)), reserve(t, j, usage.Budget{}, entry(500, 50))
	if err := j.Settle(settled, entry(900, 10)); err != nil {
		t.Fatal(err)
	}
	if used, under := j.Totals(); used.Tokens != (usage.Tokens{Input: 900, Output: 10}) || under.Tokens != (usage.Tokens{Input: 500, Output: 50}) {
		t.Errorf("used %+v, under way %+v", used, under)
	}
	// Nobody closes it: the process is gone.
	again := open(t, dir)
	used, under := again.Totals()
	if want := (usage.Tokens{Input: 1400, Output: 60}); used.Tokens != want || used.Requests != 2 || under != (usage.Totals{}) {
		t.Errorf("used %+v, under way %+v, want %+v", used, under, want)
	}
	if err := again.Settle(lost, entry(1, 1)); err == nil {
		t.Error("another process's request is settled")
	}
	if n := reserve(t, again, usage.Budget{}, entry(1, 1)); n != 3 {
		t.Errorf("the next request is %d", n)
	}
}

func TestAJournalCutOffAnywhere(t *testing.T) {
	dir := t.TempDir()
	j := open(t, dir)
	for range 3 {
		if err := j.Settle(reserve(t, j, usage.Budget{}, entry(100, 10)), entry(50, 5)); err != nil {
			t.Fatal(err)
		}
	}
	whole, err := os.ReadFile(filepath.Join(dir, usage.FileName))
	if err != nil {
		t.Fatal(err)
	}
	for n := range len(whole) {
		torn := t.TempDir()
		if err := os.WriteFile(filepath.Join(torn, usage.FileName), whole[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		// What was reserved on the disk counts, in full until it is settled there.
		lines := int64(bytes.Count(whole[:n], []byte("\n")))
		want := lines/2*50 + lines%2*100
		j, err := usage.Open(torn)
		if err != nil {
			t.Fatalf("cut at %d: %v", n, err)
		}
		if used, _ := j.Totals(); used.Tokens.Input != want {
			t.Errorf("cut at %d: %d used, want %d", n, used.Tokens.Input, want)
		}
		reserve(t, j, usage.Budget{}, entry(1, 1))
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
		if entries, err := usage.Read(torn); err != nil || usage.Sum(entries).Tokens.Input != want+1 {
			t.Errorf("cut at %d and gone on: %+v %v", n, entries, err)
		}
	}
}

func TestADamagedJournalIsNotOpened(t *testing.T) {
	for name, text := range map[string]string{
		"no JSON":             "what\n",
		"half a line inside":  `{"n":1,"inp` + "\n" + `{"n":2,"input":1}` + "\n",
		"zeros":               "\x00\x00\x00\n",
		"an unknown field":    `{"n":1,"imput":5}` + "\n",
		"no number":           `{"input":5}` + "\n",
		"less than nothing":   `{"n":1,"input":-5}` + "\n",
		"a line without end":  strings.Repeat("x", 1<<20) + "\n",
		"more than a number":  `{"n":1,"input":99999999999999999999}` + "\n",
		"money below nothing": `{"n":1,"cost":-1}` + "\n",
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, usage.FileName), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := usage.Open(dir); !errors.Is(err, usage.ErrDamaged) || !strings.Contains(err.Error(), "line 1") {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := usage.Read(dir); !errors.Is(err, usage.ErrDamaged) {
			t.Errorf("%s is read: %v", name, err)
		}
	}
}

// A full disk refuses requests, and what had been written of a line does not
// spoil the journal for later.
func TestAFullDisk(t *testing.T) {
	j := open(t, t.TempDir())
	n := reserve(t, j, usage.Budget{}, entry(100, 10))
	usage.Limit(t, j, 20)
	if _, _, err := j.Reserve(usage.Budget{}, entry(1, 1)); err == nil {
		t.Error("a request is let through unwritten")
	}
	if err := j.Settle(n, entry(50, 5)); err == nil {
		t.Error("it is not said that the account could not be kept")
	}
	if used, under := j.Totals(); used.Tokens.Input != 100 || under != (usage.Totals{}) {
		t.Errorf("used %+v, under way %+v: it must stay as it was reserved", used, under)
	}
	usage.Limit(t, j, 0)
	reserve(t, j, usage.Budget{}, entry(7, 1))
	if entries, err := usage.Read(usage.Dir(j)); err != nil || usage.Sum(entries).Tokens.Input != 107 {
		t.Errorf("%+v %v", entries, err)
	}
}

func TestBudgets(t *testing.T) {
	for name, tt := range map[string]struct {
		budget usage.Budget
		why    string // of the second request; the first is settled with 900 and 10
	}{
		"none":                {usage.Budget{}, ""},
		"money":               {usage.Budget{Money: 1_500_000}, "may cost"},
		"money that suffices": {usage.Budget{Money: 3_000_000}, ""},
		"money is spent":      {usage.Budget{Money: 1_000_000}, "of $0.0010 is spent"},
		"tokens":              {usage.Budget{Tokens: 2000}, "910 of 2000 tokens are used, and this request may use 1100"},
		"tokens that suffice": {usage.Budget{Tokens: 2010}, ""},
		"time":                {usage.Budget{Time: time.Second}, "the model has worked for 1s of 1s"},
		"time that suffices":  {usage.Budget{Time: 2 * time.Second}, ""},
	} {
		j := open(t, t.TempDir())
		n := reserve(t, j, usage.Budget{}, entry(1000, 100))
		if err := j.Settle(n, entry(900, 10)); err != nil {
			t.Fatal(err)
		}
		if _, why, err := j.Reserve(tt.budget, entry(1000, 100)); err != nil || !strings.Contains(why, tt.why) || (why == "") != (tt.why == "") {
			t.Errorf("%s: %q %v", name, why, err)
		}
	}
}

// Requests side by side can't pass a budget together.
func TestABudgetHoldsForRequestsSideBySide(t *testing.T) {
	j := open(t, t.TempDir())
	var wg sync.WaitGroup
	let := make(chan int64, 100)
	for range 100 {
		wg.Go(func() {
			n, why, err := j.Reserve(usage.Budget{Tokens: 1050}, entry(90, 10))
			if err != nil {
				t.Error(err)
			} else if why == "" {
				let <- n
			}
		})
	}
	wg.Wait()
	if len(let) != 10 {
		t.Errorf("%d requests of 100 tokens have room in 1050", len(let))
	}
}

func TestAmounts(t *testing.T) {
	for text, want := range map[string]usage.Budget{
		"5":             {Money: 5_000_000_000, Tokens: 1},
		"$0.25":         {Money: 250_000_000, Tokens: 1},
		"200k tokens":   {Tokens: 200_000},
		"2M tokens":     {Tokens: 2_000_000},
		" 1500 TOKENS ": {Tokens: 1500},
		"90m":           {Time: 90 * time.Minute, Tokens: 1},
	} {
		if got, err := (usage.Budget{Tokens: 1}).ParseAmount(text); err != nil || got != want {
			t.Errorf("%q is %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "0", "-5", "five", "NaN", "1e400", "tokens", "-1 tokens", "0 tokens", "-2h", "1e30 tokens", "Inf"} {
		if got, err := (usage.Budget{Tokens: 1}).ParseAmount(text); err == nil || got != (usage.Budget{Tokens: 1}) {
			t.Errorf("%q is taken for %+v", text, got)
		}
	}
}

func TestMoneyInWords(t *testing.T) {
	for m, want := range map[usage.Money]string{0: "$0.00", 4_200_000: "$0.0042", 12_300_000_000: "$12.30", 10_000_000: "$0.01"} {
		if m.String() != want {
			t.Errorf("%d is %s, want %s", m, m, want)
		}
	}
}

func FuzzJournal(f *testing.F) {
	f.Add([]byte(`{"n":1,"input":5}` + "\n" + `{"n":1,"settle":true,"input":3}` + "\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, usage.FileName), text, 0o600); err != nil {
			t.Fatal(err)
		}
		j, err := usage.Open(dir)
		if err != nil {
			return
		}
		defer j.Close() //nolint:errcheck // only read
		before, _ := j.Totals()
		entries, err := usage.Read(dir)
		if err != nil || usage.Sum(entries) != before {
			t.Errorf("written %+v, read %+v %v", before, usage.Sum(entries), err)
		}
	})
}
