package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/pflag"
	"github.com/spf13/viper"
)

func TestExampleConfigEqualsTheDefaults(t *testing.T) {
	v := viper.New()
	v.SetConfigFile("../../docs/devaipod.toml")
	if err := v.ReadInConfig(); err != nil {
		t.Fatal(err)
	}
	want := defaults()
	for _, key := range v.AllKeys() {
		value, known := want[key]
		if !known {
			t.Errorf("the example has %s, which is no key", key)
			continue
		}
		if got, want := fmt.Sprint(v.Get(key)), fmt.Sprint(value); got != want {
			t.Errorf("%s = %q in the example, default %q", key, got, want)
		}
		delete(want, key)
	}
	for key := range want {
		t.Errorf("the example lacks %s", key)
	}
}

func load(t *testing.T, file string, environ []string, args ...string) (config, error) {
	t.Helper()
	for _, kv := range environ {
		name, value, _ := strings.Cut(kv, "=")
		t.Setenv(name, value)
	}
	path := filepath.Join(t.TempDir(), "devaipod.toml")
	if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	f := pflag.NewFlagSet("test", pflag.ContinueOnError)
	f.String("config", "", "")
	f.String("instance", "", "")
	f.String("state-dir", "", "")
	f.String("log-level", "", "")
	if err := f.Parse(append(args, "--config", path)); err != nil {
		t.Fatal(err)
	}
	return loadConfig(f, environ)
}

// The forge that was joined has runners of its own.
func TestWhereTheServiceRunsTheForgesActions(t *testing.T) {
	joined := "[forge]\nurl = \"https://forge.example.org\"\n"
	for _, c := range []struct {
		file string
		want bool
	}{
		{"", true},
		{joined, false},
		{joined + "[ci]\nrunner = \"builtin\"\n", true},
		{"[ci]\nrunner = \"none\"\n", false},
		{"[ci]\nrunner = \"auto\"\ndetect = true\n", true},
	} {
		if got, err := load(t, c.file, nil); err != nil || got.runsActions() != c.want {
			t.Errorf("%q: runs them %t %v, want %t", c.file, got.runsActions(), err, c.want)
		}
	}
	for _, file := range []string{"[ci]\nrunner = \"mine\"\n", "[ci]\nrunner = \"none\"\ndetect = true\n", joined + "[ci]\ndetect = true\n"} {
		if _, err := load(t, file, nil); err == nil || !strings.Contains(err.Error(), "ci.") {
			t.Errorf("%q: %v", file, err)
		}
	}
}

// On somebody else's forge nothing lands by itself, unless somebody says so.
func TestHowManyApprovalsLand(t *testing.T) {
	joined := "[forge]\nurl = \"https://forge.example.org\"\n"
	for file, want := range map[string]int{
		"": 1, joined: 0, "[land]\napprovals = 0\n": 0, joined + "[land]\napprovals = 1\n": 1, joined + "[land]\napprovals = -1\n": 0,
	} {
		if got, err := load(t, file, nil); err != nil || got.approvals() != want {
			t.Errorf("%q: %d %v, want %d", file, got.approvals(), err, want)
		}
	}
	if _, err := load(t, "[land]\napprovals = -2\n", nil); err == nil || !strings.Contains(err.Error(), "land.approvals") {
		t.Error(err)
	}
}

func TestFlagBeatsEnvironmentBeatsFileBeatsDefault(t *testing.T) {
	file := "instance = \"file\"\n[model]\nname = \"filemodel\"\nkey = \"filekey\"\n"
	c, err := load(t, file, []string{"DEVAIPOD_INSTANCE=env", "DEVAIPOD_MODEL_NAME=envmodel"}, "--instance", "flag")
	if err != nil {
		t.Fatal(err)
	}
	if c.Instance != "flag" || c.Model.Name != "envmodel" || c.Model.Key != "filekey" || c.Agent.Max != 4 {
		t.Errorf("got %+v", c)
	}
	if !strings.HasSuffix(c.StateDir, "/devaipod/flag") {
		t.Errorf("state directory %s does not carry the instance", c.StateDir)
	}
}

func TestBadConfigurationIsRefusedByName(t *testing.T) {
	for name, tt := range map[string]struct {
		file, want string
		environ    []string
	}{
		"an unknown key":               {file: "[model]\nnmae = \"x\"", want: `"model.name"`},
		"an unknown variable":          {environ: []string{"DEVAIPOD_MODEL_NMAE=x"}, want: "DEVAIPOD_MODEL_NMAE"},
		"an instance with a slash":     {file: "instance = \"a/b\"", want: `instance "a/b"`},
		"an empty instance":            {file: "instance = \"\"", want: "instance"},
		"a port open to the world":     {file: "[service]\nlisten = \"0.0.0.0:8090\"", want: "loopback"},
		"an unknown model API":         {file: "[model]\napi = \"x\"", want: "openai-responses"},
		"a key in the model's URL":     {file: "[model]\nurl = \"https://u:p@host/v1\"", want: "model.url"},
		"a memory limit without units": {file: "[agent]\nmemory = \"5\"", want: "agent.memory"},
		"a podman without patience":    {file: "[podman]\npatience = \"1s\"", want: "podman.patience"},
		"a strategy that is none":      {file: "[agent]\nstrategy = \"x\"", want: "agent.strategy"},
		"a fraction of a CPU below 0":  {file: "[workspace]\ncpus = -1.0", want: "workspace.cpus"},
		"no CPU that is a number":      {file: "[saver]\ncpus = nan", want: "saver.cpus"},
		"too few processes":            {file: "[control]\npids = 1", want: "control.pids"},
		"a disk limit without units":   {file: "[agent]\ndisk = \"5\"", want: "agent.disk"},
		"a repository with no owner":   {file: "[agent]\nnested = [\"*\"]", want: `agent.nested: "*"`},
		"repositories of any owner":    {file: "[agent]\nnested = [\"*/x\"]", want: `agent.nested: "*/x"`},
		"an image by a path":           {file: "[image]\nname = \"dir:/etc\"", want: "image.name"},
		"an image by a transport":      {file: "[image]\nname = \"oci:etc\"", want: "image.name"},
		"a pull that is none":          {file: "[image]\npull = \"x\"", want: "image.pull"},
		"no time for an image":         {file: "[image]\nwithin = \"0s\"", want: "image.within"},
		"a relative state directory":   {file: "state_dir = \"x\"", want: "absolute"},
		"a state directory too deep":   {file: "state_dir = \"/" + strings.Repeat("x", 90) + "\"", want: "80 bytes"},
		"a forge in clear, elsewhere":  {file: "[forge]\nurl = \"http://git.example.org\"", want: "in clear"},
		"a forge's URL with a token":   {file: "[forge]\nurl = \"https://u:p@git.example.org\"", want: "forge.url"},
		"a forge's URL without a host": {file: "[forge]\nurl = \"git.example.org\"", want: "forge.url"},
		"an authority of our own":      {file: "[forge]\nca = \"/etc/ca.pem\"", want: "forge.ca"},
		"a relative authority":         {file: "[forge]\nurl = \"https://git.example.org\"\nca = \"ca.pem\"", want: "forge.ca"},
		"an authority without TLS":     {file: "[forge]\nurl = \"http://localhost:3000\"\nca = \"/etc/ca.pem\"", want: "forge.ca"},
		"a webhook of our own":         {file: "[forge]\nwebhook = \"http://127.0.0.1:8090/hooks/forge\"", want: "forge.webhook"},
		"a webhook that is no URL":     {file: "[forge]\nurl = \"https://git.example.org\"\nwebhook = \"svc\"", want: "forge.webhook"},
		"a watermark without percent":  {file: "[prune]\ndisk_watermark = \"0.9\"", want: "prune.disk_watermark"},
		"an agent of another driver":   {file: "[agents.x]\ndriver = \"mcp\"", want: `agents.x.driver = "mcp": want opencode (its HTTP API), acp`},
		"an agent without a command":   {file: "[agents.x]\ndriver = \"acp\"", want: `agents.x.command: the driver acp wants the program`},
		"asks of what does not ask":    {file: "[agents.x]\nask = true", want: `agents.x.ask: only the driver acp`},
		"a runner that is none":        {file: "[ci]\nrunner = \"x\"", want: "external (the same, but a runner of yours runs trusted jobs)"},
		"a runner at no address":       {file: "[ci]\nrunner = \"external\"\nexternal_listen = \"x\"", want: "ci.external_listen"},
		"an image of no runner":        {file: "[ci]\nrunner = \"builtin\"\nexternal_image = \"x\"", want: "ci.external_image wants ci.runner"},
		"a podman for no runner":       {file: "[ci]\nrunner = \"external\"\nexternal_podman = \"/x\"", want: "ci.external_podman"},
		"a podman by a relative path":  {file: "[ci]\nrunner = \"external\"\nexternal_image = \"x\"\nexternal_podman = \"x\"", want: "ci.external_podman"},
		"an unknown key of an agent":   {file: "[agents.x]\nimgae = \"y\"", want: `"agents.x.image"`},
		"an agent's name with a slash": {file: "[agents.\"x/y\"]\nmodel = \"y\"", want: "agents.x/y"},
		"an agent that is not there":   {file: "[agent]\nuse = \"x\"", want: `agent.use: there is no agent "x"`},
		"an agent's model with blanks": {file: "[agents.x]\nmodel = \"a b\"", want: "agents.x.model"},
		"a file that is no TOML":       {file: "[[[", want: "devaipod.toml"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := load(t, tt.file, tt.environ)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want one with %q", err, tt.want)
			}
		})
	}
}
