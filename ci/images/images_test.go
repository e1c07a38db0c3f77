package images_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"codeberg.org/devaipod/devaipod/ci/images"
)

var errPreparing = errors.New("not ready yet")

// A store stands for podman: what it answers of each image, and when it was asked.
type store struct {
	mu    sync.Mutex
	says  map[string]error
	asked map[string][]time.Time
}

func (s *store) have(_ context.Context, image string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked[image] = append(s.asked[image], time.Now())
	return s.says[image]
}

func (s *store) set(image string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.says[image] = err
}

// pauses are those between the looks at an image.
func (s *store) pauses(image string) (out []time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := 1; i < len(s.asked[image]); i++ {
		out = append(out, s.asked[image][i].Sub(s.asked[image][i-1]))
	}
	return out
}

func newSet(labels map[string]string) (*images.Set, *store, *bytes.Buffer) {
	st := &store{says: map[string]error{}, asked: map[string][]time.Time{}}
	var log bytes.Buffer
	return images.New(images.Config{Labels: labels, Have: st.have, Preparing: errPreparing, Log: slog.New(slog.NewTextHandler(&log, nil))}), st, &log
}

// running has the set look until the test ends.
func running(t *testing.T, s *images.Set) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { s.Run(ctx); close(done) }()
	synctest.Wait()
	return func() { cancel(); <-done }
}

// Until a job asks for one, nothing is fetched where that was said; then all are.
func TestImagesAreHadLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, st, _ := newSet(nil)
		s := images.New(images.Config{Labels: map[string]string{"a": "x:1", "b": "x:2"}, Later: true, Have: st.have, Preparing: errPreparing, Log: slog.New(slog.DiscardHandler)})
		defer running(t, s)()
		time.Sleep(images.LookEvery + time.Second)
		synctest.Wait()
		if got := s.All()[0]; len(st.asked) != 0 || got.State != images.Unknown || got.Why != "no job has asked for one yet" {
			t.Errorf("asked for %v; %v", st.asked, got)
		}
		if err := s.Wait(t.Context(), "x:1", func(string) {}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if got := s.All(); !reflect.DeepEqual(got, []images.Image{{"a", "x:1", images.Here, ""}, {"b", "x:2", images.Here, ""}}) {
			t.Errorf("%v", got)
		}
	})
}

func TestAnImageIsLookedAtAgainAndAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, st, log := newSet(map[string]string{"b": "x:1", "a": "x:1"})
		defer running(t, s)()
		if got := s.All(); !reflect.DeepEqual(got, []images.Image{{"a", "x:1", images.Here, ""}, {"b", "x:1", images.Here, ""}}) {
			t.Errorf("%v", got)
		}
		st.set("x:1", errors.New("somebody has removed it"))
		time.Sleep(images.LookEvery + time.Second)
		synctest.Wait()
		if got := s.All()[0]; got.State != images.Missing || got.Why != "somebody has removed it" {
			t.Errorf("%v", got)
		}
		st.set("x:1", nil)
		time.Sleep(images.TryAgain)
		synctest.Wait()
		if got := s.All()[1]; got.State != images.Here {
			t.Errorf("%v", got)
		}
		if n := strings.Count(log.String(), "level=WARN"); n != 1 || !strings.Contains(log.String(), "somebody has removed it") {
			t.Errorf("%d warnings: %s", n, log)
		}
	})
}

func TestAnImageThatCannotBeHadIsTriedLessAndLess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, st, log := newSet(map[string]string{"a": "x:1", "b": "here:1"})
		st.set("x:1", errors.New("its registry is down"))
		defer running(t, s)()
		time.Sleep(40 * time.Minute)
		synctest.Wait()
		m := time.Minute
		want := []time.Duration{m / 6, m / 3, 2 * m / 3, 4 * m / 3, 8 * m / 3, 16 * m / 3, 10 * m, 10 * m}
		if got := st.pauses("x:1"); !reflect.DeepEqual(got, want) {
			t.Errorf("%v, not %v", got, want)
		}
		if got := s.All(); got[0].State != images.Missing || got[1].State != images.Here {
			t.Errorf("%v", got)
		}
		if n := strings.Count(log.String(), "level=WARN"); n != 1 {
			t.Errorf("the same was said %d times", n)
		}
	})
}

func TestAJobWaitsForItsImage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, st, log := newSet(map[string]string{"a": "x:1"})
		st.set("x:1", fmt.Errorf("%w: fetching it\nlayer 1", errPreparing))
		defer running(t, s)()
		if got := s.All()[0]; got.State != images.Preparing || !strings.Contains(got.Why, "layer 1") {
			t.Errorf("%v", got)
		}
		if !strings.Contains(log.String(), "preparing an image for jobs") {
			t.Errorf("%s", log)
		}
		var said []string
		done := make(chan error)
		go func() { done <- s.Wait(t.Context(), "x:1", func(line string) { said = append(said, line) }) }()
		time.Sleep(time.Minute)
		st.set("x:1", nil)
		if err := <-done; err != nil || len(said) != 1 || said[0] != "waiting for the image x:1: not ready yet: fetching it layer 1" {
			t.Errorf("%v, %q", err, said)
		}
	})
}

func TestAJobDoesNotWaitForWhatCannotBeHadNorLongerThanItMay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, st, _ := newSet(map[string]string{"a": "x:1"})
		no := errors.New("there is none so called")
		st.set("x:1", no)
		if err := s.Wait(t.Context(), "x:1", func(string) { t.Error("it waited") }); !errors.Is(err, no) {
			t.Error(err)
		}
		st.set("x:1", errPreparing)
		late := errors.New("the job took too long")
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Minute, late)
		defer cancel()
		if err := s.Wait(ctx, "x:1", func(string) {}); !errors.Is(err, late) {
			t.Error(err)
		}
	})
}
