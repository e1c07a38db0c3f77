package main_test

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"
)

// limit ends a script's commands, all of them, when it takes too long: one that hangs fails by
// its name, with what ran then, and the others have their turn. testscript itself kills the one
// process that it started, and waits for whoever has that one's output.
func (s *suite) limit(env *testscript.Env) (stop func()) {
	work := env.Getenv("WORK")
	timer := time.AfterFunc(scriptLimit, func() {
		fmt.Fprintf(os.Stderr, "%s took longer than %s; these were killed: %s\n", filepath.Base(work), scriptLimit, endAll(work))
	})
	return func() { timer.Stop() }
}

// endAll kills what a script has running, and says what that was.
func endAll(work string) string {
	var said strings.Builder
	for range 50 { // one that ends may have the script start the next
		for pid, command := range processesOf(work) {
			fmt.Fprintf(&said, "\n%d %s", pid, command)
			_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended by now
		}
		time.Sleep(100 * time.Millisecond)
	}
	return said.String()
}

// processesOf are those in this session that have the script's directory in their environment:
// not the service and podman's, which have sessions of their own.
func processesOf(work string) map[int]string {
	found := map[int]string{}
	ours, err := unix.Getsid(0)
	if err != nil {
		panic(err) // it always works
	}
	all, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		panic(err) // the pattern is wrong
	}
	for _, dir := range all {
		environ, err := os.ReadFile(dir + "/environ")
		if err != nil || !slices.Contains(strings.Split(string(environ), "\x00"), "WORK="+work) {
			continue // it has ended, or is somebody else's
		}
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			continue
		}
		if session, err := unix.Getsid(pid); err != nil || session != ours {
			continue
		}
		command, err := os.ReadFile(dir + "/cmdline")
		if err != nil {
			continue
		}
		found[pid] = string(bytes.ReplaceAll(command, []byte{0}, []byte{' '}))
	}
	return found
}

func TestAScriptThatHangsIsEndedWithAllThatItStarted(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "sh", "-c", "sleep 601 & sleep 602")
	cmd.Env = append(os.Environ(), "WORK="+t.TempDir())
	work := strings.TrimPrefix(cmd.Env[len(cmd.Env)-1], "WORK=")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for len(processesOf(work)) < 3 {
		time.Sleep(10 * time.Millisecond)
	}
	said := endAll(work)
	if !strings.Contains(said, "sleep 601") || !strings.Contains(said, "sleep 602") {
		t.Error("this was ended:", said)
	}
	if _, err := io.ReadAll(out); err != nil { // until all that have it are gone
		t.Error(err)
	}
	if cmd.Wait() == nil {
		t.Error("it ended well")
	}
}
