package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"

	"codeberg.org/devaipod/devaipod/pods/podfile"
	"codeberg.org/devaipod/devaipod/pods/relay"
	"codeberg.org/devaipod/devaipod/pods/shim"
)

// version is set by the linker (see the Makefile).
var version = "devel"

const help = `usage: devaipod-pod control [flags]
       devaipod-pod shim agent|workspace [flags] [-- COMMAND...]
       devaipod-pod exec [--wait] [--attach] [--here] -- COMMAND...
       devaipod-pod await
       devaipod-pod saver --issue N [--once] [flags]
       devaipod-pod check --commit ID [--within DURATION] [flags]
       devaipod-pod look [--git PATH]
       devaipod-pod relay --listen ADDR... --to SOCKET [--tell]
       devaipod-pod inventory | dial | sshd | login [DIR] | signal MARK NUMBER
       devaipod-pod version`

// run does what args say and returns the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	log := slog.New(slog.NewTextHandler(stderr, nil))
	if len(args) == 0 {
		fmt.Fprintln(stderr, help)
		return 2
	}
	var code int
	var err error
	switch args[0] {
	case "control":
		err = runControl(ctx, args[1:], stderr, log)
	case "shim":
		code, err = runShim(ctx, args[1:], stderr, log)
	case "exec":
		code, err = runExec(ctx, args[1:], stderr)
	case "await":
		code, err = runAwait(ctx, args[1:], stdout, stderr)
	case "saver":
		code, err = runSaver(ctx, args[1:], stdout, stderr, log)
	case "check":
		err = runCheck(ctx, args[1:], stdout, stderr, log)
	case "look":
		err = runLook(ctx, args[1:], stdout, stderr)
	case "relay":
		err = runRelay(ctx, args[1:], stderr, log)
	case "inventory":
		err = runInventory(ctx, podfile.WorkspaceDir, podfile.RepoDir, stdout)
	case "sshd":
		err = runSSHD(ctx, os.Stdin, os.Stdout, stderr)
	case "dial":
		err = runDial(ctx, os.Stdin, stdout)
	case "login":
		err = runLogin(args[1:])
	case "signal":
		err = runSignal(args[1:])
	case "version":
		_, err = fmt.Fprintln(stdout, "devaipod-pod "+version)
	default:
		fmt.Fprintln(stderr, help)
		return 2
	}
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 2
	case err != nil:
		fmt.Fprintln(stderr, "devaipod-pod: "+err.Error())
		return max(code, 1)
	}
	return code
}

func flags(name string, stderr io.Writer) *flag.FlagSet {
	f := flag.NewFlagSet(name, flag.ContinueOnError)
	f.SetOutput(stderr)
	return f
}

func runShim(ctx context.Context, args []string, stderr io.Writer, log *slog.Logger) (int, error) {
	if len(args) == 0 || (args[0] != "agent" && args[0] != "workspace") {
		return 2, errors.New("shim: want agent or workspace")
	}
	cfg := shim.Config{
		Role: args[0], Token: os.Getenv(podfile.EnvToken), Repo: os.Getenv(podfile.EnvRepo),
		Branch: os.Getenv(podfile.EnvBranch), Base: os.Getenv(podfile.EnvBase), Init: os.Getpid() == 1, Log: log,
	}
	var err error
	if cfg.Setup, err = podfile.ParseSetup(os.Getenv(podfile.EnvSetup)); err != nil {
		return 2, err
	}
	f := flags("shim", stderr)
	f.StringVar(&cfg.GateAddr, "gate", podfile.GateAddr, "address at which the gate is made reachable")
	f.StringVar(&cfg.AgentAddr, "agent", podfile.AgentAddr, "address at which the agent listens")
	f.StringVar(&cfg.SocketDir, "sockets", podfile.SocketDir, "directory of the sockets")
	f.StringVar(&cfg.RepoDir, "repo", podfile.RepoDir, "directory of the clone")
	f.StringVar(&cfg.Driver, "driver", podfile.DriverOpencode, "how the agent is spoken to: opencode, acp or command")
	if err := f.Parse(args[1:]); err != nil {
		return 2, err
	}
	if !slices.Contains([]string{podfile.DriverOpencode, podfile.DriverACP, podfile.DriverCommand}, cfg.Driver) {
		return 2, fmt.Errorf("shim: --driver %s: want opencode, acp or command", cfg.Driver)
	}
	cfg.Command = f.Args()
	return shim.Run(ctx, cfg)
}

func runRelay(ctx context.Context, args []string, stderr io.Writer, log *slog.Logger) error {
	f := flags("relay", stderr)
	var listen []string
	f.Func("listen", "loopback address to listen on; may be given again", func(addr string) error {
		host, _, err := net.SplitHostPort(addr)
		if ip := net.ParseIP(host); err != nil || ip == nil || !ip.IsLoopback() {
			return errors.New("want 127.0.0.1:PORT")
		}
		listen = append(listen, addr)
		return nil
	})
	to := f.String("to", "", "unix socket that connections are passed on to")
	tell := f.Bool("tell", false, "connect to it once when all of them listen")
	if err := f.Parse(args); err != nil {
		return err
	}
	if len(listen) == 0 || *to == "" {
		return errors.New("relay: want --listen 127.0.0.1:PORT and --to SOCKET")
	}
	var all []net.Listener
	for _, addr := range listen {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			return err
		}
		all = append(all, l)
	}
	if *tell {
		conn, err := relay.Unix(*to)(ctx)
		if err != nil {
			return err
		}
		conn.Close()
	}
	ended := make(chan error, len(all))
	for _, l := range all {
		go func() { ended <- relay.Serve(ctx, l, relay.Unix(*to), log) }()
	}
	return <-ended // all end with ctx, and the program with the first that fails
}
