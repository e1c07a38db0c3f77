package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"os/exec"
	"slices"
	"strings"

	"codeberg.org/devaipod/devaipod/pods/podfile"
)

// editors start an editor of this machine with a folder of a host that ssh knows.
var editors = map[string]func(host, folder string) []string{
	// code.visualstudio.com/docs/remote/troubleshooting, "Connect to a remote host from the terminal"
	"code": func(host, folder string) []string { return []string{"code", "--remote", "ssh-remote+" + host, folder} },
	// zed.dev/docs/remote-development
	"zed": func(host, folder string) []string { return []string{"zed", "ssh://" + host + folder} },
	// JetBrains Gateway, whose form for a connection is filled in by this. Any user does.
	"idea": func(host, folder string) []string {
		q := url.Values{"type": {"ssh"}, "host": {host}, "port": {"22"}, "user": {"devaipod"}, "deploy": {"false"}, "projectPath": {folder}}
		return []string{"xdg-open", "jetbrains-gateway://connect#" + q.Encode()}
	},
}

func editorNames() string {
	var names []string
	for name := range editors {
		names = append(names, name)
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// openEditor starts an editor with a pod's workspace.
func (a *app) openEditor(ctx context.Context, pod, editor string) error {
	argv, ok := editors[editor]
	if !ok {
		return usagef("--editor %s: want one of %s; any other that works by ssh opens %s itself", editor, editorNames(), pod)
	}
	spec, err := a.podBySSH(ctx, pod)
	if err != nil {
		return err
	}
	has, err := a.sshIncluded()
	if err != nil {
		return err
	}
	if !has {
		return &exitError{codeNeedsHuman, errors.New("editors read ~/.ssh/config, which does not know the pods: run devaipod ssh-config")}
	}
	if err := a.writeSSH(); err != nil { // some list the hosts
		return err
	}
	command := argv(a.sshHost(spec.Key), cmp.Or(spec.Dev.WorkspaceFolder, podfile.RepoDir))
	fmt.Fprintln(a.out, strings.Join(command, " "))
	cmd := exec.CommandContext(ctx, command[0], command[1:]...) //nolint:gosec // one of those above
	cmd.Stdout, cmd.Stderr = a.errOut, a.errOut
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("starting %s: %w; what would have been run is above", command[0], err)
	}
	return nil
}
