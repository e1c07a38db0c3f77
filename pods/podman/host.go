package podman

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"

	"github.com/containers/podman/v5/pkg/bindings/system"
	"golang.org/x/sys/unix"

	"codeberg.org/devaipod/devaipod/pods/podfile"
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

// Host is what podman runs on. A service of podman's is asked once: it looks for its own
// packages to answer, which takes up to a second, and says the same until it ends.
func (c *Client) Host(ctx context.Context) (Host, error) {
	if h := c.host.Load(); h != nil {
		return *h, nil
	}
	h, err := c.keptHost(ctx)
	if err == nil {
		c.host.Store(&h)
	}
	return h, err
}

// kept is a [Host] in a file, and the process that told it.
type kept struct {
	By   string
	Host Host
}

// keptHost is what the file has that [Client.KeepHost] named, if this process of
// podman's told it, and what podman says otherwise.
func (c *Client) keptHost(ctx context.Context) (Host, error) {
	if c.hostFile == "" {
		return c.askHost(ctx)
	}
	by := c.server(ctx)
	if by != "" {
		by += fmt.Sprintf(" as %+v", Host{}) // another version of devaipod may ask for more
	}
	var k kept
	if b, err := os.ReadFile(c.hostFile); err == nil && by != "" && json.Unmarshal(b, &k) == nil && k.By == by {
		return k.Host, nil
	}
	h, err := c.askHost(ctx)
	if err != nil || by == "" {
		return h, err
	}
	b, err := json.Marshal(kept{by, h})
	if err == nil {
		_ = podfile.Replace(c.hostFile, b) // the next one asks again
	}
	return h, err
}

// server names the process that listens on the socket (SO_PEERCRED of unix(7)), as no
// other process of this machine ever is. It is "" where that can't be told: systemd, for
// one, listens itself, and starts podman when somebody calls.
func (c *Client) server(ctx context.Context) string {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", c.socket)
	if err != nil {
		return ""
	}
	defer conn.Close()
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return ""
	}
	var peer *unix.Ucred
	if err := raw.Control(func(fd uintptr) { peer, _ = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil || peer == nil {
		return ""
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", peer.Pid))
	if err != nil {
		return ""
	}
	// proc_pid_stat(5): pid (comm) and then, from the third on, one word each; the 22nd is when it began.
	pid, rest, _ := strings.Cut(string(stat), " (")
	name, rest, _ := strings.Cut(rest, ") ")
	words := strings.Fields(rest)
	if name != "podman" && name != "exe" || len(words) < 20 { // without root it is run by /proc/self/exe
		return ""
	}
	return fmt.Sprintf("%s of %s in %s", pid, words[19], strings.TrimSpace(string(boot)))
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
