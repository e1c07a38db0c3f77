package sandbox

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"path"
	"regexp"
	"strings"
	"time"

	"github.com/containers/podman/v5/pkg/specgen"
)

const (
	apiVersion = "1.41"   // of Docker's API: what podman 4 and 5 have
	compat     = "/v1.41" // before podman's paths of it
	libpod     = "/v4.0.0/libpod"
	maxJSON    = 1 << 20   // bytes of a request
	maxAnswer  = 16 << 20  // bytes of an answer that is read here
	maxArchive = 256 << 20 // bytes of files that are read out of a container
	maxPull    = 64 << 20  // bytes of what is told of a pull
	readJSON   = 30 * time.Second
)

// A refusal is what the filter answers itself.
type refusal struct {
	status int
	text   string
}

func (r *refusal) Error() string { return r.text }

// refused says that something is not allowed in a job; it is shown in the job's log.
func refused(format string, args ...any) error {
	return &refusal{http.StatusForbidden, "devaipod: " + fmt.Sprintf(format, args...)}
}

func bad(format string, args ...any) error {
	return &refusal{http.StatusBadRequest, "devaipod: " + fmt.Sprintf(format, args...)}
}

func notFound(kind, name string) error {
	return &refusal{http.StatusNotFound, fmt.Sprintf("no such %s: %.200q", kind, name)}
}

// serve answers on l until ctx ends.
func (s *Sandbox) serve(ctx context.Context, l net.Listener) {
	s.server = &http.Server{
		Handler: http.HandlerFunc(s.handle), BaseContext: func(net.Listener) context.Context { return ctx },
		ReadHeaderTimeout: 30 * time.Second, IdleTimeout: 10 * time.Minute, MaxHeaderBytes: 64 << 10,
		ErrorLog: log.New(io.Discard, "", 0), // what a job sends wrongly is its own affair
	}
	s.running.Go(func() {
		if err := s.server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			s.cfg.Log.Error("serving a job's Docker API", "task", s.task, "err", err)
		}
	})
}

func (s *Sandbox) handle(w http.ResponseWriter, r *http.Request) {
	if !s.enter(r.Context()) {
		return
	}
	defer s.running.Done()
	if err := s.route(w, r); err != nil {
		answer := &refusal{http.StatusBadGateway, "devaipod: " + err.Error()}
		errors.As(err, &answer)
		s.cfg.Log.Log(r.Context(), slog.LevelDebug, "refused what a job asked of Docker", "task", s.task, "method", r.Method, "path", r.URL.Path, "err", err)
		writeJSON(w, answer.status, map[string]string{"message": answer.text})
	}
}

// enter counts a request as one that Close waits for, unless that has begun.
func (s *Sandbox) enter(ctx context.Context) bool {
	s.things.mu.Lock()
	defer s.things.mu.Unlock()
	if ctx.Err() != nil || s.things.closed {
		return false
	}
	s.running.Add(1)
	return true
}

var version = regexp.MustCompile(`^/v1\.[0-9]{1,2}/`)

// route calls what answers a request. Paths are taken literally: what would mean
// another one to somebody else is refused.
func (s *Sandbox) route(w http.ResponseWriter, r *http.Request) error {
	p := r.URL.Path
	if r.URL.RawPath != "" || path.Clean(p) != p || strings.ContainsAny(p, "\\%\x00\n") || r.URL.Host != "" {
		return bad("%.100q is no path of Docker's API", p)
	}
	if v := version.FindString(p); v != "" {
		p = p[len(v)-1:]
	}
	parts := strings.Split(strings.TrimPrefix(p, "/"), "/")
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return bad("query: %v", err)
	}
	call := call{s, w, r, q}
	if parts[0] == "images" && len(parts) > 1 {
		return call.images(parts[1:])
	}
	var name string
	pattern := parts
	if len(parts) > 1 && parts[1] != "create" && parts[1] != "json" {
		name = parts[1]
		pattern = append([]string{parts[0], "*"}, parts[2:]...)
	}
	do, ok := routes[r.Method+" "+strings.Join(pattern, "/")]
	if !ok {
		return refused("%s %.100s is not a part of Docker's API that jobs have", r.Method, p)
	}
	return do(call, name)
}

// A call is a request that is being answered.
type call struct {
	*Sandbox
	w http.ResponseWriter
	r *http.Request
	q url.Values
}

var routes = map[string]func(call, string) error{
	"GET _ping":                call.ping,
	"HEAD _ping":               call.ping,
	"GET version":              call.version,
	"GET info":                 call.info,
	"GET containers/json":      call.listContainers,
	"POST containers/create":   call.createContainer,
	"GET containers/*/json":    call.inspectContainer,
	"POST containers/*/start":  call.startContainer,
	"POST containers/*/wait":   call.waitContainer,
	"POST containers/*/attach": call.attach,
	"DELETE containers/*":      call.removeOne,
	"GET containers/*/archive": call.readFiles,
	"PUT containers/*/archive": call.writeFiles,
	"POST containers/*/exec":   call.createExec,
	"POST exec/*/start":        call.startExec,
	"GET exec/*/json":          call.inspectExec,
	"GET volumes":              call.listVolumes,
	"POST volumes/create":      call.createVolume,
	"DELETE volumes/*":         call.removeVolume,
	"GET networks":             call.listNetworks,
	"POST networks/create":     call.createNetwork,
	"GET networks/*":           call.inspectNetwork,
	"DELETE networks/*":        call.removeNetwork,
	"POST build":               call.build,
}

// json reads the request's body into v, strictly.
func (c call) json(v any) error {
	// What does not support it (a test's recorder) has no slow clients.
	_ = http.NewResponseController(c.w).SetReadDeadline(time.Now().Add(readJSON))
	body, err := io.ReadAll(http.MaxBytesReader(c.w, c.r.Body, maxJSON))
	if large := new(http.MaxBytesError); errors.As(err, &large) {
		return &refusal{http.StatusRequestEntityTooLarge, fmt.Sprintf("devaipod: a request may have %d bytes", maxJSON)}
	}
	if err != nil {
		return bad("reading the request: %v", err)
	}
	_ = http.NewResponseController(c.w).SetReadDeadline(time.Time{})
	return decode(body, v)
}

// decode takes one value of JSON in which all fields are known. Which of two spellings
// of a name counts is then ours to say: only what was decoded goes on.
func decode(body []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return bad("reading the request: %v", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return bad("reading the request: something follows it")
	}
	return nil
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	text, err := json.Marshal(v)
	if err != nil {
		panic(err) // plain data
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(text) // a client that is gone needs no answer
}

// ask sends a request to podman. The caller closes the answer's body.
func (s *Sandboxes) ask(ctx context.Context, method, path, query string, body io.Reader) (*http.Response, error) {
	req, err := s.request(ctx, method, path, query, body)
	if err != nil {
		return nil, err
	}
	resp, err := s.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("asking podman: %w", err)
	}
	return resp, nil
}

func (s *Sandboxes) request(ctx context.Context, method, path, query string, body io.Reader) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://podman", body)
	if err != nil {
		return nil, err
	}
	req.URL.Path, req.URL.RawQuery = path, query
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	return req, nil
}

// answerError is what podman says of why it does not do something.
func answerError(resp *http.Response) error {
	text, err := io.ReadAll(io.LimitReader(resp.Body, 8<<10))
	if err != nil {
		return err
	}
	var said struct{ Message, Cause string }
	if json.Unmarshal(text, &said) != nil || said.Message+said.Cause == "" {
		said.Message = string(text)
	}
	if said.Message == "" {
		said.Message = said.Cause
	}
	return &refusal{resp.StatusCode, said.Message}
}

// get asks podman and reads its answer into v.
func (s *Sandboxes) get(ctx context.Context, path, query string, v any) error {
	resp, err := s.ask(ctx, http.MethodGet, path, query, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return readAnswer(resp, v)
}

func readAnswer(resp *http.Response, v any) error {
	if resp.StatusCode/100 != 2 {
		return answerError(resp)
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(v); err != nil {
		return fmt.Errorf("reading podman's answer: %w", err)
	}
	return nil
}

// create makes a container of what was built here and returns its ID.
func (s *Sandboxes) create(ctx context.Context, spec *specgen.SpecGenerator) (id string, err error) {
	body, err := json.Marshal(spec)
	if err != nil {
		return "", err
	}
	resp, err := s.ask(ctx, http.MethodPost, libpod+"/containers/create", "", bytes.NewReader(body))
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	var made struct{ ID string }
	if err := readAnswer(resp, &made); err != nil {
		return "", fmt.Errorf("making container %s: %w", spec.Name, err)
	}
	return made.ID, nil
}

// pass sends podman's answer on, with these headers of it and up to limit bytes. One
// that is longer is broken off, so that it is not taken for whole.
func (c call) pass(resp *http.Response, limit int64, headers ...string) error {
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		return answerError(resp)
	}
	for _, h := range append(headers, "Content-Type") {
		if v := resp.Header.Get(h); v != "" {
			c.w.Header().Set(h, v)
		}
	}
	c.w.WriteHeader(resp.StatusCode)
	n, err := io.Copy(flusher{c.w}, io.LimitReader(resp.Body, limit+1))
	if err != nil || n > limit {
		panic(http.ErrAbortHandler) // how net/http has an answer broken off
	}
	return nil
}

type flusher struct{ http.ResponseWriter }

func (f flusher) Write(b []byte) (int, error) {
	n, err := f.ResponseWriter.Write(b)
	if err == nil {
		err = http.NewResponseController(f.ResponseWriter).Flush()
	}
	return n, err
}
