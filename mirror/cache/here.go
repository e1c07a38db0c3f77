package cache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
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
