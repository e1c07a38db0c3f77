package saver

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"
)

// strict is how index-pack checks the agent's commits: as whoever takes pushes
// does, but for what old repositories have and what harms nobody. A commit that
// the far end would refuse must not become the parent of a snapshot.
const strict = "--strict=" +
	"zeroPaddedFilemode=ignore,badTimezone=ignore,badDate=ignore,badEmail=ignore,badName=ignore,missingEmail=ignore," +
	"missingNameBeforeEmail=ignore,missingSpaceBeforeDate=ignore,missingSpaceBeforeEmail=ignore,multipleAuthors=ignore," +
	"nullSha1=ignore,missingTaggerEntry=ignore"

// bring copies commits of the agent's, with all they need, into the store, and
// returns those that could not be had, with the reason. plain tells why the
// agent's objects must not be read, nil when they may.
func (s *store) bring(ctx context.Context, ids []string, plain error, limit time.Duration) (bad map[string]error) {
	bad = map[string]error{}
	refs, err := s.refs(ctx)
	if err != nil {
		return all(ids, err)
	}
	have := slices.Collect(maps.Values(refs))
	if s.connected(ctx, ids, have) == nil {
		return bad
	}
	if plain == nil {
		if err = s.copyCommits(ctx, ids, have, limit); err == nil {
			err = s.connected(ctx, ids, have)
		}
		if err == nil {
			return bad
		}
	}
	// One that is broken must not take the others along.
	for i, id := range ids {
		switch {
		case s.connected(ctx, []string{id}, have) == nil:
		case plain != nil:
			bad[id] = plain
		case ctx.Err() != nil || i >= maxSingly:
			bad[id] = err
		default:
			one := s.copyCommits(ctx, []string{id}, have, limit)
			if one == nil {
				one = s.connected(ctx, []string{id}, have)
			}
			if one != nil {
				bad[id] = one
			}
		}
	}
	return bad
}

// maxSingly bounds how many commits are tried one by one.
const maxSingly = 20

func all(ids []string, err error) map[string]error {
	bad := map[string]error{}
	for _, id := range ids {
		bad[id] = err
	}
	return bad
}

// connected tells whether the store itself has the commits and all they need.
func (s *store) connected(ctx context.Context, ids, have []string) error {
	if len(ids) == 0 {
		return nil
	}
	return s.run(ctx, call{args: []string{"rev-list", "--objects", "--quiet", "--stdin"}, stdin: revisions(ids, have)})
}

func revisions(want, have []string) *strings.Reader {
	var b strings.Builder
	for _, id := range want {
		b.WriteString(id + "\n")
	}
	for _, id := range have {
		b.WriteString("^" + id + "\n")
	}
	return strings.NewReader(b.String())
}

// copyCommits has one git read the agent's objects and another, which does not
// see them, check and keep what comes.
func (s *store) copyCommits(ctx context.Context, ids, have []string, limit time.Duration) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	sent := make(chan error, 1)
	go func() {
		err := s.run(ctx, call{args: []string{"pack-objects", "--revs", "--stdout", "--quiet", "--delta-base-offset"}, stdin: revisions(ids, have), stdout: w, agent: true, limit: limit})
		if err != nil {
			cancel() // half a pack is none
		}
		sent <- errors.Join(err, w.Close())
	}()
	err = s.run(ctx, call{args: []string{"index-pack", "--stdin", strict}, stdin: r, limit: limit})
	err = errors.Join(err, r.Close())
	if first := <-sent; first != nil {
		return fmt.Errorf("reading commits: %w", first)
	}
	if err != nil {
		return fmt.Errorf("copying commits: %w", err)
	}
	return nil
}
