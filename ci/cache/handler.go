package cache

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Path is where a job's handler has its API, as clients put it behind ACTIONS_CACHE_URL.
const Path = "/_apis/artifactcache/"

// Bounds on what a job asks for.
const (
	maxKey  = 512      // bytes of a key, and of a version
	maxKeys = 20       // in one question
	maxBody = 16 << 10 // bytes of JSON

	maxChunk = 64 << 20 // bytes of a chunk that are read for nothing; clients send 32 MiB
)

// fits tells whether a text can be a key or a version.
func fits(s string) bool { return s != "" && len(s) <= maxKey && !strings.ContainsAny(s, ",\x00") }

// A Job is the cache as one job sees it. It may be used concurrently.
type Job struct {
	store *Store
	scope Scope
	base  string
	mux   *http.ServeMux

	mu      sync.Mutex
	closed  bool
	last    int64
	uploads map[int64]*upload
	sent    int64 // bytes of uploads, as they are counted
}

// Job is the handler of one job, that is reached at base, an ACTIONS_CACHE_URL. The
// caller closes it when the job has ended.
func (s *Store) Job(scope Scope, base string) *Job {
	s.expire()
	j := &Job{store: s, scope: scope, base: base, mux: http.NewServeMux(), uploads: map[int64]*upload{}}
	j.mux.HandleFunc("GET "+Path+"cache", j.serveFind)
	j.mux.HandleFunc("POST "+Path+"caches", j.serveReserve)
	j.mux.HandleFunc("PATCH "+Path+"caches/{num}", j.serveChunk)
	j.mux.HandleFunc("POST "+Path+"caches/{num}", j.serveCommit)
	j.mux.HandleFunc("GET "+Path+"artifacts/{id}", j.serveArchive)
	return j
}

// Close ends what is being saved. The job saves nothing after.
func (j *Job) Close() {
	j.mu.Lock()
	j.closed = true
	var left []*upload
	for _, u := range j.uploads {
		left = append(left, u)
	}
	j.mu.Unlock()
	for _, u := range left {
		u.abort()
	}
}

// maxEntry is the most that an entry has, and that a job sends before it commits, bytes.
func (j *Job) maxEntry() int64 { return j.store.Max / 4 }

// take counts n bytes more of what is being saved, if there may be so many.
func (j *Job) take(n int64) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.sent+n > j.maxEntry() {
		return false
	}
	j.sent += n
	return true
}

func (j *Job) forget(u *upload) {
	j.mu.Lock()
	defer j.mu.Unlock()
	delete(j.uploads, u.num)
	j.sent -= u.size
}

func (j *Job) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		r.Body = &slow{r.Body, http.NewResponseController(w), j.store.Idle}
	}
	j.mux.ServeHTTP(w, r)
}

// A slow peer is waited for, as long as something comes.
type slow struct {
	io.ReadCloser
	conn *http.ResponseController
	idle time.Duration
}

func (s *slow) Read(p []byte) (int, error) {
	if err := s.conn.SetReadDeadline(time.Now().Add(s.idle)); err != nil {
		return 0, err
	}
	n, err := s.ReadCloser.Read(p)
	switch {
	case err == nil || errors.Is(err, io.EOF):
		return n, err
	case errors.Is(err, os.ErrDeadlineExceeded):
		return n, wrong(http.StatusRequestTimeout, "nothing came for %s", s.idle)
	}
	return n, wrong(http.StatusBadRequest, "the request is not all there: %v", err)
}

// serveFind says what is restored: GET cache?keys=A,B&version=V.
func (j *Job) serveFind(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	keys, version := slices.DeleteFunc(strings.Split(q.Get("keys"), ","), func(k string) bool { return k == "" }), q.Get("version")
	if len(keys) > maxKeys || !fits(version) || slices.ContainsFunc(keys, func(k string) bool { return !fits(k) }) {
		j.fail(w, wrong(http.StatusUnprocessableEntity, "want a version, and %d keys at most, each of %d bytes at most", maxKeys, maxKey))
		return
	}
	e := j.store.find(j.scope, keys, version)
	if e == nil {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	j.answer(w, http.StatusOK, map[string]any{
		"result": "hit", "archiveLocation": strings.TrimSuffix(j.base, "/") + Path + "artifacts/" + e.ID,
		"cacheKey": e.Key, "cacheVersion": e.Version, "scope": e.Ref, "creationTime": e.Created.UTC().Format(time.RFC3339),
	})
}

// serveArchive sends an archive: GET artifacts/ID.
func (j *Job) serveArchive(w http.ResponseWriter, r *http.Request) {
	e := j.store.visible(j.scope, r.PathValue("id"))
	if e == nil {
		j.fail(w, wrong(http.StatusNotFound, "there is no such entry"))
		return
	}
	f, err := os.Open(archive(j.store.Dir, e.ID))
	if errors.Is(err, os.ErrNotExist) {
		err = wrong(http.StatusNotFound, "the entry was removed")
	}
	if err != nil {
		j.fail(w, err)
		return
	}
	defer f.Close()
	conn := http.NewResponseController(w)
	defer conn.SetWriteDeadline(time.Time{}) //nolint:errcheck // the connection has ended then
	w.Header().Set("Content-Type", "application/octet-stream")
	http.ServeContent(&patient{w, conn, j.store.Idle}, r, "", e.Created, f)
}

// patient is for a peer that is slow to read.
type patient struct {
	http.ResponseWriter
	conn *http.ResponseController
	idle time.Duration
}

func (p *patient) Write(b []byte) (int, error) {
	if err := p.conn.SetWriteDeadline(time.Now().Add(p.idle)); err != nil {
		return 0, err
	}
	return p.ResponseWriter.Write(b)
}

// serveReserve begins a save: POST caches.
func (j *Job) serveReserve(w http.ResponseWriter, r *http.Request) {
	var asked struct {
		Key     string `json:"key"`
		Version string `json:"version"`
		Size    int64  `json:"cacheSize"`
	}
	if !j.decode(w, r, &asked) {
		return
	}
	u, err := j.reserve(asked.Key, asked.Version, asked.Size)
	if err != nil {
		j.fail(w, err)
		return
	}
	j.answer(w, http.StatusCreated, map[string]any{"cacheId": u.num})
}

// serveChunk takes a part: PATCH caches/NUM, with Content-Range.
func (j *Job) serveChunk(w http.ResponseWriter, r *http.Request) {
	err := j.chunk(r)
	if err != nil {
		// Clients that are answered while they send see a broken connection, and no answer.
		_, _ = io.CopyN(io.Discard, r.Body, maxChunk)
		j.fail(w, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// chunk is one of a save.
func (j *Job) chunk(r *http.Request) error {
	u, err := j.upload(r)
	if err != nil {
		return err
	}
	at, ok := contentRange(r.Header.Values("Content-Range"))
	switch {
	case !ok:
		return wrong(http.StatusBadRequest, "want Content-Range: bytes FIRST-LAST/*")
	case at.end > j.maxEntry():
		return wrong(http.StatusRequestEntityTooLarge, "an entry has %d bytes at most", j.maxEntry())
	case r.ContentLength >= 0 && r.ContentLength != at.end-at.begin:
		return errLength
	}
	return u.write(at, r.Body)
}

// serveCommit ends a save: POST caches/NUM.
func (j *Job) serveCommit(w http.ResponseWriter, r *http.Request) {
	u, err := j.upload(r)
	if err != nil {
		j.fail(w, err)
		return
	}
	var asked struct {
		Size int64 `json:"size"`
	}
	if !j.decode(w, r, &asked) {
		return
	}
	if err := u.commit(asked.Size); err != nil {
		j.fail(w, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// upload is what a request is about.
func (j *Job) upload(r *http.Request) (*upload, error) {
	num, err := strconv.ParseInt(r.PathValue("num"), 10, 64)
	j.mu.Lock()
	defer j.mu.Unlock()
	if u := j.uploads[num]; u != nil && err == nil {
		return u, nil
	}
	return nil, errOver
}

// contentRange reads bytes FIRST-LAST/TOTAL (RFC 9110, 14.4), whose TOTAL says nothing
// until the commit.
func contentRange(header []string) (span, bool) {
	if len(header) != 1 {
		return span{}, false
	}
	text, ok := strings.CutPrefix(header[0], "bytes ")
	text, _, _ = strings.Cut(text, "/")
	first, last, ok2 := strings.Cut(text, "-")
	begin, err := strconv.ParseUint(first, 10, 62)
	end, err2 := strconv.ParseUint(last, 10, 62)
	return span{int64(begin), int64(end) + 1}, ok && ok2 && err == nil && err2 == nil && begin <= end
}

// decode reads a request, and answers where it can't be read.
func (j *Job) decode(w http.ResponseWriter, r *http.Request, v any) bool {
	text, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err == nil && json.Unmarshal(text, v) != nil {
		err = wrong(http.StatusUnprocessableEntity, "the request is not the JSON that is asked for")
	}
	if large := (*http.MaxBytesError)(nil); errors.As(err, &large) {
		err = wrong(http.StatusRequestEntityTooLarge, "the request has more than %d bytes", large.Limit)
	}
	if err != nil {
		j.fail(w, err)
	}
	return err == nil
}

// fail answers with what went wrong. Clients show "message".
func (j *Job) fail(w http.ResponseWriter, err error) {
	var p *problem
	code, text := http.StatusInternalServerError, "the cache does not work; the service's log has more"
	switch {
	case errors.As(err, &p):
		code, text = p.code, p.text
	case errors.Is(err, errFull):
		code, text = http.StatusInsufficientStorage, err.Error()
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		code, text = http.StatusInsufficientStorage, "the disk of the cache is full"
		j.store.Log.Warn("saving into the CI cache", "repo", j.scope.Name, "err", err)
	default:
		j.store.Log.Warn("the CI cache", "repo", j.scope.Name, "err", err)
	}
	j.answer(w, code, map[string]any{"message": text})
}

func (j *Job) answer(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	if err := json.NewEncoder(w).Encode(v); err != nil {
		j.store.Log.Debug("answering a job", "err", err)
	}
}
