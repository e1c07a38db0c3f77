package cache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"codeberg.org/devaipod/devaipod/mirror/gitproc"
)

// Here brings a repository up to date, by our own credentials, and returns its
// bare directory, which is to be read and not to be written. An upstream that is
// away is no error while there is a copy. What is to outlive the repository
// borrows by [Cache.Lend] instead.
func (c *Cache) Here(ctx context.Context, addr Address) (dir string, err error) {
	r := c.repo(addr)
	limit := c.cfg.MaxAge
	if c.cfg.Hosts[addr.Host].Always {
		limit = 0
	}
	st, err := r.fresh(ctx, access{ours: true}, limit)
	var away *unreachableError
	if errors.As(err, &away) && st.Generation != "" {
		err = nil
	}
	return r.git(), err
}

// Copy is the directory of a repository as it was fetched last, if it is here and
// was of that identity then ([Host.Identity]); the upstream is not asked.
func (c *Cache) Copy(addr Address, identity string) (dir string, ok bool, err error) {
	r := c.repo(addr)
	st, ok, err := r.load()
	return r.git(), ok && st.Generation != "" && st.Identity == identity, err
}

// Dir is where a cache in a directory has a repository, as it was when it was
// fetched last: bare, to be read and not to be written. ok is false when it is
// not there.
func Dir(cache string, addr Address) (dir string, ok bool) {
	dir = filepath.Join(cache, "repos", addr.dir(), "git")
	_, err := os.Stat(filepath.Join(dir, "HEAD"))
	return dir, err == nil
}

// ErrTooLarge is wrapped by [Cache.File] for a file that is larger than asked for.
var ErrTooLarge = errors.New("too large")

// File is a file of the default branch, as the repository was fetched last, of up
// to max bytes; ok is false when the repository or the file is not here. What is no
// regular file is not there. The identity is as for [Cache.Copy].
func (c *Cache) File(ctx context.Context, addr Address, identity, path string, max int64) (text []byte, ok bool, err error) {
	dir, ok, err := c.Copy(addr, identity)
	if !ok || err != nil {
		return nil, false, err
	}
	var out bytes.Buffer
	list := gitproc.Child{Dir: dir, Args: []string{"ls-tree", "--full-tree", "-l", "-z", "HEAD", "--", path}, Stdout: &out}
	if err := list.Run(ctx); err != nil {
		var broken *gitproc.Error
		if errors.As(err, &broken) && ctx.Err() == nil {
			return nil, false, nil // it has none
		}
		return nil, false, err
	}
	var mode, kind, id string
	var size int64
	if n, err := fmt.Sscanf(out.String(), "%s %s %s %d", &mode, &kind, &id, &size); n < 4 || err != nil || !strings.HasPrefix(mode, "100") || kind != "blob" {
		return nil, false, nil //nolint:nilerr // a directory, a link, a submodule, or nothing
	}
	if size > max {
		return nil, false, fmt.Errorf("%s of the default branch: %w: %d bytes of %d", path, ErrTooLarge, size, max)
	}
	out.Reset()
	err = gitproc.Child{Dir: dir, Args: []string{"cat-file", "blob", id}, Stdout: &out}.Run(ctx)
	return out.Bytes(), err == nil, err
}

// Tree is the id of a folder of the default branch ("." for all of it), which tells
// its content, as the repository was fetched last; ok is false when the repository or
// the folder is not here. The identity is as for [Cache.Copy].
func (c *Cache) Tree(ctx context.Context, addr Address, identity, folder string) (id string, ok bool, err error) {
	dir, ok, err := c.Copy(addr, identity)
	if !ok || err != nil {
		return "", false, err
	}
	if folder == "." {
		folder = ""
	}
	var out bytes.Buffer
	err = gitproc.Child{Dir: dir, Args: []string{"rev-parse", "--verify", "--quiet", "--end-of-options", "HEAD:" + folder}, Stdout: &out}.Run(ctx)
	var broken *gitproc.Error
	if errors.As(err, &broken) && ctx.Err() == nil {
		return "", false, nil // it has none
	}
	id = strings.TrimSpace(out.String())
	if err != nil {
		return "", false, err
	}
	out.Reset()
	err = gitproc.Child{Dir: dir, Args: []string{"cat-file", "-t", id}, Stdout: &out}.Run(ctx)
	return id, err == nil && strings.TrimSpace(out.String()) == "tree", err
}

// Archive writes the files of a tree as a tar archive, as git-archive(1) makes it, without
// a work tree on this machine.
func (c *Cache) Archive(ctx context.Context, addr Address, identity, tree string, w io.Writer) error {
	dir, ok, err := c.Copy(addr, identity)
	if err == nil && !ok {
		err = errors.New("it is not here")
	}
	if err != nil {
		return fmt.Errorf("reading %s: %w", addr, err)
	}
	return gitproc.Child{Dir: dir, Args: []string{"archive", "--format=tar", tree}, Stdout: w}.Run(ctx)
}

// Folders lists those of a directory of the default branch by name, as the
// repository was fetched last; none when it is not here. What is more than max
// bytes long is [ErrTooLarge]. The identity is as for [Cache.Copy].
func (c *Cache) Folders(ctx context.Context, addr Address, identity, path string, max int) ([]string, error) {
	dir, ok, err := c.Copy(addr, identity)
	if !ok || err != nil {
		return nil, err
	}
	out := &atMost{max: max}
	err = gitproc.Child{Dir: dir, Args: []string{"ls-tree", "--full-tree", "-d", "-z", "--name-only", "HEAD", "--", strings.TrimSuffix(path, "/") + "/"}, Stdout: out}.Run(ctx)
	var broken *gitproc.Error
	switch {
	case out.over:
		return nil, fmt.Errorf("the folders of %s of the default branch: %w", path, ErrTooLarge)
	case errors.As(err, &broken) && ctx.Err() == nil:
		return nil, nil // it has none
	case err != nil:
		return nil, err
	}
	var names []string
	for _, p := range strings.Split(strings.TrimSuffix(string(out.text), "\x00"), "\x00") {
		if p != "" {
			names = append(names, p[strings.LastIndexByte(p, '/')+1:])
		}
	}
	return names, nil
}

// atMost takes max bytes.
type atMost struct {
	text []byte
	max  int
	over bool
}

func (w *atMost) Write(b []byte) (int, error) {
	if w.over = w.over || len(w.text)+len(b) > w.max; w.over {
		return 0, ErrTooLarge
	}
	w.text = append(w.text, b...)
	return len(b), nil
}
