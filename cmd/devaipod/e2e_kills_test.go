package main_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// A keeper runs the service, and starts it again whenever it has ended.
type keeper struct {
	s    *suite
	dir  string               // TEST_FAULTS
	seen int                  // bytes of what it was killed at in other scripts
	next func() time.Duration // until it is killed; 0 for never
	all  chan struct{}        // closed when next has no more; nil for steps
	stop chan struct{}
	done chan struct{}

	mu    sync.Mutex
	kills int
	err   error
}

func (k *keeper) run() {
	defer close(k.done)
	for {
		if err := k.once(); err != nil {
			k.mu.Lock()
			k.err = err
			k.mu.Unlock()
			return
		}
		select {
		case <-k.stop:
			return
		default:
		}
	}
}

// once runs the service until it ends or is killed.
func (k *keeper) once() error {
	logFile, err := os.OpenFile(filepath.Join(k.s.StateDir, "service.log"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer logFile.Close()
	cmd := exec.Command(filepath.Join(k.s.Bin, "devaipod"), "serve")
	cmd.Env = append(k.s.Environ(), "TEST_FAULTS="+k.dir)
	cmd.Stdout, cmd.Stderr = logFile, logFile
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	var kill <-chan time.Time
	if d := k.next(); d > 0 {
		kill = time.After(d)
	}
	signal := syscall.SIGKILL
	select {
	case err = <-ended:
		// By its own hand: any other end is a fault of the service.
		if st, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || !st.Signaled() || st.Signal() != syscall.SIGKILL {
			return fmt.Errorf("the service ended by itself: %w", err)
		}
		k.mu.Lock()
		k.kills++
		k.mu.Unlock()
		return nil
	case <-kill:
		k.mu.Lock()
		k.kills++
		k.mu.Unlock()
	case <-k.stop:
		signal = syscall.SIGTERM
	}
	if err := cmd.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-ended
	return nil
}

func (k *keeper) killed() (int, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.kills, k.err
}

// survive runs the service so that it is killed again and again:
//
//	survive steps    after and before each change that it makes, once
//	survive others   the same, but for those of scripts before this one
//	survive random   at random moments, TEST_KILLS times (8)
//	survive end      no more, once all kills are done; prints how many there were
func (c *call) survive() error {
	if len(c.args) != 1 {
		return errors.New("usage: survive steps|others|random|end")
	}
	if c.args[0] == "end" {
		return c.surviveEnd()
	}
	k := &keeper{s: c.suite, dir: c.ts.MkAbs("."), next: func() time.Duration { return 0 }, stop: make(chan struct{}), done: make(chan struct{})}
	switch c.args[0] {
	case "steps", "others":
		var before []byte
		if c.args[0] == "others" {
			before = c.killedAt
		}
		k.seen = len(before)
		if err := os.WriteFile(filepath.Join(k.dir, "killed"), before, 0o600); err != nil {
			return err
		}
	case "random":
		var err error
		if k.next, err = c.moments(k); err != nil {
			return err
		}
	default:
		return fmt.Errorf("survive %s: want steps, others, random or end", c.args[0])
	}
	stop := &call{suite: c.suite, ts: c.ts, args: []string{"kill"}}
	if err := stop.service(); err != nil {
		return err
	}
	c.keeper = k
	go k.run()
	return nil
}

// moments are when the service is killed, after each of its starts.
func (c *call) moments(k *keeper) (func() time.Duration, error) {
	left, seed := 8, uint64(time.Now().UnixNano())
	for name, set := range map[string]func(uint64){
		"TEST_KILLS": func(n uint64) { left = int(n) }, "TEST_SEED": func(n uint64) { seed = n },
	} {
		if text := os.Getenv(name); text != "" {
			n, err := strconv.ParseUint(text, 10, 64)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			set(n)
		}
	}
	fmt.Fprintf(os.Stderr, "killing the service at %d random moments, TEST_SEED=%d\n", left, seed)
	random := rand.New(rand.NewPCG(seed, 0))
	k.all = make(chan struct{})
	return func() time.Duration {
		if left--; left >= 0 {
			return time.Duration(1+random.IntN(2500)) * time.Millisecond
		}
		if left == -1 {
			close(k.all)
		}
		return 0
	}, nil
}

func (c *call) surviveEnd() error {
	k := c.keeper
	if k == nil {
		return errors.New("nothing to survive")
	}
	if k.all != nil {
		select {
		case <-k.all:
		case <-k.done:
		case <-time.After(15 * time.Minute):
			return errors.New("not all kills were done")
		}
	}
	pairs, err := os.ReadFile(filepath.Join(k.dir, "killed"))
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	pairs = pairs[k.seen:]
	c.killedAt = append(c.killedAt, pairs...)
	c.endKeeper()
	n, broke := k.killed()
	c.printf("%skilled %d times\n", pairs, n)
	start := &call{suite: c.suite, ts: c.ts, args: []string{"start"}}
	return errors.Join(err, broke, start.service())
}

// endKeeper stops the service that is killed again and again, if there is one.
func (s *suite) endKeeper() {
	if k := s.keeper; k != nil {
		s.keeper = nil
		close(k.stop)
		<-k.done
	}
}
