package cache

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"os"
	"slices"
	"strings"
	"time"

	"codeberg.org/devaipod/devaipod/mirror/gitproc"
)

// A flight is one refresh, for all who wait for it.
type flight struct {
	access access
	done   chan struct{}
	err    error
}

// An access is what a caller shows: nothing, the right to use our own
// credentials, or credentials of the caller's own for the upstream.
type access struct {
	ours bool
	auth string // value of an Authorization header for the upstream
}

// fresh sees to it that the repository is younger than the limit, or tells why
// it is not. However many ask at once, one refresh is made; it goes on without
// whoever asked first. Who comes while one is under way may need another: what
// it tells can be older than the question.
func (r *repo) fresh(ctx context.Context, a access, limit time.Duration) (State, error) {
	asked := r.c.now().Round(0)
	for {
		if now := r.c.now().Round(0); now.Before(asked) {
			asked = now // a clock was set back
		}
		st, ok, err := r.load()
		if err != nil {
			return st, err
		}
		since := asked.Add(-limit)
		if pushed := r.pushed(); pushed.After(since) {
			since = pushed
		}
		if since.After(asked) { // pushed since we were asked, or before the clock was set back
			since = asked
		}
		if ok && st.Error == "" && !r.suspect.Load() && !st.Checked.Before(since) && !r.yetToCome(st) {
			return st, nil
		}
		if err := r.c.resting(r.addr); err != nil {
			return st, err
		}
		f := r.fly(a)
		r.c.count.waiting.Inc()
		select {
		case <-ctx.Done():
		case <-f.done:
		}
		r.c.count.waiting.Dec()
		if ctx.Err() != nil {
			return st, context.Cause(ctx)
		}
		if denied(f.err) && f.access != a {
			continue // somebody else was not let in: that says nothing of us
		}
		if f.err != nil {
			if now, _, err := r.load(); err == nil {
				st = now
			}
			return st, f.err
		}
	}
}

// yetToCome tells of a state from before a clock was set back: how old it is can't
// be known.
func (r *repo) yetToCome(st State) bool { return st.Checked.After(r.c.now()) }

// fly joins the refresh that is under way, or begins one.
func (r *repo) fly(a access) *flight {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.flight != nil {
		return r.flight
	}
	f := &flight{access: a, done: make(chan struct{})}
	r.flight = f
	asked := r.c.now()
	r.c.running.Go(func() {
		ctx, cancel := context.WithTimeout(r.c.ctx, refreshLimit)
		defer cancel()
		began, result := time.Now(), "ok"
		if f.err = r.refresh(ctx, a, asked); f.err != nil {
			result = resultFailed
		}
		r.c.count.refreshes.WithLabelValues(result).Observe(time.Since(began).Seconds())
		r.c.judge(r.addr, f.err)
		r.mu.Lock()
		r.flight = nil
		r.mu.Unlock()
		close(f.done)
	})
	return f
}

// refreshLimit bounds one refresh, a first clone included.
const refreshLimit = 2 * time.Hour

// refresh asks the upstream and fetches what is new. Only its end, the new
// state, makes it count.
func (r *repo) refresh(ctx context.Context, a access, asked time.Time) error {
	lock, err := r.acquire(ctx)
	if err != nil {
		return err
	}
	defer lock.Close() // and with it the lock goes
	st, ok, err := r.load()
	if err != nil {
		return err
	}
	if ok && st.Error == "" && st.Checked.After(asked) && !r.yetToCome(st) && !r.suspect.Load() {
		return nil // another process did it while we waited
	}
	u, err := r.c.upstream(r.addr)
	if err != nil {
		return err
	}
	if ok && r.suspect.Load() && !r.sound(ctx) {
		r.c.cfg.Log.Warn("a cached repository is damaged; it is fetched anew", "repo", r.addr.String())
		ok = false
	}
	err = r.sync(ctx, u, a, &st, ok, lock)
	var away *unreachableError
	switch {
	case errors.As(err, &away):
		st.Error = clip(gitproc.Printable(away.err.Error()))
	case denied(err):
		// Nobody was asked for first: it is not public, or no more.
		st.Public, st.Ours = false, st.Ours && !a.ours
	case err == nil:
		st.Error = ""
		r.suspect.Store(false)
	}
	if st.Generation == "" {
		if _, going, e := r.readSteps(); going && e == nil && (away != nil || ctx.Err() != nil) {
			return err // the next one goes on from here
		}
		return errors.Join(err, r.discard()) // nothing came of it
	}
	return errors.Join(err, r.save(st))
}

// sync brings the repository to what the upstream has, and st with it.
func (r *repo) sync(ctx context.Context, u upstream, a access, st *State, exists bool, lock *os.File) error {
	began := r.c.now()
	who, err := r.identify(ctx)
	if err != nil {
		return err
	}
	if exists && who != st.Identity {
		r.c.cfg.Log.Info("another repository has this name now: what is here of the old one goes", "repo", r.addr.String())
		if err := r.empty(); err != nil {
			return err
		}
		*st, exists = State{}, false
	}
	way, told, err := r.open(ctx, u, a)
	if err != nil {
		return err
	}
	defer way.close()
	st.Address, st.Upstream = r.addr.String(), way.u.url.Redacted()
	st.Public = way.public
	st.Ours = st.Ours || way.ours
	if exists && told.digest == st.Refs {
		st.Checked = began
		return nil
	}
	if exists {
		err = r.fetch(ctx, way, lock)
	} else {
		err = r.clone(ctx, way, who, lock)
	}
	if err != nil {
		return err
	}
	if st.Identity, err = r.stillIs(ctx, who); err != nil {
		return err
	}
	if err := r.pointHead(ctx, told.head); err != nil {
		return err
	}
	st.Checked, st.Changed, st.Refs, st.Generation = began, r.c.now(), told.digest, newGeneration()
	return nil
}

// identify tells what has the address now; "" when nobody knows.
func (r *repo) identify(ctx context.Context) (string, error) {
	ask := r.c.cfg.Hosts[r.addr.Host].Identity
	if ask == nil {
		return "", nil
	}
	who, err := ask(ctx, r.addr.Path)
	if err != nil {
		return "", &unreachableError{err}
	}
	return who, nil
}

// stillIs is what what was fetched belongs to: the same before and after. When it
// is not, what is here is nobody's, and the next question fetches it anew.
func (r *repo) stillIs(ctx context.Context, who string) (string, error) {
	now, err := r.identify(ctx)
	if err != nil {
		return "", err
	}
	if now != who {
		return "", &unreachableError{fmt.Errorf("%s became another repository while it was fetched", r.addr)}
	}
	return who, nil
}

// open finds a way to the upstream, by either name, and lists its refs.
func (r *repo) open(ctx context.Context, u upstream, a access) (*way, refs, error) {
	way, told, err := r.enter(ctx, u, a)
	if errors.Is(err, errNotFound) {
		if way, told, err := r.enter(ctx, u.bare(), a); !denied(err) {
			return way, told, err
		}
	}
	return way, told, err
}

// enter goes in as anybody, and if that is not let in, with the credentials of
// the caller or, if it may use them, ours.
func (r *repo) enter(ctx context.Context, u upstream, a access) (*way, refs, error) {
	way := r.c.way(ctx, u, "")
	if u.url.Scheme == "ssh" {
		if !a.ours {
			way.close()
			return nil, refs{}, errUnauthorized
		}
		way.ours, way.public = true, false
	}
	told, err := r.ask(ctx, way, r.refs()...)
	if denied(err) {
		auth, e := r.c.authOf(ctx, u, a)
		if e != nil {
			err = errors.Join(err, e)
		}
		if auth != "" {
			way.close()
			way = r.c.way(ctx, u, auth)
			way.ours = a.ours
			if told, err = r.ask(ctx, way, r.refs()...); err == nil {
				r.c.seen.add(r.addr, auth)
			}
		}
	}
	if err != nil {
		way.close()
		return nil, refs{}, err
	}
	return way, told, nil
}

// denied tells whether somebody else might be let in.
func denied(err error) bool {
	return errors.Is(err, errUnauthorized) || errors.Is(err, errNotFound)
}

// refs is what an upstream tells.
type refs struct {
	digest string // of all of it
	head   string // where HEAD points: "refs/heads/main"; empty when it says nothing
}

// refReader digests the output of git ls-remote --symref as it comes: there may
// be a million lines.
type refReader struct {
	sum   hash.Hash
	head  string
	first []byte // line, as far as it has come
	past  bool   // it
}

func (w *refReader) Write(p []byte) (int, error) {
	w.sum.Write(p)
	if w.past {
		return len(p), nil
	}
	line, _, whole := bytes.Cut(p, []byte("\n"))
	w.first = append(w.first, line...)
	if w.past = whole || len(w.first) > 4096; whole {
		// HEAD is the first of the list, and where it points stands before it.
		if to, ok := strings.CutPrefix(string(w.first), "ref: "); ok {
			if name, ok := strings.CutSuffix(to, "\tHEAD"); ok {
				w.head = name
			}
		}
	}
	return len(p), nil
}

// ask lists the upstream's HEAD, and its refs that match the patterns.
func (r *repo) ask(ctx context.Context, way *way, patterns ...string) (refs, error) {
	w := &refReader{sum: sha256.New()}
	args := append([]string{"ls-remote", "--symref", "--quiet", "upstream", "HEAD"}, patterns...)
	if err := way.run(ctx, gitproc.Child{Args: args, Stdout: w}); err != nil {
		return refs{}, err
	}
	return refs{digest: hex.EncodeToString(w.sum.Sum(nil)), head: w.head}, nil
}

// refs are the patterns of what is kept.
func (r *repo) refs() []string {
	return slices.Concat(r.c.cfg.Refs, r.c.cfg.Hosts[r.addr.Host].Refs)
}

// fetchArgs are those of a fetch of all that is kept, each ref to its own name.
func (r *repo) fetchArgs(options ...string) []string {
	args := append([]string{"fetch", "--prune", "--force", "--no-tags", "--no-write-fetch-head", "--no-recurse-submodules"}, options...)
	args = append(args, "upstream")
	for _, refs := range r.refs() {
		args = append(args, "+"+refs+":"+refs)
	}
	return args
}

// fetch brings a repository up to date, in one transaction.
func (r *repo) fetch(ctx context.Context, way *way, lock *os.File) error {
	c := gitproc.Child{Dir: r.git(), Args: r.fetchArgs("--atomic", "--progress"), Lock: lock, Stderr: r.c.progress(r.addr)}
	err := way.run(ctx, c)
	var said *gitproc.Error
	if errors.As(err, &said) && strings.Contains(said.Said, "cannot lock ref") {
		// A branch a/b where a was: git can't take both steps at once.
		c.Args = r.fetchArgs("--progress")
		return way.run(ctx, c)
	}
	return err
}

// clone makes the repository beside its place and then puts it there.
func (r *repo) clone(ctx context.Context, way *way, who string, lock *os.File) error {
	to := r.file("git.new")
	s, inSteps, err := r.readSteps()
	if inSteps && s.Identity != who {
		inSteps, err = false, r.endSteps()
	}
	switch {
	case err != nil:
	case inSteps:
		to = r.part()
		err = r.cloneInSteps(ctx, way, lock, s)
	default:
		args := []string{"clone", "--bare", "--quiet", "--progress", "--template=", "--origin=upstream", "--", way.address(), to}
		err = r.brokeOff(way, who, way.run(ctx, gitproc.Child{Args: args, Lock: lock, Stderr: r.c.progress(r.addr)}))
	}
	if err != nil {
		return err
	}
	if err := r.configure(to); err != nil {
		return err
	}
	// Refs beyond branches and tags, and tags that no branch leads to.
	if err := way.run(ctx, gitproc.Child{Dir: to, Args: r.fetchArgs(), Lock: lock}); err != nil {
		return err
	}
	// Where a damaged one makes place, it is no repository any more from here on.
	if err := remove(r.file("state.json")); err != nil {
		return err
	}
	if err := os.RemoveAll(r.git()); err != nil {
		return err
	}
	if err := os.Rename(to, r.git()); err != nil {
		return err
	}
	return r.endSteps()
}

// configure writes the repository's configuration: ours alone.
func (r *repo) configure(dir string) error {
	const text = `[core]
	repositoryformatversion = 0
	bare = true
[uploadpack]
	allowFilter = true
	allowAnySHA1InWant = true
[repack]
	writeBitmaps = true
[pack]
	writeBitmapHashCache = true
`
	return os.WriteFile(dir+"/config", []byte(text), 0o600)
}

// pointHead lets HEAD name the branch that it names upstream.
func (r *repo) pointHead(ctx context.Context, to string) error {
	if !strings.HasPrefix(to, "refs/heads/") {
		return nil
	}
	if err := (gitproc.Child{Dir: r.git(), Args: []string{"symbolic-ref", "HEAD", to}}).Run(ctx); err != nil {
		return fmt.Errorf("pointing HEAD at %s: %w", clip(gitproc.Printable(to)), err)
	}
	return nil
}
