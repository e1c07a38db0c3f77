package ci_test

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"code.gitea.io/actions-proto-go/runner/v1/runnerv1connect"

	"codeberg.org/devaipod/devaipod/ci"
)

// inMemory is a way to a server that takes no time, so that minutes pass at once.
type inMemory struct{ http.Handler }

func (m inMemory) RoundTrip(r *http.Request) (*http.Response, error) {
	w := httptest.NewRecorder()
	m.ServeHTTP(w, r)
	return w.Result(), nil
}

func TestRunnersWithNothingToDoAskSeldom(t *testing.T) {
	for _, c := range []struct{ repos, atMost int }{ // calls a minute
		{1, 3}, // each 30 s, and now and then one with another version
		{20, 3 * 20},
		{200, 62}, // one a second, of all together
	} {
		synctest.Test(t, func(t *testing.T) {
			f := &fakeForge{version: 1}
			_, h := runnerv1connect.NewRunnerServiceHandler(f)
			asked := 0
			count := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				f.with(func() { asked++ })
				http.StripPrefix("/api/actions", h).ServeHTTP(w, r)
			})
			rs, err := ci.NewRunners(ci.Config{
				Forge: "http://forge.test", HTTP: &http.Client{Transport: inMemory{count}}, Dir: t.TempDir(), Name: "x", Labels: []string{"x"},
				Timeout: time.Minute, Token: f.token, Executor: &fakeExecutor{}, Log: slog.New(slog.DiscardHandler),
			})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			all, ended := make(chan map[int64]string), make(chan struct{})
			go func() { defer close(ended); rs.Run(ctx, all) }()
			names := map[int64]string{}
			for i := range c.repos {
				names[int64(i+1)] = "a/b"
			}
			all <- names
			const minutes = 20
			time.Sleep(10 * time.Minute) // registered, and at rest
			before := 0
			f.with(func() { before = asked })
			time.Sleep(minutes * time.Minute)
			synctest.Wait()
			f.with(func() {
				got := float64(asked-before) / minutes
				t.Logf("%d repositories: %.1f calls a minute", c.repos, got)
				if got > float64(c.atMost) {
					t.Errorf("%d repositories: %.1f calls a minute, want at most %d", c.repos, got, c.atMost)
				}
				if asked == before {
					t.Error("nobody asks")
				}
			})
			cancel()
			<-ended
		})
	}
}
