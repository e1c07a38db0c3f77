package devcontainer

import (
	"bytes"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/tailscale/hujson"
)

// Parse reads a file. Its error has a line for each mistake, up to ten.
func Parse(text []byte, p Place) (*Config, error) {
	r := &reader{
		// A comment in the last line wants an end for hujson.
		text: append(bytes.Clone(bytes.TrimPrefix(text, []byte("\uFEFF"))), '\n'), place: p,
		c: &Config{File: p.File, Lifecycle: Lifecycle{WaitFor: UpdateContent}},
	}
	err := r.parse()
	if err == nil {
		r.workspace()
		for _, m := range membersOf(r.top) {
			r.property(m.key, m.value)
		}
		r.finish()
		err = errors.Join(r.errs...)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", p.File, err)
	}
	return r.c, nil
}

// A property takes one up.
type property func(r *reader, key string, v hujson.Value)

// properties are those of the reference, in its order.
func properties() map[string]property {
	return map[string]property{
		"$schema": ignored,
		"name":    func(r *reader, key string, v hujson.Value) { r.c.Name = r.str(v, key) },

		"forwardPorts":    (*reader).forwardPorts,
		"portsAttributes": (*reader).portsAttributes,
		"otherPortsAttributes": func(r *reader, key string, v hujson.Value) {
			a := r.portAttributes(v, key)
			r.c.OtherPortsAttributes = &a
		},
		"containerEnv":        (*reader).containerEnv,
		"remoteEnv":           (*reader).remoteEnv,
		"remoteUser":          (*reader).user,
		"containerUser":       (*reader).user,
		"updateRemoteUserUID": flag(""), // it is about bind mounts
		"userEnvProbe":        (*reader).userEnvProbe,
		"overrideCommand":     (*reader).overrideCommand,
		"shutdownAction":      (*reader).shutdownAction,
		"init":                flag(""), // there always is one
		"privileged":          flag("refused; no container of a pod has privileges"),
		"capAdd":              strList("refused; a pod's containers have no capabilities"),
		"securityOpt":         strList("refused; a pod's containers keep their confinement"),
		"mounts":              (*reader).mounts,
		"features":            (*reader).features,
		"customizations":      (*reader).customizations,
		"secrets":             object("none is made of this; give secrets by `devaipod secret set`"),

		"overrideFeatureInstallOrder": strList("features come in a later version"),

		"image":           (*reader).image,
		"build":           (*reader).build,
		"dockerFile":      (*reader).legacyFile,
		"context":         ignored, // read with dockerFile
		"appPort":         (*reader).appPort,
		"workspaceMount":  ignored, // read before the others
		"workspaceFolder": ignored,
		"runArgs":         strList("refused; arguments of docker run have no place here"),

		"dockerComposeFile": (*reader).compose,
		"service":           ignored, // said with dockerComposeFile
		"runServices":       ignored,

		"initializeCommand": (*reader).initialize,
		OnCreate:            (*reader).stage,
		UpdateContent:       (*reader).stage,
		PostCreate:          (*reader).stage,
		PostStart:           (*reader).stage,
		PostAttach:          (*reader).stage,
		"waitFor":           (*reader).waitFor,
		"hostRequirements":  (*reader).hostRequirements,
	}
}

func (r *reader) property(key string, v hujson.Value) {
	if take, ok := properties()[key]; ok {
		take(r, key, v)
		return
	}
	r.unknown(key)
}

// unknown notes a property that the reference does not have.
func (r *reader) unknown(key string) {
	r.unsupported(key, "no property that this version knows")
}

func ignored(*reader, string, hujson.Value) {}

// flag is refused when it is true, unless why is "".
func flag(why string) property {
	return func(r *reader, key string, v hujson.Value) {
		if r.boolean(v, key) && why != "" {
			r.unsupported(key, "%s", why)
		}
	}
}

// strList is refused unless it is empty.
func strList(why string) property {
	return func(r *reader, key string, v hujson.Value) {
		if len(r.strs(v, key)) > 0 {
			r.unsupported(key, "%s", why)
		}
	}
}

func object(why string) property {
	return func(r *reader, key string, v hujson.Value) {
		if len(r.members(v, key)) > 0 {
			r.unsupported(key, "%s", why)
		}
	}
}

// finish looks at what several properties say together.
func (r *reader) finish() {
	ways := 0
	for _, is := range []bool{r.find("image") != nil, r.c.Build != nil, r.find("dockerComposeFile") != nil} {
		if is {
			ways++
		}
	}
	if ways > 1 {
		r.errs = append(r.errs, errors.New("image, build and dockerComposeFile: want one of them"))
	}
	for key, with := range map[string]string{"context": "dockerFile", "service": "dockerComposeFile", "runServices": "dockerComposeFile"} {
		if at := r.find(key); at != nil && r.find(with) == nil {
			r.fail(*at, key, "want %s beside it", with)
		}
	}
	if r.remoteUser != "" {
		if r.c.User != "" && r.c.User != r.remoteUser {
			r.unsupported("containerUser", "a pod's containers have one user: remoteUser, %s", shown(r.remoteUser))
		}
		r.c.User = r.remoteUser
	}
	if r.c.WorkspaceUser() != "" && r.c.Image == "" && r.c.Build == nil && r.find("dockerComposeFile") == nil {
		r.unsupported("remoteUser", "the file names no image; the agent's has one user, 1000")
		r.c.User = ""
	}
	slices.SortFunc(r.c.Lifecycle.Stages, func(a, b Stage) int { return slices.Index(Stages, a.Name) - slices.Index(Stages, b.Name) })
}

func (r *reader) image(key string, v hujson.Value) {
	r.c.Image = r.str(v, key)
	if !plain(r.c.Image) || strings.Contains(r.c.Image, "$") {
		r.fail(v, key, "want the name of an image, like docker.io/library/debian:12")
	}
}

// plain tells what is one word and no option.
func plain(s string) bool {
	return s != "" && s[0] != '-' && !strings.ContainsFunc(s, func(c rune) bool { return c <= ' ' || c == 0x7f || c > 0x7f })
}

// legacyFile is what build.dockerfile once was.
func (r *reader) legacyFile(key string, v hujson.Value) {
	b := r.buildOf()
	b.Dockerfile = r.inRepo(v, key)
	if at := r.find("context"); at != nil {
		b.Context = r.inRepo(*at, "context")
	}
}

func (r *reader) buildOf() *Build {
	if r.c.Build == nil {
		r.c.Build = &Build{Context: path.Dir(r.place.File)}
	}
	return r.c.Build
}

// find is a property of the file, nil when it has none.
func (r *reader) find(key string) *hujson.Value {
	for _, m := range r.top.Members {
		if m.Name.Value.(hujson.Literal).String() == key {
			return &m.Value
		}
	}
	return nil
}

func (r *reader) build(key string, v hujson.Value) {
	b := r.buildOf()
	for _, m := range r.members(v, key) {
		at := key + "." + m.key
		switch m.key {
		case "dockerfile":
			b.Dockerfile = r.inRepo(m.value, at)
		case "context":
			b.Context = r.inRepo(m.value, at)
		case "target":
			if b.Target = r.str(m.value, at); !plain(b.Target) {
				r.fail(m.value, at, "want the name of a stage")
			}
		case "args":
			b.Args = r.env(m.value, at, nil)
		case "cacheFrom":
			if kind(m.value) == '"' {
				r.str(m.value, at)
			} else {
				r.strs(m.value, at)
			}
			r.unsupported(at, "builds use the cache of this machine only")
		case "options":
			if len(r.strs(m.value, at)) > 0 {
				r.unsupported(at, "refused; arguments of docker build have no place here")
			}
		default:
			r.unknown(at)
		}
	}
	if b.Dockerfile == "" && r.find("dockerFile") == nil {
		r.fail(v, key, "want build.dockerfile")
	}
}

// inRepo is a path of the repository, given from where the file is.
func (r *reader) inRepo(v hujson.Value, key string) string {
	s := r.str(v, key)
	p := path.Join(path.Dir(r.place.File), s)
	if s == "" || path.IsAbs(s) || strings.Contains(s, `\`) || p == ".." || strings.HasPrefix(p, "../") {
		r.fail(v, key, "%s: want a path within the repository, from the directory of the file", shown(s))
	}
	return p
}

func (r *reader) compose(key string, v hujson.Value) {
	if kind(v) == '"' {
		r.str(v, key)
	} else {
		r.strs(v, key)
	}
	r.unsupported(key, "refused; a pod has one image and no other services: give image or build")
}

func (r *reader) features(key string, v hujson.Value) {
	for _, m := range r.members(v, key) {
		r.unsupported(key+"."+m.key, "features come in a later version; put it into the image")
	}
}

func (r *reader) user(key string, v hujson.Value) {
	name := r.str(v, key)
	if !plain(name) {
		r.fail(v, key, "want the name or number of a user")
	}
	if name == "root" || name == "0" {
		r.unsupported(key, "refused; nothing in a pod runs as root; without it the user is 1000")
	}
	if key == "remoteUser" {
		r.remoteUser = name
	} else {
		r.c.User = name
	}
}

func (r *reader) userEnvProbe(key string, v hujson.Value) {
	if r.oneOf(v, key, "none", "loginShell", "loginInteractiveShell", "interactiveShell") != "none" {
		r.unsupported(key, "profiles of shells are not read; use remoteEnv")
	}
}

func (r *reader) overrideCommand(key string, v hujson.Value) {
	if !r.boolean(v, key) {
		r.unsupported(key, "the image's own command is not run; start what you need by postStartCommand")
	}
}

func (r *reader) shutdownAction(key string, v hujson.Value) {
	if r.oneOf(v, key, "none", "stopContainer", "stopCompose") != "stopContainer" {
		r.unsupported(key, "a pod ends when its issue does")
	}
}
