package main

import (
	"strings"
	"testing"

	"codeberg.org/devaipod/devaipod/pods/reconcile"
)

const someAgents = `
[agent]
image = "everyone's"
%USE%
[model]
name = "big"
[agents.fast]
model = "small"
[agents.other-1]
driver = "opencode"
image = "its own"
command = ["/opt/agent", "--quiet"]
`

func TestWhichAgentAndModel(t *testing.T) {
	for name, tt := range map[string]struct {
		use, label, line, repo string
		want                   string // image and model, or the error
	}{
		"nothing is said":                 {want: "everyone's big"},
		"the label":                       {label: "fast", want: "everyone's small"},
		"the label, of another image":     {label: "other-1", want: "its own big /opt/agent --quiet"},
		"the configuration":               {use: `use = "fast"`, want: "everyone's small"},
		"the label beats it":              {use: `use = "fast"`, label: "other-1", want: "its own big /opt/agent --quiet"},
		"the repository":                  {repo: "[agent]\nuse = \"fast\"", want: "everyone's small"},
		"it beats the configuration":      {use: `use = "fast"`, repo: "[agent]\nuse = \"other-1\"", want: "its own big /opt/agent --quiet"},
		"the repository's model":          {repo: "[agent]\nuse = \"fast\"\nmodel = \"tiny\"", want: "everyone's tiny"},
		"the label beats that":            {label: "fast", repo: "[agent]\nuse = \"other-1\"\nmodel = \"tiny\"", want: "everyone's small"},
		"a line in the issue beats all":   {label: "fast", line: "huge", repo: "[agent]\nmodel = \"tiny\"", want: "everyone's huge"},
		"a repository's that is not here": {repo: "[agent]\nuse = \"none\"", want: `.devaipod.toml: agent.use: there is no agent "none"; known are fast, other-1`},
		"a label's that is not here":      {label: "gone", want: `there is no agent "gone"; known are fast, other-1`},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := load(t, strings.Replace(someAgents, "%USE%", tt.use, 1), nil)
			if err != nil {
				t.Fatal(err)
			}
			own, err := parseRepoConfig([]byte(tt.repo))
			if err != nil {
				t.Fatal(err)
			}
			a, err := c.choose(reconcile.Task{Model: tt.line, Trigger: reconcile.Trigger{Agent: tt.label}}, own)
			got := strings.TrimSpace(a.Image + " " + a.Model + " " + strings.Join(a.Command, " "))
			if err != nil {
				got = err.Error()
			}
			if got != tt.want {
				t.Errorf("%s, want %s", got, tt.want)
			}
		})
	}
}

func TestAModelOfARepositoryIsAName(t *testing.T) {
	if _, err := parseRepoConfig([]byte("[agent]\nmodel = \"a b\\n\"")); err == nil || !strings.Contains(err.Error(), "agent.model") {
		t.Errorf("got %v", err)
	}
}
