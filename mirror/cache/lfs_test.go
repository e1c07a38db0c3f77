package cache_test

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"codeberg.org/devaipod/devaipod/mirror/cache"
)

// lfsStandIn plays an upstream's LFS server: git's http-backend has none. It
// keeps objects in memory.
type lfsStandIn struct {
	url     string // where it says that objects are
	mu      sync.Mutex
	objects map[string][]byte
	lie     atomic.Bool
	batches atomic.Int32
	gets    atomic.Int32
}

func (s *lfsStandIn) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	_, path, _ := strings.Cut(r.URL.Path, "/info/lfs/")
	oid := strings.TrimPrefix(path, "objects/")
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case path == "objects/batch":
		s.batches.Add(1)
		var in struct {
			Operation string
			Objects   []struct {
				OID  string
				Size int64
			}
		}
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		var objects []map[string]any
		for _, o := range in.Objects {
			_, has := s.objects[o.OID]
			one := map[string]any{"oid": o.OID, "size": o.Size}
			switch {
			case in.Operation == "upload" && !has:
				one["actions"] = map[string]any{"upload": map[string]any{"href": s.url + "/info/lfs/objects/" + o.OID}}
			case has:
				one["actions"] = map[string]any{"download": map[string]any{"href": s.url + "/info/lfs/objects/" + o.OID, "header": map[string]string{"X-Pass": "this-way"}}}
			default:
				one["error"] = map[string]any{"code": 404, "message": "no such object"}
			}
			objects = append(objects, one)
		}
		w.Header().Set("Content-Type", "application/vnd.git-lfs+json")
		if err := json.NewEncoder(w).Encode(map[string]any{"transfer": "basic", "objects": objects}); err != nil {
			return
		}
	case r.Method == http.MethodPut:
		b, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		s.objects[oid] = b
	case r.Header.Get("X-Pass") != "this-way":
		http.Error(w, "no", http.StatusForbidden)
	default:
		s.gets.Add(1)
		b := append([]byte(nil), s.objects[oid]...)
		if s.lie.Load() {
			b[0] ^= 1
		}
		if _, err := w.Write(b); err != nil {
			return
		}
	}
}

// lfsRepo makes a repository upstream with a file in LFS.
func (w *world) lfsRepo(name string, content []byte) *lfsStandIn {
	w.t.Helper()
	s := &lfsStandIn{url: w.up.url + "/" + name + ".git", objects: map[string][]byte{}}
	w.up.lfs.Store(s)
	git(w.t, w.dir, "lfs", "install", "--skip-repo")
	work := w.up.repo(w.t, name)
	git(w.t, work, "lfs", "track", "*.bin")
	if err := os.WriteFile(filepath.Join(work, "big.bin"), content, 0o600); err != nil {
		w.t.Fatal(err)
	}
	git(w.t, work, "remote", "set-url", "origin", w.up.url+"/"+name+".git")
	commit(w.t, work, "in LFS")
	git(w.t, work, "push", "-q", "origin", "main")
	return s
}

func TestLFSObjectsAreCached(t *testing.T) {
	w := newWorld(t)
	content := []byte(strings.Repeat("0123456789", 300_000))
	up := w.lfsRepo("app", content)
	sum := sha256.Sum256(content)
	oid := hex.EncodeToString(sum[:])
	for i := range 3 {
		to := filepath.Join(t.TempDir(), "clone")
		git(t, "/", "clone", "-q", w.at("app"), to)
		if got, err := os.ReadFile(filepath.Join(to, "big.bin")); err != nil || string(got) != string(content) {
			t.Errorf("clone %d has %d bytes, %v", i, len(got), err)
		}
	}
	if b, g := up.batches.Load(), up.gets.Load(); g != 1 {
		t.Errorf("three clones asked the upstream for the object %d times, and %d times where it is", g, b)
	}
	// What is here is served when the upstream is down.
	w.up.down.Store(true)
	git(t, "/", "clone", "-q", w.at("app"), filepath.Join(t.TempDir(), "clone"))
	w.up.down.Store(false)
	w.clock.advance(time.Hour)

	// Who may not read the repository may not read its objects: not by asking, and
	// not by knowing the name.
	w.up.private.Store(true)
	resp := w.post("app", "/info/lfs/objects/batch", fmt.Sprintf(`{"operation":"download","objects":[{"oid":%q,"size":%d}]}`, oid, len(content)), "")
	if resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("nobody asks for it: %s", resp.Status)
	}
	for _, auth := range []string{"", basic("eve", "x"), "Devaipod 99999999999.3000000." + oid} {
		if resp := w.do(http.MethodGet, "app", "/info/lfs/objects/"+oid, "", auth); resp.StatusCode != http.StatusForbidden {
			t.Errorf("%q gets it: %s", auth, resp.Status)
		}
	}
	resp = w.post("app", "/info/lfs/objects/batch", fmt.Sprintf(`{"operation":"download","objects":[{"oid":%q,"size":%d},{"oid":"../../x","size":1},{"oid":%q,"size":1}]}`, oid, len(content), strings.Repeat("0", 64)), basic(user, password))
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK || strings.Count(string(b), `"href"`) != 1 || strings.Count(string(b), `"error"`) != 2 {
		t.Errorf("ada asks for it and two that are none: %s %s %v", resp.Status, b, err)
	}
}

func TestAnLFSObjectThatIsAnother(t *testing.T) {
	w := newWorld(t)
	up := w.lfsRepo("app", []byte("what it is\n"))
	up.lie.Store(true)
	out, err := try("/", "git", "-c", "lfs.transfer.maxretries=1", "clone", "-q", w.at("app"), filepath.Join(t.TempDir(), "clone"))
	if err == nil {
		t.Errorf("an object that is another is taken: %s", out)
	}
	kept, err := filepath.Glob(filepath.Join(w.dir, "cache/repos/*/lfs/*/*"))
	if err != nil || len(kept) > 0 {
		t.Errorf("kept: %v %v", kept, err)
	}
	up.lie.Store(false)
	git(t, "/", "clone", "-q", w.at("app"), filepath.Join(t.TempDir(), "clone"))
}

func TestLFSObjectsElsewhere(t *testing.T) {
	w := newWorld(t)
	up := w.lfsRepo("app", []byte("elsewhere\n"))
	asked := false
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked = true }))
	defer other.Close()
	for _, at := range []string{other.URL, strings.Replace(other.URL, "http://", "https://", 1), "file:///etc", "https://169.254.169.254"} {
		up.mu.Lock()
		up.url = at
		up.mu.Unlock()
		if out, err := try("/", "git", "-c", "lfs.transfer.maxretries=1", "clone", "-q", w.at("app"), filepath.Join(t.TempDir(), "clone")); err == nil {
			t.Errorf("an object at %s is fetched: %s", at, out)
		}
	}
	if asked {
		t.Error("a loopback host that nobody named was asked")
	}
}

func TestUploadsToLFSGoToTheUpstream(t *testing.T) {
	w := newWorld(t, func(c *cache.Config) { c.MaxAge = time.Hour })
	up := w.lfsRepo("app", []byte("first\n"))
	w.up.private.Store(true)
	clone := w.cloned("app")
	if err := os.WriteFile(filepath.Join(clone, "more.bin"), []byte("second\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	commit(t, clone, "more")
	git(t, clone, "push", "-q", "origin", "main")
	sum := sha256.Sum256([]byte("second\n"))
	if up.mu.Lock(); string(up.objects[hex.EncodeToString(sum[:])]) != "second\n" {
		t.Errorf("the upstream does not have it")
	}
	up.mu.Unlock()
}

func (w *world) post(name, path, body, auth string) *http.Response {
	return w.do(http.MethodPost, name, path, body, auth)
}

func (w *world) do(method, name, path, body, auth string) *http.Response {
	w.t.Helper()
	req, err := http.NewRequest(method, w.at(name)+path, strings.NewReader(body))
	if err != nil {
		w.t.Fatal(err)
	}
	if auth != "" {
		req.Header.Set("Authorization", auth)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { resp.Body.Close() })
	return resp
}
