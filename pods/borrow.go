package pods

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// A pod's clones borrow objects from a directory of the host that is mounted into
// agent and workspace, read-only (podfile.BorrowDir). Whatever the clones found
// there once, they need for as long as they live: so a pod keeps the directory
// that it was made with, in its specification and in its volumes' labels.

// labelBorrow is on the volumes that hold clones: the directory that they borrow
// from.
const labelBorrow = "devaipod.borrow"

// borrow finds what the pod's clones borrow from, "" for nothing, or has it lent.
// It stays lent at least until done is called.
func (m *Manager) borrow(ctx context.Context, s Spec) (dir string, done func(), err error) {
	have, old, err := m.borrowed(ctx, s.Key)
	if err != nil {
		return "", nil, err
	}
	if old && have == "" {
		return "", func() {}, nil // its clones are whole
	}
	if have != "" {
		_, err := os.Stat(have)
		if err == nil {
			return have, func() {}, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return "", nil, fmt.Errorf("looking at what the clones of %s borrow from: %w", s.Key, err)
		}
		m.log.Warn("what a pod's clones borrow from was removed; it is lent anew, as the repository is now", "pod", s.Key.String(), "dir", have)
	}
	if m.cfg.Lend == nil {
		return "", func() {}, nil
	}
	dir, done, err = m.cfg.Lend(ctx, s)
	if err == nil && dir == "" && have != "" {
		done()
		err = errors.New("nothing is lent now")
	}
	if err != nil && have != "" {
		return "", nil, fmt.Errorf("the clones of %s borrow from %s, which is gone, and it can't be lent anew: %w", s.Key, have, err)
	}
	return dir, done, err
}

// borrowed tells what a pod was made with; old is false for one that is not made
// yet.
func (m *Manager) borrowed(ctx context.Context, k Key) (dir string, old bool, err error) {
	s, err := readSpec(m.RunDir(k))
	if err == nil {
		return s.Borrow, true, nil
	}
	// Lost, or never written: its volumes know.
	things, err := m.runs.Find(ctx, m.own(k))
	if err != nil {
		return "", false, err
	}
	for _, t := range things {
		old = old || t.Volume
		if t.Labels[labelBorrow] != "" {
			dir = t.Labels[labelBorrow]
		}
	}
	return dir, old, nil
}

// Borrowed tells which directories the clones of all pods borrow from, of those
// that run and of those that don't. With an error they are not all known, and
// none of them may be removed.
func (m *Manager) Borrowed(ctx context.Context) (map[string]bool, error) {
	dirs := map[string]bool{}
	specs, err := m.specs()
	if err != nil {
		return nil, err
	}
	for _, s := range specs {
		dirs[s.Borrow] = true
	}
	things, err := m.runs.Find(ctx, map[string]string{labelInstance: m.cfg.Instance})
	if err != nil {
		return nil, err
	}
	for _, t := range things {
		dirs[t.Labels[labelBorrow]] = true
	}
	delete(dirs, "")
	return dirs, nil
}
