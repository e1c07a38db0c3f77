package sandbox

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path"
	"strings"
	"time"

	"github.com/docker/docker/api/types/container"
)

// lasting is how long podman may take to make something. A request whose client is
// gone goes on that long, so that Close finds what came of it.
const lasting = 2 * time.Minute

// detach is the request's context without its end.
func (c call) detach() (context.Context, context.CancelFunc) { return lastingly(c.r.Context()) }

func lastingly(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), lasting)
}

// network tells whether a container may ask for that one.
func (s *Sandbox) network(mode string) bool {
	if name, ok := strings.CutPrefix(mode, "container:"); ok {
		_, err := s.things.container(name)
		return err == nil
	}
	s.things.mu.Lock()
	defer s.things.mu.Unlock()
	_, ok := s.things.networks[mode]
	return ok || mode == "" || mode == "default" || mode == "bridge" || mode == "none"
}

func (s *Sandbox) rules() rules {
	return rules{s.prefix(s.task) + "v-", s.cfg.Memory, s.cfg.CPUs, s.cfg.Pids, s.network}
}

func (c call) createContainer(string) error {
	var req createRequest
	if err := c.json(&req); err != nil {
		return err
	}
	name := strings.TrimPrefix(c.q.Get("name"), "/")
	if name == "" {
		name = strings.ToLower(rand.Text())
	}
	if !thingName.MatchString(name) || hexID.MatchString(name) {
		return bad("%.200q is no name of a container", name)
	}
	p, err := rewrite(req, c.rules())
	if err != nil {
		return err
	}
	ctx, cancel := c.detach()
	defer cancel()
	image, err := c.image(ctx, p.image)
	if err != nil {
		return err
	}
	if err := c.asBuilt(p); err != nil {
		return err
	}
	if p.health, err = healthOf(p.health, image.Config.Healthcheck); err != nil {
		return err
	}
	m := &made{name: name, image: p.image}
	if p.health != nil {
		m.health = &health{HealthConfig: *p.health, status: container.Starting}
	}
	for _, v := range p.volumes {
		if err := c.ensureVolume(ctx, v); err != nil {
			return err
		}
	}
	if err := c.things.reserve(m); err != nil {
		return err
	}
	c.finish(p, name, image.ID, p.health)
	id, err := c.create(ctx, p.spec)
	c.things.set(m, id)
	if err != nil {
		return err
	}
	writeJSON(c.w, http.StatusCreated, container.CreateResponse{ID: id, Warnings: []string{}})
	return nil
}

// healthOf is the check of a container, nil for none, with Docker's defaults.
func healthOf(asked, ofImage *container.HealthConfig) (*container.HealthConfig, error) {
	h := asked
	if h == nil || len(h.Test) == 0 {
		merged := container.HealthConfig{}
		if ofImage != nil {
			merged = *ofImage
		}
		h = &merged
	}
	if len(h.Test) == 0 || h.Test[0] == "NONE" {
		return nil, nil
	}
	if h.Test[0] != "CMD" && h.Test[0] != "CMD-SHELL" || len(h.Test) < 2 {
		return nil, bad("health check: want CMD or CMD-SHELL and a command")
	}
	out := &container.HealthConfig{Test: h.Test, Interval: 30 * time.Second, Timeout: 30 * time.Second, Retries: 3}
	if h.Interval > 0 {
		out.Interval = max(h.Interval, time.Second)
	}
	if h.Timeout > 0 {
		out.Timeout = min(h.Timeout, 5*time.Minute)
	}
	if h.Retries > 0 {
		out.Retries = min(h.Retries, 1000)
	}
	if h.StartPeriod > 0 {
		out.StartPeriod = min(h.StartPeriod, time.Hour)
	}
	return out, nil
}

func (c call) listContainers(string) error {
	var all []container.Summary
	filters, err := json.Marshal(map[string][]string{"label": {fmt.Sprintf("%s=%d", LabelTask, c.task)}})
	if err != nil {
		return err
	}
	if err := c.get(c.r.Context(), compat+"/containers/json", url.Values{"all": {"true"}, "filters": {string(filters)}}.Encode(), &all); err != nil {
		return err
	}
	out := []container.Summary{}
	for _, one := range all {
		if m, err := c.things.container(one.ID); err == nil && (one.State == "running" || c.flag("all")) {
			out = append(out, container.Summary{ID: one.ID, Names: []string{"/" + m.name}, Image: m.image, State: one.State, Status: one.Status, Created: one.Created})
		}
	}
	writeJSON(c.w, http.StatusOK, out)
	return nil
}

func (c call) flag(name string) bool { return c.q.Get(name) == "1" || c.q.Get(name) == "true" }

// inspectContainer tells what the job may know: nothing of the host.
func (c call) inspectContainer(name string) error {
	m, err := c.things.container(name)
	if err != nil {
		return err
	}
	var have container.InspectResponse
	if err := c.get(c.r.Context(), compat+"/containers/"+m.id+"/json", "", &have); err != nil {
		return err
	}
	if have.ContainerJSONBase == nil || have.State == nil || have.Config == nil {
		return fmt.Errorf("podman told nothing of container %s", m.name)
	}
	st, cf := have.State, have.Config
	out := container.InspectResponse{
		ContainerJSONBase: &container.ContainerJSONBase{
			ID: m.id, Name: "/" + m.name, Created: have.Created, Image: have.Image,
			State: &container.State{Status: st.Status, Running: st.Running, OOMKilled: st.OOMKilled, ExitCode: st.ExitCode, StartedAt: st.StartedAt, FinishedAt: st.FinishedAt},
		},
		Config: &container.Config{Image: m.image, Env: cf.Env, Cmd: cf.Cmd, Entrypoint: cf.Entrypoint, User: cf.User, WorkingDir: cf.WorkingDir, Tty: cf.Tty},
	}
	if m.health != nil {
		out.Config.Healthcheck = &container.HealthConfig{Test: []string{"CMD"}}
		out.State.Health = &container.Health{Status: c.check(m, st.Running)}
	}
	writeJSON(c.w, http.StatusOK, out)
	return nil
}

// check runs the container's health check, unless it has run within its interval, and
// returns its status. Podman tells of each run that fails; how many may, says the check.
func (c call) check(m *made, running bool) string {
	h := m.health
	h.mu.Lock()
	defer h.mu.Unlock()
	if !running {
		return container.Unhealthy
	}
	if h.began.IsZero() {
		h.began = time.Now()
	}
	if time.Since(h.checked) < h.Interval {
		return h.status
	}
	ctx, cancel := context.WithTimeout(c.r.Context(), h.Timeout+time.Second)
	defer cancel()
	var result struct{ Status string }
	err := c.get(ctx, libpod+"/containers/"+m.id+"/healthcheck", "", &result)
	h.checked = time.Now()
	switch {
	case err != nil:
		c.cfg.Log.Debug("running a health check", "task", c.task, "container", m.name, "err", err)
	case result.Status == container.Healthy:
		h.status, h.failed = container.Healthy, 0
	case h.status == container.Healthy || h.checked.Sub(h.began) >= h.StartPeriod:
		if h.failed++; h.failed >= h.Retries {
			h.status = container.Unhealthy
		}
	}
	return h.status
}

// to asks podman to do something to a container of the job.
func (c call) to(name, method, what string, q url.Values, body io.Reader) (*http.Response, error) {
	m, err := c.things.container(name)
	if err != nil {
		return nil, err
	}
	return c.ask(c.r.Context(), method, compat+"/containers/"+m.id+what, q.Encode(), body)
}

func (c call) startContainer(name string) error {
	resp, err := c.to(name, http.MethodPost, "/start", nil, nil)
	if err != nil {
		return err
	}
	return c.pass(resp, maxJSON)
}

func (c call) waitContainer(name string) error {
	condition := container.WaitCondition(c.q.Get("condition"))
	switch condition {
	case "", container.WaitConditionNotRunning, container.WaitConditionNextExit, container.WaitConditionRemoved:
	default:
		return bad("wait: %.50q is no condition", condition)
	}
	q := url.Values{}
	if condition != "" {
		q.Set("condition", string(condition))
	}
	resp, err := c.to(name, http.MethodPost, "/wait", q, nil)
	if err != nil {
		return err
	}
	return c.pass(resp, maxJSON)
}

func (c call) removeOne(name string) error {
	m, err := c.things.container(name)
	if err != nil {
		return err
	}
	ctx, cancel := c.detach()
	defer cancel()
	if err := c.removeContainer(ctx, m.id); err != nil {
		return err
	}
	c.things.set(m, "")
	c.w.WriteHeader(http.StatusNoContent)
	return nil
}

// place is the path within a container that files are read from or written to.
func (c call) place() (url.Values, error) {
	p := c.q.Get("path")
	if p == "" || strings.ContainsRune(p, 0) || len(p) > 4096 {
		return nil, bad("archive: want a path")
	}
	if !path.IsAbs(p) {
		p = "/" + p
	}
	return url.Values{"path": {p}}, nil
}

func (c call) readFiles(name string) error {
	q, err := c.place()
	if err != nil {
		return err
	}
	resp, err := c.to(name, http.MethodGet, "/archive", q, nil)
	if err != nil {
		return err
	}
	return c.pass(resp, maxArchive, "X-Docker-Container-Path-Stat")
}

func (c call) writeFiles(name string) error {
	q, err := c.place()
	if err != nil {
		return err
	}
	for _, o := range []string{"noOverwriteDirNonDir", "copyUIDGID"} {
		if c.flag(o) {
			q.Set(o, "true")
		}
	}
	body := c.r.Body
	if c.cfg.Disk > 0 {
		body = http.MaxBytesReader(c.w, body, c.cfg.Disk)
	}
	resp, err := c.to(name, http.MethodPut, "/archive", q, body)
	if err != nil {
		return err
	}
	return c.pass(resp, maxJSON)
}
