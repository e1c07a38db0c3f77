package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"time"

	"gopkg.in/yaml.v3"

	"codeberg.org/devaipod/devaipod/ci"
	cijob "codeberg.org/devaipod/devaipod/ci/job"
	"codeberg.org/devaipod/devaipod/forge"
)

// A repository without workflows may have a check all the same: one that is detected by
// its files (ci.detect). It is run on the head of each branch that has no status of it
// yet, as an untrusted job that reads this repository and reaches nothing else; what comes
// of it is the commit's status. A status that is pending without a run of this process is of
// one that was killed: it is run again.

// detectName is the name of the status, and of the job.
const detectName = "devaipod/detected"

// detectEvent is the event of these jobs, which the forge has none of.
const detectEvent = "detected"

// detectedTask is what the numbers of these jobs are moved by where they must not be those
// of the forge's.
const detectedTask = 1 << 32

// maxDetect is how large a file may be that a check is detected by, bytes.
const maxDetect = 256 << 10

// maxSeen is how many commits are remembered.
const maxSeen = 50_000

// A detector runs detected checks, one at a time.
type detector struct {
	service  *service
	store    *ci.Store
	log      *slog.Logger
	label    string // of runs-on
	maxLog   int64
	interval time.Duration
	within   time.Duration
	kick     chan struct{}

	mu    sync.Mutex
	dirty map[forge.Repo]bool

	// Of the goroutine in run alone.
	seen map[string]bool // commits of repositories that need nothing more
}

// newDetector makes one where the configuration wants it.
func (s *service) newDetector(a *app) (*detector, error) {
	if !a.cfg.CI.Detect {
		return nil, nil
	}
	label, _, _ := strings.Cut(a.cfg.CI.Images[0], "=")
	maxLog, err := parseBytes(a.cfg.CI.Log)
	return &detector{
		service: s, store: a.detectedStore(), log: a.log, label: label, maxLog: maxLog, interval: a.cfg.Service.Resync, within: a.cfg.CI.Timeout,
		kick: make(chan struct{}, 1), dirty: map[forge.Repo]bool{}, seen: map[string]bool{},
	}, err
}

// detectedStore is where detected checks are on record.
func (a *app) detectedStore() *ci.Store { return ci.OpenStore(a.cfg.file("ci/detected")) }

// pushed says that a repository has another head.
func (d *detector) pushed(r forge.Repo) {
	d.mu.Lock()
	d.dirty[r] = true
	d.mu.Unlock()
	select {
	case d.kick <- struct{}{}:
	default:
	}
}

// run looks for heads without a status until ctx ends.
func (d *detector) run(ctx context.Context) {
	if err := d.store.EndLeft(ctx, d.log); err != nil {
		d.log.Warn("detected checks that a kill has ended", "err", err)
	}
	tick := time.NewTicker(d.interval)
	defer tick.Stop()
	for all := true; ctx.Err() == nil; {
		if err := d.pass(ctx, all); err != nil && ctx.Err() == nil {
			d.log.Warn("looking for commits to check; looking again later", "err", err)
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
			all = true
		case <-d.kick:
			all = false
		}
	}
}

// pass looks at all repositories, or at those with another head.
func (d *detector) pass(ctx context.Context, all bool) error {
	d.mu.Lock()
	dirty := d.dirty
	d.dirty = map[forge.Repo]bool{}
	d.mu.Unlock()
	if len(d.seen) > maxSeen {
		clear(d.seen)
	}
	repos, err := d.service.forge.Repositories(ctx)
	for _, r := range repos {
		if r.Archived || r.Empty || !all && !dirty[r.Repo] {
			continue
		}
		if e := d.repository(ctx, r); e != nil {
			err = errors.Join(err, fmt.Errorf("%s: %w", r.Repo, e))
		}
	}
	return err
}

func (d *detector) repository(ctx context.Context, r forge.RepoInfo) error {
	branches, err := d.service.forge.Branches(ctx, r.Repo, "")
	fetched := false
	for _, b := range branches {
		key := fmt.Sprint(r.ID, " ", b.SHA)
		if d.seen[key] || ctx.Err() != nil || !commitID.MatchString(b.SHA) {
			continue
		}
		if !fetched {
			if _, err := d.service.cache.Sync(ctx, forgeAddress(r.Repo.String())); err != nil {
				return err
			}
			fetched = true
		}
		if e := d.head(ctx, r, b); e != nil {
			err = errors.Join(err, fmt.Errorf("%.10s: %w", b.SHA, e))
			continue
		}
		d.seen[key] = ctx.Err() == nil
	}
	return err
}

// head sees to one head.
func (d *detector) head(ctx context.Context, r forge.RepoInfo, b forge.Branch) error {
	statuses, err := d.service.forge.Statuses(ctx, r.Repo, b.SHA)
	if err != nil {
		return err
	}
	for _, s := range statuses {
		if s.Name == detectName && s.State != "pending" {
			return nil
		}
	}
	files, err := d.service.cache.Files(ctx, forgeAddress(r.Repo.String()), d.service.cfg.identity(r.ID), b.SHA, maxDetect, detectPaths...)
	if err != nil {
		return err
	}
	command := detect(files)
	if command == "" {
		return nil
	}
	tell := func(state, about string) error {
		return d.service.forge.SetStatus(ctx, r.Repo, b.SHA, forge.Status{Name: detectName, State: state}, about)
	}
	if err := tell("pending", command); err != nil {
		return err
	}
	info := ci.Info{
		Repo: r.Repo.String(), RepoID: r.ID, Job: "detected", Name: detectName, Event: detectEvent, Ref: "refs/heads/" + b.Name, Commit: b.SHA,
		Steps: []string{"Clone " + b.SHA[:10], command},
	}
	limited, cancel := context.WithTimeoutCause(ctx, d.within, ci.ErrTimeout)
	defer cancel()
	rec, err := d.store.Own(limited, info, d.maxLog, d.log, func(ctx context.Context, task int64, events func(cijob.Event)) error {
		return d.service.ci.detected(ctx, task, info, d.label, command, events)
	})
	if err != nil || ctx.Err() != nil { // it is run again
		return err
	}
	state := "error"
	switch {
	case rec.Result == cijob.Success:
		state = "success"
	case rec.Failed == command:
		state = "failure"
	}
	d.log.Info("ran a detected check", "repo", info.Repo, "commit", info.Commit, "command", command, "result", state, "why", rec.Reason)
	if err := tell(state, fmt.Sprintf("%s; devaipod ci logs d%d", command, rec.Task)); err != nil {
		return err
	}
	d.service.jobEnded(rec)
	return nil
}

// detected runs a command on a commit, where it reaches the repository and nothing else.
func (c *ciRunner) detected(ctx context.Context, task int64, info ci.Info, label, command string, events func(cijob.Event)) error {
	workflow, err := yaml.Marshal(map[string]any{"on": "push", "jobs": map[string]any{info.Job: map[string]any{
		"runs-on": label,
		"steps": []map[string]any{
			{"name": info.Steps[0], "run": fmt.Sprintf("git clone --quiet --no-checkout http://127.0.0.1:%d/repository.git clone && git -C clone checkout --quiet --detach %s", jobForgePort, info.Commit)},
			{"name": info.Steps[1], "working-directory": "clone", "run": command},
		},
	}}})
	if err != nil {
		return err
	}
	if err := c.waitForImages(ctx, workflow, events); err != nil {
		return err
	}
	reads := c.repos.Reads(forgeAddress(info.Repo))
	door := http.NewServeMux()
	door.Handle("/repository.git/", reads)
	github := map[string]any{"repository": info.Repo, "sha": info.Commit, "ref": info.Ref, "event_name": "push", "event": map[string]any{}}
	return c.inBox(ctx, detectedTask+task, []int{jobForgePort}, nil, door, events, func(docker string) cijob.Spec {
		return cijob.Spec{Workflow: workflow, Github: github, Env: map[string]string{"CI": "true"}, Images: c.images, Timeout: c.cfg.CI.Timeout, Docker: docker}
	})
}

// The files that checks are detected by.
var (
	makefiles   = []string{"GNUmakefile", "makefile", "Makefile"}
	detectPaths = append(append([]string{"go.mod", "package.json", "Cargo.toml", "pytest.ini", "pyproject.toml", "setup.cfg", "tox.ini"}, makefiles...), workflowDirs...)

	testTarget = regexp.MustCompile(`(?m)^(?:[^\s:=#]+[ \t]+)*test(?:[ \t]+[^\s:=#]+)*[ \t]*::?(?:[^=:]|$)`)
)

// detect is the command that checks a repository with these files, "" for none. It is the
// first of those that are there; nothing of the files gets into it.
func detect(files map[string][]byte) string {
	for _, folder := range workflowDirs {
		if _, has := files[folder+"/"]; has {
			return ""
		}
	}
	for _, name := range makefiles { // make reads the first
		if text, has := files[name]; has {
			if testTarget.Match(text) {
				return "make test"
			}
			break
		}
	}
	_, isGo := files["go.mod"]
	_, isRust := files["Cargo.toml"]
	_, isPytest := files["pytest.ini"]
	switch {
	case isGo:
		return "go test ./..."
	case npmTest(files["package.json"]):
		return "npm test"
	case isRust:
		return "cargo test"
	case isPytest, hasLine(files["pyproject.toml"], "[tool.pytest"), hasLine(files["setup.cfg"], "[tool:pytest]"), hasLine(files["tox.ini"], "[pytest]"):
		return "python3 -m pytest"
	}
	return ""
}

// npmTest tells whether a package has a test, other than the one that npm init writes.
func npmTest(text []byte) bool {
	var pkg struct {
		Scripts map[string]string `json:"scripts"`
	}
	return json.Unmarshal(text, &pkg) == nil && pkg.Scripts["test"] != "" && !strings.Contains(pkg.Scripts["test"], "no test specified")
}

func hasLine(text []byte, prefix string) bool {
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, prefix) {
			return true
		}
	}
	return false
}
