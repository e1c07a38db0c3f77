package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"codeberg.org/devaipod/devaipod/mirror"
	"codeberg.org/devaipod/devaipod/mirror/cache"
	"codeberg.org/devaipod/devaipod/pods"
	"codeberg.org/devaipod/devaipod/pods/podman"
)

// A purge takes the forge, the pods and the work store: what agents did and is not
// all on the forge is saved, and left as recovery bundles beside the state
// directory, before anything is removed.

// recoveredDir is where a purge leaves bundles. No instance has a dash in its name.
func (a *app) recoveredDir(now time.Time) string {
	return filepath.Join(a.cfg.StateDir+"-recovered", now.UTC().Format("20060102-150405"))
}

// keepWork saves what the pods have and writes the bundles. The service does not
// run. With an error nothing may be removed.
func (a *app) keepWork(ctx context.Context, m *pods.Manager, force bool) error {
	err := a.saveAll(ctx, m, force)
	if err == nil {
		err = a.bundleAll(ctx, a.recoveredDir(time.Now()))
	}
	if err != nil {
		return fmt.Errorf("nothing was removed: what agents did can't all be kept: %w; see to it, or add --force to go on without what can't be saved, or --no-bundle to keep nothing", err)
	}
	return nil
}

// saveAll stops each pod and saves what its agent did, as the service would. With
// force a pod that can't be saved is told of: what was saved of it before is in its
// bundle.
func (a *app) saveAll(ctx context.Context, m *pods.Manager, force bool) error {
	found, err := m.List(ctx)
	if err != nil || len(found) == 0 {
		return err
	}
	work, err := a.savesAlone()
	if err != nil {
		return err
	}
	for _, f := range found {
		err := a.savePod(ctx, m, work, f.Key)
		if err != nil && force && ctx.Err() == nil {
			a.step("not saved  what the agent of %s did last: %s", f.Key, plain(err.Error(), 500))
			continue
		}
		if err != nil {
			return fmt.Errorf("saving the work of %s: %w", f.Key, err)
		}
	}
	return nil
}

// savesAlone is a work store that takes saves, and nothing else: no forge is
// needed for it.
func (a *app) savesAlone() (*mirror.Work, error) {
	binary, err := beside("devaipod-box")
	if err != nil {
		return nil, err
	}
	errNoForge := errors.New("the forge is not asked")
	return mirror.NewWork(mirror.WorkConfig{
		ForgeURL: a.cfg.forgeURL(), Dir: a.cfg.file("work"), Launcher: []string{binary}, Log: a.log,
		Token: func() string { return "" },
		Known: func(context.Context, string) (string, error) { return "", errNoForge },
		Copy:  func(string, int64) (string, bool) { return "", false },
		Name:  func(context.Context, int64) (string, error) { return "", errNoForge },
	})
}

// savePod saves one pod's work. Nothing is too much: all of it goes into a bundle.
func (a *app) savePod(ctx context.Context, m *pods.Manager, work *mirror.Work, k pods.Key) error {
	if err := m.Stop(ctx, k); err != nil {
		return err
	}
	if there, err := m.HasWork(ctx, k); err != nil || !there {
		return err
	}
	spec, err := m.Spec(k)
	if err != nil {
		return err
	}
	if err := m.MakeSaveDir(k); err != nil {
		return err
	}
	l, err := listenUnixAs(m.SaveSocket(k), 0o666) // the directory around is 0700
	if err != nil {
		return err
	}
	rules := mirror.SaveRules{RepoID: spec.RepoID, Issue: spec.Issue, Borrow: spec.Borrow, Quota: 1 << 50}
	srv := &http.Server{
		Handler:           work.Saves(func() (mirror.SaveRules, error) { return rules, nil }),
		ReadHeaderTimeout: 10 * time.Second, ErrorLog: slog.NewLogLogger(a.log.Handler(), slog.LevelWarn),
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	saved, err := m.Save(ctx, k)
	err = errors.Join(err, srv.Close())
	if e := <-served; !errors.Is(e, http.ErrServerClosed) {
		err = errors.Join(err, e)
	}
	if err == nil && !saved.Complete {
		err = errors.New(plain(saved.Error, 500))
	}
	for _, n := range lostWith(saved) {
		a.step("not saved  %s: %s", k, notSavedLine(n))
	}
	return err
}

// bundleAll writes a bundle for each issue of whose agent the forge has not all.
func (a *app) bundleAll(ctx context.Context, dir string) (err error) {
	s, err := a.openSaved()
	if err != nil {
		return err
	}
	all, err := s.Repositories()
	if err != nil {
		return err
	}
	var made []string
	defer func() {
		if err != nil { // the work store has all of it still
			err = errors.Join(err, takeBack(made))
		}
	}()
	for _, repo := range all {
		issues, err := s.Issues(ctx, repo.ID)
		if err != nil {
			return err
		}
		for _, issue := range issues {
			work := s.Work(repo.ID, issue, "")
			if pushed, err := work.Pushed(ctx); err != nil {
				return err
			} else if pushed {
				continue
			}
			if err := os.MkdirAll(dir, 0o700); err != nil {
				return err
			}
			file := filepath.Join(dir, bundleName(repo, issue))
			if err := work.Bundle(ctx, file); err != nil {
				return fmt.Errorf("writing %s: %w", file, err)
			}
			made = append(made, file)
		}
	}
	for _, file := range made {
		a.step("recovery bundle  %s", file)
	}
	return nil
}

// takeBack removes bundles.
func takeBack(files []string) error {
	var err error
	for _, file := range files {
		err = errors.Join(err, os.Remove(file))
	}
	return err
}

// leaveBundle writes one for an issue, and says where it is.
func (a *app) leaveBundle(ctx context.Context, work foundWork) error {
	dir := a.recoveredDir(time.Now())
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	name := mirror.SavedRepository{ID: work.Repository(), Names: []string{work.key.Owner + "/" + work.key.Repo}}
	file := filepath.Join(dir, bundleName(name, work.key.Issue))
	if err := work.Bundle(ctx, file); err != nil {
		return fmt.Errorf("writing %s: %w", file, err)
	}
	a.step("recovery bundle  %s", file)
	return nil
}

var notFileName = regexp.MustCompile(`[^A-Za-z0-9._-]+`)

// bundleName is OWNER-NAME-ID-issue-ISSUE.bundle.
func bundleName(repo mirror.SavedRepository, issue int64) string {
	name := "repository"
	if n := len(repo.Names); n > 0 {
		name = notFileName.ReplaceAllString(repo.Names[n-1], "-")
	}
	return fmt.Sprintf("%s-%d-issue-%d.bundle", name, repo.ID, issue)
}

// purgeAll removes pods and forge, once what agents did is kept.
func (a *app) purgeAll(ctx context.Context, p *podman.Client, m *pods.Manager, e ending) error {
	if !e.noBundle && !e.force {
		if err := keepWorkspaces(ctx, m); err != nil {
			return err
		}
	}
	if !e.noBundle {
		a.step("saving what agents did")
		if err := a.keepWork(ctx, m, e.force); err != nil {
			return err
		}
	}
	if a.cfg.joined() {
		a.leaveForge(ctx)
	}
	a.step("removing %s and volumes", a.cfg.stackWords())
	return a.purge(ctx, p, m)
}

// keepWorkspaces is an error while a workspace, also one beside an agent, holds what is
// nowhere else: there is no bundle of those.
func keepWorkspaces(ctx context.Context, m *pods.Manager) error {
	own, err := m.Workspaces(ctx)
	if err != nil {
		return err
	}
	agents, err := m.List(ctx)
	if err != nil {
		return err
	}
	for _, p := range append(own, agents...) {
		if work := m.LeftThere(ctx, p.Key); !work.Empty() {
			return &exitError{codeRefused, fmt.Errorf("nothing was removed: %w (--force here removes it with all the rest)", &workError{p.Key, work})}
		}
	}
	return nil
}

// purge removes all of the instance but its state directory.
func (a *app) purge(ctx context.Context, p *podman.Client, m *pods.Manager) error {
	if err := m.RemoveAll(ctx); err != nil {
		return err
	}
	if err := p.RemoveByLabels(ctx, map[string]string{"devaipod.instance": a.cfg.Instance}); err != nil {
		return err
	}
	if err := cache.ReleaseAll(a.cfg.Mirror.Dir, a.cfg.Instance); err != nil {
		return err
	}
	return errors.Join(m.RemoveTools(ctx), m.RemoveBuilds(ctx), m.RemovePulled(ctx))
}
