package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/go-git/go-git/v5/plumbing/format/pktline"

	"codeberg.org/devaipod/devaipod/mirror/gitproc"
	"codeberg.org/devaipod/devaipod/mirror/smarthttp"
)

// pushOver passes a push on to an upstream that speaks no HTTP: to git's
// receive-pack there, by ssh or on this machine. That is with the rights of
// whoever runs the cache, so it is for those alone who may use our own
// credentials.
func (q *request) pushOver(u upstream, path string) {
	if !q.access.ours {
		q.challenge()
		refuse(q.w, http.StatusUnauthorized, fmt.Sprintf("devaipod: a push to %s goes with the rights of whoever runs the cache; show its token (devaipod mirror setup)", q.repo.addr))
		return
	}
	body, err := smarthttp.Plain(q.r, q.r.Body)
	if err != nil {
		refuse(q.w, http.StatusBadRequest, "devaipod: "+err.Error())
		return
	}
	if err := smarthttp.Duplex(q.w); err != nil {
		q.fail(err)
		return
	}
	p, err := u.receivePack(q.r.Context())
	if err != nil {
		q.fail(err)
		return
	}
	q.result = resultRefreshed
	q.w.Header().Set("Cache-Control", "no-cache")
	if path == receivePack {
		err = q.receive(p, body)
	} else {
		err = q.advertisePush(p)
	}
	if err != nil && q.r.Context().Err() == nil {
		q.repo.c.cfg.Log.Warn("passing a push on", "repo", q.repo.addr.String(), "err", err)
	}
}

// advertisePush answers git's first question of a push.
func (q *request) advertisePush(p *receiver) error {
	list := &gitproc.Tail{Max: 64 << 20} // a million refs are about 60 MB
	err := p.advertisement(list)
	_, e := io.WriteString(p.in, "0000") // nothing is pushed
	if err = p.end(errors.Join(err, e)); err != nil {
		q.fail(&unreachableError{err})
		return err
	}
	q.w.Header().Set("Content-Type", "application/x-git-receive-pack-advertisement")
	_, err = fmt.Fprintf(q.w, "001f# service=git-receive-pack\n0000%s0000", list.Bytes)
	return err
}

// receive lets receive-pack have what git pushes; what that says is the answer.
func (q *request) receive(p *receiver, body io.Reader) error {
	err := p.advertisement(io.Discard)
	if err != nil {
		err = p.end(err)
		q.fail(&unreachableError{err})
		return err
	}
	// Before as well as after: what a fetch learns meanwhile may be either.
	q.pushed()
	defer q.pushed()
	sent := make(chan error, 1)
	go func() {
		_, err := io.Copy(p.in, body)
		sent <- errors.Join(err, p.in.Close())
	}()
	q.w.Header().Set("Content-Type", "application/x-git-receive-pack-result")
	if err := smarthttp.Stream(q.w, p.out); err != nil {
		p.stop()
		_ = p.end(err) // the client has gone
		panic(http.ErrAbortHandler)
	}
	err = p.end(nil)
	if e := <-sent; e != nil && err != nil {
		q.repo.c.cfg.Log.Warn("passing a push on", "repo", q.repo.addr.String(), "err", errors.Join(err, e))
		panic(http.ErrAbortHandler) // what came may not be the whole answer
	}
	return nil
}

// A receiver is one git receive-pack at an upstream.
type receiver struct {
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  io.Reader
	said *gitproc.Tail
	stop context.CancelFunc
}

// receivePack starts one, as git push itself does: whose repository it is has
// its hooks run.
func (u upstream) receivePack(ctx context.Context) (*receiver, error) {
	ctx, stop := context.WithCancel(ctx)
	p := &receiver{said: &gitproc.Tail{Max: 4096}, stop: stop}
	if u.url.Scheme == "file" {
		if _, err := os.Stat(u.url.Path); errors.Is(err, os.ErrNotExist) {
			u = u.bare()
		}
		p.cmd = exec.CommandContext(ctx, "git", "receive-pack", u.url.Path)
	} else {
		args := []string{"-c", u.ssh + ` "$@"`, "ssh"}
		if port := u.url.Port(); port != "" {
			args = append(args, "-p", port)
		}
		host := u.url.Hostname()
		if user := u.url.User.Username(); user != "" {
			host = user + "@" + host
		}
		// A path has no quotes in it: see checkSegment.
		p.cmd = exec.CommandContext(ctx, "sh", append(args, host, "git-receive-pack '"+u.url.Path+"'")...)
	}
	p.cmd.Env = append(os.Environ(), "LC_ALL=C", "GIT_TERMINAL_PROMPT=0", "GIT_PROTOCOL=")
	p.cmd.Dir, p.cmd.Stderr, p.cmd.WaitDelay = "/", p.said, 5*time.Second
	var err error
	if p.in, err = p.cmd.StdinPipe(); err == nil {
		p.out, err = p.cmd.StdoutPipe()
	}
	if err == nil {
		err = p.cmd.Start()
	}
	if err != nil {
		stop()
		return nil, err
	}
	return p, nil
}

// advertisement copies the list of refs that comes first, without its end
// (gitprotocol-pack(5), "Reference Discovery").
func (p *receiver) advertisement(to io.Writer) error {
	for packets := pktline.NewScanner(p.out); packets.Scan(); {
		line := packets.Bytes()
		if len(line) == 0 {
			return nil
		}
		if _, err := fmt.Fprintf(to, "%04x%s", len(line)+4, line); err != nil {
			return err
		}
	}
	return errors.New("no list of refs came")
}

// end tells it that there is no more, waits for it, and adds its words to what
// went wrong.
func (p *receiver) end(err error) error {
	defer p.stop()
	_ = p.in.Close() // it may have been closed before
	err = errors.Join(err, p.cmd.Wait())
	if said := p.said.Complaints(); err != nil && said != "" {
		return errors.New(said)
	} else if err != nil && len(p.said.Bytes) > 0 {
		return errors.New(clip(gitproc.Printable(strings.TrimSpace(string(p.said.Bytes)))))
	}
	return err
}
