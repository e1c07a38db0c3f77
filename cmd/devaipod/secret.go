package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"codeberg.org/devaipod/devaipod/pods/secret"
)

func (a *app) secretCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "secret", Short: "Keys that only a pod's gate gets", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	var sec secret.Secret
	set := &cobra.Command{
		Use: "set NAME", Short: "Store a secret, read from standard input", Args: args(cobra.ExactArgs(1)),
		Long: "Store a secret, read from standard input, in place of the one that has its name; pods that run\nuse it at once. One with a host is put into requests that agents make to that host, by their\ngates: no agent ever has it. Others are for the configuration, as model.key.",
		RunE: func(cmd *cobra.Command, rest []string) error {
			sec.Name = rest[0]
			return a.secretSet(cmd.Context(), sec)
		},
	}
	set.Flags().StringVar(&sec.Host, "host", "", "host whose requests it is put into")
	set.Flags().StringVar(&sec.Header, "header", "", "header that it is put into, {} for the secret (\""+secret.DefaultHeader+"\")")
	set.Flags().StringSliceVar(&sec.Repos, "repo", nil, "repository whose agents it is for, owner/name; all when not given")
	cmd.AddCommand(set,
		a.jsonFlag(&cobra.Command{
			Use: "list", Short: "List the secrets, without their values", Args: noArgs,
			RunE: func(*cobra.Command, []string) error { return a.secretList() },
		}),
		&cobra.Command{
			Use: "rm NAME", Short: "Remove a secret", Args: args(cobra.ExactArgs(1)),
			RunE: func(cmd *cobra.Command, rest []string) error {
				if err := a.cfg.secrets().Remove(rest[0]); err != nil {
					return nameUsage(err)
				}
				if err := a.keepCommand("secret-rm", "", rest[0]); err != nil {
					return err
				}
				return a.steerPods(cmd.Context())
			},
		})
	return cmd
}

// nameUsage makes a bad name an error of usage.
func nameUsage(err error) error {
	if errors.Is(err, secret.ErrName) {
		return usagef("%w", err)
	}
	return err
}

// steerPods has the service bring pods' policies up to date. One that does not
// run does so when it starts.
func (a *app) steerPods(ctx context.Context) error {
	err := a.api().post(ctx, "/api/steer")
	if exit := (*exitError)(nil); errors.As(err, &exit) && exit.code == codeUnreachable {
		return nil
	}
	return err
}

func (a *app) secretSet(ctx context.Context, sec secret.Secret) error {
	if err := secret.CheckName(sec.Name); err != nil {
		return nameUsage(err)
	}
	value, err := a.readSecret(sec.Name)
	if err != nil {
		return err
	}
	if err := a.makeStateDir(); err != nil {
		return err
	}
	if err := a.cfg.secrets().Put(sec, value); err != nil {
		return fmt.Errorf("storing secret %s: %w", sec.Name, err)
	}
	if err := a.keepCommand("secret-set", "", strings.TrimSpace(sec.Name+" "+sec.Host+" "+strings.Join(sec.Repos, " "))); err != nil {
		return err
	}
	if err := a.steerPods(ctx); err != nil {
		return fmt.Errorf("secret %s is stored; telling pods that run: %w", sec.Name, err)
	}
	a.step("stored   secret %s; pods use it from now on", sec.Name)
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

func (a *app) secretList() error {
	found, err := a.cfg.secrets().List()
	if err != nil {
		return err
	}
	if a.asJSON {
		return a.printJSON(found)
	}
	w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
	for _, s := range found {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", s.Name, s.Updated.Format(time.DateTime), s.Host, strings.Join(s.Repos, ","))
	}
	return w.Flush()
}
