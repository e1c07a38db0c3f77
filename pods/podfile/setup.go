package podfile

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"codeberg.org/devaipod/devaipod/pods/devcontainer"
)

// EnvSetup is the variable of agent and workspace containers that has their
// [Setup] as JSON; without one the shim only clones.
const EnvSetup = "DEVAIPOD_SETUP"

// MaxSetup bounds its text: the kernel takes no longer variable (execve(2)).
const MaxSetup = 120 << 10 // bytes

// SetupPath is where the gate takes the shim's [SetupState] from. It comes out of a
// hostile container: it is shown, and nothing depends on it.
const SetupPath = "/setup"

// MaxSetupState bounds what is said there, in bytes.
const MaxSetupState = 8 << 10

// A Setup is what the shim does in the clone before the agent starts, or while
// people may enter already. It comes from the service, never from the tree.
type Setup struct {
	// Stages run one after the other; one that fails ends it. Those that run once
	// ([Once]) are marked in the clone when they have ended well.
	Stages []devcontainer.Stage `json:"stages,omitempty"`
	// Attach is run by devaipod-pod exec for who enters.
	Attach []devcontainer.Command `json:"attach,omitempty"`
	// WaitFor is the stage that who enters waits for.
	WaitFor string `json:"wait_for,omitempty"`
	// Env and Unset are for the commands, the agent, and what people start. The
	// values are expanded there ([devcontainer.Expand]).
	Env   map[string]string `json:"env,omitempty"`
	Unset []string          `json:"unset,omitempty"`
	// Dir is where commands run, if it is there; else it is the clone.
	Dir string `json:"dir,omitempty"`
	// Within is how long each command may take.
	Within time.Duration `json:"within,omitempty"`
	// Required: without it the agent does not start.
	Required bool `json:"required,omitempty"`
	// Sparse are the folders that the clone is checked out of, none for all.
	Sparse []string `json:"sparse,omitempty"`
	// Dotfiles are a person's own.
	Dotfiles *Dotfiles `json:"dotfiles,omitempty"`
}

// Dotfiles are a repository for a home, and the script in it that installs them,
// "" for the usual ones.
type Dotfiles struct {
	URL    string `json:"url"`
	Script string `json:"script,omitempty"`
}

// A SetupState is where a shim is.
type SetupState struct {
	Stage string `json:"stage,omitempty"` // that runs, or that failed
	Error string `json:"error,omitempty"`
	Ended bool   `json:"ended,omitempty"` // no stage runs any more
}

// Awaited is what `devaipod-pod await` says, in a line of JSON for each stage that it
// waits for and one when it is over. It comes out of the container: it is shown.
type Awaited struct {
	Stage string `json:"stage,omitempty"` // that runs, or that failed
	Error string `json:"error,omitempty"`
	Said  string `json:"said,omitempty"`  // the last lines of the command that failed
	Over  bool   `json:"over,omitempty"`  // nothing is waited for any more
	Short bool   `json:"short,omitempty"` // not all that was waited for ended well
}

// Once tells whether a stage runs once for a clone, and not at each start.
func Once(stage string) bool { return stage != devcontainer.PostStart }

// Text is s as a variable has it, "" when there is nothing to do.
func (s Setup) Text() (string, error) {
	if len(s.Stages)+len(s.Attach)+len(s.Env)+len(s.Unset)+len(s.Sparse) == 0 && s.Dotfiles == nil && s.Dir == "" {
		return "", nil
	}
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(s); err != nil {
		return "", err
	}
	if b.Len() > MaxSetup {
		return "", fmt.Errorf("the lifecycle commands and variables are %d bytes long together; want at most %d", b.Len(), MaxSetup)
	}
	return strings.TrimSuffix(b.String(), "\n"), nil
}

// ParseSetup reads the variable's text; "" is no setup.
func ParseSetup(text string) (Setup, error) {
	var s Setup
	if text == "" {
		return s, nil
	}
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		return s, fmt.Errorf("reading %s: %w", EnvSetup, err)
	}
	return s, nil
}
