package mirror

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// namesFile lists what a store's repository was called on the forge, one name a
// line, the newest last: by them it is found while nobody can ask the forge.
const namesFile = "names"

// names are the "owner/name"s that the repository had.
func (s *store) names() ([]string, error) {
	b, err := os.ReadFile(filepath.Join(s.dir, namesFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return strings.Fields(string(b)), err
}

// named records what the repository is called now.
func (s *store) named(repo string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	have, err := s.names()
	if err != nil || len(have) > 0 && have[len(have)-1] == repo {
		return err
	}
	have = slices.DeleteFunc(have, func(n string) bool { return n == repo })
	return replaceFile(filepath.Join(s.dir, namesFile), strings.Join(append(have, repo), "\n")+"\n")
}

// nameOnce asks the forge what the repository is called, unless that is recorded.
// While the forge is away it has no name yet.
func (w *Work) nameOnce(ctx context.Context, s *store, id int64) error {
	have, err := s.names()
	if err != nil || len(have) > 0 {
		return err
	}
	repo, err := w.name(ctx, id)
	if err != nil {
		w.log.Debug("asking what a repository is called, to find its saved work by name", "repo", id, "err", err)
		return nil
	}
	return s.named(repo)
}
