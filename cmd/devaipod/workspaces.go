package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"codeberg.org/devaipod/devaipod/forge"
	"codeberg.org/devaipod/devaipod/pods"
	"codeberg.org/devaipod/devaipod/pods/podfile"
	"codeberg.org/devaipod/devaipod/pods/reconcile"
)

// People's own pods, as the service has them: `devaipod up` makes them, and the
// loop, which is about issues, has no part in them.

// A workspaceView is what people are told of one. Its JSON is part of the output of
// list, status and up.
type workspaceView struct {
	Kind    string    `json:"kind"` // kindWorkspace
	Name    string    `json:"name"` // owner/repo@name
	State   string    `json:"state"`
	Branch  string    `json:"branch"`
	Pod     string    `json:"pod"`
	Started time.Time `json:"started,omitzero"`
	Full    string    `json:"full,omitempty"` // that it has more on the disk than it may
	// Made says that this call has made it, and Note what of its devcontainer.json does
	// not hold.
	Made bool   `json:"made,omitempty"`
	Note string `json:"note,omitempty"`
}

// What `list` tells apart.
const (
	kindAgent     = "agent"
	kindWorkspace = "workspace"
)

// The states of a workspace.
const (
	wsRunning = "running"
	wsStopped = "stopped"
	wsBroken  = "broken" // some of it does not run; up makes it whole
)

func (s *service) viewOfWorkspace(p pods.Pod) workspaceView {
	v := workspaceView{Kind: kindWorkspace, Name: p.Key.String(), State: wsBroken, Branch: p.Branch, Pod: p.Name, Full: s.pods.disk.Why(p.Key)}
	switch {
	case p.Control.Running && p.Workspace.Running:
		v.State, v.Started = wsRunning, p.Workspace.StartedAt
	case !p.Control.Running && !p.Workspace.Running && p.Workspace.Exists:
		v.State = wsStopped
	}
	return v
}

// A workspaceOrder is what `devaipod up` asks for.
type workspaceOrder struct {
	Branch   string `json:"branch"` // "" for the repository's default
	GitName  string `json:"git_name"`
	GitEmail string `json:"git_email"`
}

// workspaceLocks keep calls for the same workspace apart.
type workspaceLocks struct{ m sync.Map }

func (l *workspaceLocks) lock(k pods.Key) (unlock func()) {
	mu, _ := l.m.LoadOrStore(k, new(sync.Mutex))
	mu.(*sync.Mutex).Lock() //nolint:forcetypeassert // nothing else is stored
	return mu.(*sync.Mutex).Unlock
}

func (s *service) workspaceHandler(mux *http.ServeMux) {
	mux.HandleFunc("GET /api/workspaces", func(w http.ResponseWriter, r *http.Request) {
		found, err := s.pods.manager.Workspaces(r.Context())
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		views := []workspaceView{}
		for _, p := range found {
			views = append(views, s.viewOfWorkspace(p))
		}
		slices.SortFunc(views, func(a, b workspaceView) int { return strings.Compare(a.Name, b.Name) })
		s.json(w, views)
	})
	mux.HandleFunc("GET /api/repositories/{owner}/{repo}/default-branch", func(w http.ResponseWriter, r *http.Request) {
		info, err := s.forge.Repository(r.Context(), forge.Repo{Owner: r.PathValue("owner"), Name: r.PathValue("repo")})
		switch {
		case errors.Is(err, forge.ErrNotFound):
			http.Error(w, "the forge has no such repository", http.StatusNotFound)
		case err != nil:
			http.Error(w, err.Error(), http.StatusBadGateway)
		default:
			s.json(w, map[string]string{"branch": info.DefaultBranch})
		}
	})
	const path = "/api/workspaces/{owner}/{repo}/{name}"
	mux.HandleFunc("GET "+path, s.named(func(ctx context.Context, _ *http.Request, k pods.Key) (any, error) { return s.workspace(ctx, k) }))
	mux.HandleFunc("POST "+path+"/up", s.named(s.upWorkspace))
	mux.HandleFunc("POST "+path+"/stop", s.named(func(ctx context.Context, _ *http.Request, k pods.Key) (any, error) {
		return s.stopWorkspace(ctx, k)
	}))
	mux.HandleFunc("POST "+path+"/rm", s.named(s.rmWorkspace))
}

// A statusError is an error with an HTTP status.
type statusError struct {
	status int
	err    error
}

func (e *statusError) Error() string { return e.err.Error() }
func (e *statusError) Unwrap() error { return e.err }

// named answers for one workspace, one call at a time.
func (s *service) named(f func(context.Context, *http.Request, pods.Key) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		k := pods.Key{Owner: r.PathValue("owner"), Repo: r.PathValue("repo"), Name: r.PathValue("name")}
		if !pods.ValidName(k.Name) || !repoRef.MatchString(k.Owner+"/"+k.Repo) {
			http.Error(w, "not a workspace's name: "+k.String(), http.StatusBadRequest)
			return
		}
		defer s.wsLocks.lock(k)()
		answer, err := f(r.Context(), r, k)
		var coded *statusError
		switch {
		case errors.As(err, &coded):
			http.Error(w, err.Error(), coded.status)
		case err != nil:
			http.Error(w, err.Error(), http.StatusInternalServerError)
		default:
			s.json(w, answer)
		}
	}
}

func (s *service) workspace(ctx context.Context, k pods.Key) (workspaceView, error) {
	found, err := s.pods.manager.Workspaces(ctx)
	if err != nil {
		return workspaceView{}, err
	}
	for _, p := range found {
		if p.Key == k {
			return s.viewOfWorkspace(p), nil
		}
	}
	return workspaceView{}, &statusError{http.StatusNotFound, fmt.Errorf("there is no workspace %s", k)}
}

// stopWorkspace stops one. Its lock is held.
func (s *service) stopWorkspace(ctx context.Context, k pods.Key) (workspaceView, error) {
	if _, err := s.workspace(ctx, k); err != nil {
		return workspaceView{}, err
	}
	if err := errors.Join(s.pods.manager.Stop(ctx, k), s.pods.shut(reconcile.Key(k))); err != nil {
		return workspaceView{}, err
	}
	s.tellWorkspace(k, wsStopped)
	return s.workspace(ctx, k)
}

// upWorkspace makes a workspace, or starts the one that is there.
func (s *service) upWorkspace(ctx context.Context, r *http.Request, k pods.Key) (any, error) {
	var order workspaceOrder
	if err := json.NewDecoder(io.LimitReader(r.Body, 64<<10)).Decode(&order); err != nil {
		return nil, &statusError{http.StatusBadRequest, fmt.Errorf("reading what is asked for: %w", err)}
	}
	info, err := s.forge.Repository(ctx, forge.Repo{Owner: k.Owner, Name: k.Repo})
	if errors.Is(err, forge.ErrNotFound) {
		return nil, &statusError{http.StatusNotFound, fmt.Errorf("there is no repository %s/%s on the forge: `devaipod forge add` brings one in", k.Owner, k.Repo)}
	}
	if err != nil {
		return nil, fmt.Errorf("asking the forge for %s/%s: %w", k.Owner, k.Repo, err)
	}
	_, err = s.workspace(ctx, k)
	isNew := err != nil
	if coded := new(statusError); isNew && (!errors.As(err, &coded) || coded.status != http.StatusNotFound) {
		return nil, err
	}
	var spec pods.Spec
	if isNew {
		spec, err = s.workspaceSpec(ctx, k, info, order)
	} else {
		spec, err = s.pods.manager.Spec(k)
	}
	if err != nil {
		return nil, err
	}
	if spec.RepoID != info.ID {
		return nil, &statusError{http.StatusConflict, fmt.Errorf("the workspace %s is of another repository, which was called %s/%s before: remove it with devaipod rm %s, or give the new one another name (--name)", k, k.Owner, k.Repo, k)}
	}
	if order.Branch != "" && order.Branch != spec.Branch {
		return nil, &statusError{http.StatusConflict, fmt.Errorf("the workspace %s was made for the branch %s, not %s: give another one a name of its own (--name)", k, spec.Branch, order.Branch)}
	}
	if err := s.startWorkspace(ctx, spec, isNew); err != nil {
		if isNew { // there is nothing in it
			clean := context.WithoutCancel(ctx)
			err = errors.Join(err, s.pods.shut(reconcile.Key(k)), s.pods.manager.Remove(clean, k))
			s.pods.release(clean)
		}
		return nil, err
	}
	s.tellWorkspace(k, wsRunning)
	v, err := s.workspace(ctx, k)
	if v.Made = isNew; isNew {
		v.Note = devcontainerNote(spec.Dev)
	}
	return v, err
}

// workspaceSpec is a new workspace's pod. A branch that the forge does not have
// begins at the default branch.
func (s *service) workspaceSpec(ctx context.Context, k pods.Key, info forge.RepoInfo, order workspaceOrder) (pods.Spec, error) {
	limits, err := s.cfg.limits()
	if err != nil {
		return pods.Spec{}, err
	}
	if info.Empty {
		return pods.Spec{}, &statusError{http.StatusConflict, fmt.Errorf("%s is empty: push a first commit to it", info.Repo)}
	}
	wanted, err := s.workspaceRecipe(ctx, k, info.ID)
	if err != nil {
		return pods.Spec{}, err
	}
	if err := wanted.dev.HostRequirements.Check(given(limits[pods.RoleWorkspace])); err != nil {
		return pods.Spec{}, &statusError{http.StatusConflict, fmt.Errorf("%s: %w", wanted.dev.File, err)}
	}
	spec := pods.Spec{
		Key: k, RepoID: info.ID, Dev: wanted.dev, Recipe: s.cfg.recipeOf(wanted), Branch: order.Branch, Base: info.DefaultBranch,
		AgentImage: s.cfg.Agent.Image, ToolsImage: s.tools, Limits: limits, WritableRoot: s.cfg.Agent.WritableRoot, GitName: order.GitName, GitEmail: order.GitEmail,
	}
	if spec.Branch == "" {
		spec.Branch = info.DefaultBranch
	}
	_, there, err := s.forge.Branch(ctx, info.Repo, spec.Branch)
	if err != nil {
		return spec, fmt.Errorf("asking the forge for the branch %s: %w", spec.Branch, err)
	}
	if there {
		spec.Base = spec.Branch
	}
	return spec, nil
}

// workspaceRecipe is how the repository wants a workspace, as its default branch has
// it.
func (s *service) workspaceRecipe(ctx context.Context, k pods.Key, repoID int64) (r recipe, err error) {
	err = whileFetching(ctx, func() error {
		r, err = s.recipe(ctx, k, repoID)
		return err
	})
	return r, err
}

// startWorkspace makes a pod whole.
func (s *service) startWorkspace(ctx context.Context, spec pods.Spec, isNew bool) error {
	if err := s.pods.openWorkspace(spec); err != nil {
		return err
	}
	return whileFetching(ctx, func() error {
		if !isNew {
			return s.pods.manager.Resume(ctx, spec.Key)
		}
		_, err := s.pods.manager.Ensure(ctx, spec)
		return err
	})
}

// whileFetching does something again while what it needs, a repository or an image, is
// being fetched or built.
func whileFetching(ctx context.Context, do func() error) error {
	for {
		err := do()
		if !errors.Is(err, errFetching) && !errors.Is(err, pods.ErrPreparing) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(500 * time.Millisecond):
		}
	}
}

// rmWorkspace removes a workspace, unless it holds what nobody else has.
func (s *service) rmWorkspace(ctx context.Context, r *http.Request, k pods.Key) (any, error) {
	if _, err := s.workspace(ctx, k); err != nil {
		return nil, err
	}
	if r.URL.Query().Get("force") != "true" {
		if work := s.pods.manager.LeftThere(ctx, k); !work.Empty() {
			return nil, &statusError{http.StatusConflict, &workError{k, work}}
		}
	}
	if err := errors.Join(s.pods.shut(reconcile.Key(k)), s.pods.manager.Remove(ctx, k)); err != nil {
		return nil, err
	}
	s.pods.release(ctx)
	s.tellWorkspace(k, "removed")
	return struct{}{}, nil
}

// A workError tells what would be lost with a workspace.
type workError struct {
	key  pods.Key
	work podfile.Work
}

func (e *workError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "the workspace %s stays: it holds what is nowhere else", e.key)
	if e.work.Broken != "" {
		b.Reset()
		fmt.Fprintf(&b, "the workspace %s stays: what it holds can't be told: %s", e.key, plain(e.work.Broken, 1000))
	}
	b.WriteString(workLines(e.work))
	fmt.Fprintf(&b, "\nFetch or copy it (devaipod up --help tells how), or remove it all the same with devaipod rm --force %s", e.key)
	return b.String()
}

// workLines lists what a workspace holds, each in a line that begins anew.
func workLines(work podfile.Work) string {
	var b strings.Builder
	const most = 10
	for _, list := range []struct {
		what    string
		entries []string
	}{{"commit", work.Commits}, {"change", work.Changes}, {"stash", work.Stashes}, {"beside the clone", work.Beside}} {
		for i, entry := range list.entries {
			if i == most {
				fmt.Fprintf(&b, "\n  %s: and %d more", list.what, len(list.entries)-most)
				break
			}
			fmt.Fprintf(&b, "\n  %s: %s", list.what, strings.ReplaceAll(plain(entry, 200), "\n", "␊"))
		}
	}
	if work.More > 0 {
		fmt.Fprintf(&b, "\n  and %d more", work.More)
	}
	return b.String()
}

// openWorkspace makes the door of a person's pod, unless it is there: git to be
// read, and nothing else.
func (p *podPort) openWorkspace(spec pods.Spec) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	k := reconcile.Key(spec.Key)
	dir, old, err := p.doorway(spec.Key)
	if err != nil || old {
		return err
	}
	l, err := listenUnix(filepath.Join(dir, podfile.ServiceSocket))
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.Handle("/work/", onlyReads(p.work.Handler(p.rules(spec), func(repo string) http.Handler { return p.cache.Reads(forgeAddress(repo)) })))
	mux.Handle("/git/", p.others)
	p.doors[k] = door{p.serve(k, l, mux)}
	return nil
}

// onlyReads keeps git from pushing. The pod's gate does too.
func onlyReads(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/git-receive-pack") || r.URL.Query().Get("service") == "git-receive-pack" {
			http.Error(w, "devaipod: a workspace may read this repository and not push to it", http.StatusForbidden)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// openWorkspaces opens the doors of those that run, and brings their policies up
// to date, at the service's start.
func (p *podPort) openWorkspaces(ctx context.Context) error {
	found, err := p.manager.Workspaces(ctx)
	if err != nil {
		return err
	}
	for _, f := range found {
		spec, err := p.manager.Spec(f.Key)
		if err == nil && f.Control.Running {
			err = errors.Join(p.openWorkspace(spec), p.manager.Steer(f.Key))
		}
		if err != nil {
			p.log.Warn("a person's pod gets no door; devaipod up mends it", "pod", f.Key.String(), "err", err)
		}
	}
	return nil
}
