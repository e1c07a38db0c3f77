// Command demo is `make demo`: it brings up devaipod in a world of its own,
// files an issue as a person would, puts the label on it, and waits for the
// pull request. It uses nothing but the product's command line and the forge's
// API, says each step, and leaves all of it up to be looked at.
//
//	demo up     everything, up to the pull request
//	demo down   nothing of it stays
//
// All that it makes is in one directory, devaipod-demo in $XDG_STATE_HOME
// (~/.local/state), and in names of the instance "demo".
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"codeberg.org/devaipod/devaipod/cmd/internal/testkit"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "demo: "+err.Error())
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdin *os.File, stdout, stderr io.Writer) error {
	verb := ""
	if len(args) > 0 {
		verb = args[0]
	}
	switch verb {
	case "model":
		return serveModel(ctx, args[1:], stdout, stderr)
	case "up", "down":
	default:
		return errors.New("usage: demo up|down (make demo, make demo-down)")
	}
	dir, err := directory()
	if err != nil {
		return err
	}
	root, err := testkit.Root()
	if err != nil {
		return err
	}
	d := &demo{root: root, dir: dir, in: stdin, out: stdout, errOut: stderr}
	if verb == "down" {
		return d.down(ctx)
	}
	err = d.up(ctx)
	if ctx.Err() != nil {
		return errors.New("interrupted; make demo goes on from here, make demo-down removes what there is")
	}
	if err != nil {
		return fmt.Errorf("%w\nThe stack is left as it is, to be looked at (%s); make demo-down removes it", err, dir)
	}
	return nil
}

// directory is where all of the demo is.
func directory() (string, error) {
	base := os.Getenv("XDG_STATE_HOME")
	if base == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", err
		}
		base = filepath.Join(home, ".local", "state")
	}
	return filepath.Join(base, "devaipod-demo"), nil
}
