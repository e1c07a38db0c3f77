package mirror

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"strings"

	"codeberg.org/devaipod/devaipod/mirror/smarthttp"
)

// Saved answers one pod's shim at /saved.bundle with what was saved of its issue's
// agent, for a fresh clone to begin with: a bundle (gitformat-bundle(5)) with the
// newest snapshot and those before it, the branches and the newest stash, under the
// names that they have here. What such a clone has of the forge is not in it, but
// its prerequisite. Of other issues, and of what is kept beside, there is nothing
// in it: repository and issue are the rules', not the request's.
//
// 404 is for an issue of which nothing was saved, 502 for a repository of which
// nothing is known now, since the forge is away. An answer that ends early is broken
// off. One is made at a time.
func (w *Work) Saved(rules Rules, issue int64) http.Handler {
	at := &place{repo: rules.Repo}
	turn := make(chan struct{}, 1)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /saved.bundle", func(rw http.ResponseWriter, r *http.Request) {
		select {
		case turn <- struct{}{}:
			defer func() { <-turn }()
		case <-r.Context().Done():
			return
		}
		w.tellSaved(rw, r, rules, issue, at)
	})
	return mux
}

// errNothingSaved is for an issue that a pod begins from the forge alone.
var errNothingSaved = errors.New("nothing was saved of this issue")

func (w *Work) tellSaved(rw http.ResponseWriter, r *http.Request, rules Rules, issue int64, at *place) {
	ctx := r.Context()
	b, err := w.bundle(ctx, rules, issue, at)
	switch {
	case ctx.Err() != nil:
		return
	case errors.Is(err, errNothingSaved) || errors.Is(err, ErrGone):
		smarthttp.Refuse(rw, http.StatusNotFound, "devaipod: "+err.Error())
		return
	case errors.Is(err, errUnknown):
		w.log.Warn("telling what was saved", "repo", rules.Repo, "issue", issue, "err", err)
		smarthttp.Refuse(rw, http.StatusBadGateway, "devaipod: the forge does not answer; try again in a minute")
		return
	case err != nil:
		w.log.Error("what was saved can't be read", "repo", rules.Repo, "issue", issue, "err", err)
		smarthttp.Refuse(rw, http.StatusInternalServerError, "devaipod: what was saved of this issue can't be read; a person has to look (the service's log)")
		return
	}
	rw.Header().Set("Content-Type", "application/x-git-bundle")
	rw.Header().Set("Cache-Control", "no-store")
	if err := b.write(ctx, rw); err != nil {
		if ctx.Err() == nil {
			w.log.Error("telling what was saved", "repo", rules.Repo, "issue", issue, "err", err)
		}
		panic(http.ErrAbortHandler) // a cut-off answer must not look whole
	}
}

// A bundle is what is in one.
type bundle struct {
	*store
	saved  []ref
	known  []string // commits that whoever reads it has
	wanted []string // those of them that it must have
}

// errUnknown is of a repository of which nothing is known now.
var errUnknown = errors.New("reading what the forge has")

// bundle finds out what will be in it.
func (w *Work) bundle(ctx context.Context, rules Rules, issue int64, at *place) (*bundle, error) {
	b := &bundle{store: w.storeAt(rules.RepoID)}
	if _, err := os.Stat(b.dir); errors.Is(err, fs.ErrNotExist) {
		return nil, errNothingSaved
	}
	prefix := SaveRules{Issue: issue}.prefix()
	all, err := refs(ctx, b.dir, prefix)
	if err != nil {
		return nil, err
	}
	begun := false
	for _, r := range all {
		if !strings.HasPrefix(r.name, prefix+"kept/") {
			b.saved = append(b.saved, r)
		}
		begun = begun || r.name == prefix+"work"
	}
	if !begun {
		return nil, errNothingSaved
	}
	if err := w.find(ctx, rules.RepoID, at); err != nil {
		return nil, err
	}
	if b.store.known, err = w.known(ctx, at.get()); err != nil {
		return nil, fmt.Errorf("%w: %w", errUnknown, err)
	}
	heads, err := refs(ctx, b.store.known, "refs/heads/")
	if err != nil {
		return nil, err
	}
	for _, r := range heads {
		b.known = append(b.known, r.id)
	}
	b.wanted, err = b.prerequisites(ctx)
	return b, err
}

// revisions are what git is told to put into it, and what not.
func (b *bundle) revisions() io.Reader { return revisions(idsOf(b.saved), b.known) }

// prerequisites are the commits on which those in the bundle stand, and the saved
// ones that are not in it, since they are known themselves.
func (b *bundle) prerequisites(ctx context.Context) ([]string, error) {
	tips := map[string]bool{}
	for _, r := range b.saved {
		tips[r.id] = true
	}
	var wanted []string
	lines := &eachLine{do: func(line string) {
		if id, edge := strings.CutPrefix(line, "-"); edge {
			wanted = append(wanted, id)
		} else {
			delete(tips, line)
		}
	}}
	if err := b.git(ctx, b.revisions(), lines, "rev-list", "--boundary", "--stdin"); err != nil {
		return nil, err
	}
	for _, id := range wanted {
		delete(tips, id)
	}
	for id := range tips {
		wanted = append(wanted, id)
	}
	return wanted, nil
}

// write writes the bundle: version 2 of the format, since savers know no other
// hash than SHA-1.
func (b *bundle) write(ctx context.Context, to io.Writer) error {
	var head bytes.Buffer
	head.WriteString("# v2 git bundle\n")
	for _, id := range b.wanted {
		head.WriteString("-" + id + "\n")
	}
	for _, r := range b.saved {
		head.WriteString(r.id + " " + r.name + "\n")
	}
	head.WriteString("\n")
	if _, err := head.WriteTo(to); err != nil {
		return err
	}
	return b.git(ctx, b.revisions(), to, "pack-objects", "--revs", "--thin", "--stdout", "--quiet", "--delta-base-offset")
}

// An eachLine hands on what is written to it line by line.
type eachLine struct {
	do   func(line string)
	rest []byte
}

func (e *eachLine) Write(p []byte) (int, error) {
	e.rest = append(e.rest, p...)
	for {
		line, after, found := bytes.Cut(e.rest, []byte("\n"))
		if !found {
			return len(p), nil
		}
		e.do(string(line))
		e.rest = after
	}
}
