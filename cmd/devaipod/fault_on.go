//go:build faults

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
)

// The tests' build: in a directory that TEST_FAULTS names, the file "killed"
// lists pairs of consecutive fault points between which the process has been
// killed already. While the file is there, a process that comes from a point
// after which none was killed, or to one before which none was, adds the pair
// and kills itself, so that started again and again it dies once right after
// and right before each change. Before its own first change it does not: all is
// as the one before it left it. Nor for each of several that are one kind (see kind):
// package testkit tries those.
var faults struct {
	sync.Mutex
	last string
}

func fault(point string) {
	file := filepath.Join(os.Getenv("TEST_FAULTS"), "killed")
	faults.Lock()
	defer faults.Unlock()
	killed, err := os.ReadFile(file)
	if err != nil {
		return // not armed
	}
	last := faults.last
	faults.last = point
	after, before := last == "", last == ""
	for line := range strings.Lines(string(killed)) {
		from, to, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " -> ")
		after, before = after || kind(from) == kind(last), before || kind(to) == kind(point)
	}
	if after && before {
		return
	}
	f, err := os.OpenFile(file, os.O_APPEND|os.O_WRONLY, 0)
	if err == nil {
		_, err = fmt.Fprintf(f, "%s -> %s\n", last, point)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "noting a fault point:", err)
		return
	}
	if err := syscall.Kill(os.Getpid(), syscall.SIGKILL); err != nil {
		panic(err)
	}
	select {} // until it takes effect
}

// kind is what a point is about: the one container of a pod, but any of its volumes, and
// anything that is removed; whichever pod, repository, issue and commit it is.
func kind(point string) string {
	for _, one := range []string{"podman: make volume ", "podman: remove container ", "podman: remove volume "} {
		if strings.HasPrefix(point, one) {
			return one
		}
	}
	for _, n := range nameless {
		point = n.of.ReplaceAllString(point, n.to)
	}
	return point
}

var nameless = []struct {
	of *regexp.Regexp
	to string
}{
	{regexp.MustCompile(`[a-z0-9-]+-\d+-[0-9a-f]{6}\b`), "POD"},
	{regexp.MustCompile(`/repos/[^/ ]+/[^/ ]+`), "/repos/R"},
	{regexp.MustCompile(`[\w.-]+/[\w.-]+#\d+`), "ISSUE"},
	{regexp.MustCompile(`/\d+\b`), "/N"},
	{regexp.MustCompile(`\b[0-9a-f]{40}\b`), "COMMIT"},
}
