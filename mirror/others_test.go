package mirror_test

import (
	"strings"
	"testing"
)

// theirs is a commit of somebody else's on what the forge has of the agent's branch, pushed there
// past the gate, by force if need be; it returns it.
func (s *stack) theirs(t *testing.T, parent, path string) string {
	t.Helper()
	dir := t.TempDir()
	git(t, dir, "clone", "-q", s.bare, "theirs")
	git(t, dir+"/theirs", "checkout", "-q", "--detach", parent)
	write(t, dir+"/theirs/"+path, "theirs\n")
	git(t, dir+"/theirs", "add", ".")
	git(t, dir+"/theirs", "commit", "-q", "-m", "Theirs")
	git(t, dir+"/theirs", "push", "-q", "--force", "origin", "HEAD:refs/heads/agent/3-work")
	return strings.TrimSpace(git(t, dir+"/theirs", "rev-parse", "HEAD"))
}

// What somebody else pushes to an agent's branch is taken over by the agent, and never pushed away:
// not at once, and not once it has been built on.
func TestNobodysWorkIsPushedAway(t *testing.T) {
	s := newStack(t)
	s.put(t, "a", "1")
	s.taken(t)
	git(t, s.clone, "commit", "-q", "--amend", "-m", "nobody has seen it yet")
	s.taken(t, "-f")
	mine := s.head(t)
	theirs := s.theirs(t, mine, "b")
	git(t, s.clone, "commit", "-q", "--amend", "-m", "once more")
	says := "commit " + theirs[:10] + " was pushed to agent/3-work by somebody else, and stays"
	s.refused(t, says, "git fetch origin agent/3-work; git merge FETCH_HEAD")
	git(t, s.clone, "fetch", "-q", "origin", "agent/3-work")
	git(t, s.clone, "merge", "-q", "--no-edit", "FETCH_HEAD")
	s.taken(t)
	s.start(t) // it is known for good
	git(t, s.clone, "remote", "set-url", "origin", s.url+"/work/alice/hello.git")
	git(t, s.clone, "reset", "-q", "--hard", mine)
	s.put(t, "c", "1")
	s.refused(t, says)

	// They throw away what the agent had, and their own: it goes on from there alone.
	anew := s.theirs(t, "main", "d")
	s.refused(t, "commit "+anew[:10]+" was pushed to agent/3-work by somebody else")
	git(t, s.clone, "fetch", "-q", "origin", "agent/3-work")
	git(t, s.clone, "reset", "-q", "--hard", "FETCH_HEAD")
	s.put(t, "e", "1")
	s.taken(t)
	git(t, s.clone, "commit", "-q", "--amend", "-m", "its own, which it may mend")
	s.taken(t, "-f")
	if got := s.head(t); got != s.onForge(t) {
		t.Errorf("the forge has %s, want %s", s.onForge(t), got)
	}
}

func TestWhoHasMovedABranch(t *testing.T) {
	s := newStack(t)
	pushed := func(commit string) bool {
		t.Helper()
		ok, err := s.work.Pushed(t.Context(), s.rules.RepoID, "agent/3-work", commit)
		if err != nil {
			t.Fatal(err)
		}
		return ok
	}
	if pushed(s.head(t)) {
		t.Error("nothing was pushed yet")
	}
	s.put(t, "a", "1")
	s.taken(t)
	first := s.head(t)
	if !pushed(first) {
		t.Error("the agent has pushed that")
	}
	if theirs := s.theirs(t, first, "b"); pushed(theirs) {
		t.Error("somebody else has pushed that")
	}
	git(t, s.clone, "pull", "-q", "--ff-only", "origin", "agent/3-work")
	s.put(t, "c", "1")
	s.taken(t)
	if !pushed(s.head(t)) || pushed(first) {
		t.Error("it is the newest that counts")
	}
	if ok, err := s.work.Pushed(t.Context(), 99, "agent/3-work", first); ok || err != nil {
		t.Errorf("a repository of which there is nothing: %t, %v", ok, err)
	}
}
