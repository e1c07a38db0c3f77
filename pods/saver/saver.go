package saver

import (
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"codeberg.org/devaipod/devaipod/pods/podfile"
	"codeberg.org/devaipod/devaipod/pods/relay"
)

// Config is what [Run] and [Once] need. Zero fields get the values that a pod
// has.
type Config struct {
	Issue     int64  // whose agent it is; must be set
	Workspace string // the agent's volume, podfile.WorkspaceDir
	Clone     string // the clone's name in it, that of podfile.RepoDir
	Home      string // the saver's own folder, podfile.SaverDir
	Socket    string // where the service listens, podfile.SaveSocket in podfile.SaveDir
	// Borrow are object directories that the agent can't change and that last
	// as long as the pod: what they have is not copied.
	Borrow []string

	Quiet   time.Duration // no change for so long makes a snapshot; 1 s
	AtMost  time.Duration // and so long after the first change one is made; 3 s
	Resync  time.Duration // how often everything is looked at, for what can't be watched; 10 min
	MaxFile int64         // bytes; a larger file is listed and not saved; 100 MB
	Quota   int64         // bytes of the saver's own repository; 8 GB
	// GitTime is the time limit of a child of git; 2 min. Copying commits and
	// pushing have five times that.
	GitTime time.Duration
	// LastSave is the time for what Run does when it is told to end, and, ten
	// times of it, for Once; 20 s.
	LastSave time.Duration
	Log      *slog.Logger
}

func orElse[T comparable](v *T, other T) {
	if *v == *new(T) {
		*v = other
	}
}

func (c *Config) fill() error {
	if c.Issue <= 0 || c.Log == nil {
		return errors.New("saver: Issue and Log must be set")
	}
	orElse(&c.Workspace, podfile.WorkspaceDir)
	orElse(&c.Clone, filepath.Base(podfile.RepoDir))
	orElse(&c.Home, podfile.SaverDir)
	orElse(&c.Socket, filepath.Join(podfile.SaveDir, podfile.SaveSocket))
	orElse(&c.Quiet, time.Second)
	orElse(&c.AtMost, 3*time.Second)
	orElse(&c.Resync, 10*time.Minute)
	orElse(&c.MaxFile, 100<<20)
	orElse(&c.Quota, 8<<30)
	orElse(&c.GitTime, 2*time.Minute)
	orElse(&c.LastSave, 20*time.Second)
	return nil
}

// patience is how many times GitTime long calls have.
const patience = 5

// A saver is one run of it.
type saver struct {
	cfg   Config
	log   *slog.Logger
	store *store
	tree  *tree
	watch *watcher // nil: it looks at everything
	blobs *blobs   // of this round, nil for none yet
	begin func() (*blobs, error)

	above     int32 // the workspace's watch
	tips      tips  // as last read
	bad       map[string]error
	triedAt   time.Time // when bad was found
	trouble   error     // why .git can't be read, nil when it can
	indexSeen string    // what the agent's index was when it was read
	written   int64     // bytes in the store
	treeID    string    // of the index, "" when it is not known
	last      last      // snapshot

	url    string        // of the service, by the forwarder
	listed bool          // what the service had before us is kept there
	wake   chan struct{} // capacity 1: there is something to push
}

// Run saves what changes until ctx ends, and then once more. What goes wrong is
// logged and tried again; an error is one of cfg.
func Run(ctx context.Context, cfg Config) error {
	if err := cfg.fill(); err != nil {
		return err
	}
	s, stop, err := open(ctx, cfg)
	for wait := time.Second; err != nil; wait = min(2*wait, time.Minute) {
		cfg.Log.Error("the saver can't begin; trying again", "err", err, "in", wait)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
		s, stop, err = open(ctx, cfg)
	}
	defer stop()
	if s.watch, err = newWatcher(s.log); err != nil {
		s.log.Warn("looking at everything, instead of watching", "err", err)
	}
	var wg sync.WaitGroup
	pushing, endPushing := context.WithCancel(ctx)
	if s.watch != nil {
		s.tree.watch = s.watch
		wg.Go(func() { s.watch.run(pushing) })
	}
	wg.Go(func() { s.pushes(pushing) })
	s.rounds(ctx)
	endPushing()
	wg.Wait()
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.LastSave)
	defer cancel()
	s.tree.stopWatching()
	s.watch = nil
	if err := errors.Join(s.round(last), s.push(last)); err != nil {
		s.log.Error("the last save", "err", err)
	}
	s.keep()
	return nil
}

// Once saves everything and returns when the service has it, or an error says
// why it does not. The error is told in the result too.
func Once(ctx context.Context, cfg Config) podfile.Saved {
	out := podfile.Saved{At: time.Now().UTC().Truncate(time.Second)}
	err := cfg.fill()
	if err != nil {
		out.Error = err.Error()
		return out
	}
	s, stop, err := open(ctx, cfg)
	if err == nil {
		defer stop()
		err = s.once(ctx)
		s.keep()
		out.Snapshot, out.ID = s.last.Snapshot, s.last.id
	}
	if err != nil {
		out.Error = err.Error()
	}
	out.Complete = err == nil
	return out
}

func (s *saver) once(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*s.cfg.LastSave)
	defer cancel()
	if err := s.round(ctx); err != nil {
		return err
	}
	for i := 0; len(s.tree.again) > 0 && i < 3; i++ {
		if err := s.round(ctx); err != nil {
			return err
		}
	}
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 2*time.Second) {
		err := s.push(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(wait):
		}
	}
}

// open takes up what is there and starts the way to the service.
func open(ctx context.Context, cfg Config) (s *saver, stop func(), err error) {
	waiting, cancel := context.WithTimeout(ctx, 2*cfg.LastSave)
	defer cancel()
	st, err := openStore(waiting, cfg.Home, podfile.SavedPrefix(cfg.Issue), cfg.GitTime, cfg.Borrow)
	if err != nil {
		return nil, nil, err
	}
	s = &saver{cfg: cfg, log: cfg.Log, store: st, wake: make(chan struct{}, 1)}
	if err := makeView(st.view, filepath.Join(cfg.Workspace, cfg.Clone, ".git", "objects")); err != nil {
		return nil, nil, errors.Join(err, st.close())
	}
	if err := s.readLast(ctx); err != nil {
		return nil, nil, errors.Join(err, st.close())
	}
	s.tree = &tree{workspace: cfg.Workspace, name: cfg.Clone, maxFile: cfg.MaxFile, room: s.room, write: s.write}
	s.written = st.size()
	s.forget(s.readKnown())
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("listening for pushes: %w", err), st.close())
	}
	s.url = "http://" + l.Addr().String() + podfile.SavePath
	forwarding, end := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan error, 1)
	go func() { done <- relay.Serve(forwarding, l, relay.Unix(cfg.Socket), cfg.Log) }()
	return s, func() {
		end()
		if err := errors.Join(<-done, st.close()); err != nil {
			s.log.Error("ending", "err", err)
		}
	}, nil
}

// rounds makes snapshots until ctx ends.
func (s *saver) rounds(ctx context.Context) {
	// Being told to end does not spoil a round that is nearly done.
	inner, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(s.cfg.LastSave/2, cancel) })()
	for wait := time.Second; ; {
		start := time.Now()
		err := s.round(inner)
		if ctx.Err() != nil {
			return
		}
		var pause time.Duration
		if err != nil {
			s.log.Error("saving; trying again", "err", err, "in", wait)
			pause, wait = wait, min(2*wait, time.Minute)
		} else {
			wait = time.Second
		}
		if !s.sleep(ctx, pause, time.Since(start)) {
			return
		}
	}
}

// sleep waits until another round is due: after a pause that must be, then at a
// change that has settled, or by the clock. took is what the last one needed.
func (s *saver) sleep(ctx context.Context, pause, took time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(pause):
	}
	next := s.cfg.Resync
	switch {
	case pause > 0:
		return true
	case s.watch == nil || s.watch.lost():
		next = max(s.cfg.AtMost, 20*took) // of a large tree not all the time
	case len(s.tree.again) > 0:
		next = s.cfg.AtMost
	}
	var changed <-chan struct{}
	if s.watch != nil && !s.watch.lost() {
		changed = s.watch.changed
	}
	select {
	case <-ctx.Done():
		return false
	case <-time.After(next):
		s.tree.stale = len(s.tree.again) == 0
		return true
	case <-changed:
	}
	for {
		due := s.watch.due(s.cfg.Quiet, s.cfg.AtMost)
		if due <= 0 {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(due):
		}
	}
}

// forget begins anew, with what is known of files from before.
func (s *saver) forget(known map[string]record) {
	s.tree.reset()
	s.tree.known, s.treeID = known, ""
}

func (s *saver) room() int64 { return s.cfg.Quota - s.written }

// keep writes down what is known of the files, so that the next start reads
// only those that changed. Losing it costs time, nothing else.
func (s *saver) keep() {
	if s.tree.root == nil {
		return
	}
	path := filepath.Join(s.cfg.Home, "known")
	f, err := os.Create(path + ".new")
	if err == nil {
		err = errors.Join(gob.NewEncoder(f).Encode(s.tree.records()), f.Close())
	}
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		s.log.Warn("the next start will read all files again", "err", err)
	}
}

func (s *saver) readKnown() map[string]record {
	var known map[string]record
	f, err := os.Open(filepath.Join(s.cfg.Home, "known"))
	if err != nil {
		return nil // the first start
	}
	defer f.Close()
	if err := gob.NewDecoder(f).Decode(&known); err != nil {
		s.log.Warn("reading all files again", "err", err)
		return nil
	}
	return known
}
