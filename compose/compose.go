// Package compose is the stack as data: what `devaipod forge up` runs, before
// anybody runs it. [Forge] turns a few settings into a [Stack] of pods,
// volumes and containers, every name and label with the instance in it. It
// calls nothing and imports nothing of ours; the command applies it through
// podman.
package compose

import "embed"

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

// A Container of a pod.
type Container struct {
	Name, Role, Pod, Image string
	Entrypoint, Command    []string
	Env                    map[string]string
	Labels                 map[string]string
	User                   string
	Mounts                 []Mount
	DropCaps, NoNewPrivs   bool
	SELinuxDisable         bool
	Restart                string // podman's restart policy
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
	return Stack{
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
