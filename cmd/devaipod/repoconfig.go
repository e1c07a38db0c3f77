package main

import (
	"bytes"
	"context"
	"fmt"

	"github.com/spf13/viper"

	"codeberg.org/devaipod/devaipod/pods"
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
}

// repoConfig is that of a pod's repository, as it was fetched last. Its error is
// for the repository's people.
func (s *service) repoConfig(ctx context.Context, k pods.Key, m *pods.Manager) (repoConfig, error) {
	spec, err := m.Spec(k)
	if err != nil {
		return repoConfig{}, nil //nolint:nilerr // the loop tells of it
	}
	text, ok, err := s.cache.File(ctx, forgeAddress(spec.Owner+"/"+spec.Repo), s.cfg.identity(spec.RepoID), repoConfigFile, maxRepoConfig)
	if !ok || err != nil {
		return repoConfig{}, err
	}
	return parseRepoConfig(text)
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
