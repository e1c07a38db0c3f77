package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httputil"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"codeberg.org/devaipod/devaipod/ci"
	"codeberg.org/devaipod/devaipod/ci/broker"
	"codeberg.org/devaipod/devaipod/compose"
	"codeberg.org/devaipod/devaipod/pods/egress"
	"codeberg.org/devaipod/devaipod/pods/podman"
)

// forgejoRunner is the command of the runner's container, for the image of Forgejo's
// runner. It registers each time: what it knew before may be another instance's. The token
// is on nobody's command line. Jobs in containers have the runner's network.
const forgejoRunner = `cd "$(mktemp -d)"
printf '%s\n' "$GITEA_INSTANCE_URL" "$(cat "$GITEA_RUNNER_REGISTRATION_TOKEN_FILE")" "$GITEA_RUNNER_NAME" "$GITEA_RUNNER_LABELS" | forgejo-runner register
printf 'container: {network: "%s"}\n' "$GITEA_RUNNER_NETWORK" >config.yml
exec forgejo-runner daemon --config config.yml`

// externalDir is the broker's directory. The runner's container has the one of the
// registration token in it, its relay relayDir.
func (c config) externalDir() string { return c.file("ci/external") }
func (c config) relayDir() string    { return c.file("ci/external/relay") }

// externalLabels are what a runner is to be registered with: where it gets containers, the
// labels with the images of ci.images.
func (c config) externalLabels(containers bool) []string {
	var labels []string
	for _, text := range c.CI.Images {
		label, image, _ := strings.Cut(text, "=")
		where := "host"
		if containers {
			where = "docker://" + image
		}
		labels = append(labels, label+":"+where)
	}
	slices.Sort(labels)
	return labels
}

// externalRunner is the runner's container, which finds the forge at the port that it has here;
// its Image is "" where there is to be none.
func (c config) externalRunner(port uint16) compose.Runner {
	return compose.Runner{
		Image: c.CI.ExternalImage, Command: c.CI.ExternalCommand, Port: port, Labels: c.externalLabels(c.CI.ExternalPodman != ""),
		RelayDir: c.relayDir(), TokenDir: filepath.Dir(broker.TokenFile(c.externalDir())), Podman: c.CI.ExternalPodman,
	}
}

func (c config) validateExternal() error {
	host, port, err := net.SplitHostPort(c.CI.ExternalListen)
	if c.CI.Runner == runnerExternal && (err != nil || net.ParseIP(host) == nil || port == "") {
		return fmt.Errorf("ci.external_listen = %q: want an address and port, like 127.0.0.1:8091", c.CI.ExternalListen)
	}
	if c.CI.ExternalImage != "" && (c.CI.Runner != runnerExternal || c.joined()) {
		return fmt.Errorf("ci.external_image wants ci.runner = %q, and a forge of devaipod's own", runnerExternal)
	}
	if socket := c.CI.ExternalPodman; socket != "" && (c.CI.ExternalImage == "" || !filepath.IsAbs(socket)) {
		return fmt.Errorf("ci.external_podman = %q: want the absolute path of podman's socket, for the runner of ci.external_image", socket)
	}
	return nil
}

// readyRunner has here what the runner's container needs to start, or removes one that is not
// wanted any more, with its jobs' containers.
func (a *app) readyRunner(ctx context.Context, p *podman.Client) error {
	if a.cfg.CI.ExternalImage == "" {
		return a.removeRunner(ctx, p)
	}
	if _, err := broker.Token(a.cfg.externalDir()); err != nil {
		return err
	}
	if err := os.MkdirAll(a.cfg.relayDir(), 0o700); err != nil {
		return err
	}
	return a.ensureImage(ctx, p, a.cfg.CI.ExternalImage)
}

// removeRunner removes the runner's containers, which have nothing that is not made again, and those
// of its jobs: all that have the relay's network.
func (a *app) removeRunner(ctx context.Context, p *podman.Client) error {
	return p.RemoveContainer(ctx, compose.RunnerRelay(a.cfg.Instance))
}

// external is the way to a runner that is not part of the service.
type external struct {
	*broker.Broker
	listeners []net.Listener
	log       *slog.Logger
}

// newExternal opens that way, where the configuration wants one.
func (c *ciRunner) newExternal() (*external, error) {
	if c.cfg.CI.Runner != runnerExternal {
		return nil, nil
	}
	e := &external{log: c.log}
	forge := &httputil.ReverseProxy{
		Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(c.forge) },
		Transport: c.transport, FlushInterval: -1, ErrorLog: slog.NewLogLogger(c.log.Handler(), slog.LevelDebug),
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			c.log.Info("an external runner's request to the forge", "path", r.URL.Path, "err", err)
			http.Error(w, "the forge does not answer; try again", http.StatusBadGateway)
		},
	}
	var err error
	if e.Broker, err = broker.New(broker.Config{Dir: c.cfg.externalDir(), Labels: slices.Sorted(maps.Keys(c.images)), Forge: forge, Log: c.log}); err != nil {
		return nil, err
	}
	l, err := listenTCP(c.cfg.CI.ExternalListen, "ci.external_listen")
	if err != nil {
		return nil, err
	}
	e.listeners = append(e.listeners, l)
	if c.cfg.CI.ExternalImage == "" {
		return e, nil
	}
	if err := os.MkdirAll(c.cfg.relayDir(), 0o700); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	relay, err := listenUnix(filepath.Join(c.cfg.relayDir(), "s.sock"))
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	e.listeners = append(e.listeners, relay)
	return e, nil
}

// serve serves the runner until stop is called.
func (e *external) serve() (stop func()) {
	server := egress.Server(e.Handler(), e.log)
	for _, l := range e.listeners {
		go func() {
			if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				e.log.Error("external runners are not served any more", "err", err)
			}
		}()
	}
	return func() { _ = server.Close() }
}

// executor is what runs jobs: an agent's always here, in a sandbox.
func (c *ciRunner) executor() ci.Executor {
	if c.external == nil {
		return c
	}
	return c.external.Or(c)
}

func (a *app) ciExternalCmd() *cobra.Command {
	return &cobra.Command{
		Use: "external", Short: "Tell how to run trusted jobs by a runner of your own", Args: noArgs,
		Long: "With ci.runner = \"external\" trusted jobs are run by a runner of yours: Forgejo's runner, act_runner,\nor another one that speaks their protocol. It is registered with the service, never with the forge,\nwhich would give it agents' jobs, too. This tells which one is, and the commands to register one.",
		RunE: func(*cobra.Command, []string) error {
			if a.cfg.CI.Runner != runnerExternal {
				return usagef("ci.runner is %q: set it to %q in devaipod.toml first", a.cfg.CI.Runner, runnerExternal)
			}
			dir := a.cfg.externalDir()
			if _, err := broker.Token(dir); err != nil {
				return err
			}
			name, err := broker.Registered(dir)
			if err != nil {
				return err
			}
			registered := "none is registered"
			if name != "" {
				registered = visible([]byte(name)) + " is registered; another one takes its place"
			}
			fmt.Fprintf(a.out, externalHelp, "http://"+a.cfg.CI.ExternalListen, broker.TokenFile(dir), registered, strings.Join(a.cfg.externalLabels(true), ","))
			return nil
		},
	}
}

const externalHelp = `url      %[1]s
token    %[2]s
runner   %[3]s

To register one, where that file can be read, with images or "host" for each label as you like:

  printf '%%s\n' %[1]s "$(cat %[2]s)" NAME '%[4]s' | forgejo-runner register
  forgejo-runner daemon

With act_runner it is the same. Its jobs have to reach that URL: in containers of this machine by
"container: {network: host}" in the runner's configuration.
`
