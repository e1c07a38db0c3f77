package podman

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"

	"github.com/containers/podman/v5/pkg/bindings"
	"github.com/containers/podman/v5/pkg/bindings/containers"
	"github.com/containers/podman/v5/pkg/copy"
)

// Files of containers, as tar streams. The container need not run.

// ErrNoPath is for a path that a container does not have.
var ErrNoPath = errors.New("no such file or directory")

// Stat tells what kind of thing a path in a container is. A symlink is followed
// within the container.
func (c *Client) Stat(ctx context.Context, container, path string) (fs.FileMode, error) {
	conn, cancel := c.with(ctx)
	defer cancel()
	found, err := containers.Stat(conn, container, path)
	if errors.Is(err, copy.ErrENOENT) || notFound(err) {
		return 0, fmt.Errorf("%s in %s: %w", path, container, ErrNoPath)
	}
	if err != nil {
		return 0, fmt.Errorf("looking at %s in %s: %w", path, container, err)
	}
	return found.Mode, nil
}

// ReadArchive is a tar of what a path in a container is, by its last element's name.
// It ends with an error when podman fails under way.
func (c *Client) ReadArchive(ctx context.Context, container, path string) (io.ReadCloser, error) {
	body, err := c.archive(ctx, http.MethodGet, container, url.Values{"path": {path}}, nil)
	if err != nil {
		return nil, fmt.Errorf("reading %s of %s: %w", path, container, err)
	}
	return body, nil
}

// WriteArchive unpacks a tar into a directory of a container. What it makes belongs
// to the container's user.
func (c *Client) WriteArchive(ctx context.Context, container, dir string, tar io.Reader) error {
	body, err := c.archive(ctx, http.MethodPut, container, url.Values{"path": {dir}, "copyUIDGID": {"true"}}, tar)
	if err != nil {
		return fmt.Errorf("writing to %s of %s: %w", dir, container, err)
	}
	return body.Close()
}

// archive keeps to the API by itself: the bindings drop podman's words.
func (c *Client) archive(ctx context.Context, method, container string, params url.Values, body io.Reader) (io.ReadCloser, error) {
	conn, cancel := c.with(ctx)
	client, err := bindings.GetClient(conn)
	if err != nil {
		cancel()
		return nil, err
	}
	resp, err := client.DoRequest(conn, body, method, "/containers/%s/archive", params, nil, container)
	if err != nil {
		cancel()
		return nil, err
	}
	if resp.StatusCode == http.StatusOK {
		return &closing{resp.Body, cancel}, nil
	}
	defer cancel()
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if resp.StatusCode == http.StatusNotFound {
		return nil, errors.Join(ErrNoPath, err)
	}
	return nil, errors.Join(errors.New(causeIn(text)), err)
}

// closing ends a call with its body.
type closing struct {
	io.ReadCloser
	cancel context.CancelFunc
}

func (c *closing) Close() error {
	defer c.cancel()
	return c.ReadCloser.Close()
}
