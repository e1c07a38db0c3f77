package cache_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/ci/cache"
)

const main = "refs/heads/main"

func open(t testing.TB, c cache.Config) *cache.Store {
	t.Helper()
	if c.Max == 0 {
		c.Max = 1 << 30
	}
	c.Log = slog.New(slog.DiscardHandler)
	s, err := cache.Open(c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// A client is one job, as far as the cache sees it.
type client struct {
	t testing.TB
	*httptest.Server
	job   *cache.Job
	ended atomic.Pointer[chan struct{}] // closed when the next request has ended
}

func newClient(t testing.TB, s *cache.Store, scope cache.Scope) *client {
	t.Helper()
	if scope.Repo == 0 {
		scope.Repo = 1
	}
	scope.Name, scope.Main = "ada/app", main
	c := &client{t: t}
	c.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c.job.ServeHTTP(w, r)
		if ended := c.ended.Load(); ended != nil {
			close(*ended)
		}
	}))
	c.job = s.Job(scope, "http://"+c.Listener.Addr().String()+"/")
	c.Start()
	t.Cleanup(c.Close)
	t.Cleanup(c.job.Close)
	return c
}

// ask sends a request of the API's, and returns what came.
func (c *client) ask(method, path, contentRange string, body io.Reader) (code int, text string) {
	c.t.Helper()
	r, err := http.NewRequestWithContext(c.t.Context(), method, c.URL+cache.Path+path, body)
	if err != nil {
		c.t.Fatal(err)
	}
	if contentRange != "" {
		r.Header.Set("Content-Range", contentRange)
	}
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		c.t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	return res.StatusCode, string(b)
}

// reserve begins a save, and returns its path.
func (c *client) reserve(key string) string {
	c.t.Helper()
	code, path := c.reserved(key, 0)
	if code != http.StatusCreated {
		c.t.Fatalf("reserving %s: %d", key, code)
	}
	return path
}

func (c *client) reserved(key string, size int64) (code int, path string) {
	c.t.Helper()
	code, text := c.ask("POST", "caches", "", reservation(key, size))
	var got struct {
		ID int64 `json:"cacheId"`
	}
	if err := json.Unmarshal([]byte(text), &got); err != nil || (got.ID != 0) != (code == http.StatusCreated) {
		c.t.Fatalf("reserving %s: %d %s", key, code, text)
	}
	return code, fmt.Sprintf("caches/%d", got.ID)
}

func reservation(key string, size int64) io.Reader {
	text, err := json.Marshal(map[string]any{"key": key, "version": "v", "cacheSize": size})
	if err != nil {
		panic(err)
	}
	return bytes.NewReader(text)
}

func size(n int) io.Reader { return strings.NewReader(fmt.Sprintf(`{"size":%d}`, n)) }

// wants fails unless a request is answered so.
func (c *client) wants(code int, says, method, path, contentRange string, body io.Reader) {
	c.t.Helper()
	if got, text := c.ask(method, path, contentRange, body); got != code || !strings.Contains(text, says) {
		c.t.Errorf("%s %s %s: %d %s; want %d %q", method, path, contentRange, got, text, code, says)
	}
}

// save saves text in one chunk.
func (c *client) save(key, text string) {
	c.t.Helper()
	at := c.reserve(key)
	c.wants(204, "", "PATCH", at, fmt.Sprintf("bytes 0-%d/*", len(text)-1), strings.NewReader(text))
	c.wants(204, "", "POST", at, "", size(len(text)))
}

type hit struct{ Key, Scope, ArchiveLocation, CreationTime string }

// find asks what is restored; nil is nothing.
func (c *client) find(version string, keys ...string) *hit {
	c.t.Helper()
	code, text := c.ask("GET", "cache?version="+version+"&keys="+url.QueryEscape(strings.Join(keys, ",")), "", nil)
	if code == http.StatusNoContent {
		return nil
	}
	var got struct {
		hit
		CacheKey string
	}
	if err := json.Unmarshal([]byte(text), &got); err != nil || code != http.StatusOK {
		c.t.Fatalf("finding %q: %d %s", keys, code, text)
	}
	got.Key = got.CacheKey
	return &got.hit
}

// restored is the text that is found, "" if nothing is.
func (c *client) restored(keys ...string) string {
	c.t.Helper()
	h := c.find("v", keys...)
	if h == nil {
		return ""
	}
	code, text := c.ask("GET", strings.TrimPrefix(h.ArchiveLocation, c.URL+cache.Path), "", nil)
	if code != http.StatusOK {
		c.t.Fatalf("%d %s", code, text)
	}
	return text
}

// left is what is in the directory of what is half made.
func left(t testing.TB, dir string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "tmp", "*"))
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// entries are the keys in a directory.
func entries(t testing.TB, dir string) map[string]cache.Entry {
	t.Helper()
	list, err := cache.List(dir)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]cache.Entry{}
	for _, e := range list {
		all[e.Key] = e
	}
	return all
}

// waitFor waits until something is so.
func waitFor(t testing.TB, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not after 30 s", what)
		}
	}
}

func TestMain(m *testing.M) {
	if dir := os.Getenv(saveUntilKilled); dir != "" {
		os.Exit(saveForEver(dir))
	}
	os.Exit(m.Run())
}
