package main

import (
	"context"
	"errors"
	"io/fs"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"codeberg.org/devaipod/devaipod/ci"
	"codeberg.org/devaipod/devaipod/forge"
	"codeberg.org/devaipod/devaipod/pods/reconcile"
)

// ciPort is the forge, as CI needs it.
type ciPort struct {
	client *forge.Client
	web    *forge.Web
	ours   []string // accounts that approve nothing
	// queued is told of a repository (OWNER/NAME) that has jobs now: no webhook tells of a run
	// that is run again.
	queued func(repo string)
	// registers is told of a repository (OWNER/NAME) whose runner is about to register.
	registers func(repo string)
}

func (p ciPort) repo(ctx context.Context, id int64) (forge.RepoInfo, error) {
	return p.client.RepositoryByID(ctx, id)
}

// token is one by which a repository's runner registers.
func (p ciPort) token(ctx context.Context, repo int64) (string, error) {
	info, err := p.repo(ctx, repo)
	if err != nil {
		return "", err
	}
	token, err := p.client.RunnerToken(ctx, info.Repo)
	if err == nil {
		p.registers(info.Repo.String())
	}
	return token, err
}

// repositories are those in which there may be jobs.
func (p ciPort) repositories(ctx context.Context) (map[int64]string, error) {
	all, err := p.client.Repositories(ctx)
	names := map[int64]string{}
	for _, r := range all {
		if r.Actions && !r.Archived {
			names[r.ID] = r.Repo.String()
		}
	}
	return names, err
}

func (p ciPort) Said(ctx context.Context, repo int64, since time.Time) ([]ci.Said, error) {
	info, err := p.repo(ctx, repo)
	if errors.Is(err, forge.ErrNotFound) {
		return nil, nil // it was removed
	}
	if err != nil {
		return nil, err
	}
	comments, err := p.client.CommentsSince(ctx, info.Repo, since)
	said := make([]ci.Said, 0, len(comments))
	for _, c := range comments {
		orders, _ := reconcile.OrdersIn(c.Body)
		said = append(said, ci.Said{Issue: c.Issue, Author: c.Author, Body: orders, Created: c.Created, Updated: c.Updated})
	}
	return said, err
}

func (p ciPort) MayApprove(ctx context.Context, repo int64, login string) (bool, error) {
	if slices.ContainsFunc(p.ours, func(o string) bool { return strings.EqualFold(o, login) }) {
		return false, nil
	}
	info, err := p.repo(ctx, repo)
	if err != nil {
		return false, err
	}
	return p.client.CanWrite(ctx, info.Repo, login)
}

// workflowFolders are the folders in which a forge looks for workflows, and in which
// repositories keep their own actions.
var workflowFolders = []string{".forgejo", ".gitea", ".github"}

// ChangesWorkflows compares folders of a commit with those of the default branch as it is
// now, as a whole.
func (p ciPort) ChangesWorkflows(ctx context.Context, repo int64, commit string) (bool, error) {
	info, err := p.repo(ctx, repo)
	if err != nil {
		return false, err
	}
	base, ok, err := p.client.Branch(ctx, info.Repo, info.DefaultBranch)
	if err != nil || !ok {
		return !ok, err
	}
	theirs, err := p.client.RootEntries(ctx, info.Repo, commit)
	if err != nil {
		return false, err
	}
	ours, err := p.client.RootEntries(ctx, info.Repo, base)
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(workflowFolders, func(f string) bool { return theirs[f] != ours[f] }), nil
}

// ciSoon tells whether a commit may get its first status a moment after it was pushed: where
// it has workflows, and if that can't be told.
func (s *service) ciSoon(ctx context.Context, k reconcile.Key, commit string) bool {
	if !s.cfg.runsActions() || s.cfg.CI.Detect {
		return s.cfg.CI.Detect
	}
	entries, err := s.forge.RootEntries(ctx, repoOf(k), commit)
	return err != nil || slices.ContainsFunc(workflowFolders, func(f string) bool { return entries[f] != "" })
}

func (p ciPort) Rerun(ctx context.Context, repo, run int64) error {
	info, err := p.repo(ctx, repo)
	if err != nil {
		return err
	}
	if err := p.web.Rerun(ctx, info.Repo, run); err != nil {
		return err
	}
	p.queued(info.Repo.String())
	return nil
}

func (p ciPort) Answer(ctx context.Context, repo, issue int64, text string) error {
	info, err := p.repo(ctx, repo)
	if err != nil {
		return err
	}
	_, err = p.client.PutComment(ctx, info.Repo, issue, "devaipod-ci-approval", text)
	return err
}

// serveCI serves what the command line asks of jobs.
func (s *service) serveCI(mux *http.ServeMux) {
	serve := func(what string, act func(ctx context.Context, task int64) error) {
		mux.HandleFunc("POST /api/ci/{job}/"+what, func(w http.ResponseWriter, r *http.Request) {
			task, err := strconv.ParseInt(r.PathValue("job"), 10, 64)
			switch {
			case err != nil:
				http.Error(w, "not the number of a job: "+r.PathValue("job"), http.StatusBadRequest)
				return
			case s.ci == nil:
				http.Error(w, "the service runs no jobs: ci.runner is "+s.cfg.CI.Runner, http.StatusConflict)
				return
			}
			switch err := act(r.Context(), task); {
			case errors.Is(err, fs.ErrNotExist):
				http.Error(w, "there is no job "+r.PathValue("job")+": devaipod ci list has those that are kept", http.StatusNotFound)
			case err != nil:
				http.Error(w, err.Error(), http.StatusConflict)
			default:
				w.WriteHeader(http.StatusNoContent)
			}
		})
	}
	serve("approve", func(ctx context.Context, task int64) error {
		return s.ci.approver.Approve(ctx, task, byCommand)
	})
	serve("cancel", func(ctx context.Context, task int64) error { return s.ci.press(ctx, task, s.ci.web.Cancel) })
	serve("rerun", func(ctx context.Context, task int64) error { return s.ci.press(ctx, task, s.ci.web.Rerun) })
}

// press presses a button of the page of a job's run.
func (c *ciRunner) press(ctx context.Context, task int64, button func(context.Context, forge.Repo, int64) error) error {
	info, err := c.Store().Info(task)
	if err != nil {
		return err
	}
	run, err := strconv.ParseInt(info.Run, 10, 64)
	if err != nil {
		return err
	}
	repo, err := forge.ParseRepo(info.Repo)
	if err != nil {
		return err
	}
	if err := button(ctx, repo, run); err != nil {
		return err
	}
	c.Kick(info.Repo)
	return nil
}
