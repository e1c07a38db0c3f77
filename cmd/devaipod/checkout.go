package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"

	"github.com/spf13/cobra"

	"codeberg.org/devaipod/devaipod/mirror"
	"codeberg.org/devaipod/devaipod/pods/reconcile"
)

func (a *app) checkoutCmd() *cobra.Command {
	var saved bool
	cmd := &cobra.Command{
		Use: "checkout ISSUE", Short: "Check out an agent's branch in the checkout here", Args: args(cobra.ExactArgs(1)),
		Long: `Fetch the branch that the agent pushed for an issue and switch to it, in the
checkout of the forge's repository that you are in. A local branch of that name is
moved forward only; one that has other commits is left alone.

With --saved it is what was saved of the agent's work, committed or not, pushed or
not, also when its pod is gone: the newest snapshot is a commit, and becomes the
branch saved/ISSUE; all that was saved is below refs/devaipod/saved/ISSUE/.`,
		RunE: func(cmd *cobra.Command, rest []string) error {
			k, err := a.issueKey(cmd.Context(), rest[0])
			if err != nil {
				return err
			}
			if saved {
				return a.checkoutSaved(cmd.Context(), k)
			}
			return a.checkout(cmd.Context(), k)
		},
	}
	cmd.Flags().BoolVar(&saved, "saved", false, "what was saved, instead of what was pushed")
	return a.storeFlag(cmd)
}

// checkoutOf is an error unless this is a checkout of an issue's repository.
func (a *app) checkoutOf(ctx context.Context, k reconcile.Key) (remote string, err error) {
	remote, repo, err := a.remoteHere(ctx)
	if err == nil && !strings.EqualFold(repo, k.Owner+"/"+k.Repo) {
		err = usagef("%s is an issue of %s/%s, and this is a checkout of %s", k, k.Owner, k.Repo, repo)
	}
	return remote, err
}

func (a *app) checkoutSaved(ctx context.Context, k reconcile.Key) error {
	if _, err := a.checkoutOf(ctx, k); err != nil {
		return err
	}
	work, err := a.findSaved(ctx, k)
	if err != nil {
		return err
	}
	snap, view, err := work.newest(ctx)
	if err != nil {
		return err
	}
	refs := fmt.Sprintf("%s%d/", mirror.RecoveredRefs, k.Issue)
	careful := configEnv("fetch.fsckObjects", "true", "submodule.recurse", "false", "fetch.recurseSubmodules", "false")
	if err := a.git(ctx, "", careful, "fetch", "--no-tags", "--no-write-fetch-head", "--prune", "--", work.Dir(), "+"+work.Prefix()+"*:"+refs+"*"); err != nil {
		return fmt.Errorf("fetching what was saved of %s: %w", k, err)
	}
	branch := fmt.Sprintf("saved/%d", k.Issue)
	if exec.CommandContext(ctx, "git", "rev-parse", "--verify", "--quiet", "refs/heads/"+branch).Run() != nil {
		err = a.git(ctx, "", careful, "switch", "--no-track", "--create", branch, snap.ID)
	} else {
		err = a.git(ctx, "", careful, "switch", branch)
	}
	if err != nil {
		return fmt.Errorf("switching to %s: %w", branch, err)
	}
	if err := a.git(ctx, "", careful, "merge", "--ff-only", snap.ID); err != nil {
		return fmt.Errorf("%s here can't be moved forward to the newest snapshot, %.12s: mend what git says, or give the branch another name (git branch -m)", branch, snap.ID)
	}
	a.tell(view)
	if snap.Head != "" {
		a.step("The agent's own commits end at %.12s; git reset %.12s leaves what it had not committed uncommitted", snap.Head, snap.Head)
	}
	return nil
}

func (a *app) checkout(ctx context.Context, k reconcile.Key) error {
	remote, err := a.checkoutOf(ctx, k)
	if err != nil {
		return err
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
