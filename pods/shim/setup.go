package shim

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"codeberg.org/devaipod/devaipod/pods/devcontainer"
	"codeberg.org/devaipod/devaipod/pods/podfile"
)

// dotfilesStage is what the person's dotfiles are called among the stages.
const dotfilesStage = "dotfiles"

// setupWithin is how long a command may take when nothing is said.
const setupWithin = 30 * time.Minute

// setUp runs the stages that are to run now, in their order. A stage that is for
// once has ended well when its mark is in the clone: one that a kill, a failure or
// its time ended runs again at the next start, and all after it.
func (c *Config) setUp(ctx context.Context) error {
	if len(c.Setup.Stages) == 0 && c.Setup.Dotfiles == nil {
		return nil
	}
	if err := c.forgetState(); err != nil {
		return err
	}
	ended := podfile.SetupState{Ended: true}
	dotfiles := func() {
		if err := c.dotfiles(ctx); err != nil && ctx.Err() == nil {
			c.Log.Error("the dotfiles are not installed; all else goes on", "err", err)
			ended.Stage, ended.Error = dotfilesStage, err.Error()
		}
	}
	before := slices.IndexFunc(c.Setup.Stages, func(s devcontainer.Stage) bool { return s.Name == devcontainer.PostStart })
	for i, s := range c.Setup.Stages {
		if i == before {
			dotfiles()
		}
		if err := c.stage(ctx, s); err != nil {
			if ctx.Err() == nil {
				c.tell(ctx, podfile.SetupState{Stage: s.Name, Error: err.Error(), Ended: true})
			}
			return err
		}
	}
	if before < 0 {
		dotfiles()
	}
	c.tell(ctx, ended)
	return ctx.Err()
}

// stage runs one, unless it has run.
func (c *Config) stage(ctx context.Context, s devcontainer.Stage) error {
	mark := c.mark(s)
	if podfile.Once(s.Name) && marked(mark) {
		return c.done(s.Name)
	}
	c.tell(ctx, podfile.SetupState{Stage: s.Name})
	began := time.Now()
	err := c.side(ctx, s.Name, s.Commands)
	if ctx.Err() != nil {
		return ctx.Err() // we are to end: it has not failed, and runs again
	}
	if err == nil && podfile.Once(s.Name) {
		err = putMark(mark)
	}
	if err != nil {
		if failed := new(failedError); errors.As(err, &failed) {
			c.state.Said = failed.said
		}
		return fmt.Errorf("%s: %w", s.Name, err)
	}
	c.Log.Info("ended well", "stage", s.Name, "took", time.Since(began).Round(time.Millisecond))
	return c.done(s.Name)
}

// side runs commands side by side, each to its end.
func (c *Config) side(ctx context.Context, stage string, commands []devcontainer.Command) error {
	errs := make([]error, len(commands))
	var wg sync.WaitGroup
	for i, command := range commands {
		wg.Go(func() { errs[i] = c.command(ctx, stage, command) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// stateDir is in the clone and not in its tree: whoever removes the clone begins
// anew.
func (c *Config) stateDir() string { return filepath.Join(c.RepoDir, ".git", "devaipod") }

// mark is the file that says that a stage has run, with these commands.
func (c *Config) mark(s devcontainer.Stage) string {
	text, err := json.Marshal(s)
	if err != nil {
		panic(err) // plain data
	}
	sum := sha256.Sum256(text)
	return filepath.Join(c.stateDir(), "done-"+hex.EncodeToString(sum[:8]))
}

func marked(file string) bool {
	_, err := os.Lstat(file)
	return err == nil
}

func putMark(file string) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// A State is what who enters is told: the stages that are behind, the one that runs or
// failed, and whether there are no more.
type State struct {
	Done  []string `json:"done,omitempty"`
	Stage string   `json:"stage,omitempty"`
	Ended bool     `json:"ended"`
	Error string   `json:"error,omitempty"`
	Said  string   `json:"said,omitempty"` // the last lines of the command that failed
	// Start tells one start of the container from another; 0 is any.
	Start uint64 `json:"start,omitempty"`
}

// Behind tells whether a stage is over, or has nothing to run: all of a setup's
// stages that come before it, or are it, are done.
func (s State) Behind(stage string, stages []string) bool {
	last := slices.Index(devcontainer.Stages, stage)
	for _, name := range stages {
		if i := slices.Index(devcontainer.Stages, name); i >= 0 && i <= last && !slices.Contains(s.Done, name) {
			return false
		}
	}
	return true
}

// Dir is where people's commands begin.
func (c *Config) Dir() string { return c.setupDir() }

// Attach runs what the repository wants to be run each time that somebody enters.
func (c *Config) Attach(ctx context.Context) error {
	if err := c.side(ctx, devcontainer.PostAttach, c.Setup.Attach); err != nil {
		return fmt.Errorf("%s: %w", devcontainer.PostAttach, err)
	}
	return nil
}

// StateFile is where it is.
func (c *Config) StateFile() string { return filepath.Join(c.stateDir(), "state.json") }

// ReadState is where the setup of this container is; the one of a start before this is
// nothing.
func (c *Config) ReadState() (s State, err error) {
	text, err := os.ReadFile(c.StateFile())
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(text, &s); err != nil {
		return State{}, fmt.Errorf("reading %s: %w", c.StateFile(), err)
	}
	if s.Start == 0 {
		return s, nil
	}
	if now, err := BeganAt("/proc/1"); err != nil || now != s.Start {
		return State{}, err
	}
	return s, nil
}

// BeganAt is when a process began, in ticks (proc_pid_stat(5), field 22).
func BeganAt(dir string) (uint64, error) {
	stat, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return 0, err
	}
	f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(f) < 20 {
		return 0, errors.New("its stat is short")
	}
	return strconv.ParseUint(f[19], 10, 64)
}

func (c *Config) forgetState() error {
	c.state = State{}
	if c.Init {
		var err error
		if c.state.Start, err = BeganAt("/proc/self"); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(c.stateDir(), 0o755); err != nil {
		return fmt.Errorf("keeping what was done: %w", err)
	}
	return c.keepState()
}

func (c *Config) done(stage string) error {
	c.state.Done = append(c.state.Done, stage)
	return c.keepState()
}

func (c *Config) keepState() error {
	text, err := json.Marshal(c.state)
	if err != nil {
		return err
	}
	tmp := c.StateFile() + ".new"
	if err := os.WriteFile(tmp, text, 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, c.StateFile())
}
