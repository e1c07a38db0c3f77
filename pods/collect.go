package pods

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"codeberg.org/devaipod/devaipod/pods/backend"
)

// What a pod consists of has an owner: the specification that its run directory
// keeps. What is left without one, by a kill or by somebody's hand, is removed,
// except for volumes that may hold work.

// Limits say what of an instance's own images is too much.
type Limits struct {
	// ImageAge is how old an image may be that nothing uses, or how long ago a pod may
	// have asked for one that was fetched; 0 is no limit.
	ImageAge time.Duration
	// Watermark is how much of the disk may be in use, from 0 to 1, before such
	// images go earlier, the oldest first; 0 is no limit.
	Watermark float64
	// RecordAge is how long is kept what agents did whose pods are gone; 0 is for ever.
	RecordAge time.Duration
	// Dry removes nothing.
	Dry bool
}

// Collected is what came of [Manager.Collect], in words, sorted by kind.
type Collected struct {
	Removed []string `json:"removed"`
	// Kept has no owner and may hold work.
	Kept []string `json:"kept"`
}

// removingFile marks a run directory whose pod is being removed: all of it is saved.
const removingFile = "removing.json"

// strayAge is how old a run directory without a specification must be: it is made
// before that is written.
const strayAge = time.Hour

// Collect removes what this instance has that has no owner: what a removal that was
// cut short has left, parts of pods of which no specification is kept, savers that
// are over, run directories, and images and records by limits. It touches nothing that does not
// carry the instance's label, and nothing that may hold work. It must not run beside
// Ensure, Resume and Remove.
func (m *Manager) Collect(ctx context.Context, lim Limits) (Collected, error) {
	c := &collection{Manager: m, lim: lim}
	steps := []func(context.Context) error{c.removals, c.strays, c.once, c.directories, c.records, c.oldImages}
	var errs []error
	for _, step := range steps {
		errs = append(errs, step(ctx))
	}
	return c.Collected, errors.Join(errs...)
}

type collection struct {
	*Manager
	Collected
	lim Limits
}

// remove notes a removal, and makes it unless it is dry.
func (c *collection) remove(what string, do func() error) error {
	if !c.lim.Dry {
		if err := do(); err != nil {
			return fmt.Errorf("removing %s: %w", what, err)
		}
		c.log.Info("removed what had no owner", "what", what)
	}
	c.Removed = append(c.Removed, what)
	return nil
}

// beginRemoval notes that a pod is being removed, so that it will be, whatever comes.
func (m *Manager) beginRemoval(k Key) error {
	dir := m.RunDir(k)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	m.change("begin removal", k)
	return writeJSON(filepath.Join(dir, removingFile), k)
}

// endRemoval ends a removal of a pod that was cut short, if there was one. The key is
// locked.
func (m *Manager) endRemoval(ctx context.Context, k Key) error {
	_, err := os.Stat(filepath.Join(m.RunDir(k), removingFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return m.clear(ctx, k)
}

// removals ends those that were cut short.
func (c *collection) removals(ctx context.Context) error {
	files, err := filepath.Glob(filepath.Join(c.cfg.StateDir, "p", "*", removingFile))
	for _, file := range files {
		var k Key
		b, e := os.ReadFile(file)
		if e == nil {
			e = json.Unmarshal(b, &k)
		}
		if e == nil && c.RunDir(k) != filepath.Dir(file) {
			e = fmt.Errorf("%s is about %s, which is elsewhere", file, k)
		}
		if e == nil {
			e = c.remove("the rest of the pod of "+k.String(), func() error {
				defer c.lock(k)()
				return c.endRemoval(ctx, k) // unless it was ended meanwhile
			})
		}
		err = errors.Join(err, e)
	}
	return err
}

// owned tells whether a specification of a pod is kept, readable or not.
func (m *Manager) owned(k Key) (bool, error) {
	_, err := os.Stat(filepath.Join(m.RunDir(k), specFile))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// shells is a backend that holds a pod together by more than its containers.
type shells interface {
	Shells(ctx context.Context, labels map[string]string) ([]backend.Thing, error)
}

// A group is what one pod's labels are on.
type group struct {
	key   Key
	names []string
	work  bool // a volume that may hold work is among it
}

// holdsWork are the volumes that may: all but those of sockets and of checks.
func holdsWork(pod, volume string) bool {
	return !strings.HasSuffix(volume, "-sock") && strings.HasPrefix(volume, pod+"-") && !slices.Contains(checkVolumes(pod), volume)
}

func (c *collection) strays(ctx context.Context) error {
	own := map[string]string{labelInstance: c.cfg.Instance}
	found, err := c.runs.Find(ctx, own)
	if err != nil {
		return err
	}
	if s, has := c.runs.(shells); has {
		more, err := s.Shells(ctx, own)
		if err != nil {
			return err
		}
		found = append(found, more...)
	}
	groups := map[string]*group{}
	for _, f := range found {
		k, ok := keyOf(f.Labels)
		pod := f.Labels[labelPod]
		if !ok || pod != c.Name(k) {
			continue // the forge's, for one
		}
		if groups[pod] == nil {
			groups[pod] = &group{key: k}
		}
		g := groups[pod]
		g.names = append(g.names, f.Name)
		g.work = g.work || f.Volume && holdsWork(pod, f.Name)
	}
	var errs []error
	for pod, g := range groups {
		owned, err := c.owned(g.key)
		switch {
		case err != nil:
			errs = append(errs, err)
		case owned:
		case g.work:
			c.Kept = append(c.Kept, fmt.Sprintf("%s: no specification is kept of it, and its volumes may hold work; its label put on again goes on with it, and devaipod rm %s removes it", pod, g.key))
		default:
			errs = append(errs, c.remove(strings.Join(g.names, ", "), func() error {
				return c.runs.Remove(ctx, backend.Remains{Labels: c.own(g.key)})
			}))
		}
	}
	slices.Sort(c.Kept)
	return errors.Join(errs...)
}

// once removes what was made for one run, by a service that was killed: savers and
// checks.
func (c *collection) once(ctx context.Context) error {
	return errors.Join(c.onceOf(ctx, roleSaverOnce, &c.saving), c.onceOf(ctx, roleCheck, &c.checking))
}

func (c *collection) onceOf(ctx context.Context, role string, running *sync.Map) error {
	found, err := c.runs.Find(ctx, map[string]string{labelInstance: c.cfg.Instance, labelRole: role})
	for _, f := range found {
		k, ok := keyOf(f.Labels)
		if _, runs := running.Load(k); !ok || runs || f.Labels[labelPod] != c.Name(k) {
			continue
		}
		if owned, e := c.owned(k); e != nil || !owned {
			err = errors.Join(err, e) // strays see to it
			continue
		}
		err = errors.Join(err, c.remove(map[bool]string{true: "volume ", false: "container "}[f.Volume]+f.Name, func() error {
			labels := c.own(k)
			labels[labelRole] = role
			return c.runs.Remove(ctx, backend.Remains{Labels: labels})
		}))
	}
	return err
}

// directories removes run directories that no pod came of.
func (c *collection) directories(context.Context) error {
	dirs, err := filepath.Glob(filepath.Join(c.cfg.StateDir, "p", "*"))
	for _, dir := range dirs {
		info, e := os.Lstat(dir)
		if e != nil || time.Since(info.ModTime()) < strayAge || !straying(dir) {
			continue
		}
		err = errors.Join(err, c.remove("directory "+dir, func() error { return os.RemoveAll(dir) }))
	}
	return err
}

// straying tells whether a run directory has neither a specification nor a removal
// that is to be ended.
func straying(dir string) bool {
	for _, name := range []string{specFile, removingFile} {
		if _, err := os.Lstat(filepath.Join(dir, name)); !errors.Is(err, fs.ErrNotExist) {
			return false
		}
	}
	return true
}

// oldImages removes the instance's own, and those that it fetched, that nothing uses:
// neither a container nor a pod that sleeps. One that has another name too is somebody's.
func (c *collection) oldImages(ctx context.Context) error {
	used, err := c.usedImages()
	if err != nil {
		return err
	}
	inUse, err := c.images.ImagesInUse(ctx)
	if err != nil {
		return err
	}
	found, err := c.images.LabeledImages(ctx, map[string]string{labelInstance: c.cfg.Instance})
	if err != nil {
		return err
	}
	all, err := c.idlePulled(ctx, used, inUse)
	if err != nil {
		return err
	}
	for _, i := range found {
		if !inUse[i.ID] && !slices.ContainsFunc(i.Names, func(n string) bool {
			return used[n] || !strings.HasPrefix(n, "localhost/"+c.cfg.Instance+"/")
		}) {
			all = append(all, idle{ImageThing: i, since: i.Created})
		}
	}
	slices.SortFunc(all, func(a, b idle) int { return a.since.Compare(b.since) })
	for _, i := range all {
		full, err := c.diskFull(ctx)
		if err != nil {
			return err
		}
		if old := c.lim.ImageAge > 0 && time.Since(i.since) >= c.lim.ImageAge; !old && !full {
			continue
		}
		name := i.ID
		if len(i.Names) > 0 {
			name = strings.Join(i.Names, ", ")
		}
		if err := c.remove("image "+name, func() error { return c.removeIdle(ctx, i) }); err != nil {
			return err
		}
	}
	return nil
}

// usedImages are those that a pod needs to be made whole, and the tools of today.
// While a specification can't be read nobody knows, and none is removed.
func (m *Manager) usedImages() (map[string]bool, error) {
	used := map[string]bool{}
	if tools := m.tools.Load(); tools != nil {
		used[*tools] = true
	}
	specs, err := m.specs()
	for _, s := range specs {
		for _, image := range []string{s.AgentImage, s.Image, s.ToolsImage, s.AgentBox.Image, s.WorkspaceBox.Image} {
			used[image] = true
		}
	}
	return used, err
}

// diskFull tells whether podman's disk is used beyond the watermark.
func (c *collection) diskFull(ctx context.Context) (bool, error) {
	if c.lim.Watermark <= 0 {
		return false, nil
	}
	dir, err := c.images.ImageDir(ctx)
	if err != nil {
		return false, err
	}
	measure := c.cfg.DiskUsed
	if measure == nil {
		measure = diskUsed
	}
	used, err := measure(dir)
	return used >= c.lim.Watermark, err
}

// diskUsed is how much of the file system at path is used, from 0 to 1, of what is
// not kept for root.
func diskUsed(path string) (float64, error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(path, &st); err != nil {
		return 0, fmt.Errorf("looking how full %s is: %w", path, err)
	}
	used := float64(st.Blocks - st.Bfree)
	return used / max(1, used+float64(st.Bavail)), nil
}
