package mirror_test

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/mirror"
	"codeberg.org/devaipod/devaipod/mirror/cache"
)

// A service is a work store in a process of its own, which can be killed. Its
// variables say where all is.
const (
	serviceForge    = "TEST_WORK_FORGE"
	serviceDir      = "TEST_WORK_DIR"
	serviceLent     = "TEST_WORK_LENT"
	serviceLauncher = "TEST_WORK_LAUNCHER"
)

// serveWork is that process.
func serveWork() error {
	dir := os.Getenv(serviceDir)
	allow, err := cache.ParseAllow([]string{"forge"})
	if err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	c, err := cache.New(cache.Config{
		Dir: filepath.Join(dir, "cache"), Allow: allow, Log: log,
		Hosts:       map[string]cache.Host{"forge": {URL: os.Getenv(serviceForge) + "/", Rest: time.Millisecond, Always: true, Unchecked: true}},
		Credentials: func(context.Context, string, string) (string, string, error) { return "bot", token, nil },
	})
	if err != nil {
		return err
	}
	work, err := mirror.NewWork(mirror.WorkConfig{
		ForgeURL: os.Getenv(serviceForge), User: "bot", Token: func() string { return token }, Wait: time.Second, Dir: filepath.Join(dir, "work"), Launcher: []string{os.Getenv(serviceLauncher)},
		Known: func(ctx context.Context, repo string) (string, error) { return c.Here(ctx, address(repo)) },
		Copy: func(repo string, _ int64) (string, bool) {
			dir, ok, err := c.Copy(address(repo), "")
			return dir, ok && err == nil
		},
		Name:   func(context.Context, int64) (string, error) { return "alice/hello", nil },
		Limits: mirror.Limits{Push: 64 << 20, Unpacked: 256 << 20, File: 32 << 20, Objects: 100_000}, Log: log,
	})
	if err != nil {
		return err
	}
	go work.Run(context.Background()) //nolint:errcheck // it ends with the process
	mux := http.NewServeMux()
	rules := mirror.Rules{Repo: "alice/hello", RepoID: 7, BranchPrefix: "agent/3-", Pusher: func() mirror.Pusher { return pusher }}
	mux.Handle("/work/", work.Handler(rules, func(repo string) http.Handler { return c.Reads(address(repo)) }))
	mux.Handle("/saved.git/", work.Saves(func() (mirror.SaveRules, error) {
		return mirror.SaveRules{RepoID: 7, Issue: 3, Borrow: os.Getenv(serviceLent), Quota: 1 << 30}, nil
	}))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Fprintln(os.Stdout, "http://"+l.Addr().String())
	return http.Serve(l, mux) //nolint:gosec // a test
}

// startService starts one and waits for its address.
func startService(t *testing.T, env []string) (*exec.Cmd, string) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("the service did not start: %v", err)
	}
	return cmd, strings.TrimSpace(line)
}

// However often the service is killed while there are pushes and saves: what it
// said it has is there, the forge has what a push was told it has, and in the end
// all is everywhere.
func TestKillsWhilePushingAndSaving(t *testing.T) {
	const kills = 25
	w := newSavedWorld(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 1))
	dir := t.TempDir()
	env := []string{serviceForge + "=" + w.config.ForgeURL, serviceDir + "=" + dir, serviceLent + "=" + w.rules.Borrow, serviceLauncher + "=" + w.config.Launcher[0]}
	work := filepath.Join(dir, "work", "7.git")
	var said []string // commits that are saved, by the service's word
	for n := range kills + 1 {
		service, url := startService(t, env)
		w.put(t, "pushed", fmt.Sprintf("%d\n", n))
		saved := w.commitOf(t, fmt.Sprintf("%d\n", n))
		var wait sync.WaitGroup
		var pushErr, saveErr error
		var pushOut string
		wait.Go(func() {
			push := func() {
				pushOut, pushErr = run(w.clone, "push", url+"/work/alice/hello.git", "HEAD:refs/heads/agent/3-work")
			}
			push()
			if n == kills && strings.Contains(pushOut, "were not known here yet; they are now: push again") {
				push() // the kill before fell between the forge's word and its note here
			}
		})
		wait.Go(func() { _, saveErr = run(w.own, "push", "-q", url+"/saved.git", "+HEAD:refs/saved/3/work") })
		if n < kills {
			time.Sleep(time.Duration(random.IntN(400)) * time.Millisecond)
			if err := service.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
		wait.Wait()
		if n == kills {
			if pushErr != nil || saveErr != nil {
				t.Fatalf("at the end: %v %s %v", pushErr, pushOut, saveErr)
			}
			defer service.Wait()         //nolint:errcheck // killed
			defer service.Process.Kill() //nolint:errcheck // the same
		} else {
			_ = service.Wait() // killed
		}
		if pushErr == nil && w.onForge(t) != w.head(t) {
			t.Fatalf("the push was told that the forge has %s, and it has %q", w.head(t), w.onForge(t))
		}
		if saveErr == nil {
			said = append(said, saved)
		}
		for _, id := range said {
			if out, err := run(work, "merge-base", "--is-ancestor", id, "refs/saved/3/work"); err != nil {
				t.Fatalf("%s was saved, and is not there: %v %s", id, err, out)
			}
		}
	}
	t.Logf("%d of %d saves went through between kills", len(said), kills)
	git(t, work, "rev-list", "--objects", "--quiet", "--glob=refs/saved/*") // what was accepted may need the cache
	if w.onForge(t) != w.head(t) {
		t.Errorf("the forge has %s, want %s", w.onForge(t), w.head(t))
	}
	if left, err := filepath.Glob(filepath.Join(work, "incoming-*")); err != nil || len(left) > 0 {
		t.Errorf("%v stays, %v", left, err)
	}
}
