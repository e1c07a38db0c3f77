package testkit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// References of the two images that are built locally.
const (
	ForgeImage = "localhost/devaipod/forge:latest"
	AgentImage = "localhost/devaipod/agent:latest"
)

// A StackConfig says what a stack is made of.
type StackConfig struct {
	Instance string // 1 to 16 small letters and digits
	Root     string // the checkout: where compose/images/build is
	Bin      string // the directory of devaipod and devaipod-pod

	ForgeListen   string // loopback address and port
	ServiceListen string

	ModelAPI  string // "openai" or "anthropic"
	ModelURL  string
	ModelName string
	ModelKey  string // name of the secret, "" for none

	Resync string // as in service.resync
	Memory string // as in agent.memory
	Nested string // a repository in agent.nested, "" for none
	Person string // the person's account on the forge
	Agents string // more of the configuration: tables of agents
	CI     string // the same: the table of CI
}

// A Stack is devaipod in a world of its own.
type Stack struct {
	StackConfig
	World      *World
	ConfigFile string
	StateDir   string
}

// NewStack writes the configuration; nothing is started.
func NewStack(w *World, c StackConfig) (*Stack, error) {
	s := &Stack{StackConfig: c, World: w, ConfigFile: w.path("devaipod.toml"), StateDir: w.path("s")}
	nested := ""
	if c.Nested != "" {
		nested = strconv.Quote(c.Nested)
	}
	text := fmt.Sprintf(`instance = %q
state_dir = %q

[service]
listen = %q
resync = %q

[forge]
image = %q
listen = %q

[mirror]
allow_upstream = [%q]

[agent]
image = %q
memory = %q
upstreams = [%q]
nested = [%s]

[agents.second]
model = "second-model"

%s%s[model]
api = %q
url = %q
name = %q
key = %q
`, c.Instance, s.StateDir, c.ServiceListen, c.Resync, ForgeImage, c.ForgeListen, "localhost"+s.Upstreams()+"/*", AgentImage, c.Memory, "localhost"+s.Upstreams()+"/open/*", nested,
		c.Agents, c.CI, c.ModelAPI, c.ModelURL, c.ModelName, c.ModelKey)
	if err := os.WriteFile(s.ConfigFile, []byte(text), 0o600); err != nil {
		return nil, err
	}
	return s, nil
}

// Upstreams is a directory whose repositories the git cache may fetch; agents
// may read those in its folder open.
func (s *Stack) Upstreams() string { return s.World.path("upstreams") }

// ForgeURL is the forge's address, without a slash at its end.
func (s *Stack) ForgeURL() string { return "http://" + s.ForgeListen }

// ServiceURL is the service's address, without a slash at its end.
func (s *Stack) ServiceURL() string { return "http://" + s.ServiceListen }

// LoadImages puts the forge's and the agent's image into the world, building
// them if the cache has them not.
func (s *Stack) LoadImages(ctx context.Context, progress io.Writer) error {
	for name, ref := range map[string]string{"forge": ForgeImage, "agent": AgentImage} {
		cmd := exec.CommandContext(ctx, filepath.Join(s.Root, "compose/images/build"), "load", name, ref)
		cmd.Env = s.World.Environ()
		cmd.Stdout, cmd.Stderr = progress, progress
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("loading the %s image: %w", name, err)
		}
	}
	return nil
}

// Environ is the environment for devaipod and for git in this stack.
func (s *Stack) Environ() []string { return append(s.World.Environ(), s.Env()...) }

// Env are the variables that make it so: the world, and a person without git
// configuration, credentials and prompts of their own.
func (s *Stack) Env() []string {
	return append(s.World.Env(), "DEVAIPOD_CONFIG="+s.ConfigFile, "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null",
		"GIT_TERMINAL_PROMPT=0", "GIT_AUTHOR_NAME=Person", "GIT_AUTHOR_EMAIL=person@example.org",
		"GIT_COMMITTER_NAME=Person", "GIT_COMMITTER_EMAIL=person@example.org")
}

// A Call is one run of a program.
type Call struct {
	Args           []string
	Env            []string // on top of Environ
	Dir            string   // "" for the current one
	Stdin          string
	Stdout, Stderr io.Writer // nil to drop; the same pointer for both is fine
}

// Run runs devaipod as a person would.
func (s *Stack) Run(ctx context.Context, c Call) error {
	return s.exec(ctx, filepath.Join(s.Bin, "devaipod"), c)
}

// Git runs git in the stack's environment.
func (s *Stack) Git(ctx context.Context, c Call) error { return s.exec(ctx, "git", c) }

func (s *Stack) exec(ctx context.Context, program string, c Call) error {
	cmd := exec.CommandContext(ctx, program, c.Args...)
	cmd.Dir, cmd.Env = c.Dir, append(s.Environ(), c.Env...)
	cmd.Stdin, cmd.Stdout = strings.NewReader(c.Stdin), c.Stdout
	var last tail
	cmd.Stderr = &last
	if c.Stderr != nil {
		cmd.Stderr = io.MultiWriter(c.Stderr, &last)
	}
	if c.Stdout != nil && c.Stdout == c.Stderr {
		cmd.Stdout = cmd.Stderr // so that exec writes to it from one goroutine
	}
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", filepath.Base(program), strings.Join(c.Args, " "), err, strings.TrimSpace(string(last)))
	}
	return nil
}

// tail keeps the last 2 KiB of what is written to it.
type tail []byte

func (t *tail) Write(b []byte) (int, error) {
	*t = append(*t, b...)
	if over := len(*t) - 2048; over > 0 {
		*t = (*t)[over:]
	}
	return len(b), nil
}

// Credentials are what the service keeps in its state directory.
type Credentials struct {
	Service       string `json:"service"`
	ServiceToken  string `json:"service_token"`
	Bot           string `json:"bot"`
	BotToken      string `json:"bot_token"`
	Person        string `json:"person"`
	PersonToken   string `json:"person_token"`
	WebhookSecret string `json:"webhook_secret"`
	PanelSecret   string `json:"panel_secret"`
}

// Credentials reads them, so that tests can look for them where they must not be.
func (s *Stack) Credentials() (Credentials, error) {
	var c Credentials
	b, err := os.ReadFile(filepath.Join(s.StateDir, "forge.json"))
	if err != nil {
		return c, err
	}
	return c, json.Unmarshal(b, &c)
}

// FreeAddr is a loopback address and port that nobody listens on, the wanted
// one if it is free ("" for any). It is none that the kernel gives to whoever
// asks for any (ip_local_port_range): it may be free for a while yet.
func FreeAddr(want string) (string, error) {
	const low, high = 10000, 32000
	for range 100 {
		addr := want
		if want = ""; addr == "" {
			addr = fmt.Sprintf("127.0.0.1:%d", low+rand.IntN(high-low))
		}
		if l, err := net.Listen("tcp", addr); err == nil {
			return addr, l.Close()
		}
	}
	return "", errors.New("no free port on 127.0.0.1")
}

// Root finds the checkout that the current directory is in.
func Root() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "compose/images/build")); err == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", errors.New("not in a checkout of devaipod: compose/images/build is not above the current directory")
		}
	}
}
