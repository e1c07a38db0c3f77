package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"codeberg.org/devaipod/devaipod/forge"
	"codeberg.org/devaipod/devaipod/mirror/cache"
	"codeberg.org/devaipod/devaipod/mirror/follow"
)

// Repositories of the forge that follow an upstream: package follow, joined to
// the forge and the cache.

func (a *app) followStore() (*follow.Store, error) { return follow.OpenStore(a.cfg.file("follow")) }

func (a *app) newFollower(c *cache.Cache, client *forge.Client, creds credentials) (*follow.Follower, error) {
	store, err := a.followStore()
	if err != nil {
		return nil, err
	}
	return follow.New(follow.Config{
		Store: store, Cache: c, ForgeHost: forgeHost, Forge: followForge{client}, Login: cache.Login{User: creds.Service, Password: creds.ServiceToken},
		Interval: a.cfg.Mirror.Follow, Fault: fault, Log: a.log,
	})
}

// followForge is the forge as package follow asks it.
type followForge struct{ client *forge.Client }

func (f followForge) Repository(ctx context.Context, id int64) (follow.Repository, error) {
	info, err := f.client.RepositoryByID(ctx, id)
	if errors.Is(err, forge.ErrNotFound) {
		// So it says of a private one too, to an account that lost its rights.
		if me, e := f.client.Me(ctx); e != nil || !me.Admin {
			return follow.Repository{}, errors.Join(fmt.Errorf("the service's account is no site administrator any more, or can't be asked whether it is: run `devaipod forge up`"), e)
		}
		return follow.Repository{}, follow.ErrGone
	}
	return follow.Repository{Name: info.Repo.String(), DefaultBranch: info.DefaultBranch, Archived: info.Archived}, err
}

func (f followForge) Protect(ctx context.Context, repo, branch string) (made bool, err error) {
	err = f.on(repo, func(r forge.Repo) error {
		made, err = f.client.ProtectBranch(ctx, r, branch)
		return err
	})
	return made, err
}

func (f followForge) MergeByPush(ctx context.Context, repo string) error {
	return f.on(repo, func(r forge.Repo) error { return f.client.MergeByPush(ctx, r) })
}

func (f followForge) SetDefaultBranch(ctx context.Context, repo, branch string) error {
	return f.on(repo, func(r forge.Repo) error { return f.client.SetDefaultBranch(ctx, r, branch) })
}

func (f followForge) UndoKeywords(ctx context.Context, since time.Time) ([]string, error) {
	return f.client.UndoKeywords(ctx, since)
}

func (followForge) on(name string, do func(forge.Repo) error) error {
	repo, err := forge.ParseRepo(name)
	if err != nil {
		return err
	}
	return do(repo)
}

// errLocal is of what is copied once: it has no upstream that could be asked
// again.
var errLocal = errors.New("it is no repository at an http, https or ssh URL")

// followed is what the git cache calls an upstream; the error tells why it can't
// be followed.
func (a *app) followed(source string) (cache.Address, error) {
	text, err := a.addressOf(source)
	if err != nil {
		return cache.Address{}, err
	}
	addr, err := cache.ParseAddress(strings.TrimSuffix(text, "/"))
	if err != nil {
		return addr, err
	}
	if addr.Host == forgeHost {
		return addr, errors.New("it is on this forge itself")
	}
	c, err := a.openCache(nil)
	if err != nil {
		return addr, err
	}
	return addr, errors.Join(c.May(addr), c.Close())
}

// addressOf is a URL as an address in the cache, HOST/PATH; what is one already
// stays as it is.
func (a *app) addressOf(source string) (string, error) {
	if within, ok := strings.CutPrefix(source, a.cfg.serviceURL()+"/git/"); ok {
		return within, nil // through the cache itself
	}
	if scpLike.MatchString(source) {
		_, rest, _ := strings.Cut(source, "@")
		host, path, _ := strings.Cut(rest, ":")
		return host + "/" + strings.TrimPrefix(path, "/"), nil
	}
	if strings.HasPrefix(source, "/") {
		return "", errLocal
	}
	u, err := url.Parse(source)
	if err != nil || u.Scheme == "" {
		return source, nil //nolint:nilerr // it is told by whoever reads it as an address
	}
	switch u.Scheme {
	case "https":
		return strings.TrimSuffix(u.Host, ":443") + u.Path, nil
	case "http":
		return strings.TrimSuffix(u.Host, ":80") + u.Path, nil
	case "ssh":
		return u.Hostname() + u.Path, nil // how it is reached is mirror.host's to say
	}
	return "", errLocal
}

// letFollow lets a repository of the forge follow an upstream. What is killed
// halfway, the service makes up for.
func (a *app) letFollow(ctx context.Context, service *forge.Client, rec follow.Record) error {
	if strings.HasPrefix(rec.Branch, "agent/") {
		return &exitError{codeRefused, fmt.Errorf("%s can't follow %s: the branch %s is where agents push", rec.Repo, rec.Upstream, plain(rec.Branch, 100))}
	}
	store, err := a.followStore()
	if err != nil {
		return err
	}
	if err := store.Put(rec); err != nil {
		return err
	}
	on := followForge{service}
	made, err := on.Protect(ctx, rec.Repo, rec.Branch)
	if err == nil {
		err = on.MergeByPush(ctx, rec.Repo)
	}
	if err != nil {
		return fmt.Errorf("%s follows %s, but others can still write %s (the service tries again): %w", rec.Repo, rec.Upstream, rec.Branch, err)
	}
	return store.Change(rec.ID, func(r *follow.Record) { r.MadeRule, r.MergeByPush = r.MadeRule || made, true })
}

// stopFollowing takes a record away, and the rule if it is of our making.
func (a *app) stopFollowing(ctx context.Context, service *forge.Client, store *follow.Store, rec follow.Record) error {
	if err := store.Remove(rec.ID); err != nil {
		return err
	}
	if !rec.MadeRule {
		a.step("the rule of %s for %s was there before, and stays: %s/%s/settings/branches", rec.Repo, rec.Branch, a.cfg.forgeURL(), rec.Repo)
		return nil
	}
	return followForge{}.on(rec.Repo, func(r forge.Repo) error { return service.UnprotectBranch(ctx, r, rec.Branch) })
}

// leaveFollowed gives the branches of a forge that is left back to its people.
func (a *app) leaveFollowed(ctx context.Context, service *forge.Client) error {
	store, err := a.followStore()
	if err != nil {
		return err
	}
	all, err := store.List()
	for _, rec := range all {
		if e := a.stopFollowing(ctx, service, store, rec); e != nil {
			err = errors.Join(err, fmt.Errorf("%s: %w", rec.Repo, e))
		}
	}
	return err
}

// followHandler serves the command line what is followed.
func (s *service) followHandler(mux *http.ServeMux) {
	views := func(w http.ResponseWriter) {
		all, err := s.follow.Views()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		s.json(w, all)
	}
	mux.HandleFunc("GET /api/follow", func(w http.ResponseWriter, _ *http.Request) { views(w) })
	mux.HandleFunc("POST /api/follow", func(w http.ResponseWriter, r *http.Request) {
		if err := s.follow.Pass(r.Context()); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		views(w)
	})
	mux.HandleFunc("POST /api/follow/{id}", func(w http.ResponseWriter, r *http.Request) {
		id, err := strconv.ParseInt(r.PathValue("id"), 10, 64)
		if err != nil {
			http.Error(w, "not a repository's number: "+r.PathValue("id"), http.StatusBadRequest)
			return
		}
		view, err := s.follow.Sync(r.Context(), id)
		switch {
		case errors.Is(err, follow.ErrNotFollowed) || errors.Is(err, follow.ErrGone):
			http.Error(w, err.Error(), http.StatusNotFound)
		case err != nil:
			http.Error(w, err.Error(), http.StatusInternalServerError)
		default:
			s.json(w, []follow.View{view})
		}
	})
}
