package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"codeberg.org/devaipod/devaipod/mirror/gitproc"
)

// Config is what [New] needs.
type Config struct {
	// Dir holds the repositories; it is made when it is not there.
	Dir string
	// Borrower is whose generations [Cache.Lend] makes and [Cache.Keep] removes,
	// where several share a directory; "pods" when empty.
	Borrower string
	// Allow decides which upstreams may be asked.
	Allow Allow
	// Hosts say how hosts are reached that are no plain https://HOST/.
	Hosts map[string]Host
	// Refs are the patterns of refs that are kept; refs/heads/*, refs/tags/* and
	// refs/notes/* when empty.
	Refs []string
	// MaxAge is how old an answer may be before the upstream is asked again.
	MaxAge time.Duration
	// MaxRepository bounds what one question to an upstream may bring, in bytes;
	// 20 GiB when 0.
	MaxRepository int64
	// MaxAnswers bounds the answers that are kept for clients that ask the same,
	// in bytes of disk; 4 GiB when 0.
	MaxAnswers int64
	// MaxSize bounds all repositories together, in bytes of disk; 0 for no bound.
	// What was not read for the longest time goes first. What is lent counts, each
	// file once.
	MaxSize int64
	// Interval is how often upstreams are asked by [Cache.Run] itself, give or take
	// a tenth, which differs by repository; 0 for never.
	Interval time.Duration
	// Patience is how long a client or an upstream may be silent where it is to
	// send or take something; two minutes when 0.
	Patience time.Duration
	// Credentials are ours for an upstream's URL, which is that of a repository of
	// host; nil for none. An empty user and password are none as well.
	Credentials func(ctx context.Context, host, url string) (user, password string, err error)
	// Ours tells whether a request comes from somebody who may use these; nil for
	// nobody.
	Ours func(*http.Request) bool
	// Hostnames are what a client may call this server in the Host header, without
	// port; localhost and loopback addresses are always let in.
	Hostnames []string
	// Progress is where git's progress of a fetch goes, and what the upstream says
	// with it, as it is; nil for nowhere.
	Progress func(Address) io.Writer
	// Pushes is told of each [Cache.Push], right before it is made, and once more, with why,
	// when it fails; nil for nobody.
	Pushes func(ctx context.Context, to Address, refs map[string]string, failed error)
	// Metrics takes what is counted; nil for nobody.
	Metrics prometheus.Registerer
	// Now is the clock; time.Now when nil.
	Now func() time.Time
	Log *slog.Logger
}

// A Cache answers /git/<host>/<path>.git out of its directory. It is an
// http.Handler; all its methods are safe for concurrent use, by several
// processes on one directory too.
type Cache struct {
	cfg     Config
	forward *forwarder
	answers *answers
	count   *metrics
	seen    *verified
	failed  *memo[string, failures] // by host and by repository
	moved   *memo[Address, place]   // for pushes
	lfsAt   *memo[string, lfsAction]
	loans   *loans

	ctx     context.Context
	stop    context.CancelCauseFunc
	running sync.WaitGroup // refreshes

	mu    sync.Mutex
	repos map[Address]*repo
}

// New opens the cache.
func New(cfg Config) (*Cache, error) {
	if len(cfg.Refs) == 0 {
		cfg.Refs = []string{"refs/heads/*", "refs/tags/*", "refs/notes/*"}
	}
	if cfg.MaxRepository == 0 {
		cfg.MaxRepository = 20 << 30
	}
	if cfg.MaxAnswers == 0 {
		cfg.MaxAnswers = 4 << 30
	}
	if cfg.Borrower == "" {
		cfg.Borrower = "pods"
	}
	if cfg.Patience == 0 {
		cfg.Patience = 2 * time.Minute
	}
	if cfg.Pushes == nil {
		cfg.Pushes = func(context.Context, Address, map[string]string, error) {}
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if !filepath.IsAbs(cfg.Dir) {
		return nil, fmt.Errorf("the cache's directory %q: want an absolute path", cfg.Dir)
	}
	if err := os.MkdirAll(filepath.Join(cfg.Dir, "repos"), 0o700); err != nil {
		return nil, fmt.Errorf("making the cache's directory: %w", err)
	}
	count, err := newMetrics(cfg.Metrics)
	if err != nil {
		return nil, err
	}
	kept, err := newAnswers(filepath.Join(cfg.Dir, "answers"), cfg.MaxAnswers, count.reused)
	if err != nil {
		return nil, err
	}
	forward, err := newForwarder(cfg.MaxRepository, cfg.Patience, count.received, cfg.Log)
	if err != nil {
		return nil, errors.Join(err, kept.close())
	}
	c := &Cache{cfg: cfg, forward: forward, answers: kept, count: count, seen: newVerified(cfg.Now), failed: newMemo[string, failures](cfg.Now), moved: newMemo[Address, place](cfg.Now), lfsAt: newMemo[string, lfsAction](cfg.Now), loans: newLoans(), repos: map[Address]*repo{}}
	c.ctx, c.stop = context.WithCancelCause(context.Background())
	return c, nil
}

// errClosed ends what goes on when the cache is closed.
var errClosed = errors.New("the cache is being closed")

// Close ends what goes on and waits for it.
func (c *Cache) Close() error {
	c.stop(errClosed)
	c.running.Wait()
	return errors.Join(c.forward.close(), c.answers.close())
}

func (c *Cache) now() time.Time { return c.cfg.Now().UTC() }

// repo is the repository of an address, whether it is there yet or not.
func (c *Cache) repo(addr Address) *repo {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.repos[addr]
	if r == nil {
		c.forgetSome()
		r = &repo{c: c, addr: addr, dir: filepath.Join(c.cfg.Dir, "repos", addr.dir())}
		c.repos[addr] = r
	}
	return r
}

// forgetSome bounds what is known of addresses: anybody can name any number of
// them. The caller has the lock.
func (c *Cache) forgetSome() {
	if len(c.repos) < maxRemembered {
		return
	}
	for addr, r := range c.repos {
		r.mu.Lock()
		idle := r.flight == nil
		r.mu.Unlock()
		if idle {
			delete(c.repos, addr)
		}
	}
}

func (c *Cache) progress(addr Address) io.Writer {
	if c.cfg.Progress == nil {
		return nil
	}
	return c.cfg.Progress(addr)
}

// credentials are our own for an upstream, as a header's value; empty for none.
func (c *Cache) credentials(ctx context.Context, u upstream) (string, error) {
	if c.cfg.Credentials == nil {
		return "", nil
	}
	user, password, err := c.cfg.Credentials(ctx, u.addr.Host, u.url.String())
	if err != nil || user == "" && password == "" {
		return "", err
	}
	return basicAuth(user, password), nil
}

// authOf is what a caller is known by at an upstream: its own credentials, or
// ours if it may use them; empty for none.
func (c *Cache) authOf(ctx context.Context, u upstream, a access) (string, error) {
	if a.ours {
		return c.credentials(ctx, u)
	}
	return a.auth, nil
}

// A way is how git's children reach one upstream, as somebody.
type way struct {
	u       upstream
	session *session // of upstreams that speak HTTP
	public  bool     // it is anybody's
	ours    bool     // it is by our own credentials
}

func (c *Cache) way(ctx context.Context, u upstream, auth string) *way {
	w := &way{u: u, public: auth == ""}
	if u.web() {
		w.session = c.forward.open(ctx, u, auth, c.cfg.Allow.check)
	}
	return w
}

func (w *way) close() {
	if w.session != nil {
		w.session.close()
	}
}

// address is what git clone is told.
func (w *way) address() string {
	switch {
	case w.session != nil:
		return w.session.address()
	case w.u.url.Scheme == "file":
		return w.u.url.Path
	default:
		return w.u.url.String()
	}
}

// run runs git so that it reaches the upstream, by the name "upstream" or by
// the address. An error of the upstream's is told from one of ours.
func (w *way) run(ctx context.Context, c gitproc.Child) error {
	c.Config = append(c.Config, "remote.upstream.url="+w.address())
	if w.u.unchecked {
		c.Config = append(c.Config, "fetch.fsckObjects=false")
	}
	switch {
	case w.session != nil:
		c.Config = append(c.Config, w.session.config()...)
	case w.u.url.Scheme == "file":
		if _, err := os.Stat(w.u.url.Path); errors.Is(err, os.ErrNotExist) {
			return errNotFound
		}
		c.Config = append(c.Config, "protocol.file.allow=always")
	default:
		c.Config = append(c.Config, "protocol.ssh.allow=always")
		c.Env = append(c.Env, "HOME="+os.Getenv("HOME"), "SSH_AUTH_SOCK="+os.Getenv("SSH_AUTH_SOCK"), "GIT_SSH_COMMAND="+w.u.ssh)
	}
	err := c.Run(ctx)
	if err == nil {
		return nil
	}
	if w.session != nil {
		if failure := w.session.failure(); failure != nil {
			return failure
		}
		return err
	}
	var said *gitproc.Error
	if errors.As(err, &said) && w.u.url.Scheme == "ssh" {
		return &unreachableError{said}
	}
	return err
}
