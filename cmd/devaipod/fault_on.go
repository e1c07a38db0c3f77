//go:build faults

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
)

// The tests' build: in a directory that TEST_FAULTS names, the file "killed"
// lists pairs of consecutive fault points between which the process has been
// killed already. While the file is there, a pair that it lacks is added and
// the process kills itself, so that started again and again it dies between
// every two changes once.
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
	pair := faults.last + " -> " + point
	faults.last = point
	for line := range strings.Lines(string(killed)) {
		if strings.TrimSuffix(line, "\n") == pair {
			return
		}
	}
	f, err := os.OpenFile(file, os.O_APPEND|os.O_WRONLY, 0)
	if err == nil {
		_, err = fmt.Fprintln(f, pair)
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
