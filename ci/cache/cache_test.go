package cache_test

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/ci/cache"
)

func TestChunksInParallelAndOutOfOrder(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c := newClient(t, open(t, cache.Config{Dir: dir}), cache.Scope{Tier: cache.Trusted, Ref: main})
	text := random(3<<20 + 7)
	const chunk = 100_000
	at := c.reserve("Linux-go-1")
	var all sync.WaitGroup
	for begin := (len(text) / chunk) * chunk; begin >= 0; begin -= chunk {
		all.Go(func() {
			part := text[begin:min(len(text), begin+chunk)]
			var body io.Reader = strings.NewReader(part)
			if begin%(2*chunk) == 0 {
				body = io.MultiReader(body) // whose length is not told, as Node does it
			}
			for range 1 + begin/chunk%2 { // some are sent again
				c.wants(204, "", "PATCH", at, fmt.Sprintf("bytes %d-%d/*", begin, begin+len(part)-1), body)
				body = strings.NewReader(part)
			}
		})
	}
	all.Wait()
	c.wants(204, "", "POST", at, "", size(len(text)))
	if got := c.restored("linux-GO-1"); got != text {
		t.Errorf("%d bytes came back", len(got))
	}
	if h := c.find("v", "linux"); h == nil || h.Key != "Linux-go-1" || h.Scope != main {
		t.Errorf("%+v", h)
	}
	c.wants(409, "already", "POST", "caches", "", reservation("LINUX-go-1", 0))
	c.wants(404, "being saved", "PATCH", at, "bytes 0-0/*", strings.NewReader("x"))
	c.wants(404, "being saved", "POST", at, "", size(len(text)))
	if n := left(t, dir); len(n) > 0 {
		t.Errorf("left %q", n)
	}

	// A part of it, and after the service was started again.
	again := newClient(t, open(t, cache.Config{Dir: dir}), cache.Scope{Tier: cache.Trusted, Ref: main})
	h := again.find("v", "linux-go-1")
	r, err := http.NewRequest("GET", h.ArchiveLocation, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Range", "bytes=1000-1009")
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if part, err := io.ReadAll(res.Body); err != nil || res.StatusCode != 206 || string(part) != text[1000:1010] {
		t.Errorf("%d %q %v", res.StatusCode, part, err)
	}
	again.wants(409, "already", "POST", "caches", "", reservation("linux-go-1", 0))
}

func random(n int) string {
	b := make([]byte, n)
	src := rand.NewChaCha8([32]byte{1})
	src.Read(b) //nolint:errcheck // never fails
	return string(b)
}

func TestWhoRestoresWhat(t *testing.T) {
	t.Parallel()
	s := open(t, cache.Config{Dir: t.TempDir()})
	const pull, agent, other, release = "refs/pull/1/head", "refs/heads/agent/7", "refs/heads/other", "refs/heads/release"
	writers := map[string]cache.Scope{
		"main": {Tier: cache.Trusted, Ref: main}, "main-secret": {Tier: cache.Secret, Ref: main}, "main-agent": {Tier: cache.Untrusted, Ref: main},
		"pull": {Tier: cache.Trusted, Ref: pull}, "pull-secret": {Tier: cache.Secret, Ref: pull}, "pull-agent": {Tier: cache.Untrusted, Ref: pull},
		"other": {Tier: cache.Trusted, Ref: other}, "release": {Tier: cache.Trusted, Ref: release}, "release-agent": {Tier: cache.Untrusted, Ref: release},
		"agent-agent": {Tier: cache.Untrusted, Ref: agent}, "stranger": {Repo: 2, Tier: cache.Trusted, Ref: main}, "stranger-agent": {Repo: 2, Tier: cache.Untrusted, Ref: pull},
	}
	for name, scope := range writers {
		newClient(t, s, scope).save("of "+name+".", name)
	}
	all := map[string]string{} // where the archives are
	for name, scope := range writers {
		c := newClient(t, s, scope)
		_, all[name], _ = strings.Cut(c.find("v", "of "+name+".").ArchiveLocation, cache.Path)
	}
	for who, tt := range map[string]struct {
		scope cache.Scope
		sees  []string
	}{
		"a push to main":                   {cache.Scope{Tier: cache.Trusted, Ref: main}, []string{"main"}},
		"a push to main, with secrets":     {cache.Scope{Tier: cache.Secret, Ref: main}, []string{"main", "main-secret"}},
		"a pull request":                   {cache.Scope{Tier: cache.Trusted, Ref: pull, Base: release}, []string{"main", "pull", "release"}},
		"a pull request, with secrets":     {cache.Scope{Tier: cache.Secret, Ref: pull, Base: main}, []string{"main", "main-secret", "pull", "pull-secret"}},
		"a push to another branch":         {cache.Scope{Tier: cache.Trusted, Ref: other}, []string{"main", "other"}},
		"an agent's pull request":          {cache.Scope{Tier: cache.Untrusted, Ref: pull, Base: release}, []string{"main", "pull-agent"}},
		"an agent's branch":                {cache.Scope{Tier: cache.Untrusted, Ref: agent}, []string{"agent-agent", "main"}},
		"an agent that pushed to main":     {cache.Scope{Tier: cache.Untrusted, Ref: main}, []string{"main", "main-agent"}},
		"an approved commit of an agent's": {cache.Scope{Tier: cache.Trusted, Ref: agent}, []string{"main"}},
		"another repository":               {cache.Scope{Repo: 3, Tier: cache.Secret, Ref: main}, nil},
		"a tier that there is not":         {cache.Scope{Tier: "x", Ref: main}, nil},
	} {
		c := newClient(t, s, tt.scope)
		for name := range writers {
			want := slices.Contains(tt.sees, name)
			if got := c.restored("of " + name + "."); (got == name) != want || got != "" && got != name {
				t.Errorf("%s finds %q of %s", who, got, name)
			}
			// Nor by an address that it was told.
			if code, text := c.ask("GET", all[name], "", nil); (code == 200) != want {
				t.Errorf("%s reads %s: %d %q", who, name, code, text)
			}
		}
	}
}

// What an agent saves under the name of what a trusted job has does not come between.
func TestAnAgentCantTakeAName(t *testing.T) {
	t.Parallel()
	s := open(t, cache.Config{Dir: t.TempDir()})
	trusted, agent := newClient(t, s, cache.Scope{Tier: cache.Trusted, Ref: main}), newClient(t, s, cache.Scope{Tier: cache.Untrusted, Ref: main})
	agent.save("deps", "poison")
	if got := trusted.restored("deps"); got != "" {
		t.Errorf("restored %s", got)
	}
	trusted.save("deps", "good")
	if got := trusted.restored("deps"); got != "good" {
		t.Errorf("restored %s", got)
	}
	if got := agent.restored("deps"); got != "poison" {
		t.Errorf("the agent restored %s", got)
	}
	at := agent.reserve("deps-2")
	trusted.wants(404, "being saved", "PATCH", at, "bytes 0-0/*", strings.NewReader("x"))
}

func TestWhichKeyIsFound(t *testing.T) {
	t.Parallel()
	s := open(t, cache.Config{Dir: t.TempDir()})
	onMain := newClient(t, s, cache.Scope{Tier: cache.Trusted, Ref: main})
	for _, key := range []string{"go-a", "go-abc", "go-ab", "npm-1", "own-x"} {
		onMain.save(key, "main "+key)
	}
	c := newClient(t, s, cache.Scope{Tier: cache.Trusted, Ref: "refs/heads/x"})
	c.save("own-1", "x own-1")
	c.save("own-2", "x own-2")
	for name, tt := range map[string]struct {
		keys []string
		want string
	}{
		"the same key before a newer one that begins with it": {[]string{"go-a"}, "main go-a"},
		"the newest that begins with a key":                   {[]string{"go-"}, "main go-ab"},
		"the first key, though the second is the same":        {[]string{"go-a", "npm-1"}, "main go-a"},
		"a later key":                           {[]string{"go-abcd", "py", "npm"}, "main npm-1"},
		"none":                                  {[]string{"go-abcd", "py"}, ""},
		"its own branch before the default one": {[]string{"own-"}, "x own-2"},
		"its own branch, though the default has the same key": {[]string{"own-x", "own"}, "x own-2"},
		"a key that no other is within":                       {[]string{"o-a"}, ""},
		"keys that are empty":                                 {[]string{"", "npm-1", ""}, "main npm-1"},
		"nothing but empty keys":                              {[]string{""}, ""},
	} {
		for range 10 { // in whatever order they are looked at
			if got := c.restored(tt.keys...); got != tt.want {
				t.Errorf("%s: %q", name, got)
			}
		}
	}
	if h := c.find("w", "go-a"); h != nil {
		t.Errorf("of another version: %+v", h)
	}
}

func TestBadRequests(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c := newClient(t, open(t, cache.Config{Dir: dir, Max: 4 << 20}), cache.Scope{Tier: cache.Untrusted, Ref: main})
	text := func(s string) io.Reader { return strings.NewReader(s) }
	long := strings.Repeat("k", 513)
	for _, body := range []string{"", "{", `[]`, `{"key":"","version":"v"}`, `{"key":"k","version":""}`, `{"key":"a,b","version":"v"}`, `{"key":1,"version":"v"}`, `{"key":"` + long + `","version":"v"}`, `{"key":"k","version":"` + long + `"}`} {
		c.wants(422, "message", "POST", "caches", "", text(body))
	}
	c.wants(413, "more than", "POST", "caches", "", text(`{"key":"`+strings.Repeat("k", 17<<10)))
	c.wants(400, "at most", "POST", "caches", "", reservation("large", 1<<20+1))
	c.wants(400, "at most", "POST", "caches", "", reservation("negative", -1))
	for _, q := range []string{"keys=a", "version=v&keys=" + long, "version=" + long + "&keys=a", "version=v&keys=a" + strings.Repeat(",b", 20)} {
		c.wants(422, "message", "GET", "cache?"+q, "", nil)
	}
	for _, path := range []string{"artifacts/x", "artifacts/..", "artifacts/%2e%2e%2fentry.json", "artifacts/", "nothing", "caches/x"} {
		if code, _ := c.ask("GET", path, "", nil); code != 404 && code != 405 && code != 400 {
			t.Errorf("%s: %d", path, code)
		}
	}
	for _, num := range []string{"0", "-1", "99", "x", "18446744073709551617"} {
		c.wants(404, "being saved", "PATCH", "caches/"+num, "bytes 0-0/*", text("x"))
		c.wants(404, "being saved", "POST", "caches/"+num, "", size(1))
	}

	at := c.reserve("k")
	for _, r := range []string{"", "bytes", "bytes 0", "bytes 0-", "bytes -1", "bytes 1-0/*", "bytes 0-0-0/*", "items 0-0/*", "bytes 0x0-0x1/*", "bytes -1-1/*", "bytes 9223372036854775807-9223372036854775807/*"} {
		c.wants(400, "Content-Range", "PATCH", at, r, text("x"))
	}
	c.wants(413, "at most", "PATCH", at, "bytes 0-1048576/*", io.MultiReader(text("x")))
	c.wants(413, "at most", "PATCH", at, "bytes 4611686018427387902-4611686018427387902/*", text("x"))
	for _, body := range []string{"", "ab", "abcd"} { // shorter and longer than it is said to be
		c.wants(400, "as long as", "PATCH", at, "bytes 0-2/*", text(body))
		c.wants(400, "as long as", "PATCH", at, "bytes 0-2/*", io.MultiReader(text(body)))
	}
	c.wants(400, "not all", "POST", at, "", size(0))
	c.wants(400, "not all", "POST", at, "", size(3)) // though three were counted
	c.wants(204, "", "PATCH", at, "bytes 4-5/9", text("ef"))
	c.wants(204, "", "PATCH", at, "bytes 0-1/*", text("ab"))
	c.wants(400, "not all", "POST", at, "", size(6)) // with a gap
	c.wants(204, "", "PATCH", at, "bytes 1-4/*", text("bcde"))
	c.wants(400, "not all", "POST", at, "", size(5))
	c.wants(400, "not all", "POST", at, "", size(7))
	c.wants(422, "message", "POST", at, "", text("{"))
	c.wants(204, "", "POST", at, "", size(6))
	if got := c.restored("k"); got != "abcdef" {
		t.Errorf("%q", got)
	}

	// One that is not what was said when it was reserved.
	_, at = c.reserved("said", 5)
	c.wants(204, "", "PATCH", at, "bytes 0-2/*", text("abc"))
	c.wants(400, "not as long", "POST", at, "", size(3))
	c.wants(400, "goes on", "PATCH", at, "bytes 3-5/*", text("def"))
	if all := entries(t, dir); len(all) != 1 {
		t.Errorf("%v", all)
	}
}

func TestGapsAreBounded(t *testing.T) {
	t.Parallel()
	c := newClient(t, open(t, cache.Config{Dir: t.TempDir()}), cache.Scope{Tier: cache.Untrusted, Ref: main})
	at := c.reserve("k")
	for i := range 4096 {
		c.wants(204, "", "PATCH", at, fmt.Sprintf("bytes %d-%[1]d/*", 2*i), strings.NewReader("x"))
	}
	c.wants(400, "gaps", "PATCH", at, "bytes 9000-9000/*", strings.NewReader("x"))
}

func TestWhatIsSavedAtATimeIsBounded(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c := newClient(t, open(t, cache.Config{Dir: dir, Max: 4 << 20}), cache.Scope{Tier: cache.Untrusted, Ref: main})
	first := c.reserve("0")
	c.wants(409, "being saved", "POST", "caches", "", reservation("0", 0))
	for i := range 31 {
		c.reserve(fmt.Sprint(i + 1))
	}
	c.wants(429, "at a time", "POST", "caches", "", reservation("32", 0))
	c.wants(204, "", "PATCH", first, "bytes 800000-800000/*", strings.NewReader("x")) // counts for as much
	c.wants(413, "at a time", "PATCH", "caches/2", "bytes 300000-300000/*", strings.NewReader("x"))
	c.job.Close()
	c.wants(404, "being saved", "PATCH", first, "bytes 0-0/*", strings.NewReader("x"))
	c.wants(429, "at a time", "POST", "caches", "", reservation("33", 0))
	if n := left(t, dir); len(n) > 0 {
		t.Errorf("left %q", n)
	}
}

func TestAnUploadThatNeverEnds(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, cache.Config{Dir: dir, Idle: 200 * time.Millisecond})
	c := newClient(t, s, cache.Scope{Tier: cache.Untrusted, Ref: main})
	at := c.reserve("k")
	waitFor(t, "what was reserved is gone", func() bool { return len(left(t, dir)) == 0 })
	c.wants(404, "being saved", "POST", at, "", size(1))
	c.reserve("k") // can be saved now
}

// An upload is not committed while a chunk of it comes, and its job may end then.
func TestAChunkThatIsUnderWay(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c := newClient(t, open(t, cache.Config{Dir: dir}), cache.Scope{Tier: cache.Untrusted, Ref: main})
	at := c.reserve("k")
	c.wants(204, "", "PATCH", at, "bytes 0-2/*", strings.NewReader("abc"))
	body, feed := io.Pipe()
	ended := make(chan int)
	go func() {
		code, _ := c.ask("PATCH", at, "bytes 0-2/*", body)
		ended <- code
	}()
	fmt.Fprint(feed, "x")
	waitFor(t, "the chunk has begun", func() bool {
		files, err := filepath.Glob(filepath.Join(dir, "tmp", "*", "archive"))
		if err != nil || len(files) != 1 {
			t.Fatal(files, err)
		}
		text, err := os.ReadFile(files[0])
		return err == nil && text[0] == 'x'
	})
	c.wants(400, "still", "POST", at, "", size(3))
	c.job.Close()
	feed.Close() //nolint:errcheck // of a pipe
	if code := <-ended; code != 400 && code != 404 {
		t.Errorf("the chunk: %d", code)
	}
	if n := left(t, dir); len(n) > 0 {
		t.Errorf("left %q", n)
	}
}

func TestArchivesAreNotHeldInMemory(t *testing.T) { // not parallel: it counts what is allocated
	c := newClient(t, open(t, cache.Config{Dir: t.TempDir()}), cache.Scope{Tier: cache.Trusted, Ref: main})
	const n = 64 << 20
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	at := c.reserve("k")
	c.wants(204, "", "PATCH", at, fmt.Sprintf("bytes 0-%d/*", n-1), io.LimitReader(zeros{}, n))
	c.wants(204, "", "POST", at, "", size(n))
	res, err := http.Get(c.find("v", "k").ArchiveLocation)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if got, err := io.Copy(io.Discard, res.Body); err != nil || got != n {
		t.Errorf("%d %v", got, err)
	}
	runtime.ReadMemStats(&after)
	if used := after.TotalAlloc - before.TotalAlloc; used > n/4 {
		t.Errorf("allocated %d bytes", used)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }
