package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"

	"codeberg.org/devaipod/devaipod/pods/podfile"
	"codeberg.org/devaipod/devaipod/pods/reconcile"
)

// The command line talks to the running service over run/service.sock in the
// state directory (mode 0600: who may open it is who may do these things).

// serviceStatus is GET /api/status.
type serviceStatus struct {
	PID     int    `json:"pid"`
	Version string `json:"version"`
	Ready   bool   `json:"ready"`
	Trouble string `json:"trouble,omitempty"` // why the last pass failed
	// AuditTrouble is why what was done last can't be kept.
	AuditTrouble string `json:"audit_trouble,omitempty"`
	// Basis names what the service was started from: see app.basis.
	Basis string `json:"basis"`
}

// apiHandler serves the command line's own routes.
func (s *service) apiHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /api/status", func(w http.ResponseWriter, _ *http.Request) {
		s.json(w, serviceStatus{PID: os.Getpid(), Version: version, Ready: s.ready.Load(), Trouble: s.loop.Trouble(), AuditTrouble: s.audit.Trouble(), Basis: s.basis})
	})
	mux.HandleFunc("GET /api/pods", func(w http.ResponseWriter, _ *http.Request) { s.json(w, s.loop.Views()) })
	s.followHandler(mux)
	s.workspaceHandler(mux)
	s.serveCI(mux)
	mux.HandleFunc("GET /api/events", s.serveHappened)
	mux.HandleFunc("GET /api/ci/images", s.serveCIImages)
	mux.HandleFunc("POST /api/steer", s.steer)
	mux.HandleFunc("POST /api/prune", s.prune)
	mux.HandleFunc("POST /api/open", s.openPage)
	const pod = "/api/pods/{owner}/{repo}/{issue}"
	mux.HandleFunc("GET "+pod, s.keyed(func(w http.ResponseWriter, _ *http.Request, k reconcile.Key) {
		v, ok := s.view(k)
		if !ok {
			http.Error(w, "no pod and no labeled issue "+k.String(), http.StatusNotFound)
			return
		}
		s.json(w, v)
	}))
	mux.HandleFunc("GET "+pod+"/facts", s.keyed(s.facts))
	mux.HandleFunc("POST "+pod+"/kick", s.keyed(func(w http.ResponseWriter, _ *http.Request, k reconcile.Key) {
		s.loop.Kick(k)
		w.WriteHeader(http.StatusNoContent)
	}))
	mux.HandleFunc("POST "+pod+"/export", s.keyed(s.export))
	mux.HandleFunc("POST "+pod+"/rm", s.keyed(func(w http.ResponseWriter, r *http.Request, k reconcile.Key) {
		force := r.URL.Query().Get("force") == "true"
		saved, err := s.pods.saveBefore(r.Context(), s.loop.PodKey(k), force)
		if err != nil && !force {
			http.Error(w, err.Error(), http.StatusConflict)
			return
		}
		if err := s.loop.Remove(r.Context(), k); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		s.happened.add(happening{Kind: kindAgent, Pod: k.String(), State: "removed"})
		s.json(w, saved)
	}))
	mux.HandleFunc("POST "+pod+"/messages", s.keyed(s.say))
	mux.HandleFunc("POST /api/saved/{store}/{issue}/forget", s.forget)
	mux.HandleFunc("GET "+pod+"/events", s.keyed(func(w http.ResponseWriter, r *http.Request, k reconcile.Key) {
		s.events(w, r, s.loop.PodKey(k))
	}))
	return mux
}

// steer brings what pods may do up to the configuration.
func (s *service) steer(w http.ResponseWriter, r *http.Request) {
	if err := s.pods.steerAll(r.Context()); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// forget drops an issue's saved work.
func (s *service) forget(w http.ResponseWriter, r *http.Request) {
	store, err := strconv.ParseInt(r.PathValue("store"), 10, 64)
	issue, err2 := strconv.ParseInt(r.PathValue("issue"), 10, 64)
	if err != nil || err2 != nil {
		http.Error(w, "want the numbers of a store and an issue", http.StatusBadRequest)
		return
	}
	if err := s.work.Forget(r.Context(), store, issue); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	s.pods.release(r.Context())
	w.WriteHeader(http.StatusNoContent)
}

func (s *service) keyed(h func(http.ResponseWriter, *http.Request, reconcile.Key)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		n, err := strconv.ParseInt(r.PathValue("issue"), 10, 64)
		if err != nil || n <= 0 {
			http.Error(w, "not an issue number: "+r.PathValue("issue"), http.StatusBadRequest)
			return
		}
		h(w, r, reconcile.Key{Owner: r.PathValue("owner"), Repo: r.PathValue("repo"), Issue: n})
	}
}

func (s *service) json(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(v); err != nil {
		s.log.Debug("answering the command line", "err", err)
	}
}

// An apiClient is the command line's end.
type apiClient struct{ http *http.Client }

func (a *app) api() *apiClient {
	socket := a.cfg.file("run/service.sock")
	return &apiClient{&http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}}
}

// errNotFound is the service's 404.
var errNotFound = errors.New("not there")

func (c *apiClient) do(ctx context.Context, method, path string) (*http.Response, error) {
	return c.doBody(ctx, method, path, nil)
}

func (c *apiClient) doBody(ctx context.Context, method, path string, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://service"+path, body)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, &exitError{codeUnreachable, errors.New("the service does not run: start it with `devaipod forge up`")}
	}
	if resp.StatusCode < 300 {
		return resp, nil
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 4096))
	if err != nil {
		return nil, err
	}
	switch resp.StatusCode {
	case http.StatusNotFound:
		return nil, fmt.Errorf("%w: %s", errNotFound, text)
	case http.StatusConflict: // it says all that there is to say
		return nil, &exitError{codeRefused, errors.New(strings.TrimSpace(string(text)))}
	}
	return nil, fmt.Errorf("the service answered %s: %s", resp.Status, text)
}

func (c *apiClient) get(ctx context.Context, path string, v any) error {
	resp, err := c.do(ctx, http.MethodGet, path)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return json.NewDecoder(resp.Body).Decode(v)
}

func (c *apiClient) post(ctx context.Context, path string) error {
	resp, err := c.do(ctx, http.MethodPost, path)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// remove has an issue's pod removed, once its work is saved.
func (c *apiClient) remove(ctx context.Context, k reconcile.Key, force bool) (podfile.Saved, error) {
	var saved podfile.Saved
	resp, err := c.do(ctx, http.MethodPost, fmt.Sprintf("%s/rm?force=%t", podPath(k), force))
	if err != nil {
		return saved, err
	}
	defer resp.Body.Close()
	return saved, json.NewDecoder(resp.Body).Decode(&saved)
}

func (c *apiClient) view(ctx context.Context, k reconcile.Key) (reconcile.View, error) {
	var v reconcile.View
	err := c.get(ctx, podPath(k), &v)
	v.Key = k
	return v, err
}

func podPath(k reconcile.Key) string {
	return "/api/pods/" + url.PathEscape(k.Owner) + "/" + url.PathEscape(k.Repo) + "/" + strconv.FormatInt(k.Issue, 10)
}
