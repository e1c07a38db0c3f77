package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"codeberg.org/devaipod/devaipod/mirror"
)

// recovery is what `devaipod recover` is asked for.
type recovery struct {
	dir, bundle, at string
	list            bool
}

func (a *app) recoverCmd() *cobra.Command {
	var r recovery
	cmd := &cobra.Command{
		Use: "recover ISSUE", Short: "Bring an agent's saved work back, also when its pod is gone", Args: args(cobra.ExactArgs(1)),
		Long: `Make a new directory with a clone that has what was saved of an agent's work: its
branches, its newest stash, and its files as they were, what was not committed
uncommitted. All snapshots are there too, below refs/devaipod/saved/.

With --bundle it becomes one file instead, which git clone reads (git-bundle(1)).

Neither pod, service nor forge is needed. What an agent left is hostile: look before
you run anything of it. Your own git runs the filters and hooks that you have set up
yourself, for the files and attributes that the agent chose.`,
		Example: "  devaipod recover ada/app#3\n  devaipod recover ada/app#3 --list\n  devaipod recover ada/app#3 --at 14:30 --dir before",
		RunE: func(cmd *cobra.Command, rest []string) error {
			k, err := a.issueKey(cmd.Context(), rest[0])
			if err != nil {
				return err
			}
			work, err := a.findSaved(cmd.Context(), k)
			if err != nil {
				return err
			}
			switch {
			case r.list:
				return a.listSaved(cmd.Context(), work)
			case r.bundle != "":
				return a.bundle(cmd.Context(), work, r.bundle)
			}
			return a.recover(cmd.Context(), work, r)
		},
	}
	f := cmd.Flags()
	f.StringVar(&r.dir, "dir", "", "`directory` to make (default: REPO-ISSUE here)")
	f.Lookup("dir").Annotations = map[string][]string{notAKey: {}}
	f.StringVar(&r.bundle, "bundle", "", "write all of it to a `file`")
	f.StringVar(&r.at, "at", "", "the newest snapshot at a `time`: 14:30, 2026-01-31 14:30, 10m (ago), or the first digits of a commit that --list tells")
	f.BoolVar(&r.list, "list", false, "list the snapshots, the newest first")
	cmd.MarkFlagsMutuallyExclusive("dir", "bundle", "list")
	cmd.MarkFlagsMutuallyExclusive("at", "bundle", "list")
	return a.jsonFlag(a.storeFlag(cmd))
}

// A recovered is `devaipod recover --json`.
type recovered struct {
	Dir    string     `json:"dir,omitempty"`
	Bundle string     `json:"bundle,omitempty"`
	Saved  *savedView `json:"saved"`
}

func (a *app) recover(ctx context.Context, work foundWork, r recovery) error {
	snap, err := a.snapshotAt(ctx, work, r.at)
	if err != nil {
		return err
	}
	view, err := viewSnapshot(snap)
	if err != nil {
		return err
	}
	if r.dir == "" {
		r.dir = fmt.Sprintf("%s-%d", work.key.Repo, work.key.Issue)
	}
	dir, err := filepath.Abs(r.dir)
	if err != nil {
		return err
	}
	if _, err := os.Lstat(dir); err == nil {
		return fmt.Errorf("%s is there already: name another directory with --dir", dir)
	}
	origin := fmt.Sprintf("%s/%s/%s.git", a.cfg.forgeURL(), work.key.Owner, work.key.Repo)
	if err := work.Recover(ctx, snap, dir, origin); err != nil {
		return fmt.Errorf("bringing back what was saved of %s: %w; devaipod recover %s --bundle FILE copies it without a look", work.key, err, work.key)
	}
	a.tell(view)
	links, err := mirror.Links(dir, maxTold)
	if err != nil {
		return err
	}
	for _, link := range links {
		a.step("careful    %s is a link that leads out of the directory", strings.ReplaceAll(plain(link, 300), "\n", " "))
	}
	if a.asJSON {
		return a.printJSON(recovered{Dir: dir, Saved: &view})
	}
	a.step("recovered  %s", work.key)
	_, err = fmt.Fprintln(a.out, dir)
	return err
}

func (a *app) bundle(ctx context.Context, work foundWork, file string) error {
	_, view, err := work.newest(ctx)
	if err != nil {
		return err
	}
	if file, err = filepath.Abs(file); err != nil {
		return err
	}
	if err := work.Bundle(ctx, file); err != nil {
		return fmt.Errorf("writing what was saved of %s to %s: %w", work.key, file, err)
	}
	a.tell(view)
	if a.asJSON {
		return a.printJSON(recovered{Bundle: file, Saved: &view})
	}
	_, err = fmt.Fprintln(a.out, file)
	return err
}

// snapshotAt is the newest snapshot, or the one that a person means by at.
func (a *app) snapshotAt(ctx context.Context, work foundWork, at string) (mirror.Snapshot, error) {
	if at == "" {
		s, _, err := work.newest(ctx)
		return s, err
	}
	until, isTime := parseTime(at, time.Now())
	var found mirror.Snapshot
	var first time.Time
	err := work.Snapshots(ctx, func(s mirror.Snapshot) bool {
		first = s.At
		if isTime && !s.At.After(until) || !isTime && strings.HasPrefix(s.ID, at) {
			found = s
		}
		return found.ID == ""
	})
	switch {
	case err != nil || found.ID != "":
		return found, err
	case first.IsZero():
		return found, fmt.Errorf("what was saved of %s: %w", work.key, mirror.ErrNothingSaved)
	case !isTime && (len(at) < 6 || strings.Trim(at, "0123456789abcdef") != ""):
		return found, usagef("--at %q: want a time like 14:30, 2026-01-31 14:30 or 10m, or a commit of --list", at)
	case !isTime:
		return found, fmt.Errorf("no snapshot of %s is %s: see devaipod recover %s --list", work.key, at, work.key)
	}
	return found, fmt.Errorf("nothing was saved of %s before %s: the first snapshot is of %s", work.key, until.Local().Format(time.DateTime), first.Local().Format(time.DateTime))
}

// parseTime reads a time as people write it; one of day is the last such.
func parseTime(s string, now time.Time) (time.Time, bool) {
	if d, err := time.ParseDuration(s); err == nil {
		return now.Add(-d), true
	}
	for _, layout := range []string{time.RFC3339, time.DateTime, "2006-01-02 15:04", "2006-01-02T15:04:05", "2006-01-02T15:04"} {
		if t, err := time.ParseInLocation(layout, s, time.Local); err == nil {
			return endOf(t, layout), true
		}
	}
	for _, layout := range []string{"15:04:05", "15:04"} {
		if t, err := time.ParseInLocation(layout, s, time.Local); err == nil {
			y, m, d := now.Local().Date()
			t = time.Date(y, m, d, t.Hour(), t.Minute(), t.Second(), 0, time.Local)
			if t.After(now) {
				t = t.AddDate(0, 0, -1)
			}
			return endOf(t, layout), true
		}
	}
	return time.Time{}, false
}

// endOf is the last second that a time without seconds means.
func endOf(t time.Time, layout string) time.Time {
	if strings.HasSuffix(layout, "15:04") {
		return t.Add(59 * time.Second)
	}
	return t
}

// listSaved lists the snapshots.
func (a *app) listSaved(ctx context.Context, work foundWork) error {
	all := []savedView{}
	var bad error
	err := work.Snapshots(ctx, func(s mirror.Snapshot) bool {
		v, err := viewSnapshot(s)
		bad = err
		all = append(all, v)
		return err == nil
	})
	if err := errors.Join(err, bad); err != nil {
		return err
	}
	used, err := work.Used()
	if err != nil {
		return err
	}
	if a.asJSON {
		return a.printJSON(map[string]any{"store": work.Dir(), "used": used, "snapshots": all})
	}
	w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "SAVED\tCOMMIT\tBRANCH\tHEAD\tNOT SAVED")
	for _, v := range all {
		fmt.Fprintf(w, "%s\t%.12s\t%s\t%s\t%d\n", v.At.Local().Format(time.DateTime), v.Commit, orDash(strings.ReplaceAll(plain(v.Branch, 60), "\n", " ")), orDash(fmt.Sprintf("%.12s", v.Head)), len(v.NotSaved)+v.More)
	}
	a.step("%d snapshots, %s of work.max_saved used, in %s", len(all), formatBytes(used), work.Dir())
	return w.Flush()
}
