package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"codeberg.org/devaipod/devaipod/pods"
)

var secretName = regexp.MustCompile(`^[a-z][a-z0-9-]{0,40}$`)

func (a *app) secretCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "secret", Short: "Keys that only a pod's gate gets", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(
		&cobra.Command{
			Use: "set NAME", Short: "Store a secret, read from standard input", Args: args(cobra.ExactArgs(1)),
			RunE: func(cmd *cobra.Command, rest []string) error { return a.secretSet(cmd.Context(), rest[0]) },
		},
		a.jsonFlag(&cobra.Command{
			Use: "list", Short: "List the names of the secrets", Args: noArgs,
			RunE: func(cmd *cobra.Command, _ []string) error { return a.secretList(cmd.Context()) },
		}),
		&cobra.Command{
			Use: "rm NAME", Short: "Remove a secret", Args: args(cobra.ExactArgs(1)),
			RunE: func(cmd *cobra.Command, rest []string) error {
				m, err := a.manager(cmd.Context())
				if err != nil {
					return err
				}
				return m.RemoveSecret(cmd.Context(), rest[0])
			},
		})
	return cmd
}

// manager is the pods of this instance, without a service.
func (a *app) manager(ctx context.Context) (*pods.Manager, error) {
	if err := a.makeStateDir(); err != nil {
		return nil, err
	}
	p, err := a.podman(ctx)
	if err != nil {
		return nil, err
	}
	return pods.New(pods.Config{Instance: a.cfg.Instance, StateDir: a.cfg.StateDir, Podman: p, Log: a.log})
}

func (a *app) secretSet(ctx context.Context, name string) error {
	if !secretName.MatchString(name) {
		return usagef("secret name %q: want small letters, digits and dashes, a letter first", name)
	}
	value, err := a.readSecret(name)
	if err != nil {
		return err
	}
	m, err := a.manager(ctx)
	if err != nil {
		return err
	}
	if err := m.PutSecret(ctx, name, []byte(value)); err != nil {
		return fmt.Errorf("storing secret %s: %w", name, err)
	}
	a.step("stored   secret %s; pods that start from now on use it", name)
	return nil
}

// readSecret takes one line from standard input, without showing it on a
// terminal.
func (a *app) readSecret(name string) (string, error) {
	const most = 64 << 10
	var b []byte
	var err error
	if f, ok := a.in.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		fmt.Fprintf(a.errOut, "value of %s (not shown): ", name)
		b, err = term.ReadPassword(int(f.Fd()))
		fmt.Fprintln(a.errOut)
	} else {
		b, err = io.ReadAll(io.LimitReader(a.in, most+1))
	}
	if err != nil {
		return "", fmt.Errorf("reading the secret: %w", err)
	}
	value := strings.TrimRight(string(b), "\r\n")
	if value == "" || len(b) > most {
		return "", usagef("give the value of %s on standard input, up to 64 KiB", name)
	}
	return value, nil
}

func (a *app) secretList(ctx context.Context) error {
	m, err := a.manager(ctx)
	if err != nil {
		return err
	}
	names, err := m.Secrets(ctx)
	if err != nil {
		return err
	}
	if a.asJSON {
		if names == nil {
			names = []string{}
		}
		return json.NewEncoder(a.out).Encode(names)
	}
	for _, n := range names {
		fmt.Fprintln(a.out, n)
	}
	return nil
}
