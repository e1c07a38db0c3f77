package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/spf13/cobra"

	"codeberg.org/devaipod/devaipod/pods/podfile"
	"codeberg.org/devaipod/devaipod/pods/podman"
	"codeberg.org/devaipod/devaipod/pods/relay"
	"codeberg.org/devaipod/devaipod/pods/tunnel"
)

func (a *app) forwardCmd() *cobra.Command {
	var agent bool
	cmd := &cobra.Command{
		Use: "port-forward POD [LOCAL:]PORT...", Short: "Reach ports of a pod's workspace from this machine", Args: args(cobra.MinimumNArgs(2)),
		Long: `Listen on this machine's loopback and pass connections on to ports of 127.0.0.1 in the
workspace of a pod, or with --agent where its agent works, until Ctrl-C. LOCAL is PORT
unless given; 0 is any that is free. Each address is a line on standard output.

Whoever can reach this machine's loopback, other users and web pages that you have open,
reaches the port as long as this runs.`,
		Example: `  devaipod port-forward ada/app@main 8080
  devaipod port-forward --agent ada/app#3 3001:3000`, ValidArgsFunction: a.completePods,
		RunE: func(cmd *cobra.Command, rest []string) error {
			var ports []portPair
			for _, arg := range rest[1:] {
				p, err := parsePorts(arg)
				if err != nil {
					return err
				}
				ports = append(ports, p)
			}
			return a.forward(cmd.Context(), rest[0], ports, agent)
		},
	}
	cmd.Flags().BoolVar(&agent, "agent", false, "ports of the agent's container instead of the workspace's")
	return cmd
}

// A portPair is where to listen here, and what it leads to.
type portPair struct{ local, there uint16 }

func parsePorts(s string) (p portPair, err error) {
	local, there, both := strings.Cut(s, ":")
	if !both {
		there = local
	}
	l, err1 := strconv.ParseUint(local, 10, 16)
	t, err2 := strconv.ParseUint(there, 10, 16)
	if err1 != nil || err2 != nil || t == 0 {
		return p, usagef("%q: want PORT or LOCAL:PORT, each 65535 at most", s)
	}
	return portPair{uint16(l), uint16(t)}, nil
}

func (a *app) forward(ctx context.Context, pod string, ports []portPair, agent bool) error {
	p, err := a.placeOf(ctx, pod, agent)
	if err != nil {
		return err
	}
	st, err := p.podman.State(ctx, p.container)
	if err != nil {
		return err
	}
	if !st.Running {
		return p.explain(podman.ErrNotRunning)
	}
	ctx, cancel := context.WithCancel(ctx)
	var all sync.WaitGroup
	defer all.Wait()
	defer cancel()
	tun := tunnel.New(func(context.Context) (io.ReadWriteCloser, error) { return p.dialThere(ctx) })
	defer tun.Close()
	var listeners []net.Listener
	for _, pair := range ports {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", pair.local))
		if errors.Is(err, syscall.EADDRINUSE) || errors.Is(err, syscall.EACCES) {
			err = &exitError{codeUsage, fmt.Errorf("port %d of this machine can't be had: %w; choose another: devaipod port-forward %s 0:%d", pair.local, err, pod, pair.there)}
		}
		if err != nil {
			for _, l := range listeners {
				_ = l.Close()
			}
			return err
		}
		listeners = append(listeners, l)
	}
	broken := make(chan error, len(ports))
	for i, l := range listeners {
		if _, err := fmt.Fprintf(a.out, "%s -> %s, port %d\n", l.Addr(), p, ports[i].there); err != nil {
			return err
		}
		all.Go(func() { broken <- a.forwardPort(ctx, p, tun, l, ports[i].there) })
	}
	select {
	case err := <-broken:
		return err
	case <-ctx.Done():
		return nil
	}
}

// forwardPort joins what connects to l with a port, until ctx ends.
func (a *app) forwardPort(ctx context.Context, p place, tun *tunnel.Tunnel, l net.Listener, port uint16) error {
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	var all sync.WaitGroup
	defer all.Wait()
	for {
		near, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("listening for port %d: %w", port, err)
		}
		all.Go(func() {
			far, err := tun.Dial(ctx, port)
			if err != nil {
				_ = near.(*net.TCPConn).SetLinger(0) //nolint:forcetypeassert // it is one
				_ = near.Close()
				if ctx.Err() == nil {
					a.step("port %d of %s: %s", port, p, plain(err.Error(), 500))
				}
				return
			}
			relay.Join(ctx, near, far)
		})
	}
}

// dialThere starts the far side of a tunnel.
func (p place) dialThere(ctx context.Context) (io.ReadWriteCloser, error) {
	s, err := p.start(ctx, podman.Command{Args: []string{podfile.BinaryPath, "dial"}, Stdin: true})
	if err != nil {
		return nil, err
	}
	r, w := io.Pipe()
	go func() {
		var said strings.Builder
		err := s.Copy(w, &limited{&said, 4096})
		if err == nil && said.Len() > 0 {
			err = fmt.Errorf("in %s: %s", p, plain(strings.TrimSpace(said.String()), 500))
		}
		w.CloseWithError(err)
	}()
	return &stream{s, r}, nil
}

// A stream is a command's standard input and output.
type stream struct {
	*podman.Session
	out *io.PipeReader
}

func (s *stream) Read(b []byte) (int, error) { return s.out.Read(b) }

// Close ends the command, which reads to its end, and what it writes.
func (s *stream) Close() error { return errors.Join(s.Session.Close(), s.out.Close()) }

// limited keeps the first bytes.
type limited struct {
	w    io.Writer
	left int
}

func (l *limited) Write(b []byte) (int, error) {
	n := min(len(b), l.left)
	l.left -= n
	if _, err := l.w.Write(b[:n]); err != nil {
		return 0, err
	}
	return len(b), nil
}
