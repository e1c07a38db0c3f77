package main

import (
	"context"
	"fmt"
	"io"
	"path"
	"regexp"
	"runtime"
	"strings"
	"time"

	"codeberg.org/devaipod/devaipod/pods"
	"codeberg.org/devaipod/devaipod/pods/devcontainer"
	"codeberg.org/devaipod/devaipod/pods/podman"
)

// A limitConfig says what a kind of container may use of the machine.
type limitConfig struct {
	Memory string  `mapstructure:"memory"`
	CPUs   float64 `mapstructure:"cpus"`
	Pids   int64   `mapstructure:"pids"`
}

// An imageConfig says what workspaces are made from.
type imageConfig struct {
	Name       string        `mapstructure:"name"`
	Repository bool          `mapstructure:"repository"`
	Pull       string        `mapstructure:"pull"`
	Within     time.Duration `mapstructure:"within"`
	Size       string        `mapstructure:"size"`
}

// imageDefaults are those of what containers are made from, set up with and may use.
func imageDefaults() map[string]any {
	return map[string]any{
		"agent.disk":                "50GiB",
		"agent.pids":                4096,
		"agent.cpus":                0.0,
		"agent.strategy":            "agent",
		"agent.writable_root":       false,
		"agent.nested":              []string{},
		"workspace.memory":          "4GiB",
		"workspace.cpus":            0.0,
		"workspace.pids":            4096,
		"control.memory":            "512MiB",
		"control.cpus":              0.0,
		"control.pids":              512,
		"saver.memory":              "512MiB",
		"saver.cpus":                0.0,
		"saver.pids":                512,
		"agent.environment":         []string{},
		"agent.setup_within":        "30m",
		"workspace.dotfiles":        "",
		"workspace.dotfiles_script": "",
		"image.name":                "",
		"image.repository":          true,
		"image.pull":                "missing",
		"image.within":              "30m",
		"image.size":                "20GiB",
	}
}

// Which image an agent works in.
const (
	strategyAgent        = "agent"
	strategyDevcontainer = "devcontainer"
)

// When images are fetched.
const (
	pullMissing = "missing"
	pullNever   = "never"
)

func (c config) validateImages() error {
	switch {
	case c.Agent.Strategy != strategyAgent && c.Agent.Strategy != strategyDevcontainer:
		return fmt.Errorf("agent.strategy = %q: want agent (agents work in agent.image) or devcontainer (in the workspace's image)", c.Agent.Strategy)
	case c.Image.Pull != pullMissing && c.Image.Pull != pullNever:
		return fmt.Errorf("image.pull = %q: want missing or never", c.Image.Pull)
	case c.Image.Within < time.Second:
		return fmt.Errorf("image.within = %q: want 1s or more", c.Image.Within)
	case c.Image.Name != "" && !isImageName(c.Image.Name):
		return fmt.Errorf("image.name = %q: want the name of an image, like docker.io/library/golang:1.26", c.Image.Name)
	}
	for key, l := range c.limitConfigs() {
		if _, err := parseBytes(l.Memory); err != nil {
			return fmt.Errorf("%s.memory = %q: %w", key, l.Memory, err)
		}
		if !(l.CPUs == 0 || l.CPUs >= 0.01 && l.CPUs <= 4096) {
			return fmt.Errorf("%s.cpus = %v: want 0 (all of them), or 0.01 and more", key, l.CPUs)
		}
		if l.Pids < minPids {
			return fmt.Errorf("%s.pids = %d: want %d or more", key, l.Pids, minPids)
		}
	}
	for key, size := range map[string]string{"agent.disk": c.Agent.Disk, "image.size": c.Image.Size} {
		if _, err := parseBytes(size); err != nil {
			return fmt.Errorf("%s = %q: %w", key, size, err)
		}
	}
	return nil
}

// minPids is how many processes and threads any of a pod's containers needs.
const minPids = 64

// limitConfigs are by role what containers may use.
func (c config) limitConfigs() map[string]limitConfig {
	return map[string]limitConfig{
		pods.RoleAgent:     {c.Agent.Memory, c.Agent.CPUs, c.Agent.Pids},
		pods.RoleWorkspace: c.Workspace.limitConfig, pods.RoleControl: c.Control, pods.RoleSaver: c.Saver,
	}
}

func (c config) limits() (map[string]pods.Limit, error) {
	out := map[string]pods.Limit{}
	for role, l := range c.limitConfigs() {
		memory, err := parseBytes(l.Memory)
		if err != nil {
			return nil, fmt.Errorf("%s.memory: %w", role, err)
		}
		out[role] = pods.Limit{MemoryBytes: memory, CPUs: l.CPUs, Pids: l.Pids}
	}
	return out, nil
}

// given is what a container has, as a repository may ask for it.
func given(l pods.Limit) devcontainer.Limits {
	cpus := float64(runtime.NumCPU())
	if l.CPUs > 0 {
		cpus = min(cpus, l.CPUs)
	}
	return devcontainer.Limits{CPUs: cpus, Memory: l.MemoryBytes}
}

// imageRules bound what is fetched and built on a host.
func (c config) imageRules(host podman.Host) (pods.ImageRules, error) {
	size, err := parseBytes(c.Image.Size)
	if err != nil {
		return pods.ImageRules{}, fmt.Errorf("image.size: %w", err)
	}
	memory, err := parseBytes(c.Agent.Memory)
	if !pods.LimitsMemory(host) { // which is said at the service's start
		memory = 0
	}
	return pods.ImageRules{NoPull: c.Image.Pull == pullNever, Within: c.Image.Within, Size: size, Memory: memory}, err
}

// imageName is a reference (podman-pull(1)) of a repository in a registry or of a
// local image.
var imageName = regexp.MustCompile(`^[a-z0-9]([a-zA-Z0-9._-]*(:[0-9]+)?/)?[a-zA-Z0-9._/-]*(:[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127})?(@sha256:[0-9a-f]{64})?$`)

// transport is how files of the host are named as images (containers-transports(5)).
var transport = regexp.MustCompile(`^(containers-storage|dir|docker|docker-archive|docker-daemon|oci|oci-archive|ostree|sif|tarball):`)

func isImageName(s string) bool {
	return len(s) <= 512 && imageName.MatchString(s) && !transport.MatchString(s)
}

// imageSource says what a pod's workspace is made from: what its repository's default
// branch says, or the configuration.
func (s *service) imageSource(ctx context.Context, spec pods.Spec) (pods.Source, error) {
	from := pods.Source{Image: s.cfg.Image.Name, Agent: s.cfg.Agent.Strategy == strategyDevcontainer}
	if !s.cfg.Image.Repository {
		return from, nil
	}
	repo, err := s.repoConfigOf(ctx, spec)
	if err != nil {
		return from, err
	}
	own, dev := repo.Image, spec.Dev
	switch {
	case own.Name == "" && own.Containerfile == "" && dev.Image != "":
		if !isImageName(dev.Image) {
			return from, fmt.Errorf("%s: image %.100q: want the name of an image, like docker.io/library/golang:1.26", dev.File, dev.Image)
		}
		from.Image = dev.Image
	case own.Name == "" && own.Containerfile == "" && dev.Build != nil:
		from.Image = ""
		if from.Build, err = s.build(ctx, spec, dev.File, dev.Build.Dockerfile, dev.Build.Context); err != nil {
			return from, err
		}
		from.Build.Target, from.Build.Args = dev.Build.Target, dev.Build.Args
	case own.Name != "" && own.Containerfile != "":
		return from, fmt.Errorf("%s: image.name and image.containerfile: want one of the two", repoConfigFile)
	case own.Name != "":
		if !isImageName(own.Name) {
			return from, fmt.Errorf("%s: image.name = %.100q: want the name of an image, like docker.io/library/golang:1.26", repoConfigFile, own.Name)
		}
		from.Image = own.Name
	case own.Containerfile != "":
		from.Image = ""
		from.Build, err = s.build(ctx, spec, repoConfigFile, own.Containerfile, own.Context)
		if err != nil {
			return from, err
		}
		from.Build.Target, from.Build.Args = own.Target, map[string]string{}
		for _, arg := range own.Args {
			name, value, ok := strings.Cut(arg, "=")
			if !ok || name == "" {
				return from, fmt.Errorf("%s: image.args: %.100q: want NAME=VALUE", repoConfigFile, arg)
			}
			from.Build.Args[name] = value
		}
	}
	return from, err
}

// build is how an image is built of a pod's repository: file is the path of a
// Containerfile in it and folder what it is built from, that of the file if empty;
// from is the file that says so.
func (s *service) build(ctx context.Context, spec pods.Spec, from, file, folder string) (*pods.Build, error) {
	if folder == "" {
		folder = path.Dir(file)
	}
	folder = path.Clean(folder)
	file = path.Clean(file)
	within := file
	if folder != "." {
		within = strings.TrimPrefix(file, folder+"/")
	}
	if path.IsAbs(file) || path.IsAbs(folder) || strings.HasPrefix(within, "..") || strings.HasPrefix(folder, "..") || folder != "." && within == file {
		return nil, fmt.Errorf("%s: the containerfile %.100q: want a path in the repository, in the folder that is built from, the context (%.100q)", from, file, folder)
	}
	addr, identity := forgeAddress(spec.Owner+"/"+spec.Repo), s.cfg.identity(spec.RepoID)
	tree, ok, err := s.cache.Tree(ctx, addr, identity, folder)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, fmt.Errorf("%s: the context: the default branch has no folder %.100q", from, folder)
	}
	return &pods.Build{
		RepoID: spec.RepoID, Content: tree, Dockerfile: within,
		Files: func(ctx context.Context, w io.Writer) error { return s.cache.Archive(ctx, addr, identity, tree, w) },
	}, nil
}
