package main

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"codeberg.org/devaipod/devaipod/podapi"
	"codeberg.org/devaipod/devaipod/pods"
	"codeberg.org/devaipod/devaipod/pods/reconcile"
)

func (a *app) logsCmd() *cobra.Command {
	var follow bool
	var container string
	cmd := &cobra.Command{
		Use: "logs ISSUE", Short: "Print what the agent did", Args: args(cobra.ExactArgs(1)),
		Long: "Print what the agent did and said on an issue, in all its pods. It is kept when they are gone,\nuntil devaipod rm --purge.",
		RunE: func(cmd *cobra.Command, rest []string) error {
			k, err := a.issueKey(cmd.Context(), rest[0])
			if err != nil {
				return err
			}
			if container != "" {
				return a.containerLogs(cmd.Context(), k, container, follow)
			}
			return a.transcript(cmd.Context(), k, follow)
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on printing what comes")
	cmd.Flags().StringVar(&container, "container", "", "print a container's own log instead: `agent`, control, saver or workspace")
	return a.jsonFlag(cmd)
}

func (a *app) containerLogs(ctx context.Context, k reconcile.Key, container string, follow bool) error {
	if !slices.Contains([]string{"agent", "control", "saver", "workspace"}, container) {
		return usagef("--container %q: want agent, control, saver or workspace", container)
	}
	p, err := a.podman(ctx)
	if err != nil {
		return err
	}
	return p.Logs(ctx, pods.Name(a.cfg.Instance, pods.Key(k))+"-"+container, follow, 0, cleanWriter{a.out})
}

func (a *app) printEvent(ev podapi.Event) error {
	if a.asJSON {
		return a.printJSON(ev)
	}
	_, err := fmt.Fprintf(a.out, "%s  %-6s %s\n", ev.Time.Local().Format(time.TimeOnly), ev.Type, strings.ReplaceAll(plain(ev.Text, 4000), "\n", "\n                 "))
	return err
}

// transcript prints what is kept of an issue's agents, and with follow what comes.
func (a *app) transcript(ctx context.Context, k reconcile.Key, follow bool) error {
	dir, err := a.transcriptDir(ctx, k)
	if err != nil {
		return err
	}
	last := int64(0)
	if dir != "" {
		err = podapi.ReadTranscript(dir, func(ev podapi.Event) error {
			last = ev.ID
			return a.printEvent(ev)
		})
	}
	if err == nil && last == 0 {
		_, err = a.knownView(ctx, k) // neither an agent nor what one did
	}
	if err != nil || !follow {
		return err
	}
	return a.followEvents(ctx, k, last, true, a.printEvent)
}

// transcriptDir is where it is kept what an issue's agents did, "" for nowhere.
func (a *app) transcriptDir(ctx context.Context, k reconcile.Key) (string, error) {
	accounts, err := pods.Accounts(a.cfg.StateDir)
	if err != nil {
		return "", err
	}
	pod := pods.Name(a.cfg.Instance, pods.Key(k))
	if v, err := a.api().view(ctx, k); err == nil && v.Pod != "" {
		pod = v.Pod // another where a repository was renamed
	}
	dir := ""
	for _, account := range accounts {
		switch {
		case filepath.Base(account.Dir) == pod:
			return account.Dir, nil
		case account.Repo == k.Owner+"/"+k.Repo && account.Issue == k.Issue:
			dir = account.Dir
		}
	}
	return dir, nil
}

// forgetTranscript removes what is kept of what an issue's agents did.
func (a *app) forgetTranscript(ctx context.Context, k reconcile.Key) error {
	dir, err := a.transcriptDir(ctx, k)
	if err != nil || dir == "" {
		return err
	}
	return pods.RemoveRecords(dir)
}
