package cache

import (
	"context"
	"errors"
	"time"
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
	auth := a.auth
	if a.ours {
		if auth, err = r.c.credentials(ctx, u); err != nil {
			return err
		}
		if auth == "" {
			return errUnauthorized
		}
	}
	if err := r.c.resting(r.addr.Host); err != nil {
		return err
	}
	way := r.c.way(ctx, u, auth)
	defer way.close()
	_, err = r.ask(ctx, way)
	r.c.judge(r.addr.Host, err)
	if err != nil {
		return err
	}
	r.c.seen.add(r.addr, auth)
	return nil
}

// failures are those of a host in a row, and until when it is left alone.
type failures struct {
	n     int
	until time.Time
	err   error
}

// resting is an error while a host that failed is left alone.
func (c *Cache) resting(host string) error {
	if f, ok := c.hosts.get(host); ok && c.now().Before(f.until) {
		return &unreachableError{f.err}
	}
	return nil
}

// judge counts a host's failures: each leaves it alone for twice as long.
func (c *Cache) judge(host string, err error) {
	var away *unreachableError
	if !errors.As(err, &away) {
		if err == nil {
			c.hosts.forget(host)
		}
		return
	}
	f, _ := c.hosts.get(host)
	f.n++
	wait := min(5*time.Second<<min(f.n-1, 10), 5*time.Minute)
	f.until, f.err = c.now().Add(wait), away.err
	c.hosts.put(host, f, 2*wait+time.Minute)
}
