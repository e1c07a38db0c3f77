package devcontainer

import (
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/tailscale/hujson"
)

// hostPort is what the reference allows, and what people write: localhost:3000.
var hostPort = regexp.MustCompile(`^([A-Za-z0-9.-]+):(\d{1,5})$`)

func (r *reader) forwardPorts(key string, v hujson.Value) {
	for _, e := range r.list(v, key) {
		if kind(e) == '0' {
			r.port(int(r.integer(e, key, 65535)))
			continue
		}
		s := r.str(e, key)
		number, host := s, "localhost"
		if m := hostPort.FindStringSubmatch(s); m != nil {
			host, number = m[1], m[2]
		}
		n, err := strconv.Atoi(number)
		switch {
		case err != nil || n < 1 || n > 65535:
			r.fail(e, key, "%s: want a port from 1 to 65535, or \"localhost:PORT\"", shown(s))
		case host != "localhost" && host != "127.0.0.1":
			r.unsupported(key+": "+s, "refused; a pod has no other services")
		default:
			r.port(n)
		}
	}
}

func (r *reader) port(n int) {
	if !slices.Contains(r.c.Ports, n) {
		r.c.Ports = append(r.c.Ports, n)
	}
}

func (r *reader) portsAttributes(key string, v hujson.Value) {
	r.c.PortsAttributes = map[string]PortAttributes{}
	members := r.members(v, key)
	if len(members) > maxList {
		r.fail(v, key, "it has %d entries; want at most %d", len(members), maxList)
		return
	}
	for _, m := range members {
		r.c.PortsAttributes[strings.TrimPrefix(m.key, "localhost:")] = r.portAttributes(m.value, key+"."+m.key)
	}
}

func (r *reader) portAttributes(v hujson.Value, key string) (a PortAttributes) {
	for _, m := range r.members(v, key) {
		at := key + "." + m.key
		switch m.key {
		case "label":
			a.Label = shown(r.str(m.value, at))
		case "protocol":
			a.Protocol = r.oneOf(m.value, at, "http", "https")
		case "onAutoForward":
			a.OnAutoForward = r.oneOf(m.value, at, "notify", "openBrowser", "openBrowserOnce", "openPreview", "silent", "ignore")
		case "requireLocalPort":
			a.RequireLocalPort = r.boolean(m.value, at)
		case "elevateIfNeeded":
			a.ElevateIfNeeded = r.boolean(m.value, at)
		default:
			r.unknown(at)
		}
	}
	return a
}

func (r *reader) appPort(key string, v hujson.Value) {
	entries := []hujson.Value{v}
	if kind(v) == '[' {
		entries = r.list(v, key)
	}
	for _, e := range entries {
		if kind(e) == '0' {
			r.integer(e, key, 65535)
		} else {
			r.str(e, key)
		}
	}
	if len(entries) > 0 {
		r.unsupported(key, "refused; no port of a pod is published: use forwardPorts")
	}
}
