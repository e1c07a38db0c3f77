package main

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"codeberg.org/devaipod/devaipod/forge"
	"codeberg.org/devaipod/devaipod/pods/podfile"
	"codeberg.org/devaipod/devaipod/pods/reconcile"
)

// An agentConfig is an [agents.NAME] of the configuration. What is empty is as in
// [agent] and [model].
type agentConfig struct {
	Name    string   `mapstructure:"-"` // "" for the one without
	Driver  string   `mapstructure:"driver"`
	Image   string   `mapstructure:"image"`
	Model   string   `mapstructure:"model"`
	Command []string `mapstructure:"command"`
	// Ask has people asked for what the agent wants to be allowed.
	Ask bool `mapstructure:"ask"`
}

var agentFields = []string{"driver", "image", "model", "command", "ask"}

var drivers = []string{podfile.DriverOpencode, podfile.DriverACP, podfile.DriverCommand}

// other tells whether it is not spoken to as opencode is.
func (a agentConfig) other() bool { return a.Driver != "" && a.Driver != podfile.DriverOpencode }

var (
	agentName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,30}$`)
	modelName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._:/@-]{0,99}$`)
)

// agentNames are those of the agents that have a name.
func (c config) agentNames() []string { return slices.Sorted(maps.Keys(c.Agents)) }

// labels are all that a repository gets.
func (c config) labels() []forge.Label { return forge.DefaultLabels(c.Label, c.agentNames()...) }

// agentNamed is an agent by its name, with what it takes from [agent] and [model];
// "" is the one without a name.
func (c config) agentNamed(name string) (agentConfig, error) {
	got, known := c.Agents[name]
	if !known && name != "" {
		return got, fmt.Errorf("there is no agent %q; %s", name, c.knownAgents())
	}
	got.Name = name
	if got.Image == "" {
		got.Image = c.Agent.Image
	}
	if got.Model == "" {
		got.Model = c.Model.Name
	}
	return got, nil
}

func (c config) knownAgents() string {
	if len(c.Agents) == 0 {
		return "none has a name ([agents.NAME] in the service's configuration)"
	}
	return "known are " + strings.Join(c.agentNames(), ", ")
}

// knownAgentKey tells whether a key is agents.NAME.FIELD; near is the one that was
// meant.
func knownAgentKey(key string) (ok bool, near string) {
	rest, is := strings.CutPrefix(key, "agents.")
	name, field, _ := strings.Cut(rest, ".")
	if !is {
		return false, ""
	}
	return slices.Contains(agentFields, field), "agents." + name + "." + nearest(field, agentFields)
}

func (c config) validateAgents() error {
	for _, name := range c.agentNames() {
		a := c.Agents[name]
		switch {
		case !agentName.MatchString(name):
			return fmt.Errorf("agents.%s: want a name of up to 31 small letters, digits and dashes", name)
		case a.Driver != "" && !slices.Contains(drivers, a.Driver):
			return fmt.Errorf("agents.%s.driver = %q: want opencode (its HTTP API), acp (the Agent Client Protocol on standard streams) or command (a program that ends)", name, a.Driver)
		case a.other() && len(a.Command) == 0:
			return fmt.Errorf("agents.%s.command: the driver %s wants the program and its arguments, like [\"goose\", \"acp\"]", name, a.Driver)
		case a.Ask && a.Driver != podfile.DriverACP:
			return fmt.Errorf("agents.%s.ask: only the driver acp asks for permissions by itself; opencode's own configuration says what it asks for", name)
		case a.Model != "" && !modelName.MatchString(a.Model):
			return fmt.Errorf("agents.%s.model = %q: want the model's name as its provider writes it", name, a.Model)
		case len(a.Command) > 0 && a.Command[0] == "":
			return fmt.Errorf("agents.%s.command: want a program and its arguments", name)
		}
	}
	if _, err := c.agentNamed(c.Agent.Use); err != nil {
		return fmt.Errorf("agent.use: %w", err)
	}
	return nil
}

// choose chooses the agent of a task and its model: what the label or the issue
// names, before what the repository's file does, before the configuration.
func (c config) choose(t reconcile.Task, own repoConfig) (agentConfig, error) {
	name, model := t.Trigger.Agent, t.Model
	if name == "" {
		if name = own.Agent.Use; name == "" {
			name = c.Agent.Use
		} else if _, err := c.agentNamed(name); err != nil {
			return agentConfig{}, fmt.Errorf("%s: agent.use: %w", repoConfigFile, err)
		}
		if model == "" {
			model = own.Agent.Model
		}
	}
	got, err := c.agentNamed(name)
	if model != "" {
		got.Model = model
	}
	if err == nil && got.Model == "" {
		err = errors.New("no model is configured: set model.name (docs/devaipod.toml)")
	}
	return got, err
}
