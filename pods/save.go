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

	"codeberg.org/devaipod/devaipod/pods/backend"
	"codeberg.org/devaipod/devaipod/pods/podfile"
)

func (m *Manager) saveDir(k Key) string { return filepath.Join(m.RunDir(k), podfile.SaveFolder) }

// SaveSocket is where the service takes what the pod's saver pushes. It must be
// 0666: the saver is another user; the run directory around it is 0700.
func (m *Manager) SaveSocket(k Key) string { return filepath.Join(m.saveDir(k), podfile.SaveSocket) }

// MakeSaveDir makes the one folder of the run directory that the saver sees.
func (m *Manager) MakeSaveDir(k Key) error {
	err := os.Mkdir(m.saveDir(k), 0o755)
	if errors.Is(err, fs.ErrExist) {
		err = nil
	}
	if err := errors.Join(err, os.Chmod(m.saveDir(k), 0o755)); err != nil { // whatever the umask is
		return fmt.Errorf("making the folder of %s's saver: %w", k, err)
	}
	return nil
}

// Save saves all that the pod's agent has, whether the agent or the pod runs or
// not, and tells what is not saved. The service must listen at SaveSocket. A
// pod whose agent has no volume (any more) has nothing to save, and is complete.
// The error is of what went wrong around it; that the service does not have
// everything is Saved's word.
func (m *Manager) Save(ctx context.Context, k Key) (podfile.Saved, error) {
	saved := podfile.Saved{Complete: true}
	there, err := m.HasWork(ctx, k)
	if err != nil || !there {
		return saved, err
	}
	s, err := readSpec(m.RunDir(k))
	if err != nil {
		return saved, fmt.Errorf("the specification of %s is lost, so there is no image to save its work with (%w): put its label on again", k, err)
	}
	if err := m.renewTools(ctx, &s); err != nil {
		return saved, err
	}
	if err := m.MakeSaveDir(k); err != nil {
		return saved, err
	}
	usual := m.container(k, RoleSaver)
	was, err := m.runs.State(ctx, usual)
	if err != nil {
		return saved, err
	}
	if err := m.runs.Stop(ctx, backend.Ending{Container: usual, Patience: saverPatience}); err != nil {
		return saved, err
	}
	saved, err = m.saveOnce(ctx, s)
	if was.Running {
		err = errors.Join(err, m.runs.Start(ctx, usual))
	}
	return saved, err
}

// HasWork tells whether the volume with the agent's work is there.
func (m *Manager) HasWork(ctx context.Context, k Key) (bool, error) {
	return m.hasVolume(ctx, k, agentVolume(m.Name(k)))
}

func (m *Manager) hasVolume(ctx context.Context, k Key, volume string) (bool, error) {
	found, err := m.runs.Find(ctx, m.own(k))
	return slices.ContainsFunc(found, func(t backend.Thing) bool { return t.Volume && t.Name == volume }), err
}

// saveOnce runs the saver to its end, in a container outside of the pod, which
// may be half removed.
func (m *Manager) saveOnce(ctx context.Context, s Spec) (saved podfile.Saved, err error) {
	c := m.saver(s)
	c.Command, c.Restart = append(c.Command, "--once"), ""
	if err := m.finish(&c, s, roleSaverOnce); err != nil {
		return saved, err
	}
	m.saving.Store(s.Key, true)
	defer m.saving.Delete(s.Key)
	name := m.Name(s.Key)
	log, err := m.runs.Run(ctx, backend.Pod{Name: name, Labels: m.labels(s.Key), Volumes: []backend.Volume{{Name: name + "-saver", Owner: agentID}}}, c)
	if err != nil {
		return saved, err
	}
	return lastWord(s.Key, string(log))
}

// lastWord is what the saver says at its end, the line that is JSON.
func lastWord(k Key, log string) (saved podfile.Saved, err error) {
	for line := range strings.Lines(log) {
		if strings.HasPrefix(line, "{") {
			err = json.Unmarshal([]byte(line), &saved)
		}
	}
	if err == nil && saved.At.IsZero() {
		err = errors.New("it said nothing")
	}
	if err != nil {
		return podfile.Saved{}, fmt.Errorf("saving the work of %s: %w; its log: %.2000s", k, err, log)
	}
	return saved, nil
}
