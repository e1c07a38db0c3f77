package cache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
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
	entries, err := listed(ctx, dir, "HEAD", path)
	var broken *gitproc.Error
	if errors.As(err, &broken) && ctx.Err() == nil {
		return nil, false, nil // it has none
	}
	if err != nil || len(entries) == 0 || !entries[0].file() {
		return nil, false, err
	}
	if size := entries[0].size; size > max {
		return nil, false, fmt.Errorf("%s of the default branch: %w: %d bytes of %d", path, ErrTooLarge, size, max)
	}
	text, err = entries[0].read(ctx, dir)
	return text, err == nil, err
}

// Files is [FilesIn] of a repository that is here. The identity is as for [Cache.Copy].
func (c *Cache) Files(ctx context.Context, addr Address, identity, commit string, max int64, paths ...string) (map[string][]byte, error) {
	dir, ok, err := c.Copy(addr, identity)
	if err == nil && !ok {
		err = errors.New("it is not here")
	}
	if err != nil {
		return nil, err
	}
	return FilesIn(ctx, dir, commit, max, paths...)
}

// FilesIn are the regular files among some paths of a commit in a bare repository, up to
// max bytes each: what is larger has no text, nor has a folder, whose path ends in a slash
// then. What is neither, as a symbolic link, is not there.
func FilesIn(ctx context.Context, dir, commit string, max int64, paths ...string) (map[string][]byte, error) {
	entries, err := listed(ctx, dir, commit, paths...)
	if err != nil {
		return nil, err
	}
	files := map[string][]byte{}
	for _, e := range entries {
		switch {
		case e.kind == "tree":
			files[e.path+"/"] = nil
		case e.file() && e.size > max:
			files[e.path] = nil
		case e.file():
			if files[e.path], err = e.read(ctx, dir); err != nil {
				return nil, err
			}
		}
	}
	return files, nil
}

// An entry is a path of a commit.
type entry struct {
	mode, kind, id, path string
	size                 int64
}

// file tells a regular file from a directory, a link, a submodule.
func (e entry) file() bool { return strings.HasPrefix(e.mode, "100") && e.kind == "blob" }

func (e entry) read(ctx context.Context, dir string) ([]byte, error) {
	var out bytes.Buffer
	err := gitproc.Child{Dir: dir, Args: []string{"cat-file", "blob", e.id}, Stdout: &out}.Run(ctx)
	return out.Bytes(), err
}

// listed are the entries of paths that there are.
func listed(ctx context.Context, dir, commit string, paths ...string) (out []entry, err error) {
	var list bytes.Buffer
	args := append([]string{"ls-tree", "--full-tree", "-l", "-z", commit, "--"}, paths...)
	if err := (gitproc.Child{Dir: dir, Args: args, Stdout: &list}).Run(ctx); err != nil {
		return nil, err
	}
	for line := range strings.SplitSeq(strings.TrimSuffix(list.String(), "\x00"), "\x00") {
		about, path, ok := strings.Cut(line, "\t")
		f := strings.Fields(about)
		if !ok || len(f) != 4 {
			continue
		}
		size, err := strconv.ParseInt(f[3], 10, 64)
		if err != nil {
			size = 0 // of what has none
		}
		out = append(out, entry{f[0], f[1], f[2], path, size})
	}
	return out, nil
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
