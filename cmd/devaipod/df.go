package main

import (
	"context"
	"errors"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"codeberg.org/devaipod/devaipod/mirror"
)

// A cost is what one kind of thing takes of the disk.
type cost struct {
	What  string `json:"what"`
	Count int    `json:"count"`
	Size  int64  `json:"size"` // bytes
	Where string `json:"where"`
}

func (a *app) dfCmd() *cobra.Command {
	return a.jsonFlag(&cobra.Command{
		Use: "df", Short: "Show what caches and saved work take of the disk", Args: noArgs,
		RunE: func(*cobra.Command, []string) error { return a.df() },
	})
}

func (a *app) df() error {
	c, all, err := a.listCache()
	if err != nil {
		return err
	}
	defer c.Close() //nolint:errcheck // nothing goes on
	repos := cost{What: "git repositories", Count: len(all), Where: a.cfg.Mirror.Dir + "/repos"}
	for _, e := range all {
		repos.Size += e.Size
	}
	answers := cost{What: "answers for clients that ask the same", Where: a.cfg.Mirror.Dir + "/answers"}
	if answers.Count, answers.Size, err = c.Kept(); err != nil {
		return err
	}
	lent := cost{What: "objects that only pods' clones borrow still", Where: a.cfg.Mirror.Dir + "/lent"}
	if lent.Count, lent.Size, err = c.Lent(); err != nil {
		return err
	}
	saved := cost{What: "pushed and saved work of agents", Where: a.cfg.file("work")}
	if saved.Count, saved.Size, err = mirror.OpenSaved(saved.Where, nil).Size(); err != nil {
		return err
	}
	costs := []cost{repos, answers, lent, saved}
	if a.asJSON {
		return a.printJSON(costs)
	}
	w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "WHAT\tCOUNT\tSIZE\tWHERE")
	for _, c := range costs {
		fmt.Fprintf(w, "%s\t%d\t%s\t%s\n", c.What, c.Count, formatBytes(c.Size), c.Where)
	}
	return w.Flush()
}

func (a *app) pruneCmd() *cobra.Command {
	var older time.Duration
	var dry bool
	cmd := &cobra.Command{
		Use: "prune", Short: "Remove what has no owner, and from the caches what was not used for some time", Args: noArgs,
		Long: `Remove what this instance has that has no owner: what a removal that was cut short
has left, parts of pods that are gone, old images of its own that nothing uses
([prune] of the configuration). The service does that by itself, at its start and
every hour. What may hold work stays, and is named. Then remove cached
repositories that nobody read for some time; one that its upstream may not have
any more stays.`,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.prune(cmd.Context(), older, dry) },
	}
	cmd.Flags().DurationVar(&older, "older", 30*24*time.Hour, "how long ago it was used last")
	cmd.Flags().BoolVar(&dry, "dry-run", false, "only say what would be removed")
	return cmd
}

func (a *app) prune(ctx context.Context, older time.Duration, dry bool) error {
	did, err := a.pruneThings(ctx, dry)
	for _, what := range did.Removed {
		fmt.Fprintln(a.out, map[bool]string{true: "would remove", false: "removed"}[dry], what)
	}
	for _, what := range did.Kept {
		a.step("kept     %s", what)
	}
	return errors.Join(err, a.pruneCache(ctx, older, dry))
}

func (a *app) pruneCache(ctx context.Context, older time.Duration, dry bool) error {
	c, all, err := a.listCache()
	if err != nil {
		return err
	}
	defer c.Close() //nolint:errcheck // nothing goes on
	var sum int64
	var errs []error
	for _, e := range all {
		if time.Since(e.Used) < older {
			continue
		}
		frees := e.Size - e.Lent
		line := fmt.Sprintf("%s (%s, used %s)", e.Address, formatBytes(frees), ago(e.Used))
		if dry {
			fmt.Fprintln(a.out, "would remove", line)
			sum += frees
			continue
		}
		addrs, err := addresses([]string{e.Address})
		if err == nil {
			err = c.Remove(ctx, addrs[0], false)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s stays: %w", e.Address, err))
			continue
		}
		fmt.Fprintln(a.out, "removed", line)
		sum += frees
	}
	fmt.Fprintf(a.out, "%s in all\n", formatBytes(sum))
	return errors.Join(errs...)
}
