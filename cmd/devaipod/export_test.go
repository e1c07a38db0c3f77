package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/viper"

	"codeberg.org/devaipod/devaipod/ci"
	"codeberg.org/devaipod/devaipod/forge"
	"codeberg.org/devaipod/devaipod/mirror/cache"
	"codeberg.org/devaipod/devaipod/mirror/follow"
	"codeberg.org/devaipod/devaipod/pods"
	"codeberg.org/devaipod/devaipod/pods/devcontainer"
	"codeberg.org/devaipod/devaipod/pods/podfile"
	"codeberg.org/devaipod/devaipod/pods/reconcile"
)

// NewForgePort is the forge as the loop sees it, for tests that count its calls.
func NewForgePort(client *forge.Client, label, instance, bot string) reconcile.Forge {
	return forgePort{client: client, label: label, instance: instance, bot: bot, runs: []*ci.Store{ci.OpenStore("nowhere")}}
}

// RoundsFile tells what a pod's agent was told of CI.
type RoundsFile = roundsFile

// What can be done with it.
var (
	ReadRounds    = roundsFile.read
	KeepRound     = roundsFile.keep
	ForgiveRounds = roundsFile.forgive
)

// Detect is the check that is detected by files.
var Detect, DetectPaths = detect, detectPaths

// Explain adds to jobs that failed what the records of a directory know of them.
func Explain(dir, repo, commit string, jobs []reconcile.CIJob) error {
	return forgePort{runs: []*ci.Store{ci.OpenStore(dir)}}.explain(repo, commit, jobs)
}

// Run is the whole program.
var Run = run

// NewFollowForge is the forge as what follows upstreams sees it.
func NewFollowForge(client *forge.Client) follow.Forge { return followForge{client} }

// AddressOf is what the cache of a service at an address calls a URL.
func AddressOf(listen, url string) (string, error) {
	a := &app{}
	a.cfg.Service.Listen = listen
	return a.addressOf(url)
}

// GivenSince tells whether an order is newer than the last request.
var GivenSince = givenSince

// ModelAddress is where a model on this host is, "" for one elsewhere.
var ModelAddress = modelAddress

// Policies are those of a service.
type Policies struct{ p *policies }

// NewPolicies makes them, of a configuration with these settings.
func NewPolicies(t *testing.T, settings map[string]any, repo func(pods.Key) (string, error), runDir func(pods.Key) string) Policies {
	t.Helper()
	return Policies{newPolicies(configOf(t, settings), func(k pods.Key) (repoConfig, error) {
		text, err := repo(k)
		if err != nil {
			return repoConfig{}, err
		}
		return parseRepoConfig([]byte(text))
	}, runDir)}
}

// configOf is a configuration with these settings.
func configOf(t *testing.T, settings map[string]any) config {
	t.Helper()
	v := viper.New()
	for name, value := range defaults() {
		v.SetDefault(name, value)
	}
	for name, value := range settings {
		v.Set(name, value)
	}
	var c config
	if err := errors.Join(v.UnmarshalExact(&c), c.validate()); err != nil {
		t.Fatal(err)
	}
	return c
}

// Of, Take, Wrong and Restarted are what the service does with them.
func (p Policies) Of(k pods.Key) (podfile.Policy, error) { return p.p.of(k) }
func (p Policies) Take(k pods.Key, o reconcile.Orders)   { p.p.take(k, o) }
func (p Policies) Wrong(k pods.Key) []string             { return p.p.wrong[k] }
func (p Policies) Restarted() Policies                   { return Policies{newPolicies(p.p.cfg, p.p.ofRepo, p.p.runDir)} }

// ParseRepoConfig is what a repository's own file allows.
func ParseRepoConfig(text []byte) ([]string, error) {
	c, err := parseRepoConfig(text)
	return c.Network.Allow, err
}

// A tree is a repository's default branch, by path.
type tree map[string]string

func (t tree) file(_ context.Context, p string, max int64) ([]byte, bool, error) {
	text, ok := t[p]
	if int64(len(text)) > max {
		return nil, false, fmt.Errorf("%s: %w", p, cache.ErrTooLarge)
	}
	return []byte(text), ok, nil
}

func (t tree) folders(_ context.Context, p string) ([]string, error) {
	found := map[string]bool{}
	for file := range t {
		if rest, ok := strings.CutPrefix(file, p+"/"); ok && strings.Contains(rest, "/") {
			name, _, _ := strings.Cut(rest, "/")
			found[name] = true
		}
	}
	return slices.Sorted(maps.Keys(found)), nil
}

// ReadRecipe reads what a repository with these files wants its pods to be.
func ReadRecipe(ctx context.Context, files map[string]string) (devcontainer.Config, error) {
	c, err := readRepoConfig(ctx, tree(files))
	if err != nil {
		return devcontainer.Config{}, err
	}
	return readDevcontainer(ctx, tree(files), c, pods.Place("devaipod", pods.Key{Owner: "ann", Repo: "app", Issue: 3}))
}

// RecipeOf is what a pod gets by a configuration with these settings, of a
// repository with these files, and what of the environment it is missing.
func RecipeOf(ctx context.Context, t *testing.T, settings map[string]any, files map[string]string) (pods.Recipe, []string) {
	t.Helper()
	cfg := configOf(t, settings)
	var r recipe
	var err error
	if r.config, err = readRepoConfig(ctx, tree(files)); err == nil {
		r.dev, err = readDevcontainer(ctx, tree(files), r.config, pods.Place("devaipod", pods.Key{Repo: "app"}))
	}
	if err != nil {
		t.Fatal(err)
	}
	return cfg.recipeOf(r), cfg.missing(r)
}

// ChecksText and DevcontainerNote are what agent and people are told of it.
var (
	ChecksText       = checksText
	DevcontainerNote = devcontainerNote
)

// Unpack unpacks what came out of a pod; left is how much of it was left out.
func Unpack(archive io.Reader, dir, name string) (left int, err error) {
	l, err := unpack(archive, dir, name)
	return l.n, err
}

// PodPath splits what `devaipod cp` is given, with the forge at 127.0.0.1:3000.
func PodPath(s string) (pod, inPod string, ok bool) {
	a := &app{}
	a.cfg.Forge.URL = "http://127.0.0.1:3000"
	return a.podPath(s)
}

// Detaching reads until the keys come; detached tells whether they did.
func Detaching(r io.Reader, keys string) (text []byte, detached bool, err error) {
	k, err := parseKeys(keys)
	if err != nil {
		return nil, false, err
	}
	text, err = io.ReadAll(&keyReader{r: r, keys: k})
	if errors.Is(err, errDetached) {
		return text, true, nil
	}
	return text, false, err
}

// A Chronicle is what happened.
type Chronicle struct{ c *chronicle }

// OpenChronicle reads what is kept in a file.
func OpenChronicle(path string) (Chronicle, error) {
	c, err := openChronicle(path, slog.New(slog.DiscardHandler))
	return Chronicle{c}, err
}

// Add notes a state.
func (c Chronicle) Add(kind, pod, state string) {
	c.c.add(happening{Kind: kind, Pod: pod, State: state})
}

// After are the pods and states after an id.
func (c Chronicle) After(id int64) (all []string, last int64) {
	found, _ := c.c.after(id)
	for _, h := range found {
		all, last = append(all, h.Pod+" "+h.Was+">"+h.State), h.ID
	}
	return all, last
}

// PodByHost finds a pod of a state directory by its name by SSH.
func PodByHost(state, host string) (string, error) {
	a := &app{}
	a.cfg.StateDir, a.cfg.Instance = state, "devaipod"
	spec, err := a.podByHost(host)
	return spec.Key.String(), err
}

// PlainKeys are lines of somebody's keys without all else.
var PlainKeys = plainKeys

// SSHConfig writes what clients of a state directory's pods need, and returns it.
func SSHConfig(state string) (config, known string, err error) {
	a := &app{}
	a.cfg.StateDir, a.cfg.Instance = state, "devaipod"
	if err := a.writeSSH(); err != nil {
		return "", "", err
	}
	c, err1 := os.ReadFile(a.sshFile(sshConfig))
	k, err2 := os.ReadFile(a.sshFile(sshKnown))
	return string(c), string(k), errors.Join(err1, err2)
}

// Lock takes a lock in a state directory, and tells whether it could.
func Lock(dir, name string) (unlock func() error, ok bool, err error) {
	return (&app{cfg: config{StateDir: dir}}).lock(name)
}

// PortInJob, Rebased, ServiceNames and PassOn are what jobs of CI are given, and how their
// process is heard.
var (
	PortInJob    = portInJob
	Rebased      = rebased
	ServiceNames = serviceNames
	LabelsOf     = labelsOf
	PassOn       = passOn
	CacheScope   = cacheScope
)

// CILimits says whether the configuration takes these.
func CILimits(memory, disk, log string) error {
	return config{CI: ciConfig{
		Runner: runnerNone, Jobs: 1, Timeout: time.Hour, Memory: memory, Disk: disk, Log: log, Cache: "0", Images: []string{"a=b"},
	}}.validateCI()
}

// CICache is how much jobs may save, by ci.cache.
func CICache(text string) (int64, error) { return config{CI: ciConfig{Cache: text}}.ciCache() }

// CIMayUse says which images jobs may use, by a configuration with these settings.
func CIMayUse(t *testing.T, settings map[string]any) func(image string) error {
	t.Helper()
	c := configOf(t, settings)
	images, err := c.ciImages()
	if err != nil {
		t.Fatal(err)
	}
	return c.ciMayUse(images)
}

// LocalDirs are the directories of local runs of workflows.
type LocalDirs struct{ a *app }

// NewLocalDirs makes those of a service whose state is in dir.
func NewLocalDirs(dir string) LocalDirs {
	a := &app{}
	a.cfg.StateDir = dir
	return LocalDirs{a}
}

// Begin makes one, which lives until it is closed; one that was killed leaves its directory.
func (l LocalDirs) Begin() (path string, task int64, end, killed func() error, err error) {
	d, err := newLocalDir(l.a.cfg.file(localRunsDir))
	if err != nil {
		return "", 0, nil, nil, err
	}
	return d.path, d.task, d.close, d.locked.Close, nil
}

// Lives tells whether a task is of a run that lives.
func (l LocalDirs) Lives(task int64) bool { return l.a.ofLocalRun(task) }

// Sweep removes what killed ones left.
func (l LocalDirs) Sweep() error { return sweepLocalRuns(l.a.cfg.file(localRunsDir)) }

// Snapshot copies the working tree at dir.
func Snapshot(ctx context.Context, dir, to string, history bool) error {
	t, err := openTree(ctx, dir)
	if err != nil {
		return err
	}
	return t.snapshot(ctx, to, history)
}

// WorkflowsOf are those of the working tree at dir.
func WorkflowsOf(ctx context.Context, dir, file string) (map[string][]byte, error) {
	t, err := openTree(ctx, dir)
	if err != nil {
		return nil, err
	}
	return t.workflows(file)
}

// JobLines prints a line of a job's to w, as where there is no terminal.
func JobLines(w io.Writer, job, line string) { newJobLines(&app{out: w}).of(job)(line) }

// Together is what comes of a job by what came of its combinations.
var Together = together
