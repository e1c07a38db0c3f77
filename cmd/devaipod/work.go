package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"codeberg.org/devaipod/devaipod/forge"
	"codeberg.org/devaipod/devaipod/mirror"
	"codeberg.org/devaipod/devaipod/pods/reconcile"
)

// maxObjects bounds the objects of one push. The linux kernel has 11 million in
// all its history.
const maxObjects = 1_000_000

// newWork is the work store, where pods push.
func (s *service) newWork(a *app, transport http.RoundTripper) (*mirror.Work, error) {
	binary, err := beside("devaipod-box")
	if err != nil {
		return nil, err
	}
	limits := mirror.Limits{Objects: maxObjects}
	if limits.Push, err = parseBytes(s.cfg.Work.MaxPush); err != nil {
		return nil, err
	}
	if limits.File, err = parseBytes(s.cfg.Work.MaxFile); err != nil {
		return nil, err
	}
	limits.Unpacked = 10 * limits.Push
	return mirror.NewWork(mirror.WorkConfig{
		ForgeURL: s.cfg.forgeURL(), User: s.creds.Bot, Token: func() string { return s.creds.BotToken }, Transport: transport,
		Dir: a.cfg.file("work"), Launcher: []string{binary}, Limits: limits, Protected: s.cfg.Work.Protected,
		Known: func(ctx context.Context, repo string) (string, error) { return s.cache.Here(ctx, forgeAddress(repo)) },
		Copy: func(repo string, id int64) (string, bool) {
			dir, ok, err := s.cache.Copy(forgeAddress(repo), s.cfg.identity(id))
			return dir, ok && err == nil // else it is fetched, which says what is wrong
		},
		Name: func(ctx context.Context, id int64) (string, error) {
			info, err := s.forge.RepositoryByID(ctx, id)
			if errors.Is(err, forge.ErrNotFound) {
				err = fmt.Errorf("%w: %w", mirror.ErrGone, err)
			}
			return info.Repo.String(), err
		},
		Delivered: s.pushed, Refused: s.pushRefused, Log: s.log,
	})
}

// allowPath is what a comment lifts a path with, on a line of its own.
const allowPath = "/allow-path "

// lifts are what people who may push allow an issue's agent to change for once:
// as the issue's comments say now, so that a comment that is taken back counts no
// more. Any doubt about an account is an error.
func (s *service) lifts(ctx context.Context, k reconcile.Key) ([]mirror.Lift, error) {
	issue, err := s.forge.Issue(ctx, repoOf(k), k.Issue)
	if err != nil {
		return nil, err
	}
	comments, err := s.forge.Comments(ctx, issue.Repo, issue.Number)
	if err != nil {
		return nil, err
	}
	may := map[string]bool{strings.ToLower(s.creds.Bot): false, strings.ToLower(s.creds.Service): false}
	var out []mirror.Lift
	for _, c := range comments {
		paths := pathsAllowed(c.Body)
		if len(paths) == 0 {
			continue
		}
		who := strings.ToLower(c.Author)
		if _, asked := may[who]; !asked {
			if may[who], err = s.forge.CanWrite(ctx, issue.Repo, c.Author); err != nil {
				return nil, fmt.Errorf("asking whether %s may push to %s: %w", c.Author, issue.Repo, err)
			}
		}
		for i, path := range paths {
			if may[who] {
				out = append(out, mirror.Lift{ID: fmt.Sprintf("%d-%d", c.ID, i), Path: path})
			}
		}
	}
	return out, nil
}

// pathsAllowed are those that a comment allows.
func pathsAllowed(body string) []string {
	var out []string
	orders, _ := reconcile.OrdersIn(body)
	for line := range strings.Lines(orders) {
		if path, ok := strings.CutPrefix(strings.TrimRight(line, "\r\n"), allowPath); ok && strings.TrimSpace(path) != "" {
			out = append(out, mirror.ParsePath(strings.TrimSpace(path)))
		}
	}
	return out
}
