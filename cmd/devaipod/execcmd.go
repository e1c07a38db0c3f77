package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"codeberg.org/devaipod/devaipod/pods"
	"codeberg.org/devaipod/devaipod/pods/podfile"
	"codeberg.org/devaipod/devaipod/pods/podman"
	"codeberg.org/devaipod/devaipod/pods/reconcile"
)

// An execution is a command that a person runs in a pod.
type execution struct {
	agent bool
	stdin bool
	cmd   podman.Command
	// detach are the keys that let go of it, nil for none.
	detach []byte
	// screen says that it is nothing but a screen: it ends when it is let go of.
	screen bool
	// noWait does not wait for the setup of a workspace; shell is for who enters one.
	noWait, shell bool
}

// command is what is started in a container: in a workspace as its repository wants
// it, elsewhere as it is.
func (e execution) command(role string) podman.Command {
	cmd := e.cmd
	if role != pods.RoleWorkspace {
		if cmd.Dir == "" {
			cmd.Dir = podfile.RepoDir
		}
		return cmd
	}
	args := []string{podfile.BinaryPath, "exec"}
	if !e.noWait {
		args = append(args, "--wait")
	}
	if e.shell {
		args = append(args, "--attach")
	}
	if cmd.Dir != "" {
		args = append(args, "--here")
	}
	cmd.Args = slices.Concat(args, []string{"--"}, cmd.Args)
	return cmd
}

func (a *app) execCmd() *cobra.Command {
	var e execution
	cmd := &cobra.Command{
		Use: "exec [flags] POD -- COMMAND [ARG...]", Short: "Run a command in a pod's workspace", Args: args(cobra.MinimumNArgs(2)),
		Long: `Run a command in the workspace of a pod, as the user of the container: after the
lifecycle commands that the repository's devcontainer.json has people wait for, in its
workspace folder, with its remoteEnv. With --agent it runs where the agent works, in the
clone and without all that. POD is an issue (owner/name#3) or a pod of your own
(owner/name@NAME).

Bytes pass as they are, and the end of standard input too. The exit code is the command's:
127 when there is no such program, 126 when it can't be run. SIGINT, SIGTERM, SIGHUP,
SIGQUIT, SIGUSR1 and SIGUSR2 reach the command; the third ends devaipod alone.

What runs in a pod may write anything, orders for your terminal too.`,
		Example: `  devaipod exec ada/app@main -- go test ./...
  devaipod exec -it ada/app#3 --agent -- bash
  tar c . | devaipod exec -i ada/app@main -- tar x`,
		RunE: func(cmd *cobra.Command, rest []string) error {
			e.cmd.Args = rest[1:]
			if e.cmd.Args[0] == "--" {
				e.cmd.Args = e.cmd.Args[1:]
			}
			if len(e.cmd.Args) == 0 {
				return usagef("no command: devaipod exec %s -- COMMAND", rest[0])
			}
			return a.exec(cmd.Context(), rest[0], e)
		},
	}
	f := cmd.Flags()
	f.SetInterspersed(false) // what comes after the pod is the command's
	f.BoolVarP(&e.stdin, "interactive", "i", false, "pass standard input on")
	f.BoolVarP(&e.cmd.TTY, "tty", "t", false, "give the command a terminal")
	f.BoolVar(&e.agent, "agent", false, "in the agent's container instead of the workspace")
	f.StringVarP(&e.cmd.User, "user", "u", "", "as another `user` of the image")
	f.StringVarP(&e.cmd.Dir, "workdir", "w", "", "in this `directory` (default: the workspace folder)")
	f.StringArrayVarP(&e.cmd.Env, "env", "e", nil, "a variable, `NAME=VALUE`; may be repeated")
	noWaitFlag(cmd, &e.noWait)
	cmd.ValidArgsFunction = a.completePods
	return cmd
}

func noWaitFlag(cmd *cobra.Command, to *bool) {
	cmd.Flags().BoolVar(to, "no-wait", false, "at once, whatever of the workspace's setup still runs")
}

func (a *app) attachCmd() *cobra.Command {
	var agent, noWait bool
	keys := "ctrl-p,ctrl-q"
	cmd := &cobra.Command{
		Use: "attach POD", Short: "Open a shell in a pod's workspace, or the agent's own screen", Args: args(cobra.ExactArgs(1)),
		Long: `Open the shell of the image's user in the workspace of a pod, as exec runs a command
there, and after the repository's postAttachCommand. With --agent it is the screen of the
agent itself: you see its session, and can write to it. An agent that is not spoken to as
opencode has none: what it does is printed then, and each line that you type is said to it.

The detach keys let go: the shell and what it runs go on until the pod stops. The agent
goes on however its screen ends.`,
		Example: `  devaipod attach ada/app@main
  devaipod attach --agent ada/app#3`, ValidArgsFunction: a.completePods,
		RunE: func(cmd *cobra.Command, rest []string) error {
			detach, err := parseKeys(keys)
			if err != nil {
				return err
			}
			if _, ok := terminal(a.in); !ok {
				return usagef("attach wants a terminal to stand in for: from a script use devaipod exec -i %s -- COMMAND", rest[0])
			}
			e := execution{agent: agent, stdin: true, detach: detach, noWait: noWait, shell: true, cmd: podman.Command{TTY: true, Args: []string{podfile.BinaryPath, "login"}}}
			if agent {
				k, ok, err := a.withoutScreen(cmd.Context(), rest[0])
				if err != nil {
					return err
				}
				if ok {
					return a.lines(cmd.Context(), k)
				}
				e.screen = true
				e.cmd.Args = []string{pods.AgentName, "attach", "http://" + podfile.AgentAddr, "--dir", podfile.RepoDir, "--continue"}
			}
			return a.exec(cmd.Context(), rest[0], e)
		},
	}
	cmd.Flags().BoolVar(&agent, "agent", false, "the agent's own screen")
	noWaitFlag(cmd, &noWait)
	cmd.Flags().StringVar(&keys, "detach-keys", keys, "`keys` that let go, such as ctrl-p,ctrl-q; empty for none")
	return cmd
}

// withoutScreen tells whether an issue's agent has no screen of its own.
func (a *app) withoutScreen(ctx context.Context, pod string) (k reconcile.Key, ok bool, err error) {
	key, err := a.podKey(ctx, pod)
	if err != nil || key.Name != "" {
		return reconcile.Key(key), false, err
	}
	driver, err := pods.DriverOf(a.cfg.StateDir, a.cfg.Instance, key)
	if err != nil { // where there is none, podman says so better
		return reconcile.Key(key), false, nil //nolint:nilerr // as above
	}
	return reconcile.Key(key), driver != podfile.DriverOpencode, nil
}

// parseKeys reads keys as podman has them: ctrl-LETTER or a character, with commas.
func parseKeys(s string) (keys []byte, err error) {
	if s == "" {
		return nil, nil
	}
	for part := range strings.SplitSeq(s, ",") {
		letter, ctrl := strings.CutPrefix(part, "ctrl-")
		switch {
		case ctrl && len(letter) == 1 && (letter[0] >= 'a' && letter[0] <= 'z' || strings.Contains(`@[\]^_`, letter)):
			keys = append(keys, letter[0]&0x1f)
		case !ctrl && len(part) == 1:
			keys = append(keys, part[0])
		default:
			return nil, usagef("--detach-keys %q: %q is no key: want ctrl-a to ctrl-z or a character, with commas between", s, part)
		}
	}
	return keys, nil
}

// terminal is a stream's terminal, if it is one.
func terminal(stream any) (fd int, ok bool) {
	f, ok := stream.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) { //nolint:gosec // a descriptor
		return 0, false
	}
	return int(f.Fd()), true //nolint:gosec // a descriptor
}

// exec runs a command in a pod and ends as it ends.
func (a *app) exec(ctx context.Context, pod string, e execution) error {
	p, err := a.placeOf(ctx, pod, e.agent)
	if err != nil {
		return err
	}
	leave, err := a.enter(ctx, p)
	if err != nil {
		return err
	}
	defer leave()
	// Signals are the command's from here on, and end nothing of ours.
	ctx = context.WithoutCancel(ctx)
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2)
	defer signal.Stop(signals)
	mark := rand.Text()
	e.cmd.Env = append(slices.Clone(e.cmd.Env), podfile.EnvMark+"="+mark)
	e.cmd.Stdin = e.stdin
	if e.cmd.TTY {
		e.cmd.Size = a.terminalSize()
		for _, name := range []string{"TERM", "COLORTERM"} {
			if v := os.Getenv(name); v != "" {
				e.cmd.Env = append(e.cmd.Env, name+"="+v)
			}
		}
	}
	s, err := p.start(ctx, e.command(p.role))
	if err != nil {
		return err
	}
	defer s.Close() //nolint:errcheck // nothing is left to say
	restore, err := a.standIn(ctx, s, e)
	if err != nil {
		return err
	}
	detached := make(chan struct{})
	if e.stdin {
		go a.passInput(s, e.detach, detached)
	}
	done := make(chan error, 1)
	go func() { done <- s.Copy(a.out, a.errOut) }()
	return a.untilEnded(ctx, p, s, e, mark, restore, signals, detached, done)
}

// untilEnded passes signals on until the command ends.
func (a *app) untilEnded(ctx context.Context, p place, s *podman.Session, e execution, mark string, restore func(), signals <-chan os.Signal, detached <-chan struct{}, done <-chan error) error {
	defer restore()
	for sent := 0; ; {
		select {
		case err := <-done:
			restore()
			if err != nil {
				return fmt.Errorf("the streams of the command in %s broke: %w", p, err)
			}
			code, err := s.Wait(ctx)
			if err == nil && code != 0 {
				return &exitError{code: code}
			}
			return p.explain(err)
		case <-detached:
			restore()
			if e.screen {
				return endScreen(ctx, p, e, mark, done)
			}
			a.step("\nlet go; what runs in %s goes on", p)
			return nil
		case sig := <-signals:
			n, ok := sig.(syscall.Signal)
			if sent++; sent > 2 || !ok {
				return &exitError{128 + int(n), fmt.Errorf("no longer waiting for the command in %s, which may go on", p)}
			}
			go func() {
				if err := p.signal(ctx, e.cmd.User, mark, n); err != nil {
					a.log.Warn("a signal did not reach the command", "signal", n.String(), "err", err)
				}
			}()
		}
	}
}

// screenPatience is how long a screen has to end by itself.
const screenPatience = 5 * time.Second

// endScreen ends what is nothing but a screen.
func endScreen(ctx context.Context, p place, e execution, mark string, done <-chan error) error {
	if err := p.signal(ctx, e.cmd.User, mark, syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-done: // however: it has ended
		return nil
	case <-time.After(screenPatience):
		return p.signal(ctx, e.cmd.User, mark, syscall.SIGKILL)
	}
}

// signal has our own program in the container send a signal to a command there.
func (p place) signal(ctx context.Context, user, mark string, sig syscall.Signal) error {
	s, err := p.start(ctx, podman.Command{Args: []string{podfile.BinaryPath, "signal", mark, strconv.Itoa(int(sig))}, User: user})
	if err != nil {
		return err
	}
	defer s.Close() //nolint:errcheck // nothing is left to say
	var said strings.Builder
	if err := s.Copy(io.Discard, &said); err != nil {
		return err
	}
	if code, err := s.Wait(ctx); err != nil || code != 0 {
		return errors.Join(err, fmt.Errorf("code %d: %.300s", code, said.String()))
	}
	return nil
}

// terminalSize is that of the person's terminal, or what programs take for usual.
func (a *app) terminalSize() podman.Size {
	for _, stream := range []any{a.out, a.in} {
		if fd, ok := terminal(stream); ok {
			if w, h, err := term.GetSize(fd); err == nil && w > 0 && h > 0 {
				return podman.Size{Width: w, Height: h}
			}
		}
	}
	return podman.Size{Width: 80, Height: 24}
}

// standIn makes the person's terminal a window on the command's, until restore is
// called, which may be called twice.
func (a *app) standIn(ctx context.Context, s *podman.Session, e execution) (restore func(), err error) {
	fd, ok := terminal(a.in)
	if !e.cmd.TTY {
		return func() {}, nil
	}
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, syscall.SIGWINCH)
	changed <- syscall.SIGWINCH // podman may have had no use for the size at the start
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		var again <-chan time.Time
		for {
			select {
			case <-changed:
			case <-again:
			case <-ctx.Done():
				return
			}
			again = nil
			if err := s.Resize(ctx, a.terminalSize()); err != nil && ctx.Err() == nil {
				a.log.Debug("telling the size of the terminal; trying again", "err", err)
				again = time.After(time.Second)
			}
		}
	}()
	restore = func() { signal.Stop(changed); cancel() }
	if !ok || !e.stdin {
		return restore, nil
	}
	was, err := term.MakeRaw(fd)
	if err != nil {
		restore()
		return nil, fmt.Errorf("taking the terminal over: %w", err)
	}
	return func() {
		signal.Stop(changed)
		cancel()
		_ = term.Restore(fd, was) // it may have been closed by now
	}, nil
}

// passInput gives the command what the person types or pipes, until its end or the
// detach keys.
func (a *app) passInput(s *podman.Session, keys []byte, detached chan<- struct{}) {
	in := a.in
	if len(keys) > 0 {
		in = &keyReader{r: a.in, keys: keys}
	}
	_, err := io.Copy(struct{ io.Writer }{s}, in)
	if errors.Is(err, errDetached) {
		close(detached)
		return
	}
	if e := s.CloseWrite(); err != nil || e != nil { // the command has ended
		a.log.Debug("passing standard input on", "err", errors.Join(err, e))
	}
}

var errDetached = errors.New("detached")

// A keyReader ends with errDetached when the keys come one after the other. It holds
// back what may be their beginning.
type keyReader struct {
	r    io.Reader
	keys []byte
	seen int // how many of the keys have come
	one  [1024]byte
}

func (k *keyReader) Read(b []byte) (int, error) {
	// Each byte read may bring those before it that were held back.
	room := min(len(k.one), len(b)-len(k.keys))
	if room <= 0 {
		return 0, io.ErrShortBuffer
	}
	n, err := k.r.Read(k.one[:room])
	out := b[:0]
	for _, c := range k.one[:n] {
		if c != k.keys[k.seen] {
			out = append(out, k.keys[:k.seen]...)
			k.seen = 0
		}
		if c != k.keys[k.seen] {
			out = append(out, c)
			continue
		}
		if k.seen++; k.seen == len(k.keys) {
			return len(out), errDetached
		}
	}
	if err != nil {
		out = append(out, k.keys[:k.seen]...)
		k.seen = 0
	}
	return len(out), err
}
