package devcontainer

import (
	"crypto/sha256"
	"encoding/csv"
	"encoding/hex"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/tailscale/hujson"
)

// An option is one of a mount's, NAME=VALUE.
type option struct{ name, value string }

// options takes a mount in either form apart: as docker run --mount has it
// (comma-separated values), or as an object.
func (r *reader) options(v hujson.Value, key string) []option {
	if kind(v) == '{' {
		var out []option
		for _, m := range r.members(v, key) {
			value := ""
			if kind(m.value) == 't' || kind(m.value) == 'f' {
				value = strconv.FormatBool(r.boolean(m.value, key+"."+m.key))
			} else {
				value = r.str(m.value, key+"."+m.key)
			}
			out = append(out, option{m.key, value})
		}
		return out
	}
	s := r.str(v, key)
	fields, err := csv.NewReader(strings.NewReader(s)).Read()
	if err != nil {
		r.fail(v, key, "want \"type=volume,source=NAME,target=/PATH\"")
	}
	var out []option
	for _, f := range fields {
		name, value, _ := strings.Cut(strings.TrimSpace(f), "=")
		out = append(out, option{strings.ToLower(name), value})
	}
	return out
}

func (r *reader) mounts(key string, v hujson.Value) {
	for i, e := range r.list(v, key) {
		at := fmt.Sprintf("%s[%d]", key, i)
		m := Mount{Type: Volume}
		var more []string
		for _, o := range r.options(e, at) {
			switch o.name {
			case "type":
				m.Type = o.value
			case "source", "src":
				m.Source = o.value
			case "target", "dst", "destination":
				m.Target = o.value
			case "readonly", "ro":
				m.ReadOnly = o.value != "false" && o.value != "0"
			case "tmpfs-size":
				n, err := strconv.ParseInt(o.value, 10, 64)
				if err != nil || n <= 0 {
					r.fail(e, at, "tmpfs-size: want a number of bytes")
				}
				m.Size = n
			case "consistency": // means nothing on Linux
			default:
				more = append(more, shown(o.name))
			}
		}
		switch {
		case m.Type != Volume && m.Type != Tmpfs:
			r.unsupported(at, "type=%s is refused, %s: only volume and tmpfs are mounted, nothing of the machine", shown(m.Type), shown(m.Target))
		case len(more) > 0:
			r.unsupported(at, "refused, %s: the options %s are not known", shown(m.Target), strings.Join(more, ", "))
		default:
			r.mount(e, at, m)
		}
	}
}

// mount adds one, if it is where one may be.
func (r *reader) mount(v hujson.Value, at string, m Mount) {
	if !path.IsAbs(m.Target) || path.Clean(m.Target) != strings.TrimSuffix(m.Target, "/") || strings.ContainsAny(m.Target, ":\n") {
		r.fail(v, at, "target %s: want an absolute path without . and ..", shown(m.Target))
		return
	}
	m.Target = path.Clean(m.Target)
	if within(m.Target, r.place.Clone) || r.mounted != "" && within(m.Target, r.mounted) {
		r.unsupported(at, "refused, %s: it is in the clone, which is on a volume already", shown(m.Target))
		return
	}
	for _, own := range r.place.Reserved {
		if within(m.Target, own) || within(own, m.Target) {
			r.unsupported(at, "refused, %s: %s is the pod's", shown(m.Target), own)
			return
		}
	}
	if slices.ContainsFunc(r.c.Mounts, func(o Mount) bool { return o.Target == m.Target }) {
		r.fail(v, at, "target %s: it is there twice", shown(m.Target))
		return
	}
	switch {
	case m.Type == Tmpfs && m.Source != "":
		r.fail(v, at, "source: a tmpfs has none")
	case m.Type == Volume && m.Size != 0:
		r.fail(v, at, "tmpfs-size: want it for a tmpfs only")
	case m.Type == Volume && (strings.Contains(m.Source, "/") || strings.HasPrefix(m.Source, ".")):
		r.unsupported(at, "refused, %s: the source %s is a path; want a volume's name", m.Target, shown(m.Source))
		return
	case m.Type == Volume:
		m.Source = volumeName(m)
	}
	r.c.Mounts = append(r.c.Mounts, m)
}

var notName = regexp.MustCompile(`[^a-z0-9]+`)

// volumeName is a name that differs for other sources, and without one for other
// targets.
func volumeName(m Mount) string {
	of := m.Source
	if of == "" {
		of = m.Target
	}
	sum := sha256.Sum256([]byte(of))
	name := strings.Trim(notName.ReplaceAllString(strings.ToLower(of), "-"), "-")
	return strings.TrimLeft(name[:min(len(name), 24)]+"-"+hex.EncodeToString(sum[:4]), "-")
}

// within tells whether a path is dir or below it.
func within(p, dir string) bool {
	return p == dir || strings.HasPrefix(p, strings.TrimSuffix(dir, "/")+"/")
}

// workspace works out which folder of the clone is meant, before all else: it is
// what variables stand for.
func (r *reader) workspace() {
	whole := path.Join(r.place.Clone, Folder(r.place.File))
	r.folder = whole
	mounted := "/workspaces/" + r.basename() // the default of workspaceMount
	folder, mount := r.find("workspaceFolder"), r.find("workspaceMount")
	if mount != nil {
		mounted = r.workspaceMount("workspaceMount", *mount)
	}
	r.mounted = mounted
	if folder == nil {
		r.c.WorkspaceFolder = r.folder
		return
	}
	want := path.Clean(r.str(*folder, "workspaceFolder"))
	switch {
	case !path.IsAbs(want):
		r.fail(*folder, "workspaceFolder", "want an absolute path")
	case within(want, r.place.Clone):
		r.folder = want
	case mounted != "" && within(want, mounted):
		r.folder = path.Join(whole, strings.TrimPrefix(want, mounted))
		r.unsupported("workspaceFolder", "%s is %s in a pod", shown(want), r.folder)
	default:
		r.unsupported("workspaceFolder", "refused, %s: the clone is at %s", shown(want), whole)
	}
	r.c.WorkspaceFolder = r.folder
}

// workspaceMount is where the file takes the clone to be, "" when it mounts
// something else.
func (r *reader) workspaceMount(key string, v hujson.Value) string {
	var source, target string
	if raw := r.raw(v, key); raw == "" {
		return "" // explicitly none
	}
	for _, f := range strings.Split(r.raw(v, key), ",") {
		switch name, value, _ := strings.Cut(strings.TrimSpace(f), "="); name {
		case "source", "src":
			source = value
		case "target", "dst", "destination":
			target = path.Clean(r.vars(value))
		}
	}
	if source != "${localWorkspaceFolder}" || !path.IsAbs(target) || target == "/" {
		r.unsupported(key, "refused; the clone is on a volume of the pod's, at %s", r.place.Clone)
		return ""
	}
	return target
}
