package reconcile

import (
	"context"
	"fmt"
	"slices"
)

// ready asks for reviews of a head that has come to its end, and keeps the evidence of it. In this
// order, so that a kill between the two does both again instead of never.
func (l *Loop) ready(ctx context.Context, i Issue, pod Pod, pull Pull, ev Evidence) error {
	left, err := l.cfg.Pods.Left(ctx, pod.Key)
	if err != nil {
		return fmt.Errorf("reading with what pull request %d of %s left draft: %w", pull.Number, i.Key, err)
	}
	var people []string
	if pull.Draft {
		if people, err = l.reviewers(i.Key, pod); err != nil {
			return err
		}
		people = append(people, pod.Labeler)
	}
	if pull.Draft || left != ev.Commit {
		void, err := l.voided(ctx, i.Key, pull.Number, ev.Commit)
		if err == nil {
			err = l.requestReview(ctx, i, pull, append(people, void...))
		}
		if err != nil {
			return err
		}
	}
	return l.cfg.Pods.Note(ctx, pod.Key, ev)
}

// voided are the people who may push, have approved of an earlier head, and have said nothing of
// this one.
func (l *Loop) voided(ctx context.Context, k Key, pull int64, head string) (out []string, err error) {
	if l.cfg.Lander == nil {
		return nil, nil
	}
	votes, err := l.cfg.Lander.Votes(ctx, k, pull)
	if err != nil {
		return nil, fmt.Errorf("asking who has approved of pull request %d of %s: %w", pull, k, err)
	}
	now := lastWords(votes, head)
	for _, v := range votes {
		if !v.Approves || v.Dismissed || l.isOurs(v.Author) || slices.Contains(out, v.Author) || slices.ContainsFunc(now, func(o Vote) bool { return o.by(v.Author) }) {
			continue
		}
		trusted, err := l.trusts(ctx, k, v.Author)
		if err != nil {
			return nil, err
		}
		if trusted {
			out = append(out, v.Author)
		}
	}
	return out, nil
}
