package shim

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"codeberg.org/devaipod/devaipod/pods/relay"
)

// serveStdio runs the agent's program anew on each connection to l: its standard
// input and output are the connection, and it ends with it. There is one at a time,
// the newest: who drives the agent was started again, or gives up on the one before.
func (c *Config) serveStdio(ctx context.Context, l net.Listener) (exit int, err error) {
	conns := make(chan net.Conn)
	var accepting sync.WaitGroup
	ctx, cancel := context.WithCancel(ctx)
	defer accepting.Wait()
	defer cancel()
	accepting.Go(func() {
		defer cancel()
		// The relay accepts; each connection is handed over.
		err := relay.Accept(ctx, l, func(conn net.Conn) {
			select {
			case conns <- conn:
			case <-ctx.Done():
				_ = conn.Close()
			}
		}, c.Log)
		if err != nil {
			c.Log.Error("taking connections to the agent", "err", err)
		}
	})
	var conn net.Conn
	for {
		if conn == nil {
			select {
			case conn = <-conns:
			case <-ctx.Done():
				return 128 + int(syscall.SIGTERM), nil
			}
		}
		if conn, err = c.attend(ctx, conn, conns); err != nil {
			return 1, err
		}
	}
}

// attend runs the program on a connection until either ends, or another connection
// takes its place, which it returns.
func (c *Config) attend(ctx context.Context, conn net.Conn, conns <-chan net.Conn) (next net.Conn, err error) {
	defer conn.Close()
	var pipes [2][2]*os.File // what it reads, and what it writes
	for i := range pipes {
		if pipes[i][0], pipes[i][1], err = os.Pipe(); err != nil {
			return nil, err
		}
		defer pipes[i][0].Close()
		defer pipes[i][1].Close()
	}
	in, out := pipes[0], pipes[1]
	cmd := c.program(c.Command)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in[0], out[1], os.Stderr
	exited, err := c.spawn(cmd)
	if err != nil {
		return nil, err
	}
	_, _ = in[0].Close(), out[1].Close() // the program's alone now
	gone, said := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(gone)
		_, _ = io.Copy(in[1], conn)
	}()
	go func() {
		defer close(said)
		_, _ = io.Copy(conn, out[0])
	}()
	select {
	case code := <-exited:
		c.Log.Warn("agent ended", "code", code)
		select {
		case <-said:
		case <-time.After(drainWithin): // something that it has started goes on, or nobody reads
		}
		c.endTree(cmd.Process.Pid)
	case <-gone:
		c.end(cmd.Process.Pid, exited)
	case next = <-conns:
		c.end(cmd.Process.Pid, exited)
	case <-ctx.Done():
		c.end(cmd.Process.Pid, exited)
	}
	_, _, _ = conn.Close(), in[1].Close(), out[0].Close() // the copying ends
	<-gone
	<-said
	return next, nil
}

// program is a command in the clone, with the agent's environment.
func (c *Config) program(args []string) *exec.Cmd {
	env := c.setupEnv()
	cmd := exec.Command(Find(args[0], env), args[1:]...)
	cmd.Dir, cmd.Env = c.RepoDir, env
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return cmd
}

// spawn starts the agent, and tells when and with which code it has ended.
func (c *Config) spawn(cmd *exec.Cmd) (exited <-chan int, err error) {
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting the agent: %w", err)
	}
	c.Log.Info("agent started", "command", cmd.Path, "pid", cmd.Process.Pid)
	code := make(chan int, 1)
	go func() { code <- c.wait(cmd) }()
	return code, nil
}

// end ends the agent and all that it has started, and waits for it.
func (c *Config) end(pid int, exited <-chan int) {
	c.signal(pid, syscall.SIGTERM)
	select {
	case <-exited:
		c.endTree(pid)
		return
	case <-time.After(grace):
	}
	c.endTree(pid)
	<-exited
}
