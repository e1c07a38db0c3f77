package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"codeberg.org/devaipod/devaipod/forge"
	"codeberg.org/devaipod/devaipod/mirror/follow"
)

func (a *app) forgeFollowCmd() *cobra.Command {
	var branch string
	cmd := &cobra.Command{
		Use: "follow REPO [UPSTREAM]", Short: "Let a repository of the forge follow an upstream", Args: args(cobra.RangeArgs(1, 2)),
		Long: `Let a repository of the forge follow an upstream (a URL, or HOST/PATH as the git
cache calls it), as forge add does for those that it copies from one: its default
branch and its tags come from there, forward only, and devaipod alone writes that
branch. Agents' branches stay on the forge.

Without UPSTREAM, the one that it follows already: with --branch another branch of
that, which then becomes the forge's default one.`,
		Example: "  devaipod forge follow ada/app https://github.com/ada/app\n  devaipod forge follow ada/app --branch main",
		RunE: func(cmd *cobra.Command, rest []string) error {
			source := ""
			if len(rest) > 1 {
				source = rest[1]
			}
			return a.forgeFollow(cmd.Context(), rest[0], source, branch)
		},
	}
	cmd.Flags().StringVar(&branch, "branch", "", "`name` of the branch to follow (default: the forge's default branch)")
	return cmd
}

func (a *app) forgeUnfollowCmd() *cobra.Command {
	return &cobra.Command{
		Use: "unfollow REPO", Short: "Let a repository go its own way", Args: args(cobra.ExactArgs(1)),
		Long: "Stop following the upstream, and let those who may push write the default branch again, by pushes and merges.",
		RunE: func(cmd *cobra.Command, rest []string) error { return a.forgeUnfollow(cmd.Context(), rest[0]) },
	}
}

func (a *app) forgeSyncCmd() *cobra.Command {
	return a.jsonFlag(&cobra.Command{
		Use: "sync [REPO]", Short: "Bring what follows an upstream to where that is, now", Args: args(cobra.MaximumNArgs(1)),
		Long: "Bring one repository, or all that follow an upstream, to where that is. The service does it by itself every mirror.follow. Exit code 3: something needs you.",
		RunE: func(cmd *cobra.Command, rest []string) error {
			name := ""
			if len(rest) > 0 {
				name = rest[0]
			}
			return a.forgeSync(cmd.Context(), name)
		},
	})
}

// onForge finds a repository that a person names, as the service.
func (a *app) onForge(ctx context.Context, name string) (*forge.Client, forge.RepoInfo, error) {
	if within, ok := a.repoOf(name); ok {
		name = within
	}
	repo, err := forge.ParseRepo(name)
	if err != nil {
		return nil, forge.RepoInfo{}, &exitError{codeUsage, err}
	}
	creds, err := a.readCredentials()
	if err != nil {
		return nil, forge.RepoInfo{}, err
	}
	service, err := a.serviceForge(creds)
	if err != nil {
		return nil, forge.RepoInfo{}, err
	}
	info, err := service.Repository(ctx, repo)
	if errors.Is(err, forge.ErrNotFound) {
		return nil, info, fmt.Errorf("there is no %s on the forge (devaipod forge status lists what is)", repo)
	}
	return service, info, unreachable(err)
}

func (a *app) forgeFollow(ctx context.Context, name, source, branch string) error {
	service, info, err := a.onForge(ctx, name)
	if err != nil {
		return err
	}
	store, err := a.followStore()
	if err != nil {
		return err
	}
	old, had, err := store.Get(info.ID)
	if err != nil {
		return err
	}
	if source = cmp.Or(source, old.Upstream); source == "" {
		return usagef("%s follows nothing yet: give the upstream's URL too", info.Repo)
	}
	addr, err := a.followed(source)
	if err != nil {
		return &exitError{codeRefused, fmt.Errorf("%s can't follow %s: %w", info.Repo, plain(source, 200), err)}
	}
	rec := follow.Record{ID: info.ID, Repo: info.Repo.String(), Upstream: addr.String(), Branch: cmp.Or(branch, old.Branch, info.DefaultBranch)}
	rec.MakeDefault = rec.Branch != info.DefaultBranch
	if had && old.Branch == rec.Branch {
		rec.MadeRule = old.MadeRule
	} else if had {
		if err := a.stopFollowing(ctx, service, store, old); err != nil {
			return err
		}
	}
	if err := a.letFollow(ctx, service, rec); err != nil {
		return err
	}
	a.tellFollows(rec)
	views, err := a.syncNow(ctx, info.ID)
	if exitCode(err) == codeUnreachable {
		return nil // the service will, when it runs
	}
	if err != nil {
		return err
	}
	return a.printFollowed(views)
}

func (a *app) tellFollows(rec follow.Record) {
	a.step("follows  %s: devaipod alone writes %s (docs/guide.md, Following an upstream)", rec.Upstream, plain(rec.Branch, 100))
}

func (a *app) forgeUnfollow(ctx context.Context, name string) error {
	service, info, err := a.onForge(ctx, name)
	if err != nil {
		return err
	}
	store, err := a.followStore()
	if err != nil {
		return err
	}
	rec, ok, err := store.Get(info.ID)
	if err != nil {
		return err
	}
	if !ok {
		a.step("%s follows nothing", info.Repo)
		return nil
	}
	rec.Repo = info.Repo.String()
	if err := a.stopFollowing(ctx, service, store, rec); err != nil {
		return fmt.Errorf("%s does not follow %s any more, but the rule for %s is still there: remove it at %s/%s/settings/branches (%w)",
			rec.Repo, rec.Upstream, rec.Branch, a.cfg.forgeURL(), rec.Repo, err)
	}
	a.step("%s does not follow %s any more", rec.Repo, rec.Upstream)
	return nil
}

func (a *app) forgeSync(ctx context.Context, name string) error {
	var id int64
	if name != "" {
		_, info, err := a.onForge(ctx, name)
		if err != nil {
			return err
		}
		id = info.ID
	}
	views, err := a.syncNow(ctx, id)
	if errors.Is(err, errNotFound) {
		return fmt.Errorf("%s follows no upstream (devaipod forge follow lets it)", name)
	}
	if err != nil {
		return err
	}
	if a.asJSON {
		err = a.printJSON(views)
	} else {
		err = a.printFollowed(views)
	}
	for _, v := range views {
		if err == nil && len(v.Troubles) > 0 {
			err = &exitError{code: codeNeedsHuman}
		}
	}
	return err
}

// syncNow lets the service look at one repository, or at all when id is 0.
func (a *app) syncNow(ctx context.Context, id int64) ([]follow.View, error) {
	path := "/api/follow"
	if id != 0 {
		path += fmt.Sprintf("/%d", id)
	}
	resp, err := a.api().do(ctx, http.MethodPost, path)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	views := []follow.View{}
	err = json.NewDecoder(resp.Body).Decode(&views)
	return views, err
}

// followedNow is what follows an upstream: from the service, or as it was last
// seen when that does not run.
func (a *app) followedNow(ctx context.Context) ([]follow.View, error) {
	views := []follow.View{}
	if a.api().get(ctx, "/api/follow", &views) == nil {
		return views, nil
	}
	store, err := a.followStore()
	if err != nil {
		return nil, err
	}
	all, err := store.List()
	for _, rec := range all {
		views = append(views, follow.View{Record: rec})
	}
	return views, err
}

// printFollowed prints a line for each, and what is wrong with it below.
func (a *app) printFollowed(views []follow.View) error {
	for _, v := range views {
		state := fmt.Sprintf("%.12s", v.Written)
		switch {
		case len(v.Troubles) > 0:
			state = "needs a look"
		case v.Seen == "":
			state = "not looked at yet"
		case v.Seen != v.Written:
			state = "behind"
		}
		if !v.Checked.IsZero() {
			state += ", checked " + ago(v.Checked)
		}
		if _, err := fmt.Fprintf(a.out, "  %s  follows %s %s  (%s)\n", v.Repo, v.Upstream, plain(v.Branch, 100), state); err != nil {
			return err
		}
		for _, t := range v.Troubles {
			fmt.Fprintf(a.out, "    since %s: %s\n", t.Since.Local().Format(time.DateTime), plain(t.Text, 500))
			if t.Next != "" {
				fmt.Fprintf(a.out, "      %s\n", plain(t.Next, 500))
			}
		}
	}
	return nil
}
