package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"codeberg.org/devaipod/devaipod/forge"
	"codeberg.org/devaipod/devaipod/mirror/follow"
	"codeberg.org/devaipod/devaipod/pods/podman"
)

// forgeState is `forge status`.
type forgeState struct {
	Instance string `json:"instance"`
	Forge    struct {
		URL     string `json:"url"`
		Joined  bool   `json:"joined"` // not ours
		Running bool   `json:"running"`
		Healthy bool   `json:"healthy"`
		Problem string `json:"problem,omitempty"` // why it is not healthy, where it answers
		Version string `json:"version,omitempty"`
	} `json:"forge"`
	Service struct {
		URL     string `json:"url"`
		Running bool   `json:"running"`
		Ready   bool   `json:"ready"`
		PID     int    `json:"pid,omitempty"`
	} `json:"service"`
	Podman struct {
		Socket  string `json:"socket"`
		Version string `json:"version,omitempty"`
		// Lacking is what pods can't be given here, a sentence each.
		Lacking []string `json:"lacking"`
	} `json:"podman"`
	Git struct {
		Version string `json:"version,omitempty"`
		// Lacking is what git can't be kept from here.
		Lacking []string `json:"lacking"`
	} `json:"git"`
	Login        string   `json:"login,omitempty"`
	Repositories []string `json:"repositories"`
	// Followed are those that follow an upstream.
	Followed []follow.View `json:"followed"`
}

func (a *app) forgeStatusCmd() *cobra.Command {
	return a.jsonFlag(&cobra.Command{
		Use: "status", Short: "Tell what runs", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			st, err := a.forgeStatus(cmd.Context())
			if err != nil {
				return err
			}
			if a.asJSON {
				err = a.printJSON(st)
			} else {
				err = a.printForgeStatus(st)
			}
			if err == nil && (!st.Forge.Healthy || !st.Service.Running) {
				return &exitError{code: codeUnreachable}
			}
			return err
		},
	})
}

func (a *app) forgeStatus(ctx context.Context) (forgeState, error) {
	st := forgeState{Instance: a.cfg.Instance, Repositories: []string{}, Followed: []follow.View{}}
	st.Forge.URL, st.Service.URL, st.Forge.Joined = a.cfg.forgeURL(), a.cfg.serviceURL(), a.cfg.joined()
	st.Podman.Lacking, st.Git.Lacking = []string{}, []string{}
	version, lacking, err := probeGit(ctx)
	if err != nil {
		lacking = append(lacking, err.Error())
	}
	st.Git.Version, st.Git.Lacking = version, append(st.Git.Lacking, lacking...)
	creds, err := a.readCredentials()
	if errors.Is(err, errNoForge) {
		return st, nil
	}
	if err != nil {
		return st, err
	}
	st.Login = creds.Person
	client, err := a.serviceForge(creds)
	if err != nil {
		return st, err
	}
	v, err := client.Version(ctx)
	var said *forge.Error
	switch {
	case errors.Is(err, forge.ErrForbidden):
		st.Forge.Running, st.Forge.Problem = true, "it refuses the service's token: run devaipod forge up"
	case errors.As(err, &said):
		st.Forge.Running, st.Forge.Problem = true, err.Error()
	case err != nil && a.cfg.joined():
		st.Forge.Problem = err.Error()
	case err == nil:
		st.Forge.Healthy, st.Forge.Running, st.Forge.Version = true, true, v.String()
		if !a.cfg.joined() { // there may be any number on somebody else's
			repos, err := client.Repositories(ctx)
			if err != nil {
				return st, err
			}
			for _, r := range repos {
				st.Repositories = append(st.Repositories, r.Repo.String())
			}
		}
	}
	if st.Followed, err = a.followedNow(ctx); err != nil {
		return st, err
	}
	var svc serviceStatus
	if a.api().get(ctx, "/api/status", &svc) == nil {
		st.Service.Running, st.Service.Ready, st.Service.PID = true, svc.Ready, svc.PID
	}
	if uri, err := podman.Find(ctx, podman.FindConfig{URI: a.cfg.Podman.Socket, SocketPath: a.cfg.file("podman.sock"), Log: a.log}); err == nil {
		st.Podman.Socket = uri
		if p, err := podman.Connect(ctx, uri); err == nil {
			host, err := p.KeepHost(a.cfg.file(hostFile)).Host(ctx)
			if err != nil {
				return st, err
			}
			st.Podman.Version, st.Podman.Lacking = host.Version, append(st.Podman.Lacking, lackingOfPods(ctx, host)...)
		}
	}
	return st, nil
}

func (a *app) printForgeStatus(st forgeState) error {
	state := func(up bool, yes string) string {
		if up {
			return yes
		}
		return "not running"
	}
	version := st.Forge.Version
	if st.Forge.Joined {
		version += ", joined"
	}
	forge := state(st.Forge.Running, version)
	if st.Forge.Problem != "" {
		forge = plain(st.Forge.Problem, 500)
	}
	_, err := fmt.Fprintf(a.out, "instance  %s\nforge     %s  %s\nservice   %s  %s\npodman    %s  %s\nlogin     %s\n",
		st.Instance, st.Forge.URL, forge,
		st.Service.URL, state(st.Service.Running, fmt.Sprintf("running, pid %d", st.Service.PID)),
		st.Podman.Socket, state(st.Podman.Version != "", st.Podman.Version), orDash(st.Login))
	if err != nil {
		return err
	}
	if !st.Forge.Joined {
		fmt.Fprintf(a.out, "repositories (%d)\n", len(st.Repositories))
		for _, r := range st.Repositories {
			fmt.Fprintf(a.out, "  %s\n", r)
		}
	}
	if len(st.Followed) > 0 {
		fmt.Fprintf(a.out, "followed (%d)\n", len(st.Followed))
	}
	if err := a.printFollowed(st.Followed); err != nil {
		return err
	}
	for _, what := range st.Podman.Lacking {
		fmt.Fprintf(a.out, "WARNING   pods here have %s\n", what)
	}
	for _, what := range st.Git.Lacking {
		fmt.Fprintf(a.out, "WARNING   %s\n", what)
	}
	return nil
}
