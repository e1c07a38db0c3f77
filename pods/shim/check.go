package shim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"codeberg.org/devaipod/devaipod/pods/devcontainer"
	"codeberg.org/devaipod/devaipod/pods/podfile"
	"codeberg.org/devaipod/devaipod/pods/relay"
)

// Check runs a repository's checks, one after the other, on a commit of cfg.Branch: in
// a fresh clone, which it makes through the socket that the service has for this
// alone, after the setup that an agent's container has. It ends within a time, and
// with Init all that the commands have started too. The commands run the agent's
// code: they hold nothing of ours, and their output is all that is taken of them but
// their exit codes.
func Check(ctx context.Context, cfg Config, commit string, commands []string, within time.Duration) podfile.Report {
	cfg.fill()
	cfg.Base = cfg.Branch // which is checked out, and nothing is begun on it
	said := &lastBytes{}
	cfg.Output = said
	report := podfile.Report{Commit: commit}
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	gate, err := net.Listen("tcp", cfg.GateAddr)
	if err != nil {
		report.Broken = err.Error()
		return report
	}
	wg.Go(func() { _ = relay.Serve(ctx, gate, relay.Unix(cfg.SocketDir+"/"+podfile.GateSocket), cfg.Log) }) // without it there is no clone
	if _, err = cfg.fetch(ctx, cfg.RepoDir, false); err == nil {
		err = cfg.git(ctx, cfg.RepoDir, "checkout", "--quiet", "--detach", commit)
	}
	if err != nil {
		report.Broken = fmt.Sprintf("cloning the commit: %s: %s", err, said.text())
		return report
	}
	cfg.Output = io.Discard // what commands write is taken from each
	for _, s := range cfg.Setup.Stages {
		if err := cfg.side(ctx, s.Name, s.Commands); err != nil {
			report.Setup = s.Name + ": " + err.Error()
			if failed := new(failedError); errors.As(err, &failed) {
				report.Setup += "\n" + failed.said
			}
			break
		}
	}
	cfg.Setup.Dir = "" // they are meant for the clone's
	for _, command := range commands {
		report.Checks = append(report.Checks, cfg.check(ctx, command, within))
	}
	return report
}

// check runs one command, and ends what it leaves running.
func (c *Config) check(ctx context.Context, command string, within time.Duration) podfile.Checked {
	began := time.Now()
	out := podfile.Checked{Command: command}
	var err error
	if ctx.Err() != nil {
		out.Exit, out.Late, out.Why = -1, errors.Is(ctx.Err(), context.DeadlineExceeded), "not run: the time for all checks was over"
		return out // it says so too of one that was told to end
	}
	out.Tail, err = c.execute(ctx, "check", devcontainer.Command{Shell: command}, 2*within) // ctx ends it before
	if c.Init {
		c.signal(0, syscall.SIGKILL)
	}
	out.Seconds = time.Since(began).Seconds()
	exit := new(exec.ExitError)
	switch {
	case err == nil:
	case errors.As(err, &exit) && exit.Exited():
		out.Exit = exit.ExitCode()
	case errors.Is(err, context.DeadlineExceeded):
		out.Exit, out.Late, out.Why = -1, true, fmt.Sprintf("it had not ended when the time for all checks (%s) was over", within)
	default:
		out.Exit, out.Why = -1, err.Error()
	}
	return out
}

// lastBytes keeps the end of what is written.
type lastBytes struct {
	mu sync.Mutex
	b  []byte
}

func (l *lastBytes) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.b = append(l.b, p...); len(l.b) > 2*maxSaid {
		l.b = bytes.Clone(l.b[len(l.b)-maxSaid:])
	}
	return len(p), nil
}

func (l *lastBytes) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.TrimSpace(strings.ToValidUTF8(string(l.b[max(0, len(l.b)-maxSaid):]), ""))
}
