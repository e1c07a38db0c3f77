package sandbox

import (
	"context"
	"crypto/rand"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"reflect"
	"runtime"
	"slices"
	"strings"

	"github.com/distribution/reference"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/system"
	"github.com/docker/docker/api/types/volume"
)

// The daemon: as little of the host as a client needs.

func (c call) ping(string) error {
	c.w.Header().Set("API-Version", apiVersion)
	c.w.Header().Set("OSType", "linux")
	_, err := c.w.Write([]byte("OK"))
	return err
}

func (c call) version(string) error {
	writeJSON(c.w, http.StatusOK, map[string]string{"Version": "devaipod", "ApiVersion": apiVersion, "MinAPIVersion": "1.24", "Os": "linux", "Arch": runtime.GOARCH})
	return nil
}

func (c call) info(string) error {
	writeJSON(c.w, http.StatusOK, system.Info{ID: "devaipod", Name: "devaipod", OSType: "linux", Architecture: runtime.GOARCH})
	return nil
}

// Images.

type image struct {
	ID           string `json:"Id"`
	RepoTags     []string
	Os           string
	Architecture string
	Config       struct {
		Env         []string                `json:",omitempty"`
		Cmd         []string                `json:",omitempty"`
		Entrypoint  []string                `json:",omitempty"`
		User        string                  `json:",omitempty"`
		WorkingDir  string                  `json:",omitempty"`
		Labels      map[string]string       `json:",omitempty"`
		Healthcheck *container.HealthConfig `json:",omitempty"`
		OnBuild     []string                `json:",omitempty"`
	}
}

// fullName is an image's name in whole. IDs are no names: they would lead to all that
// there is.
func fullName(ref string) (string, error) {
	if len(ref) > 500 {
		return "", bad("%.100q is no name of an image", ref)
	}
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return "", bad("%.100q is no name of an image: %v", ref, err)
	}
	return reference.TagNameOnly(named).String(), nil
}

// image looks at one that the job may use.
func (s *Sandbox) image(ctx context.Context, ref string) (*image, error) {
	name, err := fullName(ref)
	if err != nil {
		return nil, err
	}
	if builtName.MatchString(name) {
		return s.built(name)
	}
	if err := s.cfg.Use(name); err != nil {
		return nil, refused("image %s: %v", name, err)
	}
	var i image
	if err := s.get(ctx, compat+"/images/"+name+"/json", "", &i); err != nil {
		return nil, err
	}
	for label := range i.Config.Labels { // such labels say whose something is
		if strings.HasPrefix(label, "devaipod.") {
			return nil, refused("image %s: it has a label %.50q, and is none for jobs", name, label)
		}
	}
	return &i, nil
}

// images answers all that is about them; their names have slashes.
func (c call) images(parts []string) error {
	last := len(parts) - 1
	name := strings.Join(parts[:last], "/")
	switch {
	case c.r.Method == http.MethodGet && parts[last] == "json" && name != "":
		i, err := c.image(c.r.Context(), name)
		if err != nil {
			return err
		}
		i.RepoTags = []string{}
		writeJSON(c.w, http.StatusOK, i)
		return nil
	case c.r.Method == http.MethodPost && parts[last] == "create" && name == "":
		return c.pull()
	case c.r.Method == http.MethodDelete:
		return notFound("image that a job may remove", strings.Join(parts, "/"))
	}
	return refused("%s /images/%.100s is not a part of Docker's API that jobs have", c.r.Method, strings.Join(parts, "/"))
}

func (c call) pull() error {
	for key := range c.q {
		if !slices.Contains([]string{"fromImage", "tag", "platform"}, key) && c.q.Get(key) != "" {
			return notAllowed("images/create with "+key, "")
		}
	}
	ref := c.q.Get("fromImage")
	if tag := c.q.Get("tag"); strings.Contains(tag, ":") {
		ref += "@" + tag
	} else if tag != "" {
		ref += ":" + tag
	}
	name, err := fullName(ref)
	if err != nil {
		return err
	}
	if auth := c.r.Header.Get("X-Registry-Auth"); auth != "" && auth != "e30=" { // {}
		return refused("image %s: a job's credentials for a registry are not used: what they fetch would be there for other jobs, too", name)
	}
	resp, err := c.fetch(c.r.Context(), name)
	if err != nil {
		return err
	}
	return c.pass(resp, maxPull)
}

// fetch has podman fetch an image by its full name, if jobs may have it fetched.
func (s *Sandbox) fetch(ctx context.Context, name string) (*http.Response, error) {
	if builtName.MatchString(name) {
		return nil, notFound("image", name)
	}
	if err := s.cfg.Use(name); err != nil {
		return nil, refused("image %s: %v", name, err)
	}
	if s.cfg.Pull == nil {
		return nil, refused("image %s: images are not fetched for jobs here", name)
	}
	if err := s.cfg.Pull(name); err != nil {
		return nil, refused("fetching image %s: %v", name, err)
	}
	return s.ask(ctx, http.MethodPost, compat+"/images/create", url.Values{"fromImage": {name}}.Encode(), nil)
}

// Volumes.

// ensureVolume makes the volume of the job's that it calls name.
func (s *Sandbox) ensureVolume(ctx context.Context, name string) error {
	s.things.mu.Lock()
	full := !s.things.volumes[name] && len(s.things.volumes) >= maxVolumes
	if !full {
		s.things.volumes[name] = true
	}
	s.things.mu.Unlock()
	if full {
		return refused("a job may have %d volumes", maxVolumes)
	}
	_, err := s.cfg.Podman.EnsureVolume(ctx, s.prefix(s.task)+"v-"+name, s.labels(s.task))
	return err
}

func (c call) listVolumes(string) error {
	out := volume.ListResponse{Volumes: []*volume.Volume{}}
	c.things.mu.Lock()
	for _, name := range slices.Sorted(maps.Keys(c.things.volumes)) {
		out.Volumes = append(out.Volumes, &volume.Volume{Name: name, Driver: "local", Scope: "local"})
	}
	c.things.mu.Unlock()
	writeJSON(c.w, http.StatusOK, out)
	return nil
}

func (c call) createVolume(string) error {
	var o volume.CreateOptions
	if err := c.json(&o); err != nil {
		return err
	}
	name := o.Name
	if name == "" {
		name = strings.ToLower(rand.Text())
	}
	if !thingName.MatchString(name) {
		return bad("%.200q is no name of a volume", name)
	}
	if o.Driver == "local" {
		o.Driver = ""
	}
	o.Name, o.Labels = "", nil
	if field := left(reflect.ValueOf(o)); field != "" {
		return notAllowed("a volume with "+field, "")
	}
	ctx, cancel := c.detach()
	defer cancel()
	if err := c.ensureVolume(ctx, name); err != nil {
		return err
	}
	writeJSON(c.w, http.StatusCreated, volume.Volume{Name: name, Driver: "local", Scope: "local"})
	return nil
}

func (c call) removeVolume(name string) error {
	c.things.mu.Lock()
	ours := c.things.volumes[name]
	c.things.mu.Unlock()
	if !ours {
		return notFound("volume", name)
	}
	ctx, cancel := c.detach()
	defer cancel()
	if err := c.cfg.Podman.RemoveVolume(ctx, c.prefix(c.task)+"v-"+name); err != nil {
		return &refusal{http.StatusConflict, "devaipod: " + err.Error()}
	}
	c.things.mu.Lock()
	delete(c.things.volumes, name)
	c.things.mu.Unlock()
	c.w.WriteHeader(http.StatusNoContent)
	return nil
}

// Networks: there is the one, and the others are names for it.

func (s *Sandbox) findNetwork(name string) (network.Inspect, error) {
	s.things.mu.Lock()
	defer s.things.mu.Unlock()
	for n, id := range s.things.networks {
		if n == name || id == name {
			return networkOf(n, id), nil
		}
	}
	return network.Inspect{}, notFound("network", name)
}

func networkOf(name, id string) network.Inspect {
	return network.Inspect{Name: name, ID: id, Driver: "bridge", Scope: "local", Internal: true, Containers: map[string]network.EndpointResource{}}
}

func (c call) listNetworks(string) error {
	c.things.mu.Lock()
	out := []network.Inspect{}
	for _, name := range slices.Sorted(maps.Keys(c.things.networks)) {
		out = append(out, networkOf(name, c.things.networks[name]))
	}
	c.things.mu.Unlock()
	writeJSON(c.w, http.StatusOK, out)
	return nil
}

// createNetwork takes the name alone: of the other things that can be said of a network
// (drivers, addresses) nothing is made.
func (c call) createNetwork(string) error {
	var req network.CreateRequest
	if err := c.json(&req); err != nil {
		return err
	}
	if !thingName.MatchString(req.Name) || slices.Contains([]string{"host", "default", "bridge", "none"}, req.Name) {
		return bad("%.200q is no name of a network", req.Name)
	}
	c.things.mu.Lock()
	defer c.things.mu.Unlock()
	if c.things.networks[req.Name] != "" {
		return &refusal{http.StatusConflict, "devaipod: there is a network of that name: " + req.Name}
	}
	if len(c.things.networks) >= maxNetworks {
		return refused("a job may have %d networks", maxNetworks)
	}
	id := fmt.Sprintf("%x", rand.Text())
	c.things.networks[req.Name] = id
	writeJSON(c.w, http.StatusCreated, network.CreateResponse{ID: id})
	return nil
}

func (c call) inspectNetwork(name string) error {
	n, err := c.findNetwork(name)
	if err != nil {
		return err
	}
	writeJSON(c.w, http.StatusOK, n)
	return nil
}

func (c call) removeNetwork(name string) error {
	n, err := c.findNetwork(name)
	if err != nil {
		return err
	}
	c.things.mu.Lock()
	delete(c.things.networks, n.Name)
	c.things.mu.Unlock()
	c.w.WriteHeader(http.StatusNoContent)
	return nil
}
