package saver

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"codeberg.org/devaipod/devaipod/pods/podfile"
)

const (
	maxListed = 300
	subject   = "Saved at "
	// headRef holds the last good HEAD; it is not pushed.
	headRef = "refs/saver/head"
)

// last is the newest snapshot, and the refs as they are.
type last struct {
	podfile.Snapshot
	id, tree string
	refs     map[string]string
}

// readLast reads the newest snapshot from the store.
func (s *saver) readLast(ctx context.Context) error {
	refs, err := s.store.refs(ctx)
	if err != nil {
		return fmt.Errorf("reading the saver's refs: %w", err)
	}
	s.last = last{refs: refs, id: refs[s.work()]}
	s.tips.refs = map[string]string{}
	for name, id := range refs {
		if short, ours := strings.CutPrefix(name, s.store.prefix); ours && name != s.work() {
			s.tips.refs[short] = id
		}
	}
	if s.last.id == "" {
		return nil
	}
	out, err := s.store.output(ctx, call{args: []string{"log", "-1", "--no-show-signature", "--format=%T%n%B", s.last.id}})
	if err != nil {
		return fmt.Errorf("reading the newest snapshot: %w", err)
	}
	tree, message, _ := strings.Cut(out, "\n")
	_, body, _ := strings.Cut(message, "\n")
	s.last.tree = tree
	if err := json.Unmarshal([]byte(body), &s.last.Snapshot); err != nil {
		return fmt.Errorf("reading the newest snapshot's message: %w", err)
	}
	s.tips.branch, s.tips.head = s.last.Branch, s.last.Head
	return nil
}

func (s *saver) work() string { return s.store.prefix + "work" }

// snapshot makes a commit of the tree and moves the refs, if there is news.
func (s *saver) snapshot(ctx context.Context, now tips, list []podfile.NotSaved) (made bool, err error) {
	refs, spare := fit(now.refs)
	next := podfile.Snapshot{Branch: now.branch, Head: now.head, Previous: s.last.id}
	next.NotSaved, next.More = shorten(list)
	next.Old = s.oldTips(ctx, refs, spare, now.head)
	tree := s.treeID
	if tree == "" {
		tree = s.last.tree // there is none now
	}
	id := s.last.id
	if news := tree != s.last.tree || next.Head != s.last.Head || next.Branch != s.last.Branch || len(next.Old) > 0 || !sameList(next.NotSaved, s.last.NotSaved); news || id == "" {
		if id, err = s.commit(ctx, tree, next); err != nil {
			return false, err
		}
		made = true
	}
	moved, err := s.move(ctx, id, now.head, refs)
	if err != nil {
		return false, fmt.Errorf("moving the saver's refs: %w", err)
	}
	if made {
		s.last.Snapshot, s.last.id, s.last.tree = next, id, tree
	}
	return made || moved, nil
}

func (s *saver) commit(ctx context.Context, tree string, next podfile.Snapshot) (string, error) {
	body, err := json.Marshal(next)
	if err != nil {
		return "", err
	}
	var parents []string
	for _, p := range append([]string{next.Previous, next.Head}, next.Old...) {
		if p != "" && !slices.Contains(parents, p) {
			parents = append(parents, p)
		}
	}
	at := time.Now().UTC().Format(time.RFC3339)
	id, err := s.store.commit(ctx, tree, subject+at+"\n\n"+string(body)+"\n", parents)
	if err != nil {
		return "", fmt.Errorf("making a snapshot: %w", err)
	}
	return id, nil
}

// oldTips are commits that the branches of before had and that would not be
// reachable any more, and those for which there is no ref.
func (s *saver) oldTips(ctx context.Context, refs map[string]string, spare []string, head string) []string {
	var old []string
	add := func(id string) {
		reachable := slices.Contains(old, id)
		for _, from := range []string{s.last.id, head} {
			reachable = reachable || from != "" && s.store.contains(ctx, id, from)
		}
		if !reachable {
			old = append(old, id)
		}
	}
	for name, id := range s.last.refs {
		short, ours := strings.CutPrefix(name, s.store.prefix)
		if now := refs[short]; ours && name != s.work() && id != now && (now == "" || !s.store.contains(ctx, id, now)) {
			add(id)
		}
	}
	for _, id := range spare {
		add(id)
	}
	slices.Sort(old)
	return old
}

// move makes the refs say what is now: first the snapshot, by which the old
// tips stay reachable, then what makes room for others.
func (s *saver) move(ctx context.Context, work, head string, refs map[string]string) (moved bool, err error) {
	first, gone, rest := map[string]string{}, map[string]string{}, map[string]string{}
	if s.last.refs[s.work()] != work {
		first[s.work()] = work
	}
	if head != "" && s.last.refs[headRef] != head {
		first[headRef] = head
	}
	for name := range s.last.refs {
		short, ours := strings.CutPrefix(name, s.store.prefix)
		if ours && name != s.work() && refs[short] == "" {
			gone[name] = ""
		}
	}
	for short, id := range refs {
		if s.last.refs[s.store.prefix+short] != id {
			rest[s.store.prefix+short] = id
		}
	}
	for _, step := range []map[string]string{first, gone, rest} {
		if err := s.store.update(ctx, step); err != nil {
			return false, err
		}
		maps.Copy(s.last.refs, step)
		maps.DeleteFunc(s.last.refs, func(_, id string) bool { return id == "" })
	}
	return len(first)+len(gone)+len(rest) > 0, nil
}

// fit takes out the refs that can't be beside others (a and a/b) and returns
// their commits.
func fit(all map[string]string) (refs map[string]string, spare []string) {
	refs = map[string]string{}
	for name, id := range all {
		inside := false
		for i := range len(name) {
			if name[i] == '/' && all[name[:i]] != "" {
				inside = true
			}
		}
		if inside {
			spare = append(spare, id)
		} else {
			refs[name] = id
		}
	}
	return refs, spare
}

// shorten bounds the list; what is merely ignored is left out first.
func shorten(list []podfile.NotSaved) (short []podfile.NotSaved, more int) {
	rank := func(n podfile.NotSaved) int {
		if n.Why == podfile.WhyIgnored {
			return 1
		}
		return 0
	}
	slices.SortFunc(list, func(a, b podfile.NotSaved) int {
		return cmp.Or(rank(a)-rank(b), strings.Compare(a.Path, b.Path), strings.Compare(string(a.Raw), string(b.Raw)), strings.Compare(a.Why, b.Why))
	})
	if len(list) > maxListed {
		return list[:maxListed], len(list) - maxListed
	}
	return list, 0
}

// sameList tells whether two lists name the same things; sizes may differ.
func sameList(a, b []podfile.NotSaved) bool {
	return slices.EqualFunc(a, b, func(a, b podfile.NotSaved) bool {
		return a.Path == b.Path && string(a.Raw) == string(b.Raw) && a.Why == b.Why
	})
}
