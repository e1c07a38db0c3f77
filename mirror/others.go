package mirror

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// What somebody else pushes to an agent's branch stays there, as what was reviewed does: an agent
// may rewrite what it has pushed itself, and nothing else.

// othersFile lists, for each branch of agents' to which somebody else has pushed, the commit that
// was there when an agent came with a push next: "refs/heads/… 0123…".
const othersFile = "others"

// others reads it.
func (s *store) others() (map[string]string, error) {
	text, err := os.ReadFile(filepath.Join(s.dir, othersFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	out := map[string]string{}
	for line := range strings.Lines(string(text)) {
		if ref, id, ok := strings.Cut(strings.TrimSpace(line), " "); ok {
			out[ref] = id
		}
	}
	return out, nil
}

// noteOther records a commit that somebody else has pushed to a branch.
func (s *store) noteOther(ref, id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	all, err := s.others()
	if err != nil || all[ref] == id {
		return err
	}
	all[ref] = id
	var text strings.Builder
	for ref, id := range all {
		fmt.Fprintln(&text, ref, id)
	}
	return replaceFile(filepath.Join(s.dir, othersFile), text.String())
}

// keepOthers refuses to take off a branch what somebody else has pushed to it. An old value that is
// not what the branch has is refused by the forge.
func (p *push) keepOthers(ctx context.Context) error {
	for _, c := range p.list.commands {
		if strings.Trim(c.old, "0") == "" {
			continue
		}
		ours, err := p.q.pushed(ctx, c.ref, c.old)
		if err == nil && !ours {
			err = p.q.noteOther(c.ref, c.old)
		}
		if err != nil {
			return err
		}
		if err := p.keepOther(ctx, c, !ours); err != nil {
			return err
		}
	}
	return nil
}

// keepOther does so for one branch; fresh says that its head is somebody else's.
func (p *push) keepOther(ctx context.Context, c command, fresh bool) error {
	all, err := p.q.others()
	theirs := all[c.ref]
	if err != nil || theirs == "" {
		return err
	}
	if has, err := p.has(ctx, c.new, theirs); err != nil || has {
		return err
	}
	if fresh { // the cache may not have it yet
		if p.q.known, err = p.w.known(ctx, p.at.get()); err != nil {
			return fmt.Errorf("reading what the forge has: %w", err)
		}
	}
	has, err := p.has(ctx, c.new, theirs)
	if err != nil || has {
		return err
	}
	if had, err := p.has(ctx, c.old, theirs); err != nil || !had && !fresh {
		return err // it was taken off by others
	}
	branch := strings.TrimPrefix(c.ref, "refs/heads/")
	return &refusal{short: fmt.Sprintf("commit %.10s was pushed to %s by somebody else, and stays", theirs, branch), lines: []string{
		"What to do: take it over (git fetch origin " + branch + "; git merge FETCH_HEAD, or, if your own commits are not wanted any more, git reset --hard FETCH_HEAD), and push without force.",
	}}
}

// pushed tells whether an agent has pushed a commit as a branch's.
func (s *store) pushed(ctx context.Context, ref, id string) (bool, error) {
	name := strings.TrimPrefix(ref, "refs/")
	found, err := refs(ctx, s.dir, accepted+name, pending+name)
	for _, r := range found {
		if r.id == id && (r.name == accepted+name || r.name == pending+name) {
			return true, nil
		}
	}
	return false, err
}

// Pushed tells whether a branch of a repository, by its number, is where an agent's push has brought
// it last, if the forge has that commit there.
func (w *Work) Pushed(ctx context.Context, repo int64, branch, commit string) (bool, error) {
	ref := "refs/heads/" + branch
	if _, under := w.underWay.Load(underWay{repo, ref, commit}); under {
		return true, nil
	}
	s := w.storeAt(repo)
	if _, err := os.Stat(s.dir); errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return s.pushed(ctx, ref, commit)
}

// An underWay is a commit that the forge may have, and that is not recorded yet.
type underWay struct {
	repo        int64
	ref, commit string
}

// goes keeps in mind what a push is about to bring to the forge, until done is called.
func (p *push) goes() (done func()) {
	var all []underWay
	for _, c := range p.list.commands {
		u := underWay{p.rules.RepoID, c.ref, c.new}
		all = append(all, u)
		p.w.underWay.Store(u, nil)
	}
	return func() {
		for _, u := range all {
			p.w.underWay.Delete(u)
		}
	}
}
