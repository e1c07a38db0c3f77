package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"codeberg.org/devaipod/devaipod/pods/audit"
)

// version is set by the linker (see the Makefile).
var version = "devel"

// Exit codes; docs/guide.md lists them.
const (
	codeFailed      = 1
	codeUsage       = 2
	codeNeedsHuman  = 3
	codeRefused     = 4
	codeUnreachable = 5
)

// An exitError carries the exit code for an error. An empty text prints
// nothing: what happened was said already.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return ""
	}
	return e.err.Error()
}
func (e *exitError) Unwrap() error { return e.err }

func usagef(format string, a ...any) error {
	return &exitError{codeUsage, fmt.Errorf(format, a...)}
}

func exitCode(err error) int {
	var e *exitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &e):
		return e.code
	}
	return codeFailed
}

// An app is one invocation: its configuration, its streams, and what commands
// share.
type app struct {
	cfg    config
	in     io.Reader
	out    io.Writer
	errOut io.Writer
	log    *slog.Logger
	asJSON bool
	// podmanURI is where podman's service is, once it was found.
	podmanURI string
	// ownPodman says that podman's service is one that devaipod has started.
	ownPodman bool
	podmanMu  sync.Mutex // held while that is ended or started again
	// store is the work store that --store names, 0 for none.
	store int64

	auditOnce sync.Once
	audit     *audit.Log
	auditErr  error
}

// run is the whole program: it parses args, runs the command, and prints an
// error to stderr.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) error {
	a := &app{in: stdin, out: stdout, errOut: stderr}
	root := a.root()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err != nil && err.Error() != "" {
		fmt.Fprintln(stderr, "devaipod: "+err.Error())
	}
	return err
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:           "devaipod",
		Short:         "Label an issue, get a pull request: coding agents beside your own forge",
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &exitError{codeUsage, err} })
	f := root.PersistentFlags()
	f.String("config", "", "config `file` (default: devaipod.toml in $XDG_CONFIG_HOME/devaipod or /etc/devaipod)")
	f.String("instance", "", "instance `id`, which is in every name that is made")
	f.String("state-dir", "", "`directory` for tokens, logs and sockets")
	f.String("log-level", "", "debug, info, warn or error")
	root.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error { return a.configure(cmd) }
	root.AddCommand(a.forgeCmd(), a.serveCmd(), a.runCmd(), a.listCmd(), a.statusCmd(), a.logsCmd(), a.evidenceCmd(),
		a.sendCmd(), a.waitCmd(), a.openCmd(), a.stopCmd(), a.rmCmd(), a.upCmd(), a.eventsCmd(), a.auditCmd(), a.execCmd(), a.attachCmd(), a.cpCmd(), a.forwardCmd(), a.statsCmd(), a.diffCmd(), a.checkoutCmd(), a.exportCmd(), a.recoverCmd(), a.mirrorCmd(), a.dfCmd(), a.pruneCmd(), a.secretCmd(), a.usageCmd(), a.ciCmd(), a.ciWorkerCmd(), a.sshdCmd(), a.sshCmd(), a.sshConfigCmd(), a.sshProxyCmd(), a.versionCmd())
	return root
}

// configure reads the configuration once the flags are known.
func (a *app) configure(cmd *cobra.Command) error {
	cmd.SetContext(byCommandLine(cmd.Context()))
	cfg, err := loadConfig(cmd.Flags(), os.Environ())
	if err != nil {
		return &exitError{codeUsage, err}
	}
	a.cfg = cfg
	var level slog.Level
	if err := level.UnmarshalText([]byte(cfg.LogLevel)); err != nil {
		return usagef("log_level %q: want debug, info, warn or error", cfg.LogLevel)
	}
	a.log = slog.New(slog.NewTextHandler(a.errOut, &slog.HandlerOptions{Level: level}))
	return nil
}

func (a *app) versionCmd() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: noArgs,
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprintln(a.out, "devaipod "+version)
			return err
		},
	}
}

// args wraps a cobra check so that what it refuses is a usage error.
func args(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, got []string) error {
		if err := check(cmd, got); err != nil {
			return usagef("%w\nusage: %s", err, cmd.UseLine())
		}
		return nil
	}
}

var noArgs = args(cobra.NoArgs)

// jsonFlag gives a command --json.
func (a *app) jsonFlag(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().BoolVar(&a.asJSON, "json", false, "print JSON")
	return cmd
}

// step says what is being done, on stderr.
func (a *app) step(format string, v ...any) {
	fmt.Fprintf(a.errOut, format+"\n", v...)
}

// confirm asks for a yes on a terminal; elsewhere it refuses and names flag.
func (a *app) confirm(question, flag string) error {
	f, ok := a.in.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return usagef("%s Nobody can be asked here; add %s if you are sure", question, flag)
	}
	fmt.Fprintf(a.errOut, "%s [y/N] ", question)
	var answer string
	if _, err := fmt.Fscanln(f, &answer); err != nil || !strings.HasPrefix(strings.ToLower(answer), "y") {
		return &exitError{codeRefused, errors.New("nothing was done")}
	}
	return nil
}
