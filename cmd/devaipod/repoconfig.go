package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/spf13/viper"

	"codeberg.org/devaipod/devaipod/mirror/cache"
	"codeberg.org/devaipod/devaipod/pods"
	"codeberg.org/devaipod/devaipod/pods/devcontainer"
	"codeberg.org/devaipod/devaipod/pods/reconcile"
)

// repoConfigFile is what a repository says of its agents' pods. It counts as it
// is on the default branch: agents write none that counts.
const repoConfigFile = ".devaipod.toml"

// maxRepoConfig bounds it, in bytes.
const maxRepoConfig = 64 << 10

// A repoConfig is that file. docs/devcontainer.md describes it.
type repoConfig struct {
	Network struct {
		Allow []string `mapstructure:"allow"`
	} `mapstructure:"network"`
	// Image is what the workspace is made from: the name of one, or a Containerfile.
	Image struct {
		Name          string   `mapstructure:"name"`
		Containerfile string   `mapstructure:"containerfile"` // a path in the repository
		Context       string   `mapstructure:"context"`       // its folder, if empty
		Target        string   `mapstructure:"target"`
		Args          []string `mapstructure:"args"` // NAME=VALUE
	} `mapstructure:"image"`
	Agent struct {
		Setup        []string `mapstructure:"setup"`
		Environment  []string `mapstructure:"environment"`
		Checks       []string `mapstructure:"checks"`
		Devcontainer string   `mapstructure:"devcontainer"`
		Sparse       []string `mapstructure:"sparse"`
		Use          string   `mapstructure:"use"`   // an agent of the configuration, by its name
		Model        string   `mapstructure:"model"` // instead of its model
	} `mapstructure:"agent"`
}

// repoConfigKeys are all that it may have.
var repoConfigKeys = []string{
	"network.allow", "image.name", "image.containerfile", "image.context", "image.target", "image.args",
	"agent.setup", "agent.environment", "agent.checks", "agent.devcontainer", "agent.sparse", "agent.use", "agent.model",
}

// repoConfig is that of a pod's repository, as it was fetched last. Its error is
// for the repository's people.
func (s *service) repoConfig(ctx context.Context, k pods.Key, m *pods.Manager) (repoConfig, error) {
	spec, err := m.Spec(k)
	if err != nil {
		return repoConfig{}, nil //nolint:nilerr // the loop tells of it
	}
	c, err := s.repoConfigOf(ctx, spec)
	// As they were when the pod was made, like all of that file.
	c.Network.Allow = append(c.Network.Allow, spec.Dev.Agent.Allow...)
	return c, err
}

func (s *service) repoConfigOf(ctx context.Context, spec pods.Spec) (repoConfig, error) {
	return readRepoConfig(ctx, trusted{s, spec.Owner + "/" + spec.Repo, spec.RepoID})
}

// followConfigs brings what the default branches of pods' repositories say to the
// pods that run, every resync, until ctx ends.
func (s *service) followConfigs(ctx context.Context) {
	tick := time.NewTicker(s.cfg.Service.Resync)
	defer tick.Stop()
	held, told := map[pods.Key]string{}, ""
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		why := ""
		if err := s.refreshConfigs(ctx, held); err != nil {
			why = err.Error()
		}
		if why != told && why != "" && ctx.Err() == nil {
			s.log.Warn("looking at "+repoConfigFile+" of pods' repositories; looking again later", "err", why)
		}
		told = why
	}
}

// refreshConfigs is one round; held is what each pod was steered by.
func (s *service) refreshConfigs(ctx context.Context, held map[pods.Key]string) error {
	found, err := s.pods.manager.List(ctx)
	if err != nil {
		return err
	}
	fetched, running := map[string]bool{}, map[pods.Key]bool{}
	for _, p := range found {
		if !p.Control.Running {
			continue
		}
		running[p.Key] = true
		addr := forgeAddress(p.Owner + "/" + p.Repo)
		if !fetched[addr.String()] { // once for all of its pods
			fetched[addr.String()] = true
			if _, e := s.cache.Sync(ctx, addr); e != nil {
				err = errors.Join(err, e)
			}
		}
		err = errors.Join(err, s.refreshConfig(ctx, p, held))
	}
	maps.DeleteFunc(held, func(k pods.Key, _ string) bool { return !running[k] })
	return err
}

// refreshConfig steers a pod when its repository's file is another one, and has the
// loop tell of it.
func (s *service) refreshConfig(ctx context.Context, p pods.Pod, held map[pods.Key]string) error {
	text, ok, err := s.cache.File(ctx, forgeAddress(p.Owner+"/"+p.Repo), s.cfg.identity(p.RepoID), repoConfigFile, maxRepoConfig)
	if err != nil && !errors.Is(err, cache.ErrTooLarge) { // what holds goes on
		return fmt.Errorf("%s/%s: %w", p.Owner, p.Repo, err)
	}
	now := fmt.Sprint(ok, err, string(text))
	if last, known := held[p.Key]; known && last == now {
		return nil
	}
	if err := s.pods.manager.Steer(p.Key); err != nil {
		return err
	}
	held[p.Key] = now
	s.loop.Kick(reconcile.Key(p.Key))
	return nil
}

func parseRepoConfig(text []byte) (repoConfig, error) {
	var c repoConfig
	v := viper.New()
	v.SetConfigType("toml")
	err := v.ReadConfig(bytes.NewReader(text))
	for _, key := range v.AllKeys() {
		if err == nil && !slices.Contains(repoConfigKeys, key) {
			err = fmt.Errorf("unknown key %q; the nearest known one is %q", clipped(key), nearest(clipped(key), repoConfigKeys))
		}
	}
	if err == nil {
		err = v.UnmarshalExact(&c)
	}
	if err == nil {
		err = c.validate()
	}
	if err == nil && c.Agent.Model != "" && !modelName.MatchString(c.Agent.Model) {
		err = fmt.Errorf("agent.model = %q: want the model's name as its provider writes it", c.Agent.Model)
	}
	if err != nil {
		return repoConfig{}, fmt.Errorf("%s: %w", repoConfigFile, err)
	}
	return c, nil
}

// clipped is a name that is not ours at a length that can be shown.
func clipped(s string) string { return s[:min(len(s), 100)] }

// maxRecipe is how many entries a list of the file may have.
const maxRecipe = 100

func (c repoConfig) validate() error {
	a := c.Agent
	for key, list := range map[string][]string{"setup": a.Setup, "environment": a.Environment, "checks": a.Checks, "sparse": a.Sparse} {
		if len(list) > maxRecipe {
			return fmt.Errorf("agent.%s: it has %d entries; want at most %d", key, len(list), maxRecipe)
		}
		for _, s := range list {
			if s == "" || strings.ContainsRune(s, 0) {
				return fmt.Errorf("agent.%s: %q: want a text", key, s)
			}
		}
	}
	for _, name := range a.Environment {
		if !devcontainer.EnvName(name) {
			return fmt.Errorf("agent.environment: %q: want the name of a variable", clipped(name))
		}
	}
	for _, folder := range a.Sparse {
		if !inRepo(folder) {
			return fmt.Errorf("agent.sparse: %q: want a folder of the repository, like services/api", clipped(folder))
		}
	}
	if a.Devcontainer != "" && !inRepo(a.Devcontainer) {
		return fmt.Errorf("agent.devcontainer: %q: want a folder or file of the repository, like services/api or .devcontainer/go", clipped(a.Devcontainer))
	}
	return nil
}

// inRepo tells a plain path of a repository.
func inRepo(p string) bool {
	clean := path.Clean(p)
	return p != "" && !path.IsAbs(p) && clean == strings.TrimSuffix(p, "/") && clean != ".." && !strings.HasPrefix(clean, "../") &&
		!strings.HasPrefix(p, "-") && !strings.ContainsAny(p, "\\*?[]!#\"") && !strings.ContainsFunc(p, func(r rune) bool { return r < ' ' || r == 0x7f }) &&
		!slices.Contains(strings.Split(clean, "/"), ".git")
}
