package podman

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/containers/podman/v5/pkg/bindings/containers"
	"github.com/containers/podman/v5/pkg/bindings/images"

	"codeberg.org/devaipod/devaipod/pods/backend"
)

// ImageExists tells whether an image is in podman's storage.
func (c *Client) ImageExists(ctx context.Context, ref string) (bool, error) {
	conn, cancel := c.with(ctx)
	defer cancel()
	ok, err := images.Exists(conn, ref, nil)
	return ok, wrap("looking for image", ref, err)
}

// ImageInfo reads what an image says of itself; ok is false when it is not there.
func (c *Client) ImageInfo(ctx context.Context, ref string) (info backend.ImageInfo, ok bool, err error) {
	conn, cancel := c.with(ctx)
	defer cancel()
	d, err := images.GetImage(conn, ref, nil)
	if notFound(err) {
		return info, false, nil
	}
	if err != nil {
		return info, false, wrap("looking at image", ref, err)
	}
	if d.ImageData == nil {
		return info, false, fmt.Errorf("looking at image %s: podman says nothing of it", ref)
	}
	info = backend.ImageInfo{ID: d.ID, Names: d.RepoTags, Arch: d.Architecture, OS: d.Os, User: d.User, Labels: d.Labels, Size: d.Size}
	if d.Config != nil {
		info.Env = d.Config.Env
	}
	return info, true, nil
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
	found, err := whole(conn, images.List, nil)
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

// LabeledImages lists the local images that carry all of labels.
func (c *Client) LabeledImages(ctx context.Context, labels map[string]string) ([]backend.ImageThing, error) {
	conn, cancel := c.with(ctx)
	defer cancel()
	// Podman 4 finds none by two labels. One is enough to leave out most.
	one := map[string]string{}
	for k, v := range labels {
		one = map[string]string{k: v}
	}
	found, err := whole(conn, images.List, new(images.ListOptions).WithFilters(filter(one)))
	if err != nil {
		return nil, fmt.Errorf("listing images: %w", err)
	}
	var out []backend.ImageThing
	for _, i := range found {
		if carries(i.Labels, labels) {
			out = append(out, backend.ImageThing{ID: i.ID, Names: i.RepoTags, Created: time.Unix(i.Created, 0)})
		}
	}
	return out, nil
}

// ImagesInUse are the IDs of those that containers are made of, whoever's.
func (c *Client) ImagesInUse(ctx context.Context) (map[string]bool, error) {
	conn, cancel := c.with(ctx)
	defer cancel()
	found, err := whole(conn, containers.List, new(containers.ListOptions).WithAll(true))
	if err != nil {
		return nil, fmt.Errorf("listing containers: %w", err)
	}
	used := map[string]bool{}
	for _, f := range found {
		used[f.ImageID] = true
	}
	return used, nil
}

// ImageRemoveAll removes an image under all its names, unless a container uses it.
func (c *Client) ImageRemoveAll(ctx context.Context, i backend.ImageThing) error {
	names := i.Names
	if len(names) == 0 {
		names = []string{i.ID}
	}
	for _, name := range names {
		c.change("remove image", name)
		if err := c.ImageRemove(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

// ImageDir is the directory of the host that images are in.
func (c *Client) ImageDir(ctx context.Context) (string, error) {
	h, err := c.Host(ctx)
	return h.Graph, err
}
