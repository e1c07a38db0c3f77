package cache

import (
	"cmp"
	"context"
	"errors"
	"time"

	"codeberg.org/devaipod/devaipod/mirror/gitproc"
)

// admit lets a caller read what is here, of whatever age: anybody what the
// upstream lets anybody read; otherwise whoever the upstream lets in itself.
func (r *repo) admit(ctx context.Context, a access, st State) error {
	switch {
	case st.Public || a.ours && st.Ours:
		return nil
	case a == access{}:
		return errUnauthorized
	case a.auth != "" && r.c.seen.has(r.addr, a.auth):
		return nil
	}
	u, err := r.c.upstream(r.addr)
	if err != nil {
		return err
	}
	if !u.web() {
		return errUnauthorized
	}
	auth, err := r.c.authOf(ctx, u, a)
	if err != nil {
		return err
	}
	if auth == "" {
		return errUnauthorized
	}
	if err := r.c.resting(r.addr); err != nil {
		return err
	}
	way := r.c.way(ctx, u, auth)
	defer way.close()
	_, err = r.ask(ctx, way)
	r.c.judge(r.addr, err)
	if err != nil {
		return err
	}
	r.c.seen.add(r.addr, auth)
	return nil
}

// failures are those of a host, or of a repository, in a row, and until when it
// is left alone.
type failures struct {
	n     int
	until time.Time
	err   error
}

// resting is an error while a host or a repository that failed is left alone.
func (c *Cache) resting(addr Address) error {
	for _, what := range []string{addr.Host, addr.String()} {
		if f, ok := c.failed.get(what); ok && c.now().Before(f.until) {
			return f.err
		}
	}
	return nil
}

// judge counts failures in a row: each leaves what failed alone for twice as
// long. A host fails by not answering, a repository when git can't bring it
// here.
func (c *Cache) judge(addr Address, err error) {
	var away *unreachableError
	var said *gitproc.Error
	what := addr.Host
	switch {
	case errors.As(err, &away):
	case errors.As(err, &said):
		what = addr.String()
	default:
		if err == nil {
			c.failed.forget(addr.Host)
			c.failed.forget(addr.String())
		}
		return
	}
	f, _ := c.failed.get(what)
	f.n++
	wait := min(5*time.Second<<min(f.n-1, 10), cmp.Or(c.cfg.Hosts[addr.Host].Rest, 5*time.Minute))
	f.until, f.err = c.now().Add(wait), err
	c.failed.put(what, f, 2*wait+time.Minute)
}
