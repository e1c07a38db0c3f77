package cache

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"codeberg.org/devaipod/devaipod/mirror/gitproc"
)

// Git LFS (git-lfs's docs/api/batch.md and basic-transfers.md): downloads come
// out of the cache, by the same rules as the repository; uploads and locks are
// the upstream's affair.

const (
	lfsType  = "application/vnd.git-lfs+json"
	maxBatch = 4 << 20 // bytes of a batch request or answer
	ticketIs = 15 * time.Minute
)

// lfsBatch is a question for objects, and lfsAnswer what there is of them.
type lfsBatch struct {
	Operation string      `json:"operation"`
	Transfers []string    `json:"transfers,omitempty"`
	Ref       any         `json:"ref,omitempty"`
	Objects   []lfsObject `json:"objects"`
	HashAlgo  string      `json:"hash_algo,omitempty"`
}

type lfsAnswer struct {
	Transfer string      `json:"transfer,omitempty"`
	Objects  []lfsObject `json:"objects"`
	HashAlgo string      `json:"hash_algo,omitempty"`
}

type lfsObject struct {
	OID           string               `json:"oid"`
	Size          int64                `json:"size"`
	Authenticated bool                 `json:"authenticated,omitempty"`
	Actions       map[string]lfsAction `json:"actions,omitempty"`
	Error         *lfsError            `json:"error,omitempty"`
}

type lfsAction struct {
	Href      string            `json:"href"`
	Header    map[string]string `json:"header,omitempty"`
	ExpiresIn int               `json:"expires_in,omitempty"` // seconds
}

type lfsError struct {
	Code    int    `json:"code"`
	Message string `json:"message"`
}

var lfsOID = regexp.MustCompile(`^[0-9a-f]{64}$`)

// lfs answers what is below info/lfs/.
func (q *request) lfs(path string) {
	oid, one := strings.CutPrefix(path, "objects/")
	switch {
	case q.r.Method == http.MethodPost && path == "objects/batch":
		q.lfsBatch()
	case q.r.Method == http.MethodGet && one && lfsOID.MatchString(oid):
		q.lfsObject(oid)
	case path == "locks" || strings.HasPrefix(path, "locks/"):
		q.lfsPass(path, nil)
	default:
		refuse(q.w, http.StatusNotFound, "devaipod: this is no part of Git LFS's API that is known here")
	}
}

func (q *request) lfsBatch() {
	body, err := io.ReadAll(io.LimitReader(q.r.Body, maxBatch))
	var batch lfsBatch
	if err == nil {
		err = json.Unmarshal(body, &batch)
	}
	if err != nil {
		refuse(q.w, http.StatusBadRequest, "devaipod: reading the question for LFS objects: "+gitproc.Printable(err.Error()))
		return
	}
	if batch.Operation != "download" || batch.HashAlgo != "" && batch.HashAlgo != "sha256" {
		q.lfsPass("objects/batch", body)
		return
	}
	if _, ok := q.current(); !ok {
		return
	}
	answer := lfsAnswer{Transfer: "basic", HashAlgo: "sha256"}
	var missing []lfsObject
	for _, o := range batch.Objects {
		switch {
		case !lfsOID.MatchString(o.OID) || o.Size < 0:
			answer.Objects = append(answer.Objects, lfsObject{OID: clip(gitproc.Printable(o.OID)), Error: &lfsError{422, "no sha256, or no size"}})
		case q.repo.lfsHas(o.OID, o.Size):
			answer.Objects = append(answer.Objects, q.lfsOurs(o))
		default:
			missing = append(missing, lfsObject{OID: o.OID, Size: o.Size})
		}
	}
	if len(missing) > 0 {
		told, err := q.lfsAsk(missing)
		if err != nil {
			q.fail(err)
			return
		}
		for _, o := range missing {
			answer.Objects = append(answer.Objects, q.lfsTold(o, told))
		}
	}
	q.w.Header().Set("Content-Type", lfsType)
	_ = json.NewEncoder(q.w).Encode(answer) // the client is gone: nobody to tell
}

// lfsTold is what the upstream says of an object: an error, or that it has it,
// and then the client gets it from here.
func (q *request) lfsTold(o lfsObject, told map[string]lfsObject) lfsObject {
	there, ok := told[o.OID]
	get, has := there.Actions["download"]
	switch {
	case ok && there.Error != nil:
		return lfsObject{OID: o.OID, Size: o.Size, Error: &lfsError{there.Error.Code, clip(gitproc.Printable(there.Error.Message))}}
	case !has || there.Size != o.Size:
		return lfsObject{OID: o.OID, Size: o.Size, Error: &lfsError{404, "the upstream does not have it"}}
	}
	q.repo.c.lfsAt.put(q.repo.addr.String()+" "+o.OID, get, ticketIs)
	return q.lfsOurs(o)
}

// lfsOurs tells the client to get an object here, with a ticket for it: whoever
// may read the repository was asked just now.
func (q *request) lfsOurs(o lfsObject) lfsObject {
	until := strconv.FormatInt(q.repo.c.now().Add(ticketIs).Unix(), 10)
	size := strconv.FormatInt(o.Size, 10)
	ticket := until + "." + size + "." + q.repo.lfsTicket(o.OID, until, size)
	at := url.URL{Scheme: "http", Host: q.r.Host, Path: "/git/" + q.repo.addr.String() + "/info/lfs/objects/" + o.OID}
	return lfsObject{OID: o.OID, Size: o.Size, Authenticated: true, Actions: map[string]lfsAction{
		"download": {Href: at.String(), Header: map[string]string{"Authorization": "Devaipod " + ticket}, ExpiresIn: int(ticketIs / time.Second)},
	}}
}

func (r *repo) lfsTicket(oid, until, size string) string {
	h := hmac.New(sha256.New, r.c.seen.key)
	fmt.Fprintf(h, "lfs\x00%s\x00%s\x00%s\x00%s", r.addr, oid, until, size)
	return hex.EncodeToString(h.Sum(nil))
}

// lfsAllowed reads a ticket.
func (q *request) lfsAllowed(oid string) (size int64, ok bool) {
	ticket, ours := strings.CutPrefix(q.r.Header.Get("Authorization"), "Devaipod ")
	part := strings.Split(ticket, ".")
	if !ours || len(part) != 3 || !hmac.Equal([]byte(part[2]), []byte(q.repo.lfsTicket(oid, part[0], part[1]))) {
		return 0, false
	}
	until, err := strconv.ParseInt(part[0], 10, 64)
	size, err2 := strconv.ParseInt(part[1], 10, 64)
	return size, err == nil && err2 == nil && q.repo.c.now().Unix() < until
}

func (r *repo) lfsFile(oid string) string { return r.file(filepath.Join("lfs", oid[:2], oid)) }

func (r *repo) lfsHas(oid string, size int64) bool {
	info, err := os.Stat(r.lfsFile(oid))
	return err == nil && info.Size() == size
}

// lfsObject sends one object: out of the cache, or as it comes from the
// upstream and into the cache.
func (q *request) lfsObject(oid string) {
	c := q.repo.c
	size, ok := q.lfsAllowed(oid)
	if !ok {
		refuse(q.w, http.StatusForbidden, "devaipod: that is not what this server has allowed, or not any more; ask objects/batch again")
		return
	}
	f, err := os.Open(q.repo.lfsFile(oid))
	if err == nil {
		defer f.Close()
		q.w.Header().Set("Content-Type", "application/octet-stream")
		http.ServeContent(q.w, q.r, "", time.Time{}, f)
		return
	}
	if !errors.Is(err, fs.ErrNotExist) {
		q.fail(err)
		return
	}
	q.w.Header().Set("Content-Length", strconv.FormatInt(size, 10))
	q.answer("application/octet-stream", "lfs "+oid, "", func(ctx context.Context, w io.Writer) error {
		at, ok := c.lfsAt.get(q.repo.addr.String() + " " + oid)
		if !ok {
			return &unreachableError{errors.New("where the object is was said too long ago")}
		}
		return q.repo.lfsFetch(ctx, at, oid, size, w)
	})
}

// lfsFetch brings one object. Only what has the right sum is kept.
func (r *repo) lfsFetch(ctx context.Context, at lfsAction, oid string, size int64, out io.Writer) (err error) {
	resp, err := r.lfsGet(ctx, at)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return &unreachableError{fmt.Errorf("for an LFS object it says %s", gitproc.Printable(resp.Status))}
	}
	dir := filepath.Dir(r.lfsFile(oid))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, "tmp_")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close(), os.Remove(f.Name()))
		}
	}()
	sum := sha256.New()
	n, err := io.Copy(io.MultiWriter(f, sum, out), io.LimitReader(resp.Body, size+1))
	if err != nil {
		return &unreachableError{cause(ctx, err)}
	}
	if n != size || hex.EncodeToString(sum.Sum(nil)) != oid {
		return &unreachableError{fmt.Errorf("what it sends as LFS object %s is another", oid)}
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), r.lfsFile(oid))
}

// lfsGet asks where the upstream has said. That may be elsewhere, as many keep
// objects with somebody else: then only by https, at public addresses, or where
// the rules allow.
func (r *repo) lfsGet(ctx context.Context, at lfsAction) (*http.Response, error) {
	u, err := r.c.upstream(r.addr)
	if err != nil {
		return nil, err
	}
	to, err := url.Parse(at.Href)
	if err != nil || to.User != nil || to.Host == "" {
		return nil, &unreachableError{errors.New("where it has an LFS object is no URL")}
	}
	v, via := u.verdict, u.via
	if to.Host != u.url.Host {
		v, via = public, nil
		if addr, err := ParseAddress(to.Host + "/x"); err == nil {
			v = max(v, r.c.cfg.Allow.check(addr))
		}
	}
	if to.Scheme != "https" && (to.Scheme != "http" || u.url.Scheme != "http" || v != named) {
		return nil, &RefusedError{What: r.addr.String(), Why: "it has LFS objects at " + clip(gitproc.Printable(to.Scheme+"://"+to.Host)) + ", which is not https"}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, to.String(), nil)
	if err != nil {
		return nil, &unreachableError{err}
	}
	for k, v := range at.Header {
		req.Header.Set(k, v)
	}
	return r.c.forward.do(v, via, req)
}

// lfsAuth is what the caller is known by at the upstream.
func (q *request) lfsAuth() (string, error) {
	u, err := q.repo.c.upstream(q.repo.addr)
	if err != nil {
		return "", err
	}
	return q.repo.c.authOf(q.r.Context(), u, q.access)
}

// lfsAsk asks the upstream where it has objects, in the caller's name.
func (q *request) lfsAsk(objects []lfsObject) (map[string]lfsObject, error) {
	auth, err := q.lfsAuth()
	if err != nil {
		return nil, err
	}
	body, err := json.Marshal(lfsBatch{Operation: "download", Transfers: []string{"basic"}, Objects: objects, HashAlgo: "sha256"})
	if err != nil {
		return nil, err
	}
	resp, err := q.lfsSend(http.MethodPost, "objects/batch", body, auth)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusUnauthorized, http.StatusForbidden:
		return nil, errUnauthorized
	case http.StatusNotFound:
		return nil, errNotFound
	default:
		return nil, &unreachableError{fmt.Errorf("asked for LFS objects, it says %s", gitproc.Printable(resp.Status))}
	}
	var answer lfsAnswer
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxBatch)).Decode(&answer); err != nil {
		return nil, &unreachableError{fmt.Errorf("asked for LFS objects: %w", err)}
	}
	told := map[string]lfsObject{}
	for _, o := range answer.Objects {
		told[o.OID] = o.with(auth, resp.Request.URL.Host)
	}
	return told, nil
}

// with adds the credentials that the upstream was asked with, as git-lfs does,
// where it has the object itself and has given no others.
func (o lfsObject) with(auth, host string) lfsObject {
	get, ok := o.Actions["download"]
	at, err := url.Parse(get.Href)
	if !ok || auth == "" || err != nil || at.Host != host {
		return o
	}
	header := map[string]string{"Authorization": auth}
	for k, v := range get.Header {
		if strings.EqualFold(k, "Authorization") {
			return o
		}
		header[k] = v
	}
	get.Header = header
	o.Actions["download"] = get
	return o
}

// lfsSend asks the upstream's LFS server, which is where git-lfs looks for it.
func (q *request) lfsSend(method, path string, body []byte, auth string) (*http.Response, error) {
	u, err := q.repo.c.upstream(q.repo.addr)
	if err != nil {
		return nil, err
	}
	if !u.web() {
		return nil, &RefusedError{What: q.repo.addr.String(), Why: "LFS objects are fetched by http and https only"}
	}
	to := u.url.JoinPath("info/lfs", path)
	to.RawQuery = q.r.URL.RawQuery
	req, err := http.NewRequestWithContext(q.r.Context(), method, to.String(), bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", lfsType)
	req.Header.Set("Content-Type", lfsType)
	req.Header.Set("User-Agent", "git-lfs/3 (devaipod)")
	if auth != "" {
		req.Header.Set("Authorization", auth)
	}
	return q.repo.c.forward.do(u.verdict, u.via, req)
}

// lfsPass lets the upstream answer itself, in the caller's name.
func (q *request) lfsPass(path string, body []byte) {
	if body == nil {
		var err error
		if body, err = io.ReadAll(io.LimitReader(q.r.Body, maxBatch)); err != nil {
			return // the client has gone
		}
	}
	auth, err := q.lfsAuth()
	if err != nil {
		q.fail(err)
		return
	}
	resp, err := q.lfsSend(q.r.Method, path, body, auth)
	if err != nil {
		q.fail(err)
		return
	}
	defer resp.Body.Close()
	q.w.Header().Set("Content-Type", resp.Header.Get("Content-Type"))
	if resp.StatusCode == http.StatusUnauthorized {
		q.challenge()
	}
	q.w.WriteHeader(resp.StatusCode)
	if _, err := io.Copy(q.w, io.LimitReader(resp.Body, maxBatch)); err != nil && q.r.Context().Err() == nil {
		panic(http.ErrAbortHandler) // a cut-off answer must not look whole
	}
}

// basicAuth is a header's value.
func basicAuth(user, password string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
}
