package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"

	"codeberg.org/devaipod/devaipod/pods/podfile"
	"codeberg.org/devaipod/devaipod/pods/saver"
)

// runSaver saves an agent's work until ctx ends; with --once it saves
// everything, says as one line of JSON on stdout what is not saved, and exits 1
// unless the service has all the rest.
func runSaver(ctx context.Context, args []string, stdout, stderr io.Writer, log *slog.Logger) (int, error) {
	cfg := saver.Config{Log: log}
	f := flags("saver", stderr)
	f.Int64Var(&cfg.Issue, "issue", 0, "whose agent it is")
	f.StringVar(&cfg.Workspace, "workspace", podfile.WorkspaceDir, "the agent's volume")
	f.StringVar(&cfg.Home, "home", podfile.SaverDir, "the saver's own volume")
	f.StringVar(&cfg.Socket, "socket", podfile.SaveDir+"/"+podfile.SaveSocket, "where the service listens")
	f.DurationVar(&cfg.Quiet, "quiet", 0, "how long there must be no change before a save (default 1s)")
	f.DurationVar(&cfg.AtMost, "at-most", 0, "how long after the first change a save waits (default 3s)")
	f.Func("borrow", "object `directory` that lasts as long as the pod, whose content is not copied; may be repeated", func(dir string) error {
		cfg.Borrow = append(cfg.Borrow, dir)
		return nil
	})
	once := f.Bool("once", false, "save everything, tell, and end")
	if err := f.Parse(args); err != nil {
		return 2, err
	}
	if cfg.Issue <= 0 || f.NArg() > 0 {
		return 2, errors.New("saver: want --issue N")
	}
	if !*once {
		return 0, saver.Run(ctx, cfg)
	}
	saved := saver.Once(ctx, cfg)
	if err := json.NewEncoder(stdout).Encode(saved); err != nil || !saved.Complete {
		return 1, err
	}
	return 0, nil
}
