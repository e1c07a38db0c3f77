// Package gitproctest gives tests what puts git into a box: the program itself,
// since the race detector that a test is built with has no room in one.
package gitproctest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// Launcher is the command for a box, once [Main] runs.
var Launcher []string

// Main runs a package's tests and returns their exit code.
func Main(m *testing.M) int {
	dir, err := os.MkdirTemp("", "devaipod-box-*")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir) //nolint:errcheck // a temporary directory
	program := filepath.Join(dir, "devaipod-box")
	build := exec.Command("go", "build", "-trimpath", "-o", program, "codeberg.org/devaipod/devaipod/cmd/devaipod-box")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintln(os.Stderr, errors.Join(err, errors.New(string(out))))
		return 1
	}
	Launcher = []string{program}
	return m.Run()
}
