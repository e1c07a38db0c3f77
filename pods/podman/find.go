package podman

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// FindConfig says where to look for a podman API service.
type FindConfig struct {
	// URI is the one to use, unix:///path; nothing else is tried. The one that
	// SocketPath makes is allowed: then only a service of our own is used.
	URI string
	// Start allows starting a service when none answers.
	Start bool
	// SocketPath is where one that we start listens. Its pid is kept beside it,
	// in podman.pid.
	SocketPath string
	Log        *slog.Logger
}

// ErrNone is returned when no service answers and none may be started.
var ErrNone = errors.New("no podman API service answers")

// Find returns the URI of a service that answers: the configured one, that of
// CONTAINER_HOST, the one we started earlier, podman's usual sockets, or one
// that it starts now. One that it starts has a session of its own and outlives
// this process: containers need it again later. CONTAINERS_CONF and its like
// reach it through the environment, TMPDIR does not.
func Find(ctx context.Context, cfg FindConfig) (string, error) {
	own := "unix://" + cfg.SocketPath
	if cfg.URI != "" && cfg.URI != own {
		if err := answers(ctx, cfg.URI); err != nil {
			return "", fmt.Errorf("podman does not answer at %s (podman.socket): %w", cfg.URI, err)
		}
		return cfg.URI, nil
	}
	if uri := os.Getenv("CONTAINER_HOST"); uri != "" && cfg.URI == "" {
		if err := answers(ctx, uri); err != nil {
			return "", fmt.Errorf("podman does not answer at %s (CONTAINER_HOST): %w", uri, err)
		}
		return uri, nil
	}
	candidates := []string{own}
	if cfg.URI == "" {
		candidates = append(candidates, usual()...)
	}
	for _, uri := range candidates {
		if answers(ctx, uri) == nil {
			return uri, nil
		}
	}
	if !cfg.Start {
		return "", ErrNone
	}
	return own, start(ctx, cfg)
}

// usual are the sockets that podman's own units listen on. Without a login
// session (su, cron) nothing names a user's runtime directory, but it is there.
func usual() []string {
	if os.Geteuid() == 0 {
		return []string{"unix:///run/podman/podman.sock"}
	}
	dir := os.Getenv("XDG_RUNTIME_DIR")
	if dir == "" {
		dir = fmt.Sprintf("/run/user/%d", os.Geteuid())
	}
	return []string{"unix://" + filepath.Join(dir, "podman", "podman.sock")}
}

// answers asks a service for its liveness.
func answers(ctx context.Context, uri string) error {
	path, ok := cutUnix(uri)
	if !ok {
		return fmt.Errorf("%s: only unix:// sockets are used, since pods share sockets with the service", uri)
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://podman/_ping", nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("it answered %s", resp.Status)
	}
	return nil
}

func cutUnix(uri string) (string, bool) {
	const prefix = "unix://"
	if len(uri) <= len(prefix) || uri[:len(prefix)] != prefix {
		return "", false
	}
	return uri[len(prefix):], true
}

// LastingEnv is the environment of what outlives the session that it is started in: the
// directory of TMPDIR may go with that, and podman without it lists no image.
func LastingEnv() []string {
	return slices.DeleteFunc(os.Environ(), func(kv string) bool { return strings.HasPrefix(kv, "TMPDIR=") })
}

// start runs `podman system service` and waits until it answers.
func start(ctx context.Context, cfg FindConfig) error {
	program, err := exec.LookPath("podman")
	if err != nil {
		return errors.New("podman is not installed: apt-get install podman (Debian, Ubuntu), dnf install podman (Fedora), or see podman.io")
	}
	if err := os.Remove(cfg.SocketPath); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	dir := filepath.Dir(cfg.SocketPath)
	log, err := os.OpenFile(filepath.Join(dir, "podman.log"), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(program, "system", "service", "--time", "0", "unix://"+cfg.SocketPath)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Dir, cmd.Env = "/", LastingEnv() // without its directory conmon(8) starts nothing
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting a podman API service: %w", err)
	}
	cfg.Log.Info("started a podman API service", "socket", cfg.SocketPath, "pid", cmd.Process.Pid)
	if err := os.WriteFile(filepath.Join(dir, "podman.pid"), []byte(strconv.Itoa(cmd.Process.Pid)+"\n"), 0o600); err != nil {
		return err
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	deadline := time.After(30 * time.Second)
	for answers(ctx, "unix://"+cfg.SocketPath) != nil {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-exited:
			return fmt.Errorf("the podman API service ended at once (%w): see %s", err, log.Name())
		case <-deadline:
			return fmt.Errorf("the podman API service does not answer after 30 s: see %s", log.Name())
		case <-time.After(50 * time.Millisecond):
		}
	}
	return nil
}
