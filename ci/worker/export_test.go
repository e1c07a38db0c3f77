package worker

import (
	"context"
	"io"
	"time"

	"codeberg.org/devaipod/devaipod/ci/job"
)

// What tests of single parts need.
var (
	ErrTime   = errTime
	ErrBehind = errBehind
)

func Read(spec *job.Spec) (string, error) {
	run, err := read(spec)
	if err != nil {
		return "", err
	}
	return run.Job().Steps[0].Run, nil
}

func NewJob(ctx context.Context, spec *job.Spec, dir string) error {
	_, err := newJob(ctx, spec, dir)
	return err
}

func Hide(text string, secrets ...string) string { return newMasks(secrets...).hide(text) }

func Lines(to io.Writer) (w io.Writer, held func() int, flush func() error) {
	l := byLine(to)
	return l, func() int { return cap(l.buf) }, l.flush
}

func Bound(ctx context.Context, t, grace, wrapUp time.Duration, run func(force, asked context.Context) error) error {
	return bound(ctx, times{t, grace, wrapUp}, run)
}

func ParseEnv(text string) (map[string]string, error) {
	env := map[string]string{}
	return env, parseEnv("file", []byte(text), env)
}

// Actions is what fetches actions into dir from there.
func Actions(from, dir string) interface {
	Fetch(ctx context.Context, cacheDir, url, ref, token string) (string, error)
	GetTarArchive(ctx context.Context, cacheDir, sha, prefix string) (io.ReadCloser, error)
} {
	return newActions(&job.Spec{Actions: from}, dir)
}
