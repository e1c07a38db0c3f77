package cache

import (
	"context"
	"errors"
	"os"
	"path/filepath"
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
