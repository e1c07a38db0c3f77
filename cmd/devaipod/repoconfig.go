package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/spf13/viper"

	"codeberg.org/devaipod/devaipod/mirror/cache"
	"codeberg.org/devaipod/devaipod/pods"
	"codeberg.org/devaipod/devaipod/pods/reconcile"
)

// repoConfigFile is what a repository says of its agents' pods. It counts as it
// is on the default branch: agents write none that counts.
const repoConfigFile = ".devaipod.toml"

// maxRepoConfig bounds it, in bytes.
const maxRepoConfig = 64 << 10

// A repoConfig is that file. docs/guide.md describes it.
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
}

// repoConfig is that of a pod's repository, as it was fetched last. Its error is
// for the repository's people.
func (s *service) repoConfig(ctx context.Context, k pods.Key, m *pods.Manager) (repoConfig, error) {
	spec, err := m.Spec(k)
	if err != nil {
		return repoConfig{}, nil //nolint:nilerr // the loop tells of it
	}
	return s.repoConfigOf(ctx, spec)
}

func (s *service) repoConfigOf(ctx context.Context, spec pods.Spec) (repoConfig, error) {
	text, ok, err := s.cache.File(ctx, forgeAddress(spec.Owner+"/"+spec.Repo), s.cfg.identity(spec.RepoID), repoConfigFile, maxRepoConfig)
	if !ok || err != nil {
		return repoConfig{}, err
	}
	return parseRepoConfig(text)
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
	if err == nil {
		err = v.UnmarshalExact(&c)
	}
	if err != nil {
		return repoConfig{}, fmt.Errorf("%s: %w", repoConfigFile, err)
	}
	return c, nil
}
