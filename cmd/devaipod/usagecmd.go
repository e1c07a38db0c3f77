package main

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"codeberg.org/devaipod/devaipod/pods"
	"codeberg.org/devaipod/devaipod/pods/usage"
)

// usageRow is what `devaipod usage --json` prints of a group.
type usageRow struct {
	Group string `json:"group"` // what was asked to be told apart: owner/name#3, a model, 2026-11
	usage.Totals
}

// groups are what usage can be told apart by.
var groups = map[string]func(pods.Account, usage.Entry) string{
	"issue":      func(a pods.Account, _ usage.Entry) string { return fmt.Sprintf("%s#%d", a.Repo, a.Issue) },
	"repository": func(a pods.Account, _ usage.Entry) string { return a.Repo },
	"agent":      func(_ pods.Account, e usage.Entry) string { return cmp.Or(e.Agent, "-") },
	"model":      func(_ pods.Account, e usage.Entry) string { return cmp.Or(e.Model, "-") },
	"month":      func(_ pods.Account, e usage.Entry) string { return e.At.Format("2006-01") },
}

func (a *app) usageCmd() *cobra.Command {
	names := slices.Sorted(maps.Keys(groups))
	by := "issue"
	cmd := a.jsonFlag(&cobra.Command{
		Use: "usage", Short: "Show what agents have used of their models", Args: noArgs,
		Long: "Show what agents have used of their models, as their gates counted it: tokens, money by the\nconfigured prices (model.price), and the time for which a model worked. A request that is under\nway, or that was cut off by a kill, counts with what it may have used at most.",
		RunE: func(*cobra.Command, []string) error {
			if groups[by] == nil {
				return usagef("--by %s: want one of %s", by, strings.Join(names, ", "))
			}
			return a.usage(by)
		},
	})
	cmd.Flags().StringVar(&by, "by", by, "what to tell apart: "+strings.Join(names, ", "))
	return cmd
}

func (a *app) usage(by string) error {
	accounts, err := pods.Accounts(a.cfg.StateDir)
	if err != nil {
		return err
	}
	rows, all := map[string]*usageRow{}, usage.Totals{}
	for _, account := range accounts {
		entries, e := usage.Read(account.Dir)
		if e != nil { // the others can be told
			err = errors.Join(err, e)
		}
		for _, entry := range entries {
			group := groups[by](account, entry)
			if rows[group] == nil {
				rows[group] = &usageRow{Group: group}
			}
			one := usage.Sum([]usage.Entry{entry})
			rows[group].Totals, all = rows[group].Add(one), all.Add(one)
		}
	}
	sorted := slices.SortedFunc(maps.Values(rows), func(a, b *usageRow) int { return cmp.Compare(a.Group, b.Group) })
	if a.asJSON {
		if sorted == nil {
			sorted = []*usageRow{}
		}
		return errors.Join(err, a.printJSON(sorted))
	}
	w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(w, "%s\trequests\tinput\toutput\tcache\tcost\ttime\t\n", by)
	for _, row := range append(sorted, &usageRow{Group: "all", Totals: all}) {
		fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\t%s\t%s\t\n", row.Group, row.Requests, count(row.Tokens.Input), count(row.Tokens.Output),
			count(row.Tokens.CacheRead+row.Tokens.CacheWrite), row.Cost, shortTime(row.Time))
	}
	return errors.Join(err, w.Flush())
}

// count is a number with its thousands apart: 12,345.
func count(n int64) string {
	s := strconv.FormatInt(n, 10)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// shortTime is a time without the parts at its end that are nothing: 2h, 90m.
func shortTime(d time.Duration) string {
	s := d.Round(time.Second).String()
	if rest, ok := strings.CutSuffix(s, "m0s"); ok {
		s = rest + "m"
	}
	if rest, ok := strings.CutSuffix(s, "h0m"); ok {
		s = rest + "h"
	}
	return s
}
