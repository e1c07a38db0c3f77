package reconcile

import (
	"context"
	"errors"
)

// A landing goes on beside the loop, which others must not wait for: an upstream may be slow.
// The loop keeps what is under way in memory alone. What a kill ends is found as it is by the
// next Land, and what has ended without anybody taking it up by the state of the pull request.

// An UnderWayError is what a Lander answers for a landing that goes on beside its caller.
type UnderWayError struct {
	Done   <-chan struct{}        // closed at its end
	Result func() (Landed, error) // what came of it; for after that
}

func (*UnderWayError) Error() string { return "it is landing" }

func (e *UnderWayError) over() bool {
	select {
	case <-e.Done:
		return true
	default:
		return false
	}
}

// going is a landing that was begun, and whose end was not seen to yet.
type going struct {
	approval
	*UnderWayError
}

// start begins a landing, or finds the one that is under way.
func (l *Loop) start(ctx context.Context, k Key, a approval) (Landed, error) {
	done, err := l.cfg.Lander.Land(ctx, a.Landing)
	var under *UnderWayError
	if errors.As(err, &under) {
		l.going[k] = &going{a, under}
	}
	return done, err
}

// ended takes what came of an issue's landing; an UnderWayError while it goes on, and nil for
// none, or one of another commit.
func (l *Loop) ended(k Key, commit string) (Landed, *going, error) {
	g := l.going[k]
	switch {
	case g == nil:
		return Landed{}, nil, nil
	case !g.over():
		return Landed{}, g, g.UnderWayError
	}
	delete(l.going, k)
	if g.Commit != commit {
		return Landed{}, nil, nil
	}
	done, err := g.Result()
	return done, g, err
}

// tellLanding tells of a landing by which a pull request was merged; wait says that it is not
// quite at its end, after which the issue is looked at again.
func (l *Loop) tellLanding(ctx context.Context, i Issue) (told, wait bool, err error) {
	g := l.going[i.Key]
	if g == nil || !g.over() {
		return false, g != nil, nil
	}
	if done, e := g.Result(); e == nil { // else somebody else has merged it
		told, err = true, l.sayLanded(ctx, i, g.approval, done)
	}
	if err == nil {
		delete(l.going, i.Key)
	}
	return told, false, err
}

// await waits beside the loop for a landing that somebody wants to know of, and has the issue
// looked at then.
func (l *Loop) await(ctx context.Context, k Key, under *UnderWayError, out *Approval) error {
	select {
	case <-under.Done:
	case <-ctx.Done():
		return ctx.Err()
	}
	done, err := under.Result()
	if err != nil {
		l.Kick(k)
		out.Failed, out.Refused = err.Error(), errors.Is(err, ErrRefused)
		return nil //nolint:nilerr // it is in what is told
	}
	out.Goes, out.Landed = &done, true
	e := l.Between(ctx, func() {
		var pods map[Key]Pod
		if pods, err = l.pods(ctx); err == nil {
			l.one(ctx, k, pods)
		}
	})
	return errors.Join(e, err)
}
