package main_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	main "codeberg.org/devaipod/devaipod/cmd/devaipod"
	"codeberg.org/devaipod/devaipod/pods"
)

// stateWith is a state directory with the specifications of pods.
func stateWith(t *testing.T, keys ...pods.Key) string {
	t.Helper()
	state := filepath.Join(t.TempDir(), "it's 100% mine")
	for i, k := range keys {
		dir := filepath.Join(state, "p", fmt.Sprint(i))
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		text, err := json.Marshal(pods.Spec{Key: k})
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "spec.json"), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return state
}

func TestAPodIsFoundByItsNameBySSH(t *testing.T) {
	state := stateWith(t,
		pods.Key{Owner: "Ada", Repo: "App", Issue: 3}, pods.Key{Owner: "bob", Repo: "app", Issue: 3}, pods.Key{Owner: "ada", Repo: "my.site", Issue: 3},
		pods.Key{Owner: "ada", Repo: "app", Issue: 4}, pods.Key{Owner: "ada", Repo: "app", Name: "main"})
	for host, want := range map[string]string{
		"issue-3.app.ada.devaipod": "Ada/App#3", "ISSUE-3.App.ADA.Devaipod": "Ada/App#3", "issue-3.my.site.devaipod": "ada/my.site#3",
		"issue-4.devaipod": "ada/app#4", "issue-4.devaipod.": "ada/app#4", "main.devaipod": "ada/app@main", "main.app.ada.devaipod": "ada/app@main",
	} {
		if got, err := main.PodByHost(state, host); err != nil || got != want {
			t.Errorf("%s is %s, %v, want %s", host, got, err, want)
		}
	}
	for host, want := range map[string]string{
		"issue-3.devaipod":     "issue-3.devaipod may be any of issue-3.app.ada.devaipod, issue-3.app.bob.devaipod, issue-3.my.site.ada.devaipod",
		"issue-3.app.devaipod": "issue-3.app.ada.devaipod, issue-3.app.bob.devaipod",
		"issue-9.devaipod":     "there is no pod issue-9.devaipod: devaipod list",
		"issue-4.example.org":  "end in .devaipod",
		"issue-4":              "end in .devaipod",
		".devaipod":            "there is no pod",
	} {
		if got, err := main.PodByHost(state, host); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s is %s, %v, want %q", host, got, err, want)
		}
	}
	if pods.ValidName("issue-3") || !pods.ValidName("issue-x") {
		t.Error("a workspace may be called like an issue")
	}
}

// What ssh itself makes of the configuration, with a path that has all that is special.
func TestTheSSHConfigurationMeansWhatItShould(t *testing.T) {
	state := stateWith(t, pods.Key{Owner: "ada", Repo: "app", Issue: 4})
	config, known, err := main.SSHConfig(state)
	if err != nil {
		t.Fatal(err)
	}
	if _, again, err := main.SSHConfig(state); err != nil || again != known {
		t.Errorf("the known hosts change: %v", err)
	}
	if !strings.Contains(config, "\nHost issue-4.app.ada.devaipod\n") || strings.Count(known, "\n") != 2 || !strings.Contains(known, "@cert-authority *.devaipod ssh-ed25519 ") {
		t.Errorf("%s%s", config, known)
	}
	ask := func(host string) (string, error) {
		out, err := exec.CommandContext(t.Context(), "ssh", "-G", "-F", state+"/ssh/config", "--", host).CombinedOutput()
		return string(out), err
	}
	got, err := ask("issue-9.devaipod")
	if err != nil {
		t.Fatalf("%v (the project's .ci/install installs ssh)\n%s", err, got)
	}
	for _, want := range []string{
		"--instance 'devaipod' --state-dir '" + strings.ReplaceAll(strings.ReplaceAll(state, "'", `'\''`), "%", "%%") + "' ssh-proxy '%n'\n",
		"\nidentityfile " + strings.ReplaceAll(state, "%", "%%") + "/ssh/id_ed25519\n", "\nuserknownhostsfile " + state + "/ssh/known_hosts\n", "\nstricthostkeychecking true\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	// Names with which a repository's submodule, say, would have a shell run something.
	for _, host := range []string{"a'`touch x`'.devaipod", "';touch x;'.devaipod"} {
		// Newer clients refuse the name themselves.
		if got, err := ask(host); strings.Contains(got, "proxycommand") || err != nil && !strings.Contains(got, "invalid characters") {
			t.Errorf("%s: %v\n%s", host, err, got)
		}
	}
	for _, name := range []string{"authority", "id_ed25519", "config"} {
		if info, err := os.Stat(state + "/ssh/" + name); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
}

func TestKeysOfTheForgeAreKeysAlone(t *testing.T) {
	key := "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ+2fPz2mM1pG1DdHhKzQK6ZyOtu0Z0cJ3Zk0eQ9uUwV"
	lines := []string{
		`environment="LD_PRELOAD=/x" ` + key + " ann", "cert-authority " + key, key + " ann\n" + key + " eve", "no key", key,
	}
	got := main.PlainKeys(lines, "ann")
	if len(got) != 4 {
		t.Fatalf("%q", got)
	}
	for _, line := range got {
		if line != key+" ann (forge)" {
			t.Errorf("%q", line)
		}
	}
}
