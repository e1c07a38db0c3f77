// Package compose is the stack as data: what `devaipod forge up` runs, before
// anybody runs it. [Forge] turns a few settings into a [Stack] of pods,
// volumes and containers, every name and label with the instance in it. It
// calls nothing and imports nothing of ours; the command applies it through
// podman.
package compose

import (
	"embed"
	"net"
	"strconv"
	"strings"
)

// Recipes is compose/images, as far as the image of jobs is built by it: images/build
// with its recipes.
//
//go:embed images/build images/base images/ci
var Recipes embed.FS

// A Stack is what has to be there. Containers start in their order.
type Stack struct {
	Volumes    []Volume
	Pods       []Pod
	Containers []Container
	// ForgeContainer is the name of the one with the forge's own command.
	ForgeContainer string
}

// A Volume is a named volume.
type Volume struct {
	Name   string
	Labels map[string]string
}

// A Pod is containers that share a network, on which its ports are published.
type Pod struct {
	Name   string
	Labels map[string]string
	Ports  []Port
}

// A Port of the pod, published on a host address.
type Port struct {
	HostIP          string
	Host, Container uint16
}

// A Container of a pod, or without one; Network is then the name of the container before it
// whose network it has, or "" for one of its own.
type Container struct {
	Name, Role, Image    string
	Pod, Network         string
	Entrypoint, Command  []string
	Env                  map[string]string
	Labels               map[string]string
	User                 string
	Mounts               []Mount
	DropCaps, NoNewPrivs bool
	SELinuxDisable       bool
	Restart              string // podman's restart policy
}

// A Mount is a named volume, or with Bind a directory of the host.
type Mount struct {
	Bind           bool
	Source, Target string
	ReadOnly       bool
}

// Config is what the stack depends on.
type Config struct {
	Instance   string
	Image      string // the forge's
	ToolsImage string // holds devaipod-pod, for the relay
	HostIP     string // loopback
	HostPort   uint16
	URL        string // of the forge, as people see it, with the last slash
	RelayDir   string // directory of the host with the service's socket
	Runner     Runner // its Image is "" for none
}

// A Runner of Actions that is not part of the service, in a container beside the forge.
type Runner struct {
	Image    string
	Command  []string // nil for the image's own
	Port     uint16   // of its loopback, at which it finds service and forge
	Labels   []string // LABEL:WHERE
	RelayDir string   // directory of the host with the socket of what is served there, s.sock
	TokenDir string   // of the host, with the registration token
	Podman   string   // socket of the host that the runner gets; "" for none
}

// Forge is the stack of one local forge: its container and, in the same pod,
// the relay through which its webhooks reach the service. The container is
// Forgejo's rootless image, or one that is laid out alike: data in
// /var/lib/gitea, settings from FORGEJO__section__KEY, port 3000.
func Forge(cfg Config) Stack {
	name := cfg.Instance + "-forge"
	labels := func(role string) map[string]string {
		return map[string]string{"devaipod.instance": cfg.Instance, "devaipod.role": role}
	}
	s := Stack{
		ForgeContainer: name,
		Volumes: []Volume{
			{Name: name + "-data", Labels: labels("forge-data")},
			{Name: name + "-conf", Labels: labels("forge-conf")},
		},
		Pods: []Pod{{
			Name: name + "-pod", Labels: labels("forge-pod"),
			Ports: []Port{{HostIP: cfg.HostIP, Host: cfg.HostPort, Container: 3000}},
		}},
		Containers: []Container{
			{
				Name: name, Role: "forge", Pod: name + "-pod", Image: cfg.Image, Labels: labels("forge"),
				Env: settings(cfg), NoNewPrivs: true, Restart: "always",
				Mounts: []Mount{
					{Source: name + "-data", Target: "/var/lib/gitea"},
					{Source: name + "-conf", Target: "/etc/gitea"},
				},
			},
			{
				Name: cfg.Instance + "-relay", Role: "relay", Pod: name + "-pod", Image: cfg.ToolsImage, Labels: labels("relay"),
				Entrypoint: []string{"/devaipod-pod"},
				Command:    []string{"relay", "--listen", "127.0.0.1:8090", "--to", "/run/service/service.sock"},
				DropCaps:   true, NoNewPrivs: true, SELinuxDisable: true, Restart: "always",
				Mounts: []Mount{{Bind: true, Source: cfg.RelayDir, Target: "/run/service"}},
			},
		},
	}
	if cfg.Runner.Image != "" {
		addRunner(&s, cfg, labels)
	}
	return s
}

// RunnerRelay is the name of the container whose network an instance's runner has.
func RunnerRelay(instance string) string { return instance + "-runner-relay" }

// addRunner adds the runner, in the network of its relay, which leads to the service. They are in
// no pod, since podman lets only containers of the same pod have the network of one in a pod, and the
// runner's jobs are to have it. Its variables have the names that act_runner's own image reads.
func addRunner(s *Stack, cfg Config, labels func(role string) map[string]string) {
	r, name, relay := cfg.Runner, cfg.Instance+"-runner", RunnerRelay(cfg.Instance)
	listen := net.JoinHostPort("127.0.0.1", strconv.Itoa(int(r.Port)))
	env := map[string]string{
		"GITEA_INSTANCE_URL": "http://" + listen, "GITEA_RUNNER_NAME": name, "GITEA_RUNNER_LABELS": strings.Join(r.Labels, ","),
		"GITEA_RUNNER_REGISTRATION_TOKEN_FILE": "/run/registration/token",
	}
	mounts := []Mount{{Bind: true, Source: r.TokenDir, Target: "/run/registration", ReadOnly: true}}
	if r.Podman != "" {
		env["DOCKER_HOST"], env["GITEA_RUNNER_NETWORK"] = "unix:///run/podman.sock", "container:"+relay
		mounts = append(mounts, Mount{Bind: true, Source: r.Podman, Target: "/run/podman.sock"})
	}
	s.Containers = append(s.Containers, Container{
		Name: relay, Role: "runner-relay", Image: cfg.ToolsImage, Labels: labels("runner-relay"),
		Entrypoint: []string{"/devaipod-pod"}, Command: []string{"relay", "--listen", listen, "--to", "/run/service/s.sock"},
		DropCaps: true, NoNewPrivs: true, SELinuxDisable: true, Restart: "always",
		Mounts: []Mount{{Bind: true, Source: r.RelayDir, Target: "/run/service"}},
	}, Container{
		// Its user can read the token, and talk to the podman of whoever runs the service.
		Name: name, Role: "runner", Network: relay, Image: r.Image, Labels: labels("runner"), Entrypoint: r.Command, User: "0",
		Env: env, Mounts: mounts, NoNewPrivs: true, SELinuxDisable: true, Restart: "always",
	})
}

// settings of the forge, by Forgejo's config cheat sheet. Accounts are made by
// `forge up`, so nobody can register; the only webhook target is the relay on
// the pod's own loopback.
func settings(cfg Config) map[string]string {
	all := map[string]string{
		"FORGEJO__DEFAULT__APP_NAME":                   "devaipod forge",
		"FORGEJO__server__ROOT_URL":                    cfg.URL,
		"FORGEJO__server__HTTP_PORT":                   "3000",
		"FORGEJO__server__DISABLE_SSH":                 "true",
		"FORGEJO__server__OFFLINE_MODE":                "true",
		"FORGEJO__server__LFS_START_SERVER":            "true",
		"FORGEJO__database__DB_TYPE":                   "sqlite3",
		"FORGEJO__security__INSTALL_LOCK":              "true",
		"FORGEJO__security__MIN_PASSWORD_LENGTH":       "8",
		"FORGEJO__service__DISABLE_REGISTRATION":       "true",
		"FORGEJO__service__DEFAULT_KEEP_EMAIL_PRIVATE": "true",
		"FORGEJO__repository__DEFAULT_BRANCH":          "main",
		"FORGEJO__repository__ENABLE_PUSH_CREATE_USER": "false",
		"FORGEJO__picture__DISABLE_GRAVATAR":           "true",
		"FORGEJO__actions__ENABLED":                    "true",
		"FORGEJO__webhook__ALLOWED_HOST_LIST":          "loopback",
		"FORGEJO__log__LEVEL":                          "Info",
		"FORGEJO__cron_0X2E_update_checker__ENABLED":   "false",
	}
	for _, queue := range direct {
		all["FORGEJO__queue_0X2E_"+queue+"__TYPE"] = "channel"
	}
	return all
}

// direct are the forge's queues on the way from a push to what comes of it: jobs, webhooks, the
// state of a pull request. By default each is a database into which the forge looks up to two
// seconds later. A kill of the forge loses what it is working on either way, and here also what
// waits behind that; webhooks it has in its own database as well.
var direct = []string{"push_update", "webhook_sender", "actions_ready_job", "pr_patch_checker"}
