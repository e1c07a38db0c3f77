package podman

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/containers/podman/v5/pkg/api/handlers"
	"github.com/containers/podman/v5/pkg/bindings/containers"
	dockerContainer "github.com/docker/docker/api/types/container"
)

// A Command is what runs in a container beside what the container is there for.
type Command struct {
	Args []string
	User string // "" is the container's
	Dir  string // "" is the container's
	Env  []string
	TTY  bool
	// Size is the terminal's at first.
	Size Size
	// Stdin says that Session's Write leads to the command's standard input.
	Stdin bool
}

// A Size of a terminal, in characters.
type Size struct{ Width, Height int }

// A Session is a command that runs in a container, with its streams. Write,
// CloseWrite, Resize and Copy may be called concurrently.
type Session struct {
	client    *Client
	container string
	id        string
	tty       bool
	conn      *net.UnixConn
	out       *bufio.Reader
}

// ErrNotRunning is for a container that is not there or does not run.
var ErrNotRunning = errors.New("the container does not run")

// Start starts cmd in a container that runs. Its bytes pass as they are: no keys
// detach from it. What can't be run ends with code 126 or 127, and podman's words
// for it are what it writes.
func (c *Client) Start(ctx context.Context, container string, cmd Command) (*Session, error) {
	conn, cancel := c.with(ctx)
	defer cancel()
	id, err := containers.ExecCreate(conn, container, &handlers.ExecCreateConfig{ExecOptions: dockerContainer.ExecOptions{
		User: cmd.User, Cmd: cmd.Args, WorkingDir: cmd.Dir, Env: cmd.Env, Tty: cmd.TTY, AttachStdin: cmd.Stdin, AttachStdout: true, AttachStderr: true,
	}})
	// Podman 4.3 has no status of its own for one that does not run.
	if notFound(err) || conflict(err) || err != nil && strings.Contains(err.Error(), "container state improper") {
		return nil, fmt.Errorf("running a command in %s: %w: %w", container, ErrNotRunning, err)
	}
	if err != nil {
		return nil, fmt.Errorf("running a command in %s: %w", container, err)
	}
	s := &Session{client: c, container: container, id: id, tty: cmd.TTY}
	if err := s.start(ctx, cmd); err != nil {
		return nil, fmt.Errorf("running a command in %s: %w", container, err)
	}
	return s, nil
}

// start makes the connection by itself: the bindings would look at this process's
// own terminal, and read on from its standard input when the command has ended.
func (s *Session) start(ctx context.Context, cmd Command) error {
	body, err := json.Marshal(map[string]any{"Detach": false, "Tty": cmd.TTY, "h": cmd.Size.Height, "w": cmd.Size.Width})
	if err != nil {
		return err
	}
	conn, err := new(net.Dialer).DialContext(ctx, "unix", s.client.socket)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://d/v4.0.0/libpod/exec/"+s.id+"/start", bytes.NewReader(body))
	if err != nil {
		return errors.Join(err, conn.Close())
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", "tcp")
	out := bufio.NewReaderSize(conn, 64<<10)
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	err = req.Write(conn)
	var resp *http.Response
	if err == nil {
		resp, err = http.ReadResponse(out, req)
	}
	if err != nil {
		return errors.Join(err, conn.Close())
	}
	if resp.StatusCode != http.StatusSwitchingProtocols && resp.StatusCode != http.StatusOK {
		text, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
		return errors.Join(errors.New(causeIn(text)), err, resp.Body.Close(), conn.Close())
	}
	s.conn, s.out = conn.(*net.UnixConn), out //nolint:forcetypeassert // it was dialled as one
	return nil
}

// causeIn is the message in an error of podman's API.
func causeIn(text []byte) string {
	var e struct{ Message, Cause string }
	if json.Unmarshal(text, &e) == nil && e.Message != "" {
		return e.Message
	}
	return string(text)
}

// Write gives bytes to the command's standard input.
func (s *Session) Write(b []byte) (int, error) { return s.conn.Write(b) }

// CloseWrite ends the command's standard input.
func (s *Session) CloseWrite() error { return s.conn.CloseWrite() }

// Close lets go of the command, which goes on if it has not ended.
func (s *Session) Close() error { return s.conn.Close() }

// Resize tells the command's terminal its size.
func (s *Session) Resize(ctx context.Context, to Size) error {
	conn, cancel := s.client.with(ctx)
	defer cancel()
	return containers.ResizeExecTTY(conn, s.id, new(containers.ResizeExecTTYOptions).WithHeight(to.Height).WithWidth(to.Width))
}

// The streams in podman's frames (docs.docker.com/reference/api/engine, "stream
// format"); the last is podman's own, for its errors.
const (
	streamOut = 1
	streamErr = 2
	streamBad = 3
)

// Copy passes on what the command writes until it ends. With a terminal all of it
// goes to stdout.
func (s *Session) Copy(stdout, stderr io.Writer) error {
	if s.tty {
		_, err := io.Copy(stdout, s.out)
		return err
	}
	var head [8]byte
	for {
		if _, err := io.ReadFull(s.out, head[:]); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		frame := io.LimitReader(s.out, int64(binary.BigEndian.Uint32(head[4:])))
		switch head[0] {
		case streamOut, 0:
			if _, err := io.Copy(stdout, frame); err != nil {
				return err
			}
		case streamErr:
			if _, err := io.Copy(stderr, frame); err != nil {
				return err
			}
		case streamBad:
			text, err := io.ReadAll(io.LimitReader(frame, 64<<10))
			return errors.Join(errors.New(string(text)), err)
		default:
			return fmt.Errorf("podman sent a stream of the kind %d", head[0])
		}
	}
}

// Wait waits until the command has ended and returns its exit code. Copy must have
// returned.
func (s *Session) Wait(ctx context.Context) (exit int, err error) {
	conn, cancel := s.client.with(ctx)
	defer cancel()
	// podman ends the streams a moment before it knows the exit code.
	for wait := 5 * time.Millisecond; ; wait = min(2*wait, 200*time.Millisecond) {
		d, err := containers.ExecInspect(conn, s.id, nil)
		if notFound(err) {
			return 0, fmt.Errorf("%w any more: it ended under the command in %s", ErrNotRunning, s.container)
		}
		if err != nil {
			return 0, fmt.Errorf("asking how a command in %s ended: %w", s.container, err)
		}
		if !d.Running {
			return d.ExitCode, nil
		}
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-time.After(wait):
		}
	}
}
