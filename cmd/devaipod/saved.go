package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"codeberg.org/devaipod/devaipod/forge"
	"codeberg.org/devaipod/devaipod/mirror"
	"codeberg.org/devaipod/devaipod/mirror/cache"
	"codeberg.org/devaipod/devaipod/pods/podfile"
	"codeberg.org/devaipod/devaipod/pods/reconcile"
)

// What was saved is read out of the work store's own files: no service, pod or
// forge is needed for it.

// askWithin is how long the forge may take to tell which repository has a name.
const askWithin = 5 * time.Second

// storeFlag lets a person name the store.
func (a *app) storeFlag(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().Int64Var(&a.store, "store", 0, "`number` of the work store, where several repositories had the name")
	return cmd
}

func (a *app) openSaved() (*mirror.Saved, error) {
	binary, err := beside("devaipod-box")
	if err != nil {
		return nil, err
	}
	return mirror.OpenSaved(a.cfg.file("work"), []string{binary}), nil
}

// A foundWork is what was saved of an issue's agent.
type foundWork struct {
	*mirror.SavedWork
	key reconcile.Key
}

// findSaved finds what was saved of an issue's agent: by the forge's number of the
// repository, or, where the forge can't be asked or has another one by that name
// now, by the names that are recorded here.
func (a *app) findSaved(ctx context.Context, k reconcile.Key) (foundWork, error) {
	s, err := a.openSaved()
	if err != nil {
		return foundWork{}, err
	}
	name := k.Owner + "/" + k.Repo
	known := knownCopy(a.cfg.Mirror.Dir, name)
	found := func(id int64) (foundWork, error) { return foundWork{s.Work(id, k.Issue, known), k}, nil }
	if a.store != 0 {
		return found(a.store)
	}
	now, forgeErr := a.repoID(ctx, name)
	if forgeErr == nil {
		if issues, err := s.Issues(ctx, now); err != nil || slices.Contains(issues, k.Issue) {
			return foundWork{s.Work(now, k.Issue, known), k}, err
		}
	}
	named, err := s.Named(name)
	if err != nil {
		return foundWork{}, err
	}
	var with []int64
	for _, id := range named {
		issues, err := s.Issues(ctx, id)
		if err != nil {
			return foundWork{}, err
		}
		if slices.Contains(issues, k.Issue) {
			with = append(with, id)
		}
	}
	switch {
	case len(with) > 1:
		return foundWork{}, usagef("several repositories had the name %s: add --store with one of %s", name, strings.Trim(fmt.Sprint(with), "[]"))
	case len(with) == 1 && forgeErr == nil:
		a.step("the forge has another repository %s now; what follows is of the one that had the name before", name)
		return found(with[0])
	case len(with) == 1:
		return found(with[0])
	case forgeErr != nil:
		return foundWork{}, fmt.Errorf("%w of %s in %s; the forge could not be asked which repository that is (%w)", mirror.ErrNothingSaved, k, a.cfg.file("work"), forgeErr)
	}
	return foundWork{}, fmt.Errorf("%w of %s in %s", mirror.ErrNothingSaved, k, a.cfg.file("work"))
}

// knownCopy is the copy of a repository of the forge's in a cache's directory, "" for none.
func knownCopy(dir, repo string) string {
	if copied, ok := cache.Dir(dir, forgeAddress(repo)); ok {
		return copied
	}
	return ""
}

// repoID asks the forge for its number of a repository.
func (a *app) repoID(ctx context.Context, name string) (int64, error) {
	creds, err := a.readCredentials()
	if err != nil {
		return 0, err
	}
	client, err := a.serviceForge(creds)
	if err != nil {
		return 0, err
	}
	repo, err := forge.ParseRepo(name)
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	info, err := client.Repository(ctx, repo)
	return info.ID, err
}

// A savedView is a snapshot as people are told of it; its JSON is part of several
// commands' output.
type savedView struct {
	At       time.Time          `json:"at"`
	Commit   string             `json:"commit"`
	Branch   string             `json:"branch,omitempty"`
	Head     string             `json:"head,omitempty"`
	NotSaved []podfile.NotSaved `json:"not_saved"`
	More     int                `json:"more,omitempty"` // left out of not_saved
	// Kept: an earlier saver of the issue made it.
	Kept bool `json:"kept,omitempty"`
	// Git is how the clone stood then, for who shows it.
	Git *mirror.GitStatus `json:"git,omitempty"`
}

// viewSnapshot reads what the saver said with a snapshot.
func viewSnapshot(s mirror.Snapshot) (savedView, error) {
	v := savedView{At: s.At, Commit: s.ID, Branch: s.Branch, Head: s.Head, Kept: s.Kept, NotSaved: []podfile.NotSaved{}}
	var said podfile.Snapshot
	if err := json.Unmarshal(s.Detail, &said); err != nil {
		return v, fmt.Errorf("reading snapshot %.12s: %w", s.ID, err)
	}
	v.NotSaved, v.More = append(v.NotSaved, said.NotSaved...), said.More
	return v, nil
}

// newest is the newest snapshot.
func (w foundWork) newest(ctx context.Context) (mirror.Snapshot, savedView, error) {
	s, err := w.Newest(ctx)
	if err != nil {
		return s, savedView{}, fmt.Errorf("what was saved of %s: %w", w.key, err)
	}
	v, err := viewSnapshot(s)
	return s, v, err
}

// maxTold bounds how many things that are not saved are told of on a terminal.
const maxTold = 10

// notSavedLines tell what a snapshot lacks, what a person would miss before the
// rest.
func (v savedView) notSavedLines() []string {
	missed := lostWith(podfile.Saved{Snapshot: podfile.Snapshot{NotSaved: v.NotSaved}})
	others := slices.DeleteFunc(slices.Clone(v.NotSaved), func(n podfile.NotSaved) bool {
		return n.Why != podfile.WhyIgnored && n.Why != podfile.WhySpecial
	})
	var lines []string
	for _, n := range append(missed, others...) {
		if len(lines) == maxTold {
			break
		}
		lines = append(lines, strings.ReplaceAll(notSavedLine(n), "\n", " "))
	}
	if rest := len(v.NotSaved) + v.More - len(lines); rest > 0 {
		lines = append(lines, fmt.Sprintf("and %d more", rest))
	}
	return lines
}

// tell says on stderr which snapshot it is, and what it lacks.
func (a *app) tell(v savedView) {
	a.step("saved      %s (%s)", v.At.Local().Format(time.DateTime), ago(v.At))
	for _, line := range v.notSavedLines() {
		a.step("not saved  %s", line)
	}
}

// savedOf is the newest snapshot of an issue for a command that shows it beside
// other things, nil when there is none.
func (a *app) savedOf(ctx context.Context, k reconcile.Key) (*savedView, error) {
	work, err := a.findSaved(ctx, k)
	if errors.Is(err, mirror.ErrNothingSaved) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	snap, v, err := work.newest(ctx)
	if err != nil {
		return nil, err
	}
	git, err := work.Status(ctx, snap)
	v.Git = &git
	return &v, err
}
