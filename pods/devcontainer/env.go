package devcontainer

import (
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/tailscale/hujson"
)

var envName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,127}$`)

// EnvName tells what may be the name of a variable.
func EnvName(s string) bool { return envName.MatchString(s) }

// env is an object of variables; unset gets those that are null, and is nil where
// none may be.
func (r *reader) env(v hujson.Value, key string, unset *[]string) map[string]string {
	members := r.members(v, key)
	if len(members) > maxList {
		r.fail(v, key, "it has %d variables; want at most %d", len(members), maxList)
		return nil
	}
	out := map[string]string{}
	for _, m := range members {
		at := key + "." + m.key
		if !EnvName(m.key) {
			r.fail(m.name, at, "want a name of letters, digits and _, no digit first")
			continue
		}
		if unset != nil && kind(m.value) == 'n' {
			*unset = append(*unset, m.key)
			continue
		}
		out[m.key] = r.str(m.value, at)
	}
	return out
}

func (r *reader) containerEnv(key string, v hujson.Value) {
	env := r.env(v, key, nil)
	for _, name := range slices.Sorted(maps.Keys(env)) {
		if wantsContainer(env[name]) {
			r.unsupported(key+"."+name, "${containerEnv:…} is not known when the container is made; use remoteEnv")
			delete(env, name)
		}
		if r.owns(key, name) {
			delete(env, name)
		}
	}
	r.c.ContainerEnv = env
}

func (r *reader) remoteEnv(key string, v hujson.Value) {
	var unset []string
	env := r.env(v, key, &unset)
	for _, name := range slices.Sorted(maps.Keys(env)) {
		if r.owns(key, name) {
			delete(env, name)
		}
	}
	for _, name := range unset {
		if !r.owns(key, name) {
			r.c.RemoteUnset = append(r.c.RemoteUnset, name)
		}
	}
	r.c.RemoteEnv = env
}

// owns tells whether a variable is the pod's own, and says so.
func (r *reader) owns(key, name string) bool {
	for _, own := range r.place.OwnEnv {
		prefix, any := strings.CutSuffix(own, "*")
		if own == name || any && strings.HasPrefix(name, prefix) {
			r.unsupported(key+"."+name, "the pod sets this one itself")
			return true
		}
	}
	return false
}
