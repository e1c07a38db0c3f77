package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"regexp"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"codeberg.org/devaipod/devaipod/pods"
	"codeberg.org/devaipod/devaipod/pods/podman"
	"codeberg.org/devaipod/devaipod/pods/reconcile"
)

var workspaceRef = regexp.MustCompile(`^(?:([A-Za-z0-9._-]+)/([A-Za-z0-9._-]+))?@([a-z0-9-]+)$`)

// podKey reads a pod as people write it: an issue, or a workspace as owner/repo@name
// or, in a checkout of the forge, @name or name.
func (a *app) podKey(ctx context.Context, s string) (pods.Key, error) {
	m := workspaceRef.FindStringSubmatch(s)
	if m == nil && pods.ValidName(s) {
		m = []string{"", "", "", s}
	}
	if m == nil {
		k, err := a.issueKey(ctx, s)
		if code := new(exitError); errors.As(err, &code) && code.code == codeUsage {
			err = fmt.Errorf("%w; a workspace is owner/repo@name", err)
			err = &exitError{codeUsage, err}
		}
		return pods.Key(k), err
	}
	k := pods.Key{Owner: m[1], Repo: m[2], Name: m[3]}
	if !pods.ValidName(k.Name) {
		return k, usagef("%q names no workspace: names begin with a letter, and have small letters, digits and dashes, 40 at most", k.Name)
	}
	if k.Owner == "" {
		repo, err := a.repoHere(ctx)
		if err != nil {
			return k, fmt.Errorf("%q names a workspace here: %w", s, err)
		}
		k.Owner, k.Repo, _ = strings.Cut(repo, "/")
	}
	return k, nil
}

// A place is a container of a pod that a person works in.
type place struct {
	key       pods.Key
	role      string
	container string
	podman    *podman.Client
}

// placeOf finds the container of a pod, the agent's if that is meant.
func (a *app) placeOf(ctx context.Context, name string, agent bool) (place, error) {
	k, err := a.podKey(ctx, name)
	if err != nil {
		return place{}, err
	}
	return a.placeIn(ctx, k, agent)
}

func (a *app) placeIn(ctx context.Context, k pods.Key, agent bool) (place, error) {
	p := place{key: k, role: pods.RoleWorkspace}
	if agent {
		p.role = pods.RoleAgent
	}
	if agent && k.Name != "" {
		return p, usagef("%s is a person's own pod and has no agent: leave --agent out", k)
	}
	p.container = a.podName(ctx, k) + "-" + p.role
	var err error
	p.podman, err = a.podman(ctx)
	return p, err
}

// podName is the name of a pod; of a renamed repository the service knows what that was
// called.
func (a *app) podName(ctx context.Context, k pods.Key) string {
	if k.Name == "" {
		if v, err := a.api().view(ctx, reconcile.Key(k)); err == nil && v.Pod != "" {
			return v.Pod
		}
	}
	return pods.Name(a.cfg.Instance, k)
}

func (p place) String() string { return fmt.Sprintf("the %s of %s", p.role, p.key) }

// start starts a command there.
func (p place) start(ctx context.Context, cmd podman.Command) (*podman.Session, error) {
	s, err := p.podman.Start(ctx, p.container, cmd)
	return s, p.explain(err)
}

// enter notes that a person works there until leave is called, so that the pod does not
// go to sleep under them, and what they leave is not removed with it.
func (a *app) enter(ctx context.Context, p place) (leave func(), err error) {
	st, err := p.podman.State(ctx, p.container)
	if err != nil {
		return nil, err
	}
	say := func() {
		if err := pods.Enter(a.cfg.StateDir, a.cfg.Instance, st.Labels); err != nil && !errors.Is(err, fs.ErrNotExist) {
			a.log.Warn("what you leave in the workspace is not kept when its issue's pod is removed", "err", err)
		}
	}
	say()
	tick := time.NewTicker(pods.EnterEvery)
	left := make(chan struct{})
	go func() {
		for {
			select {
			case <-tick.C:
				say()
			case <-left:
				return
			}
		}
	}()
	return func() { tick.Stop(); close(left); say() }, nil
}

// explain says what to do about a container that is not there or does not run.
func (p place) explain(err error) error {
	if !errors.Is(err, podman.ErrNotRunning) {
		return err
	}
	next := fmt.Sprintf("devaipod up %s/%s --name %s starts it", p.key.Owner, p.key.Repo, p.key.Name)
	if p.key.Name == "" {
		next = fmt.Sprintf("devaipod status %s tells how its pod is", p.key)
	}
	return fmt.Errorf("%s does not run: %s", p, next)
}

// completePods completes the name of a pod, which is the first argument.
func (a *app) completePods(cmd *cobra.Command, given []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(given) > 0 {
		return nil, cobra.ShellCompDirectiveDefault
	}
	return a.podNames(cmd), cobra.ShellCompDirectiveNoFileComp
}

// podNames are those that the service knows. Without one there are none.
func (a *app) podNames(cmd *cobra.Command) (names []string) {
	if a.configure(cmd) != nil {
		return nil
	}
	var views []reconcile.View
	if a.api().get(cmd.Context(), "/api/pods", &views) == nil {
		for _, v := range views {
			names = append(names, cobra.CompletionWithDesc(v.Issue, strings.ReplaceAll(plain(string(v.State)+": "+v.Title, 60), "\n", " ")))
		}
	}
	var own []workspaceView
	if a.api().get(cmd.Context(), "/api/workspaces", &own) == nil {
		for _, w := range own {
			names = append(names, cobra.CompletionWithDesc(w.Name, w.State+": "+w.Branch))
		}
	}
	return names
}
