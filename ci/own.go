package ci

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"

	"codeberg.org/devaipod/devaipod/ci/job"
)

// Own runs a job that no forge gave, and writes it down as those of a forge are: its log
// while it runs, and its record. The record's number is the next one of the store, which
// no runner may have; the jobs of one store are run one at a time. run is as
// [Executor.Run]; info.Task is set for it.
func (s *Store) Own(ctx context.Context, info Info, maxLog int64, log *slog.Logger, run func(ctx context.Context, task int64, events func(job.Event)) error) (Record, error) {
	r, err := s.bare(maxLog, log)
	if err != nil {
		return Record{}, err
	}
	for _, dir := range []string{"jobs", "tasks"} {
		ids, err := s.ids(dir)
		if err != nil {
			return Record{}, err
		}
		if len(ids) > 0 {
			info.Task = max(info.Task, ids[0])
		}
	}
	info.Task++
	rep, err := newReporter(r, state{Info: info}, nil, log)
	if err != nil {
		return Record{}, err
	}
	defer rep.file.Close()
	rep.judged(Verdict{Tier: Untrusted, Reasons: []string{"nobody vouches for what it runs"}})
	var last job.Event
	err = run(ctx, info.Task, func(e job.Event) {
		if rep.event(e) {
			last = e
		}
	})
	result, reason := outcome(context.Cause(ctx), err, last)
	rep.finish(result, reason, nil)
	rep.forget(ctx)
	return s.Get(info.Task)
}

// EndLeft puts those of Own's jobs on record as failed that a kill has ended.
func (s *Store) EndLeft(ctx context.Context, log *slog.Logger) error {
	r, err := s.bare(0, log)
	if err == nil {
		err = s.sweep()
	}
	if err != nil {
		return err
	}
	left, err := s.underWay()
	return errors.Join(err, r.endLeft(ctx, left, Lost))
}

// endLeft puts tasks on record as failed, those that have not ended, and forgets them: nobody
// else is told.
func (r *Runner) endLeft(ctx context.Context, left []state, reason string) (err error) {
	for _, st := range left {
		rep, e := openReporter(r, st, r.Log)
		if e == nil {
			rep.lost(reason)
			rep.forget(ctx)
			e = rep.file.Close()
		}
		err = errors.Join(err, e)
	}
	return err
}

// ownRecords is how many of Own's jobs are kept.
const ownRecords = 200

// bare is what a reporter needs of a runner.
func (s *Store) bare(maxLog int64, log *slog.Logger) (*Runner, error) {
	for _, d := range []string{"tasks", "jobs"} {
		if err := os.MkdirAll(filepath.Join(s.dir, d), 0o700); err != nil {
			return nil, err
		}
	}
	return &Runner{Config: Config{MaxLog: maxLog, Records: ownRecords, Log: log}, store: s}, nil
}
