package main_test

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/mirror"
	"codeberg.org/devaipod/devaipod/mirror/cache"
)

// BenchmarkPush pushes through the receive gate, and with the same account straight
// to the same forge: a commit of one line, and one of 50 files of 1 MB that don't
// compress.
func BenchmarkPush(b *testing.B) {
	s := bench(b)
	repo := s.benchRepo(b, "push")
	token := s.benchToken(b)
	gate := s.benchGate(b, repo, token)
	direct, err := url.Parse(s.ForgeURL())
	if err != nil {
		b.Fatal(err)
	}
	direct.User = url.UserPassword(person, token)
	ways := []string{gate + "/work/" + repo + ".git", direct.String() + "/" + repo + ".git"}
	// One clone for each way: a pod knows nothing that did not come by its gate.
	clones := []string{filepath.Join(b.TempDir(), "clone"), filepath.Join(b.TempDir(), "clone")}
	for i, way := range ways {
		s.benchGit(b, "/", "clone", "-q", way, clones[i])
	}
	for _, tt := range []struct {
		name   string
		files  int
		rounds int // each way in turn, after one that does not count
	}{{"small", 0, 40}, {"50MB", 50, 7}} {
		b.Run(tt.name, func(b *testing.B) {
			var took [2][]float64
			var ratios []float64
			for round := range 1 + tt.rounds {
				var now [2]float64
				for i := range ways {
					way := (i + round) % 2
					s.benchCommit(b, clones[way], tt.files)
					start := time.Now()
					s.benchGit(b, clones[way], "push", "-q", ways[way], fmt.Sprintf("HEAD:refs/heads/agent/1-%s-%d-%d", tt.name, round, way))
					now[way] = time.Since(start).Seconds()
				}
				b.Logf("round %d: gate %.3f s, straight %.3f s", round, now[0], now[1])
				if round > 0 {
					took[0], took[1], ratios = append(took[0], now[0]), append(took[1], now[1]), append(ratios, now[0]/now[1])
				}
			}
			report(b, map[string]float64{
				"s-min": slices.Min(took[0]), "s-median": median(took[0]), "straight-s-min": slices.Min(took[1]), "straight-s-median": median(took[1]),
				"ratio-of-medians": median(took[0]) / median(took[1]), "ratio-of-minima": slices.Min(took[0]) / slices.Min(took[1]), "ratio-median": median(ratios),
			})
		})
	}
}

// benchToken makes a token of the person's.
func (s *suite) benchToken(b *testing.B) string {
	b.Helper()
	var made struct {
		SHA1 string `json:"sha1"`
	}
	in := map[string]any{"name": "bench", "scopes": []string{"write:repository", "read:user"}}
	if err := s.api(person).Post(s.ctx, "/users/"+person+"/tokens", in, &made); err != nil {
		b.Fatal(err)
	}
	return made.SHA1
}

// benchGate is the work store before the suite's forge, as a pod's door has it.
func (s *suite) benchGate(b *testing.B, repo, token string) string {
	b.Helper()
	allow, err := cache.ParseAllow([]string{"forge"})
	if err != nil {
		b.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	api := s.api(person)
	api.Token = token
	c, err := cache.New(cache.Config{
		Dir: b.TempDir(), Allow: allow, Log: log,
		Hosts:       map[string]cache.Host{"forge": {URL: s.ForgeURL() + "/", Always: true, Unchecked: true}},
		Credentials: func(context.Context, string, string) (string, string, error) { return person, token, nil },
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := c.Close(); err != nil {
			b.Error(err)
		}
	})
	address := func(repo string) cache.Address { return cache.Address{Host: "forge", Path: repo} }
	work, err := mirror.NewWork(mirror.WorkConfig{
		ForgeURL: s.ForgeURL(), User: person, Token: func() string { return token }, Dir: b.TempDir(), Launcher: []string{filepath.Join(s.Bin, "devaipod-box")},
		Known: func(ctx context.Context, repo string) (string, error) { return c.Here(ctx, address(repo)) },
		Copy: func(repo string, _ int64) (string, bool) {
			dir, ok, err := c.Copy(address(repo), "")
			return dir, ok && err == nil
		},
		Name: func(ctx context.Context, _ int64) (string, error) { // a question, as the service has
			return repo, api.Get(ctx, "/repos/"+repo, new(struct{}))
		},
		Limits: mirror.Limits{Push: 500 << 20, Unpacked: 5 << 30, File: 100 << 20, Objects: 1_000_000}, Protected: []string{".forgejo/workflows/", "CODEOWNERS"}, Log: log,
	})
	if err != nil {
		b.Fatal(err)
	}
	if _, err := c.Here(s.ctx, address(repo)); err != nil { // from where a pod has cloned
		b.Fatal(err)
	}
	rules := mirror.Rules{Repo: repo, RepoID: 1, BranchPrefix: "agent/1-", Pusher: func() mirror.Pusher { return mirror.Pusher{Pod: "bench"} }}
	server := httptest.NewServer(work.Handler(rules, func(repo string) http.Handler { return c.Reads(address(repo)) }))
	b.Cleanup(server.Close)
	return server.URL
}

// benchCommit adds a line, and files of 1 MB that don't compress.
func (s *suite) benchCommit(b *testing.B, clone string, files int) {
	b.Helper()
	line := make([]byte, 8)
	for i := range 1 + files {
		name, content := "line", make([]byte, 0)
		if i > 0 {
			name, content = fmt.Sprintf("file%d", i), make([]byte, 1_000_000)
		}
		if _, err := rand.Read(content); err != nil {
			b.Fatal(err)
		}
		if _, err := rand.Read(line); err != nil {
			b.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(clone, name), fmt.Appendf(content, "%x\n", line), 0o600); err != nil {
			b.Fatal(err)
		}
	}
	s.benchGit(b, clone, "add", ".")
	s.benchGit(b, clone, "-c", "user.name=Bench", "-c", "user.email=bench@example.org", "commit", "-qm", "one more")
}

func (s *suite) benchGit(b *testing.B, dir string, args ...string) {
	b.Helper()
	cmd := exec.Command("git", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1", "GIT_TERMINAL_PROMPT=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("git %s: %v %s", strings.Join(args, " "), err, out)
	}
}
