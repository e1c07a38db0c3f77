package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"

	"github.com/spf13/cobra"

	"codeberg.org/devaipod/devaipod/pods/reconcile"
)

func (a *app) checkoutCmd() *cobra.Command {
	return &cobra.Command{
		Use: "checkout ISSUE", Short: "Check out an agent's branch in the checkout here", Args: args(cobra.ExactArgs(1)),
		Long: `Fetch the branch that the agent pushed for an issue and switch to it, in the
checkout of the forge's repository that you are in. A local branch of that name is
moved forward only; one that has other commits is left alone.`,
		RunE: func(cmd *cobra.Command, rest []string) error {
			k, err := a.issueKey(cmd.Context(), rest[0])
			if err != nil {
				return err
			}
			return a.checkout(cmd.Context(), k)
		},
	}
}

func (a *app) checkout(ctx context.Context, k reconcile.Key) error {
	remote, repo, err := a.remoteHere(ctx)
	if err != nil {
		return err
	}
	if repo != k.Owner+"/"+k.Repo {
		return usagef("%s is an issue of %s/%s, and this is a checkout of %s", k, k.Owner, k.Repo, repo)
	}
	branch, err := a.branchOf(ctx, k)
	if err != nil {
		return err
	}
	tracking := "refs/remotes/" + remote + "/" + branch
	if err := a.git(ctx, "", a.cfg.gitEnv(), "fetch", "--", remote, "+refs/heads/"+branch+":"+tracking); err != nil {
		return fmt.Errorf("fetching %s from %s: %w", branch, remote, err)
	}
	if exec.CommandContext(ctx, "git", "rev-parse", "--verify", "--quiet", "refs/heads/"+branch).Run() != nil {
		if err := a.git(ctx, "", nil, "switch", "--create", branch, "--track", remote+"/"+branch); err != nil {
			return fmt.Errorf("switching to %s: %w", branch, err)
		}
		return nil
	}
	if err := a.git(ctx, "", nil, "switch", branch); err != nil {
		return fmt.Errorf("switching to %s: %w", branch, err)
	}
	if err := a.git(ctx, "", nil, "merge", "--ff-only", tracking); err != nil {
		return fmt.Errorf("%s here has commits that the agent's does not: compare with git log %s...%s/%s", branch, branch, remote, branch)
	}
	return nil
}

// branchOf is the branch that the agent works on: what the service knows, or
// else what the forge has under the issue's prefix.
func (a *app) branchOf(ctx context.Context, k reconcile.Key) (string, error) {
	if v, err := a.api().view(ctx, k); err == nil && v.Branch != "" {
		return v.Branch, nil
	}
	creds, err := a.readCredentials()
	if err != nil {
		return "", err
	}
	client, err := a.personForge(creds)
	if err != nil {
		return "", err
	}
	found, err := client.Branches(ctx, repoOf(k), fmt.Sprintf("agent/%d-", k.Issue))
	if err != nil {
		return "", unreachable(err)
	}
	switch len(found) {
	case 0:
		return "", fmt.Errorf("no agent has pushed a branch for %s yet", k)
	case 1:
		return found[0].Name, nil
	}
	var names []string
	for _, b := range found {
		names = append(names, b.Name)
	}
	return "", errors.New("several branches belong to " + k.String() + ": git switch one of " + strings.Join(names, ", "))
}
