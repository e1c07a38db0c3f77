package main_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"codeberg.org/devaipod/devaipod/ci"
	"codeberg.org/devaipod/devaipod/ci/cache"
	"codeberg.org/devaipod/devaipod/ci/job"
	devaipod "codeberg.org/devaipod/devaipod/cmd/devaipod"
)

func TestWhereAJobFindsTheForge(t *testing.T) {
	for forge, want := range map[string]int{
		"http://127.0.0.1:3000": 3000, "http://localhost:3000/sub": 3000, "http://[::1]:3001": 3001,
		"https://127.0.0.1:3000": 8098, "https://git.example.org": 8098, "http://git.example.org:3000": 8098,
		"http://127.0.0.1:8099": 8098, "http://127.0.0.1": 8098,
	} {
		u, err := url.Parse(forge)
		if err != nil {
			t.Fatal(err)
		}
		if got := devaipod.PortInJob(u); got != want {
			t.Errorf("%s: %d, not %d", forge, got, want)
		}
	}
}

func TestTheForgesURLsMeanTheDoorInAJob(t *testing.T) {
	context := map[string]any{
		"server_url": "https://git.example.org/sub", "api_url": "https://git.example.org/sub/api/v1", "n": 1.5,
		"event": map[string]any{"urls": []any{"https://git.example.org/sub?x", "https://git.example.org/subway", "https://evil.example.org/?https://git.example.org/sub"}},
	}
	want := map[string]any{
		"server_url": "http://127.0.0.1:8098", "api_url": "http://127.0.0.1:8098/api/v1", "n": 1.5,
		"event": map[string]any{"urls": []any{"http://127.0.0.1:8098?x", "https://git.example.org/subway", "https://evil.example.org/?https://git.example.org/sub"}},
	}
	if got := devaipod.Rebased(context, "https://git.example.org/sub", "http://127.0.0.1:8098"); !reflect.DeepEqual(got, want) {
		t.Errorf("%v", got)
	}
	if context["server_url"] != "https://git.example.org/sub" {
		t.Error("what the runner has was changed")
	}
}

func TestWhichServicesAJobHas(t *testing.T) {
	got, err := devaipod.ServiceNames([]byte("jobs: {a: {services: {redis: {image: r}, db: &x {image: d}, other: *x}}}"))
	if err != nil || !reflect.DeepEqual(got, []string{"db", "other", "redis"}) {
		t.Errorf("%q %v", got, err)
	}
	if got, err := devaipod.ServiceNames([]byte("jobs: {a: {steps: []}}")); err != nil || len(got) != 0 {
		t.Errorf("%q %v", got, err)
	}
	if _, err := devaipod.ServiceNames([]byte("jobs: [")); err == nil {
		t.Error("what is no YAML has services")
	}
}

func TestWhichLabelsAJobWantsAnImageOf(t *testing.T) {
	for workflow, want := range map[string][]string{
		"jobs: {a: {runs-on: box}}":                         {"box"},
		"jobs: {a: {runs-on: [box, other]}}":                {"box", "other"},
		"jobs: {a: {runs-on: box, container: {image: x}}}":  nil,
		"jobs: {a: {runs-on: {group: g}}}":                  nil,
		"jobs: {a: {steps: []}}":                            nil,
		"x: &x box\njobs: {a: {runs-on: *x, container: ~}}": {"box"},
	} {
		if got, err := devaipod.LabelsOf([]byte(workflow)); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %q %v, not %q", workflow, got, err, want)
		}
	}
	if _, err := devaipod.LabelsOf([]byte("jobs: [")); err == nil {
		t.Error("what is no YAML has labels")
	}
}

func TestWhichImagesJobsMayUse(t *testing.T) {
	may := devaipod.CIMayUse(t, map[string]any{"state_dir": "/s", "mirror.dir": "/m", "ci.images": []string{"here=localhost/devaipod/ci:latest"}, "ci.registries": []string{"docker.io"}})
	for image, want := range map[string]bool{
		"localhost/devaipod/ci:latest": true, "docker.io/library/redis:7": true, "localhost/devaipod/agent:latest": false,
		"10.0.0.1:5000/x:latest": false, "docker.io.evil.example/x:latest": false, "": false,
	} {
		if err := may(image); (err == nil) != want {
			t.Errorf("%s: %v", image, err)
		}
	}
}

func TestWhatAJobsProcessSays(t *testing.T) {
	var got []job.Event
	take := func(e job.Event) { got = append(got, e) }
	ended, err := devaipod.PassOn(strings.NewReader(`{"step":0,"line":"a"}`+"\n"+`{"step":-2,"result":"success"}`+"\n"), take)
	if err != nil || !ended || len(got) != 2 || *got[0].Line != "a" || got[1].Result != job.Success {
		t.Errorf("%v %v %v", got, ended, err)
	}
	for text, why := range map[string]string{
		"":                                  "",
		`{"step":0,"line":"a"}` + "\n{\"st": "unexpected end",
		"\x1b[2J\n":                         "invalid character",
		strings.Repeat("x", 9<<20):          "too long",
	} {
		got = nil
		ended, err := devaipod.PassOn(strings.NewReader(text), take)
		if ended || (err == nil) != (why == "") || err != nil && !strings.Contains(err.Error(), why) {
			t.Errorf("%.20q: %v %v, not %s", text, ended, err, why)
		}
	}
}

func TestWhatAJobMaySave(t *testing.T) {
	for text, want := range map[string]int64{"10GiB": 10 << 30, "1MiB": 1 << 20, "0": 0, "512KiB": -1, "": -1, "0GiB": -1, "10": -1} {
		got, err := devaipod.CICache(text)
		if (err != nil) != (want < 0) || err == nil && got != want {
			t.Errorf("%q: %d %v", text, got, err)
		}
	}
}

func TestWhoseCacheAJobHas(t *testing.T) {
	for name, tt := range map[string]struct {
		job  ci.Job
		want cache.Tier // "" for no cache
	}{
		"an agent's":                   {ci.Job{Tier: ci.Untrusted}, cache.Untrusted},
		"an agent's, whatever it asks": {ci.Job{Tier: ci.Untrusted, Secrets: true}, cache.Untrusted},
		"a person's":                   {ci.Job{Tier: ci.Trusted}, cache.Trusted},
		"a person's, with secrets":     {ci.Job{Tier: ci.Trusted, Secrets: true}, cache.Secret},
		"of a tier that is not known":  {ci.Job{Tier: "x"}, cache.Untrusted},
		"of nobody knows whom":         {ci.Job{Tier: ci.Trusted, Info: ci.Info{RepoID: -1}}, ""},
	} {
		j := tt.job
		j.Repo, j.Ref, j.Base, j.Main = "ada/app", "refs/pull/1/head", "refs/heads/b", "refs/heads/main"
		j.RepoID += 7
		if tt.want == "" {
			j.RepoID = 0
		}
		got, ok := devaipod.CacheScope(j)
		want := cache.Scope{Repo: 7, Name: "ada/app", Tier: tt.want, Ref: "refs/pull/1/head", Base: "refs/heads/b", Main: "refs/heads/main"}
		if ok != (tt.want != "") || ok && got != want {
			t.Errorf("%s: %+v %v", name, got, ok)
		}
	}
	if _, ok := devaipod.CacheScope(ci.Job{Info: ci.Info{RepoID: 7}}); ok {
		t.Error("a job of no ref has a cache")
	}
}

func TestSeeingAndRemovingWhatJobsSaved(t *testing.T) {
	state := t.TempDir()
	t.Setenv("HOME", state)
	t.Setenv("DEVAIPOD_STATE_DIR", state)
	store, err := cache.Open(cache.Config{Dir: filepath.Join(state, "ci/cache"), Max: 1 << 30, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []cache.Scope{
		{Repo: 1, Name: "ada/app", Tier: cache.Trusted, Ref: "refs/heads/main"},
		{Repo: 1, Name: "ada/app", Tier: cache.Untrusted, Ref: "refs/heads/agent/1"},
		{Repo: 2, Name: "bob/lib", Tier: cache.Trusted, Ref: "refs/heads/main"},
	} {
		for _, key := range []string{"deps", "evil\x1b[2J\u202e"} {
			saveCache(t, store, s, key)
		}
	}
	devaipod := func(args ...string) (string, error) {
		var out, errs bytes.Buffer
		err := devaipod.Run(t.Context(), append([]string{"ci", "cache"}, args...), strings.NewReader(""), &out, &errs)
		return out.String() + errs.String(), err
	}
	out, err := devaipod()
	if err != nil || strings.Count(out, "deps") != 3 || strings.Count(out, "refs/heads/agent/1  untrusted  deps") != 1 || strings.ContainsAny(out, "\x1b\u202e") {
		t.Errorf("%v\n%s", err, out)
	}
	if out2, err := devaipod("list"); err != nil || len(strings.Split(out2, "\n")) != len(strings.Split(out, "\n")) {
		t.Errorf("%v\n%s", err, out2)
	}
	list := func() (all []cache.Entry) {
		out, err := devaipod("--json")
		if err != nil || json.Unmarshal([]byte(out), &all) != nil {
			t.Fatal(err, out)
		}
		return all
	}
	all := list()
	for _, tt := range []struct {
		args []string
		left int
		says string
	}{
		{[]string{"rm", "nothing"}, 6, "nothing is saved"},
		{[]string{"rm"}, 6, "want one"},
		{[]string{"rm", "deps", "--all"}, 6, "want one"},
		{[]string{"rm", all[0].ID[:8]}, 6, "nothing is saved"},
		{[]string{"rm", all[0].ID[:12]}, 5, "removed 1"},
		{[]string{"rm", all[1].ID}, 4, "removed 1"},
		{[]string{"rm", "--all", "--repo", "nobody/x"}, 4, "removed 0"},
		{[]string{"delete", "DEPS", "-R", "Ada/app"}, -1, "removed"},
		{[]string{"rm", "--all", "-R", "ada/app"}, -1, "removed"},
		{[]string{"rm", "--all"}, 0, "removed"},
	} {
		out, err := devaipod(tt.args...)
		if left := len(list()); !strings.Contains(out+fmt.Sprint(err), tt.says) || (err == nil) != strings.HasPrefix(tt.says, "removed") || tt.left >= 0 && left != tt.left {
			t.Errorf("%q: %v %s, %d are left", tt.args, err, out, left)
		}
	}
	if names, err := os.ReadDir(filepath.Join(state, "ci/cache/tmp")); err != nil || len(names) != 0 {
		t.Errorf("%v %v", names, err)
	}
}

// saveCache saves x as a job would.
func saveCache(t *testing.T, store *cache.Store, scope cache.Scope, key string) {
	t.Helper()
	j := store.Job(scope, "http://127.0.0.1/")
	defer j.Close()
	s := httptest.NewServer(j)
	defer s.Close()
	text, err := json.Marshal(map[string]string{"key": key, "version": "v"})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []struct{ method, path, body string }{{"POST", "caches", string(text)}, {"PATCH", "caches/1", "x"}, {"POST", "caches/1", `{"size":1}`}} {
		req, err := http.NewRequest(r.method, s.URL+cache.Path+r.path, strings.NewReader(r.body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Range", "bytes 0-0/*")
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode >= 300 {
			t.Fatalf("%s: %s", r.path, res.Status)
		}
	}
}

func TestJobsMayHaveNoLimitButOneOfTheLog(t *testing.T) {
	for _, c := range []struct {
		memory, disk, log string
		wrong             string // the key, "" for none
	}{{"0", "0", "1MiB", ""}, {"1GiB", "2GiB", "1MiB", ""}, {"1GiB", "0", "0", "ci.log"}, {"1", "0", "1MiB", "ci.memory"}, {"0", "much", "1MiB", "ci.disk"}} {
		err := devaipod.CILimits(c.memory, c.disk, c.log)
		if (err != nil) != (c.wrong != "") || err != nil && !strings.Contains(err.Error(), c.wrong) {
			t.Errorf("%v: %v", c, err)
		}
	}
}
