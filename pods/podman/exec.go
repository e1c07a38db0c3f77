package podman

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"strconv"

	"github.com/containers/podman/v5/pkg/api/handlers"
	"github.com/containers/podman/v5/pkg/bindings/containers"
	dockerContainer "github.com/docker/docker/api/types/container"
)

// Exec runs a command in a container as a user and returns its exit code.
// stdin may be nil.
func (c *Client) Exec(ctx context.Context, name, user string, cmd []string, stdin io.Reader, stdout, stderr io.Writer) (exit int, err error) {
	conn, cancel := c.with(ctx)
	defer cancel()
	id, err := containers.ExecCreate(conn, name, &handlers.ExecCreateConfig{ExecOptions: dockerContainer.ExecOptions{
		User: user, Cmd: cmd, AttachStdin: stdin != nil, AttachStdout: true, AttachStderr: true,
	}})
	if err != nil {
		return 0, fmt.Errorf("running a command in %s: %w", name, err)
	}
	opts := new(containers.ExecStartAndAttachOptions).WithOutputStream(stdout).WithErrorStream(stderr).WithAttachOutput(true).WithAttachError(true)
	if stdin != nil {
		opts = opts.WithInputStream(*bufio.NewReader(stdin)).WithAttachInput(true)
	}
	if err := containers.ExecStartAndAttach(conn, id, opts); err != nil {
		return 0, fmt.Errorf("running a command in %s: %w", name, err)
	}
	session, err := containers.ExecInspect(conn, id, nil)
	if err != nil {
		return 0, fmt.Errorf("running a command in %s: %w", name, err)
	}
	return session.ExitCode, nil
}

// Logs copies a container's log to w, tail lines of it (0 is all), and with
// follow what comes until ctx ends.
func (c *Client) Logs(ctx context.Context, name string, follow bool, tail int, w io.Writer) error {
	conn, cancel := c.with(ctx)
	defer cancel()
	opts := new(containers.LogOptions).WithStdout(true).WithStderr(true).WithFollow(follow)
	if tail > 0 {
		opts = opts.WithTail(strconv.Itoa(tail))
	}
	lines := make(chan string, 64)
	done := make(chan error, 1)
	go func() {
		done <- containers.Logs(conn, name, opts, lines, lines)
		close(lines)
	}()
	var werr error
	for line := range lines {
		if werr == nil {
			if _, werr = io.WriteString(w, line); werr != nil {
				cancel()
			}
		}
	}
	if err := <-done; err != nil && ctx.Err() == nil && werr == nil {
		return fmt.Errorf("reading the log of %s: %w", name, err)
	}
	return werr
}
