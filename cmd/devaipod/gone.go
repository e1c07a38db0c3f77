package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"codeberg.org/devaipod/devaipod/podapi"
	"codeberg.org/devaipod/devaipod/pods"
	"codeberg.org/devaipod/devaipod/pods/reconcile"
)

// goneState is that of an issue that has no pod any more, and of which it is kept what
// its agent did.
const goneState = reconcile.State(podapi.Gone)

// mostGone bounds how many of them are listed, the latest.
const mostGone = 20

// goneView tells of an issue whose account is kept; false while there is a pod of it,
// or one is made, which the loop may not have seen yet.
func (s *service) goneView(account pods.Account) (reconcile.View, bool) {
	owner, repo, ok := strings.Cut(account.Repo, "/")
	k := reconcile.Key{Owner: owner, Repo: repo, Issue: account.Issue}
	if !ok || account.Issue == 0 {
		return reconcile.View{}, false
	}
	if _, err := os.Stat(s.pods.manager.RunDir(pods.Key(k))); !errors.Is(err, fs.ErrNotExist) {
		return reconcile.View{}, false
	}
	return reconcile.View{
		Key: k, Issue: k.String(), URL: fmt.Sprintf("%s/%s/issues/%d", s.cfg.forgeURL(), account.Repo, k.Issue), State: goneState, Doing: reconcile.AgentGone,
		Why: fmt.Sprintf("Its pod is not there any more. What its agent did is kept: devaipod logs %s", k), Pod: filepath.Base(account.Dir), Resting: true,
	}, true
}

// view tells of an issue: of its pod, or of one that it had.
func (s *service) view(k reconcile.Key) (reconcile.View, bool) {
	if v, ok := s.loop.View(k); ok {
		return v, true
	}
	return s.goneOf(k)
}

// goneOf tells of one issue; false when nothing is kept of it.
func (s *service) goneOf(k reconcile.Key) (reconcile.View, bool) {
	dir := s.pods.manager.UsageDir(pods.Key(k))
	if transcribed(dir).IsZero() {
		return reconcile.View{}, false
	}
	account, err := pods.ReadAccount(dir)
	if err != nil {
		s.log.Warn("what is kept of a pod that is gone can't be read", "issue", k.String(), "err", err)
		return reconcile.View{}, false
	}
	return s.goneView(account)
}

// transcribed is when it was last noted what an agent did, zero for never.
func transcribed(dir string) time.Time {
	info, err := os.Stat(filepath.Join(dir, podapi.TranscriptFile))
	if err != nil {
		return time.Time{}
	}
	return info.ModTime()
}

// goneViews are the latest of those that views does not have.
func (s *service) goneViews(views []reconcile.View) (out []reconcile.View) {
	dir := filepath.Join(s.cfg.StateDir, "usage")
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.log.Warn("what is kept of pods that are gone can't be listed", "err", err)
	}
	there := map[string]bool{}
	for _, v := range views {
		there[webPods{s}.podName(v)] = true
	}
	type past struct {
		dir string
		at  time.Time
	}
	var all []past
	for _, e := range entries {
		p := past{dir: filepath.Join(dir, e.Name())}
		if p.at = transcribed(p.dir); !there[e.Name()] && !p.at.IsZero() {
			all = append(all, p)
		}
	}
	slices.SortFunc(all, func(a, b past) int { return cmp.Or(b.at.Compare(a.at), strings.Compare(a.dir, b.dir)) })
	for _, p := range all[:min(len(all), mostGone)] {
		account, err := pods.ReadAccount(p.dir)
		if err != nil {
			s.log.Debug("what is kept of a pod that is gone can't be read", "err", err)
			continue
		}
		if v, ok := s.goneView(account); ok {
			out = append(out, v)
		}
	}
	return out
}
