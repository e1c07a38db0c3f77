package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/spf13/cobra"

	"codeberg.org/devaipod/devaipod/pods/reconcile"
)

func (a *app) exportCmd() *cobra.Command {
	var dry bool
	cmd := a.jsonFlag(&cobra.Command{
		Use: "export ISSUE", Short: "Land what people approved, now: by a merge, or upstream", Args: args(cobra.ExactArgs(1)),
		Long: `Land the approved commit of an issue's pull request now: by a merge in the forge, or, where
its base follows an upstream, by a push to there, forward only. The service does so by itself
once land.approvals people have approved; this does it when that is 0, or sooner. It takes the
same approvals, one at least.

Exit code 3: something lacks, and a person can see to it. 4: the other side refuses.`,
		Example:           "  devaipod export ada/app#3 --dry-run\n  devaipod export ada/app#3",
		ValidArgsFunction: a.completePods,
		RunE:              func(cmd *cobra.Command, rest []string) error { return a.export(cmd.Context(), rest[0], dry) },
	})
	cmd.Flags().BoolVar(&dry, "dry-run", false, "tell what would go where, and what lacks, and do nothing")
	return cmd
}

func (a *app) export(ctx context.Context, issue string, dry bool) error {
	k, err := a.issueKey(ctx, issue)
	if err != nil {
		return err
	}
	resp, err := a.api().do(ctx, http.MethodPost, fmt.Sprintf("%s/export?dry=%t", podPath(k), dry))
	if errors.Is(err, errNotFound) {
		return fmt.Errorf("%s has no pod, so there is nothing of an agent's to land (devaipod list)", k)
	}
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	var got reconcile.Approval
	if err := json.NewDecoder(resp.Body).Decode(&got); err != nil {
		return err
	}
	if a.asJSON {
		err = a.printJSON(got)
	} else {
		err = a.printApproval(got)
	}
	switch {
	case err != nil || got.Landed:
		return err
	case len(got.Lacks) > 0:
		return &exitError{code: codeNeedsHuman}
	case got.Refused:
		return &exitError{codeRefused, errors.New(plain(got.Failed, 2000))}
	case got.Failed != "":
		return errors.New(plain(got.Failed, 2000))
	}
	return nil
}

func (a *app) printApproval(got reconcile.Approval) error {
	var b strings.Builder
	line := func(name, format string, v ...any) {
		fmt.Fprintf(&b, "%-13s %s\n", name, plain(fmt.Sprintf(format, v...), 500))
	}
	line("issue", "%s", got.Issue)
	if got.Pull != 0 {
		line("pull request", "#%d at %s", got.Pull, got.Commit)
	}
	if g := got.Goes; g != nil {
		where := "the forge, by a merge commit"
		if g.Upstream != "" {
			where = g.Upstream + ", which it follows"
		}
		line("goes to", "%s of %s", g.Branch, where)
		line("from, to", "%.12s..%.12s", g.Old, g.New)
		for _, c := range g.Commits {
			line("", "%.12s %s", c.SHA, c.Subject)
		}
	}
	line("approved by", "%s (%d of %d)", strings.Join(got.Approvers, ", "), len(got.Approvers), got.Needs)
	for _, text := range got.Notes {
		line("", "%s", text)
	}
	for _, text := range got.Lacks {
		line("lacks", "%s", text)
	}
	if got.Landed {
		line("landed", "yes")
	}
	_, err := fmt.Fprint(a.out, b.String())
	return err
}

// export tells the command line how an issue's pull request would land, or lands it. A pull
// request's number stands for its issue's, where no issue with a pod has it.
func (s *service) export(w http.ResponseWriter, r *http.Request, k reconcile.Key) {
	if _, ok := s.view(k); !ok {
		for _, v := range s.loop.Views() {
			if v.Owner == k.Owner && v.Repo == k.Repo && v.Pull == k.Issue {
				k = v.Key
			}
		}
	}
	got, err := s.loop.Export(r.Context(), k, r.URL.Query().Get("dry") != "true")
	switch {
	case errors.Is(err, reconcile.ErrGone):
		http.Error(w, err.Error(), http.StatusNotFound)
	case err != nil:
		http.Error(w, err.Error(), http.StatusInternalServerError)
	default:
		s.json(w, got)
	}
}
