package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"github.com/spf13/viper"

	"codeberg.org/devaipod/devaipod/pods/devcontainer"
	"codeberg.org/devaipod/devaipod/pods/egress"
	"codeberg.org/devaipod/devaipod/pods/podfile"
	"codeberg.org/devaipod/devaipod/pods/usage"
	"codeberg.org/devaipod/devaipod/sshd"
)

// config is the whole configuration; docs/devaipod.toml is the commented
// example of it and is tested to equal defaultConfig.
type config struct {
	Instance string `mapstructure:"instance"`
	StateDir string `mapstructure:"state_dir"`
	LogLevel string `mapstructure:"log_level"`
	Label    string `mapstructure:"label"`
	Service  struct {
		Listen string        `mapstructure:"listen"`
		Resync time.Duration `mapstructure:"resync"`
	} `mapstructure:"service"`
	Forge struct {
		URL     string `mapstructure:"url"`
		CA      string `mapstructure:"ca"`
		Webhook string `mapstructure:"webhook"`
		Image   string `mapstructure:"image"`
		Listen  string `mapstructure:"listen"`
		Panel   bool   `mapstructure:"panel"`
	} `mapstructure:"forge"`
	Mirror struct {
		Dir           string        `mapstructure:"dir"`
		AllowUpstream []string      `mapstructure:"allow_upstream"`
		MaxAge        time.Duration `mapstructure:"max_age"`
		MaxSize       string        `mapstructure:"max_size"`
		Interval      time.Duration `mapstructure:"interval"`
		Follow        time.Duration `mapstructure:"follow"`
		Hostnames     []string      `mapstructure:"hostnames"`
		Host          []mirrorHost  `mapstructure:"host"`
	} `mapstructure:"mirror"`
	Work struct {
		MaxPush   string   `mapstructure:"max_push"`
		MaxFile   string   `mapstructure:"max_file"`
		MaxSaved  string   `mapstructure:"max_saved"`
		Protected []string `mapstructure:"protected"`
	} `mapstructure:"work"`
	Podman struct {
		Socket   string        `mapstructure:"socket"`
		Patience time.Duration `mapstructure:"patience"`
	} `mapstructure:"podman"`
	Agent struct {
		Image    string  `mapstructure:"image"`
		Strategy string  `mapstructure:"strategy"`
		Memory   string  `mapstructure:"memory"`
		CPUs     float64 `mapstructure:"cpus"`
		Pids     int64   `mapstructure:"pids"`
		Disk     string  `mapstructure:"disk"`
		Max      int     `mapstructure:"max"`
		Use      string  `mapstructure:"use"`

		WritableRoot bool     `mapstructure:"writable_root"`
		Nested       []string `mapstructure:"nested"`

		Upstreams   []string      `mapstructure:"upstreams"`
		Environment []string      `mapstructure:"environment"`
		SetupWithin time.Duration `mapstructure:"setup_within"`

		Stall    time.Duration `mapstructure:"stall"`
		Deadline time.Duration `mapstructure:"deadline"`
		Rest     time.Duration `mapstructure:"rest"`
	} `mapstructure:"agent"`
	Workspace struct {
		limitConfig    `mapstructure:",squash"`
		Dotfiles       string `mapstructure:"dotfiles"`
		DotfilesScript string `mapstructure:"dotfiles_script"`
	} `mapstructure:"workspace"`
	Control limitConfig            `mapstructure:"control"`
	Saver   limitConfig            `mapstructure:"saver"`
	Image   imageConfig            `mapstructure:"image"`
	Agents  map[string]agentConfig `mapstructure:"agents"`
	Model   struct {
		API  string `mapstructure:"api"`
		URL  string `mapstructure:"url"`
		Name string `mapstructure:"name"`
		Key  string `mapstructure:"key"`

		Price         usage.Prices `mapstructure:"price"`
		Rate          int          `mapstructure:"rate"`
		ProviderTools []string     `mapstructure:"provider_tools"`
	} `mapstructure:"model"`
	Network struct {
		Mode    string   `mapstructure:"mode"`
		Allow   []string `mapstructure:"allow"`
		Private []string `mapstructure:"private"`
	} `mapstructure:"network"`
	Budget struct {
		Money  string        `mapstructure:"money"`
		Tokens string        `mapstructure:"tokens"`
		Time   time.Duration `mapstructure:"time"`
	} `mapstructure:"budget"`

	Land landConfig `mapstructure:"land"`

	Notify notifyConfig `mapstructure:"notify"`

	SSH struct {
		AuthorizedKeys []string `mapstructure:"authorized_keys"`
	} `mapstructure:"ssh"`

	Check struct {
		Commands []string      `mapstructure:"commands"`
		Within   time.Duration `mapstructure:"within"`
	} `mapstructure:"check"`
	CI ciConfig `mapstructure:"ci"`

	Audit struct {
		MaxSize string `mapstructure:"max_size"`
	} `mapstructure:"audit"`

	Prune struct {
		ImageAge      time.Duration `mapstructure:"image_age"`
		DiskWatermark string        `mapstructure:"disk_watermark"`
		RecordAge     time.Duration `mapstructure:"record_age"`
	} `mapstructure:"prune"`

	// File is where it was read from, "" for nowhere.
	File string `mapstructure:"-"`
}

// A mirrorHost says how the mirror reaches a host's repositories.
type mirrorHost struct {
	Name string `mapstructure:"name"`
	URL  string `mapstructure:"url"`
	SSH  string `mapstructure:"ssh"`

	User         string `mapstructure:"user"`
	PasswordFile string `mapstructure:"password_file"`
}

// defaults are the keys that exist, and their values. state_dir is worked out
// from the environment when empty.
func defaults() map[string]any {
	all := map[string]any{
		"instance":              "devaipod",
		"state_dir":             "",
		"log_level":             "info",
		"label":                 "devaipod",
		"service.listen":        "127.0.0.1:8090",
		"service.resync":        "1m",
		"forge.url":             "",
		"forge.ca":              "",
		"forge.webhook":         "",
		"forge.image":           "codeberg.org/forgejo/forgejo:14-rootless",
		"forge.listen":          "127.0.0.1:3000",
		"mirror.dir":            "",
		"mirror.allow_upstream": []string{"*"},
		"mirror.max_age":        "15s",
		"mirror.max_size":       "50GiB",
		"mirror.interval":       "0s",
		"mirror.follow":         "5m",
		"mirror.hostnames":      []string{},
		"mirror.host":           []map[string]string{},
		"work.max_push":         "500MiB",
		"work.max_file":         "100MiB",
		"work.max_saved":        "10GiB",
		"work.protected": []string{
			".forgejo/workflows/", ".gitea/workflows/", ".github/workflows/",
			"CODEOWNERS", "docs/CODEOWNERS", ".forgejo/CODEOWNERS", ".gitea/CODEOWNERS", ".github/CODEOWNERS",
			".devcontainer/", ".devcontainer.json", ".devaipod.toml",
		},
		"podman.socket": "", "podman.patience": "5m",
		"agent.image":     "localhost/devaipod/agent:latest",
		"agent.memory":    "4GiB",
		"agent.max":       4,
		"agent.use":       "",
		"agent.upstreams": []string{},
		"agent.stall":     "10m",
		"agent.deadline":  "4h",
		"agent.rest":      "24h",
		"model.api":       "openai",
		"model.url":       "https://api.openai.com/v1",
		"model.name":      "",
		"model.key":       "model",

		"model.price.input":       0.0,
		"model.price.output":      0.0,
		"model.price.cache_read":  0.0,
		"model.price.cache_write": 0.0,
		"model.rate":              0,
		"model.provider_tools":    []string{},
		"network.mode":            "list",
		"network.allow":           []string{},
		"network.private":         []string{},
		"budget.money":            "10",
		"budget.tokens":           "50M",
		"budget.time":             "0s",
		"ssh.authorized_keys":     []string{},
	}
	for _, more := range []map[string]any{imageDefaults(), notifyDefaults(), checkDefaults(), ciDefaults(), pruneDefaults(), auditDefaults(), landDefaults(), panelDefaults()} {
		maps.Copy(all, more)
	}
	return all
}

// notAKey marks a flag that has the name of one that is a key, and is none.
const notAKey = "devaipod not a key"

// loadConfig merges flags over environment over file over defaults.
func loadConfig(flags *pflag.FlagSet, environ []string) (config, error) {
	v := viper.New()
	v.SetConfigType("toml")
	for key, value := range defaults() {
		v.SetDefault(key, value)
	}
	v.SetEnvPrefix("DEVAIPOD")
	v.SetEnvKeyReplacer(strings.NewReplacer(".", "_"))
	v.AutomaticEnv()
	for flag, key := range map[string]string{
		"instance": "instance", "state-dir": "state_dir", "log-level": "log_level",
		"listen": "service.listen", "dir": "mirror.dir", "allow-upstream": "mirror.allow_upstream", "max-age": "mirror.max_age",
	} {
		f := flags.Lookup(flag)
		if f == nil || !f.Changed || f.Annotations[notAKey] != nil {
			continue
		}
		v.Set(key, f.Value.String())
		if several, ok := f.Value.(pflag.SliceValue); ok {
			v.Set(key, several.GetSlice())
		}
	}
	file, err := readConfigFile(v, flags)
	if err != nil {
		return config{}, err
	}
	for _, kv := range environ {
		name, _, _ := strings.Cut(kv, "=")
		key, ours := strings.CutPrefix(name, "DEVAIPOD_")
		// Two variables of ours are not keys: the image cache's and the config's.
		if ours && key != "CACHE" && key != "CONFIG" && !knownEnv(key) {
			return config{}, fmt.Errorf("environment variable %s names no configuration key; the nearest is %s", name, nearest(strings.ToLower(key), knownKeys()))
		}
	}
	c := config{File: file}
	if err := v.UnmarshalExact(&c); err != nil {
		return config{}, fmt.Errorf("reading the configuration: %w", err)
	}
	if c.StateDir == "" {
		c.StateDir = defaultStateDir(c.Instance)
	}
	if c.Mirror.Dir == "" {
		c.Mirror.Dir = c.file("mirror")
	}
	return c, c.validate()
}

// readConfigFile finds and reads the file. A checkout's own devaipod.toml is
// never read: a repository must not configure the service.
func readConfigFile(v *viper.Viper, flags *pflag.FlagSet) (string, error) {
	path := os.Getenv("DEVAIPOD_CONFIG")
	if f := flags.Lookup("config"); f != nil && f.Changed {
		path = f.Value.String()
	}
	candidates := []string{path}
	if path == "" {
		dir, err := os.UserConfigDir()
		if err == nil {
			candidates = []string{filepath.Join(dir, "devaipod", "devaipod.toml")}
		}
		candidates = append(candidates, "/etc/devaipod/devaipod.toml")
	}
	for _, file := range candidates {
		if file == "" {
			continue
		}
		b, err := os.Open(file)
		if errors.Is(err, fs.ErrNotExist) && path == "" {
			continue
		}
		if err != nil {
			return "", fmt.Errorf("opening the configuration: %w", err)
		}
		defer b.Close()
		if err := v.ReadConfig(b); err != nil {
			return "", fmt.Errorf("reading %s: %w", file, err)
		}
		if err := unknownKeys(v, file); err != nil {
			return "", err
		}
		return filepath.Abs(file)
	}
	return "", nil
}

func unknownKeys(v *viper.Viper, file string) error {
	known := knownKeys()
	for _, key := range v.AllKeys() {
		named, near := knownAgentKey(key)
		if !named && near != "" {
			return fmt.Errorf("%s: unknown key %q; the nearest known one is %q", file, key, near)
		}
		if !named && !slices.Contains(known, key) {
			return fmt.Errorf("%s: unknown key %q; the nearest known one is %q", file, key, nearest(key, known))
		}
	}
	return nil
}

func knownKeys() []string {
	var keys []string
	for k := range defaults() {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

func knownEnv(name string) bool {
	return slices.ContainsFunc(knownKeys(), func(k string) bool {
		return strings.ToUpper(strings.ReplaceAll(k, ".", "_")) == name
	})
}

// nearest is the key with the smallest edit distance.
func nearest(key string, known []string) string {
	return slices.MinFunc(known, func(a, b string) int { return distance(key, a) - distance(key, b) })
}

// distance is Levenshtein's.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal, row[j+1] = row[j+1], min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

func defaultStateDir(instance string) string {
	base := os.Getenv("XDG_STATE_HOME")
	if base == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			home = "/var/lib"
		}
		base = filepath.Join(home, ".local", "state")
	}
	return filepath.Join(base, "devaipod", instance)
}

var instanceName = regexp.MustCompile(`^[a-z][a-z0-9]{0,15}$`)

func (c config) validateWork() error {
	for key, size := range map[string]string{"work.max_push": c.Work.MaxPush, "work.max_file": c.Work.MaxFile, "work.max_saved": c.Work.MaxSaved} {
		if _, err := parseBytes(size); err != nil {
			return fmt.Errorf("%s = %q: %w", key, size, err)
		}
	}
	for _, path := range c.Work.Protected {
		if path == "" || path == "/" || path[0] == '/' {
			return fmt.Errorf("work.protected: %q: want a path within the repository, like CODEOWNERS, with a slash at its end for a directory", path)
		}
	}
	return nil
}

func (c config) validate() error {
	if !instanceName.MatchString(c.Instance) {
		return fmt.Errorf("instance %q: want 1 to 16 small letters and digits, a letter first", c.Instance)
	}
	if c.Label == "" || strings.ContainsAny(c.Label, ",/") {
		return fmt.Errorf("label %q: want a name without comma and slash", c.Label)
	}
	if !filepath.IsAbs(c.StateDir) {
		return fmt.Errorf("state_dir %q: want an absolute path", c.StateDir)
	}
	// Unix socket paths end at 108 bytes; the longest of ours under it is
	// /p/<8>/service.sock.
	if len(c.StateDir) > 80 {
		return fmt.Errorf("state_dir %s: longer than 80 bytes, sockets under it could not be reached; choose a shorter one", c.StateDir)
	}
	for key, addr := range map[string]string{"service.listen": c.Service.Listen, "forge.listen": c.Forge.Listen} {
		host, port, err := net.SplitHostPort(addr)
		if ip := net.ParseIP(host); err != nil || ip == nil || !ip.IsLoopback() || port == "" {
			return fmt.Errorf("%s = %q: want a loopback address and port, like 127.0.0.1:8090", key, addr)
		}
	}
	if err := c.validateForge(); err != nil {
		return err
	}
	if !filepath.IsAbs(c.Mirror.Dir) {
		return fmt.Errorf("mirror.dir %q: want an absolute path", c.Mirror.Dir)
	}
	for _, h := range c.Mirror.Host {
		u, err := url.Parse(h.URL)
		if h.Name == "" || err != nil || u.Host == "" && u.Scheme != "file" {
			return fmt.Errorf("mirror.host %q: want a name and a url, like ssh://git@git.example.org/", h.Name)
		}
		if _, secret := u.User.Password(); secret {
			return fmt.Errorf("mirror.host %q: there is a password in its url; give it to git's credential helper instead", h.Name)
		}
	}
	for key, d := range map[string]time.Duration{"mirror.max_age": c.Mirror.MaxAge, "mirror.interval": c.Mirror.Interval, "mirror.follow": c.Mirror.Follow} {
		if d < 0 {
			return fmt.Errorf("%s = %q: want 0s or more", key, d)
		}
	}
	if c.Service.Resync < time.Second {
		return fmt.Errorf("service.resync = %q: want 1s or more", c.Service.Resync)
	}
	if c.Podman.Patience < 5*time.Second {
		return fmt.Errorf("podman.patience = %q: want 5s or more", c.Podman.Patience)
	}
	if c.Land.Approvals < approvalsByForge {
		return fmt.Errorf("land.approvals = %d: want 0 (never by itself) or more, or -1 (1 on a forge of devaipod's own, 0 on one that was joined)", c.Land.Approvals)
	}
	if c.Agent.Max < 0 {
		return fmt.Errorf("agent.max = %d: want 0 (no limit) or more", c.Agent.Max)
	}
	for key, d := range map[string]time.Duration{"agent.stall": c.Agent.Stall, "agent.setup_within": c.Agent.SetupWithin, "agent.deadline": c.Agent.Deadline, "agent.rest": c.Agent.Rest} {
		if d < time.Second {
			return fmt.Errorf("%s = %q: want 1s or more", key, d)
		}
	}
	if err := errors.Join(c.validateWork(), c.validateNetwork(), c.validateImages(), c.validateSetup(), c.validateAgents(), c.validateNested(), c.validateChecks(), c.validateCI(), c.validatePrune()); err != nil {
		return err
	}
	return c.validateModel()
}

func (c config) validateModel() error {
	if !slices.Contains([]string{podfile.APIOpenAI, podfile.APIResponses, podfile.APIAnthropic, podfile.APIGemini}, c.Model.API) {
		return fmt.Errorf("model.api = %q: want openai (chat completions, OpenAI's or any compatible server's), openai-responses, anthropic or gemini", c.Model.API)
	}
	u, err := url.Parse(c.Model.URL)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") || u.User != nil || u.RawQuery != "" {
		return fmt.Errorf("model.url: want http(s)://HOST/PATH without user or query, like https://api.openai.com/v1")
	}
	return c.validateBudget()
}

func (c config) validateSetup() error {
	for _, kv := range c.Agent.Environment {
		if name, _, ok := strings.Cut(kv, "="); !ok || !devcontainer.EnvName(name) {
			return fmt.Errorf("agent.environment: %q: want NAME=VALUE", name)
		}
	}
	d := c.Workspace.Dotfiles
	if u, err := url.Parse(d); d != "" && (err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || strings.HasPrefix(d, "-")) {
		return fmt.Errorf("workspace.dotfiles = %q: want a URL such as https://git.example.org/ada/dotfiles, without a password", d)
	}
	if script := c.Workspace.DotfilesScript; script != "" && !inRepo(script) {
		return fmt.Errorf("workspace.dotfiles_script = %q: want a file of that repository", script)
	}
	return nil
}

func (c config) validateNetwork() error {
	if c.Network.Mode != networkList && c.Network.Mode != networkOpen {
		return fmt.Errorf("network.mode = %q: want list (the hosts of network.allow) or open (every public host)", c.Network.Mode)
	}
	if _, err := egress.Parse(c.Network.Allow); err != nil {
		return fmt.Errorf("network.allow: %w", err)
	}
	for _, text := range c.Network.Private {
		if _, err := netip.ParsePrefix(text); err != nil {
			return fmt.Errorf("network.private: %q: want addresses such as 10.1.0.0/16 or 10.1.2.3/32", text)
		}
	}
	return nil
}

// The network's modes.
const (
	networkList = "list"
	networkOpen = "open"
)

func (c config) validateBudget() error {
	if p := c.Model.Price; min(p.Input, p.Output, p.CacheRead, p.CacheWrite) < 0 {
		return errors.New("model.price: want 0 or more for each price")
	}
	if c.Model.Rate < 0 {
		return fmt.Errorf("model.rate = %d: want 0 (no limit) or more", c.Model.Rate)
	}
	if c.Budget.Time < 0 {
		return fmt.Errorf("budget.time = %q: want 0s (no bound) or more", c.Budget.Time)
	}
	_, err := c.budget()
	return errors.Join(err, c.Notify.check(), c.validateSSH())
}

func (c config) validateSSH() error {
	for _, line := range c.SSH.AuthorizedKeys {
		rules, err := sshd.ParseKeys([]byte(line))
		if err != nil || len(rules) != 1 {
			return fmt.Errorf("ssh.authorized_keys: %q: want a line as in authorized_keys (docs/ssh.md): %w", line, cmp.Or(err, errors.New("it is no key")))
		}
	}
	return nil
}

func (c config) serviceURL() string { return "http://" + c.Service.Listen }
func (c config) file(name string) string {
	return filepath.Join(c.StateDir, name)
}

// parseLimit reads a size, or 0 for no limit.
func parseLimit(s string) (int64, error) {
	if s == "0" {
		return 0, nil
	}
	return parseBytes(s)
}

// parseBytes reads a size like 512MiB or 4GiB.
func parseBytes(s string) (int64, error) {
	units := []struct {
		suffix string
		factor int64
	}{{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}}
	for _, u := range units {
		if digits, ok := strings.CutSuffix(s, u.suffix); ok {
			var n int64
			if _, err := fmt.Sscanf(digits, "%d", &n); err != nil || n <= 0 || fmt.Sprint(n) != digits || n > 1<<20 {
				break
			}
			return n * u.factor, nil
		}
	}
	return 0, errors.New("want a number with KiB, MiB or GiB, like 4GiB")
}
