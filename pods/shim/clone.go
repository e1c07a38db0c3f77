package shim

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// env is the environment of git and the agent: the gate's token reaches git
// as a header, for the gate's address alone.
func (c *Config) env() []string {
	env := os.Environ()
	if c.Home != "" {
		env = append(env, "HOME="+c.Home)
	}
	settings := c.gitSettings()
	env = append(env, "GIT_TERMINAL_PROMPT=0", fmt.Sprintf("GIT_CONFIG_COUNT=%d", len(settings)))
	for i, kv := range settings {
		env = append(env, fmt.Sprintf("GIT_CONFIG_KEY_%d=%s", i, kv[0]), fmt.Sprintf("GIT_CONFIG_VALUE_%d=%s", i, kv[1]))
	}
	return env
}

// gitSettings lead git to the gate, and there alone: with the token for it,
// and for other hosts' repositories too.
func (c *Config) gitSettings() [][2]string {
	gate := "http://" + c.GateAddr + "/"
	return [][2]string{
		{"http." + gate + ".extraHeader", "Authorization: Bearer " + c.Token},
		{"url." + gate + "git/.insteadOf", "https://"},
		{"url." + gate + "git/.insteadOf", "ssh://git@"},
		// The volume's folders are this user's, whatever their owner looks like.
		{"safe.directory", "*"},
		{"advice.detachedHead", "false"},
	}
}

// cloneWithin is how long the gate and the service may be away at a start.
const cloneWithin = 10 * time.Minute

// clone makes the clone unless it is there: under another name first, so that
// a kill leaves either none or a whole one.
func (c *Config) clone(ctx context.Context) error {
	if _, err := os.Stat(filepath.Join(c.RepoDir, ".git")); err == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, cloneWithin)
	defer cancel()
	restores := maxRestores
	if c.Role != "agent" {
		restores = 0
	}
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		err := c.cloneOnce(ctx, restores > 0)
		if err == nil || errors.Is(err, ErrNoBase) {
			return err
		}
		if ctx.Err() != nil {
			return errors.Join(fmt.Errorf("cloning %s: %w", c.Repo, err), ctx.Err())
		}
		if broken := new(restoreError); errors.As(err, &broken) {
			if restores--; restores == 0 {
				c.Log.Error("the agent begins from the repository as it is: what an earlier pod of the issue has saved does not come back, and stays in the work store (devaipod recover)", "err", err)
				continue
			}
		}
		c.Log.Warn("cloning; trying again", "repo", c.Repo, "err", err, "in", wait)
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}

// ErrNoBase is returned by [Run] when the repository is there and does not
// have the branch to start from, as an empty one; trying again is of no use.
var ErrNoBase = errors.New("the repository has no such branch to start from; push a first commit to it")

// noBase is git ls-remote's exit code for refs that are not there.
const noBase = 2

// cloneOnce makes the clone, of what was saved if that shall be and there is any.
func (c *Config) cloneOnce(ctx context.Context, restoring bool) (err error) {
	tmp := c.RepoDir + ".new"
	if err := errors.Join(os.RemoveAll(tmp), os.RemoveAll(c.bundlePath())); err != nil {
		return err
	}
	// First: the clone then has all that the bundle stands on.
	saved := false
	if restoring {
		if saved, err = c.fetchSaved(ctx); err != nil {
			return err
		}
	}
	sparse := len(c.Setup.Sparse) > 0
	borrows, err := c.fetch(ctx, tmp, !saved && !sparse)
	if err != nil {
		return err
	}
	if sparse {
		if err := c.git(ctx, tmp, append([]string{"sparse-checkout", "set", "--cone", "--"}, c.Setup.Sparse...)...); err != nil {
			return err
		}
		if !saved {
			if err := c.git(ctx, tmp, "reset", "--quiet", "--hard"); err != nil {
				return err
			}
		}
	}
	if saved {
		if saved, err = c.restore(ctx, tmp, borrows); err != nil {
			return &restoreError{err}
		}
		if err := os.Remove(c.bundlePath()); err != nil {
			return err
		}
		if !saved {
			err = c.git(ctx, tmp, "reset", "--quiet", "--hard")
		}
	}
	if err == nil && !saved {
		err = c.begin(ctx, tmp, borrows)
	}
	if err != nil {
		return err
	}
	return os.Rename(tmp, c.RepoDir)
}

// fetch clones the repository, and checks its base out or nothing. It tells whether
// the clone borrows.
func (c *Config) fetch(ctx context.Context, tmp string, checkout bool) (borrows bool, err error) {
	url := "http://" + c.GateAddr + "/work/" + c.Repo + ".git"
	c.Log.Info("cloning", "repo", c.Repo, "branch", c.Branch, "base", c.Base)
	args := []string{"clone", "--quiet", "--no-recurse-submodules", "--branch", c.Base}
	if !checkout {
		args = append(args, "--no-checkout")
	}
	_, err = os.Stat(c.BorrowDir)
	borrows = err == nil
	if borrows {
		// What is there is not fetched: it stays for as long as the clone does.
		args = append(args, "--reference", c.BorrowDir)
	}
	if err := c.git(ctx, "", append(args, "--", url, tmp)...); err != nil {
		return borrows, c.whyNot(ctx, url, err)
	}
	return borrows, nil
}

// start is where work begins in a clone: what was pushed before, or the base.
func (c *Config) start(ctx context.Context, dir string) string {
	pushed := "refs/remotes/origin/" + c.Branch
	if c.git(ctx, dir, "rev-parse", "--verify", "--quiet", pushed) != nil {
		return "refs/remotes/origin/" + c.Base
	}
	return pushed
}

// begin switches to the branch to work on.
func (c *Config) begin(ctx context.Context, tmp string, borrows bool) error {
	if borrows {
		if err := settle(ctx, tmp); err != nil {
			return err
		}
	}
	if c.Branch == c.Base {
		return nil // a person's own, and checked out
	}
	return c.git(ctx, tmp, "switch", "--quiet", "--no-track", "--create", c.Branch, c.start(ctx, tmp))
}

// maxUnsettled is how many bytes of files may be copied without need.
const maxUnsettled = 1 << 20

// settle waits until the index that git writes next is newer than the files it
// tells of, by the second, if they are large. Otherwise git add looks at each
// again, as one that may have changed since (git's racy-git(7)), and writes what
// is lent as an object of the clone's own: it can't mark the lent one as used.
func settle(ctx context.Context, dir string) error {
	index, err := os.Stat(filepath.Join(dir, ".git", "index"))
	if err != nil {
		return err
	}
	second := index.ModTime().Truncate(time.Second)
	var unsettled int64
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && d.Name() == ".git":
			return fs.SkipDir
		case d.IsDir():
			return nil
		}
		info, err := d.Info()
		if err == nil && !info.ModTime().Before(second) {
			if unsettled += info.Size(); unsettled > maxUnsettled {
				return fs.SkipAll
			}
		}
		return err
	})
	if err != nil || unsettled <= maxUnsettled {
		return err
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	// A second at most, whatever somebody sets the clock to.
	case <-time.After(min(time.Second, time.Until(second.Add(time.Second))) + 10*time.Millisecond):
		return nil
	}
}

// whyNot tells a clone that went wrong for now from one that always will.
func (c *Config) whyNot(ctx context.Context, url string, err error) error {
	asked := c.git(ctx, "", "ls-remote", "--quiet", "--exit-code", "--", url, "refs/heads/"+c.Base)
	if exit := new(exec.ExitError); errors.As(asked, &exit) && exit.ExitCode() == noBase {
		return fmt.Errorf("cloning %s: %w (%s)", c.Repo, ErrNoBase, c.Base)
	}
	return err
}

// tellGit writes the way to the gate into the user's own git configuration
// (git-config(1), FILES), for commands that people start beside us: they do
// not have our environment.
func (c *Config) tellGit() error {
	dir := filepath.Join(c.home(), ".config", "git")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	text := "# Written by devaipod at each start.\n"
	for _, kv := range c.gitSettings() {
		section, rest, _ := strings.Cut(kv[0], ".")
		if i := strings.LastIndexByte(rest, '.'); i >= 0 {
			section, rest = fmt.Sprintf("%s %q", section, rest[:i]), rest[i+1:]
		}
		text += fmt.Sprintf("[%s]\n\t%s = %q\n", section, rest, kv[1])
	}
	tmp := filepath.Join(dir, "config.new")
	if err := os.WriteFile(tmp, []byte(text), 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(dir, "config"))
}

func (c *Config) home() string {
	if c.Home != "" {
		return c.Home
	}
	return os.Getenv("HOME")
}

func (c *Config) git(ctx context.Context, dir string, args ...string) error {
	cmd := exec.CommandContext(ctx, "git", args...)
	cmd.Dir, cmd.Env = dir, c.env()
	cmd.Stdout, cmd.Stderr = c.stderr(), c.stderr()
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("git %s: %w", args[0], err)
	}
	return nil
}
