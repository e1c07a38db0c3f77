package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"codeberg.org/devaipod/devaipod/forge"
)

// The events that a run can be asked for.
const (
	onPush     = "push"
	onPull     = "pull_request"
	onDispatch = "workflow_dispatch"
)

// A ciRun is what `devaipod ci run` is asked for.
type ciRun struct {
	local, list       bool
	verbose           bool
	dir               string
	file, job         string
	event, ref        string
	inputs, variables []string
	secrets           []string
}

func (a *app) ciRunCmd() *cobra.Command {
	var r ciRun
	cmd := a.jsonFlag(&cobra.Command{
		Use: "run --local [DIR] | run OWNER/REPO WORKFLOW", Short: "Run workflows of a working tree here, or one on the forge", Args: args(cobra.MaximumNArgs(2)),
		Long: `With --local, run the workflows of a working tree (DIR, or the one here): with no push and no
forge, in the containers and behind the filter that the service has for jobs. The first of
.forgejo/workflows, .gitea/workflows and .github/workflows that is there is read. What
actions/checkout brings is the tree as it lies there, with what was not committed and without
what git ignores. Jobs have no secrets but those of --secret, and reach the hosts of
network.allow and the actions of ci.actions, and no forge.

Without it, ask the forge to run a workflow that has the event workflow_dispatch.`,
		Example: `  devaipod ci run --local
  devaipod ci run --local --list
  devaipod ci run --local -W test.yaml -j unit --secret KEY
  devaipod ci run ada/app release.yaml --ref main --input version=1.2`,
		RunE: func(cmd *cobra.Command, rest []string) error {
			if !r.local {
				return a.ciDispatch(cmd, r, rest)
			}
			if len(rest) > 1 || r.ref != "" {
				return usagef("a local run takes one directory, and no --ref: it runs what lies there")
			}
			if r.dir = "."; len(rest) == 1 {
				r.dir = rest[0]
			}
			return a.ciRunLocal(cmd.Context(), r)
		},
	})
	f := cmd.Flags()
	f.BoolVar(&r.local, "local", false, "run what lies in a working tree")
	f.BoolVar(&r.list, "list", false, "list the jobs, and run none")
	f.BoolVarP(&r.verbose, "verbose", "v", false, "print what the runner says of itself, too")
	f.StringVarP(&r.file, "workflow", "W", "", "the one workflow `FILE` to run")
	f.StringVarP(&r.job, "job", "j", "", "the one `JOB` to run, with those that it needs")
	f.StringVar(&r.event, "event", "", "push, pull_request or workflow_dispatch (default: push, or workflow_dispatch with --input)")
	f.StringVar(&r.ref, "ref", "", "`branch` or tag that the forge runs the workflow of (default: its default branch)")
	f.StringArrayVar(&r.inputs, "input", nil, "an input of workflow_dispatch, `NAME=VALUE`")
	f.StringArrayVar(&r.variables, "var", nil, "a variable of the vars context, `NAME=VALUE`")
	f.StringArrayVar(&r.secrets, "secret", nil, "a secret's `NAME`; its value is taken from the environment, or asked for")
	return cmd
}

var ciName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_-]{0,99}$`)

// pairs reads NAME=VALUE, as flag gives it.
func pairs(flag string, texts []string) (map[string]string, error) {
	out := map[string]string{}
	for _, text := range texts {
		name, value, ok := strings.Cut(text, "=")
		if !ok || !ciName.MatchString(name) {
			return nil, usagef("--%s %q: want NAME=VALUE", flag, text)
		}
		out[name] = value
	}
	return out, nil
}

// secretValues takes the values of secrets from the environment, or asks for them.
func (a *app) secretValues(names []string) (map[string]string, error) {
	out := map[string]string{}
	for _, name := range names {
		if !ciName.MatchString(name) {
			return nil, usagef("--secret %q: want a name; its value comes from the environment, or is asked for", name)
		}
		value, ok := os.LookupEnv(name)
		if !ok {
			var err error
			if value, err = a.readSecret(name); err != nil {
				return nil, err
			}
		}
		out[name] = value
	}
	return out, nil
}

// ciDispatch asks the forge to run a workflow.
func (a *app) ciDispatch(cmd *cobra.Command, r ciRun, rest []string) error {
	for _, flag := range []string{"list", "verbose", "workflow", "job", "event", "var", "secret"} {
		if cmd.Flags().Changed(flag) {
			return usagef("--%s is of local runs: add --local", flag)
		}
	}
	if len(rest) != 2 {
		return usagef("want OWNER/REPO and the file of a workflow, or --local\nusage: %s", cmd.UseLine())
	}
	repo, err := forge.ParseRepo(rest[0])
	if err != nil {
		return &exitError{codeUsage, err}
	}
	inputs, err := pairs("input", r.inputs)
	if err != nil {
		return err
	}
	return a.dispatch(cmd.Context(), repo, rest[1], r.ref, inputs)
}

func (a *app) dispatch(ctx context.Context, repo forge.Repo, workflow, ref string, inputs map[string]string) error {
	creds, err := a.readCredentials()
	if err != nil {
		return err
	}
	client, err := a.serviceForge(creds)
	if err != nil {
		return err
	}
	if ref == "" {
		info, err := client.Repository(ctx, repo)
		if err != nil {
			return fmt.Errorf("looking for %s: %w", repo, err)
		}
		ref = info.DefaultBranch
	}
	err = client.DispatchWorkflow(ctx, repo, workflow, ref, inputs)
	var said *forge.Error
	if errors.As(err, &said) && said.Status == http.StatusNotFound && strings.Contains(said.Message, "page not found") {
		// It has no API for that, but a page.
		err = a.dispatchByPage(ctx, client, creds, repo, workflow, ref, inputs)
	}
	switch {
	case errors.Is(err, forge.ErrNoSession):
		return errors.New("this forge has no API to run workflows by (Forgejo has from version 7 on, Gitea from 1.24): run it on its Actions page")
	case errors.Is(err, forge.ErrNotFound):
		return fmt.Errorf("%s has no workflow %s on %s that the forge could run, or no such branch or tag: %w", repo, workflow, ref, err)
	case err != nil:
		return fmt.Errorf("running %s of %s on %s (inputs: %s): %w", workflow, repo, ref, strings.Join(slices.Sorted(maps.Keys(inputs)), ", "), err)
	}
	a.step("asked    the forge to run %s of %s on %s; devaipod ci list has its jobs once they began", workflow, repo, ref)
	return nil
}

func (a *app) dispatchByPage(ctx context.Context, client *forge.Client, creds credentials, repo forge.Repo, workflow, ref string, inputs map[string]string) error {
	if !strings.HasPrefix(ref, "refs/") {
		_, branch, err := client.Branch(ctx, repo, ref)
		if err != nil {
			return err
		}
		kind := "refs/tags/"
		if branch {
			kind = "refs/heads/"
		}
		ref = kind + ref
	}
	return forge.NewWeb(client, creds.BotMade || !a.cfg.joined()).Dispatch(ctx, repo, workflow, ref, inputs)
}
