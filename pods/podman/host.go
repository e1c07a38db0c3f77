package podman

import (
	"context"
	"errors"
	"fmt"

	"github.com/containers/podman/v5/pkg/bindings/system"
)

// A Host is what podman runs on, as far as that decides what containers can
// be given.
type Host struct {
	Version     string
	Rootless    bool
	Cgroups     string   // "v1" or "v2"
	Controllers []string // the cgroup controllers that podman may use
	Storage     string   // the driver: overlay, vfs, …
	Graph       string   // the directory of its images
	Users       int      // how many a container can have; 0 is all of them
}

// Host is what podman runs on. It is asked once: podman looks for its own packages to
// answer, which takes up to a second, and what decides here stays as it is.
func (c *Client) Host(ctx context.Context) (Host, error) {
	if h := c.host.Load(); h != nil {
		return *h, nil
	}
	h, err := c.askHost(ctx)
	if err == nil {
		c.host.Store(&h)
	}
	return h, err
}

func (c *Client) askHost(ctx context.Context) (Host, error) {
	conn, cancel := c.with(ctx)
	defer cancel()
	info, err := system.Info(conn, nil)
	if err != nil {
		return Host{}, fmt.Errorf("asking podman what it runs on: %w", err)
	}
	if info.Host == nil || info.Store == nil {
		return Host{}, errors.New("podman told nothing of its host")
	}
	h := Host{
		Version: info.Version.Version, Rootless: info.Host.Security.Rootless,
		Cgroups: info.Host.CgroupsVersion, Controllers: info.Host.CgroupControllers, Storage: info.Store.GraphDriverName, Graph: info.Store.GraphRoot,
	}
	for _, m := range info.Host.IDMappings.UIDMap {
		h.Users += m.Size
	}
	return h, nil
}
