package ci_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"codeberg.org/devaipod/devaipod/ci"
	"codeberg.org/devaipod/devaipod/ci/job"
)

func TestAJobThatNoForgeGaveIsOnRecord(t *testing.T) {
	dir, log := t.TempDir(), slog.New(slog.DiscardHandler)
	store := ci.OpenStore(dir)
	info := ci.Info{Repo: "ann/app", Commit: "c", Steps: []string{"Clone", "make test"}}
	line := func(s string) *string { return &s }
	killed := t.TempDir()
	rec, err := store.Own(t.Context(), info, 1<<20, log, func(_ context.Context, task int64, events func(job.Event)) error {
		if running, err := store.Running(); err != nil || len(running) != 1 || running[0].Task != task {
			t.Errorf("running %+v %v", running, err)
		}
		events(job.Event{Step: 0, Began: true})
		events(job.Event{Step: 0, Ended: job.Success})
		events(job.Event{Step: 1, Line: line("\x1b]0;x\aFAIL: TestX")})
		// What a kill at this moment leaves.
		if err := os.CopyFS(killed, os.DirFS(dir)); err != nil {
			t.Error(err)
		}
		events(job.Event{Step: 1, Ended: job.Failure})
		events(job.Event{Step: job.Complete, Result: job.Failure})
		return nil
	})
	if err != nil || rec.Task != 1 || rec.Result != job.Failure || rec.Failed != "make test" || rec.Tail != "FAIL: TestX\n" || rec.Tier != ci.Untrusted {
		t.Errorf("%+v %v", rec, err)
	}
	if text, err := os.ReadFile(store.LogFile(1)); err != nil || !strings.Contains(string(text), " FAIL: TestX\n") || !strings.HasSuffix(string(text), "Job failed\n") {
		t.Errorf("%s %v", text, err)
	}
	if running, err := store.Running(); err != nil || len(running) != 0 {
		t.Errorf("running %+v %v", running, err)
	}

	// A kill a moment later: it has ended, and is not on record.
	ended := t.TempDir()
	state, err := os.ReadFile(filepath.Join(killed, "tasks", "1.json"))
	if err := errors.Join(err, os.CopyFS(ended, os.DirFS(killed)), os.WriteFile(filepath.Join(ended, "tasks", "1.json"), bytes.Replace(state, []byte("{"), []byte(`{"result": "success", `), 1), 0o600), ci.OpenStore(ended).EndLeft(t.Context(), log)); err != nil {
		t.Fatal(err)
	}
	if rec, err := ci.OpenStore(ended).Get(1); err != nil || rec.Result != job.Success {
		t.Errorf("%+v %v", rec, err)
	}

	left := ci.OpenStore(killed)
	if err := left.EndLeft(t.Context(), log); err != nil {
		t.Fatal(err)
	}
	if rec, err := left.Get(1); err != nil || rec.Result != job.Failure || rec.Reason != ci.Lost || rec.Person() == "" {
		t.Errorf("%+v %v", rec, err)
	}
	if files, err := os.ReadDir(filepath.Join(killed, "tasks")); err != nil || len(files) != 0 {
		t.Errorf("%v %v", files, err)
	}

	// The next one has the next number, and its log is bounded.
	rec, err = left.Own(t.Context(), info, 1000, log, func(_ context.Context, _ int64, events func(job.Event)) error {
		for range 1000 {
			events(job.Event{Step: 0, Line: line("again and again")})
		}
		return errors.New("no image")
	})
	if err != nil || rec.Task != 2 || rec.Result != job.Failure || !strings.Contains(rec.Reason, "no image") {
		t.Errorf("%+v %v", rec, err)
	}
	if st, err := os.Stat(left.LogFile(2)); err != nil || st.Size() > 2000 {
		t.Errorf("%+v %v", st, err)
	}
}
