package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"syscall"

	"github.com/spf13/cobra"

	"codeberg.org/devaipod/devaipod/pods"
	"codeberg.org/devaipod/devaipod/pods/podfile"
	"codeberg.org/devaipod/devaipod/pods/podman"
)

func (a *app) sshCmd() *cobra.Command {
	var noForward bool
	cmd := &cobra.Command{
		Use: "ssh POD [COMMAND [ARG...]]", Short: "Log in to a pod's workspace with ssh", Args: args(cobra.MinimumNArgs(1)),
		Long: `Run this machine's ssh with a pod's workspace at its other end: a shell, or a command, in
the workspace folder. The ports that the repository's devcontainer.json forwards
(forwardPorts) are reached at this machine's loopback meanwhile. What comes after the pod
is ssh's: options, then a command.

POD is an issue (owner/name#3, issue-3), or a pod of your own (owner/name@NAME, NAME).
devaipod ssh-config lets plain ssh, and whatever uses it, do the same.`,
		Example: `  devaipod ssh ada/app#3
  devaipod ssh issue-3 make test
  devaipod ssh ada/app@main -N -L 5000:127.0.0.1:5000`,
		RunE: func(cmd *cobra.Command, rest []string) error {
			return a.ssh(cmd.Context(), rest[0], rest[1:], noForward)
		},
		ValidArgsFunction: a.completePods,
	}
	cmd.Flags().SetInterspersed(false) // what comes after the pod is ssh's
	cmd.Flags().BoolVar(&noForward, "no-forward", false, "without forwardPorts of devcontainer.json")
	return cmd
}

// ssh turns into the machine's own client.
func (a *app) ssh(ctx context.Context, pod string, rest []string, noForward bool) error {
	spec, err := a.podBySSH(ctx, pod)
	if err != nil {
		return err
	}
	if err := a.writeSSH(); err != nil {
		return err
	}
	program, err := exec.LookPath("ssh")
	if err != nil {
		return fmt.Errorf("there is no ssh in PATH (Debian: openssh-client); devaipod attach %s opens a shell without: %w", spec.Key, err)
	}
	argv := []string{"ssh", "-F", a.sshFile(sshConfig)}
	if !noForward {
		argv = append(argv, a.forwards(ctx, spec)...)
	}
	argv = append(append(argv, a.sshHost(spec.Key)), rest...)
	return fmt.Errorf("starting %s: %w", program, syscall.Exec(program, argv, os.Environ())) //nolint:gosec // the person's own
}

// forwards are ssh's options for the ports that the repository forwards. One that is in
// use here is left out, with a word.
func (a *app) forwards(ctx context.Context, spec pods.Spec) (argv []string) {
	for _, port := range spec.Dev.Ports {
		addr := fmt.Sprintf("127.0.0.1:%d", port)
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", addr)
		if err != nil {
			a.step("port %d is not forwarded: %v", port, err)
			continue
		}
		_ = l.Close() // ssh takes it in a moment
		argv = append(argv, "-L", addr+":"+addr)
	}
	return argv
}

func (a *app) sshProxyCmd() *cobra.Command {
	return &cobra.Command{
		Use: "ssh-proxy HOST", Short: "Be the way of ssh to a pod's workspace", Args: args(cobra.ExactArgs(1)),
		Long: `Join standard input and output with the SSH server of a pod's workspace: what ssh runs
(ProxyCommand) by the configuration that devaipod ssh-config writes. HOST is
issue-3.repo.owner, or name.repo.owner for a pod of your own, and ends in the instance's
name (.devaipod); the repository and its owner may be left out where there is no other.

Nothing listens in the pod: the server is started there for the one connection.`,
		Example: "  ssh -o ProxyCommand='devaipod ssh-proxy %n' issue-3.app.ada.devaipod",
		RunE:    func(cmd *cobra.Command, rest []string) error { return a.sshProxy(cmd.Context(), rest[0]) },
	}
}

func (a *app) sshProxy(ctx context.Context, host string) error {
	spec, err := a.podByHost(host)
	if err != nil {
		return err
	}
	p := place{key: spec.Key, role: pods.RoleWorkspace, container: pods.Name(a.cfg.Instance, spec.Key) + "-" + pods.RoleWorkspace}
	if p.podman, err = a.podman(ctx); err != nil {
		return err
	}
	s, err := a.sshSession(ctx, p, spec)
	if err != nil {
		return err
	}
	defer s.Close() //nolint:errcheck // nothing is left to say
	leave, err := a.enter(ctx, p)
	if err != nil {
		return err
	}
	defer leave()
	stop := context.AfterFunc(ctx, func() { _ = s.Close() })
	defer stop()
	go func() {
		_, err := io.Copy(struct{ io.Writer }{s}, a.in)
		if e := s.CloseWrite(); err != nil || e != nil { // it has ended
			a.log.Debug("passing on what the client sends", "err", errors.Join(err, e))
		}
	}()
	if err := s.Copy(a.out, a.errOut); err != nil {
		return fmt.Errorf("the way to %s broke: %w", p, err)
	}
	return nil
}

// sshSession starts the server of one connection.
func (a *app) sshSession(ctx context.Context, p place, spec pods.Spec) (*podman.Session, error) {
	ca, me, err := a.sshKeys()
	if err != nil {
		return nil, err
	}
	hello, err := a.sshHello(ctx, spec, ca, me)
	if err != nil {
		return nil, err
	}
	line, err := json.Marshal(hello)
	if err != nil {
		return nil, err
	}
	e := execution{cmd: podman.Command{Args: []string{podfile.BinaryPath, "sshd"}, Stdin: true}}
	s, err := p.start(ctx, e.command(p.role))
	if err != nil {
		return nil, err
	}
	if _, err := s.Write(append(line, '\n')); err != nil {
		return nil, errors.Join(fmt.Errorf("the SSH server in %s: %w", p, err), s.Close())
	}
	return s, nil
}
