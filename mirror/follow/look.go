package follow

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"

	"codeberg.org/devaipod/devaipod/mirror/cache"
)

// A look is one look at one repository.
type look struct {
	f     *Follower
	rec   Record // as it is to be after it
	log   *slog.Logger
	found []Trouble
	whole bool // both sides answered

	repo     Repository
	from, to cache.Address
}

// run looks, and changes what can be changed. An error is one that says nothing
// of the repository; what does is a trouble.
func (l *look) run(ctx context.Context) error {
	var err error
	if l.repo, err = l.f.cfg.Forge.Repository(ctx, l.rec.ID); errors.Is(err, ErrGone) {
		return err
	} else if err != nil {
		l.troubleMarked("forge", "away", "the forge can't be asked: "+err.Error(), "devaipod forge status")
		return nil //nolint:nilerr // it is a trouble
	}
	if l.repo.Name != l.rec.Repo {
		l.log.Info("a repository that follows an upstream was renamed", "now", l.repo.Name)
		l.rec.Repo = l.repo.Name
	}
	if l.from, err = cache.ParseAddress(l.rec.Upstream); err == nil {
		l.to, err = cache.ParseAddress(l.f.cfg.ForgeHost + "/" + l.repo.Name)
	}
	if err != nil {
		return err
	}
	if l.repo.Archived {
		l.trouble("archived", "it is archived on the forge, which takes nothing then", "unarchive it, or devaipod forge unfollow "+l.repo.Name)
		return nil
	}
	l.prepare(ctx)
	up, ok := l.upstream(ctx)
	if !ok {
		return nil
	}
	there, err := l.f.cfg.Cache.Ask(ctx, l.to, l.f.cfg.Login, "refs/heads/"+l.rec.Branch, "refs/tags/*")
	if err != nil {
		l.troubleMarked("forge", "git", "the forge does not let the service's account read by git: "+err.Error(), "devaipod forge up repairs its account")
		return nil //nolint:nilerr // it is a trouble
	}
	l.whole = true
	if err := l.branch(ctx, up, there); err != nil {
		return err
	}
	l.tags(ctx, up, there)
	return nil
}

// prepare sees to it that nobody but us writes the branch, and that the forge
// knows a merge that comes from upstream.
func (l *look) prepare(ctx context.Context) {
	made, err := l.f.cfg.Forge.Protect(ctx, l.repo.Name, l.rec.Branch)
	l.rec.MadeRule = l.rec.MadeRule || made && err == nil
	if err == nil && !l.rec.MergeByPush {
		err = l.f.cfg.Forge.MergeByPush(ctx, l.repo.Name)
		l.rec.MergeByPush = err == nil
	}
	if err != nil {
		l.troubleMarked("protection", "", "others may be able to write the branch: "+err.Error(), "")
	}
}

// upstream brings the cache up to date.
func (l *look) upstream(ctx context.Context) (refs cache.Refs, ok bool) {
	_, err := l.f.cfg.Cache.Sync(ctx, l.from)
	if err == nil {
		refs, err = l.f.cfg.Cache.Refs(ctx, l.from, "refs/heads/"+l.rec.Branch, "refs/tags/")
	}
	unfollow := "or devaipod forge unfollow " + l.repo.Name
	var refused *cache.RefusedError
	switch {
	case err == nil:
		return refs, true
	case errors.As(err, &refused):
		l.troubleMarked("upstream", "refused", "the git cache may not ask for it: "+err.Error(), "let mirror.allow_upstream name it, "+unfollow)
	case errors.Is(err, cache.ErrUnauthorized):
		l.troubleMarked("upstream", "private", "it is private, or was removed, and the service has no credentials that are let in", "give git's credential helper or a [[mirror.host]] some, "+unfollow)
	case errors.Is(err, cache.ErrNoRepository):
		l.troubleMarked("upstream", "none", "it is not there any more, or is private", "look where it went, and devaipod forge follow "+l.repo.Name+" URL, "+unfollow)
	default:
		l.troubleMarked("upstream", "away", err.Error(), "it is tried again")
	}
	return refs, false
}

// branch moves the forge's branch forward to where the upstream's is.
func (l *look) branch(ctx context.Context, up, there cache.Refs) error {
	name := l.rec.Branch
	ref := "refs/heads/" + name
	if up.Head != "" && up.Head != name {
		l.trouble("branch", fmt.Sprintf("the upstream's default branch is %s; what is followed is %s", up.Head, name),
			fmt.Sprintf("devaipod forge follow %s --branch %s", l.repo.Name, up.Head))
	}
	target, have := up.IDs[ref], there.IDs[ref]
	if target == "" {
		l.trouble("upstream", fmt.Sprintf("it has no branch %s", name), "it is followed when there is one")
		return nil
	}
	l.rec.Seen = target
	if have != "" && have != target {
		forward, err := l.f.cfg.Cache.Ancestor(ctx, l.from, have, target)
		if err != nil {
			return err
		}
		if !forward {
			l.diverged(have, target)
			return nil
		}
	}
	if have != target && !l.push(ctx, have, target) {
		return nil
	}
	l.rec.Written = target
	return l.makeDefault(ctx)
}

// diverged tells that the branch stays as it is.
func (l *look) diverged(have, target string) {
	text := fmt.Sprintf("%s has diverged: the forge's %.12s is not in the upstream's %.12s", l.rec.Branch, have, target)
	if have == l.rec.Written {
		text += ", which was rewritten"
	} else {
		text += ": somebody has written on the forge's"
	}
	l.trouble("diverged", text, fmt.Sprintf("bring the forge's commits upstream; or devaipod forge unfollow %s, mend it by git push --force, and devaipod forge follow %s %s", l.repo.Name, l.repo.Name, l.rec.Upstream))
}

// named is in a commit's message that may name an issue of the forge, so that the
// forge does something to it.
const named = `[#!][0-9]|/(issues|pulls)/[0-9]`

// push moves the branch. It is noted before, when the forge may make something of
// the commits' messages.
func (l *look) push(ctx context.Context, have, target string) (done bool) {
	ref := "refs/heads/" + l.rec.Branch
	var err error
	names := have == "" // of a new branch the forge reads the last few commits
	if !names {
		names, err = l.f.cfg.Cache.Mentions(ctx, l.from, have, target, named)
	}
	if err == nil && names {
		l.rec.Pushed = l.f.cfg.Now().UTC()
		err = l.f.cfg.Store.update(l.rec)
	}
	if err != nil {
		l.troubleMarked("upstream", "broken", "reading the new commits: "+err.Error(), "it is tried again")
		return false
	}
	if !l.rec.Pushed.IsZero() {
		defer signal(l.f.pushed)
	}
	l.f.cfg.Fault("follow: push " + ref)
	if err := l.f.cfg.Cache.Push(ctx, l.from, l.to, l.f.cfg.Login, map[string]string{ref: target}); err != nil {
		l.refused("branch "+l.rec.Branch, err)
		return false
	}
	l.log.Info("followed the upstream", "branch", l.rec.Branch, "from", have, "to", target)
	return true
}

func (l *look) refused(what string, err error) {
	l.troubleMarked("refused", what, fmt.Sprintf("the forge does not take the %s: %s", what, err), "look at the repository's rules for branches and tags; it is tried again")
}

// makeDefault makes the branch the forge's default one, if that was asked for.
func (l *look) makeDefault(ctx context.Context) error {
	if l.repo.DefaultBranch == l.rec.Branch {
		l.rec.MakeDefault = false
		return nil
	}
	if !l.rec.MakeDefault {
		l.trouble("default", fmt.Sprintf("the forge's default branch is %s; what is followed is %s", l.repo.DefaultBranch, l.rec.Branch),
			fmt.Sprintf("devaipod forge follow %s --branch %s makes that the default", l.repo.Name, l.rec.Branch))
		return nil
	}
	if err := l.f.cfg.Forge.SetDefaultBranch(ctx, l.repo.Name, l.rec.Branch); err != nil {
		l.refused("default branch "+l.rec.Branch, err)
		return nil
	}
	l.rec.MakeDefault = false
	l.log.Info("made it the default branch", "branch", l.rec.Branch)
	return nil
}

const tagsAt = "refs/tags/"

// tags brings those that the forge lacks. One that is there stays as it is.
func (l *look) tags(ctx context.Context, up, there cache.Refs) {
	missing := map[string]string{}
	var moved, removed []string
	known := map[string]string{}
	for ref, id := range up.IDs {
		name, tag := strings.CutPrefix(ref, tagsAt)
		if !tag {
			continue
		}
		known[name] = id
		switch have := there.IDs[ref]; {
		case have == "":
			missing[ref] = id
		case have != id:
			moved = append(moved, fmt.Sprintf("%s (%.12s upstream, %.12s on the forge)", name, id, have))
		}
	}
	for name, id := range l.rec.Tags {
		if known[name] == "" && there.IDs[tagsAt+name] != "" {
			known[name] = id
			removed = append(removed, name)
		}
	}
	if len(moved) > 0 {
		l.trouble("tags-moved", "tags are not what they are upstream, and stay: "+few(moved), "what the upstream has now is taken over once the forge's is deleted")
	}
	if len(removed) > 0 {
		l.trouble("tags-removed", "tags were removed upstream, and stay: "+few(removed), "delete them on the forge if they are of no use")
	}
	l.rec.Tags = known
	if len(missing) == 0 {
		return
	}
	l.f.cfg.Fault("follow: push tags")
	if err := l.f.cfg.Cache.Push(ctx, l.from, l.to, l.f.cfg.Login, missing); err != nil {
		l.refused("tags", err)
		return
	}
	l.log.Info("followed the upstream", "tags", few(slices.Collect(maps.Keys(missing))))
}

// few names some of many.
func few(names []string) string {
	slices.Sort(names)
	const most = 5
	if more := len(names) - most; more > 0 {
		return strings.Join(names[:most], ", ") + fmt.Sprintf(" and %d more", more)
	}
	return strings.Join(names, ", ")
}

// trouble notes one that is another one when its words are others.
func (l *look) trouble(kind, text, next string) { l.troubleMarked(kind, text, text, next) }

func (l *look) troubleMarked(kind, mark, text, next string) {
	l.found = append(l.found, Trouble{Kind: kind, Text: text, Next: next, Mark: mark})
}

// tell logs what has changed of the troubles, and puts those that there are now
// into the record.
func (l *look) tell() {
	now := l.f.cfg.Now().UTC()
	for i := range l.found {
		t := &l.found[i]
		t.Since = now
		told := false
		for _, old := range l.rec.Troubles {
			if old.Kind == t.Kind {
				t.Since = old.Since
				told = told || old.Mark == t.Mark
			}
		}
		if !told {
			l.log.Warn("does not follow its upstream as it should", "kind", t.Kind, "what", t.Text, "next", t.Next)
		}
	}
	for _, old := range l.rec.Troubles {
		if l.whole && !slices.ContainsFunc(l.found, func(t Trouble) bool { return t.Kind == old.Kind }) {
			l.log.Info("a trouble with the upstream is over", "kind", old.Kind)
		}
	}
	if !l.whole { // what could not be looked at is as it was
		for _, old := range l.rec.Troubles {
			if !slices.ContainsFunc(l.found, func(t Trouble) bool { return t.Kind == old.Kind }) && aboutRefs(old.Kind) {
				l.found = append(l.found, old)
			}
		}
	}
	l.rec.Troubles = l.found
}

// aboutRefs tells whether a trouble is found by comparing both sides.
func aboutRefs(kind string) bool {
	return slices.Contains([]string{"diverged", "branch", "default", "tags-moved", "tags-removed", "refused"}, kind)
}
