package mirror

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"codeberg.org/devaipod/devaipod/mirror/gitproc"
)

// ErrNoBase is when nothing here tells what an agent began from.
var ErrNoBase = errors.New("nothing here tells from which branch of the forge the agent began")

// maxBases bounds how many branches are looked at.
const maxBases = 5000

// Base finds the commit from which the agent's changes count: where a snapshot's
// history left that of a branch of the forge. With an empty branch, any but
// agents': the nearest counts. The branch may be a commit's full id too, for a
// commit that is here.
func (w *SavedWork) Base(ctx context.Context, s Snapshot, branch string) (string, error) {
	bases := []string{branch}
	if !objectID.MatchString(branch) {
		var err error
		if bases, err = w.bases(ctx, branch); err != nil {
			return "", err
		}
	}
	if s.Head == "" {
		return bases[0], nil
	}
	bases = bases[:min(len(bases), maxBases)]
	found, err := w.output(ctx, nil, append([]string{"merge-base", s.Head}, bases...)...)
	var said *gitproc.Error
	if errors.As(err, &said) && said.Said == "" { // it says no, and nothing more
		return "", fmt.Errorf("the agent's commits have no history in common with %s: %w", orAny(branch), ErrNoBase)
	}
	return found, err
}

func orAny(branch string) string {
	if branch == "" {
		return "any branch"
	}
	return branch
}

// bases are the tips of a branch, or of all that are not agents', as the forge had
// them; or else of those in the agent's clone, which began as copies of them.
func (w *SavedWork) bases(ctx context.Context, branch string) ([]string, error) {
	wanted := func(name string) bool {
		return name == branch || branch == "" && !strings.HasPrefix(name, agentPrefix)
	}
	ids, err := w.onForge(ctx, wanted)
	if err != nil || len(ids) > 0 {
		return ids, err
	}
	own, err := w.Branches(ctx)
	if err != nil {
		return nil, err
	}
	for name, id := range own {
		if wanted(name) {
			ids = append(ids, id)
		}
	}
	if len(ids) == 0 {
		err = fmt.Errorf("%w (%s)", ErrNoBase, orAny(branch))
	}
	return ids, err
}

// Diff writes the changes from one commit to another, as git diff does with more
// arguments. What it writes is hostile: no terminal should get it as it is.
func (w *SavedWork) Diff(ctx context.Context, out io.Writer, from, to string, more ...string) error {
	args := append([]string{"diff", "--no-ext-diff", "--no-textconv", "--no-color", "--submodule=short"}, more...)
	return w.git(ctx, nil, out, append(args, from, to)...)
}
