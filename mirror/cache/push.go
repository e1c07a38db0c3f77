package cache

import (
	"context"
	"errors"
	"net/http"
	"os"
	"time"

	"codeberg.org/devaipod/devaipod/mirror/smarthttp"
)

// push passes a push on to the upstream, with the caller's own credentials, or
// ours if the caller may use them, and as it comes: nothing of it stays here.
// What the upstream says is what the client gets; when it says that it has the
// push, the next fetch asks it.
func (q *request) push(path string) {
	c := q.repo.c
	u, err := c.upstream(q.repo.addr)
	if err != nil {
		q.fail(err)
		return
	}
	if !u.web() {
		q.pushOver(u, path)
		return
	}
	ctx, cancel := context.WithCancelCause(q.r.Context())
	defer cancel(nil)
	auth, err := c.authOf(ctx, u, q.access)
	if err == nil {
		err = smarthttp.Duplex(q.w)
	}
	if err != nil {
		q.fail(err)
		return
	}
	s := c.forward.open(ctx, u, auth, c.cfg.Allow.check)
	defer s.close()
	// Another host gets no credentials, also when it was found without any.
	if to, ok := c.moved.get(q.repo.addr); ok && (to.base.Host == u.url.Host || auth == "") {
		s.at = to
	}
	if path == receivePack {
		// Before as well as after: what a fetch learns meanwhile may be either.
		defer q.pushed()
		q.pushed()
	}
	resp, err := s.send(ctx, q.r, path)
	if err != nil {
		q.fail(err)
		return
	}
	if s.at.base != u.url {
		// The push itself is another request, which can't be sent elsewhere.
		c.moved.put(q.repo.addr, s.at, time.Hour)
	}
	if resp.StatusCode == http.StatusUnauthorized {
		q.challenge()
	}
	resp.Header.Del("Content-Length") // the end is told when pushed has been noted
	q.result = resultRefreshed
	q.w.Header().Set("Cache-Control", "no-cache")
	if err := s.relay(ctx, cancel, q.w, resp); err != nil {
		if !errors.Is(err, errHungUp) {
			c.cfg.Log.Warn("passing a push on", "repo", q.repo.addr.String(), "err", err)
		}
		panic(http.ErrAbortHandler) // a cut-off answer must not look whole
	}
}

// pushed makes the next fetch ask the upstream.
func (q *request) pushed() {
	err := q.repo.touch("pushed")
	if errors.Is(err, os.ErrNotExist) {
		return // nothing of it is here
	}
	if err != nil {
		q.repo.c.cfg.Log.Warn("noting a push; what is here may be older than it for mirror.max_age", "repo", q.repo.addr.String(), "err", err)
	}
}
