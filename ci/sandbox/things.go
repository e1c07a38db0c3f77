package sandbox

import (
	"net/http"
	"sync"
	"time"

	"github.com/docker/docker/api/types/container"

	"codeberg.org/devaipod/devaipod/ci/dockerfile"
)

// Bounds on what a job has at a time, and on execs and images in all.
const (
	maxContainers = 24
	maxVolumes    = 64
	maxNetworks   = 64
	maxExecs      = 20_000
	maxImages     = 500
)

// things are what the job has made, by the names that it knows.
type things struct {
	mu         sync.Mutex
	closed     bool
	containers map[string]*made // by name
	volumes    map[string]bool
	networks   map[string]string            // IDs, by name
	execs      map[string]bool              // by ID
	images     map[string]*dockerfile.Image // by the name that the job gave
	committed  int                          // images that were made
	disk       int64                        // bytes that they have beside those that they are made of
}

// made is a container of the job.
type made struct {
	name   string
	id     string // "" while it is being made
	image  string
	health *health // nil for none
}

type health struct {
	container.HealthConfig // without zeros, but for StartPeriod

	mu             sync.Mutex
	began, checked time.Time
	failed         int // in a row
	status         string
}

func (t *things) init() {
	t.containers, t.volumes, t.networks, t.execs = map[string]*made{}, map[string]bool{}, map[string]string{}, map[string]bool{}
	t.images = map[string]*dockerfile.Image{}
}

// container finds one by its name or its whole ID.
func (t *things) container(name string) (*made, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if m := t.containers[name]; m != nil && m.id != "" {
		return m, nil
	}
	for _, m := range t.containers {
		if m.id != "" && m.id == name {
			return m, nil
		}
	}
	return nil, notFound("container", name)
}

// reserve takes a name for a container that is to be made.
func (t *things) reserve(m *made) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.containers[m.name] != nil {
		return &refusal{http.StatusConflict, "devaipod: there is a container of that name: " + m.name}
	}
	if len(t.containers) >= maxContainers {
		return refused("a job may have %d containers at a time", maxContainers)
	}
	t.containers[m.name] = m
	return nil
}

// set says what became of a name that was taken: a container, or none.
func (t *things) set(m *made, id string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if m.id = id; id == "" {
		delete(t.containers, m.name)
	}
}

// close says that nothing more begins.
func (t *things) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
}
