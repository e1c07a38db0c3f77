// Package images has the images of jobs on this machine before a job asks for them, and
// tells of each whether it is there. A [Set] looks at them again and again: one that goes
// missing is had again. How an image is had (fetched, or built) is for Config.Have to know.
package images

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

// Config says which images, and how they are had.
type Config struct {
	// Labels are the images by the labels of runs-on.
	Labels map[string]string
	// Have returns nil once an image is here. One that is not it begins to fetch or build,
	// and waits for some seconds: is it not done by then, that goes on, and the error is
	// Preparing and says how far it is. It may be called concurrently.
	Have      func(ctx context.Context, image string) error
	Preparing error
	// Later says that nothing is had before the first Wait, for any image.
	Later bool
	Log   *slog.Logger
}

// States of an image.
const (
	Unknown   = "unknown" // nobody has looked yet
	Here      = "here"
	Preparing = "preparing"
	Missing   = "missing" // Why says why; it is tried again
)

// An Image is one label's, as it was seen last.
type Image struct {
	Label string `json:"label"`
	Image string `json:"image"`
	State string `json:"state"`
	// Why says how far it is, or why it is not here.
	Why string `json:"why,omitempty"`
}

// A Set is the images of an instance. Its methods may be called concurrently.
type Set struct {
	cfg Config

	asked func() // closes first: it is time to have them
	first chan struct{}

	mu   sync.Mutex
	seen map[string]Image // by image, without a label
}

// New looks at nothing yet.
func New(cfg Config) *Set {
	s := &Set{cfg: cfg, first: make(chan struct{}), seen: map[string]Image{}}
	s.asked = sync.OnceFunc(func() { close(s.first) })
	why := ""
	if cfg.Later {
		why = "no job has asked for one yet"
	} else {
		s.asked()
	}
	for _, image := range cfg.Labels {
		s.seen[image] = Image{Image: image, State: Unknown, Why: why}
	}
	return s
}

// All are the images, in order of their labels.
func (s *Set) All() []Image {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Image, 0, len(s.cfg.Labels))
	for _, label := range slices.Sorted(maps.Keys(s.cfg.Labels)) {
		i := s.seen[s.cfg.Labels[label]]
		i.Label = label
		out = append(out, i)
	}
	return out
}

// Pauses between two looks at an image: one that is here, and one that can't be had,
// whose pause is doubled each time.
const (
	LookEvery = 10 * time.Minute
	TryAgain  = 10 * time.Second
)

// Run keeps all images here until ctx ends.
func (s *Set) Run(ctx context.Context) {
	select {
	case <-s.first:
	case <-ctx.Done():
		return
	}
	var all sync.WaitGroup
	for _, image := range slices.Compact(slices.Sorted(maps.Values(s.cfg.Labels))) {
		all.Go(func() { s.keep(ctx, image) })
	}
	all.Wait()
}

func (s *Set) keep(ctx context.Context, image string) {
	again := TryAgain
	for {
		pause := LookEvery
		switch err := s.look(ctx, image); {
		case err == nil:
			again = TryAgain
		case errors.Is(err, s.cfg.Preparing):
			pause = TryAgain
		default:
			pause, again = again, min(2*again, LookEvery)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// look has an image here and notes what came of it, in the log where that is news.
func (s *Set) look(ctx context.Context, image string) error {
	err := s.cfg.Have(ctx, image)
	now := Image{Image: image, State: Here}
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, s.cfg.Preparing):
		now.State, now.Why = Preparing, err.Error()
	case err != nil:
		now.State, now.Why = Missing, err.Error()
	}
	s.mu.Lock()
	before, known := s.seen[image]
	if known {
		s.seen[image] = now
	}
	s.mu.Unlock()
	if before == now {
		return err
	}
	log := s.cfg.Log.With("image", image)
	switch now.State {
	case Here:
		log.Info("an image for jobs is here")
	case Preparing:
		log.Info("preparing an image for jobs", "now", now.Why)
	default:
		log.Warn("an image for jobs can't be had; it is tried again", "err", err)
	}
	return err
}

// Wait returns nil once the image is here: one that is being prepared is waited for, and
// say told so, in a line. What can't be had is an error at once.
func (s *Set) Wait(ctx context.Context, image string, say func(line string)) error {
	s.asked()
	for told := false; ; {
		err := s.look(ctx, image)
		if !errors.Is(err, s.cfg.Preparing) {
			return err
		}
		if !told {
			told = true
			say("waiting for the image " + image + ": " + strings.ReplaceAll(err.Error(), "\n", " "))
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(time.Second):
		}
	}
}
