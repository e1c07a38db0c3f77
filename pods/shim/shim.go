// Package shim is PID 1 of a pod's agent and workspace containers, which have
// no network: it makes the gate reachable at 127.0.0.1:8099, clones the
// repository once, runs the agent, reaps what is orphaned, and on SIGTERM ends
// the whole tree, because an agent's children outlive it.
//
// It runs among hostile processes, so nothing it says is trusted; it holds the
// token for its own gate and nothing else.
package shim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"codeberg.org/devaipod/devaipod/pods/podfile"
	"codeberg.org/devaipod/devaipod/pods/relay"
)

// Config is what [Run] needs. Empty fields get the values that a pod has.
type Config struct {
	Role      string // "agent" or "workspace"
	Token     string // for the gate
	Repo      string // owner/name
	Branch    string // to work on
	Base      string // that it starts from
	Command   []string
	Driver    string // one of podfile's: how the agent is spoken to
	GateAddr  string // where the gate shall be reachable
	AgentAddr string // where the agent listens
	SocketDir string
	RepoDir   string
	BorrowDir string // a bare repository that the clone borrows from, if it is there
	Home      string
	Setup     podfile.Setup
	// Output is where the setup's commands write, bounded; the standard error when nil.
	Output io.Writer
	// Remind is how often the gate hears again of a setup that went wrong, since it may
	// have begun anew and know nothing; every 5 seconds when 0.
	Remind time.Duration
	// Init is set for PID 1: reap orphans and end every process at the end.
	Init bool
	Log  *slog.Logger

	state State // of the setup
}

func (c *Config) fill() {
	set := func(s *string, v string) {
		if *s == "" {
			*s = v
		}
	}
	set(&c.GateAddr, podfile.GateAddr)
	set(&c.AgentAddr, podfile.AgentAddr)
	set(&c.SocketDir, podfile.SocketDir)
	set(&c.RepoDir, podfile.RepoDir)
	set(&c.BorrowDir, podfile.BorrowDir)
}

// grace is how long processes have between SIGTERM and SIGKILL.
const grace = 3 * time.Second

// Run does the shim's work until ctx ends or the agent exits, whose exit code
// it returns. A workspace has no agent and runs until ctx ends.
func Run(ctx context.Context, cfg Config) (exit int, err error) {
	cfg.fill()
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	gate, err := net.Listen("tcp", cfg.GateAddr)
	if err != nil {
		return 1, fmt.Errorf("listening for the gate: %w", err)
	}
	serve := func(l net.Listener, dial relay.Dialer) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			if err := relay.Serve(ctx, l, dial, cfg.Log); err != nil {
				cfg.Log.Error("forwarding broke", "err", err)
				cancel()
			}
		}()
	}
	serve(gate, relay.Unix(cfg.SocketDir+"/"+podfile.GateSocket))
	if err := cfg.clone(ctx); err != nil {
		if ctx.Err() != nil {
			return 128 + int(syscall.SIGTERM), nil // told to stop
		}
		return 1, err
	}
	if err := cfg.tellPrograms(); err != nil {
		cfg.Log.Warn("some programs in this container will not find the gate's proxy, or not trust it where it puts secrets in", "err", err)
	}
	if len(cfg.Command) == 0 {
		if err := cfg.tellGit(); err != nil {
			// An image may have a home that is read-only.
			cfg.Log.Warn("git in this container will not know the gate", "err", err)
		}
		// People may enter meanwhile. What went wrong is told, and they find out why.
		if err := cfg.setUp(ctx); err != nil && ctx.Err() == nil {
			cfg.Log.Error("the workspace is not set up", "err", err)
		}
		wg.Go(func() { cfg.remind(ctx) })
		return cfg.idle(ctx)
	}
	if err := cfg.setUp(ctx); err != nil {
		if ctx.Err() != nil {
			return 128 + int(syscall.SIGTERM), nil
		}
		if cfg.Setup.Required {
			return 1, fmt.Errorf("setting the agent's container up: %w", err)
		}
		cfg.Log.Warn("the agent starts all the same", "err", err)
	}
	wg.Go(func() { cfg.remind(ctx) })
	agent, err := listenSocket(cfg.SocketDir + "/" + podfile.AgentSocket)
	if err != nil {
		return 1, err
	}
	switch cfg.Driver {
	case podfile.DriverACP:
		return cfg.serveStdio(ctx, agent)
	case podfile.DriverCommand:
		return cfg.serveRuns(ctx, agent)
	}
	serve(agent, relay.TCP(cfg.AgentAddr))
	return cfg.run(ctx)
}

func listenSocket(path string) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listening for the pod-api: %w", err)
	}
	// The volume is mounted in this container and in control alone.
	if err := os.Chmod(path, 0o666); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// idle waits for ctx and reaps what people's commands leave behind.
func (c *Config) idle(ctx context.Context) (int, error) {
	children := make(chan os.Signal, 1)
	signal.Notify(children, syscall.SIGCHLD)
	defer signal.Stop(children)
	children <- syscall.SIGCHLD // some may have ended before
	for {
		select {
		case <-ctx.Done():
			if c.Init {
				c.signal(0, syscall.SIGTERM)
			}
			return 0, nil
		case <-children:
			for c.Init {
				if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); pid <= 0 || err != nil {
					break
				}
			}
		}
	}
}

// run starts the agent in the clone and waits for it.
func (c *Config) run(ctx context.Context) (exit int, err error) {
	cmd := c.program(c.Command)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	exited, err := c.spawn(cmd)
	if err != nil {
		return 1, err
	}
	select {
	case code := <-exited:
		c.Log.Warn("agent ended", "code", code)
		c.endTree(cmd.Process.Pid)
		return code, nil
	case <-ctx.Done():
	}
	c.end(cmd.Process.Pid, exited)
	return 128 + int(syscall.SIGTERM), nil
}

// wait waits for the agent; as PID 1 it reaps whatever ends, by wait4(2).
func (c *Config) wait(cmd *exec.Cmd) int {
	if !c.Init {
		_ = cmd.Wait() // the state below tells how it ended
		return cmd.ProcessState.ExitCode()
	}
	for {
		var ws syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &ws, 0, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			return 1 // no children: somebody else has reaped it
		case pid == cmd.Process.Pid && ws.Signaled():
			return 128 + int(ws.Signal())
		case pid == cmd.Process.Pid:
			return ws.ExitStatus()
		}
	}
}

// signal reaches every process that belongs to the agent: as PID 1 all but
// ourselves (kill(2)), else its process group.
func (c *Config) signal(pid int, sig syscall.Signal) {
	target := -pid
	if c.Init {
		target = -1
	}
	// None left to signal is what we want.
	_ = syscall.Kill(target, sig)
}

func (c *Config) endTree(pid int) { c.signal(pid, syscall.SIGKILL) }
