package main_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	main "codeberg.org/devaipod/devaipod/cmd/devaipod"
	"codeberg.org/devaipod/devaipod/pods"
	"codeberg.org/devaipod/devaipod/pods/podfile"
	"codeberg.org/devaipod/devaipod/pods/reconcile"
	"codeberg.org/devaipod/devaipod/pods/secret"
	"codeberg.org/devaipod/devaipod/pods/usage"
)

func TestPolicies(t *testing.T) {
	state := t.TempDir()
	run := filepath.Join(state, "run")
	if err := os.Mkdir(run, 0o700); err != nil {
		t.Fatal(err)
	}
	secrets := secret.Store{Dir: filepath.Join(state, "secrets")}
	for _, s := range []struct {
		secret.Secret
		value string
	}{{secret.Secret{Name: "model"}, "the-key"}, {secret.Secret{Name: "own", Host: "own.example.org", Repos: []string{"ada/app"}}, "own-key"}} {
		if err := secrets.Put(s.Secret, s.value); err != nil {
			t.Fatal(err)
		}
	}
	repo, repoErr := `[network]`+"\n"+`allow = ["mirror.example.org", "*.com"]`, error(nil)
	p := main.NewPolicies(t, map[string]any{
		"state_dir": state, "mirror.dir": state, "budget.money": "5", "budget.tokens": "1M", "budget.time": "1h", "network.allow": []string{"preset:go"}, "network.private": []string{"10.1.0.0/16"},
		"model.name": "m", "model.rate": 30, "model.price.input": 2.5,
	}, func(pods.Key) (string, error) { return repo, repoErr }, func(pods.Key) string { return run })
	k := pods.Key{Owner: "ada", Repo: "app", Issue: 3}
	of := func(k pods.Key) string {
		t.Helper()
		got, err := p.Of(k)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("%s %d %s | %q %q %v | %s %d %v | %v", got.Budget.Money, got.Budget.Tokens, got.Budget.Time, got.Network.Allow, got.Network.Private, got.Network.Open, got.Key, got.Rate, got.Prices.Input, got.Inject)
	}
	const rest = ` ["10.1.0.0/16"] false | the-key 30 2.5 | [{own.example.org Authorization Bearer own-key own-key}]`
	// The service has just started, and there is no policy yet.
	if got, want := of(k), `$5.00 1000000 1h0m0s | ["preset:go" "mirror.example.org"]`+rest; got != want {
		t.Errorf("at first %s, want %s", got, want)
	}
	p.Take(k, reconcile.Orders{Budget: []string{"20", "nonsense", "3M tokens"}, Allow: []string{"example.org", "https://x"}})
	want := `$20.00 3000000 1h0m0s | ["preset:go" "mirror.example.org" "example.org"]` + rest
	if got := of(k); got != want {
		t.Errorf("with orders %s, want %s", got, want)
	}
	for _, what := range []string{"nonsense", `"*.com"`, "https://x"} {
		if got := fmt.Sprint(p.Wrong(k)); !strings.Contains(got, what) {
			t.Errorf("%s is not told: %s", what, got)
		}
	}
	// Another repository's agent gets other secrets; what is no file of its own is told.
	other := pods.Key{Owner: "eve", Repo: "app", Issue: 3}
	repo, repoErr = "", errors.New("it is torn")
	p.Take(other, reconcile.Orders{})
	if got, want := of(other), `$5.00 1000000 1h0m0s | ["preset:go"] ["10.1.0.0/16"] false | the-key 30 2.5 | []`; got != want {
		t.Errorf("another %s, want %s", got, want)
	}
	if got := fmt.Sprint(p.Wrong(other)); !strings.Contains(got, "it is torn") {
		t.Error(got)
	}
	// After a restart what held holds, until the issue has been read again.
	if err := podfile.WritePolicy(run, podfile.Policy{Key: "old-key", Network: podfile.Network{Allow: []string{"kept.example.org"}}}); err != nil {
		t.Fatal(err)
	}
	again := p.Restarted()
	if got, err := again.Of(k); err != nil || got.Budget.Tokens != 0 || fmt.Sprint(got.Network.Allow) != "[kept.example.org]" || got.Key != "the-key" {
		t.Errorf("after a restart %+v %v", got, err)
	}
	// A key that was removed is used no more.
	if err := secrets.Remove("model"); err != nil {
		t.Fatal(err)
	}
	if got, err := p.Of(k); err != nil || got.Key != "" {
		t.Errorf("%q %v", got.Key, err)
	}
}

func TestARepositorysOwnFile(t *testing.T) {
	for text, want := range map[string]string{
		"":                                       "[] <nil>",
		"[network]\nallow = [\"a.example.org\"]": "[a.example.org] <nil>",
		"[network]\nopen = true":                 `unknown key "network.open"; the nearest known one is "network.allow"`,
		"[agent]\nimage = \"evil\"":              `unknown key "agent.image"`,
		"[agent]\ncheck = [\"x\"]":               `the nearest known one is "agent.checks"`,
		"agent = 3":                              `unknown key "agent"`,
		"[agent]\nsetup = [\"a\", \"\"]":         `agent.setup: "": want a text`,
		"[agent]\nsetup = [[1]]":                 ".devaipod.toml: ",
		"[agent]\nenvironment = [\"A=B\"]":       `agent.environment: "A=B": want the name of a variable`,
		"[agent]\nsparse = [\"../x\"]":           `agent.sparse: "../x": want a folder of the repository`,
		"[agent]\nsparse = [\"/x\"]":             `agent.sparse: "/x"`,
		"[agent]\nsparse = [\"-x\"]":             `agent.sparse: "-x"`,
		"[agent]\nsparse = [\"a/.git/b\"]":       `agent.sparse: "a/.git/b"`,
		"[agent]\nsparse = [\"!a*\"]":            `agent.sparse: "!a*"`,
		"[agent]\ndevcontainer = \"../../etc\"":  `agent.devcontainer: "../../etc"`,
		"[agent]\nsetup = [\"make\"]\nenvironment = [\"A\"]\nchecks = [\"t\"]\nsparse = [\"a/b/\"]\ndevcontainer = \".devcontainer/go\"": "[] <nil>",
		"[network]\nallow = 5\n[": ".devaipod.toml: ",
		"\x00":                    ".devaipod.toml: ",
	} {
		allow, err := main.ParseRepoConfig([]byte(text))
		if got := fmt.Sprint(allow, " ", err); !strings.Contains(got, want) {
			t.Errorf("%q: %s", text, got)
		}
	}
}

func TestABudgetThatWasGivenSinceTheLastRequest(t *testing.T) {
	now := time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)
	for name, tt := range map[string]struct {
		requests []time.Duration // before now
		order    time.Duration
		want     bool
	}{
		"nothing was asked yet":       {nil, time.Hour, true},
		"after all":                   {[]time.Duration{3 * time.Hour, 2 * time.Hour}, time.Hour, true},
		"before the last":             {[]time.Duration{3 * time.Hour, time.Minute}, time.Hour, false},
		"one while a clock was ahead": {[]time.Duration{3 * time.Hour, -5 * time.Hour}, time.Hour, true},
		"one since it is right again": {[]time.Duration{3 * time.Hour, -5 * time.Hour, time.Minute}, time.Hour, false},
	} {
		var entries []usage.Entry
		for _, ago := range tt.requests {
			entries = append(entries, usage.Entry{At: now.Add(-ago)})
		}
		if got := main.GivenSince(entries, now.Add(-tt.order), now); got != tt.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
