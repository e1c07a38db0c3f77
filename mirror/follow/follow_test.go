package follow_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/mirror/follow"
)

func TestTheCopyFollows(t *testing.T) {
	w := newWorld(t)
	w.want("")
	w.upstream("two")
	git(t, w.work, "tag", "-am", "Two", "v2")
	git(t, w.work, "tag", "apart", git(t, w.work, "commit-tree", "-m", "on no branch", "HEAD^{tree}"))
	git(t, w.work, "push", "-q", "origin", "v2", "apart", "main:refs/heads/side")
	rec := w.want("")
	w.same()
	if a, b := git(t, w.copy, "rev-parse", "v2", "apart"), git(t, w.work, "rev-parse", "v2", "apart"); a != b {
		t.Errorf("tags are %s, want %s", a, b)
	}
	if rec.Written != git(t, w.work, "rev-parse", "main") || rec.Seen != rec.Written || !rec.MadeRule || !rec.MergeByPush {
		t.Errorf("the record is %+v", rec)
	}
	if refs := w.refs(); strings.Contains(refs, "refs/heads/side") || strings.Count(refs, "refs/heads/") != 3 {
		t.Errorf("another branch came: %s", refs)
	}
	if got := w.forge.protected[len(w.forge.protected)-1]; got != "ann/app main" {
		t.Errorf("protected: %q", got)
	}
	// Where nothing has changed, nothing is pushed.
	w.forgeGit.pushed.Store(0)
	w.want("")
	if n := w.forgeGit.pushed.Load(); n != 0 {
		t.Errorf("%d questions about pushes where nothing has changed", n)
	}
}

func TestNothingGoesUpstream(t *testing.T) {
	w := newWorld(t)
	before := w.upRefs()
	git(t, w.work, "checkout", "-q", "-b", "agents")
	w.commit("an agent's work")
	git(t, w.work, "push", "-q", w.copy, "agents:refs/heads/agent/1-x", "agents:refs/heads/mine", "agents:refs/tags/mine")
	w.want("")
	git(t, w.work, "push", "-q", w.copy, "agents:main") // as nobody may
	w.want("diverged")
	if after := w.upRefs(); after != before {
		t.Errorf("the upstream has now\n%s, had\n%s", after, before)
	}
	if n := w.up.pushed.Load(); n != 0 {
		t.Errorf("the upstream was asked %d times about pushes", n)
	}
}

func TestADivergedBranchIsToldAndStays(t *testing.T) {
	for name, diverge := range map[string]func(*world){
		"the upstream is rewritten": func(w *world) {
			git(t, w.work, "commit", "-q", "--amend", "--allow-empty", "-m", "two, anew")
			git(t, w.work, "push", "-q", "--force", "origin", "main")
		},
		"the upstream goes back": func(w *world) {
			git(t, w.work, "reset", "-q", "--hard", "HEAD~1")
			git(t, w.work, "push", "-q", "--force", "origin", "main")
		},
		"somebody writes on the forge": func(w *world) {
			git(t, w.work, "checkout", "-q", "-b", "theirs")
			w.commit("theirs")
			git(t, w.work, "push", "-q", w.copy, "theirs:main")
			git(t, w.work, "checkout", "-q", "main")
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.upstream("two")
			w.want("")
			diverge(w)
			before := w.refs()
			rec := w.want("diverged")
			since := rec.Troubles[0].Since
			if rewritten := strings.Contains(rec.Troubles[0].Text, "rewritten"); rewritten != strings.HasPrefix(name, "the upstream") {
				t.Errorf("it says %q", rec.Troubles[0].Text)
			}
			w.follow(nil) // a restart tells it no second time
			w.want("diverged")
			if n := w.log.count("kind=diverged"); n != 1 {
				t.Errorf("told %d times:\n%s", n, w.log)
			}
			if after := w.refs(); after != before {
				t.Errorf("the forge has now\n%s, had\n%s", after, before)
			}
			// A change is told again, and tags come all the same.
			w.upstream("three")
			git(t, w.work, "push", "-q", "origin", "HEAD:refs/tags/v3")
			if name != "the upstream goes back" {
				rec = w.want("diverged")
				if n := w.log.count("kind=diverged"); n != 2 || !rec.Troubles[0].Since.Equal(since) {
					t.Errorf("after a change told %d times, since %s, at first %s", n, rec.Troubles[0].Since, since)
				}
			} else {
				w.want("diverged")
			}
			if !strings.Contains(w.refs(), "refs/tags/v3") {
				t.Error("the tag did not come")
			}
			// It is over when the forge's commits are upstream.
			have := git(t, w.copy, "rev-parse", "main")
			git(t, w.work, "fetch", "-q", w.copy, "main")
			git(t, w.work, "merge", "-q", "-m", "both", have)
			git(t, w.work, "push", "-q", "origin", "main")
			w.want("")
			w.same()
		})
	}
}

func TestTagsStay(t *testing.T) {
	w := newWorld(t)
	w.upstream("two")
	git(t, w.work, "push", "-q", "origin", "HEAD:refs/tags/v2")
	w.want("")
	before := w.refs()
	git(t, w.work, "push", "-q", "--force", "origin", "HEAD:refs/tags/v1", ":refs/tags/v2")
	rec := w.want("tags-moved tags-removed")
	if text := rec.Troubles[0].Text + rec.Troubles[1].Text; !strings.Contains(text, "v1 (") || !strings.Contains(text, "stay: v2") {
		t.Errorf("it says %q", text)
	}
	w.want("tags-moved tags-removed")
	if n := w.log.count("kind=tags-"); n != 2 {
		t.Errorf("told %d times", n)
	}
	if after := w.refs(); after != before {
		t.Errorf("the forge has now\n%s, had\n%s", after, before)
	}
	// Who deletes them on the forge gets what is upstream.
	git(t, w.copy, "tag", "-d", "v1", "v2")
	w.want("")
	if a, b := git(t, w.copy, "rev-parse", "v1"), git(t, w.work, "rev-parse", "HEAD"); a != b || strings.Contains(w.refs(), "v2") {
		t.Errorf("v1 is %s, want %s; all: %s", a, b, w.refs())
	}
}

func TestAnotherDefaultBranchIsToldAndNotFollowed(t *testing.T) {
	w := newWorld(t)
	w.want("")
	bare := filepath.Join(w.up.root, "app.git")
	git(t, w.work, "push", "-q", "origin", "main:trunk")
	git(t, bare, "symbolic-ref", "HEAD", "refs/heads/trunk")
	w.upstream("two") // on main
	w.want("branch")
	w.same()
	git(t, w.work, "push", "-q", "origin", ":main")
	rec := w.want("branch upstream")
	if next := rec.Troubles[0].Next; next != "devaipod forge follow ann/app --branch trunk" {
		t.Errorf("the next step is %q", next)
	}
	if strings.Contains(w.refs(), "refs/heads/trunk") {
		t.Error("trunk came by itself")
	}
	// As devaipod forge follow does it.
	w.put(follow.Record{ID: id, Repo: "ann/app", Upstream: rec.Upstream, Branch: "trunk", MakeDefault: true})
	if rec = w.want(""); rec.MakeDefault || w.forge.repo.DefaultBranch != "trunk" {
		t.Errorf("the default branch is %s; %+v", w.forge.repo.DefaultBranch, rec)
	}
	if a, b := git(t, w.copy, "rev-parse", "trunk"), git(t, bare, "rev-parse", "trunk"); a != b {
		t.Errorf("trunk is %s, want %s", a, b)
	}
	// A person who makes another one the default on the forge is told, not overruled.
	w.forge.repo.DefaultBranch = "main"
	w.want("default")
	if len(w.forge.defaults) != 1 {
		t.Errorf("set as default: %q", w.forge.defaults)
	}
}

func TestAnUpstreamThatCantBeReadIsTold(t *testing.T) {
	bare := func(w *world) string { return filepath.Join(w.up.root, "app.git") }
	for name, tt := range map[string]struct {
		spoil, mend func(*world)
		want        string
	}{
		"private": {func(w *world) { w.up.private.Store(true) }, func(w *world) { w.up.private.Store(false) }, "it is private"},
		"away":    {func(w *world) { w.up.down.Store(true) }, func(w *world) { w.up.down.Store(false) }, "does not answer"},
		"gone":    {func(w *world) { rename(t, bare(w), bare(w)+".away") }, func(w *world) { rename(t, bare(w)+".away", bare(w)) }, "not there any more"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.want("")
			w.upstream("two")
			before := w.refs()
			tt.spoil(w)
			for range 2 {
				rec := w.want("upstream")
				if !strings.Contains(rec.Troubles[0].Text, tt.want) || rec.Troubles[0].Next == "" {
					t.Errorf("it says %q, next %q", rec.Troubles[0].Text, rec.Troubles[0].Next)
				}
				w.wait()
			}
			if n := w.log.count("kind=upstream"); n != 1 {
				t.Errorf("told %d times:\n%s", n, w.log)
			}
			if after := w.refs(); after != before {
				t.Errorf("the forge has now\n%s, had\n%s", after, before)
			}
			tt.mend(w)
			w.want("")
			w.same()
		})
	}
}

func rename(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Error(err)
	}
}

func TestAnUpstreamThatMayNotBeAsked(t *testing.T) {
	w := newWorld(t)
	w.put(follow.Record{ID: id, Repo: "ann/app", Upstream: "127.0.0.2:1/app.git", Branch: "main"})
	rec := w.want("upstream")
	if !strings.Contains(rec.Troubles[0].Next, "mirror.allow_upstream") {
		t.Errorf("it says %+v", rec.Troubles)
	}
}

func TestAnEmptyUpstreamIsFollowedWhenItIsNotAnyMore(t *testing.T) {
	w := newWorld(t)
	up := w.up.bare(t, "empty")
	rec := w.want("")
	w.copy = w.forgeGit.bare(t, "ann/empty")
	w.forge.repo = follow.Repository{Name: "ann/empty", DefaultBranch: "main"}
	w.put(follow.Record{ID: id, Repo: "ann/empty", Upstream: strings.Replace(rec.Upstream, "app", "empty", 1), Branch: "main"})
	w.want("upstream")
	git(t, w.work, "push", "-q", up, "main", "v1")
	if rec = w.want(""); rec.Pushed.IsZero() {
		t.Error("what the forge makes of a new branch is not looked at")
	}
	w.same()
}

func TestARepositoryIsFollowedByItsNumber(t *testing.T) {
	w := newWorld(t)
	w.want("")
	rename(t, filepath.Join(w.forgeGit.root, "ann"), filepath.Join(w.forgeGit.root, "acme"))
	w.copy = strings.Replace(w.copy, "/ann/", "/acme/", 1)
	w.forge.repo.Name = "acme/app"
	w.upstream("two")
	if rec := w.want(""); rec.Repo != "acme/app" {
		t.Errorf("the record says %s", rec.Repo)
	}
	w.same()
	w.forge.repo.Archived = true
	w.upstream("three")
	before := w.refs()
	w.want("archived")
	if w.refs() != before {
		t.Error("what is archived is written")
	}
	w.forge.repo.Archived = false
	w.want("")
	// The forge is away, and nothing is forgotten; it is gone, and it is.
	w.forge.err = errAway
	w.want("forge")
	w.forge.err = follow.ErrGone
	if _, err := w.follower.Sync(t.Context(), id); !errors.Is(err, follow.ErrGone) {
		t.Errorf("it ends with %v", err)
	}
	if _, ok, err := w.store.Get(id); ok || err != nil {
		t.Errorf("there is a record still, %v", err)
	}
	if n := w.log.count("is gone from the forge"); n != 1 {
		t.Errorf("told %d times", n)
	}
	if _, err := w.follower.Sync(t.Context(), id); !errors.Is(err, follow.ErrNotFollowed) {
		t.Errorf("then it ends with %v", err)
	}
	if err := w.follower.Pass(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestWhatTheForgeRefusesIsTold(t *testing.T) {
	w := newWorld(t)
	w.want("")
	hook := filepath.Join(w.copy, "hooks/pre-receive")
	if err := os.WriteFile(hook, []byte("#!/bin/sh\necho 'not on a Friday' >&2\nexit 1\n"), 0o700); err != nil { //nolint:gosec // it is to be run
		t.Fatal(err)
	}
	w.upstream("two")
	for range 2 {
		rec := w.want("refused")
		if !strings.Contains(rec.Troubles[0].Text, "not on a Friday") {
			t.Errorf("it says %q", rec.Troubles[0].Text)
		}
	}
	if n := w.log.count("kind=refused"); n != 1 {
		t.Errorf("told %d times", n)
	}
	if err := os.Remove(hook); err != nil {
		t.Fatal(err)
	}
	w.want("")
	w.same()
	w.forge.refuse = errors.New("no")
	w.upstream("three")
	w.want("protection")
	w.same()
}

// died is what a fault point ends a look with, as a kill would.
type died struct{ point string }

func TestALookThatIsKilledIsMadeUpFor(t *testing.T) {
	for _, point := range []string{"follow: push refs/heads/main", "follow: push tags"} {
		t.Run(point, func(t *testing.T) {
			w := newWorld(t)
			w.upstream("two, fixes #3")
			git(t, w.work, "push", "-q", "origin", "HEAD:refs/tags/v2")
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
				_, _ = w.follower.Sync(t.Context(), id)
			}()
			w.follow(nil)
			rec := w.want("")
			w.same()
			if a, b := git(t, w.copy, "rev-parse", "v2"), git(t, w.work, "rev-parse", "HEAD"); a != b {
				t.Errorf("v2 is %s, want %s", a, b)
			}
			if rec.Pushed.IsZero() {
				t.Error("that issues were named is forgotten")
			}
		})
	}
}

func TestIssuesThatCommitsNameAreLookedAt(t *testing.T) {
	for text, want := range map[string]bool{"two": false, "Fix 3 things": false, "two, fixes #3": true, "reopens ann/other!4": true, "see https://x.org/a/b/issues/5": true} {
		w := newWorld(t)
		w.want("")
		w.upstream(text)
		rec := w.want("")
		w.same()
		if got := !rec.Pushed.IsZero(); got != want {
			t.Errorf("%q: %t", text, got)
		}
		w.forge.undo = []string{"ann/app#3"}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); w.follower.Run(ctx) }()
		if want {
			until(t, func() bool { return w.log.count("issue=ann/app#3") > 0 })
			w.wait()
			until(t, func() bool { rec, _, err := w.store.Get(id); return err == nil && rec.Pushed.IsZero() })
		}
		cancel()
		<-done
		for _, since := range w.forge.undone {
			if since.After(rec.Pushed) {
				t.Errorf("asked since %s, pushed at %s", since, rec.Pushed)
			}
		}
		if !want && len(w.forge.undone) > 0 {
			t.Errorf("%q: the forge is asked for nothing", text)
		}
	}
}

func TestIssuesThatCantBeMendedAreToldOnce(t *testing.T) {
	w := newWorld(t)
	w.want("")
	w.upstream("two, fixes #3")
	w.want("")
	w.forge.undoErr = errAway
	for range 3 {
		follow.Settle(t.Context(), w.follower)
	}
	if n := w.log.count("may stay so"); n != 1 {
		t.Errorf("told %d times\n%s", n, w.log)
	}
	w.clock.Add(int64(10 * time.Minute))
	follow.Settle(t.Context(), w.follower)
	if rec, _, err := w.store.Get(id); err != nil || rec.Pushed.IsZero() {
		t.Errorf("it is given up: %v", err)
	}
	w.forge.undoErr = nil
	follow.Settle(t.Context(), w.follower)
	if rec, _, err := w.store.Get(id); err != nil || !rec.Pushed.IsZero() {
		t.Errorf("it is not done: %v", err)
	}
}

func until(t *testing.T, ok func() bool) {
	t.Helper()
	for !ok() {
		if t.Context().Err() != nil {
			t.Fatal("it never came")
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func TestRunLooksAtTheStartAndWhenKicked(t *testing.T) {
	w := newWorld(t)
	w.upstream("two")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); w.follower.Run(ctx) }()
	until(t, func() bool { return git(t, w.copy, "rev-parse", "main") == git(t, w.work, "rev-parse", "main") })
	w.upstream("three")
	w.follower.Kick()
	until(t, func() bool { return git(t, w.copy, "rev-parse", "main") == git(t, w.work, "rev-parse", "main") })
	cancel()
	<-done
	views, err := w.follower.Views()
	if err != nil || len(views) != 1 || views[0].Checked.IsZero() {
		t.Errorf("views: %+v, %v", views, err)
	}
}

func TestALookBringsNoRecordBack(t *testing.T) {
	w := newWorld(t)
	w.upstream("two, fixes #3")
	w.follow(func(string) {
		if err := w.store.Remove(id); err != nil {
			t.Error(err)
		}
	})
	if _, err := w.follower.Sync(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if _, ok, err := w.store.Get(id); ok || err != nil {
		t.Errorf("what was unfollowed meanwhile is followed again: %t, %v", ok, err)
	}
	// The same for one that follows something else by then.
	other := follow.Record{ID: id, Repo: "ann/app", Upstream: "example.org/other.git", Branch: "main"}
	w.put(follow.Record{ID: id, Repo: "ann/app", Upstream: strings.TrimPrefix(w.up.url, "http://") + "/app.git", Branch: "main"})
	w.upstream("three, fixes #4")
	w.follow(func(string) { w.put(other) })
	if _, err := w.follower.Sync(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if rec, _, err := w.store.Get(id); err != nil || rec.Upstream != other.Upstream || rec.Seen != "" {
		t.Errorf("the record is %+v, %v", rec, err)
	}
}

func TestASlowUpstreamKeepsNoOtherWaiting(t *testing.T) {
	w := newWorld(t)
	rec := w.want("")
	let := make(chan struct{})
	w.up.slow.Store(&let)
	w.put(follow.Record{ID: 1, Repo: "ann/slow", Upstream: strings.Replace(rec.Upstream, "app", "slow", 1), Branch: "main"})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); w.follower.Run(ctx) }()
	for _, text := range []string{"two", "three", "four"} {
		w.upstream(text)
		w.follower.Kick()
		until(t, func() bool { return git(t, w.copy, "rev-parse", "main") == git(t, w.work, "rev-parse", "main") })
	}
	cancel()
	<-done
	close(let)
}
