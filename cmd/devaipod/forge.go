package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"codeberg.org/devaipod/devaipod/compose"
	"codeberg.org/devaipod/devaipod/pods"
	"codeberg.org/devaipod/devaipod/pods/podfile"
	"codeberg.org/devaipod/devaipod/pods/podman"
)

func (a *app) forgeCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "forge", Short: "The local forge and the service beside it", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(a.forgeUpCmd(), a.forgeDownCmd(), a.forgeStatusCmd(), a.forgeOpenCmd(), a.forgeLogsCmd(), a.forgeAddCmd(), a.forgeFollowCmd(), a.forgeUnfollowCmd(), a.forgeSyncCmd(), a.forgeJoinCmd(), a.forgePanelCmd())
	return cmd
}

// person is who `forge up` makes the first admin account for.
type person struct {
	name, email, password string
	fromStdin             bool
}

func (a *app) forgeUpCmd() *cobra.Command {
	var detach bool
	var who person
	cmd := &cobra.Command{
		Use: "up", Short: "Start the forge and the service", Args: noArgs,
		Long: `Start the forge's container, wait until it answers, make what is missing of
accounts, tokens, webhook and labels, and run the service in the foreground.
Ctrl-C stops both. With -d it goes on in the background once healthy.

With forge.url set no container is started: the forge there is joined, with the
tokens that devaipod forge join was given.

Running it again repairs what is missing and changes nothing else.`,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.forgeUp(cmd.Context(), who, detach) },
	}
	f := cmd.Flags()
	f.BoolVarP(&detach, "detach", "d", false, "go on in the background once healthy")
	f.StringVar(&who.name, "admin", defaultPerson(), "`name` of your own account, made if it is not there")
	f.StringVar(&who.email, "email", "", "its e-mail `address` (default NAME@localhost.localdomain)")
	f.BoolVar(&who.fromStdin, "password-stdin", false, "take its password from standard input instead of making one")
	return cmd
}

// defaultPerson is the login name, where a forge would take it.
func defaultPerson() string {
	if u, err := user.Current(); err == nil && u.Username != "root" && validAccount(u.Username) {
		return u.Username
	}
	return "admin0"
}

func validAccount(name string) bool {
	return name != "" && name != "admin" && strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-") == ""
}

func (a *app) forgeUp(ctx context.Context, who person, detach bool) error {
	if !validAccount(who.name) {
		return usagef("--admin %q: want letters, digits, dot, dash and underscore, and not the reserved name admin", who.name)
	}
	if who.fromStdin && a.cfg.joined() {
		return usagef("--password-stdin is for an account on a forge of our own; %s has its own accounts", a.cfg.forgeURL())
	}
	if who.fromStdin {
		line, err := io.ReadAll(io.LimitReader(a.in, 1024))
		if err != nil {
			return fmt.Errorf("reading the password: %w", err)
		}
		if who.password = strings.TrimRight(string(line), "\r\n"); who.password == "" {
			return usagef("--password-stdin was given, and standard input is empty")
		}
	}
	unlock, err := a.lockUp("`devaipod forge up`")
	if err != nil {
		return err
	}
	pod, err := a.bringUp(ctx, who)
	if err != nil {
		return errors.Join(err, unlock())
	}
	if detach {
		err := errors.Join(tellLacking(ctx, pod, func(what string) { a.step("WARNING  %s", what) }), a.startService(ctx))
		return errors.Join(err, unlock())
	}
	if err := unlock(); err != nil {
		return err
	}
	if err = a.serve(ctx); a.cfg.joined() || errors.Is(err, errServiceRuns) {
		return err // the forge is not ours, or that one's too
	}
	a.step("stopping the forge")
	stopCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	return errors.Join(err, a.stopStack(stopCtx, pod))
}

// bringUp starts the forge and provisions it.
func (a *app) bringUp(ctx context.Context, who person) (*podman.Client, error) {
	p, err := a.podman(ctx)
	if err != nil {
		return nil, err
	}
	if a.cfg.joined() {
		if err := a.needPorts(ctx, p, compose.Stack{}); err != nil {
			return nil, err
		}
		if err := a.joinForge(ctx); err != nil {
			return nil, err
		}
		a.step("service  %s", a.cfg.serviceURL())
		return p, nil
	}
	manager, err := pods.New(pods.Config{Instance: a.cfg.Instance, StateDir: a.cfg.StateDir, Backend: podman.NewPods(p, a.cfg.Instance, a.log), Images: p, Log: a.log})
	if err != nil {
		return nil, err
	}
	tools, err := a.tools(ctx, manager)
	if err != nil {
		return nil, err
	}
	stack, err := a.stack(tools)
	if err != nil {
		return nil, err
	}
	if err := a.needPorts(ctx, p, stack); err != nil {
		return nil, err
	}
	a.step("starting %s at %s", a.cfg.Forge.Image, a.cfg.forgeURL())
	if err := a.applyStack(ctx, p, stack); err != nil {
		return nil, err
	}
	if err := a.provision(ctx, forgeCLI(p, stack.ForgeContainer), who); err != nil {
		return nil, err
	}
	if err := a.putPanel(ctx, p, stack.ForgeContainer); err != nil {
		return nil, err
	}
	if err := a.repairRepositories(ctx); err != nil {
		return nil, err
	}
	a.step("forge    %s", a.cfg.forgeURL())
	a.step("service  %s", a.cfg.serviceURL())
	return p, nil
}

// startService runs `devaipod serve` in the background and waits until it is
// ready. One that runs already is left alone, unless it was started from another
// program, configuration or other credentials than there are now.
func (a *app) startService(ctx context.Context) error {
	creds, err := a.readCredentials()
	if err != nil {
		return err
	}
	basis, err := a.basis(creds)
	if err != nil {
		return err
	}
	var st serviceStatus
	if a.api().get(ctx, "/api/status", &st) == nil {
		if st.Basis == basis {
			a.step("the service runs already (pid %d)", st.PID)
			return a.waitService(ctx, nil)
		}
		a.step("restarting the service: its program, configuration or tokens have changed")
		if err := end(ctx, st.PID, 10*time.Second); err != nil {
			return err
		}
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	logFile, err := os.OpenFile(a.cfg.file("service.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer logFile.Close()
	// What this process knows by flag or environment, the service knows too.
	args := []string{"serve", "--instance", a.cfg.Instance, "--state-dir", a.cfg.StateDir, "--log-level", a.cfg.LogLevel}
	if a.cfg.File != "" {
		args = append(args, "--config", a.cfg.File)
	}
	cmd := exec.Command(self, args...)
	cmd.Stdout, cmd.Stderr = logFile, logFile
	cmd.SysProcAttr, cmd.Env = detached(), podman.LastingEnv()
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting the service: %w", err)
	}
	if err := podfile.Replace(a.cfg.file("service.pid"), fmt.Appendln(nil, cmd.Process.Pid)); err != nil {
		return err
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	return a.waitService(ctx, exited)
}

// waitService waits until the service is ready, or until exited tells its end.
func (a *app) waitService(ctx context.Context, exited <-chan error) error {
	var st serviceStatus
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	timeout := time.After(time.Minute)
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-exited:
			return fmt.Errorf("the service ended at once (%w): %s\nsee %s", err, a.lastLogLine(), a.cfg.file("service.log"))
		case <-timeout:
			return fmt.Errorf("the service is not ready after a minute: see %s", a.cfg.file("service.log"))
		case <-tick.C:
			if a.api().get(ctx, "/api/status", &st) == nil && st.Ready {
				return nil
			}
		}
	}
}

// lastLogLine is the service's last word.
func (a *app) lastLogLine() string {
	b, err := os.ReadFile(a.cfg.file("service.log"))
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.TrimPrefix(lines[len(lines)-1], "devaipod: ")
}

// ending is what `devaipod forge down` is asked for.
type ending struct{ purge, force, noBundle bool }

func (a *app) forgeDownCmd() *cobra.Command {
	var e ending
	cmd := &cobra.Command{
		Use: "down", Short: "Stop the service, the pods and the forge", Args: noArgs,
		Long: `Stop the service, the pods and the forge. Nothing is lost: forge up goes on from
there. With --purge all of the instance is removed for good: containers, pods,
volumes (the forge's repositories too), networks, secrets and the state directory.

Before that, what agents did is saved, and what of it the forge has not all is left
as recovery bundles, one for each issue, in STATE_DIR-recovered/TIME/: git clone
reads them. When one can't be written, nothing is removed. A pod that can't be saved
stops it too, unless --force is given. --no-bundle leaves none.

A forge that was joined (forge.url) is neither stopped nor removed; --purge takes
this instance's webhook off it.`,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.forgeDown(cmd.Context(), e) },
	}
	f := cmd.Flags()
	f.BoolVar(&e.purge, "purge", false, "remove everything of this instance, repositories and work included")
	f.BoolVar(&e.force, "force", false, "do not ask, and go on without what can't be saved")
	f.BoolVar(&e.noBundle, "no-bundle", false, "with --purge: keep nothing of what agents did")
	return cmd
}

func (a *app) forgeDown(ctx context.Context, e ending) error {
	if e.purge && !e.force {
		question := "Remove the forge of instance %s with all its repositories, and all pods with their work?"
		if a.cfg.joined() {
			question = "Remove all pods of instance %s with their work, and its webhook on " + a.cfg.forgeURL() + "?"
		}
		if err := a.confirm(fmt.Sprintf(question, a.cfg.Instance), "--force"); err != nil {
			return err
		}
	}
	if _, err := os.Stat(a.cfg.StateDir); errors.Is(err, os.ErrNotExist) {
		a.step("nothing of instance %s is here", a.cfg.Instance)
		return nil
	}
	var st serviceStatus
	if err := a.api().get(ctx, "/api/status", &st); err == nil {
		a.step("stopping the service")
		if err := end(ctx, st.PID, 10*time.Second); err != nil {
			return err
		}
	}
	p, err := a.podman(ctx)
	if err != nil {
		return err
	}
	manager, err := pods.New(pods.Config{Instance: a.cfg.Instance, StateDir: a.cfg.StateDir, Backend: podman.NewPods(p, a.cfg.Instance, a.log), Images: p, Log: a.log})
	if err != nil {
		return err
	}
	if e.purge {
		err = a.purgeAll(ctx, p, manager, e)
	} else {
		err = a.stopAll(ctx, p, manager)
	}
	if err != nil {
		return err
	}
	if err := a.endPodman(ctx); err != nil {
		return err
	}
	if e.purge {
		return os.RemoveAll(a.cfg.StateDir)
	}
	return nil
}

// stopAll stops pods and forge.
func (a *app) stopAll(ctx context.Context, p *podman.Client, m *pods.Manager) error {
	a.step("stopping %s", a.cfg.stackWords())
	found, err := m.List(ctx)
	if err != nil {
		return err
	}
	own, err := m.Workspaces(ctx)
	if err != nil {
		return err
	}
	for _, f := range append(found, own...) {
		if err := m.Stop(ctx, f.Key); err != nil {
			return err
		}
	}
	return a.stopStack(ctx, p)
}

func (a *app) stopStack(ctx context.Context, p *podman.Client) error {
	if a.cfg.joined() {
		return nil
	}
	stack, err := a.stack("")
	if err != nil {
		return err
	}
	if err := a.removeRunner(ctx, p); err != nil {
		return err
	}
	var names []string
	for _, c := range stack.Containers {
		names = append(names, c.Name)
	}
	for _, pod := range stack.Pods {
		names = append(names, pod.Name+"-infra") // it holds the network and the port
	}
	for _, name := range names {
		st, err := p.State(ctx, name)
		if err != nil {
			return err
		}
		if st.Running {
			if err := p.StopContainer(ctx, name, 10*time.Second); err != nil {
				return err
			}
		}
	}
	return nil
}

func (a *app) forgeOpenCmd() *cobra.Command {
	return &cobra.Command{
		Use: "open", Short: "Open the forge in a browser", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.browse(cmd.Context(), a.cfg.forgeURL())
		},
	}
}

func (a *app) forgeLogsCmd() *cobra.Command {
	var follow bool
	cmd := &cobra.Command{
		Use: "logs [forge|relay|runner|service]", Short: "Print the logs of the forge, its relay, a runner beside it (ci.external_image) or the service (default)",
		Args: args(cobra.MatchAll(cobra.MaximumNArgs(1), cobra.OnlyValidArgs)), ValidArgs: []string{"forge", "relay", "runner", "service"},
		RunE: func(cmd *cobra.Command, rest []string) error {
			if len(rest) == 0 || rest[0] == "service" {
				return a.printFile(cmd.Context(), a.cfg.file("service.log"), follow)
			}
			if a.cfg.joined() {
				return usagef("the forge at %s is not ours: its logs are with it; `devaipod forge logs` has the service's", a.cfg.forgeURL())
			}
			p, err := a.podman(cmd.Context())
			if err != nil {
				return err
			}
			stack, err := a.stack("")
			if err != nil {
				return err
			}
			for _, c := range stack.Containers {
				if c.Role == rest[0] {
					return p.Logs(cmd.Context(), c.Name, follow, 0, a.out)
				}
			}
			return usagef("no container %s in the stack", rest[0])
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on printing")
	return cmd
}

// printFile prints a log file, and with follow what is added to it.
func (a *app) printFile(ctx context.Context, path string, follow bool) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("the service has no log yet: %w", err)
	}
	defer f.Close()
	for {
		if _, err := io.Copy(a.out, f); err != nil || !follow {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(300 * time.Millisecond):
		}
	}
}
