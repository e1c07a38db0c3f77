package testkit_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"codeberg.org/devaipod/devaipod/cmd/internal/testkit"
)

// What is left of a user in the system's files.
func linesOf(t *testing.T, name string) string {
	t.Helper()
	var all []string
	for _, file := range []string{"/etc/passwd", "/etc/group", "/etc/subuid", "/etc/subgid"} {
		text, err := os.ReadFile(file)
		must(t, err)
		for line := range strings.Lines(string(text)) {
			if strings.HasPrefix(line, name+":") {
				all = append(all, line)
			}
		}
	}
	return strings.Join(all, "")
}

func TestAUserOfAKilledRunIsRemovedByTheNext(t *testing.T) {
	if os.Getuid() != 0 {
		t.Log("only root makes users")
		return
	}
	killed, err := testkit.NewOSUser(t.Context())
	must(t, err)
	defer func() { must(t, killed.Remove(t.Context())) }()
	out, err := killed.Run(t.Context(), "/", []string{"X=y"}, "sh", "-c", "id -un; env; touch $HOME/file")
	must(t, err)
	for _, want := range []string{killed.Name + "\n", "X=y\n", "HOME=" + killed.Dir + "\n"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("the user's command printed %q, want %q in it", out, want)
		}
	}
	if strings.Contains(string(out), "CONTAINERS_CONF") {
		t.Errorf("the user has this process's environment: %s", out)
	}

	// A process and a file of one of the ids that its containers have.
	_, ids, _ := strings.Cut(linesOf(t, killed.Name), "\n"+killed.Name+":") // the second line is the group's
	_, ids, _ = strings.Cut(ids, "\n"+killed.Name+":")
	first, err := strconv.ParseUint(strings.SplitN(ids, ":", 2)[0], 10, 32)
	must(t, err)
	cmd := exec.Command("sleep", "600")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(first) + 999, Gid: uint32(first) + 999}}
	must(t, cmd.Start())
	must(t, os.Chown(filepath.Join(killed.Dir, "file"), int(first), int(first)))

	// The pid of a process that is no more.
	dead := exec.Command("true")
	must(t, dead.Run())
	must(t, os.WriteFile(filepath.Join(killed.Dir, "pid"), fmt.Append(nil, dead.Process.Pid), 0o644))

	next, err := testkit.NewOSUser(t.Context())
	must(t, err)
	var ended *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &ended) {
		t.Errorf("the killed run's process: %v", err)
	}
	for _, u := range []*testkit.OSUser{killed, next} {
		must(t, u.Remove(t.Context()))
		if left := linesOf(t, u.Name); left != "" {
			t.Errorf("left in the system's files: %s", left)
		}
		if _, err := os.Stat(u.Dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("left: %s (%v)", u.Dir, err)
		}
	}
}
