package devcontainer

import (
	"slices"

	"github.com/tailscale/hujson"
)

// customizations are other tools' but for ours.
func (r *reader) customizations(key string, v hujson.Value) {
	for _, m := range r.members(v, key) {
		if m.key != "devaipod" {
			continue
		}
		for _, own := range r.members(m.value, key+".devaipod") {
			if at := key + ".devaipod." + own.key; own.key == "agent" {
				r.agent(at, own.value)
			} else {
				r.unknown(at)
			}
		}
	}
}

func (r *reader) agent(key string, v hujson.Value) {
	a := &r.c.Agent
	for _, m := range r.members(v, key) {
		at := key + "." + m.key
		switch m.key {
		case "lifecycle":
			a.Lifecycle = r.marked(m.value, at)
		case "setup":
			for _, e := range r.list(m.value, at) {
				if c, ok := r.command(e, at); ok {
					a.Setup = append(a.Setup, c)
				}
			}
		case "required":
			a.Required = r.boolean(m.value, at)
		case "environment":
			if a.Environment = r.strs(m.value, at); slices.ContainsFunc(a.Environment, func(s string) bool { return !EnvName(s) }) {
				r.fail(m.value, at, "want names of variables")
			}
		case "allow":
			a.Allow = r.strs(m.value, at)
		case "checks":
			a.Checks = r.strs(m.value, at)
		default:
			r.unknown(at)
		}
	}
}

// marked are stages that also run in the agent's container. Nobody enters that.
func (r *reader) marked(v hujson.Value, key string) []string {
	var out []string
	for _, e := range r.list(v, key) {
		if s := r.oneOf(e, key, Stages[:4]...); s != "" && !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}
