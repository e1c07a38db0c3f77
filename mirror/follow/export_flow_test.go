package follow_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"codeberg.org/devaipod/devaipod/mirror/cache"
	"codeberg.org/devaipod/devaipod/mirror/follow"
)

// agent is two commits of an agent's on the forge, on its branch, which also has a tag;
// it returns the newest.
func (w *world) agent() string {
	w.t.Helper()
	w.want("")
	git(w.t, w.work, "checkout", "-q", "-b", "agents")
	w.commit("a first step")
	w.commit("and a second")
	git(w.t, w.work, "push", "-q", w.copy, "agents:refs/heads/agent/1-x", "agents:refs/tags/mine")
	return git(w.t, w.work, "rev-parse", "agents")
}

// changed are the lines that two lists of refs differ in.
func changed(before, after string) (out []string) {
	a, b := strings.Split(before, "\n"), strings.Split(after, "\n")
	for _, line := range append(slices.Clone(a), b...) {
		if slices.Contains(a, line) != slices.Contains(b, line) {
			out = append(out, line)
		}
	}
	return out
}

// exported checks that the upstream's main, and nothing else, has moved to a commit, and
// the forge's with it.
func (w *world) exported(before, commit string) {
	w.t.Helper()
	after := w.upRefs()
	if diff := changed(before, after); len(diff) != 2 || diff[1] != "refs/heads/main "+commit {
		w.t.Errorf("upstream refs differ in %q\n%s", diff, w.log)
	}
	if here := git(w.t, w.copy, "rev-parse", "main"); here != commit {
		w.t.Errorf("the forge has %s, want %s", here, commit)
	}
}

func TestTheApprovedCommitGoesUpstreamAndNothingElse(t *testing.T) {
	w := newWorld(t)
	w.up.private.Store(true)
	w.known.Store(true)
	commit := w.agent()
	before, old := w.upRefs(), git(t, w.work, "rev-parse", "main")
	pushed := w.up.pushed.Load()
	plan, err := w.follower.Plan(t.Context(), id, commit)
	if err != nil || w.upRefs() != before || w.up.pushed.Load() != pushed {
		t.Fatalf("%v; upstream: %s", err, w.upRefs())
	}
	e, err := w.follower.Export(t.Context(), id, commit)
	if err != nil {
		t.Fatal(err)
	}
	w.exported(before, commit)
	var list []string
	for _, c := range e.Commits {
		list = append(list, c.ID)
	}
	if want := strings.Fields(git(t, filepath.Join(w.up.root, "app.git"), "rev-list", "--reverse", old+".."+commit)); !slices.Equal(list, want) || len(want) != 2 {
		t.Errorf("approved %v, went %v", list, want)
	}
	if e.Old != old || e.New != commit || e.Branch != "main" || !slices.Equal(plan.Commits, e.Commits) || plan.Old != old || e.Commits[0].Subject != "a first step" {
		t.Errorf("%+v, planned %+v", e, plan)
	}
	// Once more changes nothing.
	pushed = w.up.pushed.Load()
	if e, err = w.follower.Export(t.Context(), id, commit); err != nil || e.Old != commit || len(e.Commits) > 0 || w.up.pushed.Load() != pushed {
		t.Errorf("%+v, %v", e, err)
	}
	w.exported(before, commit)
}

func TestAnUpstreamThatHasMovedIsMergedInFirst(t *testing.T) {
	w := newWorld(t)
	commit := w.agent()
	git(t, w.work, "checkout", "-q", "main")
	w.upstream("theirs")
	before, theirs := w.upRefs(), git(t, w.work, "rev-parse", "main")
	var behind *follow.BehindError
	if _, err := w.follower.Export(t.Context(), id, commit); !errors.As(err, &behind) || behind.Upstream != theirs {
		t.Fatalf("it ends with %v", err)
	}
	if w.upRefs() != before {
		t.Error("the upstream was written")
	}
	w.same() // so that an agent can merge it in
	git(t, w.work, "checkout", "-q", "agents")
	git(t, w.work, "merge", "-q", "-m", "take theirs in", "main")
	git(t, w.work, "push", "-q", w.copy, "agents:refs/heads/agent/1-x")
	commit = git(t, w.work, "rev-parse", "agents")
	if _, err := w.follower.Export(t.Context(), id, commit); err != nil {
		t.Fatal(err)
	}
	w.exported(before, commit)
}

// The last look and the push are not one step, but for the upstream's own comparison.
func TestAnUpstreamThatMovesAtTheLastMomentIsNotWritten(t *testing.T) {
	w := newWorld(t)
	commit := w.agent()
	git(t, w.work, "checkout", "-q", "main")
	w.follow(func(p string) {
		if strings.HasPrefix(p, "export: push") {
			w.upstream("theirs")
		}
	})
	if _, err := w.follower.Export(t.Context(), id, commit); !errors.Is(err, cache.ErrMoved) {
		t.Fatalf("it ends with %v", err)
	}
	if got, want := git(t, filepath.Join(w.up.root, "app.git"), "rev-parse", "main"), git(t, w.work, "rev-parse", "main"); got != want {
		t.Errorf("the upstream has %s, want theirs, %s", got, want)
	}
}

func TestAnExportThatIsRefusedOrCutOffIsMadeLater(t *testing.T) {
	for name, tt := range map[string]struct {
		on, off func(*world)
		is      error
		says    string
	}{
		"a hook": {
			func(w *world) {
				hook := filepath.Join(w.up.root, "app.git/hooks/pre-receive")
				if err := os.WriteFile(hook, []byte("#!/bin/sh\necho 'not on a Friday' >&2\nexit 1\n"), 0o700); err != nil { //nolint:gosec // it is to be run
					w.t.Fatal(err)
				}
			},
			func(w *world) {
				if err := os.Remove(filepath.Join(w.up.root, "app.git/hooks/pre-receive")); err != nil {
					w.t.Fatal(err)
				}
			},
			cache.ErrDeclined, "not on a Friday",
		},
		"no second factor": {func(w *world) { w.up.noWrite.Store(true) }, func(w *world) { w.up.noWrite.Store(false) }, cache.ErrUnauthorized, ""},
		"it is down":       {func(w *world) { w.up.down.Store(true) }, func(w *world) { w.up.down.Store(false) }, nil, "does not answer"},
		"it is private":    {func(w *world) { w.up.private.Store(true) }, func(w *world) { w.known.Store(true) }, nil, "it is private"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			commit := w.agent()
			before := w.upRefs()
			tt.on(w)
			_, err := w.follower.Export(t.Context(), id, commit)
			if err == nil || tt.is != nil && !errors.Is(err, tt.is) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("it ends with %v", err)
			}
			if w.upRefs() != before {
				t.Error("the upstream was written")
			}
			tt.off(w)
			w.wait()
			if _, err := w.follower.Export(t.Context(), id, commit); err != nil {
				t.Fatal(err)
			}
			w.exported(before, commit)
		})
	}
}

func TestAnExportThatIsKilledIsMadeUpFor(t *testing.T) {
	for _, point := range []string{"export: push refs/heads/main", "export: follow", "follow: push refs/heads/main"} {
		t.Run(point, func(t *testing.T) {
			w := newWorld(t)
			commit := w.agent()
			before := w.upRefs()
			w.follow(func(p string) {
				if p == point {
					panic(died{p})
				}
			})
			func() {
				defer func() {
					if _, ok := recover().(died); !ok {
						t.Error("it was not killed")
					}
				}()
				_, _ = w.follower.Export(t.Context(), id, commit)
			}()
			w.follow(nil)
			if _, err := w.follower.Export(t.Context(), id, commit); err != nil {
				t.Fatal(err)
			}
			w.exported(before, commit)
		})
	}
}

func TestWhatHasDivergedIsNotExported(t *testing.T) {
	w := newWorld(t)
	commit := w.agent()
	git(t, w.work, "checkout", "-q", "main")
	git(t, w.work, "commit", "-q", "--amend", "--allow-empty", "-m", "one, anew")
	git(t, w.work, "push", "-q", "--force", "origin", "main")
	before := w.upRefs()
	var trouble *follow.TroubleError
	if _, err := w.follower.Export(t.Context(), id, commit); !errors.As(err, &trouble) || trouble.Kind != "diverged" {
		t.Errorf("it ends with %v", err)
	}
	if w.upRefs() != before {
		t.Error("the upstream was written")
	}
	if _, err := w.follower.Export(t.Context(), id+1, commit); !errors.Is(err, follow.ErrNotFollowed) {
		t.Errorf("another repository: %v", err)
	}
}
