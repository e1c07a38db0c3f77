package main

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	cicache "codeberg.org/devaipod/devaipod/ci/cache"
)

func (a *app) ciCacheCmd() *cobra.Command {
	list := a.ciCacheListCmd()
	cmd := a.jsonFlag(&cobra.Command{
		Use: "cache", Short: "See and remove what jobs have saved by actions/cache", Args: noArgs, RunE: list.RunE,
		Example: "  devaipod ci cache\n  devaipod ci cache rm Linux-go-1f0e",
	})
	cmd.AddCommand(list, a.ciCacheRemoveCmd())
	return cmd
}

func (a *app) ciCacheListCmd() *cobra.Command {
	return a.jsonFlag(&cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List what jobs have saved, what was used last first", Args: noArgs,
		RunE: func(*cobra.Command, []string) error {
			all, err := cicache.List(a.cfg.file("ci/cache"))
			if err != nil {
				return err
			}
			if a.asJSON {
				return a.printJSON(all)
			}
			w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "ID\tREPOSITORY\tREF\tTIER\tKEY\tSIZE\tUSED")
			for _, e := range all {
				fmt.Fprintf(w, "%.12s\t%s\t%s\t%s\t%s\t%s\t%s\n", e.ID, visible([]byte(e.Repo)), visible([]byte(e.Ref)), e.Tier, visible([]byte(e.Key)), formatBytes(e.Size), ago(e.Used))
			}
			return w.Flush()
		},
	})
}

func (a *app) ciCacheRemoveCmd() *cobra.Command {
	repo, all := "", false
	cmd := &cobra.Command{
		Use: "rm {ID | KEY | --all}", Aliases: []string{"remove", "delete"}, Short: "Remove what jobs have saved",
		Long:    "Remove an entry by its ID (the beginning that the list shows, or more of it), or all of a key.",
		Example: "  devaipod ci cache rm 1f0e3dad9990\n  devaipod ci cache rm --repo ada/app Linux-go-1f0e\n  devaipod ci cache rm --all --repo ada/app",
		Args: args(func(_ *cobra.Command, args []string) error {
			if len(args) > 1 || (len(args) == 1) == all {
				return errors.New("want one ID or KEY, or --all")
			}
			return nil
		}),
		RunE: func(_ *cobra.Command, args []string) error {
			return a.ciCacheRemove(strings.Join(args, ""), repo, all)
		},
	}
	cmd.Flags().StringVarP(&repo, "repo", "R", repo, "of one repository alone, OWNER/NAME")
	cmd.Flags().BoolVarP(&all, "all", "a", all, "all entries")
	return cmd
}

// shortID is how much of an ID names an entry.
const shortID = 12

func (a *app) ciCacheRemove(what, repo string, all bool) error {
	dir := a.cfg.file("ci/cache")
	entries, err := cicache.List(dir)
	if err != nil {
		return err
	}
	n, bytes := 0, int64(0)
	for _, e := range entries {
		named := all || strings.EqualFold(e.Key, what) || len(what) >= shortID && strings.HasPrefix(e.ID, what)
		if !named || repo != "" && !strings.EqualFold(e.Repo, repo) {
			continue
		}
		if err := cicache.Remove(dir, e.ID); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		n, bytes = n+1, bytes+e.Size
	}
	if n == 0 && !all {
		return fmt.Errorf("nothing is saved as %q: devaipod ci cache lists what is", what)
	}
	a.step("removed %d, %s", n, formatBytes(bytes))
	return nil
}
