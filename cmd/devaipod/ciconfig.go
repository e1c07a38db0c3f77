package main

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"codeberg.org/devaipod/devaipod/mirror/cache"
)

// The runners of ci.runner.
const (
	runnerAuto     = "auto" // builtin on a forge of our own, none on one that was joined
	runnerBuiltin  = "builtin"
	runnerExternal = "external"
	runnerNone     = "none"
)

type ciConfig struct {
	Wait       time.Duration `mapstructure:"wait"`
	Rounds     int           `mapstructure:"max_rounds"`
	Detect     bool          `mapstructure:"detect"`
	Runner     string        `mapstructure:"runner"`
	Jobs       int           `mapstructure:"jobs"`
	Timeout    time.Duration `mapstructure:"timeout"`
	Memory     string        `mapstructure:"memory"`
	CPUs       float64       `mapstructure:"cpus"`
	Processes  int64         `mapstructure:"processes"`
	Disk       string        `mapstructure:"disk"`
	Log        string        `mapstructure:"log"`
	Cache      string        `mapstructure:"cache"`
	Images     []string      `mapstructure:"images"`
	Registries []string      `mapstructure:"registries"`
	Actions    []string      `mapstructure:"actions"`

	ExternalListen  string   `mapstructure:"external_listen"`
	ExternalImage   string   `mapstructure:"external_image"`
	ExternalCommand []string `mapstructure:"external_command"`
	ExternalPodman  string   `mapstructure:"external_podman"`
}

func ciDefaults() map[string]any {
	return map[string]any{
		"ci.wait": "30m", "ci.max_rounds": 3, "ci.detect": false, "ci.runner": runnerAuto, "ci.jobs": 2, "ci.timeout": "1h",
		"ci.memory": "4GiB", "ci.cpus": 0.0, "ci.processes": 4096, "ci.disk": "10GiB", "ci.log": "64MiB", "ci.cache": "10GiB",
		"ci.images": []string{
			"ubuntu-latest=docker.io/library/node:22-bookworm", "debian-latest=docker.io/library/node:22-bookworm",
			"docker=docker.io/library/node:22-bookworm",
		},
		"ci.registries": []string{"docker.io", "ghcr.io", "quay.io", "codeberg.org", "data.forgejo.org"},
		"ci.actions":    []string{"github.com", "code.forgejo.org", "data.forgejo.org", "codeberg.org"},

		"ci.external_listen": "127.0.0.1:8091", "ci.external_image": "", "ci.external_podman": "",
		"ci.external_command": []string{"sh", "-ec", forgejoRunner},
	}
}

// runsActions tells whether the service is the runner of the forge's Actions.
func (c config) runsActions() bool {
	return c.CI.Runner != runnerNone && (c.CI.Runner != runnerAuto || !c.joined())
}

func (c config) validateCI() error {
	if !slices.Contains([]string{runnerAuto, runnerBuiltin, runnerExternal, runnerNone}, c.CI.Runner) {
		return fmt.Errorf("ci.runner = %q: want auto (builtin, but none on a forge that was joined), builtin (the service runs the forge's Actions), external (the same, but a runner of yours runs trusted jobs) or none (whatever runners you add to the forge run them)", c.CI.Runner)
	}
	if c.CI.Detect && (!c.runsActions() || c.joined()) {
		return errors.New("ci.detect wants a service that runs the forge's Actions (ci.runner), and a forge of devaipod's own")
	}
	if err := c.validateExternal(); err != nil {
		return err
	}
	if c.CI.Rounds < 0 {
		return fmt.Errorf("ci.max_rounds = %d: want 0 or more", c.CI.Rounds)
	}
	if c.CI.Jobs < 1 || c.CI.Timeout < time.Second || c.CI.CPUs < 0 || c.CI.Processes < 0 {
		return errors.New("ci.jobs wants 1 or more, ci.timeout 1s or more, ci.cpus and ci.processes 0 or more")
	}
	if _, err := parseBytes(c.CI.Log); err != nil {
		return fmt.Errorf("ci.log: %w", err)
	}
	for key, text := range map[string]string{"ci.memory": c.CI.Memory, "ci.disk": c.CI.Disk} {
		if _, err := parseLimit(text); err != nil {
			return fmt.Errorf("%s: %w, or 0 for no limit", key, err)
		}
	}
	if _, err := c.ciCache(); err != nil {
		return err
	}
	if _, err := c.ciImages(); err != nil {
		return err
	}
	if _, err := cache.ParseAllow(c.CI.Actions); err != nil {
		return fmt.Errorf("ci.actions: %w", err)
	}
	return nil
}

// ciCache is what jobs may save in all, bytes; 0 is nothing.
func (c config) ciCache() (int64, error) {
	if c.CI.Cache == "0" {
		return 0, nil
	}
	n, err := parseBytes(c.CI.Cache)
	if err == nil && n < 1<<20 {
		err = errors.New("want 1MiB at least, or 0 for no cache")
	}
	if err != nil {
		return 0, fmt.Errorf("ci.cache: %w", err)
	}
	return n, nil
}

// ciImages are the images by the labels of runs-on.
func (c config) ciImages() (map[string]string, error) {
	images := map[string]string{}
	for _, text := range c.CI.Images {
		label, image, ok := strings.Cut(text, "=")
		if !ok || label == "" || image == "" || strings.ContainsAny(label, ": ") {
			return nil, fmt.Errorf("ci.images: %q: want LABEL=IMAGE", text)
		}
		images[label] = image
	}
	if len(images) == 0 {
		return nil, errors.New("ci.images: want one LABEL=IMAGE at least")
	}
	return images, nil
}

// ciMayUse says whether jobs may have an image: those of ci.images, and what comes from
// one of the registries. Which images there are on this machine is no business of a job's,
// and a registry is a way out for what it knows.
func (c config) ciMayUse(images map[string]string) func(image string) error {
	return func(image string) error {
		registry, _, _ := strings.Cut(image, "/")
		if slices.Contains(c.CI.Registries, registry) || slices.Contains(slices.Collect(maps.Values(images)), image) {
			return nil
		}
		return fmt.Errorf("the image %.200q is neither in ci.images nor of a registry in ci.registries", image)
	}
}
