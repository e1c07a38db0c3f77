package cache

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"codeberg.org/devaipod/devaipod/mirror/gitproc"
	"codeberg.org/devaipod/devaipod/mirror/smarthttp"
)

// Bounds on what a client sends.
const (
	maxNegotiation = 128 << 20 // bytes of a fetch request; a million refs are about 50 MB
	maxKept        = 64 << 10  // bytes of a request whose answer is kept
)

// A request is what a client asks of one repository.
type request struct {
	w http.ResponseWriter
	r *http.Request

	repo   *repo
	access access
	// protocol is what the client asks for in Git-Protocol: "version=2", or "".
	protocol string
	maxAge   time.Duration // how old the answer may be
	// result is how it was answered, for the count.
	result string
}

// ServeHTTP answers git, at /git/<host>/<path>.git.
func (c *Cache) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !c.calledRightly(r.Host) {
		// A page of some website, whose name leads here, must not read with this
		// machine's access.
		refuse(w, http.StatusForbidden, fmt.Sprintf("devaipod: this server is not called %s; use localhost, or add the name to mirror.hostnames", clip(gitproc.Printable(r.Host))))
		return
	}
	addr, route, err := parsePath(r.URL)
	if err != nil {
		refuse(w, http.StatusBadRequest, "devaipod: "+gitproc.Printable(err.Error()))
		return
	}
	if v := c.cfg.Allow.check(addr); v == refused {
		_, err := c.upstream(addr)
		refuse(w, http.StatusForbidden, "devaipod: "+gitproc.Printable(err.Error()))
		return
	}
	q := c.request(w, r, addr, c.accessOf(r))
	switch {
	case q.reads(route):
	case strings.HasPrefix(route, "/info/lfs/"):
		defer q.count("lfs")
		q.lfs(strings.TrimPrefix(route, "/info/lfs/"))
	case r.Method == http.MethodGet && route == "/clone.bundle":
		defer q.count("bundle")
		q.bundle()
	case r.Method == http.MethodGet && route == "/info/refs" && r.URL.Query().Get("service") == receivePack, r.Method == http.MethodPost && route == "/git-receive-pack":
		defer q.count("push")
		q.push(strings.TrimPrefix(route, "/"))
	default:
		defer q.count("other")
		refuse(w, http.StatusForbidden, "devaipod: git's dumb protocol is not served; use git 1.6.6 or newer, and nothing but git")
	}
}

func (c *Cache) request(w http.ResponseWriter, r *http.Request, addr Address, a access) *request {
	maxAge := c.cfg.MaxAge
	if c.cfg.Hosts[addr.Host].Always {
		maxAge = 0
	}
	return &request{w: w, r: r, repo: c.repo(addr), access: a, protocol: protocolOf(r), maxAge: maxAge, result: resultRefused}
}

func (q *request) count(what string) {
	q.repo.c.count.requests.WithLabelValues(what, q.result).Inc()
}

// reads answers the two questions that a fetch is made of, and tells whether it
// was one of them.
func (q *request) reads(route string) bool {
	switch {
	case q.r.Method == http.MethodGet && route == "/info/refs" && q.r.URL.Query().Get("service") == uploadPack:
		defer q.count("refs")
		q.advertise()
	case q.r.Method == http.MethodPost && route == "/git-upload-pack":
		defer q.count("fetch")
		q.upload()
	default:
		return false
	}
	return true
}

// readsOnly answers a fetch and refuses all else.
func (q *request) readsOnly(route string) {
	if !q.reads(route) {
		defer q.count("other")
		refuse(q.w, http.StatusForbidden, "devaipod: here repositories are read, by git's smart protocol, and nothing else")
	}
}

// Reads serves one repository for reading, to callers who may use our own
// credentials, wherever it is mounted: the end of a request's path says what is
// asked.
func (c *Cache) Reads(addr Address) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		q := c.request(w, r, addr, access{ours: true})
		route := "/info/refs"
		if !strings.HasSuffix(r.URL.Path, route) {
			route = "/" + uploadPack
		}
		q.readsOnly(route)
	})
}

// PublicReads serves, below /git/ and for reading alone, what allow lets pass
// and its upstream lets anybody read. What a request shows of credentials is
// not looked at.
func (c *Cache) PublicReads(allow Allow) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		addr, route, err := parsePath(r.URL)
		if err == nil && allow.check(addr) == refused {
			err = &RefusedError{What: addr.String(), Why: "it is not among the upstreams that may be read from here"}
		}
		if err == nil {
			_, err = c.upstream(addr)
		}
		if err != nil {
			refuse(w, http.StatusForbidden, "devaipod: "+gitproc.Printable(err.Error()))
			return
		}
		c.request(w, r, addr, access{}).readsOnly(route)
	})
}

// parsePath finds the repository and what is asked of it.
func parsePath(u *url.URL) (addr Address, route string, err error) {
	if escaped := strings.ToLower(u.EscapedPath()); strings.Contains(escaped, "%2f") || strings.Contains(escaped, "%5c") {
		return addr, "", &AddressError{u.EscapedPath(), "a slash in it is escaped"}
	}
	rest, ok := strings.CutPrefix(u.Path, "/git/")
	if i := strings.Index(rest, ".git/"); i >= 0 {
		addr, err = ParseAddress(rest[:i])
		return addr, rest[i+len(".git"):], err
	}
	for _, route := range []string{"/info/refs", "/" + uploadPack, "/" + receivePack, "/clone.bundle"} {
		if name, found := strings.CutSuffix(rest, route); ok && found { // as in https://github.com/owner/repo
			addr, err = ParseAddress(name)
			return addr, route, err
		}
	}
	return addr, "", &AddressError{rest, "it is not what git asks for"}
}

// calledRightly holds the Host header to the names that this server has.
func (c *Cache) calledRightly(host string) bool {
	name := strings.ToLower(hostOnly(host))
	return isLoopback(name) || strings.HasSuffix(name, ".localhost") || slices.Contains(c.cfg.Hostnames, name)
}

var protocols = regexp.MustCompile(`^version=[012]$`)

func protocolOf(r *http.Request) string {
	for part := range strings.SplitSeq(r.Header.Get("Git-Protocol"), ":") {
		if protocols.MatchString(part) {
			return part
		}
	}
	return ""
}

// maxAuth bounds an Authorization header, in bytes.
const maxAuth = 8 << 10

func (c *Cache) accessOf(r *http.Request) access {
	if c.cfg.Ours != nil && c.cfg.Ours(r) {
		return access{ours: true}
	}
	auth := r.Header.Get("Authorization")
	if len(auth) > maxAuth {
		auth = ""
	}
	return access{auth: auth}
}

// current sees to it that the repository is as new as it has to be and that the
// caller may read it, and says in headers how old it is. When ok is false, the
// client has its answer.
func (q *request) current() (st State, ok bool) {
	c := q.repo.c
	began := c.now()
	st, err := q.repo.fresh(q.r.Context(), q.access, q.maxAge)
	stale := false
	var away *unreachableError
	if errors.As(err, &away) && st.Generation != "" {
		stale, err = true, nil
	}
	if err == nil {
		err = q.repo.admit(q.r.Context(), q.access, st)
	}
	if err != nil {
		q.fail(err)
		return st, false
	}
	q.tell(st, st.Checked.Before(began), stale)
	return st, true
}

// advertise answers git's first question, after having asked the upstream.
func (q *request) advertise() {
	st, ok := q.current()
	if !ok {
		return
	}
	head := ""
	if q.protocol != "version=2" {
		head = "001e# service=git-upload-pack\n0000"
	}
	q.answer("application/x-git-upload-pack-advertisement", st.Generation+" refs "+q.protocol, "", func(ctx context.Context, w io.Writer) error {
		if _, err := io.WriteString(w, head); err != nil {
			return err
		}
		return q.repo.uploadPack(ctx, q.protocol, nil, w, "--http-backend-info-refs")
	})
}

// bundle answers with all branches and tags in one file, for git clone
// --bundle-uri (gitformat-bundle(5)): the same bytes for everybody, until
// something changes.
func (q *request) bundle() {
	st, ok := q.current()
	if !ok {
		return
	}
	q.answer("application/x-git-bundle", st.Generation+" bundle", "", func(ctx context.Context, w io.Writer) error {
		err := gitproc.Child{Dir: q.repo.git(), Args: []string{"bundle", "create", "--quiet", "-", "--branches", "--tags"}, Stdout: w}.Run(ctx)
		q.repo.doubt(err)
		return err
	})
}

// upload answers what follows, out of what is here: the client has been told of
// its age before.
func (q *request) upload() {
	c := q.repo.c
	st, ok, err := q.repo.load()
	if err == nil && !ok { // asked without the first question, or evicted since
		st, err = q.repo.fresh(q.r.Context(), q.access, q.maxAge)
	}
	if err == nil {
		err = q.repo.admit(q.r.Context(), q.access, st)
	}
	if err != nil {
		q.fail(err)
		return
	}
	body, err := plainBody(q.w, q.r, c.cfg.Patience)
	if err != nil {
		refuse(q.w, http.StatusBadRequest, "devaipod: "+err.Error())
		return
	}
	start, err := io.ReadAll(io.LimitReader(body, maxKept+1))
	if err != nil {
		refuse(q.w, http.StatusBadRequest, "devaipod: reading the request: "+err.Error())
		return
	}
	warn := ""
	if stale := st.Error != "" && c.now().Sub(st.Checked) >= q.maxAge; stale {
		warn = fmt.Sprintf("devaipod: %s does not answer (%s); this is as of %s", q.repo.addr.Host, clip(st.Error), st.Checked.Format(time.RFC3339))
		q.tell(st, true, true)
	} else {
		q.tell(st, true, false)
	}
	sum := sha256.Sum256(start)
	key := st.Generation + " " + q.protocol + " " + hex.EncodeToString(sum[:])
	in := io.Reader(bytes.NewReader(start))
	if len(start) > maxKept {
		key, in = "", io.MultiReader(in, body)
		if err := smarthttp.Duplex(q.w); err != nil {
			q.fail(err)
			return
		}
	}
	q.answer("application/x-git-upload-pack-result", key, warn, func(ctx context.Context, w io.Writer) error {
		return q.repo.uploadPack(ctx, q.protocol, in, w)
	})
}

// uploadPack is git's own. What it refuses, it says in its answer, which is whole
// then, and ends with an error.
func (r *repo) uploadPack(ctx context.Context, protocol string, in io.Reader, out io.Writer, args ...string) error {
	end := &gitproc.Tail{Max: 1024}
	c := gitproc.Child{Args: append(append([]string{"upload-pack", "--stateless-rpc", "--strict"}, args...), r.git()), Stdin: in, Stdout: io.MultiWriter(out, end)}
	if protocol != "" {
		c.Env = []string{"GIT_PROTOCOL=" + protocol}
	}
	err := c.Run(ctx)
	var said *gitproc.Error
	if errors.As(err, &said) && bytes.Contains(end.Bytes, []byte("ERR upload-pack: ")) {
		return nil
	}
	r.doubt(err)
	return err
}

// answer sends what produce makes, or made before for the same key; without a
// key it is made for this request alone.
func (q *request) answer(contentType, key, warn string, produce func(context.Context, io.Writer) error) {
	c := q.repo.c
	q.w.Header().Set("Content-Type", contentType)
	out := &patient{w: q.w, rc: http.NewResponseController(q.w), limit: c.cfg.Patience, sent: c.count.sent}
	if err := q.repo.touch("used"); err != nil {
		c.cfg.Log.Warn("noting that a repository is in use", "repo", q.repo.addr.String(), "err", err)
	}
	var err error
	if key == "" || !c.answers.room() {
		err = produce(q.r.Context(), warning(out, warn))
	} else {
		err = q.kept(out, q.repo.addr.String()+" "+key, warn, produce)
	}
	if err == nil {
		return
	}
	if q.r.Context().Err() == nil && !out.broke {
		c.cfg.Log.Warn("answering git", "repo", q.repo.addr.String(), "err", err)
	}
	if out.began {
		panic(http.ErrAbortHandler) // a cut-off answer must not look whole
	}
	q.fail(err)
}

// kept sends a kept answer. One that is complete goes from file to socket
// without passing through this process.
func (q *request) kept(out *patient, key, warn string, produce func(context.Context, io.Writer) error) error {
	r, err := q.repo.c.answers.get(q.r.Context(), key, produce)
	if err != nil {
		return err
	}
	defer r.close()
	if size, ok := r.complete(); ok && warn == "" {
		q.w.Header().Set("Content-Length", strconv.FormatInt(size, 10))
		return out.send(r.f, size)
	}
	_, err = io.CopyBuffer(warning(out, warn), onlyReader{r}, make([]byte, 64<<10))
	return err
}

// onlyReader hides all but Read.
type onlyReader struct{ io.Reader }

// A patient writer lets the client be slow, but not still.
type patient struct {
	w            http.ResponseWriter
	rc           *http.ResponseController
	limit        time.Duration
	sent         prometheus.Counter
	began, broke bool
}

func (p *patient) more() error {
	p.began = true
	err := p.rc.SetWriteDeadline(time.Now().Add(p.limit))
	if errors.Is(err, http.ErrNotSupported) {
		return nil
	}
	return err
}

func (p *patient) Write(b []byte) (int, error) {
	if err := p.more(); err != nil {
		return 0, err
	}
	n, err := p.w.Write(b)
	p.sent.Add(float64(n))
	if err == nil {
		if err = p.rc.Flush(); errors.Is(err, http.ErrNotSupported) {
			err = nil
		}
	}
	p.broke = p.broke || err != nil
	return n, err
}

// send copies size bytes of a file.
func (p *patient) send(f io.Reader, size int64) error {
	for size > 0 {
		if err := p.more(); err != nil {
			return err
		}
		n, err := io.CopyN(p.w, f, min(size, 8<<20))
		p.sent.Add(float64(n))
		if err != nil {
			p.broke = true
			return err
		}
		size -= n
	}
	p.began = true
	return nil
}

// tell says in headers how old the answer is (RFC 9111, RFC 9211).
func (q *request) tell(st State, hit, stale bool) {
	age := max(0, q.repo.c.now().Sub(st.Checked))
	q.w.Header().Set("Age", strconv.Itoa(int(age/time.Second)))
	q.w.Header().Set("Cache-Control", "no-cache")
	q.result = resultRefreshed
	status := "devaipod; fwd=stale"
	ttl := int((q.maxAge - age) / time.Second)
	switch {
	case stale:
		q.result = resultStale
		status = fmt.Sprintf(`devaipod; hit; ttl=%d; detail="the upstream does not answer"`, min(ttl, -1))
	case hit:
		q.result = resultHit
		status = fmt.Sprintf("devaipod; hit; ttl=%d", ttl)
	}
	q.w.Header().Set("Cache-Status", status)
}

// challenge lets git ask for credentials (RFC 7617).
func (q *request) challenge() {
	q.w.Header().Set("WWW-Authenticate", fmt.Sprintf("Basic realm=%q", q.repo.addr.Host))
}

// fail tells the client why there is nothing for it.
func (q *request) fail(err error) {
	addr := q.repo.addr
	q.result = resultFailed
	status, text := http.StatusInternalServerError, "devaipod: "+err.Error()
	var refusal *RefusedError
	var away *unreachableError
	switch {
	case q.r.Context().Err() != nil:
		return // nobody is there
	case errors.As(err, &refusal):
		status = http.StatusForbidden
	case errors.Is(err, errUnauthorized):
		status, text = http.StatusUnauthorized, fmt.Sprintf("devaipod: %s does not let everybody read %s; use credentials of your own for it", addr.Host, addr.Path)
		q.challenge()
	case errors.Is(err, errNotFound):
		status, text = http.StatusNotFound, fmt.Sprintf("devaipod: %s knows no repository %s", addr.Host, addr.Path)
	case errors.As(err, &away):
		status, text = http.StatusBadGateway, fmt.Sprintf("devaipod: %s does not answer (%s), and there is no copy of %s here that you may read; try again later", addr.Host, clip(away.err.Error()), addr.Path)
	case errors.Is(err, syscall.ENOSPC) || strings.Contains(err.Error(), "No space left on device"):
		status, text = http.StatusInsufficientStorage, "devaipod: the disk of the cache is full; make room (devaipod mirror status says what is large)"
	}
	if status < http.StatusInternalServerError {
		q.result = resultRefused
	} else {
		q.repo.c.cfg.Log.Warn("no answer for git", "repo", addr.String(), "err", err)
	}
	refuse(q.w, status, gitproc.Printable(text))
}

type readCloser struct {
	io.Reader
	io.Closer
}

// plainBody undoes the request's content encoding, within bounds: the client may
// be slow, but not still.
func plainBody(w http.ResponseWriter, r *http.Request, limit time.Duration) (io.Reader, error) {
	rc := http.NewResponseController(w)
	body := io.Reader(http.MaxBytesReader(w, readCloser{readerFunc(func(b []byte) (int, error) {
		if err := rc.SetReadDeadline(time.Now().Add(limit)); err != nil && !errors.Is(err, http.ErrNotSupported) {
			return 0, err
		}
		return r.Body.Read(b)
	}), r.Body}, maxNegotiation))
	plain, err := smarthttp.Plain(r, body)
	if err != nil {
		return nil, err
	}
	return http.MaxBytesReader(w, io.NopCloser(plain), maxNegotiation), nil
}

// refuse answers with plain text, in place of what was begun.
func refuse(w http.ResponseWriter, status int, text string) {
	for _, h := range []string{"Content-Length", "Age", "Cache-Status"} {
		w.Header().Del(h)
	}
	smarthttp.Refuse(w, status, text)
}
