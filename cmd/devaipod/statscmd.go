package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"codeberg.org/devaipod/devaipod/pods"
	"codeberg.org/devaipod/devaipod/pods/podman"
	"codeberg.org/devaipod/devaipod/pods/usage"
)

// podStats is what a pod uses. Its JSON is part of the output of `devaipod stats`.
type podStats struct {
	Pod        string           `json:"pod"`  // owner/repo#3 or owner/repo@name
	Kind       string           `json:"kind"` // kindAgent or kindWorkspace
	Disk       *int64           `json:"disk,omitempty"`
	Tokens     int64            `json:"tokens"`
	Cost       usage.Money      `json:"cost"`
	Containers []containerStats `json:"containers"`

	name string
}

// containerStats is what a container of a pod uses. What can't be told is left out.
type containerStats struct {
	Role    string   `json:"role"`
	Running bool     `json:"running"`
	CPU     *float64 `json:"cpu_percent,omitempty"` // of one core
	Memory  *uint64  `json:"memory,omitempty"`      // bytes
	Limit   uint64   `json:"memory_limit,omitempty"`
	Pids    *uint64  `json:"pids,omitempty"`
	Disk    *int64   `json:"disk,omitempty"` // bytes, with its volumes

	name string
}

func (a *app) statsCmd() *cobra.Command {
	var once bool
	cmd := &cobra.Command{
		Use: "stats [POD...]", Short: "Show what pods use: processor, memory, disk, tokens and money",
		Long: `Show what the containers of pods use, and what their agents have used of models, again
and again until Ctrl-C. With --json each time is a line, a list of pods. Processor is in
percent of one core, over the time between two looks. The disk is looked at once a minute.`,
		Example: "  devaipod stats --no-stream\n  devaipod stats --json ada/app#3 | jq '.[].containers[].memory'",
		ValidArgsFunction: func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
			return a.podNames(cmd), cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, rest []string) error {
			var only []pods.Key
			for _, name := range rest {
				k, err := a.podKey(cmd.Context(), name)
				if err != nil {
					return err
				}
				only = append(only, k)
			}
			return a.stats(cmd.Context(), only, once)
		},
	}
	cmd.Flags().BoolVar(&once, "no-stream", false, "once, and end")
	return a.jsonFlag(cmd)
}

// A statistician looks again and again.
type statistician struct {
	app    *app
	podman *podman.Client
	only   []pods.Key
	last   map[string]podman.Usage
	disk   podman.Disk
	diskAt time.Time
	told   string // the last trouble
}

func (a *app) stats(ctx context.Context, only []pods.Key, once bool) error {
	p, err := a.podman(ctx)
	if err != nil {
		return err
	}
	s := &statistician{app: a, podman: p, only: only}
	if _, err := s.look(ctx); err != nil { // for the first difference
		return err
	}
	for wait := 500 * time.Millisecond; ; wait = 2 * time.Second {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
		found, err := s.look(ctx)
		if ctx.Err() != nil {
			return nil //nolint:nilerr // Ctrl-C ends it
		}
		if err != nil {
			return err
		}
		if err := a.printStats(found, !once); err != nil || once {
			return err
		}
	}
}

// look tells what pods use now.
func (s *statistician) look(ctx context.Context) ([]podStats, error) {
	found, running, err := s.find(ctx)
	if err != nil {
		return nil, err
	}
	now, err := s.podman.Usages(ctx, running)
	s.tell(err)
	if s.diskAt.IsZero() || time.Since(s.diskAt) > time.Minute {
		s.disk, err = s.podman.AllDisk(ctx)
		s.tell(err)
		s.diskAt = time.Now()
	}
	accounts, err := pods.Accounts(s.app.cfg.StateDir)
	s.tell(err)
	for i := range found {
		p := &found[i]
		for _, account := range accounts {
			if filepath.Base(account.Dir) == p.name {
				entries, err := usage.Read(account.Dir)
				s.tell(err)
				sum := usage.Sum(entries)
				p.Tokens, p.Cost = sum.Tokens.Sum(), sum.Cost
			}
		}
		for j := range p.Containers {
			s.fill(p, &p.Containers[j], now)
		}
	}
	s.last = now
	return found, nil
}

// find lists the pods that were asked for, and which of their containers run.
func (s *statistician) find(ctx context.Context) (out []podStats, running []string, err error) {
	all, err := s.podman.Containers(ctx, map[string]string{"devaipod.instance": s.app.cfg.Instance})
	if err != nil {
		return nil, nil, err
	}
	by := map[pods.Key]*podStats{}
	for _, c := range all {
		k, role, ok := pods.Whose(c.Labels)
		if !ok || len(s.only) > 0 && !slices.Contains(s.only, k) {
			continue
		}
		if by[k] == nil {
			by[k] = &podStats{Pod: k.String(), Kind: kindAgent, name: pods.Name(s.app.cfg.Instance, k)}
			if k.Name != "" {
				by[k].Kind = kindWorkspace
			}
		}
		by[k].Containers = append(by[k].Containers, containerStats{Role: role, Running: c.Running, name: c.Name})
		if c.Running {
			running = append(running, c.Name)
		}
	}
	for _, k := range s.only {
		if by[k] == nil {
			return nil, nil, fmt.Errorf("there is no pod of %s: devaipod list tells which there are", k)
		}
	}
	out = []podStats{}
	for _, p := range by {
		slices.SortFunc(p.Containers, func(a, b containerStats) int { return strings.Compare(a.Role, b.Role) })
		out = append(out, *p)
	}
	slices.SortFunc(out, func(a, b podStats) int { return cmp.Compare(a.Pod, b.Pod) })
	return out, running, nil
}

// volumesOfRole are the last parts of the names of the volumes that are a container's.
var volumesOfRole = map[string][]string{
	pods.RoleAgent: {"agent-workspace", "agent-home"}, pods.RoleWorkspace: {"workspace"}, pods.RoleSaver: {"saver"},
}

func (s *statistician) fill(p *podStats, c *containerStats, now map[string]podman.Usage) {
	if u, ok := now[c.name]; ok {
		c.Memory, c.Limit, c.Pids = &u.Memory, u.Limit, &u.Pids
		if before, ok := s.last[c.name]; ok && u.CPU >= before.CPU && u.At.After(before.At) {
			percent := 100 * float64(u.CPU-before.CPU) / float64(u.At.Sub(before.At))
			c.CPU = &percent
		}
	}
	own, ok := s.disk.Containers[c.name]
	if !ok {
		return
	}
	for _, v := range volumesOfRole[c.Role] {
		own += s.disk.Volumes[p.name+"-"+v]
	}
	c.Disk = &own
	if p.Disk == nil {
		p.Disk = new(int64)
	}
	*p.Disk += own
}

// tell says once what can't be told.
func (s *statistician) tell(err error) {
	if err == nil || errors.Is(err, context.Canceled) || err.Error() == s.told {
		return
	}
	s.told = err.Error()
	s.app.step("not all can be told: %s", plain(s.told, 500))
}

func (a *app) printStats(found []podStats, again bool) error {
	if a.asJSON {
		return a.printJSON(found)
	}
	if _, ok := terminal(a.out); ok && again {
		fmt.Fprint(a.out, "\x1b[H\x1b[2J")
	}
	w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "POD\tCONTAINER\tCPU %\tMEMORY\tLIMIT\tPIDS\tDISK\tTOKENS\tCOST")
	for _, p := range found {
		tokens, cost := "-", "-"
		if p.Kind == kindAgent {
			tokens, cost = count(p.Tokens), p.Cost.String()
		}
		fmt.Fprintf(w, "%s\t\t\t\t\t\t%s\t%s\t%s\n", p.Pod, size(p.Disk), tokens, cost)
		for _, c := range p.Containers {
			cpu, memory, limit, pids := "-", "-", "-", "-"
			if c.CPU != nil {
				cpu = fmt.Sprintf("%.1f", *c.CPU)
			}
			if c.Memory != nil {
				memory, pids = formatBytes(int64(*c.Memory)), fmt.Sprint(*c.Pids) //nolint:gosec // less than 8 EiB
			}
			if c.Limit > 0 && c.Limit < 1<<60 {
				limit = formatBytes(int64(c.Limit)) //nolint:gosec // looked at
			}
			fmt.Fprintf(w, "\t%s\t%s\t%s\t%s\t%s\t%s\t\t\n", c.Role, cpu, memory, limit, pids, size(c.Disk))
		}
	}
	return w.Flush()
}

func size(n *int64) string {
	if n == nil {
		return "-"
	}
	return formatBytes(*n)
}
