package sandbox

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/pkg/stdcopy"

	"codeberg.org/devaipod/devaipod/ci/dockerfile"
	"codeberg.org/devaipod/devaipod/ci/job"
	"codeberg.org/devaipod/devaipod/pods/podman"
)

// Podman's own build would run outside of all that holds a job. What act asks to build, an
// action's Dockerfile, is run here by ci/dockerfile in containers like the job's others.

const (
	// imagePrefix begins the names of images that jobs made.
	imagePrefix = "localhost/devaipod-job/"
	imagesFile  = "images" // in a job's directory: it has made some
	maxContext  = 256 << 20
	maxReason   = 4 << 10 // bytes of why a build failed
)

// builtName is how act calls the image of an action, by its full name. Images of podman's
// are never looked for by such a name.
var builtName = regexp.MustCompile(`^docker\.io/library/act-[a-z0-9-]+-dockeraction:latest$`)

func (s *Sandboxes) imageName(task int64) string {
	return imagePrefix + strings.TrimSuffix(s.prefix(task), "-")
}

// build answers as Docker does: what happens, and at the end why it failed.
func (c call) build(string) error {
	name, file, err := c.whatToBuild()
	if err != nil {
		return err
	}
	if !c.building.TryLock() {
		return refused("a job builds one image at a time")
	}
	defer c.building.Unlock()
	c.w.Header().Set("Content-Type", "application/json")
	c.w.WriteHeader(http.StatusOK)
	out := json.NewEncoder(flusher{c.w})
	image, err := c.runFile(file, func(line string) {
		_ = out.Encode(map[string]string{"stream": job.BuildLine + strings.ToValidUTF8(line, "\ufffd")}) // a client that is gone ends the request's context
	})
	if err != nil {
		text := strings.ToValidUTF8(err.Error(), "\ufffd")
		text = strings.ToValidUTF8(text[:min(len(text), maxReason)], "")
		return out.Encode(map[string]any{"error": text, "errorDetail": map[string]string{"message": text}})
	}
	c.things.mu.Lock()
	defer c.things.mu.Unlock()
	c.things.images[name] = image
	return nil
}

// whatToBuild is the name of the image, and of the Dockerfile among the files.
func (c call) whatToBuild() (name, file string, err error) {
	for key, values := range c.q {
		switch key {
		case "t", "dockerfile", "rm", "forcerm", "version", "nocache":
			continue
		case "platform":
			if p := c.q.Get(key); p == "" || p == "linux/"+runtime.GOARCH {
				continue
			}
		}
		for _, v := range values {
			if !slices.Contains([]string{"", "0", "null", "{}", "[]", "default"}, v) {
				return "", "", notAllowed("build with "+key, "")
			}
		}
	}
	if name, err = fullName(c.q.Get("t")); err != nil {
		return "", "", err
	}
	if len(c.q["t"]) != 1 || !builtName.MatchString(name) {
		return "", "", refused("%.200q is no name that an image of an action has", c.q["t"])
	}
	if file = c.q.Get("dockerfile"); file == "" {
		file = "Dockerfile"
	}
	return name, file, nil
}

func (c call) runFile(file string, say func(string)) (*dockerfile.Image, error) {
	limit := int64(maxContext)
	if c.cfg.Disk > 0 {
		limit = min(limit, c.cfg.Disk)
	}
	files, err := dockerfile.ReadFiles(c.dir, c.r.Body, limit)
	if err != nil {
		return nil, err
	}
	image, err := dockerfile.Build(c.r.Context(), &engine{c.Sandbox}, files, dockerfile.Options{File: file, Dir: c.dir, Max: limit, Say: say})
	return image, errors.Join(err, files.Close())
}

// built is an image that the job has made, as podman tells of others.
func (s *Sandbox) built(name string) (*image, error) {
	s.things.mu.Lock()
	defer s.things.mu.Unlock()
	made := s.things.images[name]
	if made == nil {
		return nil, notFound("image", name)
	}
	i := &image{ID: made.ID, Os: "linux", Architecture: runtime.GOARCH}
	i.Config.Env, i.Config.Cmd, i.Config.Entrypoint, i.Config.User, i.Config.WorkingDir = made.Env, made.Cmd, made.Entrypoint, made.User, made.Dir
	return i, nil
}

// asBuilt has a container of an image that the job has made begin with what its
// Dockerfile says. What podman knows of such an image is of the container that it was.
func (s *Sandbox) asBuilt(p *plan) error {
	name, err := fullName(p.image)
	if err != nil || !builtName.MatchString(name) {
		return err
	}
	i, err := s.built(name)
	if err != nil {
		return err
	}
	env := map[string]string{}
	for _, kv := range i.Config.Env {
		name, value, _ := strings.Cut(kv, "=")
		env[name] = value
	}
	for _, name := range p.spec.UnsetEnv {
		delete(env, name)
	}
	maps.Copy(env, p.spec.Env)
	all := true
	p.spec.Env, p.spec.UnsetEnv, p.spec.UnsetEnvAll = env, nil, &all
	argv := slices.Concat(p.spec.Entrypoint, p.spec.Command)
	if len(p.spec.Entrypoint) == 0 {
		argv = slices.Concat(i.Config.Entrypoint, p.spec.Command)
		if len(p.spec.Command) == 0 {
			argv = append(argv, i.Config.Cmd...)
		}
	}
	if len(argv) == 0 {
		return bad("image %s says no command, and neither does the action", p.image)
	}
	p.spec.Entrypoint, p.spec.Command = argv[:1], argv[1:]
	if p.spec.User == "" {
		p.spec.User = i.Config.User
	}
	if p.spec.WorkDir == "" {
		p.spec.WorkDir = i.Config.WorkingDir
	}
	return nil
}

// An engine makes what a Dockerfile needs ([dockerfile.Engine]). What podman was asked to
// make it goes on to make when the request has ended, so that Close finds it.
type engine struct{ *Sandbox }

func (e *engine) Base(ctx context.Context, name string) (dockerfile.Image, error) {
	if name == "scratch" {
		id, err := e.empty(ctx)
		return dockerfile.Image{ID: id}, err
	}
	i, err := e.base(ctx, name)
	if err != nil {
		return dockerfile.Image{}, err
	}
	if len(i.Config.OnBuild) > 0 {
		return dockerfile.Image{}, refused("image %s: it has ONBUILD steps, which do not run here", name)
	}
	c := i.Config
	return dockerfile.Image{ID: i.ID, Config: dockerfile.Config{Env: c.Env, Entrypoint: c.Entrypoint, Cmd: c.Cmd, User: c.User, Dir: c.WorkingDir}}, nil
}

// base is an image that jobs may use, fetched if it is not here.
func (e *engine) base(ctx context.Context, name string) (*image, error) {
	i, err := e.image(ctx, name)
	var answer *refusal
	if !errors.As(err, &answer) || answer.status != http.StatusNotFound {
		return i, err
	}
	full, err := fullName(name)
	if err != nil {
		return nil, err
	}
	resp, err := e.fetch(ctx, full)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		return nil, answerError(resp)
	}
	var failed string
	for said := json.NewDecoder(io.LimitReader(resp.Body, maxPull)); ; {
		var line struct{ Error string }
		if err := said.Decode(&line); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, fmt.Errorf("fetching image %s: %w", full, err)
		}
		if line.Error != "" {
			failed = line.Error
		}
	}
	if failed != "" {
		return nil, fmt.Errorf("fetching image %s: %.1000s", full, failed)
	}
	return e.image(ctx, name)
}

// next counts an image and names it.
func (e *engine) next() (tag string, err error) {
	e.things.mu.Lock()
	defer e.things.mu.Unlock()
	if e.things.committed++; e.things.committed > maxImages {
		return "", refused("a job may make %d images", maxImages)
	}
	return strconv.Itoa(e.things.committed), os.WriteFile(filepath.Join(e.dir, imagesFile), nil, 0o600)
}

// empty is an image without files.
func (e *engine) empty(ctx context.Context) (string, error) {
	tag, err := e.next()
	if err != nil {
		return "", err
	}
	ctx, cancel := lastingly(ctx)
	defer cancel()
	var changes []string
	for name, value := range e.labels(e.task) {
		changes = append(changes, "LABEL "+name+"="+value)
	}
	name := e.imageName(e.task) + ":" + tag
	if err := e.cfg.Podman.ImageImport(ctx, name, bytes.NewReader(make([]byte, 1024)), changes); err != nil {
		return "", err
	}
	info, ok, err := e.cfg.Podman.ImageInfo(ctx, name)
	if err == nil && !ok {
		err = fmt.Errorf("image %s: it is not there after it was made", name)
	}
	return info.ID, err
}

func (e *engine) Create(ctx context.Context, image string, p dockerfile.Process) (string, error) {
	var req createRequest
	req.Config = &container.Config{Entrypoint: p.Argv[:1], Cmd: p.Argv[1:], Env: p.Env, User: p.User, WorkingDir: p.Dir}
	made, err := rewrite(req, e.rules())
	if err != nil {
		return "", err
	}
	env := maps.Clone(e.cfg.Build)
	if env == nil {
		env = map[string]string{}
	}
	maps.Copy(env, made.spec.Env)
	all := true
	made.spec.Env, made.spec.UnsetEnv, made.spec.UnsetEnvAll = env, nil, &all
	e.finish(made, "build-"+strings.ToLower(rand.Text()), image, nil)
	ctx, cancel := lastingly(ctx)
	defer cancel()
	return e.create(ctx, made.spec)
}

func (e *engine) Run(ctx context.Context, id string, out io.Writer) (int, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	said, err := e.connect(ctx, compat+"/containers/"+id+"/attach", url.Values{"stream": {"true"}, "stdout": {"true"}, "stderr": {"true"}}, nil)
	if err != nil {
		return 0, err
	}
	defer said.Close()
	resp, err := e.ask(ctx, http.MethodPost, compat+"/containers/"+id+"/start", "", nil)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		return 0, answerError(resp)
	}
	if _, err := stdcopy.StdCopy(out, out, said); err != nil && ctx.Err() == nil {
		return 0, fmt.Errorf("reading what the command prints: %w", err)
	}
	return e.cfg.Podman.WaitContainer(ctx, id)
}

func (e *engine) IsDir(ctx context.Context, id, path string) (bool, error) {
	mode, err := e.cfg.Podman.Stat(ctx, id, path)
	if errors.Is(err, podman.ErrNoPath) {
		return false, nil
	}
	return mode.IsDir(), err
}

func (e *engine) Read(ctx context.Context, id, path string) (io.ReadCloser, error) {
	return e.cfg.Podman.ReadArchive(ctx, id, path)
}

func (e *engine) Write(ctx context.Context, id string, files io.Reader) error {
	resp, err := e.ask(ctx, http.MethodPut, compat+"/containers/"+id+"/archive", url.Values{"path": {"/"}}.Encode(), files)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		return answerError(resp)
	}
	return nil
}

// Commit makes an image with the job's labels, which are the container's.
func (e *engine) Commit(ctx context.Context, id string) (string, error) {
	var wrote struct{ SizeRw int64 }
	if err := e.get(ctx, libpod+"/containers/"+id+"/json", "size=true", &wrote); err != nil {
		return "", err
	}
	e.things.mu.Lock()
	e.things.disk += wrote.SizeRw
	used := e.things.disk
	e.things.mu.Unlock()
	if e.cfg.Disk > 0 && used > e.cfg.Disk {
		return "", refused("the images of the job have %d MiB and may have %d (ci.disk)", used>>20, e.cfg.Disk>>20)
	}
	tag, err := e.next()
	if err != nil {
		return "", err
	}
	ctx, cancel := lastingly(ctx)
	defer cancel()
	q := url.Values{"container": {id}, "repo": {e.imageName(e.task)}, "tag": {tag}, "pause": {"false"}}
	resp, err := e.ask(ctx, http.MethodPost, libpod+"/commit", q.Encode(), nil)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	var made struct{ ID string }
	if err := readAnswer(resp, &made); err != nil {
		return "", fmt.Errorf("keeping what a step made: %w", err)
	}
	return made.ID, nil
}

func (e *engine) Remove(ctx context.Context, id string) error {
	ctx, cancel := lastingly(ctx)
	defer cancel()
	return e.removeContainer(ctx, id)
}

// removeImages removes those that a task has made. By its name and its labels none of
// anybody else's is among them; the newest goes first, as it is made of others.
func (s *Sandboxes) removeImages(ctx context.Context, task int64) error {
	names, err := s.imagesOf(ctx, task)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := s.cfg.Podman.ImageRemove(ctx, name); err != nil {
			return err
		}
	}
	if names, err = s.imagesOf(ctx, task); err == nil && len(names) > 0 {
		err = fmt.Errorf("images of task %d are still there: %s", task, strings.Join(names, ", "))
	}
	return err
}

func (s *Sandboxes) imagesOf(ctx context.Context, task int64) ([]string, error) {
	found, err := s.cfg.Podman.LabeledImages(ctx, s.labels(task))
	if err != nil {
		return nil, err
	}
	var names []string
	number := func(name string) int {
		n, _ := strconv.Atoi(strings.TrimPrefix(name, s.imageName(task)+":")) // of our own making
		return n
	}
	for _, i := range found {
		for _, name := range i.Names {
			if strings.HasPrefix(name, s.imageName(task)+":") {
				names = append(names, name)
			}
		}
	}
	slices.SortFunc(names, func(a, b string) int { return number(b) - number(a) })
	return names, nil
}
