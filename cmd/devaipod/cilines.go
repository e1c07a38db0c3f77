package main

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"sync"

	"codeberg.org/devaipod/devaipod/ci"
)

// jobLines prints lines of several jobs, each with its job before it. Its methods may be
// called concurrently.
type jobLines struct {
	a       *app
	colours bool

	mu    sync.Mutex
	known map[string]int // jobs, in order of their first lines
}

func newJobLines(a *app) *jobLines {
	return &jobLines{a: a, colours: a.onTerminal() && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb", known: map[string]int{}}
}

var colouring = regexp.MustCompile(`\x1b\[[0-9;:]*m`)

// of prints lines of one job. What would steer a terminal is taken out of them; colours,
// where nobody sees them.
func (l *jobLines) of(job string) func(line string) {
	l.mu.Lock()
	n, ok := l.known[job]
	if !ok {
		n = len(l.known)
		l.known[job] = n
	}
	l.mu.Unlock()
	name, after := visible([]byte(job))+" | ", ""
	if l.colours {
		name, after = fmt.Sprintf("\x1b[3%dm%s|\x1b[0m ", n%6+1, strings.TrimSuffix(name, "| ")), "\x1b[0m"
	}
	return func(line string) {
		line = ci.Clean(line)
		if !l.colours {
			line = colouring.ReplaceAllString(line, "")
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		fmt.Fprintln(l.a.out, name+line+after)
	}
}
