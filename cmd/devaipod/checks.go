package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	"codeberg.org/devaipod/devaipod/pods"
	"codeberg.org/devaipod/devaipod/pods/podfile"
	"codeberg.org/devaipod/devaipod/pods/reconcile"
)

// A check runs beside the loop, which asks again. What came of it is kept by its
// commit; one that a kill ended is begun again by the next question.

// A checkJob is a run of a repository's checks on a commit.
type checkJob struct {
	commit string
	cancel context.CancelFunc
	done   chan struct{}
	result reconcile.Check // once done, unless it was cancelled
}

// A checkRecord is what is kept of one.
type checkRecord struct {
	At     time.Time `json:"at"`
	Task   string    `json:"task"` // of the run that wanted it, as the podfile has it
	Wanted []string  `json:"wanted"`
	reconcile.Check
}

func checkDefaults() map[string]any {
	return map[string]any{"check.commands": []string{}, "check.within": "30m"}
}

func (c config) validateChecks() error {
	for key, d := range map[string]time.Duration{"check.within": c.Check.Within, "ci.wait": c.CI.Wait} {
		if d < 0 || key == "check.within" && d < time.Second {
			return fmt.Errorf("%s = %q: want 1s or more, or 0s for ci.wait", key, d)
		}
	}
	return nil
}

// checkPlaces bounds how many checks run at a time, as agents are bounded.
func (c config) checkPlaces() chan struct{} {
	if c.Agent.Max == 0 {
		return nil
	}
	return make(chan struct{}, c.Agent.Max)
}

var commitID = regexp.MustCompile(`^[0-9a-f]{40}(?:[0-9a-f]{24})?$`)

// Check implements [reconcile.Pods].
func (p *podPort) Check(_ context.Context, k reconcile.Key, commit string) (reconcile.Check, error) {
	spec, err := p.manager.Spec(pods.Key(k))
	if err != nil {
		return reconcile.Check{}, err
	}
	if len(spec.Dev.Agent.Checks) == 0 {
		return reconcile.Check{State: reconcile.CheckNone}, nil
	}
	if !commitID.MatchString(commit) {
		return reconcile.Check{}, fmt.Errorf("%.100q is no commit", commit)
	}
	p.mu.Lock()
	job := p.checks[k]
	p.mu.Unlock()
	if job != nil && job.commit == commit {
		select {
		case <-job.done:
			return job.result, nil
		default:
			return reconcile.Check{State: reconcile.CheckRunning}, nil
		}
	}
	p.endCheck(k) // of an older commit
	file := p.checkFile(k, commit)
	kept, err := readCheck(file)
	if err != nil {
		p.log.Warn("what came of a check can't be read; it is made again", "issue", k.String(), "err", err)
	}
	again := kept.State == reconcile.CheckBroken && kept.Task != spec.Task.Key
	if kept.State != "" && !again && slices.Equal(kept.Wanted, spec.Dev.Agent.Checks) {
		return kept.Check, nil
	}
	p.beginCheck(k, spec, commit)
	return reconcile.Check{State: reconcile.CheckRunning}, nil
}

func (p *podPort) checkFile(k reconcile.Key, commit string) string {
	return filepath.Join(p.manager.UsageDir(pods.Key(k)), pods.ChecksFolder, commit+".json")
}

// readCheck reads what came of a check; its State is "" when there was none.
func readCheck(file string) (r checkRecord, err error) {
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err == nil {
		err = json.Unmarshal(text, &r)
	}
	if err != nil {
		return checkRecord{}, fmt.Errorf("reading %s: %w", file, err)
	}
	return r, nil
}

func (p *podPort) beginCheck(k reconcile.Key, spec pods.Spec, commit string) {
	ctx, cancel := context.WithCancel(context.Background())
	job := &checkJob{commit: commit, cancel: cancel, done: make(chan struct{})}
	p.mu.Lock()
	p.checks[k] = job
	p.mu.Unlock()
	go func() {
		ended := p.runCheck(ctx, k, spec, job)
		cancel()
		close(job.done)
		if ended {
			p.kick(k)
		}
	}()
}

// runCheck makes a check once there is a place for it, and keeps what came of it. It
// has not ended when ctx has: nobody wants it any more.
func (p *podPort) runCheck(ctx context.Context, k reconcile.Key, spec pods.Spec, job *checkJob) (ended bool) {
	if p.checkPlaces != nil {
		select {
		case p.checkPlaces <- struct{}{}:
			defer func() { <-p.checkPlaces }()
		case <-ctx.Done():
			return false
		}
	}
	p.log.Info("checking a commit", "issue", k.String(), "commit", job.commit)
	job.result = p.checkNow(ctx, spec, job.commit)
	if ctx.Err() != nil {
		return false
	}
	p.log.Info("checked a commit", "issue", k.String(), "commit", job.commit, "result", job.result.State, "why", job.result.Why)
	fault("check: keep the result of " + k.String())
	kept := checkRecord{At: time.Now().UTC(), Task: spec.Task.Key, Wanted: spec.Dev.Agent.Checks, Check: job.result}
	if err := keepJSON(p.checkFile(k, job.commit), kept); err != nil {
		p.log.Error("what came of a check is not kept; after a restart it is made again", "issue", k.String(), "err", err)
	}
	return true
}

// keepJSON writes a file in a folder that may not be there yet.
func keepJSON(file string, v any) error {
	text, err := json.MarshalIndent(v, "", "  ")
	if err == nil {
		err = os.MkdirAll(filepath.Dir(file), 0o700)
	}
	if err != nil {
		return err
	}
	return podfile.Replace(file, append(text, '\n'))
}

// endCheck ends the check of a pod, and waits until nothing is left of it.
func (p *podPort) endCheck(k reconcile.Key) {
	p.mu.Lock()
	job := p.checks[k]
	delete(p.checks, k)
	p.mu.Unlock()
	if job != nil {
		job.cancel()
		<-job.done
	}
}

// endChecks ends all.
func (p *podPort) endChecks() {
	p.mu.Lock()
	var keys []reconcile.Key
	for k, job := range p.checks {
		job.cancel()
		keys = append(keys, k)
	}
	p.mu.Unlock()
	for _, k := range keys {
		p.endCheck(k)
	}
}

// checkTries is how often a check is tried that can't be made, such as while the
// forge is away.
const checkTries = 3

// checkNow makes a check.
func (p *podPort) checkNow(ctx context.Context, spec pods.Spec, commit string) reconcile.Check {
	for try := 1; ; try++ {
		report, err := p.checkOnce(ctx, spec, commit)
		if err == nil && report.Broken != "" {
			err = errors.New(report.Broken)
		}
		if err == nil {
			return checkOf(report)
		}
		if try == checkTries || ctx.Err() != nil {
			return reconcile.Check{State: reconcile.CheckBroken, Why: plain(err.Error(), 1000)}
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(try) * 2 * time.Second):
		}
	}
}

// aroundCheck is what a check may take for its container and clone beside its own time.
const aroundCheck = 5 * time.Minute

// checkOnce opens the one door that a check has while it is made: to read the
// repository.
func (p *podPort) checkOnce(ctx context.Context, spec pods.Spec, commit string) (podfile.Report, error) {
	ctx, cancel := context.WithTimeout(ctx, p.checkWithin+aroundCheck)
	defer cancel()
	if err := p.manager.MakeCheckDir(spec.Key); err != nil {
		return podfile.Report{}, err
	}
	l, err := listenUnixAs(p.manager.CheckSocket(spec.Key), 0o666) // the directory around is 0700
	if err != nil {
		return podfile.Report{}, err
	}
	repo := spec.Owner + "/" + spec.Repo
	mux := http.NewServeMux()
	mux.Handle("/work/"+repo+".git/", p.cache.Reads(forgeAddress(repo)))
	srv := p.serve(reconcile.Key(spec.Key), l, mux)
	report, err := p.manager.Check(ctx, spec.Key, commit, p.checkWithin)
	return report, errors.Join(err, srv.Close())
}

// checkOf judges a report.
func checkOf(r podfile.Report) reconcile.Check {
	out := reconcile.Check{State: reconcile.CheckPassed, Setup: r.Setup}
	for _, c := range r.Checks {
		out.Commands = append(out.Commands, reconcile.Ran{Command: c.Command, Exit: c.Exit, Late: c.Late, Why: c.Why, Tail: c.Tail, Seconds: c.Seconds})
		switch {
		case c.Exit == 0:
		case c.Late && out.State == reconcile.CheckPassed:
			out.State = reconcile.CheckLate
		case !c.Late:
			out.State = reconcile.CheckFailed
		}
	}
	if len(r.Checks) == 0 {
		out.State, out.Why = reconcile.CheckBroken, "its container told of no command"
	}
	return out
}
