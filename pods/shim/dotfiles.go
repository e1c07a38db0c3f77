package shim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"codeberg.org/devaipod/devaipod/pods/devcontainer"
	"codeberg.org/devaipod/devaipod/pods/podfile"
)

// dotfilesScripts are looked for, in this order, when none is named.
var dotfilesScripts = []string{"install.sh", "install", "bootstrap.sh", "bootstrap", "script/bootstrap", "setup.sh", "setup", "script/setup"}

// dotfiles brings the person's own files into the home, once.
func (c *Config) dotfiles(ctx context.Context) error {
	if c.Setup.Dotfiles == nil {
		return nil
	}
	d := *c.Setup.Dotfiles
	mark := c.mark(devcontainer.Stage{Name: dotfilesStage, Commands: []devcontainer.Command{{Args: []string{d.URL, d.Script}}}})
	if marked(mark) {
		return nil
	}
	c.tell(ctx, podfile.SetupState{Stage: dotfilesStage})
	if err := c.installDotfiles(ctx, d); err != nil {
		return fmt.Errorf("%s: %w", d.URL, err)
	}
	return putMark(mark)
}

func (c *Config) installDotfiles(ctx context.Context, d podfile.Dotfiles) error {
	home := c.home()
	dir := filepath.Join(home, ".dotfiles")
	if _, err := os.Lstat(dir); err != nil {
		tmp := dir + ".new"
		if err := os.RemoveAll(tmp); err != nil {
			return err
		}
		clone := devcontainer.Command{Args: []string{"git", "clone", "--quiet", "--depth", "1", "--", d.URL, tmp}}
		if err := c.command(ctx, dotfilesStage, clone); err != nil {
			return fmt.Errorf("cloning: %w", err)
		}
		if err := os.Rename(tmp, dir); err != nil {
			return err
		}
	}
	script := d.Script
	if script == "" {
		for _, name := range dotfilesScripts {
			if info, err := os.Stat(filepath.Join(dir, name)); err == nil && info.Mode().IsRegular() {
				script = name
				break
			}
		}
	}
	if script == "" {
		return linkDotfiles(dir, home)
	}
	path := filepath.Join(dir, script)
	if rel, err := filepath.Rel(dir, path); err != nil || rel == ".." || strings.HasPrefix(rel, "../") {
		return fmt.Errorf("the script %q is not in the repository", script)
	}
	args := []string{path}
	if info, err := os.Stat(path); err != nil {
		return fmt.Errorf("there is no script %q in it", script)
	} else if info.Mode()&0o111 == 0 {
		args = []string{"/bin/sh", path}
	}
	run := *c
	run.Setup.Dir = dir
	return run.command(ctx, dotfilesStage, devcontainer.Command{Args: args})
}

// linkDotfiles puts a link into the home for each file of the repository that
// begins with a dot and is not there.
func linkDotfiles(dir, home string) error {
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		if name := e.Name(); strings.HasPrefix(name, ".") && name != ".git" {
			if _, e := os.Lstat(filepath.Join(home, name)); errors.Is(e, os.ErrNotExist) {
				err = errors.Join(err, os.Symlink(filepath.Join(dir, name), filepath.Join(home, name)))
			}
		}
	}
	return err
}
