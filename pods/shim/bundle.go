package shim

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"codeberg.org/devaipod/devaipod/pods/egress"
	"codeberg.org/devaipod/devaipod/pods/image"
	"codeberg.org/devaipod/devaipod/pods/podfile"
)

// tellPrograms gives programs what they need to find the gate's proxy beside the
// variables that the container has: a file of authorities, and settings of their
// own where those don't do.
func (c *Config) tellPrograms() error {
	home := c.Home
	if home == "" {
		home = os.Getenv("HOME")
	}
	errs := []error{c.bundle()}
	for path, text := range egress.ProxyFiles(c.GateAddr, c.Token, podfile.CABundle) {
		rest, ofHome := strings.CutPrefix(path, "~/")
		switch {
		case ofHome && home != "":
			errs = append(errs, leave(filepath.Join(home, rest), text))
		case strings.HasPrefix(path, "/etc/apt/"):
			errs = append(errs, leave(filepath.Join(c.SocketDir, filepath.Base(podfile.AptConfig)), text))
		}
	}
	return errors.Join(errs...)
}

// leave writes a file for its user alone, unless there is one.
func leave(path, text string) error {
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	return podfile.Replace(path, []byte(text))
}

// bundle makes one file of the authorities that this container trusts and the
// gate's own, for programs that take one file in place of the system's. There is
// no gate's own in a workspace: no secrets are put into a person's requests.
func (c *Config) bundle() error {
	var all []byte
	// An image without any trusts what this machine does: the tools bring that.
	for _, file := range append(slices.Clone(image.CABundles), podfile.ToolsDir+image.CABundles[0]) {
		text, err := os.ReadFile(file)
		if err == nil {
			all = append(text, '\n')
			break
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	own, err := os.ReadFile(filepath.Join(c.SocketDir, podfile.CACert))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	file := filepath.Join(c.SocketDir, filepath.Base(podfile.CABundle))
	all = append(all, own...)
	if old, err := os.ReadFile(file); err == nil && bytes.Equal(old, all) {
		return nil
	}
	if err := podfile.Replace(file, all); err != nil {
		return err
	}
	return os.Chmod(file, 0o644) // other users of the container trust the same
}
