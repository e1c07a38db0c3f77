package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"codeberg.org/devaipod/devaipod/pods/podfile"
	"codeberg.org/devaipod/devaipod/pods/shim"
)

// runExec starts a person's command in a pod's container as the repository wants
// it: with its remoteEnv, in its folder, after what is to be waited for. It does
// not return when that goes well.
func runExec(ctx context.Context, args []string, stderr io.Writer) (int, error) {
	f := flags("exec", stderr)
	wait := f.Bool("wait", false, "wait for the setup first, as far as the repository wants it (waitFor)")
	attach := f.Bool("attach", false, "run postAttachCommand first")
	repo := f.String("repo", podfile.RepoDir, "directory of the clone")
	if err := f.Parse(args); err != nil {
		return 2, err
	}
	if f.NArg() == 0 {
		return 2, errors.New("exec: want a command")
	}
	setup, err := podfile.ParseSetup(os.Getenv(podfile.EnvSetup))
	if err != nil {
		return 1, err
	}
	cfg := shim.Config{RepoDir: *repo, Setup: setup, Output: stderr, Log: slog.New(slog.NewTextHandler(stderr, nil))}
	if *wait {
		if err := awaitSetup(ctx, &cfg, stderr); err != nil {
			return 1, err
		}
	}
	if *attach {
		if err := cfg.Attach(ctx); err != nil {
			fmt.Fprintln(stderr, "devaipod: "+err.Error())
		}
	}
	env := shim.Environ(os.Environ(), setup)
	if err := os.Chdir(cfg.Dir()); err != nil {
		return 1, err
	}
	program := shim.Find(f.Arg(0), env)
	if filepath.Base(program) == program {
		return 127, fmt.Errorf("exec: there is no program %s in PATH", program)
	}
	return 126, fmt.Errorf("exec: starting %s: %w", program, syscall.Exec(program, f.Args(), env))
}

// setupPoll is how often it is looked at whether a setup goes on.
const setupPoll = 200 * time.Millisecond

// awaitSetup waits for the stage that the repository names, or the setup's end.
func awaitSetup(ctx context.Context, cfg *shim.Config, stderr io.Writer) error {
	stage := cfg.Setup.WaitFor
	names := []string{}
	for _, s := range cfg.Setup.Stages {
		names = append(names, s.Name)
	}
	if stage == "" || len(names) == 0 {
		return nil
	}
	told := false
	for {
		text, err := os.ReadFile(cfg.StateFile())
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		var st shim.State
		if err == nil && json.Unmarshal(text, &st) == nil {
			if st.Error != "" {
				fmt.Fprintln(stderr, "devaipod: the setup of this container ended early: "+st.Error)
			}
			if st.Ended || st.Behind(stage, names) {
				return nil
			}
		}
		if !told {
			fmt.Fprintf(stderr, "devaipod: waiting for %s\n", stage)
			told = true
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(setupPoll):
		}
	}
}
