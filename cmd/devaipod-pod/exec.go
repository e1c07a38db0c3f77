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
	"strings"
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
	here := f.Bool("here", false, "stay in this directory, instead of the repository's folder")
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
	cfg := shim.Config{RepoDir: *repo, Setup: setup, Output: stderr, Log: slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))}
	if *wait {
		at, err := awaitSetup(ctx, &cfg, func(stage string) { fmt.Fprintln(stderr, "devaipod: waiting for "+stage) })
		if err != nil {
			return signalled(ctx), fmt.Errorf("exec: waiting for the setup: %w", err)
		}
		if at.Error != "" {
			fmt.Fprintln(stderr, "devaipod: the setup of this container ended early: "+at.Error)
		}
	}
	if *attach {
		if err := cfg.Attach(ctx); ctx.Err() == nil && err != nil {
			fmt.Fprintln(stderr, "devaipod: "+err.Error())
		}
	}
	if ctx.Err() != nil {
		return signalled(ctx), errors.New("exec: the command was not started: " + context.Cause(ctx).Error())
	}
	if !*here {
		err := os.Chdir(cfg.Dir())
		if err != nil && !*attach {
			return 126, fmt.Errorf("exec: %w", err)
		}
		if err != nil { // who enters a container without a clone may want to see why
			fmt.Fprintln(stderr, "devaipod: "+err.Error())
		}
	}
	return start(f.Args(), shim.Environ(os.Environ(), setup))
}

// signalled is the exit code of who was told to end, 1 where nobody was.
func signalled(ctx context.Context) int {
	if ctx.Err() == nil {
		return 1
	}
	if cause := context.Cause(ctx); cause != nil && strings.HasPrefix(cause.Error(), syscall.SIGTERM.String()) {
		return 128 + int(syscall.SIGTERM)
	}
	return 128 + int(syscall.SIGINT)
}

// start turns into a command. Its codes are a shell's.
func start(args, env []string) (int, error) {
	program := shim.Find(args[0], env)
	if filepath.Base(program) == program {
		return 127, fmt.Errorf("exec: there is no program %s in PATH", program)
	}
	err := syscall.Exec(program, args, env) //nolint:gosec // the person's own
	if errors.Is(err, fs.ErrNotExist) {
		return 127, fmt.Errorf("exec: starting %s: %w", program, err)
	}
	return 126, fmt.Errorf("exec: starting %s: %w", program, err)
}

// runAwait tells, a line of JSON each, where the setup is that somebody waits for, until
// that is over.
func runAwait(ctx context.Context, args []string, stdout, stderr io.Writer) (int, error) {
	f := flags("await", stderr)
	repo := f.String("repo", podfile.RepoDir, "directory of the clone")
	if err := f.Parse(args); err != nil {
		return 2, err
	}
	setup, err := podfile.ParseSetup(os.Getenv(podfile.EnvSetup))
	if err != nil {
		return 1, err
	}
	out := json.NewEncoder(stdout)
	at, err := awaitSetup(ctx, &shim.Config{RepoDir: *repo, Setup: setup}, func(stage string) {
		_ = out.Encode(podfile.Awaited{Stage: stage}) // who is gone needs none
	})
	if err != nil {
		return 1, err
	}
	at.Over = true
	return 0, out.Encode(at)
}

// setupPoll is how often it is looked at whether a setup goes on.
const setupPoll = 200 * time.Millisecond

// awaitSetup waits for the stage that the repository names, or the setup's end, and
// tells which stage it waits for.
func awaitSetup(ctx context.Context, cfg *shim.Config, tell func(stage string)) (podfile.Awaited, error) {
	stage := cfg.Setup.WaitFor
	names := []string{}
	for _, s := range cfg.Setup.Stages {
		names = append(names, s.Name)
	}
	if stage == "" || len(names) == 0 {
		return podfile.Awaited{}, nil
	}
	for told := ""; ; {
		st, err := cfg.ReadState()
		if err != nil {
			return podfile.Awaited{}, err
		}
		if behind := st.Behind(stage, names); behind || st.Ended {
			return podfile.Awaited{Stage: st.Stage, Error: st.Error, Said: st.Said, Short: !behind}, nil
		}
		now := st.Stage
		if now == "" {
			now = stage
		}
		if now != told {
			tell(now)
			told = now
		}
		select {
		case <-ctx.Done():
			return podfile.Awaited{}, context.Cause(ctx)
		case <-time.After(setupPoll):
		}
	}
}
