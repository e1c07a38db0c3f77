package cache

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"codeberg.org/devaipod/devaipod/mirror/gitproc"
)

// How commits of a repository that is here stand to one another. Their files' names are
// whatever somebody committed.

// compareWithin is how long git may compare two commits, and mostRenames how many files it looks
// for that were renamed: what somebody commits can make either take for ever.
const (
	compareWithin = 30 * time.Second
	mostRenames   = "merge.renameLimit=1000"
)

var errTooSlow = fmt.Errorf("git compared two commits for %s without an end", compareWithin)

// Conflict tells whether two commits can't be merged by git alone (git-merge-tree(1)), and
// in which files; none may be named. Nothing of it stays.
func (c *Cache) Conflict(ctx context.Context, addr Address, one, other string) (conflict bool, files []string, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, compareWithin, errTooSlow)
	defer cancel()
	dir := c.repo(addr).git()
	objects, err := os.MkdirTemp("", "devaipod-merge-")
	if err != nil {
		return false, nil, err
	}
	defer os.RemoveAll(objects) //nolint:errcheck // a directory of ours, of temporary files
	out := namesBuffer{}
	err = gitproc.Child{
		Dir: dir, Config: []string{mostRenames}, Stdout: &out, Args: []string{"merge-tree", "--write-tree", "-z", "--name-only", "--no-messages", "--allow-unrelated-histories", one, other},
		Env: []string{"GIT_OBJECT_DIRECTORY=" + objects, "GIT_ALTERNATE_OBJECT_DIRECTORIES=" + dir + "/objects"},
	}.Run(ctx)
	names := out.names()
	if err == nil || exitCode(err) == 1 && len(names) > 0 && objectID.MatchString(names[0]) { // without a tree it is another failure
		return err != nil, unique(names[min(1, len(names)):]), nil
	}
	return false, nil, err
}

// Touched are the files that a commit has changed since it left a base; all that it has, where
// the two have nothing in common. A file that was renamed has two names.
func (c *Cache) Touched(ctx context.Context, addr Address, base, commit string) ([]string, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, compareWithin, errTooSlow)
	defer cancel()
	dir := c.repo(addr).git()
	var left bytes.Buffer
	err := gitproc.Child{Dir: dir, Stdout: &left, Args: []string{"merge-base", base, commit}}.Run(ctx)
	args := []string{"diff-tree", "-r", "-z", "--name-only", "--no-renames", strings.TrimSpace(left.String()), commit}
	switch {
	case exitCode(err) == 1:
		args = []string{"ls-tree", "-r", "-z", "--name-only", commit}
	case err != nil:
		return nil, err
	}
	out := namesBuffer{}
	err = gitproc.Child{Dir: dir, Stdout: &out, Args: args}.Run(ctx)
	return out.names(), err
}

// TouchedBy are the files that an author's commits change which one commit has and another
// has not; merges change none. The author is an email address, as it is in the commits.
func (c *Cache) TouchedBy(ctx context.Context, addr Address, author, has, lacks string) ([]string, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, compareWithin, errTooSlow)
	defer cancel()
	out := namesBuffer{}
	err := gitproc.Child{Dir: c.repo(addr).git(), Stdout: &out, Args: []string{
		"log", "-z", "--format=", "--name-only", "--no-renames", "--no-merges", "--no-mailmap", "--fixed-strings", "--author=<" + author + ">", has, "^" + lacks, "--",
	}}.Run(ctx)
	return unique(out.names()), err
}

// mostNames is how much is read of files' names, in bytes.
const mostNames = 4 << 20

// A namesBuffer takes names that end with a NUL, and no more than mostNames of them.
type namesBuffer struct{ bytes.Buffer }

func (b *namesBuffer) Write(p []byte) (int, error) {
	if b.Len() < mostNames {
		b.Buffer.Write(p)
	}
	return len(p), nil
}

// names are those that it has whole.
func (b *namesBuffer) names() []string {
	all := strings.Split(b.String(), "\x00")
	out := []string{}
	for _, name := range all[:len(all)-1] {
		if name != "" {
			out = append(out, name)
		}
	}
	return out
}

// unique keeps the first of each name.
func unique(names []string) (out []string) {
	seen := map[string]bool{}
	for _, n := range names {
		if !seen[n] {
			out = append(out, n)
		}
		seen[n] = true
	}
	return out
}
