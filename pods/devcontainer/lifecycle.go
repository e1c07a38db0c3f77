package devcontainer

import (
	"slices"

	"github.com/tailscale/hujson"
)

// maxSide is how many commands of a stage run side by side.
const maxSide = 16

// commands are a lifecycle property's: one, or several that run side by side.
func (r *reader) commands(v hujson.Value, key string) []Command {
	if kind(v) != '{' {
		c, ok := r.command(v, key)
		if !ok {
			return nil
		}
		return []Command{c}
	}
	members := r.members(v, key)
	if len(members) > maxSide {
		r.fail(v, key, "it has %d commands; want at most %d", len(members), maxSide)
		return nil
	}
	var out []Command
	for _, m := range members {
		if c, ok := r.command(m.value, key+"."+m.key); ok {
			c.Name = shown(m.key)
			out = append(out, c)
		}
	}
	return out
}

// command is a text for the shell, or a list of arguments; an empty one is none.
func (r *reader) command(v hujson.Value, key string) (c Command, ok bool) {
	switch kind(v) {
	case '"':
		c.Shell = r.str(v, key)
		return c, c.Shell != ""
	case '[':
		c.Args = r.strs(v, key)
		if len(c.Args) > 0 && c.Args[0] == "" {
			r.fail(v, key, "want a program first")
		}
		return c, len(c.Args) > 0
	}
	r.fail(v, key, "want a text, or a list of arguments")
	return c, false
}

func (r *reader) stage(key string, v hujson.Value) {
	if commands := r.commands(v, key); len(commands) > 0 {
		r.c.Lifecycle.Stages = append(r.c.Lifecycle.Stages, Stage{Name: key, Commands: commands})
	}
}

func (r *reader) initialize(key string, v hujson.Value) {
	if len(r.commands(v, key)) > 0 {
		r.unsupported(key, "never run: it would run on the machine of the service, outside of the pod")
	}
}

func (r *reader) waitFor(key string, v hujson.Value) {
	if s := r.oneOf(v, key, append([]string{"initializeCommand"}, Stages[:4]...)...); slices.Contains(Stages, s) {
		r.c.Lifecycle.WaitFor = s
	} else {
		r.c.Lifecycle.WaitFor = "" // nothing in the container
	}
}
