package main

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"codeberg.org/devaipod/devaipod/pods"
	"codeberg.org/devaipod/devaipod/pods/devcontainer"
	"codeberg.org/devaipod/devaipod/pods/podfile"
)

// A fileReader reads what a repository has on its default branch.
type fileReader interface {
	// file is one of up to max bytes; ok is false when it is not there.
	file(ctx context.Context, path string, max int64) (text []byte, ok bool, err error)
	// folders are those of a directory, by name.
	folders(ctx context.Context, path string) ([]string, error)
}

// trusted reads the default branch as it was fetched last.
type trusted struct {
	s    *service
	repo string // owner/name
	id   int64  // the forge's number of it
}

func (t trusted) file(ctx context.Context, path string, max int64) ([]byte, bool, error) {
	return t.s.cache.File(ctx, forgeAddress(t.repo), t.s.cfg.identity(t.id), path, max)
}

func (t trusted) folders(ctx context.Context, path string) ([]string, error) {
	return t.s.cache.Folders(ctx, forgeAddress(t.repo), t.s.cfg.identity(t.id), path, maxRepoConfig)
}

func readRepoConfig(ctx context.Context, of fileReader) (repoConfig, error) {
	text, ok, err := of.file(ctx, repoConfigFile, maxRepoConfig)
	if !ok || err != nil {
		return repoConfig{}, err
	}
	return parseRepoConfig(text)
}

// readDevcontainer reads what the repository wants its pods to be, by what its
// own file says of where that is. Without one, that is nothing.
func readDevcontainer(ctx context.Context, of fileReader, c repoConfig, p devcontainer.Place) (devcontainer.Config, error) {
	file, text, err := findDevcontainer(ctx, of, c.Agent.Devcontainer)
	if err != nil {
		return devcontainer.Config{}, err
	}
	p.File = file
	if file == "" {
		p.File, text = ".devcontainer.json", []byte("{}")
	}
	dev, err := devcontainer.Parse(text, p)
	if err != nil {
		return devcontainer.Config{}, err
	}
	dev.File = file
	a := &dev.Agent
	for _, s := range c.Agent.Setup {
		a.Setup = append(a.Setup, devcontainer.Command{Shell: s})
	}
	a.Environment, a.Checks = append(a.Environment, c.Agent.Environment...), append(a.Checks, c.Agent.Checks...)
	return *dev, nil
}

// findDevcontainer looks where the file may be; its name is "" when there is none.
func findDevcontainer(ctx context.Context, of fileReader, chosen string) (file string, text []byte, err error) {
	folder := "."
	if chosen != "" {
		folder = chosen
	}
	candidates := devcontainer.Candidates(folder)
	for _, file := range candidates {
		text, ok, err := of.file(ctx, file, devcontainer.MaxSize)
		if ok || err != nil {
			return file, text, err
		}
	}
	names, err := of.folders(ctx, devcontainer.Choices(folder))
	if err != nil {
		return "", nil, err
	}
	type found struct {
		file string
		text []byte
	}
	var several []found
	for _, name := range names[:min(len(names), maxRecipe)] {
		file := path.Join(devcontainer.Choices(folder), name, "devcontainer.json")
		text, ok, err := of.file(ctx, file, devcontainer.MaxSize)
		if err != nil {
			return "", nil, err
		}
		if ok {
			several = append(several, found{file, text})
		}
	}
	switch {
	case len(several) == 1:
		return several[0].file, several[0].text, nil
	case len(several) > 1:
		return "", nil, fmt.Errorf("there are %d devcontainer.json, such as %s and %s: name one in %s, as devcontainer = %q under [agent]",
			len(several), clipped(several[0].file), clipped(several[1].file), repoConfigFile, path.Dir(several[0].file))
	case chosen != "":
		return "", nil, fmt.Errorf("%s: agent.devcontainer: there is no %s on the default branch", repoConfigFile, strings.Join(candidates, " nor "))
	}
	return "", nil, nil
}

// A recipe is how a repository wants its pods.
type recipe struct {
	config repoConfig
	dev    devcontainer.Config
}

// recipe reads it, after the repository was brought up to date. It is read of the
// default branch alone: whatever an agent's issue starts from.
func (s *service) recipe(ctx context.Context, k pods.Key, repoID int64) (recipe, error) {
	within, cancel := context.WithTimeoutCause(ctx, lendWithin, errFetching)
	defer cancel()
	repo := k.Owner + "/" + k.Repo
	if _, err := s.cache.Here(within, forgeAddress(repo)); err != nil {
		if within.Err() != nil && ctx.Err() == nil {
			err = errors.Join(errFetching, err)
		}
		return recipe{}, err
	}
	of := trusted{s, repo, repoID}
	var r recipe
	var err error
	if r.config, err = readRepoConfig(ctx, of); err != nil {
		return r, err
	}
	place := pods.Place(s.cfg.Instance, k)
	if r.dev, err = readDevcontainer(ctx, of, r.config, place); err != nil {
		return r, err
	}
	if len(r.dev.Agent.Checks) == 0 {
		r.dev.Agent.Checks = s.cfg.Check.Commands
	}
	for _, name := range s.cfg.missing(r) {
		r.dev.Unsupported = append(r.dev.Unsupported, "environment "+name+": the configuration has none (agent.environment)")
	}
	return r, nil
}

// recipeOf joins what a repository wants with what the configuration has.
func (c config) recipeOf(r recipe) pods.Recipe {
	out := pods.Recipe{Sparse: r.config.Agent.Sparse, Within: c.Agent.SetupWithin, Env: map[string]string{}}
	for _, kv := range c.Agent.Environment {
		if name, value, _ := strings.Cut(kv, "="); slices.Contains(r.dev.Agent.Environment, name) {
			out.Env[name] = value
		}
	}
	if c.Workspace.Dotfiles != "" {
		out.Dotfiles = &podfile.Dotfiles{URL: c.Workspace.Dotfiles, Script: c.Workspace.DotfilesScript}
	}
	return out
}

// missing are the variables that a repository wants and the configuration has not.
func (c config) missing(r recipe) []string {
	return slices.DeleteFunc(slices.Clone(r.dev.Agent.Environment), func(name string) bool {
		return slices.ContainsFunc(c.Agent.Environment, func(kv string) bool { return strings.HasPrefix(kv, name+"=") })
	})
}

// checksText tells the agent what has to end well before it pushes.
func checksText(checks []string) string {
	if len(checks) == 0 {
		return ""
	}
	var b strings.Builder
	b.WriteString("\nThe repository wants each of these commands to end well, run in the clone, before you push:\n")
	for _, c := range checks {
		fmt.Fprintf(&b, "\n    %s\n", strings.ReplaceAll(c, "\n", "\n    "))
	}
	return b.String()
}

// maxNoted is how many properties that do not hold a comment names.
const maxNoted = 12

// devcontainerNote tells on the issue what of the file does not hold.
func devcontainerNote(dev devcontainer.Config) string {
	what := dev.Unsupported
	if len(what) == 0 {
		return ""
	}
	more := ""
	if n := len(what) - maxNoted; n > 0 {
		what, more = what[:maxNoted], fmt.Sprintf("; and %d more", n)
	}
	return fmt.Sprintf("Of %s these do not hold in a pod: %s%s.", dev.File, strings.Join(what, "; "), more)
}
