package main_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	main "codeberg.org/devaipod/devaipod/cmd/devaipod"
	"codeberg.org/devaipod/devaipod/pods/devcontainer"
)

func TestWhereADevcontainerIsFound(t *testing.T) {
	const main1, root, inGo, inPy, api = ".devcontainer/devcontainer.json", ".devcontainer.json", ".devcontainer/go/devcontainer.json", ".devcontainer/py/devcontainer.json", "services/api/.devcontainer.json"
	chosen := func(what string) string { return "[agent]\ndevcontainer = \"" + what + "\"" }
	for name, tt := range map[string]struct {
		files        []string
		toml         string
		want, folder string
		err          string
	}{
		"none":                       {nil, "", "", "/workspace/repo", ""},
		"the first of the places":    {[]string{main1, root, inGo}, "", main1, "/workspace/repo", ""},
		"the second":                 {[]string{root, inGo}, "", root, "/workspace/repo", ""},
		"the only one below":         {[]string{inGo}, "", inGo, "/workspace/repo", ""},
		"several below":              {[]string{inGo, inPy}, "", "", "", "there are 2 devcontainer.json, such as " + inGo + " and " + inPy + ": name one in .devaipod.toml"},
		"one of several":             {[]string{inGo, inPy}, chosen(".devcontainer/py"), inPy, "/workspace/repo", ""},
		"one by its path":            {[]string{inGo, inPy, main1}, chosen(inPy), inPy, "/workspace/repo", ""},
		"a folder of a monorepo":     {[]string{main1, api}, chosen("services/api"), api, "/workspace/repo/services/api", ""},
		"a folder that has none":     {[]string{main1}, chosen("services/web"), "", "", "there is no services/web/.devcontainer/devcontainer.json nor services/web/.devcontainer.json"},
		"the only one of the folder": {[]string{"a/.devcontainer/x/devcontainer.json"}, chosen("a"), "a/.devcontainer/x/devcontainer.json", "/workspace/repo/a", ""},
	} {
		files := map[string]string{".devaipod.toml": tt.toml}
		for _, f := range tt.files {
			files[f] = fmt.Sprintf(`{"name": %q} // this one`, f)
		}
		got, err := main.ReadRecipe(t.Context(), files)
		if tt.err != "" {
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if err != nil || got.File != tt.want || got.Name != tt.want || got.WorkspaceFolder != tt.folder {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

func TestADevcontainerThatCannotBeReadIsAnError(t *testing.T) {
	for text, want := range map[string]string{
		"{\n\"image\": }":                   ".devcontainer.json: line 2",
		strings.Repeat(" ", 65<<10):         "too large",
		`{"hostRequirements": {"cpus": 0}}`: "hostRequirements.cpus",
	} {
		if _, err := main.ReadRecipe(t.Context(), map[string]string{".devcontainer.json": text}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.30q: %v", text, err)
		}
	}
}

func TestARepositorysRecipe(t *testing.T) {
	files := map[string]string{
		".devaipod.toml":     "[agent]\nsetup = [\"make two\"]\nenvironment = [\"FLAVOUR\", \"PATH_TO\"]\nchecks = [\"make lint\"]\nsparse = [\"a\"]",
		".devcontainer.json": `{"customizations": {"devaipod": {"agent": {"setup": ["make one"], "environment": ["OTHER"], "checks": ["make test"]}}}}`,
	}
	dev, err := main.ReadRecipe(t.Context(), files)
	if err != nil {
		t.Fatal(err)
	}
	if want := []devcontainer.Command{{Shell: "make one"}, {Shell: "make two"}}; !slices.EqualFunc(dev.Agent.Setup, want, func(a, b devcontainer.Command) bool { return a.Shell == b.Shell }) {
		t.Errorf("%+v", dev.Agent.Setup)
	}
	if text := main.ChecksText(dev.Agent.Checks); !strings.Contains(text, "\n    make test\n") || !strings.Contains(text, "\n    make lint\n") {
		t.Errorf("%q", text)
	}
	// A repository gets what it names and the configuration has, and no more.
	got, missing := main.RecipeOf(t.Context(), t, map[string]any{"state_dir": "/s", "mirror.dir": "/m", "agent.environment": []string{"FLAVOUR=a=b", "SECOND=x", "PATH=/evil"}, "workspace.dotfiles": "https://git.example.org/ann/dotfiles"}, files)
	if fmt.Sprint(got.Env) != "map[FLAVOUR:a=b]" || fmt.Sprint(got.Sparse) != "[a]" || fmt.Sprint(missing) != "[OTHER PATH_TO]" || got.Dotfiles.URL != "https://git.example.org/ann/dotfiles" || got.Within.Minutes() != 30 {
		t.Errorf("%+v, %q", got, missing)
	}
}

func TestWhatDoesNotHoldIsToldInOneSentence(t *testing.T) {
	dev := devcontainer.Config{File: ".devcontainer.json"}
	if got := main.DevcontainerNote(dev); got != "" {
		t.Errorf("%q", got)
	}
	for i := range 20 {
		dev.Unsupported = append(dev.Unsupported, fmt.Sprintf("x%d: no", i))
	}
	if got := main.DevcontainerNote(dev); !strings.HasPrefix(got, "Of .devcontainer.json these do not hold in a pod: x0: no; x1: no;") || !strings.HasSuffix(got, "x11: no; and 8 more.") {
		t.Errorf("%q", got)
	}
}
