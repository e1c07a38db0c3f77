package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"codeberg.org/devaipod/devaipod/forge"
	"codeberg.org/devaipod/devaipod/mirror"
	"codeberg.org/devaipod/devaipod/podapi/web"
	"codeberg.org/devaipod/devaipod/pods"
	"codeberg.org/devaipod/devaipod/pods/reconcile"
)

// personForge is the forge in the person's own name.
func (a *app) personForge(creds credentials) (*forge.Client, error) {
	if creds.PersonToken == "" {
		return nil, &exitError{codeNeedsHuman, fmt.Errorf("this needs a token of yours: %s", a.howToJoin("person"))}
	}
	return a.newForge(forge.Config{Token: creds.PersonToken, BotToken: creds.BotToken, BotUser: creds.Bot, ServiceUser: creds.Service}, creds.Person)
}

func (a *app) listCmd() *cobra.Command {
	return a.jsonFlag(&cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the issues that agents work on, and people's own pods", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var views []reconcile.View
			if err := a.api().get(cmd.Context(), "/api/pods", &views); err != nil {
				return err
			}
			var st serviceStatus
			if err := a.api().get(cmd.Context(), "/api/status", &st); err != nil {
				return err
			}
			if st.Trouble != "" {
				a.step("what follows may be old; the service tries again: %s", plain(st.Trouble, 1000))
			}
			if st.AuditTrouble != "" {
				a.step("WARNING  %s", plain(st.AuditTrouble, 1000))
			}
			var own []workspaceView
			if err := a.api().get(cmd.Context(), "/api/workspaces", &own); err != nil {
				return err
			}
			return a.printList(views, own)
		},
	})
}

func (a *app) printList(views []reconcile.View, own []workspaceView) error {
	if a.asJSON {
		all := []any{}
		for _, v := range views {
			all = append(all, struct {
				Kind string `json:"kind"`
				reconcile.View
			}{kindAgent, v})
		}
		for _, v := range own {
			all = append(all, v)
		}
		return a.printJSON(all)
	}
	w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ISSUE\tSTATE\tAGENT\tPULL REQUEST\tTITLE")
	for _, v := range views {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", v.Issue, stateOf(v), orDash(plain(string(v.Doing), 30)), orDash(v.PullRequest), plain(v.Title, 60))
	}
	for _, v := range own {
		fmt.Fprintf(w, "%s\t%s\t-\t-\tworkspace on %s\n", v.Name, v.State, plain(v.Branch, 60))
	}
	return w.Flush()
}

// stateOf is a view's state, with the place in the queue where it has one.
func stateOf(v reconcile.View) string {
	if v.Position > 0 {
		return fmt.Sprintf("%s (number %d)", v.State, v.Position)
	}
	return string(v.State)
}

func (a *app) statusCmd() *cobra.Command {
	return a.jsonFlag(&cobra.Command{
		Use: "status POD", Short: "Tell how the work on an issue, or a pod of your own, is going", Args: args(cobra.ExactArgs(1)),
		Long: "POD is an issue (owner/name#3, its URL, or 3 inside a checkout) or a workspace (owner/name@NAME, or NAME inside a checkout).", ValidArgsFunction: a.completePods,
		RunE: func(cmd *cobra.Command, rest []string) error {
			k, err := a.podKey(cmd.Context(), rest[0])
			if err != nil {
				return err
			}
			if k.Name != "" {
				return a.workspaceStatus(cmd.Context(), k)
			}
			return a.status(cmd.Context(), reconcile.Key(k))
		},
	})
}

// status tells of an issue, and of what is saved of its agent's work.
func (a *app) status(ctx context.Context, k reconcile.Key) error {
	v, err := a.knownView(ctx, k)
	saved, savedErr := a.savedOf(ctx, k)
	if err != nil {
		if saved != nil {
			a.tell(*saved)
			a.step("devaipod recover %s brings it back", k)
		}
		return err
	}
	if savedErr != nil {
		a.step("what was saved can't be told: %s", savedErr)
	}
	evidence, err := a.newestNote(ctx, k)
	if err != nil {
		a.step("the evidence can't be told: %s", err)
	}
	if a.asJSON {
		return a.printJSON(struct {
			reconcile.View
			Saved    *savedView `json:"saved,omitempty"`
			Evidence *note      `json:"evidence,omitempty"`
		}{v, saved, evidence})
	}
	var facts []web.Fact
	if err := a.api().get(ctx, podPath(k)+"/facts", &facts); err != nil {
		return err
	}
	return a.printFacts(facts)
}

// knownView is the view of an issue, or an error that says what to do.
func (a *app) knownView(ctx context.Context, k reconcile.Key) (reconcile.View, error) {
	v, err := a.api().view(ctx, k)
	if errors.Is(err, errNotFound) {
		return v, fmt.Errorf("no agent works on %s: put the label %s on it to start one", k, a.cfg.Label)
	}
	return v, err
}

// printFacts tells what the pod's page tells.
func (a *app) printFacts(facts []web.Fact) error {
	w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
	for _, f := range facts {
		for i, line := range strings.Split(plain(strings.Join(f.Lines, "\n"), 4000), "\n") {
			name := f.Name
			if i > 0 && len(f.Lines) == 1 { // of a text of more lines
				name = ""
			}
			fmt.Fprintf(w, "%s\t%s\n", name, line)
		}
	}
	return w.Flush()
}

func (a *app) stopCmd() *cobra.Command {
	return &cobra.Command{
		Use: "stop POD", Short: "Stop the agent on an issue, or a pod of your own, and keep its work", Args: args(cobra.ExactArgs(1)),
		Long: "Take the label off the issue, as you would in the browser, and wait until the pod has stopped.\nA workspace (owner/name@NAME) stops and stays; devaipod up starts it again.", ValidArgsFunction: a.completePods,
		RunE: func(cmd *cobra.Command, rest []string) error {
			key, err := a.podKey(cmd.Context(), rest[0])
			if err != nil {
				return err
			}
			if key.Name != "" {
				return a.stopWorkspace(cmd.Context(), key)
			}
			k := reconcile.Key(key)
			if err := a.unlabel(cmd.Context(), k); err != nil {
				return err
			}
			if err := a.keepCommand("stop", k.String(), "took the label off"); err != nil {
				return err
			}
			return a.waitStopped(cmd.Context(), k)
		},
	}
}

// unlabel takes the label off in the person's name.
func (a *app) unlabel(ctx context.Context, k reconcile.Key) error {
	creds, err := a.readCredentials()
	if err != nil {
		return err
	}
	client, err := a.personForge(creds)
	if err != nil {
		return err
	}
	err = unlabel(ctx, client, k, a.cfg.Label, "")
	if errors.Is(err, forge.ErrNotFound) {
		return fmt.Errorf("there is no issue %s on the forge: %w", k, forge.ErrNotFound)
	}
	return unreachable(err)
}

func (a *app) waitStopped(ctx context.Context, k reconcile.Key) error {
	api := a.api()
	if err := api.post(ctx, podPath(k)+"/kick"); err != nil {
		return err
	}
	for {
		v, err := api.view(ctx, k)
		if errors.Is(err, errNotFound) || (err == nil && (v.State == reconcile.Stopped || v.State == reconcile.Done || v.State == goneState)) {
			a.step("stopped  %s", k)
			return nil
		}
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func (a *app) rmCmd() *cobra.Command {
	var force, purge bool
	cmd := &cobra.Command{
		Use: "rm POD", Short: "Remove the pod of an issue, once its work is saved, or one of your own", Args: args(cobra.ExactArgs(1)), ValidArgsFunction: a.completePods,
		Long: `Stop the agent on an issue, save what it did and remove its pod: containers,
network and volumes. What it pushed stays on the forge, and the rest in the work
store (see devaipod recover). When something of it can't be saved the pod stays, and
what it is is printed: --force removes the pod all the same, and leaves a recovery
bundle of what is saved.

With --purge and --force what was saved goes too, but for a recovery bundle.

A workspace (owner/name@NAME) stays while it holds what is nowhere else: commits that no
branch of the forge has, changes, stashes, files beside the clone; so does the pod of an
issue whose workspace somebody has entered or copied into. --force removes it all the
same, for good: there is no bundle of it.`,
		RunE: func(cmd *cobra.Command, rest []string) error {
			key, err := a.podKey(cmd.Context(), rest[0])
			if err != nil {
				return err
			}
			if key.Name != "" {
				return a.rmWorkspace(cmd.Context(), key, force)
			}
			k := reconcile.Key(key)
			if purge && !force {
				return usagef("--purge removes for good what was saved of %s: add --force if that is meant", k)
			}
			if !force && pods.Entered(a.cfg.StateDir, a.cfg.Instance, key) {
				a.fetchThere(cmd.Context(), key)
			}
			// An issue that is gone has no label; its pod may still be there.
			if err := a.unlabel(cmd.Context(), k); err != nil && !errors.Is(err, forge.ErrNotFound) {
				return err
			}
			return a.removePod(cmd.Context(), k, force, purge)
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "remove it also when not all can be saved")
	cmd.Flags().BoolVar(&purge, "purge", false, "remove what was saved of it too")
	return cmd
}

func (a *app) removePod(ctx context.Context, k reconcile.Key, force, purge bool) error {
	saved, err := a.api().remove(ctx, k, force)
	if err != nil {
		return err
	}
	for _, n := range saved.NotSaved {
		a.step("not saved  %s", notSavedLine(n))
	}
	a.step("removed  the pod of %s", k)
	if purge {
		if err := a.forgetTranscript(ctx, k); err != nil {
			return err
		}
	}
	if !purge && saved.Complete && len(lostWith(saved)) == 0 {
		return nil
	}
	work, err := a.findSaved(ctx, k)
	if errors.Is(err, mirror.ErrNothingSaved) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := a.leaveBundle(ctx, work); err != nil || !purge {
		return err
	}
	if err := a.api().post(ctx, fmt.Sprintf("/api/saved/%d/%d/forget", work.Repository(), k.Issue)); err != nil {
		return err
	}
	a.step("removed  what was saved of %s", k)
	return nil
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// plain makes text of an agent or the forge safe for a terminal: no control
// characters but newline, no reordering, bounded.
func plain(s string, n int) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case r == '\n':
			return r
		case r == '\t':
			return ' '
		case r < ' ' || (r >= 0x7f && r < 0xa0), r >= 0x202a && r <= 0x202e, r >= 0x2066 && r <= 0x2069, r == 0x200e, r == 0x200f:
			return -1
		}
		return r
	}, strings.ToValidUTF8(s, "\uFFFD"))
	if r := []rune(s); len(r) > n {
		return string(r[:n]) + "…"
	}
	return s
}

// cleanWriter passes a container's log on without terminal orders. A rune that
// is split between two writes shows as replacement characters.
type cleanWriter struct{ w io.Writer }

func (c cleanWriter) Write(b []byte) (int, error) {
	if _, err := io.WriteString(c.w, plain(string(b), len(b))); err != nil {
		return 0, err
	}
	return len(b), nil
}
