package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"codeberg.org/devaipod/devaipod/pods/podfile"
	"codeberg.org/devaipod/devaipod/pods/shim"
)

// runCheck runs checks on a commit and says as one line of JSON on stdout what came of
// them. What they run is of the same user: it must not get at this process, whose
// standard output is what the service goes by (PR_SET_DUMPABLE, prctl(2); proc(5)).
func runCheck(ctx context.Context, args []string, stdout, stderr io.Writer, log *slog.Logger) error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return err
	}
	cfg := shim.Config{Role: "check", Repo: os.Getenv(podfile.EnvRepo), Branch: os.Getenv(podfile.EnvBranch), Init: os.Getpid() == 1, Log: log}
	var commands []string
	err := json.Unmarshal([]byte(os.Getenv(podfile.EnvChecks)), &commands)
	if err == nil {
		cfg.Setup, err = podfile.ParseSetup(os.Getenv(podfile.EnvSetup))
	}
	if err != nil {
		return err
	}
	if err := os.Unsetenv(podfile.EnvChecks); err != nil {
		return err
	}
	f := flags("check", stderr)
	commit := f.String("commit", "", "what is checked")
	within := f.Duration("within", 30*time.Minute, "how long all of it may take")
	f.StringVar(&cfg.GateAddr, "gate", podfile.GateAddr, "address at which git is made reachable")
	f.StringVar(&cfg.SocketDir, "sockets", podfile.SocketDir, "directory of the socket")
	f.StringVar(&cfg.RepoDir, "repo", podfile.RepoDir, "directory of the clone")
	if err := f.Parse(args); err != nil {
		return err
	}
	if *commit == "" || len(commands) == 0 {
		return errors.New("check: want --commit ID and commands")
	}
	return json.NewEncoder(stdout).Encode(shim.Check(ctx, cfg, *commit, commands, *within))
}
