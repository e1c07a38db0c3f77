package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"codeberg.org/devaipod/devaipod/forge"
	"codeberg.org/devaipod/devaipod/mirror/cache"
	"codeberg.org/devaipod/devaipod/mirror/follow"
	"codeberg.org/devaipod/devaipod/pods/audit"
	"codeberg.org/devaipod/devaipod/pods/reconcile"
)

// A mergeForge stands for a forge with one pull request of ann/app, 4, from agent/3-x to main.
// Its git is real.
type mergeForge struct {
	head, base, main string // commits, and the base's name
	draft, merged    bool
	status           int // of its answer to a merge
	says             string
	then             func(*mergeForge) // what a merge does
	asked            []string          // what changes something, with its body
}

func (f *mergeForge) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var body map[string]any
	if r.Method != http.MethodGet {
		_ = json.NewDecoder(r.Body).Decode(&body) // none is none
		f.asked = append(f.asked, fmt.Sprint(r.Method, " ", strings.TrimPrefix(r.URL.Path, "/api/v1/repos/ann/app"), " ", body))
	}
	w.Header().Set("Content-Type", "application/json")
	switch path := r.URL.Path; {
	case strings.HasSuffix(path, "/pulls/4/merge"):
		if f.then != nil {
			f.then(f)
		}
		w.WriteHeader(f.status)
		fmt.Fprintf(w, `{"message": %q}`, f.says)
	case strings.HasSuffix(path, "/pulls/4"):
		title := "x"
		if f.draft {
			title = "WIP: x"
		}
		fmt.Fprintf(w, `{"number": 4, "state": "open", "title": %q, "merged": %t, "head": {"ref": "agent/3-x", "sha": %q}, "base": {"ref": %q}}`, title, f.merged, f.head, f.base)
	case strings.Contains(path, "/compare/"):
		fmt.Fprintf(w, `{"commits": [{"sha": %q, "commit": {"message": "two"}}]}`, f.head)
	default: // a branch
		fmt.Fprintf(w, `{"name": "x", "commit": {"id": %q}}`, f.main)
	}
}

// forgeCache is a cache in a directory, of the forge's repositories in its directory forge.
func forgeCache(t *testing.T, dir string) *cache.Cache {
	t.Helper()
	allow, err := cache.ParseAllow([]string{"forge"})
	if err != nil {
		t.Fatal(err)
	}
	c, err := cache.New(cache.Config{Dir: filepath.Join(dir, "cache"), Allow: allow, Hosts: map[string]cache.Host{forgeHost: {URL: "file://" + dir + "/forge/", Push: true}}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// newMerge has such a forge, and what lands on it.
func newMerge(t *testing.T) (*mergeForge, landPort, reconcile.Landing) {
	t.Helper()
	dir := t.TempDir()
	git := func(args ...string) string {
		t.Helper()
		cmd := exec.Command("git", args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@b", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@b")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("git %v: %v %s", args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, "work/a"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		git("-C", "work", "add", "a")
		git("-C", "work", "commit", "-q", "-m", text)
	}
	git("init", "-q", "-b", "main", "work")
	write("one")
	git("-C", "work", "checkout", "-q", "-b", "agent/3-x")
	write("two")
	f := &mergeForge{base: "main", head: git("-C", "work", "rev-parse", "HEAD"), main: git("-C", "work", "rev-parse", "main"), status: 200}
	git("-C", "work", "checkout", "-q", "-b", "other", "main")
	write("another")
	git("clone", "-q", "--bare", "work", "forge/ann/app.git")
	server := httptest.NewServer(f)
	t.Cleanup(server.Close)
	client, err := forge.New(forge.Config{URL: server.URL, Token: "t"})
	if err != nil {
		t.Fatal(err)
	}
	store, err := follow.OpenStore(filepath.Join(dir, "follow"))
	if err != nil {
		t.Fatal(err)
	}
	p := landPort{client: client, cache: forgeCache(t, dir), store: store, audit: func(audit.Entry) error { return nil }}
	return f, p, reconcile.Landing{Key: reconcile.Key{Owner: "ann", Repo: "app", Issue: 3}, RepoID: 7, Pull: 4, Branch: "agent/3-x", Base: "main", Commit: f.head, Approvers: []string{"bob"}}
}

func TestAMergeIsOfThatCommit(t *testing.T) {
	f, p, l := newMerge(t)
	var told []string
	p.audit = func(e audit.Entry) error {
		told = append(told, strings.Join([]string{e.Act, e.About, e.Who, e.Rule, e.Done, e.Result}, "|"))
		return nil
	}
	f.then = func(f *mergeForge) { f.merged = true }
	done, err := p.Land(t.Context(), l)
	if err != nil || done.Upstream != "" || done.Branch != "main" || done.Old != f.main || done.New != f.head || len(done.Commits) != 1 {
		t.Errorf("%+v, %v", done, err)
	}
	if want := "POST /pulls/4/merge map[Do:merge head_commit_id:" + l.Commit + "]"; !slices.Equal(f.asked, []string{want}) {
		t.Errorf("asked %q, want %q", f.asked, want)
	}
	if want := "merge|ann/app#3|@bob|they approved of it (land.approvals)|ann/app!4 at " + l.Commit + "|"; !slices.Equal(told, []string{want + "begins", want + "done"}) {
		t.Errorf("told %q, want %q", told, want)
	}
	// What can't be kept is not done.
	f, p, l = newMerge(t)
	p.audit = func(audit.Entry) error { return errors.New("disk full") }
	if _, err := p.Land(t.Context(), l); err == nil || !strings.Contains(err.Error(), "disk full") || len(f.asked) > 0 {
		t.Errorf("%v, asked %q", err, f.asked)
	}
}

func TestWhatHasChangedIsNotMerged(t *testing.T) {
	for name, change := range map[string]func(*mergeForge){
		"another head": func(f *mergeForge) { f.head = f.main },
		"another base": func(f *mergeForge) { f.base = "release" },
		"a draft":      func(f *mergeForge) { f.draft = true },
	} {
		f, p, l := newMerge(t)
		change(f)
		if _, err := p.Land(t.Context(), l); !errors.Is(err, reconcile.ErrMoved) || len(f.asked) > 0 {
			t.Errorf("%s: %v, asked %q", name, err, f.asked)
		}
	}
}

func TestWhatAMergeThatFailsMeans(t *testing.T) {
	for name, tt := range map[string]struct {
		status int
		says   string
		then   func(*mergeForge)
		want   error
	}{
		"the forge is not ready":      {405, "Please try again later", nil, reconcile.ErrLater},
		"a rule of the forge's":       {405, "User not allowed to merge PR", nil, reconcile.ErrRefused},
		"a push meanwhile":            {409, "head out of date", func(f *mergeForge) { f.head = f.main }, reconcile.ErrMoved},
		"somebody merged it just now": {405, "PR already merged", func(f *mergeForge) { f.merged = true }, nil},
		"it was made, and not told":   {500, "", func(f *mergeForge) { f.merged = true }, nil},
	} {
		f, p, l := newMerge(t)
		f.status, f.says, f.then = tt.status, tt.says, tt.then
		if _, err := p.Land(t.Context(), l); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// The base has moved, to what git can't merge alone.
	f, p, l := newMerge(t)
	if _, err := p.cache.Sync(t.Context(), forgeAddress("ann/app")); err != nil {
		t.Fatal(err)
	}
	refs, err := p.cache.Refs(t.Context(), forgeAddress("ann/app"), "refs/heads/other")
	if err != nil {
		t.Fatal(err)
	}
	f.main, f.status, f.says = refs.IDs["refs/heads/other"], 405, "Please try again later"
	var behind *reconcile.BehindError
	if _, err := p.Land(t.Context(), l); !errors.As(err, &behind) || behind.Base != f.main {
		t.Errorf("a conflict: %v", err)
	}
	if _, err := p.Plan(t.Context(), l); !errors.As(err, &behind) || len(f.asked) != 1 {
		t.Errorf("a conflict, planned: %v, asked %q", err, f.asked)
	}
}
