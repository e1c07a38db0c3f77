package saver

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// What the agent's repository has is read by us, not by git: HEAD, the branches,
// the newest stash. Remote branches are not looked at: an agent could have
// written them, so no branch is taken for pushed by their word.

const (
	maxRefs       = 5000
	maxRefDepth   = 32
	maxPackedRefs = 64 << 20
	maxIndex      = 256 << 20
)

// stash is where the newest stash is kept, below the prefix.
const stash = "stash/newest"

// tips are the commits that the agent's repository names.
type tips struct {
	branch string            // that HEAD names, "" when it is detached
	head   string            // HEAD's commit, "" for none
	refs   map[string]string // heads/NAME, and the stash
}

func (t tips) equal(o tips) bool {
	return t.branch == o.branch && t.head == o.head && maps.Equal(t.refs, o.refs)
}

// ids are all commits, each once.
func (t tips) ids() []string {
	all := slices.Collect(maps.Values(t.refs))
	if t.head != "" {
		all = append(all, t.head)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// readTips reads the agent's repository, whose .git is open at fd.
func readTips(fd int) (tips, error) {
	t := tips{refs: map[string]string{}}
	packed, err := readPacked(fd)
	if err != nil {
		return t, err
	}
	for name, id := range packed {
		if branch, ok := strings.CutPrefix(name, "refs/heads/"); ok && validBranch(branch) && len(t.refs) < maxRefs {
			t.refs["heads/"+branch] = id
		} else if name == "refs/stash" {
			t.refs[stash] = id
		}
	}
	if heads, err := stepsInto(fd, "refs", "heads"); err == nil {
		err = looseRefs(heads, "heads/", 0, t.refs)
		closeFD(heads)
		if err != nil {
			return t, err
		}
	}
	if refs, err := stepsInto(fd, "refs"); err == nil {
		if id, ok := readID(refs, "stash"); ok {
			t.refs[stash] = id
		}
		closeFD(refs)
	}
	head, err := readSmall(fd, "HEAD", 4<<10)
	if err != nil {
		return t, fmt.Errorf("HEAD can't be read: %s", reason(err))
	}
	text := strings.TrimSpace(string(head))
	if branch, ok := strings.CutPrefix(text, "ref: refs/heads/"); ok && validBranch(branch) {
		t.branch, t.head = branch, t.refs["heads/"+branch]
	} else if validID(text) {
		t.head = text
	} else {
		return t, errors.New("HEAD names neither a branch nor a commit")
	}
	return t, nil
}

// stepsInto opens a directory below fd, which stays open.
func stepsInto(fd int, path ...string) (int, error) {
	fd, err := unix.Openat(fd, ".", openDir, 0)
	for _, step := range path {
		if err != nil {
			return -1, err
		}
		fd, err = stepInto(fd, step)
	}
	return fd, err
}

// readPacked reads packed-refs (gitrepository-layout(5)).
func readPacked(fd int) (map[string]string, error) {
	b, err := readSmall(fd, "packed-refs", maxPackedRefs)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("packed-refs can't be read: %s", reason(err))
	}
	refs := map[string]string{}
	for line := range strings.Lines(string(b)) {
		id, name, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		if ok && validID(id) {
			refs[name] = id
		}
	}
	return refs, nil
}

// looseRefs reads the files below refs/heads. They count before packed ones.
func looseRefs(fd int, prefix string, depth int, into map[string]string) error {
	all, err := names(fd)
	if err != nil {
		return fmt.Errorf("refs can't be read: %s", reason(err))
	}
	for _, name := range all {
		if len(into) >= maxRefs {
			return fmt.Errorf("more than %d branches", maxRefs)
		}
		branch := strings.TrimPrefix(prefix+name, "heads/")
		if !validBranch(branch) {
			continue
		}
		if id, ok := readID(fd, name); ok {
			into[prefix+name] = id
			continue
		}
		sub, err := unix.Openat(fd, name, openDir, 0)
		if err != nil || depth >= maxRefDepth {
			closeFD(sub)
			continue
		}
		err = looseRefs(sub, prefix+name+"/", depth+1, into)
		closeFD(sub)
		if err != nil {
			return err
		}
	}
	return nil
}

func readID(fd int, name string) (string, bool) {
	b, err := readSmall(fd, name, 4<<10)
	id := strings.TrimSpace(string(b))
	return id, err == nil && validID(id)
}

// makeView links to the agent's objects, but not to objects/info: what the
// agent says there of alternates and commit graphs is not read by any git.
func makeView(view, objects string) error {
	if err := os.MkdirAll(view, 0o700); err != nil {
		return err
	}
	link := func(name string) error {
		to, at := filepath.Join(objects, name), filepath.Join(view, name)
		if had, err := os.Readlink(at); err == nil && had == to {
			return nil
		}
		return errors.Join(os.RemoveAll(at), os.Symlink(to, at))
	}
	err := link("pack")
	for i := range 256 {
		err = errors.Join(err, link(fmt.Sprintf("%02x", i)))
	}
	if err != nil {
		return fmt.Errorf("linking to the agent's objects: %w", err)
	}
	return nil
}

// plainObjects tells whether the agent's objects are directories and files and
// nothing else: git waits for ever on a fifo, and follows links. A swap after
// this look costs the child's time limit; there is nothing in the container
// that a link could lead to.
func plainObjects(git int) error {
	objects, err := stepsInto(git, "objects")
	if err != nil {
		return fmt.Errorf("objects can't be read: %s", reason(err))
	}
	defer closeFD(objects)
	all := []string{"pack"}
	for i := range 256 {
		all = append(all, fmt.Sprintf("%02x", i))
	}
	for _, name := range all {
		fd, err := unix.Openat(objects, name, openDir, 0)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return fmt.Errorf("objects/%s can't be read: %s", name, reason(err))
		}
		err = plainFiles(fd)
		closeFD(fd)
		if err != nil {
			return fmt.Errorf("objects/%s: %w", name, err)
		}
	}
	return nil
}

// plainFiles tells whether a directory has regular files alone.
func plainFiles(fd int) error {
	again, err := unix.Openat(fd, ".", openDir, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(again), ".")
	defer f.Close()
	entries, err := f.ReadDir(-1)
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // an object was packed meanwhile
		return err
	}
	for _, e := range entries {
		if !e.Type().IsRegular() {
			return fmt.Errorf("%q is no regular file", e.Name())
		}
	}
	return nil
}
