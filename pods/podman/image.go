package podman

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/containers/podman/v5/pkg/bindings/images"
	"github.com/containers/podman/v5/pkg/bindings/secrets"
)

// ImageExists tells whether an image is in podman's storage.
func (c *Client) ImageExists(ctx context.Context, ref string) (bool, error) {
	conn, cancel := c.with(ctx)
	defer cancel()
	ok, err := images.Exists(conn, ref, nil)
	return ok, wrap("looking for image", ref, err)
}

// ImagePull fetches an image from its registry and shows progress.
func (c *Client) ImagePull(ctx context.Context, ref string, progress io.Writer) error {
	conn, cancel := c.with(ctx)
	defer cancel()
	_, err := images.Pull(conn, ref, new(images.PullOptions).WithProgressWriter(progress))
	return wrap("pulling image", ref, err)
}

// ImageImport makes an image of a root file system. changes are instructions
// like `ENTRYPOINT ["/x"]` (podman-import(1)).
func (c *Client) ImageImport(ctx context.Context, ref string, tar io.Reader, changes []string) error {
	conn, cancel := c.with(ctx)
	defer cancel()
	_, err := images.Import(conn, tar, new(images.ImportOptions).WithReference(ref).WithChanges(changes))
	return wrap("importing image", ref, err)
}

// Images lists the names of the local images that start with prefix.
func (c *Client) Images(ctx context.Context, prefix string) ([]string, error) {
	conn, cancel := c.with(ctx)
	defer cancel()
	found, err := images.List(conn, nil)
	if err != nil {
		return nil, fmt.Errorf("listing images: %w", err)
	}
	var out []string
	for _, i := range found {
		for _, name := range i.RepoTags {
			if strings.HasPrefix(name, prefix) {
				out = append(out, name)
			}
		}
	}
	return out, nil
}

// ImageRemove removes an image that no container uses; one that is not there
// or in use is left alone.
func (c *Client) ImageRemove(ctx context.Context, ref string) error {
	conn, cancel := c.with(ctx)
	defer cancel()
	_, errs := images.Remove(conn, []string{ref}, nil)
	for _, err := range errs {
		if !notFound(err) && !conflict(err) && !strings.Contains(err.Error(), "image is in use") && !strings.Contains(err.Error(), "image not known") {
			return fmt.Errorf("removing image %s: %w", ref, err)
		}
	}
	return nil
}

// SecretPut stores a secret under a name that must be new: podman 4 can't
// replace one.
func (c *Client) SecretPut(ctx context.Context, name string, data []byte) error {
	conn, cancel := c.with(ctx)
	defer cancel()
	opts := new(secrets.CreateOptions).WithName(name)
	_, err := secrets.Create(conn, bytes.NewReader(data), opts)
	return wrap("storing secret", name, err)
}

// Secrets lists the names of the secrets that start with prefix.
func (c *Client) Secrets(ctx context.Context, prefix string) ([]string, error) {
	conn, cancel := c.with(ctx)
	defer cancel()
	found, err := secrets.List(conn, nil)
	if err != nil {
		return nil, fmt.Errorf("listing secrets: %w", err)
	}
	var out []string
	for _, s := range found {
		if strings.HasPrefix(s.Spec.Name, prefix) {
			out = append(out, s.Spec.Name)
		}
	}
	return out, nil
}

// SecretRemove removes a secret; one that is not there is no error.
func (c *Client) SecretRemove(ctx context.Context, name string) error {
	conn, cancel := c.with(ctx)
	defer cancel()
	if err := secrets.Remove(conn, name); err != nil && !notFound(err) {
		return fmt.Errorf("removing secret %s: %w", name, err)
	}
	return nil
}
