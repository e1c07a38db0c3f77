package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"codeberg.org/devaipod/devaipod/compose"
	"codeberg.org/devaipod/devaipod/pods"
	"codeberg.org/devaipod/devaipod/pods/podman"
)

// podman finds a podman API service, or starts one for this instance, and
// connects to it. The one it starts goes on after this process, since pods
// and forge do too; `forge down` ends it.
func (a *app) podman(ctx context.Context) (*podman.Client, error) {
	uri, err := podman.Find(ctx, podman.FindConfig{
		URI: a.cfg.Podman.Socket, Start: true, SocketPath: a.cfg.file("podman.sock"), Log: a.log,
	})
	if err != nil {
		return nil, &exitError{codeUnreachable, err}
	}
	a.podmanURI = uri
	a.ownPodman = uri == "unix://"+a.cfg.file("podman.sock")
	p, err := podman.Connect(ctx, uri)
	if err != nil {
		return nil, err
	}
	return p.WithFault(fault).KeepHost(a.cfg.file(hostFile)), nil
}

// hostFile has what podman runs on.
const hostFile = "podman-host.json"

// revivePodman starts podman's service again, if it was one of our own and does
// not answer any more. Its containers have gone on without it.
func (a *app) revivePodman(ctx context.Context) error {
	if !a.ownPodman {
		return nil // whoever runs it starts it again
	}
	a.podmanMu.Lock()
	defer a.podmanMu.Unlock()
	_, err := podman.Find(ctx, podman.FindConfig{
		URI: "unix://" + a.cfg.file("podman.sock"), Start: true, SocketPath: a.cfg.file("podman.sock"), Log: a.log,
	})
	return err
}

// podmanStuck ends podman's service, which stands still, and starts it anew, if it is one of our
// own. Its containers go on; what was asked of it has failed, and is asked again.
func (a *app) podmanStuck(ctx context.Context) {
	waited := a.cfg.Podman.Patience
	if !a.ownPodman {
		a.log.Error("podman does not answer: start its service anew", "at", a.podmanURI, "waited", waited)
		return
	}
	a.log.Error("podman does not answer: its service is ended, and started anew", "waited", waited)
	if err := a.endPodman(ctx); err != nil {
		a.log.Error("podman's service can't be ended", "err", err)
		return
	}
	if err := a.revivePodman(ctx); err != nil {
		a.log.Error("podman's service can't be started anew", "err", err)
	}
}

// endPodman ends the service of podman's that devaipod has started for this instance, if it runs.
func (a *app) endPodman(ctx context.Context) error {
	a.podmanMu.Lock()
	defer a.podmanMu.Unlock()
	pid, ok := pidIn(a.cfg.file("podman.pid"), a.cfg.file("podman.sock"))
	if !ok {
		return nil
	}
	return end(ctx, pid, 10*time.Second)
}

// tools makes the image that holds devaipod-pod, which lies beside this binary.
func (a *app) tools(ctx context.Context, m *pods.Manager) (string, error) {
	binary, err := beside("devaipod-pod")
	if err != nil {
		return "", err
	}
	return m.EnsureTools(ctx, binary)
}

// beside is a program of ours, beside this one.
func beside(name string) (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	if self, err = filepath.EvalSymlinks(self); err != nil {
		return "", err
	}
	binary := filepath.Join(filepath.Dir(self), name)
	if _, err := os.Stat(binary); err != nil {
		return "", fmt.Errorf("%s must lie beside devaipod: %w; build all with `make build`", name, err)
	}
	return binary, nil
}

// stack is the forge's stack for this configuration.
func (a *app) stack(tools string) (compose.Stack, error) {
	host, port, err := net.SplitHostPort(a.cfg.Forge.Listen)
	if err != nil {
		return compose.Stack{}, err
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return compose.Stack{}, err
	}
	return compose.Forge(compose.Config{
		Instance: a.cfg.Instance, Image: a.cfg.Forge.Image, ToolsImage: tools,
		HostIP: host, HostPort: uint16(n), URL: a.cfg.forgeURL() + "/", RelayDir: a.cfg.file("relay"), Runner: a.cfg.externalRunner(uint16(n)),
	}), nil
}

// needPorts is an error when a port of ours is another program's, before
// anything is made that would need it.
func (a *app) needPorts(ctx context.Context, p *podman.Client, s compose.Stack) error {
	for _, pod := range s.Pods {
		st, err := p.State(ctx, pod.Name+"-infra")
		if err != nil {
			return err
		}
		if !st.Running && len(pod.Ports) > 0 {
			if err := needPort(a.cfg.Forge.Listen, "forge.listen"); err != nil {
				return err
			}
		}
	}
	if a.api().get(ctx, "/api/status", new(serviceStatus)) == nil {
		return nil // ours has it
	}
	return needPort(a.cfg.Service.Listen, "service.listen")
}

// applyStack makes and starts what the stack names; what is there stays.
func (a *app) applyStack(ctx context.Context, p *podman.Client, s compose.Stack) error {
	if err := a.ensureImage(ctx, p, a.cfg.Forge.Image); err != nil {
		return err
	}
	if err := a.readyRunner(ctx, p); err != nil {
		return err
	}
	for _, v := range s.Volumes {
		if _, err := p.EnsureVolume(ctx, v.Name, v.Labels); err != nil {
			return err
		}
	}
	for _, pod := range s.Pods {
		spec := podman.PodSpec{Name: pod.Name, Labels: pod.Labels, Infra: true}
		for _, port := range pod.Ports {
			spec.Ports = append(spec.Ports, podman.Port{HostIP: port.HostIP, Host: port.Host, Container: port.Container})
		}
		if _, err := p.EnsurePod(ctx, spec); err != nil {
			return err
		}
	}
	for _, c := range s.Containers {
		if _, err := p.EnsureContainer(ctx, containerOf(c)); err != nil {
			return err
		}
		if err := p.StartContainer(ctx, c.Name); err != nil {
			return err
		}
	}
	return nil
}

func containerOf(c compose.Container) podman.Container {
	out := podman.Container{
		Name: c.Name, Pod: c.Pod, Image: c.Image, Entrypoint: c.Entrypoint, Command: c.Command, Env: c.Env,
		Labels: c.Labels, User: c.User, DropCaps: c.DropCaps, NoNewPrivs: c.NoNewPrivs, Restart: c.Restart, SELinuxDisable: c.SELinuxDisable,
	}
	if c.Network != "" {
		out.Network = podman.NetworkOf(c.Network)
	}
	for _, m := range c.Mounts {
		kind := podman.Volume
		if m.Bind {
			kind = podman.Bind
		}
		out.Mounts = append(out.Mounts, podman.Mount{Kind: kind, Source: m.Source, Target: m.Target, ReadOnly: m.ReadOnly})
	}
	return out
}

// ensureImage pulls an image that is not here; local ones can't be pulled.
func (a *app) ensureImage(ctx context.Context, p *podman.Client, ref string) error {
	ok, err := p.ImageExists(ctx, ref)
	if err != nil || ok {
		return err
	}
	if strings.HasPrefix(ref, "localhost/") {
		return fmt.Errorf("image %s is not here and can't be pulled: build it with `make images`", ref)
	}
	a.step("pulling  %s", ref)
	if err := p.ImagePull(ctx, ref, a.errOut); err != nil {
		return pods.FetchError(ref, err)
	}
	return nil
}

// forgeCLI runs the forge's own admin command inside its container.
func forgeCLI(p *podman.Client, container string) func(context.Context, io.Reader, ...string) (string, error) {
	return func(ctx context.Context, stdin io.Reader, args ...string) (string, error) {
		var out, errOut bytes.Buffer
		code, err := p.Exec(ctx, container, "git", append([]string{"forgejo"}, args...), stdin, &out, &errOut)
		if err != nil {
			return "", err
		}
		if code != 0 {
			return "", fmt.Errorf("forgejo %s ended with code %d: %s", strings.Join(args[:min(len(args), 3)], " "), code, strings.TrimSpace(errOut.String()+out.String()))
		}
		return out.String(), nil
	}
}

// pidIn reads a pid file and tells whether that process runs and looks like
// ours: its command line holds want.
func pidIn(path, want string) (int, bool) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, false
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || pid <= 1 {
		return 0, false
	}
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return pid, err == nil && bytes.Contains(cmdline, []byte(want))
}

// end asks a process to end, and after a while makes it.
func end(ctx context.Context, pid int, patience time.Duration) error {
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		return ignoreGone(err)
	}
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		if errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
	return ignoreGone(syscall.Kill(pid, syscall.SIGKILL))
}

func ignoreGone(err error) error {
	if errors.Is(err, syscall.ESRCH) {
		return nil
	}
	return err
}

// detached gives a child a session of its own, so that it outlives the
// terminal it was started from.
func detached() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setsid: true} }
